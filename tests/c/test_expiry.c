/* Keys with a time to live. The tests set the clocks themselves: of this process, through the os layer, so no test waits. Where
 * it matters what happens while somebody reads the clock, the linker wraps that call (ld --wrap). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "store.h"
#include "store_help.h"

#define SECOND UINT64_C(1000000000)

/* ---- the clocks ----------------------------------------------------------------------------------------------------- */

static int64_t boot_s = 1000 * 86400, wall_s; /* so long after the boot that a new one can be before it */

static void set_clocks(void) {
    ds__os_clock_shift(boot_s * (int64_t)SECOND, wall_s * (int64_t)SECOND);
}

static void pass(int64_t seconds) {
    boot_s += seconds;
    wall_s += seconds;
    set_clocks();
}

static void jump_wall(int64_t seconds) {
    wall_s += seconds;
    set_clocks();
}

/* What happens while the clock is being read, once. */
static void (*meanwhile)(ds_store *store);
static ds_store *meanwhile_store;

uint64_t __real_ds__os_boot_ns(void);
uint64_t __wrap_ds__os_boot_ns(void);
uint64_t __wrap_ds__os_boot_ns(void) {
    void (*happens)(ds_store *store) = meanwhile;
    meanwhile = NULL;
    if (happens)
        happens(meanwhile_store);
    return __real_ds__os_boot_ns();
}

static void while_the_clock_is_read(ds_store *store, void (*happens)(ds_store *store)) {
    meanwhile_store = store;
    meanwhile = happens;
}

/* ---- help ----------------------------------------------------------------------------------------------------------- */

static ds_change change_put_for(const char *key, const char *value, uint64_t seconds) {
    ds_change change = change_put(key, value);
    change.ttl_ns = seconds * SECOND;
    return change;
}

static uint64_t put_for(ds_store *store, const char *key, const char *value, uint64_t seconds) {
    uint64_t sequence = 0;
    CHECK_OK(ds_put_expiring(store, DS_USER, key, strlen(key), value, strlen(value), seconds * SECOND, &sequence));
    return sequence;
}

static uint64_t count(ds_store *store) {
    uint64_t keys = 0;
    CHECK_OK(ds_count(store, DS_USER, &keys));
    return keys;
}

static uint64_t walk(ds_store *store) {
    ds_cursor *cursor;
    const void *key;
    size_t size;
    ds_value value;
    uint64_t keys = 0;
    CHECK_OK(ds_cursor_open(store, DS_USER, &cursor));
    for (; ds_cursor_next(cursor, &key, &size, &value) == DS_OK; keys++)
        ds_unpin(&value);
    ds_cursor_close(cursor);
    return keys;
}

/* Bit i: the i-th key is there, all of them looked at together. */
static unsigned present(ds_store *store, const char *a, const char *b) {
    ds_bytes keys[] = {{a, strlen(a)}, {b, strlen(b)}};
    ds_value values[2];
    unsigned bits = 0;
    CHECK_OK(ds_get_many(store, DS_USER, keys, 2, values));
    for (unsigned i = 0; i < 2; i++)
        if (values[i].owner) {
            bits |= 1u << i;
            ds_unpin(&values[i]);
        }
    return bits;
}

static bool file_exists(const char *dir, const char *pattern) {
    char *command = check_format("ls %s/%s >/dev/null 2>&1", dir, pattern);
    bool found = system(command) == 0;
    free(command);
    return found;
}

/* ---- what expired means --------------------------------------------------------------------------------------------- */

static void i35_an_expired_key_is_missing_everywhere(const char *dir) {
    ds_store *store = open_store(dir);
    ds_value value;
    uint64_t sequence, told_at = 0;
    put(store, "stays", "1");
    sequence = put_for(store, "goes", "2", 10);
    pass(9);
    CHECK_EQ(expect_value(store, "goes", "2"), sequence);
    CHECK_EQ(present(store, "stays", "goes"), 3);
    CHECK_EQ(count(store), 2);
    CHECK_EQ(walk(store), 2);

    pass(2);
    expect_value(store, "goes", NULL);
    CHECK_IS(ds_borrow(store, DS_USER, "goes", 4, &value), DS_MISSING);
    CHECK_IS(ds_delete(store, DS_USER, "goes", 4, NULL), DS_MISSING);
    CHECK_EQ(present(store, "stays", "goes"), 1);
    CHECK_EQ(count(store), 1);
    CHECK_EQ(walk(store), 1);
    ds_change expect = change_expect("goes", sequence);
    CHECK_IS(ds_commit(store, &expect, 1, NULL), DS_CONFLICT);
    CHECK_EQ(ds_error_sequence(), 0);
    /* Expiry is no commit: who waits is told of the put, and not again. */
    CHECK_OK(ds_wait(store, DS_USER, "goes", 4, false, 0, 0, &told_at));
    CHECK_EQ(told_at, sequence);
    CHECK_IS(ds_wait(store, DS_USER, "goes", 4, false, sequence, 0, NULL), DS_TIMEOUT);
    ds_changes *changes;
    ds_change_told told;
    CHECK_OK(ds_changes_open(store, DS_USER, sequence - 1, &changes));
    CHECK_OK(ds_changes_next(changes, &told));
    CHECK(told.kind == DS_DELETE && told.value.owner == NULL && told.sequence == sequence);
    ds_changes_close(changes);
    CHECK_OK(ds_verify(store, NULL));

    ds_change claim = change_put("goes", "3");
    claim.expect = true;
    CHECK_OK(ds_commit(store, &claim, 1, NULL));
    pass(1000);
    expect_value(store, "goes", "3");
    CHECK_OK(ds_close(store));
}

static void a_later_put_decides(const char *dir) {
    ds_store *store = open_store(dir);
    put_for(store, "renewed", "1", 10);
    put_for(store, "kept", "1", 10);
    put(store, "limited", "1");
    pass(9);
    put_for(store, "renewed", "2", 10);
    put(store, "kept", "2");
    put_for(store, "limited", "2", 5);
    pass(9);
    expect_value(store, "renewed", "2");
    expect_value(store, "kept", "2");
    expect_value(store, "limited", NULL); /* and the value before it is not back */
    CHECK_OK(ds_close(store));
}

static void a_batch_expires_at_once(const char *dir) {
    ds_store *store = open_store(dir);
    ds_change changes[] = {change_put_for("a", "1", 10), change_put("b", "1"), change_put_for("c", "1", 10)};
    CHECK_OK(ds_commit(store, changes, 3, NULL));
    ds_value a, c;
    CHECK_OK(ds_get(store, DS_USER, "a", 1, &a));
    CHECK_OK(ds_get(store, DS_USER, "c", 1, &c));
    struct ds_expiry first, second; /* right before the values */
    memcpy(&first, (const char *)a.data - sizeof first, sizeof first);
    memcpy(&second, (const char *)c.data - sizeof second, sizeof second);
    CHECK_EQ(first.deadline, second.deadline);
    ds_unpin(&a);
    ds_unpin(&c);
    pass(11);
    CHECK_EQ(present(store, "a", "c"), 0);
    expect_value(store, "b", "1");
    CHECK_OK(ds_close(store));
}

static void limits_are_checked(const char *dir) {
    ds_store *store = open_store(dir);
    ds_change change = change_put("a", "1");
    change.ttl_ns = DS_TTL_LIMIT_NS;
    CHECK_OK(ds_commit(store, &change, 1, NULL));
    change.ttl_ns++;
    CHECK_IS(ds_commit(store, &change, 1, NULL), DS_INVALID);
    change = change_delete("a");
    change.ttl_ns = 1;
    CHECK_IS(ds_commit(store, &change, 1, NULL), DS_INVALID);
    pass(9 * 365 * 86400);
    expect_value(store, "a", "1");
    pass(2 * 365 * 86400);
    expect_value(store, "a", NULL);
    CHECK_OK(ds_close(store));
}

static void a_large_value_expires_too(const char *dir) {
    ds_store *store = open_store(dir);
    size_t size = DS_BLOB_FROM + 1000;
    char *bytes = malloc(size);
    CHECK(bytes);
    memset(bytes, 'x', size);
    CHECK_OK(ds_put_expiring(store, DS_USER, "blob", 4, bytes, size, 10 * SECOND, NULL));
    CHECK_OK(ds_put_expiring(store, DS_USER, "5000", 4, bytes, 5000, 10 * SECOND, NULL));
    CHECK_OK(ds_compact(store)); /* moved, with what belongs to it */
    expect_bytes(store, DS_USER, "blob", 4, bytes, size);
    expect_bytes(store, DS_USER, "5000", 4, bytes, 5000);
    CHECK_OK(ds_verify(store, NULL));
    ds_value view;
    CHECK_OK(ds_get(store, DS_USER, "blob", 4, &view));
    pass(11);
    CHECK_EQ(present(store, "blob", "5000"), 0);
    CHECK_OK(ds_compact(store));
    CHECK(!file_exists(dir, "*.blob"));
    CHECK_OK(ds_close(store));
    CHECK(memcmp(view.data, bytes, size) == 0); /* what was pinned stays */
    ds_unpin(&view);
    free(bytes);
}

/* A disk that is full after so many more segments, of the smallest size (ld --wrap). */
enum { PLENTY = 1000 };
static unsigned segments_left = PLENTY;

ds_status __real_ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                                    struct ds_segment **out);
ds_status __wrap_ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                                    struct ds_segment **out);
ds_status __wrap_ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                                    struct ds_segment **out) {
    if (segments_left == 0)
        return ds__fail(DS_FULL, ENOSPC, "no segment is left");
    if (segments_left < PLENTY) {
        segments_left--;
        header->size = DS_SEGMENT_MIN;
    }
    return __real_ds__segment_create(segments, header, quick, out);
}

ds_status __real_ds__segment_from_reserve(struct ds_segments *segments, struct ds_segment_header *header,
                                          struct ds_segment **out);
ds_status __wrap_ds__segment_from_reserve(struct ds_segments *segments, struct ds_segment_header *header,
                                          struct ds_segment **out);
ds_status __wrap_ds__segment_from_reserve(struct ds_segments *segments, struct ds_segment_header *header,
                                          struct ds_segment **out) {
    return segments_left == PLENTY ? __real_ds__segment_from_reserve(segments, header, out)
                                   : ds__fail(DS_FULL, ENOSPC, "no segment is left");
}

/* The move that would have given up its key fails on a full disk; what was moved before that goes all the same. */
static void a_compaction_that_runs_full_takes_no_large_value_along(const char *dir) {
    ds_store *store = open_store(dir);
    size_t size = DS_BLOB_FROM + 1000;
    char *bytes = calloc(1, size), key[16];
    CHECK(bytes);
    for (unsigned i = 0; i < 110; i++) {
        if (i == 55) /* opens a segment of its own */
            CHECK_OK(ds_put_expiring(store, DS_USER, "blob", 4, bytes, size, 10 * SECOND, NULL));
        CHECK_OK(ds_put(store, DS_USER, key, (size_t)snprintf(key, sizeof key, "k%u", i), bytes, 1000, NULL));
    }
    pass(11);
    ds__spare_stop(store);
    segments_left = 1;
    CHECK_IS(ds__compact(store, true, DS_COMPACT_ALL), DS_FULL);
    CHECK(stats_of(store).dropped_segments > 0);
    CHECK_OK(ds_verify(store, NULL));
    segments_left = PLENTY;
    CHECK_OK(ds_compact(store));
    CHECK(!file_exists(dir, "*.blob"));
    CHECK_OK(ds_verify(store, NULL));
    CHECK_EQ(stats_of(store).keys[DS_USER], 110);
    CHECK_OK(ds_close(store));
    free(bytes);
}

/* ---- the clock ------------------------------------------------------------------------------------------------------ */

static void the_wall_clock_may_jump_meanwhile(const char *dir) {
    ds_store *store = open_store(dir);
    put_for(store, "a", "1", 10);
    jump_wall(-86400);
    put_for(store, "b", "1", 20);
    expect_value(store, "a", "1");
    jump_wall(2 * 86400);
    expect_value(store, "a", "1");
    pass(11);
    expect_value(store, "a", NULL);
    jump_wall(-3 * 86400);
    expect_value(store, "a", NULL);
    expect_value(store, "b", "1");
    ds_store *other = open_store(dir);
    CHECK_EQ(present(other, "a", "b"), 2);
    CHECK_OK(ds_close(other));
    pass(10);
    CHECK_EQ(count(store), 0);
    CHECK_OK(ds_close(store));
    store = open_store(dir); /* the same boot: the same clock */
    CHECK_EQ(count(store), 0);
    CHECK_OK(ds_close(store));
}

static int boots;

/* Off for so long. CLOCK_BOOTTIME begins anew, the wall clock goes on and is then set by so much. */
static void reboot(int64_t off_s, int64_t wall_jump_s) {
    char id[40];
    snprintf(id, sizeof id, "%036d", ++boots);
    setenv("DORA_STATE_BOOT_ID", id, 1);
    boot_s -= 86400;
    wall_s += off_s + wall_jump_s;
    set_clocks();
}

static void a_reboot_goes_on(const char *dir) {
    reboot(0, 0);
    ds_store *store = open_store(dir);
    put_for(store, "short", "1", 10);
    put_for(store, "long", "1", 100);
    CHECK_OK(ds_close(store));
    reboot(50, 0);
    store = open_store(dir);
    CHECK_EQ(present(store, "short", "long"), 2); /* the time while it was off counts */
    pass(51);
    CHECK_EQ(present(store, "short", "long"), 0);
    CHECK_OK(ds_close(store));
}

static void a_reboot_with_an_earlier_wall_clock_goes_on_too(const char *dir) {
    reboot(0, 0);
    ds_store *store = open_store(dir);
    put_for(store, "first", "1", 10);
    pass(20);
    put_for(store, "second", "1", 10);
    CHECK_OK(ds_close(store));
    reboot(50, -86400);
    store = open_store(dir);
    CHECK_EQ(present(store, "first", "second"), 2); /* what had expired is not back; time off cannot be known */
    put_for(store, "third", "1", 10);
    pass(9);
    CHECK_EQ(present(store, "second", "third"), 3);
    pass(2);
    CHECK_EQ(present(store, "second", "third"), 0);
    CHECK_OK(ds_close(store));
}

/* Without a clock of its own a board begins each boot in the past, and is set when it has a network. */
static void a_wall_clock_that_is_set_late_kills_nothing(const char *dir) {
    reboot(0, -1000000);
    ds_store *store = open_store(dir);
    put_for(store, "early", "1", 3600);
    jump_wall(1000000);
    put_for(store, "late", "1", 3600);
    CHECK_OK(ds_close(store));
    reboot(60, 0);
    store = open_store(dir);
    CHECK_EQ(present(store, "early", "late"), 3);
    pass(3550);
    CHECK_EQ(present(store, "early", "late"), 0);
    CHECK_OK(ds_close(store));
}

static void without_its_control_page_the_clock_comes_from_the_log(const char *dir) {
    ds_store *store = open_store(dir);
    put_for(store, "a", "1", 10);
    pass(5);
    put_for(store, "b", "1", 1);
    pass(2);
    CHECK_OK(ds_close(store));
    image_reboot(dir);
    jump_wall(-86400);
    ds_options options = options_default();
    options.read_only = true;
    store = open_with(dir, options);
    CHECK_EQ(present(store, "a", "b"), 3); /* from the last put on, as far as anybody knows */
    CHECK_OK(ds_close(store));
    pass(86400);
    store = open_with(dir, options);
    pass(6);
    CHECK_EQ(present(store, "a", "b"), 0);
    CHECK_OK(ds_close(store));
}

/* ---- never back ----------------------------------------------------------------------------------------------------- */

static void shift_wall(int64_t ns) {
    ds__os_clock_shift(boot_s * (int64_t)SECOND, wall_s * (int64_t)SECOND + ns);
}

/* The difference of the two clocks is no whole number of seconds, ahead or behind. */
static void what_has_expired_stays_so_after_a_reboot(const char *dir) {
    static const int64_t differences[] = {0,          1,          400000000,  999999999,  -1,
                                          -400000000, -999999999, 5400000000, -5400000000};
    for (size_t i = 0; i < CHECK_COUNT(differences); i++) {
        int64_t ns = differences[i];
        char *path = check_format("%s/%zu", dir, i);
        reboot(0, 0);
        ds_store *store = open_store(path);
        shift_wall(ns);
        put_for(store, "a", "1", 10);
        put_for(store, "b", "1", 12);
        boot_s += 10;
        wall_s += 10;
        shift_wall(ns);
        CHECK_EQ(present(store, "a", "b"), 2);
        CHECK_OK(ds_close(store));
        reboot(0, 0);
        shift_wall(ns + 10000000); /* 10 ms later */
        store = open_store(path);
        CHECK_EQ(present(store, "a", "b"), 2); /* not back, and at most a second early */
        CHECK_OK(ds_close(store));
        free(path);
    }
}

static void stop_for_a_while(ds_store *store) {
    (void)store;
    pass(5);
}

static void stop_at_the_next_reading(ds_store *store) {
    while_the_clock_is_read(store, stop_for_a_while);
}

/* Between its readings of two clocks a process may be stopped, as for a debugger. */
static void a_stop_between_two_clocks_brings_nothing_back(const char *dir) {
    reboot(0, 0);
    ds_store *store = open_store(dir);
    while_the_clock_is_read(store, stop_at_the_next_reading);
    put_for(store, "a", "1", 10);
    CHECK(meanwhile == NULL);
    pass(5);
    CHECK_EQ(present(store, "a", "a"), 0);
    CHECK_OK(ds_close(store));
    reboot(0, 0);
    store = open_store(dir);
    CHECK_EQ(present(store, "a", "a"), 0);
    put_for(store, "b", "1", 10);
    pass(4);
    CHECK_OK(ds_close(store));
    reboot(0, 0);
    while_the_clock_is_read(NULL, stop_for_a_while);
    store = open_store(dir);
    pass(1);
    CHECK_EQ(present(store, "a", "b"), 0);
    CHECK_OK(ds_close(store));
}

/* ---- compaction ----------------------------------------------------------------------------------------------------- */

static void i35_compaction_reclaims_what_has_expired(const char *dir) {
    ds_store *store = open_store(dir);
    char key[32], value[200] = {0};
    put(store, "stays", "1");
    for (int i = 0; i < 60000; i++) { /* each key once */
        int size = snprintf(key, sizeof key, "%d", i);
        CHECK_OK(ds_put_expiring(store, DS_USER, key, (size_t)size, value, sizeof value, 100 * SECOND, NULL));
        if (i % 100 == 0) {
            pass(10); /* a thousand of them live */
            CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE));
        }
    }
    ds_stats stats = stats_of(store);
    CHECK(stats.expired_keys > 40000);
    CHECK(stats.log_bytes < 5 * 1024 * 1024); /* 17 MB were put */
    CHECK(stats.index_slots < 65536);         /* 131072 if none ever left it */
    expect_value(store, "stays", "1");
    pass(101);
    CHECK_EQ(count(store), 1);
    CHECK_OK(ds_compact(store));
    stats = stats_of(store);
    CHECK_EQ(stats.keys[DS_USER], 1);
    CHECK_EQ(stats.live_bytes, ds__record_length(5, 1));
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    image_reboot(dir);
    store = open_store(dir);
    CHECK_EQ(stats_of(store).keys[DS_USER], 1);
    CHECK_EQ(count(store), 1);
    CHECK_OK(ds_close(store));
}

static void what_is_counted_is_what_is_there(const char *dir) {
    ds_store *store = open_store(dir);
    for (int i = 0; i < 3; i++) {
        put_for(store, "a", "1", 10);
        put_for(store, "b", "1", 10);
        pass(11);
        put(store, "a", "22"); /* over one that has expired */
        put_for(store, "a", "333", 10);
        CHECK_OK(ds_compact(store));
        CHECK_EQ(stats_of(store).keys[DS_USER], 1);
        CHECK_EQ(stats_of(store).live_bytes, ds__record_length(1, 3 + sizeof(struct ds_expiry)));
        put(store, "b", "back");
        pass(11);
        CHECK_OK(ds_compact(store));
        CHECK_EQ(stats_of(store).keys[DS_USER], 1);
        CHECK_EQ(stats_of(store).live_bytes, ds__record_length(1, 4));
    }
    CHECK_OK(ds_close(store));
}

/* ---- while others are at it ----------------------------------------------------------------------------------------- */

static void renew(ds_store *store) {
    put_for(store, "lease", "2", 10);
    pass(2);
}

/* It was never missing, although the clock, read after its slot, says that the one in the slot has expired. */
static void a_key_that_is_renewed_in_time_is_never_missing(const char *dir) {
    ds_store *store = open_store(dir), *reader = open_store(dir);
    ds_value value;
    put_for(store, "lease", "1", 10);
    pass(9);
    while_the_clock_is_read(store, renew);
    CHECK_OK(ds_get(reader, DS_USER, "lease", 5, &value));
    ds_unpin(&value);
    CHECK_OK(ds_close(reader));
    CHECK_OK(ds_close(store));
}

static void overwrite_in_time(ds_store *store) {
    put(store, "b", "new"); /* while "a" is there */
    pass(2);
}

/* "a" was there until after "b" was new, so nobody can see "b" old and no "a". */
static void several_keys_are_seen_at_one_moment(const char *dir) {
    ds_store *store = open_store(dir), *reader = open_store(dir);
    for (int walked = 0; walked < 2; walked++) {
        put_for(store, "a", "1", 10);
        put(store, "b", "old");
        pass(9);
        while_the_clock_is_read(store, overwrite_in_time);
        bool a, old;
        if (walked) {
            ds_cursor *cursor;
            const void *key;
            size_t size;
            ds_value value;
            a = old = false;
            CHECK_OK(ds_cursor_open(reader, DS_USER, &cursor));
            while (ds_cursor_next(cursor, &key, &size, &value) == DS_OK) {
                a = a || memcmp(key, "a", 1) == 0;
                old = old || (memcmp(key, "b", 1) == 0 && memcmp(value.data, "old", 3) == 0);
                ds_unpin(&value);
            }
            ds_cursor_close(cursor);
        } else {
            ds_bytes keys[] = {{"a", 1}, {"b", 1}};
            ds_value values[2];
            CHECK_OK(ds_get_many(reader, DS_USER, keys, 2, values));
            a = values[0].owner != NULL;
            old = memcmp(values[1].data, "old", 3) == 0;
            for (int i = 0; i < 2; i++)
                if (values[i].owner)
                    ds_unpin(&values[i]);
        }
        CHECK(a || !old);
    }
    CHECK_OK(ds_close(reader));
    CHECK_OK(ds_close(store));
}

/* Compaction, when it is asked for. */
void __wrap_ds__keeper_ask(ds_store *store);
void __wrap_ds__keeper_ask(ds_store *store) {
    (void)store;
}

bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length);
bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length) {
    (void)store;
    (void)length;
    return false;
}

static char second_key[8];

static void overwrite_expire_compact(ds_store *store) {
    uint64_t before = stats_of(store).expired_keys;
    put(store, second_key, "new");
    pass(2);
    CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE));
    CHECK_EQ(stats_of(store).expired_keys, before + 1);
}

/* Wrapped to let something happen between the first and the second key of a read. */
static ds_store *reads_two;
static unsigned finds;
ds_status __real_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone);
ds_status __wrap_ds__find(ds_store *store, const struct ds_index *index, uint64_t hash, uint8_t keyspace,
                          const void *key, size_t key_size, struct ds_found *out, bool *gone) {
    if (store == reads_two && ++finds == 2)
        overwrite_expire_compact(meanwhile_store);
    return __real_ds__find(store, index, hash, keyspace, key, key_size, out, gone);
}

/* The first key was there until after the second one was new. A read that comes by the second, old, before all this, and by
 * the first when it has left the index, must not tell a state that never was. */
static void a_read_notices_that_an_expired_key_has_left_the_index(const char *dir) {
    static char filler[60000];
    ds_store *store = open_store(dir), *reader = open_store(dir);
    snprintf(second_key, sizeof second_key, "second");
    put_for(store, "first", "1", 10);
    put(store, second_key, "old");
    for (int i = 0; i < 200; i++) /* some of the largest segments that a quick writer gets */
        CHECK_OK(ds_put(store, DS_USER, "busy", 4, filler, sizeof filler, NULL));
    pass(9);
    meanwhile_store = store;
    reads_two = reader;
    ds_bytes keys[] = {{second_key, strlen(second_key)}, {"first", 5}};
    ds_value values[2];
    CHECK_OK(ds_get_many(reader, DS_USER, keys, 2, values));
    CHECK(finds > 2); /* it has begun again */
    CHECK(values[0].owner && !values[1].owner);
    CHECK(memcmp(values[0].data, "new", 3) == 0);
    ds_unpin(&values[0]);
    CHECK_OK(ds_close(reader));
    CHECK_OK(ds_close(store));
}

/* ---- bytes ---------------------------------------------------------------------------------------------------------- */

static uint32_t incompat_of_tail(ds_store *store) {
    struct ds_segment *segment;
    CHECK_OK(ds__segments_at(&store->segments, store->control->tail.segment_base, &segment));
    return ds__segment_header(segment)->incompat;
}

static void only_who_uses_it_needs_a_build_that_knows_it(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "a", "1");
    CHECK_EQ(incompat_of_tail(store), 0);
    put_for(store, "b", "1", 10);
    CHECK_EQ(incompat_of_tail(store), DS_EXPIRY_INCOMPAT);
    uint64_t segment = store->control->tail.segment_base;
    put_for(store, "b", "1", 10);
    put(store, "a", "1");
    CHECK_EQ(store->control->tail.segment_base, segment); /* one new segment is enough */
    CHECK_OK(ds_compact(store));
    CHECK_EQ(incompat_of_tail(store), DS_EXPIRY_INCOMPAT);
    CHECK_OK(ds_close(store));
}

static void flip(const void *data, size_t before) {
    unsigned char *at = (unsigned char *)(uintptr_t)data - before;
    *at ^= 4;
}

/* The value of a large record is not hashed on every read, its expiry is. */
static void a_flipped_bit_in_an_expiry_is_found(const char *dir) {
    ds_store *store = open_store(dir);
    char bytes[8000] = {0};
    CHECK_OK(ds_put_expiring(store, DS_USER, "a", 1, bytes, sizeof bytes, 10 * SECOND, NULL));
    ds_value value;
    for (size_t before = 1; before <= sizeof(struct ds_expiry); before++) {
        CHECK_OK(ds_get(store, DS_USER, "a", 1, &value));
        flip(value.data, before);
        ds_value again;
        CHECK_IS(ds_get(store, DS_USER, "a", 1, &again), DS_CORRUPT);
        CHECK_IS(ds_put(store, DS_USER, "a", 1, "x", 1, NULL), DS_CORRUPT);
        flip(value.data, before);
        ds_unpin(&value);
    }
    expect_bytes(store, DS_USER, "a", 1, bytes, sizeof bytes);
    CHECK_OK(ds_close(store));
}

static void a_repair_keeps_deadlines(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_store *store = open_store(path);
    size_t size = DS_BLOB_FROM + 1;
    char *bytes = calloc(1, size);
    CHECK(bytes);
    put_for(store, "a", "1", 10);
    put(store, "lost", "1");
    CHECK_OK(ds_put_expiring(store, DS_USER, "blob", 4, bytes, size, 20 * SECOND, NULL));
    ds_value value;
    CHECK_OK(ds_get(store, DS_USER, "lost", 4, &value));
    flip(value.data, 0);
    ds_unpin(&value);
    CHECK_OK(ds_close(store));
    image_reboot(path);
    ds_repair_report report;
    CHECK_OK(ds_repair(path, &report));
    CHECK_EQ(report.damages, 1);
    store = open_store(path);
    expect_value(store, "a", "1");
    expect_bytes(store, DS_USER, "blob", 4, bytes, size);
    pass(11);
    expect_value(store, "a", NULL);
    CHECK_EQ(count(store), 1);
    pass(10);
    CHECK_EQ(count(store), 0);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(bytes);
    free(path);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i35_an_expired_key_is_missing_everywhere),
        TEST(a_later_put_decides),
        TEST(a_batch_expires_at_once),
        TEST(limits_are_checked),
        TEST(a_large_value_expires_too),
        TEST(a_compaction_that_runs_full_takes_no_large_value_along),
        TEST(the_wall_clock_may_jump_meanwhile),
        TEST(a_reboot_goes_on),
        TEST(a_reboot_with_an_earlier_wall_clock_goes_on_too),
        TEST(a_wall_clock_that_is_set_late_kills_nothing),
        TEST(without_its_control_page_the_clock_comes_from_the_log),
        TEST(what_has_expired_stays_so_after_a_reboot),
        TEST(a_stop_between_two_clocks_brings_nothing_back),
        TEST(i35_compaction_reclaims_what_has_expired),
        TEST(what_is_counted_is_what_is_there),
        TEST(a_key_that_is_renewed_in_time_is_never_missing),
        TEST(several_keys_are_seen_at_one_moment),
        TEST(a_read_notices_that_an_expired_key_has_left_the_index),
        TEST(only_who_uses_it_needs_a_build_that_knows_it),
        TEST(a_flipped_bit_in_an_expiry_is_found),
        TEST(a_repair_keeps_deadlines),
    };
    set_clocks();
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
