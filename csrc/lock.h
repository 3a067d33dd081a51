/* lock.h: a robust mutex in shared memory. */
#ifndef DS_LOCK_H
#define DS_LOCK_H

#include "dora_state.h"

#include <pthread.h>

ds_status ds__lock_init(pthread_mutex_t *lock);
/* Spins a little, then sleeps up to timeout_ms (-1: for ever). DS_TIMEOUT says nothing about the owner but that it is
 * alive. *died tells that the last owner died holding it; the lock is then ours and usable all the same. */
ds_status ds__lock_take(pthread_mutex_t *lock, int timeout_ms, const char *path, bool *died);
void ds__lock_release(pthread_mutex_t *lock);

#endif
