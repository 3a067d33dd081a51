/* tsan_clocklock.c: linked into every test of the tsan preset in place of pthread_mutex_clocklock() (ld --wrap), which
 * the thread sanitizer of gcc 12 does not know: it would take each unlock that follows for an error. */
#include <errno.h>
#include <pthread.h>
#include <sanitizer/tsan_interface.h>

int __real_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until);
int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until);
int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
    __tsan_mutex_pre_lock(mutex, __tsan_mutex_try_lock);
    int error = __real_pthread_mutex_clocklock(mutex, clock, until);
    unsigned failed = error == 0 || error == EOWNERDEAD ? 0 : __tsan_mutex_try_lock_failed;
    __tsan_mutex_post_lock(mutex, __tsan_mutex_try_lock | failed, 0);
    return error;
}
