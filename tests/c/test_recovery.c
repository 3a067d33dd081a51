/* Opening a directory in which something is not as it was a moment ago, or that never was a whole store. The linker wraps what
 * recovery calls (ld --wrap). Whatever it meets, it says so, and changes nothing that a later open needs. */
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "log.h"
#include "status.h"
#include "store.h"
#include "store_help.h"

/* ---- what is wrapped ---------------------------------------------------------------------------------------------- */

static const char *vanishing;          /* a part of a name: such a file is gone when it is opened, */
static unsigned vanish_at;             /* the how manieth time; 0: each time */
static unsigned opens;                 /* of such files */
static ds_status gone_is = DS_MISSING; /* or it is there and cannot be opened */
static bool changes_then;              /* and with it what is read of the log */
static bool bytes_change;              /* under the eyes of who reads the log */

ds_status __real_ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd);
ds_status __wrap_ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd);
ds_status __wrap_ds__os_open(const struct ds_directory *directory, const char *name, int mode, int *fd) {
    if (vanishing != NULL && strstr(name, vanishing) != NULL && mode != DS_OS_CREATE) {
        opens++;
        if (vanish_at == 0 || vanish_at == opens) {
            *fd = -1;
            bytes_change = changes_then;
            return ds__fail(gone_is, ENOENT, "%s: so the test wants it", name);
        }
    }
    return __real_ds__os_open(directory, name, mode, fd);
}

static void vanish(const char *name, unsigned at) {
    vanishing = name;
    vanish_at = at;
    opens = 0;
}

static const char *replaced; /* a directory that somebody replaces while it is opened */

ds_status __real_ds__os_flock(const struct ds_directory *directory, const char *name, int fd, int kind, int timeout_ms);
ds_status __wrap_ds__os_flock(const struct ds_directory *directory, const char *name, int fd, int kind, int timeout_ms);
ds_status __wrap_ds__os_flock(const struct ds_directory *directory, const char *name, int fd, int kind,
                              int timeout_ms) {
    if (replaced != NULL) {
        char *aside = check_format("%s.aside", replaced);
        CHECK(rename(replaced, aside) == 0 && mkdir(replaced, 0700) == 0);
        replaced = NULL;
        free(aside);
    }
    return __real_ds__os_flock(directory, name, fd, kind, timeout_ms);
}

ds_status __real_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone) {
    return bytes_change ? ds__fail(DS_CORRUPT, 0, "so the test wants it")
                        : __real_ds__find(store, index, hash, keyspace, key, key_size, out, gone);
}

static bool records_change;

ds_status __real_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
ds_status __wrap_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
ds_status __wrap_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out) {
    return records_change ? ds__fail(DS_CORRUPT, 0, "so the test wants it") : __real_ds__record_at(store, offset, out);
}

static const char *unreadable; /* a file: of what is mapped of it, nothing behind the first page is there */

ds_status __real_ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size,
                            bool writable, void **out);
ds_status __wrap_ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size,
                            bool writable, void **out);
ds_status __wrap_ds__os_map(const struct ds_directory *directory, const char *name, int fd, uint64_t size,
                            bool writable, void **out) {
    ds_status status = __real_ds__os_map(directory, name, fd, size, writable, out);
    if (status == DS_OK && unreadable != NULL && strcmp(name, unreadable) == 0)
        CHECK(truncate(check_format("%s/%s", directory->path, name), 4096) == 0);
    return status;
}

/* A slow writer's segments: as small as they get. */
uint64_t __wrap_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void) {
    static atomic_uint_fast64_t now;
    return now += UINT64_C(2000000000);
}

/* ---- help --------------------------------------------------------------------------------------------------------- */

static ds_status open_status(const char *dir, bool create) {
    ds_options options = options_default();
    options.create = create;
    ds_store *store = NULL;
    ds_status status = ds_open(dir, &options, &store);
    if (status == DS_OK)
        CHECK_OK(ds_close(store));
    else
        CHECK(ds_error()[0] != '\0');
    return status;
}

enum { KEYS = 400, VALUE = 1000, LAST = 6 * DS_SEGMENT_MIN /* base of the last segment that they take */ };

static void put_each(ds_store *store, unsigned from, unsigned to) {
    static char value[VALUE];
    for (unsigned i = from; i < to; i++) {
        char key[16];
        CHECK_OK(ds_put(store, DS_USER, key, (size_t)snprintf(key, sizeof key, "k%u", i), value, VALUE, NULL));
    }
}

/* Keys 0 to `to` are there, and no others. */
static void expect_each(const char *dir, unsigned to) {
    ds_store *store = open_store(dir);
    for (unsigned i = 0; i < KEYS; i++) {
        char key[16];
        ds_value value;
        CHECK_IS(ds_get(store, DS_USER, key, (size_t)snprintf(key, sizeof key, "k%u", i), &value),
                 i < to ? DS_OK : DS_MISSING);
        if (i < to)
            ds_unpin(&value);
    }
    CHECK_EQ(stats_of(store).keys[DS_USER], to);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* A store of some segments, closed, without what no reboot survives. */
static char *make_store(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_store *store = open_store(path);
    put_each(store, 0, KEYS);
    CHECK_EQ(store->control->tail.segment_base, LAST);
    CHECK_OK(ds_close(store));
    image_reboot(path);
    return path;
}

static void write_at(const char *path, const void *bytes, size_t size, long at) {
    FILE *file = fopen(path, "r+b");
    if (file == NULL)
        file = fopen(path, "w+b");
    CHECK(file && fseek(file, at, SEEK_SET) == 0 && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

static void read_at(const char *path, void *bytes, size_t size, long at) {
    FILE *file = fopen(path, "rb");
    CHECK(file && fseek(file, at, SEEK_SET) == 0 && fread(bytes, 1, size, file) == size && fclose(file) == 0);
}

static char *segment_file(const char *dir, uint64_t base) {
    char name[DS_NAME_SIZE];
    ds__segment_name(base, name);
    return check_format("%s/%s", dir, name);
}

/* ---- what never was a store, or is none any more ------------------------------------------------------------------ */

/* The power went while the first segment was made: nothing was promised. */
static void i11_a_store_whose_first_bytes_are_missing_was_never_born(const char *dir) {
    static const char zeros[DS_SEGMENT_MIN];
    char *path = check_format("%s/store", dir);
    CHECK(mkdir(path, 0700) == 0);
    write_at(segment_file(path, 0), zeros, sizeof zeros, 0);
    CHECK_IS(open_status(path, false), DS_NOT_A_STORE);
    CHECK_OK(open_status(path, true));
    CHECK_OK(open_status(path, false));
}

/* What is left of a store without its segments makes no new one. */
static void i11_a_store_without_segments_is_not_made_anew(const char *dir) {
    static const char *const kept[] = {"control", "floor"};
    for (size_t i = 0; i < CHECK_COUNT(kept); i++) {
        char *path = check_format("%s/%zu", dir, i);
        ds_store *store = open_store(path);
        put(store, "k", "v");
        CHECK_OK(ds_close(store));
        DIR *entries = opendir(path);
        CHECK(entries);
        for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
            if (entry->d_name[0] != '.' && strcmp(entry->d_name, kept[i]) != 0)
                CHECK(unlink(check_format("%s/%s", path, entry->d_name)) == 0);
        closedir(entries);
        CHECK_IS(open_status(path, true), DS_CORRUPT);
        CHECK_IS(open_status(path, false), DS_CORRUPT);
        CHECK_EQ(check_entries(path), 3);
    }
}

static void files_of_others_are_named(const char *dir) {
    static const char *const names[] = {"as-long-as-a-blob.txt", "short"};
    for (size_t i = 0; i < CHECK_COUNT(names); i++) {
        char *path = check_format("%s/%zu", dir, i);
        CHECK(mkdir(path, 0700) == 0);
        write_at(check_format("%s/%s", path, names[i]), "", 0, 0);
        CHECK_IS(open_status(path, true), DS_NOT_A_STORE);
        CHECK(strstr(ds_error(), names[i]));
    }
}

/* ---- what goes meanwhile ------------------------------------------------------------------------------------------ */

static void a_first_segment_that_always_goes_is_given_up(const char *dir) {
    char *path = make_store(dir);
    vanish(".log", 0);
    CHECK_IS(open_status(path, true), DS_TIMEOUT);
    vanish(".log", 1); /* once, as compaction does it */
    CHECK_OK(open_status(path, true));
    vanish(NULL, 0);
    expect_each(path, KEYS);
}

static void a_segment_that_goes_while_the_log_is_read_is_damage(const char *dir) {
    char *path = make_store(dir);
    vanish(segment_file(path, LAST) + strlen(path) + 1, 0); /* below the floor */
    CHECK_IS(open_status(path, true), DS_CORRUPT);
    CHECK(opens > 0);
    vanish(NULL, 0);
    expect_each(path, KEYS);
}

static void a_control_page_that_goes_is_made_anew(const char *dir) {
    char *path = make_store(dir);
    CHECK_OK(open_status(path, true));
    vanish("control", 1);
    CHECK_OK(open_status(path, true));
    CHECK(opens >= 1);
    vanish(NULL, 0);
    expect_each(path, KEYS);
}

static void a_directory_that_is_replaced_is_not_opened(const char *dir) {
    char *path = make_store(dir);
    replaced = path;
    CHECK_IS(open_status(path, true), DS_IN_USE);
    CHECK_EQ(check_entries(path), 2); /* the new one is left alone */
    CHECK(rmdir(path) == 0 && rename(check_format("%s.aside", path), path) == 0);
    expect_each(path, KEYS);
}

static void bytes_that_change_while_the_log_is_read_are_damage(const char *dir) {
    char *path = make_store(dir);
    bytes_change = true;
    CHECK_IS(open_status(path, true), DS_CORRUPT);
    bytes_change = false;
    write_at(check_format("%s/0123456789abcdef.blob", path), "x", 1, 0);
    records_change = true;
    CHECK_IS(open_status(path, true), DS_CORRUPT);
    records_change = false;
    expect_each(path, KEYS);
}

/* A disk that does not give back what is there is no end of the log: nothing is dropped for it. */
static void i13_a_disk_that_cannot_read_is_no_end(const char *dir) {
    char *path = make_store(dir), *log = segment_file(path, DS_SEGMENT_MIN);
    CHECK(unlink(check_format("%s/floor", path)) == 0); /* which would say so anyway */
    unsigned files = check_entries(path);
    unreadable = log + strlen(path) + 1;
    CHECK_IS(open_status(path, true), DS_IO);
    CHECK(strstr(ds_error(), "check the disk"));
    unreadable = NULL;
    CHECK_EQ(check_entries(path), files);
}

/* Whoever verifies has to open what others wrote. */
static void a_segment_that_cannot_be_opened_fails_a_verify(const char *dir) {
    char *path = make_store(dir);
    ds_store *first = open_store(path), *second = open_store(path);
    vanish(".log", 0);
    CHECK_IS(ds_verify(second, NULL), DS_CORRUPT);
    gone_is = DS_IO;
    CHECK_IS(ds_verify(second, NULL), DS_IO);
    gone_is = DS_MISSING;
    vanish(NULL, 0);
    CHECK_OK(ds_verify(second, NULL));
    CHECK_OK(ds_close(second));
    CHECK_OK(ds_close(first));
}

/* ---- large values that may be lost -------------------------------------------------------------------------------- */

enum { BIG = DS_BLOB_FROM + 1, LARGE = 3 };

/* Three large values, `old` before them; after a reboot nothing tells that they were ever synced. */
static char *make_large(const char *dir, bool compacted) {
    char *path = check_format("%s/store", dir), *big = calloc(1, BIG), key[] = "a";
    CHECK(big);
    ds_store *store = open_store(path);
    put(store, "old", "1");
    for (int i = 0; i < LARGE; i++, key[0]++)
        CHECK_OK(ds_put(store, DS_USER, key, 1, big, BIG, NULL));
    put(store, "young", "2");
    if (compacted)
        CHECK_OK(ds_compact(store));
    CHECK_OK(ds_close(store));
    image_reboot(path);
    CHECK(unlink(check_format("%s/floor", path)) == 0);
    free(big);
    return path;
}

/* The n-th of the files of large values, as the directory lists them; how many there are. */
static unsigned find_blob(const char *path, unsigned n, char name[64]) {
    unsigned count = 0;
    DIR *entries = opendir(path);
    CHECK(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        if (ds__is_blob_name(entry->d_name) && count++ == n)
            snprintf(name, 64, "%.63s", entry->d_name);
    closedir(entries);
    return count;
}

static void expect_large(const char *path, bool all) {
    char key[] = "a", name[64];
    ds_value value;
    ds_store *store = open_store(path);
    expect_value(store, "old", "1");
    expect_value(store, "young", all ? "2" : NULL);
    unsigned found = 0;
    for (int i = 0; i < LARGE; i++, key[0]++)
        if (ds_get(store, DS_USER, key, 1, &value) == DS_OK) {
            CHECK_EQ(value.size, BIG);
            ds_unpin(&value);
            found++;
        }
    CHECK(all ? found == LARGE : found < LARGE);
    CHECK_EQ(find_blob(path, 0, name), found);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* Whether a large value is there must be known: where it cannot be told, nothing is dropped. */
static void i9_a_large_value_that_cannot_be_looked_at_is_not_lost(const char *dir) {
    char *path = make_large(dir, false), name[64];
    gone_is = DS_IO;
    vanish(".blob", 0);
    CHECK_IS(open_status(path, true), DS_IO);
    gone_is = DS_MISSING;
    changes_then = true; /* in the second reading, which is to end before it */
    CHECK_IS(open_status(path, true), DS_CORRUPT);
    bytes_change = changes_then = false;
    vanish(NULL, 0);
    records_change = true;
    CHECK_IS(open_status(path, true), DS_CORRUPT);
    records_change = false;
    expect_large(path, true);
    image_reboot(path);
    CHECK(unlink(check_format("%s/floor", path)) == 0);
    CHECK_EQ(find_blob(path, 0, name), LARGE);
    unreadable = name; /* which spoils it */
    CHECK_IS(open_status(path, true), DS_IO);
    CHECK(strstr(ds_error(), "check the disk"));
    unreadable = NULL;
    CHECK_EQ(find_blob(path, 0, name), LARGE);
}

static void sync_put_large_and_die(void *path) {
    ds_store *store = open_store(path);
    put(store, "synced", "1");
    CHECK_OK(ds_sync(store));
    put(store, "young", "2");
    char *big = calloc(1, BIG);
    CHECK(big);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
}

/* What lies below the floor needs no look, and stays. */
static void i9_what_was_synced_stays_where_a_large_value_is_lost(const char *dir) {
    char *path = check_format("%s/store", dir), name[64];
    check_join(check_spawn(sync_put_large_and_die, path));
    image_reboot(path);
    CHECK_EQ(find_blob(path, 0, name), 1);
    CHECK(unlink(check_format("%s/%s", path, name)) == 0);
    ds_store *store = open_store(path);
    expect_value(store, "synced", "1");
    expect_value(store, "young", "2");
    expect_value(store, "large", NULL);
    CHECK(stats_of(store).dropped_bytes > 0);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

static void i9_the_log_ends_before_the_first_large_value_that_is_lost(const char *dir) {
    char *path = make_large(dir, false), name[64];
    for (unsigned lost = 0; lost < 2; lost++) {
        CHECK_EQ(find_blob(path, 0, name), LARGE - lost);
        CHECK(unlink(check_format("%s/%s", path, name)) == 0);
    }
    expect_large(path, false);
}

static void fill_up_to(ds_store *store, uint64_t base) {
    static unsigned key;
    while (store->control->tail.segment_base < base)
        put_each(store, key, key + 1), key++;
}

/* As a compaction says where the log begins now. */
static void tell_start(ds_store *store, uint64_t start) {
    ds_change change = {.kind = DS_PUT, .keyspace = DS_RUNTIME, .key = "", .value = &start, .value_size = sizeof start};
    struct ds_plan plan = {.length = ds__record_length(0, sizeof start), .op = DS_RECORD_START, .write = true};
    CHECK_OK(ds__writer_enter(store));
    CHECK_OK(ds__append(store, DS_FRAME_HEAD, &change, &plan, 1, sizeof(struct ds_frame) + plan.length, false));
    ds__writer_leave(store);
}

/* A compaction that has written where the log begins now, and has not heard yet that this is on disk. */
static void begin_later_and_die(void *path) {
    ds_store *store = open_store(path);
    put(store, "synced", "1");
    CHECK_OK(ds_sync(store));
    fill_up_to(store, DS_SEGMENT_MIN);
    put(store, "torn", "2");
    uint64_t start = 2 * DS_SEGMENT_MIN;
    fill_up_to(store, start);
    char *big = calloc(1, BIG);
    CHECK(big);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
    tell_start(store, start);
}

/* The power goes, and takes the large value, but not where the log was to begin; what lies before that is torn, because nobody
 * needs it any more. Without the large value the log ends before the new start is told, so it begins where it did. */
static void i9_a_start_that_is_told_behind_a_lost_value_is_none(const char *dir) {
    char *path = check_format("%s/store", dir), name[64];
    check_join(check_spawn(begin_later_and_die, path));
    image_reboot(path);
    CHECK_EQ(find_blob(path, 0, name), 1);
    CHECK(unlink(check_format("%s/%s", path, name)) == 0);
    write_at(segment_file(path, DS_SEGMENT_MIN), "torn", 4, DS_SEGMENT_HEADER + 8);
    for (int boot = 0; boot < 2; boot++) {
        ds_store *store = open_store(path);
        expect_value(store, "synced", "1");
        expect_value(store, "torn", NULL);
        expect_value(store, "large", NULL);
        expect_value(store, "next", boot ? "3" : NULL);
        CHECK(boot > 0 || stats_of(store).dropped_bytes > 0);
        put(store, "next", "3");
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
        image_reboot(path);
    }
}

/* A compaction dies when the new start is on disk and the segment before it not gone yet; the next one moves the start on, and what
 * it drops was never synced. `lost`: nor was the end of that one. */
static void begin_twice_and_die(ds_store *store, bool lost) {
    fill_up_to(store, DS_SEGMENT_MIN);
    put(store, "kept", "1");
    tell_start(store, DS_SEGMENT_MIN);
    CHECK_OK(ds_sync(store));
    fill_up_to(store, 3 * DS_SEGMENT_MIN);
    char *big = calloc(1, BIG);
    CHECK(big);
    if (lost)
        CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
    put(store, "kept", "2");
    tell_start(store, 3 * DS_SEGMENT_MIN);
    if (!lost)
        CHECK_OK(ds_sync(store));
    free(big);
}

static void begin_twice_synced(void *path) {
    begin_twice_and_die(open_store(path), false);
}

static void begin_twice_lost(void *path) {
    begin_twice_and_die(open_store(path), true);
}

/* The power goes, and tears the two that nobody needs any more. Of the starts that were told, the last one counts that can be read
 * with its HEAD, and not the first. */
static void i7_the_last_start_that_was_synced_counts(const char *dir) {
    for (int lost = 0; lost < 2; lost++) {
        char *path = check_format("%s/%d", dir, lost), name[64];
        check_join(check_spawn(lost ? begin_twice_lost : begin_twice_synced, path));
        image_reboot(path);
        CHECK(unlink(check_format("%s/floor", path)) == 0);
        if (lost) {
            CHECK_EQ(find_blob(path, 0, name), 1);
            CHECK(unlink(check_format("%s/%s", path, name)) == 0);
        }
        write_at(segment_file(path, 0), "torn", 4, DS_SEGMENT_HEADER + 8);
        write_at(segment_file(path, 2 * DS_SEGMENT_MIN), "torn", 4, DS_SEGMENT_HEADER + 8);
        ds_store *store = open_store(path);
        expect_value(store, "kept", lost ? "1" : "2");
        CHECK_EQ(atomic_load(&store->control->start), (uint64_t)(lost ? 1 : 3) * DS_SEGMENT_MIN);
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
    }
}

/* Where the log begins later it was synced, large values and all: then one that is not there is damage. */
static void i13_a_large_value_that_was_synced_is_not_dropped(const char *dir) {
    char *path = make_large(dir, true), name[64];
    CHECK_EQ(find_blob(path, 0, name), LARGE);
    CHECK(unlink(check_format("%s/%s", path, name)) == 0);
    CHECK_IS(open_status(path, true), DS_CORRUPT);
    CHECK_EQ(find_blob(path, 0, name), LARGE - 1);
}

/* ---- the index and the control page ------------------------------------------------------------------------------- */

/* While somebody has it mapped nobody may make another: that one goes on, and who comes is told what to do. */
static void an_index_that_is_lost_in_use_is_not_made_anew(const char *dir) {
    ds_store *first = open_store(dir), *second;
    ds_value value;
    put(first, "k", "v");
    CHECK(unlink(check_format("%s/index.%016llx", dir, (unsigned long long)first->control->generation)) == 0);
    second = open_store(dir);
    CHECK_IS(ds_get(second, DS_USER, "k", 1, &value), DS_CORRUPT);
    CHECK(strstr(ds_error(), "close the store in all processes"));
    CHECK_OK(ds_close(second));
    expect_value(first, "k", "v");
    CHECK_OK(ds_close(first));
    second = open_store(dir);
    expect_value(second, "k", "v");
    CHECK_OK(ds_close(second));
}

static void an_index_that_is_no_file_is_made_anew(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "v");
    char *index = check_format("%s/index.%016llx", dir, (unsigned long long)store->control->generation);
    CHECK_OK(ds_close(store));
    CHECK(unlink(index) == 0 && mkfifo(index, 0600) == 0);
    store = open_store(dir);
    expect_value(store, "k", "v");
    CHECK(access(index, F_OK) != 0);
    CHECK_OK(ds_close(store));
}

/* A recovery that dies before the page is made anew leaves an index that may be half of one. The old page must not name it. */
static void an_index_that_was_half_made_is_not_the_one_in_force(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "v");
    char *index = check_format("%s/index.%016llx", dir, (unsigned long long)store->control->generation);
    char *draft = check_format("%s/control.new", dir);
    CHECK_OK(ds_close(store));
    CHECK(unlink(index) == 0 && mkdir(draft, 0700) == 0); /* where it dies */
    CHECK(open_status(dir, true) != DS_OK);
    CHECK(access(index, F_OK) != 0);
    CHECK(rmdir(draft) == 0);
    store = open_store(dir);
    expect_value(store, "k", "v");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

static void i33_a_page_of_another_pid_namespace_is_refused_in_use(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "v");
    store->control->identity.pid_namespace ^= 1;
    CHECK_IS(open_status(dir, true), DS_IN_USE);
    CHECK(strstr(ds_error(), "namespace"));
    CHECK_OK(ds_close(store)); /* as it is not any more, the page is made anew */
    store = open_store(dir);
    expect_value(store, "k", "v");
    CHECK_OK(ds_close(store));
}

/* ---- what a dead writer left -------------------------------------------------------------------------------------- */

/* The heir that cannot finish a commit gives the lock back, and the next one does. */
static void i2_a_repair_that_fails_is_done_by_the_next(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "1");
    struct ds_control *control = store->control;
    uint64_t begin = control->tail.offset;
    put(store, "k", "2");
    control->intent.begin = begin;
    ds__tail_store(&control->intent.after, &control->tail);
    atomic_store(&control->intent.end, control->tail.offset);
    uint64_t generation = atomic_exchange(&control->generation, 1000000);
    CHECK_IS(ds_put(store, DS_USER, "k", 1, "3", 1, NULL), DS_CORRUPT);
    CHECK_EQ(atomic_load(&control->repairs), 0);
    atomic_store(&control->generation, generation);
    put(store, "k", "4");
    CHECK_EQ(stats_of(store).repairs, 1);
    expect_value(store, "k", "4");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* A writer dies when its frame is complete, or just before. Until somebody settles, a read shows what was there before; from then
 * on it is decided, for all. */
static void i32_who_settles_decides_for_all(const char *dir) {
    for (int complete = 0; complete < 2; complete++) {
        char *path = check_format("%s/%d", dir, complete);
        ds_store *store = open_store(path), *other = open_store(path);
        uint64_t first = put(store, "k", "1"), sequence;
        struct ds_control *control = store->control;
        struct ds_tail before = control->tail;
        uint64_t second = put(store, "k", "2"), end = control->tail.offset;
        struct ds_segment *segment;
        CHECK_OK(ds__segments_at(&store->segments, 0, &segment));
        control->intent.begin = before.offset;
        ds__tail_store(&control->intent.after, &control->tail);
        ds__tail_store(&control->tail, &before);
        atomic_store(&control->committed, before.offset);
        atomic_store(&control->intent.end, end);
        if (!complete) { /* then no slot names it, either */
            struct ds_index *index = store->index;
            struct ds_found found;
            bool gone = false;
            uint64_t hash = ds__hash(store->hash_seed, DS_USER, "k", 1);
            CHECK_OK(ds__find(store, index, hash, DS_USER, "k", 1, &found, &gone));
            ds__index_set(index, found.slot, ds__slot(found.record->previous, hash));
            memset(ds__segment_at(segment, before.offset), 0, sizeof(uint64_t));
        }
        CHECK_EQ(expect_value(store, "k", "1"), first);
        CHECK_EQ(expect_value(other, "k", "1"), first);
        CHECK_OK(ds_settle(other, &sequence));
        CHECK_EQ(sequence, complete ? second : first);
        CHECK_EQ(expect_value(store, "k", complete ? "2" : "1"), sequence);
        CHECK_EQ(expect_value(other, "k", complete ? "2" : "1"), sequence);
        CHECK_EQ(put(store, "other", "3"), sequence + 1);
        CHECK_EQ(expect_value(store, "k", complete ? "2" : "1"), sequence);
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(other));
        CHECK_OK(ds_close(store));
    }
}

/* A frame counts by its checksums, not by its first word. */
static void i1_a_frame_with_a_wrong_body_is_undone(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "1");
    struct ds_control *control = store->control;
    uint64_t begin = control->tail.offset, length = 200;
    struct ds_segment *segment;
    CHECK_OK(ds__segments_at(&store->segments, control->tail.segment_base, &segment));
    control->intent.begin = begin;
    ds__tail_store(&control->intent.after, &control->tail);
    atomic_store(&control->intent.end, begin + length);
    memset(ds__segment_at(segment, begin), 0x55, length);
    uint64_t word0 = ds__word0(length, DS_FRAME_COMMIT);
    memcpy(ds__segment_at(segment, begin), &word0, sizeof word0);
    uint64_t sequence = put(store, "k", "2");
    CHECK_EQ(stats_of(store).repairs, 1);
    CHECK_EQ(expect_value(store, "k", "2"), sequence);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* ---- the end of the log ------------------------------------------------------------------------------------------- */

/* Gives the frame at `offset` of the only segment another sequence, and all checksums that go with it. */
static void renumber(const char *path, uint64_t offset, uint32_t before, uint64_t sequence) {
    static unsigned char bytes[DS_SEGMENT_MIN];
    char *log = segment_file(path, 0);
    read_at(log, bytes, sizeof bytes, 0);
    struct ds_segment_header header;
    memcpy(&header, bytes, sizeof header);
    struct ds_frame *frame = (struct ds_frame *)(void *)(bytes + offset);
    frame->sequence = sequence;
    frame->crc = ds__frame_crc(ds__segment_seed(&header), offset, before, frame->word0, frame);
    write_at(log, bytes, sizeof bytes, 0);
}

/* A commit whose sequence was used before, or is lower than one before it, is none, whatever its checksums say. */
static void i34_a_sequence_is_not_accepted_twice(const char *dir) {
    for (uint64_t back = 0; back < 2; back++) {
        char *path = check_format("%s/%d", dir, (int)back);
        ds_store *store = open_store(path);
        put(store, "a", "1");
        uint64_t sequence = put(store, "a", "2"), offset = store->control->tail.offset;
        uint32_t before = store->control->tail.crc;
        put(store, "a", "3");
        CHECK_OK(ds_close(store));
        image_reboot(path);
        renumber(path, offset, before, sequence - back);
        CHECK_IS(open_status(path, true), DS_CORRUPT); /* below the floor */
        CHECK(unlink(check_format("%s/floor", path)) == 0);
        store = open_store(path);
        CHECK_EQ(expect_value(store, "a", "2"), sequence);
        CHECK(stats_of(store).dropped_bytes > 0);
        CHECK_OK(ds_close(store));
    }
}

/* Seals a segment whose header was changed: all checksums that depend on it. */
static void seal(const char *log, struct ds_segment_header *header) {
    static unsigned char bytes[DS_SEGMENT_MIN];
    CHECK_EQ(header->size, sizeof bytes);
    header->crc = ds__segment_header_crc(header);
    read_at(log, bytes, sizeof bytes, 0);
    memcpy(bytes, header, sizeof *header);
    uint32_t before = header->crc, seed = ds__segment_seed(header);
    for (uint64_t at = sizeof *header; sizeof bytes - at >= sizeof(struct ds_frame);) {
        struct ds_frame *frame = (struct ds_frame *)(void *)(bytes + at);
        if (frame->word0 == 0)
            break;
        before = frame->crc = ds__frame_crc(seed, header->base + at, before, frame->word0, frame);
        at += ds__frame_length(frame->word0);
    }
    write_at(log, bytes, sizeof bytes, 0);
}

/* A segment behind a gap is not the log's, nor one that knows of fewer commits than there were, of another one before it, or of
 * another end of that. */
static void i8_what_does_not_follow_is_not_the_logs(const char *dir) {
    for (int way = 0; way < 4; way++) {
        char *parent = check_format("%s/%d", dir, way);
        CHECK(mkdir(parent, 0700) == 0);
        char *path = make_store(parent), *log = segment_file(path, DS_SEGMENT_MIN);
        struct ds_segment_header header;
        read_at(log, &header, sizeof header, 0);
        CHECK(unlink(check_format("%s/floor", path)) == 0);
        if (way == 0) {
            CHECK(unlink(log) == 0);
        } else {
            header.before_sequence -= way == 1;
            header.before_base += way == 2;
            header.before_end = way == 3 ? UINT64_MAX : header.before_end;
            seal(log, &header);
        }
        expect_each(path, (unsigned)header.first_sequence - 1);
        CHECK(access(segment_file(path, header.base + header.size), F_OK) != 0);
    }
}

/* As a writer leaves it that dies when it has made a segment and before it has used it. */
static void leave_segment(ds_store *store) {
    struct ds_tail *tail = &store->control->tail;
    struct ds_segment_header header = {
        .base = tail->segment_base + tail->segment_size,
        .size = DS_SEGMENT_MIN,
        .hash_seed = store->hash_seed,
        .first_sequence = tail->sequence + 1,
        .before_base = tail->segment_base,
        .before_end = tail->offset,
        .before_sequence = tail->sequence,
        .before_crc = tail->crc,
    };
    memcpy(header.uuid, store->uuid, sizeof header.uuid);
    struct ds_segment *segment;
    CHECK_OK(ds__segment_create(&store->segments, &header, false, &segment));
    ds__mapping_unpin(&segment->mapping);
}

static void expect_unharmed(const char *path, bool repaired, bool more) {
    ds_store *store = open_store(path);
    CHECK_EQ(stats_of(store).dropped_bytes, 0);
    CHECK_EQ(store->control->tail.sealed, 0);
    CHECK(repaired || stats_of(store).sequence < DS_SEQUENCE_GAP); /* it was closed */
    expect_value(store, "a", "1");
    if (more)
        expect_value(store, "b", "2");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* Others may go on in the segment before it, if what they commit fits there; it is the log's all the same, in a recovery, in a
 * repair, and when only a compaction has gone on there. */
static void i1_a_segment_that_was_never_used_ends_no_log(const char *dir) {
    for (int way = 0; way < 3; way++) {
        char *path = check_format("%s/%d", dir, way);
        ds_store *store = open_store(path);
        put(store, "a", "0");
        put(store, "a", "1");
        while (way == 2 && store->control->tail.segment_base == 0)
            put_each(store, 0, 1); /* what compaction moves is in another segment than the last */
        leave_segment(store);
        if (way < 2)
            put(store, "b", "2");
        else
            CHECK_OK(ds__compact(store, true, DS_COMPACT_TIGHTLY));
        CHECK_OK(ds_close(store));
        image_reboot(path);
        if (way == 1) {
            ds_repair_report report;
            CHECK_OK(ds_repair(path, &report));
            CHECK_EQ(report.damages, 0);
            CHECK_EQ(report.commits, 3);
        }
        expect_unharmed(path, way == 1, way < 2);
    }
}

/* And what they committed there and synced is not over where such a segment says, should it be damaged: neither when its bytes
 * are wrong nor when they are none. */
static void i13_a_segment_that_was_never_used_hides_no_damage(const char *dir) {
    for (int way = 0; way < 4; way++) {
        char *path = check_format("%s/%d", dir, way);
        ds_store *store = open_store(path);
        put(store, "a", "1");
        leave_segment(store);
        uint64_t begin = store->control->tail.offset;
        put(store, "b", "2");
        CHECK_OK(ds_close(store));
        image_reboot(path);
        char bytes[128] = {0};
        write_at(segment_file(path, 0), bytes, way % 2 == 0 ? 4 : sizeof bytes, (long)begin + (way % 2 == 0 ? 24 : 0));
        if (way < 2) {
            CHECK_IS(open_status(path, true), DS_CORRUPT);
            ds_repair_report report;
            CHECK_OK(ds_repair(path, &report));
            CHECK_EQ(report.commits, 1);
            CHECK_EQ(report.damages, 1);
            CHECK_EQ(report.first_damage, begin);
            continue;
        }
        CHECK(unlink(check_format("%s/floor", path)) == 0); /* then it was the power */
        store = open_store(path);
        expect_value(store, "a", "1");
        expect_value(store, "b", NULL);
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
    }
}

/* More files than the first list of them has room for, none of them a segment. */
static void i11_many_torn_segments_are_removed(const char *dir) {
    enum { TORN = 100 };
    char *path = make_store(dir);
    for (uint64_t i = 0; i < TORN; i++)
        write_at(segment_file(path, (i + 1000) * DS_SEGMENT_MIN), "", 0, 0);
    unsigned files = check_entries(path);
    expect_each(path, KEYS);
    CHECK(check_entries(path) < files - TORN + 5); /* control page, index, reserve */
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i11_a_store_whose_first_bytes_are_missing_was_never_born),
        TEST(i11_a_store_without_segments_is_not_made_anew),
        TEST(files_of_others_are_named),
        TEST(a_first_segment_that_always_goes_is_given_up),
        TEST(a_segment_that_goes_while_the_log_is_read_is_damage),
        TEST(a_control_page_that_goes_is_made_anew),
        TEST(a_directory_that_is_replaced_is_not_opened),
        TEST(bytes_that_change_while_the_log_is_read_are_damage),
        TEST(i13_a_disk_that_cannot_read_is_no_end),
        TEST(a_segment_that_cannot_be_opened_fails_a_verify),
        TEST(i9_a_large_value_that_cannot_be_looked_at_is_not_lost),
        TEST(i9_what_was_synced_stays_where_a_large_value_is_lost),
        TEST(i9_the_log_ends_before_the_first_large_value_that_is_lost),
        TEST(i9_a_start_that_is_told_behind_a_lost_value_is_none),
        TEST(i7_the_last_start_that_was_synced_counts),
        TEST(i13_a_large_value_that_was_synced_is_not_dropped),
        TEST(an_index_that_is_lost_in_use_is_not_made_anew),
        TEST(an_index_that_is_no_file_is_made_anew),
        TEST(an_index_that_was_half_made_is_not_the_one_in_force),
        TEST(i33_a_page_of_another_pid_namespace_is_refused_in_use),
        TEST(i2_a_repair_that_fails_is_done_by_the_next),
        TEST(i32_who_settles_decides_for_all),
        TEST(i1_a_frame_with_a_wrong_body_is_undone),
        TEST(i34_a_sequence_is_not_accepted_twice),
        TEST(i8_what_does_not_follow_is_not_the_logs),
        TEST(i1_a_segment_that_was_never_used_ends_no_log),
        TEST(i13_a_segment_that_was_never_used_hides_no_damage),
        TEST(i11_many_torn_segments_are_removed),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
