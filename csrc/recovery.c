/* recovery.c: from the files of a directory to a handle that can be used.
 *
 * Three ways, tried in this order, all under a file lock on the directory:
 *   attach   the control page is this boot's and this store's: map it, done. At most one commit waits for repair, and
 *            whoever takes the writer lock next does that.
 *   create   the directory is empty.
 *   rebuild  a reboot, a copy, a lost page: read the log from its start, check every frame, index what it says.
 *
 * The rule for a log that stops making sense at offset p, by the floor, which is how far it is known to be on disk:
 *   p below the floor    damage. CorruptionError, nothing is changed.
 *   p at or above it     the torn tail of a power loss: what comes after p was never promised. It is dropped and
 *                        counted; the next commit opens a new segment, so that no frame ever follows torn bytes. */
#include "store.h"

#include "lock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const char CONTROL[] = "control";
static const char CONTROL_DRAFT[] = "control.new";
static const char SEGMENT_DRAFT[] = "segment.new";

/* After an unclean end of a boot, sequences go on this much higher: those between may have been seen by somebody before
 * the power went, and must not come back for other data. */
#define SEQUENCE_GAP (UINT64_C(1) << 32)

enum { LOOKS = 100 }; /* at a directory whose first segment goes each time: more than a scheduler can be blamed for */

/* ---- what is in the directory ---------------------------------------------------------------------------------- */

struct inventory {
    uint64_t *bases; /* of the segments, ascending */
    size_t count, room;
    size_t first; /* where the log begins among them; those before are leftovers of compaction */
    uint64_t newest_generation;
    bool control, floor, foreign, blobs;
    char foreign_name[64];
};

static bool is_blob(const char *name) {
    return strlen(name) == 21 && strcmp(name + 16, ".blob") == 0;
}

static ds_status take_stock(void *context, const char *name) {
    struct inventory *found = context;
    uint64_t number;
    if (ds__segment_parse_name(name, &number)) {
        if (found->count == found->room) {
            size_t room = found->room ? 2 * found->room : 64;
            uint64_t *bases = realloc(found->bases, room * sizeof *bases);
            if (bases == NULL)
                return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
            found->bases = bases;
            found->room = room;
        }
        found->bases[found->count++] = number;
    } else if (ds__index_parse_name(name, &number)) {
        if (number > found->newest_generation)
            found->newest_generation = number;
    } else if (strcmp(name, CONTROL) == 0) {
        found->control = true;
    } else if (strcmp(name, "floor") == 0) {
        found->floor = true;
    } else if (is_blob(name)) {
        found->blobs = true;
    } else if (strcmp(name, SEGMENT_DRAFT) != 0 && strcmp(name, CONTROL_DRAFT) != 0) {
        found->foreign = true;
        snprintf(found->foreign_name, sizeof found->foreign_name, "%s", name);
    }
    return DS_OK;
}

static int by_number(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static ds_status inventory(const struct ds_directory *directory, struct inventory *out) {
    memset(out, 0, sizeof *out);
    ds_status status = ds__os_directory_list(directory, take_stock, out);
    if (status != DS_OK) {
        free(out->bases);
        out->bases = NULL;
        return status;
    }
    if (out->count > 1)
        qsort(out->bases, out->count, sizeof *out->bases, by_number);
    return DS_OK;
}

/* ---- reading the log ------------------------------------------------------------------------------------------- */

/* Where the valid log ends. */
struct log_end {
    struct ds_segment *segment;
    uint64_t offset;
    uint64_t sequence;
    uint32_t crc;
    bool torn;        /* bytes that make no sense follow */
    uint64_t dropped; /* how many, zeros at the end not counted */
    uint64_t head;    /* the highest start of the log that a HEAD frame names */
    size_t segments;  /* of the inventory up to here */
};

struct walk {
    ds_store *store;
    ds__frame_visitor *visit;
    void *context;
    uint64_t end; /* walk no further; UINT64_MAX: to wherever it ends */
};

static uint64_t count_dead(const struct ds_segment *segment, uint64_t from) {
    const unsigned char *bytes = segment->mapping.bytes;
    uint64_t last = segment->mapping.size;
    while (last > from - segment->base && bytes[last - 1] == 0)
        last--;
    return last - (from - segment->base);
}

static void note_head(const struct ds_frame *frame, struct log_end *end) {
    if (ds__frame_type(frame->word0) != DS_FRAME_HEAD)
        return;
    const struct ds_record *record = (const struct ds_record *)(const void *)(frame + 1);
    uint64_t start;
    memcpy(&start, ds__record_value(record, record->key_size), sizeof start);
    if (start > end->head)
        end->head = start;
}

/* The frames of one segment, from end->offset. Stops at the first word0 of zero, and at a bad frame with end->torn. */
static ds_status walk_segment(const struct walk *walk, struct ds_segment *segment, struct log_end *end) {
    while (end->offset < walk->end && segment->end - end->offset >= sizeof(struct ds_frame)) {
        const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, end->offset);
        if (frame->word0 == 0)
            break;
        if (!ds__frame_valid(frame, segment->end - end->offset, segment->seed, end->offset, end->crc) ||
            frame->sequence < end->sequence ||
            (frame->sequence == end->sequence && ds__frame_type(frame->word0) == DS_FRAME_COMMIT)) {
            end->torn = true;
            break;
        }
        ds_status status = walk->visit(walk->context, segment, end->offset, frame);
        if (status != DS_OK)
            return status;
        note_head(frame, end);
        end->sequence = frame->sequence;
        end->crc = frame->crc;
        end->offset += ds__frame_length(frame->word0);
    }
    return DS_OK;
}

/* Does this segment go on where the last one ended? */
static bool linked(const struct ds_segment *segment, const struct log_end *end) {
    const struct ds_segment_header *header = ds__segment_header(segment);
    if (end->segment == NULL)
        return true; /* whether the log may begin here is for pick_start() to say */
    return header->base == end->segment->end && header->before_base == end->segment->base &&
           header->before_end == end->offset && header->before_crc == end->crc &&
           header->before_sequence >= end->sequence; /* higher after a recovery that left the gap */
}

/* Walks segment after segment. A status other than DS_OK is about the world (or a visitor), never about where the log
 * ends: that is in `end`. */
static ds_status walk_log(const struct walk *walk, const struct inventory *files, struct log_end *end) {
    memset(end, 0, sizeof *end);
    for (size_t i = files->first; i < files->count; i++) {
        struct ds_segment *segment;
        if (end->segment != NULL && end->offset >= walk->end)
            break;
        ds_status status = ds__segments_get(&walk->store->segments, files->bases[i], &segment);
        if (status == DS_CORRUPT || status == DS_MISSING || (status == DS_OK && !linked(segment, end))) {
            end->torn = true;
            break;
        }
        if (status != DS_OK)
            return status;
        /* Torn bytes that the segment before ends with are history: recovery or repair sealed it there, and this
         * header vouches for exactly that end. */
        end->torn = false;
        end->segment = segment;
        end->offset = segment->base + DS_SEGMENT_HEADER;
        end->crc = segment->header_crc;
        if (end->sequence < ds__segment_header(segment)->before_sequence)
            end->sequence = ds__segment_header(segment)->before_sequence;
        end->segments = i + 1;
        status = walk_segment(walk, segment, end);
        if (status != DS_OK)
            return status;
    }
    return DS_OK;
}

ds_status ds__log_walk(ds_store *store, uint64_t limit, ds__frame_visitor *visit, void *context) {
    struct inventory files;
    ds_status status = inventory(&store->directory, &files);
    if (status != DS_OK)
        return status;
    uint64_t start = atomic_load_explicit(&store->control->start, memory_order_relaxed);
    while (files.first < files.count && files.bases[files.first] < start)
        files.first++;
    struct walk walk = {store, visit, context, limit};
    struct log_end end;
    status = walk_log(&walk, &files, &end);
    free(files.bases);
    if (status == DS_OK && end.offset < limit)
        status = ds__fail(DS_CORRUPT, 0, "%s: the log makes no sense at offset %llu, but was committed up to %llu",
                          store->directory.path, (unsigned long long)end.offset, (unsigned long long)limit);
    return status;
}

/* ---- indexing what was read ------------------------------------------------------------------------------------ */

struct rebuild {
    ds_store *store;
    struct ds_index *index; /* in this process's memory, doubled as needed */
    struct ds_tail tail;
};

static void insert_slot(struct ds_index *index, uint64_t hash, uint64_t offset) {
    uint64_t at = hash & index->mask;
    while (atomic_load_explicit(&index->slots[at], memory_order_relaxed) != 0)
        at = (at + 1) & index->mask;
    atomic_store_explicit(&index->slots[at], ds__slot(offset, hash), memory_order_relaxed);
}

static ds_status double_index(struct rebuild *rebuild) {
    struct ds_index *larger;
    ds_status status = ds__index_private(0, (rebuild->index->mask + 1) * 2, &larger);
    if (status != DS_OK)
        return status;
    for (uint64_t at = 0; at <= rebuild->index->mask; at++) {
        uint64_t slot = rebuild->index->slots[at];
        struct ds_found found;
        if (slot == 0)
            continue;
        status = ds__record_at(rebuild->store, ds__slot_offset(slot), &found);
        if (status != DS_OK) {
            ds__index_free(larger);
            return status;
        }
        insert_slot(larger,
                    ds__hash(rebuild->store->hash_seed, found.record->keyspace, ds__record_key(found.record),
                             found.record->key_size),
                    found.offset);
    }
    ds__index_free(rebuild->index);
    rebuild->index = larger;
    return DS_OK;
}

static ds_status index_record(struct rebuild *rebuild, uint64_t offset, const struct ds_record *record) {
    struct ds_tail *tail = &rebuild->tail;
    uint64_t hash = ds__hash(rebuild->store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
    struct ds_found found;
    bool gone = false;
    ds_status status = ds__find(rebuild->store, rebuild->index, hash, record->keyspace, ds__record_key(record),
                                record->key_size, &found, &gone);
    if (status == DS_OK && found.record->op != DS_RECORD_TOMBSTONE) {
        tail->live_bytes -= ds__live_size(found.record);
        tail->keys[record->keyspace]--;
    }
    if (status == DS_OK) {
        ds__index_set(rebuild->index, found.slot, ds__slot(offset, hash));
    } else if (status == DS_MISSING) {
        insert_slot(rebuild->index, hash, offset);
        tail->slots_used++;
    } else {
        return status;
    }
    if (record->op != DS_RECORD_TOMBSTONE) {
        tail->live_bytes += ds__live_size(record);
        tail->keys[record->keyspace]++;
    }
    return DS_OK;
}

static ds_status index_frame(void *context, struct ds_segment *segment, uint64_t offset, const struct ds_frame *frame) {
    struct rebuild *rebuild = context;
    struct ds_tail *tail = &rebuild->tail;
    uint64_t length = ds__frame_length(frame->word0);
    if (ds__frame_type(frame->word0) == DS_FRAME_HEAD)
        return DS_OK;
    if (tail->largest_frame < length)
        tail->largest_frame = length;
    uint64_t at = offset + sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, at);
        if (tail->slots_used + 1 > ds__index_limit(rebuild->index->mask + 1)) {
            ds_status status = double_index(rebuild);
            if (status != DS_OK)
                return status;
        }
        ds_status status = index_record(rebuild, at, record);
        if (status != DS_OK)
            return status;
        if (record->op == DS_RECORD_BLOB)
            tail->last_blob = offset;
        at += ds__record_length(record->key_size, record->value_size);
    }
    return DS_OK;
}

/* The rule at the head of this file. */
static ds_status judge_end(ds_store *store, const struct inventory *files, const struct ds_floor *floor,
                           struct log_end *end) {
    if (end->offset < floor->offset || end->segment == NULL)
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the log is damaged at offset %llu, below offset %llu up to which it was safely on disk; "
                        "nothing was changed. Restore the directory from a copy, or repair the store",
                        store->directory.path, (unsigned long long)end->offset, (unsigned long long)floor->offset);
    uint64_t dead = count_dead(end->segment, end->offset);
    end->torn = end->torn || dead > 0;
    end->dropped = dead;
    for (size_t i = end->segments; i < files->count; i++)
        end->dropped += DS_SEGMENT_HEADER; /* at least; what else they held cannot be told */
    return DS_OK;
}

static ds_status read_run(ds_store *store, const struct inventory *files, struct rebuild *rebuild,
                          struct log_end *end) {
    memset(rebuild, 0, sizeof *rebuild);
    rebuild->store = store;
    ds_status status = ds__index_private(0, DS_INDEX_MIN, &rebuild->index);
    if (status != DS_OK)
        return status;
    struct walk walk = {store, index_frame, rebuild, UINT64_MAX};
    status = walk_log(&walk, files, end);
    if (status != DS_OK) {
        ds__index_free(rebuild->index);
        rebuild->index = NULL;
    }
    return status;
}

/* The segment that begins the unbroken run which ends with number `last`. */
static size_t run_before(ds_store *store, const struct inventory *files, size_t last) {
    size_t first = last;
    while (first > 0) {
        struct ds_segment *segment;
        if (ds__segments_get(&store->segments, files->bases[first - 1], &segment) != DS_OK ||
            segment->end != files->bases[first])
            break;
        first--;
    }
    return first;
}

/* Reads the log from its start: the first segment of the last unbroken run that may be one. A run may begin the log if it
 * begins with the first segment ever, or if a HEAD in it says that everything below some offset in it was dropped. What
 * lies before it are leftovers of that; what lies behind it is torn. */
static ds_status pick_start(ds_store *store, struct inventory *files, struct rebuild *rebuild, struct log_end *end) {
    size_t last = files->count - 1;
    for (;;) {
        files->first = run_before(store, files, last);
        ds_status status = read_run(store, files, rebuild, end);
        if (status != DS_OK)
            return status;
        uint64_t base = files->bases[files->first];
        if (end->segment != NULL && (base == 0 || end->head >= base))
            return DS_OK;
        ds__index_free(rebuild->index);
        rebuild->index = NULL;
        if (files->first == 0)
            return ds__fail(DS_CORRUPT, 0,
                            "%s: the log's first segments are missing; nothing was changed. Restore the "
                            "*.log files from a copy",
                            store->directory.path);
        last = files->first - 1;
    }
}

static ds_status rebuild_log(ds_store *store, struct inventory *files, struct rebuild *rebuild, struct log_end *end,
                             struct ds_floor *floor) {
    memset(rebuild, 0, sizeof *rebuild);
    ds_status status = ds__floor_read(&store->directory, store->uuid, floor);
    if (status == DS_OK)
        status = pick_start(store, files, rebuild, end);
    if (status == DS_OK)
        status = judge_end(store, files, floor, end);
    if (status != DS_OK) {
        ds__index_free(rebuild->index);
        rebuild->index = NULL;
        return status;
    }
    ds__segments_drop(&store->segments, end->segment->end);
    bool clean = (floor->flags & DS_FLOOR_CLEAN) != 0 && floor->offset == end->offset;
    struct ds_tail *tail = &rebuild->tail;
    tail->offset = end->offset;
    tail->segment_base = end->segment->base;
    tail->segment_size = end->segment->end - end->segment->base;
    tail->sequence =
        clean ? floor->sequence : (floor->sequence > end->sequence ? floor->sequence : end->sequence) + SEQUENCE_GAP;
    tail->crc = end->crc;
    tail->sealed = end->torn;
    return DS_OK;
}

static void fill_control(struct ds_control *control, const ds_store *store, const struct rebuild *rebuild,
                         const struct log_end *end, uint64_t start, uint64_t generation) {
    control->hash_seed = store->hash_seed;
    control->dropped_bytes = end->dropped;
    control->tail = rebuild->tail;
    atomic_init(&control->committed, rebuild->tail.offset);
    atomic_init(&control->generation, generation);
    atomic_init(&control->start, start);
}

/* ---- blobs that nothing names ---------------------------------------------------------------------------------- */

struct sweep {
    ds_store *store;
    uint64_t *live; /* ids, ascending */
    size_t count, room;
};

static ds_status note_blobs(struct sweep *sweep, const struct ds_index *index, uint64_t *bytes) {
    for (uint64_t at = 0; at <= index->mask; at++) {
        uint64_t slot = index->slots[at];
        struct ds_found found;
        struct ds_blob_reference blob;
        if (slot == 0)
            continue;
        ds_status status = ds__record_at(sweep->store, ds__slot_offset(slot), &found);
        if (status != DS_OK)
            return status;
        if (found.record->op != DS_RECORD_BLOB)
            continue;
        memcpy(&blob, ds__record_value(found.record, found.record->key_size), sizeof blob);
        if (sweep->count == sweep->room) {
            size_t room = sweep->room ? 2 * sweep->room : 16;
            uint64_t *live = realloc(sweep->live, room * sizeof *live);
            if (live == NULL)
                return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
            sweep->live = live;
            sweep->room = room;
        }
        sweep->live[sweep->count++] = blob.id;
        *bytes += blob.size;
    }
    if (sweep->count > 1)
        qsort(sweep->live, sweep->count, sizeof *sweep->live, by_number);
    return DS_OK;
}

static ds_status sweep_blob(void *context, const char *name) {
    const struct sweep *sweep = context;
    if (!is_blob(name))
        return DS_OK;
    struct ds_blob_reference blob = {.id = strtoull(name, NULL, 16)};
    if (sweep->count == 0 || bsearch(&blob.id, sweep->live, sweep->count, sizeof blob.id, by_number) == NULL)
        ds__blob_remove(sweep->store, &blob);
    return DS_OK;
}

/* A process died between writing a blob and committing it, or the blob's last record is dead. Only here, where nobody
 * else can be about to commit one. */
static ds_status sweep_blobs(ds_store *store, struct rebuild *rebuild) {
    struct sweep sweep = {.store = store};
    rebuild->tail.blob_bytes = 0;
    ds_status status = note_blobs(&sweep, rebuild->index, &rebuild->tail.blob_bytes);
    if (status == DS_OK)
        status = ds__os_directory_list(&store->directory, sweep_blob, &sweep);
    free(sweep.live);
    return status;
}

/* ---- the control page ------------------------------------------------------------------------------------------ */

/* A page that others see only when it is complete. */
static ds_status draft_control(ds_store *store, int *fd, struct ds_control **out) {
    ds_status status = ds__os_open(&store->directory, CONTROL_DRAFT, DS_OS_CREATE, fd);
    if (status != DS_OK)
        return status;
    void *page = NULL;
    status = ds__os_allocate(&store->directory, CONTROL_DRAFT, *fd, DS_CONTROL_BYTES);
    if (status == DS_OK)
        status = ds__os_map(&store->directory, CONTROL_DRAFT, *fd, DS_CONTROL_BYTES, true, &page);
    if (status == DS_OK) {
        struct ds_control *control = page;
        status = ds__control_identity(&store->directory, CONTROL_DRAFT, *fd, store->uuid, &control->identity);
        if (status == DS_OK)
            status = ds__lock_init(&control->lock);
        if (status == DS_OK)
            status = ds__lock_init(&control->sync_lock);
        if (status == DS_OK)
            status = ds__lock_init(&control->compact_lock);
        if (status == DS_OK)
            status = ds__os_flock(&store->directory, CONTROL_DRAFT, *fd, DS_OS_SHARED, 0);
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

static ds_status publish(ds_store *store, const struct inventory *files, struct rebuild *rebuild,
                         const struct log_end *end, const struct ds_floor *floor, bool rebooted) {
    uint64_t generation = files->newest_generation + 1;
    struct ds_control *control;
    int fd;
    ds_status status = publish_index(store, rebuild->index, generation);
    if (status == DS_OK)
        status = draft_control(store, &fd, &control);
    if (status != DS_OK)
        return status;
    fill_control(control, store, rebuild, end, files->count > 0 ? files->bases[files->first] : 0, generation);
    /* After a reboot all that was read came from the disk. Otherwise it may only be in the page cache. */
    uint64_t synced = rebooted ? end->offset : floor->offset;
    struct ds_floor raised = {.offset = synced, .sequence = rebuild->tail.sequence, .count = floor->count + 1};
    atomic_init(&control->synced, synced);
    atomic_init(&control->floor_count, raised.count);
    /* Before anybody commits: where sequences go on must be known even if all of that is lost again. */
    if (raised.sequence > 0)
        status = ds__floor_write(&store->directory, store->uuid, &raised, true);
    /* Torn segments go newest first, so that a crash in between leaves no gap. */
    for (size_t i = files->count; status == DS_OK && i-- > end->segments;) {
        char name[DS_NAME_SIZE];
        ds__segment_name(files->bases[i], name);
        status = ds__os_unlink(&store->directory, name);
    }
    for (size_t i = 0; status == DS_OK && i < files->first; i++) {
        char name[DS_NAME_SIZE];
        ds__segment_name(files->bases[i], name);
        status = ds__os_unlink(&store->directory, name); /* oldest first: what stays is an end of the log */
    }
    if (status == DS_OK)
        status = ds__os_rename(&store->directory, CONTROL_DRAFT, CONTROL);
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
static ds_status keep_private(ds_store *store, struct rebuild *rebuild, const struct log_end *end, uint64_t start) {
    store->control = aligned_alloc(64, DS_CONTROL_BYTES);
    if (store->control == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    memset(store->control, 0, DS_CONTROL_BYTES);
    store->control_private = true;
    fill_control(store->control, store, rebuild, end, start, 0);
    atomic_store_explicit(&store->index, rebuild->index, memory_order_release);
    rebuild->index = NULL;
    return DS_OK;
}

static ds_status rebuild_store(ds_store *store, struct inventory *files, bool rebooted) {
    struct rebuild rebuild;
    struct log_end end;
    struct ds_floor floor;
    ds_status status = rebuild_log(store, files, &rebuild, &end, &floor);
    if (status != DS_OK)
        return status;
    if (!store->options.read_only && files->blobs)
        status = sweep_blobs(store, &rebuild);
    if (status != DS_OK) {
        ds__index_free(rebuild.index);
        return status;
    }
    if (store->options.read_only)
        status = keep_private(store, &rebuild, &end, files->bases[files->first]);
    else
        status = publish(store, files, &rebuild, &end, &floor, rebooted);
    ds__index_free(rebuild.index);
    return status;
}

/* Is somebody alive holding the store through this control page? */
static bool held(const ds_store *store, int fd) {
    return ds__os_flock(&store->directory, CONTROL, fd, DS_OS_EXCLUSIVE, 0) != DS_OK;
}

enum verdict { USE, REBUILD, REBUILD_AFTER_REBOOT };

/* Compares the page's identity with what it must be. Of a page that differs nobody alive may hold on to the store. */
static ds_status judge_control(const ds_store *store, int fd, const struct ds_control_identity *found,
                               enum verdict *verdict) {
    struct ds_control_identity expected;
    ds_status status = ds__control_identity(&store->directory, CONTROL, fd, store->uuid, &expected);
    if (status != DS_OK)
        return status;
    *verdict = USE;
    if (memcmp(found, &expected, sizeof expected) == 0)
        return DS_OK;
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
        store->directory.path, CONTROL);
}

/* Attaches when there is a page to trust; *verdict says what else to do. */
static ds_status attach(ds_store *store, enum verdict *verdict) {
    *verdict = REBUILD;
    bool writable = !store->options.read_only;
    int fd;
    ds_status status = ds__os_open(&store->directory, CONTROL, writable ? DS_OS_WRITE : DS_OS_READ, &fd);
    if (status == DS_MISSING)
        return DS_OK;
    if (status != DS_OK)
        return status;
    uint64_t size;
    void *page = NULL;
    status = ds__os_size(&store->directory, CONTROL, fd, &size);
    if (status == DS_OK && size == DS_CONTROL_BYTES)
        status = ds__os_map(&store->directory, CONTROL, fd, size, writable, &page);
    if (status == DS_OK && page != NULL)
        status = judge_control(store, fd, &((struct ds_control *)page)->identity, verdict);
    if (status == DS_OK && *verdict == USE)
        status = ds__os_flock(&store->directory, CONTROL, fd, DS_OS_SHARED, store->options.lock_timeout_ms);
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
        status = ds__segment_create(&store->segments, &header, &segment);
    if (status == DS_OK)
        status = ds__segments_add(&store->segments, segment);
    if (status != DS_OK)
        return status;
    struct inventory files = {0};
    struct ds_floor floor = {0};
    struct log_end end = {.segment = segment, .offset = DS_SEGMENT_HEADER};
    struct rebuild rebuild = {.store = store};
    rebuild.tail.offset = DS_SEGMENT_HEADER;
    rebuild.tail.segment_size = header.size;
    rebuild.tail.crc = segment->header_crc;
    status = ds__index_private(0, DS_INDEX_MIN, &rebuild.index);
    if (status == DS_OK)
        status = publish(store, &files, &rebuild, &end, &floor, false);
    ds__index_free(rebuild.index);
    return status;
}

/* uuid and hash seed stand in every segment's header; the first one's will do. *unborn: the power went before the header
 * of the only segment reached the disk, so nothing was ever promised. */
static ds_status read_identity(ds_store *store, const struct inventory *files, bool *unborn) {
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

static ds_status no_store(const ds_store *store, const struct inventory *files) {
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

static ds_status open_existing(ds_store *store, struct inventory *files) {
    ds_status status = ds__segments_init(&store->segments, &store->directory, store->uuid, !store->options.read_only);
    enum verdict verdict = REBUILD;
    if (status == DS_OK && files->control)
        status = attach(store, &verdict);
    else
        verdict = REBUILD_AFTER_REBOOT; /* a copy without its derived files, or a boot that took them along */
    if (status == DS_OK && store->control == NULL)
        status = rebuild_store(store, files, verdict == REBUILD_AFTER_REBOOT && files->control);
    return status;
}

/* Lists the files and reads who the store is from the first segment. A process that has the store open may be
 * compacting: then the first segment that was listed can be gone, and another is the first. */
static ds_status look(ds_store *store, struct inventory *files, bool *unborn) {
    for (int i = 0;; i++) {
        ds_status status = inventory(&store->directory, files);
        if (status != DS_OK || files->count == 0)
            return status;
        status = read_identity(store, files, unborn);
        if (status == DS_OK)
            return DS_OK;
        free(files->bases);
        files->bases = NULL;
        if (status != DS_MISSING || i == LOOKS)
            return status;
    }
}

static ds_status open_or_create(ds_store *store) {
    struct inventory files;
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
    free(files.bases);
    return status;
}

ds_status ds__recover(ds_store *store) {
    /* Whoever opens waits for whoever opens or rebuilds; it says nothing about writers. */
    ds_status status =
        ds__os_flock(&store->directory, "", store->directory.fd, DS_OS_EXCLUSIVE, store->options.lock_timeout_ms);
    if (status != DS_OK)
        return status;
    status = open_or_create(store);
    /* Closing would do; a descriptor inherited by a child would keep it. */
    ds__os_unlock(store->directory.fd);
    return status;
}
