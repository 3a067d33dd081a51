/* turn.c: who reads, thinks and writes (compare and put, again on conflict) is not outrun for ever.
 *
 * Where many update one key, the one who thinks longest can lose every race. After some lost races it takes a turn: a note in
 * the control page that names the key and when the turn ends. Whoever is about to update that key the same way looks there
 * first, and lets it go ahead; each can have beaten it once more at most, with an update that was under way.
 *
 * A turn is a courtesy, not a lock. It ends by itself, so its owner may die or stop, and plain puts do not look at it. That is
 * why nothing here needs to be exact: a note that is half written costs somebody a wrong moment of waiting, or of none. */
#include "store.h"

enum { LOOK_AGAIN_NS = 10 * 1000 * 1000, NS_PER_MS = 1000 * 1000 };

/* No longer than can be asked for: else nonsense in the control page would stop the key's updates for ever. */
static bool runs_until(uint64_t now, uint64_t until) {
    return now < until && until - now <= (uint64_t)DS_TURN_LIMIT_MS * NS_PER_MS;
}

/* Not 0, and another one for each call. */
static uint32_t new_token(const struct ds_store *store) {
    static _Atomic uint32_t calls;
    uint64_t mixed = store->stamp * UINT64_C(0x9e3779b97f4a7c15) + atomic_fetch_add(&calls, 1);
    return (uint32_t)(mixed >> 32 ^ mixed) | 1;
}

ds_status ds_turn_take(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint32_t milliseconds,
                       uint32_t *token) {
    ds_status status = ds__check_writable(store);
    if (status != DS_OK)
        return status;
    if (milliseconds > DS_TURN_LIMIT_MS)
        return ds__fail(DS_INVALID, 0, "%s: a turn of %u ms; the longest is %d", store->directory.path, milliseconds,
                        DS_TURN_LIMIT_MS);
    struct ds_control *control = store->control;
    uint64_t now = ds__os_now_ns();
    uint32_t present = atomic_load_explicit(&control->turn, memory_order_acquire);
    bool free = present == 0 || present == *token ||
                !runs_until(now, atomic_load_explicit(&control->turn_until_ns, memory_order_relaxed));
    uint32_t mine = present != 0 && present == *token ? present : new_token(store);
    if (!free || !atomic_compare_exchange_strong(&control->turn, &present, mine))
        return DS_OK; /* one at a time; the next lost race tries again */
    atomic_store_explicit(&control->turn_key, ds__hash(store->hash_seed, keyspace, key, key_size),
                          memory_order_relaxed);
    atomic_store_explicit(&control->turn_until_ns, now + (uint64_t)milliseconds * NS_PER_MS, memory_order_release);
    *token = mine;
    return DS_OK;
}

void ds_turn_end(ds_store *store, uint32_t token) {
    if (token == 0 || ds__check(store) != DS_OK)
        return;
    if (atomic_compare_exchange_strong(&store->control->turn, &token, 0))
        ds__os_futex_wake(&store->control->turn);
}

void ds_turn_wait(ds_store *store, uint8_t keyspace, const void *key, size_t key_size, uint32_t token) {
    if (ds__check_writable(store) != DS_OK)
        return;
    struct ds_control *control = store->control;
    uint32_t present;
    while ((present = atomic_load_explicit(&control->turn, memory_order_acquire)) != 0 && present != token) {
        uint64_t now = ds__os_now_ns(), until = atomic_load_explicit(&control->turn_until_ns, memory_order_acquire);
        uint64_t named = atomic_load_explicit(&control->turn_key, memory_order_relaxed);
        if (!runs_until(now, until) || named != ds__hash(store->hash_seed, keyspace, key, key_size))
            return;
        uint64_t left = until - now;
        ds__os_futex_wait(&control->turn, present, left < LOOK_AGAIN_NS ? left : LOOK_AGAIN_NS);
    }
}
