/* changes.c: the commits after a sequence, in their order, read from the log.
 *
 * Every segment's header tells the highest sequence given out before it, so the place to begin is found by going back
 * from the tail. A follower that keeps up never leaves the last segment. What compaction has dropped cannot be told any
 * more: then the answer is DS_COMPACTED, and the caller starts over from a scan of all keys. */
#include "store.h"

#include <errno.h>
#include <stdlib.h>

struct ds_changes {
    ds_store *store;
    struct ds_segment *segment; /* pinned */
    uint64_t offset;            /* of the next frame */
    uint64_t after;             /* commits up to this sequence have been told */
    uint64_t now;               /* of the store's clock, for the commit that is being told; 0: not asked yet */
    uint64_t record;            /* offset of the next record in the frame that is being told, 0: none is */
    uint32_t left;              /* records of it that are still to be told */
    uint8_t keyspace;
};

static ds_status compacted(const ds_changes *changes) {
    return ds__fail(DS_COMPACTED, 0,
                    "%s: commits after sequence %llu were compacted away; read all keys and go on from there",
                    changes->store->directory.path, (unsigned long long)changes->after);
}

static void hold(ds_changes *changes, struct ds_segment *segment) {
    ds__mapping_pin(&segment->mapping);
    if (changes->segment != NULL)
        ds__mapping_unpin(&changes->segment->mapping);
    changes->segment = segment;
    changes->offset = segment->base + DS_SEGMENT_HEADER;
}

/* The last segment before which nothing after `after` was committed. */
static ds_status begin(ds_changes *changes) {
    ds_store *store = changes->store;
    uint64_t limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
    struct ds_segment *segment;
    ds_status status = ds__segment_of(store, limit - 1, &segment);
    while (status == DS_OK && ds__segment_header(segment)->before_sequence > changes->after) {
        uint64_t start = atomic_load_explicit(&store->control->start, memory_order_acquire);
        if (segment->base <= start)
            return compacted(changes);
        uint64_t before = ds__segment_header(segment)->before_base;
        if (before >= segment->base) /* or we might go round in circles */
            return ds__fail(DS_CORRUPT, 0, "%s: the segment at log offset %llu names itself or a later one before it",
                            store->directory.path, (unsigned long long)segment->base);
        status = ds__segments_at(&store->segments, before, &segment);
    }
    if (status == DS_MISSING)
        return compacted(changes);
    if (status == DS_OK)
        hold(changes, segment);
    return status;
}

ds_status ds_changes_open(ds_store *store, uint8_t keyspace, uint64_t after, ds_changes **out) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES)
        return ds__fail(DS_INVALID, 0, "keyspace %u: there are %d", keyspace, DS_KEYSPACES);
    ds_changes *changes = calloc(1, sizeof *changes);
    if (changes == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    changes->store = store;
    changes->after = after;
    changes->keyspace = keyspace;
    ds__enter(store);
    status = begin(changes);
    ds__leave(store);
    if (status != DS_OK) {
        free(changes);
        return status;
    }
    *out = changes;
    return DS_OK;
}

/* Where the frames of the held segment end, as far as they are committed. *more: other segments follow. */
static ds_status frames_end(ds_changes *changes, uint64_t limit, struct ds_segment **successor, uint64_t *end) {
    *successor = NULL;
    *end = limit;
    if (limit <= changes->segment->end)
        return DS_OK;
    ds_status status = ds__segments_at(&changes->store->segments, changes->segment->end, successor);
    if (status == DS_OK)
        *end = ds__segment_header(*successor)->before_end;
    return status == DS_MISSING ? compacted(changes) : status;
}

/* Moves on to the next commit that is to be told. DS_MISSING: there is none yet. */
static ds_status next_commit(ds_changes *changes) {
    uint64_t limit = atomic_load_explicit(&changes->store->control->committed, memory_order_acquire);
    for (;;) {
        struct ds_segment *successor;
        uint64_t end;
        ds_status status = frames_end(changes, limit, &successor, &end);
        if (status != DS_OK)
            return status;
        if (changes->offset >= end) {
            if (successor == NULL)
                return DS_MISSING;
            hold(changes, successor);
            continue;
        }
        const struct ds_frame *frame =
            (const struct ds_frame *)(const void *)ds__segment_at(changes->segment, changes->offset);
        uint64_t at = changes->offset;
        if (!ds__frame_well_formed(frame, frame->word0, changes->segment->end - at))
            return ds__fail(DS_CORRUPT, 0, "%s: the frame at log offset %llu is damaged",
                            changes->store->directory.path, (unsigned long long)at);
        changes->offset += ds__frame_length(frame->word0);
        if (ds__frame_type(frame->word0) != DS_FRAME_COMMIT || frame->sequence <= changes->after)
            continue;
        changes->after = frame->sequence;
        changes->now = 0;
        changes->record = at + sizeof *frame;
        changes->left = frame->count;
        return DS_OK;
    }
}

static ds_status tell(ds_changes *changes, ds_change_told *out) {
    struct ds_found found = {.offset = changes->record, .segment = changes->segment};
    found.record = (const struct ds_record *)(const void *)ds__segment_at(changes->segment, changes->record);
    const struct ds_record *record = found.record;
    *out = (ds_change_told){.sequence = record->sequence,
                            .kind = record->op == DS_RECORD_TOMBSTONE ? DS_DELETE : DS_PUT,
                            .key = ds__record_key(record),
                            .key_size = record->key_size};
    ds_status status = ds__record_verify(changes->store, &found);
    if (status == DS_OK && ds__op_expires(record->op)) {
        bool expired = false;
        if (changes->now == 0) /* once for a commit: what has one deadline goes together */
            changes->now = ds__clock_now(changes->store->control);
        status = ds__expired(changes->store, &found, changes->now, &expired);
        if (expired)
            out->kind = DS_DELETE;
    }
    if (status == DS_OK && out->kind == DS_PUT)
        status = ds__give(changes->store, &found, &out->value);
    /* The blob of an overwritten value goes with compaction, before its record does. */
    if (status == DS_CORRUPT && ds__op_is_blob(record->op))
        status = compacted(changes);
    return status;
}

static bool wanted(const ds_changes *changes) {
    const struct ds_record *record =
        (const struct ds_record *)(const void *)ds__segment_at(changes->segment, changes->record);
    return record->keyspace == changes->keyspace;
}

/* Does the present record lie within its segment? Its frame was checked, but perhaps in an earlier call, and a hostile
 * writer may have been here since. Each size is read once. */
static bool is_within(const ds_changes *changes, uint64_t *length) {
    uint64_t room = changes->segment->end - changes->record;
    if (room < sizeof(struct ds_record))
        return false;
    const struct ds_record *record =
        (const struct ds_record *)(const void *)ds__segment_at(changes->segment, changes->record);
    uint64_t key_size = record->key_size, value_size = record->value_size;
    if (key_size > room || value_size > room)
        return false;
    *length = ds__record_length(key_size, value_size);
    return *length <= room;
}

static void skip(ds_changes *changes, uint64_t length) {
    changes->record += length;
    changes->left--;
}

/* Is there another of the keyspace behind the present record? */
static bool is_last(const ds_changes *changes) {
    ds_changes ahead = *changes;
    uint64_t length;
    while (is_within(&ahead, &length)) {
        skip(&ahead, length);
        if (ahead.left == 0 || !is_within(&ahead, &length))
            return true;
        if (wanted(&ahead))
            return false;
    }
    return true;
}

static ds_status next_change(ds_changes *changes, ds_change_told *out) {
    for (;;) {
        uint64_t length;
        ds_status status = DS_OK;
        if (changes->left == 0) {
            status = next_commit(changes);
            if (status != DS_OK)
                return status;
            continue;
        }
        if (!is_within(changes, &length))
            return ds__fail(DS_CORRUPT, 0, "%s: the record at log offset %llu does not fit into its segment",
                            changes->store->directory.path, (unsigned long long)changes->record);
        bool told = wanted(changes);
        if (told)
            status = tell(changes, out);
        if (status != DS_OK)
            return status;
        if (told)
            out->last = is_last(changes);
        skip(changes, length);
        if (told)
            return DS_OK;
    }
}

ds_status ds_changes_next(ds_changes *changes, ds_change_told *out) {
    ds_status status = ds__check(changes->store);
    if (status != DS_OK)
        return status;
    ds__enter(changes->store);
    status = next_change(changes, out);
    if (status != DS_OK)
        status = ds__intact(changes->store, status);
    ds__leave(changes->store);
    return status;
}

uint64_t ds__changes_told(const ds_changes *changes) {
    return changes->after;
}

void ds_changes_close(ds_changes *changes) {
    if (changes->segment != NULL)
        ds__mapping_unpin(&changes->segment->mapping);
    free(changes);
}
