/* rebuild.c: reading the whole log into an index. See rebuild.h.
 *
 * The rule for a log that stops making sense at offset p, by the floor, which is how far it is known to be on disk:
 *   p below the floor    damage. CorruptionError, nothing is changed.
 *   p at or above it     the torn tail of a power loss: what comes after p was never promised. It is dropped and
 *                        counted; the next commit opens a new segment, so that no frame ever follows torn bytes.
 * A commit whose large value did not reach the disk makes no sense either: its frame may have got there before the file. */
#include "rebuild.h"

#include "crc32c.h"

#include <errno.h>
#include <stdlib.h>

/* ---- indexing what was read ------------------------------------------------------------------------------------ */

enum { AHEAD = 16 }; /* slots that are fetched into the cache at once */

static void insert_slot(struct ds_index *index, uint64_t *hashes, uint64_t hash, uint64_t slot) {
    uint64_t at = hash & index->mask;
    while (atomic_load_explicit(&index->slots[at], memory_order_relaxed) != 0)
        at = (at + 1) & index->mask;
    atomic_store_explicit(&index->slots[at], slot, memory_order_relaxed);
    hashes[at] = hash;
}

/* An empty index, with room for the hashes. */
static ds_status make_index(uint64_t capacity, struct ds_index **index, uint64_t **hashes) {
    ds_status status = ds__index_private(0, capacity, index);
    if (status != DS_OK)
        return status;
    void *memory;
    status = ds__os_map_anonymous(capacity * sizeof **hashes, &memory);
    if (status == DS_OK) {
        *hashes = memory;
        return DS_OK;
    }
    ds__index_free(*index);
    *index = NULL;
    return status;
}

static void free_hashes(struct ds_rebuild *rebuild) {
    ds__os_unmap(rebuild->hashes, (rebuild->index->mask + 1) * sizeof *rebuild->hashes);
    rebuild->hashes = NULL;
}

static ds_status double_index(struct ds_rebuild *rebuild) {
    struct ds_index *larger;
    uint64_t *hashes;
    ds_status status = make_index((rebuild->index->mask + 1) * 2, &larger, &hashes);
    if (status != DS_OK)
        return status;
    for (uint64_t at = 0; at <= rebuild->index->mask; at++) {
        uint64_t slot = rebuild->index->slots[at];
        if (slot != 0)
            insert_slot(larger, hashes, rebuild->hashes[at], slot);
    }
    free_hashes(rebuild);
    ds__index_free(rebuild->index);
    rebuild->index = larger;
    rebuild->hashes = hashes;
    return DS_OK;
}

static ds_status index_record(struct ds_rebuild *rebuild, uint64_t offset, const struct ds_record *record,
                              uint64_t hash) {
    struct ds_tail *tail = &rebuild->tail;
    if (tail->slots_used + 1 > ds__index_limit(rebuild->index->mask + 1)) {
        ds_status full = double_index(rebuild);
        if (full != DS_OK)
            return full;
    }
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
        insert_slot(rebuild->index, rebuild->hashes, hash, ds__slot(offset, hash));
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

static const struct ds_record *record_in(const struct ds_segment *segment, uint64_t offset) {
    return (const struct ds_record *)(const void *)ds__segment_at(segment, offset);
}

/* `some` records from *at on, in one frame. Their slots lie anywhere: all are on their way before the first is needed. */
static ds_status index_some(struct ds_rebuild *rebuild, const struct ds_segment *segment, uint64_t frame, uint64_t *at,
                            uint32_t some) {
    uint64_t offsets[AHEAD], hashes[AHEAD];
    for (uint32_t i = 0; i < some; i++) {
        const struct ds_record *record = record_in(segment, *at);
        offsets[i] = *at;
        hashes[i] = ds__hash(rebuild->store->hash_seed, record->keyspace, ds__record_key(record), record->key_size);
        __builtin_prefetch(&rebuild->index->slots[hashes[i] & rebuild->index->mask], 1);
        __builtin_prefetch(&rebuild->hashes[hashes[i] & rebuild->index->mask], 1);
        *at += ds__record_length(record->key_size, record->value_size);
    }
    for (uint32_t i = 0; i < some; i++) {
        const struct ds_record *record = record_in(segment, offsets[i]);
        ds_status status = index_record(rebuild, offsets[i], record, hashes[i]);
        if (status != DS_OK)
            return status;
        if (ds__op_is_blob(record->op))
            rebuild->tail.last_blob = frame;
        if (ds__op_expires(record->op) && ds__record_expiry(record).written > rebuild->latest.written)
            rebuild->latest = ds__record_expiry(record);
    }
    return DS_OK;
}

static ds_status index_frame(void *context, struct ds_segment *segment, uint64_t offset, const struct ds_frame *frame) {
    struct ds_rebuild *rebuild = context;
    struct ds_tail *tail = &rebuild->tail;
    uint64_t length = ds__frame_length(frame->word0);
    if (ds__frame_type(frame->word0) == DS_FRAME_HEAD)
        return DS_OK;
    if (tail->largest_frame < length)
        tail->largest_frame = length;
    uint64_t at = offset + sizeof *frame;
    for (uint32_t left = frame->count; left > 0;) {
        uint32_t some = left < AHEAD ? left : AHEAD;
        ds_status status = index_some(rebuild, segment, offset, &at, some);
        if (status != DS_OK)
            return status;
        left -= some;
    }
    return DS_OK;
}

static uint64_t count_dead(const struct ds_segment *segment, uint64_t from) {
    const unsigned char *bytes = segment->mapping.bytes;
    uint64_t last = segment->mapping.size;
    while (last > from - segment->base && bytes[last - 1] == 0)
        last--;
    return last - (from - segment->base);
}

/* Up to where the log makes sense as far as the floor goes: a segment that nobody used may tell an end of the one before that
 * hides damage behind it, where others went on. */
static uint64_t sensible_end(ds_store *store, const struct ds_inventory *files, const struct ds_floor *floor,
                             const struct ds_log_end *end) {
    const struct ds_segment *segment = ds__segments_find(&store->segments, floor->offset), *next = NULL;
    if (segment != NULL && segment->base >= files->bases[files->first] && segment->end <= end->segment->base)
        next = ds__segments_find(&store->segments, segment->end);
    return next != NULL ? ds__segment_header(next)->before_end : end->offset;
}

/* The rule at the head of this file. */
static ds_status judge_end(ds_store *store, const struct ds_inventory *files, const struct ds_floor *floor,
                           struct ds_log_end *end) {
    /* A disk that does not give back what is there is no end of the log. */
    if (end->segment != NULL && ds__sigbus_broken(end->segment->mapping.bytes))
        return ds__fail(
            DS_IO, EIO,
            "%s: the log cannot be read at offset %llu; nothing was changed: check the disk, then repair the "
            "store",
            store->directory.path, (unsigned long long)end->offset);
    uint64_t sensible = end->segment != NULL ? sensible_end(store, files, floor, end) : 0;
    if (sensible < floor->offset || end->segment == NULL)
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the log is damaged at offset %llu, below offset %llu up to which it was safely on disk; "
                        "nothing was changed. Restore the directory from a copy, or repair the store",
                        store->directory.path, (unsigned long long)sensible, (unsigned long long)floor->offset);
    uint64_t dead = count_dead(end->segment, end->offset);
    end->torn = end->torn || dead > 0;
    end->dropped = dead;
    for (size_t i = end->segments; end->torn && i < files->count; i++)
        end->dropped += DS_SEGMENT_HEADER; /* at least; what else they held cannot be told */
    return DS_OK;
}

static ds_status read_run(ds_store *store, const struct ds_inventory *files, uint64_t limit, struct ds_rebuild *rebuild,
                          struct ds_log_end *end) {
    memset(rebuild, 0, sizeof *rebuild);
    rebuild->store = store;
    ds_status status = make_index(DS_INDEX_MIN, &rebuild->index, &rebuild->hashes);
    if (status != DS_OK)
        return status;
    status = ds__log_read(store, files, limit, index_frame, rebuild, end);
    free_hashes(rebuild);
    if (status != DS_OK) {
        ds__index_free(rebuild->index);
        rebuild->index = NULL;
    }
    return status;
}

/* The segment that begins the unbroken run which ends with number `last`. */
static size_t run_before(ds_store *store, const struct ds_inventory *files, size_t last) {
    size_t first = last;
    while (first > 0) {
        struct ds_segment *segment;
        if (ds__segments_at(&store->segments, files->bases[first - 1], &segment) != DS_OK ||
            segment->end != files->bases[first])
            break;
        first--;
    }
    return first;
}

/* May the log begin with the segment that was read first? With the first segment ever; or if a HEAD that was read says
 * that everything below it, or more, was dropped. */
static bool may_begin(const struct ds_inventory *files, const struct ds_log_end *end) {
    uint64_t base = files->bases[files->first];
    return end->segment != NULL && (base == 0 || end->head >= base);
}

/* Looks for the start of the log among the segments `first` to `last`, which follow each other, as if the log ended at `limit`.
 * Where reading from one stops before the last segment, a later one is tried: a compaction syncs only what follows its new
 * start, so after a power loss the segments before that, which were about to go, may be torn, and those before an earlier start
 * may still be there. A later start counts only with a HEAD that vouches for it, and then more than any before it; if
 * none has one, it is the log's end that is torn. */
static ds_status pick_start_in(ds_store *store, struct ds_inventory *files, size_t first, size_t last, uint64_t limit,
                               struct ds_rebuild *rebuild, struct ds_log_end *end, bool *found) {
    size_t best = last + 1; /* the latest that may begin it, but is not read to the end */
    *found = false;
    for (size_t at = first; at <= last;) {
        files->first = at;
        ds_status status = read_run(store, files, limit, rebuild, end);
        if (status != DS_OK)
            return status;
        bool may = may_begin(files, end);
        *found = may && (!end->torn || end->segments == files->count || end->segment->end > limit);
        if (*found)
            return DS_OK;
        if (may)
            best = at;
        at = end->segments > at ? end->segments : at + 1;
        ds__index_free(rebuild->index);
        rebuild->index = NULL;
    }
    if (best > last)
        return DS_OK;
    files->first = best;
    *found = true;
    return read_run(store, files, limit, rebuild, end);
}

static ds_status no_start(const ds_store *store, bool lost) {
    const char *path = store->directory.path;
    if (lost)
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the file of a large value is damaged; nothing was changed. Restore the directory from a "
                        "copy, or repair the store",
                        path);
    return ds__fail(DS_CORRUPT, 0,
                    "%s: the log's first segments are missing or damaged; nothing was changed. Restore the *.log files "
                    "from a copy",
                    path);
}

/* The last unbroken run of segments that holds a start. What lies before it are leftovers of a compaction; what lies
 * behind it is torn. A lost value tears no run: if there is no start without it, it was on disk before others went. */
static ds_status pick_start(ds_store *store, struct ds_inventory *files, uint64_t limit, struct ds_rebuild *rebuild,
                            struct ds_log_end *end) {
    size_t last = files->count - 1;
    bool lost = limit != UINT64_MAX;
    while (files->bases[last] > limit)
        last--;
    for (;;) {
        size_t first = run_before(store, files, last);
        bool found;
        ds_status status = pick_start_in(store, files, first, last, limit, rebuild, end, &found);
        if (status != DS_OK || found)
            return status;
        if (first == 0 || lost)
            return no_start(store, lost);
        last = first - 1;
    }
}

/* ---- blobs that a power loss has taken ------------------------------------------------------------------------- */

static ds_status is_lost(ds_store *store, const struct ds_blob_reference *blob, bool *lost) {
    struct ds_mapping *mapping;
    ds_status status = ds__blob_map(store, blob, false, &mapping);
    *lost = status == DS_CORRUPT; /* it is not there, or has another size */
    if (status != DS_OK)
        return *lost ? DS_OK : status;
    *lost = ds__lane_hash((uint32_t)blob->id, mapping->bytes, blob->size) != blob->hash;
    if (ds__sigbus_cut(mapping->bytes, mapping->size))
        status =
            ds__fail(DS_IO, EIO, "%s: the file of a large value cannot be read; nothing was changed: check the disk",
                     store->directory.path);
    ds__mapping_unpin(mapping);
    return status;
}

/* The first record at or above `floor` that is live and whose blob is lost; UINT64_MAX: none. Below it, blobs were on disk
 * with their commits, and are not read here: there may be any number of gigabytes. */
static ds_status first_lost(struct ds_rebuild *rebuild, uint64_t floor, uint64_t *first) {
    *first = UINT64_MAX;
    if (rebuild->tail.last_blob < floor)
        return DS_OK;
    for (uint64_t at = 0; at <= rebuild->index->mask; at++) {
        uint64_t slot = rebuild->index->slots[at], offset = ds__slot_offset(slot);
        struct ds_found found;
        if (slot == 0 || offset < floor || offset > *first)
            continue;
        ds_status status = ds__record_at(rebuild->store, offset, &found);
        bool lost = false;
        if (status == DS_OK && ds__op_is_blob(found.record->op)) {
            struct ds_blob_reference blob = ds__record_blob(found.record);
            status = is_lost(rebuild->store, &blob, &lost);
        }
        if (status != DS_OK)
            return status;
        if (lost)
            *first = offset;
    }
    return DS_OK;
}

/* The log ends before the first commit whose blob is lost. What that commit had replaced is live again then, and may be
 * lost as well. A start whose HEAD lies behind that end does not count: that HEAD was on its way to the disk, and nothing is gone
 * yet of what lies before the start. */
static ds_status read_log(ds_store *store, struct ds_inventory *files, const struct ds_floor *floor,
                          struct ds_rebuild *rebuild, struct ds_log_end *end) {
    for (uint64_t limit = UINT64_MAX, lost;; limit = lost) {
        ds_status status = pick_start(store, files, limit, rebuild, end);
        if (status == DS_OK)
            status = first_lost(rebuild, floor->offset, &lost);
        if (status != DS_OK || lost == UINT64_MAX)
            return status;
        ds__index_free(rebuild->index);
        rebuild->index = NULL;
    }
}

ds_status ds__rebuild(ds_store *store, struct ds_inventory *files, struct ds_rebuild *out) {
    struct ds_floor floor;
    struct ds_log_end end;
    memset(out, 0, sizeof *out);
    ds_status status = ds__floor_read(&store->directory, store->uuid, &floor);
    if (status == DS_OK)
        status = read_log(store, files, &floor, out, &end);
    if (status == DS_OK)
        status = judge_end(store, files, &floor, &end);
    if (status != DS_OK) {
        ds__index_free(out->index);
        out->index = NULL;
        return status;
    }
    ds__segments_drop(&store->segments, end.segment->end);
    bool clean = (floor.flags & DS_FLOOR_CLEAN) != 0 && floor.offset == end.offset;
    uint64_t sequence = floor.sequence > end.sequence ? floor.sequence : end.sequence;
    struct ds_tail *tail = &out->tail;
    tail->offset = end.offset;
    tail->segment_base = end.segment->base;
    tail->segment_size = end.segment->end - end.segment->base;
    tail->sequence = clean ? sequence : sequence + DS_SEQUENCE_GAP;
    tail->crc = end.crc;
    tail->sealed = end.torn;
    out->end = end;
    out->floor = floor;
    out->start = files->bases[files->first];
    return DS_OK;
}

/* ---- blobs that nothing names ---------------------------------------------------------------------------------- */

struct sweep {
    ds_store *store;
    uint64_t *live; /* ids, ascending */
    size_t count, room;
};

static int by_number(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static ds_status note_blobs(struct sweep *sweep, const struct ds_index *index, uint64_t *bytes) {
    for (uint64_t at = 0; at <= index->mask; at++) {
        uint64_t slot = index->slots[at];
        struct ds_found found;
        if (slot == 0)
            continue;
        ds_status status = ds__record_at(sweep->store, ds__slot_offset(slot), &found);
        if (status != DS_OK)
            return status;
        if (!ds__op_is_blob(found.record->op))
            continue;
        struct ds_blob_reference blob = ds__record_blob(found.record);
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
    if (!ds__is_blob_name(name))
        return DS_OK;
    struct ds_blob_reference blob = {.id = strtoull(name, NULL, 16)};
    if (sweep->count == 0 || bsearch(&blob.id, sweep->live, sweep->count, sizeof blob.id, by_number) == NULL)
        (void)ds__blob_remove(sweep->store, &blob);
    return DS_OK;
}

/* A process died between writing a blob and committing it, or the blob's last record is dead. */
ds_status ds__rebuild_blobs(struct ds_rebuild *rebuild, bool sweep) {
    struct sweep named = {.store = rebuild->store};
    rebuild->tail.blob_bytes = 0;
    ds_status status = note_blobs(&named, rebuild->index, &rebuild->tail.blob_bytes);
    if (status == DS_OK && sweep)
        status = ds__os_directory_list(&rebuild->store->directory, sweep_blob, &named);
    free(named.live);
    return status;
}
