# What is a field and a call of C in the compiled handover.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.handle cimport Worker
from dora_state.runtime.inputs cimport Event


@cython.final
cdef class Handover:
    cdef dict __dict__  # what a benchmark puts in the place of a method
    cdef str _operator
    cdef Worker _worker
    cdef readonly Worker _spare
    cdef readonly object terms

    cpdef bint give(self, Event event)
    cpdef Worker disarm(self)
