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

enum { TRIES = 8 };

/* ---- the index in force ---------------------------------------------------------------------------------------- */

static ds_status remap_index(ds_store *store, struct ds_index **out) {
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
            newer->older = index;
            atomic_store_explicit(&store->index, newer, memory_order_release);
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

ds_status ds__index_now(ds_store *store, struct ds_index **out) {
    struct ds_index *index = atomic_load_explicit(&store->index, memory_order_acquire);
    uint64_t generation = atomic_load_explicit(&store->control->generation, memory_order_acquire);
    if (index != NULL && index->generation == generation) {
        *out = index;
        return DS_OK;
    }
    return remap_index(store, out);
}

/* ---- records --------------------------------------------------------------------------------------------------- */

static ds_status bad_record(const ds_store *store, uint64_t offset, const char *what) {
    return ds__fail(DS_CORRUPT, 0, "%s: the record at log offset %llu %s; nothing was changed", store->directory.path,
                    (unsigned long long)offset, what);
}

ds_status ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out) {
    struct ds_segment *segment;
    ds_status status = ds__segments_get(&store->segments, offset, &segment);
    if (status != DS_OK)
        return status;
    uint64_t room = segment->end - offset;
    if (offset % 8 != 0 || offset - segment->base < DS_SEGMENT_HEADER || room < sizeof(struct ds_record))
        return bad_record(store, offset, "cannot be where it is said to be");
    const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, offset);
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
           memcmp(ds__record_key(record), key, key_size) == 0;
}

ds_status ds__record_verify(const ds_store *store, const struct ds_found *found) {
    uint64_t length = ds__record_length(found->record->key_size, found->record->value_size);
    if (length > found->segment->end - found->offset ||
        ds__record_hash(found->segment->seed, found->offset, found->record, length) != found->record->hash)
        return bad_record(store, found->offset, "fails its checksum");
    return DS_OK;
}

ds_status ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace, const void *key,
                   size_t key_size, struct ds_found *out) {
    struct ds_probe probe = ds__probe(index, hash);
    uint64_t offset;
    while ((offset = ds__probe_next(index, &probe)) != 0) {
        ds_status status = ds__record_at(store, offset, out);
        if (status != DS_OK)
            return status;
        if (ds__record_is(out->record, keyspace, key, key_size)) {
            out->slot = probe.at;
            return DS_OK;
        }
    }
    out->slot = probe.at;
    return DS_MISSING;
}

/* ---- what a reader may see ------------------------------------------------------------------------------------- */

/* Steps back to the newest version below `limit`. DS_MISSING: there was none, or it was a tombstone. */
static ds_status step_back(ds_store *store, uint64_t limit, struct ds_found *found) {
    while (found->offset >= limit) {
        uint64_t previous = found->record->previous;
        if (previous == 0)
            return DS_MISSING;
        if (previous >= found->offset)
            return bad_record(store, found->offset, "names a later one as its predecessor");
        ds_status status = ds__record_at(store, previous, found);
        if (status != DS_OK)
            return status == DS_MISSING ? bad_record(store, previous, "is gone") : status;
    }
    return found->record->op == DS_RECORD_TOMBSTONE ? DS_MISSING : DS_OK;
}

/* Hands a record's value out, pinned. */
static ds_status give(ds_store *store, const struct ds_found *found, ds_value *out) {
    const struct ds_record *record = found->record;
    uint64_t key_size = record->key_size, value_size = record->value_size;
    if (ds__record_length(key_size, value_size) < DS_WIDE_HASH_FROM || record->op == DS_RECORD_BLOB) {
        ds_status status = ds__record_verify(store, found);
        if (status != DS_OK)
            return status;
    }
    out->sequence = record->sequence;
    if (record->op == DS_RECORD_BLOB) {
        struct ds_blob_reference reference;
        struct ds_mapping *mapping;
        memcpy(&reference, ds__record_value(record, key_size), sizeof reference);
        ds_status status = ds__blob_map(store, &reference, false, &mapping);
        if (status != DS_OK)
            return status;
        out->data = mapping->bytes;
        out->size = reference.size;
        out->owner = mapping;
        return DS_OK;
    }
    ds__mapping_pin(&found->segment->mapping);
    out->data = ds__record_value(record, key_size);
    out->size = value_size;
    out->owner = &found->segment->mapping;
    return DS_OK;
}

static ds_status missing(const ds_store *store) {
    return ds__fail(DS_MISSING, 0, "%s: the key is not in the store", store->directory.path);
}

ds_status ds_get(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, ds_value *out) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES || key_size > DS_KEY_LIMIT)
        return missing(store); /* it cannot have been put */
    uint64_t hash = ds__hash(store->hash_seed, keyspace, key, key_size);
    for (;;) {
        struct ds_index *index;
        status = ds__index_now(store, &index);
        if (status != DS_OK)
            return status;
        struct ds_found found;
        status = ds__find(store, index, hash, keyspace, key, key_size, &found);
        if (status == DS_OK) {
            /* Acquire, after the slot: see the head of this file. */
            uint64_t limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
            status = step_back(store, limit, &found);
        }
        /* An index that was replaced meanwhile may have missed what came after; growing doubles it, so this ends. */
        if (atomic_load_explicit(&store->control->generation, memory_order_acquire) != index->generation)
            continue;
        if (status == DS_MISSING)
            return missing(store);
        return status == DS_OK ? give(store, &found, out) : status;
    }
}

void ds_pin(const ds_value *value) {
    ds__mapping_pin(value->owner);
}

void ds_unpin(const ds_value *value) {
    ds__mapping_unpin(value->owner);
}

/* ---- all keys, at one point ------------------------------------------------------------------------------------ */

struct ds_cursor {
    ds_store *store;
    struct ds_index *index; /* stays as it was at the start: versions beyond `limit` are stepped back over */
    uint64_t limit;
    uint64_t next;
    uint8_t keyspace;
};

ds_status ds_cursor_open(ds_store *store, uint8_t keyspace, ds_cursor **out) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES)
        return ds__fail(DS_INVALID, 0, "keyspace %u: there are %d", keyspace, DS_KEYSPACES);
    ds_cursor *cursor = calloc(1, sizeof *cursor);
    if (cursor == NULL)
        return ds__fail(DS_NO_MEMORY, 0, "out of memory");
    /* The point is a moment at which this generation was in force: a later one may have shed the tombstone, and with it
     * the earlier versions, of a key that was deleted since. */
    do {
        status = ds__index_now(store, &cursor->index);
        cursor->limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
    } while (status == DS_OK &&
             atomic_load_explicit(&store->control->generation, memory_order_acquire) != cursor->index->generation);
    if (status != DS_OK) {
        free(cursor);
        return status;
    }
    cursor->store = store;
    cursor->keyspace = keyspace;
    *out = cursor;
    return DS_OK;
}

ds_status ds_cursor_next(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value) {
    ds_status status = ds__check(cursor->store);
    while (status == DS_OK && cursor->next <= cursor->index->mask) {
        uint64_t slot = atomic_load_explicit(&cursor->index->slots[cursor->next++], memory_order_acquire);
        if (slot == 0)
            continue;
        struct ds_found found;
        status = ds__record_at(cursor->store, ds__slot_offset(slot), &found);
        if (status != DS_OK)
            break;
        if (found.record->keyspace != cursor->keyspace)
            continue;
        status = step_back(cursor->store, cursor->limit, &found);
        if (status == DS_MISSING) {
            status = DS_OK;
            continue;
        }
        if (status == DS_OK)
            status = give(cursor->store, &found, value);
        if (status == DS_OK) {
            *key = ds__record_key(found.record);
            *key_size = found.record->key_size;
        }
        return status;
    }
    return status == DS_OK ? DS_MISSING : status;
}

void ds_cursor_close(ds_cursor *cursor) {
    free(cursor);
}
