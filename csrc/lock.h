/* lock.h: a robust mutex in shared memory. */
#ifndef DS_LOCK_H
#define DS_LOCK_H

#include "dora_state.h"

#include <pthread.h>
#include <stdatomic.h>

struct ds_lock {
    pthread_mutex_t mutex;
    /* Set by a waiter that has slept for 1 ms. The mutex is unfair: a busy writer takes it again before the one it woke
     * is running, and a waiter was seen to starve for 10 s beside 100,000 commits. Whoever finds it set waits once, or leaves
     * it to the waiter. */
    _Atomic uint32_t starving;
};

ds_status ds__lock_init(struct ds_lock *lock);
/* Spins a little, then sleeps up to timeout_ms (-1: for ever). DS_TIMEOUT says nothing about the owner but that it is
 * alive; its sentence names the owner by what it does ("another writer"), and ends in the advice of a commit: who waits for
 * something else gives another (ds__advise). *died tells that the last owner died holding it; the lock is then ours and
 * usable all the same. */
ds_status ds__lock_take(struct ds_lock *lock, const char *holder, int timeout_ms, const char *path, bool *died);
/* As take, but gives up at once, also where somebody has waited for 1 ms. *taken tells whether it is ours. */
ds_status ds__lock_try(struct ds_lock *lock, const char *holder, const char *path, bool *taken, bool *died);
void ds__lock_release(struct ds_lock *lock);

/* After ds__lock_release(): what was stored before it is visible before anything is loaded behind it. Giving back a mutex
 * that others may wait for takes an instruction that reads and writes at once, and on x86 each of those is a full
 * fence already, so only the compiler needs to be told. Elsewhere it releases, and no more. */
static inline void ds__fence_after_unlock(void) {
#if defined(__x86_64__)
    atomic_signal_fence(memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

#endif
