/* No wake is lost (csrc/wait.c). A waiter looks again each second, which would hide one that is: so here it does not. The
 * commit comes exactly where it is easiest to miss (ld --wrap), and then at any time, between two processes. */
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os.h"
#include "store.h"
#include "store_help.h"

enum { ROUNDS = 20000, LOST_S = 30 };

static ds_store *writer;         /* another handle of the same store */
static const char *written;      /* the key that it is about to put, once */
static const char *written_next; /* and the next time */
static unsigned looks_until_put; /* at which reading of the clock: the second lies between the look and the sleep */
static bool put_asleep, repair_asleep, sleeps_for_real;
static unsigned sleeps, wakes;

static void put_once(void) {
    const char *key = written;
    written = written_next;
    written_next = NULL;
    if (key)
        put(writer, key, "new");
}

uint64_t __real_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void) {
    if (looks_until_put > 0 && --looks_until_put == 0)
        put_once();
    return __real_ds__os_now_ns();
}

void __real_ds__os_futex_wake(_Atomic uint32_t *word);
void __wrap_ds__os_futex_wake(_Atomic uint32_t *word);
void __wrap_ds__os_futex_wake(_Atomic uint32_t *word) {
    wakes++;
    __real_ds__os_futex_wake(word);
}

/* A writer dies between its intent and its frame, and the next one repairs. */
static void repair_once(void) {
    struct ds_control *control = writer->control;
    repair_asleep = false;
    control->intent.begin = control->tail.offset;
    ds__tail_store(&control->intent.after, &control->tail);
    atomic_store(&control->intent.end, control->tail.offset + 64);
    uint64_t repairs = stats_of(writer).repairs;
    CHECK_OK(ds_settle(writer, NULL));
    CHECK_EQ(stats_of(writer).repairs, repairs + 1);
}

void __wrap_ds__os_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
void __wrap_ds__os_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns) {
    (void)timeout_ns;
    if (sleeps_for_real) {
        struct timespec limit = {LOST_S, 0};
        long woken = syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);
        CHECK(woken == 0 || errno != ETIMEDOUT);
        return;
    }
    sleeps++;
    if (repair_asleep) {
        repair_once();
    } else if (put_asleep) {
        unsigned before = wakes;
        put_once();
        CHECK_EQ(wakes, before + 1); /* who sleeps here is woken */
    }
    CHECK(*word != value); /* or who is about to sleep does not */
}

/* The wait that is begun here sees the commit that comes during it, and nobody has to look again for that. */
static void expect_seen(ds_store *store, const char *key, bool prefix) {
    uint64_t seen = 0, after = put(writer, "pose/x", "old"); /* no word says any more that somebody sleeps */
    sleeps = 0;
    CHECK_OK(ds_wait(store, DS_USER, key, strlen(key), prefix, after, 60000, &seen));
    CHECK_EQ(seen, after + 1);
    CHECK_EQ(sleeps, 1);
}

static void a_commit_between_the_look_and_the_sleep(const char *dir) {
    ds_store *store = open_store(dir);
    writer = open_store(dir);
    for (int i = 0; i < 3; i++) {
        written = "pose/x", looks_until_put = 2;
        expect_seen(store, "pose/x", false);
        written = "pose/x", looks_until_put = 2;
        expect_seen(store, "pose/", true);
    }
    CHECK_OK(ds_close(writer));
    CHECK_OK(ds_close(store));
}

static void a_commit_while_somebody_sleeps(const char *dir) {
    ds_store *store = open_store(dir);
    writer = open_store(dir);
    put_asleep = true;
    for (int i = 0; i < 3; i++) {
        written = "pose/x";
        expect_seen(store, "pose/x", false);
        written = "pose/x";
        expect_seen(store, "pose/", true);
    }
    CHECK_OK(ds_close(writer));
    CHECK_OK(ds_close(store));
}

/* What the dead one committed may be what is waited for, and it wakes nobody any more. */
static void a_repair_while_somebody_sleeps(const char *dir) {
    ds_store *store = open_store(dir);
    writer = open_store(dir);
    put_asleep = true;
    for (int i = 0; i < 2; i++) {
        uint64_t seen = 0, after = put(writer, "pose/x", "old");
        repair_asleep = true;
        written = "pose/x";
        sleeps = 0;
        CHECK_OK(ds_wait(store, DS_USER, "pose/x", i == 0 ? 5 : 6, i == 0, after, 60000, &seen));
        CHECK_EQ(seen, after + 1);
        CHECK_EQ(sleeps, 2);
    }
    CHECK_OK(ds_close(writer));
    CHECK_OK(ds_close(store));
}

/* The index names a record before its commit point: its writer may be dead, and the commit taken back. */
static void what_is_not_committed_ends_no_wait(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t before = stats_of(store).committed, sequence = put(store, "pose/x", "new"), seen = 0;
    uint64_t committed = stats_of(store).committed;
    for (int prefix = 0; prefix < 2; prefix++) {
        atomic_store(&store->control->committed, before);
        CHECK_IS(ds_wait(store, DS_USER, "pose/x", 6, prefix, sequence - 1, 0, &seen), DS_TIMEOUT);
        atomic_store(&store->control->committed, committed);
        CHECK_OK(ds_wait(store, DS_USER, "pose/x", 6, prefix, sequence - 1, 0, &seen));
        CHECK_EQ(seen, sequence);
    }
    CHECK_OK(ds_close(store));
}

/* A wait for a prefix goes on where it was: nothing is read twice, and what compaction takes afterwards wakes nobody. */
static void a_prefix_is_looked_for_once(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t after = put(store, "other", "1"), seen = 0, last = 0;
    for (int i = 0; i < 100; i++)
        last = put(store, "other", "2");
    CHECK_IS(ds_wait(store, DS_USER, "pose/", 5, true, after, 0, &seen), DS_TIMEOUT);
    CHECK_EQ(seen, last);
    CHECK_OK(ds_compact(store));
    CHECK_OK(ds_wait(store, DS_USER, "pose/", 5, true, after, 0, &seen)); /* who has not looked cannot know */
    seen = last;
    CHECK_IS(ds_wait(store, DS_USER, "pose/", 5, true, seen, 0, &seen), DS_TIMEOUT);
    CHECK_EQ(seen, last);
    uint64_t sequence = put(store, "pose/x", "new");
    CHECK_OK(ds_wait(store, DS_USER, "pose/", 5, true, seen, 0, &seen));
    CHECK_EQ(seen, sequence);
    CHECK_IS(ds_wait(store, DS_USER, "pose/x", 6, false, sequence, 0, &seen), DS_TIMEOUT);
    CHECK_EQ(seen, sequence);
    CHECK_OK(ds_close(store));
}

static uint64_t reads; /* of records that `changes` tells */
ds_status __real_ds_changes_next(ds_changes *changes, ds_change_told *out);
ds_status __wrap_ds_changes_next(ds_changes *changes, ds_change_told *out);
ds_status __wrap_ds_changes_next(ds_changes *changes, ds_change_told *out) {
    reads++;
    return __real_ds_changes_next(changes, out);
}

/* Each commit wakes who waits for a prefix. It must not read again then what it has read before. */
static void a_wake_reads_what_is_new(const char *dir) {
    ds_store *store = open_store(dir);
    writer = open_store(dir);
    uint64_t after = put(store, "other", "1"), seen = 0;
    for (int i = 0; i < 1000; i++)
        put(store, "other", "2");
    put_asleep = true;
    written = "another", written_next = "pose/x";
    reads = 0;
    CHECK_OK(ds_wait(store, DS_USER, "pose/", 5, true, after, 60000, &seen));
    CHECK_EQ(seen, after + 1002);
    CHECK(reads > 1000 && reads < 1010);
    CHECK_OK(ds_close(writer));
    CHECK_OK(ds_close(store));
}

static void nobody_is_woken_where_nobody_sleeps(const char *dir) {
    writer = open_store(dir);
    for (int i = 0; i < 100; i++)
        put(writer, "pose/x", "new");
    CHECK_EQ(wakes, 0);
    CHECK_OK(ds_close(writer));
}

/* ---- at any time ------------------------------------------------------------------------------------------------- */

struct side {
    const char *dir, *mine, *theirs;
    bool prefix;
};

static void play(const struct side *side) {
    sleeps_for_real = true;
    ds_store *store = open_store(side->dir);
    uint64_t seen = 0;
    bool first = side->mine[1] == 'i';
    for (unsigned i = 0; i < ROUNDS; i++) {
        if (first)
            put(store, side->mine, "x");
        size_t size = side->prefix ? 2 : 4;
        CHECK_OK(ds_wait(store, DS_USER, side->theirs, size, side->prefix, seen, -1, &seen));
        if (!first)
            put(store, side->mine, "x");
    }
    CHECK_OK(ds_close(store));
}

static void other_side(void *argument) {
    play(argument);
}

static void play_both(const char *dir, bool prefix) {
    CHECK_OK(ds_close(open_store(dir)));
    struct side ping = {dir, "ping", "pong", prefix}, pong = {dir, "pong", "ping", prefix};
    pid_t other = check_spawn(other_side, &pong);
    play(&ping);
    check_join(other);
}

static void two_processes_miss_nothing_of_a_key(const char *dir) {
    play_both(dir, false);
}

static void two_processes_miss_nothing_of_a_prefix(const char *dir) {
    play_both(dir, true);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(a_commit_between_the_look_and_the_sleep),
        TEST(a_commit_while_somebody_sleeps),
        TEST(a_repair_while_somebody_sleeps),
        TEST(what_is_not_committed_ends_no_wait),
        TEST(a_prefix_is_looked_for_once),
        TEST(a_wake_reads_what_is_new),
        TEST(nobody_is_woken_where_nobody_sleeps),
        TEST(two_processes_miss_nothing_of_a_key),
        TEST(two_processes_miss_nothing_of_a_prefix),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
