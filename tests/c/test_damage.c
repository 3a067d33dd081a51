/* Files that are not what this store wrote here: another history's frames, another boot's control page, another version's
 * header, missing files. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"
#include "format.h"
#include "image.h"
#include "status.h"
#include "store.h"
#include "store_help.h"

enum { VALUE = 1000 };

static void put_filled(ds_store *store, const char *key, int byte) {
    char value[VALUE];
    memset(value, byte, sizeof value);
    CHECK_OK(ds_put(store, DS_USER, key, strlen(key), value, sizeof value, NULL));
}

/* The value of a key, as the one byte it is filled with; 0 if it is missing. */
static int filled_with(ds_store *store, const char *key) {
    ds_value value;
    ds_status status = ds_get(store, DS_USER, key, strlen(key), &value);
    if (status == DS_MISSING)
        return 0;
    CHECK_OK(status);
    int byte = value.size > 0 ? *(const unsigned char *)value.data : 0;
    ds_unpin(&value);
    return byte;
}

static char *make_copy(const char *dir, const char *from, const char *to) {
    char *source = check_format("%s/%s", dir, from), *target = check_format("%s/%s", dir, to);
    CHECK(mkdir(target, 0700) == 0);
    image files = {0};
    image_map(&files, source);
    image_write(&files, target, true);
    free(source);
    return target;
}

/* A commit, and not even a close: what it leaves may be torn without being damage. */
static void put_and_die(void *context) {
    const char *path = context;
    ds_store *store = open_store(path);
    int byte = path[strlen(path) - 1];
    for (const char *key = "bcdefgh"; *key; key++)
        put_filled(store, (const char[]){*key, 0}, byte);
}

static unsigned char *read_all(const char *path, size_t *size) {
    int fd = open(path, O_RDONLY);
    struct stat status;
    CHECK(fd >= 0 && fstat(fd, &status) == 0);
    *size = (size_t)status.st_size;
    unsigned char *bytes = malloc(*size);
    CHECK(bytes && read(fd, bytes, *size) == (ssize_t)*size);
    close(fd);
    return bytes;
}

static void write_at(const char *path, const void *bytes, size_t size, off_t at) {
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && pwrite(fd, bytes, size, at) == (ssize_t)size);
    close(fd);
}

/* I14: copies x and y of one store went on with the same keys and sizes, so at each offset both have a frame of the same
 * length, with the same seed. From the middle on, y gets x's bytes: whatever comes of it, no value of x. */
static void i14_frames_of_another_history_are_not_accepted(const char *dir) {
    char *base = check_format("%s/base", dir);
    ds_store *store = open_store(base);
    put_filled(store, "a", 'a');
    CHECK_OK(ds_close(store));
    char *x = make_copy(dir, "base", "x"), *y = make_copy(dir, "base", "y");
    check_join(check_spawn(put_and_die, x));
    check_join(check_spawn(put_and_die, y));
    char *x_log = check_format("%s/0000000000000000.log", x), *y_log = check_format("%s/0000000000000000.log", y);
    size_t size;
    unsigned char *bytes = read_all(x_log, &size);
    uint64_t offset = DS_SEGMENT_HEADER;
    int frames = 0;
    for (; frames < 4; frames++) {
        uint64_t word0;
        memcpy(&word0, bytes + offset, sizeof word0);
        CHECK(word0 != 0);
        offset += ds__frame_length(word0);
    }
    write_at(y_log, bytes + offset, size - offset, (off_t)offset);
    free(bytes);
    image_reboot(y);
    unlink(check_format("%s/floor", y));
    store = open_store(y);
    CHECK_EQ(filled_with(store, "a"), 'a');
    for (const char *key = "bcd"; *key; key++)
        CHECK_EQ(filled_with(store, (const char[]){*key, 0}), 'y');
    for (const char *key = "efgh"; *key; key++)
        CHECK_EQ(filled_with(store, (const char[]){*key, 0}), 0);
    CHECK(stats_of(store).dropped_bytes > 0);
    CHECK_OK(ds_close(store));
}

static void fill_a_segment_and_die(void *context) {
    const char *path = context;
    ds_store *store = open_store(path);
    int byte = path[strlen(path) - 1];
    for (int i = 0; i < 70; i++) /* a first segment of 64 KiB holds 61 of them */
        put_filled(store, i < 69 ? "early" : "late", byte);
}

/* The same with whole segments: x's second one behind y's first. */
static void i14_segments_of_another_history_are_not_accepted(const char *dir) {
    char *base = check_format("%s/base", dir);
    ds_store *store = open_store(base);
    put_filled(store, "a", 'a');
    CHECK_OK(ds_close(store));
    char *x = make_copy(dir, "base", "x"), *y = make_copy(dir, "base", "y");
    check_join(check_spawn(fill_a_segment_and_die, x));
    check_join(check_spawn(fill_a_segment_and_die, y));
    size_t size;
    unsigned char *bytes = read_all(check_format("%s/0000000000010000.log", x), &size);
    write_at(check_format("%s/0000000000010000.log", y), bytes, size, 0);
    free(bytes);
    image_reboot(y);
    unlink(check_format("%s/floor", y));
    store = open_store(y);
    CHECK_EQ(filled_with(store, "early"), 'y');
    CHECK_EQ(filled_with(store, "late"), 0);
    CHECK_OK(ds_close(store));
}

/* A frame that was copied further back, as a confused disk may do. */
static void i14_a_frame_in_the_wrong_place_is_not_accepted(const char *dir) {
    ds_store *store = open_store(dir);
    put_filled(store, "a", '1');
    put_filled(store, "a", '2');
    uint64_t end = stats_of(store).committed;
    CHECK_OK(ds_close(store));
    char *log = check_format("%s/0000000000000000.log", dir);
    size_t size;
    unsigned char *bytes = read_all(log, &size);
    write_at(log, bytes + DS_SEGMENT_HEADER, (end - DS_SEGMENT_HEADER) / 2, (off_t)end); /* "a" = 1 again */
    image_reboot(dir);
    store = open_store(dir);
    CHECK_EQ(filled_with(store, "a"), '2');
    CHECK(stats_of(store).dropped_bytes > 0);
    CHECK_OK(ds_close(store));
    free(bytes);
    free(log);
}

/* I6: the control page of an earlier boot is not even looked into: here its locks are all ones. */
static void i6_the_control_page_of_another_boot_blocks_nothing(const char *dir) {
    setenv("DORA_STATE_BOOT_ID", "11111111-1111-1111-1111-111111111111", 1);
    ds_store *store = open_store(dir);
    put_filled(store, "a", '1');
    CHECK_OK(ds_close(store));
    struct ds_lock ones;
    memset(&ones, 0xff, sizeof ones);
    char *control = check_format("%s/control", dir);
    static const size_t locks[] = {offsetof(struct ds_control, lock), offsetof(struct ds_control, compact_lock),
                                   offsetof(struct ds_control, sync_lock)};
    for (size_t i = 0; i < CHECK_COUNT(locks); i++)
        write_at(control, &ones, sizeof ones, (off_t)locks[i]);
    setenv("DORA_STATE_BOOT_ID", "22222222-2222-2222-2222-222222222222", 1);
    store = open_store(dir);
    CHECK_EQ(filled_with(store, "a"), '1');
    put_filled(store, "a", '2');
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(control);
}

/* I13: each write of the floor spares the one before, which counts if this one is torn. */
static void i13_a_torn_floor_leaves_the_one_before(const char *dir) {
    ds_store *store = open_store(dir);
    for (int i = 0; i < 3; i++) {
        put_filled(store, "a", '1' + i);
        CHECK_OK(ds_sync(store));
    }
    struct ds_floor newest, before;
    CHECK_OK(ds__floor_read(&store->directory, store->uuid, &newest));
    char *path = check_format("%s/floor", dir);
    write_at(path, "torn", 4, (off_t)(newest.count % DS_FLOOR_SLOTS * DS_FLOOR_SPACING));
    CHECK_OK(ds__floor_read(&store->directory, store->uuid, &before));
    CHECK_EQ(before.count, newest.count - 1);
    CHECK(before.offset > 0 && before.offset < newest.offset);
    CHECK_OK(ds_close(store));
    free(path);
}

/* I34: who closes a store that others have open does not write down that it ends there: they may go on. */
static void i34_only_the_last_close_is_clean(const char *dir) {
    struct ds_floor floor;
    ds_store *first = open_store(dir), *last = open_store(dir);
    put_filled(first, "a", '1');
    CHECK_OK(ds_close(first));
    CHECK_OK(ds__floor_read(&last->directory, last->uuid, &floor));
    CHECK_EQ(floor.flags & DS_FLOOR_CLEAN, 0);
    CHECK_OK(ds_close(last));
    ds_store *again = open_store(dir);
    CHECK_OK(ds__floor_read(&again->directory, again->uuid, &floor));
    CHECK_EQ(floor.flags & DS_FLOOR_CLEAN, 0); /* nor one that is open again */
    CHECK_OK(ds_close(again));
}

/* I28: versions of a key that name each other as predecessors, checksums and all, and a commit point that is before them. */
static void i28_predecessors_in_a_circle_end(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t before = store->control->tail.offset, offset = before + sizeof(struct ds_frame);
    put_filled(store, "a", '1');
    struct ds_segment *segment;
    CHECK_OK(ds__segments_at(&store->segments, store->control->tail.segment_base, &segment));
    struct ds_record *record = (struct ds_record *)(void *)ds__segment_at(segment, offset);
    record->previous = offset;
    record->check = (uint16_t)ds__record_seed(segment->seed, offset, record);
    uint64_t committed = atomic_exchange(&store->control->committed, before);
    ds_value value;
    alarm(10); /* seconds; not the minute that a test has */
    CHECK_IS(ds_get(store, DS_USER, "a", 1, &value), DS_CORRUPT);
    atomic_store(&store->control->committed, committed);
    (void)ds_close(store);
}

/* I1: a frame that a dead writer had begun, too long to be zeroed while others wait: it is never followed by another. */
static void i1_a_long_torn_frame_is_left_behind(const char *dir) {
    enum { LONG = 100 * 1024, BIG = 400 * 1024 };
    ds_store *store = open_store(dir);
    char *big = calloc(1, BIG);
    CHECK(big);
    CHECK_OK(ds_put(store, DS_USER, "big", 3, big, BIG, NULL)); /* a segment with room for it */
    put_filled(store, "a", '1');
    struct ds_control *control = store->control;
    uint64_t begin = control->tail.offset, base = control->tail.segment_base;
    CHECK(begin + LONG < base + control->tail.segment_size);
    struct ds_segment *segment;
    CHECK_OK(ds__segments_at(&store->segments, base, &segment));
    control->intent.begin = begin;
    ds__tail_store(&control->intent.after, &control->tail);
    atomic_store(&control->intent.end, begin + LONG);
    memset((char *)ds__segment_at(segment, begin) + sizeof(uint64_t), 0xaa, LONG - sizeof(uint64_t));
    put_filled(store, "a", '2');
    CHECK_EQ(stats_of(store).repairs, 1);
    CHECK(control->tail.segment_base != base);
    for (int reboot = 0; reboot < 2; reboot++) {
        CHECK_EQ(filled_with(store, "a"), '2' + reboot);
        CHECK_OK(ds_verify(store, NULL));
        put_filled(store, "a", '3' + reboot);
        CHECK_OK(ds_close(store));
        image_reboot(dir);
        store = open_store(dir);
    }
    CHECK_OK(ds_close(store));
    free(big);
}

static ds_status open_status(const char *dir, bool read_only) {
    ds_options options = options_default();
    options.read_only = read_only;
    options.create = !read_only;
    ds_store *store = NULL;
    ds_status status = ds_open(dir, &options, &store);
    if (status == DS_OK)
        CHECK_OK(ds_close(store));
    return status;
}

static void patch_header(const char *dir, size_t field, uint32_t value, bool seal) {
    char *log = check_format("%s/0000000000000000.log", dir);
    size_t size;
    unsigned char *bytes = read_all(log, &size);
    memcpy(bytes + field, &value, sizeof value);
    if (seal) {
        struct ds_segment_header header;
        memcpy(&header, bytes, sizeof header);
        header.crc = ds__segment_header_crc(&header);
        memcpy(bytes, &header, sizeof header);
    }
    write_at(log, bytes, DS_SEGMENT_HEADER, 0);
    free(bytes);
    free(log);
}

/* I24: refused before anything is written; a feature that only writers must know allows reading. */
static void i24_a_future_format_is_refused(const char *dir) {
    ds_store *store = open_store(dir);
    put_filled(store, "a", '1');
    CHECK_OK(ds_close(store));
    image_reboot(dir);
    patch_header(dir, offsetof(struct ds_segment_header, version), 2, false); /* its crc may be elsewhere */
    CHECK_IS(open_status(dir, false), DS_FORMAT);
    CHECK_IS(open_status(dir, true), DS_FORMAT);
    patch_header(dir, offsetof(struct ds_segment_header, version), DS_FORMAT_VERSION, true);
    CHECK_OK(open_status(dir, false));
    patch_header(dir, offsetof(struct ds_segment_header, incompat), 1u << 31, true);
    CHECK_IS(open_status(dir, true), DS_FORMAT);
    patch_header(dir, offsetof(struct ds_segment_header, incompat), 0, true);
    patch_header(dir, offsetof(struct ds_segment_header, compat), 1u << 31, true);
}

/* A segment that is gone is damage where it was synced, whichever it is. */
static void a_missing_segment_is_reported(const char *dir) {
    char *whole = check_format("%s/whole", dir);
    ds_store *store = open_store(whole);
    for (int i = 0; i < 150; i++) {
        char key[16];
        snprintf(key, sizeof key, "key-%d", i);
        put_filled(store, key, 'v');
    }
    CHECK_OK(ds_close(store));
    image files = {0};
    image_map(&files, whole);
    int segments = 0;
    for (size_t i = 0; i < files.count; i++) {
        if (!strstr(files.files[i].name, ".log"))
            continue;
        segments++;
        char *copy = make_copy(dir, "whole", files.files[i].name);
        char *victim = check_format("%s/%s", copy, files.files[i].name);
        CHECK(unlink(victim) == 0);
        CHECK_IS(open_status(copy, true), DS_CORRUPT);
        CHECK_IS(open_status(copy, false), DS_CORRUPT);
        free(victim);
        free(copy);
    }
    CHECK(segments >= 2);
    free(whole);
}

/* Also by a process that finds control page and index in order, and looks into the log when it is asked to. */
static void a_segment_that_is_missed_later_is_reported(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_store *keeps = open_store(path);
    for (int i = 0; i < 150; i++)
        put_filled(keeps, check_format("key-%d", i), 'v');
    CHECK_OK(ds_sync(keeps));
    image files = {0};
    image_map(&files, path);
    for (size_t i = 0; i < files.count; i++)
        if (strstr(files.files[i].name, ".log") && strcmp(files.files[i].name, "0000000000000000.log") != 0)
            CHECK(unlink(check_format("%s/%s", path, files.files[i].name)) == 0);
    put_filled(keeps, "to be synced", 'v');
    ds_store *store = open_store(path);
    ds_value value;
    CHECK_IS(ds_get(store, DS_USER, "key-149", 7, &value), DS_CORRUPT);
    CHECK_IS(ds_put(store, DS_USER, "key-149", 7, "", 0, NULL), DS_CORRUPT);
    CHECK_IS(ds_put(store, DS_USER, "other", 5, "", 0, NULL), DS_CORRUPT);
    CHECK_IS(ds_sync(store), DS_CORRUPT);
    CHECK_IS(ds_compact(store), DS_CORRUPT);
    CHECK_IS(ds_verify(store, NULL), DS_CORRUPT);
    CHECK_IS(ds_close(store), DS_CORRUPT);
}

/* The index is derived: where nobody has it mapped, a lost or damaged one is made anew, in the same boot too. */
static void a_lost_index_is_made_anew(const char *dir) {
    static const char nonsense[100000] = "nonsense";
    static const size_t sizes[] = {0, 9, sizeof nonsense};
    ds_options reading = options_default();
    reading.create = false;
    reading.read_only = true;
    for (size_t i = 0; i < 1 + CHECK_COUNT(sizes); i++) {
        char *path = check_format("%s/%zu", dir, i);
        ds_store *store = open_store(path);
        put_filled(store, "a", 'a');
        char *index = check_format("%s/index.%016llx", path, (unsigned long long)store->control->generation);
        CHECK_OK(ds_close(store));
        CHECK(unlink(index) == 0);
        if (i < CHECK_COUNT(sizes))
            write_at(index, nonsense, sizes[i], 0);
        store = open_with(path, reading);
        CHECK_EQ(filled_with(store, "a"), 'a');
        CHECK_OK(ds_close(store));
        store = open_store(path);
        CHECK_EQ(filled_with(store, "a"), 'a');
        put_filled(store, "a", 'b');
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
    }
}

enum { LARGE = DS_BLOB_FROM + 1, LARGE_KEYS = 3 };

/* A process died between writing a large value and committing it: the file goes when the log is read. Those that a record names
 * stay. */
static void a_large_value_that_was_never_committed_goes(const char *dir) {
    char *path = check_format("%s/store", dir), *orphan = check_format("%s/00000000deadbeef.blob", path), key[2] = "a";
    unsigned char *bytes = malloc(LARGE);
    CHECK(bytes);
    ds_store *store = open_store(path);
    CHECK_OK(ds_close(store));
    write_at(orphan, "half of it", 10, 0); /* where there is no other */
    image_reboot(path);
    store = open_store(path);
    CHECK(access(orphan, F_OK) != 0);
    for (int i = 0; i < LARGE_KEYS; i++, key[0]++) {
        memset(bytes, key[0], LARGE);
        CHECK_OK(ds_put(store, DS_USER, key, 1, bytes, LARGE, NULL));
    }
    CHECK_OK(ds_close(store));
    write_at(orphan, "half of it", 10, 0);
    image_reboot(path);
    ds_options reading = options_default();
    reading.read_only = true;
    store = open_with(path, reading);
    CHECK(access(orphan, F_OK) == 0); /* I22 */
    CHECK_OK(ds_close(store));
    store = open_store(path);
    CHECK(access(orphan, F_OK) != 0);
    for (key[0] = 'a'; key[0] < 'a' + LARGE_KEYS; key[0]++)
        CHECK_EQ(filled_with(store, key), key[0]);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(bytes);
}

/* ---- a large value and its commit -------------------------------------------------------------------------------- */

static void put_large_and_die(void *context) {
    ds_store *store = open_store(context);
    unsigned char *bytes = malloc(LARGE);
    CHECK(bytes);
    for (const char *value = "xy"; *value; value++) {
        memset(bytes, *value, LARGE);
        CHECK_OK(ds_put(store, DS_USER, "large", 5, bytes, LARGE, NULL));
        put_filled(store, "after", *value);
    }
}

enum loss { CONTENT, NAME, LENGTH };

/* What the power may take of a file that nobody has synced, if it is a large value that is filled with `byte`. */
static void lose(const char *path, char byte, enum loss loss) {
    char found = 0;
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pread(fd, &found, 1, 0) == 1);
    if (found == byte && loss == CONTENT)
        CHECK(pwrite(fd, "\0", 1, LARGE - 1) == 1);
    if (found == byte && loss == LENGTH)
        CHECK(ftruncate(fd, 0) == 0);
    if (found == byte && loss == NAME)
        CHECK(unlink(path) == 0);
    close(fd);
}

static void put_and_reboot(const char *path) {
    ds_store *store = open_store(path);
    put_filled(store, "new", 'n');
    CHECK_OK(ds_close(store));
    image_reboot(path);
    store = open_store(path);
    CHECK_EQ(filled_with(store, "new"), 'n');
    CHECK_OK(ds_close(store));
}

/* A copy after a power loss that took these large values of "store", and what the keys have there. */
static void expect_after_loss(const char *dir, const char *lost, enum loss loss, int large, int after) {
    char *copy = make_copy(dir, "store", check_format("without-%s-%d", lost, loss));
    DIR *files = opendir(copy);
    CHECK(files);
    for (struct dirent *entry; (entry = readdir(files)) != NULL;)
        for (const char *byte = lost; *byte && strstr(entry->d_name, ".blob") != NULL; byte++)
            if (access(check_format("%s/%s", copy, entry->d_name), F_OK) == 0)
                lose(check_format("%s/%s", copy, entry->d_name), *byte, loss);
    closedir(files);
    for (int i = 0; i < 3; i++) {
        ds_options options = options_default();
        options.read_only = i == 0; /* it sees the same */
        ds_store *store = open_with(copy, options);
        CHECK_EQ(filled_with(store, "large"), large);
        CHECK_EQ(filled_with(store, "after"), after);
        CHECK_EQ(stats_of(store).dropped_bytes > 0, i < 2 && after != 'y');
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
        if (i == 1)
            put_and_reboot(copy); /* what was dropped stays so */
    }
    check_remove(copy);
}

/* The frame that names a large value may reach the disk before the file does. Then the commit did not, nor what came later. */
static void i9_a_commit_goes_with_its_large_value(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_store *store = open_store(path);
    put_filled(store, "large", 'o');
    put_filled(store, "after", 'o');
    CHECK_OK(ds_sync(store));
    check_join(check_spawn(put_large_and_die, path));
    expect_after_loss(dir, "", CONTENT, 'y', 'y');
    expect_after_loss(dir, "x", NAME, 'y', 'y'); /* it was replaced */
    for (int loss = CONTENT; loss <= LENGTH; loss++)
        expect_after_loss(dir, "y", (enum loss)loss, 'x', 'x');
    expect_after_loss(dir, "xy", CONTENT, 'o', 'o');
    CHECK_OK(ds_close(store));
}

static void turn_over_and_die(void *context) {
    ds_store *store = open_store(context);
    for (int i = 0; i < 300; i++)
        put_filled(store, "busy", i);
    CHECK_OK(ds_compact(store));
    CHECK(stats_of(store).dropped_segments > 0);
}

/* Compaction does not put the floor on disk, so after a power loss it may speak of a log that is gone. The first sync begins
 * where the log does. */
static void a_floor_below_the_start_of_the_log_hurts_nothing(const char *dir) {
    char *path = check_format("%s/store", dir), *floor = check_format("%s/floor", path);
    ds_store *store = open_store(path);
    put_filled(store, "still", 's');
    CHECK_OK(ds_close(store));
    size_t size;
    unsigned char *bytes = read_all(floor, &size);
    check_join(check_spawn(turn_over_and_die, path));
    write_at(floor, bytes, size, 0);
    image_reboot(path);
    for (int i = 0; i < 2; i++) {
        store = open_store(path);
        CHECK_EQ(filled_with(store, "still"), 's');
        put_filled(store, "new", 'n');
        CHECK_OK(ds_sync(store));
        CHECK_OK(ds_close(store));
    }
    free(bytes);
}

/* ---- I11: what recovery and compaction remove --------------------------------------------------------------------- */

static unsigned removals, die_at; /* of segments; 0: never */
static bool removals_fail;

static int by_base(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The bases and sizes of a store's segments, one behind the other: docs/format.md calls anything else damaged. */
static void expect_unbroken(const char *dir) {
    enum { MOST = 64 };
    char *names[MOST];
    size_t count = 0;
    DIR *entries = opendir(dir);
    CHECK(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        if (strstr(entry->d_name, ".log") != NULL && count < MOST)
            CHECK((names[count++] = check_format("%s", entry->d_name)) != NULL);
    closedir(entries);
    qsort(names, count, sizeof *names, by_base);
    uint64_t end = 0, base;
    for (size_t i = 0; i < count; i++) {
        struct stat file;
        char *path = check_format("%s/%s", dir, names[i]);
        CHECK(ds__segment_parse_name(names[i], &base) && stat(path, &file) == 0);
        if (i > 0)
            CHECK_EQ(base, end);
        end = base + (uint64_t)file.st_size;
        free(path);
        free(names[i]);
    }
    CHECK(count > 0);
}

ds_status __real_ds__os_unlink(const struct ds_directory *directory, const char *name);
ds_status __wrap_ds__os_unlink(const struct ds_directory *directory, const char *name);
ds_status __wrap_ds__os_unlink(const struct ds_directory *directory, const char *name) {
    if (removals_fail && strstr(name, ".log") != NULL)
        return ds__fail(DS_IO, EIO, "%s: so the test wants it", name);
    ds_status status = __real_ds__os_unlink(directory, name);
    if (status == DS_OK && strstr(name, ".log") != NULL) {
        removals++;
        expect_unbroken(directory->path);
        if (removals == die_at)
            _exit(0);
    }
    return status;
}

enum { EACH = 400 }; /* keys, in some segments */

static char *each_key(int number) {
    return check_format("key-%03d", number);
}

static void put_each_and_die(void *context) {
    ds_store *store = open_store(context);
    for (int i = 0; i < EACH; i++)
        put_filled(store, each_key(i), 'v');
}

static void only_open(void *context) {
    (void)open_store(context);
}

/* Opens it in processes of which each dies after one removal more, until one comes through. How many removals there were. */
static unsigned open_through_deaths(char *path) {
    unsigned sum = 0;
    removals_fail = true; /* at first: then it is not open, and nothing is lost */
    CHECK_IS(open_status(path, false), DS_IO);
    removals_fail = false;
    for (;;) {
        die_at = removals + 1;
        check_join(check_spawn(only_open, path));
        image files = {0};
        image_map(&files, path);
        bool opened = false;
        for (size_t i = 0; i < files.count; i++)
            opened = opened || strcmp(files.files[i].name, "control") == 0;
        image_unmap(&files);
        if (opened)
            break;
        sum++;
        expect_unbroken(path);
    }
    die_at = 0;
    return sum;
}

/* Behind a torn place segments go newest first: whoever dies at it leaves the beginning of a log. */
static void i11_torn_segments_go_newest_first(const char *dir) {
    char *path = check_format("%s/store", dir);
    check_join(check_spawn(put_each_and_die, path));
    image_reboot(path);
    unlink(check_format("%s/floor", path));
    write_at(check_format("%s/0000000000000000.log", path), "torn", 4, 30000);
    CHECK(open_through_deaths(path) >= 3);
    ds_store *store = open_store(path);
    CHECK_EQ(filled_with(store, each_key(0)), 'v');
    CHECK_EQ(filled_with(store, each_key(EACH - 1)), 0);
    put_filled(store, "new", 'n');
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* The segments that have gone since, as if none had. The last of them. */
static char *bring_back(const char *path, const image *before) {
    char *last = "";
    for (size_t i = 0; i < before->count; i++) {
        char *name = check_format("%s/%s", path, before->files[i].name);
        if (strstr(name, ".log") == NULL || access(name, F_OK) == 0)
            continue;
        write_at(name, before->files[i].bytes, before->files[i].size, 0);
        last = strcmp(name, last) > 0 ? name : last;
    }
    return last;
}

/* Before the start of the log they go oldest first: in compaction, and in a recovery after a power loss which took back that they
 * went and never had all of their bytes. Whoever dies at it leaves the end of a log. */
static void i11_segments_before_the_start_go_oldest_first(const char *dir) {
    char *path = check_format("%s/store", dir);
    static image mapped, before;
    check_join(check_spawn(put_each_and_die, path));
    image_map(&mapped, path);
    image_copy(&before, &mapped);
    image_unmap(&mapped);
    ds_store *store = open_store(path);
    CHECK_OK(ds_compact(store));
    CHECK(removals >= 3);
    CHECK_OK(ds_close(store));
    char *last = bring_back(path, &before);
    write_at(last, "torn", 4, 30000);
    expect_unbroken(path);
    image_reboot(path);
    removals = 0;
    CHECK(open_through_deaths(path) >= 3);
    store = open_store(path);
    for (int i = 0; i < EACH; i++)
        CHECK_EQ(filled_with(store, each_key(i)), 'v');
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    image_free(&before);
}

enum { MORE = 3000 };

static void go_on_and_die(void *context) {
    ds_store *store = open_store(context);
    for (int i = 0; i < MORE; i++)
        put_filled(store, check_format("more-%04d", i), 'w');
}

/* A power loss in a compaction may tear what was about to go, and what came later as well: the log is what lies between. */
static void i11_both_ends_may_be_torn(const char *dir) {
    char *path = check_format("%s/store", dir);
    static image mapped, before;
    check_join(check_spawn(put_each_and_die, path));
    image_map(&mapped, path);
    image_copy(&before, &mapped);
    image_unmap(&mapped);
    ds_store *store = open_store(path);
    CHECK_OK(ds_compact(store));
    uint64_t start = atomic_load(&store->control->start), end = store->control->tail.offset;
    uint64_t next = store->control->tail.segment_base + store->control->tail.segment_size;
    CHECK_OK(ds_close(store));
    check_join(check_spawn(go_on_and_die, path));
    char *last = bring_back(path, &before);
    write_at(last, "torn", 4, 30000);
    char name[DS_NAME_SIZE];
    ds__segment_name(next, name);
    write_at(check_format("%s/%s", path, name), "torn", 4, 30000);
    CHECK(unlink(check_format("%s/floor", path)) == 0);
    image_reboot(path);
    removals = 0;
    store = open_store(path);
    CHECK(removals >= 4);
    CHECK_EQ(atomic_load(&store->control->start), start);
    CHECK(store->control->tail.offset > end);
    for (int i = 0; i < EACH; i++)
        CHECK_EQ(filled_with(store, each_key(i)), 'v');
    CHECK_EQ(filled_with(store, "more-0000"), 'w');
    CHECK_EQ(filled_with(store, check_format("more-%04d", MORE - 1)), 0);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    image_free(&before);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i11_torn_segments_go_newest_first),
        TEST(i11_segments_before_the_start_go_oldest_first),
        TEST(i11_both_ends_may_be_torn),
        TEST(a_large_value_that_was_never_committed_goes),
        TEST(i9_a_commit_goes_with_its_large_value),
        TEST(a_lost_index_is_made_anew),
        TEST(a_floor_below_the_start_of_the_log_hurts_nothing),
        TEST(i14_frames_of_another_history_are_not_accepted),
        TEST(i14_segments_of_another_history_are_not_accepted),
        TEST(i14_a_frame_in_the_wrong_place_is_not_accepted),
        TEST(i6_the_control_page_of_another_boot_blocks_nothing),
        TEST(i13_a_torn_floor_leaves_the_one_before),
        TEST(i1_a_long_torn_frame_is_left_behind),
        TEST(i34_only_the_last_close_is_clean),
        TEST(i28_predecessors_in_a_circle_end),
        TEST(i24_a_future_format_is_refused),
        TEST(a_missing_segment_is_reported),
        TEST(a_segment_that_is_missed_later_is_reported),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
