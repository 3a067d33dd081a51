/* A worker's death is noticed by the end of its main thread, and the successor gets what was armed: START always, the
 * event only when the record does not name it. Workers are real processes that are killed. */
#include "lifeline.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store_help.h"

/* A worker, the store that it commits to, and the socket of its successor. */
typedef struct scene {
    ds_lifeline *line;
    ds_store *store;
    char source[4096];
    int eventfd, pidfd, socket[2];
    pid_t pid;
} scene;

/* The record of runtime/step.py: version, status, outputs, number, incarnation. */
static void put_step(ds_store *store, uint64_t number, unsigned char status) {
    unsigned char record[24] = {1, status};
    memcpy(record + 8, &number, sizeof number);
    CHECK_OK(ds_put(store, DS_RUNTIME, "step", 4, record, sizeof record, NULL));
}

static void *go_on(void *context) {
    (void)context;
    for (;;)
        pause();
    return NULL;
}

static void be_a_worker(int memfd, int ready, bool leaves_a_thread) {
    char *note;
    CHECK_OK(ds_lifeline_hold(memfd, &note));
    strcpy(note, "words");
    CHECK_EQ(write(ready, "x", 1), 1);
    pthread_t thread;
    if (leaves_a_thread) {
        CHECK_EQ(pthread_create(&thread, NULL, go_on, NULL), 0);
        pthread_exit(NULL);
    }
    for (;;)
        pause();
}

static void begin(scene *it, const char *dir, bool leaves_a_thread) {
    int memfd, ready[2];
    char byte;
    it->store = open_store(dir);
    snprintf(it->source, sizeof it->source, "%s.py", dir);
    CHECK_OK(ds_lifeline_new(&it->line, &memfd));
    CHECK_EQ(pipe(ready), 0);
    it->pid = fork();
    if (it->pid == 0)
        be_a_worker(memfd, ready[1], leaves_a_thread);
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    close(memfd);
    close(ready[0]);
    close(ready[1]);
    it->pidfd = (int)syscall(SYS_pidfd_open, it->pid, 0);
    it->eventfd = eventfd(0, EFD_CLOEXEC);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, it->socket), 0);
    if (!leaves_a_thread)
        CHECK_OK(ds_lifeline_watch(it->line, it->pidfd, it->eventfd));
}

static void arm(scene *it) {
    bool armed;
    static const char start[5 + DS_LIFELINE_NOTE] = "START";
    ds_handover handover = {.store = it->store,
                            .incarnation = 7,
                            .socket = it->socket[0],
                            .start = start,
                            .start_size = sizeof start,
                            .source = it->source}; /* which is not there: any will do */
    CHECK_OK(ds_lifeline_arm(it->line, &handover, &armed));
    CHECK(armed);
}

static void give(scene *it, uint64_t number, const char *event) {
    bool armed;
    CHECK_OK(ds_lifeline_event(it->line, number, event, strlen(event), &armed));
    CHECK(armed);
}

static ds_lifeline_report kill_it(scene *it) {
    uint64_t count;
    ds_lifeline_report report;
    CHECK_EQ(kill(it->pid, SIGKILL), 0);
    CHECK_EQ(read(it->eventfd, &count, sizeof count), sizeof count);
    CHECK(ds_lifeline_died(it->line));
    ds_lifeline_disarm(it->line, &report);
    CHECK(report.died);
    CHECK(report.ready_ns >= report.died_ns);
    return report;
}

/* What the successor finds: START with the note and whether there is an unfinished event, then that event. */
static void expect_started(scene *it, bool unfinished, const char *event) {
    char data[5 + DS_LIFELINE_NOTE + 64];
    ssize_t size = recv(it->socket[1], data, sizeof data, MSG_DONTWAIT);
    CHECK_EQ(size, 5 + DS_LIFELINE_NOTE + strlen(event));
    CHECK(memcmp(data, "STARTwords", 11) == 0);
    CHECK_EQ(data[5 + DS_LIFELINE_NOTE - 1], unfinished);
    CHECK(memcmp(data + 5 + DS_LIFELINE_NOTE, event, strlen(event)) == 0);
}

static void expect_nothing_sent(scene *it) {
    char byte;
    CHECK_EQ(recv(it->socket[1], &byte, 1, MSG_DONTWAIT) < 0, true);
}

static void end(scene *it) {
    kill(it->pid, SIGKILL);
    CHECK_EQ(waitpid(it->pid, NULL, 0), it->pid);
    ds_lifeline_free(it->line);
    CHECK_OK(ds_close(it->store));
    for (int i = 0; i < 2; i++)
        close(it->socket[i]);
    close(it->pidfd);
    close(it->eventfd);
}

static void an_event_that_is_not_on_record_goes_to_the_successor(const char *dir) {
    scene it;
    ds_stats stats;
    begin(&it, dir, false);
    put_step(it.store, 3, 0);
    arm(&it);
    give(&it, 4, "EVENT");
    ds_lifeline_report report = kill_it(&it);
    CHECK(report.started && report.replayed);
    expect_started(&it, true, "EVENT");
    CHECK_OK(ds_stats_read(it.store, &stats));
    CHECK_EQ(stats.fence, 7);
    end(&it);
}

static void an_attempt_is_counted_when_it_was_begun(const char *dir) {
    static const char first[] = {'E', 'V', 1, 0}, second[] = {'E', 'V', 2, 0};
    char sent[5 + DS_LIFELINE_NOTE + sizeof second];
    bool armed;
    scene it;
    begin(&it, dir, false);
    arm(&it);
    CHECK_OK(ds_lifeline_event(it.line, 4, first, sizeof first, &armed));
    memcpy(ds_lifeline_note(it.line) + DS_LIFELINE_BEGUN, &(uint64_t){4}, 8); /* as the worker would */
    CHECK(kill_it(&it).replayed);
    CHECK_EQ(recv(it.socket[1], sent, sizeof sent, MSG_DONTWAIT), sizeof sent);
    CHECK(memcmp(sent + sizeof sent - sizeof second, second, sizeof second) == 0);
    end(&it);
}

static void an_event_on_record_is_not_sent_again(const char *dir) {
    scene it;
    begin(&it, dir, false);
    arm(&it);
    give(&it, 4, "EVENT");
    put_step(it.store, 4, 0);
    ds_lifeline_report report = kill_it(&it);
    CHECK(report.started && !report.replayed);
    expect_started(&it, false, "");
    end(&it);
}

static void a_large_event_is_left_to_the_caller(const char *dir) {
    scene it;
    begin(&it, dir, false);
    arm(&it);
    give(&it, 4, "");
    ds_lifeline_report report = kill_it(&it);
    CHECK(report.started && !report.replayed);
    expect_started(&it, true, "");
    end(&it);
}

static void what_the_record_says_beyond_continue_is_left_to_the_caller(const char *dir) {
    scene it;
    begin(&it, dir, false);
    arm(&it);
    give(&it, 4, "EVENT");
    put_step(it.store, 4, 1);
    CHECK(!kill_it(&it).started);
    expect_nothing_sent(&it);
    end(&it);
}

static void a_step_that_is_prepared_is_left_to_the_caller(const char *dir) {
    scene it;
    begin(&it, dir, false);
    arm(&it);
    give(&it, 4, "EVENT");
    put_step(it.store, 3, 0);
    CHECK_OK(ds_put(it.store, DS_RUNTIME, "prepare", 7, "x", 1, NULL));
    CHECK(!kill_it(&it).started);
    expect_nothing_sent(&it);
    end(&it);
}

static void a_successor_of_an_older_source_is_not_started(const char *dir) {
    scene it;
    begin(&it, dir, false);
    FILE *file = fopen(it.source, "w"); /* its time and size are not those that were armed */
    CHECK(file != NULL);
    fclose(file);
    arm(&it);
    CHECK(!kill_it(&it).started);
    expect_nothing_sent(&it);
    CHECK_EQ(unlink(it.source), 0);
    end(&it);
}

static void disarmed_it_only_reports(const char *dir) {
    scene it;
    ds_lifeline_report report;
    bool alive;
    begin(&it, dir, false);
    arm(&it);
    give(&it, 4, "EVENT");
    ds_lifeline_withdraw(it.line);
    arm(&it);
    ds_lifeline_disarm(it.line, &report);
    CHECK(!report.died && !ds_lifeline_died(it.line));
    CHECK_OK(ds_lifeline_event(it.line, 5, "EVENT", 5, &alive));
    CHECK(alive);
    CHECK(!kill_it(&it).started);
    expect_nothing_sent(&it);
    end(&it);
}

static void nothing_is_armed_for_the_dead(const char *dir) {
    scene it;
    bool armed;
    begin(&it, dir, false);
    kill_it(&it);
    ds_handover handover = {.store = it.store, .socket = it.socket[0], .start = "", .source = it.source};
    CHECK_OK(ds_lifeline_arm(it.line, &handover, &armed));
    CHECK(!armed);
    end(&it);
}

/* Other threads of a process whose main thread has ended would go on acting. */
static void the_end_of_the_main_thread_ends_the_process(const char *dir) {
    scene it;
    uint64_t count;
    int status;
    begin(&it, dir, true);
    CHECK_OK(ds_lifeline_watch(it.line, it.pidfd, it.eventfd));
    CHECK_EQ(read(it.eventfd, &count, sizeof count), sizeof count);
    CHECK_EQ(waitpid(it.pid, &status, 0), it.pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    ds_lifeline_free(it.line);
    CHECK_OK(ds_close(it.store));
}

/* Whoever closes down does not wait for a worker that hangs; the thread frees the rest when that ends. */
static void freeing_does_not_wait_for_a_worker_that_lives(const char *dir) {
    scene it;
    begin(&it, dir, false);
    arm(&it);
    ds_lifeline_free(it.line);
    CHECK_EQ(kill(it.pid, SIGKILL), 0);
    CHECK_EQ(waitpid(it.pid, NULL, 0), it.pid);
    uint64_t count;
    CHECK_EQ(read(it.eventfd, &count, sizeof count), sizeof count);
    expect_nothing_sent(&it);
    CHECK_OK(ds_close(it.store));
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(an_event_that_is_not_on_record_goes_to_the_successor),
        TEST(an_attempt_is_counted_when_it_was_begun),
        TEST(an_event_on_record_is_not_sent_again),
        TEST(a_large_event_is_left_to_the_caller),
        TEST(what_the_record_says_beyond_continue_is_left_to_the_caller),
        TEST(a_step_that_is_prepared_is_left_to_the_caller),
        TEST(a_successor_of_an_older_source_is_not_started),
        TEST(disarmed_it_only_reports),
        TEST(nothing_is_armed_for_the_dead),
        TEST(the_end_of_the_main_thread_ends_the_process),
        TEST(freeing_does_not_wait_for_a_worker_that_lives),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
