/* store.h: the inside of a handle, and what the parts of the engine ask of each other. */
#ifndef DS_STORE_H
#define DS_STORE_H

#include "control.h"
#include "format.h"
#include "hash.h"
#include "index.h"
#include "os.h"
#include "segment.h"
#include "sigbus.h"
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
    atomic_bool index_replaced;       /* an older one is still mapped */
    pthread_mutex_t indexing;         /* one thread at a time replaces it */

    _Atomic(struct ds_spare *) spare; /* spare.c */
    _Atomic uint64_t spare_wanted;    /* bytes; 0: none */
    atomic_bool no_spares;            /* this file system has none, or the disk was full */

    pthread_t keeper; /* keeper.c: syncs in `group` mode, compacts in all */
    pthread_mutex_t keeper_mutex;
    pthread_cond_t keeper_wake;
    bool keeper_running, keeper_stop;
    atomic_bool keeper_asked;
    bool tight;                      /* its pass moves only what fits: the thread of that pass alone looks */
    atomic_bool reclaiming;          /* a compaction of this handle will: no other call need do it */
    atomic_bool compacting_fails;    /* the last pass of this handle: writers do not wait for the next */
    _Atomic uint64_t verified_bytes; /* ds_stats: how far ds_verify() has come, for who watches from another thread */
};

/* store.c: is the handle usable here, and for writing? */
ds_status ds__check(const ds_store *store);
ds_status ds__check_writable(const ds_store *store);
/* `status`, or DS_CORRUPT if the control page or the index was cut under this handle (sigbus.h): then a key that was not
 * found may be there. Where the answer came from a record that was checked, nobody needs to ask. */
ds_status ds__intact(const ds_store *store, ds_status status);

/* Of a call that looks for no key: what is missing is a file, and that is damage. */
ds_status ds__all_there(const ds_store *store, ds_status status);

/* read.c --------------------------------------------------------------------------------------------------------- */

/* The index generation in force, mapped. */
ds_status ds__index_remap(ds_store *store, struct ds_index **out);
/* From now on calls see that generation. Under `indexing`. */
void ds__index_replace(ds_store *store, struct ds_index *newer);
static inline ds_status ds__index_now(ds_store *store, struct ds_index **out) {
    struct ds_index *index = atomic_load_explicit(&store->index, memory_order_seq_cst); /* see ds__index_replace() */
    uint64_t generation = atomic_load_explicit(&store->control->generation, memory_order_acquire);
    if (index != NULL && index->generation == generation) {
        *out = index;
        return DS_OK;
    }
    return ds__index_remap(store, out);
}

struct ds_found {
    uint64_t slot;   /* where in the index */
    uint64_t offset; /* of the record */
    const struct ds_record *record;
    struct ds_segment *segment;
};

/* The segment that holds `offset`. DS_MISSING: compaction has passed it. */
ds_status ds__segment_of(ds_store *store, uint64_t offset, struct ds_segment **out);
/* The record that a slot or a `previous` names, within bounds of its segment; its checksum is not looked at. */
ds_status ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
bool ds__record_is(const struct ds_record *record, uint8_t keyspace, const void *key, size_t key_size);
/* What was read of the record since it was checked is what was checked: no other thread has found its page cut meanwhile. */
ds_status ds__record_still_there(const ds_store *store, const struct ds_found *found);
/* Its hash is right. */
ds_status ds__record_verify(const ds_store *store, const struct ds_found *found);
/* The record that the index names for the key, committed or not: newest first. DS_MISSING leaves in out->slot the empty
 * slot where the key would go; or, with *gone, compaction has taken a record away that a slot named, and the caller
 * must look again. */
ds_status ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace, const void *key,
                   size_t key_size, struct ds_found *out, bool *gone);
/* Steps back to the newest version below `limit`. DS_MISSING: there was none, or it was a tombstone, or it is *gone. */
ds_status ds__step_back(ds_store *store, uint64_t limit, struct ds_found *found, bool *gone);
/* A record's value where it lies; checks its hash if it is small. In the log it is not pinned and has no owner; of a blob the
 * caller owns one pin. */
ds_status ds__lend(ds_store *store, const struct ds_found *found, ds_value *out);
/* The same, pinned. */
ds_status ds__give(ds_store *store, const struct ds_found *found, ds_value *out);
/* When a reader of several keys looks. */
struct ds_moment {
    uint64_t limit;        /* `committed` */
    uint64_t now;          /* the store's clock at that moment; 0: nobody has asked yet */
    uint64_t shed_expired; /* as it was before */
    bool untimed;          /* a record was met that may have expired, and `now` is 0: begin again with a `timed` one */
};

/* Asked after reading several keys as of a moment: may a tombstone that is younger, or a key that expired since, have left
 * the index meanwhile, in its next generation or by compaction, and with it the way back to what was there then? */
bool ds__scan_outdated(const ds_store *store, const struct ds_index *index, const struct ds_moment *moment);
/* Every call that looks into segments does so between these two. */
void ds__enter(ds_store *store);
void ds__leave(ds_store *store);
/* Unmaps what a compaction has dropped, and ends `reclaiming`. Outside of the two. */
void ds__reclaim(ds_store *store);
/* The same for who needs the room on the disk: waits, not for ever, until other threads have done it, too. */
void ds__reclaim_all(ds_store *store);
/* The same for the thread that holds the writer lock. */
void ds__enter_writing(ds_store *store);

/* expiry.c ------------------------------------------------------------------------------------------------------- */

/* Of a control page that is being made. `latest`: of the expiring record with the highest `written`, zeros if there is none. */
void ds__clock_start(struct ds_control *control, const struct ds_expiry *latest);
/* The store's clock, in ns. */
uint64_t ds__clock_now(const struct ds_control *control);
void ds__expiry_make(const struct ds_control *control, uint64_t now, uint64_t ttl_ns, struct ds_expiry *out);
/* Of a record that expires and was checked. */
struct ds_expiry ds__record_expiry(const struct ds_record *record);
/* Is the deadline of a record that expires past? Checks what it looks at. */
ds_status ds__expired(const ds_store *store, const struct ds_found *found, uint64_t now, bool *expired);
/* After the index was taken up: a later generation may have dropped what was there at the moment. */
static inline void ds__moment(const ds_store *store, struct ds_moment *out) {
    out->now = 0;
    out->untimed = false;
    /* Before the limit: what was shed by then had expired by then. */
    out->shed_expired = atomic_load_explicit(&store->control->shed_expired, memory_order_acquire);
    out->limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
}
/* The index in force, and a moment to read it as of; `timed`, the moment has its time. *gone: commits came too fast for that,
 * which under the writer lock they do not. */
ds_status ds__moment_begin(ds_store *store, bool timed, struct ds_index **index, struct ds_moment *out, bool *gone);
/* Of a record that expires: DS_MISSING if its time is up at that moment, or if the moment is untimed. */
ds_status ds__missing_at(const ds_store *store, const struct ds_found *found, struct ds_moment *moment);

/* writer.c ------------------------------------------------------------------------------------------------------- */

/* Takes the writer lock, repairs what a dead writer left, checks the fence. Includes ds__enter(). */
ds_status ds__writer_enter(ds_store *store);
ds_status ds__writer_enter_within(ds_store *store, int timeout_ms);
void ds__writer_leave(ds_store *store);

/* Finishes or undoes the one commit whose intent is set. Under the writer lock. Idempotent: it may die at any
 * instruction, and whoever comes next does it again. */
ds_status ds__repair(ds_store *store);

/* A word of it cannot be what a writer left there: DS_CORRUPT, and its sentence. */
ds_status ds__control_damaged(const ds_store *store);

/* growth.c ------------------------------------------------------------------------------------------------------- */

/* Makes room in the index for `count` more keys. Under the writer lock. */
ds_status ds__grow_index(ds_store *store, struct ds_index *index, uint64_t count, struct ds_index **out);

/* append.c ------------------------------------------------------------------------------------------------------- */

/* One record to be. */
struct ds_plan {
    uint64_t hash;
    uint64_t previous; /* offset of the record the index names, 0: none */
    uint64_t slot;
    uint64_t replaced_bytes; /* live bytes that die with this commit */
    uint64_t length;         /* of the record */
    uint64_t sequence;       /* 0: the commit's own */
    uint8_t op;
    bool write;
    struct ds_blob_reference blob; /* when op is one of a blob */
    struct ds_expiry expiry;       /* when op is one that expires */
};

/* Appends one frame of that type under the writer lock: the marked plans, `length` bytes with the header. `fresh`: into a
 * new segment. */
ds_status ds__append(ds_store *store, uint8_t type, const ds_change *changes, const struct ds_plan *plans, size_t count,
                     uint64_t length, bool fresh);
/* The size of the segment that a commit of `length` bytes opens; 0: it goes into the last one. Under the writer lock. */
uint64_t ds__segment_needed(const ds_store *store, uint64_t length);
/* Do these plans need a segment with features that the present one lacks? */
ds_status ds__needs_fresh(ds_store *store, const struct ds_plan *plans, size_t count, bool *fresh);
/* What of a plan lies in the record's value, behind the expiry. */
const void *ds__logged_value(const ds_change *change, const struct ds_plan *plan, uint64_t *size);
/* What a live record counts for: its bytes, and its blob's. */
uint64_t ds__live_size(const struct ds_record *record);

/* changes.c ------------------------------------------------------------------------------------------------------ */

/* All up to this sequence were told, or are none of its keyspace's. */
uint64_t ds__changes_told(const ds_changes *changes);

/* wait.c --------------------------------------------------------------------------------------------------------- */

/* After a commit, when the writer lock was given back: wakes who waits for these keys. */
void ds__wake(struct ds_control *control, const struct ds_plan *plans, size_t count);
void ds__wake_all(struct ds_control *control);

/* compaction.c --------------------------------------------------------------------------------------------------- */

/* Is there more than twice the live data, and something to be had? Under the writer lock. */
bool ds__compaction_due(const ds_store *store);
/* Would a commit of that many bytes make the log larger than it may get? Under the writer lock. */
bool ds__compaction_overdue(ds_store *store, uint64_t length);
enum ds_compaction {
    DS_COMPACT_DUE,     /* until it is not due any more */
    DS_COMPACT_RESTED,  /* the same, and due it is a segment earlier */
    DS_COMPACT_ALL,     /* all that is in the log now */
    DS_COMPACT_TIGHTLY, /* the disk is full: what can go without a new segment */
};
/* Moves the start of the log. `wait`: for another process that is at it, else leave it to that one, or to who waits for it. */
ds_status ds__compact(ds_store *store, bool wait, enum ds_compaction how);
/* Waits for whoever is at it, and makes a pass if the start of the log is still at `start` then. */
ds_status ds__make_room(ds_store *store, uint64_t start);

/* recovery.c ----------------------------------------------------------------------------------------------------- */

/* Attaches the handle to the control page and the index, making or rebuilding them when there is none to trust. */
ds_status ds__recover(ds_store *store);
/* log.c ---------------------------------------------------------------------------------------------------------- */

/* Called with each frame of the log, in order; a status other than DS_OK ends the walk. */
typedef ds_status ds__frame_visitor(void *context, struct ds_segment *segment, uint64_t offset,
                                    const struct ds_frame *frame);
/* Checks and visits all frames from the start of the log to `end`, which must be the end of one. The caller keeps
 * compaction away. */
ds_status ds__log_walk(ds_store *store, uint64_t end, ds__frame_visitor *visit, void *context);

/* blob.c --------------------------------------------------------------------------------------------------------- */

ds_status ds__blob_write(ds_store *store, const void *value, uint64_t size, struct ds_blob_reference *out);
/* Maps it; the caller owns one pin. `check` compares the hash too. */
ds_status ds__blob_map(ds_store *store, const struct ds_blob_reference *reference, bool check, struct ds_mapping **out);
/* Takes over another directory's blob, under the same name, if it is intact; DS_CORRUPT if it is not. */
ds_status ds__blob_link(ds_store *store, const struct ds_directory *from, const struct ds_blob_reference *reference);
ds_status ds__blob_sync(ds_store *store, const struct ds_blob_reference *reference);
/* Makes its pages dirty, and changes no byte. */
ds_status ds__blob_redirty(ds_store *store, const struct ds_blob_reference *reference);
/* False: it was not there any more. */
bool ds__blob_remove(ds_store *store, const struct ds_blob_reference *reference);

/* spare.c -------------------------------------------------------------------------------------------------------- */

/* A writer: the next segment had better be made ahead. The keeper, once it is asked: makes it. */
static inline void ds__spare_want(ds_store *store, uint64_t size) {
    atomic_store_explicit(&store->spare_wanted, size, memory_order_relaxed);
}
static inline bool ds__spare_wanted(const ds_store *store) {
    return atomic_load_explicit(&store->spare_wanted, memory_order_relaxed) != 0;
}
void ds__spare_make(ds_store *store);
/* Gives one back that nobody has needed for a while; did it? */
bool ds__spare_tidy(ds_store *store);
/* Makes it the segment that `header` describes, which may become larger. False: there is none that would do. */
bool ds__spare_take(ds_store *store, struct ds_segment_header *header, struct ds_segment **out);
void ds__spare_free(ds_store *store);
/* The disk is full: none from now on. */
void ds__spare_stop(ds_store *store);

/* keeper.c ------------------------------------------------------------------------------------------------------- */

void ds__keeper_init(ds_store *store);
/* Starts the thread unless it runs. */
ds_status ds__keeper_start(ds_store *store);
/* There is something to compact; cheap when it was told already. */
void ds__keeper_ask(ds_store *store);
void ds__keeper_stop(ds_store *store);

/* sync.c --------------------------------------------------------------------------------------------------------- */

/* Puts all that is committed on disk, and moves the floor; `clean` marks the floor as the end of a closed store. */
ds_status ds__sync(ds_store *store, bool clean);
/* The same for what lies below `to`, where nothing below `start` is wanted any more. */
ds_status ds__sync_between(ds_store *store, uint64_t start, uint64_t to);
/* DS_IO: an earlier one failed, and so will each that comes. */
ds_status ds__sync_refused(const ds_store *store);
/* A store that was closed cleanly is about to be written: its floor is its end no longer. */
ds_status ds__floor_reopen(ds_store *store);
ds_status ds__floor_write(const struct ds_directory *directory, const uint8_t uuid[16], struct ds_floor *slot,
                          bool durable);
ds_status ds__floor_read(const struct ds_directory *directory, const uint8_t uuid[16], struct ds_floor *out);

#endif
