/* linear.c: are single-key reads and writes of several processes linearizable (I16), while compaction runs?
 *
 *     linear [operations of each process] [seed] [directory]
 *
 * Each process puts, gets, deletes and compare-and-puts on a few keys and notes when each call began and ended, and the
 * sequence it wrote or saw. Sequences give the order of the writes, so no search is needed; what must hold is
 *
 *   writes  of all keys: one that ended before another began has the lower sequence;
 *   reads   of version v of a key: no later version's write had ended when the read began; v's write, and those before it, had
 *           begun when the read ended; and no read that ended before this one began saw a later version;
 *   compare-and-puts  follow the very version that they expected.
 *
 * A key that is missing is a version, too: any of those that a delete made. A read that saw bytes checks that they are the
 * ones put with that sequence. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store_help.h"

enum { PROCESSES = 4, KEYS = 3, PADDING = 400, LIMIT_S = 600 };

typedef enum kind { READ, WRITE, DELETE } kind;

typedef struct operation {
    uint64_t begin, end;
    uint64_t sequence; /* written, or seen; 0: the key was missing */
    uint64_t content;  /* what was put, or seen */
    uint64_t expected; /* of a compare-and-put, UINT64_MAX: none */
    kind kind;
    unsigned key;
} operation;

typedef struct board {
    _Atomic unsigned ready;
    size_t count[PROCESSES];
    operation of[]; /* PROCESSES * operations */
} board;

static struct {
    uint64_t operations, seed;
} arguments;

static board *notes;
static const char *path;

/* ---- the processes ------------------------------------------------------------------------------------------------ */

static const char *name_of(unsigned key) {
    static const char *names[KEYS] = {"a", "b", "c"};
    return names[key];
}

static void read_key(ds_store *store, operation *note) {
    ds_value value;
    note->kind = READ;
    note->begin = check_now_ns();
    ds_status status = ds_get(store, DS_USER, name_of(note->key), 1, &value);
    note->end = check_now_ns();
    if (status == DS_MISSING)
        return;
    CHECK_OK(status);
    note->sequence = value.sequence;
    memcpy(&note->content, value.data, sizeof note->content);
    ds_unpin(&value);
}

/* A commit that is refused has seen where the key is: it is a read. */
static void change_key(ds_store *store, operation *note, kind wanted, bool expect, uint64_t expected,
                       uint64_t content) {
    unsigned char bytes[sizeof content + PADDING] = {0};
    memcpy(bytes, &content, sizeof content);
    ds_change change = {.kind = wanted == DELETE ? DS_DELETE : DS_PUT,
                        .expect = expect,
                        .expected = expected,
                        .key = name_of(note->key),
                        .key_size = 1,
                        .value = bytes,
                        .value_size = sizeof bytes};
    note->content = content;
    note->expected = expect ? expected : UINT64_MAX;
    note->kind = wanted;
    note->begin = check_now_ns();
    ds_status status = wanted == DELETE ? ds_delete(store, DS_USER, change.key, 1, &note->sequence)
                                        : ds_commit(store, &change, 1, &note->sequence);
    note->end = check_now_ns();
    if (status == DS_OK)
        return;
    note->kind = READ;
    note->content = 0; /* not seen */
    note->sequence = 0;
    if (status == DS_CONFLICT)
        note->sequence = ds_error_sequence();
    else
        CHECK_IS(status, DS_MISSING);
}

static void operate(void *context) {
    unsigned me = (unsigned)(uintptr_t)context;
    operation *mine = &notes->of[me * arguments.operations];
    uint64_t random = check_mix(arguments.seed, me), seen[KEYS] = {0};
    ds_store *store = open_store(path);
    notes->ready++;
    while (notes->ready < PROCESSES)
        usleep(100);
    for (uint64_t i = 0; i < arguments.operations; i++) {
        operation *note = &mine[i];
        *note = (operation){.key = (unsigned)check_below(&random, KEYS)};
        uint64_t what = check_below(&random, 100), content = (uint64_t)(me + 1) << 32 | (i + 1);
        if (what < 50)
            read_key(store, note);
        else if (what < 80)
            change_key(store, note, WRITE, false, 0, content);
        else if (what < 95)
            change_key(store, note, WRITE, true, seen[note->key], content);
        else
            change_key(store, note, DELETE, false, 0, 0);
        if (note->kind != DELETE)
            seen[note->key] = note->sequence;
        notes->count[me] = i + 1;
    }
    CHECK_OK(ds_close(store));
}

/* ---- the judge ---------------------------------------------------------------------------------------------------- */

static int by_sequence(const void *a, const void *b) {
    const operation *x = *(operation *const *)a, *y = *(operation *const *)b;
    return x->sequence < y->sequence ? -1 : x->sequence > y->sequence;
}

static int by_begin(const void *a, const void *b) {
    const operation *x = *(operation *const *)a, *y = *(operation *const *)b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* An end, and the version of which it was: to find the newest version that was done by some time. */
typedef struct mark {
    uint64_t end;
    size_t version;
} mark;

static int by_end(const void *a, const void *b) {
    const mark *x = a, *y = b;
    return x->end < y->end ? -1 : x->end > y->end;
}

static size_t newest_before(const mark *marks, size_t count, uint64_t time) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (marks[middle].end < time)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 ? marks[low - 1].version : 0;
}

static void sort_marks(mark *marks, size_t count) {
    qsort(marks, count, sizeof *marks, by_end);
    for (size_t i = 1; i < count; i++)
        if (marks[i].version < marks[i - 1].version)
            marks[i].version = marks[i - 1].version;
}

/* Sorted by sequence, nobody may have ended before an earlier one began. */
static void judge_writes(operation **writes, size_t count) {
    uint64_t begun = 0;
    for (size_t i = 0; i < count; i++) {
        CHECK(i == 0 || writes[i]->sequence > writes[i - 1]->sequence);
        if (writes[i]->begin > begun)
            begun = writes[i]->begin;
        if (writes[i]->end < begun)
            check_fail(__FILE__, __LINE__, "seed %#llx: sequence %llu ended before a lower one began",
                       (unsigned long long)arguments.seed, (unsigned long long)writes[i]->sequence);
    }
}

static size_t version_of(operation **writes, size_t count, uint64_t sequence) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (writes[middle]->sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && writes[low]->sequence == sequence ? low + 1 : 0;
}

/* A compare-and-put follows the version that it expected. */
static void judge_expectations(operation **writes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint64_t before = i == 0 || writes[i - 1]->kind == DELETE ? 0 : writes[i - 1]->sequence;
        CHECK(writes[i]->expected == UINT64_MAX || writes[i]->expected == before);
    }
}

/* Version 0 is the key before its first write, version n its nth write. */
static void judge_key(operation **writes, size_t count, operation **reads, size_t read_count) {
    mark *done = calloc(count + 1, sizeof *done), *seen = calloc(read_count + 1, sizeof *seen);
    uint64_t *begun = calloc(count + 1, sizeof *begun); /* the latest beginning among versions up to this one */
    CHECK(done && seen && begun);
    for (size_t v = 1; v <= count; v++) {
        done[v - 1] = (mark){writes[v - 1]->end, v};
        begun[v] = writes[v - 1]->begin > begun[v - 1] ? writes[v - 1]->begin : begun[v - 1];
    }
    sort_marks(done, count);
    size_t *chosen = calloc(read_count + 1, sizeof *chosen);
    CHECK(chosen);
    /* Reads in the order of their beginnings; those that ended before this one began are found by their ends. The marks of
     * later ones are there, too, but they have not ended before this one began. */
    for (size_t r = 0; r < read_count; r++)
        seen[r] = (mark){reads[r]->end, r};
    qsort(seen, read_count, sizeof *seen, by_end);
    size_t ended = 0, floor = 0;
    for (size_t r = 0; r < read_count; r++) {
        const operation *read = reads[r];
        for (; ended < read_count && seen[ended].end < read->begin; ended++)
            if (chosen[seen[ended].version] > floor)
                floor = chosen[seen[ended].version];
        size_t least = newest_before(done, count, read->begin);
        if (least < floor)
            least = floor;
        size_t v = least;
        if (read->sequence != 0) {
            v = version_of(writes, count, read->sequence);
            CHECK(v > 0 && writes[v - 1]->kind == WRITE);
            CHECK(read->content == 0 || read->content == writes[v - 1]->content);
        } else {
            while (v > 0 && v <= count && writes[v - 1]->kind != DELETE)
                v++;
        }
        if (v < least || v > count || begun[v] >= read->end)
            check_fail(__FILE__, __LINE__,
                       "seed %#llx: key %s: a read of %s saw version %zu of %zu (sequence %llu), at least %zu was due",
                       (unsigned long long)arguments.seed, name_of(read->key), read->sequence ? "a value" : "nothing",
                       v, count, (unsigned long long)read->sequence, least);
        chosen[r] = v;
    }
    free(done);
    free(seen);
    free(begun);
    free(chosen);
}

static size_t choose(operation **out, kind from, kind to, int key) {
    size_t count = 0;
    for (unsigned p = 0; p < PROCESSES; p++)
        for (size_t i = 0; i < notes->count[p]; i++) {
            operation *note = &notes->of[p * arguments.operations + i];
            if (note->kind >= from && note->kind <= to && (key < 0 || note->key == (unsigned)key))
                out[count++] = note;
        }
    return count;
}

static void run(const char *dir) {
    path = dir;
    size_t total = PROCESSES * arguments.operations, bytes = sizeof *notes + total * sizeof *notes->of;
    notes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    operation **writes = calloc(total, sizeof(operation *)), **reads = calloc(total, sizeof(operation *));
    CHECK(notes != MAP_FAILED && writes && reads);
    pid_t pids[PROCESSES];
    for (unsigned p = 0; p < PROCESSES; p++)
        pids[p] = check_spawn(operate, (void *)(uintptr_t)p);
    for (unsigned p = 0; p < PROCESSES; p++)
        check_join(pids[p]);
    size_t all = choose(writes, WRITE, DELETE, -1);
    qsort(writes, all, sizeof *writes, by_sequence);
    judge_writes(writes, all);
    for (int key = 0; key < KEYS; key++) {
        size_t count = choose(writes, WRITE, DELETE, key), read_count = choose(reads, READ, READ, key);
        qsort(writes, count, sizeof *writes, by_sequence);
        qsort(reads, read_count, sizeof *reads, by_begin);
        judge_expectations(writes, count);
        judge_key(writes, count, reads, read_count);
    }
    ds_store *store = open_store(dir);
    uint64_t dropped = stats_of(store).dropped_segments;
    CHECK_OK(ds_verify(store, NULL));
    CHECK_OK(ds_close(store));
    printf("operations %zu of %d processes, %zu writes, %llu segments compacted away, violations 0\n", total, PROCESSES,
           all, (unsigned long long)dropped);
    CHECK(arguments.operations < 20000 || dropped > 0);
    free(writes);
    free(reads);
    munmap(notes, bytes);
}

int main(int argc, char **argv) {
    arguments.operations = argc > 1 ? strtoull(argv[1], NULL, 0) : 30000;
    arguments.seed = argc > 2 ? strtoull(argv[2], NULL, 0) : check_now_ns();
    const char *parent = argc > 3 ? argv[3] : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    printf("linear %llu %#llx\n", (unsigned long long)arguments.operations, (unsigned long long)arguments.seed);
    const check_test test = {"linear", run};
    return !check_isolated(&test, parent, LIMIT_S);
}
