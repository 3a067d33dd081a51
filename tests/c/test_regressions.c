/* Bugs that other stores had, as tests of this one; tests/REGRESSIONS.md lists all of them, and where the others are held. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store.h"
#include "store_help.h"

static void reboot(const char *path) {
    char *command = check_format("rm -f '%s/control' '%s'/index.*", path, path);
    CHECK(system(command) == 0);
    free(command);
}

/* ---- bitcask#82, bitcask PR 148: what was deleted came back after a partial merge --------------------------------------- */

static void put_and_delete_a_lot(ds_store *store, unsigned round) {
    char key[16];
    for (unsigned i = 0; i < 400; i++) {
        size_t size = (size_t)snprintf(key, sizeof key, "%u", i % 40);
        static char value[2000];
        CHECK_OK(ds_put(store, DS_USER, key, size, value, sizeof value, NULL));
        if (i % 40 % 3 == round % 3)
            CHECK_OK(ds_delete(store, DS_USER, key, size, NULL));
    }
}

static void delete_compact_and_die(void *context) {
    ds_store *store = open_store(context);
    CHECK_OK(ds_delete(store, DS_USER, "ghost", 5, NULL));
    put_and_delete_a_lot(store, 0);
    CHECK_OK(ds__compact(store, true, DS_COMPACT_DUE));
    raise(SIGKILL);
}

static void i18_a_deleted_key_stays_deleted(const char *dir) {
    char *path = check_format("%s/store", dir);
    for (unsigned round = 0; round < 12; round++) {
        ds_store *store = open_store(path);
        put(store, "ghost", "boo");
        put_and_delete_a_lot(store, round);
        CHECK_OK(ds_close(store));
        pid_t pid = check_spawn(delete_compact_and_die, path);
        int how;
        CHECK(waitpid(pid, &how, 0) == pid && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        static const enum ds_compaction kinds[] = {DS_COMPACT_DUE, DS_COMPACT_ALL, DS_COMPACT_TIGHTLY};
        for (unsigned step = 0; step < 6; step++) {
            if ((round + step) % 2)
                reboot(path);
            store = open_store(path);
            expect_value(store, "ghost", NULL);
            CHECK_OK(ds__compact(store, true, kinds[step % 3]));
            put_and_delete_a_lot(store, round + step);
            expect_value(store, "ghost", NULL);
            CHECK_OK(ds_close(store));
        }
    }
}

/* ---- bitcask#136: a newest file without a byte ------------------------------------------------------------------------- */

static void fill_and_die(void *context) {
    ds_store *store = open_store(context);
    put(store, "k", "before the power went");
    CHECK_OK(ds_sync(store));
}

/* The name of the next segment reached the disk, its size did not. */
static void a_newest_segment_of_no_length_is_a_torn_end(const char *dir) {
    for (unsigned length = 0; length <= 200; length += 100) {
        char *path = check_format("%s/%u", dir, length);
        check_join(check_spawn(fill_and_die, path));
        char *next = check_format("%s/%016x.log", path, DS_SEGMENT_MIN);
        int fd = open(next, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        CHECK(fd >= 0 && ftruncate(fd, (off_t)length) == 0);
        close(fd);
        reboot(path);
        for (int i = 0; i < 2; i++) {
            ds_store *store = open_store(path);
            expect_value(store, "k", "before the power went");
            put(store, "and", "it goes on");
            CHECK_OK(ds_verify(store, NULL));
            CHECK_OK(ds_close(store));
            reboot(path);
        }
    }
}

/* ---- bitcask#226: the id of a dead process names another ---------------------------------------------------------------- */

static void take_the_lock_and_die(void *context) {
    ds_store *store = open_store(context);
    put(store, "k", "1");
    CHECK(pthread_mutex_lock(&store->control->lock.mutex) == 0);
    raise(SIGKILL);
}

/* A child with this very process id; -1 if we may not choose. */
static pid_t fork_as(pid_t id) {
    struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&id, .set_tid_size = 1};
    fflush(NULL);
    return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

static void a_process_id_may_come_again(const char *dir) {
    char *path = check_format("%s/store", dir);
    pid_t dead = check_spawn(take_the_lock_and_die, path);
    CHECK(waitpid(dead, NULL, 0) == dead);
    pid_t heir = fork_as(dead);
    if (heir < 0) {
        printf("     (not allowed to choose a process id: %s)\n", strerror(errno));
        return;
    }
    if (heir == 0) {
        ds_store *store = open_store(path);
        expect_value(store, "k", "1");
        put(store, "k", "2");
        CHECK_OK(ds_close(store));
        _exit(0);
    }
    CHECK(heir == dead);
    check_join(heir);
    ds_store *store = open_store(path);
    expect_value(store, "k", "2");
    CHECK_OK(ds_close(store));
}

/* ---- py-lmdb#269: two processes grow the same thing ---------------------------------------------------------------------- */

enum { NEW_KEYS = 6000 };

static void put_new_keys(const char *path, char first) {
    ds_store *store = open_store(path);
    char key[16];
    for (unsigned i = 0; i < NEW_KEYS; i++) {
        size_t size = (size_t)snprintf(key, sizeof key, "%c%u", first, i);
        CHECK_OK(ds_put(store, DS_USER, key, size, key, size, NULL));
    }
    CHECK_OK(ds_close(store));
}

static void put_a_keys(void *context) {
    put_new_keys(context, 'a');
}

static void put_b_keys(void *context) {
    put_new_keys(context, 'b');
}

static void two_processes_grow_the_index(const char *dir) {
    char *path = check_format("%s/store", dir), key[16];
    ds_store *store = open_store(path);
    uint64_t generation = store->control->generation;
    pid_t a = check_spawn(put_a_keys, path), b = check_spawn(put_b_keys, path);
    check_join(a);
    check_join(b);
    CHECK(store->control->generation > generation + 2);
    for (unsigned i = 0; i < NEW_KEYS; i++)
        for (const char *first = "ab"; *first; first++) {
            size_t size = (size_t)snprintf(key, sizeof key, "%c%u", *first, i);
            expect_bytes(store, DS_USER, key, size, key, size);
        }
    CHECK_OK(ds_close(store));
}

/* ---- SQLite, "How to corrupt": a close drops the locks of others, a stray write to descriptor 2 -------------------------- */

static void is_refused_to_repair(void *context) {
    CHECK_IS(ds_repair(context, NULL), DS_IN_USE);
}

static void a_close_keeps_the_locks_of_other_handles(const char *dir) {
    char *path = check_format("%s/store", dir);
    ds_store *kept = open_store(path), *closed = open_store(path);
    put(kept, "k", "v");
    CHECK_OK(ds_close(closed));
    int fd =
        open(check_format("%s/control", path), O_RDONLY | O_CLOEXEC); /* as a backup program in this process would */
    CHECK(fd >= 0);
    close(fd);
    check_join(check_spawn(is_refused_to_repair, path));
    CHECK_OK(ds_close(kept));
}

static void open_without_standard_streams(void *context) {
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    ds_store *store = open_store(context);
    put(store, "k", "v");
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) >= 0 || write(fd, "a message that a library prints\n", 32) >= 0)
            _exit(2);
    expect_value(store, "k", "v");
    CHECK_OK(ds_close(store));
}

static void no_file_of_a_store_becomes_standard_error(const char *dir) {
    char *path = check_format("%s/store", dir);
    check_join(check_spawn(open_without_standard_streams, path));
    ds_store *store = open_store(path);
    expect_value(store, "k", "v");
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
}

/* ---- glibc BZ 14485: the list of robust locks, after one of them was unmapped ------------------------------------------- */

static void close_some_and_die_in_another(void *context) {
    const char *dir = context;
    for (int i = 0; i < 50; i++) {
        ds_store *store = open_store(check_format("%s/closed-%d", dir, i % 5));
        put(store, "k", "v");
        CHECK_OK(ds_close(store));
    }
    ds_store *store = open_store(check_format("%s/store", dir));
    CHECK(pthread_mutex_lock(&store->control->lock.mutex) == 0);
    raise(SIGKILL);
}

static void a_death_is_told_also_after_other_stores_were_closed(const char *dir) {
    pid_t pid = check_spawn(close_some_and_die_in_another, (void *)(uintptr_t)dir);
    int how;
    CHECK(waitpid(pid, &how, 0) == pid && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    ds_store *store = open_store(check_format("%s/store", dir));
    put(store, "k", "nobody holds the lock");
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i18_a_deleted_key_stays_deleted),
        TEST(a_newest_segment_of_no_length_is_a_torn_end),
        TEST(a_process_id_may_come_again),
        TEST(two_processes_grow_the_index),
        TEST(a_close_keeps_the_locks_of_other_handles),
        TEST(no_file_of_a_store_becomes_standard_error),
        TEST(a_death_is_told_also_after_other_stores_were_closed),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
