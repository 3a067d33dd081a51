/* keeper.c: one thread per writable handle, for what no put should wait for: the syncs of `group` durability, and
 * compaction. It starts with the first thing to do, so a handle that only reads, or writes little, has none. */
#include "store.h"

#include <signal.h>
#include <time.h>

/* A compaction that failed (a full disk, a failed sync) is tried again, and a spare that is not needed given back, after
 * this long. With the spare goes what a burst has left behind: compaction is done before it is due. */
enum { LATER_MS = 1000 };

/* Waits until somebody asks, it is to stop, or the time is up (0: no time). */
static void rest(ds_store *store, uint32_t milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t next = (uint64_t)until.tv_nsec + (uint64_t)milliseconds * 1000000u;
    until.tv_sec += (time_t)(next / 1000000000u);
    until.tv_nsec = (long)(next % 1000000000u);
    int error = 0;
    while (!store->keeper_stop && !store->keeper_asked && error == 0) {
        if (milliseconds == 0)
            pthread_cond_wait(&store->keeper_wake, &store->keeper_mutex);
        else
            error = pthread_cond_timedwait(&store->keeper_wake, &store->keeper_mutex, &until);
    }
}

static void *keep(void *argument) {
    ds_store *store = argument;
    bool group = store->options.durability == DS_GROUP;
    uint32_t pause = group ? store->options.group_ms : 0;
    bool failed = false;
    pthread_mutex_lock(&store->keeper_mutex);
    while (!store->keeper_stop) {
        rest(store, pause);
        bool asked = atomic_exchange_explicit(&store->keeper_asked, false, memory_order_acq_rel);
        pthread_mutex_unlock(&store->keeper_mutex);
        /* A failing sync is sticky in the control page, where the next ds_sync() or ds_close() of anybody tells it. */
        if (group)
            (void)ds__sync(store, false);
        ds__spare_make(store);
        bool rested = !asked && ds__spare_tidy(store);
        if (asked || rested || failed)
            failed = ds__compact(store, false, rested ? DS_COMPACT_RESTED : DS_COMPACT_DUE) != DS_OK;
        bool spare = atomic_load_explicit(&store->spare, memory_order_relaxed) != NULL;
        pause = group ? store->options.group_ms : failed || spare ? LATER_MS : 0;
        pthread_mutex_lock(&store->keeper_mutex);
    }
    pthread_mutex_unlock(&store->keeper_mutex);
    return NULL;
}

void ds__keeper_init(ds_store *store) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&store->keeper_wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&store->keeper_mutex, NULL);
}

ds_status ds__keeper_start(ds_store *store) {
    int error = 0;
    pthread_mutex_lock(&store->keeper_mutex);
    if (!store->keeper_running) {
        /* The program's signals belong to its own threads. */
        sigset_t all, before;
        sigfillset(&all);
        sigdelset(&all, SIGBUS); /* one that is blocked kills (sigbus.h) */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&store->keeper, NULL, keep, store);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        store->keeper_running = error == 0;
    }
    pthread_mutex_unlock(&store->keeper_mutex);
    return error == 0 ? DS_OK
                      : ds__fail(DS_NO_MEMORY, error, "%s: cannot start the thread that syncs and compacts",
                                 store->directory.path);
}

void ds__keeper_ask(ds_store *store) {
    /* After the writer lock was given back: a keeper that has yet to take note of being asked will see what it was asked
     * for. */
    ds__fence_after_unlock();
    if (atomic_load_explicit(&store->keeper_asked, memory_order_relaxed))
        return;
    if (atomic_exchange_explicit(&store->keeper_asked, true, memory_order_acq_rel))
        return;
    if (ds__keeper_start(store) != DS_OK) { /* without it, writers compact when it is overdue */
        atomic_store_explicit(&store->keeper_asked, false, memory_order_relaxed); /* the next commit tries again */
        return;
    }
    /* Either it sees that it was asked, or it sleeps by the time that the lock is ours. Woken under the lock, it would wait for
     * that again. */
    pthread_mutex_lock(&store->keeper_mutex);
    pthread_mutex_unlock(&store->keeper_mutex);
    pthread_cond_signal(&store->keeper_wake);
}

void ds__keeper_stop(ds_store *store) {
    pthread_mutex_lock(&store->keeper_mutex);
    bool running = store->keeper_running;
    store->keeper_stop = true;
    pthread_cond_signal(&store->keeper_wake);
    pthread_mutex_unlock(&store->keeper_mutex);
    if (running)
        pthread_join(store->keeper, NULL);
    store->keeper_running = false;
}
