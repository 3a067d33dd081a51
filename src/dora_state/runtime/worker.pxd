# What is a field and a call of C in the compiled worker.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Channel, Message
from dora_state.runtime.sending cimport Sender
from dora_state.runtime.step cimport Stage, Step


@cython.final
cdef class Worker:
    cdef readonly Channel host
    cdef readonly object config
    cdef readonly long long number
    cdef readonly bint late
    cdef readonly unsigned long long incarnation
    cdef readonly str phase
    cdef readonly object store
    cdef readonly object operator
    cdef readonly object shared
    cdef object _fields
    cdef object _module
    cdef Sender _sender
    cdef bint _warned_none
    cdef public object note
    cdef int _parent
    cdef object _baseline
    cdef bint _owes_holdings
    cdef Stage _starting
    cdef object _started
    cdef object __weakref__

    cdef _handle(self, Message message)
    cdef int _status(self, object returned) except -1
    cdef _commit(self, dict changes, Step done=*)
