/* I26: keys whose full 64-bit hashes are equal. The linker wraps ds__hash(), so that here all are, or all but a few; only a
 * comparison of the keys tells them apart. What is found must be right, and a probe must end. */
#include <stdio.h>
#include <stdlib.h>

#include "store.h"
#include "store_help.h"

enum { KEYS = 1200 }; /* the index grows twice */

static uint64_t hashes; /* how many different ones there are */

uint64_t __real_ds__hash(uint64_t seed, uint8_t keyspace, const void *key, size_t size);
uint64_t __wrap_ds__hash(uint64_t seed, uint8_t keyspace, const void *key, size_t size);
uint64_t __wrap_ds__hash(uint64_t seed, uint8_t keyspace, const void *key, size_t size) {
    return hashes == 0 ? __real_ds__hash(seed, keyspace, key, size)
                       : __real_ds__hash(seed, keyspace, key, size) % hashes * UINT64_C(0x9e3779b97f4a7c15);
}

static size_t name(char out[16], unsigned key) {
    return (size_t)snprintf(out, 16, "key %u", key);
}

/* Every third key is deleted, every fifth was put anew. */
static void expect_all(ds_store *store) {
    char key[16], value[16];
    for (unsigned i = 0; i < KEYS; i++) {
        size_t size = name(key, i);
        ds_value found;
        if (i % 3 == 0) {
            CHECK_IS(ds_get(store, DS_USER, key, size, &found), DS_MISSING);
            continue;
        }
        size_t length = (size_t)snprintf(value, sizeof value, "%u %s", i, i % 5 ? "old" : "new");
        expect_bytes(store, DS_USER, key, size, value, length);
    }
    ds_value found;
    CHECK_IS(ds_get(store, DS_USER, "nobody put it", 13, &found), DS_MISSING);
    CHECK_IS(ds_get(store, DS_RUNTIME, "key 1", 5, &found), DS_MISSING);
}

static void live(const char *dir, uint64_t different) {
    hashes = different;
    char key[16], value[16];
    ds_store *store = open_store(dir);
    for (unsigned i = 0; i < KEYS; i++) {
        size_t length = (size_t)snprintf(value, sizeof value, "%u old", i);
        CHECK_OK(ds_put(store, DS_USER, key, name(key, i), value, length, NULL));
    }
    for (unsigned i = 0; i < KEYS; i++) {
        size_t length = (size_t)snprintf(value, sizeof value, "%u new", i);
        if (i % 5 == 0)
            CHECK_OK(ds_put(store, DS_USER, key, name(key, i), value, length, NULL));
        if (i % 3 == 0)
            CHECK_OK(ds_delete(store, DS_USER, key, name(key, i), NULL));
    }
    expect_all(store);
    CHECK_OK(ds_compact(store));
    expect_all(store);
    CHECK_EQ(stats_of(store).keys[DS_USER], KEYS - KEYS / 3);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    CHECK(system(check_format("rm '%s'/control '%s'/index.*", dir, dir)) == 0);
    store = open_store(dir); /* the index is made from the log */
    expect_all(store);
    CHECK_OK(ds_close(store));
}

static void i26_keys_with_one_hash_are_told_apart(const char *dir) {
    live(dir, 1);
}

static void i26_keys_with_few_hashes_are_told_apart(const char *dir) {
    live(dir, 7);
}

/* Who can choose keys cannot choose where they land: each store hashes with a seed of its own. */
static void i26_each_store_has_a_seed_of_its_own(const char *dir) {
    hashes = 0;
    ds_store *a = open_store(check_format("%s/a", dir)), *b = open_store(check_format("%s/b", dir));
    CHECK(a->hash_seed != b->hash_seed);
    CHECK(ds__hash(a->hash_seed, DS_USER, "key", 3) != ds__hash(b->hash_seed, DS_USER, "key", 3));
    CHECK_OK(ds_close(a));
    CHECK_OK(ds_close(b));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i26_keys_with_one_hash_are_told_apart),
        TEST(i26_keys_with_few_hashes_are_told_apart),
        TEST(i26_each_store_has_a_seed_of_its_own),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
