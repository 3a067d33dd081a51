/* cursor.c: all keys of a keyspace as they stood at one point, in the order of the log.
 *
 * Opening collects the offsets of the records that a reader at `limit` may see and pins their segments; what follows
 * needs no lock and nothing that writers or compaction could take away. Sorted by offset, so that a scan reads memory
 * forwards: walking the index instead jumps from record to record, three times as slow at a million keys. */
#include "store.h"

#include <errno.h>
#include <stdlib.h>

enum { TRIES = 3 };

struct ds_cursor {
    ds_store *store;
    uint64_t *offsets;
    size_t count, room, next;
    struct ds_segment **pinned; /* by base, as `offsets` */
    size_t pins, at;
};

static ds_status collect(ds_cursor *cursor, uint64_t offset) {
    if (cursor->count == cursor->room) {
        size_t room = cursor->room ? 2 * cursor->room : 256;
        uint64_t *offsets = realloc(cursor->offsets, room * sizeof *offsets);
        if (offsets == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
        cursor->offsets = offsets;
        cursor->room = room;
    }
    cursor->offsets[cursor->count++] = offset;
    return DS_OK;
}

static int by_offset(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static ds_status pin_segments(ds_cursor *cursor) {
    uint64_t end = 0;
    cursor->pins = 0;
    for (size_t i = 0; i < cursor->count; i++) {
        struct ds_segment *segment;
        if (cursor->offsets[i] < end)
            continue;
        ds_status status = ds__segment_of(cursor->store, cursor->offsets[i], &segment);
        if (status != DS_OK)
            return status;
        struct ds_segment **pinned = realloc(cursor->pinned, (cursor->pins + 1) * sizeof(struct ds_segment *));
        if (pinned == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
        cursor->pinned = pinned;
        ds__mapping_pin(&segment->mapping);
        pinned[cursor->pins++] = segment;
        end = segment->end;
    }
    return DS_OK;
}

static void unpin_segments(ds_cursor *cursor) {
    while (cursor->pins > 0)
        ds__mapping_unpin(&cursor->pinned[--cursor->pins]->mapping);
}

static ds_status collect_all(ds_cursor *cursor, uint8_t keyspace, const struct ds_index *index, uint64_t limit,
                             bool *gone) {
    ds_store *store = cursor->store;
    for (uint64_t at = 0; at <= index->mask; at++) {
        uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_acquire);
        struct ds_found found;
        if (slot == 0 || slot == DS_SLOT_GONE)
            continue;
        ds_status status = ds__record_at(store, ds__slot_offset(slot), &found);
        if (status == DS_OK && !ds__record_header_valid(found.segment->seed, found.offset, found.record))
            return ds__record_verify(store, &found); /* says so */
        if (status == DS_OK && found.record->keyspace != keyspace)
            continue;
        if (status == DS_OK)
            status = ds__step_back(store, limit, &found, gone);
        else if (status == DS_MISSING)
            *gone = true;
        if (*gone || (status != DS_OK && status != DS_MISSING))
            return status;
        if (status == DS_OK)
            status = collect(cursor, found.offset);
        if (status != DS_OK && status != DS_MISSING)
            return status;
    }
    return DS_OK;
}

/* One try. *gone: an index was replaced or a version compacted away; nothing is pinned then. */
static ds_status try_open(ds_cursor *cursor, uint8_t keyspace, bool *gone) {
    ds_store *store = cursor->store;
    struct ds_index *index;
    cursor->count = 0;
    *gone = false;
    ds_status status = ds__index_now(store, &index);
    if (status != DS_OK)
        return status;
    uint64_t limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
    status = collect_all(cursor, keyspace, index, limit, gone);
    status = ds__intact(store, status);
    if (status == DS_OK && cursor->count > 1)
        qsort(cursor->offsets, cursor->count, sizeof *cursor->offsets, by_offset);
    if (status == DS_OK && !*gone)
        status = pin_segments(cursor);
    if (status == DS_MISSING)
        *gone = true;
    if (ds__scan_outdated(store, index, limit))
        *gone = true;
    if (*gone)
        unpin_segments(cursor);
    return status;
}

static ds_status open_cursor(ds_cursor *cursor, uint8_t keyspace) {
    bool gone = true;
    ds_status status = DS_OK;
    for (int i = 0; gone && i < TRIES; i++)
        status = try_open(cursor, keyspace, &gone);
    if (!gone)
        return status;
    if (cursor->store->options.read_only) {
        for (int i = 0; gone && i < 1000; i++) {
            ds__os_sleep_ms(1);
            status = try_open(cursor, keyspace, &gone);
        }
        return gone ? ds__fail(DS_TIMEOUT, 0, "%s: the log moved on during each of many scans",
                               cursor->store->directory.path)
                    : status;
    }
    /* Under the lock nothing moves: this try is the last. */
    status = ds__writer_enter(cursor->store);
    if (status != DS_OK)
        return status;
    status = try_open(cursor, keyspace, &gone);
    ds__writer_leave(cursor->store);
    return gone && status == DS_MISSING
               ? ds__fail(DS_CORRUPT, 0, "%s: the index names records that are gone", cursor->store->directory.path)
               : status;
}

ds_status ds_cursor_open(ds_store *store, uint8_t keyspace, ds_cursor **out) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES)
        return ds__fail(DS_INVALID, 0, "keyspace %u: there are %d", keyspace, DS_KEYSPACES);
    ds_cursor *cursor = calloc(1, sizeof *cursor);
    if (cursor == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    cursor->store = store;
    ds__enter(store);
    status = open_cursor(cursor, keyspace);
    ds__leave(store);
    if (status != DS_OK) {
        ds_cursor_close(cursor);
        return status;
    }
    *out = cursor;
    return DS_OK;
}

ds_status ds_cursor_next(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value) {
    ds_status status = ds__check(cursor->store);
    if (status != DS_OK)
        return status;
    if (cursor->next == cursor->count)
        return DS_MISSING;
    uint64_t offset = cursor->offsets[cursor->next++];
    while (offset >= cursor->pinned[cursor->at]->end)
        cursor->at++;
    struct ds_segment *segment = cursor->pinned[cursor->at];
    struct ds_found found = {.offset = offset, .segment = segment};
    found.record = (const struct ds_record *)(const void *)ds__segment_at(segment, offset);
    status = ds__give(cursor->store, &found, value);
    if (status == DS_OK) {
        *key = ds__record_key(found.record);
        *key_size = found.record->key_size;
        status = ds__record_still_there(cursor->store, &found);
        if (status != DS_OK)
            ds_unpin(value);
    }
    return status;
}

void ds_cursor_close(ds_cursor *cursor) {
    unpin_segments(cursor);
    free(cursor->pinned);
    free(cursor->offsets);
    free(cursor);
}
