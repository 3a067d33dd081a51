# What is a field and a call of C in the compiled spares.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.handle cimport Worker


@cython.final
cdef class Spares:
    cdef public Worker spare
    cdef readonly bint imports_late
    cdef readonly double not_before
    cdef object _operator
    cdef bint _is_kept
    cdef double _backoff_s

    cdef bint is_wanted(self)
