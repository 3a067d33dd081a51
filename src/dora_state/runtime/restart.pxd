# What is a field and a call of C in the compiled restart.py: see CMakeLists.txt.

cimport cython


@cython.final
cdef class Restarts:
    cdef object _node_id
    cdef object _account
    cdef object _publish
    cdef object _restart

    cpdef finish(self, object successor)
