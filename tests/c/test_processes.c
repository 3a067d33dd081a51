/* Several processes, one store: forked handles, writers at once, a reader beside them, a dead and a stopped writer.
 * Nothing here depends on timing; a wait is always for an event, and check_main() ends what hangs. */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store.h"
#include "store_help.h"

enum { WRITERS = 3, COMMITS_EACH = 3000 };

static void use_the_inherited_handle(void *context) {
    ds_store *store = context;
    ds_value value;
    ds_cursor *cursor;
    ds_stats stats;
    CHECK_IS(ds_get(store, DS_USER, "k", 1, &value), DS_FORKED);
    CHECK_IS(ds_put(store, DS_USER, "k", 1, "child", 5, NULL), DS_FORKED);
    CHECK_IS(ds_delete(store, DS_USER, "k", 1, NULL), DS_FORKED);
    ds_change change = change_put("k", "child");
    CHECK_IS(ds_commit(store, &change, 1, NULL), DS_FORKED);
    CHECK_IS(ds_cursor_open(store, DS_USER, &cursor), DS_FORKED);
    CHECK_IS(ds_settle(store, NULL), DS_FORKED);
    CHECK_IS(ds_fence(store, 1, NULL), DS_FORKED);
    CHECK_IS(ds_sync(store), DS_FORKED);
    CHECK_IS(ds_stats_read(store, &stats), DS_FORKED);
    CHECK_IS(ds_verify(store, NULL), DS_FORKED);
    CHECK_OK(ds_close(store)); /* it frees the memory and touches nothing that is shared */
}

/* I5 */
static void a_forked_handle_refuses_and_the_parent_goes_on(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "parent");
    check_join(check_spawn(use_the_inherited_handle, store));
    expect_value(store, "k", "parent");
    put(store, "k", "parent again");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

static void close_the_inherited_handle(void *context) {
    alarm(20);
    CHECK_OK(ds_close(context));
}

/* The keeper is not in the child, but the child's copy of its condition says that somebody waits. */
static void i5_a_child_closes_a_handle_whose_keeper_waits(const char *dir) {
    ds_options options = options_default();
    options.durability = DS_GROUP;
    options.group_ms = 60000;
    ds_store *store = open_with(dir, options);
#ifdef __GLIBC__
    while (__atomic_load_n(&store->keeper_wake.__data.__wrefs, __ATOMIC_ACQUIRE) < 8) /* it counts in eights */
        usleep(100);
#endif
    check_join(check_spawn(close_the_inherited_handle, store));
    put(store, "k", "the parent goes on");
    CHECK_OK(ds_close(store));
}

static void open_anew_and_put(void *context) {
    ds_store *store = open_store(context);
    expect_value(store, "k", "parent");
    put(store, "k", "child");
    CHECK_OK(ds_close(store));
}

static void a_child_opens_its_own_handle(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "parent");
    check_join(check_spawn(open_anew_and_put, (void *)(uintptr_t)dir));
    expect_value(store, "k", "child");
    CHECK_OK(ds_close(store));
}

typedef struct crew {
    const char *dir;
    unsigned index; /* of the writer to start next */
} crew;

/* Each commit counts up a key of its own and, by compare-and-put, one that all writers share. */
static void count_up(void *context) {
    const crew *me = context;
    char key[16];
    snprintf(key, sizeof key, "own-%u", me->index);
    ds_store *store = open_store(me->dir);
    for (uint64_t i = 1; i <= COMMITS_EACH;) {
        ds_value shared;
        uint64_t total = 0, sequence = 0;
        ds_status status = ds_get(store, DS_USER, "shared", 6, &shared);
        if (status == DS_OK) {
            CHECK_EQ(shared.size, sizeof total);
            memcpy(&total, shared.data, sizeof total);
            sequence = shared.sequence;
            ds_unpin(&shared);
        } else {
            CHECK_IS(status, DS_MISSING);
        }
        total++;
        ds_change changes[] = {
            {.kind = DS_PUT, .key = key, .key_size = strlen(key), .value = &i, .value_size = sizeof i},
            {.kind = DS_PUT,
             .key = "shared",
             .key_size = 6,
             .value = &total,
             .value_size = sizeof total,
             .expect = true,
             .expected = sequence},
        };
        status = ds_commit(store, changes, 2, NULL);
        if (status == DS_OK)
            i++;
        else
            CHECK_IS(status, DS_CONFLICT);
    }
    CHECK_OK(ds_close(store));
}

static uint64_t number_at(ds_store *store, const char *key) {
    ds_value value;
    uint64_t number = 0;
    CHECK_OK(ds_get(store, DS_USER, key, strlen(key), &value));
    CHECK_EQ(value.size, sizeof number);
    memcpy(&number, value.data, sizeof number);
    ds_unpin(&value);
    return number;
}

static void writers_at_once_lose_and_double_nothing(const char *dir) {
    pid_t pids[WRITERS];
    crew crews[WRITERS];
    for (unsigned i = 0; i < WRITERS; i++) {
        crews[i] = (crew){dir, i};
        pids[i] = check_spawn(count_up, &crews[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        check_join(pids[i]);
    ds_store *store = open_store(dir);
    CHECK_EQ(number_at(store, "shared"), WRITERS * COMMITS_EACH);
    for (unsigned i = 0; i < WRITERS; i++) {
        char key[16];
        snprintf(key, sizeof key, "own-%u", i);
        CHECK_EQ(number_at(store, key), COMMITS_EACH);
    }
    uint64_t frames = 0;
    CHECK_OK(ds_verify(store, &frames));
    CHECK(frames > 0); /* how many, is up to compaction */
    CHECK_EQ(stats_of(store).repairs, 0);
    CHECK_OK(ds_close(store));
}

/* One commit holds "own-0" and "shared" together, so a walk at one point never sees them apart. */
static void a_reader_beside_a_writer_never_sees_half_a_batch(const char *dir) {
    ds_store *store = open_store(dir);
    crew writer = {dir, 0};
    pid_t pid = check_spawn(count_up, &writer);
    uint64_t last = 0, walks = 0;
    while (last < COMMITS_EACH) {
        ds_cursor *cursor;
        CHECK_OK(ds_cursor_open(store, DS_USER, &cursor));
        uint64_t seen[2] = {0, 0}, number = 0;
        const void *key;
        size_t size, count = 0;
        ds_value value;
        ds_status status;
        while ((status = ds_cursor_next(cursor, &key, &size, &value)) == DS_OK) {
            CHECK(count < 2 && value.size == sizeof number);
            memcpy(&seen[count++], value.data, sizeof number);
            ds_unpin(&value);
        }
        CHECK_IS(status, DS_MISSING);
        ds_cursor_close(cursor);
        CHECK(count == 0 || count == 2);
        CHECK_EQ(seen[0], seen[1]);
        CHECK(seen[0] >= last);
        last = seen[0];
        walks++;
    }
    check_join(pid);
    CHECK(walks > 0);
    CHECK_OK(ds_close(store));
}

typedef struct endless {
    const char *dir;
    _Atomic uint64_t *puts;
} endless;

/* Large values: nearly all of this process's time is spent under the lock. */
static void put_without_end(void *context) {
    enum { SIZE = 1 << 20 };
    const endless *me = context;
    char *bytes = malloc(SIZE);
    CHECK(bytes);
    memset(bytes, 'x', SIZE);
    ds_store *store = open_store(me->dir);
    for (;;) {
        CHECK_OK(ds_put(store, DS_USER, "large", 5, bytes, SIZE, NULL));
        ++*me->puts;
    }
}

/* I33: a copy that was taken while the lock was held is a store of its own, and nobody holds its lock. */
static void use_a_copy(const char *dir) {
    char *copy = check_format("%s.copy", dir), *command = check_format("cp -a '%s' '%s'", dir, copy);
    CHECK(system(command) == 0);
    ds_options options = options_default();
    options.lock_timeout_ms = 20;
    ds_store *store = open_with(copy, options);
    expect_value(store, "small", "here");
    put(store, "mine", "in the copy");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    check_remove(copy);
    free(copy);
    free(command);
}

/* Stops the writer again and again until it is caught inside its commit. Then: reads answer, writes say TIMEOUT, and
 * when it goes on or dies, the store does too (I4). */
static void i4_a_stopped_writer_blocks_writers_only(const char *parent) {
    char *dir = check_format("%s/store", parent);
    _Atomic uint64_t *puts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(puts != MAP_FAILED);
    ds_store *setup = open_store(dir);
    put(setup, "small", "here");
    CHECK_OK(ds_close(setup));
    ds_options options = options_default();
    options.lock_timeout_ms = 20;
    endless writer = {dir, puts};
    pid_t pid = check_spawn(put_without_end, &writer);
    ds_store *store = open_with(dir, options);
    bool caught = false;
    for (uint64_t seed = 1, round = 0; !caught && round < 100; round++) {
        for (uint64_t before = *puts; *puts < before + 2;)
            usleep(100);
        usleep((useconds_t)check_below(&seed, 1000));
        CHECK(kill(pid, SIGSTOP) == 0);
        int status;
        CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
        expect_value(store, "small", "here");
        ds_status result = ds_put(store, DS_USER, "mine", 4, "1", 1, NULL);
        if (result != DS_OK) {
            CHECK_IS(result, DS_TIMEOUT);
            expect_value(store, "small", "here");
            caught = true;
            CHECK_EQ(stats_of(store).repairs, 0);
            use_a_copy(dir);
        }
        CHECK(kill(pid, SIGCONT) == 0);
    }
    CHECK(caught);
    for (uint64_t before = *puts; *puts < before + 2;)
        usleep(100); /* it goes on, its lock was not stolen */
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitpid(pid, NULL, 0) == pid);
    options.lock_timeout_ms = DS_LOCK_TIMEOUT_MS;
    CHECK_OK(ds_close(store));
    store = open_with(dir, options);
    put(store, "mine", "2");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(dir);
}

/* ---- I5: exec ------------------------------------------------------------------------------------------------------- */

/* What this program becomes after an exec: counts what it still has open below `dir`, then opens the store anew. */
static void live_after_exec(const char *dir) {
    for (int fd = 3; fd < 256; fd++) {
        char link[4096], *name = check_format("/proc/self/fd/%d", fd);
        ssize_t size = readlink(name, link, sizeof link - 1);
        free(name);
        if (size < 0)
            continue;
        link[size] = 0;
        CHECK(strstr(link, dir) == NULL);
    }
    ds_store *store = open_store(dir);
    expect_value(store, "k", "before");
    put(store, "k", "after exec");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

static void exec_with_the_lock_held(void *context) {
    ds_store *store = open_store(context);
    put(store, "k", "before");
    CHECK(pthread_mutex_lock(&store->control->lock.mutex) == 0);
    execl("/proc/self/exe", "test_processes", "--after-exec", (const char *)context, (char *)NULL);
    CHECK(!"exec");
}

/* An exec closes every descriptor of a store, unmaps it, and counts as its owner's death where it held the lock. */
static void i5_exec_leaves_nothing_of_a_store_behind(const char *dir) {
    check_join(check_spawn(exec_with_the_lock_held, (void *)(uintptr_t)dir));
    ds_store *store = open_store(dir);
    expect_value(store, "k", "after exec");
    put(store, "k", "from another process");
    CHECK_OK(ds_close(store));
}

/* LeakSanitizer makes a process of its own at exit(), and that one would land in the new namespace too. */
static void skip_the_leak_checker(void) {
    fflush(NULL);
    _exit(0);
}

static void open_from_another_namespace(void *context) {
    ds_options options = options_default();
    ds_store *store = NULL;
    CHECK_IS(ds_open(context, &options, &store), DS_IN_USE);
    CHECK(strstr(ds_error(), "namespace"));
    skip_the_leak_checker();
}

static void open_from_there_again(void *context) {
    ds_store *store = open_store(context);
    expect_value(store, "k", "here");
    put(store, "k", "there");
    CHECK_OK(ds_close(store));
    skip_the_leak_checker();
}

/* Robust locks know their owners by thread id, which means something else in another container. */
static void another_pid_namespace_is_refused_while_we_are_here(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "here");
    if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
        printf("     (not allowed to make a namespace here)\n");
        CHECK_OK(ds_close(store));
        return;
    }
    /* From here on, every child is in the new namespace; this process stays in the old one. */
    check_join(check_spawn(open_from_another_namespace, (void *)(uintptr_t)dir));
    expect_value(store, "k", "here");
    CHECK_OK(ds_close(store));
    skip_the_leak_checker();
}

static void a_store_that_is_closed_goes_to_another_namespace(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "k", "here");
    CHECK_OK(ds_close(store));
    if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
        printf("     (not allowed to make a namespace here)\n");
        return;
    }
    check_join(check_spawn(open_from_there_again, (void *)(uintptr_t)dir));
    skip_the_leak_checker();
}

typedef struct held {
    const char *dir;
    size_t lock; /* where in the control page */
    _Atomic bool *is;
} held;

static struct ds_lock *lock_of(ds_store *store, size_t at) {
    return (struct ds_lock *)(void *)((char *)store->control + at);
}

static void hold_a_lock(void *context) {
    const held *me = context;
    ds_store *store = open_store(me->dir);
    bool died;
    CHECK_OK(ds__lock_take(lock_of(store, me->lock), "nobody", -1, me->dir, &died));
    *me->is = true;
    for (;;)
        pause();
}

/* I3: the slot names a record whose commit is not done, and who makes it is stopped with the lock in hand. */
static void i3_a_reader_steps_back_over_half_a_commit(const char *dir) {
    ds_store *store = open_store(dir), *other = open_store(dir);
    put(store, "k", "whole");
    uint64_t before = atomic_load(&store->control->committed);
    put(store, "k", "half");
    uint64_t after = atomic_exchange(&store->control->committed, before);
    _Atomic bool *is = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(is != MAP_FAILED);
    held lock = {dir, offsetof(struct ds_control, lock), is};
    pid_t pid = check_spawn(hold_a_lock, &lock);
    while (!*is)
        usleep(100);
    alarm(10); /* seconds; a reader that waits for the lock waits longer */
    ds_cursor *cursor;
    const void *key;
    size_t size;
    ds_value value;
    ds_bytes keys[] = {{"k", 1}};
    expect_value(store, "k", "whole");
    expect_value(other, "k", "whole");
    CHECK_OK(ds_get_many(other, DS_USER, keys, 1, &value));
    CHECK(value.size == 5 && memcmp(value.data, "whole", 5) == 0);
    ds_unpin(&value);
    CHECK_OK(ds_cursor_open(other, DS_USER, &cursor));
    CHECK_OK(ds_cursor_next(cursor, &key, &size, &value));
    CHECK(value.size == 5 && memcmp(value.data, "whole", 5) == 0);
    ds_unpin(&value);
    ds_cursor_close(cursor);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    atomic_store(&store->control->committed, after);
    expect_value(other, "k", "half");
    CHECK_OK(ds_close(other));
    CHECK_OK(ds_close(store));
}

static void expect_timeout(ds_status status, const char *holder, const char *advice) {
    CHECK_IS(status, DS_TIMEOUT);
    const char *last = strrchr(ds_error(), ';');
    if (strstr(ds_error(), holder) == NULL || last == NULL || strstr(last, advice) == NULL ||
        (strcmp(advice, "nothing was written") != 0 && strstr(ds_error(), "nothing was written") != NULL))
        check_fail(__FILE__, __LINE__, "not \"%s ...; ... %s\": %s", holder, advice, ds_error());
}

/* Whatever holds the lock behind a stalled disk, or stopped: the message speaks of it and of what was asked for. */
static void who_waits_too_long_is_told_for_what(const char *dir) {
    static const struct {
        size_t lock;
        const char *holder, *commit, *sync, *compact, *verify; /* what they say after the semicolon; NULL: they go on */
    } cases[] = {
        {offsetof(struct ds_control, lock), "another writer,", "nothing was written", NULL, "compact again",
         "verify again"},
        {offsetof(struct ds_control, compact_lock), " compaction,", NULL, NULL, "compact again", "verify again"},
        {offsetof(struct ds_control, sync_lock), "another sync,", "sync again", "sync again", "compact again", NULL},
    };
    ds_options options = options_default();
    options.lock_timeout_ms = 20;
    ds_store *store = open_with(dir, options);
    options.durability = DS_COMMIT;
    ds_store *durable = open_with(dir, options);
    _Atomic bool *is = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(is != MAP_FAILED);
    for (size_t i = 0; i < CHECK_COUNT(cases); i++) {
        put(store, "k", "not on disk");
        held lock = {dir, cases[i].lock, is};
        *is = false;
        pid_t pid = check_spawn(hold_a_lock, &lock);
        while (!*is)
            usleep(100);
        if (cases[i].commit != NULL)
            expect_timeout(ds_put(durable, DS_USER, "k", 1, "v", 1, NULL), cases[i].holder, cases[i].commit);
        if (cases[i].sync != NULL)
            expect_timeout(ds_sync(store), cases[i].holder, cases[i].sync);
        if (cases[i].verify != NULL)
            expect_timeout(ds_verify(store, NULL), cases[i].holder, cases[i].verify);
        expect_timeout(ds_compact(store), cases[i].holder, cases[i].compact);
        CHECK(kill(pid, SIGKILL) == 0);
        CHECK(waitpid(pid, NULL, 0) == pid);
        CHECK_OK(ds_compact(store));
        CHECK_OK(ds_verify(store, NULL));
    }
    CHECK_OK(ds_close(durable));
    CHECK_OK(ds_close(store));
}

/* Whoever compacts stops for ever: one put waits for it until it has waited long enough, and no other does. When it is dead, the
 * next that is asked compacts, also if only puts that never wait come by. */
static void a_stopped_compaction_delays_one_put(const char *dir) {
    static const char value[4000];
    ds_options options = options_default();
    options.lock_timeout_ms = 50;
    ds_store *store = open_with(dir, options);
    _Atomic bool *is = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(is != MAP_FAILED);
    held lock = {dir, offsetof(struct ds_control, compact_lock), is};
    pid_t pid = check_spawn(hold_a_lock, &lock);
    while (!*is)
        usleep(100);
    for (int i = 0; i < 3000; i++) {
        CHECK_OK(ds_put(store, DS_USER, "k", 1, value, sizeof value, NULL));
        CHECK(stats_of(store).waits <= 1);
    }
    CHECK_EQ(stats_of(store).waits, 1);
    CHECK_OK(ds_close(store));

    store = open_with(dir, options); /* it has not waited yet */
    CHECK_IS(ds_try_put(store, DS_USER, "k", 1, value, sizeof value, NULL), DS_TIMEOUT);
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitpid(pid, NULL, 0) == pid);
    for (int i = 0; ds_try_put(store, DS_USER, "k", 1, value, sizeof value, NULL) != DS_OK; i++) {
        CHECK(i < 100000);
        usleep(100);
    }
    CHECK_EQ(stats_of(store).waits, 1);
    CHECK_OK(ds_close(store));
    munmap((void *)is, 4096);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--after-exec") == 0) {
        live_after_exec(argv[2]);
        return 0;
    }
    static const check_test tests[] = {
        TEST(a_forked_handle_refuses_and_the_parent_goes_on),
        TEST(i5_a_child_closes_a_handle_whose_keeper_waits),
        TEST(a_child_opens_its_own_handle),
        TEST(writers_at_once_lose_and_double_nothing),
        TEST(a_reader_beside_a_writer_never_sees_half_a_batch),
        TEST(i4_a_stopped_writer_blocks_writers_only),
        TEST(i3_a_reader_steps_back_over_half_a_commit),
        TEST(who_waits_too_long_is_told_for_what),
        TEST(a_stopped_compaction_delays_one_put),
        TEST(i5_exec_leaves_nothing_of_a_store_behind),
        TEST(another_pid_namespace_is_refused_while_we_are_here),
        TEST(a_store_that_is_closed_goes_to_another_namespace),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
