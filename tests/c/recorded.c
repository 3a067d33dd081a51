#include "recorded.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char problem[600];

static void *room_for(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    CHECK(memory);
    return memory;
}

static uint64_t returned(const recorded *o) {
    uint64_t at = atomic_load_explicit(&o->returned, memory_order_relaxed);
    return at ? at : UINT64_MAX;
}

static bool died(const recorded *o) {
    return returned(o) == UINT64_MAX;
}

static bool is_single(const recorded *o) {
    return o->items == 1 && o->item[0].key < RECORDED_SINGLE;
}

static const char *describe(const recorded *o) {
    static char text[400];
    int at = snprintf(text, sizeof text, "a %s [%llu, %llu] outcome %u sequence %llu of",
                      o->is_write ? "write" : "read", (unsigned long long)o->invoked,
                      (unsigned long long)atomic_load(&o->returned), o->outcome, (unsigned long long)o->sequence);
    for (unsigned i = 0; i < o->items + o->expects && at < (int)sizeof text - 80; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, " %llu=%llx@%llu", (unsigned long long)o->item[i].key,
                       (unsigned long long)o->item[i].value, (unsigned long long)o->item[i].sequence);
    return text;
}

/* ---- key by key: Wing, Gong, Lowe -------------------------------------------------------------------------------- */

/* One step of the search: which of the operations under way have taken effect, and what the key holds then. What is under
 * way at once is few (the processes, and the dead of this round), so a word of bits will do, and the memo of all
 * configurations that were reached stays small. */
typedef struct configuration {
    uint64_t effective;
    uint64_t value;
} configuration;

typedef struct search {
    const recorded *under_way[64];
    uint64_t taken; /* bits of under_way in use */
    configuration *reached, *next;
    size_t count, next_count, room;
    uint32_t *memo; /* of `next`, index + 1 */
    size_t memo_room;
} search;

enum { CONFIGURATIONS = 1 << 16 };

/* The operation as one step on the key: can it take effect on `value`, and what is there afterwards? */
static bool step(const recorded *o, uint64_t value, uint64_t *after) {
    *after = value;
    uint64_t mine = o->item[0].value, expected = o->expects ? o->item[1].value : 0;
    if (!o->is_write)
        return value == mine;
    switch (died(o) ? RECORDED_DIED : (recorded_outcome)o->outcome) {
    case RECORDED_NOTHING:
        return value == 0;
    case RECORDED_CONFLICT:
        return value != expected;
    case RECORDED_DIED:
    case RECORDED_DONE:
        break;
    }
    *after = mine;
    if (o->expects)
        return value == expected;
    return mine != 0 || value != 0; /* a delete that is done deleted something */
}

static bool changes_nothing(const recorded *o) {
    return !o->is_write || (!died(o) && o->outcome != RECORDED_DONE);
}

/* A read takes effect as soon as it can: it constrains nobody. */
static configuration with_reads(const search *s, configuration c) {
    uint64_t after;
    for (uint64_t bits = s->taken & ~c.effective; bits; bits &= bits - 1) {
        int bit = __builtin_ctzll(bits);
        if (changes_nothing(s->under_way[bit]) && step(s->under_way[bit], c.value, &after))
            c.effective |= UINT64_C(1) << bit;
    }
    return c;
}

static void reach(search *s, configuration c) {
    size_t at = check_mix(c.effective, c.value) & (s->memo_room - 1);
    for (; s->memo[at]; at = (at + 1) & (s->memo_room - 1)) {
        const configuration *known = &s->next[s->memo[at] - 1];
        if (known->effective == c.effective && known->value == c.value)
            return;
    }
    CHECK(s->next_count < CONFIGURATIONS);
    s->next[s->next_count] = c;
    s->memo[at] = (uint32_t)++s->next_count;
}

static void forget_memo(search *s) {
    for (size_t i = 0; i < s->next_count; i++) {
        size_t at = check_mix(s->next[i].effective, s->next[i].value) & (s->memo_room - 1);
        for (size_t n = 0; s->memo[at] && n < s->memo_room; at = (at + 1) & (s->memo_room - 1), n++)
            s->memo[at] = 0;
    }
    s->next_count = 0;
}

/* `o` returns: it has taken effect by now, perhaps behind others that are still under way. */
static bool returns(search *s, int bit) {
    uint64_t wanted = UINT64_C(1) << bit;
    forget_memo(s);
    for (size_t i = 0; i < s->count; i++)
        reach(s, s->reached[i]);
    for (size_t i = 0; i < s->next_count; i++) { /* `next` grows meanwhile */
        configuration c = s->next[i];
        if (c.effective & wanted)
            continue;
        for (uint64_t bits = s->taken & ~c.effective; bits; bits &= bits - 1) {
            int other = __builtin_ctzll(bits);
            uint64_t after;
            if (step(s->under_way[other], c.value, &after))
                reach(s, with_reads(s, (configuration){c.effective | UINT64_C(1) << other, after}));
        }
    }
    s->count = 0;
    for (size_t i = 0; i < s->next_count; i++)
        if (s->next[i].effective & wanted)
            s->reached[s->count++] = (configuration){s->next[i].effective & ~wanted, s->next[i].value};
    s->taken &= ~wanted;
    s->under_way[bit] = NULL;
    return s->count > 0;
}

static void begins(search *s, const recorded *o) {
    CHECK(~s->taken);
    int bit = __builtin_ctzll(~s->taken);
    s->under_way[bit] = o;
    s->taken |= UINT64_C(1) << bit;
    for (size_t i = 0; i < s->count; i++)
        s->reached[i] = with_reads(s, s->reached[i]);
}

typedef struct event {
    uint64_t at;
    const recorded *operation;
} event;

static int by_time(const void *a, const void *b) {
    uint64_t x = ((const event *)a)->at, y = ((const event *)b)->at;
    return x < y ? -1 : x > y;
}

static bool explain_key(search *s, uint64_t key, uint64_t value, const event *events, size_t count) {
    s->taken = 0;
    s->count = 1;
    s->reached[0] = (configuration){0, value};
    for (size_t i = 0; i < count; i++) {
        const recorded *o = events[i].operation;
        if (events[i].at == o->invoked) {
            begins(s, o);
            continue;
        }
        int bit = 0;
        while (s->under_way[bit] != o)
            bit++;
        uint64_t held = s->reached[0].value;
        if (!returns(s, bit)) {
            snprintf(problem, sizeof problem, "key %llu, which may have held %llx: no order explains %s",
                     (unsigned long long)key, (unsigned long long)held, describe(o));
            return false;
        }
    }
    memset(s->under_way, 0, sizeof s->under_way);
    return true;
}

const char *recorded_judge_single(const recorded_round *round) {
    search s = {.memo_room = 2 * CONFIGURATIONS};
    s.reached = room_for(CONFIGURATIONS, sizeof *s.reached);
    s.next = room_for(CONFIGURATIONS, sizeof *s.next);
    s.memo = room_for(s.memo_room, sizeof *s.memo);
    event *events = room_for(2 * round->count, sizeof *events);
    bool explained = true;
    for (uint64_t key = 0; key < RECORDED_SINGLE && explained; key++) {
        size_t count = 0;
        for (size_t i = 0; i < round->count; i++) {
            const recorded *o = round->operations[i];
            if (!is_single(o) || o->item[0].key != key)
                continue;
            events[count++] = (event){o->invoked, o};
            if (!died(o))
                events[count++] = (event){returned(o), o};
        }
        qsort(events, count, sizeof *events, by_time);
        explained = explain_key(&s, key, round->before[key].value, events, count);
    }
    free(events);
    free(s.memo);
    free(s.next);
    free(s.reached);
    return explained ? NULL : problem;
}

/* ---- all keys at once: the order that the sequences claim ---------------------------------------------------------- */

typedef struct version {
    uint64_t sequence, value;
} version;

typedef struct bound {
    uint64_t at, sequence;
} bound;

typedef struct order {
    const recorded **commits; /* by sequence */
    size_t count;
    version *versions[RECORDED_KEYS]; /* by sequence; the first is what held before the round */
    size_t lengths[RECORDED_KEYS];
    bound *done;  /* by time of return, with the highest sequence so far */
    bound *begun; /* by time of invocation, with the lowest sequence from here on */
    size_t done_count;
} order;

static int by_sequence(const void *a, const void *b) {
    uint64_t x = (*(const recorded *const *)a)->sequence, y = (*(const recorded *const *)b)->sequence;
    return x < y ? -1 : x > y;
}

static int by_bound(const void *a, const void *b) {
    uint64_t x = ((const bound *)a)->at, y = ((const bound *)b)->at;
    return x < y ? -1 : x > y;
}

static int by_invocation(const void *a, const void *b) {
    uint64_t x = (*(const recorded *const *)a)->invoked, y = (*(const recorded *const *)b)->invoked;
    return x < y ? -1 : x > y;
}

/* The first bound later than `at`; `count` if there is none. */
static size_t first_after(const bound *bounds, size_t count, uint64_t at) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (bounds[middle].at > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The highest sequence among the commits that had returned by then. */
static uint64_t done_by(const order *o, uint64_t at, uint64_t before) {
    size_t i = first_after(o->done, o->done_count, at);
    return i ? o->done[i - 1].sequence : before;
}

/* The lowest among those that were invoked later. */
static uint64_t begun_after(const order *o, uint64_t at) {
    size_t i = first_after(o->begun, o->count, at);
    return i < o->count ? o->begun[i].sequence : UINT64_MAX;
}

/* The newest version of a key at a point. */
static size_t version_at(const order *o, uint64_t key, uint64_t point) {
    size_t low = 0, high = o->lengths[key];
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (o->versions[key][middle].sequence <= point)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static bool is_commit(const recorded *o) {
    if (!o->is_write)
        return false;
    return died(o) ? !is_single(o) && o->sequence != 0 : o->outcome == RECORDED_DONE;
}

static void make_order(order *o, const recorded_round *round) {
    o->commits = room_for(round->count, sizeof *o->commits);
    for (size_t i = 0; i < round->count; i++)
        if (is_commit(round->operations[i]))
            o->commits[o->count++] = round->operations[i];
    qsort(o->commits, o->count, sizeof *o->commits, by_sequence);
    size_t lengths[RECORDED_KEYS] = {0};
    for (size_t i = 0; i < o->count; i++)
        for (unsigned k = 0; k < o->commits[i]->items; k++)
            lengths[o->commits[i]->item[k].key]++;
    for (unsigned key = 0; key < RECORDED_KEYS; key++) {
        o->versions[key] = room_for(lengths[key] + 1, sizeof(version));
        o->versions[key][0] = (version){round->before[key].sequence, round->before[key].value};
        o->lengths[key] = 1;
    }
    o->done = room_for(o->count, sizeof *o->done);
    o->begun = room_for(o->count, sizeof *o->begun);
    for (size_t i = 0; i < o->count; i++) {
        const recorded *c = o->commits[i];
        for (unsigned k = 0; k < c->items; k++)
            o->versions[c->item[k].key][o->lengths[c->item[k].key]++] = (version){c->sequence, c->item[k].value};
        o->begun[i] = (bound){c->invoked, c->sequence};
        if (!died(c))
            o->done[o->done_count++] = (bound){returned(c), c->sequence};
    }
    qsort(o->begun, o->count, sizeof *o->begun, by_bound);
    qsort(o->done, o->done_count, sizeof *o->done, by_bound);
    for (size_t i = 1; i < o->done_count; i++)
        if (o->done[i].sequence < o->done[i - 1].sequence)
            o->done[i].sequence = o->done[i - 1].sequence;
    for (size_t i = o->count; i-- > 1;)
        if (o->begun[i - 1].sequence > o->begun[i].sequence)
            o->begun[i - 1].sequence = o->begun[i].sequence;
}

static void free_order(order *o) {
    for (unsigned key = 0; key < RECORDED_KEYS; key++)
        free(o->versions[key]);
    free(o->commits);
    free(o->done);
    free(o->begun);
}

__attribute__((format(printf, 2, 3))) static bool unexplained(const recorded *o, const char *format, ...);
static bool unexplained(const recorded *o, const char *format, ...) {
    char why[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    snprintf(problem, sizeof problem, "%s: %s", why, describe(o));
    return false;
}

/* The commits' own order: sequences are used once and follow real time, and what a commit expected was so. */
static bool commits_hold(const order *o, const recorded_round *round) {
    for (size_t i = 0; i < o->count; i++) {
        const recorded *c = o->commits[i];
        if (c->sequence <= (i ? o->commits[i - 1]->sequence : round->sequence))
            return unexplained(c, "a sequence was used twice");
        uint64_t before = done_by(o, c->invoked, round->sequence);
        if (c->sequence <= before)
            return unexplained(c, "it was invoked after commit %llu had returned", (unsigned long long)before);
        if (!c->expects || is_single(c))
            continue;
        const recorded_item *expected = &c->item[c->items];
        const version *v = &o->versions[expected->key][version_at(o, expected->key, c->sequence - 1)];
        if ((v->value ? v->sequence : 0) != expected->sequence)
            return unexplained(c, "key %llu was at %llu", (unsigned long long)expected->key,
                               (unsigned long long)v->sequence);
    }
    return true;
}

/* Moves *point forward to where this item is as it was seen. The bare writes of dead processes to single keys are not in
 * the order, so of those keys only what is known counts. */
static bool advance(const order *o, const recorded_item *item, uint64_t *point) {
    const version *versions = o->versions[item->key];
    size_t at = version_at(o, item->key, *point), length = o->lengths[item->key];
    if (item->key < RECORDED_SINGLE) {
        if (item->value == 0)
            return true;
        if (*point < item->sequence)
            *point = item->sequence;
        at = version_at(o, item->key, *point);
        return versions[at].sequence < item->sequence ||
               (versions[at].sequence == item->sequence && versions[at].value == item->value);
    }
    for (; at < length; at++)
        if (item->sequence ? versions[at].sequence == item->sequence : versions[at].value == 0) {
            if (*point < versions[at].sequence)
                *point = versions[at].sequence;
            return item->value == UINT64_MAX || versions[at].value == item->value;
        }
    return false;
}

/* The earliest point that shows what the read saw: the earliest constrains later ones least. */
static bool place(const order *o, const recorded *read, const recorded_item *items, unsigned count, uint64_t lowest,
                  uint64_t *point) {
    uint64_t highest = begun_after(o, returned(read));
    *point = lowest;
    for (uint64_t before = UINT64_MAX; before != *point;) {
        before = *point;
        for (unsigned i = 0; i < count; i++)
            if (!advance(o, &items[i], point))
                return unexplained(read, "from %llu on key %llu is never so, while the others are",
                                   (unsigned long long)lowest, (unsigned long long)items[i].key);
    }
    return *point < highest || unexplained(read, "it shows the state at %llu, after its time (%llu)",
                                           (unsigned long long)*point, (unsigned long long)highest);
}

static bool reads_hold(const order *o, const recorded_round *round) {
    const recorded **reads = room_for(round->count, sizeof *reads);
    uint64_t *points = room_for(round->count, sizeof *points), latest = 0;
    size_t count = 0, past = 0;
    for (size_t i = 0; i < round->count; i++) {
        const recorded *r = round->operations[i];
        if (!died(r) && (!r->is_write || (r->outcome == RECORDED_CONFLICT && !is_single(r))))
            reads[count++] = r;
    }
    qsort(reads, count, sizeof *reads, by_invocation);
    /* A read's point, under the read in the order of returns: found again by its number in the order of invocations. */
    bound *returns_of = room_for(count, sizeof *returns_of);
    for (size_t i = 0; i < count; i++)
        returns_of[i] = (bound){returned(reads[i]), i};
    qsort(returns_of, count, sizeof *returns_of, by_bound);
    bool explained = true;
    for (size_t i = 0; i < count && explained; i++) {
        const recorded *r = reads[i];
        for (; past < count && returns_of[past].at < r->invoked; past++)
            if (latest < points[returns_of[past].sequence])
                latest = points[returns_of[past].sequence];
        uint64_t lowest = done_by(o, r->invoked, round->sequence);
        recorded_item real;
        const recorded_item *items = r->item;
        if (r->is_write) { /* a conflict is a read of what was there instead */
            real = (recorded_item){r->item[r->items].key, r->item[r->items].sequence ? UINT64_MAX : 0,
                                   r->item[r->items].sequence};
            items = &real;
        }
        explained = place(o, r, items, r->is_write ? 1 : r->items, lowest > latest ? lowest : latest, &points[i]);
    }
    free(returns_of);
    free(points);
    free(reads);
    return explained;
}

const char *recorded_judge_many(const recorded_round *round) {
    order o = {0};
    make_order(&o, round);
    bool explained = commits_hold(&o, round) && reads_hold(&o, round);
    free_order(&o);
    return explained ? NULL : problem;
}
