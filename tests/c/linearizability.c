/* linearizability.c: processes at random operations on one store, one of them killed every 50 ms (I1, I2, I16).
 *
 *     linearizability [seconds] [processes] [seed] [directory]
 *
 * Each worker reads, writes, deletes, compares-and-puts, commits batches, reads many keys at once and walks, beside
 * compaction and a steady turnover of other keys that makes the index grow and purge. What it does it records in shared
 * memory (recorded.h), which outlives it. Every half second all pause; what they recorded, and what the store holds then, is
 * judged, and they go on with the same handles. Nothing acknowledged may be lost, and some order must explain everything.
 *
 * Each batch also writes its number under a marker of its worker. The worker that takes a dead one's place settles the store,
 * reads the marker, and so tells whether the dead one's batch happened.
 *
 * Every second kill waits for a victim that holds the writer lock. The time from its death to the next commit of another
 * process is printed: how long a death keeps the others waiting (takeover). */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "recorded.h"

enum {
    PROCESSES = 16,
    ROUND_MS = 500,
    KILL_EVERY_MS = 50,
    RECORD_BYTES = 8 << 20, /* of one worker in one round; it pauses when they are used up */
    SILENCE_S = 60,         /* a worker that is not heard of for so long hangs */
    TAKEOVERS = 1 << 16,
    OTHERS = 64, /* of the turnover, per worker, at once */
};

typedef struct worker {
    _Atomic uint64_t used; /* bytes of `record` that hold operations */
    _Atomic uint32_t paused;
    uint64_t values, batches, others; /* given out so far, by all incarnations */
    uint64_t commits, reads, walks;
    _Alignas(64) unsigned char record[RECORD_BYTES];
} worker;

typedef struct board {
    _Atomic uint64_t clock;
    _Atomic uint32_t round; /* odd: all pause */
    _Atomic uint64_t death_ns, death_sequence, takeover_ns;
    worker workers[PROCESSES];
} board;

typedef struct sweep {
    uint64_t random, seed;
    unsigned processes;
    char *dir;
    board *board;
    pid_t judge, pids[PROCESSES];
    const struct ds_control *control;
    recorded_round round;
    size_t room;
    uint64_t kills, owners, rounds, operations, rounds_ns;
    uint64_t takeovers[TAKEOVERS];
    size_t takeover_count;
} sweep;

static sweep the_sweep;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...);
static void fail(const char *format, ...) {
    sweep *s = &the_sweep;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "linearizability: seed %#llx, round %llu: ", (unsigned long long)s->seed,
            (unsigned long long)s->rounds);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    if (getpid() == s->judge) {
        for (unsigned i = 0; i < s->processes; i++)
            if (s->pids[i] > 0)
                kill(s->pids[i], SIGKILL);
        if (s->dir)
            check_remove(s->dir);
    }
    _exit(1);
}

static void must(ds_status status, const char *what) {
    if (status != DS_OK)
        fail("%s gave %s: %s (errno %d)", what, ds_status_name(status), ds_error(), ds_error_errno());
}

static void on_alarm(int signal_number) {
    (void)signal_number;
    fail("hangs");
}

static ds_store *open_it(void) {
    ds_options options;
    ds_options_init(&options);
    options.create = true;
    ds_store *store = NULL;
    must(ds_open(the_sweep.dir, &options, &store), "an open");
    return store;
}

static uint64_t tick(void) {
    return atomic_fetch_add(&the_sweep.board->clock, 1) + 1;
}

/* ---- values: a unique number, and bytes that follow from it --------------------------------------------------------- */

enum { VALUE_LIMIT = 6000 };

static size_t value_make(uint64_t number, unsigned char bytes[VALUE_LIMIT]) {
    uint64_t random = number;
    size_t size = 8 + check_below(&random, check_below(&random, 24) ? 120 : VALUE_LIMIT - 8);
    memcpy(bytes, &number, 8);
    for (size_t at = 8; at < size; at += 8) {
        uint64_t word = check_random(&random);
        memcpy(bytes + at, &word, size - at < 8 ? size - at : 8);
    }
    return size;
}

static uint64_t value_number(const ds_value *value) {
    unsigned char wanted[VALUE_LIMIT + 8];
    uint64_t number;
    if (value->size < sizeof number)
        fail("a value of %zu bytes", value->size);
    memcpy(&number, value->data, sizeof number);
    size_t size = value_make(number, wanted);
    if (size != value->size || memcmp(wanted, value->data, size) != 0)
        fail("the bytes of value %llx at sequence %llu are wrong", (unsigned long long)number,
             (unsigned long long)value->sequence);
    return number;
}

/* ---- a worker -------------------------------------------------------------------------------------------------------- */

typedef struct life {
    unsigned slot;
    worker *me;
    ds_store *store;
    uint64_t random;
    ds_value held; /* a pinned value, looked at again later */
    uint64_t held_number;
    unsigned char bytes[RECORDED_ITEMS][VALUE_LIMIT + 8];
} life;

static char key_names[RECORDED_KEYS][8];
static char marker_names[PROCESSES][8];

static recorded *next_record(life *l, unsigned items, bool is_write) {
    uint64_t used = atomic_load_explicit(&l->me->used, memory_order_relaxed);
    recorded *o = (recorded *)(void *)(l->me->record + used);
    *o = (recorded){.size = (uint32_t)(sizeof *o + (items + 1) * sizeof(recorded_item)), .is_write = is_write};
    return o;
}

static void keep(life *l, const recorded *o) {
    atomic_fetch_add_explicit(&l->me->used, o->size, memory_order_release);
}

static void ends(recorded *o, recorded_outcome outcome, uint64_t sequence) {
    uint64_t now = tick();
    o->outcome = (uint8_t)outcome;
    o->sequence = sequence;
    atomic_store_explicit(&o->returned, now, memory_order_release);
    sweep *s = &the_sweep;
    uint64_t death = atomic_load(&s->board->death_ns);
    if (death && outcome == RECORDED_DONE && sequence > atomic_load(&s->board->death_sequence) &&
        atomic_compare_exchange_strong(&s->board->death_ns, &death, 0))
        atomic_store(&s->board->takeover_ns, check_now_ns() - death);
}

static recorded_item seen(uint64_t key, const ds_value *value) {
    return value ? (recorded_item){key, value_number(value), value->sequence} : (recorded_item){.key = key};
}

static recorded_item read_key(life *l, uint64_t key) {
    recorded *o = next_record(l, 1, false);
    ds_value value;
    o->invoked = tick();
    ds_status status = ds_get(l->store, DS_USER, key_names[key], strlen(key_names[key]), &value);
    uint64_t now = tick();
    if (status != DS_MISSING)
        must(status, "a get");
    o->item[o->items++] = seen(key, status == DS_OK ? &value : NULL);
    atomic_store_explicit(&o->returned, now, memory_order_relaxed);
    keep(l, o);
    l->me->reads++;
    if (status == DS_OK && !l->held.owner && check_below(&l->random, 16) == 0) {
        l->held = value;
        l->held_number = o->item[0].value;
    } else if (status == DS_OK) {
        ds_unpin(&value);
    }
    return o->item[0];
}

static void look_again(life *l) {
    if (!l->held.owner || check_below(&l->random, 64))
        return;
    if (value_number(&l->held) != l->held_number)
        fail("a pinned value has changed");
    ds_unpin(&l->held);
    l->held.owner = NULL;
}

static uint64_t new_value(life *l) {
    return (uint64_t)(l->slot + 1) << 48 | ++l->me->values;
}

static ds_change put_of(life *l, recorded_item *item, unsigned n) {
    const char *name = key_names[item->key];
    if (item->value == 0)
        return (ds_change){.kind = DS_DELETE, .key = name, .key_size = strlen(name)};
    size_t size = value_make(item->value, l->bytes[n]);
    return (ds_change){.kind = DS_PUT, .key = name, .key_size = strlen(name), .value = l->bytes[n], .value_size = size};
}

static void conclude(life *l, recorded *o, ds_status status, uint64_t sequence) {
    if (status == DS_CONFLICT) {
        o->item[o->items].sequence = ds_error_sequence();
        ends(o, RECORDED_CONFLICT, 0);
        return;
    }
    if (status == DS_MISSING) {
        ends(o, RECORDED_NOTHING, 0);
        return;
    }
    must(status, "a write");
    ends(o, RECORDED_DONE, sequence);
    l->me->commits++;
}

static void write_key(life *l, uint64_t key) {
    unsigned how = (unsigned)check_below(&l->random, 4);
    recorded_item now = how == 3 ? read_key(l, key) : (recorded_item){0};
    recorded *o = next_record(l, 1, true);
    o->items = 1;
    o->item[0] = (recorded_item){.key = key, .value = how == 2 ? 0 : new_value(l)};
    ds_change change = put_of(l, &o->item[0], 0);
    if (how == 3) {
        o->expects = 1;
        o->item[1] = now;
        change.expect = true;
        change.expected = now.sequence;
    }
    o->invoked = tick();
    keep(l, o);
    uint64_t sequence = 0;
    ds_status status;
    if (how == 2)
        status = ds_delete(l->store, DS_USER, change.key, change.key_size, &sequence);
    else if (how == 3)
        status = ds_commit(l->store, &change, 1, &sequence);
    else
        status = ds_put(l->store, DS_USER, change.key, change.key_size, change.value, change.value_size, &sequence);
    conclude(l, o, status, sequence);
}

/* Puts and deletes keys that nobody looks at, so that the index fills with tombstones, purges and grows. */
static size_t turn_over(life *l, ds_change *changes, char names[8][24]) {
    size_t count = 0;
    if (check_below(&l->random, 4))
        return 0;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t n = ++l->me->others;
        for (unsigned old = 0; old < 2; old++) {
            char *name = names[count];
            snprintf(name, 24, "%u/%llu", l->slot, (unsigned long long)(n - old * OTHERS));
            changes[count++] = (ds_change){.kind = old ? DS_DELETE : DS_PUT,
                                           .keyspace = DS_RUNTIME,
                                           .key = name,
                                           .key_size = strlen(name),
                                           .value = name,
                                           .value_size = strlen(name)};
        }
    }
    return count;
}

static void write_batch(life *l) {
    ds_change changes[RECORDED_ITEMS + 12];
    char names[8][24];
    uint64_t batch = ++l->me->batches;
    unsigned count = 1 + (unsigned)check_below(&l->random, 6);
    uint64_t first = check_below(&l->random, RECORDED_KEYS - RECORDED_SINGLE);
    bool expects = check_below(&l->random, 3) == 0;
    uint64_t expected_key = RECORDED_SINGLE + check_below(&l->random, RECORDED_KEYS - RECORDED_SINGLE);
    recorded_item now = expects ? read_key(l, expected_key) : (recorded_item){0};
    recorded *o = next_record(l, count + 1, true);
    size_t n = 0;
    changes[n++] = (ds_change){.kind = DS_PUT,
                               .keyspace = DS_RUNTIME,
                               .key = marker_names[l->slot],
                               .key_size = strlen(marker_names[l->slot]),
                               .value = &batch,
                               .value_size = sizeof batch};
    for (unsigned i = 0; i < count; i++) { /* distinct keys: 5 and 16 have no common factor */
        o->item[i] = (recorded_item){.key = RECORDED_SINGLE + (first + i * 5) % (RECORDED_KEYS - RECORDED_SINGLE),
                                     .value = check_below(&l->random, 4) ? new_value(l) : 0};
        changes[n++] = put_of(l, &o->item[i], i);
    }
    o->items = (uint8_t)count;
    o->expects = expects;
    if (expects) {
        o->item[count] = now;
        changes[n++] = (ds_change){.kind = DS_EXPECT,
                                   .expect = true,
                                   .expected = now.sequence,
                                   .key = key_names[expected_key],
                                   .key_size = strlen(key_names[expected_key])};
    }
    n += turn_over(l, changes + n, names);
    o->invoked = tick();
    keep(l, o);
    uint64_t sequence = 0;
    ds_status status = ds_commit(l->store, changes, n, &sequence);
    conclude(l, o, status, sequence);
}

static void read_many(life *l) {
    ds_bytes keys[8];
    ds_value values[8];
    unsigned count = 2 + (unsigned)check_below(&l->random, 7);
    uint64_t first = check_below(&l->random, RECORDED_KEYS);
    recorded *o = next_record(l, count, false);
    for (unsigned i = 0; i < count; i++) {
        o->item[i].key = (first + i * 7) % RECORDED_KEYS;
        const char *name = key_names[o->item[i].key];
        keys[i] = (ds_bytes){name, strlen(name)};
    }
    o->items = (uint8_t)count;
    o->invoked = tick();
    must(ds_get_many(l->store, DS_USER, keys, count, values), "a get_many");
    uint64_t now = tick();
    for (unsigned i = 0; i < count; i++) {
        o->item[i] = seen(o->item[i].key, values[i].owner ? &values[i] : NULL);
        if (values[i].owner)
            ds_unpin(&values[i]);
    }
    atomic_store_explicit(&o->returned, now, memory_order_relaxed);
    keep(l, o);
    l->me->reads++;
}

/* The names of the keys end in their numbers. */
static void walk(ds_store *store, recorded *o) {
    ds_cursor *cursor = NULL;
    const void *name;
    size_t size;
    ds_value value;
    ds_status status;
    for (unsigned i = 0; i < RECORDED_KEYS; i++)
        o->item[i] = (recorded_item){.key = i};
    o->items = RECORDED_KEYS;
    o->invoked = tick();
    must(ds_cursor_open(store, DS_USER, &cursor), "a cursor");
    uint64_t now = tick(); /* what it shows is settled here */
    while ((status = ds_cursor_next(cursor, &name, &size, &value)) == DS_OK) {
        unsigned key = 0;
        while (key < RECORDED_KEYS && (strlen(key_names[key]) != size || memcmp(key_names[key], name, size) != 0))
            key++;
        if (key == RECORDED_KEYS || o->item[key].value)
            fail("a walk gave %s key", key == RECORDED_KEYS ? "an unknown" : "twice the same");
        o->item[key] = seen(key, &value);
        ds_unpin(&value);
    }
    if (status != DS_MISSING)
        must(status, "a walk");
    ds_cursor_close(cursor);
    atomic_store_explicit(&o->returned, now, memory_order_relaxed);
}

static void read_all(life *l) {
    recorded *o = next_record(l, RECORDED_KEYS, false);
    walk(l->store, o);
    keep(l, o);
    l->me->walks++;
}

/* What the one before left under way, if it was a batch, is decided now and by its marker. */
static void decide(life *l) {
    recorded *last = NULL;
    for (uint64_t at = 0, used = atomic_load(&l->me->used); at < used; at += last->size)
        last = (recorded *)(void *)(l->me->record + at);
    must(ds_settle(l->store, NULL), "settle");
    if (!last || !last->is_write || atomic_load(&last->returned) || last->sequence ||
        (last->items == 1 && last->item[0].key < RECORDED_SINGLE))
        return;
    ds_value marker;
    uint64_t number = 0;
    ds_status status = ds_get(l->store, DS_RUNTIME, marker_names[l->slot], strlen(marker_names[l->slot]), &marker);
    if (status == DS_MISSING)
        return;
    must(status, "reading a marker");
    memcpy(&number, marker.data, sizeof number);
    if (number == l->me->batches)
        last->sequence = marker.sequence;
    ds_unpin(&marker);
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, PROCESSES, NULL, NULL, 0);
}

static void pause_if_told(life *l) {
    board *b = the_sweep.board;
    const uint64_t longest = sizeof(recorded) + (RECORDED_KEYS + 1) * sizeof(recorded_item);
    for (;;) {
        uint32_t round = atomic_load(&b->round);
        bool full = atomic_load_explicit(&l->me->used, memory_order_relaxed) + 4 * longest > RECORD_BYTES;
        if (round % 2 == 0 && !full)
            return;
        atomic_store(&l->me->paused, round);
        futex_wait(&b->round, round);
    }
}

/* It waits for other compactions, and those for the disk: on a busy one it may run out of time, and has done nothing then. */
static void compact(life *l) {
    ds_status status = ds_compact(l->store);
    if (status != DS_TIMEOUT)
        must(status, "compact");
}

static void live(unsigned slot) {
    static life l;
    l.slot = slot;
    l.me = &the_sweep.board->workers[slot];
    l.random = check_mix(the_sweep.random, slot);
    l.store = open_it();
    decide(&l);
    for (;;) {
        pause_if_told(&l);
        look_again(&l);
        switch (check_below(&l.random, 16)) {
        case 0:
        case 1:
        case 2:
            write_batch(&l);
            break;
        case 3:
        case 4:
        case 5:
        case 6:
            write_key(&l, check_below(&l.random, RECORDED_SINGLE));
            break;
        case 7:
        case 8:
        case 9:
            read_many(&l);
            break;
        case 10:
            if (check_below(&l.random, 4) == 0)
                read_all(&l);
            else if (check_below(&l.random, 200) == 0)
                compact(&l);
            else if (check_below(&l.random, 400) == 0) {
                if (l.held.owner)
                    ds_unpin(&l.held);
                l.held.owner = NULL;
                must(ds_close(l.store), "close");
                l.store = open_it();
            }
            break;
        default:
            read_key(&l, check_below(&l.random, RECORDED_KEYS));
        }
    }
}

/* ---- the judge ------------------------------------------------------------------------------------------------------- */

static void start(sweep *s, unsigned slot) {
    fflush(NULL);
    uint64_t random = check_random(&s->random);
    pid_t pid = fork();
    if (pid < 0)
        fail("fork: %s", strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != s->judge)
            _exit(1);
        alarm(0);
        s->random = random;
        live(slot);
    }
    s->pids[slot] = pid;
}

static void ended_by_itself(sweep *s, unsigned slot, int status) {
    s->pids[slot] = 0;
    fail("worker %u ended by itself with status %#x", slot, (unsigned)status);
}

static void sleep_until(uint64_t ns) {
    struct timespec at = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

static void bury(sweep *s, unsigned slot) {
    int status = 0;
    pid_t pid = s->pids[slot];
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        ended_by_itself(s, slot, status);
    s->pids[slot] = 0;
    s->kills++;
}

/* Stops workers until one of them holds the writer lock. */
static bool stop_an_owner(sweep *s, unsigned *slot) {
    for (unsigned i = 0; i < 300; i++) {
        *slot = (unsigned)check_below(&s->random, s->processes);
        int status;
        kill(s->pids[*slot], SIGSTOP);
        while (waitpid(s->pids[*slot], &status, WUNTRACED) < 0 && errno == EINTR)
            ;
        if (!WIFSTOPPED(status))
            ended_by_itself(s, *slot, status);
        unsigned word = __atomic_load_n((const unsigned *)&s->control->lock.mutex.__data.__lock, __ATOMIC_ACQUIRE);
        if ((word & FUTEX_TID_MASK) == (unsigned)s->pids[*slot])
            return true;
        kill(s->pids[*slot], SIGCONT);
    }
    return false;
}

static void collect_takeover(sweep *s) {
    uint64_t ns = atomic_exchange(&s->board->takeover_ns, 0);
    if (ns && s->takeover_count < TAKEOVERS)
        s->takeovers[s->takeover_count++] = ns;
}

static void kill_one(sweep *s) {
    unsigned slot;
    collect_takeover(s);
    if (s->kills % 2 && stop_an_owner(s, &slot)) {
        s->owners++;
        atomic_store(&s->board->death_sequence, s->control->tail.sequence);
        atomic_store(&s->board->death_ns, check_now_ns());
    } else {
        slot = (unsigned)check_below(&s->random, s->processes);
    }
    bury(s, slot);
    start(s, slot);
}

static void wait_for_pause(sweep *s, uint32_t round) {
    for (unsigned i = 0; i < s->processes; i++)
        while (atomic_load(&s->board->workers[i].paused) != round) {
            int status;
            usleep(200);
            if (waitpid(s->pids[i], &status, WNOHANG) == s->pids[i])
                ended_by_itself(s, i, status);
        }
}

static void note(sweep *s, recorded *o) {
    recorded_round *r = &s->round;
    if (r->count == s->room) {
        s->room = s->room ? 2 * s->room : 1 << 16;
        r->operations = realloc(r->operations, s->room * sizeof *r->operations);
        if (!r->operations)
            fail("out of memory");
    }
    r->operations[r->count++] = o;
}

static void judge_round(sweep *s) {
    static _Alignas(64) unsigned char last_words[RECORDED_KEYS + 1][sizeof(recorded) + 34 * sizeof(recorded_item)];
    s->round.count = 0;
    for (unsigned i = 0; i < s->processes; i++) {
        worker *w = &s->board->workers[i];
        for (uint64_t at = 0; at < w->used; at += ((recorded *)(void *)(w->record + at))->size)
            note(s, (recorded *)(void *)(w->record + at));
    }
    s->operations += s->round.count;
    uint64_t sequence = 0;
    ds_store *store = open_it();
    must(ds_settle(store, &sequence), "settle");
    must(ds_verify(store, NULL), "verify");
    recorded *all = (recorded *)(void *)last_words[RECORDED_KEYS];
    *all = (recorded){0};
    walk(store, all);
    note(s, all);
    must(ds_close(store), "close");
    for (unsigned key = 0; key < RECORDED_KEYS; key++) { /* each once more, for the judge that goes key by key */
        recorded *o = (recorded *)(void *)last_words[key];
        *o = (recorded){.invoked = tick(), .items = 1};
        o->item[0] = all->item[key];
        atomic_store(&o->returned, tick());
        note(s, o);
    }
    const char *why = recorded_judge_single(&s->round);
    if (!why)
        why = recorded_judge_many(&s->round);
    if (why)
        fail("VIOLATION: %s", why);
    for (unsigned key = 0; key < RECORDED_KEYS; key++)
        s->round.before[key] = (recorded_state){all->item[key].value, all->item[key].sequence};
    s->round.sequence = sequence;
    for (unsigned i = 0; i < s->processes; i++)
        atomic_store(&s->board->workers[i].used, 0);
}

static void run_round(sweep *s) {
    alarm(SILENCE_S);
    uint64_t begin = check_now_ns();
    atomic_fetch_add(&s->board->round, 1);
    futex_wake(&s->board->round);
    for (unsigned i = 1; i < ROUND_MS / KILL_EVERY_MS; i++) {
        sleep_until(begin + i * (uint64_t)KILL_EVERY_MS * 1000000u);
        kill_one(s);
    }
    sleep_until(begin + (uint64_t)ROUND_MS * 1000000u);
    uint32_t round = atomic_fetch_add(&s->board->round, 1) + 1;
    futex_wake(&s->board->round); /* those whose record was full note the new round */
    wait_for_pause(s, round);
    s->rounds_ns += check_now_ns() - begin;
    collect_takeover(s);
    atomic_store(&s->board->death_ns, 0);
    judge_round(s);
    s->rounds++;
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void tell(sweep *s, uint64_t begin) {
    uint64_t commits = 0, reads = 0, walks = 0;
    for (unsigned i = 0; i < s->processes; i++) {
        commits += s->board->workers[i].commits;
        reads += s->board->workers[i].reads;
        walks += s->board->workers[i].walks;
    }
    qsort(s->takeovers, s->takeover_count, sizeof *s->takeovers, by_size);
    size_t n = s->takeover_count;
    double p50 = n ? (double)s->takeovers[n / 2] / 1e6 : 0, p99 = n ? (double)s->takeovers[n - 1 - n / 100] / 1e6 : 0;
    ds_store *store = open_it();
    ds_stats stats;
    must(ds_stats_read(store, &stats), "stats");
    printf("%llu operations (%llu commits, %llu reads, %llu walks) in %.1f s by %u processes, judged in %.1f s; %llu "
           "kills, "
           "%llu of them of the lock's owner; takeover p50 %.2f ms, p99 %.2f ms, longest %.2f ms of %zu; compaction "
           "dropped %llu segments, index generation %llu, %llu repairs; violations 0, acknowledged writes lost 0\n",
           (unsigned long long)s->operations, (unsigned long long)commits, (unsigned long long)reads,
           (unsigned long long)walks, (double)s->rounds_ns / 1e9, s->processes,
           (double)(check_now_ns() - begin - s->rounds_ns) / 1e9, (unsigned long long)s->kills,
           (unsigned long long)s->owners, p50, p99, n ? (double)s->takeovers[n - 1] / 1e6 : 0, n,
           (unsigned long long)stats.dropped_segments, (unsigned long long)atomic_load(&s->control->generation),
           (unsigned long long)stats.repairs);
    must(ds_close(store), "close");
}

static void map_control(sweep *s) {
    char *path = check_format("%s/control", s->dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    void *page = mmap(NULL, DS_CONTROL_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(page != MAP_FAILED);
    s->control = page;
    close(fd);
}

int main(int argc, char **argv) {
    sweep *s = &the_sweep;
    uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 0) : 10;
    s->processes = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 4;
    s->seed = s->random = argc > 3 ? strtoull(argv[3], NULL, 0) : check_now_ns();
    s->judge = getpid();
    CHECK(s->processes >= 2 && s->processes <= PROCESSES);
    printf("linearizability %llu %u %#llx\n", (unsigned long long)seconds, s->processes, (unsigned long long)s->seed);
    fflush(stdout);
    for (unsigned i = 0; i < RECORDED_KEYS; i++)
        snprintf(key_names[i], sizeof key_names[i], "k%u", i);
    for (unsigned i = 0; i < PROCESSES; i++)
        snprintf(marker_names[i], sizeof marker_names[i], "m%u", i);
    s->board = mmap(NULL, sizeof *s->board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(s->board != MAP_FAILED);
    signal(SIGALRM, on_alarm);
    s->dir = check_directory(argc > 4 ? argv[4] : NULL);
    must(ds_close(open_it()), "close");
    map_control(s);
    atomic_store(&s->board->round, 1);
    uint64_t begin = check_now_ns();
    for (unsigned i = 0; i < s->processes; i++)
        start(s, i);
    while (s->rounds_ns < seconds * 1000000000u)
        run_round(s);
    tell(s, begin);
    for (unsigned i = 0; i < s->processes; i++)
        bury(s, i);
    check_remove(s->dir);
    return 0;
}
