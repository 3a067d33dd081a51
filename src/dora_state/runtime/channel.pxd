# What is a field and a call of C in the compiled channel.py: see CMakeLists.txt.

cimport cython


@cython.final
cdef class Message:
    cdef readonly int kind
    cdef readonly object document
    cdef readonly list buffers
    cdef readonly int attempt


cpdef bytes pack(object document, object other=*)
cpdef object unpack(object data)
cpdef list frame(int kind, bytes document, object buffers=*, int attempt=*)


@cython.final
cdef class Channel:
    cdef readonly object socket
    cdef readonly set known_types
    cdef readonly dict types
    cdef readonly object sharing
    cdef object _lock
    cdef object _unsent
    cdef bytes _rest
    cdef object _body
    cdef Py_ssize_t _body_filled
    cdef tuple _body_header

    cpdef send(self, int kind, bytes document, object buffers=*)
    cpdef send_pieces(self, list pieces)
    cpdef tell_returned(self)
    cdef _flush(self)
    cpdef list receive(self)
    cdef list _split(self, bytes data)
    cdef Message _parse(self, int kind, Py_ssize_t count, int attempt, Py_ssize_t document_size, object data,
                        Py_ssize_t at)
