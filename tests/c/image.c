#include "image.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "control.h"

void image_unmap(image *i) {
    for (size_t f = 0; f < i->count; f++)
        if (i->files[f].bytes)
            munmap(i->files[f].bytes, i->files[f].size);
    i->count = 0;
}

void image_map(image *i, const char *dir) {
    image_unmap(i);
    DIR *list = opendir(dir);
    CHECK(list);
    for (struct dirent *entry; (entry = readdir(list));) {
        if (entry->d_name[0] == '.')
            continue;
        CHECK(i->count < IMAGE_FILES && strlen(entry->d_name) < sizeof i->files[0].name);
        strcpy(i->files[i->count].name, entry->d_name);
        int fd = openat(dirfd(list), entry->d_name, O_RDONLY | O_CLOEXEC);
        struct stat status;
        CHECK(fd >= 0 && fstat(fd, &status) == 0);
        i->files[i->count].size = (size_t)status.st_size;
        i->files[i->count].bytes = NULL;
        if (status.st_size > 0) {
            void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
            CHECK(bytes != MAP_FAILED);
            i->files[i->count].bytes = bytes;
        }
        close(fd);
        i->count++;
    }
    closedir(list);
}

void image_copy(image *to, const image *from) {
    *to = *from;
    for (size_t f = 0; f < to->count; f++) {
        to->files[f].bytes = malloc(from->files[f].size + 1);
        CHECK(to->files[f].bytes);
        if (from->files[f].size)
            memcpy(to->files[f].bytes, from->files[f].bytes, from->files[f].size);
    }
}

void image_free(image *i) {
    for (size_t f = 0; f < i->count; f++)
        free(i->files[f].bytes);
    i->count = 0;
}

bool image_is_derived(const char *name) {
    return strncmp(name, "control", 7) == 0 || strncmp(name, "index.", 6) == 0;
}

static int dying; /* 0: this thread */

void image_dies(int thread) {
    dying = thread;
}

/* What the kernel does to a robust mutex whose owner dies. */
static void die_with(pthread_mutex_t *lock) {
    unsigned word = (unsigned)lock->__data.__lock;
    if ((word & FUTEX_TID_MASK) == (unsigned)(dying ? dying : gettid()))
        lock->__data.__lock = (int)((word & FUTEX_WAITERS) | FUTEX_OWNER_DIED);
}

static void write_file(int directory, const char *name, const unsigned char *bytes, size_t size) {
    int fd = openat(directory, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(size == 0 || pwrite(fd, bytes, size, 0) == (ssize_t)size);
    CHECK(ftruncate(fd, (off_t)size) == 0);
    close(fd);
}

/* Existing files are overwritten in place, which saves most of the time. */
void image_write(const image *i, const char *dir, bool rebooted) {
    DIR *list = opendir(dir);
    CHECK(list);
    for (struct dirent *entry; (entry = readdir(list));) {
        bool wanted = entry->d_name[0] == '.';
        for (size_t f = 0; f < i->count && !wanted; f++)
            wanted = strcmp(i->files[f].name, entry->d_name) == 0;
        if (!wanted || (rebooted && image_is_derived(entry->d_name)))
            CHECK(unlinkat(dirfd(list), entry->d_name, 0) == 0);
    }
    for (size_t f = 0; f < i->count; f++) {
        const char *name = i->files[f].name;
        if (rebooted && image_is_derived(name))
            continue;
        if (strncmp(name, "control", 7) == 0 && i->files[f].size >= sizeof(struct ds_control)) {
            static _Alignas(64) unsigned char page[1 << 16];
            CHECK(i->files[f].size <= sizeof page);
            memcpy(page, i->files[f].bytes, i->files[f].size);
            struct ds_control *control = (struct ds_control *)(void *)page;
            die_with(&control->lock.mutex);
            die_with(&control->sync_lock.mutex);
            die_with(&control->compact_lock.mutex);
            write_file(dirfd(list), name, page, i->files[f].size);
        } else {
            write_file(dirfd(list), name, i->files[f].bytes, i->files[f].size);
        }
    }
    closedir(list);
}

void image_reboot(const char *dir) {
    DIR *list = opendir(dir);
    CHECK(list);
    for (struct dirent *entry; (entry = readdir(list));)
        if (image_is_derived(entry->d_name))
            CHECK(unlinkat(dirfd(list), entry->d_name, 0) == 0);
    closedir(list);
}
