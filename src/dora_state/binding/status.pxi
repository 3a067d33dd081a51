# What a status of the engine is in Python.

# Status -> exception class. MISSING is a KeyError of the key, told where the key is known.
cdef dict _classes = {
    DS_INVALID: ValueError,
    DS_TOO_LARGE: errors.TooLarge,
    DS_NO_MEMORY: MemoryError,
    DS_IO: errors.StoreIOError,
    DS_FULL: errors.StoreFull,
    DS_NOT_A_STORE: errors.NotAStoreError,
    DS_FORMAT: errors.FormatError,
    DS_CORRUPT: errors.CorruptionError,
    DS_TIMEOUT: errors.LockTimeout,
    DS_CONFLICT: errors.Conflict,
    DS_FENCED: errors.Fenced,
    DS_FORKED: errors.ForkedHandle,
    DS_READ_ONLY: errors.ReadOnlyError,
    DS_IN_USE: errors.StoreInUse,
    DS_UNSUPPORTED: errors.UnsupportedError,
    DS_CLOSED: errors.StoreClosed,
    DS_COMPACTED: errors.Compacted,
}


cdef object _error(ds_status status):
    """The exception for this thread's last failure."""
    cdef bytes sentence = ds_error()
    message = sentence.decode("utf-8", "replace")
    if status == DS_CONFLICT:
        return errors.Conflict(message, ds_error_sequence())
    if status == DS_IO or status == DS_FULL:
        return _classes[status](ds_error_errno(), message)
    return _classes[status](message)


cdef int _raise(ds_status status) except -1 nogil:
    with gil:
        raise _error(status)
