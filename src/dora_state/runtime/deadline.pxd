# What is a field and a call of C in the compiled deadline.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.handle cimport Worker


cpdef object earlier(object one, object other)


@cython.final
cdef class Deadline:
    cdef object _node_id
    cdef object _kills
    cdef dict _seconds
    cdef object _workers
    cdef Worker _worker
    cdef str _phase
    cdef bint _interrupted
    cdef bint _aborted
    cdef double _began
    cdef readonly object due
    cdef readonly long long passed

    cpdef begin(self, Worker worker, str phase)
    cpdef extend(self)
    cpdef end(self)
    cpdef bint check(self, double now)
