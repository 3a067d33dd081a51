/* commit.c: from a caller's changes to plans: which records are to be written, and may they be?
 *
 * Before the lock: limits, key hashes, which of a key's changes is the last, and the files of large values. Under it: each
 * key's present record, expectations, deletes of missing keys, room in the index. append.c does the rest. */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    FEW = 16,                   /* changes planned without allocating */
    CROWDED = 48 * 1024 * 1024, /* a larger frame moves its values from here on into blobs: */
    CROWDED_BLOB_FROM = 64 * 1024,
};

/* ---- before the lock ------------------------------------------------------------------------------------------- */

/* The value's size in the log. */
static uint64_t logged_size(const ds_change *change, uint64_t blob_from) {
    if (change->kind != DS_PUT)
        return 0;
    uint64_t expiry = change->ttl_ns != 0 ? sizeof(struct ds_expiry) : 0;
    return expiry + (change->value_size > blob_from ? sizeof(struct ds_blob_reference) : change->value_size);
}

/* The most that a frame can take. */
static uint64_t frame_bound(const ds_change *changes, size_t count, uint64_t blob_from) {
    uint64_t length = sizeof(struct ds_frame);
    for (size_t i = 0; i < count; i++)
        if (changes[i].kind != DS_EXPECT)
            length += ds__record_length(changes[i].key_size, logged_size(&changes[i], blob_from));
    return length;
}

/* What is known of a commit before it has looked at the store. */
struct outline {
    size_t puts;        /* changes that may be new keys */
    uint64_t bound;     /* the most that the frame can take */
    uint64_t blob_from; /* values above this size go to files of their own */
    bool blobs;         /* there are some */
};

/* Each change's limits, and the outline of all. */
static ds_status outline_changes(const ds_store *store, const ds_change *changes, size_t count, struct outline *out) {
    uint64_t largest = 0;
    if (count > UINT32_MAX)
        return ds__fail(DS_TOO_LARGE, 0, "%s: %zu changes in one commit", store->directory.path, count);
    *out = (struct outline){.blob_from = DS_BLOB_FROM};
    for (size_t i = 0; i < count; i++) {
        const ds_change *change = &changes[i];
        if (change->kind < DS_PUT || change->kind > DS_EXPECT || change->keyspace >= DS_KEYSPACES)
            return ds__fail(DS_INVALID, 0, "%s: change %zu has an unknown kind or keyspace", store->directory.path, i);
        if (change->key_size > DS_KEY_LIMIT)
            return ds__fail(DS_TOO_LARGE, 0, "%s: a key of %zu bytes; the limit is %d", store->directory.path,
                            change->key_size, DS_KEY_LIMIT);
        if (change->ttl_ns > (change->kind == DS_PUT ? DS_TTL_LIMIT_NS : 0))
            return ds__fail(DS_INVALID, 0, "%s: a time to live of %llu ns; it belongs to a put, and ends at ten years",
                            store->directory.path, (unsigned long long)change->ttl_ns);
        if (change->kind != DS_PUT)
            continue;
        out->puts++;
        if (largest < change->value_size)
            largest = change->value_size;
    }
    out->bound = frame_bound(changes, count, out->blob_from);
    if (out->bound > CROWDED) {
        out->blob_from = CROWDED_BLOB_FROM;
        out->bound = frame_bound(changes, count, out->blob_from);
    }
    out->blobs = largest > out->blob_from;
    if (out->bound > DS_SEGMENT_MAX - DS_SEGMENT_HEADER)
        return ds__fail(DS_TOO_LARGE, 0, "%s: %zu changes take more than %d bytes in one commit; split the batch",
                        store->directory.path, count, DS_SEGMENT_MAX - DS_SEGMENT_HEADER);
    return DS_OK;
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
        if (ds__op_is_blob(plans[i].op))
            (void)ds__blob_remove(store, &plans[i].blob);
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

/* Not the whole plan: what resolve() will find out, it fills in. */
static ds_status plan_changes(ds_store *store, const ds_change *changes, struct ds_plan *plans, size_t count) {
    const struct ds_index *index = atomic_load_explicit(&store->index, memory_order_acquire);
    for (size_t i = 0; i < count; i++) {
        plans[i].hash = ds__hash(store->hash_seed, changes[i].keyspace, changes[i].key, changes[i].key_size);
        if (index != NULL) /* all of them on their way at once, while the lock is taken */
            ds__index_fetch(index, plans[i].hash);
        plans[i].sequence = 0;
        plans[i].op = changes[i].kind == DS_DELETE ? DS_RECORD_TOMBSTONE : DS_RECORD_PUT;
        plans[i].write = changes[i].kind != DS_EXPECT;
    }
    if (count <= 1)
        return DS_OK;
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

/* ---- under the lock ------------------------------------------------------------------------------------------------ */

/* The clock for this commit: read once, when the first of its keys expires. */
static uint64_t clock_of(const ds_store *store, uint64_t *now) {
    if (*now == 0)
        *now = ds__clock_now(store->control);
    return *now;
}

/* The sequence the key is at; 0 when it is missing, deleted or expired. */
static ds_status sequence_of(const ds_store *store, const struct ds_found *found, uint64_t *now, uint64_t *sequence) {
    bool expired = false;
    ds_status status = DS_OK;
    if (ds__op_expires(found->record->op))
        status = ds__expired(store, found, clock_of(store, now), &expired);
    *sequence = expired || found->record->op == DS_RECORD_TOMBSTONE ? 0 : found->record->sequence;
    return status;
}

static ds_status resolve(ds_store *store, const struct ds_index *index, const ds_change *change, uint64_t *now,
                         struct ds_plan *plan) {
    struct ds_found found;
    bool gone = false;
    ds_status status =
        ds__find(store, index, plan->hash, change->keyspace, change->key, change->key_size, &found, &gone);
    if (gone)
        return ds__fail(DS_CORRUPT, 0, "%s: the index names a segment that is not there; nothing was changed",
                        store->directory.path);
    uint64_t sequence = 0;
    bool known = status == DS_OK;
    if (known)
        status = sequence_of(store, &found, now, &sequence);
    if (status != DS_OK && status != DS_MISSING)
        return status;
    if ((change->expect || change->kind == DS_EXPECT) && sequence != change->expected)
        return ds__fail_conflict(sequence, "%s: the key is at sequence %llu, not at %llu; nothing was written",
                                 store->directory.path, (unsigned long long)sequence,
                                 (unsigned long long)change->expected);
    plan->slot = found.slot;
    plan->previous = known ? found.offset : 0;
    plan->replaced_bytes = known && found.record->op != DS_RECORD_TOMBSTONE ? ds__live_size(found.record) : 0;
    if (change->kind == DS_DELETE && sequence == 0)
        plan->write = false;
    if (change->ttl_ns != 0) {
        plan->op |= DS_RECORD_EXPIRES;
        ds__expiry_make(store->control, clock_of(store, now), change->ttl_ns, &plan->expiry);
    }
    uint64_t value_size;
    (void)ds__logged_value(change, plan, &value_size);
    plan->length = ds__record_length(change->key_size, ds__expiry_size(plan->op) + value_size);
    return DS_OK;
}

static ds_status resolve_all(ds_store *store, const struct ds_index *index, const ds_change *changes,
                             struct ds_plan *plans, size_t count, uint64_t *now, uint64_t *length) {
    uint64_t sum = sizeof(struct ds_frame);
    for (size_t i = 0; i < count; i++) {
        ds_status status = resolve(store, index, &changes[i], now, &plans[i]);
        if (status != DS_OK)
            return status;
        if (plans[i].write)
            sum += plans[i].length;
    }
    *length = sum;
    return DS_OK;
}

/* Room in the index for what may be new keys. A delete makes none, and when there is no room for a larger index on the
 * disk, the present one will do until it is crowded. */
static ds_status reserve_slots(ds_store *store, size_t puts, struct ds_index **index) {
    uint64_t capacity = (*index)->mask + 1;
    uint64_t used = store->control->tail.slots_used + puts;
    if (puts == 0 || used <= ds__index_limit(capacity))
        return DS_OK;
    struct ds_index *larger;
    ds_status status = ds__grow_index(store, *index, puts, &larger);
    if (status == DS_OK)
        *index = larger;
    return status == DS_FULL && used <= capacity / 10 * 9 ? DS_OK : status;
}

static ds_status commit_locked(ds_store *store, const struct outline *outline, const ds_change *changes,
                               struct ds_plan *plans, size_t count, bool *written, uint64_t *sequence) {
    struct ds_control *control = store->control;
    struct ds_index *index;
    ds_status status = ds__index_now(store, &index);
    if (status == DS_OK)
        status = reserve_slots(store, outline->puts, &index);
    uint64_t length = 0, now = 0;
    if (status == DS_OK)
        status = resolve_all(store, index, changes, plans, count, &now, &length);
    if (status != DS_OK)
        return status;
    if (length == sizeof(struct ds_frame)) {
        *sequence = control->tail.sequence;
        return DS_OK;
    }
    bool fresh = false;
    if (now != 0)
        status = ds__needs_fresh(store, plans, count, &fresh);
    if (status == DS_OK)
        status = ds__append(store, DS_FRAME_COMMIT, changes, plans, count, length, fresh);
    if (status != DS_OK)
        return status;
    *written = true;
    *sequence = control->tail.sequence;
    return DS_OK;
}

/* ---- the calls ------------------------------------------------------------------------------------------------- */

/* What one call of commit() is given and tells, beside the changes. */
struct outcome {
    bool at_once; /* it waits for nothing */
    bool written;
    uint64_t sequence;
};

/* Takes the writer lock. A commit that needs a new segment where the store has all that it may take waits for compaction
 * before. If that fails, or has nothing to move, the log grows: the commit comes first. */
static ds_status enter(ds_store *store, const struct outline *outline, bool at_once) {
    struct ds_control *control = store->control;
    int timeout_ms = at_once ? 0 : store->options.lock_timeout_ms;
    ds_status status = ds__writer_enter_within(store, timeout_ms);
    while (status == DS_OK && ds__compaction_overdue(store, outline->bound)) {
        ds__writer_leave(store);
        if (at_once) {
            ds__keeper_ask(store); /* it may have found another at it, who died since */
            return ds__fail(DS_TIMEOUT, 0, "%s: this commit has to wait for the disk", store->directory.path);
        }
        uint64_t start = atomic_load_explicit(&control->start, memory_order_relaxed);
        atomic_fetch_add_explicit(&control->waits, 1, memory_order_relaxed);
        /* Whoever is at it may be stopped: one commit has waited for that, and none will until this handle has compacted. */
        if (ds__make_room(store, start) != DS_OK)
            atomic_store_explicit(&store->compacting_fails, true, memory_order_relaxed);
        status = ds__writer_enter_within(store, timeout_ms);
        if (atomic_load_explicit(&control->start, memory_order_relaxed) == start)
            break;
    }
    return status;
}

static ds_status commit(ds_store *store, const struct outline *outline, const ds_change *changes, struct ds_plan *plans,
                        size_t count, struct outcome *outcome) {
    ds_status status = plan_changes(store, changes, plans, count);
    if (status == DS_OK && outline->blobs)
        status = write_blobs(store, changes, plans, count, outline->blob_from);
    if (status == DS_OK)
        status = enter(store, outline, outcome->at_once);
    bool due = false;
    if (status == DS_OK) {
        status = commit_locked(store, outline, changes, plans, count, &outcome->written, &outcome->sequence);
        due = ds__compaction_due(store);
        ds__writer_leave(store);
    }
    if (outcome->written)
        ds__wake(store->control, plans, count);
    if (due || ds__spare_wanted(store))
        ds__keeper_ask(store);
    /* After damage the frame may be whole in the log all the same, and a rebuild will find it there. */
    if (status != DS_OK && status != DS_CORRUPT && outline->blobs)
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

/* Plans, on the stack when they are few. */
static ds_status commit_once(ds_store *store, const struct outline *outline, const ds_change *changes, size_t count,
                             struct outcome *outcome) {
    struct ds_plan few[FEW], *plans = few;
    if (count > FEW) {
        plans = malloc(count * sizeof *plans);
        if (plans == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    }
    ds_status status = commit(store, outline, changes, plans, count, outcome);
    if (plans != few)
        free(plans);
    return status;
}

ds_status ds_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence) {
    struct outline outline;
    ds_status status = ds__check_writable(store);
    if (status == DS_OK)
        status = outline_changes(store, changes, count, &outline);
    if (status != DS_OK)
        return status;
    struct outcome outcome = {.at_once = false};
    status = commit_once(store, &outline, changes, count, &outcome);
    if (status == DS_FULL) {
        ds__spare_stop(store);
        (void)ds__compact(store, true, DS_COMPACT_TIGHTLY); /* as far as it gets; that may be enough */
        status = commit_once(store, &outline, changes, count, &outcome);
    }
    if (status == DS_OK && sequence != NULL)
        *sequence = outcome.sequence;
    if (status == DS_OK && outcome.written && store->options.durability == DS_COMMIT)
        status = make_durable(store);
    return status;
}

/* Field by field: zeros over the whole in large pieces would make who reads a field wait. */
static ds_change one_put(uint8_t keyspace, const void *key, size_t key_size, const void *value, size_t value_size) {
    ds_change change;
    change.kind = DS_PUT;
    change.keyspace = keyspace;
    change.expect = false;
    change.expected = 0;
    change.key = key;
    change.key_size = key_size;
    change.value = value;
    change.value_size = value_size;
    change.ttl_ns = 0;
    return change;
}

ds_status ds_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                 size_t value_size, uint64_t *sequence) {
    ds_change change = one_put(keyspace, key, key_size, value, value_size);
    return ds_commit(store, &change, 1, sequence);
}

ds_status ds_put_expiring(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                          size_t value_size, uint64_t ttl_ns, uint64_t *sequence) {
    ds_change change = one_put(keyspace, key, key_size, value, value_size);
    change.ttl_ns = ttl_ns;
    return ds_commit(store, &change, 1, sequence);
}

ds_status ds_try_commit(ds_store *store, const ds_change *changes, size_t count, uint64_t *sequence) {
    struct outline outline;
    ds_status status = ds__check_writable(store);
    if (status == DS_OK)
        status = outline_changes(store, changes, count, &outline);
    if (status != DS_OK)
        return status;
    if (outline.blobs || store->options.durability == DS_COMMIT)
        return ds__fail(DS_TIMEOUT, 0, "%s: this commit has to wait for the disk", store->directory.path);
    struct outcome outcome = {.at_once = true};
    status = commit_once(store, &outline, changes, count, &outcome);
    if (status == DS_OK && sequence != NULL)
        *sequence = outcome.sequence;
    return status;
}

ds_status ds_try_put(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *value,
                     size_t value_size, uint64_t *sequence) {
    ds_change change = one_put(keyspace, key, key_size, value, value_size);
    return ds_try_commit(store, &change, 1, sequence);
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
