# What is a field and a call of C in the compiled workers.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Message
from dora_state.runtime.handle cimport Worker
from dora_state.runtime.spares cimport Spares


@cython.final
cdef class Workers:
    cdef dict __dict__  # what a test puts in the place of a method
    cdef unsigned long long _incarnation
    cdef object _store
    cdef readonly bint ever_imported
    cdef bint _closing
    cdef object _poller
    cdef object _memory
    cdef public object _on_message
    cdef object _on_end
    cdef object _on_death
    cdef object _on_gone
    cdef object _on_reaped
    cdef object _on_spare_end
    cdef readonly object births
    cdef object _tokens
    cdef readonly dict _alive
    cdef dict _unreaped
    cdef readonly Spares spares
    cdef object _eventfd

    cdef bint wants_spare(self)
    cpdef watch_room(self, Worker to)
    cdef _on_socket(self, Worker each)
    cdef _read(self, Worker each, bint everything)
    cdef _take_in(self, Worker each, Message message)
