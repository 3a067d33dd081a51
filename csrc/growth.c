/* growth.c: the next generation of the index, larger or only rid of its tombstones. Under the writer lock, before a
 * commit notes its intent, so a death in here leaves at most a file that nobody uses. */
#include "store.h"

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
        if (copied == to->mask) /* it was made for fewer keys */
            return ds__control_damaged(store);
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

ds_status ds__grow_index(ds_store *store, struct ds_index *index, uint64_t count, struct ds_index **out) {
    struct ds_control *control = store->control;
    uint64_t keys = count;
    for (int i = 0; i < DS_KEYSPACES; i++)
        keys += control->tail.keys[i];
    if (keys > index->mask + 1 + count) /* than there are slots */
        return ds__control_damaged(store);
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
    /* Both under one hold: a thread that sees one without the other waits here, instead of mapping a second time the
     * generation that this handle has. */
    pthread_mutex_lock(&store->indexing);
    ds__index_replace(store, next);
    atomic_store_explicit(&control->generation, next->generation, memory_order_release);
    pthread_mutex_unlock(&store->indexing);
    /* After the publication: a death between the two leaves a count that is too high, and the next growth comes early.
     * The other way round the old generation could fill up unnoticed. */
    control->tail.slots_used = used;
    (void)ds__os_directory_list(&store->directory, remove_old_index, store);
    *out = next;
    return DS_OK;
}
