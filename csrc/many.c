/* many.c: several keys at one point. See read.c for why one key needs no lock.
 *
 * `committed` is loaded once, before the keys, and each key is read as of that offset. What a batch committed is therefore
 * seen whole or not at all. Bracketing the reads with a counter instead, and starting over when it moved, succeeds in one
 * try of twenty beside a busy writer, and never beside a stopped one. */
#include "store.h"

enum { TRIES = 3 };

static void unpin_all(ds_value *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (values[i].owner != NULL)
            ds_unpin(&values[i]);
}

static ds_status get_as_of(ds_store *store, const struct ds_index *index, struct ds_moment *moment, uint8_t keyspace,
                           const ds_bytes *key, ds_value *out, bool *gone) {
    struct ds_found found;
    uint64_t hash = ds__hash(store->hash_seed, keyspace, key->data, key->size);
    *out = (ds_value){0};
    ds_status status = ds__find(store, index, hash, keyspace, key->data, key->size, &found, gone);
    if (status == DS_OK)
        status = ds__step_back(store, moment->limit, &found, gone);
    if (status == DS_OK && ds__op_expires(found.record->op))
        status = ds__missing_at(store, &found, moment);
    if (status == DS_OK)
        status = ds__give(store, &found, out);
    return status == DS_MISSING ? DS_OK : status;
}

/* One try. *gone: the index was replaced or a version compacted away; nothing is pinned then. */
static ds_status try_timed(ds_store *store, uint8_t keyspace, const ds_bytes *keys, size_t count, ds_value *values,
                           bool timed, bool *untimed, bool *gone) {
    struct ds_index *index;
    struct ds_moment moment;
    ds_status status = ds__moment_begin(store, timed, &index, &moment, gone);
    if (status != DS_OK || *gone)
        return status;
    size_t done = 0;
    while (status == DS_OK && !*gone && !moment.untimed && done < count) {
        status = get_as_of(store, index, &moment, keyspace, &keys[done], &values[done], gone);
        done++;
    }
    (void)ds__sigbus_cut(index->bytes, index->size);
    status = ds__intact(store, status);
    if (ds__scan_outdated(store, index, &moment))
        *gone = true;
    *untimed = moment.untimed;
    if (*gone || moment.untimed || status != DS_OK)
        unpin_all(values, done);
    return status;
}

static ds_status try_get_many(ds_store *store, uint8_t keyspace, const ds_bytes *keys, size_t count, ds_value *values,
                              bool *gone) {
    bool untimed = false;
    *gone = false;
    ds_status status = try_timed(store, keyspace, keys, count, values, false, &untimed, gone);
    return untimed ? try_timed(store, keyspace, keys, count, values, true, &untimed, gone) : status;
}

ds_status ds_get_many(ds_store *store, uint8_t keyspace, const ds_bytes *keys, size_t count, ds_value *values) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES)
        return ds__fail(DS_INVALID, 0, "keyspace %u: there are %d", keyspace, DS_KEYSPACES);
    bool gone = true;
    ds__enter(store);
    for (int i = 0; gone && i < TRIES; i++)
        status = try_get_many(store, keyspace, keys, count, values, &gone);
    for (int i = 0; gone && store->options.read_only && i < 1000; i++) {
        ds__os_sleep_ms(1); /* it cannot take the lock */
        status = try_get_many(store, keyspace, keys, count, values, &gone);
    }
    ds__leave(store);
    if (!gone)
        return status;
    if (store->options.read_only)
        return ds__fail(DS_TIMEOUT, 0, "%s: the log moved on during each of many reads", store->directory.path);
    /* Under the lock nothing moves: this try is the last. */
    status = ds__writer_enter(store);
    if (status != DS_OK)
        return status;
    status = try_get_many(store, keyspace, keys, count, values, &gone);
    ds__writer_leave(store);
    return gone ? ds__fail(DS_CORRUPT, 0, "%s: the index names records that are gone", store->directory.path) : status;
}
