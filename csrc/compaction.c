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
 * How a segment is emptied is in relocation.c; here is when, and what follows. */
#include "relocation.h"

#include <errno.h>
#include <stdlib.h>

enum {
    SAMPLE = 128, /* records */
    SLACK = 2,    /* segments beyond twice the live data; one less when the writers rest */
};

/* ---- when ------------------------------------------------------------------------------------------------------ */

static uint64_t log_bytes(const struct ds_tail *tail, uint64_t start) {
    return tail->offset - start + tail->blob_bytes;
}

static uint64_t start_of(const ds_store *store) {
    return atomic_load_explicit(&store->control->start, memory_order_relaxed);
}

static bool is_due(const struct ds_tail *tail, uint64_t start, uint64_t expired, unsigned segments) {
    return start < tail->segment_base &&
           log_bytes(tail, start) + 2 * expired > 2 * tail->live_bytes + segments * tail->segment_size;
}

bool ds__compaction_due(const ds_store *store) {
    return is_due(&store->control->tail, start_of(store), ds__expired_bytes(store), SLACK);
}

/* What the files take is kept to twice the live data and four segments. What a pass copies before it can drop anything is
 * part of them: as much as is live, or a segment. Segments get smaller when a writer gets slow, and then the first one is the
 * measure. What the tail names of large values cannot go yet. */
bool ds__compaction_overdue(ds_store *store, uint64_t length) {
    const struct ds_tail *tail = &store->control->tail;
    uint64_t start = start_of(store);
    if (!is_due(tail, start, ds__expired_bytes(store), SLACK) ||
        atomic_load_explicit(&store->compacting_fails, memory_order_relaxed))
        return false;
    uint64_t needed = ds__segment_needed(store, length);
    uint64_t size = needed > tail->segment_size ? needed : tail->segment_size;
    const struct ds_segment *first = ds__segments_find(&store->segments, start);
    if (first != NULL && first->mapping.size > size)
        size = first->mapping.size;
    uint64_t copied = tail->live_bytes < size ? tail->live_bytes : size;
    return tail->segment_base + tail->segment_size + needed + copied - start + tail->blob_bytes >
           2 * tail->live_bytes + 4 * size + tail->segment_blobs;
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
    if (ds__expired_bytes(store) == 0 || ds__index_now(store, &index) != DS_OK)
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

/* ---- moving the start ------------------------------------------------------------------------------------------ */

/* Tells where its frame ends. */
static ds_status append_head(ds_store *store, uint64_t start, bool fresh, uint64_t *end) {
    ds_change change = {.kind = DS_PUT, .keyspace = DS_RUNTIME, .key = "", .value = &start, .value_size = sizeof start};
    struct ds_plan plan = {.length = ds__record_length(0, sizeof start), .op = DS_RECORD_START, .write = true};
    ds_status status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    status = ds__append(store, DS_FRAME_HEAD, &change, &plan, 1, sizeof(struct ds_frame) + plan.length, fresh);
    *end = store->control->tail.offset;
    ds__writer_leave(store);
    return status;
}

/* After the sync: what is dropped is on disk again, or dead. What cannot be unlinked only takes room. */
static ds_status drop(struct ds_pass *pass, uint64_t from, uint64_t to) {
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
        /* A pass that was cut short leaves two records that name it: then it is counted off with the first of them. */
        if (ds__blob_remove(store, &pass->blobs[i]))
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
static ds_status run_pass(struct ds_pass *pass, uint64_t until, bool *moved) {
    ds_store *store = pass->store;
    uint64_t from = start_of(store), to = from;
    for (;;) {
        struct ds_tail tail;
        struct ds_segment *segment, *successor;
        ds_status status = look_at_tail(store, &tail);
        if (status != DS_OK)
            return status;
        if (until == 0 && to > from && pass->moved_bytes > tail.segment_size / 2)
            break; /* what was copied takes room twice until its segment is dropped */
        if (until != 0 ? to >= until : !go_on(&tail, to, ds__expired_bytes(store)))
            break;
        size_t doomed = pass->blob_count;
        status = ds__segments_at(&store->segments, to, &segment);
        if (status == DS_OK)
            status = ds__segments_at(&store->segments, segment->end, &successor);
        if (status == DS_OK)
            status = ds__empty_segment(pass, segment, successor);
        if (status == DS_FULL && to > from) { /* drop what has been emptied: that makes room for the rest */
            pass->blob_count = doomed;        /* which keeps its large values */
            break;
        }
        if (status != DS_OK)
            return status;
        to = segment->end;
    }
    if (to == from)
        return DS_OK;
    uint64_t end;
    ds_status status = append_head(store, to, false, &end);
    ds__spare_make(store);
    if (status == DS_OK)
        status = ds__sync_between(store, to, end);
    if (status == DS_OK)
        status = drop(pass, from, to);
    *moved = status == DS_OK;
    return status;
}

static ds_status one_pass(ds_store *store, uint64_t until, bool tight, bool *moved) {
    struct ds_pass *pass = calloc(1, sizeof *pass);
    if (pass == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    pass->store = store;
    pass->tight = store->tight = tight;
    atomic_store_explicit(&store->reclaiming, true, memory_order_relaxed);
    ds__enter(store);
    ds_status status = ds__all_there(store, run_pass(pass, until, moved));
    ds__leave(store);
    free(pass->blobs);
    free(pass);
    return status;
}

/* ---- a compaction: one pass after the other -------------------------------------------------------------------------- */

static ds_status due_pass(ds_store *store, unsigned slack, bool *moved) {
    struct ds_tail tail;
    ds__enter(store);
    sample_expired(store);
    ds__leave(store);
    ds_status status = look_at_tail(store, &tail);
    if (status != DS_OK || !is_due(&tail, start_of(store), ds__expired_bytes(store), slack))
        return status;
    status = one_pass(store, 0, false, moved);
    return status == DS_FULL ? one_pass(store, 0, true, moved) : status;
}

/* Everything that is in the log now: a first HEAD opens a new segment, so that today's tail can go too. */
static ds_status until_all(ds_store *store, uint64_t *until) {
    ds_status status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    struct ds_tail tail = store->control->tail;
    store->control->tail.opened_ns = 0; /* a small segment again, however fast the last ones were filled */
    ds__writer_leave(store);
    uint64_t end;
    *until = tail.segment_base;
    if (tail.offset == tail.segment_base + DS_SEGMENT_HEADER)
        return DS_OK;
    *until += tail.segment_size;
    return append_head(store, start_of(store), true, &end);
}

/* On a full disk: what can go without a new segment. */
static ds_status until_tail(ds_store *store, uint64_t *until) {
    struct ds_tail tail;
    ds_status status = look_at_tail(store, &tail);
    if (status == DS_OK)
        *until = tail.segment_base;
    return status;
}

/* The next pass of a compaction. `until`: how far it goes, 0: not known yet. */
static ds_status next_pass(ds_store *store, enum ds_compaction how, uint64_t *until, bool *moved) {
    ds_status status = DS_OK;
    if (how == DS_COMPACT_DUE || how == DS_COMPACT_RESTED)
        return due_pass(store, how == DS_COMPACT_DUE ? SLACK : SLACK - 1, moved);
    if (*until == 0)
        status = how == DS_COMPACT_ALL ? until_all(store, until) : until_tail(store, until);
    if (status != DS_OK || start_of(store) >= *until)
        return status;
    return one_pass(store, *until, how == DS_COMPACT_TIGHTLY, moved);
}

/* Takes the lock for a pass. A predecessor that died left nothing to repair: a pass can be run again from any point. */
static ds_status begin_pass(ds_store *store, bool wait, bool *taken) {
    bool died;
    struct ds_lock *lock = &store->control->compact_lock;
    const char *holder = "another compaction", *path = store->directory.path;
    *taken = true;
    ds_status status = ds__sync_refused(store); /* a pass would write, drop nothing, and be tried again */
    if (status != DS_OK)
        return status;
    return wait ? ds__lock_take(lock, holder, store->options.lock_timeout_ms, path, &died)
                : ds__lock_try(lock, holder, path, taken, &died);
}

static void end_pass(ds_store *store, ds_status status) {
    atomic_store_explicit(&store->compacting_fails, status != DS_OK, memory_order_relaxed);
    ds__lock_release(&store->control->compact_lock);
    ds__reclaim(store); /* writers that wait for room do not wait for this */
}

/* Between two passes the lock is given back: who waits for room goes on with what the first of them has made. */
ds_status ds__compact(ds_store *store, bool wait, enum ds_compaction how) {
    uint64_t until = 0;
    bool moved = true;
    ds_status status = DS_OK;
    while (status == DS_OK && moved) {
        status = begin_pass(store, wait, &moved);
        if (status != DS_OK || !moved)
            break;
        moved = false;
        status = next_pass(store, how, &until, &moved);
        end_pass(store, status);
    }
    if (how == DS_COMPACT_TIGHTLY)
        ds__reclaim_all(store);
    return status;
}

ds_status ds__make_room(ds_store *store, uint64_t start) {
    bool moved;
    ds_status status = begin_pass(store, true, &moved);
    if (status != DS_OK)
        return status;
    if (start_of(store) == start)
        status = due_pass(store, SLACK, &moved);
    end_pass(store, status);
    return status;
}

ds_status ds_compact(ds_store *store) {
    ds_status status = ds__check_writable(store);
    if (status != DS_OK)
        return status;
    uint64_t end = atomic_load_explicit(&store->control->committed, memory_order_acquire);
    /* On a full disk the room in the last segment comes first: a new one would leave it behind. */
    if (atomic_load_explicit(&store->no_spares, memory_order_relaxed) ||
        atomic_load_explicit(&store->control->reserve_gone, memory_order_relaxed) != 0)
        (void)ds__compact(store, true, DS_COMPACT_TIGHTLY);
    for (;;) {
        uint64_t before = start_of(store);
        bool spares = !atomic_load_explicit(&store->no_spares, memory_order_relaxed);
        status = ds__compact(store, true, DS_COMPACT_ALL);
        if (status != DS_FULL)
            break;
        ds__spare_stop(store);
        status = ds__compact(store, true, DS_COMPACT_TIGHTLY);
        if (start_of(store) >= end) { /* all that there was; what came since is not asked for */
            status = DS_OK;
            break;
        }
        if (start_of(store) == before && !spares)
            break; /* else what went makes room for the rest */
    }
    return ds__advise(status, DS_TIMEOUT, "what was compacted stays so: compact again");
}
