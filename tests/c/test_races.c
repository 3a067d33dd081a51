/* Readers that are put to sleep in the middle of a call while the log turns over. The linker wraps functions that the call
 * comes through (ld --wrap); the first time a reader passes one, `meanwhile` happens, on another handle. */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>

#include "store.h"
#include "store_help.h"

static struct {
    const void *sleeper; /* its store, or its segments */
    size_t passed, at;   /* the how manieth time */
    void (*happens)(ds_store *other);
    ds_store *other;
    char key[16]; /* of the record that a scan came to last */
} meanwhile;

static void sleep_here(const void *who) {
    if (who != meanwhile.sleeper || ++meanwhile.passed != meanwhile.at)
        return;
    void (*happens)(ds_store *) = meanwhile.happens;
    meanwhile.happens = NULL;
    happens(meanwhile.other);
}

static void sleep_in(const void *sleeper, size_t at, ds_store *other, void (*happens)(ds_store *)) {
    meanwhile.sleeper = sleeper;
    meanwhile.passed = 0;
    meanwhile.at = at;
    meanwhile.other = other;
    meanwhile.happens = happens;
}

/* On a scan's way. */
ds_status __real_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
ds_status __wrap_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
ds_status __wrap_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out) {
    ds_status status = __real_ds__record_at(store, offset, out);
    if (store == meanwhile.sleeper && status == DS_OK && out->record->key_size < sizeof meanwhile.key) {
        memcpy(meanwhile.key, ds__record_key(out->record), out->record->key_size);
        meanwhile.key[out->record->key_size] = 0;
        sleep_here(store);
    }
    return status;
}

/* On the way of a read of several keys. */
ds_status __real_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone) {
    sleep_here(store);
    ds_status status = __real_ds__find(store, index, hash, keyspace, key, key_size, out, gone);
    sleep_here(&store->segments.writing); /* with what it found in hand */
    return status;
}

/* Where a scan looks whether it was overtaken. */
static bool always_overtaken;

bool __real_ds__scan_outdated(const ds_store *store, const struct ds_index *index, const struct ds_moment *moment);
bool __wrap_ds__scan_outdated(const ds_store *store, const struct ds_index *index, const struct ds_moment *moment);
bool __wrap_ds__scan_outdated(const ds_store *store, const struct ds_index *index, const struct ds_moment *moment) {
    return always_overtaken || __real_ds__scan_outdated(store, index, moment);
}

/* On the way of a read whose segment is not mapped. */
ds_status __real_ds__segments_get(struct ds_segments *segments, uint64_t start, uint64_t offset,
                                  struct ds_segment **out);
ds_status __wrap_ds__segments_get(struct ds_segments *segments, uint64_t start, uint64_t offset,
                                  struct ds_segment **out);
ds_status __wrap_ds__segments_get(struct ds_segments *segments, uint64_t start, uint64_t offset,
                                  struct ds_segment **out) {
    sleep_here(segments);
    return __real_ds__segments_get(segments, start, offset, out);
}

/* Until not a byte of what was there before is left. */
static void turn_over(ds_store *store) {
    static char value[4000];
    uint64_t end = stats_of(store).committed;
    while (store->control->start < end) {
        for (int i = 0; i < 500; i++)
            CHECK_OK(ds_put(store, DS_USER, "busy", 4, value, sizeof value, NULL));
        CHECK_OK(ds_compact(store));
    }
}

static char last_key[16]; /* the one that a scan comes to last */

static void delete_turn_over_and_put(ds_store *store) {
    CHECK_OK(ds_delete(store, DS_USER, last_key, strlen(last_key), NULL));
    turn_over(store);
    put(store, last_key, "new");
}

static void fill(ds_store *store) {
    put(store, "busy", "at first");
    for (int i = 0; i < 20; i++) {
        char key[16];
        snprintf(key, sizeof key, "key-%d", i);
        put(store, key, "old");
    }
}

/* The keys that a scan gives, and whether `last_key` is among them. */
static size_t scan(ds_store *store, bool *last) {
    ds_cursor *cursor;
    CHECK_OK(ds_cursor_open(store, DS_USER, &cursor));
    const void *key;
    size_t size, keys = 0;
    ds_value value;
    *last = false;
    while (ds_cursor_next(cursor, &key, &size, &value) == DS_OK) {
        *last = *last || (size == strlen(last_key) && memcmp(key, last_key, size) == 0);
        keys++;
        ds_unpin(&value);
    }
    ds_cursor_close(cursor);
    return keys;
}

/* The scanner stands before the last slot. Behind its back that key is deleted, all of the log is replaced, and the key is put
 * again: there is no way from the new record back to the old one, but the key was there all the time but for a moment. */
static void i16_a_scan_misses_no_key_that_is_put_anew(const char *dir) {
    ds_store *store = open_store(dir), *other = open_store(dir);
    bool last;
    fill(store);
    sleep_in(store, SIZE_MAX, other, NULL);
    CHECK_EQ(scan(store, &last), 21);
    size_t records = meanwhile.passed;
    strcpy(last_key, meanwhile.key);
    CHECK(strcmp(last_key, "busy") != 0);
    sleep_in(store, records - 1, other, delete_turn_over_and_put);
    CHECK_EQ(scan(store, &last), 21);
    CHECK(!meanwhile.happens);
    CHECK(last);
    CHECK_OK(ds_close(store));
    CHECK_OK(ds_close(other));
}

static void i16_several_keys_are_read_at_one_point(const char *dir) {
    ds_store *store = open_store(dir), *other = open_store(dir);
    fill(store);
    strcpy(last_key, "key-2");
    sleep_in(store, 3, other, delete_turn_over_and_put);
    const ds_bytes keys[] = {{"key-0", 5}, {"key-1", 5}, {"key-2", 5}};
    ds_value values[3];
    CHECK_OK(ds_get_many(store, DS_USER, keys, 3, values));
    CHECK(!meanwhile.happens);
    for (int i = 0; i < 3; i++) {
        CHECK(values[i].owner);
        ds_unpin(&values[i]);
    }
    CHECK_OK(ds_close(store));
    CHECK_OK(ds_close(other));
}

/* The reader knows the first segments only, when all of them and many more go. */
static void a_reader_that_fell_behind_finds_the_log_again(const char *dir) {
    ds_store *store = open_store(dir), *other = open_store(dir);
    fill(store);
    expect_value(store, "key-1", "old");
    uint64_t segment = other->control->tail.segment_base;
    while (other->control->tail.segment_base == segment)
        put(other, "key-1", "in a segment that the reader has not mapped");
    put(other, "key-1", "newer");
    sleep_in(&store->segments, 1, other, turn_over);
    expect_value(store, "key-1", "newer");
    CHECK(!meanwhile.happens);
    CHECK_OK(ds_close(store));
    CHECK_OK(ds_close(other));
}

/* ---- a compaction that stands before it drops the segments it has emptied ------------------------------------------- */

static struct {
    ds_store *store; /* whose next sync is the compaction's */
    pthread_t thread;
    sem_t stands, may_go;
} compaction;

ds_status __real_ds__sync_between(ds_store *store, uint64_t start, uint64_t to);
ds_status __wrap_ds__sync_between(ds_store *store, uint64_t start, uint64_t to);
ds_status __wrap_ds__sync_between(ds_store *store, uint64_t start, uint64_t to) {
    ds_status status = __real_ds__sync_between(store, start, to);
    if (store == compaction.store) {
        compaction.store = NULL;
        sem_post(&compaction.stands);
        sem_wait(&compaction.may_go);
    }
    return status;
}

static void *compact_in_a_thread(void *context) {
    CHECK_OK(ds_compact(context));
    return NULL;
}

static void let_the_compaction_end(ds_store *other) {
    (void)other;
    sem_post(&compaction.may_go);
    CHECK(pthread_join(compaction.thread, NULL) == 0);
}

/* Compaction drops what it has emptied without the writer lock. A writer that looks for its key's record on the way from the
 * old start of the log must not take it for compacted away: it may not look the key up again under its lock. */
static void a_writer_finds_its_record_while_the_start_moves(const char *dir) {
    ds_store *store = open_store(dir), *other = open_store(dir);
    put(store, "key", "old");
    uint64_t segment = other->control->tail.segment_base;
    for (int segments = 0; segments < 3; segment = other->control->tail.segment_base, segments++)
        while (other->control->tail.segment_base == segment)
            put(other, "busy", "so that there are segments that only the other one has mapped");
    CHECK(sem_init(&compaction.stands, 0, 0) == 0 && sem_init(&compaction.may_go, 0, 0) == 0);
    compaction.store = other;
    CHECK(pthread_create(&compaction.thread, NULL, compact_in_a_thread, other) == 0);
    sem_wait(&compaction.stands);
    sleep_in(&store->segments, 1, other, let_the_compaction_end);
    ds_change changes[] = {change_put("key", "new")};
    CHECK_OK(ds_commit(store, changes, 1, NULL));
    CHECK(!meanwhile.happens);
    expect_value(other, "key", "new");
    CHECK_EQ(stats_of(other).keys[DS_USER], 2);
    CHECK_OK(ds_verify(other, NULL));
    CHECK_OK(ds_close(store));
    CHECK_OK(ds_close(other));
}

/* What another process does between moving the start and unlinking. The writer sleeps with the writer lock held. */
static void read_while_the_start_has_moved(ds_store *store) {
    uint64_t start = store->control->start;
    ds_value value;
    store->control->start = store->control->tail.segment_base;
    for (int i = 0; i < 10; i++) /* each would unmap what is below it */
        CHECK_IS(ds_get(store, DS_USER, "nothing", 7, &value), DS_MISSING);
    CHECK(store->segments.limbo != NULL); /* but for the writer, who looks at the first of them */
    store->control->start = start;
}

static void a_writer_keeps_mapped_what_it_has_found(const char *dir) {
    static char value[4000];
    ds_store *store = open_store(dir);
    put(store, "first", "old");
    for (int i = 0; i < 100; i++)
        CHECK_OK(ds_put(store, DS_USER, "other", 5, value, sizeof value, NULL));
    CHECK(store->control->tail.segment_base > 0 && store->control->start == 0);
    sleep_in(&store->segments.writing, 1, store, read_while_the_start_has_moved);
    put(store, "first", "new");
    CHECK(meanwhile.happens == NULL);
    expect_value(store, "first", "new");
    CHECK(store->segments.limbo == NULL); /* the writer has gone, and the next call did it */
    CHECK_OK(ds_close(store));
}

/* Only a hostile process can go on changing the control page while another has the writer lock. It gets no scan that is half
 * one, and a read-only handle, which cannot take that lock, does not try for ever. */
static void i28_a_scan_that_is_always_overtaken_ends(const char *dir) {
    ds_cursor *cursor;
    ds_value value;
    ds_bytes key = {"key", 3};
    ds_options options = options_default();
    ds_store *store = open_store(dir);
    put(store, "key", "value");
    options.read_only = true;
    ds_store *reader = open_with(dir, options);
    always_overtaken = true;
    CHECK_IS(ds_cursor_open(store, DS_USER, &cursor), DS_CORRUPT);
    CHECK_IS(ds_get_many(store, DS_USER, &key, 1, &value), DS_CORRUPT);
    CHECK_IS(ds_cursor_open(reader, DS_USER, &cursor), DS_TIMEOUT);
    CHECK_IS(ds_get_many(reader, DS_USER, &key, 1, &value), DS_TIMEOUT);
    always_overtaken = false;
    CHECK_OK(ds_cursor_open(reader, DS_USER, &cursor));
    ds_cursor_close(cursor);
    CHECK_OK(ds_close(reader));
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i16_a_scan_misses_no_key_that_is_put_anew),     TEST(i16_several_keys_are_read_at_one_point),
        TEST(a_reader_that_fell_behind_finds_the_log_again), TEST(a_writer_finds_its_record_while_the_start_moves),
        TEST(a_writer_keeps_mapped_what_it_has_found),       TEST(i28_a_scan_that_is_always_overtaken_ends),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
