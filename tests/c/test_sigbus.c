/* I23: a file that is cut under a live mapping gives a typed error, and the process lives. A fault that is not the
 * store's goes where it went before. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store_help.h"

enum { LARGE = 20000, BLOB = 17 * 1024 * 1024 };

static char large[LARGE];

static void cut(const char *dir, const char *name, off_t to) {
    char *path = check_format("%s/%s", dir, name);
    CHECK(truncate(path, to) == 0);
}

/* The one file whose name begins, or ends, with this. */
static char *file_like(const char *dir, const char *part) {
    DIR *list = opendir(dir);
    CHECK(list);
    char *found = NULL;
    for (struct dirent *entry; (entry = readdir(list));)
        if (strstr(entry->d_name, part))
            found = check_format("%s", entry->d_name);
    closedir(list);
    CHECK(found);
    return found;
}

static ds_store *filled(const char *dir) {
    ds_store *store = open_store(dir);
    memset(large, 'L', sizeof large);
    for (int i = 0; i < 100; i++)
        put(store, check_format("key-%d", i), "value");
    CHECK_OK(ds_put(store, DS_USER, "large", 5, large, sizeof large, NULL));
    return store;
}

static void every_call_fails(ds_store *store) {
    ds_value value;
    ds_cursor *cursor;
    uint64_t sequence;
    ds_bytes key = {"key-7", 5};
    CHECK_IS(ds_get(store, DS_USER, "key-7", 5, &value), DS_CORRUPT);
    CHECK_IS(ds_get(store, DS_USER, "none", 4, &value), DS_CORRUPT);
    CHECK_IS(ds_get_many(store, DS_USER, &key, 1, &value), DS_CORRUPT);
    CHECK_IS(ds_cursor_open(store, DS_USER, &cursor), DS_CORRUPT);
    CHECK_IS(ds_put(store, DS_USER, "key-7", 5, "x", 1, NULL), DS_CORRUPT);
    CHECK_IS(ds_delete(store, DS_USER, "key-7", 5, NULL), DS_CORRUPT);
    CHECK_IS(ds_wait(store, DS_USER, "key-7", 5, false, 0, 1, &sequence), DS_CORRUPT);
    CHECK_IS(ds_sync(store), DS_CORRUPT);
    CHECK_IS(ds_close(store), DS_CORRUPT);
}

static void i23_a_segment_that_is_cut_is_told(const char *dir) {
    ds_store *store = filled(dir);
    ds_value value;
    cut(dir, "0000000000000000.log", 0);
    CHECK_IS(ds_get(store, DS_USER, "key-7", 5, &value), DS_CORRUPT);
    CHECK_IS(ds_get(store, DS_USER, "large", 5, &value), DS_CORRUPT);
    CHECK_IS(ds_put(store, DS_USER, "key-7", 5, "x", 1, NULL), DS_CORRUPT);
    CHECK_IS(ds_sync(store), DS_CORRUPT);
    CHECK_IS(ds_close(store), DS_CORRUPT);
}

/* Cut in the middle of the large value: the small ones before it are still served. */
static void i23_what_was_not_cut_is_served(const char *dir) {
    ds_store *store = filled(dir);
    ds_value value;
    CHECK_OK(ds_put(store, DS_USER, "large too", 9, large, sizeof large, NULL));
    CHECK_OK(ds_get(store, DS_USER, "large too", 9, &value));
    CHECK_OK(ds_value_check(&value));
    uint64_t end = stats_of(store).committed;
    cut(dir, "0000000000000000.log", (off_t)end - LARGE / 2);
    static char copy[LARGE];
    memcpy(copy, value.data, value.size);
    CHECK_IS(ds_value_check(&value), DS_CORRUPT);
    ds_unpin(&value);
    expect_value(store, "key-7", "value");
    CHECK_IS(ds_get(store, DS_USER, "large too", 9, &value), DS_CORRUPT);
    expect_bytes(store, DS_USER, "large", 5, large, sizeof large);
    CHECK_IS(ds_put(store, DS_USER, "new", 3, "x", 1, NULL), DS_CORRUPT);
    expect_value(store, "key-8", "value");
    (void)ds_close(store);
}

/* Wherever the cut is, a large value comes whole or not at all: no zeros, not even in the page that the cut goes through. */
static void i23_no_cut_is_overlooked(const char *dir) {
    for (int back = 1; back < LARGE + 2000; back += 1999) {
        char *path = check_format("%s/%d", dir, back);
        ds_store *store = filled(path);
        ds_value value;
        cut(path, "0000000000000000.log", (off_t)stats_of(store).committed - back);
        CHECK_IS(ds_get(store, DS_USER, "large", 5, &value), DS_CORRUPT);
        (void)ds_close(store);
    }
}

/* Only the place of the next frame is gone: the commit must not return as if it were safe. */
static void a_commit_into_a_cut_segment_fails(const char *dir) {
    ds_store *store = filled(dir);
    cut(dir, "0000000000000000.log", (off_t)stats_of(store).committed);
    CHECK_IS(ds_put(store, DS_USER, "new", 3, large, sizeof large, NULL), DS_CORRUPT);
    expect_value(store, "key-7", "value");
    (void)ds_close(store);
}

/* Where a commit is about to be written (ld --wrap): all that can fail before has not. */
static const char *cut_index_of;

void __real_ds__os_populate(void *address, uint64_t size);
void __wrap_ds__os_populate(void *address, uint64_t size);
void __wrap_ds__os_populate(void *address, uint64_t size) {
    __real_ds__os_populate(address, size);
    if (cut_index_of != NULL)
        cut(cut_index_of, file_like(cut_index_of, "index."), 0);
    cut_index_of = NULL;
}

/* Its frame is whole in the log, and will be found there: so what it names must stay, whatever the call said. */
static void a_large_value_survives_its_index(const char *dir) {
    ds_store *store = open_store(dir);
    char *value = calloc(1, BLOB);
    CHECK(value);
    put(store, "key", "before");
    CHECK_OK(ds_close(store));
    store = open_store(dir); /* populates with its first commit */
    cut_index_of = dir;
    CHECK_IS(ds_put(store, DS_USER, "key", 3, value, BLOB, NULL), DS_CORRUPT);
    CHECK(cut_index_of == NULL);
    CHECK_IS(ds_close(store), DS_CORRUPT);
    store = open_store(dir); /* rebuilt from the log */
    expect_bytes(store, DS_USER, "key", 3, value, BLOB);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    free(value);
}

static void an_index_that_is_cut_is_told(const char *dir) {
    ds_store *store = filled(dir);
    cut(dir, file_like(dir, "index."), 0);
    every_call_fails(store);
    store = open_store(dir); /* nobody holds it: it is rebuilt */
    (void)ds_close(store);
}

/* Slots in the page that the cut goes through are zeroed without a signal. */
static void a_slot_that_is_cut_off_is_no_missing_key(const char *dir) {
    for (off_t at = 64; at < 64 + 1024 * 8; at += 1000) {
        char *path = check_format("%s/%lld", dir, (long long)at);
        ds_store *store = filled(path);
        cut(path, file_like(path, "index."), at);
        for (int i = 0; i < 100; i++) {
            ds_value value;
            const char *key = check_format("key-%d", i);
            ds_status status = ds_get(store, DS_USER, key, strlen(key), &value);
            if (status == DS_OK)
                ds_unpin(&value);
            else
                CHECK_IS(status, DS_CORRUPT);
        }
        (void)ds_close(store);
    }
}

static void a_control_page_that_is_cut_is_told(const char *dir) {
    ds_store *store = filled(dir);
    cut(dir, "control", 0);
    every_call_fails(store);
    store = open_store(dir);
    expect_value(store, "key-7", "value");
    CHECK_OK(ds_close(store));
}

static void a_blob_that_is_cut_is_told(const char *dir) {
    ds_store *store = open_store(dir);
    char *bytes = malloc(BLOB);
    CHECK(bytes);
    memset(bytes, 'B', BLOB);
    ds_value value;
    CHECK_OK(ds_put(store, DS_USER, "blob", 4, bytes, BLOB, NULL));
    CHECK_OK(ds_get(store, DS_USER, "blob", 4, &value));
    cut(dir, file_like(dir, ".blob"), BLOB / 2);
    memcpy(bytes, value.data, value.size);
    CHECK(bytes[0] == 'B' && bytes[BLOB - 1] == 0);
    CHECK_IS(ds_value_check(&value), DS_CORRUPT);
    ds_unpin(&value);
    CHECK_IS(ds_get(store, DS_USER, "blob", 4, &value), DS_CORRUPT);
    put(store, "other", "works");
    CHECK_OK(ds_close(store));
    free(bytes);
}

/* ---- many threads ---------------------------------------------------------------------------------------------- */

static void *read_all(void *context) {
    ds_store *store = context;
    for (int round = 0; round < 200; round++)
        for (int i = 0; i < 100; i++) {
            ds_value value;
            char key[16];
            snprintf(key, sizeof key, "key-%d", i);
            ds_status status = ds_get(store, DS_USER, key, strlen(key), &value);
            if (status != DS_OK) {
                CHECK_IS(status, DS_CORRUPT);
                continue;
            }
            CHECK(value.size == 5);
            ds_unpin(&value);
        }
    return NULL;
}

/* Threads that read, one that cuts, and one that maps and unmaps all the time. */
static void threads_may_fault_together(const char *dir) {
    ds_store *store = filled(dir);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, read_all, store) == 0);
    char *other = check_format("%s/other", dir);
    for (int i = 0; i < 50; i++) {
        ds_store *busy = open_store(other);
        CHECK_OK(ds_close(busy));
        if (i == 10)
            cut(dir, "0000000000000000.log", 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    (void)ds_close(store);
}

/* More ranges than one part of the list holds, and used again. */
static void there_is_room_for_many_ranges(const char *dir) {
    enum { STORES = 120 };
    ds_store *stores[STORES];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < STORES; i++)
            stores[i] = open_store(check_format("%s/%d", dir, i));
        for (int i = 0; i < STORES; i++) {
            ds_value value;
            if (round == 1) {
                cut(check_format("%s/%d", dir, i), "control", 0);
                CHECK_IS(ds_get(stores[i], DS_USER, "a", 1, &value), DS_CORRUPT);
            }
            (void)ds_close(stores[i]);
        }
    }
}

/* ---- faults of others ------------------------------------------------------------------------------------------ */

static void *mapping_without_a_file_behind(const char *dir) {
    int fd = open(check_format("%s/alien", dir), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    void *bytes = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(bytes != MAP_FAILED && ftruncate(fd, 0) == 0);
    close(fd);
    return bytes;
}

static void fault_elsewhere(void *context) {
    volatile const char *bytes = context;
    (void)*bytes;
}

static void get_a_signal(void *context) {
    (void)context;
    raise(SIGBUS);
}

static void dies_of_sigbus(void (*role)(void *), void *context) {
    int how;
    pid_t pid = check_spawn(role, context);
    CHECK(waitpid(pid, &how, 0) == pid);
    CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGBUS);
}

static void a_fault_elsewhere_kills_as_ever(const char *dir) {
    signal(SIGBUS, SIG_DFL); /* sanitizers have a handler of their own */
    ds_store *store = filled(check_format("%s/store", dir));
    dies_of_sigbus(fault_elsewhere, mapping_without_a_file_behind(dir));
    dies_of_sigbus(get_a_signal, NULL);
    CHECK_OK(ds_close(store));
}

static void *volatile seen_at; /* set by a signal handler */

static void note_and_mend(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    seen_at = info->si_addr;
    CHECK(mmap(info->si_addr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
}

static void a_handler_that_was_there_gets_what_is_not_ours(const char *dir) {
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    action.sa_sigaction = note_and_mend;
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    ds_store *store = filled(check_format("%s/store", dir));
    char *alien = mapping_without_a_file_behind(dir);
    fault_elsewhere(alien);
    CHECK(seen_at == alien);
    seen_at = NULL;
    cut(check_format("%s/store", dir), "control", 0);
    every_call_fails(store);
    CHECK(seen_at == NULL);
}

/* A SIGBUS that is blocked kills, whatever handler there is. */
static void i23_no_thread_blocks_the_signal(const char *dir) {
    ds_options options = options_default();
    options.durability = DS_GROUP;
    options.group_ms = 1;
    ds_store *store = open_with(dir, options);
    put(store, "key", "value");
    while (stats_of(store).synced < stats_of(store).committed) /* by the keeper, which is on its way by then */
        usleep(1000);
    DIR *threads = opendir("/proc/self/task");
    CHECK(threads);
    int seen = 0;
    for (struct dirent *entry; (entry = readdir(threads)) != NULL;) {
        FILE *status =
            entry->d_name[0] == '.' ? NULL : fopen(check_format("/proc/self/task/%s/status", entry->d_name), "r");
        char line[256];
        unsigned long long blocked;
        while (status && fgets(line, sizeof line, status))
            if (sscanf(line, "SigBlk: %llx", &blocked) == 1) {
                CHECK((blocked >> (SIGBUS - 1) & 1) == 0);
                seen++;
            }
        if (status)
            fclose(status);
    }
    closedir(threads);
    CHECK(seen >= 2);
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(i23_a_segment_that_is_cut_is_told),
        TEST(i23_what_was_not_cut_is_served),
        TEST(i23_no_cut_is_overlooked),
        TEST(a_commit_into_a_cut_segment_fails),
        TEST(a_large_value_survives_its_index),
        TEST(an_index_that_is_cut_is_told),
        TEST(a_slot_that_is_cut_off_is_no_missing_key),
        TEST(a_control_page_that_is_cut_is_told),
        TEST(a_blob_that_is_cut_is_told),
        TEST(threads_may_fault_together),
        TEST(i23_no_thread_blocks_the_signal),
        TEST(there_is_room_for_many_ranges),
        TEST(a_fault_elsewhere_kills_as_ever),
        TEST(a_handler_that_was_there_gets_what_is_not_ours),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
