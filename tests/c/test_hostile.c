/* Files that a peer writes nonsense into while they are in use (I28), and sectors that come back as zeros (I15). */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.h"
#include "image.h"
#include "store_help.h"

enum { KEYS = 50, SCRIBBLES = 3000, SECTOR = 512 };

static size_t name_of(char name[16], unsigned key) {
    return (size_t)snprintf(name, 16, "key %u", key);
}

static void fill_store(ds_store *store, unsigned commits) {
    char name[16], bytes[5000];
    for (unsigned i = 0; i < commits; i++) {
        size_t size = name_of(name, i % KEYS);
        memset(bytes, (int)i, sizeof bytes);
        CHECK_OK(ds_put(store, DS_USER, name, size, bytes, i % 9 ? 40 + i % 300 : 4500, NULL));
    }
}

/* ---- I28 --------------------------------------------------------------------------------------------------------- */

static struct {
    image files;
    const char *only; /* a part of the names of the files to be hit */
} scribbled;

static void scribble(uint64_t *random) {
    const image *files = &scribbled.files;
    const char *only = scribbled.only;
    size_t f = (size_t)check_below(random, files->count);
    if (!strstr(files->files[f].name, only) || files->files[f].size < 8)
        return;
    size_t used = strcmp(only, ".log") == 0 ? 16384 : files->files[f].size;
    size_t at = check_below(random, (used < files->files[f].size ? used : files->files[f].size) / 8) * 8;
    uint64_t word = check_random(random) >> check_below(random, 64);
    memcpy(files->files[f].bytes + at, &word, 8);
}

/* Everything that can be asked of a store. No answer is wrong, but to crash, and to hang. */
static void ask_everything(ds_store *store, uint64_t *random) {
    char name[16];
    ds_value value;
    ds_cursor *cursor;
    ds_changes *changes;
    ds_change_told told;
    const void *key;
    volatile unsigned char sum = 0;
    size_t key_size, size = name_of(name, (unsigned)check_below(random, KEYS));
    if (ds_get(store, DS_USER, name, size, &value) == DS_OK) {
        for (size_t i = 0; i < value.size; i++)
            sum = (unsigned char)(sum + ((const unsigned char *)value.data)[i]);
        ds_unpin(&value);
    }
    if (check_below(random, 8) == 0 && ds_cursor_open(store, DS_USER, &cursor) == DS_OK) {
        while (ds_cursor_next(cursor, &key, &key_size, &value) == DS_OK)
            ds_unpin(&value), scribble(random);
        ds_cursor_close(cursor);
    }
    if (check_below(random, 8) == 0 && ds_changes_open(store, DS_USER, 0, &changes) == DS_OK) {
        while (ds_changes_next(changes, &told) == DS_OK) {
            if (told.value.owner)
                ds_unpin(&told.value);
            scribble(random);
        }
        ds_changes_close(changes);
    }
    (void)ds_put(store, DS_USER, name, size, name, size, NULL);
    if (check_below(random, 16) == 0)
        (void)ds_delete(store, DS_USER, name, size, NULL);
    if (check_below(random, 64) == 0)
        (void)ds_verify(store, NULL);
    if (check_below(random, 64) == 0)
        (void)ds_compact(store);
}

static void map_writable(image *files, const char *dir) {
    image_map(files, dir);
    for (size_t f = 0; f < files->count; f++) {
        int fd = open(check_format("%s/%s", dir, files->files[f].name), O_RDWR | O_CLOEXEC);
        CHECK(fd >= 0);
        if (files->files[f].size)
            CHECK(mmap(files->files[f].bytes, files->files[f].size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                       0) != MAP_FAILED);
        close(fd);
    }
}

/* Between two calls, not during them, so that a seed repeats itself. */
static void scribble_over(const char *dir, uint64_t seed) {
    uint64_t random = seed;
    ds_options options = options_default();
    options.lock_timeout_ms = 100;
    ds_store *store = open_with(dir, options);
    fill_store(store, 200);
    map_writable(&scribbled.files, dir);
    for (unsigned i = 0; i < SCRIBBLES; i++) {
        scribble(&random);
        ask_everything(store, &random);
    }
    (void)ds_close(store);
}

static void i28_a_peer_scribbles_over_the_log(const char *dir) {
    scribbled.only = ".log";
    for (uint64_t seed = 1; seed <= 8; seed++)
        scribble_over(check_format("%s/%llu", dir, (unsigned long long)seed), seed);
}

/* ---- I15 --------------------------------------------------------------------------------------------------------- */

/* After a clean close all is below the floor: a sector that is lost is damage, wherever it lies, and never the end. */
static void i15_a_zeroed_sector_is_not_the_end_of_the_log(const char *dir) {
    char *live = check_format("%s/live", dir), *copy = check_format("%s/copy", dir);
    CHECK(mkdir(copy, 0700) == 0);
    ds_store *store = open_store(live);
    fill_store(store, 150);
    CHECK_OK(ds_close(store));
    image files = {0}, damaged = {0};
    image_map(&files, live);
    unsigned zeroed = 0;
    for (size_t f = 0; f < files.count; f++) {
        if (!strstr(files.files[f].name, ".log"))
            continue;
        static const unsigned char zeros[SECTOR];
        for (size_t at = 0; at < files.files[f].size; at += SECTOR) {
            if (memcmp(files.files[f].bytes + at, zeros, SECTOR) == 0)
                continue;
            image_copy(&damaged, &files);
            memset(damaged.files[f].bytes + at, 0, SECTOR);
            image_write(&damaged, copy, true);
            image_free(&damaged);
            ds_options options = options_default();
            ds_status status = ds_open(copy, &options, &store);
            CHECK(status == DS_CORRUPT || status == DS_NOT_A_STORE);
            zeroed++;
        }
    }
    CHECK(zeroed > 100);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i28_a_peer_scribbles_over_the_log),
        TEST(i15_a_zeroed_sector_is_not_the_end_of_the_log),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
