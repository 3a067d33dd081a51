/* append.c: one frame, from plans to the commit point. Under the writer lock:
 *   1. place      room in the tail segment, or a new one
 *   2. intent     note what is about to happen; from here on a death is repaired by whoever comes next
 *   3. records    key, value, header, hash: bytes that nobody looks at yet
 *   4. word0      the frame exists; repair finishes it from here on, before that it undoes it
 *   5. slots      the index names the new records; readers step back over them
 *   6. committed  the commit point
 *   7. tail, then intent = 0
 * Everything that can fail happens before 2. */
#include "store.h"

#include <errno.h>

enum {
    POPULATE_AHEAD = 256 * 1024, /* bytes of page faults taken at once */
    FETCH_AHEAD = 1024,          /* bytes */
    KEPT_FREE = 1024,
    QUICK_SEGMENT = 2 * 1024 * 1024,
    QUICK_NS = 100 * 1000 * 1000,
    STEADY_NS = 1000 * 1000 * 1000,
};

uint64_t ds__live_size(const struct ds_record *record) {
    uint64_t size = ds__record_length(record->key_size, record->value_size);
    return ds__op_is_blob(record->op) ? size + ds__record_blob(record).size : size;
}

const void *ds__logged_value(const ds_change *change, const struct ds_plan *plan, uint64_t *size) {
    if (ds__op_is_blob(plan->op)) {
        *size = sizeof plan->blob;
        return &plan->blob;
    }
    *size = plan->op == DS_RECORD_TOMBSTONE ? 0 : change->value_size;
    return change->value;
}

/* ---- 1: place -------------------------------------------------------------------------------------------------- */

/* Was the tail segment full in no time? */
static bool quick(const struct ds_tail *tail, uint64_t now) {
    return now - tail->opened_ns < QUICK_NS;
}

/* Was it full soon enough that a spare for the next one would not be given back before? */
static bool steady(const struct ds_tail *tail, uint64_t now) {
    return now - tail->opened_ns < STEADY_NS;
}

/* About an eighth of the live data, so that compaction moves it in small steps; room for a few of the largest frames; and up
 * to QUICK_SEGMENT twice the last one where that one was full in no time, because a new file costs as much as hundreds of
 * puts. Half of the last one where it took long, so that bursts do not begin anew with small ones. */
static uint64_t next_segment_size(const struct ds_tail *tail, uint64_t length, uint64_t now) {
    uint64_t want = tail->live_bytes / 8;
    if (want < 4 * tail->largest_frame)
        want = 4 * tail->largest_frame;
    if (want < 4 * length)
        want = 4 * length;
    uint64_t follow = quick(tail, now) ? 2 * tail->segment_size : tail->segment_size / (steady(tail, now) ? 1 : 2);
    if (tail->opened_ns == 0) /* an opened store, or one that is to get small */
        follow = 0;
    if (follow > QUICK_SEGMENT)
        follow = QUICK_SEGMENT;
    if (want < follow)
        want = follow;
    if (want > DS_SEGMENT_MAX)
        want = DS_SEGMENT_MAX;
    uint64_t size = DS_SEGMENT_MIN;
    while (size < want)
        size *= 2;
    return size;
}

static bool expires(const struct ds_plan *plans, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (plans[i].write && ds__op_expires(plans[i].op))
            return true;
    return false;
}

ds_status ds__needs_fresh(ds_store *store, const struct ds_plan *plans, size_t count, bool *fresh) {
    struct ds_segment *segment;
    *fresh = false;
    if (!expires(plans, count))
        return DS_OK;
    ds_status status = ds__segments_at(&store->segments, store->control->tail.segment_base, &segment);
    if (status == DS_OK)
        *fresh = (ds__segment_header(segment)->incompat & DS_EXPIRY_INCOMPAT) == 0;
    return status;
}

/* A segment that names many bytes of blobs ends early, because they go only when it goes. */
static uint64_t blob_limit(const struct ds_tail *tail) {
    return tail->live_bytes / 8 > DS_SEGMENT_MAX ? tail->live_bytes / 8 : DS_SEGMENT_MAX;
}

/* One that a dead writer has made and not used, maybe of the reserve, is not to be in the way of what makes room. */
static ds_status replace_unused(ds_store *store, struct ds_segment_header *header, struct ds_segment **out) {
    char name[DS_NAME_SIZE];
    int fd;
    ds__segment_name(header->base, name);
    ds_status status = ds__os_open(&store->directory, name, DS_OS_READ, &fd);
    if (status != DS_OK)
        return status;
    ds__os_close(fd);
    (void)ds__os_unlink(&store->directory, name);
    header->size = DS_SEGMENT_MIN;
    return ds__segment_create(&store->segments, header, false, out);
}

/* A new segment; on a full disk the smallest that will do, and for what makes room the reserve. */
static ds_status make_room(ds_store *store, struct ds_segment_header *header, uint64_t length, bool frees,
                           bool was_quick, struct ds_segment **out) {
    atomic_uint *reserve_gone = &store->control->reserve_gone;
    if (ds__spare_take(store, header, out))
        return DS_OK;
    /* All at once, if it is small and will be full at once. */
    bool at_once = was_quick && header->size <= DS_OS_LARGE_PAGE;
    ds_status status = ds__segment_create(&store->segments, header, at_once, out);
    uint64_t smallest = DS_SEGMENT_MIN;
    while (smallest < length + DS_SEGMENT_HEADER)
        smallest *= 2;
    if (status == DS_FULL && smallest < header->size) {
        header->size = smallest;
        status = ds__segment_create(&store->segments, header, false, out);
    }
    if (status == DS_FULL && frees && smallest == DS_SEGMENT_MIN) {
        /* Who dies in between leaves the next one to look for it in vain, and not a reserve that nobody looks for. */
        bool made = ds__segment_from_reserve(&store->segments, header, out) == DS_OK;
        atomic_store_explicit(reserve_gone, 1, memory_order_relaxed);
        if (made || replace_unused(store, header, out) == DS_OK)
            return DS_OK;
        return ds__fail(DS_FULL, ENOSPC, "%s: no space left on the disk, and the store's reserve is used up; free some",
                        store->directory.path);
    } else if (status == DS_OK && atomic_load_explicit(reserve_gone, memory_order_relaxed) != 0 &&
               ds__reserve_make(&store->directory) == DS_OK) {
        atomic_store_explicit(reserve_gone, 0, memory_order_relaxed);
    }
    return status;
}

/* Deletes, and the moves of compaction where it is sure that what they leave can go. */
static bool makes_room(const ds_store *store, uint8_t type, const struct ds_plan *plans, size_t count) {
    if (type != DS_FRAME_COMMIT)
        return type == DS_FRAME_HEAD || store->tight;
    for (size_t i = 0; i < count; i++)
        if (plans[i].write && plans[i].op != DS_RECORD_TOMBSTONE)
            return false;
    return true;
}

/* While the reserve is in use, commits leave some room behind them, so that compaction can still move the start. */
static uint64_t kept_free(const ds_store *store, uint8_t type) {
    bool gone = atomic_load_explicit(&store->control->reserve_gone, memory_order_relaxed) != 0;
    return gone && type == DS_FRAME_COMMIT ? KEPT_FREE : 0;
}

/* Does a frame go into the last segment, which is one up to `end`? */
static bool fits(const ds_store *store, const struct ds_tail *tail, uint64_t end, uint8_t type, uint64_t length) {
    return !tail->sealed && length + kept_free(store, type) <= end - tail->offset &&
           tail->segment_blobs <= blob_limit(tail);
}

uint64_t ds__segment_needed(const ds_store *store, uint64_t length) {
    const struct ds_tail *tail = &store->control->tail;
    uint64_t end = tail->segment_base + tail->segment_size;
    return fits(store, tail, end, DS_FRAME_COMMIT, length) ? 0 : next_segment_size(tail, length, ds__os_now_ns());
}

/* The segment that takes the next frame, and in `after`, which is a copy of the tail, what the tail will say about it. */
static ds_status place_frame(ds_store *store, uint8_t type, const struct ds_plan *plans, size_t count, uint64_t length,
                             bool fresh, struct ds_tail *after, struct ds_segment **out) {
    const struct ds_tail *tail = after;
    struct ds_segment *segment;
    ds_status status = ds__all_there(store, ds__segments_at(&store->segments, tail->segment_base, &segment));
    if (status != DS_OK)
        return status;
    if (tail->offset % 8 != 0 || tail->offset < segment->base + DS_SEGMENT_HEADER || tail->offset > segment->end)
        return ds__control_damaged(store);
    if (!fresh && fits(store, tail, segment->end, type, length)) {
        *out = segment;
        return DS_OK;
    }
    uint64_t now = ds__os_now_ns();
    bool was_quick = quick(tail, now), was_steady = steady(tail, now);
    struct ds_segment_header header = {
        .base = segment->end,
        .size = next_segment_size(tail, length, now),
        .hash_seed = store->hash_seed,
        .first_sequence = tail->sequence + 1,
        .before_base = tail->segment_base,
        .before_end = tail->offset,
        .before_sequence = tail->sequence,
        .before_crc = tail->crc,
        .incompat = ds__segment_header(segment)->incompat | (expires(plans, count) ? DS_EXPIRY_INCOMPAT : 0),
    };
    memcpy(header.uuid, store->uuid, sizeof header.uuid);
    struct ds_segment *next;
    status = make_room(store, &header, length, makes_room(store, type, plans, count), was_quick, &next);
    if (status == DS_OK)
        status = ds__segments_add(&store->segments, next);
    if (status != DS_OK)
        return status;
    after->offset = next->base + DS_SEGMENT_HEADER;
    after->segment_base = next->base;
    after->segment_size = header.size;
    after->opened_ns = now;
    after->crc = next->header_crc;
    after->sealed = 0;
    after->segment_blobs = 0;
    after->largest_frame = tail->largest_frame / 2; /* it is forgotten by and by */
    /* A new segment is the occasion to look how much has expired. */
    if (type == DS_FRAME_COMMIT && (header.incompat & DS_EXPIRY_INCOMPAT) != 0)
        atomic_store_explicit(&store->control->expired_bytes, DS_UNKNOWN_BYTES, memory_order_relaxed);
    if (was_steady)
        ds__spare_want(store, was_quick ? next_segment_size(after, length, now) : after->segment_size);
    *out = next;
    return DS_OK;
}

static void populate_ahead(struct ds_segment *segment, uint64_t begin, uint64_t end) {
    uint64_t from = begin - segment->base, to = end - segment->base;
    if (to <= segment->populated)
        return;
    if (from < segment->populated)
        from = segment->populated;
    from &= ~UINT64_C(4095);
    to += POPULATE_AHEAD;
    if (to > segment->mapping.size)
        to = segment->mapping.size;
    ds__os_populate(segment->mapping.bytes + from, to - from);
    segment->populated = to;
}

/* The lines of the next frame, if it is like this one: a spare was touched by another core, and a checksum that reads what
 * was just written would wait for them. */
static void fetch_ahead(const struct ds_segment *segment, uint64_t end, uint64_t length) {
    uint64_t most = segment->end - end < FETCH_AHEAD ? segment->end - end : FETCH_AHEAD;
    const unsigned char *at = ds__segment_at(segment, end);
    for (uint64_t i = 0; i < length && i < most; i += 64)
        __builtin_prefetch(at + i, 1);
}

/* ---- 2 to 7 ---------------------------------------------------------------------------------------------------- */

static void account(struct ds_tail *after, const ds_change *change, const struct ds_plan *plan) {
    if (plan->previous == 0)
        after->slots_used++;
    if (plan->replaced_bytes != 0) {
        after->live_bytes -= plan->replaced_bytes;
        after->keys[change->keyspace]--;
    }
    if (plan->op != DS_RECORD_TOMBSTONE) {
        after->live_bytes += plan->length;
        after->keys[change->keyspace]++;
    }
    if (ds__op_is_blob(plan->op)) {
        after->live_bytes += plan->blob.size;
        after->blob_bytes += plan->blob.size;
    }
}

static void write_record(unsigned char *at, uint64_t offset, uint32_t seed, uint64_t sequence, const ds_change *change,
                         const struct ds_plan *plan) {
    struct ds_record *record = (struct ds_record *)(void *)at;
    uint64_t value_size, expiry_size = ds__expiry_size(plan->op);
    const void *value = ds__logged_value(change, plan, &value_size);
    /* The padding is zero already: a segment is zero beyond its tail. */
    if (change->key_size > 0)
        memcpy(at + sizeof *record, change->key, change->key_size);
    unsigned char *to = at + sizeof *record + DS_ALIGN(change->key_size);
    if (expiry_size > 0)
        memcpy(to, &plan->expiry, sizeof plan->expiry);
    if (value_size > 0)
        memcpy(to + expiry_size, value, value_size);
    /* Made here and stored at once: reading it back from the log, for its checksum, would wait for a cold cache line. */
    struct ds_record header = {
        .sequence = plan->sequence != 0 ? plan->sequence : sequence,
        .previous = plan->previous,
        .value_size = expiry_size + value_size,
        .key_size = (uint32_t)change->key_size,
        .op = plan->op,
        .keyspace = change->keyspace,
    };
    uint32_t record_seed = ds__record_seed(seed, offset, &header);
    header.check = (uint16_t)record_seed;
    /* Of the log's bytes, not of the caller's buffer, which the caller may be changing. */
    header.hash = ds__record_hash(record_seed, record, plan->length);
    *record = header;
}

static void write_frame(ds_store *store, uint8_t type, struct ds_index *index, struct ds_segment *segment,
                        const ds_change *changes, const struct ds_plan *plans, size_t count, uint64_t length,
                        struct ds_tail *after) {
    struct ds_control *control = store->control;
    uint64_t begin = after->offset, end = begin + length;
    uint32_t before = after->crc;
    after->offset = end;
    after->sequence = control->tail.sequence + (type == DS_FRAME_COMMIT);
    if (after->largest_frame < length)
        after->largest_frame = length;
    uint32_t records = 0;
    for (size_t i = 0; i < count; i++) {
        if (!plans[i].write)
            continue;
        records++;
        if (type == DS_FRAME_COMMIT) /* the other types change nothing that counts */
            account(after, &changes[i], &plans[i]);
        if (ds__op_is_blob(plans[i].op)) {
            after->last_blob = begin;
            after->segment_blobs += plans[i].blob.size;
        }
    }
    populate_ahead(segment, begin, end);

    control->intent.begin = begin;
    ds__tail_store(&control->intent.after, after);
    atomic_store_explicit(&control->intent.end, end, memory_order_release);
    /* Only against the compiler: what comes next must not be stored before the intent. */
    atomic_signal_fence(memory_order_seq_cst);

    struct ds_frame *frame = (struct ds_frame *)(void *)ds__segment_at(segment, begin);
    uint64_t at = begin + sizeof *frame;
    for (size_t i = 0; i < count; i++) {
        if (!plans[i].write)
            continue;
        write_record(ds__segment_at(segment, at), at, segment->seed, after->sequence, &changes[i], &plans[i]);
        at += plans[i].length;
    }
    uint64_t word0 = ds__word0(length, type);
    frame->sequence = after->sequence;
    frame->count = records;
    frame->crc = ds__frame_crc(segment->seed, begin, before, word0, frame);
    after->crc = frame->crc;
    atomic_store_explicit((_Atomic uint64_t *)&frame->word0, word0, memory_order_release);

    at = begin + sizeof *frame;
    for (size_t i = 0; i < count; i++) {
        if (!plans[i].write || plans[i].op == DS_RECORD_START)
            continue;
        if (records == 1 || plans[i].previous != 0)
            ds__index_set(index, plans[i].slot, ds__slot(at, plans[i].hash));
        else /* an earlier record of this batch may have taken the empty slot that was found */
            ds__index_apply(index, plans[i].hash, at, plans[i].previous);
        at += plans[i].length;
    }

    atomic_store_explicit(&control->committed, end, memory_order_release);
    ds__tail_store(&control->tail, after);
    atomic_store_explicit(&control->intent.end, 0, memory_order_release);
    fetch_ahead(segment, end, length);
}

/* Is all that a commit is written to still there? */
static ds_status check_files(const ds_store *store, const struct ds_segment *segment) {
    if (ds__sigbus_cut(segment->mapping.bytes, segment->mapping.size))
        return ds__fail(
            DS_CORRUPT, 0,
            "%s: the segment at log offset %llu was cut or became unreadable while it was in use; close the "
            "store in all processes, then restore it from a copy or repair it",
            store->directory.path, (unsigned long long)segment->base);
    return ds__intact(store, DS_OK);
}

ds_status ds__append(ds_store *store, uint8_t type, const ds_change *changes, const struct ds_plan *plans, size_t count,
                     uint64_t length, bool fresh) {
    struct ds_index *index;
    struct ds_segment *segment = NULL;
    struct ds_tail after = store->control->tail;
    ds_status status = ds__index_now(store, &index);
    if (status == DS_OK)
        status = place_frame(store, type, plans, count, length, fresh, &after, &segment);
    if (status == DS_OK)
        status = check_files(store, segment);
    if (status != DS_OK)
        return status;
    write_frame(store, type, index, segment, changes, plans, count, length, &after);
    return check_files(store, segment);
}
