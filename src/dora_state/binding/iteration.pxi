# Iterating over the keys of one point, and over commits.

cdef enum:  # what an iteration gives
    ALL, KEYS, VALUES, ITEMS, VIEWS


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


cdef class _Changes:
    """An iterator over commits."""

    cdef Store store
    cdef ds_changes *changes
    cdef bint busy  # another thread is in __next__ without the GIL

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
        if self.busy:
            raise ValueError("another thread is taking the next item of this iteration")
        if self.changes is NULL:
            raise StopIteration
        self.busy = True
        try:
            return self._next_commit()
        except StopIteration:
            raise
        except BaseException:
            # As of a generator: going on could tell the rest of a commit as if it were the whole.
            ds_changes_close(self.changes)
            self.changes = NULL
            raise
        finally:
            self.busy = False

    cdef object _next_commit(self):
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
