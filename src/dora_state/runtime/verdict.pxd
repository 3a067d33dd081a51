# What is a field and a call of C in the compiled verdict.py: see CMakeLists.txt.

cimport cython


@cython.final
cdef class Verdict:
    cdef object _node_id
    cdef object _policy
    cdef object _workers
    cdef object _delivery
    cdef object _offer
    cdef object _letters
    cdef readonly object history

    cpdef after_commit(self)
