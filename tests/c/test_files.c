/* Names of a store's files that mean something else at the moment they are opened (I29), and control pages of another libc
 * (I33). The linker wraps ds__os_open(): the open with a number of our choice finds a thing of ours at its name. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"
#include "os.h"
#include "store.h"
#include "store_help.h"

enum { SOMEBODY = 12345, BIG = DS_BLOB_FROM + 1 };

enum thing { LINK, DANGLING_LINK, FIFO, DIRECTORY, FOREIGN_FILE, THINGS };

static struct {
    enum thing thing;
    size_t at, opens;
    char *victim, *nowhere; /* what links lead to */
    char *name, *aside;     /* of the file, with its path, and where it is meanwhile */
    bool had_file;
    int foreign; /* descriptor of somebody else's file */
    unsigned char *bytes;
    size_t size; /* what was in it */
} plant;

static unsigned char *read_foreign(size_t *size) {
    struct stat status;
    CHECK(fstat(plant.foreign, &status) == 0);
    unsigned char *bytes = malloc((size_t)status.st_size + 1);
    CHECK(bytes && pread(plant.foreign, bytes, (size_t)status.st_size, 0) == status.st_size);
    *size = (size_t)status.st_size;
    return bytes;
}

static void expect_untouched(void) {
    size_t size;
    unsigned char *bytes = read_foreign(&size);
    CHECK_EQ(size, plant.size);
    CHECK(memcmp(bytes, plant.bytes, size) == 0);
    free(bytes);
    free(plant.bytes);
    close(plant.foreign);
}

static void plant_at(const char *path) {
    plant.name = check_format("%s", path);
    plant.had_file = rename(path, plant.aside) == 0;
    switch (plant.thing) {
    case LINK:
        CHECK(symlink(plant.victim, path) == 0);
        break;
    case DANGLING_LINK:
        CHECK(symlink(plant.nowhere, path) == 0);
        break;
    case FIFO:
        CHECK(mkfifo(path, 0666) == 0);
        break;
    case DIRECTORY:
        CHECK(mkdir(path, 0777) == 0);
        break;
    default: {
        char *copy = check_format("cp '%s' '%s'", plant.had_file ? plant.aside : "/dev/null", path);
        CHECK(system(copy) == 0 && chown(path, SOMEBODY, SOMEBODY) == 0);
        plant.foreign = open(path, O_RDONLY | O_CLOEXEC);
        plant.bytes = read_foreign(&plant.size);
    }
    }
}

static bool is_planted(const char *path) {
    struct stat status;
    if (lstat(path, &status) != 0)
        return false;
    return !S_ISREG(status.st_mode) || status.st_uid == SOMEBODY;
}

/* The file gets its name back, unless the store has made another one. */
static void take_away(void) {
    if (!plant.name)
        return;
    if (plant.thing == FOREIGN_FILE)
        expect_untouched();
    if (is_planted(plant.name))
        CHECK(remove(plant.name) == 0);
    if (plant.had_file && access(plant.name, F_OK) != 0)
        CHECK(rename(plant.aside, plant.name) == 0);
    (void)unlink(plant.aside);
    plant.name = NULL;
}

ds_status __real_ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd);
ds_status __wrap_ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd);
ds_status __wrap_ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd) {
    if (++plant.opens == plant.at)
        plant_at(check_format("%s/%s", directory->path, name));
    return __real_ds__os_open(directory, name, mode, fd);
}

static void accept(ds_status status) {
    if (status == DS_OK)
        return;
    bool typed = status == DS_IO || status == DS_NOT_A_STORE || status == DS_CORRUPT || status == DS_FULL;
    if (!typed)
        check_fail(__FILE__, __LINE__, "open %zu, thing %d: %s: %s", plant.at, (int)plant.thing, ds_status_name(status),
                   ds_error());
    CHECK(strchr(ds_error(), '/')); /* it names the file */
}

static char *big;

/* Opens after a reboot; fills more than a segment; writes a large value and reads it; syncs, compacts, closes. What was
 * acknowledged is counted in *puts. */
static void live(const char *path, unsigned *puts) {
    static char value[3000];
    ds_options options = options_default();
    options.group_ms = 1000;
    ds_store *store = NULL;
    ds_status status = ds_open(path, &options, &store);
    accept(status);
    if (status != DS_OK)
        return;
    for (unsigned i = 0; i < 60; i++) {
        char key[16];
        snprintf(key, sizeof key, "%u", *puts);
        status = ds_put(store, DS_USER, key, strlen(key), value, sizeof value, NULL);
        accept(status);
        *puts += status == DS_OK;
    }
    ds_value read;
    if (plant.at == 0 || plant.at > 10) {
        accept(ds_put(store, DS_USER, "big", 3, big, BIG, NULL));
        status = ds_get(store, DS_USER, "big", 3, &read);
        if (status == DS_OK)
            ds_unpin(&read);
        else if (status != DS_MISSING)
            accept(status);
    }
    accept(ds_sync(store));
    accept(ds__compact(store, true, DS_COMPACT_ALL));
    accept(ds_close(store));
}

static void reboot(const char *path) {
    char *command = check_format("rm -f '%s/control' '%s'/index.*", path, path);
    CHECK(system(command) == 0);
}

static void expect_all(const char *path, unsigned puts) {
    ds_store *store = open_store(path);
    char key[16];
    ds_value value;
    for (unsigned i = 0; i < puts; i++) {
        snprintf(key, sizeof key, "%u", i);
        CHECK_OK(ds_get(store, DS_USER, key, strlen(key), &value));
        CHECK_EQ(value.size, 3000);
        ds_unpin(&value);
    }
    CHECK_OK(ds_verify(store, NULL));
    put(store, "and", "it goes on");
    accept(ds_close(store)); /* a sync that failed stays failed (I10) */
}

/* With open number `at` finding the thing. Returns how many opens there were. */
static size_t live_with(const char *dir, enum thing thing, size_t at) {
    char *path = check_format("%s/store", dir);
    struct stat before, after;
    ds_store *store = open_store(path);
    put(store, "first", "1");
    CHECK_OK(ds_close(store));
    if (at % 2)
        reboot(path);
    CHECK(stat(plant.victim, &before) == 0);
    unsigned puts = 0;
    plant.thing = thing;
    plant.opens = 0;
    plant.at = at;
    live(path, &puts);
    size_t opens = plant.opens;
    plant.at = 0;
    take_away();
    CHECK(stat(plant.victim, &after) == 0);
    CHECK(before.st_size == after.st_size && before.st_mode == after.st_mode);
    CHECK(before.st_mtim.tv_sec == after.st_mtim.tv_sec && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
    CHECK(access(plant.nowhere, F_OK) != 0);
    expect_all(path, puts);
    check_remove(path);
    return opens;
}

static void each_open_finds(const char *dir, enum thing thing) {
    plant.victim = check_format("%s/victim", dir);
    plant.nowhere = check_format("%s/nowhere", dir);
    plant.aside = check_format("%s/aside", dir);
    FILE *file = fopen(plant.victim, "w");
    CHECK(file && fputs("not yours", file) >= 0 && fclose(file) == 0);
    size_t at = 1;
    while (live_with(dir, thing, at) >= at)
        at++;
    CHECK(at > 10);
    printf("     %zu opens\n", at - 1);
}

static void i29_no_open_follows_a_link(const char *dir) {
    each_open_finds(dir, LINK);
}

static void i29_no_open_follows_a_link_to_nowhere(const char *dir) {
    each_open_finds(dir, DANGLING_LINK);
}

static void i29_no_open_waits_for_a_fifo(const char *dir) {
    each_open_finds(dir, FIFO);
}

static void i29_no_open_takes_a_directory(const char *dir) {
    each_open_finds(dir, DIRECTORY);
}

static void i29_no_open_takes_a_file_of_somebody_else(const char *dir) {
    if (geteuid() != 0) {
        printf("     (only root can make a file of somebody else)\n");
        return;
    }
    each_open_finds(dir, FOREIGN_FILE);
}

/* ---- I33: another libc, or another layout of the page ---------------------------------------------------------------- */

static void change_page(const char *path, size_t at, uint32_t value) {
    int fd = open(check_format("%s/control", path), O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && pwrite(fd, &value, sizeof value, (off_t)at) == sizeof value);
    close(fd);
}

static void i33_the_page_of_another_libc_is_rebuilt_or_refused(const char *dir) {
    static const size_t words[] = {
        offsetof(struct ds_control, identity.libc),
        offsetof(struct ds_control, identity.mutex_size),
        offsetof(struct ds_control, identity.layout),
        offsetof(struct ds_control, identity.bytes),
    };
    for (size_t i = 0; i < CHECK_COUNT(words); i++) {
        char *path = check_format("%s/%zu", dir, i);
        ds_store *store = open_store(path), *other = NULL;
        put(store, "k", "v");
        change_page(path, words[i], 77);
        ds_options options = options_default();
        CHECK_IS(ds_open(path, &options, &other), DS_IN_USE); /* its lock may be another kind of lock */
        CHECK(!other && strstr(ds_error(), "control"));
        expect_value(store, "k", "v");
        CHECK_OK(ds_close(store));
        change_page(path, words[i], 77);
        store = open_store(path); /* nobody is there any more */
        expect_value(store, "k", "v");
        put(store, "k", "w");
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
    }
}

int main(int argc, char **argv) {
    big = calloc(1, BIG);
    CHECK(big);
    static const check_test tests[] = {
        TEST(i29_no_open_follows_a_link),
        TEST(i29_no_open_follows_a_link_to_nowhere),
        TEST(i29_no_open_waits_for_a_fifo),
        TEST(i29_no_open_takes_a_directory),
        TEST(i29_no_open_takes_a_file_of_somebody_else),
        TEST(i33_the_page_of_another_libc_is_rebuilt_or_refused),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
