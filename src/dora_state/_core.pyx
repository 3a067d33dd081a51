# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True, freethreading_compatible=False
"""The binding of the store engine: convert, one C call, check, convert back.

The GIL is held for lookups and small puts, which are shorter than releasing it (a put costs about 100 ns, giving the
GIL up and taking it back 40 ns and a chance to wait for another thread); it is released for large copies, syncs, opens
and whatever may wait.
"""

import math
import os
import time

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport get_value
from cpython.dict cimport PyDict_CheckExact
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.unicode cimport PyUnicode_Check, PyUnicode_DecodeUTF8
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    # Without the "except" of Cython's own declaration: saving the state of exceptions costs as much as the call.
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) noexcept

from dora_state import errors

USER = DS_USER
RUNTIME = DS_RUNTIME

cdef enum:
    _SLICE_MS = 100
    LARGE = 64 * 1024  # bytes; from here on a copy takes longer than giving up the GIL
    FEW = 64  # changes in a commit for which the GIL is kept

cdef enum:  # what an iteration gives
    ALL, KEYS, VALUES, ITEMS, VIEWS

cdef dict _durabilities = {"process": DS_PROCESS, "group": DS_GROUP, "commit": DS_COMMIT}

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


cdef object _put_expiring(Store store, key, value, uint64_t ttl_ns):
    """put() with a time to live."""
    cdef Py_ssize_t key_size
    cdef const char *c_key = _key(key, &key_size)
    cdef uint64_t sequence = 0
    cdef ds_status status
    cdef Py_buffer view
    _open_buffer(value, &view)
    store.calls += 1
    with nogil:
        status = ds_put_expiring(store.handle, DS_USER, c_key, key_size, view.buf, view.len, ttl_ns, &sequence)
    store.calls -= 1
    PyBuffer_Release(&view)
    if status != DS_OK:
        raise _error(status)
    return sequence


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

    def __init__(self, path, *, str durability="process", int group_ms=DS_GROUP_MS, lock_timeout=10.0,
                 bint read_only=False, bint create=True, unsigned long long incarnation=0):
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
        if group_ms < 1:
            raise ValueError(f"group_ms is at least 1 millisecond, not {group_ms}")
        if lock_timeout is not None and not 0 <= lock_timeout <= 2_000_000:
            raise ValueError(f"lock_timeout is None or 0 to 2000000 seconds, not {lock_timeout!r}")
        ds_options_init(&options)
        options.durability = _durabilities[durability]
        options.group_ms = group_ms
        options.lock_timeout_ms = -1 if lock_timeout is None else <int>(lock_timeout * 1000)
        options.read_only = read_only
        options.create = create
        options.incarnation = incarnation
        with nogil:
            status = ds_open(c_name, &options, &self.handle)
        if status != DS_OK:
            raise _error(status)
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
        while self.calls > 0 or _direct_calls(&self.direct_calls) > 0:
            time.sleep(0.001)  # gives up the GIL, which they need to end
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
            return _put_expiring(self, key, value, _ttl_ns(ttl))
        if PyBytes_CheckExact(value) and PyBytes_GET_SIZE(value) < LARGE:
            status = ds_try_put(self.handle, DS_USER, c_key, key_size, PyBytes_AS_STRING(value),
                                PyBytes_GET_SIZE(value), &sequence)
            if status == DS_OK:
                return sequence
            if status != DS_TIMEOUT and status != DS_FULL:
                raise _error(status)
        return self._put_slowly(key, value)

    cdef object _put_slowly(self, key, value):
        """Whatever may take long: a large value, another writer, the disk."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef uint64_t sequence = 0
        cdef ds_status status
        cdef Py_buffer view
        _open_buffer(value, &view)
        self.calls += 1
        with nogil:
            status = ds_put(self.handle, DS_USER, c_key, key_size, view.buf, view.len, &sequence)
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
        cdef list names = list(keys)
        cdef Py_ssize_t count = len(names), i, size
        cdef ds_status status = DS_OK
        cdef ds_bytes *wanted = <ds_bytes *>PyMem_Malloc(max(1, count) * sizeof(ds_bytes))
        cdef ds_value *values = <ds_value *>PyMem_Malloc(max(1, count) * sizeof(ds_value))
        cdef dict found = {}
        cdef Py_ssize_t done = 0, pinned = 0
        try:
            if wanted is NULL or values is NULL:
                raise MemoryError()
            for i in range(count):
                wanted[i].data = _key(names[i], &size)
                wanted[i].size = size
            self.calls += 1
            with nogil:
                status = ds_get_many(self.handle, DS_USER, wanted, count, values)
            self.calls -= 1
            if status != DS_OK:
                raise _error(status)
            pinned = count
            while done < count:
                done += 1  # first: _copy() gives up the pin also when it fails
                if values[done - 1].owner is not NULL:
                    found[names[done - 1]] = _copy(self, &values[done - 1])
        finally:
            for i in range(done, pinned):
                if values[i].owner is not NULL:
                    ds_unpin(&values[i])
            PyMem_Free(wanted)
            PyMem_Free(values)
        return found

    def wait(self, key, *, unsigned long long after, timeout=None, bint prefix=False):
        """Sleep until `key` has a commit after the sequence `after`; a delete counts.

        timeout: seconds; None: for ever. prefix: any key that begins with `key` will do.
        Returns the sequence, or None when the time is up.
        """
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef uint64_t sequence = 0
        cdef ds_status status = DS_OK
        cdef int64_t left_ms
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout is None or seconds from 0 up, not {timeout!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            # In slices, so that signals are handled while nothing happens.
            left_ms = _SLICE_MS if deadline is None else <int64_t>min(
                _SLICE_MS, max(0, math.ceil((deadline - time.monotonic()) * 1000)))
            self.calls += 1
            with nogil:
                status = ds_wait(self.handle, DS_USER, c_key, key_size, prefix, after, left_ms, &sequence)
            self.calls -= 1
            if status == DS_OK:
                return sequence
            if status != DS_TIMEOUT:
                raise _error(status)
            if deadline is not None and time.monotonic() >= deadline:
                return None
            PyErr_CheckSignals()
            if self.handle is NULL:
                raise errors.StoreClosed(f"{self.path}: the store was closed during a wait")

    def _turn_wait(self, key, uint32_t token):
        """Wait while somebody else has a turn at `key`: see turn.c."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        self.calls += 1
        with nogil:
            ds_turn_wait(self.handle, DS_USER, c_key, key_size, token)
        self.calls -= 1

    def _turn_take(self, key, double seconds, uint32_t token):
        """Ask for a turn at `key`, or for more of it; returns its token, 0 if somebody else has one."""
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef ds_status status = ds_turn_take(self.handle, DS_USER, c_key, key_size, <uint32_t>(seconds * 1000), &token)
        if status != DS_OK:
            raise _error(status)
        return token

    def _turn_end(self, uint32_t token):
        ds_turn_end(self.handle, token)

    def changes(self, *, unsigned long long after=0):
        """Iterates over the commits after the sequence `after`, in order, as (sequence, {key: value or None}).

        None stands for a delete. The iteration ends at the newest commit; ask again with the last sequence to go on.
        Raises Compacted if some of them are gone: read all keys, and go on from the sequence before that.
        """
        return _Changes(self, after)

    def compact(self):
        """Drop all that is overwritten or deleted. Compaction runs by itself; this makes a directory small at once."""
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_compact(self.handle)
        self.calls -= 1
        if status != DS_OK:
            raise _error(status)

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
        if not isinstance(key, str):
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
        cdef Batch batch = _new_batch(self)
        cdef object key, value
        if more or not PyDict_CheckExact(other):
            other = dict(other, **more)
        for key, value in (<dict>other).items():
            batch._add(DS_PUT, DS_USER, key, value if PyBytes_CheckExact(value) else _as_bytes(value), None)
        return batch.commit()

    def settle(self):
        """Repair what a dead writer left, so that what is read afterwards is decided. Returns the sequence."""
        cdef uint64_t sequence = 0
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_settle(self.handle, &sequence)
        self.calls -= 1
        if status != DS_OK:
            raise _error(status)
        return sequence

    def fence(self, unsigned long long incarnation):
        """settle(), and from now on commits of handles with a lower incarnation raise Fenced."""
        cdef uint64_t sequence = 0
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_fence(self.handle, incarnation, &sequence)
        self.calls -= 1
        if status != DS_OK:
            raise _error(status)
        return sequence

    def sync(self):
        """Return when all that is committed survives power loss."""
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_sync(self.handle)
        self.calls -= 1
        if status != DS_OK:
            raise _error(status)

    def verify(self):
        """Check every frame and record of the log and every slot of the index; returns the number of frames.

        Raises CorruptionError at the first that is wrong. Writers wait meanwhile.
        """
        cdef uint64_t frames = 0
        cdef ds_status status
        self.calls += 1
        with nogil:
            status = ds_verify(self.handle, &frames)
        self.calls -= 1
        if status != DS_OK:
            raise _error(status)
        return frames

    def stats(self):
        """Numbers about the store: keys, bytes, offsets, sequences (see ds_stats in dora_state.h)."""
        cdef ds_stats stats
        cdef ds_status status = ds_stats_read(self.handle, &stats)
        if status != DS_OK:
            raise _error(status)
        return {
            "keys": stats.keys[DS_USER],
            "runtime_keys": stats.keys[DS_RUNTIME],
            "live_bytes": stats.live_bytes,
            "log_bytes": stats.log_bytes,
            "sequence": stats.sequence,
            "committed": stats.committed,
            "synced": stats.synced,
            "fence": stats.fence,
            "dropped_bytes": stats.dropped_bytes,
            "repairs": stats.repairs,
            "index_slots": stats.index_slots,
            "relocated_bytes": stats.relocated_bytes,
            "dropped_segments": stats.dropped_segments,
            "waits": stats.waits,
            "verified_bytes": stats.verified_bytes,
            "expired_keys": stats.expired_keys,
            "clock_ns": stats.clock_ns,
        }

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


cdef class _Scan:
    """An iterator over one keyspace at one point."""

    cdef Store store
    cdef ds_cursor *cursor
    cdef int what
    cdef bint busy  # another thread is in __next__ without the GIL

    def __cinit__(self, Store store not None, int keyspace, int what):
        cdef ds_status status
        self.store = store
        self.cursor = NULL
        self.what = what
        store.calls += 1
        with nogil:
            status = ds_cursor_open(store.handle, <uint8_t>keyspace, &self.cursor)
        store.calls -= 1
        if status != DS_OK:
            raise _error(status)

    def __dealloc__(self):
        if self.cursor is not NULL:
            ds_cursor_close(self.cursor)

    def __iter__(self):
        return self

    def __next__(self):
        cdef const void *key
        cdef size_t key_size
        cdef ds_value value
        cdef ds_status status
        if self.store.handle is NULL:  # the cursor looks into a handle that is gone
            raise errors.StoreClosed(f"{self.store.path}: the store was closed during an iteration")
        if self.busy:
            raise ValueError("another thread is taking the next item of this iteration")
        if self.what == VIEWS:
            status = ds_cursor_next(self.cursor, &key, &key_size, &value)
        else:
            status = ds_cursor_peek(self.cursor, &key, &key_size, &value)
        if status == DS_OK:
            return self._item(key, key_size, &value)
        if status == DS_MISSING:
            raise StopIteration
        raise _error(status)

    cdef object _item(self, const void *key, size_t key_size, ds_value *value):
        cdef _Pinned pinned
        if self.what == VIEWS:
            pinned = _Pinned.__new__(_Pinned)
            pinned.value = value[0]
            ttl = ds_cursor_ttl(self.cursor)
            return _name(key, key_size), memoryview(pinned), value.sequence, ttl / 1e9 if ttl else None
        if self.what == KEYS:
            return _name(key, key_size)
        if self.what == VALUES:
            return self._bytes(value)
        if self.what == ITEMS:
            return _name(key, key_size), self._bytes(value)
        return _name(key, key_size), self._bytes(value), value.sequence

    cdef object _bytes(self, ds_value *value):
        if value.size < LARGE:
            return _bytes_of(self.store, value)
        self.busy = True
        try:
            return _bytes_of(self.store, value)
        finally:
            self.busy = False


cdef inline object _name(const void *key, size_t key_size):
    return PyUnicode_DecodeUTF8(<const char *>key, <Py_ssize_t>key_size, "surrogateescape")


cdef class _Changes:
    """An iterator over commits."""

    cdef Store store
    cdef ds_changes *changes

    def __cinit__(self, Store store not None, uint64_t after):
        self.store = store
        self.changes = NULL
        cdef ds_status status
        store.calls += 1
        with nogil:
            status = ds_changes_open(store.handle, DS_USER, after, &self.changes)
        store.calls -= 1
        if status != DS_OK:
            raise _error(status)

    def __dealloc__(self):
        if self.changes is not NULL:
            ds_changes_close(self.changes)

    def __iter__(self):
        return self

    def __next__(self):
        cdef ds_change_told told
        cdef ds_status status
        cdef dict commit = {}
        if self.store.handle is NULL:
            raise errors.StoreClosed(f"{self.store.path}: the store was closed during an iteration")
        while True:
            self.store.calls += 1
            with nogil:
                status = ds_changes_next(self.changes, &told)
            self.store.calls -= 1
            if status == DS_MISSING:
                raise StopIteration
            if status != DS_OK:
                raise _error(status)
            value = _copy(self.store, &told.value) if told.kind == DS_PUT else None
            key = PyUnicode_DecodeUTF8(<const char *>told.key, <Py_ssize_t>told.key_size, "surrogateescape")
            commit[key] = value
            if told.last:
                return told.sequence, commit


cdef Batch _new_batch(Store store):
    cdef Batch batch = Batch.__new__(Batch)
    batch.store = store
    return batch


cdef void _forget(ds_change *changes, PyObject **kept, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    for i in range(2 * count):
        Py_DECREF(<object>kept[i])
    PyMem_Free(changes)


cdef class Batch:
    """Changes that become one commit: all or nothing, for readers and after a crash.

    Values are copied when they are given. A key named twice takes its last change. As a context manager it commits at
    the end of the block; an exception discards the changes.
    """

    def __cinit__(self):
        self.changes = NULL
        self.kept = NULL

    def __dealloc__(self):
        _forget(self.changes, self.kept, self.count)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.commit()
        else:
            self.clear()

    cdef int _make_room(self) except -1:
        cdef Py_ssize_t room = 2 * self.room if self.room else 16
        cdef ds_change *changes = <ds_change *>PyMem_Malloc(room * (sizeof(ds_change) + 2 * sizeof(PyObject *)))
        cdef PyObject **kept = <PyObject **>(changes + room)  # in one piece: half as many calls
        if changes is NULL:
            raise MemoryError()
        if self.count > 0:
            memcpy(changes, self.changes, self.count * sizeof(ds_change))
            memcpy(kept, self.kept, 2 * self.count * sizeof(PyObject *))
        PyMem_Free(self.changes)
        self.changes = changes
        self.kept = kept
        self.room = room
        return 0

    cdef int _add(self, ds_change_kind kind, int keyspace, key, bytes value, expected, uint64_t ttl_ns=0) except -1:
        cdef Py_ssize_t key_size
        cdef const char *c_key = _key(key, &key_size)
        cdef ds_change *change
        cdef uint64_t sequence = 0 if expected is None else expected
        if not 0 <= keyspace < DS_KEYSPACES:
            raise ValueError(f"a keyspace is USER or RUNTIME, not {keyspace}")
        if self.count == self.room:
            self._make_room()
        Py_INCREF(key)  # its UTF-8 lives as long as it does
        Py_INCREF(value)
        self.kept[2 * self.count] = <PyObject *>key
        self.kept[2 * self.count + 1] = <PyObject *>value
        change = &self.changes[self.count]
        change.kind = kind
        change.keyspace = <uint8_t>keyspace
        change.expect = expected is not None
        change.expected = sequence
        change.key = c_key
        change.key_size = key_size
        change.value = PyBytes_AS_STRING(value)
        change.value_size = PyBytes_GET_SIZE(value)
        change.ttl_ns = ttl_ns
        self.count += 1
        self.bytes += PyBytes_GET_SIZE(value)
        return 0

    def put(self, key, value, int keyspace=DS_USER, expected=None, *, ttl=None):
        """Keep `value` under `key`; with `expected`, only if the key is at that sequence (0: missing).

        ttl: so many seconds after the commit the key is missing again; None: never.
        """
        cdef uint64_t ttl_ns = 0 if ttl is None else _ttl_ns(ttl)
        self._add(DS_PUT, keyspace, key, value if PyBytes_CheckExact(value) else _as_bytes(value), expected, ttl_ns)

    def delete(self, key, int keyspace=DS_USER, expected=None):
        """Forget `key`; a missing one is fine."""
        self._add(DS_DELETE, keyspace, key, b"", expected)

    def expect(self, key, unsigned long long sequence, int keyspace=DS_USER):
        """Write nothing, but raise Conflict at commit() unless `key` is at `sequence` (0: missing)."""
        self._add(DS_EXPECT, keyspace, key, b"", sequence)

    def clear(self):
        """Forget all changes."""
        cdef ds_change *changes = self.changes
        cdef PyObject **kept = self.kept
        cdef Py_ssize_t count = self.count
        self._take_out()
        _forget(changes, kept, count)

    cdef void _take_out(self) noexcept:
        """Empty; the changes are the caller's."""
        self.changes = NULL
        self.kept = NULL
        self.count = 0
        self.room = 0
        self.bytes = 0

    def __len__(self):
        return self.count

    def commit(self):
        """Commit the changes and empty the batch; returns the sequence. On an error the batch is as it was."""
        cdef uint64_t sequence = 0
        cdef ds_status status = DS_TIMEOUT
        # Taken out, so that another thread that adds to the batch meanwhile does not move them.
        cdef ds_change *changes = self.changes
        cdef PyObject **kept = self.kept
        cdef Py_ssize_t count = self.count, room = self.room, size = self.bytes
        self._take_out()
        if count <= FEW and size < LARGE:
            status = ds_try_commit(self.store.handle, changes, count, &sequence)
        if status == DS_TIMEOUT or status == DS_FULL:
            self.store.calls += 1
            with nogil:
                status = ds_commit(self.store.handle, changes, count, &sequence)
            self.store.calls -= 1
        if status == DS_OK:
            _forget(changes, kept, count)
            return sequence
        error = _error(status)
        self.clear()
        self.changes = changes
        self.kept = kept
        self.count = count
        self.room = room
        self.bytes = size
        raise error


def repair(path):
    """ds_repair(): the fields of `dora_state.Repaired`, in their order."""
    cdef ds_repair_report report
    cdef ds_status status
    cdef bytes name = os.fsencode(path)
    cdef const char *c_name = name
    if b"\0" in name:
        raise ValueError("a path holds no NUL byte")
    with nogil:
        status = ds_repair(c_name, &report)
    if status != DS_OK:
        raise _error(status)
    first = None if report.first_damage == UINT64_MAX else report.first_damage
    return (report.commits, report.records, report.dropped_bytes, report.damages, report.lost_blobs, first,
            report.sequence, os.fsdecode(<bytes>report.damaged_path))


def exchange(path, other):
    """Two directories swap their names in one step, durably."""
    cdef ds_status status
    cdef bytes a = os.fsencode(path)
    cdef bytes b = os.fsencode(other)
    status = ds_exchange(a, b)
    if status != DS_OK:
        raise _error(status)


# For extension modules: include/dora_state_api.h, and save_state for Cython.

cdef extern from "dora_state_api.h" nogil:
    ctypedef struct ds_api "struct ds_api":
        pass

    const ds_api ds__api

api = PyCapsule_New(<void *>&ds__api, "dora_state._core.api", NULL)

cdef object _save_state = None
cdef object _stage = None


def on_save(save_state, stage):
    """Tells where save_state_direct() goes: to the stage of the handler that runs, else to save_state() of operator.py."""
    global _save_state, _stage
    _save_state = save_state
    _stage = stage


cdef int save_state_direct(str key, const void *value, size_t size) except -1:
    cdef object data = PyBytes_FromStringAndSize(<const char *>value, <Py_ssize_t>size)
    cdef Py_ssize_t key_size
    cdef const char *c_key
    if _save_state is None:
        raise errors.OperatorError("save_state_direct works in an operator that `dora-state run` hosts; a program of your"
                                   " own can use a Store")
    handler = get_value(_stage, None)
    if handler is not None:
        c_key = _key(key, &key_size)
        # What needs no closer look; save_state() says what is wrong with the rest.
        if c_key[0] != b"@" and key_size <= DS_KEY_LIMIT and handler.put(key, data):
            return 0
    _save_state(key, data)
    return 0


include "_mapping.pxi"
include "_lifeline.pxi"
