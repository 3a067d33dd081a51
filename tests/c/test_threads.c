/* Threads on one handle (T10): reads, writes, scans, waits, changes and compaction at once. Worth most under the thread
 * sanitizer (preset tsan), which sees every access that no lock and no atomic orders; elsewhere it checks what they read.
 *
 * Each thread counts operations, not time, so the amount of work is the same on any machine. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "store_help.h"

enum { KEYS = 24, WRITERS = 3, ROUNDS = 1500 };

typedef struct team {
    ds_store *store;
    atomic_uint working; /* writers that are not done */
    atomic_uint number;
} team;

static size_t name_of(char name[16], unsigned key) {
    return (size_t)snprintf(name, 16, "key %u", key);
}

/* Eight equal bytes, then as many more of them: what is torn shows. */
static void check_whole(const ds_value *value) {
    const unsigned char *bytes = value->data;
    for (size_t i = 1; i < value->size; i++)
        if (bytes[i] != bytes[0])
            CHECK(!"a value is torn");
}

static void *write_some(void *context) {
    team *t = context;
    uint64_t random = atomic_fetch_add(&t->number, 1);
    unsigned char bytes[6000];
    char name[16], other[16];
    for (unsigned i = 0; i < ROUNDS; i++) {
        memset(bytes, (int)check_below(&random, 256), sizeof bytes);
        size_t size = check_below(&random, 16) ? check_below(&random, 200) : check_below(&random, sizeof bytes);
        size_t name_size = name_of(name, (unsigned)check_below(&random, KEYS));
        size_t other_size = name_of(other, (unsigned)check_below(&random, 100000));
        ds_change changes[] = {
            {.kind = DS_PUT, .key = name, .key_size = name_size, .value = bytes, .value_size = size},
            {.kind = i % 2 ? DS_DELETE : DS_PUT,
             .keyspace = DS_RUNTIME,
             .key = other,
             .key_size = other_size,
             .value = bytes,
             .value_size = 9},
        };
        ds_status status = DS_OK;
        switch (check_below(&random, 8)) {
        case 0:
            status = ds_delete(t->store, DS_USER, name, name_size, NULL);
            break;
        case 1:
            status = ds_put(t->store, DS_USER, name, name_size, bytes, size, NULL);
            break;
        default:
            status = ds_commit(t->store, changes, 2, NULL);
        }
        if (status != DS_MISSING)
            CHECK_OK(status);
    }
    atomic_fetch_sub(&t->working, 1);
    return NULL;
}

static void *read_some(void *context) {
    team *t = context;
    uint64_t random = 100 + atomic_fetch_add(&t->number, 1);
    char names[4][16];
    while (atomic_load(&t->working)) {
        ds_bytes keys[4];
        ds_value values[4];
        for (unsigned i = 0; i < 4; i++)
            keys[i] = (ds_bytes){names[i], name_of(names[i], (unsigned)check_below(&random, KEYS))};
        CHECK_OK(ds_get_many(t->store, DS_USER, keys, 4, values));
        for (unsigned i = 0; i < 4; i++)
            if (values[i].owner) {
                check_whole(&values[i]);
                ds_unpin(&values[i]);
            }
        ds_status status = ds_get(t->store, DS_USER, keys[0].data, keys[0].size, &values[0]);
        if (status == DS_MISSING)
            continue;
        CHECK_OK(status);
        check_whole(&values[0]);
        ds_pin(&values[0]);
        ds_unpin(&values[0]);
        ds_unpin(&values[0]);
    }
    return NULL;
}

static void *walk_some(void *context) {
    team *t = context;
    while (atomic_load(&t->working)) {
        ds_cursor *cursor;
        const void *key;
        size_t size, seen = 0;
        ds_value value;
        CHECK_OK(ds_cursor_open(t->store, DS_USER, &cursor));
        while (ds_cursor_next(cursor, &key, &size, &value) == DS_OK) {
            check_whole(&value);
            ds_unpin(&value);
            seen++;
        }
        CHECK(seen <= KEYS);
        ds_cursor_close(cursor);
        CHECK(stats_of(t->store).sequence > 0);
    }
    return NULL;
}

static void *follow(void *context) {
    team *t = context;
    uint64_t after = 0;
    while (atomic_load(&t->working)) {
        ds_changes *changes;
        ds_change_told told;
        ds_status status = ds_wait(t->store, DS_USER, "key", 3, true, after, 20, &after);
        if (status != DS_TIMEOUT)
            CHECK_OK(status);
        status = ds_changes_open(t->store, DS_USER, after, &changes);
        if (status == DS_OK) {
            while ((status = ds_changes_next(changes, &told)) == DS_OK) {
                after = told.sequence;
                if (told.value.owner) {
                    check_whole(&told.value);
                    ds_unpin(&told.value);
                }
            }
            ds_changes_close(changes);
        }
        CHECK(status == DS_MISSING || status == DS_COMPACTED);
        status = ds_wait(t->store, DS_USER, "key 3", 5, false, after, 5, NULL);
        CHECK(status == DS_OK || status == DS_TIMEOUT);
    }
    return NULL;
}

static void *tidy(void *context) {
    team *t = context;
    while (atomic_load(&t->working)) {
        CHECK_OK(ds_compact(t->store));
        CHECK_OK(ds_sync(t->store));
        CHECK_OK(ds_settle(t->store, NULL));
    }
    return NULL;
}

static void run(const char *dir, ds_durability durability) {
    ds_options options = options_default();
    options.durability = durability;
    options.group_ms = 5;
    team t = {.store = open_with(dir, options), .working = WRITERS};
    put(t.store, "key 0", "");
    void *(*const roles[])(void *) = {write_some, write_some, write_some, read_some, read_some,
                                      read_some,  walk_some,  follow,     tidy};
    pthread_t threads[CHECK_COUNT(roles)];
    for (size_t i = 0; i < CHECK_COUNT(roles); i++)
        CHECK(pthread_create(&threads[i], NULL, roles[i], &t) == 0);
    for (size_t i = 0; i < CHECK_COUNT(roles); i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK_OK(ds_verify(t.store, NULL));
    CHECK_OK(ds_close(t.store));
}

static void threads_share_a_handle(const char *dir) {
    run(dir, DS_PROCESS);
}

static void threads_share_a_handle_that_syncs(const char *dir) {
    run(dir, DS_GROUP);
}

static void *get_first(void *context) {
    expect_value(context, "key", "value");
    return NULL;
}

/* The first look at a segment and at the index maps them: by several threads at once. */
static void threads_map_what_is_new_to_all(const char *dir) {
    ds_store *writer = open_store(dir);
    put(writer, "key", "value");
    for (unsigned i = 0; i < 20; i++) {
        ds_store *store = open_store(dir);
        pthread_t threads[4];
        for (size_t k = 0; k < 4; k++)
            CHECK(pthread_create(&threads[k], NULL, get_first, store) == 0);
        for (size_t k = 0; k < 4; k++)
            CHECK(pthread_join(threads[k], NULL) == 0);
        CHECK_OK(ds_close(store));
    }
    CHECK_OK(ds_close(writer));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(threads_share_a_handle),
        TEST(threads_share_a_handle_that_syncs),
        TEST(threads_map_what_is_new_to_all),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
