# What is a field and a call of C in the compiled value.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Channel


@cython.final
cdef class Value:
    cdef readonly tuple head
    cdef readonly object buffers
    cdef readonly object type_number
    cdef readonly object slot


cpdef object decode(object head, object buffers, dict types)
cpdef tell_type(Channel to, Value value)
cpdef tuple on_the_wire(int kind, Value value)
