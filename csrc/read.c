/* read.c: finding the version of a key that a reader may see, without a lock.
 *
 * A reader loads the slot, then `committed`, in that order. If the record lies at or beyond `committed` its commit is not
 * done: the reader walks back along `previous` to the first version below. Why this is linearizable: if the slot
 * still named the old record, the newer commit was not yet done when the slot was loaded; if it named the new one, what
 * counts is the moment `committed` was loaded. Either lies within the call. Nobody waits for anybody: a writer that is
 * stopped, slow or dead in the middle of a commit costs a reader one step back.
 *
 * Records below `committed` never change, so they need no lock either; only the index may be replaced meanwhile, which
 * its generation tells. */
#include "store.h"

#include <stdlib.h>

enum {
    TRIES = 8,
    REST_MS = 1,
    RECLAIM_TRIES = 200,
    RECLAIM_MS = 100,
};

/* ---- the index in force ---------------------------------------------------------------------------------------- */

void ds__index_replace(ds_store *store, struct ds_index *newer) {
    newer->older = store->index;
    /* Sequentially consistent, as is the look for calls after it: one that is not counted there yet will load this. */
    atomic_store_explicit(&store->index, newer, memory_order_seq_cst);
    atomic_store_explicit(&store->index_replaced, newer->older != NULL, memory_order_relaxed);
}

/* A handle that lives long sees many generations, since keys that come and go wear one out. */
static void reclaim_indexes(ds_store *store) {
    if (pthread_mutex_trylock(&store->indexing) != 0)
        return;
    if (ds__segments_idle(&store->segments)) {
        ds__index_unmap_older(store->index);
        atomic_store_explicit(&store->index_replaced, false, memory_order_relaxed);
    }
    pthread_mutex_unlock(&store->indexing);
}

ds_status ds__index_remap(ds_store *store, struct ds_index **out) {
    ds_status status = DS_OK;
    pthread_mutex_lock(&store->indexing);
    struct ds_index *index = store->index;
    for (int i = 0; i < TRIES; i++) {
        /* Acquire: the index file was complete before its generation was published. */
        uint64_t generation = atomic_load_explicit(&store->control->generation, memory_order_acquire);
        status = DS_OK;
        if (index != NULL && index->generation == generation)
            break;
        struct ds_index *newer = NULL;
        status = ds__index_open(&store->directory, store->uuid, generation, !store->options.read_only, &newer);
        if (status == DS_MISSING)
            continue; /* it was replaced since: look again */
        if (status == DS_OK) {
            ds__index_replace(store, newer);
            index = newer;
        }
        break;
    }
    pthread_mutex_unlock(&store->indexing);
    if (status == DS_MISSING)
        status = ds__fail(DS_CORRUPT, 0,
                          "%s: the index file in force is missing; close the store in all processes, then "
                          "open it again to rebuild it",
                          store->directory.path);
    *out = index;
    return status;
}

/* ---- records --------------------------------------------------------------------------------------------------- */

static ds_status bad_record(const ds_store *store, uint64_t offset, const char *what) {
    return ds__fail(DS_CORRUPT, 0, "%s: the record at log offset %llu %s; nothing was changed", store->directory.path,
                    (unsigned long long)offset, what);
}

static uint64_t start_of(const ds_store *store) {
    return store->control != NULL ? atomic_load_explicit(&store->control->start, memory_order_acquire) : 0;
}

ds_status ds__segment_of(ds_store *store, uint64_t offset, struct ds_segment **out) {
    *out = ds__segments_find(&store->segments, offset);
    if (*out != NULL)
        return DS_OK;
    uint64_t now = start_of(store), start;
    ds_status status;
    do {
        start = now;
        status = ds__segments_get(&store->segments, start, offset, out);
        now = start_of(store);
        /* Not there, but not compacted away either: the log's start moved on while we were on the way from it. A writer
         * under its lock needs the difference, for it may not look again. */
    } while (status == DS_MISSING && now != start && offset >= now);
    return status;
}

ds_status ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out) {
    struct ds_segment *segment;
    ds_status status = ds__segment_of(store, offset, &segment);
    if (status != DS_OK)
        return status;
    uint64_t room = segment->end - offset;
    if (offset % 8 != 0 || offset - segment->base < DS_SEGMENT_HEADER || room < sizeof(struct ds_record))
        return bad_record(store, offset, "cannot be where it is said to be");
    const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, offset);
    __builtin_prefetch((const char *)record + 64); /* key and value, while the header is on its way */
    __builtin_prefetch((const char *)record + 128);
    /* Each size once, compared alone: a hostile writer in another process may change the bytes under our eyes. */
    uint64_t value_size = record->value_size;
    uint64_t key_size = record->key_size;
    if (value_size > room || key_size > DS_KEY_LIMIT || ds__record_length(key_size, value_size) > room)
        return bad_record(store, offset, "does not fit into its segment");
    out->offset = offset;
    out->segment = segment;
    out->record = record;
    return DS_OK;
}

bool ds__record_is(const struct ds_record *record, uint8_t keyspace, const void *key, size_t key_size) {
    return record->key_size == key_size && record->keyspace == keyspace &&
           (key_size == 0 || memcmp(ds__record_key(record), key, key_size) == 0);
}

ds_status ds__record_verify(const ds_store *store, const struct ds_found *found) {
    uint64_t length = ds__record_length(found->record->key_size, found->record->value_size);
    if (length > found->segment->end - found->offset ||
        !ds__record_valid(found->segment->seed, found->offset, found->record, length))
        return bad_record(store, found->offset, "fails its checksum");
    return DS_OK;
}

ds_status ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace, const void *key,
                   size_t key_size, struct ds_found *out, bool *gone) {
    struct ds_probe probe = ds__probe(index, hash);
    uint64_t offset;
    while ((offset = ds__probe_next(index, &probe)) != 0) {
        ds_status status = ds__record_at(store, offset, out);
        if (status == DS_MISSING)
            *gone = true;
        if (status != DS_OK)
            return status;
        if (ds__record_is(out->record, keyspace, key, key_size)) {
            out->slot = probe.at;
            return DS_OK;
        }
        /* The tag is this key's, the record another's: once in 4,096 probes, or a damaged record. */
        status = ds__record_verify(store, out);
        if (status != DS_OK)
            return status;
    }
    out->slot = probe.at;
    return DS_MISSING;
}

bool ds__scan_outdated(const ds_store *store, const struct ds_index *index, const struct ds_moment *moment) {
    const struct ds_control *control = store->control;
    return atomic_load_explicit(&control->generation, memory_order_acquire) != index->generation ||
           atomic_load_explicit(&control->shed, memory_order_acquire) > moment->limit ||
           atomic_load_explicit(&control->shed_expired, memory_order_acquire) != moment->shed_expired;
}

/* ---- what a reader may see ------------------------------------------------------------------------------------- */

/* Before a record's header is believed where its value is not looked at. */
static ds_status check_header(const ds_store *store, const struct ds_found *found) {
    return ds__record_header_valid(found->segment->seed, found->offset, found->record)
               ? DS_OK
               : bad_record(store, found->offset, "fails its header's checksum");
}

ds_status ds__step_back(ds_store *store, uint64_t limit, struct ds_found *found, bool *gone) {
    ds_status status;
    while (found->offset >= limit) {
        status = check_header(store, found);
        if (status != DS_OK)
            return status;
        uint64_t previous = found->record->previous;
        if (previous == 0)
            return DS_MISSING;
        if (previous >= found->offset)
            return bad_record(store, found->offset, "names a later one as its predecessor");
        status = ds__record_at(store, previous, found);
        if (status == DS_MISSING)
            *gone = true;
        if (status != DS_OK)
            return status;
    }
    if (found->record->op != DS_RECORD_TOMBSTONE)
        return DS_OK; /* whoever takes the value checks it */
    status = check_header(store, found);
    return status == DS_OK ? DS_MISSING : status;
}

ds_status ds__record_still_there(const ds_store *store, const struct ds_found *found) {
    if (!ds__sigbus_broken(found->record) || !ds__sigbus_lost(found->record, sizeof *found->record))
        return DS_OK;
    return bad_record(store, found->offset, "lies in a file that was cut or cannot be read");
}

/* Small values are hashed on every read; of large ones only the header is, so that their size can be believed. */
static ds_status check_record(const ds_store *store, const struct ds_found *found) {
    const struct ds_record *record = found->record;
    bool small = ds__record_length(record->key_size, record->value_size) < DS_WIDE_HASH_FROM;
    if (small || ds__op_is_blob(record->op))
        return ds__record_verify(store, found);
    if (ds__sigbus_cut(found->segment->mapping.bytes, found->segment->mapping.size) &&
        ds__sigbus_lost(record, ds__record_length(record->key_size, record->value_size)))
        return bad_record(store, found->offset, "lies in a file that was cut or cannot be read");
    return check_header(store, found);
}

static ds_status lend_blob(ds_store *store, const struct ds_found *found, ds_value *out) {
    struct ds_blob_reference reference = ds__record_blob(found->record);
    struct ds_mapping *mapping;
    ds_status status = ds__blob_map(store, &reference, false, &mapping);
    if (status != DS_OK)
        return status;
    out->data = mapping->bytes;
    out->size = reference.size;
    out->owner = mapping;
    return DS_OK;
}

ds_status ds__lend(ds_store *store, const struct ds_found *found, ds_value *out) {
    ds_status status = check_record(store, found);
    if (status != DS_OK)
        return status;
    const struct ds_record *record = found->record;
    out->sequence = record->sequence;
    out->owner = NULL;
    out->data = ds__record_value(record, record->key_size);
    out->size = record->value_size;
    if (record->op != DS_RECORD_PUT) {
        if (ds__op_is_blob(record->op))
            return lend_blob(store, found, out);
        out->data = ds__record_payload(record);
        out->size -= ds__expiry_size(record->op);
    }
    return ds__record_still_there(store, found);
}

ds_status ds__give(ds_store *store, const struct ds_found *found, ds_value *out) {
    ds_status status = ds__lend(store, found, out);
    if (status == DS_OK && out->owner == NULL) {
        ds__mapping_pin(&found->segment->mapping);
        out->owner = &found->segment->mapping;
    }
    return status;
}

static ds_status missing(const ds_store *store) {
    return ds__fail(DS_MISSING, 0, "%s: the key is not in the store", store->directory.path);
}

static ds_status check_time(const ds_store *store, const struct ds_found *found, uint64_t *now, bool *gone) {
    bool expired = false;
    if (*now == 0) {
        *now = ds__clock_now(store->control);
        *gone = true;
        return DS_OK;
    }
    ds_status status = ds__expired(store, found, *now, &expired);
    return status == DS_OK && expired ? DS_MISSING : status;
}

typedef ds_status giver(ds_store *store, const struct ds_found *found, ds_value *out);

/* One try. DS_MISSING: the key is missing. *gone: compaction took a record away before it was looked at, or the record may
 * have expired and *now is 0: then it is the time now, and what counts is what is found after this moment (expiry.c). */
static ds_status try_get(ds_store *store, uint64_t hash, uint8_t keyspace, const void *key, size_t key_size,
                         giver *give, ds_value *out, uint64_t *now, bool *gone) {
    struct ds_index *index;
    struct ds_found found;
    *gone = false;
    ds_status status = ds__index_now(store, &index);
    if (status != DS_OK)
        return status;
    status = ds__find(store, index, hash, keyspace, key, key_size, &found, gone);
    if (status == DS_OK) {
        /* Acquire, after the slot: see the head of this file. */
        uint64_t limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
        status = ds__step_back(store, limit, &found, gone);
    }
    if (status == DS_MISSING) /* the empty slot may be one that was cut off */
        (void)ds__sigbus_cut(index->bytes, index->size);
    /* An index that was replaced meanwhile may have missed what came after. */
    if (atomic_load_explicit(&store->control->generation, memory_order_acquire) != index->generation)
        *gone = true;
    if (*gone || status != DS_OK)
        return status;
    if (ds__op_expires(found.record->op)) {
        status = check_time(store, &found, now, gone);
        if (*gone || status != DS_OK)
            return status;
    }
    return give(store, &found, out);
}

static ds_status get(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, giver *give, ds_value *out) {
    uint64_t hash = ds__hash(store->hash_seed, keyspace, key, key_size);
    const struct ds_control *control = store->control;
    /* A further try is for the case that somebody else made progress: the index grew, or a whole compaction passed between
     * two loads. It takes a starved process to see two. Where nothing moves, what is gone is damage. */
    uint64_t now = 0;
    for (int i = 0, idle = 0;; i++) {
        uint64_t start = atomic_load_explicit(&control->start, memory_order_acquire);
        uint64_t generation = atomic_load_explicit(&control->generation, memory_order_acquire);
        bool gone;
        ds_status status = try_get(store, hash, keyspace, key, key_size, give, out, &now, &gone);
        if (!gone) {
            if (status != DS_OK)
                status = ds__intact(store, status);
            return status == DS_MISSING ? missing(store) : status;
        }
        if (atomic_load_explicit(&control->start, memory_order_acquire) == start &&
            atomic_load_explicit(&control->generation, memory_order_acquire) == generation && ++idle > TRIES)
            return ds__fail(DS_CORRUPT, 0, "%s: the index names a segment that is not there; nothing was changed",
                            store->directory.path);
        if (i > 1000 * TRIES)
            return ds__fail(DS_TIMEOUT, 0, "%s: the log moved on during each of %d reads", store->directory.path, i);
        if (i > TRIES)
            ds__os_sleep_ms(REST_MS);
    }
}

ds_status ds_value_check(const ds_value *value) {
    if (!ds__sigbus_broken(value->data) || !ds__sigbus_lost(value->data, value->size))
        return DS_OK;
    return ds__fail(DS_CORRUPT, 0,
                    "the file of a value was cut or became unreadable while it was read; restore it "
                    "from a copy, or repair the store");
}

ds_status ds_get(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES || key_size > DS_KEY_LIMIT)
        return missing(store); /* it cannot have been put */
    ds__enter(store);
    status = get(store, keyspace, key, key_size, ds__give, out);
    ds__leave(store);
    return status;
}

ds_status ds_borrow(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES || key_size > DS_KEY_LIMIT)
        return missing(store);
    ds__enter(store);
    status = get(store, keyspace, key, key_size, ds__lend, out);
    if (status != DS_OK)
        ds__leave(store);
    return status;
}

void ds_return(ds_store *store, const ds_value *value) {
    if (value->owner != NULL)
        ds__mapping_unpin(value->owner);
    ds__leave(store);
}

void ds_pin(const ds_value *value) {
    ds__mapping_pin(value->owner);
}

void ds_unpin(const ds_value *value) {
    ds__mapping_unpin(value->owner);
}

static bool reclaimable(const ds_store *store, uint64_t start) {
    return start != atomic_load_explicit(&store->segments.start, memory_order_relaxed) ||
           atomic_load_explicit(&store->segments.limbo, memory_order_relaxed) != NULL;
}

/* For what another process has dropped, or could not be reclaimed at once. */
static void reclaim(ds_store *store) {
    uint64_t start = atomic_load_explicit(&store->control->start, memory_order_acquire);
    bool replaced = atomic_load_explicit(&store->index_replaced, memory_order_relaxed);
    bool dropped = reclaimable(store, start);
    if (!(replaced || dropped) || atomic_load_explicit(&store->reclaiming, memory_order_relaxed))
        return;
    if (dropped)
        ds__segments_reclaim(&store->segments, start);
    if (replaced)
        reclaim_indexes(store);
}

void ds__reclaim(ds_store *store) {
    uint64_t start = atomic_load_explicit(&store->control->start, memory_order_acquire);
    /* Even a busy handle is between two calls half of the time. */
    for (int i = 0; i < RECLAIM_TRIES && reclaimable(store, start); i++)
        ds__segments_reclaim(&store->segments, start);
    atomic_store_explicit(&store->reclaiming, false, memory_order_relaxed);
}

void ds__reclaim_all(ds_store *store) {
    const struct ds_segments *segments = &store->segments;
    for (int i = 0; i < RECLAIM_MS && (atomic_load_explicit(&segments->unmapping, memory_order_acquire) != 0 ||
                                       atomic_load_explicit(&segments->limbo, memory_order_relaxed) != NULL);
         i++) {
        ds__os_sleep_ms(1);
        ds__reclaim(store);
    }
}

void ds__enter(ds_store *store) {
    reclaim(store);
    ds__segments_enter(&store->segments);
}

void ds__enter_writing(ds_store *store) {
    reclaim(store);
    ds__segments_enter_writing(&store->segments);
}

void ds__leave(ds_store *store) {
    ds__segments_leave(&store->segments);
}
