/* What the keeper does when nobody asks (csrc/keeper.c): the next try of a compaction that failed, and what a burst left. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

#include "lock.h"
#include "os.h"
#include "store.h"
#include "store_help.h"

static atomic_bool failing;  /* all compactions do */
static atomic_uint failures; /* of them */
static atomic_uint rests;    /* compactions that were begun because the writers rest */
static uint64_t start_then;  /* of the log, when they began to */

ds_status __real_ds__compact(ds_store *store, bool wait, enum ds_compaction how);
ds_status __wrap_ds__compact(ds_store *store, bool wait, enum ds_compaction how);
ds_status __wrap_ds__compact(ds_store *store, bool wait, enum ds_compaction how) {
    rests += how == DS_COMPACT_RESTED;
    if (failing) {
        failures++;
        return ds__fail(DS_IO, EIO, "this one fails");
    }
    return __real_ds__compact(store, wait, how);
}

/* Puts until `enough`, and no further. */
static void overwrite_until(ds_store *store, bool (*enough)(ds_store *)) {
    static const char value[1000];
    while (!enough(store))
        CHECK_OK(ds_put(store, DS_USER, "key", 3, value, sizeof value, NULL));
}

static uint64_t start_of(ds_store *store) {
    return atomic_load(&store->control->start);
}

static void wait_for_start(ds_store *store, uint64_t start) {
    for (unsigned i = 0; start_of(store) < start; i++) {
        CHECK(i < 20000);
        ds__os_sleep_ms(1);
    }
}

static bool is_due(ds_store *store) {
    return ds__compaction_due(store);
}

static void a_compaction_that_failed_is_tried_again(const char *path) {
    ds_store *store = open_store(path);
    ds__spare_stop(store); /* with one, the end of the burst would be an occasion, too */
    failing = true;
    overwrite_until(store, is_due);
    /* The puts may have asked once more than it has looked. */
    for (unsigned i = 0, asked = failures + 1; failures <= asked; i++) {
        CHECK(i < 20000);
        ds__os_sleep_ms(1);
    }
    failing = false;
    wait_for_start(store, store->control->tail.segment_base);
    CHECK_OK(ds_close(store));
}

/* A spare is there, and what is dead is more than a segment, but not due. */
static bool may_rest(ds_store *store) {
    const struct ds_tail *tail = &store->control->tail;
    bool taken, died, may = false;
    CHECK_OK(ds__lock_try(&store->control->compact_lock, "the keeper", "", &taken, &died));
    if (taken) {
        may = !is_due(store) && atomic_load(&store->spare) != NULL && start_of(store) < tail->segment_base &&
              tail->offset - start_of(store) > 2 * tail->live_bytes + tail->segment_size;
        rests = 0;
        start_then = start_of(store);
        ds__lock_release(&store->control->compact_lock);
    }
    return may;
}

static void what_a_burst_left_goes_when_the_writers_rest(const char *path) {
    ds_store *store = open_store(path);
    overwrite_until(store, may_rest);
    wait_for_start(store, start_then + 1);
    CHECK(rests > 0 && atomic_load(&store->spare) == NULL);
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(a_compaction_that_failed_is_tried_again),
        TEST(what_a_burst_left_goes_when_the_writers_rest),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
