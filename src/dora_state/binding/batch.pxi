# Changes that become one commit.

cdef enum:
    FEW = 64  # changes in a commit for which the GIL is kept
    LITTLE = 16  # of which update() keeps on the stack


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
        cdef uint64_t sequence = 0 if expected is None else _sequence(expected, "expected")
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

    def expect(self, key, sequence, int keyspace=DS_USER):
        """Write nothing, but raise Conflict at commit() unless `key` is at `sequence` (0: missing)."""
        self._add(DS_EXPECT, keyspace, key, b"", _sequence(sequence, "sequence"))

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


cdef inline bint _point(ds_change *change, object key, object value) noexcept:
    """At what is borrowed, while nothing of Python runs. False: these need a Batch."""
    cdef Py_ssize_t key_size = 0
    cdef const char *c_key
    if not PyUnicode_Check(key) or not PyBytes_CheckExact(value) or PyBytes_GET_SIZE(value) >= LARGE // LITTLE:
        return False
    c_key = PyUnicode_AsUTF8AndSize(key, &key_size)
    if c_key is NULL:
        PyErr_Clear()  # the Batch says what is wrong with it
        return False
    change.kind = DS_PUT
    change.keyspace = DS_USER
    change.expect = False
    change.expected = 0
    change.key = c_key
    change.key_size = key_size
    change.value = PyBytes_AS_STRING(value)
    change.value_size = PyBytes_GET_SIZE(value)
    change.ttl_ns = 0
    return True


cdef uint64_t _put_little(Store store, list pairs) noexcept:
    """A few pairs in one commit, from the stack: without a Batch, a reference and an allocation. 0: they need one."""
    cdef ds_change changes[LITTLE]
    cdef Py_ssize_t count = len(pairs), i
    cdef object pair
    cdef uint64_t sequence = 0
    if not 0 < count <= LITTLE:
        return 0
    for i in range(count):
        pair = pairs[i]
        if type(pair) is not tuple or len(<tuple>pair) != 2:
            return 0
        if not _point(&changes[i], (<tuple>pair)[0], (<tuple>pair)[1]):
            return 0
    return sequence if ds_try_commit(store.handle, changes, count, &sequence) == DS_OK else 0


cdef bint _add_pairs(Batch batch, list pairs) except -1:
    """Puts them all. False, and nothing is: they are not all tuples of two, so a dict should see them."""
    cdef object pair, value
    for pair in pairs:
        if type(pair) is not tuple or len(<tuple>pair) != 2:
            batch.clear()
            return False
        value = (<tuple>pair)[1]
        batch._add(DS_PUT, DS_USER, (<tuple>pair)[0], value if PyBytes_CheckExact(value) else _as_bytes(value), None)
    return True
