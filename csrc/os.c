/* os.c: files, their locks and mappings: system calls, one small wrapper each. See os.h. */
#include "os_call.h"
#include "sigbus.h"
#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* ---- faults ---------------------------------------------------------------------------------------------------- */

#ifdef DS_FAULTS
static atomic_uint_fast64_t fault_calls, fault_at;
static atomic_int fault_error;
static atomic_bool fault_forever;
static _Atomic(const struct ds_os_site *) fault_only;
bool ds__os_fault(void); /* tests make allocations fail by it */

uint64_t ds__os_fault_arm(uint64_t at, int error, bool forever) {
    fault_at = at;
    fault_error = error;
    fault_forever = forever;
    return atomic_exchange(&fault_calls, 0);
}

bool ds__os_fault(void) {
    uint64_t call = atomic_fetch_add(&fault_calls, 1) + 1;
    uint64_t at = fault_at;
    if (at == 0 || call < at || (call > at && !fault_forever))
        return false;
    errno = fault_error;
    return true;
}

bool ds__os_fault_at(const struct ds_os_site *site) {
    const struct ds_os_site *only = fault_only;
    return (only == NULL || only == site) && ds__os_fault();
}

void ds__os_fault_only(const struct ds_os_site *site) {
    fault_only = site;
}

extern const struct ds_os_site __start_ds_os_sites[], __stop_ds_os_sites[]; /* the linker's */

const struct ds_os_site *ds__os_sites(size_t *count) {
    *count = (size_t)(__stop_ds_os_sites - __start_ds_os_sites);
    return __start_ds_os_sites;
}
#endif

/* ---- messages -------------------------------------------------------------------------------------------------- */

ds_status ds__os_fail(const struct ds_directory *directory, const char *name, const char *what) {
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

int ds__os_beyond_standard(int fd) {
    if (fd < 0 || fd > 2)
        return fd;
    int moved = CALL(-1, fcntl(fd, F_DUPFD_CLOEXEC, 3)), error = errno;
    close(fd);
    errno = error;
    return moved;
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

/* Not by fstat(), which asks for the times as well: since Linux 6.13 the next write to a file whose times somebody has seen
 * takes a new one and dirties the inode, and a sync then writes that, too: 165 us for a durable put in place of 110. */
static int look(int fd, struct statx *info) {
    return CALL(-1, statx(fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_UID | STATX_SIZE, info));
}

/* Is what was opened one of ours: a file, of the directory's owner, of this user, or of root? */
static ds_status check_file(const struct ds_directory *directory, const char *name, int fd) {
    struct statx info;
    if (look(fd, &info) != 0)
        return ds__os_fail(directory, name, "look at");
    if (!S_ISREG(info.stx_mode))
        return ds__fail(DS_NOT_A_STORE, 0, "%s/%s: not a regular file", directory->path, name);
    if (info.stx_uid != directory->owner && info.stx_uid != geteuid() && info.stx_uid != 0)
        return ds__fail(DS_IO, EPERM, "%s/%s: belongs to user %u, neither to you nor to the store's owner; remove it",
                        directory->path, name, (unsigned)info.stx_uid);
    return DS_OK;
}

ds_status ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd) {
    *fd = -1;
    int opened = ds__os_beyond_standard(open_file(directory, name, mode));
    if (opened < 0) {
        if (errno == ENOENT && mode != DS_OS_CREATE)
            return ds__fail(DS_MISSING, ENOENT, "%s/%s: no such file", directory->path, name);
        return ds__os_fail(directory, name, mode == DS_OS_CREATE ? "create" : "open");
    }
    ds_status status = check_file(directory, name, opened);
    if (status == DS_OK && mode == DS_OS_CREATE && CALL(-1, fchmod(opened, 0600)) != 0)
        status = ds__os_fail(directory, name, "set the mode");
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
        return ds__os_fail(directory, "", "create a file without a name");
    return CALL(-1, fchmod(*fd, 0600)) == 0 ? DS_OK
                                            : ds__os_fail(directory, "", "set the mode of a file without a name");
}

ds_status ds__os_link_unnamed(const struct ds_directory *directory, int fd, const char *name) {
    /* By its name in /proc: linking a descriptor itself needs a privilege before Linux 6.10. */
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (CALL(-1, linkat(AT_FDCWD, path, directory->fd, name, AT_SYMLINK_FOLLOW)) == 0)
        return DS_OK;
    if (errno == EEXIST)
        return ds__fail(DS_CONFLICT, EEXIST, "%s/%s: exists", directory->path, name);
    return ds__os_fail(directory, name, "name");
}

void ds__os_close(int fd) {
    if (fd >= 0)
        close(fd);
}

ds_status ds__os_size(const struct ds_directory *directory, const char *name, int fd, uint64_t *size) {
    struct statx info;
    if (look(fd, &info) != 0)
        return ds__os_fail(directory, name, "look at");
    if (!S_ISREG(info.stx_mode))
        return ds__fail(DS_NOT_A_STORE, 0, "%s/%s: not a regular file", directory->path, name);
    *size = info.stx_size;
    return DS_OK;
}

ds_status ds__os_identity(const struct ds_directory *directory, const char *name, int fd, struct ds_identity *out) {
    struct statx info;
    if (CALL(-1, statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &info)) != 0)
        return ds__os_fail(directory, name, "look at");
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
        return ds__os_fail(directory, name, "allocate");
    }
    do
        /* The raw call: glibc's posix_fallocate emulates it where it is missing, by writes that race with others. */
        result = CALL(-1, (int)syscall(SYS_fallocate, fd, 0, (off_t)0, (off_t)size));
    while (result != 0 && errno == EINTR);
    return result == 0 ? DS_OK : ds__os_fail(directory, name, "allocate");
}

ds_status ds__os_read(const struct ds_directory *directory, const char *name, int fd, void *out, size_t size,
                      uint64_t at, size_t *got) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = CALL(-1, pread(fd, (char *)out + done, size - done, (off_t)(at + done)));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ds__os_fail(directory, name, "read");
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
            return ds__os_fail(directory, name, "write");
        done += (size_t)n;
    }
    return DS_OK;
}

ds_status ds__os_write_zeros(const struct ds_directory *directory, const char *name, int fd, uint64_t size) {
    static const char zeros[DS_OS_PIECE];
    ds_status status = DS_OK;
    for (uint64_t at = 0; status == DS_OK && at < size; at += DS_OS_PIECE)
        status = ds__os_write(directory, name, fd, zeros, size - at < DS_OS_PIECE ? size - at : DS_OS_PIECE, at);
    return status;
}

ds_status ds__os_datasync(const struct ds_directory *directory, const char *name, int fd) {
    if (CALL(-1, fdatasync(fd)) != 0)
        return ds__os_fail(directory, name, "sync");
    return DS_OK;
}

ds_status ds__os_rename(const struct ds_directory *directory, const char *from, const char *to) {
    if (CALL(-1, renameat(directory->fd, from, directory->fd, to)) != 0)
        return ds__os_fail(directory, from, "rename");
    return DS_OK;
}

ds_status ds__os_unlink(const struct ds_directory *directory, const char *name) {
    if (CALL(-1, unlinkat(directory->fd, name, 0)) != 0 && errno != ENOENT)
        return ds__os_fail(directory, name, "remove");
    return DS_OK;
}

/* ---- locks ------------------------------------------------------------------------------------------------------- */

ds_status ds__os_flock(const struct ds_directory *directory, const char *name, int fd, int kind, int timeout_ms) {
    int operation = kind == DS_OS_EXCLUSIVE ? LOCK_EX : LOCK_SH;
    uint64_t deadline = ds__os_now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
    for (;;) {
        if (CALL(-1, flock(fd, operation | LOCK_NB)) == 0)
            return DS_OK;
        if (errno == EINTR)
            continue;
        if (errno != EWOULDBLOCK)
            return ds__os_fail(directory, name, "lock");
        if (timeout_ms >= 0 && ds__os_now_ns() >= deadline)
            return ds__fail(DS_TIMEOUT, ETIMEDOUT, "%s/%s: another process holds its file lock", directory->path, name);
        ds__os_sleep_ms(1); /* only opening and closing wait here, never a put or a get */
    }
}

void ds__os_unlock(int fd) {
    (void)flock(fd, LOCK_UN);
}

/* ---- mappings -------------------------------------------------------------------------------------------------- */

ds_status ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size, bool writable,
                     void **out) {
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void *address = CALL(MAP_FAILED, mmap(NULL, size, protection, MAP_SHARED, fd, 0));
    if (address == MAP_FAILED)
        return ds__os_fail(directory, name, "map");
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
    if (size >= DS_OS_LARGE_PAGE) /* what is mapped so is an index, accessed all over */
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

void ds__os_populate_read(void *address, uint64_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)address / page * page;
    (void)madvise((void *)from, (uintptr_t)address + size - from, MADV_POPULATE_READ);
}

ds_status ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address, uint64_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)address / page * page;
    size_t length = (size_t)((uintptr_t)address + size - start);
    if (CALL(-1, msync((void *)start, length, MS_SYNC)) != 0)
        return ds__os_fail(directory, name, "sync");
    return DS_OK;
}
