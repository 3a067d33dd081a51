/* store.h: the inside of a handle, and what the parts of the engine ask of each other. */
#ifndef DS_STORE_H
#define DS_STORE_H

#include "control.h"
#include "format.h"
#include "hash.h"
#include "index.h"
#include "os.h"
#include "segment.h"
#include "status.h"

#include <pthread.h>
#include <stdatomic.h>

struct ds_store {
    struct ds_directory directory;
    ds_options options;
    uint64_t stamp; /* of the process that opened it; see ds__os_process_stamp() */
    uint8_t uuid[16];
    uint64_t hash_seed;

    struct ds_control *control;
    int control_fd;       /* holds a shared file lock while the handle lives; -1 when `control` is private */
    bool control_private; /* read-only open of a store that nobody keeps an index for: everything is in our memory */

    struct ds_segments segments;
    _Atomic(struct ds_index *) index; /* the generation this handle last saw; older ones hang behind it */
    pthread_mutex_t indexing;         /* one thread at a time replaces it */

    pthread_t group_thread; /* `group` durability: syncs every group_ms */
    pthread_mutex_t group_mutex;
    pthread_cond_t group_wake;
    bool group_running, group_stop;
};

/* store.c: is the handle usable here, and for writing? */
ds_status ds__check(const ds_store *store);
ds_status ds__check_writable(const ds_store *store);

/* read.c --------------------------------------------------------------------------------------------------------- */

/* The index generation in force, mapped. */
ds_status ds__index_now(ds_store *store, struct ds_index **out);

struct ds_found {
    uint64_t slot;   /* where in the index */
    uint64_t offset; /* of the record */
    const struct ds_record *record;
    struct ds_segment *segment;
};

/* The record that a slot or a `previous` names, within bounds of its segment; its checksum is not looked at. */
ds_status ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
bool ds__record_is(const struct ds_record *record, uint8_t keyspace, const void *key, size_t key_size);
/* Its hash is right. */
ds_status ds__record_verify(const ds_store *store, const struct ds_found *found);
/* The record that the index names for the key, committed or not: newest first. DS_MISSING leaves in out->slot the empty
 * slot where the key would go. */
ds_status ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace, const void *key,
                   size_t key_size, struct ds_found *out);

/* commit.c ------------------------------------------------------------------------------------------------------- */

/* Takes the writer lock, repairs what a dead writer left, checks the fence. */
ds_status ds__writer_enter(ds_store *store);
void ds__writer_leave(ds_store *store);

/* recovery.c ----------------------------------------------------------------------------------------------------- */

/* Attaches the handle to the control page and the index, making or rebuilding them when there is none to trust. */
ds_status ds__recover(ds_store *store);
/* Finishes or undoes the one commit whose intent is set. Under the writer lock. Idempotent: it may die at any
 * instruction, and whoever comes next does it again. */
ds_status ds__repair(ds_store *store);

/* Called with each frame of the log, in order; a status other than DS_OK ends the walk. */
typedef ds_status ds__frame_visitor(void *context, struct ds_segment *segment, uint64_t offset,
                                    const struct ds_frame *frame);
/* Checks and visits all frames below `end`, which must be the end of one. */
ds_status ds__log_walk(ds_store *store, uint64_t end, ds__frame_visitor *visit, void *context);

/* blob.c --------------------------------------------------------------------------------------------------------- */

ds_status ds__blob_write(ds_store *store, const void *value, uint64_t size, struct ds_blob_reference *out);
/* Maps it; the caller owns one pin. `check` compares the hash too. */
ds_status ds__blob_map(ds_store *store, const struct ds_blob_reference *reference, bool check, struct ds_mapping **out);
ds_status ds__blob_sync(ds_store *store, const struct ds_blob_reference *reference);
void ds__blob_remove(ds_store *store, const struct ds_blob_reference *reference);

/* sync.c --------------------------------------------------------------------------------------------------------- */

/* Puts all that is committed on disk and moves the floor; `clean` marks the floor as the end of a closed store. */
ds_status ds__sync(ds_store *store, bool clean);
/* A store that was closed cleanly is about to be written: its floor is its end no longer. */
ds_status ds__floor_reopen(ds_store *store);
ds_status ds__floor_write(const struct ds_directory *directory, const uint8_t uuid[16], struct ds_floor *slot,
                          bool durable);
ds_status ds__floor_read(const struct ds_directory *directory, const uint8_t uuid[16], struct ds_floor *out);

#endif
