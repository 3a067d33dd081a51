/* lifeline.h: how the host of an operator learns at once that a worker is dead, and puts the successor to work.
 *
 * Not part of the engine, which knows no processes: it sits above dora_state.h and uses nothing else of it.
 *
 * A worker's main thread takes a robust mutex in memory that it shares with the host, and never gives it back. When it
 * dies, of whatever, the kernel hands the mutex to a thread that waits for it here: before it frees the memory of the
 * dead process, which a pidfd and the end of a socket wait for (65 ms at 1 GiB, against 0.15 ms).
 *
 * That thread holds no lock of the caller's (Python's GIL), so nothing that the rest of the host does, such as sending
 * 16 MB through a library that keeps the GIL, delays what it does:
 *
 *  1. SIGKILL through the pidfd: when the main thread alone has ended, the others follow;
 *  2. fence the worker off and read its commit record: from here on it is known whether its event counts;
 *  3. wait for the pidfd, if the successor must not run beside what is left of the dead (ds_handover.waits);
 *  4. send START, and the event once more if it does not count, to the successor;
 *  5. write the eventfd.
 *
 * 2 to 4 are done only if ds_lifeline_arm() said how, and else left to the caller. Whoever is first acts, this thread or
 * the caller by ds_lifeline_disarm(), never both. */
#ifndef DORA_STATE_LIFELINE_H
#define DORA_STATE_LIFELINE_H

#include "dora_state.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_lifeline ds_lifeline;

/* Shared with the mutex: what the worker leaves behind. Zeros at first.
 *
 *     offset  size  what
 *     0       496   its last words, or the host's about it; any bytes
 *     496     8     the number of the event that it began to handle last
 *     504     7     zero
 *     511     1     in what the successor gets: 1 when the dead has left an event unfinished */
enum { DS_LIFELINE_NOTE = 512, DS_LIFELINE_BEGUN = 496 };

/* The host's end, and a descriptor for the worker (memfd, close-on-exec), which the caller closes. */
ds_status ds_lifeline_new(ds_lifeline **out, int *memfd);
/* Watches no more. A thread that still waits frees what is left when the worker is dead. */
void ds_lifeline_free(ds_lifeline *line);

/* In the worker: the calling thread's end is from now on what the host waits for. To be called once, by the main thread. */
ds_status ds_lifeline_hold(int memfd, char **note);
/* The same note, in the host. */
char *ds_lifeline_note(ds_lifeline *line);

/* Starts the thread, once the worker has said that it holds its end. Both descriptors are duplicated. */
ds_status ds_lifeline_watch(ds_lifeline *line, int pidfd, int eventfd);

/* What is to be done at the worker's death. All is copied, the socket duplicated. */
typedef struct ds_handover {
    ds_store *store;      /* of the operator; must stay open until disarm or free */
    uint64_t incarnation; /* of the successor: nobody below it commits any more */
    int socket;           /* the successor's */
    bool waits;           /* for the pidfd, before START */
    const void *start;    /* the message; its last DS_LIFELINE_NOTE bytes become the note */
    size_t start_size;
    const char *source; /* the operator's file: a successor that has imported an older one is not used */
    int64_t source_mtime_ns;
    uint64_t source_size;
} ds_handover;

/* *armed: false when the worker is dead already. The event is none until ds_lifeline_event(). */
ds_status ds_lifeline_arm(ds_lifeline *line, const ds_handover *handover, bool *armed);
/* The event that the worker gets next: its number, and its message, which the successor gets too when the record does not
 * name it. Bytes 2 and 3 of that count the attempts: one more if the worker had begun. Size 0: START is sent without it,
 * and the caller sends it. To be called before the event itself is sent. *alive: false when the worker is dead already. */
ds_status ds_lifeline_event(ds_lifeline *line, uint64_t number, const void *message, size_t size, bool *alive);

/* What was armed does not hold any more. Does not wait: what has begun goes on. */
void ds_lifeline_withdraw(ds_lifeline *line);

typedef struct ds_lifeline_report {
    bool died;         /* noticed here; all below is false or 0 otherwise */
    bool started;      /* the successor has START */
    bool replayed;     /* and the event */
    uint64_t died_ns;  /* CLOCK_MONOTONIC */
    uint64_t ready_ns; /* when everything above was done */
} ds_lifeline_report;

uint64_t ds_lifeline_begun(ds_lifeline *line);
/* Whether the worker's death was noticed here. */
bool ds_lifeline_died(ds_lifeline *line);
/* From now on the thread only kills and reports. What it has begun it finishes first; then `report` tells of it. */
void ds_lifeline_disarm(ds_lifeline *line, ds_lifeline_report *report);

#ifdef __cplusplus
}
#endif

#endif
