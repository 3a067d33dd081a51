/* check.h: the whole test style of the C tests.
 *
 * A test is a function that gets an empty directory of its own and says CHECK() about what must hold. Each test runs in
 * a process group of its own, so a crash, a hang or a stray child of one test cannot hurt the next; the directory
 * and the group are gone afterwards, whatever happened.
 *
 *     static void a_value_comes_back(const char *dir) { ... CHECK(...); }
 *     int main(int argc, char **argv) {
 *         static const check_test tests[] = {TEST(a_value_comes_back)};
 *         return check_main(argc, argv, tests, CHECK_COUNT(tests));
 *     }
 *
 * Run a program with names of tests to run only those.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "dora_state.h"

/* Ends the process with status 1 unless `condition` holds. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            check_fail(__FILE__, __LINE__, "CHECK(%s)", #condition);                                                   \
    } while (0)

/* Integers that must be equal, with both in the message. */
#define CHECK_EQ(actual, wanted)                                                                                       \
    check_equal(__FILE__, __LINE__, #actual, (unsigned long long)(actual), (unsigned long long)(wanted))

/* A call of the engine and the status it must return. */
#define CHECK_IS(call, wanted) check_is(__FILE__, __LINE__, #call, (call), (wanted))
#define CHECK_OK(call)         CHECK_IS(call, DS_OK)

__attribute__((noreturn, format(printf, 3, 4))) void check_fail(const char *file, int line, const char *format, ...);
void check_equal(const char *file, int line, const char *what, unsigned long long actual, unsigned long long wanted);
void check_is(const char *file, int line, const char *what, ds_status actual, ds_status wanted);

typedef struct check_test {
    const char *name;
    void (*run)(const char *dir);
} check_test;

#define TEST(function)     {#function, function}
#define CHECK_COUNT(array) (sizeof(array) / sizeof *(array))

/* Runs one test as described above, in a directory below `parent` (NULL: $TMPDIR). True if it passed. */
bool check_isolated(const check_test *test, const char *parent, unsigned limit_s);
/* Is the test among the arguments, or is there none? */
bool check_named(int argc, char **argv, const char *name);
int check_main(int argc, char **argv, const check_test *tests, size_t count);

/* A new directory below $TMPDIR (or `parent`), for programs that are not lists of tests. The caller frees the path. */
char *check_directory(const char *parent);
void check_remove(const char *path);           /* a file, or a directory and all below it */
unsigned check_entries(const char *directory); /* how many there are, with . and .. */
/* How many mappings of this process are of files below that path. */
unsigned check_mappings(const char *below);
__attribute__((format(printf, 1, 2))) char *check_format(const char *format, ...); /* to be freed by the caller */

/* Forks; the child runs `role(context)` and exits 0. check_join() fails unless the child did just that. */
pid_t check_spawn(void (*role)(void *context), void *context);
void check_join(pid_t pid);

/* splitmix64: the same seed gives the same test on every machine. */
uint64_t check_random(uint64_t *state);
uint64_t check_below(uint64_t *state, uint64_t limit); /* 0 .. limit - 1 */
uint64_t check_mix(uint64_t a, uint64_t b);            /* a seed from two numbers */

uint64_t check_now_ns(void);

#endif
