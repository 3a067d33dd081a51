# What is a field in the compiled handle.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Channel


@cython.final
cdef class Worker:
    cdef readonly long long token
    cdef public unsigned long long incarnation
    cdef readonly Channel channel
    cdef public object outputs
    cdef public long long pid
    cdef public object pidfd
    cdef public object born_with
    cdef public object signature
    cdef public dict ready
    cdef public bint is_ready
    cdef public long long commits
    cdef public bint is_restoring
    cdef public bint asked_to_stop
    cdef public str hung
    cdef public dict failure
    cdef public object conflict
    cdef public object noticed_end
    cdef readonly object lifeline
    cdef public list holds
    cdef public bint was_started
    cdef public double started
    cdef public Worker beside
    cdef public object report
    cdef public unsigned long long begun
    cdef public bint is_dead
    cdef public bint is_gone
    cdef public object wait_status
    cdef public bint _watches_room
    cdef object __weakref__
