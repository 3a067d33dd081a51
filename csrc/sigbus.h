/* sigbus.h: a file that is cut or cannot be read while it is mapped must not kill the process (I23).
 *
 * The kernel answers a load or store in such a page with SIGBUS. The handler here puts an empty page in the place of one in a
 * guarded range, and notes that the range is broken; the instruction goes on. So every call that believed what it
 * read asks afterwards, which costs one relaxed load while nothing has ever happened. */
#ifndef DS_SIGBUS_H
#define DS_SIGBUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Guards a mapping; false: out of memory. The first call installs the handler. */
bool ds__sigbus_guard(const void *address, uint64_t size);
/* Before it is unmapped. Does nothing for a range that is not guarded. */
void ds__sigbus_release(const void *address);

extern _Atomic uint32_t ds__sigbus_faults; /* handled so far in this process */
bool ds__sigbus_search(const void *address);
/* In a range that is broken: may bytes of this part have been lost? Errs on the side of yes: all that lies behind the first
 * page that was replaced counts as lost, because files are cut more often than pages fail. */
bool ds__sigbus_lost(const void *address, uint64_t size);

/* Another thread may have faulted, and this one have read the empty page that its handler put there. The handler notes first
 * and maps then, so whoever has read from that page sees the note, if what was read is read before the note is. On x86
 * that only tells the compiler. TSan knows no fences. */
static inline void ds__sigbus_after_reading(void) {
#ifdef __SANITIZE_THREAD__
    atomic_signal_fence(memory_order_acquire);
#else
    atomic_thread_fence(memory_order_acquire);
#endif
}

/* Was a page of the range that holds `address` replaced? Asked after reading it. */
static inline bool ds__sigbus_broken(const void *address) {
    ds__sigbus_after_reading();
    return atomic_load_explicit(&ds__sigbus_faults, memory_order_relaxed) != 0 && ds__sigbus_search(address);
}

/* Takes the fault of a page, if there is one to take. A writer may be storing that very byte: what is read is thrown away,
 * so there is nothing to race for, and TSan need not look. */
__attribute__((no_sanitize_thread)) static inline void ds__sigbus_touch(const unsigned char *byte) {
    (void)__atomic_load_n((const volatile unsigned char *)byte, __ATOMIC_RELAXED);
}

/* A file that was cut has lost its last page, wherever the cut is. The page that the cut goes through is zeroed behind it
 * without a signal, so what lies there is not to be had by reading it alone. */
static inline bool ds__sigbus_cut(const void *address, uint64_t size) {
    ds__sigbus_touch((const unsigned char *)address + size - 1);
    return ds__sigbus_broken(address);
}

#endif
