/* kill_sweep.c: SIGKILL at random moments, thousands of times, and what the store must be afterwards.
 *
 *     kill_sweep [kills] [seed] [directory]        the directory must exist; $TMPDIR without it
 *
 * A round starts one to three writers, each living its own history (history.h) and publishing in shared memory which
 * batch it has begun and which was acknowledged; one of them is killed at a random moment, sometimes while it still opens
 * or repairs. If there are others, each must commit again afterwards. Then all are killed, and for every writer
 *
 *     acknowledged <= m <= begun, and the store's content is exactly that after its batches 1..m         (I1)
 *
 * as seen by a reader that takes no lock (it may not yet see the commit that was under way), then after ds_settle(), and
 * in a third of the rounds after a "reboot": control page and index deleted, recovery from the log alone. Sometimes the one
 * who repairs is killed too, three times over (I2). With several writers each commit also counts up a key that they share
 * by compare-and-put: it must equal the sum of all m. A reader may walk beside them: each walk must be one point (I16).
 *
 * The store starts anew every few rounds, so that creation, the first segments and the growth of the index stay in play.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "history.h"

enum {
    WRITERS = 3,
    KEYS = 48,
    VALUE_LIMIT = 8 << 10,
    ROUNDS_PER_STORE = 40,
    ROUND_LIMIT_S = 60, /* a round that takes longer hangs */
};

/* What the writers tell the judge; it outlives all of them. */
typedef struct board {
    _Atomic uint64_t begun[WRITERS], done[WRITERS];
    _Atomic uint64_t walks;
    _Atomic bool judged; /* the reader may stop */
} board;

typedef struct sweep {
    uint64_t random, store_seed;
    const char *parent;
    char *dir;
    board *board;
    history life[WRITERS]; /* of the store of now, for the judge */
    uint64_t kills, rounds, wanted;
    uint64_t in_open, in_flight, unread, reboots, chained, lock_free, repaired;
    pid_t pids[WRITERS], reader;
    bool is_judge; /* not a child, who only reports */
} sweep;

static sweep *the_sweep; /* for the handler of SIGALRM */

__attribute__((noreturn)) static void fail(const char *what) {
    sweep *s = the_sweep;
    fprintf(stderr, "kill_sweep: round %llu of store seed %#llx: %s\n", (unsigned long long)s->rounds,
            (unsigned long long)s->store_seed, what);
    if (!s->is_judge)
        _exit(1);
    for (unsigned i = 0; i < WRITERS; i++)
        if (s->pids[i] > 0)
            kill(s->pids[i], SIGKILL);
    if (s->reader > 0)
        kill(s->reader, SIGKILL);
    if (getenv("DORA_STATE_KEEP"))
        fprintf(stderr, "kill_sweep: the store is kept in %s\n", s->dir);
    else
        check_remove(s->dir);
    _exit(1);
}

static void on_alarm(int signal_number) {
    (void)signal_number;
    fail("hangs");
}

__attribute__((format(printf, 1, 2), noreturn)) static void violated(const char *format, ...);
static void violated(const char *format, ...) {
    char text[700];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail(text);
}

static void must(ds_status status, const char *what) {
    if (status != DS_OK)
        violated("%s gave %s: %s (errno %d)", what, ds_status_name(status), ds_error(), ds_error_errno());
}

static ds_store *open_it(const char *dir, bool read_only) {
    ds_options options;
    ds_options_init(&options);
    options.create = !read_only;
    options.read_only = read_only;
    ds_store *store = NULL;
    must(ds_open(dir, &options, &store), read_only ? "a read-only open" : "an open");
    return store;
}

/* ---- what the writers do ------------------------------------------------------------------------------------------ */

static uint64_t shared_count(ds_store *store, uint64_t *sequence) {
    ds_value value;
    uint64_t count = 0;
    *sequence = 0;
    ds_status status = ds_get(store, DS_USER, "shared", 6, &value);
    if (status == DS_MISSING)
        return 0;
    must(status, "reading the shared count");
    if (value.size != sizeof count)
        violated("the shared count has %zu bytes", value.size);
    memcpy(&count, value.data, sizeof count);
    *sequence = value.sequence;
    ds_unpin(&value);
    return count;
}

/* Commits one batch together with one step of the shared count, again until nobody came in between. */
static uint64_t commit_batch(ds_store *store, ds_change *changes, size_t count) {
    for (;;) {
        uint64_t expected, sequence = 0, total = shared_count(store, &expected) + 1;
        changes[count] = (ds_change){.kind = DS_PUT,
                                     .expect = true,
                                     .expected = expected,
                                     .key = "shared",
                                     .key_size = 6,
                                     .value = &total,
                                     .value_size = sizeof total};
        ds_status status = ds_commit(store, changes, count + 1, &sequence);
        if (status == DS_OK)
            return sequence;
        if (status != DS_CONFLICT)
            must(status, "a commit");
    }
}

static void live(const sweep *s, unsigned writer) {
    history life;
    history_init(&life, s->store_seed, writer, KEYS, 1, VALUE_LIMIT);
    uint64_t random = check_mix(s->random, writer), last = 0;
    ds_store *store = open_it(s->dir, false);
    must(ds_settle(store, NULL), "settle"); /* what was under way is now decided */
    must(history_collect(&life, store), "reading");
    for (uint64_t batch = history_seen(&life) + 1;; batch++) {
        ds_change changes[HISTORY_CHANGES + 1];
        size_t count = history_make(&life, batch, changes);
        atomic_store(&s->board->begun[writer], batch);
        uint64_t sequence = commit_batch(store, changes, count);
        atomic_store(&s->board->done[writer], batch);
        if (sequence <= last)
            violated("sequence %llu after %llu", (unsigned long long)sequence, (unsigned long long)last);
        last = sequence;
        if (check_below(&random, 64) == 0)
            must(ds_sync(store), "sync");
        if (check_below(&random, 64) == 0) {
            must(ds_close(store), "close");
            store = open_it(s->dir, false);
        }
    }
}

/* Walks beside the writers until the round is over. Each walk must show, for every writer, the state after some batch. */
static void walk(const sweep *s) {
    history lives[WRITERS];
    for (unsigned i = 0; i < WRITERS; i++)
        history_init(&lives[i], s->store_seed, i, KEYS, 1, VALUE_LIMIT);
    ds_store *store = open_it(s->dir, false);
    while (!atomic_load(&s->board->judged)) {
        must(history_walk(lives, WRITERS, store, "shared"), "a walk beside writers");
        for (unsigned i = 0; i < WRITERS; i++) {
            uint64_t seen = history_seen(&lives[i]);
            if (seen < lives[i].batch)
                violated("a walk went back from batch %llu to %llu", (unsigned long long)lives[i].batch,
                         (unsigned long long)seen);
            history_advance(&lives[i], seen);
            if (!history_matches(&lives[i]))
                violated("a walk beside writers: %s", history_problem());
        }
        atomic_fetch_add(&s->board->walks, 1);
    }
    must(ds_close(store), "the reader's close");
}

static void settle_only(const sweep *s) {
    ds_store *store = open_it(s->dir, false);
    must(ds_settle(store, NULL), "settle");
    must(ds_close(store), "close");
}

/* ---- the judge ---------------------------------------------------------------------------------------------------- */

static pid_t start(const sweep *s, void (*role)(const sweep *), int writer) {
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        violated("fork: %s", strerror(errno));
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(0);
    if (getppid() != parent)
        _exit(1);
    the_sweep->is_judge = false;
    if (writer >= 0)
        live(s, (unsigned)writer);
    else
        role(s);
    _exit(0);
}

static void bury(sweep *s, pid_t *pid) {
    kill(*pid, SIGKILL);
    int status = 0;
    while (waitpid(*pid, &status, 0) < 0 && errno == EINTR)
        ;
    *pid = 0;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        violated("a process ended by itself with status %#x", (unsigned)status);
    s->kills++;
}

/* Waits until `counter` reaches `target`, or `pid` has ended, which is a violation. It leaves the processor to those it
 * waits for. */
static void wait_for(const _Atomic uint64_t *counter, uint64_t target, pid_t *pid) {
    while (atomic_load(counter) < target) {
        int status;
        usleep(20);
        if (waitpid(*pid, &status, WNOHANG) == *pid) {
            *pid = 0;
            violated("a process ended by itself with status %#x", (unsigned)status);
        }
    }
}

static void spin_ns(uint64_t ns) {
    for (uint64_t end = check_now_ns() + ns; check_now_ns() < end;)
        ;
}

static void kill_one(sweep *s, unsigned victim) {
    uint64_t begun = atomic_load(&s->board->begun[victim]);
    if (check_below(&s->random, 8) == 0) { /* while it starts, opens, repairs */
        spin_ns(check_below(&s->random, 1500000));
        s->in_open += atomic_load(&s->board->begun[victim]) == begun;
    } else {
        wait_for(&s->board->begun[victim], begun + 1 + check_below(&s->random, 24), &s->pids[victim]);
        spin_ns(check_below(&s->random, 40000));
    }
    bury(s, &s->pids[victim]);
    s->in_flight += atomic_load(&s->board->begun[victim]) > atomic_load(&s->board->done[victim]);
}

/* `exact`: the content is decided. Otherwise a commit that was under way may not be seen yet. */
static void judge(sweep *s, ds_store *store, bool exact, const char *when) {
    uint64_t sum = 0, expected;
    for (int walked = 0; walked < 2; walked++) {
        if (walked)
            must(history_walk(s->life, WRITERS, store, "shared"), when);
        for (unsigned i = 0; i < WRITERS; i++) {
            history *life = &s->life[i];
            if (!walked)
                must(history_collect(life, store), when);
            uint64_t m = history_seen(life), done = atomic_load(&s->board->done[i]);
            if (m < done || m > atomic_load(&s->board->begun[i]) || m < life->batch)
                violated("%s: writer %u is at batch %llu; acknowledged %llu, begun %llu, judged before %llu", when, i,
                         (unsigned long long)m, (unsigned long long)done,
                         (unsigned long long)atomic_load(&s->board->begun[i]), (unsigned long long)life->batch);
            history_advance(life, m);
            if (!history_matches(life))
                violated("%s: %s", when, history_problem());
        }
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        sum += s->life[i].batch;
        if (exact) /* from now on nothing less will do, and nothing more can come */
            atomic_store(&s->board->done[i], s->life[i].batch), atomic_store(&s->board->begun[i], s->life[i].batch);
    }
    uint64_t count = shared_count(store, &expected);
    if (count != sum)
        violated("%s: the writers' batches sum up to %llu, the shared count is %llu", when, (unsigned long long)sum,
                 (unsigned long long)count);
    if (exact)
        must(ds_verify(store, NULL), "verify");
}

static void reboot(sweep *s) {
    DIR *list = opendir(s->dir);
    if (!list)
        violated("opendir: %s", strerror(errno));
    for (struct dirent *entry; (entry = readdir(list));)
        if (strcmp(entry->d_name, "control") == 0 || strncmp(entry->d_name, "index.", 6) == 0)
            unlinkat(dirfd(list), entry->d_name, 0);
    closedir(list);
    s->reboots++;
}

/* The one who repairs dies as well, three times over. */
static void kill_the_repairers(sweep *s) {
    for (int i = 0; i < 3; i++) {
        s->pids[0] = start(s, settle_only, -1);
        spin_ns(check_below(&s->random, 1000000));
        kill(s->pids[0], SIGKILL);
        int status;
        while (waitpid(s->pids[0], &status, 0) < 0 && errno == EINTR)
            ;
        s->pids[0] = 0;
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            s->kills++, s->chained++;
        else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            violated("a repair ended with status %#x", (unsigned)status);
    }
}

static bool anything_acknowledged(const sweep *s) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < WRITERS; i++)
        sum += atomic_load(&s->board->done[i]);
    return sum > 0;
}

static void judge_round(sweep *s) {
    if (check_below(&s->random, 4) == 0)
        kill_the_repairers(s);
    bool rebooted = check_below(&s->random, 4) == 0;
    if (rebooted)
        reboot(s);
    /* Before anything was acknowledged there may be no store yet, and a read-only open does not make one. */
    if (check_below(&s->random, 4) == 0 && anything_acknowledged(s)) {
        ds_store *reader = open_it(s->dir, true);
        judge(s, reader, false, "a read-only open");
        must(ds_close(reader), "close");
    }
    ds_store *store = open_it(s->dir, false);
    if (!rebooted && check_below(&s->random, 2) == 0) {
        judge(s, store, false, "without a lock");
        s->lock_free++;
    }
    must(ds_settle(store, NULL), "settle");
    judge(s, store, true, rebooted ? "after a reboot" : "after settle");
    ds_stats stats;
    must(ds_stats_read(store, &stats), "stats");
    if (stats.dropped_bytes)
        s->unread++;
    s->repaired += stats.repairs > 0;
    must(ds_close(store), "close");
    if (check_below(&s->random, 8) == 0) {
        reboot(s);
        store = open_it(s->dir, false);
        judge(s, store, true, "after close and reboot");
        must(ds_close(store), "close");
    }
}

static void run_round(sweep *s) {
    alarm(ROUND_LIMIT_S);
    unsigned writers = check_below(&s->random, 3) ? 1 : 2 + (unsigned)check_below(&s->random, 2);
    unsigned first = (unsigned)check_below(&s->random, WRITERS);
    bool watched = writers > 1 && check_below(&s->random, 2) == 0;
    atomic_store(&s->board->judged, false);
    uint64_t walks = atomic_load(&s->board->walks);
    for (unsigned i = 0; i < writers; i++)
        s->pids[(first + i) % WRITERS] = start(s, NULL, (int)((first + i) % WRITERS));
    if (watched)
        s->reader = start(s, walk, -1);
    kill_one(s, first);
    for (unsigned i = 1; i < writers; i++) { /* the others go on */
        unsigned other = (first + i) % WRITERS;
        wait_for(&s->board->done[other], atomic_load(&s->board->done[other]) + 4, &s->pids[other]);
    }
    if (watched)
        wait_for(&s->board->walks, walks + 2, &s->reader);
    for (unsigned i = 1; i < writers; i++)
        bury(s, &s->pids[(first + i) % WRITERS]);
    if (watched) {
        atomic_store(&s->board->judged, true);
        int status;
        while (waitpid(s->reader, &status, 0) < 0 && errno == EINTR)
            ;
        s->reader = 0;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            violated("the reader ended with status %#x", (unsigned)status);
    }
    judge_round(s);
    s->rounds++;
}

static void run_store(sweep *s) {
    s->store_seed = check_random(&s->random);
    s->dir = check_directory(s->parent);
    memset(s->board, 0, sizeof *s->board);
    for (unsigned i = 0; i < WRITERS; i++)
        history_init(&s->life[i], s->store_seed, i, KEYS, 1, VALUE_LIMIT);
    for (int i = 0; i < ROUNDS_PER_STORE && s->kills < s->wanted; i++)
        run_round(s);
    for (unsigned i = 0; i < WRITERS; i++)
        history_free(&s->life[i]);
    check_remove(s->dir);
    free(s->dir);
    s->dir = NULL;
}

int main(int argc, char **argv) {
    static sweep s;
    the_sweep = &s;
    s.wanted = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : check_now_ns();
    s.random = seed;
    s.is_judge = true;
    s.parent = argc > 3 ? argv[3] : NULL;
    printf("kill_sweep %llu %#llx\n", (unsigned long long)s.wanted, (unsigned long long)seed);
    fflush(stdout);
    s.board = mmap(NULL, sizeof *s.board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(s.board != MAP_FAILED);
    signal(SIGALRM, on_alarm);
    uint64_t start_ns = check_now_ns();
    while (s.kills < s.wanted)
        run_store(&s);
    double seconds = (double)(check_now_ns() - start_ns) / 1e9;
    printf("kills %llu (in open %llu, in a commit %llu, of a repairer %llu), rounds %llu, lock-free judgements %llu, "
           "reboots %llu, violations 0, %.1f s, %.0f kills/s\n",
           (unsigned long long)s.kills, (unsigned long long)s.in_open, (unsigned long long)s.in_flight,
           (unsigned long long)s.chained, (unsigned long long)s.rounds, (unsigned long long)s.lock_free,
           (unsigned long long)s.reboots, seconds, (double)s.kills / seconds);
    return 0;
}
