/* I25: a value of more bytes than 32 bits can count comes back, byte for byte, through a close and a reboot; one that no file
 * can hold is refused before a byte is written. In memory (/dev/shm), where no disk has to take gigabytes. With less memory it
 * is a value of 2 GiB and a byte, and with little it is skipped. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "store_help.h"

#define GIB UINT64_C(1073741824)

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

/* The largest that there is room for; 0: none. */
static uint64_t choose_size(const char *dir) {
    struct statvfs disk;
    CHECK(statvfs(dir, &disk) == 0);
    uint64_t free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize, memory = available_memory();
    for (uint64_t gib = 4; gib > 0; gib -= 2)
        if (free_bytes > (gib + 1) * GIB && memory > (gib + 2) * GIB)
            return gib * GIB + 1;
    return 0;
}

/* Nearly all of it is never touched: pages of zeros that nobody allocated, and a few bytes that are not zero. */
static unsigned char *make_value(uint64_t size) {
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(bytes != MAP_FAILED);
    unsigned char *value = bytes;
    for (uint64_t at = 0; at < size; at += UINT64_C(1) << 26)
        value[at] = (unsigned char)(1 + (at >> 26));
    value[size - 1] = 'z';
    return value;
}

static void expect_large(ds_store *store, const unsigned char *wanted, uint64_t size) {
    ds_value value;
    CHECK_OK(ds_get(store, DS_USER, "large", 5, &value));
    CHECK_EQ(value.size, size);
    CHECK(memcmp(value.data, wanted, size) == 0);
    ds_unpin(&value);
}

static void reboot(const char *path) {
    char *command = check_format("rm -f '%s/control' '%s'/index.*", path, path);
    CHECK(system(command) == 0);
    free(command);
}

static void i25_a_value_of_gigabytes_comes_back(const char *dir) {
    uint64_t size = choose_size(dir);
#ifdef __SANITIZE_ADDRESS__
    size = 0;
#endif
    if (size == 0) {
        printf("     skipped: under a sanitizer, or with less than 4 GiB of free memory\n");
        return;
    }
    printf("     %llu bytes\n", (unsigned long long)size);
    unsigned char *large = make_value(size);
    ds_store *store = open_store(dir);
    put(store, "small", "beside it");
    CHECK_OK(ds_put(store, DS_USER, "large", 5, large, size, NULL));
    expect_large(store, large, size);
    CHECK_OK(ds_close(store));
    reboot(dir);
    store = open_store(dir);
    expect_large(store, large, size);
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
        TEST(i25_a_value_of_gigabytes_comes_back),
        TEST(i25_too_large_is_refused_before_a_byte_is_written),
    };
    bool passed = true;
    const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    for (size_t i = 0; i < CHECK_COUNT(tests); i++)
        passed = (!check_named(argc, argv, tests[i].name) || check_isolated(&tests[i], parent, 300)) && passed;
    return !passed;
}
