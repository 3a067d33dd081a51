# The engine's C interface (csrc/include/dora_state.h) for Cython.
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset


cdef extern from "dora_state.h" nogil:
    ctypedef enum ds_status:
        DS_OK
        DS_MISSING
        DS_INVALID
        DS_TOO_LARGE
        DS_NO_MEMORY
        DS_IO
        DS_FULL
        DS_NOT_A_STORE
        DS_FORMAT
        DS_CORRUPT
        DS_TIMEOUT
        DS_CONFLICT
        DS_FENCED
        DS_FORKED
        DS_READ_ONLY
        DS_IN_USE
        DS_UNSUPPORTED
        DS_CLOSED
        DS_COMPACTED

    const char *ds_status_name(ds_status status)
    const char *ds_error()
    int ds_error_errno()
    uint64_t ds_error_sequence()

    ctypedef struct ds_store:
        pass

    ctypedef enum ds_durability:
        DS_PROCESS
        DS_GROUP
        DS_COMMIT

    enum:
        DS_USER
        DS_RUNTIME
        DS_KEYSPACES
        DS_KEY_LIMIT
        DS_GROUP_MS
        DS_LOCK_TIMEOUT_MS
        DS_TURN_LIMIT_MS

    ctypedef struct ds_options:
        ds_durability durability
        uint32_t group_ms
        int32_t lock_timeout_ms
        bint read_only
        bint create
        uint64_t incarnation

    void ds_options_init(ds_options *options)
    ds_status ds_open(const char *path, const ds_options *options, ds_store **out)
    ds_status ds_close(ds_store *store)

    ctypedef enum ds_change_kind:
        DS_PUT
        DS_DELETE
        DS_EXPECT

    ctypedef struct ds_change:
        ds_change_kind kind
        uint8_t keyspace
        bint expect
        uint64_t expected
        const void *key
        size_t key_size
        const void *value
        size_t value_size
        uint64_t ttl_ns

    const uint64_t DS_TTL_LIMIT_NS
    ds_status ds_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence)
    ds_status ds_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                     size_t value_size, uint64_t *sequence)
    ds_status ds_try_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence)
    ds_status ds_try_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                         size_t value_size, uint64_t *sequence)
    ds_status ds_put_expiring(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                              size_t value_size, uint64_t ttl_ns, uint64_t *sequence)
    ds_status ds_delete(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint64_t *sequence)

    ctypedef struct ds_value:
        const void *data
        size_t size
        uint64_t sequence
        void *owner

    ds_status ds_get(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out)
    void ds_pin(const ds_value *value)
    ds_status ds_borrow(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out)
    void ds_return(ds_store *store, const ds_value *value)
    void ds_unpin(const ds_value *value)
    ds_status ds_value_check(const ds_value *value)

    ctypedef struct ds_bytes:
        const void *data
        size_t size

    ds_status ds_get_many(ds_store *store, uint8_t keyspace, const ds_bytes *keys, size_t count, ds_value *values)

    ctypedef struct ds_cursor:
        pass

    ds_status ds_cursor_open(ds_store *store, uint8_t keyspace, ds_cursor **out)
    ds_status ds_cursor_next(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value)
    uint64_t ds_cursor_ttl(const ds_cursor *cursor)
    ds_status ds_cursor_peek(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value)
    void ds_cursor_close(ds_cursor *cursor)

    ds_status ds_count(ds_store *store, uint8_t keyspace, uint64_t *count)

    ctypedef struct ds_changes:
        pass

    ctypedef struct ds_change_told:
        uint64_t sequence
        ds_change_kind kind
        bint last
        const void *key
        size_t key_size
        ds_value value

    ds_status ds_changes_open(ds_store *store, uint8_t keyspace, uint64_t after, ds_changes **out)
    ds_status ds_changes_next(ds_changes *changes, ds_change_told *out)
    void ds_changes_close(ds_changes *changes)

    ds_status ds_wait(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, bint prefix,
                      uint64_t after, int64_t timeout_ms, uint64_t *sequence)
    ds_status ds_compact(ds_store *store)

    ds_status ds_settle(ds_store *store, uint64_t *sequence)
    ds_status ds_fence(ds_store *store, uint64_t incarnation, uint64_t *sequence)
    ds_status ds_sync(ds_store *store)

    void ds_turn_wait(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint32_t token)
    ds_status ds_turn_take(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint32_t milliseconds,
                           uint32_t *token)
    void ds_turn_end(ds_store *store, uint32_t token)

    ctypedef struct ds_stats:
        uint64_t keys[2]
        uint64_t live_bytes
        uint64_t log_bytes
        uint64_t sequence
        uint64_t committed
        uint64_t synced
        uint64_t fence
        uint64_t dropped_bytes
        uint64_t repairs
        uint64_t index_slots
        uint64_t relocated_bytes
        uint64_t dropped_segments
        uint64_t waits
        uint64_t verified_bytes
        uint64_t expired_keys
        uint64_t clock_ns

    ds_status ds_stats_read(ds_store *store, ds_stats *out)
    ds_status ds_verify(ds_store *store, uint64_t *frames)

    ctypedef struct ds_repair_report:
        uint64_t commits
        uint64_t records
        uint64_t dropped_bytes
        uint64_t damages
        uint64_t lost_blobs
        uint64_t first_damage
        uint64_t sequence
        char damaged_path[4096]

    ds_status ds_repair(const char *path, ds_repair_report *out)
    ds_status ds_exchange(const char *path, const char *with_)


cdef class Store:
    cdef ds_store *handle
    cdef Py_ssize_t calls  # under way without the GIL; close() waits for them
    cdef readonly str path
    cdef readonly str durability
    cdef readonly bint read_only
    cdef readonly unsigned long long incarnation
    cdef object __weakref__
    cdef Py_ssize_t direct_calls  # the same for those below, who may not have had the GIL at all
    cdef long opener  # pid

    # For Cython operators, also without the GIL: docs/cython.md. Keys and values are pointer and size, a key in UTF-8.
    cdef uint64_t put_direct(self, const void *key, size_t key_size, const void *value, size_t size) except 0 nogil
    cdef bint delete_direct(self, const void *key, size_t key_size) except -1 nogil
    cdef Py_ssize_t get_direct(self, const void *key, size_t key_size, void *into, size_t room) except -2 nogil
    cdef bint view_direct(self, const void *key, size_t key_size, ds_value *out) except -1 nogil
    cdef void release_direct(self, const ds_value *value) noexcept nogil
    cdef uint64_t commit_direct(self, const ds_change *changes, size_t count) except 0 nogil
    cdef object _put_slowly(self, object key, object value, uint64_t ttl_ns)


cdef class Batch:
    cdef Store store
    cdef ds_change *changes
    cdef PyObject **kept  # two for each change: the objects that it points into
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef Py_ssize_t bytes  # of all values
    cdef int _make_room(self) except -1
    cdef void _take_out(self) noexcept
    cdef int _add(self, ds_change_kind kind, int keyspace, object key, bytes value, object expected,
                  uint64_t ttl_ns=*) except -1


# One element of commit_direct(): valid while key and value are.
cdef inline ds_change put_change(const void *key, size_t key_size, const void *value, size_t size) noexcept nogil:
    cdef ds_change change
    memset(&change, 0, sizeof(change))
    change.kind = DS_PUT
    change.keyspace = DS_USER
    change.key = key
    change.key_size = key_size
    change.value = value
    change.value_size = size
    return change


cdef inline ds_change delete_change(const void *key, size_t key_size) noexcept nogil:
    cdef ds_change change = put_change(key, key_size, NULL, 0)
    change.kind = DS_DELETE
    return change


# dora_state.save_state() of `size` bytes, which are copied now. Needs the GIL.
cdef int save_state_direct(str key, const void *value, size_t size) except -1
