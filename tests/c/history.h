/* history.h: the oracle of the crash tests. A writer's whole life follows from a seed: batch 1, batch 2, ...
 *
 * A history owns one writer's keys and knows what each batch does to them, so the state after batch m is known without
 * asking the store: puts of checkable bytes, deletes, keys named twice. Every batch also puts its number under a marker key,
 * somewhere among its other changes. A test reads what the store holds, takes m from the marker, and compares every
 * value with the state after batch m: a batch applied in half, in the wrong order, or twice does not match.
 *
 *     advance(m):  the state becomes that after batches 1..m
 *     make(b):     the changes of batch b, ready for ds_commit()
 *     collect:     what the store really holds, by single reads or by one walk
 *     matches:     the two are equal, byte by byte, and nothing else is there
 */
#ifndef HISTORY_H
#define HISTORY_H

#include "check.h"

enum {
    HISTORY_CHANGES = 8, /* most changes of a batch, the marker included; a test may add two of its own */
    HISTORY_KEY_LIMIT = 320,
};

typedef struct history_key {
    uint8_t keyspace;
    uint16_t size;
    char name[HISTORY_KEY_LIMIT];
    uint64_t batch; /* that put it last; 0: missing */
    unsigned change;
    ds_status seen; /* what the last collect found: DS_OK, DS_MISSING, or a failure */
    ds_value value; /* pinned while `seen` is DS_OK */
} history_key;

typedef struct history {
    uint64_t seed;
    unsigned writer;
    unsigned keys; /* the marker is one more, at keys[keys] */
    size_t value_limit;
    uint64_t batch; /* the state is that after this batch */
    bool
        expiring; /* some keys expire: a delete may be a put that expires at once, a put one that expires after the test */
    history_key *key;
    unsigned char *bytes; /* values of the batch made last */
    uint64_t number;      /* the marker's value in it */
} history;

/* A walk is at one point of one keyspace: who walks beside a running writer asks for 1 keyspace, others for 2. */
void history_init(history *h, uint64_t seed, unsigned writer, unsigned keys, unsigned keyspaces, size_t value_limit);
void history_free(history *h);
void history_advance(history *h, uint64_t batch);
/* The changes point into the history; they are good until the next call. */
size_t history_make(history *h, uint64_t batch, ds_change changes[HISTORY_CHANGES]);

/* Both return DS_OK unless the store as a whole failed; a key's own status is in `seen`. A walk also fails, with
 * DS_CORRUPT and a problem, on a key that belongs to no history or comes twice. `ignored` may name one key of the test's. */
ds_status history_collect(history *h, ds_store *store);
ds_status history_walk(history *set, size_t count, ds_store *store, const char *ignored);
/* Unpins what was collected; collecting again and history_free() do so too. */
void history_release(history *h);
/* The batch whose marker was collected; 0 if there was none. */
uint64_t history_seen(const history *h);
/* What was collected equals the state. If not, history_problem() says where. */
bool history_matches(const history *h);
/* The same for one key of a damaged store, whose read did not fail. */
bool history_key_matches(const history *h, unsigned key);
const char *history_problem(void);

#endif
