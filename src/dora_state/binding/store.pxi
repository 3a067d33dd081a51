# The handle: opening, closing, one key at a time. What is longer than a call has a room of its own.

cdef extern from * nogil:
    """
    static inline void dora_state_enter(Py_ssize_t *calls) { __atomic_fetch_add(calls, 1, __ATOMIC_SEQ_CST); }
    static inline void dora_state_leave(Py_ssize_t *calls) { __atomic_fetch_sub(calls, 1, __ATOMIC_RELEASE); }
    static inline Py_ssize_t dora_state_direct_calls(const Py_ssize_t *calls)
    {
        return __atomic_load_n(calls, __ATOMIC_SEQ_CST);
    }
    static inline ds_store *dora_state_get_handle(ds_store *const *handle)
    {
        return __atomic_load_n(handle, __ATOMIC_SEQ_CST);
    }
    static inline void dora_state_set_handle(ds_store **handle, ds_store *to)
    {
        __atomic_store_n(handle, to, __ATOMIC_SEQ_CST);
    }
    """
    void _enter "dora_state_enter"(Py_ssize_t *calls)
    void _leave "dora_state_leave"(Py_ssize_t *calls)
    Py_ssize_t _direct_calls "dora_state_direct_calls"(const Py_ssize_t *calls)
    ds_store *_get_handle "dora_state_get_handle"(ds_store **handle)
    void _set_handle "dora_state_set_handle"(ds_store **handle, ds_store *to)

cdef dict _durabilities = {"process": DS_PROCESS, "group": DS_GROUP, "commit": DS_COMMIT}


cdef class Store:
    """One handle on a store in a directory.

    path: the directory; made (mode 0700) when it is not there and `create` is true.
    durability: when a put returns: "process" (it survives the death of any process), "group" (and, `group_ms`
        milliseconds later at most, power loss), "commit" (it survives power loss).
    lock_timeout: seconds to wait for another writer before LockTimeout; None: for ever.
    read_only: change no byte, not even of the index.
    incarnation: 0, or a number; commits raise Fenced once a higher one was given to `fence`.
    """

    def __cinit__(self):
        self.handle = NULL
        self.calls = 0
        self.direct_calls = 0

    def __init__(self, path, *, str durability="process", group_ms=DS_GROUP_MS, lock_timeout=10.0,
                 bint read_only=False, bint create=True, incarnation=0):
        cdef ds_options options
        cdef ds_status status
        cdef bytes name = os.fsencode(path)
        cdef const char *c_name = name
        if self.path is not None:
            raise errors.StateError(f"{self.path}: a Store is opened once; make another one")
        if b"\0" in name:
            raise ValueError("a path holds no NUL byte")
        if durability not in _durabilities:
            raise ValueError(f'durability is "process", "group" or "commit", not {durability!r}')
        if lock_timeout is not None and not 0 <= lock_timeout <= 2_000_000:
            raise ValueError(f"lock_timeout is None or 0 to 2000000 seconds, not {lock_timeout!r}")
        ds_options_init(&options)
        options.durability = _durabilities[durability]
        options.group_ms = _group_ms(group_ms)
        options.lock_timeout_ms = -1 if lock_timeout is None else <int>(lock_timeout * 1000)
        options.read_only = read_only
        options.create = create
        options.incarnation = _sequence(incarnation, "incarnation")
        with nogil:
            status = ds_open(c_name, &options, &self.handle)
        if status != DS_OK:
            raise _error(status)
        self.opener = os.getpid()
        self.path = os.fsdecode(name)
        self.durability = durability
        self.read_only = read_only
        self.incarnation = incarnation

    def __dealloc__(self):
        # The last resort of a handle nobody closed; what it was told to keep is in the log already.
        if self.handle is not NULL:
            ds_close(self.handle)

    @property
    def closed(self):
        """Whether close() was called."""
        return self.handle is NULL

    def close(self):
        """Sync what was committed and give the handle back; views stay valid. Idempotent.

        Waits for calls that other threads have under way; a wait() among them ends with StoreClosed.
        """
        cdef ds_store *handle = self.handle
        cdef ds_status status
        _set_handle(&self.handle, NULL)
        # In a forked child the threads that were in a call are not there, to end it.
        while self.opener == os.getpid() and (self.calls > 0 or _direct_calls(&self.direct_calls) > 0):
            try:
                time.sleep(0.001)  # gives up the GIL, which they need to end
            except BaseException:  # Ctrl-C; or nobody could ever close it
                if handle is not NULL:
                    _set_handle(&self.handle, handle)
                raise
        with nogil:
            status = ds_close(handle)
        if status != DS_OK:
            raise _error(status)

    def put(self, key, value, *, ttl=None):
        """Keep `value` (a contiguous buffer; copied) under `key`. Returns the commit's sequence.

        ttl: after so many seconds the key is missing again, for everybody; None: never.
        """
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef uint64_t sequence = 0
        cdef ds_status status
        if ttl is not None:
            return self._put_slowly(key, value, _ttl_ns(ttl))
        if PyBytes_CheckExact(value) and PyBytes_GET_SIZE(value) < LARGE:
            status = ds_try_put(self.handle, DS_USER, c_key, key_size, PyBytes_AS_STRING(value),
                                PyBytes_GET_SIZE(value), &sequence)
            if status == DS_OK:
                return sequence
            if status != DS_TIMEOUT and status != DS_FULL:
                raise _error(status)
        return self._put_slowly(key, value, 0)

    cdef object _put_slowly(self, key, value, uint64_t ttl_ns):
        """Whatever may take long: a large value, another writer, the disk. ttl_ns: 0 for ever."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef uint64_t sequence = 0
        cdef ds_status status
        cdef Py_buffer view
        _open_buffer(value, &view)
        self.calls += 1
        with nogil:
            status = ds_put_expiring(self.handle, DS_USER, c_key, key_size, view.buf, view.len, ttl_ns, &sequence)
        self.calls -= 1
        PyBuffer_Release(&view)
        if status != DS_OK:
            raise _error(status)
        return sequence

    def get(self, key, default=None):
        """The value of `key` as bytes, or `default` if it is missing."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef ds_value value
        cdef ds_status status = ds_borrow(self.handle, DS_USER, c_key, key_size, &value)
        if status == DS_OK:
            return _take(self, &value)
        if status == DS_MISSING:
            return default
        raise _error(status)

    def view(self, key):
        """The value of `key` where it lies in the log: a read-only memoryview of bytes, not copied.

        It stays valid and unchanged while it lives, through overwrites, deletes and close(). Should the file be cut
        under it, the lost part reads as zeros.
        Raises KeyError if the key is missing. Values from 4 KiB up are not checked against their hash here.
        """
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef _Pinned pinned = _Pinned.__new__(_Pinned)
        cdef ds_status status = ds_get(self.handle, DS_USER, c_key, key_size, &pinned.value)
        if status == DS_OK:
            return memoryview(pinned)
        pinned.value.owner = NULL
        if status == DS_MISSING:
            raise KeyError(key)
        raise _error(status)

    def get_many(self, keys):
        """The values of several keys at one point, as a dict of bytes; missing keys are left out."""
        return _get_many(self, keys)

    def wait(self, key, *, after, timeout=None, bint prefix=False):
        """Sleep until `key` has a commit after the sequence `after`; a delete counts, and a put that has expired since.

        timeout: seconds; None: for ever. prefix: any key that begins with `key` will do.
        Returns the sequence, or None when the time is up.
        """
        cdef uint64_t sequence = _sequence(after, "after")
        return _wait(self, key, &sequence, timeout, prefix)

    def _wait_on(self, key, after, timeout, bint prefix):
        """wait() for a part of the time: (what it returns, the sequence to go on after)."""
        cdef uint64_t sequence = _sequence(after, "after")
        return _wait(self, key, &sequence, timeout, prefix), sequence

    def _turn_wait(self, key, uint32_t token):
        """Wait while somebody else has a turn at `key`: see turn.c."""
        _wait_for_turn(self, key, token)

    def _turn_take(self, key, double seconds, uint32_t token):
        """Ask for a turn at `key`, or for more of it; returns its token, 0 if somebody else has one."""
        return _take_turn(self, key, seconds, token)

    def _turn_end(self, uint32_t token):
        ds_turn_end(self.handle, token)

    def changes(self, *, after=0):
        """Iterates over the commits after the sequence `after`, in order, as (sequence, {key: value or None}).

        None stands for a delete. The iteration ends at the newest commit; ask again with the last sequence to go on.
        Raises Compacted if some of them are gone: note `stats()["sequence"]`, then read all keys, and go on after what was noted.
        """
        return _Changes(self, _sequence(after, "after"))

    def delete(self, key):
        """Forget `key`. Returns the commit's sequence; raises KeyError if it is missing."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef uint64_t sequence = 0
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_delete(self.handle, DS_USER, c_key, key_size, &sequence)
        self.calls -= 1
        if status == DS_OK:
            return sequence
        if status == DS_MISSING:
            raise KeyError(key)
        raise _error(status)

    def __getitem__(self, key):
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef ds_value value
        cdef ds_status status = ds_borrow(self.handle, DS_USER, c_key, key_size, &value)
        if status == DS_OK:
            return _take(self, &value)
        if status == DS_MISSING:
            raise KeyError(key)
        raise _error(status)

    def __setitem__(self, key, value):
        self.put(key, value)

    def __delitem__(self, key):
        self.delete(key)

    def __contains__(self, key):
        cdef Py_ssize_t key_size
        cdef const char *c_key
        cdef ds_value value
        cdef ds_status status
        if not isinstance(key, (str, RawKey)):
            return False
        c_key = _key(key, &key_size)
        status = ds_get(self.handle, DS_USER, c_key, key_size, &value)
        if status == DS_OK:
            ds_unpin(&value)
            return True
        if status == DS_MISSING:
            return False
        raise _error(status)

    def __len__(self):
        cdef uint64_t count = 0
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_count(self.handle, DS_USER, &count)
        self.calls -= 1
        if status != DS_OK:
            raise _error(status)
        return count

    def _get(self, int keyspace, key):
        """(value, sequence) of a key of any keyspace, or None if it is missing."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef ds_value value
        cdef ds_status status = ds_get(self.handle, <uint8_t>keyspace, c_key, key_size, &value)
        if status == DS_OK:
            sequence = value.sequence
            return _copy(self, &value), sequence
        if status == DS_MISSING:
            return None
        raise _error(status)

    def _view(self, int keyspace, key):
        """(view, sequence) of a key of any keyspace, or None if it is missing."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef _Pinned pinned = _Pinned.__new__(_Pinned)
        cdef ds_status status = ds_get(self.handle, <uint8_t>keyspace, c_key, key_size, &pinned.value)
        if status == DS_OK:
            return memoryview(pinned), pinned.value.sequence
        pinned.value.owner = NULL
        if status == DS_MISSING:
            return None
        raise _error(status)

    def _scan(self, int keyspace, *, bint views=False):
        """Iterates over (key, value, sequence) of a keyspace as it stood when the iteration began.

        views: values as `view` gives them, for who does not need them all as bytes.
        """
        return _Scan(self, keyspace, VIEWS if views else ALL)

    def _keys(self):
        return _Scan(self, DS_USER, KEYS)

    def _values(self):
        return _Scan(self, DS_USER, VALUES)

    def _items(self):
        return _Scan(self, DS_USER, ITEMS)

    def _batch(self):
        """An empty Batch for this store."""
        return _new_batch(self)

    def batch(self):
        """Collects changes and makes them one commit at the end of the block; an exception discards them."""
        return _new_batch(self)

    def update(self, other=(), /, **more):
        """Puts all of these in one commit and returns its sequence."""
        cdef Batch batch
        cdef object key, value
        cdef uint64_t sequence = 0
        if not more and type(other) is list:
            sequence = _put_little(self, <list>other)
            if sequence != 0:
                return sequence
        batch = _new_batch(self)
        if not more and type(other) is list and _add_pairs(batch, <list>other):
            return batch.commit()
        if more or not PyDict_CheckExact(other):
            other = dict(other, **more)
        for key, value in (<dict>other).items():
            batch._add(DS_PUT, DS_USER, key, value if PyBytes_CheckExact(value) else _as_bytes(value), None)
        return batch.commit()

    def settle(self):
        """Repair what a dead writer left, so that what is read afterwards is decided. Returns the sequence."""
        return _settle(self)

    def fence(self, incarnation):
        """settle(), and from now on commits of handles with a lower incarnation raise Fenced."""
        return _fence(self, _sequence(incarnation, "incarnation"))

    def sync(self):
        """Return when all that is committed survives power loss.

        Raises LockTimeout when another sync, behind a stalled disk, took longer than `lock_timeout`: call it again.
        """
        _sync(self)

    def compact(self):
        """Drop all that is overwritten or deleted. Compaction runs by itself; this makes a directory small at once.

        Raises LockTimeout when it had to wait longer than `lock_timeout` for a writer that is stopped, or for another
        compaction behind a stalled disk. What was compacted by then stays so: call it again.
        """
        _compact(self)

    def verify(self):
        """Check every frame and record of the log and every slot of the index; returns the number of frames.

        Raises CorruptionError at the first that is wrong. Writers wait meanwhile.
        """
        return _verify(self)

    def stats(self):
        """Numbers about the store: keys, bytes, offsets, sequences (see ds_stats in dora_state.h)."""
        return _stats(self)

    # Without the GIL. A call counts itself before it looks at the handle and close() takes the handle away before it looks
    # at the count, both sequentially consistent: either close() sees the call, or the call that there is no handle.

    cdef uint64_t put_direct(self, const void *key, size_t key_size, const void *value, size_t size) except 0 nogil:
        cdef uint64_t sequence = 0
        cdef ds_status status
        _enter(&self.direct_calls)
        status = ds_put(_get_handle(&self.handle), DS_USER, key, key_size, value, size, &sequence)
        _leave(&self.direct_calls)
        if status != DS_OK:
            _raise(status)
        return sequence

    cdef bint delete_direct(self, const void *key, size_t key_size) except -1 nogil:
        cdef ds_status status
        _enter(&self.direct_calls)
        status = ds_delete(_get_handle(&self.handle), DS_USER, key, key_size, NULL)
        _leave(&self.direct_calls)
        if status != DS_OK and status != DS_MISSING:
            _raise(status)
        return status == DS_OK

    cdef Py_ssize_t get_direct(self, const void *key, size_t key_size, void *into, size_t room) except -2 nogil:
        cdef ds_store *handle
        cdef ds_value value
        cdef Py_ssize_t size = -1
        cdef ds_status status
        _enter(&self.direct_calls)
        handle = _get_handle(&self.handle)
        status = ds_borrow(handle, DS_USER, key, key_size, &value)
        if status == DS_OK:
            size = <Py_ssize_t>value.size
            if value.size <= room:
                memcpy(into, value.data, value.size)
                status = ds_value_check(&value)
            ds_return(handle, &value)
        _leave(&self.direct_calls)
        if status != DS_OK and status != DS_MISSING:
            _raise(status)
        return size

    cdef bint view_direct(self, const void *key, size_t key_size, ds_value *out) except -1 nogil:
        cdef ds_status status
        _enter(&self.direct_calls)
        status = ds_get(_get_handle(&self.handle), DS_USER, key, key_size, out)
        _leave(&self.direct_calls)
        if status != DS_OK and status != DS_MISSING:
            _raise(status)
        return status == DS_OK

    cdef void release_direct(self, const ds_value *value) noexcept nogil:
        ds_unpin(value)

    cdef uint64_t commit_direct(self, const ds_change *changes, size_t count) except 0 nogil:
        cdef uint64_t sequence = 0
        cdef ds_status status
        _enter(&self.direct_calls)
        status = ds_commit(_get_handle(&self.handle), changes, count, &sequence)
        _leave(&self.direct_calls)
        if status != DS_OK:
            _raise(status)
        return sequence
