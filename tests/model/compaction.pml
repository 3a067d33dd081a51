/* compaction.pml: compaction (compaction.c), syncs (sync.c) and recovery after a power loss (rebuild.c).
 *
 * The log is a row of P places for records, SIZE of them in a segment. One store, two keys, at most COMMITS commits: puts and
 * deletes, in any order, with a sync or a compaction between any two of them. The power may go at any step, LOSSES times. On disk
 * is then what was synced, and of everything else any subset: each record, each name of a segment, each unlink for itself.
 * Recovery takes the newest HEAD whose range is whole, reads to the first place that is not, and drops what follows.
 *
 * What is claimed: after each recovery both keys are as after the same commit m, with synced <= m <= begun, and so never lost
 * and never back from the dead (I7, I8, I9, I17, I18).
 *
 * -DFAULT_name seeds a fault. tests/models.py has the list, and checks that each is found. */

#ifndef COMMITS
#define COMMITS 3
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#define SIZE 2
#define SEGMENTS 6
#define P (SIZE * SEGMENTS)
#define NOTHING 0
#define PUT 1
#define TOMBSTONE 2
#define HEAD 3

/* The log: kind, key, the commit it belongs to (a relocated record keeps its own), for a HEAD the new first segment. */
byte kind[P], key[P], commit[P], first_of[P];
bool on_disk[P];         /* the record */
bool there[SEGMENTS];    /* the name of the segment, for the process */
bool named[SEGMENTS];    /* and on disk */
bool may_be[SEGMENTS];   /* its name is on disk or not, until the directory is synced */
byte tail, first;        /* next place; first segment */
byte index[2];           /* place of the key's newest record, plus one; 0: none */
byte state[COMMITS + 1] ; /* after each commit: the commit that the keys are at, key 0 in units, key 1 in tens; 0: missing */
byte begun, synced;      /* commits */
byte losses;

#define SEGMENT(at) ((at) / SIZE)

/* The power goes here, or not. */
#define OR_POWER_GOES if :: losses < LOSSES -> lose_power(); goto next :: skip fi

inline append(what, whose, which, beginning) {
    atomic {
        kind[tail] = what;
        key[tail] = whose;
        commit[tail] = which;
        first_of[tail] = beginning;
        on_disk[tail] = false;
        if
        :: !there[SEGMENT(tail)] -> there[SEGMENT(tail)] = true; may_be[SEGMENT(tail)] = true
        :: else
        fi;
        tail++
    }
}

/* From a place on, with the names. */
inline sync_from(from) {
    atomic {
        i = from;
        do
        :: i < tail -> on_disk[i] = true; i++
        :: else -> break
        od;
        i = 0;
        do
#ifndef FAULT_names_not_synced
        :: i < SEGMENTS -> named[i] = there[i]; may_be[i] = false; i++
#else
        :: i < SEGMENTS -> i++
#endif
        :: else -> break
        od;
        i = 0
    }
}

inline do_commit() {
    atomic {
        begun++;
        if :: k = 0 :: k = 1 fi;
        if
        :: append(PUT, k, begun, 0);
            state[begun] = (k == 0 -> state[begun - 1] / 10 * 10 + begun : state[begun - 1] % 10 + 10 * begun)
        :: index[k] != 0 && kind[index[k] - 1] == PUT ->
            append(TOMBSTONE, k, begun, 0);
            state[begun] = (k == 0 -> state[begun - 1] / 10 * 10 : state[begun - 1] % 10)
        fi;
        index[k] = tail;
        k = 0
    }
}

/* Empties `victim`, moves the start of the log behind it, syncs, and then unlinks it. */
inline compact(victim) {
    i = victim * SIZE;
    do
    :: i < (victim + 1) * SIZE ->
        if
#ifdef FAULT_relocates_the_dead
        :: kind[i] == PUT && index[key[i]] != i + 1 -> append(PUT, key[i], commit[i], 0)
#endif
        :: kind[i] == PUT && index[key[i]] == i + 1 ->
#ifndef FAULT_forgets_to_relocate
            append(PUT, key[i], commit[i], 0);
            index[key[i]] = tail
#else
            skip
#endif
        :: kind[i] == TOMBSTONE && index[key[i]] == i + 1 -> index[key[i]] = 0 /* nothing older can hold its key */
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    OR_POWER_GOES;
#ifndef FAULT_no_head
    append(HEAD, 0, 0, victim + 1);
#endif
    OR_POWER_GOES;
#ifndef FAULT_drops_before_the_sync
    sync_from((victim + 1) * SIZE);
    atomic { synced = begun };
#endif
    OR_POWER_GOES;
    atomic { there[victim] = false; may_be[victim] = true; first = victim + 1 };
    OR_POWER_GOES
}

/* ---- power loss, and recovery ---------------------------------------------------------------------------------------- */

/* Is everything from segment f through place h on disk? */
inline check_range(f, h) {
    whole = true;
    j = f * SIZE;
    do
    :: j <= h -> whole = whole && named[SEGMENT(j)] && on_disk[j] && kind[j] != NOTHING; j++
    :: else -> break
    od
}

inline lose_power() {
    atomic {
        losses++;
        /* What reached the disk. */
        i = 0;
        do
        :: i < SEGMENTS ->
            if
            :: may_be[i] -> if :: named[i] = true :: named[i] = false fi
            :: else
            fi;
            may_be[i] = false;
            i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < tail ->
            if
            :: !on_disk[i] -> if :: on_disk[i] = true :: skip fi
            :: else
            fi;
            i++
        :: else -> break
        od;
        /* The newest HEAD with a whole range; without one, the log begins at its first segment. */
        first = 0;
        i = tail;
        found = false;
        do
        :: i > 0 && !found ->
            i--;
            if
            :: kind[i] == HEAD && on_disk[i] && named[SEGMENT(i)] ->
                check_range(first_of[i], i);
                if
#ifdef FAULT_any_head_is_believed
                :: true -> found = true; first = first_of[i]
#else
                :: whole -> found = true; first = first_of[i]
                :: else
#endif
                fi
            :: else
            fi
        :: else -> break
        od;
        /* Reads from there to the first place that is not whole, and applies what is there. */
        index[0] = 0; index[1] = 0; seen = 0;
        i = first * SIZE;
        do
        :: i < tail && named[SEGMENT(i)] && on_disk[i] ->
            if
#ifdef FAULT_tombstones_forgotten
            :: kind[i] == PUT ->
#else
            :: kind[i] == PUT || kind[i] == TOMBSTONE ->
#endif
                index[key[i]] = i + 1;
                seen = (commit[i] > seen -> commit[i] : seen)
            :: else
            fi;
            i++
        :: else -> break
        od;
        /* Everything behind it goes; what is read is on disk. */
        j = i;
        do
        :: j < P -> kind[j] = NOTHING; on_disk[j] = false; j++
        :: else -> break
        od;
        tail = i;
        j = 0;
        do
        :: j < SEGMENTS ->
            there[j] = j >= first && j * SIZE < tail;
            named[j] = there[j];
            j++
        :: else -> break
        od;
        /* The claim: some commit m that explains both keys, synced <= m <= begun. */
        now = 0;
        if :: index[0] != 0 && kind[index[0] - 1] == PUT -> now = now + commit[index[0] - 1] :: else fi;
        if :: index[1] != 0 && kind[index[1] - 1] == PUT -> now = now + 10 * commit[index[1] - 1] :: else fi;
        found = false;
        j = synced;
        do
        :: j <= begun -> if :: state[j] == now && !found && j >= seen -> found = true; m = j :: else fi; j++
        :: else -> break
        od;
        assert(found);
        /* It goes on from there. */
        begun = m; synced = m;
        i = 0; j = 0; k = 0; now = 0; seen = 0; whole = false; found = false; m = 0
    }
}


active proctype store() {
    byte i, j, k, now, m, seen;
    bool whole, found;
next:
    do
    :: begun < COMMITS && tail < P - 1 -> do_commit(); OR_POWER_GOES
    :: synced < begun -> sync_from(first * SIZE); atomic { synced = begun }; OR_POWER_GOES
    :: SEGMENT(tail) > first && tail < P - 3 -> compact(first)
    :: losses < LOSSES -> lose_power()
    :: begun == COMMITS || tail >= P - 3 -> break
    od
}
