/* segment.h: the files of the log and where this process has mapped them.
 *
 * A segment is mapped once per handle and found by log offset. In the table of mapped segments nothing ever moves: a new
 * segment goes behind the last one, or into a new table. A thread that looks into an old table misses a new segment,
 * looks again under the lock, and finds it there.
 *
 * Segments that compaction dropped leave with their table: it is replaced by one without them and, as soon as no call
 * of this handle is under way (`active` and `writing` are 0 after the new table was published, so every later call sees
 * that one), the handle gives up its pins. Values that somebody pinned stay mapped.
 *
 * A call stores first that it is under way, and then loads the table; who reclaims stores the table, and then looks for
 * calls. Both need a full fence between the two. Readers add to `active`, which is one. The one thread that holds the writer
 * lock sets `writing`, a plain store: its fence is made by whoever reclaims, once for hundreds of puts
 * (ds__os_fence_threads; `fenced` where the kernel cannot). */
#ifndef DS_SEGMENT_H
#define DS_SEGMENT_H

#include "format.h"
#include "os.h"

#include <pthread.h>
#include <stdatomic.h>

/* A mapped file whose owners are counted: the handle, and everybody who pins a value in it. */
struct ds_mapping {
    unsigned char *bytes;
    uint64_t size;
    atomic_uint references;
};

void ds__mapping_pin(struct ds_mapping *mapping);
/* Unmaps and frees at the last one. */
void ds__mapping_unpin(struct ds_mapping *mapping);

struct ds_segment {
    struct ds_mapping mapping; /* first: a pinned value's owner is a ds_mapping */
    uint64_t base;
    uint64_t end;       /* base + size */
    uint64_t populated; /* writers: page faults are taken for so many bytes */
    struct ds_segment *next_limbo;
    uint32_t seed; /* ds__segment_seed() of its header */
    uint32_t header_crc;
};

struct ds_segment_table {
    struct ds_segment_table *older;      /* a replaced one waits here until nobody can be looking into it */
    _Atomic(struct ds_segment *) recent; /* a hint: where the last offset was found */
    uint32_t room;
    _Atomic uint32_t count;     /* stored (release) after the item it counts */
    struct ds_segment *items[]; /* by base */
};

struct ds_segments {
    const struct ds_directory *directory;
    bool writable;
    bool large_pages; /* for new segments that have room for one: a third of the time, but a sync writes it whole */
    uint8_t uuid[16];
    _Atomic(struct ds_segment_table *) table;
    _Atomic uint64_t start;             /* segments below are not in the table any more */
    atomic_uint active;                 /* calls under way that may look into tables */
    atomic_uint writing;                /* one more, under the writer lock */
    bool fenced;                        /* `writing` needs a fence of its own */
    _Atomic(struct ds_segment *) limbo; /* dropped, but a call may still look into them */
    atomic_uint unmapping;              /* threads that give back what was in limbo */
    pthread_mutex_t changing;           /* one thread at a time replaces the table */
};

enum { DS_NAME_SIZE = 32 };
#define DS_SEGMENT_DRAFT "segment.new"
#define DS_RESERVE_NAME  "reserve"
#define DS_RESERVE_DRAFT "reserve.new"
void ds__segment_name(uint64_t base, char name[DS_NAME_SIZE]);
/* Is this the name of a segment, and of which base? */
bool ds__segment_parse_name(const char *name, uint64_t *base);

ds_status ds__segments_init(struct ds_segments *segments, const struct ds_directory *directory, const uint8_t uuid[16],
                            bool writable);
void ds__segments_free(struct ds_segments *segments);

static inline const struct ds_segment_header *ds__segment_header(const struct ds_segment *segment) {
    return (const struct ds_segment_header *)(const void *)segment->mapping.bytes;
}

static inline unsigned char *ds__segment_at(const struct ds_segment *segment, uint64_t offset) {
    return segment->mapping.bytes + (offset - segment->base);
}

/* Around every use of the functions below, and of what they return. */
static inline void ds__segments_enter(struct ds_segments *segments) {
    atomic_fetch_add_explicit(&segments->active, 1, memory_order_seq_cst);
}

static inline void ds__segments_leave(struct ds_segments *segments) {
    atomic_fetch_sub_explicit(&segments->active, 1, memory_order_release);
}

/* The same for the thread that holds the writer lock. */
static inline void ds__segments_enter_writing(struct ds_segments *segments) {
    if (segments->fenced)
        atomic_exchange_explicit(&segments->writing, 1, memory_order_seq_cst);
    else
        atomic_store_explicit(&segments->writing, 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
}

static inline void ds__segments_leave_writing(struct ds_segments *segments) {
    atomic_store_explicit(&segments->writing, 0, memory_order_release);
}

/* No call of this handle is under way, and every later one will see what was stored before this. */
bool ds__segments_idle(const struct ds_segments *segments);
/* Unmaps what lies below `start`, now or in a later call. Call it outside enter and leave. */
void ds__segments_reclaim(struct ds_segments *segments, uint64_t start);

/* The mapped segment that holds `offset`, NULL when none is mapped. Lock-free. */
struct ds_segment *ds__segments_find(struct ds_segments *segments, uint64_t offset);
/* The segment of exactly that base, mapped when need be. DS_MISSING when there is no such file. */
ds_status ds__segments_at(struct ds_segments *segments, uint64_t base, struct ds_segment **out);
/* The segment that holds `offset`, mapped when need be: by going from the last mapped one before it, or from the `start` of
 * the log, from each segment's end to the next one's base. Not by listing the directory: readdir() may miss a file
 * while others come and go. DS_MISSING: compaction has passed it. */
ds_status ds__segments_get(struct ds_segments *segments, uint64_t start, uint64_t offset, struct ds_segment **out);
/* Maps the segment of that base and checks its header; to be handed to ds__segments_add() or unpinned. */
ds_status ds__segment_open(const struct ds_segments *segments, uint64_t base, struct ds_segment **out);
/* Checks a header against its file: CORRUPT or FORMAT with a sentence. `uuid` NULL: any store's. */
ds_status ds__segment_check(const struct ds_directory *directory, const char *name,
                            const struct ds_segment_header *header, uint64_t base, uint64_t size, const uint8_t *uuid);
/* Hands a segment over to the table. On failure it is unpinned. */
ds_status ds__segments_add(struct ds_segments *segments, struct ds_segment *segment);
/* Forgets the mapped segments from `base` on: recovery found that they do not belong to the log. Only while no other
 * thread knows the handle. */
void ds__segments_drop(struct ds_segments *segments, uint64_t base);
/* Maps a file that is to be a segment and is all zero; with its page faults taken, if it is for a `quick` writer. */
ds_status ds__segment_map_new(const struct ds_segments *segments, const char *name, int fd, uint64_t size, bool quick,
                              struct ds_segment **out);
/* Writes its header: see ds__segment_create(). */
ds_status ds__segment_begin(struct ds_segment_header *header, struct ds_segment *segment);
/* Makes the file of a new segment, header and all, and renames it into place as its last step. `header` needs uuid,
 * base, size, hash_seed, first_sequence and before_*; the rest is filled in. */
ds_status ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                             struct ds_segment **out);
/* The same out of the reserve, a file of DS_SEGMENT_MIN bytes that is kept so that deletes and compaction, which make
 * room, still have some when the disk is full. */
ds_status ds__segment_from_reserve(struct ds_segments *segments, struct ds_segment_header *header,
                                   struct ds_segment **out);
ds_status ds__reserve_make(const struct ds_directory *directory);

#endif
