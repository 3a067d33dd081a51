/* A segment that was made ahead (csrc/spare.c): it becomes the next one, leaves nothing behind where it does not, and is
 * not missed where it cannot be made. The keeper is kept out (ld --wrap), so that each step comes when it is asked for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "os.h"
#include "store.h"
#include "store_help.h"

enum { SIZE = 2 * DS_SEGMENT_MIN, VALUE = 1000 };

void __wrap_ds__keeper_ask(ds_store *store);
void __wrap_ds__keeper_ask(ds_store *store) {
    (void)store;
}

static ds_store *open_with_spare(const char *path, uint64_t size) {
    ds_store *store = open_store(path);
    ds__spare_want(store, size);
    ds__spare_make(store);
    return store;
}

/* Puts until the next segment has begun; how many keys there are then. */
static unsigned fill(ds_store *store, unsigned first) {
    static char value[VALUE];
    uint64_t base = store->control->tail.segment_base;
    char key[16];
    for (; store->control->tail.segment_base == base; first++) {
        snprintf(key, sizeof key, "k%u", first);
        memset(value, (int)first, sizeof value);
        CHECK_OK(ds_put(store, DS_USER, key, strlen(key), value, sizeof value, NULL));
    }
    return first;
}

static void check_keys(ds_store *store, unsigned count) {
    static char value[VALUE];
    char key[16];
    CHECK_EQ(stats_of(store).keys[DS_USER], count);
    for (unsigned i = 0; i < count; i++) {
        snprintf(key, sizeof key, "k%u", i);
        memset(value, (int)i, sizeof value);
        expect_bytes(store, DS_USER, key, strlen(key), value, sizeof value);
    }
    CHECK_OK(ds_verify(store, NULL));
}

static void reopen_and_check(ds_store *store, const char *path, unsigned keys) {
    check_keys(store, keys);
    CHECK_OK(ds_close(store));
    store = open_store(path);
    check_keys(store, keys);
    CHECK_OK(ds_close(store));
    char *control = check_format("%s/control", path); /* from the log alone */
    CHECK(unlink(control) == 0);
    free(control);
    store = open_store(path);
    check_keys(store, keys);
    CHECK_OK(ds_close(store));
}

static void it_becomes_the_next_segment(const char *path) {
    unsigned descriptors = check_entries("/proc/self/fd");
    ds_store *store = open_store(path);
    unsigned before = check_entries(path), open = check_entries("/proc/self/fd");
    ds__spare_want(store, SIZE);
    CHECK(ds__spare_wanted(store));
    ds__spare_make(store);
    CHECK(!ds__spare_wanted(store) && store->spare != NULL);
    CHECK_EQ(check_entries(path), before); /* it has no name */
    unsigned keys = fill(store, 0);
    CHECK(store->spare == NULL);
    CHECK_EQ(store->control->tail.segment_size, SIZE);
    CHECK_EQ(check_entries(path), before + 1);
    CHECK_EQ(check_entries("/proc/self/fd"), open);
    reopen_and_check(store, path, fill(store, keys));
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
}

static void one_that_is_not_used_leaves_nothing(const char *path) {
    unsigned descriptors = check_entries("/proc/self/fd");
    ds_store *store = open_with_spare(path, SIZE);
    CHECK(store->spare != NULL);
    CHECK(!ds__spare_tidy(store) && store->spare != NULL); /* not yet */
    CHECK_OK(ds_close(store));
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
}

static void one_that_is_far_too_large_is_given_back(const char *path) {
    ds_store *store = open_with_spare(path, 16 * DS_SEGMENT_MIN);
    put(store, "key", "value");
    CHECK_OK(ds_compact(store)); /* into a small one */
    CHECK(store->spare == NULL && store->control->tail.segment_size == DS_SEGMENT_MIN);
    expect_value(store, "key", "value");
    CHECK_OK(ds_close(store));
}

static void one_that_is_too_small_is_given_back(const char *path) {
    ds_store *store = open_with_spare(path, DS_SEGMENT_MIN);
    char *big = calloc(1, 2 * DS_SEGMENT_MIN);
    CHECK_OK(ds_put(store, DS_USER, "big", 3, big, 2 * DS_SEGMENT_MIN, NULL));
    expect_bytes(store, DS_USER, "big", 3, big, 2 * DS_SEGMENT_MIN);
    free(big);
    CHECK(store->spare == NULL && store->control->tail.segment_size > 2 * DS_SEGMENT_MIN);
    CHECK_OK(ds_close(store));
}

/* What a dead writer renamed into place, or a stranger put there: the spare does not replace it, a made segment does. */
static void its_name_may_be_taken(const char *path) {
    ds_store *store = open_with_spare(path, SIZE);
    char name[DS_NAME_SIZE];
    ds__segment_name(store->control->tail.segment_base + store->control->tail.segment_size, name);
    char *taken = check_format("%s/%s", path, name);
    FILE *file = fopen(taken, "w");
    CHECK(file && fputs("not a segment", file) >= 0 && fclose(file) == 0);
    free(taken);
    unsigned keys = fill(store, 0);
    CHECK(store->spare == NULL);
    reopen_and_check(store, path, keys);
}

/* It would be in the way of deletes and of compaction. */
static void there_is_none_after_the_disk_was_full(const char *path) {
    ds_store *store = open_with_spare(path, SIZE);
    CHECK(store->spare != NULL);
    char *big = calloc(1, 4 * DS_SEGMENT_MIN);
    CHECK(big);
    ds__os_fault_arm(1, ENOSPC, true);
    CHECK_IS(ds_put(store, DS_USER, "big", 3, big, 4 * DS_SEGMENT_MIN, NULL), DS_FULL);
    ds__os_fault_arm(0, 0, false);
    free(big);
    CHECK(store->spare == NULL);
    ds__spare_want(store, SIZE);
    ds__spare_make(store);
    CHECK(store->spare == NULL);
    reopen_and_check(store, path, fill(store, 0));
}

/* Each call of making and of taking one, failing alone and with all that follow until the segment would be there. */
static void it_is_not_missed_when_a_call_fails(const char *path) {
    unsigned descriptors = check_entries("/proc/self/fd"), made = 0;
    for (uint64_t at = 1;; at++) {
        ds_store *store = open_store(path);
        ds__spare_want(store, SIZE);
        ds__os_fault_arm(at, EMFILE, false);
        ds__spare_make(store);
        uint64_t calls = ds__os_fault_arm(0, 0, false);
        made += store->spare != NULL;
        CHECK((store->spare != NULL) == (calls < at));
        ds__os_fault_arm(calls < at ? at - calls : 0, EMFILE, false);
        unsigned keys = fill(store, 0);
        calls = ds__os_fault_arm(0, 0, false);
        reopen_and_check(store, path, keys);
        check_remove(path);
        CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
        if (made > 0 && at > 20)
            break;
    }
    CHECK(made > 0);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(it_becomes_the_next_segment),
        TEST(one_that_is_not_used_leaves_nothing),
        TEST(one_that_is_too_small_is_given_back),
        TEST(one_that_is_far_too_large_is_given_back),
        TEST(its_name_may_be_taken),
        TEST(there_is_none_after_the_disk_was_full),
        TEST(it_is_not_missed_when_a_call_fails),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
