/* wait.c: sleeping until a key changes.
 *
 * The control page holds WAKE_WORDS futex words; a key belongs to one by its hash, and one more word belongs to everybody
 * who waits for a prefix. Bit 0 of a word says that somebody sleeps on it. A waiter sets it, then looks whether what it
 * waits for has happened, then sleeps unless the word has moved. A writer, after its commit point, looks at the words of
 * its keys, and only where bit 0 is set adds one (which clears the bit and moves the word) and wakes all sleepers.
 *
 * Both store first and load afterwards, so both need a full fence between the two: the waiter's is its fetch_or, the
 * writer's is the giving back of the writer lock, after which it looks (ds__fence_after_unlock). Whom a writer that dies
 * before it looks would have woken looks again within a second, or when repair wakes all. */
#include "store.h"

#include <errno.h>

enum {
    LOOK_AGAIN_MS = 1000,
    READ_ONLY_MS = 1,
    TRIES = 1000, /* each that fails means that the log or the index moved on; or else that the store is damaged */
};

static _Atomic uint32_t *word_of(struct ds_control *control, uint64_t hash) {
    return &control->wake[hash % DS_WAKE_WORDS];
}

static void wake(_Atomic uint32_t *word) {
    if ((atomic_load_explicit(word, memory_order_relaxed) & 1) == 0)
        return;
    atomic_fetch_add_explicit(word, 1, memory_order_relaxed);
    ds__os_futex_wake(word);
}

void ds__wake(struct ds_control *control, const struct ds_plan *plans, size_t count) {
    ds__fence_after_unlock();
    for (size_t i = 0; i < count; i++)
        if (plans[i].write)
            wake(word_of(control, plans[i].hash));
    wake(&control->wake_prefix);
}

void ds__wake_all(struct ds_control *control) {
    atomic_thread_fence(memory_order_seq_cst);
    for (size_t i = 0; i < DS_WAKE_WORDS; i++)
        wake(&control->wake[i]);
    wake(&control->wake_prefix);
}

/* ---- what is waited for ---------------------------------------------------------------------------------------- */

struct wish {
    uint8_t keyspace;
    const void *key;
    size_t key_size;
    bool prefix;
    uint64_t after;
    ds_changes *changes; /* of a prefix: how far it has looked, so that no commit is looked at twice */
};

/* The sequence of the key's newest version, deleted or not; 0: none is known. */
static ds_status newest(ds_store *store, const struct wish *wish, uint64_t *sequence) {
    *sequence = 0;
    uint64_t hash = ds__hash(store->hash_seed, wish->keyspace, wish->key, wish->key_size);
    for (int i = 0; i < TRIES; i++) {
        struct ds_index *index;
        struct ds_found found;
        bool gone = false;
        ds_status status = ds__index_now(store, &index);
        if (status != DS_OK)
            return status;
        status = ds__find(store, index, hash, wish->keyspace, wish->key, wish->key_size, &found, &gone);
        uint64_t limit = atomic_load_explicit(&store->control->committed, memory_order_acquire);
        bool known = status == DS_OK;
        if (known)
            status = ds__step_back(store, limit, &found, &gone);
        if (gone || atomic_load_explicit(&store->control->generation, memory_order_acquire) != index->generation)
            continue;
        /* Also DS_MISSING may be a version: a tombstone. */
        if (known && (status == DS_OK || status == DS_MISSING) && found.offset < limit)
            *sequence = found.record->sequence;
        return status == DS_MISSING ? DS_OK : status;
    }
    return ds__fail(DS_CORRUPT, 0, "%s: the index names a segment that is not there; nothing was changed",
                    store->directory.path);
}

/* The sequence of the first commit after `after` that touches the prefix; 0: none yet. */
static ds_status newest_of_prefix(ds_store *store, struct wish *wish, uint64_t *sequence) {
    ds_change_told told;
    ds_status status = DS_OK;
    *sequence = 0;
    if (wish->changes == NULL)
        status = ds_changes_open(store, wish->keyspace, wish->after, &wish->changes);
    while (status == DS_OK && *sequence == 0) {
        status = ds_changes_next(wish->changes, &told);
        if (status != DS_OK)
            break;
        if (told.value.owner != NULL)
            ds_unpin(&told.value);
        if (told.key_size >= wish->key_size &&
            (wish->key_size == 0 || memcmp(told.key, wish->key, wish->key_size) == 0))
            *sequence = told.sequence;
    }
    if (status == DS_COMPACTED) {
        /* Which keys changed cannot be told any more; that something did, is all a waiter needs to look. */
        *sequence = ds__sequence_now(store->control);
        status = DS_OK;
    }
    return status == DS_MISSING ? DS_OK : status;
}

/* A key without a version may have been deleted after `after`, and its tombstone compacted away: then the commits since
 * `after` are not all there any more, and the waiter is told to look. */
static ds_status newest_that_is_gone(ds_store *store, const struct wish *wish, uint64_t *sequence) {
    ds_changes *changes;
    ds_change_told told;
    ds_status status = ds_changes_open(store, wish->keyspace, wish->after, &changes);
    if (status == DS_OK) {
        status = ds_changes_next(changes, &told);
        if (status == DS_OK && told.value.owner != NULL)
            ds_unpin(&told.value);
        ds_changes_close(changes);
    }
    if (status == DS_COMPACTED) {
        *sequence = ds__sequence_now(store->control);
        status = DS_OK;
    }
    return status == DS_MISSING ? DS_OK : status;
}

static ds_status look(ds_store *store, struct wish *wish, uint64_t *sequence) {
    if (wish->prefix)
        return newest_of_prefix(store, wish, sequence);
    ds__enter(store);
    ds_status status = newest(store, wish, sequence);
    if (*sequence == 0)
        status = ds__intact(store, status);
    ds__leave(store);
    if (status == DS_OK && *sequence == 0 && wish->after > 0)
        status = newest_that_is_gone(store, wish, sequence);
    return status;
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static ds_status wait_for(ds_store *store, struct wish *wish, int64_t timeout_ms, uint64_t *sequence) {
    struct ds_control *control = store->control;
    bool can_sleep = !store->options.read_only; /* else the page is not ours to write */
    _Atomic uint32_t *word =
        wish->prefix ? &control->wake_prefix
                     : word_of(control, ds__hash(store->hash_seed, wish->keyspace, wish->key, wish->key_size));
    uint64_t deadline = ds__os_now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
    for (;;) {
        uint32_t seen = can_sleep ? atomic_fetch_or_explicit(word, 1, memory_order_seq_cst) | 1 : 0;
        ds_status status = look(store, wish, sequence);
        if (status != DS_OK || *sequence > wish->after)
            return status;
        uint64_t now = ds__os_now_ns();
        if (timeout_ms >= 0 && now >= deadline)
            return ds__fail(DS_TIMEOUT, ETIMEDOUT, "%s: nothing was committed within %lld ms", store->directory.path,
                            (long long)timeout_ms);
        uint64_t left = timeout_ms < 0 ? UINT64_MAX : deadline - now;
        if (can_sleep)
            ds__os_futex_wait(word, seen, left < LOOK_AGAIN_MS * 1000000u ? left : LOOK_AGAIN_MS * 1000000u);
        else
            ds__os_sleep_ms(READ_ONLY_MS);
    }
}

ds_status ds_wait(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, bool prefix, uint64_t after,
                  int64_t timeout_ms, uint64_t *sequence) {
    ds_status status = ds__check(store);
    if (status != DS_OK)
        return status;
    if (keyspace >= DS_KEYSPACES || key_size > DS_KEY_LIMIT)
        return ds__fail(DS_INVALID, 0, "%s: no key can be like this: keyspace %u, %zu bytes", store->directory.path,
                        keyspace, key_size);
    struct wish wish = {keyspace, key, key_size, prefix, after, NULL};
    uint64_t found = 0;
    status = wait_for(store, &wish, timeout_ms, &found);
    if (status == DS_TIMEOUT)
        found = wish.changes != NULL ? ds__changes_told(wish.changes) : after;
    if (sequence != NULL && (status == DS_OK || status == DS_TIMEOUT))
        *sequence = found;
    if (wish.changes != NULL)
        ds_changes_close(wish.changes);
    return status;
}
