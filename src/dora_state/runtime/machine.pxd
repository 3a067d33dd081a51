# What is a field and a call of C in the compiled machine.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Message
from dora_state.runtime.deadline cimport Deadline, earlier
from dora_state.runtime.delivery cimport Delivery
from dora_state.runtime.handle cimport Worker
from dora_state.runtime.inputs cimport InputBuffer
from dora_state.runtime.restart cimport Restarts
from dora_state.runtime.stopping cimport Stopping
from dora_state.runtime.succession cimport Succession
from dora_state.runtime.verdict cimport Verdict
from dora_state.runtime.workers cimport Workers


@cython.final
cdef class Machine:
    cdef public object state
    cdef public object outcome
    cdef public object store
    cdef public object keeper
    cdef object _config
    cdef InputBuffer _input
    cdef object _publish
    cdef object _can_send
    cdef double _start_at
    cdef readonly object account
    cdef readonly Stopping stopping
    cdef readonly Workers workers
    cdef readonly object letters
    cdef readonly object requests
    cdef readonly Deadline hang
    cdef readonly Delivery delivery
    cdef object _offer
    cdef readonly Verdict verdict
    cdef readonly Succession succession
    cdef Restarts _restarts
    cdef object __weakref__

    cpdef object timeout(self)
    cpdef run_timers(self)
    cpdef advance(self)
    cdef bint _wants_spare(self)
    cdef _dispatch(self)
    cpdef _on_message(self, Worker each, Message message)
    cdef _on_done(self, Worker by, unsigned long long number, int status)
