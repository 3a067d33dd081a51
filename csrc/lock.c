/* lock.c: taking and releasing the shared mutex. See lock.h. */
#include "lock.h"

#include "os.h"
#include "status.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* Sleeping in the kernel costs 200 ns a put with two writers, spinning on trylock 59: a put holds the lock that briefly.
 * Spinning longer would only heat a core while the owner is descheduled. */
enum { SPINS = 200, PATIENCE_MS = 1 };

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

ds_status ds__lock_init(struct ds_lock *lock) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error == 0)
        error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (error == 0)
        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (error == 0)
        error = pthread_mutex_init(&lock->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error == 0 ? DS_OK : ds__fail(DS_IO, error, "cannot make a robust mutex: %s", strerror(error));
}

static int wait_for(pthread_mutex_t *mutex, int timeout_ms) {
    if (timeout_ms < 0)
        return pthread_mutex_lock(mutex);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (timeout_ms % 1000) * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec += 1;
        until.tv_nsec -= 1000000000L;
    }
    /* The monotonic clock: a robot's wall clock jumps when it finds a time server. */
    return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &until);
}

static int wait_patiently(struct ds_lock *lock, int timeout_ms) {
    int error = timeout_ms >= 0 && timeout_ms <= PATIENCE_MS ? ETIMEDOUT : wait_for(&lock->mutex, PATIENCE_MS);
    if (error != ETIMEDOUT)
        return error;
    atomic_store_explicit(&lock->starving, 1, memory_order_relaxed);
    error = wait_for(&lock->mutex, timeout_ms);
    /* Also after a time-out: a waiter that went away must not slow the others down. */
    atomic_store_explicit(&lock->starving, 0, memory_order_relaxed);
    return error;
}

static ds_status judge(struct ds_lock *lock, const char *holder, int error, int timeout_ms, const char *path,
                       bool *died) {
    *died = error == EOWNERDEAD;
    if (error == EOWNERDEAD) {
        /* At once: a repair that fails must leave a lock that others can take, and try again. */
        pthread_mutex_consistent(&lock->mutex);
        return DS_OK;
    }
    if (error == ETIMEDOUT)
        return ds__fail(DS_TIMEOUT, error,
                        "%s: %s, alive but stopped or slow, held its lock for %d ms; nothing was written", path, holder,
                        timeout_ms);
    if (error != 0)
        return ds__fail(DS_IN_USE, error, "%s: the lock of %s is broken (%s); close the store in all processes", path,
                        holder, strerror(error));
    return DS_OK;
}

ds_status ds__lock_take(struct ds_lock *lock, const char *holder, int timeout_ms, const char *path, bool *died) {
    if (atomic_load_explicit(&lock->starving, memory_order_relaxed) != 0) {
        /* Once, and whoever set it may be dead: clear it, so that it costs at most this. */
        ds__os_sleep_ms(1);
        atomic_store_explicit(&lock->starving, 0, memory_order_relaxed);
    }
    int error = pthread_mutex_trylock(&lock->mutex);
    for (int i = 0; error == EBUSY && i < SPINS; i++) {
        relax();
        error = pthread_mutex_trylock(&lock->mutex);
    }
    if (error == EBUSY)
        error = wait_patiently(lock, timeout_ms);
    return judge(lock, holder, error, timeout_ms, path, died);
}

ds_status ds__lock_try(struct ds_lock *lock, const char *holder, const char *path, bool *taken, bool *died) {
    *taken = *died = false;
    /* Who waits takes longer to wake than this would take: it has its turn first. Once, as above. */
    if (atomic_exchange_explicit(&lock->starving, 0, memory_order_relaxed) != 0)
        return DS_OK;
    int error = pthread_mutex_trylock(&lock->mutex);
    *taken = error != EBUSY;
    return *taken ? judge(lock, holder, error, 0, path, died) : DS_OK;
}

void ds__lock_release(struct ds_lock *lock) {
    pthread_mutex_unlock(&lock->mutex);
}
