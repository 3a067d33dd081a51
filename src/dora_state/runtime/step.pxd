# What is a field and a call of C in the compiled step.py: see CMakeLists.txt.

cimport cython


@cython.final
cdef class Step:
    cdef readonly unsigned long long number
    cdef readonly unsigned long long incarnation
    cdef readonly int status
    cdef readonly long long outputs
    cdef readonly unsigned long long letter

    cpdef bytes pack(self)


@cython.final
cdef class Stage:
    cdef readonly unsigned long long number
    cdef public long long outputs
    cdef public long long output_bytes
    cdef readonly bint is_open
    cdef dict _changes

    cpdef bint put(self, object key, object value)
    cpdef dict close(self)


cpdef fill(object batch, object changes)
cpdef commit(object store, dict changes, Step step=*)
