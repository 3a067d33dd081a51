# What is a field and a call of C in the compiled waker.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.poller cimport Poller


@cython.final
cdef class Waker:
    cdef Poller _poller
    cdef bint _woken
    cdef bint _sleeps
    cdef bint _has_looked
    cdef readonly object _reader
    cdef object _writer
    cdef object _lock
    cdef bint _is_closed

    cpdef wake(self)
    cpdef turn(self, object timeout)
