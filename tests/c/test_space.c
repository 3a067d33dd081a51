/* How much room a store takes while a few processes overwrite its keys without a pause: docs/format.md, "What it costs". */
#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "store.h"
#include "store_help.h"

enum { KEYS = 2000, VALUE = 1000, WRITERS = 4, EACH = 150000 };

static atomic_int *writing;

struct writer {
    const char *dir;
    unsigned number;
};

static void overwrite(void *argument) {
    const struct writer *writer = argument;
    ds_store *store = open_store(writer->dir);
    uint64_t random = writer->number;
    char key[32], value[VALUE];
    for (unsigned i = 0; i < EACH; i++) {
        int size = snprintf(key, sizeof key, "k%u", (unsigned)check_below(&random, KEYS));
        memset(value, (int)i, sizeof value);
        /* Half of them as Python does it, whose first try never waits. */
        ds_status status = writer->number % 2 == 0
                               ? DS_TIMEOUT
                               : ds_try_put(store, DS_USER, key, (size_t)size, value, sizeof value, NULL);
        if (status == DS_TIMEOUT)
            status = ds_put(store, DS_USER, key, (size_t)size, value, sizeof value, NULL);
        CHECK_OK(status);
    }
    atomic_fetch_sub(writing, 1);
    CHECK_OK(ds_close(store));
}

/* Of its segments, in bytes. */
static uint64_t size_of_all(const char *path, uint64_t *largest) {
    DIR *dir = opendir(path);
    CHECK(dir);
    uint64_t sum = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        struct stat info;
        uint64_t base;
        if (ds__segment_parse_name(entry->d_name, &base) && fstatat(dirfd(dir), entry->d_name, &info, 0) == 0) {
            sum += (uint64_t)info.st_size;
            if (*largest < (uint64_t)info.st_size)
                *largest = (uint64_t)info.st_size;
        }
    }
    closedir(dir);
    return sum;
}

static void overwriting_takes_twice_the_live_data_and_four_segments(const char *dir) {
    struct writer writers[WRITERS];
    pid_t pids[WRITERS];
    writing = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(writing != MAP_FAILED);
    *writing = WRITERS;
    ds_store *store = open_store(dir);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){dir, i};
        pids[i] = check_spawn(overwrite, &writers[i]);
    }
    uint64_t peak = 0, largest = 0;
    while (atomic_load(writing) > 0) {
        uint64_t bytes = stats_of(store).log_bytes; /* whole segments; counting files that come and go is not exact */
        if (peak < bytes)
            peak = bytes;
        (void)size_of_all(dir, &largest);
        ds__os_sleep_ms(1);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        check_join(pids[i]);
    ds_stats stats = stats_of(store);
    CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE)); /* or whoever was at it has ended */
    CHECK_EQ(size_of_all(dir, &largest), stats_of(store).log_bytes);
    uint64_t bound = 2 * stats.live_bytes + 4 * largest;
    if (peak > bound)
        check_fail(__FILE__, __LINE__, "a peak of %llu bytes, more than %llu; %llu live, segments of %llu, %llu waits",
                   (unsigned long long)peak, (unsigned long long)bound, (unsigned long long)stats.live_bytes,
                   (unsigned long long)largest, (unsigned long long)stats.waits);
    CHECK(stats.dropped_segments > 100);
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {TEST(overwriting_takes_twice_the_live_data_and_four_segments)};
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
