/* recorded.h: what processes did to a store, as they saw it, and the question whether any order explains it (I16).
 *
 * Every operation notes two moments of one shared clock: when it was invoked and when it had returned. The store is
 * linearizable if each operation can be given one moment between its two, so that in the order of these moments every
 * one of them did and saw what a plain dictionary would have. An operation whose process was killed may have taken effect
 * at any moment after it was invoked, or never.
 *
 * Two families of keys, two judges, neither of which believes the other:
 *   single   keys below RECORDED_SINGLE see ds_get, ds_put, ds_delete and compare-and-put. Wing and Gong's search with
 *            Lowe's memo, key by key (linearizability is local), from values alone; sequences are not looked at.
 *   many     the other keys are written in batches and read by get_many and scans, so they cannot be judged key by
 *            key. The commits' sequences claim an order; the judge holds the store to it: every read must equal the state
 *            at one point of that order, no point may lie before a commit that had returned, or behind one that was not yet
 *            invoked, and points may not run backwards. A batch of the dead is decided by its marker (linearizability.c).
 *
 * All values are unique, and never 0, which stands for "missing". */
#ifndef RECORDED_H
#define RECORDED_H

#include <stdatomic.h>

#include "check.h"

enum { RECORDED_SINGLE = 16, RECORDED_KEYS = 32, RECORDED_ITEMS = RECORDED_KEYS };

typedef struct recorded_item {
    uint64_t key;
    uint64_t value;    /* written or seen; 0: deleted or missing */
    uint64_t sequence; /* seen; of an expectation, the one expected, or after a conflict the real one */
} recorded_item;

typedef enum recorded_outcome { RECORDED_DIED, RECORDED_DONE, RECORDED_CONFLICT, RECORDED_NOTHING } recorded_outcome;

typedef struct recorded {
    uint64_t invoked;
    _Atomic uint64_t returned; /* stored last; 0 while it is under way, and for ever if its process died */
    uint64_t sequence;         /* of the commit; of a dead one's, as its marker tells, 0: it never happened */
    uint32_t size;             /* of this, in bytes, items and all */
    uint8_t is_write;
    uint8_t outcome; /* recorded_outcome; NOTHING: a delete found the key missing */
    uint8_t items;   /* read or written */
    uint8_t expects; /* 0 or 1: one more item behind them is an expectation */
    recorded_item item[];
} recorded;

/* What a key holds between two rounds, when nothing is under way. */
typedef struct recorded_state {
    uint64_t value, sequence;
} recorded_state;

typedef struct recorded_round {
    recorded **operations; /* in any order */
    size_t count;
    recorded_state before[RECORDED_KEYS]; /* what held when it began */
    uint64_t sequence;                    /* of the last commit before it */
} recorded_round;

/* NULL, or what cannot be explained. The text is good until the next call. */
const char *recorded_judge_single(const recorded_round *round);
const char *recorded_judge_many(const recorded_round *round);

#endif
