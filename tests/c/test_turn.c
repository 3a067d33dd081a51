/* Turns at a key (csrc/turn.c): one at a time, given back or over by themselves, and nobody else waits. */
#include "store_help.h"

enum { LONG_MS = 60000 };

static uint32_t take(ds_store *store, const char *key, uint32_t milliseconds, uint32_t token) {
    CHECK_OK(ds_turn_take(store, DS_USER, key, strlen(key), milliseconds, &token));
    return token;
}

static void one_has_it_until_it_ends(const char *dir) {
    ds_store *first = open_store(dir), *second = open_store(dir);
    uint32_t token = take(first, "a", LONG_MS, 0);
    CHECK(token != 0);
    CHECK_EQ(take(second, "a", LONG_MS, 0), 0);
    CHECK_EQ(take(second, "b", LONG_MS, 0), 0);        /* one in all */
    CHECK_EQ(take(first, "a", LONG_MS, token), token); /* its owner may have more of it */
    ds_turn_end(second, token ^ 2);                    /* another's token ends nothing */
    CHECK_EQ(take(second, "a", LONG_MS, 0), 0);
    ds_turn_wait(first, DS_USER, "a", 1, token); /* none of these waits; the test's limit would end it */
    ds_turn_wait(second, DS_USER, "b", 1, 0);
    ds_turn_end(first, token);
    ds_turn_wait(second, DS_USER, "a", 1, 0);
    CHECK(take(second, "a", LONG_MS, 0) != 0);
    CHECK_OK(ds_close(second));
    CHECK_OK(ds_close(first));
}

static void it_is_over_by_itself(const char *dir) {
    ds_store *first = open_store(dir), *second = open_store(dir);
    CHECK(take(first, "a", 20, 0) != 0);
    ds_turn_wait(second, DS_USER, "a", 1, 0);
    CHECK(take(second, "a", LONG_MS, 0) != 0);
    CHECK_OK(ds_close(second));
    CHECK_OK(ds_close(first));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {TEST(one_has_it_until_it_ends), TEST(it_is_over_by_itself)};
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
