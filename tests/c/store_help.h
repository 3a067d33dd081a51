/* store_help.h: one-line forms of the engine's calls, for tests whose keys and values are short texts. */
#ifndef STORE_HELP_H
#define STORE_HELP_H

#include <string.h>

#include "check.h"

static inline ds_options options_default(void) {
    ds_options options;
    ds_options_init(&options);
    options.create = true;
    return options;
}

static inline ds_store *open_with(const char *path, ds_options options) {
    ds_store *store = NULL;
    CHECK_OK(ds_open(path, &options, &store));
    CHECK(store);
    return store;
}

static inline ds_store *open_store(const char *path) {
    return open_with(path, options_default());
}

static inline uint64_t put(ds_store *store, const char *key, const char *value) {
    uint64_t sequence = 0;
    CHECK_OK(ds_put(store, DS_USER, key, strlen(key), value, strlen(value), &sequence));
    CHECK(sequence > 0);
    return sequence;
}

/* For values that are no text. They come from `keyspace`. */
static inline void expect_bytes(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, const void *wanted,
                                size_t size) {
    ds_value value;
    CHECK_OK(ds_get(store, keyspace, key, key_size, &value));
    CHECK_EQ(value.size, size);
    CHECK(size == 0 || memcmp(value.data, wanted, size) == 0);
    ds_unpin(&value);
}

/* The key's sequence; 0 and no complaint if `wanted` is NULL and the key is missing. */
static inline uint64_t expect_value(ds_store *store, const char *key, const char *wanted) {
    ds_value value;
    ds_status status = ds_get(store, DS_USER, key, strlen(key), &value);
    if (!wanted) {
        CHECK_IS(status, DS_MISSING);
        return 0;
    }
    CHECK_OK(status);
    CHECK_EQ(value.size, strlen(wanted));
    CHECK(memcmp(value.data, wanted, value.size) == 0);
    ds_unpin(&value);
    return value.sequence;
}

static inline ds_change change_put(const char *key, const char *value) {
    return (ds_change){
        .kind = DS_PUT, .key = key, .key_size = strlen(key), .value = value, .value_size = strlen(value)};
}

static inline ds_change change_delete(const char *key) {
    return (ds_change){.kind = DS_DELETE, .key = key, .key_size = strlen(key)};
}

static inline ds_change change_expect(const char *key, uint64_t sequence) {
    return (ds_change){.kind = DS_EXPECT, .expected = sequence, .key = key, .key_size = strlen(key)};
}

static inline ds_stats stats_of(ds_store *store) {
    ds_stats stats;
    CHECK_OK(ds_stats_read(store, &stats));
    return stats;
}

#endif
