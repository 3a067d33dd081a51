/* every_store.c: death at every single store, not at random ones.
 *
 *     every_store [operations] [seed] [directory] [shape]    the directory must exist; /dev/shm or $TMPDIR without it
 *
 * At least that many: a round of eight stores, each with its own kind of values or event, is finished. With the number of
 * a shape (0 to 7, in run()), only stores of that shape.
 *
 * A hooked engine (hooks.h) works on a store and tells us before each store instruction that hits a file. At each such
 * moment we write the files as they are into another directory and recover there, with an ordinary engine, twice:
 *
 *   killed:    the same boot. Control page and index are there; the dead writer's lock is marked as the kernel would mark it.
 *              What a reader sees without a lock, then what ds_settle() decides.
 *   rebooted:  control page and index are gone; all must come from the log.
 *
 * And a read-only handle in another engine reads the live store at each moment: for it, the writer has stopped (I3, I4).
 *
 * Each time the content must be exactly that after batches 1..m with acknowledged <= m <= begun (history.h), ds_verify() must
 * agree, and, in every fourth case, the recovered store must take the next batch, or a small commit, and still know all after
 * another reboot: what a dead writer left behind may hurt only the second time. A sample of moments is kept, and then the *recovery*
 * from them is hooked, so that the one who repairs dies at each of its stores, too (I1, I2, I17). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "history.h"
#include "hooks.h"
#include "image.h"

enum {
    KEPT = 2,          /* moments kept per operation for a hooked recovery */
    KEEP_ONE_IN = 150, /* of the moments */
    FOLLOW_ONE_IN = 4, /* of the recoveries go on to commit and reboot once more */
    LIMIT_S = 3600,
};

static const char SMALL[] = "small"; /* a key of none of the batches */

/* ---- the state of a test -------------------------------------------------------------------------------------------- */

static hooked_engine hooked;

typedef struct scene {
    const char *doing;
    char *live, *copy, *second; /* worked on by the hooked engine; recovered; recovered under hooks */
    image now, kept[KEPT];      /* `now` maps the directory that is being hooked */
    size_t kept_count;
    history at[3]; /* the states after batches b - 1, b and b + 1 */
    uint64_t acknowledged, begun;
    uint64_t random, seed, operations, moments, images, chained, stores, compactions;
    bool in_recovery; /* the hooked engine is at work in `second` */
    ds_store *reader; /* an ordinary handle on `live`, once that is there */
    hooks listener;
} scene;

static scene *the_scene;

__attribute__((format(printf, 1, 2), noreturn)) static void violated(const char *format, ...);
static void violated(const char *format, ...) {
    scene *s = the_scene;
    fprintf(stderr, "every_store: store seed %#llx, %s%s, batch %llu, moment %llu: ", (unsigned long long)s->seed,
            s->doing, s->in_recovery ? ", in a recovery" : "", (unsigned long long)s->begun,
            (unsigned long long)s->moments);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    const char *keep = getenv("DORA_STATE_KEEP"); /* a directory for the files that failed */
    if (keep) {
        mkdir(keep, 0700);
        image_write(&s->now, keep, false);
        fprintf(stderr, "every_store: the files of that moment are in %s\n", keep);
    }
    fflush(NULL);
    _exit(1);
}

/* ---- the judge ---------------------------------------------------------------------------------------------------- */

static ds_store *open_copy(const char *dir, const char *how) {
    ds_options options;
    ds_options_init(&options);
    options.create = true;
    options.lock_timeout_ms = 1000;
    ds_store *store = NULL;
    ds_status status = ds_open(dir, &options, &store);
    if (status != DS_OK)
        violated("%s: open gave %s: %s", how, ds_status_name(status), ds_error());
    return store;
}

/* The content is that after a batch m that is possible and not below `least`; which? */
static uint64_t judge(scene *s, ds_store *store, uint64_t least, uint64_t most, bool walked, const char *how) {
    history *any = &s->at[0];
    ds_status status = walked ? history_walk(any, 1, store, SMALL) : history_collect(any, store);
    if (status != DS_OK)
        violated("%s: %s: %s", how, ds_status_name(status), status == DS_CORRUPT ? history_problem() : ds_error());
    uint64_t m = history_seen(any);
    if (m < least || m > most)
        violated("%s: at batch %llu; acknowledged %llu, begun %llu, at least %llu", how, (unsigned long long)m,
                 (unsigned long long)s->acknowledged, (unsigned long long)s->begun, (unsigned long long)least);
    for (int i = 0; i < 3; i++) {
        history *h = &s->at[i];
        if (h->batch != m)
            continue;
        if (h != any) /* what was seen was collected in at[0]; both have the same keys */
            for (unsigned k = 0; k <= h->keys; k++)
                h->key[k].seen = any->key[k].seen, h->key[k].value = any->key[k].value;
        bool good = history_matches(h);
        if (h != any)
            for (unsigned k = 0; k <= h->keys; k++)
                h->key[k].seen = DS_MISSING; /* not pinned twice */
        if (!good)
            violated("%s: %s", how, history_problem());
        history_release(any);
        return m;
    }
    violated("%s: batch %llu is not one of the states at hand", how, (unsigned long long)m);
}

static void close_copy(ds_store *store, const char *how) {
    ds_status status = ds_close(store);
    if (status != DS_OK)
        violated("%s: close gave %s: %s", how, ds_status_name(status), ds_error());
}

static void verify(ds_store *store, const char *how) {
    ds_status status = ds_verify(store, NULL);
    if (status != DS_OK)
        violated("%s: verify gave %s: %s", how, ds_status_name(status), ds_error());
}

/* A commit that fits where the dead writer's did not. */
static size_t make_small(ds_change *change) {
    *change = (ds_change){.kind = DS_PUT, .key = SMALL, .key_size = strlen(SMALL), .value = "1", .value_size = 1};
    return 1;
}

static void expect_small(ds_store *store, const char *how) {
    ds_value value;
    ds_status status = ds_get(store, DS_USER, SMALL, strlen(SMALL), &value);
    if (status != DS_OK)
        violated("%s: reading what was committed last gave %s", how, ds_status_name(status));
    ds_unpin(&value);
}

/* The recovered store goes on: one more batch, or something smaller, and all is there after another reboot. */
static void follow(scene *s, ds_store *store, uint64_t m, const char *how) {
    ds_change changes[HISTORY_CHANGES];
    bool small = check_below(&s->random, 2) == 0;
    size_t count = small ? make_small(changes) : history_make(&s->at[0], m + 1, changes);
    ds_status status = ds_commit(store, changes, count, NULL);
    if (status != DS_OK)
        violated("%s: the next commit gave %s: %s", how, ds_status_name(status), ds_error());
    m += !small;
    judge(s, store, m, m, false, how);
    close_copy(store, how);
    image_reboot(s->copy);
    store = open_copy(s->copy, how);
    judge(s, store, m, m, true, how);
    if (small)
        expect_small(store, how);
    verify(store, how);
    ds_stats stats;
    if (ds_stats_read(store, &stats) != DS_OK || stats.dropped_bytes != 0)
        violated("%s: %llu bytes dropped of a store that was closed", how, (unsigned long long)stats.dropped_bytes);
    close_copy(store, how);
}

static void recover(scene *s, bool rebooted) {
    image_write(&s->now, s->copy, rebooted);
    s->images++;
    uint64_t m = s->acknowledged;
    ds_store *store;
    if (!rebooted) {
        store = open_copy(s->copy, "killed");
        m = judge(s, store, m, s->begun, false, "killed, read without a lock");
        ds_status status = ds_settle(store, NULL);
        if (status != DS_OK)
            violated("settle gave %s: %s", ds_status_name(status), ds_error());
    } else {
        store = open_copy(s->copy, "rebooted");
    }
    m = judge(s, store, m, s->begun, true, rebooted ? "rebooted" : "killed");
    judge(s, store, m, m, false, rebooted ? "rebooted, by key" : "killed, by key");
    verify(store, rebooted ? "rebooted" : "killed");
    if (check_below(&s->random, FOLLOW_ONE_IN) == 0)
        follow(s, store, m, rebooted ? "rebooted, and one batch more" : "killed, and one batch more");
    else
        close_copy(store, rebooted ? "rebooted" : "killed");
}

/* ---- the hooked engine at work ---------------------------------------------------------------------------------------- */

static void on_moment(void *context) {
    scene *s = context;
    s->moments++;
    if (s->reader && !s->in_recovery) { /* the writer stands still in the middle of its commit, for ever as it were */
        judge(s, s->reader, s->acknowledged, s->begun, false, "a reader beside the writer, by key");
        judge(s, s->reader, s->acknowledged, s->begun, true, "a reader beside the writer");
    }
    recover(s, false);
    recover(s, true);
    if (!s->in_recovery && s->kept_count < KEPT && check_below(&s->random, KEEP_ONE_IN) == 0)
        image_copy(&s->kept[s->kept_count++], &s->now);
}

static void on_files_changed(void *context) {
    scene *s = context;
    image_map(&s->now, s->in_recovery ? s->second : s->live);
}

static void hooked_ok(ds_status status, const char *what) {
    if (status != DS_OK)
        violated("the hooked engine's %s gave %s: %s", what, ds_status_name(status), hooked.error());
}

static ds_store *hooked_open(const char *dir) {
    ds_options options;
    ds_options_init(&options);
    options.create = true;
    ds_store *store = NULL;
    hooked_ok(hooked.open(dir, &options, &store), "open");
    return store;
}

/* Ends an operation: one last moment, then recovers from those that were kept, hooked, half of them as after a reboot. */
static void end_operation(scene *s) {
    hooked.moment();
    hooked.listen(NULL);
    s->in_recovery = true;
    for (size_t i = 0; i < s->kept_count; i++) {
        image_write(&s->kept[i], s->second, check_below(&s->random, 2) == 0);
        image_free(&s->kept[i]);
        image_map(&s->now, s->second);
        uint64_t before = s->images;
        hooked.listen(&s->listener);
        ds_store *store = hooked_open(s->second);
        hooked_ok(hooked.settle(store, NULL), "settle");
        hooked_ok(hooked.close(store), "close");
        hooked.moment();
        hooked.listen(NULL);
        s->chained += s->images - before;
    }
    s->kept_count = 0;
    s->in_recovery = false;
    image_map(&s->now, s->live);
    hooked.listen(&s->listener);
}

typedef struct shape {
    const char *doing;
    unsigned keys;
    size_t value_limit;
    uint64_t operations;                /* commits, counted from the event on if there is to be one */
    bool (*ready)(ds_store *store);     /* batches go unhooked until it says so; NULL: even the creation is hooked */
    uint64_t (*state)(ds_store *store); /* changes with the event */
} shape;

/* The index is about to grow. */
static bool is_index_full(ds_store *store) {
    return store->control->tail.slots_used + HISTORY_CHANGES > ds__index_limit(DS_INDEX_MIN);
}

static uint64_t index_generation(ds_store *store) {
    return store->control->generation;
}

/* A new segment is about to be made. */
static bool is_segment_full(ds_store *store) {
    const struct ds_tail *tail = &store->control->tail;
    return tail->segment_base + tail->segment_size - tail->offset < 2000;
}

static uint64_t tail_segment(ds_store *store) {
    return store->control->tail.segment_base;
}

static bool is_compaction_due(ds_store *store) {
    return hooked.compaction_due(store);
}

static uint64_t start_of_log(ds_store *store) {
    return store->control->start;
}

/* Unhooked batches until the store is ready for what is to be seen; their number. */
static uint64_t prepare(scene *s, const shape *form, history *writer, ds_store *store) {
    uint64_t b = 0;
    while (!form->ready(store)) {
        ds_change changes[HISTORY_CHANGES];
        size_t count = history_make(writer, ++b, changes);
        hooked_ok(hooked.commit(store, changes, count, NULL), "quiet commit");
        CHECK(b < 100000);
    }
    for (unsigned i = 0; i < 3; i++)
        history_advance(&s->at[i], b);
    return b;
}

/* Now and then something else than a commit. False: nothing was done. */
static bool run_other(scene *s, const shape *form, ds_store **store) {
    uint64_t other = check_below(&s->random, 16);
    if (form->ready == is_compaction_due && hooked.compaction_due(*store)) {
        hooked_ok(hooked.compact(*store, true, DS_COMPACT_DUE), "compact");
        s->compactions++;
    } else if (other == 0)
        hooked_ok(hooked.sync(*store), "sync");
    else if (other == 1) {
        hooked_ok(hooked.close(*store), "close");
        *store = hooked_open(s->live);
    } else
        return false;
    return true;
}

static ds_store *open_reader(const scene *s) {
    ds_options options;
    ds_options_init(&options);
    options.create = false;
    options.read_only = true;
    ds_store *reader = NULL;
    ds_status status = ds_open(s->live, &options, &reader);
    if (status != DS_OK)
        violated("a read-only open gave %s: %s", ds_status_name(status), ds_error());
    return reader;
}

static void run_store(scene *s, const shape *form) {
    s->doing = form->doing;
    s->live = check_format("%s-live", s->copy);
    CHECK(mkdir(s->live, 0700) == 0);
    s->acknowledged = s->begun = 0;
    history writer; /* its batches must not share a buffer with the judge's */
    history_init(&writer, s->seed, 0, form->keys, DS_KEYSPACES, form->value_limit);
    for (unsigned i = 0; i < 3; i++)
        history_init(&s->at[i], s->seed, 0, form->keys, DS_KEYSPACES, form->value_limit);
    ds_store *store = NULL;
    if (form->ready) {
        store = hooked_open(s->live);
        s->acknowledged = s->begun = prepare(s, form, &writer, store);
    }
    history_advance(&s->at[2], s->begun + 1); /* the first recoveries may go on, too */
    image_map(&s->now, s->live);
    hooked.listen(&s->listener);
    if (!store)
        store = hooked_open(s->live);
    hooked.listen(NULL);
    s->reader = open_reader(s);
    hooked.listen(&s->listener);
    uint64_t state = form->state ? form->state(store) : 0;
    for (uint64_t left = form->operations; left > 0;) {
        uint64_t b = s->begun + 1;
        ds_change changes[HISTORY_CHANGES];
        size_t count = history_make(&writer, b, changes);
        for (unsigned k = 0; k < 3; k++)
            history_advance(&s->at[k], b - 1 + k);
        s->begun = b;
        hooked_ok(hooked.commit(store, changes, count, NULL), "commit");
        end_operation(s);
        s->acknowledged = b;
        s->operations++;
        if (run_other(s, form, &store))
            end_operation(s);
        if (!form->state || form->state(store) != state)
            left--;
    }
    hooked_ok(hooked.close(store), "close");
    end_operation(s);
    hooked.listen(NULL);
    close_copy(s->reader, "the reader");
    s->reader = NULL;
    for (unsigned i = 0; i < 3; i++)
        history_free(&s->at[i]);
    history_free(&writer);
    check_remove(s->live);
    free(s->live);
    s->stores++;
}

static struct {
    uint64_t operations, seed, shape;
} arguments;

static void run(const char *dir) {
    static scene s;
    the_scene = &s;
    s.listener = (hooks){.moment = on_moment, .files_changed = on_files_changed, .context = &s};
    s.random = arguments.seed;
    s.copy = check_format("%s/copy", dir);
    s.second = check_format("%s/second", dir);
    CHECK(mkdir(s.copy, 0700) == 0 && mkdir(s.second, 0700) == 0);
    uint64_t start = check_now_ns();
    bool all = arguments.shape == UINT64_MAX;
    while (s.operations < arguments.operations || (all && s.stores < 8)) {
        static const shape shapes[] = {
            {"ordinary values", 12, 1500, 40, NULL, NULL},
            {"compaction", 10, 3000, 2, is_compaction_due, start_of_log},
            {"small values", 12, 60, 40, NULL, NULL},
            {"a new segment", 12, 3000, 2, is_segment_full, tail_segment},
            {"large values", 8, 8000, 20, NULL, NULL},
            {"compaction", 10, 9000, 2, is_compaction_due, start_of_log},
            {"a new segment", 12, 9000, 2, is_segment_full, tail_segment},
            {"a growing index", 1000, 8, 2, is_index_full, index_generation},
        };
        s.seed = check_random(&s.random);
        run_store(&s, &shapes[(all ? s.stores : arguments.shape) % CHECK_COUNT(shapes)]);
    }
    double seconds = (double)(check_now_ns() - start) / 1e9;
    printf("operations %llu, stores %llu, compactions %llu, moments %llu, images %llu (%llu of recoveries), violations "
           "0, %.1f s, %.0f "
           "images/s\n",
           (unsigned long long)s.operations, (unsigned long long)s.stores, (unsigned long long)s.compactions,
           (unsigned long long)s.moments, (unsigned long long)s.images, (unsigned long long)s.chained, seconds,
           (double)s.images / seconds);
    CHECK(!all || (s.compactions > 0 && s.chained > 0));
}

int main(int argc, char **argv) {
    arguments.operations = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000;
    arguments.seed = argc > 2 ? strtoull(argv[2], NULL, 0) : check_now_ns();
    const char *parent = argc > 3 ? argv[3] : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    arguments.shape = argc > 4 ? strtoull(argv[4], NULL, 0) : UINT64_MAX;
    printf("every_store %llu %#llx\n", (unsigned long long)arguments.operations, (unsigned long long)arguments.seed);
    hooked_load(&hooked, HOOKED_ENGINE);
    const check_test test = {"every_store", run};
    return !check_isolated(&test, parent, LIMIT_S);
}
