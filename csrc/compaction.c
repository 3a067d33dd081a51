/* compaction.c: last value wins, oldest segment first.
 *
 * The log is a queue of segments. A pass takes the oldest ones, appends again what the index still names of them
 * (RELOCATE frames: same values, same sequences), appends HEAD with the new start of the log, syncs from there on, moves
 * `start`, and unlinks, oldest first. What is dropped need not have been on disk ever: under continuous overwriting the
 * disk sees about the live data. Killed anywhere, it leaves a valid log: until HEAD is on disk nothing is gone, and what is
 * dropped before it is finished is only ever a beginning that the rest repeats.
 *
 * Why the oldest: nothing older can hold a key of it, so a tombstone found there has done its work and goes, and nothing
 * can rise from the dead. Where a few keys are overwritten all the time, the oldest segments are dead as a whole.
 *
 * A record that is found dead stays dead, so looking needs no lock; moving the living takes it for a bounded batch. */
#include "store.h"

#include <errno.h>
#include <stdlib.h>

enum {
    BATCH_RECORDS = 32,
    BATCH_BYTES = 64 * 1024,
    SAMPLE = 128,            /* records */
    HEAD_BYTES = 128,        /* more than a HEAD frame takes */
    SLACK = 4 * 1024 * 1024, /* bytes beyond which a small store's log is long */
};

/* ---- when ------------------------------------------------------------------------------------------------------ */

static uint64_t log_bytes(const struct ds_tail *tail, uint64_t start) {
    return tail->offset - start + tail->blob_bytes;
}

static uint64_t start_of(const ds_store *store) {
    return atomic_load_explicit(&store->control->start, memory_order_relaxed);
}

/* Of the live bytes, those in records that have expired. What a sample has shown, so nothing may be concluded from it but
 * whether to look. */
static uint64_t expired_bytes(const ds_store *store) {
    return atomic_load_explicit(&store->control->expired_bytes, memory_order_relaxed);
}

static bool is_due(const struct ds_tail *tail, uint64_t start, uint64_t expired) {
    return start < tail->segment_base &&
           log_bytes(tail, start) + 2 * expired > 2 * tail->live_bytes + 3 * tail->segment_size;
}

bool ds__compaction_due(const ds_store *store) {
    return is_due(&store->control->tail, start_of(store), expired_bytes(store));
}

bool ds__compaction_overdue(const ds_store *store) {
    const struct ds_tail *tail = &store->control->tail;
    uint64_t start = start_of(store);
    return start < tail->segment_base && !atomic_load_explicit(&store->compacting_fails, memory_order_relaxed) &&
           log_bytes(tail, start) > 4 * tail->live_bytes + 8 * tail->segment_size + SLACK;
}

/* A pass goes on until half of what may be dead is gone, so that the next one is not due at once. */
static bool go_on(const struct ds_tail *tail, uint64_t start, uint64_t expired) {
    if (expired == DS_UNKNOWN_BYTES)
        expired = 0; /* the next pass will have looked */
    return start < tail->segment_base && log_bytes(tail, start) + expired + expired / 2 >
                                             tail->live_bytes + tail->live_bytes / 2 + tail->segment_size;
}

/* ---- what has expired ------------------------------------------------------------------------------------------ */

/* Keys that are put once, with a time to live, and never touched again would count as live for ever, and nothing would be
 * due. When a segment is full, some slots of the index are looked at: a sample of them costs some microseconds, where exact
 * sums by deadline would cost every put. */
static void sample_expired(ds_store *store) {
    struct ds_control *control = store->control;
    struct ds_index *index;
    uint64_t now = ds__clock_now(control), live = 0, expired = 0, at = now;
    if (expired_bytes(store) == 0 || ds__index_now(store, &index) != DS_OK)
        return;
    for (uint64_t i = 0, taken = 0; i <= index->mask && taken < SAMPLE; i++) {
        struct ds_found found;
        bool is_expired = false;
        at = (at * 5 + 1) & index->mask; /* comes by every slot once */
        uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_acquire);
        if (slot == 0 || slot == DS_SLOT_GONE || ds__record_at(store, ds__slot_offset(slot), &found) != DS_OK ||
            !ds__record_header_valid(found.segment->seed, found.offset, found.record) ||
            found.record->op == DS_RECORD_TOMBSTONE)
            continue;
        taken++;
        live += ds__live_size(found.record);
        if (ds__op_expires(found.record->op) && ds__expired(store, &found, now, &is_expired) == DS_OK && is_expired)
            expired += ds__live_size(found.record);
    }
    double part = live > 0 ? (double)expired / (double)live : 0;
    uint64_t bytes = (uint64_t)((double)ds__word_load(&control->tail.live_bytes) * part);
    atomic_store_explicit(&control->expired_bytes, bytes, memory_order_relaxed);
}

/* ---- moving the living ----------------------------------------------------------------------------------------- */

struct batch {
    ds_change changes[BATCH_RECORDS];
    struct ds_plan plans[BATCH_RECORDS];
    uint64_t offsets[BATCH_RECORDS];
    size_t count;
    uint64_t bytes;
};

struct pass {
    ds_store *store;
    struct batch batch;
    struct ds_blob_reference *blobs; /* named by what is dropped, and by nothing else */
    size_t blob_count, blob_room;
    bool tight;            /* the disk is full: move only what fits */
    uint64_t oldest_named; /* offset below which no record was named when the index was asked */
    uint64_t live_bytes;
    bool expired; /* some of what was looked at */
};

static ds_status doom_blob(struct pass *pass, const struct ds_record *record) {
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

/* Does the index name this very record? Without the lock, "no" is final and "yes" is to be asked again. */
static ds_status is_live(ds_store *store, const struct ds_index *index, uint64_t offset, const struct ds_record *record,
                         struct ds_plan *plan, bool *live) {
    struct ds_found found;
    bool gone = false;
    plan->hash = ds__hash(store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
    ds_status status =
        ds__find(store, index, plan->hash, record->keyspace, ds__record_key(record), record->key_size, &found, &gone);
    *live = status == DS_OK && found.offset == offset;
    plan->slot = found.slot;
    return status == DS_MISSING ? DS_OK : status;
}

/* Under the lock: what is still live of the batch moves. The slots of tombstones and of what has expired are given up
 * afterwards; of the latter, `replaced_bytes` tells how much dies. */
static ds_status plan_move(struct pass *pass, const struct ds_index *index, uint64_t offset, struct ds_plan *plan) {
    struct ds_found found;
    bool live = false, expired = false;
    ds_status status = ds__record_at(pass->store, offset, &found);
    if (status == DS_OK)
        status = is_live(pass->store, index, offset, found.record, plan, &live);
    if (status == DS_OK && live && ds__op_expires(plan->op))
        status = ds__expired(pass->store, &found, ds__clock_now(pass->store->control), &expired);
    if (status != DS_OK)
        return status;
    plan->replaced_bytes = expired ? ds__live_size(found.record) : 0;
    plan->write = live && !expired && plan->op != DS_RECORD_TOMBSTONE;
    return !plan->write && ds__op_is_blob(plan->op) ? doom_blob(pass, found.record) : DS_OK;
}

static ds_status move_batch(struct pass *pass, const struct ds_index *index, uint64_t *length) {
    struct batch *batch = &pass->batch;
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
    uint64_t expected = expired_bytes(store);
    ds__word_store(&control->tail.keys[keyspace], control->tail.keys[keyspace] - 1);
    ds__word_store(&control->tail.live_bytes, control->tail.live_bytes - bytes);
    if (expected != DS_UNKNOWN_BYTES)
        atomic_store_explicit(&control->expired_bytes, expected - (bytes < expected ? bytes : expected),
                              memory_order_relaxed);
}

static void give_up_slots(struct pass *pass, const struct ds_index *index) {
    struct batch *batch = &pass->batch;
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

static ds_status flush(struct pass *pass) {
    struct batch *batch = &pass->batch;
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
    if (status == DS_OK && length > sizeof(struct ds_frame))
        status = ds__append(store, DS_FRAME_RELOCATE, batch->changes, batch->plans, batch->count, length, false);
    if (status == DS_OK)
        give_up_slots(pass, index);
    ds__writer_leave(store);
    if (status == DS_OK)
        atomic_fetch_add_explicit(&store->control->relocated_bytes, length, memory_order_relaxed);
    batch->count = 0;
    batch->bytes = 0;
    return status;
}

static ds_status consider(struct pass *pass, uint64_t offset, const struct ds_record *record) {
    struct batch *batch = &pass->batch;
    uint64_t length = ds__record_length(record->key_size, record->value_size);
    if (record->op == DS_RECORD_START)
        return DS_OK;
    struct ds_plan plan = {.previous = offset, .length = length, .sequence = record->sequence, .op = record->op};
    struct ds_index *index;
    bool live = false;
    ds_status status = ds__index_now(pass->store, &index);
    if (status == DS_OK)
        status = is_live(pass->store, index, offset, record, &plan, &live);
    if (status != DS_OK)
        return status;
    if (!live)
        return ds__op_is_blob(record->op) ? doom_blob(pass, record) : DS_OK;
    if (batch->count == BATCH_RECORDS || batch->bytes + length > BATCH_BYTES) {
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

typedef ds_status record_visitor(struct pass *pass, uint64_t offset, const struct ds_record *record);

/* Every record of one segment, which is not the tail: its successor's header says where it ends. */
static ds_status visit_records(struct pass *pass, struct ds_segment *segment, const struct ds_segment *successor,
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

static ds_status add_live(struct pass *pass, uint64_t offset, const struct ds_record *record) {
    struct ds_plan plan;
    struct ds_index *index;
    bool live = false;
    ds_status status = ds__index_now(pass->store, &index);
    bool expired =
        ds__op_expires(record->op) && ds__record_expiry(record).deadline <= ds__clock_now(pass->store->control);
    pass->expired = pass->expired || expired;
    if (status == DS_OK && record->op != DS_RECORD_TOMBSTONE && record->op != DS_RECORD_START && !expired)
        status = is_live(pass->store, index, offset, record, &plan, &live);
    if (live) /* in the worst case, each is moved in a frame of its own */
        pass->live_bytes += sizeof(struct ds_frame) + ds__record_length(record->key_size, record->value_size);
    return status;
}

/* On a full disk: would what is live in the segment and has not expired fit into the tail segment, with the HEAD after it?
 * If not, moving half of it would only use up the room that deletes need. That room, the reserve, may be used all the same
 * where something has expired, because nobody will delete that: what goes is larger than the reserve. */
static ds_status fits_into_tail(struct pass *pass, struct ds_segment *segment, const struct ds_segment *successor) {
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
    bool reserve_gone = atomic_load_explicit(&pass->store->control->reserve_gone, memory_order_relaxed) != 0;
    ds__writer_leave(pass->store);
    if (pass->expired && !reserve_gone && room < reserve)
        room = reserve;
    return pass->live_bytes <= room
               ? DS_OK
               : ds__fail(DS_FULL, ENOSPC, "%s: no room to compact in", pass->store->directory.path);
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
static bool dead_as_a_whole(struct pass *pass, const struct ds_segment *segment) {
    struct ds_index *index;
    if (ds__word_load(&pass->store->control->tail.blob_bytes) != 0)
        return false;
    if (segment->end > pass->oldest_named && ds__index_now(pass->store, &index) == DS_OK &&
        (index->mask + 1) * sizeof *index->slots <= segment->end - segment->base)
        pass->oldest_named = oldest_named(index);
    return segment->end <= pass->oldest_named;
}

static ds_status empty_segment(struct pass *pass, struct ds_segment *segment, const struct ds_segment *successor) {
    if (!pass->tight && dead_as_a_whole(pass, segment))
        return DS_OK;
    ds_status status = pass->tight ? fits_into_tail(pass, segment, successor) : DS_OK;
    if (status == DS_OK)
        status = visit_records(pass, segment, successor, consider);
    return status == DS_OK ? flush(pass) : status;
}

/* ---- moving the start ------------------------------------------------------------------------------------------ */

static ds_status append_head(ds_store *store, uint64_t start, bool fresh) {
    ds_change change = {.kind = DS_PUT, .keyspace = DS_RUNTIME, .key = "", .value = &start, .value_size = sizeof start};
    struct ds_plan plan = {.length = ds__record_length(0, sizeof start), .op = DS_RECORD_START, .write = true};
    ds_status status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    status = ds__append(store, DS_FRAME_HEAD, &change, &plan, 1, sizeof(struct ds_frame) + plan.length, fresh);
    ds__writer_leave(store);
    return status;
}

/* After the sync: what is dropped is on disk again, or dead. What cannot be unlinked only takes room. */
static ds_status drop(struct pass *pass, uint64_t from, uint64_t to) {
    ds_store *store = pass->store;
    struct ds_control *control = store->control;
    atomic_store_explicit(&control->start, to, memory_order_release);
    for (uint64_t base = from; base < to;) {
        struct ds_segment *segment;
        char name[DS_NAME_SIZE];
        ds_status status = ds__segments_at(&store->segments, base, &segment);
        if (status != DS_OK)
            return status;
        base = segment->end;
        ds__segment_name(segment->base, name);
        (void)ds__os_unlink(&store->directory, name);
        atomic_fetch_add_explicit(&control->dropped_segments, 1, memory_order_relaxed);
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < pass->blob_count; i++) {
        ds__blob_remove(store, &pass->blobs[i]);
        bytes += pass->blobs[i].size;
    }
    if (bytes == 0)
        return DS_OK;
    ds_status status = ds__writer_enter(store);
    if (status == DS_OK) {
        /* A death before this line leaves the sum too high, which costs a pass too many until the next rebuild. */
        uint64_t known = control->tail.blob_bytes;
        ds__word_store(&control->tail.blob_bytes, known - (bytes < known ? bytes : known));
        ds__writer_leave(store);
    }
    return status;
}

static ds_status look_at_tail(ds_store *store, struct ds_tail *tail) {
    ds_status status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    *tail = store->control->tail;
    ds__writer_leave(store);
    return DS_OK;
}

/* Moves the start as far as `until`, or (0) as far as go_on() says. */
static ds_status run_pass(struct pass *pass, uint64_t until, bool *moved) {
    ds_store *store = pass->store;
    uint64_t from = start_of(store), to = from;
    *moved = false;
    for (;;) {
        struct ds_tail tail;
        struct ds_segment *segment, *successor;
        ds_status status = look_at_tail(store, &tail);
        if (status != DS_OK)
            return status;
        if (until != 0 ? to >= until : !go_on(&tail, to, expired_bytes(store)))
            break;
        status = ds__segments_at(&store->segments, to, &segment);
        if (status == DS_OK)
            status = ds__segments_at(&store->segments, segment->end, &successor);
        if (status == DS_OK)
            status = empty_segment(pass, segment, successor);
        if (status == DS_FULL && to > from)
            break; /* drop what has been emptied: that makes room for the rest */
        if (status != DS_OK)
            return status;
        to = segment->end;
    }
    if (to == from)
        return DS_OK;
    ds_status status = append_head(store, to, false);
    ds__spare_make(store);
    if (status == DS_OK)
        status = ds__sync(store, to, false);
    if (status == DS_OK)
        status = drop(pass, from, to);
    *moved = status == DS_OK;
    return status;
}

static ds_status one_pass(ds_store *store, uint64_t until, bool tight, bool *moved) {
    struct pass *pass = calloc(1, sizeof *pass);
    if (pass == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    pass->store = store;
    pass->tight = tight;
    atomic_store_explicit(&store->reclaiming, true, memory_order_relaxed);
    ds__enter(store);
    ds_status status = run_pass(pass, until, moved);
    ds__leave(store);
    ds__reclaim(store);
    free(pass->blobs);
    free(pass);
    return status;
}

static ds_status compact_due(ds_store *store) {
    bool moved = true;
    ds_status status = DS_OK;
    while (status == DS_OK && moved) {
        struct ds_tail tail;
        ds__enter(store);
        sample_expired(store);
        ds__leave(store);
        status = look_at_tail(store, &tail);
        if (status != DS_OK || !is_due(&tail, start_of(store), expired_bytes(store)))
            break;
        status = one_pass(store, 0, false, &moved);
    }
    return status;
}

static ds_status compact_until(ds_store *store, uint64_t until, bool tight) {
    bool moved = true;
    ds_status status = DS_OK;
    while (status == DS_OK && moved && start_of(store) < until)
        status = one_pass(store, until, tight, &moved);
    return status;
}

/* Everything that is in the log now: a first HEAD opens a new segment, so that today's tail can go too. */
static ds_status compact_all(ds_store *store) {
    ds_status status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    struct ds_tail tail = store->control->tail;
    store->control->tail.opened_ns = 0; /* a small segment again, however fast the last ones were filled */
    ds__writer_leave(store);
    uint64_t until = tail.segment_base;
    if (tail.offset > tail.segment_base + DS_SEGMENT_HEADER) {
        status = append_head(store, start_of(store), true);
        until = tail.segment_base + tail.segment_size;
    }
    return status == DS_OK ? compact_until(store, until, false) : status;
}

/* On a full disk: what can go without a new segment. */
static ds_status compact_tightly(ds_store *store) {
    struct ds_tail tail;
    ds_status status = look_at_tail(store, &tail);
    return status == DS_OK ? compact_until(store, tail.segment_base, true) : status;
}

ds_status ds_compact(ds_store *store) {
    ds_status status = ds__check_writable(store);
    if (status != DS_OK)
        return status;
    for (;;) {
        uint64_t before = start_of(store);
        bool spares = !atomic_load_explicit(&store->no_spares, memory_order_relaxed);
        status = ds__compact(store, true, DS_COMPACT_ALL);
        if (status != DS_FULL)
            return status;
        ds__spare_stop(store);
        status = ds__compact(store, true, DS_COMPACT_TIGHTLY);
        if (start_of(store) == before && !spares)
            return status; /* else what went makes room for the rest */
    }
}

ds_status ds__compact(ds_store *store, bool wait, enum ds_compaction how) {
    bool taken = true, died;
    struct ds_lock *lock = &store->control->compact_lock;
    /* A predecessor that died left nothing to repair: a pass can be run again from any point. */
    ds_status status = wait ? ds__lock_take(lock, store->options.lock_timeout_ms, store->directory.path, &died)
                            : ds__lock_try(lock, store->directory.path, &taken, &died);
    if (status != DS_OK || !taken)
        return status;
    status = how == DS_COMPACT_DUE   ? compact_due(store)
             : how == DS_COMPACT_ALL ? compact_all(store)
                                     : compact_tightly(store);
    atomic_store_explicit(&store->compacting_fails, status != DS_OK, memory_order_relaxed);
    ds__lock_release(lock);
    return status;
}
