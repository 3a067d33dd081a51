# What comes out: keys and values as Python objects. A value is copied, or pinned for as long as a view of it lives.

cdef inline object _name(const void *key, size_t key_size):
    return PyUnicode_DecodeUTF8(<const char *>key, <Py_ssize_t>key_size, "surrogateescape")


cdef class _Pinned:
    """Keeps a value in the log readable for as long as a memoryview of it lives."""

    cdef ds_value value

    def __dealloc__(self):
        if self.value.owner is not NULL:
            ds_unpin(&self.value)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.value.data, <Py_ssize_t>self.value.size, 1, flags)

    def __releasebuffer__(self, Py_buffer *buffer):
        pass


cdef object _bytes_of(Store store, const ds_value *value):
    """A value that somebody keeps readable as bytes."""
    cdef object out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>value.size)
    cdef char *to = PyBytes_AS_STRING(out)
    cdef ds_status status
    if value.size < LARGE:
        memcpy(to, value.data, value.size)
    else:
        store.calls += 1
        with nogil:
            memcpy(to, value.data, value.size)
        store.calls -= 1
    status = ds_value_check(value)
    if status != DS_OK:
        raise _error(status)
    return out


cdef object _take(Store store, ds_value *value):
    """A borrowed value as bytes; returns it."""
    cdef ds_store *handle = store.handle  # close() may take it away, but waits
    try:
        return _bytes_of(store, value)
    finally:
        ds_return(handle, value)


cdef object _copy(Store store, ds_value *value):
    """A pinned value as bytes; gives up the pin."""
    try:
        return _bytes_of(store, value)
    finally:
        ds_unpin(value)
