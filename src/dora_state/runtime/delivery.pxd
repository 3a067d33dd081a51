# What is a field and a call of C in the compiled delivery.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.handle cimport Worker
from dora_state.runtime.inputs cimport Event, InputBuffer


@cython.final
cdef class Delivery:
    cdef InputBuffer _input
    cdef public object _send
    cdef object _account
    cdef object _immediate
    cdef unsigned long long _number
    cdef public Event event
    cdef public Event replay
    cdef Event _drawn
    cdef list _held

    cpdef Event next(self)
    cpdef hand_out(self, Event event, Worker to)
    cpdef take_output(self, object output)
    cpdef Event close(self, unsigned long long number)
    cpdef forward(self, Event event)
