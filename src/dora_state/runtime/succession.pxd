# What is a field and a call of C in the compiled succession.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.deadline cimport Deadline
from dora_state.runtime.delivery cimport Delivery
from dora_state.runtime.handle cimport Worker
from dora_state.runtime.handover cimport Handover
from dora_state.runtime.inputs cimport Event, InputBuffer
from dora_state.runtime.verdict cimport Verdict
from dora_state.runtime.workers cimport Workers


@cython.final
cdef class Succession:
    cdef dict __dict__  # what a test puts in the place of a method
    cdef public Worker current
    cdef readonly Handover _handover
    cdef set _awaited
    cdef InputBuffer _input
    cdef Workers _workers
    cdef Delivery _delivery
    cdef object _offer
    cdef Verdict _verdict
    cdef Deadline _hang

    cpdef prepare(self, object store)
    cpdef disarm(self)
