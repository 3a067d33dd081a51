/* One handle, one process: what put, get, delete, commit, expect and the cursor promise. */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "store_help.h"

static void a_value_comes_back(const char *dir) {
    ds_store *store = open_store(dir);
    expect_value(store, "pose", NULL);
    uint64_t first = put(store, "pose", "north");
    CHECK_EQ(expect_value(store, "pose", "north"), first);
    uint64_t second = put(store, "pose", "south-west");
    CHECK(second > first);
    CHECK_EQ(expect_value(store, "pose", "south-west"), second);
    expect_value(store, "pos", NULL);
    expect_value(store, "pose ", NULL);
    CHECK_OK(ds_close(store));
}

static void a_deleted_key_is_missing(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t before = put(store, "a", "1"), sequence = 0;
    put(store, "b", "2");
    CHECK_OK(ds_delete(store, DS_USER, "a", 1, &sequence));
    CHECK(sequence > before);
    expect_value(store, "a", NULL);
    expect_value(store, "b", "2");
    CHECK_IS(ds_delete(store, DS_USER, "a", 1, &sequence), DS_MISSING);
    CHECK_IS(ds_delete(store, DS_USER, "never", 5, &sequence), DS_MISSING);
    put(store, "a", "3");
    expect_value(store, "a", "3");
    CHECK_EQ(stats_of(store).keys[DS_USER], 2);
    CHECK_OK(ds_close(store));
}

static void empty_and_binary_keys_and_values_are_ordinary(const char *dir) {
    static const struct {
        const char *key;
        size_t key_size;
        const char *value;
        size_t value_size;
    } rows[] = {
        {"", 0, "empty key", 9}, {"\0", 1, "", 0}, {"\0\0", 2, "\0", 1}, {"a", 1, "", 0}, {"a\0", 2, "\0\xff", 2}};
    ds_store *store = open_store(dir);
    for (int reopened = 0; reopened < 2; reopened++) {
        for (size_t i = 0; i < CHECK_COUNT(rows); i++) {
            if (!reopened)
                CHECK_OK(
                    ds_put(store, DS_USER, rows[i].key, rows[i].key_size, rows[i].value, rows[i].value_size, NULL));
            expect_bytes(store, DS_USER, rows[i].key, rows[i].key_size, rows[i].value, rows[i].value_size);
        }
        CHECK_EQ(stats_of(store).keys[DS_USER], CHECK_COUNT(rows));
        CHECK_OK(ds_close(store));
        store = open_store(dir);
    }
    CHECK_OK(ds_put(store, DS_USER, NULL, 0, NULL, 0, NULL));
    expect_value(store, "", "");
    CHECK_OK(ds_close(store));
}

/* Enough keys that many of them share the way through the index. */
static void deleting_keys_hides_no_others(const char *dir) {
    enum { COUNT = 700 };
    ds_store *store = open_store(dir);
    char key[16];
    for (int i = 0; i < COUNT; i++) {
        snprintf(key, sizeof key, "key-%d", i);
        put(store, key, key);
    }
    for (int i = 0; i < COUNT; i += 2) {
        snprintf(key, sizeof key, "key-%d", i);
        CHECK_OK(ds_delete(store, DS_USER, key, strlen(key), NULL));
    }
    for (int i = 0; i < COUNT; i++) {
        snprintf(key, sizeof key, "key-%d", i);
        expect_value(store, key, i % 2 ? key : NULL);
    }
    CHECK_EQ(stats_of(store).keys[DS_USER], COUNT / 2);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

static void keyspaces_do_not_collide(const char *dir) {
    ds_store *store = open_store(dir);
    ds_value value;
    put(store, "k", "user");
    CHECK_OK(ds_put(store, DS_RUNTIME, "k", 1, "runtime", 7, NULL));
    expect_value(store, "k", "user");
    expect_bytes(store, DS_RUNTIME, "k", 1, "runtime", 7);
    CHECK_OK(ds_delete(store, DS_USER, "k", 1, NULL));
    expect_bytes(store, DS_RUNTIME, "k", 1, "runtime", 7);
    CHECK_EQ(stats_of(store).keys[DS_USER], 0);
    CHECK_EQ(stats_of(store).keys[DS_RUNTIME], 1);
    CHECK_IS(ds_put(store, DS_KEYSPACES, "k", 1, "", 0, NULL), DS_INVALID);
    CHECK_IS(ds_get(store, 255, "k", 1, &value), DS_MISSING);
    CHECK_OK(ds_close(store));
}

/* Sizes around every border a layout may have: alignment, page, segment (64 KiB), blob (16 MiB) (I25). */
static void values_of_every_size_class_come_back(const char *dir) {
    static const size_t sizes[] = {
        0,     1,      7,      8,      9,       4095,    4096,           4097,     65535,          65536,
        65537, 100000, 262144, 500000, 1 << 20, 3 << 20, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, 17 << 20};
    size_t limit = (17 << 20) + CHECK_COUNT(sizes); /* each value begins one byte later, so none is another's start */
    unsigned char *bytes = malloc(limit);
    CHECK(bytes);
    for (size_t i = 0; i < limit; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    ds_store *store = open_store(dir);
    for (int reopened = 0; reopened < 2; reopened++) {
        for (size_t i = 0; i < CHECK_COUNT(sizes); i++) {
            char key[32];
            size_t key_size = (size_t)snprintf(key, sizeof key, "%zu", sizes[i]);
            if (!reopened)
                CHECK_OK(ds_put(store, DS_USER, key, key_size, bytes + i, sizes[i], NULL));
            expect_bytes(store, DS_USER, key, key_size, bytes + i, sizes[i]);
        }
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
        store = open_store(dir);
    }
    CHECK_OK(ds_close(store));
    free(bytes);
}

static void a_key_has_a_limit(const char *dir) {
    static char key[DS_KEY_LIMIT + 1];
    memset(key, 'k', sizeof key);
    ds_store *store = open_store(dir);
    CHECK_OK(ds_put(store, DS_USER, key, DS_KEY_LIMIT, "long", 4, NULL));
    CHECK_OK(ds_put(store, DS_USER, key, DS_KEY_LIMIT - 1, "shorter", 7, NULL));
    expect_bytes(store, DS_USER, key, DS_KEY_LIMIT, "long", 4);
    ds_value value;
    CHECK_IS(ds_get(store, DS_USER, key, DS_KEY_LIMIT + 1, &value), DS_MISSING);
    uint64_t before = stats_of(store).sequence;
    CHECK_IS(ds_put(store, DS_USER, key, DS_KEY_LIMIT + 1, "v", 1, NULL), DS_TOO_LARGE);
    ds_change changes[] = {change_put("a", "1"), {.kind = DS_PUT, .key = key, .key_size = DS_KEY_LIMIT + 1}};
    CHECK_IS(ds_commit(store, changes, 2, NULL), DS_TOO_LARGE);
    expect_value(store, "a", NULL);
    CHECK_EQ(stats_of(store).sequence, before);
    CHECK_OK(ds_close(store));
}

static void a_commit_is_all_or_nothing(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t a = put(store, "a", "old"), sequence = 0;
    ds_change changes[] = {change_put("a", "new"), change_put("b", "new"), change_delete("c"), change_expect("a", a)};
    CHECK_OK(ds_commit(store, changes, 4, &sequence));
    CHECK(sequence > a);
    CHECK_EQ(expect_value(store, "a", "new"), sequence); /* one commit, one sequence */
    CHECK_EQ(expect_value(store, "b", "new"), sequence);
    ds_change refused[] = {change_put("x", "1"), change_delete("b"), change_expect("a", a)};
    uint64_t untouched = 77;
    CHECK_IS(ds_commit(store, refused, 3, &untouched), DS_CONFLICT);
    CHECK_EQ(ds_error_sequence(), sequence);
    CHECK_EQ(untouched, 77);
    expect_value(store, "x", NULL);
    expect_value(store, "b", "new");
    CHECK_EQ(stats_of(store).sequence, sequence);
    CHECK_OK(ds_close(store));
}

static void expectations_decide(const char *dir) {
    ds_store *store = open_store(dir);
    ds_change create = change_put("k", "1");
    create.expect = true;
    uint64_t sequence = 0;
    CHECK_OK(ds_commit(store, &create, 1, &sequence));
    CHECK_IS(ds_commit(store, &create, 1, NULL), DS_CONFLICT);
    CHECK_EQ(ds_error_sequence(), sequence);
    ds_change swap = change_put("k", "2");
    swap.expect = true;
    swap.expected = sequence;
    CHECK_OK(ds_commit(store, &swap, 1, NULL));
    CHECK_IS(ds_commit(store, &swap, 1, NULL), DS_CONFLICT);
    expect_value(store, "k", "2");
    ds_change removal = change_delete("k");
    removal.expect = true;
    removal.expected = sequence;
    CHECK_IS(ds_commit(store, &removal, 1, NULL), DS_CONFLICT);
    removal.expected = expect_value(store, "k", "2");
    CHECK_OK(ds_commit(store, &removal, 1, NULL));
    ds_change gone = change_expect("k", sequence);
    CHECK_IS(ds_commit(store, &gone, 1, NULL), DS_CONFLICT);
    CHECK_EQ(ds_error_sequence(), 0);
    gone.expected = 0;
    CHECK_OK(ds_commit(store, &gone, 1, NULL));
    CHECK_OK(ds_close(store));
}

static void a_key_named_twice_takes_its_last_change(const char *dir) {
    ds_store *store = open_store(dir);
    ds_change changes[] = {change_put("a", "1"), change_put("a", "2"), change_put("b", "1"),
                           change_delete("b"),   change_delete("c"),   change_put("c", "3")};
    CHECK_OK(ds_commit(store, changes, CHECK_COUNT(changes), NULL));
    for (int reopened = 0; reopened < 2; reopened++) {
        expect_value(store, "a", "2");
        expect_value(store, "b", NULL);
        expect_value(store, "c", "3");
        CHECK_EQ(stats_of(store).keys[DS_USER], 2);
        CHECK_OK(ds_close(store));
        store = open_store(dir);
    }
    CHECK_OK(ds_close(store));
}

static void a_commit_that_changes_nothing_writes_nothing(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "a", "1");
    ds_stats before = stats_of(store);
    uint64_t sequence = 0;
    CHECK_OK(ds_commit(store, NULL, 0, &sequence));
    CHECK_EQ(sequence, before.sequence);
    ds_change nothing[] = {change_delete("missing"), change_expect("missing", 0)};
    CHECK_OK(ds_commit(store, nothing, 2, &sequence));
    CHECK_EQ(sequence, before.sequence);
    CHECK_EQ(stats_of(store).committed, before.committed);
    CHECK_OK(ds_close(store));
}

/* Every way in refuses it, and every way in is one that changes nothing then. */
static void what_is_no_change_is_refused(const char *dir) {
    static const ds_change wrong[] = {
        {.kind = (ds_change_kind)0, .key = "a", .key_size = 1},
        {.kind = (ds_change_kind)9, .key = "a", .key_size = 1},
        {.kind = DS_PUT, .keyspace = DS_KEYSPACES, .key = "a", .key_size = 1},
        {.kind = DS_DELETE, .key = "a", .key_size = 1, .ttl_ns = 1},
        {.kind = DS_PUT, .key = "a", .key_size = 1, .ttl_ns = DS_TTL_LIMIT_NS + 1},
    };
    ds_store *store = open_store(dir);
    put(store, "a", "1");
    for (size_t i = 0; i < CHECK_COUNT(wrong); i++) {
        ds_change changes[] = {change_put("b", "2"), wrong[i]};
        CHECK_IS(ds_commit(store, changes, 2, NULL), DS_INVALID);
        CHECK_IS(ds_try_commit(store, changes, 2, NULL), DS_INVALID);
    }
    expect_value(store, "a", "1");
    expect_value(store, "b", NULL);
    CHECK_OK(ds_close(store));
    ds_options options = options_default();
    options.read_only = true;
    store = open_with(dir, options);
    CHECK_IS(ds_try_put(store, DS_USER, "a", 1, "2", 1, NULL), DS_READ_ONLY);
    CHECK_IS(ds_settle(store, NULL), DS_READ_ONLY);
    CHECK_IS(ds_fence(store, 1, NULL), DS_READ_ONLY);
    CHECK_OK(ds_close(store));
}

/* One that would have to wait, for the disk or for another writer, says so and has done nothing. */
static void a_try_waits_for_nothing(const char *dir) {
    enum { LARGE = 17 << 20 };
    char *large = calloc(1, LARGE);
    CHECK(large);
    ds_store *store = open_store(dir);
    uint64_t sequence = 0;
    ds_change both[] = {change_put("a", "1"), change_put("b", "2")};
    CHECK_OK(ds_try_commit(store, both, 2, &sequence));
    CHECK_EQ(sequence, stats_of(store).sequence);
    CHECK_OK(ds_try_put(store, DS_USER, "a", 1, "1", 1, NULL));
    CHECK_IS(ds_try_put(store, DS_USER, "a", 1, large, LARGE, NULL), DS_TIMEOUT);
    ds_change late[] = {change_put("a", "2"), change_expect("b", sequence + 1)};
    CHECK_IS(ds_try_commit(store, late, 2, NULL), DS_CONFLICT);
    ds_options options = options_default();
    options.durability = DS_COMMIT;
    ds_store *durable = open_with(dir, options);
    CHECK_IS(ds_try_put(durable, DS_USER, "a", 1, "2", 1, NULL), DS_TIMEOUT);
    expect_value(store, "a", "1");
    CHECK_OK(ds_close(durable));
    CHECK_OK(ds_close(store));
    free(large);
}

static unsigned count_blobs(const char *dir) {
    glob_t found;
    char *pattern = check_format("%s/*.blob", dir);
    unsigned count = glob(pattern, 0, NULL, &found) == 0 ? (unsigned)found.gl_pathc : 0;
    if (count > 0)
        globfree(&found);
    return count;
}

/* Large values, small ones, a delete and an expectation in one commit; the empty key twice. */
static void a_mixed_batch_counts_whole_or_leaves_no_file(const char *dir) {
    enum { LARGE = 17 << 20, SMALL = 20 };
    char *large = calloc(1, LARGE);
    ds_change changes[SMALL + 6];
    CHECK(large);
    ds_store *store = open_store(dir);
    uint64_t at = put(store, "there", "1");
    for (int wrong = 1; wrong >= 0; wrong--) {
        size_t count = 0;
        changes[count++] =
            (ds_change){.kind = DS_PUT, .key = "large", .key_size = 5, .value = large, .value_size = LARGE};
        changes[count++] = change_delete("there");
        changes[count++] = change_expect("there", at + (uint64_t)wrong);
        changes[count++] = change_put("", "first");
        changes[count++] = change_put("", "last");
        changes[count] = change_put("small", "2");
        changes[count].expect = true; /* 0: it is not there */
        count++;
        for (int i = 0; i < SMALL; i++) /* more than are planned on the stack */
            changes[count++] = change_put("other", "3");
        CHECK_IS(ds_commit(store, changes, count, NULL), wrong ? DS_CONFLICT : DS_OK);
        CHECK_EQ(count_blobs(dir), !wrong);
        expect_value(store, "small", wrong ? NULL : "2");
        expect_value(store, "there", wrong ? "1" : NULL);
        expect_value(store, "", wrong ? NULL : "last");
    }
    expect_bytes(store, DS_USER, "large", 5, large, LARGE);
    CHECK_OK(ds_close(store));
    free(large);
}

static void a_frame_has_a_limit(const char *dir) {
    enum { COUNT = 1200, EACH = 60000 }; /* 72 MB of values that are too small for files of their own */
    static ds_change changes[COUNT];
    static char keys[COUNT][8], bytes[EACH];
    for (int i = 0; i < COUNT; i++)
        changes[i] = (ds_change){.kind = DS_PUT,
                                 .key = keys[i],
                                 .key_size = (size_t)snprintf(keys[i], 8, "%d", i),
                                 .value = bytes,
                                 .value_size = EACH};
    ds_store *store = open_store(dir);
    uint64_t before = put(store, "7", "small");
    CHECK_IS(ds_commit(store, changes, COUNT, NULL), DS_TOO_LARGE);
    CHECK_EQ(stats_of(store).sequence, before);
    expect_value(store, "7", "small");
    CHECK_OK(ds_commit(store, changes, COUNT / 2, NULL));
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

static void a_large_batch_is_one_commit(const char *dir) {
    enum { COUNT = 5000 };
    static ds_change changes[COUNT];
    static char keys[COUNT][16];
    for (int i = 0; i < COUNT; i++) {
        snprintf(keys[i], sizeof keys[i], "key-%d", i);
        changes[i] = change_put(keys[i], keys[i]);
    }
    ds_store *store = open_store(dir);
    uint64_t sequence = 0;
    CHECK_OK(ds_commit(store, changes, COUNT, &sequence));
    for (int reopened = 0; reopened < 2; reopened++) {
        for (int i = 0; i < COUNT; i++)
            CHECK_EQ(expect_value(store, keys[i], keys[i]), sequence);
        CHECK_EQ(stats_of(store).keys[DS_USER], COUNT);
        CHECK_OK(ds_close(store));
        store = open_store(dir);
    }
    CHECK_OK(ds_close(store));
}

static void a_batch_without_room_in_a_segment_is_refused_whole(const char *dir) {
    enum { COUNT = 5, EACH = 15 << 20 }; /* 75 MiB of values that are no blobs; the largest segment has 64 MiB */
    unsigned char *bytes = calloc(1, EACH);
    CHECK(bytes);
    ds_change changes[COUNT];
    static const char *keys[COUNT] = {"a", "b", "c", "d", "e"};
    for (int i = 0; i < COUNT; i++)
        changes[i] = (ds_change){.kind = DS_PUT, .key = keys[i], .key_size = 1, .value = bytes, .value_size = EACH};
    ds_store *store = open_store(dir);
    put(store, "a", "small");
    uint64_t before = stats_of(store).sequence;
    ds_status status = ds_commit(store, changes, COUNT, NULL);
    if (status != DS_OK) {
        CHECK_IS(status, DS_TOO_LARGE);
        expect_value(store, "a", "small");
        expect_value(store, "b", NULL);
        CHECK_EQ(stats_of(store).sequence, before);
    }
    CHECK_OK(ds_close(store));
    free(bytes);
}

static void a_value_stays_as_it_was_read(const char *dir) {
    ds_store *store = open_store(dir);
    ds_value value;
    put(store, "k", "first");
    CHECK_OK(ds_get(store, DS_USER, "k", 1, &value));
    ds_pin(&value); /* twice now */
    char text[16];
    for (int i = 0; i < 20000; i++) { /* several segments of the smallest size */
        snprintf(text, sizeof text, "value-%d", i);
        put(store, "k", text);
    }
    CHECK(value.size == 5 && memcmp(value.data, "first", 5) == 0);
    CHECK_OK(ds_close(store));
    ds_unpin(&value);
    CHECK(memcmp(value.data, "first", 5) == 0); /* pinned beyond the handle, still once */
    ds_unpin(&value);
}

static void a_cursor_sees_one_point(const char *dir) {
    ds_store *store = open_store(dir);
    char key[16];
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof key, "k%d", i);
        put(store, key, "before");
    }
    CHECK_OK(ds_put(store, DS_RUNTIME, "other", 5, "x", 1, NULL));
    ds_cursor *cursor = NULL;
    CHECK_OK(ds_cursor_open(store, DS_USER, &cursor));
    for (int i = 0; i < 2000; i++) { /* overwrite, delete and add, enough to grow the index */
        snprintf(key, sizeof key, "k%d", i);
        if (i % 3 == 0 && i < 100)
            CHECK_OK(ds_delete(store, DS_USER, key, strlen(key), NULL));
        else
            put(store, key, "after");
    }
    bool seen[100] = {false};
    const void *name;
    size_t size, count = 0;
    ds_value value;
    ds_status status;
    while ((status = ds_cursor_next(cursor, &name, &size, &value)) == DS_OK) {
        CHECK(size >= 2 && size < sizeof key);
        memcpy(key, name, size);
        key[size] = 0;
        int i = atoi(key + 1);
        CHECK(key[0] == 'k' && i >= 0 && i < 100 && !seen[i]);
        seen[i] = true;
        count++;
        CHECK(value.size == 6 && memcmp(value.data, "before", 6) == 0);
        ds_unpin(&value);
    }
    CHECK_IS(status, DS_MISSING);
    CHECK_EQ(count, 100);
    CHECK_IS(ds_cursor_next(cursor, &name, &size, &value), DS_MISSING);
    ds_cursor_close(cursor);
    CHECK_OK(ds_cursor_open(store, DS_RUNTIME, &cursor));
    CHECK_OK(ds_cursor_next(cursor, &name, &size, &value));
    CHECK(size == 5 && memcmp(name, "other", 5) == 0);
    ds_unpin(&value);
    CHECK_IS(ds_cursor_next(cursor, &name, &size, &value), DS_MISSING);
    ds_cursor_close(cursor);
    CHECK_OK(ds_close(store));
}

/* More keys than are sorted by comparing, some of them older than others, one of them a blob. */
static void a_cursor_goes_in_the_order_of_the_log(const char *dir) {
    enum { KEYS = 5000, BIG = 17 * 1024 * 1024 };
    ds_store *store = open_store(dir);
    char key[16];
    for (int i = 0; i < 2 * KEYS; i++) { /* the odd ones a second time */
        snprintf(key, sizeof key, "k%d", i % KEYS);
        if (i < KEYS || i % 2 == 1)
            put(store, key, i < KEYS ? "first" : "again");
    }
    char *big = calloc(1, BIG);
    CHECK_OK(ds_put(store, DS_USER, "k0", 2, big, BIG, NULL));
    free(big);
    CHECK_OK(ds_delete(store, DS_USER, "k2", 2, NULL));
    ds_cursor *cursor = NULL;
    CHECK_OK(ds_cursor_open(store, DS_USER, &cursor));
    CHECK_OK(ds_put(store, DS_USER, "k4", 2, "late", 4, NULL));
    const void *name;
    size_t size, count = 0;
    ds_value value;
    uint64_t before = 0;
    while (ds_cursor_peek(cursor, &name, &size, &value) == DS_OK) {
        CHECK(value.sequence > before);
        before = value.sequence;
        memcpy(key, name, size);
        key[size] = 0;
        int i = atoi(key + 1);
        count++;
        if (i == 0)
            CHECK(value.size == BIG && ((const char *)value.data)[BIG - 1] == 0);
        else
            CHECK(i != 2 && memcmp(value.data, i % 2 == 1 ? "again" : "first", 5) == 0);
    }
    CHECK_EQ(count, KEYS - 1);
    ds_cursor_close(cursor);
    CHECK_OK(ds_close(store));
}

static void a_cursor_over_nothing_ends_at_once(const char *dir) {
    ds_store *store = open_store(dir);
    ds_cursor *cursor = NULL;
    const void *name;
    size_t size;
    ds_value value;
    CHECK_OK(ds_cursor_open(store, DS_USER, &cursor));
    put(store, "late", "1");
    CHECK_IS(ds_cursor_next(cursor, &name, &size, &value), DS_MISSING);
    ds_cursor_close(cursor);
    CHECK_OK(ds_close(store));
}

/* I17: its file is named anew by each compaction, and goes with the last record that names it. */
static void i17_a_large_value_outlives_compactions(const char *dir) {
    size_t size = 17 * 1024 * 1024;
    unsigned char *value = malloc(size);
    CHECK(value);
    for (size_t i = 0; i < size; i++)
        value[i] = (unsigned char)(i % 251);
    ds_store *store = open_store(dir);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, value, size, NULL));
    for (int i = 0; i < 3; i++) {
        put(store, "small", "1");
        CHECK_OK(ds_compact(store));
        expect_bytes(store, DS_USER, "large", 5, value, size);
        CHECK(stats_of(store).log_bytes > size);
    }
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_delete(store, DS_USER, "large", 5, NULL));
    CHECK_OK(ds_compact(store));
    CHECK(stats_of(store).log_bytes < size);
    CHECK_OK(ds_close(store));
    free(value);
}

static void settle_gives_the_last_sequence(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t sequence = 1;
    CHECK_OK(ds_settle(store, &sequence));
    CHECK_EQ(sequence, stats_of(store).sequence);
    uint64_t last = put(store, "a", "1");
    CHECK_OK(ds_settle(store, &sequence));
    CHECK_EQ(sequence, last);
    CHECK_OK(ds_close(store));
}

static void a_fenced_incarnation_commits_no_more(const char *dir) {
    ds_options options = options_default();
    options.incarnation = 5;
    ds_store *old = open_with(dir, options);
    options.incarnation = 6;
    ds_store *new = open_with(dir, options);
    ds_store *free_of_it = open_store(dir);
    uint64_t last = put(old, "k", "old"), sequence = 0;
    CHECK_OK(ds_fence(new, 6, &sequence));
    CHECK_EQ(sequence, last); /* the fence decided what the old one had committed */
    CHECK_IS(ds_put(old, DS_USER, "k", 1, "late", 4, NULL), DS_FENCED);
    CHECK_IS(ds_delete(old, DS_USER, "k", 1, NULL), DS_FENCED);
    expect_value(old, "k", "old"); /* it may still read */
    put(new, "k", "new");
    put(free_of_it, "other", "1"); /* incarnation 0 is never fenced */
    CHECK_EQ(stats_of(new).fence, 6);
    CHECK_OK(ds_fence(free_of_it, 4, &sequence)); /* one that comes late lets nobody back in */
    CHECK_EQ(stats_of(new).fence, 6);
    CHECK_IS(ds_put(old, DS_USER, "k", 1, "late", 4, NULL), DS_FENCED);
    CHECK_OK(ds_close(old));
    CHECK_OK(ds_close(new));
    CHECK_OK(ds_close(free_of_it));
}

static void stats_and_verify_agree_with_what_was_done(const char *dir) {
    ds_store *store = open_store(dir);
    ds_stats empty = stats_of(store);
    CHECK_EQ(empty.keys[DS_USER], 0);
    CHECK_EQ(empty.repairs, 0);
    CHECK_EQ(empty.dropped_bytes, 0);
    uint64_t frames = 0, before = 0;
    CHECK_OK(ds_verify(store, &before));
    for (int i = 0; i < 10; i++)
        put(store, i % 2 ? "odd" : "even", "value");
    CHECK_OK(ds_delete(store, DS_USER, "odd", 3, NULL));
    CHECK_OK(ds_verify(store, &frames));
    CHECK_EQ(frames - before, 11);
    ds_stats stats = stats_of(store);
    CHECK_EQ(stats.keys[DS_USER], 1);
    CHECK(stats.committed > empty.committed);
    CHECK(stats.live_bytes > 0 && stats.live_bytes < stats.log_bytes);
    CHECK_OK(ds_sync(store));
    CHECK(stats_of(store).synced >= stats.committed);
    CHECK_OK(ds_close(store));
}

static void compaction_changes_nothing_but_the_room(const char *dir) {
    static char value[1000];
    ds_store *store = open_store(dir);
    uint64_t rare = put(store, "rare", "kept");
    put(store, "gone", "soon");
    CHECK_OK(ds_delete(store, DS_USER, "gone", 4, NULL));
    for (int i = 0; i < 8000; i++)
        CHECK_OK(ds_put(store, DS_USER, i % 2 ? "odd" : "even", i % 2 ? 3 : 4, value, sizeof value, NULL));
    uint64_t sequence = stats_of(store).sequence;
    CHECK_OK(ds_compact(store));
    CHECK(stats_of(store).dropped_segments > 0);
    CHECK(stats_of(store).log_bytes < 8000 * sizeof value);
    for (int reopened = 0; reopened < 2; reopened++) {
        CHECK_EQ(expect_value(store, "rare", "kept"), rare);
        expect_value(store, "gone", NULL);
        expect_bytes(store, DS_USER, "odd", 3, value, sizeof value);
        CHECK_EQ(stats_of(store).keys[DS_USER], 3);
        CHECK_EQ(stats_of(store).sequence, sequence);
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
        store = open_store(dir);
    }
    CHECK_OK(ds_close(store));
}

static void two_handles_in_one_process_share_the_store(const char *dir) {
    ds_store *a = open_store(dir), *b = open_store(dir);
    put(a, "k", "from a");
    expect_value(b, "k", "from a");
    put(b, "k", "from b");
    expect_value(a, "k", "from b");
    CHECK_OK(ds_close(a));
    put(b, "k", "still here");
    CHECK_OK(ds_close(b));
    a = open_store(dir);
    expect_value(a, "k", "still here");
    CHECK_OK(ds_close(a));
}

/* Keys that come and go wear one index after the other out. */
static void a_replaced_index_is_given_back(const char *dir) {
    char below[512], key[32];
    snprintf(below, sizeof below, "%s/index.", dir);
    ds_store *writer = open_store(dir), *reader = open_store(dir);
    put(writer, "stays", "here");
    for (int i = 0; i < 20000; i++) {
        snprintf(key, sizeof key, "comes and goes %d", i);
        put(writer, key, "");
        CHECK_OK(ds_delete(writer, DS_USER, key, strlen(key), NULL));
        expect_value(reader, "stays", "here");
        /* Of each handle one, and one that its next call gives back; a pass of compaction that is slow may be in a call as well. */
        while (check_mappings(below) > 4) {
            expect_value(writer, "stays", "here");
            expect_value(reader, "stays", "here");
        }
    }
    put(writer, "stays", "still");
    expect_value(reader, "stays", "still");
    CHECK_EQ(check_mappings(below), 2);
    CHECK_OK(ds_close(reader));
    CHECK_OK(ds_close(writer));
    CHECK_EQ(check_mappings(below), 0);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(a_value_comes_back),
        TEST(a_deleted_key_is_missing),
        TEST(empty_and_binary_keys_and_values_are_ordinary),
        TEST(deleting_keys_hides_no_others),
        TEST(keyspaces_do_not_collide),
        TEST(values_of_every_size_class_come_back),
        TEST(a_key_has_a_limit),
        TEST(a_commit_is_all_or_nothing),
        TEST(expectations_decide),
        TEST(a_key_named_twice_takes_its_last_change),
        TEST(a_commit_that_changes_nothing_writes_nothing),
        TEST(what_is_no_change_is_refused),
        TEST(a_try_waits_for_nothing),
        TEST(a_mixed_batch_counts_whole_or_leaves_no_file),
        TEST(a_frame_has_a_limit),
        TEST(a_large_batch_is_one_commit),
        TEST(a_batch_without_room_in_a_segment_is_refused_whole),
        TEST(a_value_stays_as_it_was_read),
        TEST(a_cursor_sees_one_point),
        TEST(a_cursor_goes_in_the_order_of_the_log),
        TEST(a_cursor_over_nothing_ends_at_once),
        TEST(settle_gives_the_last_sequence),
        TEST(i17_a_large_value_outlives_compactions),
        TEST(a_fenced_incarnation_commits_no_more),
        TEST(stats_and_verify_agree_with_what_was_done),
        TEST(compaction_changes_nothing_but_the_room),
        TEST(two_handles_in_one_process_share_the_store),
        TEST(a_replaced_index_is_given_back),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
