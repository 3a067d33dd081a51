/* os_machine.c: this machine and this process, as os.h tells: randomness, boot, clocks, sleeping, fences, forks. */
#include "os_call.h"
#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

ds_status ds__os_random(void *out, size_t size) {
    if (CALL(-1, getrandom(out, size, 0)) != (ssize_t)size)
        return ds__fail(DS_IO, errno, "cannot get %zu random bytes: %s", size, strerror(errno));
    return DS_OK;
}

ds_status ds__os_boot_id(char out[40]) {
    memset(out, 0, 40);
    /* Tests fake a reboot with this variable; a wrong value costs a rebuild of the index, never data. */
    const char *fake = getenv("DORA_STATE_BOOT_ID");
    if (fake != NULL) {
        strncpy(out, fake, 36);
        return DS_OK;
    }
    int fd = CALL(-1, open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
    ssize_t got = fd >= 0 ? CALL(-1, read(fd, out, 36)) : -1;
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (got != 36)
        return ds__fail(DS_UNSUPPORTED, error, "cannot read /proc/sys/kernel/random/boot_id: %s", strerror(error));
    return DS_OK;
}

uint64_t ds__os_pid_namespace(void) {
    struct stat info;
    return CALL(-1, stat("/proc/self/ns/pid", &info)) == 0 ? (uint64_t)info.st_ino : 0;
}

uint64_t ds__os_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static pthread_once_t shift_once = PTHREAD_ONCE_INIT;
static _Atomic int64_t boot_shift_ns, wall_shift_ns;

static void read_shift(void) {
    const char *shift = getenv("DORA_STATE_CLOCK_SHIFT");
    char *rest;
    if (shift == NULL)
        return;
    int64_t boot_s = strtoll(shift, &rest, 10);
    boot_shift_ns = boot_s * 1000000000;
    wall_shift_ns = strtoll(rest, NULL, 10) * 1000000000;
}

static uint64_t shifted(clockid_t clock, const _Atomic int64_t *shift_ns) {
    struct timespec now;
    pthread_once(&shift_once, read_shift);
    clock_gettime(clock, &now);
    int64_t ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + atomic_load_explicit(shift_ns, memory_order_relaxed);
    return ns > 0 ? (uint64_t)ns : 0;
}

uint64_t ds__os_boot_ns(void) {
    return shifted(CLOCK_BOOTTIME, &boot_shift_ns);
}

uint64_t ds__os_wall_ns(void) {
    return shifted(CLOCK_REALTIME, &wall_shift_ns);
}

void ds__os_clock_shift(int64_t boot_ns, int64_t wall_ns) {
    pthread_once(&shift_once, read_shift);
    boot_shift_ns = boot_ns;
    wall_shift_ns = wall_ns;
}

void ds__os_sleep_ms(int milliseconds) {
    (void)poll(NULL, 0, milliseconds);
}

void ds__os_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns) {
    struct timespec timeout = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    (void)syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
}

void ds__os_futex_wake(_Atomic uint32_t *word) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

bool ds__os_fence_threads(void) {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0)
        return true;
    /* The first time in this process. */
    return errno == EPERM && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0 &&
           syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0;
}

/* One page that the kernel empties in a child at fork(): a load instead of a getpid() system call in every put. */
static _Atomic(uint64_t *) stamp_page;
static atomic_uint_fast64_t stamps;

uint64_t ds__os_process_stamp(void) {
    uint64_t *page = atomic_load_explicit(&stamp_page, memory_order_acquire);
    if (page != NULL && *page != 0)
        return *page;
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&making);
    page = atomic_load_explicit(&stamp_page, memory_order_acquire);
    if (page == NULL) {
        void *fresh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED || madvise(fresh, 4096, MADV_WIPEONFORK) != 0) {
            pthread_mutex_unlock(&making);
            return (uint64_t)getpid(); /* slower, as true */
        }
        page = fresh;
    }
    if (*page == 0)
        *page = (uint64_t)getpid() << 32 | (atomic_fetch_add(&stamps, 1) + 1);
    atomic_store_explicit(&stamp_page, page, memory_order_release);
    uint64_t stamp = *page;
    pthread_mutex_unlock(&making);
    return stamp;
}
