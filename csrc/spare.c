/* spare.c: the next segment, made ahead by the keeper, so that a quick writer neither waits for a file to be made nor takes the
 * page faults of its first touch: together they cost as much as all its puts.
 *
 * A spare is a file without a name, of one handle. It gets its name when it becomes a segment, in the place of the rename
 * that ends the making of any other. So nobody else can see it before, there is nothing to agree on between processes, and
 * with its process it is gone. Where the file system knows no files without names, there are no spares; nor has a handle any
 * that has seen the disk full once, because they would be in the way of deletes and of compaction.
 *
 * `spare` changes hands by exchange: whoever takes it out owns it. It is made before the keeper compacts, and again before that
 * waits for the disk, which takes as long as a quick writer needs for a segment. */
#include "store.h"

#include <stdlib.h>

/* One that was not needed for so long is given back to the disk. */
#define KEEP_NS UINT64_C(1000000000)

struct ds_spare {
    struct ds_segment *segment;
    int fd;
    uint64_t made_ns;
};

static const char NAME[] = "a segment";

static void give_back(struct ds_spare *spare) {
    if (spare->segment != NULL)
        ds__mapping_unpin(&spare->segment->mapping);
    ds__os_close(spare->fd);
    free(spare);
}

void ds__spare_free(ds_store *store) {
    struct ds_spare *spare = atomic_exchange_explicit(&store->spare, NULL, memory_order_seq_cst);
    if (spare != NULL)
        give_back(spare);
}

void ds__spare_stop(ds_store *store) {
    atomic_store_explicit(&store->no_spares, true, memory_order_seq_cst);
    ds__spare_free(store);
}

/* ---- the keeper's side ------------------------------------------------------------------------------------------- */

static ds_status make(ds_store *store, struct ds_spare *spare, uint64_t size) {
    ds_status status = ds__os_open_unnamed(&store->directory, &spare->fd);
    if (status == DS_OK)
        status = ds__os_allocate(&store->directory, NAME, spare->fd, size);
    if (status == DS_OK)
        status = ds__segment_map_new(&store->segments, NAME, spare->fd, size, true, &spare->segment);
    spare->made_ns = ds__os_now_ns();
    return status;
}

void ds__spare_make(ds_store *store) {
    uint64_t size = atomic_exchange_explicit(&store->spare_wanted, 0, memory_order_relaxed);
    if (size == 0 || atomic_load_explicit(&store->no_spares, memory_order_relaxed) ||
        atomic_load_explicit(&store->spare, memory_order_relaxed) != NULL)
        return;
    struct ds_spare *spare = calloc(1, sizeof *spare);
    if (spare == NULL)
        return;
    spare->fd = -1;
    struct ds_spare *none = NULL;
    ds_status status = make(store, spare, size);
    /* Release: who takes it finds it complete. */
    if (status == DS_OK && atomic_compare_exchange_strong_explicit(&store->spare, &none, spare, memory_order_seq_cst,
                                                                   memory_order_relaxed)) {
        if (atomic_load_explicit(&store->no_spares, memory_order_seq_cst)) /* since then */
            ds__spare_free(store);
        return;
    }
    if (status == DS_UNSUPPORTED)
        atomic_store_explicit(&store->no_spares, true, memory_order_relaxed);
    give_back(spare); /* nobody misses it: a writer makes its own, and tells what fails */
}

bool ds__spare_tidy(ds_store *store) {
    struct ds_spare *spare = atomic_exchange_explicit(&store->spare, NULL, memory_order_acq_rel);
    if (spare == NULL)
        return false;
    struct ds_spare *none = NULL;
    if (ds__os_now_ns() - spare->made_ns < KEEP_NS &&
        atomic_compare_exchange_strong_explicit(&store->spare, &none, spare, memory_order_release,
                                                memory_order_relaxed))
        return false;
    give_back(spare);
    return true;
}

/* ---- the writer's side ------------------------------------------------------------------------------------------- */

bool ds__spare_take(ds_store *store, struct ds_segment_header *header, struct ds_segment **out) {
    struct ds_spare *spare = atomic_exchange_explicit(&store->spare, NULL, memory_order_acq_rel);
    if (spare == NULL)
        return false;
    char name[DS_NAME_SIZE];
    ds__segment_name(header->base, name);
    /* A writer that was quick and is not any more gets small segments again. */
    uint64_t size = spare->segment->mapping.size;
    bool taken = size >= header->size && size / 2 <= header->size;
    if (taken) {
        header->size = size;
        taken = ds__segment_begin(header, spare->segment) == DS_OK &&
                ds__os_link_unnamed(&store->directory, spare->fd, name) == DS_OK;
    }
    if (taken) {
        *out = spare->segment;
        spare->segment = NULL;
    }
    give_back(spare);
    return taken;
}
