/* every_instruction.c: death at every single instruction of one operation (T3: I1, I2, I17).
 *
 *     every_instruction [sweep ...]                  names of main(); all of them without one
 *
 * A child does one operation under ptrace, one instruction at a time: engine, libc, vDSO and system calls alike. Between two
 * instructions it may die; what counts then is what the files hold. So after each step we look at them (mapped here too,
 * what the child stores shows at once), and whenever they differ from the step before, they are copied and recovered, as
 * killed (what a reader sees without a lock, then after ds_settle()) and as rebooted. The content must be that before the
 * operation or that after it, value by value; once it was that after, never again that before; and after the return only
 * that after. Every eighth recovered store also takes another commit and a reboot.
 *
 * every_store.c hooks the compiled stores of the engine; this trusts no compiler and no list of functions. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"
#include "store.h"
#include "store_help.h"

enum { ITEMS = 900, FOLLOW_ONE_IN = 8, LIMIT_S = 300 };

/* What a store holds, in no order. */
typedef struct content {
    unsigned count;
    struct {
        char key[24], value[120];
    } item[ITEMS];
} content;

static void set(content *c, const char *key, const char *value) {
    unsigned i = 0;
    while (i < c->count && strcmp(c->item[i].key, key) != 0)
        i++;
    if (value) {
        CHECK(i < ITEMS);
        c->count += i == c->count;
        snprintf(c->item[i].key, sizeof c->item[i].key, "%s", key);
        snprintf(c->item[i].value, sizeof c->item[i].value, "%s", value);
    } else if (i < c->count) {
        c->item[i] = c->item[--c->count];
    }
}

/* ---- the operations --------------------------------------------------------------------------------------------------- */

static const char *long_value(unsigned n) {
    static char value[120];
    snprintf(value, sizeof value, "%0100u", n);
    return value;
}

static void few(ds_store *store, content *c) {
    for (unsigned i = 0; i < 6; i++) {
        char key[24];
        snprintf(key, sizeof key, "key %u", i);
        put(store, key, long_value(i));
        set(c, key, long_value(i));
    }
    CHECK_OK(ds_delete(store, DS_USER, "key 5", 5, NULL));
    set(c, "key 5", NULL);
}

/* One more key, and the index grows. */
static void full_index(ds_store *store, content *c) {
    for (unsigned i = 0; store->control->tail.slots_used < ds__index_limit(DS_INDEX_MIN); i++) {
        char key[24];
        snprintf(key, sizeof key, "%u", i);
        put(store, key, "v");
        set(c, key, "v");
    }
}

/* The next put needs a new segment. */
static void full_segment(ds_store *store, content *c) {
    few(store, c);
    const struct ds_tail *tail = &store->control->tail;
    for (unsigned i = 0; tail->segment_base + tail->segment_size - tail->offset > 180; i++) {
        put(store, "key 1", long_value(i));
        set(c, "key 1", long_value(i));
    }
}

static void put_old(ds_store *store) {
    put(store, "key 2", long_value(1000));
}
static void put_old_after(content *c) {
    set(c, "key 2", long_value(1000));
}

static void put_new(ds_store *store) {
    put(store, "new", long_value(7));
}
static void put_new_after(content *c) {
    set(c, "new", long_value(7));
}

static void delete_one(ds_store *store) {
    CHECK_OK(ds_delete(store, DS_USER, "key 3", 5, NULL));
}
static void delete_one_after(content *c) {
    set(c, "key 3", NULL);
}

static void batch(ds_store *store) {
    const ds_change changes[] = {change_put("key 1", "one"), change_delete("key 2"), change_put("another", "two"),
                                 change_put("key 5", "back"), change_expect("missing", 0)};
    CHECK_OK(ds_commit(store, changes, CHECK_COUNT(changes), NULL));
}
static void batch_after(content *c) {
    set(c, "key 1", "one");
    set(c, "key 2", NULL);
    set(c, "another", "two");
    set(c, "key 5", "back");
}

/* The first of a store, so it opens a segment that is marked for such records. What expires after a nanosecond is as good as
 * deleted. */
static void expiring(ds_store *store) {
    ds_change changes[] = {change_put("key 1", "for an hour"), change_put("key 2", "for no time")};
    changes[0].ttl_ns = UINT64_C(3600000000000);
    changes[1].ttl_ns = 1;
    CHECK_OK(ds_commit(store, changes, CHECK_COUNT(changes), NULL));
}
static void expiring_after(content *c) {
    set(c, "key 1", "for an hour");
    set(c, "key 2", NULL);
}

static void few_expiring(ds_store *store, content *c) {
    few(store, c);
    expiring(store);
    expiring_after(c);
}

static void compact(ds_store *store) {
    CHECK_OK(ds_compact(store));
}
static void nothing_after(content *c) {
    (void)c;
}

/* ---- the judge -------------------------------------------------------------------------------------------------------- */

static struct scene {
    const char *doing;
    char *live, *copy;
    image now, last; /* mapped, and as they were when recovered last */
    content before, after;
    pid_t child;
    bool returned, passed; /* the operation has; its effect was seen by a killed recovery */
    uint64_t instructions, states, images;
} the_scene;

__attribute__((noreturn, format(printf, 1, 2))) static void violated(const char *format, ...) {
    struct scene *s = &the_scene;
    fprintf(stderr, "every_instruction: %s, instruction %llu, state %llu: ", s->doing,
            (unsigned long long)s->instructions, (unsigned long long)s->states);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    kill(s->child, SIGKILL);
    fflush(NULL);
    _exit(1);
}

static void must(ds_status status, const char *what) {
    if (status != DS_OK)
        violated("%s gave %s: %s", what, ds_status_name(status), ds_error());
}

/* Holds exactly this, by reading each key and by a walk? */
static bool holds(ds_store *store, const content *c) {
    ds_cursor *cursor;
    const void *key;
    size_t size;
    ds_value value;
    ds_status status;
    unsigned seen = 0;
    for (unsigned i = 0; i < c->count; i++) {
        status = ds_get(store, DS_USER, c->item[i].key, strlen(c->item[i].key), &value);
        if (status == DS_MISSING)
            return false;
        must(status, "a get");
        bool same = value.size == strlen(c->item[i].value) && memcmp(value.data, c->item[i].value, value.size) == 0;
        ds_unpin(&value);
        if (!same)
            return false;
    }
    must(ds_cursor_open(store, DS_USER, &cursor), "a cursor");
    while ((status = ds_cursor_next(cursor, &key, &size, &value)) == DS_OK) {
        ds_unpin(&value);
        seen++;
    }
    ds_cursor_close(cursor);
    if (status != DS_MISSING)
        must(status, "a walk");
    return seen == c->count;
}

/* Is the operation's effect there? */
static bool happened(struct scene *s, ds_store *store, const char *when) {
    bool after = holds(store, &s->after);
    if (!after && !holds(store, &s->before))
        violated("%s: neither as before nor as after", when);
    if (!after && s->returned)
        violated("%s: an acknowledged operation is lost", when);
    return after;
}

static ds_store *open_copy(struct scene *s) {
    ds_options options = options_default();
    options.lock_timeout_ms = 1000;
    ds_store *store = NULL;
    must(ds_open(s->copy, &options, &store), "an open");
    return store;
}

static void go_on(struct scene *s, ds_store *store, bool after) {
    static content next;
    next = after ? s->after : s->before;
    set(&next, "next", "1");
    must(ds_put(store, DS_USER, "next", 4, "1", 1, NULL), "the next commit");
    must(ds_close(store), "a close");
    image_reboot(s->copy);
    store = open_copy(s);
    if (!holds(store, &next))
        violated("after another commit and a reboot the content is another");
    must(ds_verify(store, NULL), "verify");
    must(ds_close(store), "a close");
}

static void recover(struct scene *s, bool rebooted) {
    image_write(&s->last, s->copy, rebooted);
    s->images++;
    ds_store *store = open_copy(s);
    if (!rebooted)
        (void)happened(s, store, "killed, without a lock");
    must(ds_settle(store, NULL), "settle");
    bool after = happened(s, store, rebooted ? "rebooted" : "killed");
    if (s->passed && !after)
        violated("%s: the commit point was passed before", rebooted ? "rebooted" : "killed");
    if (!rebooted)
        s->passed = after && !holds(store, &s->before);
    must(ds_verify(store, NULL), "verify");
    if (s->states % FOLLOW_ONE_IN == 0)
        go_on(s, store, after);
    else
        must(ds_close(store), "a close");
}

static bool files_differ(const image *a, const image *b) {
    if (a->count != b->count)
        return true;
    for (size_t f = 0; f < a->count; f++)
        if (a->files[f].size != b->files[f].size || strcmp(a->files[f].name, b->files[f].name) != 0 ||
            (a->files[f].size && memcmp(a->files[f].bytes, b->files[f].bytes, a->files[f].size) != 0))
            return true;
    return false;
}

static void look(struct scene *s) {
    if (!files_differ(&s->now, &s->last))
        return;
    image_free(&s->last);
    image_copy(&s->last, &s->now);
    s->states++;
    recover(s, false);
    recover(s, true);
}

/* ---- stepping --------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)

static bool at_system_call(pid_t child) {
    errno = 0;
    long at = ptrace(PTRACE_PEEKUSER, child, (void *)(sizeof(long) * RIP), NULL);
    long word = ptrace(PTRACE_PEEKTEXT, child, (void *)at, NULL);
    return errno == 0 && (word & 0xffff) == 0x050f;
}

/* One instruction. False: the child has reached its next raise(SIGSTOP). */
static bool step(struct scene *s) {
    int status;
    bool system_call = at_system_call(s->child);
    if (ptrace(PTRACE_SINGLESTEP, s->child, NULL, NULL) < 0)
        violated("ptrace: %s", strerror(errno));
    while (waitpid(s->child, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFSTOPPED(status))
        violated("the child ended with status %#x", (unsigned)status);
    if (system_call)
        image_map(&s->now, s->live); /* files may have come, gone or grown */
    s->instructions++;
    return WSTOPSIG(status) != SIGSTOP;
}

static void work(const char *dir, void (*prepare)(ds_store *, content *), void (*operate)(ds_store *)) {
    static content unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(0);
    ds_store *store = open_store(dir);
    prepare(store, &unused);
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
    operate(store);
    raise(SIGSTOP);
    _exit(0);
}

static void sweep(const char *doing, const char *dir, void (*prepare)(ds_store *, content *),
                  void (*operate)(ds_store *), void (*effect)(content *)) {
    struct scene *s = &the_scene;
    *s = (struct scene){.doing = doing, .live = check_format("%s/live", dir), .copy = check_format("%s/copy", dir)};
    uint64_t begin = check_now_ns();
    CHECK(mkdir(s->copy, 0700) == 0);
    ds_store *model = open_store(check_format("%s/model", dir));
    prepare(model, &s->before);
    CHECK_OK(ds_close(model));
    s->after = s->before;
    effect(&s->after);
    fflush(NULL);
    int status;
    s->child = fork();
    CHECK(s->child >= 0);
    if (s->child == 0)
        work(s->live, prepare, operate);
    CHECK(waitpid(s->child, &status, 0) == s->child && WIFSTOPPED(status));
    image_dies(s->child);
    image_map(&s->now, s->live);
    do
        look(s);
    while (step(s));
    s->returned = true;
    image_free(&s->last); /* so that the last state is looked at once more */
    look(s);
    kill(s->child, SIGKILL);
    CHECK(waitpid(s->child, &status, 0) == s->child);
    image_free(&s->last);
    printf("     %s: %llu instructions, %llu states of the files, %llu recovered, violations 0, %.1f s\n", doing,
           (unsigned long long)s->instructions, (unsigned long long)s->states, (unsigned long long)s->images,
           (double)(check_now_ns() - begin) / 1e9);
}

static void overwriting(const char *dir) {
    sweep("a put over an old value", dir, few, put_old, put_old_after);
}

static void putting(const char *dir) {
    sweep("a put of a new key", dir, few, put_new, put_new_after);
}

static void deleting(const char *dir) {
    sweep("a delete", dir, few, delete_one, delete_one_after);
}

static void batching(const char *dir) {
    sweep("a batch", dir, few, batch, batch_after);
}

static void opening_a_segment(const char *dir) {
    sweep("a put into a new segment", dir, full_segment, put_new, put_new_after);
}

static void growing_the_index(const char *dir) {
    sweep("a put that grows the index", dir, full_index, put_new, put_new_after);
}

static void compacting(const char *dir) {
    sweep("compaction", dir, full_segment, compact, nothing_after);
}

static void putting_what_expires(const char *dir) {
    sweep("puts that expire", dir, few, expiring, expiring_after);
}

static void compacting_what_has_expired(const char *dir) {
    sweep("compaction of what has expired", dir, few_expiring, compact, nothing_after);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(overwriting),
        TEST(putting),
        TEST(deleting),
        TEST(batching),
        TEST(opening_a_segment),
        TEST(growing_the_index),
        TEST(compacting),
        TEST(putting_what_expires),
        TEST(compacting_what_has_expired),
    };
    const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    bool passed = true;
    size_t ran = 0;
    for (size_t i = 0; i < CHECK_COUNT(tests); i++) {
        if (!check_named(argc, argv, tests[i].name))
            continue;
        passed = check_isolated(&tests[i], parent, LIMIT_S) && passed;
        ran++;
    }
    return !passed || ran == 0;
}

#else

int main(void) {
    printf("skipped: steps are taken on x86-64 only\n");
    return 0;
}

#endif
