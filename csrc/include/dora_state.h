/* dora_state.h: the only public header of the store engine.
 *
 * A store is a directory that holds an append-only log of checksummed frames (docs/format.md) and, derived from
 * it, a control page and a hash index in shared memory. Any number of processes may open one store.
 *
 * Conventions
 *  1. Every call that can fail returns a ds_status and passes its results through pointers. On failure nothing
 *     has changed, in the store or behind the pointers, unless the call says otherwise.
 *     A pointer for a sequence or a count may be NULL.
 *  2. ds_error() gives the sentence that belongs to the last failure in this thread: what happened, which file,
 *     offset or key, and what to do next.
 *  3. Keys and values are pointer plus size in bytes; any bytes are allowed, none are terminated.
 *  4. A key lives in a keyspace. DS_USER holds what the user puts; DS_RUNTIME what the operator runtime notes
 *     beside it in the same commit. No key of one can collide with a key of the other.
 *  5. A handle may be used by several threads. After fork() the child's copy answers DS_FORKED to everything
 *     but ds_close(), which frees the child's memory and touches nothing else.
 *  6. The library prints nothing and never aborts on input. A writable handle has at most one thread of its own, which
 *     syncs (`group`) and compacts; it takes no signals.
 */
#ifndef DORA_STATE_H
#define DORA_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One table of errors: name, number, what it means. Python's classes are built from it (src/dora_state/errors.py). */
#define DS_STATUS_MAP(X)                                                                                               \
    X(OK, 0, "success")                                                                                                \
    X(MISSING, 1, "the key is not in the store")                                                                       \
    X(INVALID, 2, "an argument is out of range")                                                                       \
    X(TOO_LARGE, 3, "a key, value or batch is larger than the store can hold")                                         \
    X(NO_MEMORY, 4, "out of memory")                                                                                   \
    X(IO, 5, "a system call failed")                                                                                   \
    X(FULL, 6, "no space left for the log")                                                                            \
    X(NOT_A_STORE, 7, "the path is not a dora-state store")                                                            \
    X(FORMAT, 8, "the store was written by an incompatible version")                                                   \
    X(CORRUPT, 9, "the log is damaged")                                                                                \
    X(TIMEOUT, 10, "another writer held the lock for too long")                                                        \
    X(CONFLICT, 11, "a key is not at the expected sequence")                                                           \
    X(FENCED, 12, "a newer incarnation has taken over")                                                                \
    X(FORKED, 13, "the handle was inherited through fork()")                                                           \
    X(READ_ONLY, 14, "the handle is read-only")                                                                        \
    X(IN_USE, 15, "another process holds the store in a state we cannot share")                                        \
    X(UNSUPPORTED, 16, "this file system or platform is not supported")                                                \
    X(CLOSED, 17, "the handle is closed")                                                                              \
    X(COMPACTED, 18, "the commits asked for were compacted away")

typedef enum ds_status {
#define X(name, number, text) DS_##name = number,
    DS_STATUS_MAP(X)
#undef X
} ds_status;

/* "OK", "MISSING", ...; "?" for a number outside the table. */
const char *ds_status_name(ds_status status);
/* The table's sentence for a status. */
const char *ds_status_text(ds_status status);
/* The sentence for this thread's last failure; "" before the first. Valid until this thread's next failing call. */
const char *ds_error(void);
/* errno of this thread's last failure, 0 if it had none. */
int ds_error_errno(void);
/* For DS_CONFLICT: the sequence the key is really at (0: missing). */
uint64_t ds_error_sequence(void);

typedef struct ds_store ds_store;

typedef enum ds_durability {
    DS_PROCESS = 0, /* a commit survives the death of any process */
    DS_GROUP = 1,   /* and, group_ms later at the latest, power loss */
    DS_COMMIT = 2,  /* a commit returns when it survives power loss */
} ds_durability;

enum { DS_USER = 0, DS_RUNTIME = 1, DS_KEYSPACES = 2 };

enum {
    DS_KEY_LIMIT = 65535, /* bytes in a key */
    DS_GROUP_MS = 200,    /* default interval of `group` */
    DS_LOCK_TIMEOUT_MS = 10000,
    DS_TURN_LIMIT_MS = 60000, /* the longest turn that can be asked for */
};

#define DS_TTL_LIMIT_NS (UINT64_C(10) * 366 * 86400 * 1000000000) /* ten years */

typedef struct ds_options {
    ds_durability durability;
    uint32_t group_ms;
    int32_t lock_timeout_ms; /* how long a writer waits for another; -1: for ever */
    bool read_only;       /* of a store that nobody has opened for writing in this boot it shows one point for ever */
    bool create;          /* make the directory and the store when they are not there */
    uint64_t incarnation; /* 0: never fenced; else commits are refused once a higher one is fenced in */
} ds_options;

void ds_options_init(ds_options *options);

ds_status ds_open(const char *path, const ds_options *options, ds_store **out);
/* Frees the handle, whatever it returns; a writable one syncs first. Values that are pinned stay readable; close no
 * handle that another thread is using. */
ds_status ds_close(ds_store *store);

/* One element of a commit. */
typedef enum ds_change_kind { DS_PUT = 1, DS_DELETE = 2, DS_EXPECT = 3 } ds_change_kind;

typedef struct ds_change {
    ds_change_kind kind; /* DS_EXPECT writes nothing, it only checks */
    uint8_t keyspace;
    bool expect;       /* refuse the whole commit unless the key is at `expected` */
    uint64_t expected; /* a sequence; 0: the key must be missing */
    const void *key;
    size_t key_size;
    const void *value;
    size_t value_size;
    uint64_t ttl_ns; /* of a put: the key is missing again so much later, by the store's clock; 0: never */
} ds_change;

/* All or nothing, for every reader and after a crash. A key named twice takes its last change. Deleting a missing
 * key changes nothing. With DS_COMMIT a failing sync is told as DS_IO or DS_FULL although the commit is there for every
 * process; its sentence begins with "committed". *sequence receives the commit's sequence, or the store's when nothing had to be written. */
ds_status ds_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence);
ds_status ds_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                 size_t value_size, uint64_t *sequence);
/* As ds_commit() and ds_put(), but they never wait: DS_TIMEOUT, with nothing written, when another writer holds the lock or
 * the commit would have to wait for the disk. For callers who hold something that others need, like an interpreter's
 * lock; then call ds_commit() without it. */
ds_status ds_try_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence);
ds_status ds_try_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                     size_t value_size, uint64_t *sequence);
/* As ds_put(), with a time to live: from ttl_ns after the commit on the key is missing for everybody, as if it had been
 * deleted at that moment, but that this wakes nobody and is no commit. */
ds_status ds_put_expiring(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                          size_t value_size, uint64_t ttl_ns, uint64_t *sequence);
/* DS_MISSING if there was nothing to delete. */
ds_status ds_delete(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint64_t *sequence);

/* A value where it lies in the log, not copied. It comes pinned: its bytes stay mapped and never change, through
 * overwrites, deletes and ds_close(), until ds_unpin(). Values below 4 KiB were checked against their hash. */
typedef struct ds_value {
    const void *data;
    size_t size;
    uint64_t sequence; /* of the commit that wrote it */
    void *owner;       /* what the pin holds */
} ds_value;

ds_status ds_get(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out);
void ds_pin(const ds_value *value); /* once more */
/* As ds_get(), but the value is not pinned: it is readable until ds_return(), which must follow soon and in this process,
 * because what compaction dropped stays mapped meanwhile. Saves a tenth of a short read. */
ds_status ds_borrow(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out);
void ds_return(ds_store *store, const ds_value *value);
void ds_unpin(const ds_value *value);
/* After a value was copied, before its pin is given up: DS_CORRUPT if its file was cut or became unreadable under the
 * copying, which then got zeros in places. Costs a load. */
ds_status ds_value_check(const ds_value *value);

typedef struct ds_bytes {
    const void *data;
    size_t size;
} ds_bytes;

/* Several keys at one point: of every commit either all or nothing is seen. values[i] comes pinned, or with `owner` NULL
 * when keys[i] is missing. */
ds_status ds_get_many(ds_store *store, uint8_t keyspace, const ds_bytes *keys, size_t count, ds_value *values);

/* Walks the keys of one keyspace as they stood at one point. */
typedef struct ds_cursor ds_cursor;
ds_status ds_cursor_open(ds_store *store, uint8_t keyspace, ds_cursor **out);
/* DS_MISSING after the last one. The value comes pinned; the key stays readable until the cursor
 * is closed. */
ds_status ds_cursor_next(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value);
/* How many ns are left to the key that ds_cursor_next() gave last; 0: it does not expire. */
uint64_t ds_cursor_ttl(const ds_cursor *cursor);
/* As ds_cursor_next(), but the value is not pinned: it is readable until the cursor moves on or is closed. */
ds_status ds_cursor_peek(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value);
void ds_cursor_close(ds_cursor *cursor);

/* Walks the commits after a sequence, in their order. */
typedef struct ds_changes ds_changes;

typedef struct ds_change_told {
    uint64_t sequence;   /* of the commit */
    ds_change_kind kind; /* DS_PUT or DS_DELETE; a put that has expired since is told as a delete */
    bool last;           /* of this commit, in this keyspace */
    const void *key;     /* readable until the next call */
    size_t key_size;
    ds_value value; /* comes pinned; of a delete, with `owner` NULL */
} ds_change_told;

/* DS_COMPACTED, here and below: some of them are gone. Then read all keys, and go on from the sequence before that. */
ds_status ds_changes_open(ds_store *store, uint8_t keyspace, uint64_t after, ds_changes **out);
/* DS_MISSING when there is none yet; later calls find what has come since. */
ds_status ds_changes_next(ds_changes *changes, ds_change_told *out);
void ds_changes_close(ds_changes *changes);

/* Sleeps until the key, or any key that begins with it (`prefix`), has a commit after that sequence; a delete counts.
 * *sequence receives its sequence. DS_TIMEOUT after timeout_ms (-1: never); then up to *sequence there was none, and a next
 * call may go on after that. May wake for a change that was compacted away in the meantime. */
ds_status ds_wait(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, bool prefix, uint64_t after,
                  int64_t timeout_ms, uint64_t *sequence);

/* For who reads a key, thinks, and writes with `expected`, again and again until nobody was faster. Each such try begins with
 * ds_turn_wait(), which returns when nobody else has a turn at the key, at once as a rule. After some lost races, ds_turn_take()
 * asks for one, so that the others wait: *token, 0 at first, is not 0 when it was given. It ends with ds_turn_end(), or by
 * itself, after at most DS_TURN_LIMIT_MS. Nothing but courtesy: no other call looks at it. */
void ds_turn_wait(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint32_t token);
ds_status ds_turn_take(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint32_t milliseconds,
                       uint32_t *token);
void ds_turn_end(ds_store *store, uint32_t token);

/* Drops all that is overwritten or deleted, as far as whole segments go. Compaction runs by itself; this is for a small
 * directory before a copy. DS_TIMEOUT when it had to wait too long, for a writer or for another compaction behind a stalled
 * disk: what was compacted by then stays so, and the next call goes on. */
ds_status ds_compact(ds_store *store);

/* Takes the writer lock and repairs what a dead writer left, so that what is read afterwards is decided. */
ds_status ds_settle(ds_store *store, uint64_t *sequence);
/* ds_settle(), and from now on commits of handles opened with a lower incarnation return DS_FENCED. */
ds_status ds_fence(ds_store *store, uint64_t incarnation, uint64_t *sequence);
/* Returns when all that is committed now survives power loss. */
ds_status ds_sync(ds_store *store);

typedef struct ds_stats {
    uint64_t keys[DS_KEYSPACES]; /* those that have expired included, until compaction drops them */
    uint64_t live_bytes;         /* in records the index points at */
    uint64_t log_bytes;          /* in the log's segments, allocated, and in blobs */
    uint64_t sequence;           /* of the last commit */
    uint64_t committed;          /* log offset of the end of the last commit */
    uint64_t synced;             /* log offset known to survive power loss */
    uint64_t fence;              /* lowest incarnation that may commit */
    uint64_t dropped_bytes;      /* torn tail dropped by the recovery that this boot's first open ran */
    uint64_t repairs;            /* commits of dead writers repaired since the boot */
    uint64_t index_slots;
    uint64_t relocated_bytes;  /* by compaction, since the boot */
    uint64_t dropped_segments; /* by compaction, since the boot */
    uint64_t waits;            /* commits that had to compact before they returned, since the boot */
    uint64_t verified_bytes;   /* by the ds_verify() of this handle, which ends near log_bytes + live_bytes */
    uint64_t expired_keys;     /* dropped by compaction, since the boot */
    uint64_t clock_ns;         /* the store's clock, by which keys expire: about the time since 1970 */
} ds_stats;

/* The keys that are there now. Beside expiring ones this is a walk over all; where nothing ever expired, a load. */
ds_status ds_count(ds_store *store, uint8_t keyspace, uint64_t *count);

ds_status ds_stats_read(ds_store *store, ds_stats *out);
/* Checks every frame and record of the log and every slot of the index; *frames receives the number of frames. */
ds_status ds_verify(ds_store *store, uint64_t *frames);

/* What a repair found and did. */
typedef struct ds_repair_report {
    uint64_t commits;        /* kept; those that compaction had dissolved before are not counted */
    uint64_t records;        /* kept, whatever they were part of */
    uint64_t dropped_bytes;  /* of the log: damaged, or missing */
    uint64_t damages;        /* places in the log; a commit beside one may be intact */
    uint64_t lost_blobs;     /* keys whose newest value was in a file that is damaged or missing: they have their
                              * newest intact value again, or none */
    uint64_t first_damage;   /* log offset; UINT64_MAX: there was none */
    uint64_t sequence;       /* of the repaired store: 2^32 above all that were ever seen */
    char damaged_path[4096]; /* where the directory is now that was repaired */
} ds_repair_report;

/* Makes a new store out of what is intact in the one at `path`, puts it in its place in one step, and keeps the old
 * directory beside it as `<path>.damaged-<n>`. A commit is kept as a whole or not at all. DS_IN_USE while anybody has the
 * store open. Unless its sentence begins with "repaired", a failure has changed nothing. */
ds_status ds_repair(const char *path, ds_repair_report *out);

/* Swaps the names of two directories in one step, durably. For who replaces a store by a changed copy and holds an exclusive
 * flock on its directory and on the file `control` in it: then nobody has it open, and who opens it waits. */
ds_status ds_exchange(const char *path, const char *with);

#ifdef __cplusplus
}
#endif
#endif
