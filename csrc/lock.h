/* lock.h: a robust mutex in shared memory. */
#ifndef DS_LOCK_H
#define DS_LOCK_H

#include "dora_state.h"

#include <pthread.h>
#include <stdatomic.h>

struct ds_lock {
    pthread_mutex_t mutex;
    /* Set by a waiter that has slept for 1 ms. The mutex is unfair: a busy writer takes it again before the one it woke
     * is running, and a waiter was seen to starve for 10 s beside 100,000 commits. Whoever finds it set waits once. */
    _Atomic uint32_t starving;
};

ds_status ds__lock_init(struct ds_lock *lock);
/* Spins a little, then sleeps up to timeout_ms (-1: for ever). DS_TIMEOUT says nothing about the owner but that it is
 * alive. *died tells that the last owner died holding it; the lock is then ours and usable all the same. */
ds_status ds__lock_take(struct ds_lock *lock, int timeout_ms, const char *path, bool *died);
/* As take, but gives up at once. *taken tells whether it is ours. */
ds_status ds__lock_try(struct ds_lock *lock, const char *path, bool *taken, bool *died);
void ds__lock_release(struct ds_lock *lock);

#endif
