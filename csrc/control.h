/* control.h: the control page, the words that all processes of one boot share. Derived: it can be rebuilt from the log.
 *
 * Who writes what, in which order
 *   `committed` is the commit point. The writer stores it (release) after a frame and its index slots are in place;
 *   a reader that loads it (acquire) may read every frame below it, for ever: those bytes never change.
 *   `intent` is the writer's note to its heirs. It is filled before the first byte of a frame and emptied
 *   (`end` = 0) when `tail` tells the new state. Whoever takes the lock and finds `end` set finishes or undoes that one
 *   commit first (commit.c, ds__repair). It is only read under the lock, so plain stores suffice between processes; the
 *   compiler must keep them in order, because death may come between any two.
 *   `tail` is written under the lock and read there. Statistics, syncs and waiters also look at single words of it, and of
 *   `intent.after`, without the lock. So these are stored word by word, each whole (ds__tail_store), and their readers
 *   load single words; a plain copy may tear. Relaxed, but for one: who is told `tail.sequence` reads the store next and
 *   goes on with what comes after it, so with it comes the `committed` that was stored before (release, acquire).
 *   `generation` names the index file in force; it is stored (release) after that file is complete.
 *   `start` is stored (release) under `compact_lock`, before the segments below it are unlinked.
 *   `shed` is stored under `lock` before the slots of those tombstones are given up, which are stored (release). A scan
 *   as of T that meets such a slot, or a key that was put there anew, therefore sees `shed` beyond T afterwards: it may have
 *   missed a key that was there at T, and starts over. `shed_expired` is the same for keys that have expired: such a scan
 *   starts over when it has changed.
 *   `fence`, `synced`, `sync_error` are each one word with one meaning. */
#ifndef DS_CONTROL_H
#define DS_CONTROL_H

#include "dora_state.h"
#include "lock.h"
#include "os.h"

#include <assert.h>
#include <stdatomic.h>

#define DS_CONTROL_MAGIC UINT64_C(0x0a0d4c54435344d3)

/* In `expired_bytes`: somebody should look. It counts as due for compaction, which looks first. */
#define DS_UNKNOWN_BYTES (UINT64_MAX >> 3)

enum { DS_CONTROL_LAYOUT = 3, DS_CONTROL_BYTES = 4096, DS_WAKE_WORDS = 64 };

/* What makes this page this store's, of this boot, on this machine. Compared byte for byte. */
struct ds_control_identity {
    uint64_t magic;
    uint32_t layout;
    uint32_t bytes;      /* sizeof(struct ds_control) */
    uint32_t mutex_size; /* of this libc's pthread_mutex_t */
    uint32_t libc;       /* 1 glibc, 2 another */
    uint8_t uuid[16];
    char boot_id[40];
    struct ds_identity file; /* of the control file itself: a copy has another */
    uint64_t pid_namespace;  /* robust mutexes know their owner by thread id */
};

/* What the next writer needs to know. */
struct ds_tail {
    /* Changed by most commits: */
    uint64_t offset; /* where the next frame goes, unless `sealed` */
    uint64_t sequence;
    uint64_t keys[DS_KEYSPACES];
    uint64_t live_bytes; /* of the records that the index names, and of the blobs that they name */
    uint64_t slots_used; /* of the index, tombstones included */
    uint32_t crc;        /* of the frame before `offset`, or of the segment's header */
    uint32_t sealed;     /* nonzero: dead bytes follow `offset`; the next frame opens a new segment */
    /* By few: */
    uint64_t segment_base;
    uint64_t segment_size;
    uint64_t blob_bytes;    /* of all blobs that records of the log name, live or dead */
    uint64_t segment_blobs; /* of those, named in the tail segment */
    uint64_t largest_frame; /* of late: the size of the next segment follows it */
    uint64_t last_blob;     /* offset of the newest frame that names a blob */
    uint64_t opened_ns;     /* when the tail segment was begun: a fast writer gets larger ones */
};

static_assert(sizeof(struct ds_tail) % sizeof(uint64_t) == 0, "stored by words");

static inline uint64_t ds__word_load(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void ds__word_store(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* Comparing what few commits change costs half of storing it. */
static inline void ds__tail_store(struct ds_tail *to, const struct ds_tail *from) {
    typedef uint64_t __attribute__((may_alias)) word;
    enum { OFTEN = offsetof(struct ds_tail, segment_base) / sizeof(word), ALL = sizeof *to / sizeof(word) };
    word differ = 0;
#pragma GCC unroll 16 /* left a loop otherwise, because of the atomics */
    for (size_t i = 0; i < OFTEN; i++)
        __atomic_store_n((word *)to + i, ((const word *)from)[i], __ATOMIC_RELEASE); /* `sequence` is one of them */
    for (size_t i = OFTEN; i < ALL; i++)
        differ |= ((const word *)to)[i] ^ ((const word *)from)[i];
    for (size_t i = OFTEN; differ != 0 && i < ALL; i++)
        __atomic_store_n((word *)to + i, ((const word *)from)[i], __ATOMIC_RELAXED);
}

struct ds_intent {
    _Atomic uint64_t end; /* of the frame to be; 0: none. Stored last, cleared last. */
    uint64_t begin;
    struct ds_tail after; /* `tail` once it is committed, but for `crc`, which the frame tells */
};

struct ds_control {
    struct ds_control_identity identity;
    uint64_t hash_seed;
    uint64_t dropped_bytes; /* by the recovery that made this page */
    uint64_t clock_ns;      /* the store's clock when this page was made, */
    uint64_t clock_boot_ns; /* and CLOCK_BOOTTIME at that moment; both are never changed */

    _Alignas(64) struct ds_lock lock; /* writers take turns */

    /* Readers' line. A busy writer dirties it once per commit. */
    _Alignas(64) _Atomic uint64_t committed;
    _Atomic uint64_t generation;
    _Atomic uint64_t start; /* base of the log's first segment; moves after what replaces the dropped is on disk */
    _Atomic uint64_t shed;  /* tombstones below this offset may have left the index */
    _Atomic uint64_t shed_expired; /* how many expired keys have left the index */

    _Alignas(64) struct ds_tail tail;
    _Alignas(64) struct ds_intent intent;

    _Alignas(64) _Atomic uint64_t fence;
    _Atomic uint64_t repairs;

    _Alignas(64) struct ds_lock compact_lock; /* one process at a time moves the start of the log */
    _Atomic uint64_t relocated_bytes;
    _Atomic uint64_t dropped_segments;
    atomic_uint reserve_gone;       /* the reserve became a segment */
    _Atomic uint64_t waits;         /* commits that had to compact before they returned */
    _Atomic uint64_t expired_bytes; /* of tail.live_bytes those whose time is up, as a sample has shown */

    _Alignas(64) struct ds_lock sync_lock;
    _Atomic uint64_t synced;      /* all below it is on disk */
    _Atomic uint64_t sync_intent; /* an fdatasync up to here has begun and not told its result; 0: none */
    _Atomic uint64_t floor_count;
    _Atomic int sync_error; /* errno of the first sync that failed; sticky, for every process */

    _Alignas(64) _Atomic uint32_t wake[DS_WAKE_WORDS]; /* wait.c */
    _Atomic uint32_t wake_prefix;

    _Alignas(64) _Atomic uint32_t turn; /* turn.c: whose it is, by its token; 0: nobody's */
    _Atomic uint64_t turn_key;          /* hash of the key */
    _Atomic uint64_t turn_until_ns;     /* CLOCK_MONOTONIC */
};
static_assert(sizeof(struct ds_control) <= DS_CONTROL_BYTES, "the control page is one page");

/* Of a commit that whoever reads afterwards will see. */
static inline uint64_t ds__sequence_now(const struct ds_control *control) {
    return __atomic_load_n(&control->tail.sequence, __ATOMIC_ACQUIRE);
}

/* What the identity must be for this file, now. */
ds_status ds__control_identity(const struct ds_directory *directory, const char *name, int fd, const uint8_t uuid[16],
                               struct ds_control_identity *out);

#endif
