/* I7: a sync follows where one is promised. I10: a failed sync is final, for every handle and every process, since the
 * kernel may call clean what it has lost. The linker wraps the functions of os.c that put bytes on disk (ld --wrap). */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os.h"
#include "status.h"
#include "store.h"
#include "store_help.h"

static unsigned failing; /* so many syncs fail from now on */
static bool deadly;      /* who syncs dies of it */

/* When it happened last, in the order of all that happens. */
static unsigned moment, log_synced, floor_written, floor_synced;

ds_status __real_ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address,
                                   uint64_t size);
ds_status __wrap_ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address,
                                   uint64_t size);
ds_status __wrap_ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address,
                                   uint64_t size) {
    if (deadly)
        _exit(9);
    log_synced = ++moment;
    if (failing == 0)
        return __real_ds__os_range_sync(directory, name, address, size);
    failing--;
    return ds__fail(DS_IO, EIO, "%s/%s: cannot sync", directory->path, name);
}

static void sync_elsewhere(void *context) {
    ds_store *store = open_store(context);
    CHECK_IS(ds_sync(store), DS_IO);
    CHECK_EQ(ds_error_errno(), EIO);
    expect_value(store, "later", "still works");
    CHECK_IS(ds_close(store), DS_IO);
}

static void i10_a_failed_sync_is_final_for_all(const char *dir) {
    ds_options options = options_default();
    options.durability = DS_COMMIT;
    ds_store *store = open_store(dir), *other = open_store(dir), *third = open_with(dir, options), *none = NULL;
    put(store, "key", "value");
    CHECK_OK(ds_sync(store));
    uint64_t synced = stats_of(store).synced;
    put(store, "key", "lost, perhaps");
    failing = 1;
    CHECK_IS(ds_sync(store), DS_IO);
    CHECK_EQ(failing, 0);
    CHECK_IS(ds_sync(store), DS_IO); /* the disk is well again, which says nothing */
    CHECK_IS(ds_sync(other), DS_IO);
    CHECK_IS(ds__sync_between(other, 0, synced), DS_IO); /* nor to who only wanted what an earlier one covers */
    put(other, "later", "still works");                  /* process durability needs no disk */
    CHECK_IS(ds_put(third, DS_USER, "key", 3, "told", 4, NULL), DS_IO);
    CHECK(strncmp(ds_error(), "committed", 9) == 0);
    CHECK_IS(ds_open(dir, &options, &none), DS_IO); /* it would promise what it cannot know */
    check_join(check_spawn(sync_elsewhere, check_format("%s", dir)));
    CHECK_IS(ds_close(third), DS_IO);
    CHECK_IS(ds_close(other), DS_IO);
    expect_value(store, "key", "told");
    CHECK_IS(ds_close(store), DS_IO);
}

/* It could drop nothing, and the keeper would try again for ever: what each try writes would fill the disk. */
static void i19_after_a_failed_sync_no_compaction_writes(const char *dir) {
    char value[4096] = {0};
    ds_store *store = open_store(dir);
    for (int i = 0; i < 40; i++)
        CHECK_OK(ds_put(store, DS_USER, "key", 3, value, sizeof value, NULL));
    failing = 1;
    CHECK_IS(ds_sync(store), DS_IO);
    uint64_t committed = stats_of(store).committed;
    CHECK_IS(ds_compact(store), DS_IO);
    CHECK_EQ(ds_error_errno(), EIO);
    CHECK_EQ(stats_of(store).committed, committed);
    CHECK_IS(ds_close(store), DS_IO);
}

/* A sync that could not even open its file says nothing about the disk: the next one makes up for it. */
static void a_sync_without_descriptors_can_be_tried_again(const char *dir) {
    struct rlimit limit, none;
    ds_store *store = open_store(dir);
    size_t size = DS_BLOB_FROM + 1;
    void *value = calloc(1, size);
    CHECK(value);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, value, size, NULL));
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK_IS(ds_sync(store), DS_IO);
    CHECK_EQ(ds_error_errno(), EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_OK(ds_sync(store));
    CHECK(stats_of(store).synced == stats_of(store).committed);
    CHECK_OK(ds_close(store));
    free(value);
}

static void die_in_a_sync(ds_store *store) {
    deadly = true;
    (void)ds_sync(store);
}

static void on_a_fault(int signal) {
    (void)signal;
    _exit(9);
}

/* A store into the log is a fault here. */
static void sync_without_writing(ds_store *store) {
    struct ds_segment *segment;
    CHECK_OK(ds__segments_at(&store->segments, store->control->tail.segment_base, &segment));
    signal(SIGSEGV, on_a_fault);
    CHECK(mprotect((void *)(uintptr_t)segment->mapping.bytes, segment->mapping.size, PROT_READ) == 0);
    CHECK_OK(ds_sync(store));
}

/* How a process ends that opens the store and does this. */
static int end_of(const char *dir, void (*act)(ds_store *store)) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        act(open_store(dir));
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* It may have been told of an error that nobody else was: so every page is written once more before the next sync. */
static void i10_after_a_death_in_a_sync_the_pages_are_made_dirty_again(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "key", "value");
    CHECK_EQ(end_of(dir, sync_without_writing), 0);
    put(store, "key", "is it there?");
    CHECK_EQ(end_of(dir, die_in_a_sync), 9);
    CHECK_EQ(end_of(dir, sync_without_writing), 9); /* and who dies doing that leaves it to the next */
    CHECK_EQ(end_of(dir, sync_without_writing), 9);
    CHECK_OK(ds_sync(store));
    put(store, "key", "again");
    CHECK_EQ(end_of(dir, sync_without_writing), 0);
    CHECK_OK(ds_close(store));
}

/* Of a store that has begun in one page and goes on to the beginning of a later one, the last page counts, too. */
static void sync_without_writing_the_last_page(ds_store *store) {
    struct ds_segment *segment;
    uint64_t last = (store->control->tail.offset - 1) & ~UINT64_C(4095);
    CHECK_OK(ds__segments_at(&store->segments, store->control->tail.segment_base, &segment));
    signal(SIGSEGV, on_a_fault);
    CHECK(mprotect(ds__segment_at(segment, last), 4096, PROT_READ) == 0);
    CHECK_OK(ds_sync(store));
}

static void i10_after_a_death_in_a_sync_the_last_page_is_made_dirty_again(const char *dir) {
    char value[3000] = {0};
    ds_store *store = open_store(dir);
    CHECK_OK(ds_put(store, DS_USER, "key", 3, value, sizeof value, NULL));
    CHECK_OK(ds_sync(store));
    uint64_t from = store->control->tail.offset;
    CHECK_OK(ds_put(store, DS_USER, "key", 3, value, 2000, NULL));
    uint64_t to = store->control->tail.offset;
    CHECK(from / 4096 < to / 4096 && to % 4096 < from % 4096);
    CHECK_EQ(end_of(dir, die_in_a_sync), 9);
    CHECK_EQ(end_of(dir, sync_without_writing_the_last_page), 9);
    CHECK_OK(ds_sync(store));
    CHECK_OK(ds_close(store));
}

static bool blob_written;

ds_status __real_ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size,
                            bool writable, void **out);
ds_status __wrap_ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size,
                            bool writable, void **out);
ds_status __wrap_ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size,
                            bool writable, void **out) {
    blob_written = blob_written || (writable && strstr(name, ".blob") != NULL);
    return __real_ds__os_map(directory, name, fd, size, writable, out);
}

static void sync_and_tell(ds_store *store) {
    blob_written = false;
    CHECK_OK(ds_sync(store));
    _exit(blob_written ? 9 : 0);
}

/* The pages of a large value's file are no other. */
static void i10_after_a_death_in_a_sync_large_values_are_made_dirty_again(const char *dir) {
    ds_store *store = open_store(dir);
    size_t size = DS_BLOB_FROM + 1;
    void *value = calloc(1, size);
    CHECK(value);
    put(store, "key", "value");
    CHECK_OK(ds_sync(store));
    CHECK_OK(ds_put(store, DS_USER, "large", 5, value, size, NULL));
    CHECK_EQ(end_of(dir, die_in_a_sync), 9);
    CHECK_EQ(end_of(dir, sync_and_tell), 9);
    put(store, "key", "again");
    CHECK_EQ(end_of(dir, die_in_a_sync), 9); /* the large value is on disk by now */
    CHECK_EQ(end_of(dir, sync_and_tell), 0);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(value);
}

/* The page that held the error is made anew where the store moves to another PID namespace in the same boot: the next sync
 * writes all of it again that no sync was told to be on disk. */
static void i10_a_failed_sync_outlives_its_control_page(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "key", "value");
    failing = 1;
    CHECK_IS(ds_sync(store), DS_IO);
    store->control->identity.pid_namespace ^= 1;
    CHECK_IS(ds_close(store), DS_IO);
    store = open_store(dir);
    CHECK_EQ(end_of(dir, sync_without_writing), 9);
    CHECK_OK(ds_sync(store));
    put(store, "key", "again");
    CHECK_EQ(end_of(dir, sync_without_writing), 0);
    CHECK_OK(ds_close(store));
}

static unsigned count_blobs(const char *dir) {
    unsigned count = 0;
    DIR *entries = opendir(dir);
    CHECK(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        count += strstr(entry->d_name, ".blob") != NULL;
    closedir(entries);
    return count;
}

/* A container that is killed and started again: the same boot, and all must come from the log. A large value that was synced goes
 * only when what has replaced it is on disk. */
static void i7_a_replaced_large_value_goes_after_a_sync(const char *dir) {
    ds_store *store = open_store(dir);
    size_t size = DS_BLOB_FROM + 1;
    void *value = calloc(1, size);
    CHECK(value);
    CHECK_OK(ds_put(store, DS_USER, "key", 3, value, size, NULL));
    CHECK_OK(ds_sync(store));
    put(store, "key", "small");
    failing = 2; /* in the close, which so leaves what a kill does, and in the open */
    store->control->identity.pid_namespace ^= 1;
    CHECK_IS(ds_close(store), DS_IO);
    store = open_store(dir);
    CHECK_EQ(failing, 0);
    CHECK_EQ(count_blobs(dir), 1);
    store->control->identity.pid_namespace ^= 1;
    CHECK_IS(ds_close(store), DS_IO);
    store = open_store(dir);
    CHECK(stats_of(store).synced == stats_of(store).committed);
    CHECK_EQ(count_blobs(dir), 0);
    expect_value(store, "key", "small");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(value);
}

/* ---- who syncs what nobody asked for ------------------------------------------------------------------------------- */

static bool all_synced(ds_store *store) {
    ds_stats stats = stats_of(store);
    return stats.synced >= stats.committed;
}

static ds_options of_group(uint32_t milliseconds) {
    ds_options options = options_default();
    options.durability = DS_GROUP;
    options.group_ms = milliseconds;
    return options;
}

static void i7_in_group_mode_a_sync_follows_by_itself(const char *dir) {
    ds_store *store = open_with(dir, of_group(5));
    for (int i = 0; i < 3; i++) {
        put(store, "key", "value");
        for (int ms = 0; ms < 10000 && !all_synced(store); ms++)
            ds__os_sleep_ms(1);
        CHECK(all_synced(store));
    }
    CHECK_OK(ds_close(store));
}

/* Dies without a close. */
static void commit_and_die(void *dir) {
    put(open_store(dir), "key", "value");
    _exit(0);
}

static void i7_an_opener_that_promises_syncs_what_the_dead_left(const char *dir) {
    ds_options options = of_group(60000);
    ds_store *keeps_it_open = open_store(dir);
    for (int i = 0; i < 2; i++) {
        check_join(check_spawn(commit_and_die, check_format("%s", dir)));
        CHECK(!all_synced(keeps_it_open));
        ds_store *store = open_with(dir, options);
        CHECK(all_synced(store));
        CHECK_OK(ds_close(store));
        options.durability = DS_COMMIT;
    }
    CHECK_OK(ds_close(keeps_it_open));
}

static void i7_in_commit_mode_what_returns_is_synced(const char *dir) {
    ds_options options = options_default();
    options.durability = DS_COMMIT;
    ds_store *store = open_with(dir, options);
    put(store, "key", "value");
    CHECK(all_synced(store));
    CHECK_OK(ds_delete(store, DS_USER, "key", 3, NULL));
    CHECK(all_synced(store));
    CHECK_OK(ds_close(store));
}

static char datasynced[64]; /* the file that was synced last, but for the floor */
static bool name_synced;    /* and then the directory */

ds_status __real_ds__os_datasync(const struct ds_directory *directory, const char *name, int fd);
ds_status __wrap_ds__os_datasync(const struct ds_directory *directory, const char *name, int fd);
ds_status __wrap_ds__os_datasync(const struct ds_directory *directory, const char *name, int fd) {
    if (strcmp(name, "floor") == 0) {
        floor_synced = ++moment;
    } else {
        snprintf(datasynced, sizeof datasynced, "%s", name);
        name_synced = false;
    }
    return __real_ds__os_datasync(directory, name, fd);
}

ds_status __real_ds__os_directory_sync(const struct ds_directory *directory);
ds_status __wrap_ds__os_directory_sync(const struct ds_directory *directory);
ds_status __wrap_ds__os_directory_sync(const struct ds_directory *directory) {
    name_synced = true;
    return __real_ds__os_directory_sync(directory);
}

static void i7_a_large_value_is_on_disk_with_its_commit(const char *dir) {
    ds_options options = options_default();
    options.durability = DS_COMMIT;
    ds_store *store = open_with(dir, options);
    size_t size = 17 * 1024 * 1024; /* a file of its own */
    void *value = calloc(1, size);
    CHECK(value);
    put(store, "small", "1"); /* the segment's name is on disk by now */
    datasynced[0] = 0;
    name_synced = false;
    CHECK_OK(ds_put(store, DS_USER, "large", 5, value, size, NULL));
    char *blob = check_format("%s/%s", dir, datasynced);
    struct stat file;
    CHECK(datasynced[0] && stat(blob, &file) == 0 && (size_t)file.st_size == size);
    CHECK(name_synced);
    put(store, "small", "2"); /* needs no sync of it again */
    CHECK_OK(ds_close(store));
    free(blob);
    free(value);
}

ds_status __real_ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *data,
                              size_t size, uint64_t at);
ds_status __wrap_ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *data,
                              size_t size, uint64_t at);
ds_status __wrap_ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *data,
                              size_t size, uint64_t at) {
    if (strcmp(name, "floor") == 0)
        floor_written = ++moment;
    return __real_ds__os_write(directory, name, fd, data, size, at);
}

/* The floor that says "this is the end" comes after what it speaks of, and is on disk itself when the close returns. */
static void i7_a_clean_close_says_so_of_what_is_on_disk(const char *dir) {
    ds_store *store = open_store(dir);
    CHECK_OK(ds_sync(store)); /* its file is there: a new one is synced anyway */
    put(store, "key", "value");
    moment = log_synced = floor_written = floor_synced = 0;
    CHECK_OK(ds_close(store));
    CHECK(log_synced > 0 && log_synced < floor_written && floor_written < floor_synced);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {TEST(i10_a_failed_sync_is_final_for_all),
                                       TEST(i19_after_a_failed_sync_no_compaction_writes),
                                       TEST(a_sync_without_descriptors_can_be_tried_again),
                                       TEST(i10_after_a_death_in_a_sync_the_pages_are_made_dirty_again),
                                       TEST(i10_after_a_death_in_a_sync_the_last_page_is_made_dirty_again),
                                       TEST(i10_after_a_death_in_a_sync_large_values_are_made_dirty_again),
                                       TEST(i10_a_failed_sync_outlives_its_control_page),
                                       TEST(i7_a_replaced_large_value_goes_after_a_sync),
                                       TEST(i7_in_group_mode_a_sync_follows_by_itself),
                                       TEST(i7_an_opener_that_promises_syncs_what_the_dead_left),
                                       TEST(i7_in_commit_mode_what_returns_is_synced),
                                       TEST(i7_a_large_value_is_on_disk_with_its_commit),
                                       TEST(i7_a_clean_close_says_so_of_what_is_on_disk)};
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
