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
#include "store.h"
#include "store_help.h"

enum { KEYS = 50, SCRIBBLES = 3000, SECTOR = 512, HANGS_S = 20 };

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
    size_t used;      /* how much of them is worth hitting */
} scribbled;

/* The words of a mutex are glibc's: a robust one keeps pointers of its owner there, which are followed. This is the hole that
 * docs/consistency.md names, and it is left out here. */
static bool is_mutex(const char *name, size_t at) {
    static const size_t locks[] = {offsetof(struct ds_control, lock), offsetof(struct ds_control, compact_lock),
                                   offsetof(struct ds_control, sync_lock)};
    if (strcmp(name, "control") != 0)
        return false;
    for (size_t i = 0; i < CHECK_COUNT(locks); i++)
        if (at + 8 > locks[i] && at < locks[i] + sizeof(pthread_mutex_t))
            return true;
    return false;
}

/* A word of nonsense: any number, or one that is near to what was there. */
static void scribble(uint64_t *random) {
    const image *files = &scribbled.files;
    size_t f = (size_t)check_below(random, files->count), size = files->files[f].size;
    if (!strstr(files->files[f].name, scribbled.only) || size < 8)
        return;
    size_t at = check_below(random, (scribbled.used < size ? scribbled.used : size) / 8) * 8;
    if (is_mutex(files->files[f].name, at))
        return;
    uint64_t word;
    memcpy(&word, files->files[f].bytes + at, 8);
    if (check_below(random, 4) == 0)
        word += (uint64_t)8 << check_below(random, 20);
    else
        word = check_random(random) >> check_below(random, 64);
    memcpy(files->files[f].bytes + at, &word, 8);
}

/* Everything that can be asked of a store. No answer is wrong, but to crash, and to hang. */
static void ask_everything(ds_store *store, uint64_t *random) {
    alarm(HANGS_S);
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

/* DORA_STATE_SEEDS: more of them. */
static void scribble_with_seeds(const char *dir) {
    const char *wanted = getenv("DORA_STATE_SEEDS");
    uint64_t seeds = wanted ? strtoull(wanted, NULL, 0) : 8;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        char *path = check_format("%s/%llu", dir, (unsigned long long)seed);
        scribble_over(path, seed);
        check_remove(path);
    }
}

static void i28_a_peer_scribbles_over_the_log(const char *dir) {
    scribbled.only = ".log";
    scribbled.used = 16384;
    scribble_with_seeds(dir);
}

static void i28_a_peer_scribbles_over_the_index(const char *dir) {
    scribbled.only = "index.";
    scribbled.used = SIZE_MAX;
    scribble_with_seeds(dir);
}

static void i28_a_peer_scribbles_over_the_control_page(const char *dir) {
    scribbled.only = "control";
    scribbled.used = sizeof(struct ds_control);
    scribble_with_seeds(dir);
}

/* What random scribbling meets seldom: single words that would lead a writer or a repair out of the segment, or a growth of
 * the index into a loop without end. */
static void expect_damage(const char *dir, unsigned number, void (*scribble_words)(struct ds_control *)) {
    ds_store *store = open_store(check_format("%s/%u", dir, number));
    char key[16];
    for (unsigned i = 0; i < 1500; i++) /* more than the smallest index has slots */
        CHECK_OK(ds_put(store, DS_USER, key, (size_t)snprintf(key, sizeof key, "%u", i), "v", 1, NULL));
    scribble_words(store->control);
    alarm(HANGS_S);
    ds_status status = ds_put(store, DS_USER, "new", 3, "v", 1, NULL);
    if (status != DS_CORRUPT)
        check_fail(__FILE__, __LINE__, "case %u: a put gave %s", number, ds_status_name(status));
    CHECK(strstr(ds_error(), "control page"));
    (void)ds_close(store);
}

static void tail_beyond(struct ds_control *control) {
    control->tail.offset = control->tail.segment_base + control->tail.segment_size + 8;
}

static void tail_far_beyond(struct ds_control *control) {
    control->tail.offset = control->tail.segment_base + (UINT64_C(1) << 40);
}

static void tail_within_the_header(struct ds_control *control) {
    control->tail.offset = control->tail.segment_base + 8;
}

static void tail_at_no_word(struct ds_control *control) {
    control->tail.offset += 3;
}

/* Zeros follow the tail: no frame, but the commit point says that it is done. */
static void intent_without_a_frame(struct ds_control *control) {
    control->intent.after = control->tail;
    control->intent.begin = control->tail.offset;
    control->intent.end = control->tail.offset + 64;
    control->committed = control->intent.end;
}

static void intent(struct ds_control *control, uint64_t begin, uint64_t end) {
    control->intent.after = control->tail;
    control->intent.begin = begin;
    control->intent.end = end;
}

static void intent_at_no_word(struct ds_control *control) {
    intent(control, control->tail.offset + 4, control->tail.offset + 64);
}

static void intent_within_the_header(struct ds_control *control) {
    intent(control, control->tail.segment_base + 8, control->tail.offset + 64);
}

static void intent_beyond_the_segment(struct ds_control *control) {
    uint64_t end = control->tail.segment_base + control->tail.segment_size;
    intent(control, end, end + 64);
}

static void intent_across_the_end(struct ds_control *control) {
    intent(control, control->tail.offset, control->tail.segment_base + control->tail.segment_size + 8);
}

static void intent_without_room_for_a_frame(struct ds_control *control) {
    uint64_t end = control->tail.segment_base + control->tail.segment_size;
    intent(control, end - 8, end);
}

static void intent_that_ends_before_it_begins(struct ds_control *control) {
    intent(control, control->tail.offset, control->tail.offset - 8);
}

static void more_keys_than_slots(struct ds_control *control) {
    control->tail.keys[DS_USER] = UINT64_MAX / 4;
    control->tail.slots_used = UINT64_MAX / 4;
}

static void fewer_keys_than_there_are(struct ds_control *control) {
    control->tail.keys[DS_USER] = 0;
    control->tail.slots_used = 1 << 20;
}

static void i28_words_of_the_control_page_are_not_believed(const char *dir) {
    static void (*const cases[])(struct ds_control *) = {
        tail_beyond,
        tail_far_beyond,
        tail_within_the_header,
        tail_at_no_word,
        intent_without_a_frame,
        intent_at_no_word,
        intent_within_the_header,
        intent_beyond_the_segment,
        intent_across_the_end,
        intent_without_room_for_a_frame,
        intent_that_ends_before_it_begins,
        more_keys_than_slots,
        fewer_keys_than_there_are,
    };
    for (unsigned i = 0; i < CHECK_COUNT(cases); i++)
        expect_damage(dir, i, cases[i]);
}

/* ---- I15 --------------------------------------------------------------------------------------------------------- */

/* After a clean close all is below the floor: a sector that is lost is damage, wherever it lies, and never the end. Where the floor
 * is lost as well, what follows it is told to be dropped: a log never just ends there. */
static void i15_a_zeroed_sector_is_not_the_end_of_the_log(const char *dir) {
    char *live = check_format("%s/live", dir), *copy = check_format("%s/copy", dir);
    CHECK(mkdir(copy, 0700) == 0);
    ds_store *store = open_store(live);
    fill_store(store, 150);
    CHECK_OK(ds_close(store));
    image files = {0}, damaged = {0};
    image_map(&files, live);
    unsigned zeroed = 0, told = 0;
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
            CHECK(unlink(check_format("%s/floor", copy)) == 0);
            status = ds_open(copy, &options, &store);
            if (status == DS_OK) {
                CHECK(stats_of(store).dropped_bytes > 0);
                CHECK_OK(ds_close(store));
                told++;
            } else {
                CHECK(status == DS_CORRUPT || status == DS_NOT_A_STORE);
            }
            zeroed++;
        }
    }
    CHECK(zeroed > 100 && told > 50);
}

/* I27: sizes that lead out of the frame, or around the end of the numbers. */
static void i27_sizes_are_not_believed(const char *dir) {
    static const struct {
        uint64_t value;
        uint32_t key;
    } sizes[] = {{(UINT64_C(1) << 40) + 1, 1},
                 {UINT64_MAX, 1},
                 {UINT64_MAX - 54, 1},
                 {INT64_MAX, 1},
                 {70000, 1},
                 {1, 70000},
                 {1, UINT32_MAX},
                 {UINT64_MAX - UINT32_MAX, UINT32_MAX}};
    ds_store *store = open_store(dir);
    put(store, "k", "v");
    CHECK_OK(ds_close(store));
    image_reboot(dir);
    CHECK(unlink(check_format("%s/floor", dir)) == 0);
    int fd = open(check_format("%s/0000000000000000.log", dir), O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    struct ds_record record;
    off_t at = DS_SEGMENT_HEADER + sizeof(struct ds_frame);
    CHECK(pread(fd, &record, sizeof record, at) == sizeof record);
    ds_options options = options_default();
    options.create = false;
    options.read_only = true;
    for (size_t i = 0; i < CHECK_COUNT(sizes); i++) {
        record.value_size = sizes[i].value;
        record.key_size = sizes[i].key;
        CHECK(pwrite(fd, &record, sizeof record, at) == sizeof record);
        store = open_with(dir, options);
        expect_value(store, "k", NULL);
        CHECK(stats_of(store).dropped_bytes > 0);
        CHECK_OK(ds_close(store));
    }
    close(fd);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i28_a_peer_scribbles_over_the_log),
        TEST(i28_a_peer_scribbles_over_the_index),
        TEST(i28_a_peer_scribbles_over_the_control_page),
        TEST(i28_words_of_the_control_page_are_not_believed),
        TEST(i27_sizes_are_not_believed),
        TEST(i15_a_zeroed_sector_is_not_the_end_of_the_log),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
