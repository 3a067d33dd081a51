/* os_directory.c: directories, as os.h tells; and which file systems can keep a store's promises. */
#include "os_call.h"
#include "status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE  2
#endif

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
    ds_status status = ds__os_fail(&shown, "", what);
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
    int fd = ds__os_beyond_standard(CALL(-1, open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
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
        return ds__os_fail(directory, "", "sync the directory");
    return DS_OK;
}

ds_status ds__os_directory_list(const struct ds_directory *directory, ds_status (*visit)(void *, const char *),
                                void *context) {
    int fd = CALL(-1, openat(directory->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR *entries = fd >= 0 ? CALL(NULL, fdopendir(fd)) : NULL;
    if (entries == NULL) {
        ds_status status = ds__os_fail(directory, "", "list the directory");
        if (fd >= 0)
            close(fd);
        return status;
    }
    ds_status status = DS_OK;
    for (;;) {
        errno = 0;
        struct dirent *entry = CALL(NULL, readdir(entries));
        if (entry == NULL) {
            if (errno != 0)
                status = ds__os_fail(directory, "", "list the directory");
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
        return ds__os_fail(directory, "", "look at the directory");
    *there =
        CALL(-1, stat(directory->path, &named)) == 0 && named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
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
    return ds__os_fail(from, name, "link");
}
