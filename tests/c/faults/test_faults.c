/* T5 of the reliability plan: every system call of the engine fails, one after the other, once and from then on.
 *
 * A life of a store (create, puts, batches, deletes, large values, growth of the index, new segments, sync, compaction, close,
 * open again) is run with call number n failing, for n = 1, 2, ... until a life makes fewer calls than n. After each:
 *   - whatever failed gave a status of the table, with a sentence;
 *   - a fresh handle without faults finds exactly what was acknowledged: a failed call changed nothing;
 *   - no descriptor and no mapping is left behind.
 * And none is left out: each place in the sources where a call is made fails once at least. Which calls can fail at all is said in
 * tests/unit/test_system_calls.py. The engine is compiled once more for this, with DS_FAULTS (csrc/os.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os.h"
#include "store.h"
#include "store_help.h"

enum { KEYS = 900, BIG = DS_BLOB_FROM + 100, ROUNDS = 3 };

/* What must be in the store: the generation of each key's value, 0 for none; and whether the blob is there. */
struct model {
    unsigned value[KEYS];
    bool blob;
};

static char *big;

static size_t make_value(char *out, unsigned key, unsigned generation) {
    size_t size = 20 + (key * 37 + generation * 101) % 300;
    memset(out, (int)('a' + generation % 26), size);
    memcpy(out, &key, sizeof key);
    memcpy(out + sizeof key, &generation, sizeof generation);
    return size;
}

/* A status that a failing system call may give, and its sentence. */
static void accept(ds_status status) {
    bool typed = status == DS_IO || status == DS_FULL || status == DS_NO_MEMORY || status == DS_UNSUPPORTED ||
                 status == DS_TIMEOUT || status == DS_NOT_A_STORE || status == DS_IN_USE;
    if (!typed)
        check_fail(__FILE__, __LINE__, "a failing system call gave %s: %s", ds_status_name(status), ds_error());
    CHECK(ds_error()[0] != '\0');
}

static void put_batch(ds_store *store, struct model *model, unsigned first, unsigned count, unsigned generation) {
    ds_change changes[32];
    static char values[32][400];
    static char keys[32][16];
    for (unsigned i = 0; i < count; i++) {
        unsigned key = (first + i) % KEYS;
        snprintf(keys[i], sizeof keys[i], "k%u", key);
        changes[i] = (ds_change){.kind = generation % 5 == 4 && i % 3 == 0 ? DS_DELETE : DS_PUT,
                                 .key = keys[i],
                                 .key_size = strlen(keys[i]),
                                 .value = values[i],
                                 .value_size = make_value(values[i], key, generation)};
    }
    ds_status status = ds_commit(store, changes, count, NULL);
    if (status != DS_OK) {
        accept(status);
        return;
    }
    for (unsigned i = 0; i < count; i++)
        model->value[(first + i) % KEYS] = changes[i].kind == DS_DELETE ? 0 : generation;
}

static void check_model(ds_store *store, const struct model *model) {
    char key[16], wanted[400];
    ds_value value;
    for (unsigned i = 0; i < KEYS; i++) {
        snprintf(key, sizeof key, "k%u", i);
        if (model->value[i] != 0)
            expect_bytes(store, DS_USER, key, strlen(key), wanted, make_value(wanted, i, model->value[i]));
        else
            CHECK_IS(ds_get(store, DS_USER, key, strlen(key), &value), DS_MISSING);
    }
    if (model->blob)
        expect_bytes(store, DS_USER, "big", 3, big, BIG);
    else
        CHECK_IS(ds_get(store, DS_USER, "big", 3, &value), DS_MISSING);
    CHECK_OK(ds_verify(store, NULL));
}

static void put_big(ds_store *store, struct model *model) {
    ds_status status = ds_put(store, DS_USER, "big", 3, big, BIG, NULL);
    if (status == DS_OK)
        model->blob = true;
    else
        accept(status);
}

static void get_big(ds_store *store) {
    ds_value value;
    ds_status status = ds_get(store, DS_USER, "big", 3, &value);
    if (status == DS_OK)
        ds_unpin(&value);
    else
        accept(status);
}

static void live(ds_store *store, struct model *model, unsigned *generation) {
    for (unsigned round = 0; round < ROUNDS; round++) {
        ++*generation;
        for (unsigned first = 0; first < KEYS; first += 30)
            put_batch(store, model, first, 30, *generation);
    }
    if (!model->blob) /* once: it is what takes the time */
        put_big(store, model);
    if (model->blob)
        get_big(store);
    ds_status status = ds_sync(store);
    if (status != DS_OK)
        accept(status);
    status = ds__compact(store, true, DS_COMPACT_DUE);
    if (status != DS_OK)
        accept(status);
    ds_cursor *cursor;
    status = ds_cursor_open(store, DS_USER, &cursor);
    if (status == DS_OK)
        ds_cursor_close(cursor);
    else
        accept(status);
}

static void run_life(const char *path, struct model *model) {
    unsigned generation = 0;
    for (int i = 0; i < 2; i++) {
        ds_store *store = NULL;
        ds_status status =
            ds_open(path, &(ds_options){.group_ms = 1000, .lock_timeout_ms = 50, .create = true}, &store);
        if (status != DS_OK) {
            accept(status);
            continue;
        }
        live(store, model, &generation);
        status = ds_close(store);
        if (status != DS_OK)
            accept(status);
    }
}

/* One life with call number `at` failing. Returns how many calls it made. */
static uint64_t one(const char *dir, uint64_t at, int error, bool forever) {
    static struct model model;
    memset(&model, 0, sizeof model);
    char *path = check_format("%s/store", dir);
    unsigned descriptors = check_entries("/proc/self/fd");
    ds__os_fault_arm(at, error, forever);
    run_life(path, &model);
    uint64_t calls = ds__os_fault_arm(0, 0, false);
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
    CHECK_EQ(check_mappings(path), 0);
    ds_store *store = open_store(path);
    check_model(store, &model);
    /* A failed sync is for ever, on purpose; it must not be what hides a later success. */
    ds_status closed = ds_close(store);
    if (closed != DS_OK)
        accept(closed);
    check_remove(path);
    free(path);
    return calls;
}

/* DORA_STATE_FAULTS_EVERY: only every so manieth call, for builds that are slow. figures.py takes them all. */
static uint64_t every(void) {
    const char *wanted = getenv("DORA_STATE_FAULTS_EVERY");
    return wanted ? strtoull(wanted, NULL, 10) : 1;
}

static void each(const char *dir, int error, bool forever, uint64_t step) {
    step *= every();
    uint64_t calls = UINT64_MAX, lives = 0;
    for (uint64_t at = 1; at <= calls; at += step, lives++) {
        uint64_t made = one(dir, at, error, forever);
        if (at == 1 && forever)
            continue; /* it never came to be */
        if (calls == UINT64_MAX || made > calls)
            calls = one(dir, UINT64_MAX, 0, false);
    }
    printf("%llu lives of %llu calls, error %d %s\n", (unsigned long long)lives, (unsigned long long)calls, error,
           forever ? "for ever" : "once");
}

static void each_call_fails_once(const char *dir) {
    each(dir, EIO, false, 1);
}

/* I19 */
static void i19_each_call_fails_for_ever(const char *dir) {
    each(dir, EIO, true, 1);
}

/* The same branches again, other statuses: a third of the calls will do in each run (I20). */
static void i20_the_disk_is_full_from_each_call_on(const char *dir) {
    each(dir, ENOSPC, true, 3);
}

/* I21 */
static void i21_no_descriptor_is_left_from_each_call_on(const char *dir) {
    each(dir, EMFILE, true, 3);
}

/* I21 */
static void i21_memory_is_out_once_at_each_call(const char *dir) {
    each(dir, ENOMEM, false, 3);
}

/* ---- repair: until the swap, a failure changes nothing ----------------------------------------------------------- */

static void damage(const char *path) {
    char *log = check_format("%s/0000000000000000.log", path);
    FILE *file = fopen(log, "r+b");
    CHECK(file && fseek(file, 3000, SEEK_SET) == 0 && fputs("?????", file) >= 0 && fclose(file) == 0);
}

static void make_damaged(const char *path, bool large) {
    ds_store *store = open_store(path);
    struct model model = {0};
    for (unsigned i = 0; i < 20; i++)
        put_batch(store, &model, i * 16, 16, 1);
    if (large)
        put_big(store, &model);
    CHECK_OK(ds_close(store));
    damage(path);
}

/* With call number `at` failing. Returns how many calls there were. */
static uint64_t repair_once(const char *dir, uint64_t at, int error, bool forever) {
    char *path = check_format("%s/store", dir);
    make_damaged(path, false);
    unsigned before = check_entries(dir);
    (void)ds__os_fault_arm(at, error, forever);
    ds_status status = ds_repair(path, NULL);
    uint64_t calls = ds__os_fault_arm(0, 0, false);
    bool swapped = status == DS_OK || strncmp(ds_error(), "repaired", 8) == 0;
    if (status != DS_OK && status != DS_CORRUPT) /* of a disk that fails for ever nothing can be read */
        accept(status);
    if (!forever) /* else a draft may be left, which the next repair removes */
        CHECK_EQ(check_entries(dir), before + swapped);
    if (!swapped)
        CHECK_OK(ds_repair(path, NULL)); /* it is all still there */
    ds_store *store = open_store(path);
    CHECK_OK(ds_verify(store, NULL));
    if (!swapped) /* what a failing disk did not give back is lost to the repair that had to do without it */
        CHECK_EQ(stats_of(store).keys[DS_USER], 19 * 16);
    CHECK_OK(ds_close(store));
    check_remove(path);
    check_remove(check_format("%s.damaged-1", path));
    check_remove(check_format("%s.damaged-2", path));
    return calls;
}

static void repair_with(const char *dir, int error, bool forever, unsigned step) {
    uint64_t at = 1;
    step *= (unsigned)every();
    while (repair_once(dir, at, error, forever) >= at)
        at += step;
    printf("%llu repairs, error %d %s\n", (unsigned long long)at / step, error, forever ? "for ever" : "once");
}

static void a_failing_repair_changes_nothing(const char *dir) {
    repair_with(dir, EIO, false, 1);
    repair_with(dir, EIO, true, 2);
    repair_with(dir, ENOSPC, true, 4);
    repair_with(dir, ENOMEM, false, 4);
}

/* Whoever cannot look whether a store is in use may not take it for one that is not. */
static void a_store_in_use_is_not_repaired_whatever_fails(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_store *store = open_store(path);
    put(store, "key", "value");
    uint64_t calls = UINT64_MAX;
    for (uint64_t at = 0; at <= calls; at++) {
        ds__os_fault_arm(at, EMFILE, false);
        CHECK(ds_repair(path, NULL) != DS_OK);
        uint64_t made = ds__os_fault_arm(0, 0, false);
        if (at == 0)
            calls = made;
        CHECK_EQ(check_entries(dir), 3); /* with . and .. */
    }
    put(store, "key", "and on");
    CHECK_OK(ds_close(store));
}

/* ---- each place where a call is made ------------------------------------------------------------------------------ */

/* What is told below tells how many calls were made. The first of them fails, or all. */
typedef uint64_t story(const char *dir, bool forever);

/* A quick writer's puts: segments are made ahead, as files without a name. */
static uint64_t write_quickly(const char *dir, bool forever) {
    char *path = check_format("%s/store", dir);
    ds_store *store = NULL;
    ds__os_fault_arm(1, EIO, forever);
    ds_status status = ds_open(path, &(ds_options){.group_ms = 1000, .lock_timeout_ms = 50, .create = true}, &store);
    if (status == DS_OK) {
        for (unsigned i = 0; i < 100 && status == DS_OK; i++) {
            status = ds_put(store, DS_USER, "k", 1, big, 4000, NULL);
            ds__spare_make(store);
        }
        ds_status closed = ds_close(store);
        status = status == DS_OK ? closed : status;
    }
    uint64_t calls = ds__os_fault_arm(0, 0, false);
    if (status != DS_OK)
        accept(status);
    store = open_store(path);
    CHECK_OK(ds_verify(store, NULL));
    (void)ds_close(store);
    check_remove(path);
    return calls;
}

static uint64_t repair_it(const char *dir, bool forever) {
    return repair_once(dir, 1, EIO, forever);
}

/* Of a repair that died there is a draft. */
static uint64_t repair_it_again(const char *dir, bool forever) {
    char *path = check_format("%s/store", dir);
    make_damaged(path, true);
    CHECK(mkdir(check_format("%s.repaired-draft", path), 0700) == 0);
    ds__os_fault_arm(1, EIO, forever);
    ds_status status = ds_repair(path, NULL);
    uint64_t calls = ds__os_fault_arm(0, 0, false);
    if (status != DS_OK)
        accept(status);
    CHECK_OK(ds_repair(path, NULL));
    for (int i = 1; i < 3; i++)
        check_remove(check_format("%s.damaged-%d", path, i));
    check_remove(path);
    return calls;
}

/* Where a dead process has left half a segment. */
static uint64_t live_after_a_death(const char *dir, bool forever) {
    CHECK(mkdir(check_format("%s/store", dir), 0700) == 0);
    CHECK(fclose(fopen(check_format("%s/store/segment.new", dir), "w")) == 0);
    return one(dir, 1, EIO, forever);
}

/* None is forgotten: the linker knows them all. */
static void each_call_site_fails(const char *dir) {
    static story *const stories[] = {write_quickly, repair_it, repair_it_again, live_after_a_death};
    size_t count;
    const struct ds_os_site *sites = ds__os_sites(&count);
    close(STDIN_FILENO); /* who opens a file then must move it out of the way */
    unsigned descriptors = check_entries("/proc/self/fd");
    for (size_t i = 0; i < count; i++)
        for (int forever = 0; forever < 2; forever++) {
            uint64_t calls = 0;
            ds__os_fault_only(&sites[i]);
            for (size_t told = 0; told < CHECK_COUNT(stories) && calls == 0; told++)
                calls = stories[told](dir, forever);
            CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
            if (calls == 0)
                check_fail(sites[i].file, sites[i].line, "no story makes this call: %s", sites[i].call);
        }
    printf("%zu places where a call is made: each failed once and for ever\n", count);
    CHECK(count >= 40);
}

int main(int argc, char **argv) {
    big = malloc(BIG);
    CHECK(big);
    memset(big, 'B', BIG);
    static const check_test tests[] = {
        TEST(each_call_site_fails),
        TEST(each_call_fails_once),
        TEST(i19_each_call_fails_for_ever),
        TEST(i20_the_disk_is_full_from_each_call_on),
        TEST(i21_no_descriptor_is_left_from_each_call_on),
        TEST(i21_memory_is_out_once_at_each_call),
        TEST(a_failing_repair_changes_nothing),
        TEST(a_store_in_use_is_not_repaired_whatever_fails),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
