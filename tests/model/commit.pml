/* commit.pml: the commit of append.c, the repair of writer.c and the reading of read.c, with a death between any two stores.
 *
 * Frame i is the i-th commit, a batch of two keys, so a key's version is the number of its frame and the version before it is one
 * less. A frame is EMPTY, TORN (some of its body is there) or WHOLE (its word0 is). Two writers commit N frames between them, each
 * may die at any store and is replaced; at most DEATHS of them die, repairers included. One reader reads both keys, first one
 * by one, then as of one point.
 *
 * Each statement is one store or load of the engine, in its order. Stores are seen in program order: that is the argument of
 * csrc/README.md, which this model takes as given.
 *
 * -DFAULT_name seeds a fault. tests/models.py has the list, and checks that each is found. */

#ifndef N
#define N 2 /* commits */
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#define EMPTY 0
#define TORN 1
#define WHOLE 2
#define NOBODY 255

byte frame[N + 2];
byte slot[2];     /* the frame that the index names for a key; 0: none */
byte committed;   /* the commit point */
byte tail;        /* the last frame that counts */
byte intent;       /* end of the frame to be; 0: none */
byte intent_begin; /* where it begins */
byte intent_after; /* what the tail will be */

byte owner = NOBODY; /* of the writer lock; a dead one's is free */
byte deaths;
byte begun, acknowledged, seen; /* seen: the newest version that a finished read has given */

/* The next store happens, or its process dies before it. */
#define OR_DIES if :: skip :: deaths < DEATHS -> deaths++; goto dead fi

/* What every locker may rely on after it has looked at the intent. */
#define SETTLED \
    assert(intent == 0 && tail == committed); \
    assert(frame[tail + 1] == EMPTY); \
    assert(tail == 0 || frame[tail] == WHOLE); \
    assert(slot[0] == tail && slot[1] == tail)

proctype writer() {
    byte i;
again:
    atomic { owner == NOBODY -> owner = _pid }
    /* ---- ds__writer_enter, ds__repair */
#ifndef FAULT_no_repair
    if
    :: intent != 0 ->
        i = intent_begin;
#ifdef FAULT_intent_cleared_first
        OR_DIES; intent = 0;
#endif
        /* A frame is valid as the successor of what the tail names. */
        if
        :: (intent != 0 && committed >= intent) || (frame[i] == WHOLE && tail == i - 1) ->
            OR_DIES; slot[0] = i;
            OR_DIES; slot[1] = i;
            OR_DIES; committed = i;
            OR_DIES; tail = intent_after
        :: else ->
            OR_DIES;
#ifndef FAULT_torn_bytes_stay
            frame[i] = EMPTY
#else
            skip
#endif
        fi;
        OR_DIES; intent = 0
    :: else
    fi;
#endif
    SETTLED;
    if
    :: tail == N -> owner = NOBODY; goto done
    :: else
    fi;
    /* ---- ds__append */
    i = tail + 1;
    begun = i;
#ifdef FAULT_intent_before_its_content
    OR_DIES; intent = i;
    OR_DIES; intent_begin = i;
    OR_DIES; intent_after = i;
#else
    OR_DIES; intent_begin = i;
    OR_DIES; intent_after = i;
    OR_DIES; intent = i;
#endif
#ifdef FAULT_slots_before_the_frame
    OR_DIES; slot[0] = i;
#endif
    OR_DIES; frame[i] = TORN;
    OR_DIES; frame[i] = WHOLE;
#ifdef FAULT_committed_before_the_slots
    OR_DIES; committed = i;
#endif
    OR_DIES; slot[0] = i;
    OR_DIES; slot[1] = i;
#ifdef FAULT_tail_before_committed
    OR_DIES; tail = i;
    OR_DIES; committed = i;
#else
    OR_DIES; committed = i;
#ifdef FAULT_intent_cleared_before_the_tail
    OR_DIES; intent = 0;
    OR_DIES; tail = i;
#else
    OR_DIES; tail = i;
#endif
#endif
    OR_DIES; intent = 0;
#ifndef FAULT_acknowledged_early
    OR_DIES; owner = NOBODY;
#endif
    acknowledged = (i > acknowledged -> i : acknowledged);
    goto again;
dead:
    atomic {
        if
        :: owner == _pid -> owner = NOBODY /* the kernel gives a dead owner's lock on */
        :: else
        fi
    };
    goto again; /* somebody else takes its place */
done:
    skip
}

/* A record can only be looked at when its frame is whole. */
#define STEP_BACK(at, limit) \
    do \
    :: at > limit -> assert(frame[at] == WHOLE); at = at - 1 \
    :: else -> break \
    od

proctype reader() {
    byte least, at, other, limit, rounds;
    do
    :: rounds < 2 ->
        rounds++;
        /* ---- ds_get: the slot, then the commit point */
        least = (acknowledged > seen -> acknowledged : seen);
        at = slot[0];
        limit = committed;
#ifndef FAULT_no_step_back
        STEP_BACK(at, limit);
#endif
        assert(at == 0 || frame[at] == WHOLE);
        assert(at >= least && at <= begun);
        atomic { seen = (at > seen -> at : seen) };
        /* ---- ds_get_many: the commit point, then every slot, as of it */
        least = (acknowledged > seen -> acknowledged : seen);
#ifdef FAULT_no_one_point
        at = slot[0]; limit = committed; STEP_BACK(at, limit);
        other = slot[1]; limit = committed; STEP_BACK(other, limit);
#else
        limit = committed;
        at = slot[0]; STEP_BACK(at, limit);
        other = slot[1]; STEP_BACK(other, limit);
#endif
        assert(at == other);
        assert(at >= least && at <= begun);
        atomic { seen = (at > seen -> at : seen) }
    :: else -> break
    od
}

init {
    atomic { run writer(); run writer(); run reader() };
    /* All of it ends: nobody waits for ever, whoever died (an invalid end state otherwise). */
    _nr_pr == 1;
    assert(tail == N && committed == N && intent == 0 && acknowledged <= N)
}
