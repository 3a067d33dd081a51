/* lock.c: taking and releasing the shared mutex. See lock.h. */
#include "lock.h"

#include "status.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* Sleeping in the kernel costs 200 ns a put with two writers, spinning on trylock 59: a put holds the lock that briefly.
 * Spinning longer would only heat a core while the owner is descheduled. */
enum { SPINS = 200 };

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

ds_status ds__lock_init(pthread_mutex_t *lock) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error == 0)
        error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (error == 0)
        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (error == 0)
        error = pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error == 0 ? DS_OK : ds__fail(DS_IO, error, "cannot make a robust mutex: %s", strerror(error));
}

static int wait_for(pthread_mutex_t *lock, int timeout_ms) {
    if (timeout_ms < 0)
        return pthread_mutex_lock(lock);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (timeout_ms % 1000) * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec += 1;
        until.tv_nsec -= 1000000000L;
    }
    /* The monotonic clock: a robot's wall clock jumps when it finds a time server. */
    return pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &until);
}

ds_status ds__lock_take(pthread_mutex_t *lock, int timeout_ms, const char *path, bool *died) {
    *died = false;
    int error = pthread_mutex_trylock(lock);
    for (int i = 0; error == EBUSY && i < SPINS; i++) {
        relax();
        error = pthread_mutex_trylock(lock);
    }
    if (error == EBUSY)
        error = wait_for(lock, timeout_ms);
    if (error == EOWNERDEAD) {
        /* At once: a repair that fails must leave a lock that others can take, and try again. */
        pthread_mutex_consistent(lock);
        *died = true;
        return DS_OK;
    }
    if (error == ETIMEDOUT)
        return ds__fail(DS_TIMEOUT, error,
                        "%s: another writer, alive but stopped or slow, held the lock for %d ms; nothing was written",
                        path, timeout_ms);
    if (error != 0)
        return ds__fail(DS_IN_USE, error, "%s: the writer lock is broken (%s); close the store in all processes", path,
                        strerror(error));
    return DS_OK;
}

void ds__lock_release(pthread_mutex_t *lock) {
    pthread_mutex_unlock(lock);
}
