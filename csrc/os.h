/* os.h: every system call the engine makes, and nothing else makes one. Faults are injected here. Directories are in
 * os_directory.c, the clocks and all that is no file in os_machine.c, the rest in os.c.
 *
 * The calls return a ds_status and have already told ds__fail() which file and why. */
#ifndef DS_OS_H
#define DS_OS_H

#include "dora_state.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A store's directory: its descriptor for *at() calls, its path for messages. */
struct ds_directory {
    int fd;
    char *path;
    uid_t owner;
};

/* Who a file is, so that a copy of it can be told from the file itself. */
struct ds_identity {
    uint64_t device;
    uint64_t inode;
    uint64_t birth_ns; /* 0 where the file system does not keep it */
};

/* Opens `path` as a directory of ours; makes it (0700) when `create`. DS_MISSING-free: a missing one is
 * DS_NOT_A_STORE. Refuses file systems that cannot keep the promises and directories of other users. */
ds_status ds__os_directory_open(const char *path, bool create, bool read_only, struct ds_directory *out);
void ds__os_directory_close(struct ds_directory *directory);
ds_status ds__os_directory_sync(const struct ds_directory *directory);
/* Calls `visit` with each name but . and ..; stops at the first status that is not DS_OK and returns it. */
ds_status ds__os_directory_list(const struct ds_directory *directory, ds_status (*visit)(void *, const char *),
                                void *context);

/* Is the directory still the one at its path, and does it belong to this user? */
ds_status ds__os_directory_check(const struct ds_directory *directory, bool *there, bool *ours);
enum { DS_PATH_SIZE = 4096 };
/* Without symbolic links, dots and trailing slashes. */
ds_status ds__os_real_path(const char *path, char out[DS_PATH_SIZE]);
ds_status ds__os_directory_remove(const char *path); /* an empty or a missing one */
/* DS_CONFLICT, quietly, when `to` is there already. */
ds_status ds__os_directory_rename(const char *from, const char *to);
/* Each gets the other's name, in one step. DS_UNSUPPORTED where the file system cannot. */
ds_status ds__os_directory_exchange(const char *a, const char *b);
/* Puts the directory that holds `path` on disk. */
ds_status ds__os_parent_sync(const char *path);
/* One more name, in another directory. DS_MISSING, quietly, when the file is not there; DS_CONFLICT when the name is taken. */
ds_status ds__os_link(const struct ds_directory *from, const struct ds_directory *to, const char *name);

enum { DS_OS_READ = 0, DS_OS_WRITE = 1, DS_OS_CREATE = 3 };
/* Opens a file of the directory, never through a symbolic link, and only a regular one of its owner. DS_OS_CREATE makes a new
 * one, empty and 0600, in place of any that has the name. Sets *fd to -1 and returns DS_MISSING, quietly, when it is not
 * there. */
ds_status ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd);
void ds__os_close(int fd);
/* A new file without a name, 0600: it is gone with its last descriptor and mapping, unless it gets a name. DS_UNSUPPORTED,
 * where the file system has none. */
ds_status ds__os_open_unnamed(const struct ds_directory *directory, int *fd);
/* Gives it one. DS_CONFLICT when that is taken. */
ds_status ds__os_link_unnamed(const struct ds_directory *directory, int fd, const char *name);
ds_status ds__os_size(const struct ds_directory *directory, const char *name, int fd, uint64_t *size);
ds_status ds__os_identity(const struct ds_directory *directory, const char *name, int fd, struct ds_identity *out);
/* Gives the file `size` bytes of zeros with blocks behind them: a store into an unbacked page on a full disk would
 * kill the process. */
ds_status ds__os_allocate(const struct ds_directory *directory, const char *name, int fd, uint64_t size);
/* Writes zeros over the file's zeros: the file system then keeps its bytes in memory in pieces of this size, where it can (ext4
 * from Linux 6.16, xfs), and each takes one page fault instead of one for each page. A sync writes a piece as a whole. */
enum { DS_OS_PIECE = 64 * 1024 };
ds_status ds__os_write_zeros(const struct ds_directory *directory, const char *name, int fd, uint64_t size);
ds_status ds__os_read(const struct ds_directory *directory, const char *name, int fd, void *out, size_t size,
                      uint64_t at, size_t *got);
ds_status ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *data, size_t size,
                       uint64_t at);
ds_status ds__os_datasync(const struct ds_directory *directory, const char *name, int fd);
ds_status ds__os_rename(const struct ds_directory *directory, const char *from, const char *to);
/* A missing file is fine. */
ds_status ds__os_unlink(const struct ds_directory *directory, const char *name);

ds_status ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size, bool writable,
                     void **out);
ds_status ds__os_map_anonymous(uint64_t size, void **out);
void ds__os_unmap(void *address, uint64_t size);
/* Takes the page faults of a range now, writable, where the kernel can (Linux 5.14). A hint: failure is ignored. */
void ds__os_populate(void *address, uint64_t size);
/* The same, for reading: of a file, the first write to a page is then a page fault. */
void ds__os_populate_read(void *address, uint64_t size);
/* Gives back the page table entries of what is mapped of a file, whole pages only; the bytes stay where they are, in the page
 * cache, and the next touch is a page fault. A hint. */
void ds__os_let_go(void *address, uint64_t size);
enum { DS_OS_LARGE_PAGE = 2 * 1024 * 1024 }; /* the usual size */
/* What is mapped here may come in large pages, of a file too where its file system has them. A hint. */
void ds__os_large_pages(void *address, uint64_t size);
/* Puts a mapped range on disk: msync(MS_SYNC) is fdatasync of the range without needing the descriptor. */
ds_status ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address, uint64_t size);

enum { DS_OS_SHARED = 0, DS_OS_EXCLUSIVE = 1 };
/* flock() on a descriptor, waiting up to timeout_ms (-1: for ever). DS_TIMEOUT when somebody else holds it. */
ds_status ds__os_flock(const struct ds_directory *directory, const char *name, int fd, int kind, int timeout_ms);

void ds__os_unlock(int fd);

ds_status ds__os_random(void *out, size_t size);
/* This boot's id, 36 characters and a zero. */
ds_status ds__os_boot_id(char out[40]);
uint64_t ds__os_pid_namespace(void); /* its inode; 0 where /proc is not there */
uint64_t ds__os_now_ns(void);        /* CLOCK_MONOTONIC */
uint64_t ds__os_boot_ns(void);       /* CLOCK_BOOTTIME: since the boot, suspend included; nobody can set it */
uint64_t ds__os_wall_ns(void);       /* CLOCK_REALTIME: since 1970, as far as this machine knows */
/* Tests move the last two. A process can be started with it, in seconds: DORA_STATE_CLOCK_SHIFT="<boot> <wall>". */
void ds__os_clock_shift(int64_t boot_ns, int64_t wall_ns);
void ds__os_sleep_ms(int milliseconds);

/* Sleeps while *word is `value`, up to that long; may wake for no reason. The word may be shared between processes. */
void ds__os_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
void ds__os_futex_wake(_Atomic uint32_t *word); /* all that sleep on it */

/* Nonzero, the same for the whole life of a process, another one after fork(). */
uint64_t ds__os_process_stamp(void);

/* Makes every running thread of this process pass a full fence now, so that others can do with a compiler fence where
 * they would need one for our sake only. False: this kernel does not do that. */
bool ds__os_fence_threads(void);

#ifdef DS_FAULTS
/* Fault injection: the call number `at` (counted from 1) fails with `error`, and every later one too if `forever`.
 * Returns how many calls were made since the last arming. */
uint64_t ds__os_fault_arm(uint64_t at, int error, bool forever);

/* A place in the sources where a call is made. So aligned, they lie in their section as in an array. */
struct ds_os_site {
    _Alignas(32) const char *file;
    int line;
    const char *call;
};
/* All of them. */
const struct ds_os_site *ds__os_sites(size_t *count);
/* From now on only the calls made there count, and fail; NULL: all. */
void ds__os_fault_only(const struct ds_os_site *site);
#endif

#endif
