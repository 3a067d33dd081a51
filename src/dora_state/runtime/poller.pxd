# What is a field and a call of C in the compiled poller.py: see CMakeLists.txt.

cimport cython


@cython.final
cdef class Poller:
    cdef object _epoll
    cdef readonly dict _calls

    cpdef turn(self, object timeout)
