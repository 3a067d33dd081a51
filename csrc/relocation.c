/* relocation.c: what still lives in a segment moves to the end of the log. See relocation.h.
 *
 * A record that is found dead stays dead, so looking needs no lock; moving the living takes it for a bounded batch. */
#include "relocation.h"

#include <errno.h>
#include <stdlib.h>

enum {
    BATCH_BYTES = 64 * 1024,
    HEAD_BYTES = 128, /* more than a HEAD frame takes */
};

static ds_status doom_blob(struct ds_pass *pass, const struct ds_record *record) {
    if (pass->blob_count == pass->blob_room) {
        size_t room = pass->blob_room ? 2 * pass->blob_room : 16;
        struct ds_blob_reference *blobs = realloc(pass->blobs, room * sizeof *blobs);
        if (blobs == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
        pass->blobs = blobs;
        pass->blob_room = room;
    }
    pass->blobs[pass->blob_count++] = ds__record_blob(record);
    return DS_OK;
}

static bool share_blob(const struct ds_record *record, const struct ds_record *newer) {
    return ds__op_is_blob(record->op) && ds__op_is_blob(newer->op) &&
           ds__record_blob(record).id == ds__record_blob(newer).id;
}

/* Does the index name this very record? Without the lock, "no" is final and "yes" is to be asked again. If it does not, its
 * blob goes with it, unless an earlier pass that was cut short has moved it: then the newer record names the same one. */
static ds_status is_live(ds_store *store, const struct ds_index *index, uint64_t offset, const struct ds_record *record,
                         struct ds_plan *plan, bool *live, bool *doomed) {
    struct ds_found found;
    bool gone = false;
    plan->hash = ds__hash(store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
    ds_status status =
        ds__find(store, index, plan->hash, record->keyspace, ds__record_key(record), record->key_size, &found, &gone);
    *live = status == DS_OK && found.offset == offset;
    *doomed = ds__op_is_blob(record->op) && !*live && !(status == DS_OK && share_blob(record, found.record));
    plan->slot = found.slot;
    return status == DS_MISSING ? DS_OK : status;
}

/* Under the lock: what is still live of the batch moves. The slots of tombstones and of what has expired are given up
 * afterwards; of the latter, `replaced_bytes` tells how much dies. */
static ds_status plan_move(struct ds_pass *pass, const struct ds_index *index, uint64_t offset, struct ds_plan *plan) {
    struct ds_found found;
    bool live = false, expired = false, doomed = false;
    ds_status status = ds__record_at(pass->store, offset, &found);
    if (status == DS_OK)
        status = is_live(pass->store, index, offset, found.record, plan, &live, &doomed);
    if (status == DS_OK && live && ds__op_expires(plan->op))
        status = ds__expired(pass->store, &found, ds__clock_now(pass->store->control), &expired);
    if (status != DS_OK)
        return status;
    plan->replaced_bytes = expired ? ds__live_size(found.record) : 0;
    plan->write = live && !expired && plan->op != DS_RECORD_TOMBSTONE;
    return doomed || (expired && ds__op_is_blob(plan->op)) ? doom_blob(pass, found.record) : DS_OK;
}

static ds_status move_batch(struct ds_pass *pass, const struct ds_index *index, uint64_t *length) {
    struct ds_pass_batch *batch = &pass->batch;
    *length = sizeof(struct ds_frame);
    for (size_t i = 0; i < batch->count; i++) {
        struct ds_plan *plan = &batch->plans[i];
        ds_status status = plan_move(pass, index, batch->offsets[i], plan);
        if (status != DS_OK)
            return status;
        if (plan->write)
            *length += plan->length;
    }
    return DS_OK;
}

static void give_up_slot(const struct ds_index *index, uint64_t at, uint64_t offset) {
    uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_relaxed);
    if (ds__slot_offset(slot) == offset)
        atomic_store_explicit(&index->slots[at], DS_SLOT_GONE, memory_order_release);
}

/* Its bytes leave the sums after its slot has left the index. A death in between leaves sums that are too high, until the next
 * rebuild; the other way round, an overwriting put could take them off twice. */
static void forget_expired(ds_store *store, uint8_t keyspace, uint64_t bytes) {
    struct ds_control *control = store->control;
    uint64_t expected = ds__expired_bytes(store);
    ds__word_store(&control->tail.keys[keyspace], control->tail.keys[keyspace] - 1);
    ds__word_store(&control->tail.live_bytes, control->tail.live_bytes - bytes);
    if (expected != DS_UNKNOWN_BYTES)
        atomic_store_explicit(&control->expired_bytes, expected - (bytes < expected ? bytes : expected),
                              memory_order_relaxed);
}

static void give_up_slots(struct ds_pass *pass, const struct ds_index *index) {
    struct ds_pass_batch *batch = &pass->batch;
    struct ds_control *control = pass->store->control;
    uint64_t expired = 0;
    for (size_t i = 0; i < batch->count; i++)
        expired += batch->plans[i].replaced_bytes != 0;
    /* First: see control.h. */
    atomic_store_explicit(&control->shed, batch->offsets[batch->count - 1] + 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&control->shed_expired, expired, memory_order_relaxed);
    for (size_t i = 0; i < batch->count; i++) {
        struct ds_plan *plan = &batch->plans[i];
        if (plan->op != DS_RECORD_TOMBSTONE && plan->replaced_bytes == 0)
            continue;
        give_up_slot(index, plan->slot, batch->offsets[i]);
        if (plan->replaced_bytes != 0)
            forget_expired(pass->store, batch->changes[i].keyspace, plan->replaced_bytes);
    }
}

static bool reserve_gone(const ds_store *store) {
    return atomic_load_explicit(&store->control->reserve_gone, memory_order_relaxed) != 0;
}

static ds_status no_room(const ds_store *store) {
    return ds__fail(DS_FULL, ENOSPC, "%s: no room to compact in", store->directory.path);
}

/* While the reserve is in use, only a tight pass moves anything: half of a segment would use up what deletes need. */
static ds_status flush(struct ds_pass *pass) {
    struct ds_pass_batch *batch = &pass->batch;
    if (batch->count == 0)
        return DS_OK;
    ds_store *store = pass->store;
    struct ds_index *index;
    uint64_t length = 0;
    ds_status status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    status = ds__index_now(store, &index);
    if (status == DS_OK)
        status = move_batch(pass, index, &length);
    if (status == DS_OK && length > sizeof(struct ds_frame) && !pass->tight && reserve_gone(store))
        status = no_room(store);
    if (status == DS_OK && length > sizeof(struct ds_frame))
        status = ds__append(store, DS_FRAME_RELOCATE, batch->changes, batch->plans, batch->count, length, false);
    if (status == DS_OK)
        give_up_slots(pass, index);
    ds__writer_leave(store);
    if (status == DS_OK) {
        atomic_fetch_add_explicit(&store->control->relocated_bytes, length, memory_order_relaxed);
        pass->moved_bytes += length;
    }
    batch->count = 0;
    batch->bytes = 0;
    return status;
}

static ds_status consider(struct ds_pass *pass, uint64_t offset, const struct ds_record *record) {
    struct ds_pass_batch *batch = &pass->batch;
    uint64_t length = ds__record_length(record->key_size, record->value_size);
    if (record->op == DS_RECORD_START)
        return DS_OK;
    struct ds_plan plan = {.previous = offset, .length = length, .sequence = record->sequence, .op = record->op};
    struct ds_index *index;
    bool live = false, doomed = false;
    ds_status status = ds__index_now(pass->store, &index);
    if (status == DS_OK)
        status = is_live(pass->store, index, offset, record, &plan, &live, &doomed);
    if (status != DS_OK)
        return status;
    if (!live)
        return doomed ? doom_blob(pass, record) : DS_OK;
    if (batch->count == DS_BATCH_RECORDS || batch->bytes + length > BATCH_BYTES) {
        status = flush(pass);
        if (status != DS_OK)
            return status;
    }
    if (ds__op_is_blob(record->op))
        plan.blob = ds__record_blob(record);
    if (ds__op_expires(record->op))
        plan.expiry = ds__record_expiry(record);
    batch->changes[batch->count] = (ds_change){.kind = DS_PUT,
                                               .keyspace = record->keyspace,
                                               .key = ds__record_key(record),
                                               .key_size = record->key_size,
                                               .value = ds__record_payload(record),
                                               .value_size = record->value_size - ds__expiry_size(record->op)};
    batch->plans[batch->count] = plan;
    batch->offsets[batch->count] = offset;
    batch->count++;
    batch->bytes += length;
    return DS_OK;
}

typedef ds_status record_visitor(struct ds_pass *pass, uint64_t offset, const struct ds_record *record);

/* Every record of one segment, which is not the tail: its successor's header says where it ends. */
static ds_status visit_records(struct ds_pass *pass, struct ds_segment *segment, const struct ds_segment *successor,
                               record_visitor *visit) {
    uint64_t end = ds__segment_header(successor)->before_end;
    uint64_t offset = segment->base + DS_SEGMENT_HEADER;
    uint32_t before = segment->header_crc;
    while (offset < end) {
        const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, offset);
        if (end > segment->end || !ds__frame_valid(frame, end - offset, segment->seed, offset, before))
            return ds__fail(DS_CORRUPT, 0, "%s: the frame at log offset %llu fails its checksum; nothing is dropped",
                            pass->store->directory.path, (unsigned long long)offset);
        uint64_t at = offset + sizeof *frame;
        for (uint32_t i = 0; i < frame->count; i++) {
            const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, at);
            ds_status status = visit(pass, at, record);
            if (status != DS_OK)
                return status;
            at += ds__record_length(record->key_size, record->value_size);
        }
        before = frame->crc;
        offset = at;
    }
    return DS_OK;
}

static ds_status add_live(struct ds_pass *pass, uint64_t offset, const struct ds_record *record) {
    struct ds_plan plan;
    struct ds_index *index;
    bool live = false, doomed;
    ds_status status = ds__index_now(pass->store, &index);
    bool expired =
        ds__op_expires(record->op) && ds__record_expiry(record).deadline <= ds__clock_now(pass->store->control);
    pass->expired = pass->expired || expired;
    if (status == DS_OK && record->op != DS_RECORD_TOMBSTONE && record->op != DS_RECORD_START && !expired)
        status = is_live(pass->store, index, offset, record, &plan, &live, &doomed);
    if (live) /* in the worst case, each is moved in a frame of its own */
        pass->live_bytes += sizeof(struct ds_frame) + ds__record_length(record->key_size, record->value_size);
    return status;
}

/* On a full disk: would what is live in the segment and has not expired fit into the tail segment, with the HEAD after it?
 * If not, moving half of it would only use up the room that deletes need. Half of that room, the reserve, may be used all the
 * same, because what goes is larger; and all of it where something has expired, because nobody will delete that. */
static ds_status fits_into_tail(struct ds_pass *pass, struct ds_segment *segment, const struct ds_segment *successor) {
    pass->live_bytes = HEAD_BYTES;
    pass->expired = false;
    ds_status status = visit_records(pass, segment, successor, add_live);
    if (status == DS_OK)
        status = ds__writer_enter(pass->store);
    if (status != DS_OK)
        return status;
    const struct ds_tail *tail = &pass->store->control->tail;
    uint64_t room = tail->sealed ? 0 : tail->segment_base + tail->segment_size - tail->offset;
    uint64_t reserve = DS_SEGMENT_MIN - DS_SEGMENT_HEADER;
    if (!pass->expired)
        reserve /= 2;
    if (!reserve_gone(pass->store) && room < reserve)
        room = reserve;
    ds__writer_leave(pass->store);
    return pass->live_bytes <= room ? DS_OK : no_room(pass->store);
}

/* No slot of the index names a record below. What no slot names is dead, and stays so: a slot only ever moves on to a record
 * that was appended just now. */
static uint64_t oldest_named(const struct ds_index *index) {
    uint64_t oldest = UINT64_MAX;
    for (uint64_t i = 0; i <= index->mask; i++) {
        uint64_t slot = atomic_load_explicit(&index->slots[i], memory_order_acquire);
        if (slot != 0 && slot != DS_SLOT_GONE && ds__slot_offset(slot) < oldest)
            oldest = ds__slot_offset(slot);
    }
    return oldest;
}

/* The common case where a few keys are overwritten all the time: such a segment goes unread. The index is asked only where it
 * is shorter than the segment; and dead blobs are found by reading. */
static bool dead_as_a_whole(struct ds_pass *pass, const struct ds_segment *segment) {
    struct ds_index *index;
    if (ds__word_load(&pass->store->control->tail.blob_bytes) != 0)
        return false;
    if (segment->end > pass->oldest_named && ds__index_now(pass->store, &index) == DS_OK &&
        (index->mask + 1) * sizeof *index->slots <= segment->end - segment->base)
        pass->oldest_named = oldest_named(index);
    return segment->end <= pass->oldest_named;
}

ds_status ds__empty_segment(struct ds_pass *pass, struct ds_segment *segment, const struct ds_segment *successor) {
    if (!pass->tight && dead_as_a_whole(pass, segment))
        return DS_OK;
    ds_status status = pass->tight ? fits_into_tail(pass, segment, successor) : DS_OK;
    if (status == DS_OK)
        status = visit_records(pass, segment, successor, consider);
    return status == DS_OK ? flush(pass) : status;
}
