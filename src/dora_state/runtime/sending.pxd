# What is a field in the compiled sending.py: see CMakeLists.txt.

cimport cython

from dora_state.runtime.channel cimport Channel
from dora_state.runtime.step cimport Stage


@cython.final
cdef class Sender:
    cdef Channel _host
    cdef str _node_id
    cdef bint _arrow_outputs
    cdef object _immediate
    cdef object _outputs
    cdef set _warned
