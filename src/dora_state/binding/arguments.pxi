# What goes in: keys, values, sequences and times to live, as the engine takes them.

cdef object _not_a_key(object key):
    if isinstance(key, str):
        return ValueError(f"a key is text that can be written as UTF-8; {key!r:.80} holds a lone surrogate")
    return TypeError(f"a key is a str, not {type(key).__name__}; use str(key), or key.decode() for bytes")


class RawKey(bytes):
    """A key that need not be UTF-8, for tools: any call that takes a key takes this.

    Iterations give such a key as a str with escaped bytes; `key.encode("utf-8", "surrogateescape")` has them back.
    """


cdef const char *_other_key(object key, Py_ssize_t *size) except NULL:
    if PyUnicode_Check(key):
        if not PyErr_ExceptionMatches(UnicodeEncodeError):
            raise MemoryError()
        PyErr_Clear()
    elif isinstance(key, RawKey):
        size[0] = PyBytes_GET_SIZE(key)
        return PyBytes_AS_STRING(key)
    raise _not_a_key(key)


cdef inline const char *_key(object key, Py_ssize_t *size) except NULL:
    cdef const char *utf8
    if PyUnicode_Check(key):
        utf8 = PyUnicode_AsUTF8AndSize(key, size)
        if utf8 is not NULL:
            return utf8
    return _other_key(key, size)


cdef object _not_a_buffer(object value):
    if isinstance(value, str):
        return TypeError("a value is bytes or another buffer, not str; encode it first: value.encode()")
    if PyObject_CheckBuffer(value):
        return ValueError(f"a value is a contiguous buffer; this {type(value).__name__} is not (make a contiguous copy)")
    return TypeError(f"a value is bytes or another buffer, not {type(value).__name__}")


cdef int _open_buffer(object value, Py_buffer *view) except -1:
    try:
        return PyObject_GetBuffer(value, view, PyBUF_SIMPLE)
    except (TypeError, BufferError, ValueError):
        raise _not_a_buffer(value) from None


cdef bytes _as_bytes(object value):
    """A copy of any buffer."""
    cdef Py_buffer view
    _open_buffer(value, &view)
    try:
        return PyBytes_FromStringAndSize(<char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef uint64_t _ttl_ns(object ttl) except 0:
    """A time to live in seconds as nanoseconds."""
    if not isinstance(ttl, (int, float)) or isinstance(ttl, bool):
        raise TypeError(f"a time to live is a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= DS_TTL_LIMIT_NS // 1_000_000_000:  # NaN, too
        raise ValueError(f"a time to live is more than 0 seconds and at most ten years, not {ttl!r}")
    return max(1, <uint64_t>(ttl * 1_000_000_000))


cdef uint64_t _sequence(object value, str name) except? 0:
    """A sequence or an incarnation. No float: it would be cut off, and mean another commit."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is an int, not {type(value).__name__}") from None
    if not 0 <= number <= UINT64_MAX:
        raise ValueError(f"{name} is a number from 0 to {UINT64_MAX}, not {number}")
    return number


cdef uint32_t _group_ms(object value) except 0:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"group_ms is a whole number of milliseconds, not {value!r}") from None
    if not 1 <= number <= INT32_MAX:
        raise ValueError(f"group_ms is 1 to {INT32_MAX} milliseconds, not {number}")
    return <uint32_t>number
