/* lifeline.c: the thread that waits for a worker's death. See lifeline.h.
 *
 *  state      who changes what
 *  WATCHING   the caller arms and disarms, under the mutex
 *  ACTING     the thread alone touches the handover, without the mutex; calls that want it wait
 *  OVER       the report is final
 *
 * The caller and the thread hold one reference each: a worker that hangs in the kernel is not dead, and whoever closes
 * down must not wait for it. */
#include "lifeline.h"

#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    PATIENCE_MS = 1000,      /* for a successor that does not read, and for a process that hangs in the kernel */
    STACK_BYTES = 256 << 10, /* of the thread; the engine's calls are shallow */
};

enum state { WATCHING, ACTING, OVER };

struct page {
    pthread_mutex_t held; /* by the worker */
    char note[DS_LIFELINE_NOTE];
};

struct ds_lifeline {
    struct page *page; /* shared with the worker */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned references;
    enum state state;
    bool armed;
    int pidfd;
    int eventfd;
    ds_handover handover; /* start and source are ours; socket -1: none */
    size_t start_room;
    uint64_t number; /* of the event that the worker has; 0: none */
    char *event;
    size_t event_size, event_room;
    ds_lifeline_report report;
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* The shared page */

static ds_status map_page(int memfd, struct page **out) {
    void *page = mmap(NULL, sizeof **out, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (page == MAP_FAILED)
        return ds__fail(DS_IO, errno, "cannot map a lifeline: %s", strerror(errno));
    *out = page;
    return DS_OK;
}

static ds_status make_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error == 0) {
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        error = pthread_mutex_init(mutex, &attributes);
        pthread_mutexattr_destroy(&attributes);
    }
    return error == 0 ? DS_OK : ds__fail(DS_IO, error, "cannot make a robust mutex: %s", strerror(error));
}

static ds_status make_page(int *memfd, struct page **out) {
    *memfd = memfd_create("dora-state-lifeline", MFD_CLOEXEC);
    if (*memfd < 0 || ftruncate(*memfd, (off_t)sizeof **out) != 0) {
        int error = errno;
        close_fd(memfd);
        return ds__fail(DS_IO, error, "cannot make shared memory for a lifeline: %s", strerror(error));
    }
    ds_status status = map_page(*memfd, out);
    if (status == DS_OK)
        status = make_mutex(&(*out)->held);
    if (status != DS_OK)
        close_fd(memfd);
    return status;
}

ds_status ds_lifeline_new(ds_lifeline **out, int *memfd) {
    ds_lifeline *line = calloc(1, sizeof *line);
    if (line == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory for a lifeline");
    ds_status status = make_page(memfd, &line->page);
    if (status != DS_OK) {
        free(line);
        return status;
    }
    pthread_mutex_init(&line->mutex, NULL);
    pthread_cond_init(&line->changed, NULL);
    line->references = 1;
    line->pidfd = line->eventfd = line->handover.socket = -1;
    *out = line;
    return DS_OK;
}

ds_status ds_lifeline_hold(int memfd, char **note) {
    struct page *page = NULL;
    ds_status status = map_page(memfd, &page);
    if (status != DS_OK)
        return status;
    *note = page->note;
    int error = pthread_mutex_trylock(&page->held);
    return error == 0 ? DS_OK : ds__fail(DS_IN_USE, error, "the lifeline is held already");
}

char *ds_lifeline_note(ds_lifeline *line) {
    return line->page->note;
}

uint64_t ds_lifeline_begun(ds_lifeline *line) {
    uint64_t number;
    memcpy(&number, line->page->note + DS_LIFELINE_BEGUN, sizeof number);
    return number;
}

static void forget_handover(ds_lifeline *line) {
    close_fd(&line->handover.socket);
    line->armed = false;
    line->number = 0;
    line->event_size = 0;
}

static void give_back(ds_lifeline *line) {
    pthread_mutex_lock(&line->mutex);
    bool last = --line->references == 0;
    pthread_mutex_unlock(&line->mutex);
    if (!last)
        return;
    forget_handover(line);
    close_fd(&line->pidfd);
    close_fd(&line->eventfd);
    munmap(line->page, sizeof *line->page);
    pthread_cond_destroy(&line->changed);
    pthread_mutex_destroy(&line->mutex);
    free((void *)(uintptr_t)line->handover.start);
    free((void *)(uintptr_t)line->handover.source);
    free(line->event);
    free(line);
}

void ds_lifeline_free(ds_lifeline *line) {
    ds_lifeline_report report;
    if (line == NULL)
        return;
    ds_lifeline_disarm(line, &report);
    give_back(line);
}

/* Arming */

/* Copies into memory that grows and stays, since this happens with every event. */
static bool keep(char **to, size_t *room, const void *from, size_t size) {
    if (size > *room) {
        char *larger = realloc(*to, size);
        if (larger == NULL)
            return false;
        *to = larger;
        *room = size;
    }
    if (size > 0)
        memcpy(*to, from, size);
    return true;
}

static ds_status take_over(ds_lifeline *line, const ds_handover *handover) {
    char *start = (char *)(uintptr_t)line->handover.start, *source = strdup(handover->source);
    int fd = fcntl(handover->socket, F_DUPFD_CLOEXEC, 3);
    if (handover->start_size < DS_LIFELINE_NOTE) {
        free(source);
        close_fd(&fd);
        return ds__fail(DS_INVALID, 0, "START has no room for the note");
    }
    if (fd < 0 || source == NULL || !keep(&start, &line->start_room, handover->start, handover->start_size)) {
        free(source);
        close_fd(&fd);
        return ds__fail(DS_IO, errno, "cannot arm a lifeline: %s", strerror(errno));
    }
    free((void *)(uintptr_t)line->handover.source);
    line->handover = *handover;
    line->handover.socket = fd;
    line->handover.start = start;
    line->handover.source = source;
    return DS_OK;
}

ds_status ds_lifeline_arm(ds_lifeline *line, const ds_handover *handover, bool *armed) {
    ds_status status = DS_OK;
    pthread_mutex_lock(&line->mutex);
    *armed = line->state == WATCHING;
    if (*armed) {
        forget_handover(line);
        status = take_over(line, handover);
        line->armed = status == DS_OK;
    }
    pthread_mutex_unlock(&line->mutex);
    return status;
}

ds_status ds_lifeline_event(ds_lifeline *line, uint64_t number, const void *message, size_t size, bool *alive) {
    bool kept = true;
    pthread_mutex_lock(&line->mutex);
    *alive = line->state == WATCHING;
    if (*alive && line->armed) {
        kept = keep(&line->event, &line->event_room, message, size);
        line->number = number;
        line->event_size = kept ? size : 0;
    }
    pthread_mutex_unlock(&line->mutex);
    return kept ? DS_OK : ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory for an event of %zu bytes", size);
}

void ds_lifeline_withdraw(ds_lifeline *line) {
    pthread_mutex_lock(&line->mutex);
    if (line->state == WATCHING)
        forget_handover(line);
    pthread_mutex_unlock(&line->mutex);
}

bool ds_lifeline_died(ds_lifeline *line) {
    pthread_mutex_lock(&line->mutex);
    bool died = line->report.died;
    pthread_mutex_unlock(&line->mutex);
    return died;
}

void ds_lifeline_disarm(ds_lifeline *line, ds_lifeline_report *report) {
    pthread_mutex_lock(&line->mutex);
    while (line->state == ACTING)
        pthread_cond_wait(&line->changed, &line->mutex);
    forget_handover(line);
    *report = line->report;
    pthread_mutex_unlock(&line->mutex);
}

/* The thread */

static bool is_current(const ds_handover *handover) {
    struct stat status;
    if (stat(handover->source, &status) != 0)
        return errno == ENOENT; /* the file is gone: better an operator than none */
    int64_t mtime_ns = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
    return mtime_ns == handover->source_mtime_ns && (uint64_t)status.st_size == handover->source_size;
}

static bool is_missing(ds_store *store, const char *key) {
    ds_value value;
    ds_status status = ds_get(store, DS_RUNTIME, key, strlen(key), &value);
    if (status == DS_OK)
        ds_unpin(&value);
    return status == DS_MISSING;
}

/* The number of the last event that counts. False when it is for the supervisor to judge: a status that is not CONTINUE,
 * or a step that is prepared and not finished. The layout is in src/dora_state/runtime/step.py, and shared_step.py. */
static bool read_step(ds_store *store, uint64_t *number) {
    ds_value value;
    ds_status status = ds_get(store, DS_RUNTIME, "step", 4, &value);
    *number = 0;
    if (status == DS_MISSING)
        return is_missing(store, "prepare");
    if (status != DS_OK)
        return false;
    const unsigned char *bytes = value.data;
    bool plain = value.size == 24 && bytes[0] == 1 && bytes[1] == 0;
    if (plain)
        memcpy(number, bytes + 8, sizeof *number);
    if (ds_value_check(&value) != DS_OK)
        plain = false;
    ds_unpin(&value);
    return plain && is_missing(store, "prepare");
}

static bool wait_for(int fd, short events) {
    struct pollfd item = {.fd = fd, .events = events};
    int ready;
    do
        ready = poll(&item, 1, PATIENCE_MS);
    while (ready < 0 && errno == EINTR);
    return ready > 0;
}

static bool send_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN && wait_for(fd, POLLOUT))
            continue;
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return false;
        data += sent;
        size -= (size_t)sent;
    }
    return true;
}

static void add_note(ds_lifeline *line, bool unfinished) {
    char *note = (char *)(uintptr_t)line->handover.start + line->handover.start_size - DS_LIFELINE_NOTE;
    memcpy(note, line->page->note, DS_LIFELINE_NOTE - 1);
    note[DS_LIFELINE_NOTE - 1] = unfinished;
}

static void count_attempt(ds_lifeline *line) {
    uint16_t attempt;
    if (line->event_size < 4 || ds_lifeline_begun(line) != line->number)
        return;
    memcpy(&attempt, line->event + 2, sizeof attempt);
    attempt++;
    memcpy(line->event + 2, &attempt, sizeof attempt);
}

static void hand_over(ds_lifeline *line) {
    const ds_handover *handover = &line->handover;
    uint64_t number;
    if (!is_current(handover) || ds_fence(handover->store, handover->incarnation, NULL) != DS_OK)
        return;
    if (!read_step(handover->store, &number) || (handover->waits && !wait_for(line->pidfd, POLLIN)))
        return;
    line->report.started = true;
    bool unfinished = line->number > number;
    add_note(line, unfinished);
    bool whole = send_all(handover->socket, handover->start, handover->start_size);
    if (whole && unfinished && line->event_size > 0) {
        line->report.replayed = true;
        count_attempt(line);
        whole = send_all(handover->socket, line->event, line->event_size);
    }
    if (!whole) /* it is dead, or does not read: then it ends, and that is the end of a worker like any */
        shutdown(handover->socket, SHUT_RDWR);
}

static void tell(int eventfd) {
    uint64_t one = 1;
    while (write(eventfd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void act(ds_lifeline *line) {
    syscall(SYS_pidfd_send_signal, line->pidfd, SIGKILL, NULL, 0);
    pthread_mutex_lock(&line->mutex);
    line->report.died = true;
    line->report.died_ns = now_ns();
    line->state = ACTING;
    pthread_mutex_unlock(&line->mutex);
    if (line->armed)
        hand_over(line);
    pthread_mutex_lock(&line->mutex);
    line->report.ready_ns = now_ns();
    line->state = OVER;
    pthread_cond_broadcast(&line->changed);
    pthread_mutex_unlock(&line->mutex);
    tell(line->eventfd);
}

static void *watch(void *argument) {
    ds_lifeline *line = argument;
    int error = pthread_mutex_lock(&line->page->held);
    if (error == EOWNERDEAD)
        pthread_mutex_consistent(&line->page->held);
    if (error == 0 || error == EOWNERDEAD)
        pthread_mutex_unlock(&line->page->held);
    if (error == EOWNERDEAD) /* else it was never held; the pidfd tells of the end */
        act(line);
    give_back(line);
    return NULL;
}

static int start_thread(ds_lifeline *line) {
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread inherits it: signals are for the caller's */
    error = pthread_create(&thread, &attributes, watch, line);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

ds_status ds_lifeline_watch(ds_lifeline *line, int pidfd, int eventfd) {
    if (line->pidfd >= 0)
        return ds__fail(DS_INVALID, 0, "a lifeline is watched already");
    line->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
    line->eventfd = fcntl(eventfd, F_DUPFD_CLOEXEC, 3);
    int error = line->pidfd < 0 || line->eventfd < 0 ? errno : 0;
    if (error == 0) {
        line->references++;
        error = start_thread(line);
        if (error != 0)
            line->references--;
    }
    return error == 0 ? DS_OK : ds__fail(DS_IO, error, "cannot watch a lifeline: %s", strerror(error));
}
