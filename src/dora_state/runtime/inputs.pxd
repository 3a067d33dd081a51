# What is a field and a call of C in the compiled inputs.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Channel
from dora_state.runtime.value cimport Value


@cython.final
cdef class Event:
    cdef readonly str type
    cdef readonly object id
    cdef public bytes packed
    cdef public Value value
    cdef readonly Py_ssize_t size_bytes
    cdef public unsigned long long number
    cdef public long long attempt
    cdef public long long conflicts
    cdef public unsigned long long letter
    cdef list _pieces
    cdef long long _framed
    cdef public object on_over

    cpdef over(self, object how)
    cpdef send(self, Channel to)
    cpdef list pieces(self)
    cpdef bytes message(self)
    cpdef lend_to(self, Channel to)


cpdef Event take_apart(object event, object make_slot=*)


@cython.final
cdef class InputBuffer:
    cdef dict _queue_sizes
    cdef object _queue_size
    cdef readonly object _order
    cdef dict _places
    cdef Py_ssize_t _count
    cdef dict _per_input
    cdef dict _bytes
    cdef object _lock
    cdef readonly dict dropped
    cdef readonly Py_ssize_t dropped_count
    cdef readonly bint stop_seen

    cpdef bint put(self, Event event)
    cpdef Event take(self)
    cdef _drop(self, object input_id)
