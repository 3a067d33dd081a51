/* I25: a value of 2 GiB and one byte comes back, byte for byte, through a close and a reboot; one that no file can hold is
 * refused before a byte is written. In memory (/dev/shm), where no disk has to take 2 GiB; skipped where there is no room. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "store_help.h"

#define SIZE ((UINT64_C(2) << 30) + 1)

static uint64_t available_memory(void) {
    unsigned long long kilobytes = 0;
    char line[256];
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file) && sscanf(line, "MemAvailable: %llu", &kilobytes) != 1)
        ;
    if (file)
        fclose(file);
    return kilobytes * 1024;
}

/* Why there is no room; NULL if there is. */
static const char *no_room(const char *dir) {
    struct statvfs disk;
    CHECK(statvfs(dir, &disk) == 0);
#ifdef __SANITIZE_ADDRESS__
    return "too slow under a sanitizer";
#endif
    if ((uint64_t)disk.f_bavail * disk.f_frsize < SIZE + SIZE / 4)
        return "the file system has less than 2.5 GiB free";
    return available_memory() < 2 * SIZE ? "less than 4 GiB of memory are available" : NULL;
}

/* Nearly all of it is never touched: pages of zeros that nobody allocated, and a few bytes that are not zero. */
static unsigned char *make_value(void) {
    unsigned char *value = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(value != MAP_FAILED);
    for (uint64_t at = 0; at < SIZE; at += UINT64_C(1) << 26)
        value[at] = (unsigned char)(1 + (at >> 26));
    value[SIZE - 1] = 'z';
    return value;
}

static void expect_large(ds_store *store, const unsigned char *wanted) {
    ds_value value;
    CHECK_OK(ds_get(store, DS_USER, "large", 5, &value));
    CHECK_EQ(value.size, SIZE);
    CHECK(memcmp(value.data, wanted, SIZE) == 0);
    ds_unpin(&value);
}

static void reboot(const char *path) {
    char *command = check_format("rm -f '%s/control' '%s'/index.*", path, path);
    CHECK(system(command) == 0);
    free(command);
}

static void i25_a_value_of_2_gib_and_a_byte_comes_back(const char *dir) {
    const char *why = no_room(dir);
    if (why) {
        printf("     skipped: %s\n", why);
        return;
    }
    unsigned char *large = make_value();
    ds_store *store = open_store(dir);
    put(store, "small", "beside it");
    CHECK_OK(ds_put(store, DS_USER, "large", 5, large, SIZE, NULL));
    expect_large(store, large);
    CHECK_OK(ds_close(store));
    reboot(dir);
    store = open_store(dir);
    expect_large(store, large);
    CHECK_OK(ds_verify(store, NULL));
    expect_value(store, "small", "beside it");
    CHECK_OK(ds_delete(store, DS_USER, "large", 5, NULL));
    CHECK_OK(ds_compact(store));
    CHECK_OK(ds_close(store));
    CHECK(system(check_format("! ls '%s' | grep -q blob", dir)) == 0); /* the room is given back */
}

static void i25_too_large_is_refused_before_a_byte_is_written(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "before");
    ds_stats before = stats_of(store);
    static const uint64_t sizes[] = {UINT64_MAX, UINT64_MAX - 7, UINT64_C(1) << 63, INT64_MAX, UINT64_C(1) << 60};
    for (size_t i = 0; i < CHECK_COUNT(sizes); i++) { /* the one byte that there is is never looked at */
        ds_status status = ds_put(store, DS_USER, "k", 1, "x", sizes[i], NULL);
        if (status != DS_TOO_LARGE && status != DS_FULL)
            check_fail(__FILE__, __LINE__, "%llu bytes: %s: %s", (unsigned long long)sizes[i], ds_status_name(status),
                       ds_error());
    }
    expect_value(store, "k", "before");
    ds_stats after = stats_of(store);
    CHECK_EQ(after.sequence, before.sequence);
    CHECK_EQ(after.committed, before.committed);
    put(store, "k", "after");
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i25_a_value_of_2_gib_and_a_byte_comes_back),
        TEST(i25_too_large_is_refused_before_a_byte_is_written),
    };
    bool passed = true;
    const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    for (size_t i = 0; i < CHECK_COUNT(tests); i++)
        passed = (!check_named(argc, argv, tests[i].name) || check_isolated(&tests[i], parent, 300)) && passed;
    return !passed;
}
