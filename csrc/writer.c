/* writer.c: the writer lock, and what a writer left that died holding it. */
#include "store.h"

#include "lock.h"

ds_status ds__writer_enter(ds_store *store) {
    return ds__writer_enter_within(store, store->options.lock_timeout_ms);
}

ds_status ds__writer_enter_within(ds_store *store, int timeout_ms) {
    bool died;
    ds_status status = ds__lock_take(&store->control->lock, "another writer", timeout_ms, store->directory.path, &died);
    if (status != DS_OK)
        return status;
    ds__enter_writing(store);
    /* Not only when the last owner died: its heir may have died in the repair, or failed and given up. */
    if (atomic_load_explicit(&store->control->intent.end, memory_order_relaxed) != 0)
        status = ds__all_there(store, ds__repair(store));
    uint64_t fence = atomic_load_explicit(&store->control->fence, memory_order_relaxed);
    if (status == DS_OK && store->options.incarnation != 0 && store->options.incarnation < fence)
        status =
            ds__fail(DS_FENCED, 0, "%s: incarnation %llu was replaced by %llu and may not commit any more",
                     store->directory.path, (unsigned long long)store->options.incarnation, (unsigned long long)fence);
    if (status != DS_OK)
        ds__writer_leave(store);
    return status;
}

void ds__writer_leave(ds_store *store) {
    ds__segments_leave_writing(&store->segments); /* before another thread of this handle enters */
    ds__lock_release(&store->control->lock);
}

ds_status ds_settle(ds_store *store, uint64_t *sequence) {
    ds_status status = ds__check_writable(store);
    if (status == DS_OK)
        status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    if (sequence != NULL)
        *sequence = store->control->tail.sequence;
    ds__writer_leave(store);
    return DS_OK;
}

ds_status ds_fence(ds_store *store, uint64_t incarnation, uint64_t *sequence) {
    ds_status status = ds__check_writable(store);
    if (status == DS_OK)
        status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    if (atomic_load_explicit(&store->control->fence, memory_order_relaxed) < incarnation)
        atomic_store_explicit(&store->control->fence, incarnation, memory_order_relaxed);
    if (sequence != NULL)
        *sequence = store->control->tail.sequence;
    ds__writer_leave(store);
    return DS_OK;
}

ds_status ds__control_damaged(const ds_store *store) {
    return ds__fail(DS_CORRUPT, 0,
                    "%s: the control page is damaged; close the store in all processes, then open it "
                    "again to rebuild it from the log",
                    store->directory.path);
}

/* ---- repair ---------------------------------------------------------------------------------------------------- */

/* Up to here torn bytes are zeroed; beyond it the segment is sealed, because others wait for the lock. */
enum { ZERO_AT_MOST = 64 * 1024 };

static ds_status finish(ds_store *store, struct ds_segment *segment, const struct ds_frame *frame, uint64_t begin,
                        uint64_t end) {
    struct ds_control *control = store->control;
    struct ds_index *index;
    ds_status status = ds__index_now(store, &index);
    if (status != DS_OK)
        return status;
    uint64_t at = begin + sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, at);
        uint64_t hash = ds__hash(store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
        if (record->op != DS_RECORD_START)
            ds__index_apply(index, hash, at, record->previous);
        at += ds__record_length(record->key_size, record->value_size);
    }
    atomic_store_explicit(&control->committed, end, memory_order_release);
    control->intent.after.crc = frame->crc;
    ds__tail_store(&control->tail, &control->intent.after);
    return DS_OK;
}

/* The frame never came to be. Its segment stays the tail, even when it was made for this frame: others may have it
 * mapped by now. */
static void undo(ds_store *store, struct ds_segment *segment, uint64_t begin, uint64_t end) {
    struct ds_control *control = store->control;
    struct ds_tail *tail = &control->tail;
    uint64_t torn = end - begin;
    if (begin == segment->base + DS_SEGMENT_HEADER) {
        /* Whether the tail is here already is not asked: half of these stores may have been done by a dead repairer. */
        tail->offset = begin;
        ds__word_store(&tail->segment_base, segment->base);
        ds__word_store(&tail->segment_size, segment->end - segment->base);
        tail->crc = segment->header_crc;
        tail->sealed = 0;
        tail->segment_blobs = 0;
    }
    if (torn <= ZERO_AT_MOST)
        memset(ds__segment_at(segment, begin), 0, torn);
    else
        tail->sealed = 1;
}

ds_status ds__repair(ds_store *store) {
    struct ds_control *control = store->control;
    uint64_t end = atomic_load_explicit(&control->intent.end, memory_order_relaxed);
    uint64_t begin = ds__word_load(&control->intent.begin);
    struct ds_segment *segment;
    ds_status status = ds__segments_at(&store->segments, control->intent.after.segment_base, &segment);
    if (status != DS_OK)
        return status;
    uint64_t room = segment->end - begin;
    if (begin % 8 != 0 || begin >= segment->end || begin < segment->base + DS_SEGMENT_HEADER || end <= begin ||
        end - begin > room || room < sizeof(struct ds_frame))
        return ds__control_damaged(store);
    const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, begin);
    bool done = atomic_load_explicit(&control->committed, memory_order_relaxed) >= end;
    uint32_t before = begin == segment->base + DS_SEGMENT_HEADER ? segment->header_crc : control->tail.crc;
    if (done ||
        (ds__frame_length(frame->word0) == end - begin && ds__frame_valid(frame, room, segment->seed, begin, before)))
        /* Of a commit that is done the tail may tell of already, so its predecessor is not known any more. */
        status = done && !ds__frame_well_formed(frame, frame->word0, room) ? ds__control_damaged(store)
                                                                           : finish(store, segment, frame, begin, end);
    else
        undo(store, segment, begin, end);
    if (status != DS_OK)
        return status;
    atomic_fetch_add_explicit(&control->repairs, 1, memory_order_relaxed);
    atomic_store_explicit(&control->intent.end, 0, memory_order_release);
    ds__wake_all(control);
    return DS_OK;
}
