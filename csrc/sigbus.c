/* sigbus.c: the handler, and the list of ranges that it looks into. See sigbus.h.
 *
 * The list is read in the handler and changed by any thread, so there is no lock in it: a slot is claimed by exchanging
 * `begin` from FREE to CLAIMED, then `size` and `broken` are set, then `begin` (release). The handler reads `begin` (acquire)
 * first. A range that is being released is being unmapped by its only user, so nobody faults in it. Slots are used again, never
 * freed.
 *
 * In the handler: atomics, mmap(), sigaction(), raise(). mmap() is not on POSIX's list of async-signal-safe functions;
 * on Linux it is a bare system call.
 *
 * A fault elsewhere is the affair of the handler that was there before, or of the default action. Whoever installs a handler
 * after us replaces ours; docs/consistency.md says so. */
#include "sigbus.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FREE = 0, CLAIMED = 1, SLOTS = 254 };

struct slot {
    _Atomic uintptr_t begin;
    _Atomic uint64_t size;
    _Atomic uintptr_t broken; /* the lowest page that was replaced; UINTPTR_MAX: none */
};

struct slots {
    struct slot slot[SLOTS];
    _Atomic(struct slots *) next;
};

static struct slots first;
static struct sigaction before;
static uintptr_t page_size;
_Atomic uint32_t ds__sigbus_faults;

/* ---- the list -------------------------------------------------------------------------------------------------- */

static struct slot *find(uintptr_t address) {
    for (struct slots *slots = &first; slots != NULL; slots = atomic_load_explicit(&slots->next, memory_order_acquire))
        for (int i = 0; i < SLOTS; i++) {
            uintptr_t begin = atomic_load_explicit(&slots->slot[i].begin, memory_order_acquire);
            if (begin > CLAIMED && address >= begin &&
                address - begin < atomic_load_explicit(&slots->slot[i].size, memory_order_relaxed))
                return &slots->slot[i];
        }
    return NULL;
}

static struct slot *claim(struct slots *slots) {
    for (int i = 0; i < SLOTS; i++) {
        uintptr_t expected = FREE;
        if (atomic_load_explicit(&slots->slot[i].begin, memory_order_relaxed) == FREE &&
            atomic_compare_exchange_strong_explicit(&slots->slot[i].begin, &expected, CLAIMED, memory_order_acquire,
                                                    memory_order_relaxed))
            return &slots->slot[i];
    }
    return NULL;
}

/* The next part of the list, made when there is none. */
static struct slots *after(struct slots *slots) {
    struct slots *next = atomic_load_explicit(&slots->next, memory_order_acquire);
    if (next != NULL)
        return next;
    void *fresh = mmap(NULL, sizeof *next, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED)
        return NULL;
    if (atomic_compare_exchange_strong_explicit(&slots->next, &next, fresh, memory_order_acq_rel, memory_order_acquire))
        return fresh;
    munmap(fresh, sizeof *next); /* another thread was faster */
    return next;
}

/* ---- the handler ----------------------------------------------------------------------------------------------- */

static void pass_on(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else if (info->si_code > 0 || before.sa_handler == SIG_DFL) {
        struct sigaction none = {.sa_handler = SIG_DFL};
        (void)sigaction(SIGBUS, &none, NULL);
        if (info->si_code <= 0) /* sent by somebody; a fault comes again by itself */
            (void)raise(SIGBUS);
    }
}

static void note(struct slot *slot, uintptr_t page) {
    uintptr_t lowest = atomic_load_explicit(&slot->broken, memory_order_relaxed);
    while (page < lowest && !atomic_compare_exchange_weak_explicit(&slot->broken, &lowest, page, memory_order_release,
                                                                   memory_order_relaxed))
        ;
}

static void handle(int number, siginfo_t *info, void *context) {
    int error = errno;
    uintptr_t address = (uintptr_t)info->si_addr;
    struct slot *slot = info->si_code > 0 ? find(address) : NULL;
    void *page = (void *)(address / page_size * page_size);
    if (slot != NULL) { /* before the page is there for others to read */
        note(slot, (uintptr_t)page);
        atomic_fetch_add_explicit(&ds__sigbus_faults, 1, memory_order_seq_cst);
    }
    if (slot == NULL ||
        mmap(page, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
        pass_on(number, info, context);
    errno = error;
}

static void install(void) {
    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    action.sa_sigaction = handle;
    sigemptyset(&action.sa_mask);
    /* `before` must be there when the first signal comes. */
    (void)sigaction(SIGBUS, NULL, &before);
    (void)sigaction(SIGBUS, &action, NULL);
}

/* ---- the calls ------------------------------------------------------------------------------------------------- */

bool ds__sigbus_guard(const void *address, uint64_t size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    struct slot *slot = NULL;
    for (struct slots *slots = &first; slots != NULL; slots = after(slots)) {
        slot = claim(slots);
        if (slot != NULL)
            break;
    }
    if (slot == NULL)
        return false;
    atomic_store_explicit(&slot->size, size, memory_order_relaxed);
    atomic_store_explicit(&slot->broken, UINTPTR_MAX, memory_order_relaxed);
    atomic_store_explicit(&slot->begin, (uintptr_t)address, memory_order_release);
    return true;
}

void ds__sigbus_release(const void *address) {
    struct slot *slot = find((uintptr_t)address);
    if (slot != NULL && atomic_load_explicit(&slot->begin, memory_order_relaxed) == (uintptr_t)address)
        atomic_store_explicit(&slot->begin, FREE, memory_order_release);
}

bool ds__sigbus_search(const void *address) {
    const struct slot *slot = find((uintptr_t)address);
    return slot != NULL && atomic_load_explicit(&slot->broken, memory_order_acquire) != UINTPTR_MAX;
}

bool ds__sigbus_lost(const void *address, uint64_t size) {
    const struct slot *slot = find((uintptr_t)address);
    if (slot == NULL)
        return false;
    uintptr_t last = (uintptr_t)address + (uintptr_t)(size > 0 ? size - 1 : 0),
              next = (last / page_size + 1) * page_size;
    (void)*(const volatile unsigned char *)last;
    /* The page behind it too: if that one is gone, the cut may go through the last page, which is zero behind it. */
    if (next - atomic_load_explicit(&slot->begin, memory_order_relaxed) <
        atomic_load_explicit(&slot->size, memory_order_relaxed))
        (void)*(const volatile unsigned char *)next;
    return atomic_load_explicit(&slot->broken, memory_order_acquire) <= next;
}
