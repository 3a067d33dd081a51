/* Every status has a name and a sentence, and no number outside the table passes for one. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static void every_status_has_a_name_and_a_text(const char *dir) {
    (void)dir;
    int expected = 0;
#define X(name, number, text)                                                                                          \
    CHECK_EQ(DS_##name, expected++); /* dense, so that a table indexed by status has no holes */                       \
    CHECK(strcmp(ds_status_name(DS_##name), #name) == 0);                                                              \
    CHECK(strcmp(ds_status_text(DS_##name), text) == 0);
    DS_STATUS_MAP(X)
#undef X
}

static void a_number_outside_the_table_has_no_name(const char *dir) {
    (void)dir;
    CHECK(strcmp(ds_status_name((ds_status)1000), "?") == 0);
    CHECK(strcmp(ds_status_name((ds_status)-1), "?") == 0);
    CHECK(ds_status_text((ds_status)1000) != NULL);
}

static void there_is_no_error_before_the_first_failure(const char *dir) {
    (void)dir;
    CHECK(strcmp(ds_error(), "") == 0);
    CHECK_EQ(ds_error_errno(), 0);
}

static void the_error_names_the_path(const char *dir) {
    char *path = check_format("%s/nothing-here", dir);
    ds_options options;
    ds_options_init(&options);
    options.create = false;
    ds_store *store = NULL;
    CHECK(ds_open(path, &options, &store) != DS_OK);
    CHECK(store == NULL);
    CHECK(strstr(ds_error(), "nothing-here") != NULL);
    CHECK(strlen(ds_error()) > strlen(path)); /* it also says what is wrong with it */
    free(path);
}

static void makes_a_directory_and_is_killed(void *dir) {
    FILE *file = fopen(check_format("%s/file", check_directory(dir)), "w");
    CHECK(file && fclose(file) == 0);
    raise(SIGKILL);
}

static void a_killed_test_leaves_no_directory(const char *dir) {
    pid_t pid = check_spawn(makes_a_directory_and_is_killed, (void *)(uintptr_t)dir);
    CHECK(waitpid(pid, NULL, 0) == pid);
    while (check_entries(dir) > 2) /* . and .. */
        usleep(1000);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(every_status_has_a_name_and_a_text),         TEST(a_number_outside_the_table_has_no_name),
        TEST(there_is_no_error_before_the_first_failure), TEST(the_error_names_the_path),
        TEST(a_killed_test_leaves_no_directory),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
