/* cursor.c: all keys of a keyspace as they stood at one point, in the order of the log.
 *
 * Opening collects the offsets of the records that a reader at `limit` may see and pins their segments; what follows
 * needs no lock and nothing that writers or compaction could take away. The index is read from its beginning to its end, its
 * offsets are sorted, and only then the records are looked at: so each is met in the order of the log, twice, and memory is
 * read forwards. Looking at a record for each slot instead jumps through the whole log, which was three times as slow
 * at a million keys. */
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
    ds_value lent;     /* by ds_cursor_peek(); of a blob it has an owner */
    uint64_t deadline; /* of the key that ds_cursor_next() gave last; 0: it has none */
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

/* ---- in the order of the log ----------------------------------------------------------------------------------- */

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

static int by_offset(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Stable, by one digit: the bits from `shift` on. */
static void distribute(const uint64_t *from, uint64_t *to, size_t count, unsigned shift) {
    size_t place[DIGITS] = {0}, sum = 0;
    for (size_t i = 0; i < count; i++)
        place[from[i] >> shift & (DIGITS - 1)]++;
    for (size_t digit = 0; digit < DIGITS; digit++) {
        size_t here = place[digit];
        place[digit] = sum;
        sum += here;
    }
    for (size_t i = 0; i < count; i++)
        to[place[from[i] >> shift & (DIGITS - 1)]++] = from[i];
}

/* Many by their digits, a fifth of qsort()'s time at a million; few, or without memory for a second array, by qsort(). */
static void sort(uint64_t *offsets, size_t count) {
    uint64_t highest = 0;
    uint64_t *spare = count > DIGITS ? malloc(count * sizeof *spare) : NULL;
    if (spare == NULL) {
        if (count > 1)
            qsort(offsets, count, sizeof *offsets, by_offset);
        return;
    }
    for (size_t i = 0; i < count; i++)
        highest |= offsets[i];
    uint64_t *from = offsets, *to = spare;
    for (unsigned shift = 3; shift < 64 && highest >> shift != 0; shift += DIGIT_BITS) {
        distribute(from, to, count, shift);
        uint64_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != offsets)
        memcpy(offsets, from, count * sizeof *offsets);
    free(spare);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

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

/* The offset in every slot, whatever lies there. */
static ds_status collect_slots(ds_cursor *cursor, const struct ds_index *index) {
    ds_status status = DS_OK;
    for (uint64_t at = 0; status == DS_OK && at <= index->mask; at++) {
        uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_acquire);
        if (slot != 0 && slot != DS_SLOT_GONE)
            status = collect(cursor, ds__slot_offset(slot));
    }
    return status;
}

/* From a slot's offset to that of the version which is to be seen. DS_MISSING: there is none, or it is another keyspace's. */
static ds_status see(ds_store *store, uint8_t keyspace, struct ds_moment *moment, uint64_t *offset, bool *gone) {
    struct ds_found found;
    ds_status status = ds__record_at(store, *offset, &found);
    if (status == DS_MISSING)
        *gone = true;
    if (status != DS_OK)
        return status;
    if (!ds__record_header_valid(found.segment->seed, found.offset, found.record))
        return ds__record_verify(store, &found); /* says so */
    if (found.record->keyspace != keyspace)
        return DS_MISSING;
    status = ds__step_back(store, moment->limit, &found, gone);
    *offset = found.offset;
    return status == DS_OK && ds__op_expires(found.record->op) ? ds__missing_at(store, &found, moment) : status;
}

static ds_status collect_all(ds_cursor *cursor, uint8_t keyspace, const struct ds_index *index,
                             struct ds_moment *moment, bool *gone) {
    ds_status status = collect_slots(cursor, index);
    if (status != DS_OK)
        return status;
    size_t collected = cursor->count;
    bool stepped = false;
    sort(cursor->offsets, collected);
    cursor->count = 0;
    for (size_t i = 0; i < collected; i++) {
        uint64_t offset = cursor->offsets[i];
        status = see(cursor->store, keyspace, moment, &offset, gone);
        if (*gone || moment->untimed || (status != DS_OK && status != DS_MISSING))
            return status;
        if (status == DS_OK) {
            stepped = stepped || offset != cursor->offsets[i];
            cursor->offsets[cursor->count++] = offset;
        }
    }
    if (stepped)
        sort(cursor->offsets, cursor->count);
    return DS_OK;
}

/* One try. *gone: an index was replaced or a version compacted away; nothing is pinned then. */
static ds_status try_timed(ds_cursor *cursor, uint8_t keyspace, bool timed, bool *untimed, bool *gone) {
    struct ds_moment moment;
    ds_store *store = cursor->store;
    struct ds_index *index;
    cursor->count = 0;
    ds_status status = ds__moment_begin(store, timed, &index, &moment, gone);
    if (status != DS_OK || *gone)
        return status;
    status = collect_all(cursor, keyspace, index, &moment, gone);
    *untimed = moment.untimed;
    if (*untimed)
        return DS_OK;
    status = ds__intact(store, status);
    if (status == DS_OK && !*gone)
        status = pin_segments(cursor);
    if (status == DS_MISSING)
        *gone = true;
    if (ds__scan_outdated(store, index, &moment))
        *gone = true;
    if (*gone)
        unpin_segments(cursor);
    return status;
}

static ds_status try_open(ds_cursor *cursor, uint8_t keyspace, bool *gone) {
    bool untimed = false;
    *gone = false;
    ds_status status = try_timed(cursor, keyspace, false, &untimed, gone);
    return untimed ? try_timed(cursor, keyspace, true, &untimed, gone) : status;
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
    return gone && (status == DS_OK || status == DS_MISSING)
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

ds_status ds_count(ds_store *store, uint8_t keyspace, uint64_t *count) {
    struct ds_segment *segment;
    ds_cursor *cursor;
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES)
        return ds__fail(DS_INVALID, 0, "keyspace %u: there are %d", keyspace, DS_KEYSPACES);
    ds__enter(store);
    uint64_t limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
    status = ds__segment_of(store, limit - 1, &segment);
    /* Where the newest segment is not for records that expire, none is. */
    bool exact = status == DS_OK && (ds__segment_header(segment)->incompat & DS_EXPIRY_INCOMPAT) == 0;
    ds__leave(store);
    if (exact) {
        *count = ds__word_load(&store->control->tail.keys[keyspace]);
        return ds__intact(store, DS_OK);
    }
    status = ds_cursor_open(store, keyspace, &cursor);
    if (status == DS_OK) {
        *count = cursor->count;
        ds_cursor_close(cursor);
    }
    return status;
}

/* ---- walking --------------------------------------------------------------------------------------------------- */

static ds_status next(ds_cursor *cursor, struct ds_found *found) {
    ds_status status = ds__check(cursor->store);
    if (status != DS_OK)
        return status;
    if (cursor->next == cursor->count)
        return DS_MISSING;
    found->offset = cursor->offsets[cursor->next++];
    while (found->offset >= cursor->pinned[cursor->at]->end)
        cursor->at++;
    found->segment = cursor->pinned[cursor->at];
    found->record = (const struct ds_record *)(const void *)ds__segment_at(found->segment, found->offset);
    return DS_OK;
}

ds_status ds_cursor_peek(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value) {
    struct ds_found found;
    if (cursor->lent.owner != NULL)
        ds_unpin(&cursor->lent);
    cursor->lent.owner = NULL;
    ds_status status = next(cursor, &found);
    if (status == DS_OK)
        status = ds__lend(cursor->store, &found, value);
    if (status != DS_OK)
        return status;
    cursor->lent = *value;
    *key = ds__record_key(found.record);
    *key_size = found.record->key_size;
    return ds__record_still_there(cursor->store, &found);
}

ds_status ds_cursor_next(ds_cursor *cursor, const void **key, size_t *key_size, ds_value *value) {
    struct ds_found found;
    ds_status status = next(cursor, &found);
    if (status == DS_OK)
        status = ds__give(cursor->store, &found, value);
    if (status != DS_OK)
        return status;
    *key = ds__record_key(found.record);
    *key_size = found.record->key_size;
    cursor->deadline = 0;
    if (ds__op_expires(found.record->op)) {
        struct ds_expiry expiry;
        memcpy(&expiry, ds__record_value(found.record, found.record->key_size), sizeof expiry);
        cursor->deadline = expiry.deadline;
    }
    status = ds__record_still_there(cursor->store, &found);
    if (status != DS_OK)
        ds_unpin(value);
    return status;
}

uint64_t ds_cursor_ttl(const ds_cursor *cursor) {
    if (cursor->deadline == 0)
        return 0;
    uint64_t now = ds__clock_now(cursor->store->control);
    return cursor->deadline > now ? cursor->deadline - now : 1; /* it was there when the cursor was opened */
}

void ds_cursor_close(ds_cursor *cursor) {
    if (cursor->lent.owner != NULL)
        ds_unpin(&cursor->lent);
    unpin_segments(cursor);
    free(cursor->pinned);
    free(cursor->offsets);
    free(cursor);
}
