# What is a field and a call of C in the compiled stopping.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.inputs cimport InputBuffer


@cython.final
cdef class Stopping:
    cdef InputBuffer _input
    cdef readonly double grace_s
    cdef public bint clean
    cdef public str why
    cdef public bint failed
    cdef bint _input_closed
    cdef bint _requested
    cdef bint _request_is_clean
    cdef bint _gave_up
    cdef object _deadline
    cdef object _last_call

    cpdef bint check(self, double now)
