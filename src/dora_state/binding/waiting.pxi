# Sleeping until a key is written, and turns at it: csrc/wait.c, csrc/turn.c.

cdef enum:
    _SLICE_MS = 100
    _FOR_EVER_S = 1_000_000_000  # a timeout of infinity is 30 years


cdef object _wait(Store store, key, uint64_t *after, timeout, bint prefix):
    """*after moves on as far as nothing was found."""
    cdef Py_ssize_t key_size
    cdef const char *c_key = _key(key, &key_size)
    cdef uint64_t sequence = 0
    cdef ds_status status = DS_OK
    cdef int64_t left_ms
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout is None or seconds from 0 up, not {timeout!r}")
    deadline = None if timeout is None else time.monotonic() + min(timeout, _FOR_EVER_S)
    while True:
        # In slices, so that signals are handled while nothing happens.
        left_ms = _SLICE_MS if deadline is None else <int64_t>math.ceil(
            min(_SLICE_MS, max(0, (deadline - time.monotonic()) * 1000)))
        store.calls += 1
        with nogil:
            status = ds_wait(store.handle, DS_USER, c_key, key_size, prefix, after[0], left_ms, &sequence)
        store.calls -= 1
        if status == DS_OK:
            return sequence
        if status != DS_TIMEOUT:
            raise _error(status)
        after[0] = sequence
        if deadline is not None and time.monotonic() >= deadline:
            return None
        PyErr_CheckSignals()
        if store.handle is NULL:
            raise errors.StoreClosed(f"{store.path}: the store was closed during a wait")


cdef void _wait_for_turn(Store store, key, uint32_t token) except *:
    cdef Py_ssize_t key_size
    cdef const char *c_key = _key(key, &key_size)
    store.calls += 1
    with nogil:
        ds_turn_wait(store.handle, DS_USER, c_key, key_size, token)
    store.calls -= 1


cdef uint32_t _take_turn(Store store, key, double seconds, uint32_t token) except? 0:
    cdef Py_ssize_t key_size
    cdef const char *c_key = _key(key, &key_size)
    if not 0 <= seconds <= DS_TURN_LIMIT_MS / 1000:
        raise ValueError(f"a turn takes seconds from 0 to {DS_TURN_LIMIT_MS // 1000}, not {seconds!r}")
    cdef ds_status status = ds_turn_take(store.handle, DS_USER, c_key, key_size, <uint32_t>(seconds * 1000), &token)
    if status != DS_OK:
        raise _error(status)
    return token
