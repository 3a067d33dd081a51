/* Compaction that is disturbed: by a lock that cannot be had, damage, a full disk, writers that come in between. The linker wraps
 * what it calls (ld --wrap). Whatever happens, what was committed stays as it is (I17, I18, I19). */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "image.h"
#include "status.h"
#include "store.h"
#include "store_help.h"

/* ---- what is wrapped ---------------------------------------------------------------------------------------------- */

enum point { NOWHERE, WRITER_ENTER, FIND, RECORD_AT, POINTS };

static enum point point;      /* at which something happens, */
static unsigned passed, when; /* the how manieth time */
static ds_status fails_with;  /* DS_OK: it goes on */
static void (*happens)(ds_store *store);

/* What the call is to give in place of what it would. */
static ds_status disturbed(enum point here, ds_store *store) {
    if (here != point || ++passed != when)
        return DS_OK;
    if (happens != NULL)
        happens(store);
    return fails_with == DS_OK ? DS_OK : ds__fail(fails_with, 0, "so the test wants it");
}

static void disturb(enum point where, unsigned at, ds_status status, void (*act)(ds_store *store)) {
    point = where;
    passed = 0;
    when = at;
    fails_with = status;
    happens = act;
}

ds_status __real_ds__writer_enter(ds_store *store);
ds_status __wrap_ds__writer_enter(ds_store *store);
ds_status __wrap_ds__writer_enter(ds_store *store) {
    ds_status status = disturbed(WRITER_ENTER, store);
    return status == DS_OK ? __real_ds__writer_enter(store) : status;
}

ds_status __real_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone) {
    ds_status status = disturbed(FIND, store);
    return status == DS_OK ? __real_ds__find(store, index, hash, keyspace, key, key_size, out, gone) : status;
}

ds_status __real_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
ds_status __wrap_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out);
ds_status __wrap_ds__record_at(ds_store *store, uint64_t offset, struct ds_found *out) {
    ds_status status = disturbed(RECORD_AT, store);
    return status == DS_OK ? __real_ds__record_at(store, offset, out) : status;
}

/* A segment that cannot be opened, for the next so many calls; or once a pass has put its end on disk. */
static unsigned unopened, after_sync;
static bool unsynced; /* a pass ends before its sync */

ds_status __real_ds__segments_at(struct ds_segments *segments, uint64_t base, struct ds_segment **out);
ds_status __wrap_ds__segments_at(struct ds_segments *segments, uint64_t base, struct ds_segment **out);
ds_status __wrap_ds__segments_at(struct ds_segments *segments, uint64_t base, struct ds_segment **out) {
    if (unopened == 0)
        return __real_ds__segments_at(segments, base, out);
    unopened--;
    return ds__fail(DS_IO, EMFILE, "so the test wants it");
}

/* A disk that is full, for the next so many segments. */
enum { FOR_EVER = 1000000 };
static unsigned full;
static bool no_reserve;
static const char *in_the_way; /* a file whose room would be enough */

ds_status __real_ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                                    struct ds_segment **out);
ds_status __wrap_ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                                    struct ds_segment **out);
ds_status __wrap_ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                                    struct ds_segment **out) {
    if (full == 0 && (in_the_way == NULL || access(in_the_way, F_OK) != 0))
        return __real_ds__segment_create(segments, header, quick, out);
    full -= full > 0;
    return ds__fail(DS_FULL, ENOSPC, "no segment is left");
}

ds_status __real_ds__reserve_make(const struct ds_directory *directory);
ds_status __wrap_ds__reserve_make(const struct ds_directory *directory);
ds_status __wrap_ds__reserve_make(const struct ds_directory *directory) {
    return no_reserve ? ds__fail(DS_FULL, ENOSPC, "no reserve is left") : __real_ds__reserve_make(directory);
}

static ds_store *unmapping; /* by another thread, which is done after one more look */

void __real_ds__os_sleep_ms(int milliseconds);
void __wrap_ds__os_sleep_ms(int milliseconds);
void __wrap_ds__os_sleep_ms(int milliseconds) {
    if (unmapping == NULL) {
        __real_ds__os_sleep_ms(milliseconds);
        return;
    }
    full = 0;
    atomic_store(&unmapping->segments.unmapping, 0);
    unmapping = NULL;
}

/* A slow writer's segments: as small as they get. */
uint64_t __wrap_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void) {
    static atomic_uint_fast64_t now;
    return now += UINT64_C(2000000000);
}
/* Nobody compacts but the test. */
void __wrap_ds__keeper_ask(ds_store *store);
void __wrap_ds__keeper_ask(ds_store *store) {
    (void)store;
}

static uint64_t crowded_until; /* start of the log; a put waits for compaction until it has moved */

bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length);
bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length) {
    (void)length;
    return atomic_load(&store->control->start) < crowded_until;
}

/* ---- a store with something of everything ------------------------------------------------------------------------- */

enum { KEYS = 60, BIG = DS_BLOB_FROM + 1 };

static unsigned generations[KEYS]; /* of each key's value; 0: it was deleted */
static unsigned generation;
static char *big;

static const char *name_of(unsigned key) {
    static char name[16];
    snprintf(name, sizeof name, "k%02u", key);
    return name;
}

/* Every sixth is long: a few of them fill a frame. */
static size_t value_of(unsigned key, unsigned of, char value[6000]) {
    size_t size = key % 6 == 0 ? 5000 : 700;
    memset(value, (int)(key + of), size);
    return size;
}

static void put_key(ds_store *store, unsigned key) {
    char value[6000];
    generations[key] = generation;
    CHECK_OK(ds_put(store, DS_USER, name_of(key), 3, value, value_of(key, generation, value), NULL));
}

static void put_for(ds_store *store, const char *key, size_t size, uint64_t seconds) {
    CHECK_OK(ds_put_expiring(store, DS_RUNTIME, key, strlen(key), big, size, seconds * 1000000000, NULL));
}

static void delete_key(ds_store *store, unsigned key) {
    if (generations[key] != 0)
        CHECK_OK(ds_delete(store, DS_USER, name_of(key), 3, NULL));
    generations[key] = 0;
}

/* Some keys are new, some dead, some deleted; `large`: a large value dies, too. */
static void write_some(ds_store *store, bool large) {
    generation++;
    for (unsigned key = 0; key < KEYS; key++)
        if ((key + generation) % 5 == 0)
            delete_key(store, key);
        else if ((key + generation) % 3 != 0)
            put_key(store, key);
    if (large) {
        CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
        put(store, "large", "small now");
    }
    for (unsigned key = 0; key < KEYS; key += 2)
        put_key(store, key);
}

static void expect_all(ds_store *store) {
    char value[6000];
    uint64_t keys = 0;
    ds_value found;
    for (unsigned key = 0; key < KEYS; key++) {
        keys += generations[key] != 0;
        if (generations[key] != 0)
            expect_bytes(store, DS_USER, name_of(key), 3, value, value_of(key, generations[key], value));
        else
            CHECK_IS(ds_get(store, DS_USER, name_of(key), 3, &found), DS_MISSING);
    }
    keys += ds_get(store, DS_USER, "large", 5, &found) == DS_OK && (ds_unpin(&found), true);
    CHECK_EQ(stats_of(store).keys[DS_USER], keys);
    CHECK_OK(ds_verify(store, NULL));
}

static void expect_all_after_a_reboot(ds_store *store, const char *path) {
    CHECK_OK(ds_close(store));
    image_reboot(path);
    store = open_store(path);
    expect_all(store);
    CHECK_OK(ds_close(store));
}

static unsigned blobs_in(const char *dir) {
    unsigned count = 0;
    DIR *entries = opendir(dir);
    CHECK(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        count += strstr(entry->d_name, ".blob") != NULL;
    closedir(entries);
    return count;
}

/* ---- what fails --------------------------------------------------------------------------------------------------- */

static uint64_t hidden; /* generation of the index */

static void hide_index(ds_store *store) {
    hidden = atomic_exchange(&store->control->generation, 1000000);
}

static void show_index(ds_store *store) {
    if (hidden != 0)
        atomic_store(&store->control->generation, hidden);
    hidden = 0;
}

/* Each call of that kind fails once, in each kind of compaction: nothing is changed, and the next compaction makes up for it. */
static void fail_at_each(const char *dir, enum point where, ds_status status, void (*act)(ds_store *store),
                         ds_status expected) {
    static const enum ds_compaction kinds[] = {DS_COMPACT_DUE, DS_COMPACT_ALL, DS_COMPACT_TIGHTLY};
    for (size_t kind = 0; kind < CHECK_COUNT(kinds); kind++) {
        char *path = check_format("%s/%d-%zu", dir, (int)where, kind);
        ds_store *store = open_store(path);
        unsigned failed = 0;
        memset(generations, 0, sizeof generations);
        for (unsigned at = 1;; at += 1 + at / 8) {
            for (int i = 0; i < 4; i++)
                write_some(store, where == WRITER_ENTER && act == NULL && i == 0);
            disturb(where, at, status, act);
            ds_status result = ds__compact(store, true, kinds[kind]);
            bool reached = passed >= when;
            disturb(NOWHERE, 0, DS_OK, NULL);
            show_index(store);
            bool harmless = act != NULL && result == DS_OK; /* where it is not asked for any more */
            bool ran_full = kinds[kind] == DS_COMPACT_TIGHTLY && result == DS_FULL;
            if (!harmless && !ran_full)
                CHECK_IS(result, reached ? expected : DS_OK);
            expect_all(store);
            CHECK_OK(ds__compact(store, true, kinds[kind] == DS_COMPACT_DUE ? DS_COMPACT_DUE : DS_COMPACT_ALL));
            if (!reached)
                break;
            failed++;
        }
        CHECK(failed >= 3);
        CHECK_OK(ds_compact(store));
        CHECK_EQ(blobs_in(path), 0);
        expect_all_after_a_reboot(store, path);
    }
}

static void i19_a_compaction_that_gets_no_lock_changes_nothing(const char *dir) {
    fail_at_each(dir, WRITER_ENTER, DS_TIMEOUT, NULL, DS_TIMEOUT);
}

static void i19_a_compaction_that_finds_no_index_changes_nothing(const char *dir) {
    fail_at_each(dir, WRITER_ENTER, DS_OK, hide_index, DS_CORRUPT);
    ds_store *store = open_store(check_format("%s/before", dir));
    memset(generations, 0, sizeof generations);
    for (int i = 0; i < 8; i++)
        write_some(store, false);
    for (enum ds_compaction how = DS_COMPACT_DUE; how <= DS_COMPACT_TIGHTLY; how++) {
        atomic_store(&store->control->expired_bytes, DS_UNKNOWN_BYTES); /* there is to be a sample, too */
        hide_index(store);                                              /* before it begins */
        CHECK_IS(ds__compact(store, true, how), DS_CORRUPT);
        show_index(store);
        expect_all(store);
    }
    CHECK_OK(ds_close(store));
}

static void i19_a_compaction_that_meets_damage_changes_nothing(const char *dir) {
    fail_at_each(dir, FIND, DS_CORRUPT, NULL, DS_CORRUPT);
    fail_at_each(dir, RECORD_AT, DS_CORRUPT, NULL, DS_CORRUPT);
}

/* Past the sync, the start of the log has moved: what could not be removed goes when the log is read. */
static void i17_a_compaction_that_cannot_drop_has_compacted(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    for (int i = 0; i < 8; i++)
        write_some(store, false);
    char *first = check_format("%s/0000000000000000.log", dir);
    after_sync = 1;
    CHECK_IS(ds__compact(store, true, DS_COMPACT_DUE), DS_IO);
    CHECK(access(first, F_OK) == 0 && atomic_load(&store->control->start) > 0);
    expect_all(store);
    CHECK_OK(ds_compact(store));
    expect_all_after_a_reboot(store, dir);
    CHECK(access(first, F_OK) != 0);
}

/* What a pass has moved before it was cut short is named twice, by the old record and by the new one. */
static void i19_a_pass_that_was_cut_short_keeps_large_values(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
    for (int i = 0; i < 8; i++)
        write_some(store, false);
    unsynced = true;
    CHECK_IS(ds__compact(store, true, DS_COMPACT_ALL), DS_IO);
    unsynced = false;
    CHECK_EQ(atomic_load(&store->control->start), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ds_compact(store));
        expect_bytes(store, DS_USER, "large", 5, big, BIG);
    }
    CHECK_EQ(blobs_in(dir), 1);
    put(store, "large", "small now");
    CHECK_OK(ds_compact(store));
    CHECK_EQ(blobs_in(dir), 0);
    CHECK_EQ(store->control->tail.blob_bytes, 0);
    expect_all_after_a_reboot(store, dir);
}

/* The same, and what it has moved is overwritten then: both records are dead, and name one file. */
static void a_large_value_is_counted_off_once(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
    CHECK_OK(ds_put(store, DS_RUNTIME, "kept", 4, big, BIG, NULL));
    for (int i = 0; i < 8; i++)
        write_some(store, false);
    unsynced = true;
    CHECK_IS(ds__compact(store, true, DS_COMPACT_ALL), DS_IO);
    unsynced = false;
    put(store, "large", "small now");
    CHECK_OK(ds_compact(store));
    CHECK_EQ(blobs_in(dir), 1);
    CHECK_EQ(store->control->tail.blob_bytes, BIG);
    expect_bytes(store, DS_RUNTIME, "kept", 4, big, BIG);
    CHECK_OK(ds_compact(store));
    expect_all_after_a_reboot(store, dir);
}

/* The writer lock is held for one batch at a time, however large the segments are. */
static void records_move_in_bounded_batches(const char *dir) {
    enum { MANY = 500, SIZE = 5000, MOST = 64 * 1024 + 200 };
    char key[16];
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    put_for(store, "expiring", 1, 10);
    for (unsigned i = 0; i < MANY; i++)
        CHECK_OK(ds_put(store, DS_RUNTIME, key, (size_t)snprintf(key, sizeof key, "m%u", i), big, SIZE, NULL));
    uint64_t base = store->control->tail.segment_base;
    while (store->control->tail.segment_base == base) /* a new one has more room than the reserve */
        CHECK_OK(ds_put(store, DS_RUNTIME, "fill", 4, big, SIZE, NULL));
    CHECK(store->control->tail.segment_size > 2 * DS_SEGMENT_MIN);
    ds__os_clock_shift(INT64_C(11000000000), INT64_C(11000000000));
    uint64_t moved = stats_of(store).relocated_bytes;
    (void)ds__compact(store, true, DS_COMPACT_TIGHTLY); /* as far as it gets */
    CHECK(stats_of(store).relocated_bytes > moved);
    CHECK_OK(ds_compact(store));
    CHECK(store->control->tail.largest_frame < MOST);
    CHECK(stats_of(store).relocated_bytes > MANY * SIZE);
    CHECK_EQ(stats_of(store).keys[DS_RUNTIME], MANY + 1);
    expect_all_after_a_reboot(store, dir);
}

/* ---- who comes in between ----------------------------------------------------------------------------------------- */

static ds_store *other;

/* What is live dies, and what is deleted lives again. */
static void turn_all_around(ds_store *store) {
    (void)store;
    generation++;
    for (unsigned key = 0; key < KEYS; key++)
        if (generations[key] == 0)
            put_key(other, key);
        else if (key % 2)
            put_key(other, key);
        else
            delete_key(other, key);
    put(other, "large", "small");
}

/* Between the look at a record and the move of it, at each time that compaction takes the writer lock. */
static void i17_what_changes_while_it_is_to_move_stays_changed(const char *dir) {
    for (unsigned at = 1;; at++) {
        char *path = check_format("%s/%u", dir, at);
        ds_store *store = open_store(path);
        other = open_store(path);
        memset(generations, 0, sizeof generations);
        CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
        write_some(store, false);
        write_some(store, false);
        disturb(WRITER_ENTER, at, DS_OK, turn_all_around);
        CHECK_OK(ds__compact(store, true, DS_COMPACT_ALL));
        bool reached = passed >= when;
        disturb(NOWHERE, 0, DS_OK, NULL);
        expect_all(store);
        expect_all(other);
        CHECK_OK(ds_compact(store));
        CHECK_EQ(blobs_in(path), !reached);
        CHECK_OK(ds_close(other));
        expect_all_after_a_reboot(store, path);
        check_remove(path);
        if (!reached) {
            CHECK(at > 6);
            return;
        }
    }
}

/* A put that has to wait for room waits for the pass that makes it, not for those that follow. */
static struct {
    ds_store *store;
    uint64_t room_at; /* start of the log */
    atomic_uint passes;
    atomic_bool put_returned;
} waiting;

ds_status __real_ds__sync_between(ds_store *store, uint64_t start, uint64_t to);
ds_status __wrap_ds__sync_between(ds_store *store, uint64_t start, uint64_t to);
ds_status __wrap_ds__sync_between(ds_store *store, uint64_t start, uint64_t to) {
    if (store == waiting.store && ++waiting.passes == 1)
        while (atomic_load(&store->control->compact_lock.starving) == 0)
            usleep(100); /* until the put waits for this pass */
    else if (store == waiting.store)
        while (!waiting.put_returned)
            usleep(100);
    if (unsynced)
        return ds__fail(DS_IO, EIO, "so the test wants it");
    ds_status status = __real_ds__sync_between(store, start, to);
    unopened += after_sync;
    after_sync = 0;
    return status;
}

static void *keep(void *store) {
    CHECK_OK(ds__compact(store, false, DS_COMPACT_DUE));
    return NULL;
}

/* Each with some that lives and more that is dead: one pass moves two or three of them. */
static void write_layers(ds_store *store, unsigned layers) {
    for (unsigned i = 0; i < layers; i++) {
        char *key = check_format("layer-%u", i);
        for (int part = 0; part < 4; part++, key[0]++)
            CHECK_OK(ds_put(store, DS_RUNTIME, key, strlen(key), big, 5000, NULL));
        for (int dead = 0; dead < 16; dead++)
            CHECK_OK(ds_put(store, DS_RUNTIME, "dead", 4, big, 5000, NULL));
        free(key);
    }
}

static void a_put_waits_no_longer_than_until_there_is_room(const char *dir) {
    pthread_t keeper;
    ds_options patient = options_default();
    patient.lock_timeout_ms = -1;
    ds_store *store = open_store(dir), *writer = open_with(dir, patient);
    memset(generations, 0, sizeof generations);
    write_layers(store, 20);
    alarm(10); /* seconds; not the minute that a test has */
    waiting.store = store;
    CHECK(pthread_create(&keeper, NULL, keep, store) == 0);
    while (waiting.passes == 0)
        usleep(100);
    crowded_until = atomic_load(&store->control->start) + 1;
    generation++;
    put_key(writer, 1);
    waiting.put_returned = true;
    crowded_until = 0;
    CHECK_EQ(stats_of(store).waits, 1);
    CHECK(pthread_join(keeper, NULL) == 0);
    CHECK_OK(ds__compact(store, false, DS_COMPACT_DUE)); /* what was left to who is asked next */
    CHECK(waiting.passes >= 3);
    waiting.store = NULL;
    expect_all(store);
    CHECK_OK(ds_close(writer));
    expect_all_after_a_reboot(store, dir);
}

/* Who only tries is awake already, and would always be faster. It gives way once: who waited may be dead by now. */
static void who_has_waited_for_long_goes_first(const char *dir) {
    ds_store *store = open_store(dir);
    struct ds_lock *lock = &store->control->compact_lock;
    bool taken, died;
    atomic_store(&lock->starving, 1);
    CHECK_OK(ds__lock_try(lock, "nobody", dir, &taken, &died));
    CHECK(!taken);
    CHECK_OK(ds__lock_try(lock, "nobody", dir, &taken, &died));
    CHECK(taken);
    ds__lock_release(lock);
    CHECK_OK(ds_close(store));
}

/* ---- a full disk -------------------------------------------------------------------------------------------------- */

/* Overwrites one key until the last segment has at most so many bytes left. */
static void fill_the_last_segment(ds_store *store, uint64_t leave) {
    static const char value[2000];
    uint64_t base = store->control->tail.segment_base, room;
    while ((room = base + store->control->tail.segment_size - store->control->tail.offset) > leave) {
        size_t size = room > 2000 + leave ? sizeof value / 2 : (size_t)(room - leave < 100 ? 0 : room - leave - 100);
        CHECK_OK(ds_put(store, DS_RUNTIME, "fill", 4, value, size, NULL));
        CHECK_EQ(store->control->tail.segment_base, base);
    }
}

/* From now on the store has no reserve, and the disk no room for so many segments. */
static void have_no_room(ds_store *store, unsigned segments) {
    ds__spare_stop(store);
    atomic_store(&store->control->reserve_gone, 1);
    no_reserve = true;
    full = segments;
}

static ds_status delete_small(ds_store *store, unsigned key) {
    char small[16];
    return ds_delete(store, DS_RUNTIME, small, (size_t)snprintf(small, sizeof small, "small%u", key), NULL);
}

/* A writer that was killed has left a segment that it had not used, or the note that the reserve is gone, which is not. */
static void i20_a_death_takes_no_reserve(const char *dir) {
    for (int noted = 0; noted < 2; noted++) {
        char *path = check_format("%s/%d", dir, noted), *reserve = check_format("%s/reserve", path);
        ds_store *store = open_store(path);
        put(store, "a", "1");
        put(store, "b", "2");
        ds__spare_stop(store);
        uint64_t next = store->control->tail.segment_base + store->control->tail.segment_size;
        char name[DS_NAME_SIZE];
        ds__segment_name(next, name);
        store->control->tail.sealed = 1; /* a delete needs a new segment */
        store->control->reserve_gone = 1;
        if (noted == 0) { /* it became that segment */
            in_the_way = check_format("%s/%s", path, name);
            CHECK(rename(reserve, in_the_way) == 0);
        } else {
            full = FOR_EVER;
        }
        CHECK_OK(ds_delete(store, DS_USER, "a", 1, NULL));
        CHECK(access(reserve, F_OK) != 0 || noted == 0);
        in_the_way = NULL;
        full = 0;
        expect_value(store, "a", NULL);
        expect_value(store, "b", "2");
        CHECK_OK(ds_verify(store, NULL));
        CHECK_OK(ds_close(store));
    }
}

/* Deletes go into the reserve. When that is full, too, they say so; when there is room again, there is a new reserve. */
static void i20_deletes_have_the_reserve_and_no_more(const char *dir) {
    enum { SMALL = 3000 };
    char small[16], *reserve = check_format("%s/reserve", dir);
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    for (unsigned i = 0; i < SMALL; i++)
        CHECK_OK(ds_put(store, DS_RUNTIME, small, (size_t)snprintf(small, sizeof small, "small%u", i), "", 0, NULL));
    fill_the_last_segment(store, 400);
    ds__spare_stop(store);
    full = FOR_EVER;
    static ds_change many[2000]; /* more than the reserve has room for */
    static char names[2000][16];
    for (unsigned i = 0; i < CHECK_COUNT(many); i++)
        many[i] = (ds_change){.kind = DS_DELETE,
                              .keyspace = DS_RUNTIME,
                              .key = names[i],
                              .key_size = (size_t)snprintf(names[i], sizeof names[i], "small%u", i)};
    CHECK_IS(ds_commit(store, many, CHECK_COUNT(many), NULL), DS_FULL);
    CHECK_EQ(stats_of(store).keys[DS_RUNTIME], SMALL + 1);
    CHECK(access(reserve, F_OK) == 0);
    unsigned deleted = 0;
    while (delete_small(store, deleted) == DS_OK)
        CHECK(++deleted < SMALL);
    CHECK(deleted > 500 && access(reserve, F_OK) != 0);
    CHECK_IS(delete_small(store, deleted), DS_FULL);
    CHECK_EQ(stats_of(store).keys[DS_RUNTIME], SMALL + 1 - deleted);
    full = 0;
    no_reserve = true; /* there is room for one thing, not for both */
    CHECK_OK(delete_small(store, deleted++));
    CHECK(access(reserve, F_OK) != 0);
    no_reserve = false;
    fill_the_last_segment(store, 2000); /* of which commits leave a half for compaction */
    CHECK_OK(ds_put(store, DS_USER, "large", 5, big, 2000, NULL));
    CHECK(access(reserve, F_OK) == 0);
    CHECK_EQ(stats_of(store).keys[DS_RUNTIME], SMALL + 1 - deleted);
    expect_all_after_a_reboot(store, dir);
}

/* What goes without a new segment makes room for one, and with that the rest goes. */
static void i20_a_compaction_goes_on_with_the_room_it_has_made(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    for (int i = 0; i < 10; i++)
        write_some(store, false);
    uint64_t end = store->control->tail.offset;
    have_no_room(store, 1);
    CHECK_OK(ds_compact(store));
    CHECK_EQ(full, 0);
    CHECK(atomic_load(&store->control->start) >= end);
    expect_all_after_a_reboot(store, dir);
}

/* It runs full where it has seen a dead large value and moved nothing yet: that stays, and is counted once when it goes. */
static void i20_a_compaction_that_runs_full_keeps_what_it_does_not_drop(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    generation++;
    put_key(store, 1);
    fill_the_last_segment(store, 90); /* the first segment: dead but for that */
    CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
    for (unsigned key = 2; key < KEYS && store->control->tail.segment_base == DS_SEGMENT_MIN; key++)
        put_key(store, key);
    put(store, "large", "small");
    fill_the_last_segment(store, 3000);
    ds__spare_stop(store);
    full = FOR_EVER;
    CHECK_IS(ds__compact(store, true, DS_COMPACT_DUE), DS_FULL);
    CHECK_EQ(atomic_load(&store->control->reserve_gone), 0);
    CHECK_EQ(stats_of(store).dropped_segments, 1);
    CHECK_EQ(blobs_in(dir), 1);
    CHECK_EQ(store->control->tail.blob_bytes, BIG);
    full = 0;
    expect_all(store);
    CHECK_OK(ds_compact(store));
    CHECK_EQ(blobs_in(dir), 0);
    CHECK_EQ(store->control->tail.blob_bytes, 0);
    expect_all_after_a_reboot(store, dir);
}

/* Four segments, in the first of which so many values of 500 bytes live. Compaction is due. */
static ds_store *open_due(const char *dir, unsigned live) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    generation++;
    for (unsigned i = 0; i < live; i++)
        CHECK_OK(ds_put(store, DS_RUNTIME, check_format("small%u", i), strlen("small") + 1 + (i > 9), big, 500, NULL));
    for (uint64_t base = 0; base < 4; base++)
        fill_the_last_segment(store, 90), put_key(store, 0);
    CHECK(store->control->tail.segment_base >= UINT64_C(3) * DS_SEGMENT_MIN && ds__compaction_due(store));
    return store;
}

static void delete_all_small(ds_store *store, unsigned live) {
    while (live > 0)
        CHECK_OK(delete_small(store, --live));
    CHECK_OK(ds__compact(store, true, DS_COMPACT_TIGHTLY));
    CHECK(atomic_load(&store->control->start) > 0);
}

/* A segment that does not fit where the disk is full is not begun: its first half would take the room that deletes need, be
 * that the reserve or what is left of it. */
static void i20_what_does_not_fit_leaves_the_room_to_deletes(const char *dir) {
    enum { LIVE = 90 };
    for (int gone = 0; gone < 2; gone++) {
        ds_store *store = open_due(check_format("%s/%d", dir, gone), LIVE);
        fill_the_last_segment(store, 20000);
        if (gone)
            have_no_room(store, FOR_EVER);
        ds__spare_stop(store);
        full = FOR_EVER;
        uint64_t moved = stats_of(store).relocated_bytes;
        CHECK_IS(ds__compact(store, true, DS_COMPACT_DUE), DS_FULL);
        CHECK(!gone || stats_of(store).relocated_bytes == moved);
        CHECK_EQ(atomic_load(&store->control->reserve_gone), (unsigned)gone);
        delete_all_small(store, LIVE);
        full = 0;
        no_reserve = false;
        expect_all_after_a_reboot(store, check_format("%s/%d", dir, gone));
    }
}

/* What does fit goes, also while the reserve is in use. */
static void i20_the_keeper_compacts_on_a_full_disk(const char *dir) {
    ds_store *store = open_due(dir, 5);
    fill_the_last_segment(store, 20000);
    have_no_room(store, FOR_EVER);
    CHECK_IS(ds__compact(store, true, DS_COMPACT_DUE), DS_OK);
    CHECK(atomic_load(&store->control->start) >= DS_SEGMENT_MIN);
    full = 0;
    no_reserve = false;
    expect_all_after_a_reboot(store, dir);
}

/* The keeper has dropped segments, and is just giving them back to the disk. */
static void i20_room_that_is_on_its_way_is_waited_for(const char *dir) {
    ds_store *store = open_due(dir, 5);
    fill_the_last_segment(store, 90);
    ds__spare_stop(store);
    full = FOR_EVER;
    atomic_store(&store->segments.unmapping, 1);
    unmapping = store;
    atomic_store(&store->control->reserve_gone, 1);
    put_key(store, 1);
    CHECK_EQ(full, 0);
    expect_all_after_a_reboot(store, dir);
}

/* Half of the reserve is for a segment that gives back more. */
static void i20_compaction_has_half_of_the_reserve(const char *dir) {
    enum { HALF = 50 };
    for (unsigned more = 0; more < 2; more++) {
        ds_store *store = open_due(check_format("%s/%u", dir, more), HALF + 20 * more);
        fill_the_last_segment(store, 90);
        ds__spare_stop(store);
        full = FOR_EVER;
        CHECK_IS(ds__compact(store, true, DS_COMPACT_TIGHTLY), more ? DS_FULL : DS_OK);
        CHECK_EQ(atomic_load(&store->control->reserve_gone), 1 - more);
        CHECK((atomic_load(&store->control->start) > 0) == !more);
        full = 0;
        expect_all_after_a_reboot(store, check_format("%s/%u", dir, more));
    }
}

/* ---- keys that expire --------------------------------------------------------------------------------------------- */

/* On a full disk the reserve is for what makes room: also where only time makes it, and the last segment takes nothing more. */
static void i20_what_has_expired_may_use_the_reserve(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    generation++;
    put_for(store, "first", 1, 10);
    CHECK_OK(ds_compact(store)); /* from now on all segments are for keys that expire */
    for (unsigned i = 0; i < 30; i++) {
        put_key(store, i);
        put_for(store, check_format("expiring-%u", i), 5000, 10);
    }
    ds__spare_stop(store);
    full = FOR_EVER;
    store->control->tail.sealed = 1; /* as a repair may leave it */
    uint64_t start = atomic_load(&store->control->start);
    CHECK_IS(ds__compact(store, true, DS_COMPACT_TIGHTLY), DS_FULL);
    CHECK_EQ(atomic_load(&store->control->start), start);
    ds__os_clock_shift(INT64_C(11000000000), INT64_C(11000000000));
    CHECK_OK(ds__compact(store, true, DS_COMPACT_TIGHTLY));
    CHECK(atomic_load(&store->control->start) > start);
    CHECK_EQ(atomic_load(&store->control->reserve_gone), 1);
    expect_all(store);
    full = 0;
    expect_all_after_a_reboot(store, dir);
}

/* A sample tells whether there is something to compact. What is damaged it steps over: reads and the move itself will tell. */
static void a_sample_steps_over_what_is_damaged(const char *dir) {
    ds_store *store = open_store(dir);
    memset(generations, 0, sizeof generations);
    atomic_uint_fast64_t *expired = (void *)&store->control->expired_bytes;
    *expired = DS_UNKNOWN_BYTES; /* there is no key at all */
    CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE));
    CHECK_EQ(*expired, 0);
    put_for(store, "sound", 1000, 10);
    uint64_t live = stats_of(store).live_bytes;
    put_for(store, "bad check", 1000, 10);
    put_for(store, "bad expiry", 1000, 10);
    put_for(store, "bad slot", 1000, 10);
    ds__os_clock_shift(INT64_C(11000000000), INT64_C(11000000000));
    struct ds_index *index = store->index;
    unsigned damaged = 0;
    for (uint64_t i = 0; i <= index->mask; i++) {
        struct ds_found found;
        if (index->slots[i] == 0)
            continue;
        CHECK_OK(ds__record_at(store, ds__slot_offset(index->slots[i]), &found));
        struct ds_record *record = (struct ds_record *)(void *)ds__segment_at(found.segment, found.offset);
        damaged++;
        if (ds__record_is(record, DS_RUNTIME, "bad check", 9))
            record->check ^= 1;
        else if (ds__record_is(record, DS_RUNTIME, "bad expiry", 10))
            *(unsigned char *)(uintptr_t)ds__record_value(record, record->key_size) ^= 1;
        else if (ds__record_is(record, DS_RUNTIME, "bad slot", 8))
            index->slots[i] = ds__slot(found.offset + (UINT64_C(1) << 40), 0);
        else
            damaged--;
    }
    CHECK_EQ(damaged, 3);
    *expired = DS_UNKNOWN_BYTES;
    CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE));
    /* Of two it could read the size, and of one of these that it has expired. */
    CHECK(*expired > live && *expired < stats_of(store).live_bytes * 6 / 10);
    (void)ds_close(store);
}

static void forget_what_has_expired(ds_store *store) {
    atomic_store(&store->control->expired_bytes, DS_UNKNOWN_BYTES);
}

/* Whoever opens a new segment asks for another sample: the pass that is under way goes by what it knows. */
static void a_pass_that_is_asked_for_a_sample_ends(const char *dir) {
    for (unsigned at = 1; at < 6; at++) {
        char *path = check_format("%s/%u", dir, at);
        ds_store *store = open_store(path);
        memset(generations, 0, sizeof generations);
        for (int i = 0; i < (at % 2 ? 1 : 10); i++) /* nothing is due; much is */
            write_some(store, false);
        disturb(WRITER_ENTER, at, DS_OK, forget_what_has_expired);
        CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE));
        disturb(NOWHERE, 0, DS_OK, NULL);
        CHECK_EQ(stats_of(store).dropped_segments > 0, at % 2 == 0);
        expect_all_after_a_reboot(store, path);
    }
}

/* Whether the last segment is one for keys that expire cannot be told: the put says so, and is not in a wrong one. */
static void an_expiring_put_that_finds_no_segment_is_refused(const char *dir) {
    ds_store *store = open_store(dir);
    ds_value value;
    put(store, "k", "v");
    unopened = 1;
    CHECK_IS(ds_put_expiring(store, DS_USER, "e", 1, "v", 1, 1000000000, NULL), DS_IO);
    CHECK_IS(ds_get(store, DS_USER, "e", 1, &value), DS_MISSING);
    put_for(store, "e", 1, 10);
    struct ds_segment *segment;
    CHECK_OK(ds__segments_at(&store->segments, store->control->tail.segment_base, &segment));
    CHECK_EQ(ds__segment_header(segment)->incompat, DS_EXPIRY_INCOMPAT);
    CHECK_OK(ds_close(store));
}

/* A segment that names many bytes of large values ends early: they go only when it goes. */
static void large_values_fill_a_segment_too(const char *dir) {
    ds_store *store = open_store(dir);
    for (int i = 0; i < DS_SEGMENT_MAX / BIG + 2; i++) {
        CHECK_EQ(store->control->tail.segment_base, 0);
        CHECK_OK(ds_put(store, DS_USER, "large", 5, big, BIG, NULL));
    }
    put(store, "small", "value");
    CHECK_EQ(store->control->tail.segment_base, DS_SEGMENT_MIN);
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    big = calloc(1, BIG);
    CHECK(big);
    static const check_test tests[] = {
        TEST(i19_a_compaction_that_gets_no_lock_changes_nothing),
        TEST(i19_a_compaction_that_finds_no_index_changes_nothing),
        TEST(i19_a_compaction_that_meets_damage_changes_nothing),
        TEST(i19_a_pass_that_was_cut_short_keeps_large_values),
        TEST(a_large_value_is_counted_off_once),
        TEST(i17_a_compaction_that_cannot_drop_has_compacted),
        TEST(records_move_in_bounded_batches),
        TEST(i17_what_changes_while_it_is_to_move_stays_changed),
        TEST(a_put_waits_no_longer_than_until_there_is_room),
        TEST(who_has_waited_for_long_goes_first),
        TEST(i20_deletes_have_the_reserve_and_no_more),
        TEST(i20_a_death_takes_no_reserve),
        TEST(i20_a_compaction_goes_on_with_the_room_it_has_made),
        TEST(i20_a_compaction_that_runs_full_keeps_what_it_does_not_drop),
        TEST(i20_what_does_not_fit_leaves_the_room_to_deletes),
        TEST(i20_the_keeper_compacts_on_a_full_disk),
        TEST(i20_room_that_is_on_its_way_is_waited_for),
        TEST(i20_compaction_has_half_of_the_reserve),
        TEST(i20_what_has_expired_may_use_the_reserve),
        TEST(a_sample_steps_over_what_is_damaged),
        TEST(a_pass_that_is_asked_for_a_sample_ends),
        TEST(an_expiring_put_that_finds_no_segment_is_refused),
        TEST(large_values_fill_a_segment_too),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
