/* rebuild.h: the index and the counts, from nothing but the log. */
#ifndef DS_REBUILD_H
#define DS_REBUILD_H

#include "log.h"

struct ds_rebuild {
    ds_store *store;
    struct ds_index *index; /* in this process's memory, doubled as needed */
    uint64_t *hashes;       /* of the key in each slot, while the log is read: doubling needs to look at no record */
    struct ds_tail tail;
    struct ds_log_end end;
    struct ds_floor floor;
    uint64_t start;          /* base of the log's first segment */
    struct ds_expiry latest; /* of the expiring record that was written last */
};

/* Reads the log and changes no file. files->first receives where it begins. Free out->index with ds__index_free(). */
ds_status ds__rebuild(ds_store *store, struct ds_inventory *files, struct ds_rebuild *out);
/* Counts the blobs that the index names; `sweep`: and removes the others. Only where nobody else can be about to commit one. */
ds_status ds__rebuild_blobs(struct ds_rebuild *rebuild, bool sweep);

#endif
