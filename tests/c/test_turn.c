/* Turns at a key (csrc/turn.c): one at a time, given back or over by themselves; who waits sleeps, and nobody else waits. The
 * linker wraps the sleep and the clock (ld --wrap): a sleep passes the time that it was asked for at once, so no test waits for
 * a turn to pass and none depends on how fast the machine is. */
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "store.h"
#include "store_help.h"

enum { LONG_MS = DS_TURN_LIMIT_MS, ROUNDS = 300, LOST_S = 30, LOOKS = 10, NS_PER_MS = 1000 * 1000 };

static uint64_t passed_ns;            /* by sleeping, on top of the real clock */
static unsigned sleeps, wakes, looks; /* looks since the last sleep: many are a waiter that spins */
static bool is_waiting;      /* for a turn: opening looks at the clock, too, while it waits for another opener */
static bool sleeps_for_real; /* and without looking again, which would hide a lost wake */
static bool ends_asleep;     /* its owner gives the turn back while the other one sleeps */
static ds_store *owner;      /* in one_sleeps_until_it_is_given_back() */
static uint32_t owners_token;

uint64_t __real_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void) {
    if (is_waiting && ++looks > LOOKS)
        check_fail(__FILE__, __LINE__, "it has looked %u times without a sleep", looks);
    return __real_ds__os_now_ns() + passed_ns;
}

void __wrap_ds__os_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
void __wrap_ds__os_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns) {
    sleeps++;
    looks = 0;
    if (sleeps_for_real) {
        struct timespec limit = {LOST_S, 0};
        long woken = syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);
        CHECK(woken == 0 || errno != ETIMEDOUT);
        return;
    }
    CHECK_EQ(atomic_load(word), value); /* else it is no sleep, and this a spin */
    CHECK(passed_ns <= LONG_MS * UINT64_C(1000000));
    passed_ns += timeout_ns;
    if (ends_asleep) {
        unsigned before = wakes;
        ds_turn_end(owner, owners_token);
        CHECK_EQ(wakes, before + 1);
    }
}

void __real_ds__os_futex_wake(_Atomic uint32_t *word);
void __wrap_ds__os_futex_wake(_Atomic uint32_t *word);
void __wrap_ds__os_futex_wake(_Atomic uint32_t *word) {
    wakes++;
    __real_ds__os_futex_wake(word);
}

static uint32_t take(ds_store *store, const char *key, uint32_t milliseconds, uint32_t token) {
    CHECK_OK(ds_turn_take(store, DS_USER, key, strlen(key), milliseconds, &token));
    return token;
}

/* How often it has slept. */
static unsigned wait_for_turn(ds_store *store, const char *key, uint32_t token) {
    sleeps = looks = 0;
    is_waiting = true;
    ds_turn_wait(store, DS_USER, key, strlen(key), token);
    is_waiting = false;
    return sleeps;
}

static void one_has_it_until_it_ends(const char *dir) {
    ds_store *first = open_store(dir), *second = open_store(dir);
    CHECK_EQ(wait_for_turn(second, "a", 0), 0);
    uint32_t token = take(first, "a", LONG_MS, 0);
    CHECK(token != 0);
    CHECK_EQ(take(second, "a", LONG_MS, 0), 0);
    CHECK_EQ(take(second, "b", LONG_MS, 0), 0);        /* one in all */
    CHECK_EQ(take(first, "a", LONG_MS, token), token); /* its owner may have more of it */
    ds_turn_end(second, token ^ 2);                    /* another's token ends nothing */
    CHECK_EQ(take(second, "a", LONG_MS, 0), 0);
    CHECK_EQ(wait_for_turn(first, "a", token), 0);
    CHECK_EQ(wait_for_turn(second, "b", 0), 0);
    ds_turn_end(first, token);
    CHECK_EQ(wait_for_turn(second, "a", 0), 0);
    CHECK(take(second, "a", LONG_MS, 0) != 0);
    CHECK_OK(ds_close(second));
    CHECK_OK(ds_close(first));
}

static void one_sleeps_until_it_is_given_back(const char *dir) {
    ds_store *other = open_store(dir);
    owner = open_store(dir);
    owners_token = take(owner, "a", LONG_MS, 0);
    ends_asleep = true;
    CHECK_EQ(wait_for_turn(other, "a", 0), 1);
    CHECK(passed_ns < LONG_MS * UINT64_C(1000000) / 10); /* who sleeps looks again long before */
    CHECK(take(other, "a", LONG_MS, 0) != 0);
    CHECK_OK(ds_close(other));
    CHECK_OK(ds_close(owner));
}

static void take_and_wait_to_be_killed(void *context) {
    ds_store *store = open_store(context);
    CHECK(take(store, "a", LONG_MS, 0) != 0);
    CHECK(kill(getppid(), SIGUSR1) == 0);
    for (;;)
        pause();
}

static void it_is_over_by_itself_when_its_owner_is_killed(const char *dir) {
    ds_store *store = open_store(dir);
    sigset_t told;
    int number, status;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &told, NULL) == 0);
    pid_t pid = check_spawn(take_and_wait_to_be_killed, (void *)(uintptr_t)dir);
    CHECK(sigwait(&told, &number) == 0);
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    CHECK_EQ(take(store, "a", LONG_MS, 0), 0);
    CHECK(wait_for_turn(store, "a", 0) > 0);
    CHECK(passed_ns > LONG_MS / 2 * UINT64_C(1000000) && passed_ns <= LONG_MS * UINT64_C(1000000));
    CHECK(take(store, "a", LONG_MS, 0) != 0);
    CHECK_OK(ds_close(store));
}

/* Each asks for the turn, and waits until the other one has given it back: a wake that is lost is never made up for. */
static void take_turns(void *context) {
    ds_store *store = open_store(context);
    sleeps_for_real = true;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint32_t token;
        while ((token = take(store, "a", LONG_MS, 0)) == 0)
            (void)wait_for_turn(store, "a", 0);
        put(store, "a", "mine");
        if (i % 2 == 0)
            usleep(100); /* or the other one never comes to sleep */
        ds_turn_end(store, token);
    }
    CHECK_OK(ds_close(store));
}

static void who_sleeps_is_woken(const char *dir) {
    pid_t first = check_spawn(take_turns, (void *)(uintptr_t)dir),
          second = check_spawn(take_turns, (void *)(uintptr_t)dir);
    check_join(first);
    check_join(second);
}

/* A turn of weeks, or what nonsense in the control page takes for one, would be no courtesy. */
static void none_is_longer_than_the_limit(const char *dir) {
    ds_store *store = open_store(dir), *other = open_store(dir);
    uint32_t token = 0;
    CHECK_IS(ds_turn_take(store, DS_USER, "a", 1, LONG_MS + 1, &token), DS_INVALID);
    CHECK_IS(ds_turn_take(store, DS_USER, "a", 1, UINT32_MAX, &token), DS_INVALID);
    CHECK_EQ(token, 0);
    CHECK_EQ(wait_for_turn(other, "a", 0), 0);
    CHECK(take(store, "a", LONG_MS, 0) != 0);
    atomic_store(&store->control->turn_until_ns, UINT64_MAX);
    CHECK_EQ(wait_for_turn(other, "a", 0), 0);
    CHECK(take(other, "a", LONG_MS, 0) != 0);
    CHECK_OK(ds_close(other));
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(one_has_it_until_it_ends),
        TEST(one_sleeps_until_it_is_given_back),
        TEST(it_is_over_by_itself_when_its_owner_is_killed),
        TEST(who_sleeps_is_woken),
        TEST(none_is_longer_than_the_limit),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
