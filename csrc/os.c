/* os.c: system calls, one small wrapper each. See os.h. */
#include "os.h"

#include "sigbus.h"
#include "status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE  2
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* ---- faults ---------------------------------------------------------------------------------------------------- */

#ifdef DS_FAULTS
static atomic_uint_fast64_t fault_calls, fault_at;
static atomic_int fault_error;
static atomic_bool fault_forever;

uint64_t ds__os_fault_arm(uint64_t at, int error, bool forever) {
    fault_at = at;
    fault_error = error;
    fault_forever = forever;
    return atomic_exchange(&fault_calls, 0);
}

static bool fault(void) {
    uint64_t call = atomic_fetch_add(&fault_calls, 1) + 1;
    uint64_t at = fault_at;
    if (at == 0 || call < at || (call > at && !fault_forever))
        return false;
    errno = fault_error;
    return true;
}
#define CALL(failure, call) (fault() ? (failure) : (call))
#else
#define CALL(failure, call) (call)
#endif

/* ---- messages -------------------------------------------------------------------------------------------------- */

static ds_status fail_file(const struct ds_directory *directory, const char *name, const char *what) {
    int error = errno;
    ds_status status = DS_IO;
    const char *hint = "";
    if (error == ENOSPC || error == EDQUOT) {
        status = DS_FULL;
        hint = "; what was stored before is intact; free some space and try again";
    } else if (error == EFBIG) {
        status = DS_TOO_LARGE;
        hint = "; nothing was written: split the value, or use a file system with a higher limit";
    } else if (error == ENOMEM) {
        status = DS_NO_MEMORY;
    } else if (error == EMFILE || error == ENFILE) {
        hint = "; close some files or raise the limit (ulimit -n)";
    } else if (error == EROFS) {
        hint = "; open the store with read_only, or make the file system writable";
    } else if (error == EACCES || error == EPERM) {
        hint = "; check the owner and the mode of the directory and its files";
    } else if (error == ELOOP) {
        hint = "; a store's files must not be symbolic links";
    }
    return ds__fail(status, error, "%s/%s: cannot %s: %s%s", directory->path, name, what, strerror(error), hint);
}

/* A process may have closed its standard streams. A file of ours that took the place of one would take in what any library
 * prints, which has destroyed databases. */
static int beyond_standard(int fd) {
    if (fd < 0 || fd > 2)
        return fd;
    int moved = CALL(-1, fcntl(fd, F_DUPFD_CLOEXEC, 3)), error = errno;
    close(fd);
    errno = error;
    return moved;
}

/* ---- directories ----------------------------------------------------------------------------------------------- */

/* Network file systems and FUSE do not keep mappings coherent between machines; btrfs's copy on write moves the
 * blocks that fallocate reserved, so a full disk kills a writer. */
static bool supported(const struct statfs *fs) {
    switch ((unsigned long)fs->f_type) {
    case 0xEF53:     /* ext2, ext3, ext4 */
    case 0x58465342: /* xfs */
    case 0x01021994: /* tmpfs */
    case 0x794c7630: /* overlayfs: new files are on its upper layer */
        return true;
    default:
        return false;
    }
}

static ds_status fail_path(const char *path, const char *what) {
    struct ds_directory shown = {.fd = -1, .path = (char *)(uintptr_t)path};
    int error = errno;
    if (error == ENOENT || error == ENOTDIR)
        return ds__fail(DS_NOT_A_STORE, error, "%s: cannot %s: %s; give the directory of a store", path, what,
                        strerror(error));
    ds_status status = fail_file(&shown, "", what);
    return status;
}

ds_status ds__os_directory_open(const char *path, bool create, bool read_only, struct ds_directory *out) {
    bool made = false;
    if (create && !read_only) {
        if (CALL(-1, mkdir(path, 0700)) == 0)
            made = true;
        else if (errno != EEXIST)
            return fail_path(path, "make the directory");
    }
    int fd = beyond_standard(CALL(-1, open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
    if (fd < 0)
        return fail_path(path, "open the directory");
    struct stat info;
    struct statfs fs;
    ds_status status = DS_OK;
    if (made && CALL(-1, fchmod(fd, 0700)) != 0) /* whatever the umask made of it */
        status = fail_path(path, "set the mode of the directory");
    else if (CALL(-1, fstat(fd, &info)) != 0 || CALL(-1, fstatfs(fd, &fs)) != 0)
        status = fail_path(path, "look at the directory");
    else if (!read_only && geteuid() != 0 && info.st_uid != geteuid())
        status = ds__fail(DS_IO, EPERM, "%s: belongs to user %u, not to you (%u); a store has one owner", path,
                          (unsigned)info.st_uid, (unsigned)geteuid());
    else if (!supported(&fs))
        status =
            ds__fail(DS_UNSUPPORTED, 0,
                     "%s: file system type 0x%lx cannot keep a store's promises; use ext4, xfs, tmpfs or overlayfs",
                     path, (unsigned long)fs.f_type);
    char *copy = status == DS_OK ? strdup(path) : NULL;
    if (status == DS_OK && copy == NULL)
        status = ds__fail(DS_NO_MEMORY, ENOMEM, "%s: out of memory", path);
    if (status != DS_OK) {
        close(fd);
        return status;
    }
    out->fd = fd;
    out->path = copy;
    out->owner = info.st_uid;
    return DS_OK;
}

void ds__os_directory_close(struct ds_directory *directory) {
    if (directory->fd >= 0)
        close(directory->fd);
    directory->fd = -1;
    free(directory->path);
    directory->path = NULL;
}

ds_status ds__os_directory_sync(const struct ds_directory *directory) {
    if (CALL(-1, fsync(directory->fd)) != 0)
        return fail_file(directory, "", "sync the directory");
    return DS_OK;
}

ds_status ds__os_directory_list(const struct ds_directory *directory, ds_status (*visit)(void *, const char *),
                                void *context) {
    int fd = CALL(-1, openat(directory->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR *entries = fd >= 0 ? fdopendir(fd) : NULL;
    if (entries == NULL) {
        ds_status status = fail_file(directory, "", "list the directory");
        if (fd >= 0)
            close(fd);
        return status;
    }
    ds_status status = DS_OK;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(entries);
        if (entry == NULL) {
            if (errno != 0)
                status = fail_file(directory, "", "list the directory");
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        status = visit(context, entry->d_name);
        if (status != DS_OK)
            break;
    }
    closedir(entries);
    return status;
}

ds_status ds__os_directory_check(const struct ds_directory *directory, bool *there, bool *ours) {
    struct stat opened, named;
    if (CALL(-1, fstat(directory->fd, &opened)) != 0)
        return fail_file(directory, "", "look at the directory");
    *there = stat(directory->path, &named) == 0 && named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
    *ours = opened.st_uid == geteuid();
    return DS_OK;
}

ds_status ds__os_real_path(const char *path, char out[DS_PATH_SIZE]) {
    char *real = CALL(NULL, realpath(path, NULL));
    if (real == NULL)
        return fail_path(path, "find the directory");
    bool fits = strlen(real) < DS_PATH_SIZE;
    if (fits)
        memcpy(out, real, strlen(real) + 1);
    free(real);
    return fits ? DS_OK : ds__fail(DS_INVALID, ENAMETOOLONG, "%s: the path is too long", path);
}

ds_status ds__os_directory_remove(const char *path) {
    if (CALL(-1, rmdir(path)) != 0 && errno != ENOENT)
        return fail_path(path, "remove the directory");
    return DS_OK;
}

/* Not renameat2(): musl had none for long. */
static int rename_at(const char *from, const char *to, unsigned flags) {
    return CALL(-1, (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags));
}

static ds_status fail_rename(const char *path) {
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
        return ds__fail(DS_UNSUPPORTED, errno,
                        "%s: this file system cannot exchange two directories in one step; copy the store to one that "
                        "can (ext4, xfs, tmpfs)",
                        path);
    return fail_path(path, "rename the directory");
}

ds_status ds__os_directory_rename(const char *from, const char *to) {
    if (rename_at(from, to, RENAME_NOREPLACE) == 0)
        return DS_OK;
    if (errno == EEXIST)
        return ds__fail(DS_CONFLICT, EEXIST, "%s: exists", to);
    return fail_rename(from);
}

ds_status ds__os_directory_exchange(const char *a, const char *b) {
    return rename_at(a, b, RENAME_EXCHANGE) == 0 ? DS_OK : fail_rename(b);
}

ds_status ds__os_parent_sync(const char *path) {
    char parent[DS_PATH_SIZE];
    snprintf(parent, sizeof parent, "%s/..", path);
    int fd = CALL(-1, open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd < 0)
        return fail_path(parent, "open the directory");
    ds_status status = CALL(-1, fsync(fd)) == 0 ? DS_OK : fail_path(parent, "sync the directory");
    close(fd);
    return status;
}

ds_status ds__os_link(const struct ds_directory *from, const struct ds_directory *to, const char *name) {
    if (CALL(-1, linkat(from->fd, name, to->fd, name, 0)) == 0)
        return DS_OK;
    if (errno == ENOENT)
        return ds__fail(DS_MISSING, ENOENT, "%s/%s: no such file", from->path, name);
    if (errno == EEXIST)
        return ds__fail(DS_CONFLICT, EEXIST, "%s/%s: exists", to->path, name);
    return fail_file(from, name, "link");
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

/* A file that is made is always a new one: whatever has its name already, a draft of a dead process, a link to elsewhere or a
 * FIFO, loses that name and keeps its bytes. Without O_NONBLOCK the open of a FIFO would wait for its other end. */
static int open_file(const struct ds_directory *directory, const char *name, int mode) {
    if (mode != DS_OS_CREATE)
        return CALL(-1, openat(directory->fd, name,
                               O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (mode == DS_OS_READ ? O_RDONLY : O_RDWR)));
    int fd, flags = O_CLOEXEC | O_RDWR | O_CREAT | O_EXCL;
    for (int tries = 0; (fd = CALL(-1, openat(directory->fd, name, flags, 0600))) < 0 && errno == EEXIST && tries < 2;
         tries++)
        if (CALL(-1, unlinkat(directory->fd, name, 0)) != 0 && errno != ENOENT)
            return -1;
    return fd;
}

/* Is what was opened one of ours: a file, of the directory's owner, of this user, or of root? */
static ds_status check_file(const struct ds_directory *directory, const char *name, int fd) {
    struct stat info;
    if (CALL(-1, fstat(fd, &info)) != 0)
        return fail_file(directory, name, "look at");
    if (!S_ISREG(info.st_mode))
        return ds__fail(DS_NOT_A_STORE, 0, "%s/%s: not a regular file", directory->path, name);
    if (info.st_uid != directory->owner && info.st_uid != geteuid() && info.st_uid != 0)
        return ds__fail(DS_IO, EPERM, "%s/%s: belongs to user %u, neither to you nor to the store's owner; remove it",
                        directory->path, name, (unsigned)info.st_uid);
    return DS_OK;
}

ds_status ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd) {
    *fd = -1;
    int opened = beyond_standard(open_file(directory, name, mode));
    if (opened < 0) {
        if (errno == ENOENT && mode != DS_OS_CREATE)
            return ds__fail(DS_MISSING, ENOENT, "%s/%s: no such file", directory->path, name);
        return fail_file(directory, name, mode == DS_OS_CREATE ? "create" : "open");
    }
    ds_status status = check_file(directory, name, opened);
    if (status == DS_OK && mode == DS_OS_CREATE && CALL(-1, fchmod(opened, 0600)) != 0)
        status = fail_file(directory, name, "set the mode");
    if (status != DS_OK) {
        close(opened);
        return status;
    }
    *fd = opened;
    return DS_OK;
}

ds_status ds__os_open_unnamed(const struct ds_directory *directory, int *fd) {
    *fd = CALL(-1, openat(directory->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (*fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT))
        return ds__fail(DS_UNSUPPORTED, errno, "%s: files without a name are not supported", directory->path);
    if (*fd < 0)
        return fail_file(directory, "", "create a file without a name");
    return CALL(-1, fchmod(*fd, 0600)) == 0 ? DS_OK : fail_file(directory, "", "set the mode of a file without a name");
}

ds_status ds__os_link_unnamed(const struct ds_directory *directory, int fd, const char *name) {
    /* By its name in /proc: linking a descriptor itself needs a privilege before Linux 6.10. */
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (CALL(-1, linkat(AT_FDCWD, path, directory->fd, name, AT_SYMLINK_FOLLOW)) == 0)
        return DS_OK;
    if (errno == EEXIST)
        return ds__fail(DS_CONFLICT, EEXIST, "%s/%s: exists", directory->path, name);
    return fail_file(directory, name, "name");
}

void ds__os_close(int fd) {
    if (fd >= 0)
        close(fd);
}

ds_status ds__os_size(const struct ds_directory *directory, const char *name, int fd, uint64_t *size) {
    struct stat info;
    if (CALL(-1, fstat(fd, &info)) != 0)
        return fail_file(directory, name, "look at");
    if (!S_ISREG(info.st_mode))
        return ds__fail(DS_NOT_A_STORE, 0, "%s/%s: not a regular file", directory->path, name);
    *size = (uint64_t)info.st_size;
    return DS_OK;
}

ds_status ds__os_identity(const struct ds_directory *directory, const char *name, int fd, struct ds_identity *out) {
    struct statx info;
    if (CALL(-1, statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &info)) != 0)
        return fail_file(directory, name, "look at");
    out->device = (uint64_t)info.stx_dev_major << 32 | info.stx_dev_minor;
    out->inode = info.stx_ino;
    out->birth_ns = 0;
    if (info.stx_mask & STATX_BTIME)
        out->birth_ns = (uint64_t)info.stx_btime.tv_sec * 1000000000u + info.stx_btime.tv_nsec;
    return DS_OK;
}

ds_status ds__os_allocate(const struct ds_directory *directory, const char *name, int fd, uint64_t size) {
    int result;
    if (size > INT64_MAX) {
        errno = EFBIG;
        return fail_file(directory, name, "allocate");
    }
    do
        /* The raw call: glibc's posix_fallocate emulates it where it is missing, by writes that race with others. */
        result = CALL(-1, (int)syscall(SYS_fallocate, fd, 0, (off_t)0, (off_t)size));
    while (result != 0 && errno == EINTR);
    return result == 0 ? DS_OK : fail_file(directory, name, "allocate");
}

ds_status ds__os_read(const struct ds_directory *directory, const char *name, int fd, void *out, size_t size,
                      uint64_t at, size_t *got) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = CALL(-1, pread(fd, (char *)out + done, size - done, (off_t)(at + done)));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_file(directory, name, "read");
        if (n == 0)
            break;
        done += (size_t)n;
    }
    *got = done;
    return DS_OK;
}

ds_status ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *data, size_t size,
                       uint64_t at) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = CALL(-1, pwrite(fd, (const char *)data + done, size - done, (off_t)(at + done)));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_file(directory, name, "write");
        done += (size_t)n;
    }
    return DS_OK;
}

ds_status ds__os_datasync(const struct ds_directory *directory, const char *name, int fd) {
    if (CALL(-1, fdatasync(fd)) != 0)
        return fail_file(directory, name, "sync");
    return DS_OK;
}

ds_status ds__os_rename(const struct ds_directory *directory, const char *from, const char *to) {
    if (CALL(-1, renameat(directory->fd, from, directory->fd, to)) != 0)
        return fail_file(directory, from, "rename");
    return DS_OK;
}

ds_status ds__os_unlink(const struct ds_directory *directory, const char *name) {
    if (CALL(-1, unlinkat(directory->fd, name, 0)) != 0 && errno != ENOENT)
        return fail_file(directory, name, "remove");
    return DS_OK;
}

enum { HUGE_FROM = 2 * 1024 * 1024 };

/* ---- mappings -------------------------------------------------------------------------------------------------- */

ds_status ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size, bool writable,
                     void **out) {
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void *address = CALL(MAP_FAILED, mmap(NULL, size, protection, MAP_SHARED, fd, 0));
    if (address == MAP_FAILED)
        return fail_file(directory, name, "map");
    if (!ds__sigbus_guard(address, size)) {
        munmap(address, size);
        return ds__fail(DS_NO_MEMORY, ENOMEM, "%s/%s: out of memory", directory->path, name);
    }
    *out = address;
    return DS_OK;
}

ds_status ds__os_map_anonymous(uint64_t size, void **out) {
    void *address = CALL(MAP_FAILED, mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (address == MAP_FAILED)
        return ds__fail(DS_NO_MEMORY, errno, "cannot map %llu bytes of memory", (unsigned long long)size);
    if (size >= HUGE_FROM) /* what is mapped so is an index, accessed all over */
        ds__os_large_pages(address, size);
    *out = address;
    return DS_OK;
}

void ds__os_large_pages(void *address, uint64_t size) {
    (void)madvise(address, size, MADV_HUGEPAGE);
}

void ds__os_unmap(void *address, uint64_t size) {
    if (address == NULL)
        return;
    ds__sigbus_release(address);
    munmap(address, size);
}

void ds__os_populate(void *address, uint64_t size) {
    (void)madvise(address, size, MADV_POPULATE_WRITE);
}

void ds__os_let_go(void *address, uint64_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)address + page - 1) / page * page, to = ((uintptr_t)address + size) / page * page;
    if (from < to)
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

ds_status ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address, uint64_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)address / page * page;
    size_t length = (size_t)((uintptr_t)address + size - start);
    if (CALL(-1, msync((void *)start, length, MS_SYNC)) != 0)
        return fail_file(directory, name, "sync");
    return DS_OK;
}

/* ---- locks, clocks, identities ------------------------------------------------------------------------------------ */

ds_status ds__os_flock(const struct ds_directory *directory, const char *name, int fd, int kind, int timeout_ms) {
    int operation = kind == DS_OS_EXCLUSIVE ? LOCK_EX : LOCK_SH;
    uint64_t deadline = ds__os_now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
    for (;;) {
        if (CALL(-1, flock(fd, operation | LOCK_NB)) == 0)
            return DS_OK;
        if (errno == EINTR)
            continue;
        if (errno != EWOULDBLOCK)
            return fail_file(directory, name, "lock");
        if (timeout_ms >= 0 && ds__os_now_ns() >= deadline)
            return ds__fail(DS_TIMEOUT, ETIMEDOUT, "%s/%s: another process holds its file lock", directory->path, name);
        ds__os_sleep_ms(1); /* only opening and closing wait here, never a put or a get */
    }
}

void ds__os_unlock(int fd) {
    (void)flock(fd, LOCK_UN);
}

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
    ssize_t got = fd >= 0 ? read(fd, out, 36) : -1;
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (got != 36)
        return ds__fail(DS_UNSUPPORTED, error, "cannot read /proc/sys/kernel/random/boot_id: %s", strerror(error));
    return DS_OK;
}

uint64_t ds__os_pid_namespace(void) {
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? (uint64_t)info.st_ino : 0;
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
