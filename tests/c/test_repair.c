/* ds_repair(): what is intact of a damaged store comes back, nothing else does.
 *
 * The oracle is a reading of the log before it is damaged: every frame, its place, its records. After the damage a frame
 * is intact if no byte of it was changed. Then, in the repaired store:
 *   - each key has a value that was once committed for it, not older than its newest intact one;
 *   - of a commit with keys of its own, either all are there or none, and all if it is intact;
 *   - sequences go on 2^32 above all that were given out;
 *   - the damaged directory lies beside it, byte for byte. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "format.h"
#include "image.h"
#include "store_help.h"

enum { FRAMES = 2000, VERSIONS = 8000, GAP_BITS = 32 };

/* One version of a key, in the order of the log. */
typedef struct version {
    const unsigned char *key, *value;
    size_t key_size, value_size;
    uint64_t sequence;
    size_t frame;
    uint8_t op, keyspace;
} version;

/* The log of a store that is as it should be. */
typedef struct reading {
    image files; /* bytes of our own */
    size_t frames, versions;
    struct {
        size_t file; /* in the image */
        uint64_t at; /* in the file */
        uint64_t length;
        uint64_t sequence;
        uint8_t type;
        bool hit; /* by the damage of this case */
    } frame[FRAMES];
    version version[VERSIONS];
} reading;

static reading log_of; /* large, and one at a time */

/* ---- the oracle ------------------------------------------------------------------------------------------------ */

static bool is_segment(const char *name) {
    return strlen(name) == 20 && strcmp(name + 16, ".log") == 0;
}

/* The files in the order of their names, which is the log's. */
static int by_name(const void *a, const void *b) {
    return strcmp(a, b);
}

static void read_records(const struct ds_frame *frame, size_t number) {
    const unsigned char *at = (const unsigned char *)(frame + 1);
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)at;
        CHECK(log_of.versions < VERSIONS);
        log_of.version[log_of.versions++] = (version){
            .key = ds__record_key(record),
            .value = ds__record_value(record, record->key_size),
            .key_size = record->key_size,
            .value_size = record->value_size,
            .sequence = record->sequence,
            .frame = number,
            .op = record->op,
            .keyspace = record->keyspace,
        };
        at += ds__record_length(record->key_size, record->value_size);
    }
}

static void read_log(const char *dir) {
    static image mapped;
    image_map(&mapped, dir);
    qsort(mapped.files, mapped.count, sizeof mapped.files[0], by_name); /* the name comes first */
    image_copy(&log_of.files, &mapped);
    log_of.frames = log_of.versions = 0;
    for (size_t f = 0; f < log_of.files.count; f++) {
        if (!is_segment(log_of.files.files[f].name))
            continue;
        uint64_t at = DS_SEGMENT_HEADER;
        while (at + sizeof(struct ds_frame) <= log_of.files.files[f].size) {
            const struct ds_frame *frame = (const struct ds_frame *)(const void *)(log_of.files.files[f].bytes + at);
            if (frame->word0 == 0)
                break;
            CHECK(log_of.frames < FRAMES);
            size_t number = log_of.frames++;
            log_of.frame[number].file = f;
            log_of.frame[number].at = at;
            log_of.frame[number].length = ds__frame_length(frame->word0);
            log_of.frame[number].sequence = frame->sequence;
            log_of.frame[number].type = ds__frame_type(frame->word0);
            if (log_of.frame[number].type != DS_FRAME_HEAD)
                read_records(frame, number);
            at += ds__frame_length(frame->word0);
        }
    }
}

static void mark_hit(size_t file, uint64_t from, uint64_t to) {
    for (size_t i = 0; i < log_of.frames; i++)
        if (log_of.frame[i].file == file && log_of.frame[i].at < to &&
            from < log_of.frame[i].at + log_of.frame[i].length)
            log_of.frame[i].hit = true;
}

static bool same_key(const version *a, const version *b) {
    return a->keyspace == b->keyspace && a->key_size == b->key_size && memcmp(a->key, b->key, a->key_size) == 0;
}

/* Does the store hold this version? */
static bool holds(ds_store *store, const version *v) {
    ds_value value;
    ds_status status = ds_get(store, v->keyspace, v->key, v->key_size, &value);
    if (status == DS_MISSING)
        return v->op == DS_RECORD_TOMBSTONE;
    CHECK_OK(status);
    bool same = v->op != DS_RECORD_TOMBSTONE && value.sequence == v->sequence && value.size == v->value_size &&
                memcmp(value.data, v->value, value.size) == 0;
    ds_unpin(&value);
    return same;
}

static bool is_missing(ds_store *store, const version *v) {
    ds_value value;
    ds_status status = ds_get(store, v->keyspace, v->key, v->key_size, &value);
    if (status == DS_OK)
        ds_unpin(&value);
    return status == DS_MISSING;
}

/* The key of the last version of it, `last`. */
static void check_key(ds_store *store, size_t last) {
    const version *key = &log_of.version[last];
    for (size_t i = last + 1; i-- > 0;) {
        const version *v = &log_of.version[i];
        if (!same_key(v, key))
            continue;
        if (holds(store, v))
            return;
        if (!log_of.frame[v->frame].hit)
            check_fail(__FILE__, __LINE__, "key %.*s is not at sequence %llu or newer", (int)v->key_size, v->key,
                       (unsigned long long)v->sequence);
    }
    CHECK(is_missing(store, key)); /* every version was hit */
}

static bool is_last(size_t i) {
    for (size_t k = i + 1; k < log_of.versions; k++)
        if (same_key(&log_of.version[k], &log_of.version[i]))
            return false;
    return true;
}

static bool is_only(size_t i) {
    for (size_t k = 0; k < i; k++)
        if (same_key(&log_of.version[k], &log_of.version[i]))
            return false;
    return is_last(i);
}

/* Of the keys that only this commit wrote, all or none are there. */
static void check_commit(ds_store *store, size_t frame) {
    int there = 0, gone = 0;
    for (size_t i = 0; i < log_of.versions; i++) {
        if (log_of.version[i].frame != frame || !is_only(i))
            continue;
        if (holds(store, &log_of.version[i]))
            there++;
        else
            gone++;
    }
    CHECK(there == 0 || gone == 0);
    CHECK(gone == 0 || log_of.frame[frame].hit);
}

static uint64_t highest_sequence(void) {
    uint64_t highest = 0;
    for (size_t i = 0; i < log_of.frames; i++)
        if (log_of.frame[i].sequence > highest)
            highest = log_of.frame[i].sequence;
    return highest;
}

static void check_repaired(const char *path) {
    ds_store *store = open_store(path);
    CHECK_OK(ds_verify(store, NULL));
    uint64_t keys = 0;
    for (size_t i = 0; i < log_of.versions; i++)
        if (is_last(i)) {
            check_key(store, i);
            keys += !is_missing(store, &log_of.version[i]);
        }
    for (size_t i = 0; i < log_of.frames; i++)
        if (log_of.frame[i].type == DS_FRAME_COMMIT)
            check_commit(store, i);
    ds_stats stats = stats_of(store);
    CHECK_EQ(stats.keys[DS_USER] + stats.keys[DS_RUNTIME], keys); /* nothing was invented */
    bool any = false;
    for (size_t i = 0; i < log_of.frames; i++)
        any = any || !log_of.frame[i].hit;
    CHECK(!any || stats.sequence > UINT64_C(1) << GAP_BITS);
    CHECK(put(store, "after", "repair") > UINT64_C(1) << GAP_BITS);
    CHECK_OK(ds_close(store));
    image_reboot(path);
    store = open_store(path);
    expect_value(store, "after", "repair");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* ---- stores ---------------------------------------------------------------------------------------------------- */

enum { COMMITS = 150 };

static void put_commit(ds_store *store, int i) {
    char keys[4][16], text[1600];
    memset(text, 'a' + i % 26, sizeof text);
    snprintf(text, sizeof text, "%d", i);
    size_t size = i % 20 == 7 ? 5000 : 100 + (size_t)(i * 37 % 900); /* some are hashed in lanes */
    static char large[5000];
    memset(large, 'A' + i % 26, sizeof large);
    snprintf(keys[0], 16, "a-%d", i);
    snprintf(keys[1], 16, "b-%d", i);
    snprintf(keys[2], 16, "hot-%d", i % 5);
    snprintf(keys[3], 16, "off-%d", i % 7);
    ds_change changes[5] = {
        change_put(keys[0], text), change_put(keys[1], ""),  change_put(keys[2], text),
        change_put(keys[3], "on"), change_put("step", text),
    };
    changes[1].value = large;
    changes[1].value_size = size;
    changes[4].keyspace = DS_RUNTIME;
    if (i % 3 == 1)
        changes[3] = change_delete(keys[3]);
    CHECK_OK(ds_commit(store, changes, 5, NULL));
}

static char *plain_store(const char *dir) {
    char *path = check_format("%s/plain", dir);
    ds_store *store = open_store(path);
    for (int i = 0; i < COMMITS; i++)
        put_commit(store, i);
    CHECK_OK(ds_close(store));
    return path;
}

static unsigned segments_of(const char *path) {
    image files = {0};
    unsigned count = 0;
    image_map(&files, path);
    for (size_t f = 0; f < files.count; f++)
        count += is_segment(files.files[f].name);
    image_unmap(&files);
    return count;
}

/* Compacted in the middle of its life: its log begins with what was moved. */
static char *compacted_store(const char *dir) {
    char *path = check_format("%s/compacted", dir);
    ds_store *store = open_store(path);
    for (int i = 0; i < COMMITS; i++)
        put_commit(store, i);
    CHECK_OK(ds_compact(store));
    /* How large a segment is depends on how fast the last ones were filled. */
    for (int i = COMMITS; i < COMMITS + 60 || segments_of(path) < 3; i++) {
        CHECK(i < 20 * COMMITS);
        put_commit(store, i);
    }
    CHECK_OK(ds_close(store));
    CHECK(access(check_format("%s/0000000000000000.log", path), F_OK) != 0);
    return path;
}

/* ---- damage ---------------------------------------------------------------------------------------------------- */

enum damage { FLIP, ZERO, CUT, GONE, KINDS };

static void damage_file(image *files, size_t f, enum damage kind, uint64_t at) {
    unsigned char *bytes = files->files[f].bytes;
    uint64_t size = files->files[f].size;
    if (kind == FLIP) {
        bytes[at] ^= (unsigned char)(1u << at % 8);
        mark_hit(f, at, at + 1);
    } else if (kind == ZERO) {
        at = at / 512 * 512;
        memset(bytes + at, 0, 512);
        mark_hit(f, at, at + 512);
    } else if (kind == CUT) {
        files->files[f].size = at;
        mark_hit(f, at, size);
    } else {
        mark_hit(f, 0, size);
    }
}

/* One case: a copy of the store, damaged in one file, repaired and looked at. */
static void one_case(const char *dir, size_t f, enum damage kind, uint64_t at, bool rebooted) {
    static image files;
    image_copy(&files, &log_of.files);
    for (size_t i = 0; i < log_of.frames; i++)
        log_of.frame[i].hit = false;
    damage_file(&files, f, kind, at);
    char *path = check_format("%s/case", dir), *victim = check_format("%s/%s", path, files.files[f].name);
    CHECK(mkdir(path, 0700) == 0);
    image_write(&files, path, rebooted);
    if (kind == GONE)
        CHECK(unlink(victim) == 0);
    ds_repair_report report;
    ds_status status = ds_repair(path, &report);
    if (status != DS_OK)
        check_fail(__FILE__, __LINE__, "damage %d of %s at %llu: %s", kind, files.files[f].name, (unsigned long long)at,
                   ds_error());
    CHECK_EQ(access(report.damaged_path, F_OK), 0);
    if (kind != GONE) { /* it is as it was */
        image kept = {0};
        image_map(&kept, report.damaged_path);
        for (size_t i = 0; i < kept.count; i++)
            if (strcmp(kept.files[i].name, files.files[f].name) == 0)
                CHECK(kept.files[i].size == files.files[f].size &&
                      (kept.files[i].size == 0 ||
                       memcmp(kept.files[i].bytes, files.files[f].bytes, kept.files[i].size) == 0));
    }
    bool hit = false;
    for (size_t i = 0; i < log_of.frames; i++)
        hit = hit || log_of.frame[i].hit;
    CHECK(!hit || report.damages > 0);
    check_repaired(path);
    check_remove(path);
    check_remove(report.damaged_path);
    image_free(&files);
}

static void damage_everywhere(const char *dir, const char *path, int places) {
    read_log(path);
    uint64_t random = 7;
    int segments = 0;
    for (size_t f = 0; f < log_of.files.count; f++) {
        if (!is_segment(log_of.files.files[f].name))
            continue;
        segments++;
        one_case(dir, f, GONE, 0, false);
        for (uint64_t at = 0; at < DS_SEGMENT_HEADER; at += 9)
            one_case(dir, f, FLIP, at, at % 2 == 0);
        one_case(dir, f, ZERO, 0, true);
        one_case(dir, f, CUT, 0, true);
        one_case(dir, f, CUT, 100, true);
        for (int i = 0; i < places; i++)
            for (int kind = FLIP; kind < GONE; kind++)
                one_case(dir, f, (enum damage)kind, check_below(&random, log_of.files.files[f].size), i % 2 == 0);
    }
    CHECK(segments >= 3);
}

static void every_intact_commit_is_kept(const char *dir) {
    damage_everywhere(dir, plain_store(dir), 5);
}

static void after_compaction_too(const char *dir) {
    damage_everywhere(dir, compacted_store(dir), 5);
}

/* Sizes, types, counts, crcs: each byte of one frame's header and of its first record. */
static void every_byte_of_a_frame_may_be_wrong(const char *dir) {
    read_log(plain_store(dir));
    for (uint64_t i = 0; i < sizeof(struct ds_frame) + sizeof(struct ds_record) + 16; i++)
        one_case(dir, log_of.frame[40].file, FLIP, log_of.frame[40].at + i, true);
}

/* Length and count say that the commit ends after two of its records: all that is left of it is intact, and half of it. */
static void half_a_commit_is_not_taken_for_one(const char *dir) {
    char *path = plain_store(dir);
    read_log(path);
    unsigned char *bytes = log_of.files.files[log_of.frame[30].file].bytes + log_of.frame[30].at;
    struct ds_frame frame;
    memcpy(&frame, bytes, sizeof frame);
    uint64_t length = sizeof frame;
    for (int i = 0; i < 2; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)(bytes + length);
        length += ds__record_length(record->key_size, record->value_size);
    }
    frame.word0 = ds__word0(length, DS_FRAME_COMMIT);
    frame.count = 2;
    char *log = check_format("%s/%s", path, log_of.files.files[log_of.frame[30].file].name);
    int fd = open(log, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, &frame, sizeof frame, (off_t)log_of.frame[30].at) == sizeof frame);
    close(fd);
    log_of.frame[30].hit = true;
    ds_repair_report report;
    CHECK_OK(ds_repair(path, &report));
    CHECK_EQ(report.commits, COMMITS - 1);
    check_repaired(path);
}

static void put_and_die(void *context) {
    ds_store *store = open_store(context);
    put(store, "early", "1");
    put(store, "torn", "2");
    put(store, "late", "3");
}

/* A recovery dropped the torn end of a power loss, frames behind the tear too. They stay dropped. */
static void what_recovery_dropped_does_not_come_back(const char *dir) {
    char *path = check_format("%s/store", dir);
    check_join(check_spawn(put_and_die, path));
    read_log(path);
    char *log = check_format("%s/0000000000000000.log", path);
    int fd = open(log, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, "?", 1, (off_t)log_of.frame[1].at + 30) == 1);
    close(fd);
    image_reboot(path);
    unlink(check_format("%s/floor", path));
    ds_store *store = open_store(path);
    expect_value(store, "early", "1");
    expect_value(store, "late", NULL);
    uint64_t sequence = put(store, "new", "4");
    CHECK_OK(ds_close(store));
    ds_repair_report report;
    CHECK_OK(ds_repair(path, &report));
    CHECK_EQ(report.commits, 2);
    CHECK_EQ(report.damages, 0);
    store = open_store(path);
    expect_value(store, "early", "1");
    expect_value(store, "torn", NULL);
    expect_value(store, "late", NULL);
    CHECK_EQ(expect_value(store, "new", "4"), sequence);
    CHECK_OK(ds_close(store));
}

/* ---- a healthy store ------------------------------------------------------------------------------------------- */

static uint64_t count_changes(const char *path) {
    ds_store *store = open_store(path);
    ds_changes *changes;
    ds_change_told told;
    uint64_t count = 0;
    CHECK_OK(ds_changes_open(store, DS_USER, 0, &changes));
    for (;;) {
        ds_status status = ds_changes_next(changes, &told);
        if (status == DS_MISSING)
            break;
        CHECK_OK(status);
        if (told.value.owner)
            ds_unpin(&told.value);
        count++;
    }
    ds_changes_close(changes);
    CHECK_OK(ds_close(store));
    return count;
}

static void a_healthy_store_stays_as_it_is(const char *dir) {
    char *path = plain_store(dir);
    read_log(path);
    uint64_t changes = count_changes(path);
    ds_repair_report report;
    CHECK_OK(ds_repair(path, &report));
    CHECK_EQ(report.commits, COMMITS);
    CHECK_EQ(report.records, log_of.versions);
    CHECK_EQ(report.damages, 0);
    CHECK_EQ(report.dropped_bytes, 0);
    CHECK_EQ(report.lost_blobs, 0);
    CHECK_EQ(report.first_damage, UINT64_MAX);
    CHECK_EQ(report.sequence, highest_sequence() + (UINT64_C(1) << GAP_BITS));
    CHECK(strcmp(report.damaged_path, check_format("%s.damaged-1", path)) == 0);
    CHECK_EQ(count_changes(path), changes);
    CHECK_OK(ds_repair(path, &report)); /* and once more */
    CHECK_EQ(report.damages, 0);
    CHECK(strcmp(report.damaged_path, check_format("%s.damaged-2", path)) == 0);
    check_repaired(path);
}

/* Who follows a repaired store must not believe that nothing is missing. */
static void followers_of_a_damaged_store_start_over(const char *dir) {
    char *path = plain_store(dir);
    read_log(path);
    const uint64_t sequence = log_of.frame[20].sequence;
    char *log = check_format("%s/%s", path, log_of.files.files[log_of.frame[20].file].name);
    int fd = open(log, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, "????????", 8, (off_t)log_of.frame[20].at + 200) == 8);
    close(fd);
    ds_repair_report report;
    CHECK_OK(ds_repair(path, &report));
    CHECK_EQ(report.damages, 1);
    CHECK_EQ(report.commits, COMMITS - 1);
    CHECK_EQ(report.dropped_bytes, log_of.frame[20].length);
    CHECK_EQ(report.first_damage, log_of.frame[20].at); /* it is in the segment at 0 */
    ds_store *store = open_store(path);
    ds_changes *changes;
    CHECK_IS(ds_changes_open(store, DS_USER, sequence - 1, &changes), DS_COMPACTED);
    CHECK_IS(ds_changes_open(store, DS_USER, highest_sequence(), &changes), DS_COMPACTED);
    CHECK_OK(ds_changes_open(store, DS_USER, report.sequence, &changes));
    ds_changes_close(changes);
    CHECK_OK(ds_close(store));
}

/* ---- blobs ----------------------------------------------------------------------------------------------------- */

enum { BLOB = DS_BLOB_FROM + 1000 };

/* "map" was small, then a blob; "other" is a blob. */
static char *store_with_blobs(const char *dir, char *value) {
    char *path = check_format("%s/blobs", dir);
    ds_store *store = open_store(path);
    put(store, "map", "small");
    memset(value, 'm', BLOB);
    CHECK_OK(ds_put(store, DS_USER, "map", 3, value, BLOB, NULL));
    memset(value, 'o', BLOB);
    CHECK_OK(ds_put(store, DS_USER, "other", 5, value, BLOB, NULL));
    CHECK_OK(ds_close(store));
    return path;
}

/* The blob that is filled with `byte`. */
static char *blob_of(const char *path, char byte) {
    DIR *list = opendir(path);
    CHECK(list);
    char *found = NULL;
    for (struct dirent *entry; (entry = readdir(list));) {
        char first;
        if (!strstr(entry->d_name, ".blob"))
            continue;
        int fd = openat(dirfd(list), entry->d_name, O_RDONLY);
        CHECK(fd >= 0 && pread(fd, &first, 1, 0) == 1);
        close(fd);
        if (first == byte)
            found = check_format("%s/%s", path, entry->d_name);
    }
    closedir(list);
    CHECK(found);
    return found;
}

static void a_lost_blob_loses_that_version_only(const char *dir) {
    char *value = malloc(BLOB);
    CHECK(value);
    for (int kind = FLIP; kind < KINDS; kind++) {
        char *path = store_with_blobs(dir, value), *blob = blob_of(path, 'm');
        int fd = open(blob, O_RDWR);
        CHECK(fd >= 0);
        if (kind == FLIP)
            CHECK(pwrite(fd, "M", 1, BLOB / 2) == 1);
        else if (kind == ZERO)
            CHECK(pwrite(fd, (const char[512]){0}, 512, 8192) == 512);
        else if (kind == CUT)
            CHECK(ftruncate(fd, BLOB / 2) == 0);
        else
            CHECK(unlink(blob) == 0);
        close(fd);
        ds_repair_report report;
        CHECK_OK(ds_repair(path, &report));
        CHECK_EQ(report.lost_blobs, 1);
        CHECK_EQ(report.damages, 0);
        ds_store *store = open_store(path);
        expect_value(store, "map", "small");
        memset(value, 'o', BLOB);
        expect_bytes(store, DS_USER, "other", 5, value, BLOB);
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
        check_remove(path);
        check_remove(report.damaged_path);
    }
    free(value);
}

/* An overwritten value's blob goes when the index is rebuilt, by rights. */
static void a_dead_blob_is_not_missed(const char *dir) {
    char *value = malloc(BLOB);
    CHECK(value);
    char *path = store_with_blobs(dir, value), *blob = blob_of(path, 'm');
    ds_store *store = open_store(path);
    put(store, "map", "newer");
    CHECK_OK(ds_close(store));
    CHECK(unlink(blob) == 0);
    ds_repair_report report;
    CHECK_OK(ds_repair(path, &report));
    CHECK_EQ(report.lost_blobs, 0);
    store = open_store(path);
    expect_value(store, "map", "newer");
    CHECK_OK(ds_close(store));
    free(value);
}

/* ---- refusals -------------------------------------------------------------------------------------------------- */

static void a_store_in_use_is_refused(const char *dir) {
    char *path = plain_store(dir);
    unsigned before = check_entries(dir);
    ds_store *store = open_store(path);
    CHECK_IS(ds_repair(path, NULL), DS_IN_USE);
    ds_options read_only = options_default();
    read_only.read_only = true;
    ds_store *reader = open_with(path, read_only);
    CHECK_OK(ds_close(store));
    CHECK_IS(ds_repair(path, NULL), DS_IN_USE);
    CHECK_OK(ds_close(reader));
    CHECK_EQ(check_entries(dir), before);
    CHECK_OK(ds_repair(path, NULL));
}

static void what_is_no_store_is_refused(const char *dir) {
    char *empty = check_format("%s/empty", dir), *file = check_format("%s/file", dir);
    CHECK(mkdir(empty, 0700) == 0);
    close(open(file, O_CREAT | O_WRONLY, 0600));
    CHECK_IS(ds_repair(empty, NULL), DS_NOT_A_STORE);
    CHECK_IS(ds_repair(file, NULL), DS_NOT_A_STORE);
    CHECK_IS(ds_repair(check_format("%s/nothing", dir), NULL), DS_NOT_A_STORE);
    CHECK_IS(ds_repair("", NULL), DS_INVALID);
    char *noise = check_format("%s/0000000000000000.log", empty);
    int fd = open(noise, O_CREAT | O_WRONLY, 0600);
    for (int i = 0; i < 100; i++)
        CHECK(write(fd, "no segment of any kind", 22) == 22);
    close(fd);
    CHECK_IS(ds_repair(empty, NULL), DS_CORRUPT);
    CHECK_EQ(check_entries(dir), 2 + 2);
}

static void i24_a_future_format_is_refused(const char *dir) {
    char *path = check_format("%s/store", dir), *log = check_format("%s/0000000000000000.log", path);
    ds_store *store = open_store(path);
    put(store, "a", "1");
    CHECK_OK(ds_close(store));
    uint32_t number = 2;
    int fd = open(log, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, &number, sizeof number, offsetof(struct ds_segment_header, version)) == 4);
    CHECK_IS(ds_repair(path, NULL), DS_FORMAT);
    struct ds_segment_header header;
    CHECK(pread(fd, &header, sizeof header, 0) == sizeof header);
    header.version = 1;
    header.incompat = 4;
    header.crc = ds__segment_header_crc(&header);
    CHECK(pwrite(fd, &header, sizeof header, 0) == sizeof header);
    CHECK_IS(ds_repair(path, NULL), DS_FORMAT);
    close(fd);
    CHECK_EQ(check_entries(dir), 2 + 1);
}

/* The directory is what counts, whatever it is called. */
static void links_and_slashes_lead_to_the_store(const char *dir) {
    char *path = plain_store(dir), *link = check_format("%s/link", dir);
    CHECK(symlink(path, link) == 0);
    ds_repair_report report;
    CHECK_OK(ds_repair(link, &report));
    CHECK(strcmp(report.damaged_path, check_format("%s.damaged-1", path)) == 0);
    CHECK_OK(ds_repair(check_format("%s//", path), &report));
    CHECK(chdir(path) == 0);
    CHECK_OK(ds_repair(".", &report));
    CHECK(strcmp(report.damaged_path, check_format("%s.damaged-3", path)) == 0);
}

/* ---- death ----------------------------------------------------------------------------------------------------- */

static void repair_case(void *context) {
    CHECK_OK(ds_repair(context, NULL));
}

/* Killed at any time, the damaged store is as it was, or the repaired one is whole. */
static void a_killed_repair_changes_nothing_or_all(const char *dir) {
    char *original = plain_store(dir), *path = check_format("%s/case", dir);
    read_log(original);
    damage_file(&log_of.files, log_of.frame[30].file, FLIP, log_of.frame[30].at + 100);
    int swapped = 0, intact = 0;
    uint64_t whole_run = 0;
    enum { KILLS = 40 };
    for (int i = 0; i <= KILLS; i++) {
        CHECK(mkdir(path, 0700) == 0);
        image_write(&log_of.files, path, true);
        uint64_t begin = check_now_ns();
        pid_t pid = check_spawn(repair_case, path);
        if (i == 0) {
            check_join(pid);
            whole_run = check_now_ns() - begin;
        } else {
            uint64_t pause = whole_run * (uint64_t)i / (KILLS - 10);
            struct timespec wait = {(time_t)(pause / 1000000000u), (long)(pause % 1000000000u)};
            nanosleep(&wait, NULL);
            kill(pid, SIGKILL);
            CHECK(waitpid(pid, NULL, 0) == pid);
        }
        ds_options read_only = options_default();
        read_only.read_only = true;
        ds_store *store = NULL;
        ds_status status = ds_open(path, &read_only, &store);
        if (status == DS_OK) {
            CHECK_OK(ds_close(store));
            swapped++;
        } else {
            CHECK_IS(status, DS_CORRUPT);
            intact++;
            CHECK_OK(ds_repair(path, NULL));
        }
        check_repaired(path);
        CHECK(access(check_format("%s.repaired-draft", path), F_OK) != 0);
        check_remove(path);
        for (int n = 1; n <= 3; n++)
            check_remove(check_format("%s.damaged-%d", path, n));
    }
    printf("%d repairs killed in time, %d too late\n", intact, swapped);
    CHECK(intact > 0 && swapped > 0);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(every_intact_commit_is_kept),
        TEST(after_compaction_too),
        TEST(every_byte_of_a_frame_may_be_wrong),
        TEST(half_a_commit_is_not_taken_for_one),
        TEST(what_recovery_dropped_does_not_come_back),
        TEST(a_healthy_store_stays_as_it_is),
        TEST(followers_of_a_damaged_store_start_over),
        TEST(a_lost_blob_loses_that_version_only),
        TEST(a_dead_blob_is_not_missed),
        TEST(a_store_in_use_is_refused),
        TEST(what_is_no_store_is_refused),
        TEST(i24_a_future_format_is_refused),
        TEST(links_and_slashes_lead_to_the_store),
        TEST(a_killed_repair_changes_nothing_or_all),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
