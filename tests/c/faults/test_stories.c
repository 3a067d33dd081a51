/* T5 and I21 once more, with memory: every allocation and every system call of the engine fails, one after the other, once
 * and from then on, while the rarer stories of a store are told: many keys, a long log that is read again, a read-only
 * look, large values that die, a repair.
 *
 * Each story begins from the same files and is told with failure number n, for n = 1, 2, ... until it needs fewer than n.
 * After each:
 *   - what failed says so with a status of the table, and what did not gave the right answer;
 *   - a fresh handle finds exactly what was acknowledged, and the log and the index agree;
 *   - nothing that was allocated is left, no descriptor, no mapping.
 * What the C library allocates for itself counts where the engine sees it fail: a thread. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "image.h"
#include "store.h"
#include "store_help.h"

/* ---- memory that runs out (ld --wrap) ---------------------------------------------------------------------------- */

static atomic_int_fast64_t held; /* allocations that were not given back yet */

/* An allocation is counted and fails as a system call does (csrc/os_call.h). */
bool ds__os_fault(void);

static void *keep(void *memory) {
    held += memory != NULL;
    return memory;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
char *__real_realpath(const char *path, char *out);
void __real_free(void *memory);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_realpath(const char *path, char *out);
void __wrap_free(void *memory);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);

void *__wrap_malloc(size_t size) {
    return ds__os_fault() ? NULL : keep(__real_malloc(size));
}
void *__wrap_calloc(size_t count, size_t size) {
    return ds__os_fault() ? NULL : keep(__real_calloc(count, size));
}
void *__wrap_realloc(void *memory, size_t size) {
    if (ds__os_fault())
        return NULL;
    return memory ? __real_realloc(memory, size) : keep(__real_malloc(size));
}
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return ds__os_fault() ? NULL : keep(__real_aligned_alloc(alignment, size));
}
char *__wrap_strdup(const char *text) {
    return ds__os_fault() ? NULL : keep(__real_strdup(text));
}
char *__wrap_realpath(const char *path, char *out) {
    return ds__os_fault() ? NULL : keep(__real_realpath(path, out));
}
void __wrap_free(void *memory) {
    held -= memory != NULL;
    __real_free(memory);
}
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    return ds__os_fault() ? EAGAIN : __real_pthread_create(thread, attributes, run, argument);
}

/* Small segments, and all of them stay until a story compacts: so the tables of the engine grow. */
uint64_t __wrap_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void) {
    static atomic_uint_fast64_t now;
    return now += UINT64_C(2000000000);
}
bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length);
bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length) {
    (void)store, (void)length;
    return false;
}
/* The keeper's thread would allocate when it likes. */
void __wrap_ds__keeper_ask(ds_store *store);
void __wrap_ds__keeper_ask(ds_store *store) {
    (void)store;
}

/* ---- what a story may do, and what must be there afterwards ------------------------------------------------------ */

enum {
    KEYS = 2100, /* more than the index has slots at first, and than a cursor sorts without a second array */
    BATCH = 350,
    FILLS = 90,
    FILL = 12000,  /* bytes: five of them fill a segment */
    LARGE = 65600, /* bytes of a value that a crowded commit puts into a file of its own */
    LARGES = 20,
};

/* The generation of the value of each key; 0: there is none. */
static struct {
    unsigned batch[KEYS / BATCH];
    unsigned fill;
    unsigned large[LARGES];
} model;

/* True if the call did what it was to do; else its status is one that a failure may give, and has a sentence. */
static bool accept(ds_status status) {
    static const ds_status typed[] = {DS_IO,      DS_FULL,        DS_NO_MEMORY, DS_UNSUPPORTED,
                                      DS_TIMEOUT, DS_NOT_A_STORE, DS_IN_USE};
    if (status == DS_OK)
        return true;
    CHECK(ds_error()[0] != '\0');
    for (size_t i = 0; i < CHECK_COUNT(typed); i++)
        if (status == typed[i])
            return false;
    check_fail(__FILE__, __LINE__, "a failure gave %s: %s", ds_status_name(status), ds_error());
}

static ds_store *try_open(const char *path, bool read_only) {
    ds_options options = options_default();
    ds_store *store = NULL;
    options.read_only = read_only;
    options.durability = read_only ? DS_PROCESS : DS_GROUP; /* which starts a thread */
    options.group_ms = 1000000;
    return accept(ds_open(path, &options, &store)) ? store : NULL;
}

static size_t small_key(char key[16], unsigned number) {
    return (size_t)snprintf(key, 16, "k%u", number);
}

static void put_batch(ds_store *store, unsigned number, unsigned generation) {
    static char keys[BATCH][16];
    static ds_change changes[BATCH];
    for (unsigned i = 0; i < BATCH; i++)
        changes[i] = (ds_change){.kind = DS_PUT,
                                 .key = keys[i],
                                 .key_size = small_key(keys[i], number * BATCH + i),
                                 .value = &generation,
                                 .value_size = sizeof generation};
    if (accept(ds_commit(store, changes, BATCH, NULL)))
        model.batch[number] = generation;
}

static char *fill_of(unsigned generation, size_t size) {
    static char value[LARGE];
    memset(value, (int)('a' + generation % 26), size);
    memcpy(value, &generation, sizeof generation);
    return value;
}

static void put_fill(ds_store *store, unsigned generation) {
    if (accept(ds_put(store, DS_USER, "fill", 4, fill_of(generation, FILL), FILL, NULL)))
        model.fill = generation;
}

/* A key's value is of this generation; `may_fail`: or cannot be had now. */
static void expect(ds_store *store, const char *key, size_t key_size, unsigned generation, size_t size, bool may_fail) {
    ds_value value;
    ds_status status = ds_get(store, DS_USER, key, key_size, &value);
    if (may_fail && status != DS_MISSING && !accept(status))
        return;
    if (generation == 0) {
        CHECK_IS(status, DS_MISSING);
        return;
    }
    CHECK_OK(status);
    CHECK_EQ(value.size, size);
    CHECK(memcmp(value.data, size == sizeof generation ? (char *)&generation : fill_of(generation, size), size) == 0);
    ds_unpin(&value);
}

static void expect_all(ds_store *store, bool may_fail) {
    char key[16];
    for (unsigned i = 0; i < KEYS; i += may_fail ? 97 : 1)
        expect(store, key, small_key(key, i), model.batch[i / BATCH], sizeof(unsigned), may_fail);
    expect(store, "fill", 4, model.fill, FILL, may_fail);
    for (unsigned i = 0; i < LARGES; i++) {
        size_t size = (size_t)snprintf(key, sizeof key, "large%u", i);
        expect(store, key, size, model.large[i], model.large[i] == 1 ? LARGE : sizeof(unsigned), may_fail);
    }
}

static uint64_t count_keys(void) {
    uint64_t keys = model.fill != 0;
    for (unsigned i = 0; i < KEYS / BATCH; i++)
        keys += model.batch[i] != 0 ? BATCH : 0;
    for (unsigned i = 0; i < LARGES; i++)
        keys += model.large[i] != 0;
    return keys;
}

/* Everything that reads and allocates. */
static void read_all_ways(ds_store *store) {
    ds_cursor *cursor;
    ds_changes *changes;
    ds_change_told told;
    ds_value values[3];
    ds_bytes keys[] = {{"fill", 4}, {"k7", 2}, {"large3", 6}};
    uint64_t count, sequence;
    expect_all(store, true);
    if (accept(ds_cursor_open(store, DS_USER, &cursor))) {
        const void *key;
        size_t key_size;
        ds_value value;
        ds_status status = DS_OK;
        count = 0;
        while ((status = ds_cursor_next(cursor, &key, &key_size, &value)) == DS_OK) {
            ds_unpin(&value);
            count++;
        }
        if (status == DS_MISSING)
            CHECK_EQ(count, count_keys());
        else
            accept(status); /* the mapping of a large value */
        ds_cursor_close(cursor);
    }
    if (accept(ds_get_many(store, DS_USER, keys, 3, values)))
        for (int i = 0; i < 3; i++)
            if (values[i].owner != NULL)
                ds_unpin(&values[i]);
    ds_status status = ds_changes_open(store, DS_USER, 0, &changes);
    if (status != DS_COMPACTED && accept(status)) {
        while ((status = ds_changes_next(changes, &told)) == DS_OK)
            if (told.value.owner != NULL)
                ds_unpin(&told.value);
        if (status != DS_MISSING && status != DS_COMPACTED)
            accept(status);
        ds_changes_close(changes);
    }
    status = ds_wait(store, DS_USER, "never", 5, true, 0, 0, &sequence);
    if (status != DS_TIMEOUT)
        accept(status);
    accept(ds_verify(store, NULL));
}

/* ---- the stories -------------------------------------------------------------------------------------------------- */

static void create_and_grow(const char *path) {
    ds_store *store = try_open(path, false);
    if (store == NULL)
        return;
    for (unsigned i = 0; i < KEYS / BATCH; i++)
        put_batch(store, i, 1);
    for (unsigned i = 1; i <= FILLS; i++)
        put_fill(store, i);
    put_batch(store, 0, 2);
    read_all_ways(store);
    accept(ds_close(store));
}

static void open_again_and_compact(const char *path) {
    ds_store *store = try_open(path, false);
    if (store == NULL)
        return;
    read_all_ways(store);
    put_batch(store, 1, 3);
    accept(ds_compact(store));
    put_fill(store, FILLS + 1);
    accept(ds_compact(store));
    read_all_ways(store);
    accept(ds_close(store));
}

static void read_only(const char *path) {
    ds_store *store = try_open(path, true);
    if (store == NULL)
        return;
    read_all_ways(store);
    accept(ds_close(store));
}

/* The last of them go: what was in their files is dead, and compaction has to remember each. */
static void large_values(const char *path) {
    ds_store *store = try_open(path, false);
    if (store == NULL)
        return;
    read_all_ways(store);
    for (unsigned i = 1; i < LARGES; i++) {
        char key[16];
        unsigned generation = 2;
        size_t size = (size_t)snprintf(key, sizeof key, "large%u", i);
        if (accept(ds_put(store, DS_USER, key, size, &generation, sizeof generation, NULL)))
            model.large[i] = generation;
    }
    accept(ds_compact(store));
    read_all_ways(store);
    accept(ds_close(store));
}

/* Of a log whose middle is damaged, and of a large value whose file is gone. */
static ds_repair_report report;
static bool repaired;

static void repair(const char *path) {
    memset(&report, 0, sizeof report);
    ds_status status = ds_repair(path, &report);
    repaired = accept(status) || strncmp(ds_error(), "repaired", 8) == 0;
}

static void after_repair(const char *path) {
    if (!repaired)
        CHECK_OK(ds_repair(path, &report)); /* it is all still there */
    if (report.sequence != 0) {             /* else it is repaired, but not known to be on disk */
        CHECK_EQ(report.lost_blobs, 1);
        CHECK_EQ(report.damages, 1);
    }
    check_remove(check_format("%s.damaged-1", path));
    ds_store *store = open_store(path);
    for (unsigned i = 0; i < LARGES; i++) {
        char key[16];
        ds_value value;
        if (ds_get(store, DS_USER, key, (size_t)snprintf(key, sizeof key, "large%u", i), &value) == DS_OK)
            ds_unpin(&value);
        else
            model.large[i] = 0; /* whose file is gone */
    }
    CHECK_OK(ds_close(store));
}

struct story {
    void (*prepare)(const char *path); /* NULL: there is nothing to begin with */
    void (*tell)(const char *path);
    void (*afterwards)(const char *path); /* without failures */
};

/* ---- the files that they begin with ------------------------------------------------------------------------------ */

static void prepare_large(const char *path) {
    ds_store *store = open_store(path);
    enum { CROWD = 780 }; /* of these take more than 48 MiB */
    static char keys[CROWD][16];
    static ds_change changes[CROWD];
    char *value = fill_of(1, LARGE);
    for (unsigned i = 0; i < CROWD; i++) {
        size_t size = (size_t)snprintf(keys[i], 16, "large%u", i);
        changes[i] = (ds_change){.kind = DS_PUT, .key = keys[i], .key_size = size, .value = value, .value_size = LARGE};
    }
    CHECK_OK(ds_commit(store, changes, CROWD, NULL));
    for (unsigned i = LARGES; i < CROWD; i++)
        CHECK_OK(ds_delete(store, DS_USER, keys[i], strlen(keys[i]), NULL));
    for (unsigned i = 0; i < LARGES; i++)
        model.large[i] = 1;
    CHECK_OK(ds_compact(store));
    put_batch(store, 0, 1);
    CHECK_OK(ds_close(store));
}

/* The same, with damage in the middle of the log, and without the file of one value. */
static void prepare_damaged(const char *path) {
    static const char torn[] = "the value of a commit that is damaged";
    static image files;
    prepare_large(path);
    ds_store *store = open_store(path);
    put(store, "torn", torn);
    put_batch(store, 1, 1);
    CHECK_OK(ds_close(store));
    image_map(&files, path);
    bool hit = false, removed = false;
    for (size_t i = 0; i < files.count; i++) {
        char *name = files.files[i].name;
        unsigned char *at = memmem(files.files[i].bytes, files.files[i].size, torn, strlen(torn));
        if (at != NULL && strstr(name, ".log") != NULL) {
            int fd = open(check_format("%s/%s", path, name), O_WRONLY | O_CLOEXEC);
            hit = fd >= 0 && pwrite(fd, "?", 1, at - files.files[i].bytes) == 1 && close(fd) == 0;
        } else if (!removed && strstr(name, ".blob") != NULL) {
            CHECK(unlink(check_format("%s/%s", path, name)) == 0);
            removed = true;
        }
    }
    CHECK(hit && removed);
    image_unmap(&files);
}

/* ---- telling them ------------------------------------------------------------------------------------------------ */

/* Once with failure number `at`. Returns how many there could be. */
static uint64_t tell(const struct story *story, const char *path, uint64_t at, int error, bool forever) {
    unsigned descriptors = check_entries("/proc/self/fd");
    int64_t before = held;
    ds__os_fault_arm(at, error, forever);
    story->tell(path);
    uint64_t needed = ds__os_fault_arm(0, 0, false);
    CHECK_EQ(held, before);
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
    CHECK_EQ(check_mappings(path), 0);
    if (story->afterwards != NULL)
        story->afterwards(path);
    ds_store *store = open_store(path);
    expect_all(store, false);
    CHECK_EQ(stats_of(store).keys[DS_USER], count_keys());
    CHECK_OK(ds_verify(store, NULL));
    accept(ds_close(store)); /* a sync that failed stays so */
    return needed;
}

static uint64_t every(void) {
    const char *wanted = getenv("DORA_STATE_FAULTS_EVERY");
    return wanted ? strtoull(wanted, NULL, 10) : 1;
}

static void tell_all(const char *dir, const struct story *story, int error, bool forever) {
    static image mapped, seed;
    static char before[sizeof model];
    char *path = check_format("%s/store", dir);
    memset(&model, 0, sizeof model);
    seed.count = 0;
    if (story->prepare != NULL) {
        story->prepare(path);
        image_map(&mapped, path);
        image_copy(&seed, &mapped);
        image_unmap(&mapped);
    }
    memcpy(before, &model, sizeof model);
    uint64_t needed = 0, lives = 0;
    for (uint64_t at = 0; at <= needed; at += at == 0 ? 1 : every(), lives++) { /* first undisturbed */
        memcpy(&model, before, sizeof model);
        if (story->prepare != NULL)
            image_write(&seed, path, true);
        else
            check_remove(path);
        uint64_t made = tell(story, path, at, error, forever);
        if (at == 0)
            needed = made;
    }
    printf("%llu lives of %llu calls and allocations, error %d %s\n", (unsigned long long)lives,
           (unsigned long long)needed, error, forever ? "for ever" : "once");
    image_free(&seed);
    check_remove(path);
}

/* Without memory: once and for ever. A disk that fails: for ever; once is for test_faults.c. */
static void all_ways(const char *dir, struct story story) {
    tell_all(dir, &story, ENOMEM, false);
    tell_all(dir, &story, ENOMEM, true);
    tell_all(dir, &story, EIO, true);
}

static void a_store_that_grows(const char *dir) {
    all_ways(dir, (struct story){.tell = create_and_grow});
}

static void a_long_log_that_is_read_again(const char *dir) {
    all_ways(dir, (struct story){.prepare = create_and_grow, .tell = open_again_and_compact});
}

static void a_read_only_look(const char *dir) {
    all_ways(dir, (struct story){.prepare = create_and_grow, .tell = read_only});
}

static void large_values_that_die(const char *dir) {
    all_ways(dir, (struct story){.prepare = prepare_large, .tell = large_values});
}

static void a_repair(const char *dir) {
    struct story story = {.prepare = prepare_damaged, .tell = repair, .afterwards = after_repair};
    tell_all(dir, &story, ENOMEM, false);
    tell_all(dir, &story, ENOMEM, true);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(a_store_that_grows), TEST(a_long_log_that_is_read_again),
        TEST(a_read_only_look),   TEST(large_values_that_die),
        TEST(a_repair),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
