/* Several keys at one point, the commits in their order, waiting for a commit, compaction on demand. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "store.h"
#include "store_help.h"

static uint64_t put_number(ds_store *store, const char *key, unsigned number) {
    char value[16];
    snprintf(value, sizeof value, "%u", number);
    return put(store, key, value);
}

/* The next change must be this one. */
static uint64_t expect_change(ds_changes *changes, ds_change_kind kind, const char *key, const char *value, bool last) {
    ds_change_told told;
    CHECK_OK(ds_changes_next(changes, &told));
    CHECK_EQ(told.kind, kind);
    CHECK_EQ(told.key_size, strlen(key));
    CHECK(memcmp(told.key, key, told.key_size) == 0);
    CHECK_EQ(told.last, last);
    if (kind == DS_PUT) {
        CHECK_EQ(told.value.size, strlen(value));
        CHECK(memcmp(told.value.data, value, told.value.size) == 0);
        ds_unpin(&told.value);
    } else {
        CHECK(told.value.owner == NULL);
    }
    return told.sequence;
}

static void changes_come_in_commit_order(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t first = put(store, "a", "1");
    ds_change batch[] = {change_put("b", "2"), change_put("c", "3")};
    batch[1].keyspace = DS_RUNTIME;
    uint64_t second;
    CHECK_OK(ds_commit(store, batch, 2, &second));
    CHECK_OK(ds_delete(store, DS_USER, "a", 1, NULL));
    ds_changes *changes;
    CHECK_OK(ds_changes_open(store, DS_USER, 0, &changes));
    CHECK_EQ(expect_change(changes, DS_PUT, "a", "1", true), first);
    CHECK_EQ(expect_change(changes, DS_PUT, "b", "2", true), second); /* the other record is of another keyspace */
    CHECK_EQ(expect_change(changes, DS_DELETE, "a", NULL, true), second + 1);
    ds_change_told told;
    CHECK_IS(ds_changes_next(changes, &told), DS_MISSING);
    put(store, "d", "4");
    CHECK_EQ(expect_change(changes, DS_PUT, "d", "4", true), second + 2);
    ds_changes_close(changes);
    CHECK_OK(ds_changes_open(store, DS_USER, second, &changes));
    CHECK_EQ(expect_change(changes, DS_DELETE, "a", NULL, true), second + 1);
    ds_changes_close(changes);
    CHECK_OK(ds_close(store));
}

static void changes_cross_segments_and_end_in_compacted(const char *dir) {
    ds_store *store = open_store(dir);
    enum { PUTS = 5000 };
    uint64_t early = put_number(store, "k", 0);
    for (unsigned i = 1; i < PUTS; i++)
        put_number(store, "k", i);
    ds_changes *changes;
    ds_status status = ds_changes_open(store, DS_USER, 0, &changes);
    if (status == DS_OK) { /* unless the keeper was fast */
        unsigned told_count = 0;
        ds_change_told told;
        while ((status = ds_changes_next(changes, &told)) == DS_OK) {
            CHECK_EQ(told.sequence, early + told_count++);
            ds_unpin(&told.value);
        }
        CHECK(status == DS_COMPACTED || told_count == PUTS);
        ds_changes_close(changes);
    }
    CHECK_OK(ds_compact(store));
    CHECK_IS(ds_changes_open(store, DS_USER, early, &changes), DS_COMPACTED);
    /* The newest commit is a sequence that nothing after was compacted of. */
    CHECK_OK(ds_changes_open(store, DS_USER, early + PUTS - 1, &changes));
    ds_change_told told;
    CHECK_IS(ds_changes_next(changes, &told), DS_MISSING);
    CHECK_EQ(put_number(store, "k", PUTS), early + PUTS);
    CHECK_OK(ds_changes_next(changes, &told));
    CHECK_EQ(told.sequence, early + PUTS);
    ds_unpin(&told.value);
    ds_changes_close(changes);
    CHECK_OK(ds_close(store));
}

static void put_and_die(void *dir) {
    char value[1000] = "busy";
    ds_store *store = open_store(dir);
    put(store, "still", "here");
    for (unsigned i = 0; i < 70; i++) /* the first segment holds 60 of them */
        CHECK_OK(ds_put(store, DS_USER, "busy", 4, value, sizeof value, NULL));
}

/* After an unclean end the next sequence is far ahead of the last commit's, and until there is a next commit the frames of
 * compaction carry it: they tell of no commit all the same. */
static void what_compaction_moves_is_no_change(const char *dir) {
    setenv("DORA_STATE_BOOT_ID", "11111111-1111-1111-1111-111111111111", 1);
    check_join(check_spawn(put_and_die, (void *)(uintptr_t)dir));
    setenv("DORA_STATE_BOOT_ID", "22222222-2222-2222-2222-222222222222", 1);
    ds_store *store = open_store(dir);
    ds_value busy;
    CHECK_OK(ds_get(store, DS_USER, "busy", 4, &busy));
    uint64_t last = busy.sequence;
    ds_unpin(&busy);
    ds_changes *early, *late;
    ds_change_told told;
    CHECK_OK(ds_changes_open(store, DS_USER, last, &early));
    CHECK_OK(ds__compact(store, true, DS_COMPACT_TIGHTLY)); /* into the last segment */
    CHECK(stats_of(store).relocated_bytes > 0 && stats_of(store).sequence > last);
    CHECK_OK(ds_changes_open(store, DS_USER, last, &late));
    CHECK_IS(ds_changes_next(early, &told), DS_MISSING);
    CHECK_IS(ds_changes_next(late, &told), DS_MISSING);
    uint64_t sequence = put(store, "new", "1");
    CHECK_EQ(expect_change(early, DS_PUT, "new", "1", true), sequence);
    CHECK_EQ(expect_change(late, DS_PUT, "new", "1", true), sequence);
    ds_changes_close(early);
    ds_changes_close(late);
    CHECK_OK(ds_close(store));
}

static void compact_on_demand_keeps_what_is_live(const char *dir) {
    ds_store *store = open_store(dir);
    char key[16];
    for (unsigned round = 0; round < 20; round++)
        for (unsigned i = 0; i < 300; i++) {
            snprintf(key, sizeof key, "k%u", i);
            put_number(store, key, round * 1000 + i);
        }
    for (unsigned i = 0; i < 300; i += 2) {
        snprintf(key, sizeof key, "k%u", i);
        CHECK_OK(ds_delete(store, DS_USER, key, strlen(key), NULL));
    }
    uint64_t sequence = stats_of(store).sequence;
    CHECK_OK(ds_compact(store));
    CHECK_OK(ds_compact(store)); /* with nothing to do */
    ds_stats stats = stats_of(store);
    CHECK_EQ(stats.sequence, sequence);
    CHECK_EQ(stats.keys[DS_USER], 150);
    CHECK(stats.log_bytes <= 2 * stats.live_bytes + 4 * 65536);
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    store = open_store(dir);
    char value[16];
    for (unsigned i = 0; i < 300; i++) {
        snprintf(key, sizeof key, "k%u", i);
        snprintf(value, sizeof value, "%u", 19000 + i);
        expect_value(store, key, i % 2 ? value : NULL);
    }
    CHECK_OK(ds_close(store));
}

/* ---- several keys ---------------------------------------------------------------------------------------------- */

enum { GROUP = 8, BATCHES = 4000 };

static void write_groups(void *dir) {
    ds_store *store = open_store(dir);
    for (unsigned i = 1; i <= BATCHES; i++) {
        ds_change changes[GROUP];
        char keys[GROUP][8], value[16];
        snprintf(value, sizeof value, "%u", i);
        for (int k = 0; k < GROUP; k++) {
            snprintf(keys[k], sizeof keys[k], "g%d", k);
            changes[k] = change_put(keys[k], value);
        }
        CHECK_OK(ds_commit(store, changes, GROUP, NULL));
    }
    CHECK_OK(ds_close(store));
}

static void i16_many_keys_are_read_at_one_point(const char *dir) {
    ds_store *store = open_store(dir);
    put(store, "g0", "0");
    char names[GROUP][8];
    ds_bytes keys[GROUP + 1];
    for (int k = 0; k < GROUP; k++) {
        snprintf(names[k], sizeof names[k], "g%d", k);
        keys[k] = (ds_bytes){names[k], strlen(names[k])};
    }
    keys[GROUP] = (ds_bytes){"missing", 7};
    pid_t writer = check_spawn(write_groups, (void *)(uintptr_t)dir);
    unsigned last = 0;
    while (last < BATCHES) {
        ds_value values[GROUP + 1];
        CHECK_OK(ds_get_many(store, DS_USER, keys, GROUP + 1, values));
        CHECK(values[GROUP].owner == NULL);
        if (values[1].owner != NULL) {
            unsigned seen =
                (unsigned)strtoul(check_format("%.*s", (int)values[0].size, (const char *)values[0].data), NULL, 10);
            for (int k = 1; k < GROUP; k++)
                CHECK(values[k].owner && values[k].size == values[0].size &&
                      memcmp(values[k].data, values[0].data, values[0].size) == 0);
            CHECK(seen >= last);
            last = seen;
        }
        for (int k = 0; k < GROUP; k++)
            if (values[k].owner != NULL)
                ds_unpin(&values[k]);
    }
    check_join(writer);
    CHECK_OK(ds_close(store));
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static void echo(void *dir) {
    ds_store *store = open_store(dir);
    uint64_t seen = 0;
    for (unsigned i = 1; i <= 1000; i++) {
        CHECK_OK(ds_wait(store, DS_USER, "ping", 4, false, seen, 10000, &seen));
        put_number(store, "pong", i);
    }
    CHECK_OK(ds_close(store));
}

static void waiters_wake_in_other_processes(const char *dir) {
    ds_store *store = open_store(dir);
    pid_t other = check_spawn(echo, (void *)(uintptr_t)dir);
    uint64_t seen = 0;
    for (unsigned i = 1; i <= 1000; i++) {
        put_number(store, "ping", i);
        CHECK_OK(ds_wait(store, DS_USER, "pong", 4, false, seen, 10000, &seen));
    }
    check_join(other);
    CHECK_OK(ds_close(store));
}

static void a_wait_ends_by_delete_prefix_or_time(const char *dir) {
    ds_store *store = open_store(dir);
    uint64_t sequence = put(store, "pose/x", "1"), seen;
    CHECK_OK(ds_wait(store, DS_USER, "pose/x", 6, false, 0, 0, &seen));
    CHECK_EQ(seen, sequence);
    CHECK_IS(ds_wait(store, DS_USER, "pose/x", 6, false, sequence, 5, NULL), DS_TIMEOUT);
    CHECK_OK(ds_wait(store, DS_USER, "pose/", 5, true, 0, 0, &seen));
    CHECK_IS(ds_wait(store, DS_USER, "pose/", 5, true, sequence, 5, NULL), DS_TIMEOUT);
    put(store, "other", "1");
    CHECK_IS(ds_wait(store, DS_USER, "pose/", 5, true, sequence, 5, NULL), DS_TIMEOUT);
    CHECK_OK(ds_delete(store, DS_USER, "pose/x", 6, NULL));
    CHECK_OK(ds_wait(store, DS_USER, "pose/x", 6, false, sequence, 0, &seen));
    CHECK_EQ(seen, sequence + 2);
    CHECK_OK(ds_wait(store, DS_USER, "pose/", 5, true, sequence, 0, &seen));
    CHECK_EQ(seen, sequence + 2);
    ds_options options = options_default();
    options.read_only = true;
    ds_store *reader = open_with(dir, options);
    CHECK_OK(ds_wait(reader, DS_USER, "other", 5, false, 0, 0, NULL));
    CHECK_IS(ds_wait(reader, DS_USER, "never", 5, false, 0, 3, NULL), DS_TIMEOUT);
    CHECK_OK(ds_close(reader));
    CHECK_OK(ds_close(store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(changes_come_in_commit_order),         TEST(changes_cross_segments_and_end_in_compacted),
        TEST(what_compaction_moves_is_no_change),   TEST(compact_on_demand_keeps_what_is_live),
        TEST(i16_many_keys_are_read_at_one_point),  TEST(waiters_wake_in_other_processes),
        TEST(a_wait_ends_by_delete_prefix_or_time),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
