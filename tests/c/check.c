#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TEST_LIMIT_S = 60 }; /* a hang is a failure, not a wait for ever */

void check_fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    fflush(stderr);
    _exit(1);
}

void check_equal(const char *file, int line, const char *what, unsigned long long actual, unsigned long long wanted) {
    if (actual != wanted)
        check_fail(file, line, "%s is %llu, wanted %llu", what, actual, wanted);
}

void check_is(const char *file, int line, const char *what, ds_status actual, ds_status wanted) {
    if (actual != wanted)
        check_fail(file, line, "%s gave %s, wanted %s; last error: %s (errno %d)", what, ds_status_name(actual),
                   ds_status_name(wanted), ds_error(), ds_error_errno());
}

/* Every text that was ever made stays in sight: the leak checker is here for the engine, not for tests that hand a
 * path to a call and forget it. */
static char **texts;
static size_t text_count;

char *check_format(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    CHECK(size >= 0);
    char *text = malloc((size_t)size + 1);
    CHECK(text);
    va_start(arguments, format);
    vsnprintf(text, (size_t)size + 1, format, arguments);
    va_end(arguments);
    texts = realloc(texts, (text_count + 1) * sizeof *texts);
    CHECK(texts);
    texts[text_count++] = text;
    return text;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

/* Removes a directory when this process has ended, of whatever. Its child, so that nobody waits for it by mistake. */
static void remove_at_the_end(const char *path) {
    pid_t owner = getpid();
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (fork() != 0)
            _exit(0);
        setsid();
        syscall(SYS_close_range, 0u, ~0u, 0u); /* whoever reads our output waits for its end */
        struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, owner, 0), .events = POLLIN};
        if (end.fd >= 0 || errno == ESRCH) {
            while (end.fd >= 0 && poll(&end, 1, -1) < 0)
                ;
            nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
        }
        _exit(0);
    }
    CHECK(waitpid(pid, NULL, 0) == pid);
}

char *check_directory(const char *parent) {
    if (!parent)
        parent = getenv("TMPDIR");
    char *path = check_format("%s/dora-state-XXXXXX", parent && *parent ? parent : "/tmp");
    if (!mkdtemp(path))
        check_fail(__FILE__, __LINE__, "cannot make %s: %s", path, strerror(errno));
    remove_at_the_end(path);
    return path;
}

unsigned check_entries(const char *directory) {
    unsigned count = 0;
    DIR *list = opendir(directory);
    CHECK(list);
    while (readdir(list))
        count++;
    closedir(list);
    return count;
}

unsigned check_mappings(const char *below) {
    unsigned count = 0;
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while (fgets(line, sizeof line, maps))
        count += strstr(line, below) != NULL;
    fclose(maps);
    return count;
}

void check_remove(const char *path) {
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

pid_t check_spawn(void (*role)(void *), void *context) {
    fflush(NULL);
    pid_t parent = getpid();
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent && getppid() != 0) /* it died already; 0: it is in another namespace */
        _exit(1);
    role(context);
    _exit(0);
}

void check_join(pid_t pid) {
    int status = 0;
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR)
        ;
    CHECK(got == pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        check_fail(__FILE__, __LINE__, "child %d ended with status %#x", (int)pid, (unsigned)status);
}

/* exit() and not _exit() after the test, so that the leak checker of the asan preset speaks up. */
bool check_isolated(const check_test *test, const char *parent, unsigned limit_s) {
    char *dir = check_directory(parent);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(limit_s);
        test->run(dir);
        exit(0);
    }
    setpgid(pid, pid);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    kill(-pid, SIGKILL);
    check_remove(dir);
    free(dir);
    bool passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("%-4s %s", passed ? "ok" : "FAIL", test->name);
    if (WIFSIGNALED(status))
        printf(" (%s)", strsignal(WTERMSIG(status)));
    printf("\n");
    return passed;
}

bool check_named(int argc, char **argv, const char *name) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return argc < 2;
}

/* DORA_STATE_TEST_LIMIT_S: for a build that is slow on purpose. */
static unsigned test_limit_s(void) {
    const char *wanted = getenv("DORA_STATE_TEST_LIMIT_S");
    return wanted ? (unsigned)strtoul(wanted, NULL, 10) : TEST_LIMIT_S;
}

int check_main(int argc, char **argv, const check_test *tests, size_t count) {
    size_t ran = 0, failed = 0;
    for (size_t i = 0; i < count; i++) {
        if (!check_named(argc, argv, tests[i].name))
            continue;
        ran++;
        failed += !check_isolated(&tests[i], NULL, test_limit_s());
    }
    printf("%zu tests, %zu failed\n", ran, failed);
    return failed > 0 || ran == 0;
}

uint64_t check_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t check_below(uint64_t *state, uint64_t limit) {
    return check_random(state) % limit;
}

uint64_t check_mix(uint64_t a, uint64_t b) {
    uint64_t state = a * 0xd6e8feb86659fd93u + b;
    return check_random(&state);
}

uint64_t check_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
