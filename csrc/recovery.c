/* recovery.c: from the files of a directory to a handle that can be used.
 *
 * Three ways, tried in this order, all under a file lock on the directory:
 *   attach   the control page is this boot's and this store's: map it, done. At most one commit waits for repair, and
 *            whoever takes the writer lock next does that.
 *   create   the directory is empty.
 *   rebuild  a reboot, a copy, a lost page: read the log from its start, check every frame, index what it says. */
#include "lock.h"
#include "rebuild.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { LOOKS = 100 }; /* at a directory whose first segment goes each time: more than a scheduler can be blamed for */

static void fill_control(struct ds_control *control, const struct ds_rebuild *rebuild, uint64_t generation) {
    control->hash_seed = rebuild->store->hash_seed;
    control->dropped_bytes = rebuild->end.dropped;
    control->tail = rebuild->tail;
    ds__clock_start(control, &rebuild->latest);
    atomic_init(&control->committed, rebuild->tail.offset);
    atomic_init(&control->generation, generation);
    atomic_init(&control->start, rebuild->start);
}

/* ---- the control page ------------------------------------------------------------------------------------------ */

/* A page that others see only when it is complete. */
static ds_status draft_control(ds_store *store, int *fd, struct ds_control **out) {
    ds_status status = ds__os_open(&store->directory, DS_CONTROL_DRAFT, DS_OS_CREATE, fd);
    if (status != DS_OK)
        return status;
    void *page = NULL;
    status = ds__os_allocate(&store->directory, DS_CONTROL_DRAFT, *fd, DS_CONTROL_BYTES);
    if (status == DS_OK)
        status = ds__os_map(&store->directory, DS_CONTROL_DRAFT, *fd, DS_CONTROL_BYTES, true, &page);
    if (status == DS_OK) {
        struct ds_control *control = page;
        status = ds__control_identity(&store->directory, DS_CONTROL_DRAFT, *fd, store->uuid, &control->identity);
        if (status == DS_OK)
            status = ds__lock_init(&control->lock);
        if (status == DS_OK)
            status = ds__lock_init(&control->sync_lock);
        if (status == DS_OK)
            status = ds__lock_init(&control->compact_lock);
        if (status == DS_OK)
            status = ds__os_flock(&store->directory, DS_CONTROL_DRAFT, *fd, DS_OS_SHARED, 0);
    }
    if (status != DS_OK) {
        ds__os_unmap(page, DS_CONTROL_BYTES);
        ds__os_close(*fd);
        return status;
    }
    *out = page;
    return DS_OK;
}

/* The index in shared memory: the same slots as the one that was built here. */
static ds_status publish_index(ds_store *store, struct ds_index *built, uint64_t generation) {
    struct ds_index *index;
    ds_status status = ds__index_create(&store->directory, store->uuid, generation, built->mask + 1, &index);
    if (status != DS_OK)
        return status;
    memcpy((char *)index->bytes + DS_INDEX_HEADER, (const char *)built->bytes + DS_INDEX_HEADER, (built->mask + 1) * 8);
    atomic_store_explicit(&store->index, index, memory_order_release);
    return DS_OK;
}

static ds_status remove_stale_index(void *context, const char *name) {
    ds_store *store = context;
    uint64_t generation;
    if (ds__index_parse_name(name, &generation) && generation != store->control->generation)
        (void)ds__os_unlink(&store->directory, name);
    return DS_OK;
}

static ds_status unlink_segments(ds_store *store, const struct ds_inventory *files, size_t from, size_t to) {
    ds_status status = DS_OK;
    for (size_t i = from; status == DS_OK && i < to; i++) {
        char name[DS_NAME_SIZE];
        ds__segment_name(files->bases[i], name);
        status = ds__os_unlink(&store->directory, name);
    }
    return status;
}

/* What does not belong to the log: leftovers of compaction, oldest first; torn segments, newest first. So a crash in
 * between leaves no gap. */
static ds_status tidy(ds_store *store, const struct ds_inventory *files, const struct ds_rebuild *rebuild) {
    ds_status status = unlink_segments(store, files, 0, files->first);
    for (size_t i = files->count; status == DS_OK && i-- > rebuild->end.segments;)
        status = unlink_segments(store, files, i, i + 1);
    return status;
}

static ds_status publish(ds_store *store, const struct ds_inventory *files, struct ds_rebuild *rebuild, bool rebooted) {
    uint64_t generation = files->newest_generation + 1;
    struct ds_control *control;
    int fd;
    ds_status status = publish_index(store, rebuild->index, generation);
    if (status == DS_OK)
        status = draft_control(store, &fd, &control);
    if (status != DS_OK)
        return status;
    fill_control(control, rebuild, generation);
    /* After a reboot all that was read came from the disk. Otherwise it may only be in the page cache. */
    uint64_t synced = rebooted ? rebuild->end.offset : rebuild->floor.offset;
    if (synced < rebuild->start) /* an old floor: what it speaks of is not there any more, to be synced */
        synced = rebuild->start;
    struct ds_floor raised = {.offset = synced, .sequence = rebuild->tail.sequence, .count = rebuild->floor.count + 1};
    atomic_init(&control->synced, synced);
    atomic_init(&control->floor_count, raised.count);
    /* In the same boot a sync may have failed that only the former page knew of. */
    if (!rebooted && files->count > 0)
        atomic_init(&control->sync_intent, rebuild->end.offset);
    /* Before anybody commits: where sequences go on must be known even if all of that is lost again. */
    if (raised.sequence > 0)
        status = ds__floor_write(&store->directory, store->uuid, &raised, true);
    if (status == DS_OK)
        status = tidy(store, files, rebuild);
    if (status == DS_OK)
        status = ds__os_rename(&store->directory, DS_CONTROL_DRAFT, DS_CONTROL_NAME);
    if (status != DS_OK) {
        ds__os_unmap(control, DS_CONTROL_BYTES);
        ds__os_close(fd);
        return status;
    }
    store->control = control;
    store->control_fd = fd;
    (void)ds__os_directory_list(&store->directory, remove_stale_index, store);
    return DS_OK;
}

/* A read-only handle changes no byte: page and index live in this process's memory and show the log as it is now. */
static ds_status keep_private(ds_store *store, struct ds_rebuild *rebuild) {
    store->control = aligned_alloc(64, DS_CONTROL_BYTES);
    if (store->control == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    memset(store->control, 0, DS_CONTROL_BYTES);
    store->control_private = true;
    fill_control(store->control, rebuild, 0);
    atomic_store_explicit(&store->index, rebuild->index, memory_order_release);
    rebuild->index = NULL;
    return DS_OK;
}

static ds_status rebuild_store(ds_store *store, struct ds_inventory *files, bool rebooted) {
    struct ds_rebuild rebuild;
    ds_status status = ds__rebuild(store, files, &rebuild);
    bool blobs = status == DS_OK && !store->options.read_only && files->blobs;
    if (blobs)
        status = ds__rebuild_blobs(&rebuild, false);
    if (status == DS_OK)
        status = store->options.read_only ? keep_private(store, &rebuild) : publish(store, files, &rebuild, rebooted);
    /* What has replaced them must be on disk before they go. They only take room, until the next recovery. */
    if (blobs && status == DS_OK && (rebooted || ds__sync(store, false) == DS_OK))
        (void)ds__rebuild_blobs(&rebuild, true);
    ds__index_free(rebuild.index);
    return status;
}

/* Is somebody alive holding the store through this control page? */
static bool held(const ds_store *store, int fd) {
    return ds__os_flock(&store->directory, DS_CONTROL_NAME, fd, DS_OS_EXCLUSIVE, 0) != DS_OK;
}

enum verdict { USE, REBUILD, REBUILD_AFTER_REBOOT };

/* Is the index that the page names lost, and nobody there who has it mapped? Then both can be made anew. */
static bool index_is_lost(const ds_store *store, int fd, const struct ds_control *control) {
    struct ds_index *index = NULL;
    uint64_t generation = atomic_load_explicit(&control->generation, memory_order_acquire);
    ds_status status = ds__index_open(&store->directory, store->uuid, generation, !store->options.read_only, &index);
    ds__index_free(index);
    return (status == DS_CORRUPT || status == DS_MISSING || status == DS_NOT_A_STORE) && !held(store, fd);
}

/* Compares the page's identity with what it must be. Of a page that differs nobody alive may hold on to the store. */
static ds_status judge_control(const ds_store *store, struct ds_inventory *files, int fd,
                               const struct ds_control *control, enum verdict *verdict) {
    const struct ds_control_identity *found = &control->identity;
    struct ds_control_identity expected;
    ds_status status = ds__control_identity(&store->directory, DS_CONTROL_NAME, fd, store->uuid, &expected);
    if (status != DS_OK)
        return status;
    *verdict = USE;
    if (memcmp(found, &expected, sizeof expected) == 0) {
        if (!index_is_lost(store, fd, control))
            return DS_OK;
        *verdict = REBUILD;
        /* The one that is made now must not be taken for it, should we die before the new page is there. */
        uint64_t lost = atomic_load_explicit(&control->generation, memory_order_relaxed);
        if (files->newest_generation < lost)
            files->newest_generation = lost;
        return DS_OK;
    }
    *verdict = memcmp(found->boot_id, expected.boot_id, sizeof expected.boot_id) == 0 ? REBUILD : REBUILD_AFTER_REBOOT;
    if (!held(store, fd))
        return DS_OK;
    struct ds_control_identity here = expected;
    here.pid_namespace = found->pid_namespace;
    if (memcmp(found, &here, sizeof here) == 0)
        return ds__fail(DS_IN_USE, 0,
                        "%s: open in another PID namespace (container). A lock cannot tell whether its owner there is "
                        "alive; share the PID namespace or close the store there",
                        store->directory.path);
    return ds__fail(
        DS_IN_USE, 0,
        "%s/%s: in use by a process whose control page is not one this build can share; close the store there",
        store->directory.path, DS_CONTROL_NAME);
}

/* Attaches when there is a page to trust; *verdict says what else to do. */
static ds_status attach(ds_store *store, struct ds_inventory *files, enum verdict *verdict) {
    *verdict = REBUILD;
    bool writable = !store->options.read_only;
    int fd;
    ds_status status = ds__os_open(&store->directory, DS_CONTROL_NAME, writable ? DS_OS_WRITE : DS_OS_READ, &fd);
    if (status == DS_MISSING)
        return DS_OK;
    if (status != DS_OK)
        return status;
    uint64_t size;
    void *page = NULL;
    status = ds__os_size(&store->directory, DS_CONTROL_NAME, fd, &size);
    if (status == DS_OK && size == DS_CONTROL_BYTES)
        status = ds__os_map(&store->directory, DS_CONTROL_NAME, fd, size, writable, &page);
    if (status == DS_OK && page != NULL)
        status = judge_control(store, files, fd, page, verdict);
    if (status == DS_OK && *verdict == USE)
        status = ds__os_flock(&store->directory, DS_CONTROL_NAME, fd, DS_OS_SHARED, store->options.lock_timeout_ms);
    if (status == DS_OK && *verdict == USE) {
        store->control = page;
        store->control_fd = fd;
        return DS_OK;
    }
    ds__os_unmap(page, DS_CONTROL_BYTES);
    ds__os_close(fd);
    return status;
}

/* ---- creation -------------------------------------------------------------------------------------------------- */

static ds_status create_store(ds_store *store) {
    struct ds_segment_header header = {.size = DS_SEGMENT_MIN, .first_sequence = 1};
    ds_status status = ds__os_random(header.uuid, sizeof header.uuid);
    if (status == DS_OK)
        status = ds__os_random(&header.hash_seed, sizeof header.hash_seed);
    memcpy(store->uuid, header.uuid, sizeof store->uuid);
    store->hash_seed = header.hash_seed;
    struct ds_segment *segment = NULL;
    if (status == DS_OK)
        status = ds__segments_init(&store->segments, &store->directory, store->uuid, true);
    if (status == DS_OK)
        status = ds__segment_create(&store->segments, &header, false, &segment);
    if (status == DS_OK)
        status = ds__segments_add(&store->segments, segment);
    if (status != DS_OK)
        return status;
    struct ds_inventory files = {0};
    struct ds_rebuild rebuild = {.store = store};
    rebuild.end.offset = DS_SEGMENT_HEADER;
    rebuild.tail.offset = DS_SEGMENT_HEADER;
    rebuild.tail.segment_size = header.size;
    rebuild.tail.crc = segment->header_crc;
    status = ds__index_private(0, DS_INDEX_MIN, &rebuild.index);
    if (status == DS_OK)
        status = publish(store, &files, &rebuild, false);
    ds__index_free(rebuild.index);
    return status;
}

/* uuid and hash seed stand in every segment's header; the first one's will do. *unborn: the power went before the header
 * of the only segment reached the disk, so nothing was ever promised. */
static ds_status read_identity(ds_store *store, const struct ds_inventory *files, bool *unborn) {
    char name[DS_NAME_SIZE];
    ds__segment_name(files->bases[0], name);
    int fd;
    ds_status status = ds__os_open(&store->directory, name, DS_OS_READ, &fd);
    if (status != DS_OK)
        return status;
    struct ds_segment_header header = {0};
    static const struct ds_segment_header nothing;
    size_t got = 0;
    uint64_t size = 0;
    status = ds__os_size(&store->directory, name, fd, &size);
    if (status == DS_OK)
        status = ds__os_read(&store->directory, name, fd, &header, sizeof header, 0, &got);
    ds__os_close(fd);
    if (status != DS_OK)
        return status;
    *unborn =
        files->count == 1 && files->bases[0] == 0 && !files->floor && memcmp(&header, &nothing, sizeof header) == 0;
    if (*unborn)
        return DS_OK;
    status = ds__segment_check(&store->directory, name, &header, files->bases[0], size, NULL);
    memcpy(store->uuid, header.uuid, sizeof store->uuid);
    store->hash_seed = header.hash_seed;
    return status;
}

static ds_status no_store(const ds_store *store, const struct ds_inventory *files) {
    const char *path = store->directory.path;
    if (files->floor || files->control)
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the segments of the log are gone; nothing was changed. Restore the *.log files", path);
    if (files->foreign)
        return ds__fail(DS_NOT_A_STORE, 0, "%s: holds other files (%s) and no store; give an empty or a new directory",
                        path, files->foreign_name);
    return ds__fail(DS_NOT_A_STORE, 0, "%s: there is no store here, and this open may not make one", path);
}

/* ---- the three ways -------------------------------------------------------------------------------------------- */

static ds_status open_existing(ds_store *store, struct ds_inventory *files) {
    ds_status status = ds__segments_init(&store->segments, &store->directory, store->uuid, !store->options.read_only);
    enum verdict verdict = REBUILD;
    if (status == DS_OK && files->control)
        status = attach(store, files, &verdict);
    else
        verdict = REBUILD_AFTER_REBOOT; /* a copy without its derived files, or a boot that took them along */
    if (status == DS_OK && store->control == NULL)
        status = rebuild_store(store, files, verdict == REBUILD_AFTER_REBOOT && files->control);
    return status;
}

/* Lists the files and reads who the store is from the first segment. A process that has the store open may be
 * compacting: then the first segment that was listed can be gone, and another is the first; a listing may even miss
 * them all. */
static ds_status look(ds_store *store, struct ds_inventory *files, bool *unborn) {
    for (int i = 0;; i++) {
        ds_status status = ds__inventory(&store->directory, files);
        if (status != DS_OK)
            return status;
        if (files->count == 0 && (!files->control || i == LOOKS))
            return DS_OK;
        status = files->count > 0 ? read_identity(store, files, unborn) : DS_MISSING;
        if (status == DS_OK)
            return DS_OK;
        free(files->bases);
        files->bases = NULL;
        if (status == DS_MISSING && i == LOOKS)
            return ds__fail(DS_TIMEOUT, 0, "%s: the log's first segment went during each of %d looks; open it again",
                            store->directory.path, i);
        if (status != DS_MISSING)
            return status;
    }
}

static ds_status open_or_create(ds_store *store) {
    struct ds_inventory files;
    bool unborn = false;
    ds_status status = look(store, &files, &unborn);
    if (status != DS_OK)
        return status;
    bool may_create = store->options.create && !store->options.read_only;
    if (files.count > 0 && !unborn)
        status = open_existing(store, &files);
    else if (!may_create || files.foreign || (!unborn && (files.floor || files.control)))
        status = no_store(store, &files);
    else
        status = create_store(store);
    /* Without one the store works, but on a full disk not even a delete does. */
    if (status == DS_OK && !store->options.read_only && !files.reserve)
        atomic_store_explicit(&store->control->reserve_gone, ds__reserve_make(&store->directory) != DS_OK,
                              memory_order_relaxed);
    free(files.bases);
    return status;
}

ds_status ds__recover(ds_store *store) {
    /* Whoever opens waits for whoever opens or rebuilds; it says nothing about writers. */
    ds_status status =
        ds__os_flock(&store->directory, "", store->directory.fd, DS_OS_EXCLUSIVE, store->options.lock_timeout_ms);
    if (status != DS_OK)
        return status;
    bool there = true, ours;
    status = ds__os_directory_check(&store->directory, &there, &ours);
    if (status == DS_OK && !there)
        status = ds__fail(DS_IN_USE, 0, "%s: the directory was replaced meanwhile, by a repair it seems; open it again",
                          store->directory.path);
    if (status == DS_OK)
        status = open_or_create(store);
    /* Closing would do; a descriptor inherited by a child would keep it. */
    ds__os_unlock(store->directory.fd);
    return status;
}
