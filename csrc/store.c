/* store.c: opening and closing a handle, and what does not belong to one commit or one read. */
#include "store.h"

#include <errno.h>
#include <stdlib.h>

/* ---- may this handle be used? ---------------------------------------------------------------------------------- */

static ds_status check_process(const ds_store *store) {
    if (store == NULL)
        return ds__fail(DS_CLOSED, 0, "the store is closed");
    if (store->stamp != ds__os_process_stamp())
        return ds__fail(DS_FORKED, 0,
                        "%s: the handle was inherited through fork(); open the store again in this process",
                        store->directory.path);
    return DS_OK;
}

ds_status ds__intact(const ds_store *store, ds_status status) {
    ds__sigbus_after_reading();
    if (atomic_load_explicit(&ds__sigbus_faults, memory_order_relaxed) == 0)
        return status;
    const struct ds_index *index = atomic_load_explicit(&store->index, memory_order_acquire);
    bool cut = index != NULL && ds__sigbus_broken(index->bytes);
    if (!cut && !(store->control != NULL && ds__sigbus_broken(store->control)))
        return status;
    return ds__fail(DS_CORRUPT, 0,
                    "%s: the %s was cut or became unreadable while it was in use; close the store in all processes and "
                    "open it again, which rebuilds it",
                    store->directory.path, cut ? "index" : "control page");
}

ds_status ds__check(const ds_store *store) {
    ds_status status = check_process(store);
    return status == DS_OK ? ds__intact(store, status) : status;
}

ds_status ds__check_writable(const ds_store *store) {
    ds_status status = ds__check(store);
    if (status == DS_OK && store->options.read_only)
        status =
            ds__fail(DS_READ_ONLY, 0, "%s: opened read-only; open it for writing to change it", store->directory.path);
    return status;
}

ds_status ds__all_there(const ds_store *store, ds_status status) {
    if (status != DS_MISSING)
        return status;
    return ds__fail(
        DS_CORRUPT, 0,
        "%s: a segment of the log is not there; nothing was changed. Restore the *.log files from a copy, or "
        "repair the store",
        store->directory.path);
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

void ds_options_init(ds_options *options) {
    *options = (ds_options){
        .durability = DS_PROCESS,
        .group_ms = DS_GROUP_MS,
        .lock_timeout_ms = DS_LOCK_TIMEOUT_MS,
        .create = true,
    };
}

static ds_status check_options(const char *path, const ds_options *options) {
    if (path == NULL || path[0] == '\0')
        return ds__fail(DS_INVALID, 0, "an empty path; give the directory of the store");
    if (options->durability < DS_PROCESS || options->durability > DS_COMMIT)
        return ds__fail(DS_INVALID, 0, "%s: unknown durability %d", path, (int)options->durability);
    if (options->group_ms == 0)
        return ds__fail(DS_INVALID, 0, "%s: group_ms must be at least 1", path);
    return DS_OK;
}

/* In a child of the process that opened it, threads that are not there may hold the mutexes, and the destruction of a
 * condition waits for whoever waits for it: the keeper of the parent, for ever. They are memory like any other there. */
static void destroy_locks(ds_store *store) {
    if (store->stamp != ds__os_process_stamp())
        return;
    pthread_mutex_destroy(&store->indexing);
    pthread_mutex_destroy(&store->keeper_mutex);
    pthread_cond_destroy(&store->keeper_wake);
}

static void free_handle(ds_store *store) {
    if (store->control_private)
        free(store->control);
    else
        ds__os_unmap(store->control, DS_CONTROL_BYTES);
    ds__os_close(store->control_fd);
    ds__index_free(store->index);
    ds__spare_free(store);
    ds__segments_free(&store->segments);
    destroy_locks(store);
    ds__os_directory_close(&store->directory);
    free(store);
}

static ds_status open_handle(ds_store *store, const char *path) {
    ds_status status = ds__os_directory_open(path, store->options.create, store->options.read_only, &store->directory);
    if (status == DS_OK)
        status = ds__recover(store);
    if (status != DS_OK || store->options.read_only)
        return status;
    status = ds__floor_reopen(store);
    /* What an earlier process committed and did not live to sync is part of this handle's promise. */
    if (status == DS_OK && store->options.durability != DS_PROCESS)
        status = ds__sync(store, false);
    if (status == DS_OK && store->options.durability == DS_GROUP)
        status = ds__keeper_start(store);
    return status;
}

ds_status ds_open(const char *path, const ds_options *options, ds_store **out) {
    ds_status status = check_options(path, options);
    if (status != DS_OK)
        return status;
    ds_store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    store->options = *options;
    store->segments.large_pages = options->durability == DS_PROCESS; /* the others sync often and little */
    store->stamp = ds__os_process_stamp();
    store->control_fd = -1;
    store->directory.fd = -1;
    pthread_mutex_init(&store->indexing, NULL);
    ds__keeper_init(store);
    status = open_handle(store, path);
    if (status != DS_OK) {
        free_handle(store);
        return status;
    }
    *out = store;
    return DS_OK;
}

/* The last one out writes down that the log ends here. Openers are kept out meanwhile by the directory's lock. */
static ds_status close_cleanly(ds_store *store) {
    const struct ds_directory *directory = &store->directory;
    bool alone = ds__os_flock(directory, "", directory->fd, DS_OS_EXCLUSIVE, 0) == DS_OK &&
                 ds__os_flock(directory, "control", store->control_fd, DS_OS_EXCLUSIVE, 0) == DS_OK;
    ds_status status = DS_OK;
    if (alone) { /* a dead writer's commit belongs to the end of the log, or not, from now on */
        status = ds__writer_enter(store);
        if (status == DS_OK)
            ds__writer_leave(store);
    }
    bool clean = alone && (status == DS_OK || status == DS_FENCED);
    status = ds__sync(store, clean);
    ds__os_unlock(directory->fd);
    return status;
}

ds_status ds_close(ds_store *store) {
    if (store == NULL)
        return DS_OK;
    ds_status status = DS_OK;
    if (check_process(store) == DS_OK) {
        ds__keeper_stop(store);
        status = ds__intact(store, DS_OK); /* else there is nothing to go by */
        if (status == DS_OK && !store->options.read_only)
            status = close_cleanly(store);
    }
    free_handle(store);
    return status;
}

/* ---- looking at the whole -------------------------------------------------------------------------------------- */

ds_status ds_stats_read(ds_store *store, ds_stats *out) {
    ds_status status = ds__check(store);
    struct ds_index *index;
    if (status == DS_OK)
        status = ds__index_now(store, &index);
    if (status != DS_OK)
        return status;
    const struct ds_control *control = store->control;
    const struct ds_tail *tail = &control->tail;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < DS_KEYSPACES; i++)
        out->keys[i] = ds__word_load(&tail->keys[i]);
    out->live_bytes = ds__word_load(&tail->live_bytes);
    out->sequence = ds__sequence_now(control);
    out->committed = atomic_load_explicit(&control->committed, memory_order_acquire);
    out->synced = atomic_load_explicit(&control->synced, memory_order_acquire);
    out->fence = atomic_load_explicit(&control->fence, memory_order_relaxed);
    out->repairs = atomic_load_explicit(&control->repairs, memory_order_relaxed);
    out->dropped_bytes = control->dropped_bytes;
    out->log_bytes = ds__word_load(&tail->segment_base) + ds__word_load(&tail->segment_size) +
                     ds__word_load(&tail->blob_bytes) - atomic_load_explicit(&control->start, memory_order_relaxed);
    out->relocated_bytes = atomic_load_explicit(&control->relocated_bytes, memory_order_relaxed);
    out->dropped_segments = atomic_load_explicit(&control->dropped_segments, memory_order_relaxed);
    out->waits = atomic_load_explicit(&control->waits, memory_order_relaxed);
    out->expired_keys = atomic_load_explicit(&control->shed_expired, memory_order_relaxed);
    out->clock_ns = ds__clock_now(control);
    out->index_slots = index->mask + 1;
    out->verified_bytes = atomic_load_explicit(&store->verified_bytes, memory_order_relaxed);
    return DS_OK;
}

struct verification {
    ds_store *store;
    uint64_t frames;
};

static ds_status verify_frame(void *context, struct ds_segment *segment, uint64_t offset,
                              const struct ds_frame *frame) {
    struct verification *seen = context;
    uint64_t at = offset + sizeof *frame;
    seen->frames++;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, at);
        if (record->previous >= at)
            return ds__fail(DS_CORRUPT, 0, "%s: the record at log offset %llu names a later one as its predecessor",
                            seen->store->directory.path, (unsigned long long)at);
        at += ds__record_length(record->key_size, record->value_size);
    }
    atomic_fetch_add_explicit(&seen->store->verified_bytes, at - offset, memory_order_relaxed);
    return DS_OK;
}

/* Each slot names the newest record of its key; what a live one names is readable. */
static ds_status verify_slot(ds_store *store, const struct ds_index *index, uint64_t slot) {
    struct ds_found found, same;
    bool gone = false;
    ds_status status = ds__record_at(store, ds__slot_offset(slot), &found);
    if (status == DS_OK)
        status = ds__record_verify(store, &found);
    if (status != DS_OK)
        return status;
    const struct ds_record *record = found.record;
    uint64_t hash = ds__hash(store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
    status = ds__find(store, index, hash, record->keyspace, ds__record_key(record), record->key_size, &same, &gone);
    if (status == DS_MISSING || (status == DS_OK && same.offset != found.offset))
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the index does not find the record at log offset %llu; close the store in all "
                        "processes and remove its control file to rebuild it",
                        store->directory.path, (unsigned long long)found.offset);
    if (status == DS_OK && ds__op_is_blob(record->op)) {
        struct ds_blob_reference reference = ds__record_blob(record);
        struct ds_mapping *mapping;
        status = ds__blob_map(store, &reference, true, &mapping);
        if (status == DS_OK)
            ds__mapping_unpin(mapping);
    }
    atomic_fetch_add_explicit(&store->verified_bytes, ds__live_size(record), memory_order_relaxed);
    return status;
}

static ds_status verify_index(ds_store *store) {
    struct ds_index *index;
    uint64_t keys = 0;
    ds_status status = ds__index_now(store, &index);
    for (uint64_t at = 0; status == DS_OK && at <= index->mask; at++) {
        uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_acquire);
        if (slot == 0)
            continue;
        keys++;
        if (slot == DS_SLOT_GONE)
            continue;
        status = verify_slot(store, index, slot);
    }
    /* More may be counted than there are, when a writer died while it replaced the index (commit.c, grow_index). */
    if (status == DS_OK && keys > store->control->tail.slots_used)
        status = ds__fail(DS_CORRUPT, 0, "%s: the index holds %llu keys, the control page counts %llu",
                          store->directory.path, (unsigned long long)keys,
                          (unsigned long long)store->control->tail.slots_used);
    return status;
}

static ds_status verify_all(ds_store *store, uint64_t *frames) {
    struct verification seen = {store, 0};
    atomic_store_explicit(&store->verified_bytes, 0, memory_order_relaxed);
    uint64_t end = atomic_load_explicit(&store->control->committed, memory_order_acquire);
    ds_status status = ds__log_walk(store, end, verify_frame, &seen);
    if (status == DS_OK)
        status = verify_index(store);
    if (status == DS_OK && frames != NULL)
        *frames = seen.frames;
    return status;
}

static const char VERIFY_AGAIN[] = "nothing was checked: verify again";

ds_status ds_verify(ds_store *store, uint64_t *frames) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    /* Writers and compaction wait meanwhile: the index and the log must be seen at one point. A read-only handle cannot
     * make them, and may find a log that moved on. */
    if (store->options.read_only) {
        ds__enter(store);
        status = ds__all_there(store, verify_all(store, frames));
        ds__leave(store);
        return status;
    }
    bool died;
    struct ds_lock *compacting = &store->control->compact_lock;
    status = ds__lock_take(compacting, "a compaction", store->options.lock_timeout_ms, store->directory.path, &died);
    if (status != DS_OK)
        return ds__advise(status, DS_TIMEOUT, VERIFY_AGAIN);
    status = ds__advise(ds__writer_enter(store), DS_TIMEOUT, VERIFY_AGAIN);
    if (status == DS_OK) {
        status = ds__all_there(store, verify_all(store, frames));
        ds__writer_leave(store);
    }
    ds__lock_release(compacting);
    return status;
}
