/* What ds_open makes of a path: a new store, an old one, one after a reboot, somebody else's directory, a newer format.
 * An open that fails, and every read-only open, changes no byte: the tests compare the directory before and after. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store_help.h"

/* A number that changes when a name, a mode or a byte below `dir` does. */
static uint64_t fingerprint(const char *dir) {
    DIR *list = opendir(dir);
    CHECK(list);
    uint64_t sum = 0;
    for (struct dirent *entry; (entry = readdir(list));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char *path = check_format("%s/%s", dir, entry->d_name);
        struct stat status;
        CHECK(lstat(path, &status) == 0);
        uint64_t one = check_mix((uint64_t)status.st_size, status.st_mode);
        for (const char *c = entry->d_name; *c; c++)
            one = check_mix(one, (uint64_t)*c);
        if (S_ISREG(status.st_mode)) {
            FILE *file = fopen(path, "rb");
            CHECK(file);
            for (int c; (c = getc(file)) != EOF;)
                one = check_mix(one, (uint64_t)c);
            fclose(file);
        }
        sum += one; /* the order of a directory means nothing */
        free(path);
    }
    closedir(list);
    return sum;
}

static void write_file(const char *dir, const char *name, const char *content, size_t size) {
    char *path = check_format("%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    CHECK(file);
    CHECK(fwrite(content, 1, size, file) == size);
    CHECK(fclose(file) == 0);
    free(path);
}

/* What is left of a store when the machine boots anew: the log and its floor, nothing that lived in shared memory. */
static void reboot(const char *dir) {
    DIR *list = opendir(dir);
    CHECK(list);
    for (struct dirent *entry; (entry = readdir(list));)
        if (strcmp(entry->d_name, "control") == 0 || strncmp(entry->d_name, "index.", 6) == 0)
            CHECK(unlinkat(dirfd(list), entry->d_name, 0) == 0);
    closedir(list);
}

static ds_status try_open(const char *path, ds_options options) {
    ds_store *store = NULL;
    ds_status status = ds_open(path, &options, &store);
    CHECK((status == DS_OK) == (store != NULL));
    if (store)
        CHECK_OK(ds_close(store));
    return status;
}

/* I29 */
static void a_new_store_is_private_whatever_the_umask(const char *dir) {
    umask(0);
    char *path = check_format("%s/store", dir);
    ds_store *store = open_store(path);
    put(store, "a", "1");
    CHECK_OK(ds_sync(store));
    struct stat status;
    CHECK(stat(path, &status) == 0);
    CHECK_EQ(status.st_mode & 07777, 0700);
    DIR *list = opendir(path);
    CHECK(list);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(list));) {
        CHECK(fstatat(dirfd(list), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0);
        if (!S_ISREG(status.st_mode))
            continue;
        CHECK_EQ(status.st_mode & 07777, 0600);
        files++;
    }
    CHECK(files > 0);
    closedir(list);
    CHECK_OK(ds_close(store));
    free(path);
}

static void a_missing_store_is_made_only_when_asked(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_options options = options_default();
    options.create = false;
    CHECK_IS(try_open(path, options), DS_NOT_A_STORE);
    CHECK(access(path, F_OK) != 0);
    CHECK(mkdir(path, 0700) == 0);
    CHECK_IS(try_open(path, options), DS_NOT_A_STORE);
    CHECK_EQ(fingerprint(path), 0);
    options.create = true;
    CHECK_OK(try_open(path, options));
    options.create = false;
    CHECK_OK(try_open(path, options));
    free(path);
}

static void the_path_of_something_else_is_refused(const char *dir) {
    char *file = check_format("%s/file", dir), *home = check_format("%s/home", dir);
    write_file(dir, "file", "text", 4);
    CHECK_IS(try_open(file, options_default()), DS_NOT_A_STORE);
    CHECK(mkdir(home, 0700) == 0);
    write_file(home, "notes.txt", "mine", 4);
    uint64_t before = fingerprint(dir), inside = fingerprint(home);
    CHECK_IS(try_open(home, options_default()), DS_NOT_A_STORE);
    ds_options options = options_default();
    options.create = false;
    CHECK_IS(try_open(home, options), DS_NOT_A_STORE);
    CHECK_EQ(fingerprint(home), inside);
    CHECK_EQ(fingerprint(dir), before);
    free(file);
    free(home);
}

static void a_parent_that_is_missing_is_named(const char *dir) {
    char *path = check_format("%s/no/such/place", dir);
    ds_status status = try_open(path, options_default());
    CHECK(status == DS_IO || status == DS_NOT_A_STORE);
    CHECK(strstr(ds_error(), "no/such"));
    CHECK_EQ(ds_error_errno(), ENOENT);
    free(path);
}

static void options_out_of_range_are_refused(const char *dir) {
    ds_options options = options_default();
    options.durability = (ds_durability)7;
    CHECK_IS(try_open(dir, options), DS_INVALID);
    CHECK_EQ(fingerprint(dir), 0);
}

/* Values on both sides of several segment borders, one deleted key, one key in each keyspace. */
static uint64_t fill(const char *path) {
    static char value[3000];
    ds_store *store = open_store(path);
    char key[16];
    for (int i = 0; i < 200; i++) {
        snprintf(key, sizeof key, "key-%d", i % 120);
        memset(value, 'a' + i % 26, sizeof value);
        CHECK_OK(ds_put(store, DS_USER, key, strlen(key), value, (size_t)(i * 13 % 3000), NULL));
    }
    put(store, "gone", "soon");
    CHECK_OK(ds_delete(store, DS_USER, "gone", 4, NULL));
    CHECK_OK(ds_put(store, DS_RUNTIME, "note", 4, "kept", 4, NULL));
    uint64_t sequence = stats_of(store).sequence;
    CHECK_OK(ds_close(store));
    return sequence;
}

/* `sequence` 0: any. The sequence jumps when a store was not closed before it was recovered from its log. */
static void expect_filled(ds_store *store, uint64_t sequence) {
    char key[16];
    for (int i = 80; i < 200; i++) {
        snprintf(key, sizeof key, "key-%d", i % 120);
        ds_value value;
        CHECK_OK(ds_get(store, DS_USER, key, strlen(key), &value));
        CHECK_EQ(value.size, (size_t)(i * 13 % 3000));
        for (size_t at = 0; at < value.size; at++)
            CHECK(((const char *)value.data)[at] == 'a' + i % 26);
        ds_unpin(&value);
    }
    expect_value(store, "gone", NULL);
    expect_bytes(store, DS_RUNTIME, "note", 4, "kept", 4);
    ds_stats stats = stats_of(store);
    CHECK_EQ(stats.keys[DS_USER], 120);
    CHECK_EQ(stats.keys[DS_RUNTIME], 1);
    CHECK(sequence == 0 || stats.sequence == sequence);
    CHECK_EQ(stats.dropped_bytes, 0);
    CHECK_OK(ds_verify(store, NULL));
}

static void a_store_reopens_as_it_was_closed(const char *dir) {
    uint64_t sequence = fill(dir);
    for (int i = 0; i < 3; i++) {
        ds_store *store = open_store(dir);
        expect_filled(store, sequence);
        CHECK_OK(ds_close(store));
    }
}

static void a_store_survives_a_reboot(const char *dir) {
    uint64_t sequence = fill(dir);
    for (int i = 0; i < 3; i++) {
        reboot(dir);
        ds_store *store = open_store(dir);
        expect_filled(store, sequence);
        CHECK_OK(ds_close(store));
    }
    ds_store *store = open_store(dir);
    CHECK(put(store, "next", "1") > sequence);
    CHECK_OK(ds_close(store));
}

static void a_store_that_was_never_written_survives_a_reboot(const char *dir) {
    for (int i = 0; i < 3; i++) {
        ds_store *store = open_store(dir);
        CHECK_EQ(stats_of(store).keys[DS_USER], 0);
        CHECK_OK(ds_close(store));
        reboot(dir);
    }
}

static void put_large_and_die(void *context) {
    static char value[60000]; /* two of them need two segments of the smallest size */
    ds_store *store = open_store(context);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, value, sizeof value, NULL));
}

/* Sequences jump after each of these recoveries, also where one segment ends and the next begins. */
static void commits_after_unclean_ends_survive_the_next(const char *dir) {
    for (int i = 0; i < 5; i++) {
        check_join(check_spawn(put_large_and_die, (void *)(uintptr_t)dir));
        reboot(dir);
    }
    ds_store *store = open_store(dir);
    static char value[60000];
    expect_bytes(store, DS_USER, "large", 5, value, sizeof value);
    uint64_t frames = 0;
    CHECK_OK(ds_verify(store, &frames));
    CHECK_EQ(frames, 5);
    CHECK(stats_of(store).sequence > 5);
    CHECK_EQ(stats_of(store).dropped_bytes, 0);
    CHECK_OK(ds_close(store));
}

/* I22 */
static void i22_a_read_only_open_reads_and_changes_no_byte(const char *dir) {
    uint64_t sequence = fill(dir);
    ds_options options = options_default();
    options.create = false;
    options.read_only = true;
    for (int rebooted = 0; rebooted < 2; rebooted++) {
        uint64_t before = fingerprint(dir);
        ds_store *store = open_with(dir, options);
        expect_filled(store, sequence);
        CHECK_IS(ds_put(store, DS_USER, "k", 1, "v", 1, NULL), DS_READ_ONLY);
        CHECK_IS(ds_delete(store, DS_USER, "key-1", 5, NULL), DS_READ_ONLY);
        ds_change change = change_put("k", "v");
        CHECK_IS(ds_commit(store, &change, 1, NULL), DS_READ_ONLY);
        CHECK_IS(ds_fence(store, 9, NULL), DS_READ_ONLY);
        CHECK_OK(ds_close(store));
        CHECK_EQ(fingerprint(dir), before);
        reboot(dir);
        (void)unlink(check_format("%s/reserve", dir)); /* which a writer would make again */
    }
}

static void a_copied_store_opens_without_its_control_page(const char *dir) {
    char *original = check_format("%s/original", dir), *copy = check_format("%s/copy", dir);
    fill(original);
    ds_store *busy = open_store(original);
    char *command = check_format("cp -a '%s' '%s'", original, copy);
    CHECK(system(command) == 0);
    ds_store *store = open_store(copy);
    expect_filled(store, 0);
    put(store, "only", "in the copy");
    expect_value(busy, "only", NULL);
    put(busy, "only", "in the original");
    expect_value(store, "only", "in the copy");
    CHECK_OK(ds_close(store));
    CHECK_OK(ds_close(busy));
    free(command);
    free(original);
    free(copy);
}

static void a_file_system_that_keeps_no_promise_is_refused(const char *dir) {
    (void)dir;
    ds_options options = options_default();
    ds_store *store;
    CHECK_IS(ds_open("/proc/self", &options, &store), DS_UNSUPPORTED);
    options.read_only = true;
    CHECK_IS(ds_open("/proc/self", &options, &store), DS_UNSUPPORTED);
}

static void open_as_nobody(void *context) {
    ds_options options = options_default();
    ds_store *store;
    CHECK(setuid(65534) == 0);
    CHECK_IS(ds_open(context, &options, &store), DS_IO);
    CHECK_EQ(ds_error_errno(), EPERM);
    options.create = false;
    CHECK_IS(ds_open(context, &options, &store), DS_IO);
}

/* Whatever its mode allows. */
static void i29_the_store_of_somebody_else_is_refused(const char *dir) {
    if (geteuid() != 0) /* who cannot become somebody else */
        return;
    char *path = check_format("%s/store", dir);
    CHECK(chmod(dir, 0755) == 0 && mkdir(path, 0700) == 0 && chmod(path, 0777) == 0);
    check_join(check_spawn(open_as_nobody, path));
    CHECK_EQ(check_entries(path), 2); /* nothing was made there */
    CHECK_OK(ds_close(open_store(path)));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(a_new_store_is_private_whatever_the_umask),
        TEST(a_missing_store_is_made_only_when_asked),
        TEST(the_path_of_something_else_is_refused),
        TEST(a_file_system_that_keeps_no_promise_is_refused),
        TEST(i29_the_store_of_somebody_else_is_refused),
        TEST(a_parent_that_is_missing_is_named),
        TEST(options_out_of_range_are_refused),
        TEST(a_store_reopens_as_it_was_closed),
        TEST(a_store_survives_a_reboot),
        TEST(a_store_that_was_never_written_survives_a_reboot),
        TEST(commits_after_unclean_ends_survive_the_next),
        TEST(i22_a_read_only_open_reads_and_changes_no_byte),
        TEST(a_copied_store_opens_without_its_control_page),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
