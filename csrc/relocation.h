/* relocation.h: emptying the segments that a pass of compaction drops. */
#ifndef DS_RELOCATION_H
#define DS_RELOCATION_H

#include "store.h"

enum { DS_BATCH_RECORDS = 32 };

/* Records that move in one frame. */
struct ds_pass_batch {
    ds_change changes[DS_BATCH_RECORDS];
    struct ds_plan plans[DS_BATCH_RECORDS];
    uint64_t offsets[DS_BATCH_RECORDS];
    size_t count;
    uint64_t bytes;
};

struct ds_pass {
    ds_store *store;
    struct ds_pass_batch batch;
    struct ds_blob_reference *blobs; /* named by what is dropped, and by nothing else */
    size_t blob_count, blob_room;
    uint64_t moved_bytes;  /* so far */
    bool tight;            /* the disk is full: move only what fits */
    uint64_t oldest_named; /* offset below which no record was named when the index was asked */
    uint64_t live_bytes;
    bool expired; /* some of what was looked at */
};

/* Of the live bytes, those in records that have expired. What a sample has shown, so nothing may be concluded from it but
 * whether to look. */
static inline uint64_t ds__expired_bytes(const ds_store *store) {
    return atomic_load_explicit(&store->control->expired_bytes, memory_order_relaxed);
}

/* Appends again what the index still names of a segment and has not expired, and notes the blobs that go with the rest. It is
 * not the tail: its successor's header says where it ends. */
ds_status ds__empty_segment(struct ds_pass *pass, struct ds_segment *segment, const struct ds_segment *successor);

#endif
