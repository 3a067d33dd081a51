/* commit.c: one commit, from the caller's changes to the commit point.
 *
 * Under the writer lock:
 *   1. resolve    find each key's present record, check expectations, drop deletes of missing keys
 *   2. place      room in the index and in the tail segment, or a new one of each
 *   3. intent     note what is about to happen; from here on a death is repaired by whoever comes next
 *   4. records    key, value, header, hash: bytes that nobody looks at yet
 *   5. word0      the frame exists; repair finishes it from here on, before that it undoes it
 *   6. slots      the index names the new records; readers step back over them
 *   7. committed  the commit point
 *   8. tail, then intent = 0
 * Everything that can fail happens before 3. */
#include "store.h"

#include "lock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    FEW = 16,                    /* changes planned without allocating */
    POPULATE_AHEAD = 256 * 1024, /* bytes of page faults taken at once */
    CROWDED = 48 * 1024 * 1024,  /* a larger frame moves its values from here on into blobs: */
    CROWDED_BLOB_FROM = 64 * 1024,
    QUICK_SEGMENT = 1024 * 1024,
    QUICK_NS = 100 * 1000 * 1000,
};

/* ---- the lock -------------------------------------------------------------------------------------------------- */

ds_status ds__writer_enter(ds_store *store) {
    bool died;
    ds_status status =
        ds__lock_take(&store->control->lock, store->options.lock_timeout_ms, store->directory.path, &died);
    if (status != DS_OK)
        return status;
    ds__enter(store);
    /* Not only when the last owner died: its heir may have died in the repair, or failed and given up. */
    if (atomic_load_explicit(&store->control->intent.end, memory_order_relaxed) != 0)
        status = ds__repair(store);
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
    ds__lock_release(&store->control->lock);
    ds__leave(store);
}

/* ---- before the lock ------------------------------------------------------------------------------------------- */

static ds_status check_changes(const ds_store *store, const ds_change *changes, size_t count) {
    if (count > UINT32_MAX)
        return ds__fail(DS_TOO_LARGE, 0, "%s: %zu changes in one commit", store->directory.path, count);
    for (size_t i = 0; i < count; i++) {
        const ds_change *change = &changes[i];
        if (change->kind < DS_PUT || change->kind > DS_EXPECT || change->keyspace >= DS_KEYSPACES)
            return ds__fail(DS_INVALID, 0, "%s: change %zu has an unknown kind or keyspace", store->directory.path, i);
        if (change->key_size > DS_KEY_LIMIT)
            return ds__fail(DS_TOO_LARGE, 0, "%s: a key of %zu bytes; the limit is %d", store->directory.path,
                            change->key_size, DS_KEY_LIMIT);
    }
    return DS_OK;
}

/* The value's size in the log. */
static uint64_t logged_size(const ds_change *change, uint64_t blob_from) {
    if (change->kind != DS_PUT)
        return 0;
    return change->value_size > blob_from ? sizeof(struct ds_blob_reference) : change->value_size;
}

static uint64_t frame_bound(const ds_change *changes, size_t count, uint64_t blob_from) {
    uint64_t length = sizeof(struct ds_frame);
    for (size_t i = 0; i < count && length <= DS_SEGMENT_MAX; i++)
        if (changes[i].kind != DS_EXPECT)
            length += ds__record_length(changes[i].key_size, logged_size(&changes[i], blob_from));
    return length;
}

/* Large values go to files of their own now, so that nobody waits under the lock for a copy of gigabytes. */
static ds_status write_blobs(ds_store *store, const ds_change *changes, struct ds_plan *plans, size_t count,
                             uint64_t blob_from) {
    for (size_t i = 0; i < count; i++) {
        if (changes[i].kind != DS_PUT || changes[i].value_size <= blob_from)
            continue;
        ds_status status = ds__blob_write(store, changes[i].value, changes[i].value_size, &plans[i].blob);
        if (status != DS_OK)
            return status;
        plans[i].op = DS_RECORD_BLOB;
    }
    return DS_OK;
}

static void remove_blobs(ds_store *store, const struct ds_plan *plans, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (plans[i].op == DS_RECORD_BLOB)
            ds__blob_remove(store, &plans[i].blob);
}

static bool same_key(const ds_change *a, const ds_change *b) {
    return a->keyspace == b->keyspace && a->key_size == b->key_size &&
           (a->key_size == 0 || memcmp(a->key, b->key, a->key_size) == 0);
}

/* A key named twice takes its last change: marks those that are to be written. `seen` has room for a power of two of at
 * least twice as many entries, all UINT32_MAX. */
static void keep_last(const ds_change *changes, struct ds_plan *plans, size_t count, uint32_t *seen, size_t room) {
    for (size_t i = count; i-- > 0;) {
        if (changes[i].kind == DS_EXPECT)
            continue;
        size_t at = plans[i].hash & (room - 1);
        while (seen[at] != UINT32_MAX && !same_key(&changes[seen[at]], &changes[i]))
            at = (at + 1) & (room - 1);
        plans[i].write = seen[at] == UINT32_MAX;
        if (plans[i].write)
            seen[at] = (uint32_t)i;
    }
}

static ds_status plan_changes(ds_store *store, const ds_change *changes, struct ds_plan *plans, size_t count) {
    for (size_t i = 0; i < count; i++) {
        plans[i].hash = ds__hash(store->hash_seed, changes[i].keyspace, changes[i].key, changes[i].key_size);
        plans[i].op = changes[i].kind == DS_DELETE ? DS_RECORD_TOMBSTONE : DS_RECORD_PUT;
    }
    if (count == 1) {
        plans[0].write = changes[0].kind != DS_EXPECT;
        return DS_OK;
    }
    size_t room = 2 * FEW;
    uint32_t few[2 * FEW], *seen = few;
    if (count > FEW) {
        while (room < 2 * count)
            room *= 2;
        seen = malloc(room * sizeof *seen);
        if (seen == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    }
    memset(seen, 0xff, room * sizeof *seen);
    keep_last(changes, plans, count, seen, room);
    if (seen != few)
        free(seen);
    return DS_OK;
}

uint64_t ds__live_size(const struct ds_record *record) {
    uint64_t size = ds__record_length(record->key_size, record->value_size);
    struct ds_blob_reference blob;
    if (record->op == DS_RECORD_BLOB) {
        memcpy(&blob, ds__record_value(record, record->key_size), sizeof blob);
        size += blob.size;
    }
    return size;
}

/* ---- 1: resolve ------------------------------------------------------------------------------------------------ */

/* The sequence the key is at; 0 when it is missing or deleted. */
static uint64_t sequence_of(const struct ds_found *found, ds_status status) {
    return status == DS_OK && found->record->op != DS_RECORD_TOMBSTONE ? found->record->sequence : 0;
}

/* What of the plan lies in the record's value. */
static const void *logged_value(const ds_change *change, const struct ds_plan *plan, uint64_t *size) {
    if (plan->op == DS_RECORD_BLOB) {
        *size = sizeof plan->blob;
        return &plan->blob;
    }
    *size = plan->op == DS_RECORD_TOMBSTONE ? 0 : change->value_size;
    return change->value;
}

static ds_status resolve(ds_store *store, const struct ds_index *index, const ds_change *change, struct ds_plan *plan) {
    struct ds_found found;
    bool gone = false;
    ds_status status =
        ds__find(store, index, plan->hash, change->keyspace, change->key, change->key_size, &found, &gone);
    if (gone)
        return ds__fail(DS_CORRUPT, 0, "%s: the index names a segment that is not there; nothing was changed",
                        store->directory.path);
    if (status != DS_OK && status != DS_MISSING)
        return status;
    uint64_t sequence = sequence_of(&found, status);
    if ((change->expect || change->kind == DS_EXPECT) && sequence != change->expected)
        return ds__fail_conflict(sequence, "%s: the key is at sequence %llu, not at %llu; nothing was written",
                                 store->directory.path, (unsigned long long)sequence,
                                 (unsigned long long)change->expected);
    plan->slot = found.slot;
    plan->previous = status == DS_OK ? found.offset : 0;
    plan->replaced_bytes = sequence != 0 ? ds__live_size(found.record) : 0;
    if (change->kind == DS_DELETE && sequence == 0)
        plan->write = false;
    uint64_t value_size;
    (void)logged_value(change, plan, &value_size);
    plan->length = ds__record_length(change->key_size, value_size);
    return DS_OK;
}

static ds_status resolve_all(ds_store *store, const struct ds_index *index, const ds_change *changes,
                             struct ds_plan *plans, size_t count, uint64_t *length) {
    uint64_t sum = sizeof(struct ds_frame);
    for (size_t i = 0; i < count; i++) {
        ds_status status = resolve(store, index, &changes[i], &plans[i]);
        if (status != DS_OK)
            return status;
        if (plans[i].write)
            sum += plans[i].length;
    }
    *length = sum;
    return DS_OK;
}

/* ---- 2: place -------------------------------------------------------------------------------------------------- */

static ds_status remove_old_index(void *context, const char *name) {
    ds_store *store = context;
    uint64_t generation;
    if (ds__index_parse_name(name, &generation) && generation != store->control->generation)
        (void)ds__os_unlink(&store->directory, name); /* it only takes room; the next growth tries again */
    return DS_OK;
}

/* Copies the slots of keys that are not deleted. */
static ds_status copy_slots(ds_store *store, const struct ds_index *from, struct ds_index *to, uint64_t *used) {
    uint64_t copied = 0;
    for (uint64_t at = 0; at <= from->mask; at++) {
        uint64_t slot = atomic_load_explicit(&from->slots[at], memory_order_relaxed);
        if (slot == 0 || slot == DS_SLOT_GONE)
            continue;
        struct ds_found found;
        ds_status status = ds__record_at(store, ds__slot_offset(slot), &found);
        if (status != DS_OK)
            return status;
        const struct ds_record *record = found.record;
        if (record->op == DS_RECORD_TOMBSTONE)
            continue;
        uint64_t hash = ds__hash(store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
        uint64_t place = hash & to->mask;
        while (atomic_load_explicit(&to->slots[place], memory_order_relaxed) != 0)
            place = (place + 1) & to->mask;
        atomic_store_explicit(&to->slots[place], ds__slot(found.offset, hash), memory_order_relaxed);
        copied++;
    }
    *used = copied;
    return DS_OK;
}

/* Makes room for `count` more keys: the next generation, larger or only rid of its tombstones. */
static ds_status grow_index(ds_store *store, struct ds_index *index, uint64_t count, struct ds_index **out) {
    struct ds_control *control = store->control;
    uint64_t keys = count;
    for (int i = 0; i < DS_KEYSPACES; i++)
        keys += control->tail.keys[i];
    struct ds_index *next;
    ds_status status =
        ds__index_create(&store->directory, store->uuid, index->generation + 1, ds__index_capacity_for(keys), &next);
    if (status != DS_OK)
        return status;
    uint64_t used = 0;
    status = copy_slots(store, index, next, &used);
    if (status != DS_OK) {
        ds__index_free(next);
        return status;
    }
    pthread_mutex_lock(&store->indexing);
    next->older = store->index;
    atomic_store_explicit(&store->index, next, memory_order_release);
    pthread_mutex_unlock(&store->indexing);
    atomic_store_explicit(&control->generation, next->generation, memory_order_release);
    /* After the publication: a death between the two leaves a count that is too high, and the next growth comes early.
     * The other way round the old generation could fill up unnoticed. */
    control->tail.slots_used = used;
    (void)ds__os_directory_list(&store->directory, remove_old_index, store);
    *out = next;
    return DS_OK;
}

/* About an eighth of the live data, so that compaction moves it in small steps; room for a few of the largest frames; and
 * twice the last one, up to QUICK_SEGMENT, where that one was full in no time, because a new file costs as much as
 * hundreds of puts. */
static uint64_t next_segment_size(const struct ds_tail *tail, uint64_t length, uint64_t now) {
    uint64_t want = tail->live_bytes / 8;
    if (want < 4 * tail->largest_frame)
        want = 4 * tail->largest_frame;
    if (want < 4 * length)
        want = 4 * length;
    if (now - tail->opened_ns < QUICK_NS && tail->segment_size < QUICK_SEGMENT && want < 2 * tail->segment_size)
        want = 2 * tail->segment_size;
    if (want > DS_SEGMENT_MAX)
        want = DS_SEGMENT_MAX;
    uint64_t size = DS_SEGMENT_MIN;
    while (size < want)
        size *= 2;
    return size;
}

/* A segment that names many bytes of blobs ends early, because they go only when it goes. */
static uint64_t blob_limit(const struct ds_tail *tail) {
    return tail->live_bytes / 8 > DS_SEGMENT_MAX ? tail->live_bytes / 8 : DS_SEGMENT_MAX;
}

/* The segment that takes the next frame, and in `after` what the tail will say about it. */
static ds_status place_frame(ds_store *store, uint64_t length, struct ds_tail *after, struct ds_segment **out) {
    const struct ds_tail *tail = &store->control->tail;
    struct ds_segment *segment;
    ds_status status = ds__segments_get(&store->segments, tail->segment_base, &segment);
    if (status != DS_OK)
        return status;
    if (!tail->sealed && length <= segment->end - tail->offset && tail->segment_blobs <= blob_limit(tail)) {
        *out = segment;
        return DS_OK;
    }
    uint64_t now = ds__os_now_ns();
    struct ds_segment_header header = {
        .base = segment->end,
        .size = next_segment_size(tail, length, now),
        .hash_seed = store->hash_seed,
        .first_sequence = tail->sequence + 1,
        .before_base = tail->segment_base,
        .before_end = tail->offset,
        .before_sequence = tail->sequence,
        .before_crc = tail->crc,
    };
    memcpy(header.uuid, store->uuid, sizeof header.uuid);
    struct ds_segment *next;
    status = ds__segment_create(&store->segments, &header, &next);
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
    *out = next;
    return DS_OK;
}

static void populate_ahead(struct ds_segment *segment, uint64_t begin, uint64_t end) {
    if (end <= segment->populated)
        return;
    uint64_t start = segment->populated > begin ? segment->populated : begin;
    uint64_t from = (start - segment->base) & ~UINT64_C(4095);
    uint64_t to = end - segment->base + POPULATE_AHEAD;
    if (to > segment->mapping.size)
        to = segment->mapping.size;
    ds__os_populate(segment->mapping.bytes + from, to - from);
    segment->populated = segment->base + to;
}

/* ---- 3 to 8 ---------------------------------------------------------------------------------------------------- */

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
    if (plan->op == DS_RECORD_BLOB) {
        after->live_bytes += plan->blob.size;
        after->blob_bytes += plan->blob.size;
    }
}

static void write_record(unsigned char *at, uint64_t offset, uint32_t seed, uint64_t sequence, const ds_change *change,
                         const struct ds_plan *plan) {
    struct ds_record *record = (struct ds_record *)(void *)at;
    uint64_t value_size;
    const void *value = logged_value(change, plan, &value_size);
    record->sequence = plan->sequence != 0 ? plan->sequence : sequence;
    record->previous = plan->previous;
    record->value_size = value_size;
    record->key_size = (uint32_t)change->key_size;
    record->op = plan->op;
    record->keyspace = change->keyspace;
    uint32_t record_seed = ds__record_seed(seed, offset, record);
    record->check = (uint16_t)record_seed;
    /* The padding is zero already: a segment is zero beyond its tail. */
    if (change->key_size > 0)
        memcpy(at + sizeof *record, change->key, change->key_size);
    if (value_size > 0)
        memcpy(at + sizeof *record + DS_ALIGN(change->key_size), value, value_size);
    /* Of the log's bytes, not of the caller's buffer, which the caller may be changing. */
    record->hash = ds__record_hash(record_seed, record, plan->length);
}

/* Points the key's slot at `offset`; it holds `previous` now, or is to be the first empty one. */
static void apply(struct ds_index *index, uint64_t hash, uint64_t offset, uint64_t previous) {
    uint64_t at = hash & index->mask;
    for (uint64_t i = 0; i <= index->mask; i++, at = (at + 1) & index->mask) {
        uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_relaxed);
        uint64_t there = ds__slot_offset(slot);
        if (slot == 0 || there == offset || (previous != 0 && there == previous)) {
            ds__index_set(index, at, ds__slot(offset, hash));
            return;
        }
    }
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
        if (plans[i].op == DS_RECORD_BLOB) {
            after->last_blob = begin;
            after->segment_blobs += plans[i].blob.size;
        }
    }
    populate_ahead(segment, begin, end);

    control->intent.begin = begin;
    control->intent.after = *after;
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
        if (records == 1)
            ds__index_set(index, plans[i].slot, ds__slot(at, plans[i].hash));
        else /* an earlier record of this batch may have taken the empty slot that was found */
            apply(index, plans[i].hash, at, plans[i].previous);
        at += plans[i].length;
    }

    atomic_store_explicit(&control->committed, end, memory_order_release);
    control->tail = *after;
    atomic_store_explicit(&control->intent.end, 0, memory_order_release);
}

ds_status ds__append(ds_store *store, uint8_t type, const ds_change *changes, const struct ds_plan *plans, size_t count,
                     uint64_t length) {
    struct ds_index *index;
    struct ds_segment *segment;
    struct ds_tail after = store->control->tail;
    ds_status status = ds__index_now(store, &index);
    if (status == DS_OK)
        status = place_frame(store, length, &after, &segment);
    if (status == DS_OK)
        write_frame(store, type, index, segment, changes, plans, count, length, &after);
    return status;
}

static ds_status commit_locked(ds_store *store, const ds_change *changes, struct ds_plan *plans, size_t count,
                               bool *written, uint64_t *sequence) {
    struct ds_control *control = store->control;
    struct ds_index *index;
    ds_status status = ds__index_now(store, &index);
    if (status == DS_OK && control->tail.slots_used + count > ds__index_limit(index->mask + 1))
        status = grow_index(store, index, count, &index);
    uint64_t length = 0;
    if (status == DS_OK)
        status = resolve_all(store, index, changes, plans, count, &length);
    if (status != DS_OK)
        return status;
    if (length == sizeof(struct ds_frame)) {
        *sequence = control->tail.sequence;
        return DS_OK;
    }
    status = ds__append(store, DS_FRAME_COMMIT, changes, plans, count, length);
    if (status != DS_OK)
        return status;
    *written = true;
    *sequence = control->tail.sequence;
    return DS_OK;
}

/* ---- the calls ------------------------------------------------------------------------------------------------- */

static ds_status commit(ds_store *store, const ds_change *changes, struct ds_plan *plans, size_t count, bool *written,
                        uint64_t *sequence) {
    uint64_t blob_from = frame_bound(changes, count, DS_BLOB_FROM) > CROWDED ? CROWDED_BLOB_FROM : DS_BLOB_FROM;
    uint64_t bound = frame_bound(changes, count, blob_from);
    if (bound > DS_SEGMENT_MAX - DS_SEGMENT_HEADER)
        return ds__fail(DS_TOO_LARGE, 0, "%s: %zu changes take more than %d bytes in one commit; split the batch",
                        store->directory.path, count, DS_SEGMENT_MAX - DS_SEGMENT_HEADER);
    ds_status status = plan_changes(store, changes, plans, count);
    if (status == DS_OK)
        status = write_blobs(store, changes, plans, count, blob_from);
    if (status == DS_OK)
        status = ds__writer_enter(store);
    bool due = false;
    if (status == DS_OK) {
        status = commit_locked(store, changes, plans, count, written, sequence);
        due = ds__compaction_due(store);
        ds__writer_leave(store);
    }
    if (due)
        ds__keeper_ask(store);
    if (status != DS_OK)
        remove_blobs(store, plans, count);
    return status;
}

static ds_status make_durable(ds_store *store) {
    ds_status status = ds__sync(store, false);
    if (status == DS_OK)
        return DS_OK;
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", ds_error());
    return ds__fail(status, ds_error_errno(), "committed, but not known to be on disk: %s", sentence);
}

ds_status ds_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence) {
    ds_status status = ds__check_writable(store);
    if (status == DS_OK)
        status = check_changes(store, changes, count);
    if (status != DS_OK)
        return status;
    struct ds_plan few[FEW], *plans = few;
    if (count > FEW) {
        plans = calloc(count, sizeof *plans);
        if (plans == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    } else {
        memset(few, 0, count * sizeof *few);
    }
    bool written = false;
    uint64_t at = 0;
    status = commit(store, changes, plans, count, &written, &at);
    if (status == DS_OK && sequence != NULL)
        *sequence = at;
    if (plans != few)
        free(plans);
    if (status == DS_OK && written && store->options.durability == DS_COMMIT)
        status = make_durable(store);
    if (status == DS_OK && written && ds__compaction_overdue(store)) {
        atomic_fetch_add_explicit(&store->control->waits, 1, memory_order_relaxed);
        (void)ds__compact(store, true); /* the commit stands; what fails here is told by the next that needs room */
    }
    return status;
}

ds_status ds_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                 size_t value_size, uint64_t *sequence) {
    ds_change change = {.kind = DS_PUT,
                        .keyspace = keyspace,
                        .key = key,
                        .key_size = key_size,
                        .value = value,
                        .value_size = value_size};
    return ds_commit(store, &change, 1, sequence);
}

ds_status ds_delete(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint64_t *sequence) {
    ds_value value;
    ds_status status = ds__check_writable(store);
    while (status == DS_OK) {
        status = ds_get(store, keyspace, key, key_size, &value); /* DS_MISSING ends here */
        if (status != DS_OK)
            break;
        uint64_t expected = value.sequence;
        ds_unpin(&value);
        ds_change change = {.kind = DS_DELETE,
                            .keyspace = keyspace,
                            .expect = true,
                            .expected = expected,
                            .key = key,
                            .key_size = key_size};
        status = ds_commit(store, &change, 1, sequence);
        if (status != DS_CONFLICT)
            break;
        status = DS_OK; /* somebody was faster: look again what there is to delete */
    }
    return status;
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

/* ---- repair ---------------------------------------------------------------------------------------------------- */

/* Up to here torn bytes are zeroed; beyond it the segment is sealed, because others wait for the lock. */
enum { ZERO_AT_MOST = 64 * 1024 };

static ds_status finish(ds_store *store, struct ds_segment *segment, const struct ds_frame *frame, uint64_t end) {
    struct ds_control *control = store->control;
    struct ds_index *index;
    ds_status status = ds__index_now(store, &index);
    if (status != DS_OK)
        return status;
    uint64_t at = control->intent.begin + sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, at);
        uint64_t hash = ds__hash(store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
        if (record->op != DS_RECORD_START)
            apply(index, hash, at, record->previous);
        at += ds__record_length(record->key_size, record->value_size);
    }
    atomic_store_explicit(&control->committed, end, memory_order_release);
    control->intent.after.crc = frame->crc;
    control->tail = control->intent.after;
    return DS_OK;
}

/* The frame never came to be. Its segment stays the tail, even when it was made for this frame: others may have it
 * mapped by now. */
static void undo(ds_store *store, struct ds_segment *segment, uint64_t end) {
    struct ds_control *control = store->control;
    struct ds_tail *tail = &control->tail;
    uint64_t begin = control->intent.begin;
    uint64_t torn = end - begin;
    if (begin == segment->base + DS_SEGMENT_HEADER) {
        /* Whether the tail is here already is not asked: half of these stores may have been done by a dead repairer. */
        tail->offset = begin;
        tail->segment_base = segment->base;
        tail->segment_size = segment->end - segment->base;
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
    uint64_t begin = control->intent.begin;
    struct ds_segment *segment;
    ds_status status = ds__segments_get(&store->segments, begin, &segment);
    if (status != DS_OK)
        return status;
    uint64_t room = segment->end - begin;
    if (begin % 8 != 0 || begin < segment->base + DS_SEGMENT_HEADER || end <= begin || end - begin > room ||
        room < sizeof(struct ds_frame))
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the control page is damaged; close the store in all processes, then open it "
                        "again to rebuild it from the log",
                        store->directory.path);
    const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, begin);
    bool done = atomic_load_explicit(&control->committed, memory_order_relaxed) >= end;
    uint32_t before = begin == segment->base + DS_SEGMENT_HEADER ? segment->header_crc : control->tail.crc;
    if (done ||
        (ds__frame_length(frame->word0) == end - begin && ds__frame_valid(frame, room, segment->seed, begin, before)))
        status = finish(store, segment, frame, end);
    else
        undo(store, segment, end);
    if (status != DS_OK)
        return status;
    atomic_fetch_add_explicit(&control->repairs, 1, memory_order_relaxed);
    atomic_store_explicit(&control->intent.end, 0, memory_order_release);
    return DS_OK;
}
