/* hooks.c: the calls that an instrumented engine makes. See hooks.h. */
#include "hooks.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static const hooks *listener;

/* ---- which stores hit a file -------------------------------------------------------------------------------------- */

enum { MAPPINGS = 256 };
static struct {
    unsigned char *from;
    uint64_t size;
} mappings[MAPPINGS];

static bool is_file(const void *address) {
    const unsigned char *at = address;
    for (int i = 0; i < MAPPINGS; i++)
        if (mappings[i].from && at >= mappings[i].from && at < mappings[i].from + mappings[i].size)
            return true;
    return false;
}

/* ---- moments ------------------------------------------------------------------------------------------------------ */

/* The copy of a struct that was announced last: the compiler makes it in pieces that we do not see. */
static struct {
    unsigned char *to;
    size_t size;
    unsigned char before[4096];
} copied;

static void tell(void) {
    listener->moment(listener->context);
}

/* Shows what a death within the copy would have left: the first pieces new, the rest old; and the other way round. */
static void replay_copy(void) {
    unsigned char *to = copied.to;
    size_t size = copied.size;
    if (!to)
        return;
    copied.to = NULL;
    unsigned char after[sizeof copied.before];
    memcpy(after, to, size);
    for (int backwards = 0; backwards < 2; backwards++)
        for (size_t piece = 8; piece < size; piece += 8) {
            size_t cut = backwards ? (size - piece) & ~(size_t)7 : piece;
            memcpy(to, backwards ? copied.before : after, cut);
            memcpy(to + cut, backwards ? after + cut : copied.before + cut, size - cut);
            if (memcmp(to, after, size) != 0)
                tell();
        }
    memcpy(to, after, size);
}

static void moment(void) {
    if (!listener)
        return;
    replay_copy();
    tell();
}

static void before_store(const void *address, size_t size) {
    if (!listener || !is_file(address))
        return;
    moment();
    if (size <= 8)
        return;
    if (size > sizeof copied.before)
        abort(); /* a larger struct than any in csrc: enlarge `before` */
    copied.to = (unsigned char *)(uintptr_t)address;
    copied.size = size;
    memcpy(copied.before, address, size);
}

static void files_changed(void) {
    if (listener)
        listener->files_changed(listener->context);
}

EXPORT void hooks_listen(const hooks *new_listener) {
    listener = new_listener;
    copied.to = NULL;
}

EXPORT void hooks_moment(void) {
    moment();
}

/* ---- plain stores ------------------------------------------------------------------------------------------------- */

#define QUIET(name, ...)                                                                                               \
    void name(__VA_ARGS__);                                                                                            \
    void name(__VA_ARGS__) {}
#define STORE(name, size)                                                                                              \
    void name(void *address);                                                                                          \
    void name(void *address) {                                                                                         \
        before_store(address, size);                                                                                   \
    }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
QUIET(__tsan_init, void)
QUIET(__tsan_func_entry, void *caller)
QUIET(__tsan_func_exit, void)
QUIET(__tsan_read1, void *address)
QUIET(__tsan_read2, void *address)
QUIET(__tsan_read4, void *address)
QUIET(__tsan_read8, void *address)
QUIET(__tsan_read16, void *address)
QUIET(__tsan_unaligned_read2, void *address)
QUIET(__tsan_unaligned_read4, void *address)
QUIET(__tsan_unaligned_read8, void *address)
QUIET(__tsan_unaligned_read16, void *address)
QUIET(__tsan_volatile_read1, void *address)
QUIET(__tsan_volatile_read2, void *address)
QUIET(__tsan_volatile_read4, void *address)
QUIET(__tsan_volatile_read8, void *address)
QUIET(__tsan_volatile_read16, void *address)
QUIET(__tsan_read_range, void *address, size_t size)
#pragma GCC diagnostic pop
STORE(__tsan_write1, 1)
STORE(__tsan_write2, 2)
STORE(__tsan_write4, 4)
STORE(__tsan_write8, 8)
STORE(__tsan_write16, 16)
STORE(__tsan_unaligned_write2, 2)
STORE(__tsan_unaligned_write4, 4)
STORE(__tsan_unaligned_write8, 8)
STORE(__tsan_unaligned_write16, 16)
STORE(__tsan_volatile_write1, 1)
STORE(__tsan_volatile_write2, 2)
STORE(__tsan_volatile_write4, 4)
STORE(__tsan_volatile_write8, 8)
STORE(__tsan_volatile_write16, 16)

void __tsan_write_range(void *address, size_t size);
void __tsan_write_range(void *address, size_t size) {
    before_store(address, size);
}

/* ---- atomics: with these, the compiler leaves the whole operation to us ---------------------------------------------- */

#define FETCH(bits, type, name)                                                                                        \
    type __tsan_atomic##bits##_##name(volatile type *a, type v, int order);                                            \
    type __tsan_atomic##bits##_##name(volatile type *a, type v, int order) {                                           \
        (void)order;                                                                                                   \
        before_store((const void *)(uintptr_t)a, sizeof v);                                                            \
        return __atomic_##name(a, v, __ATOMIC_SEQ_CST);                                                                \
    }
#define ATOMICS(bits, type)                                                                                            \
    type __tsan_atomic##bits##_load(const volatile type *a, int order);                                                \
    type __tsan_atomic##bits##_load(const volatile type *a, int order) {                                               \
        (void)order;                                                                                                   \
        return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                                   \
    }                                                                                                                  \
    void __tsan_atomic##bits##_store(volatile type *a, type v, int order);                                             \
    void __tsan_atomic##bits##_store(volatile type *a, type v, int order) {                                            \
        (void)order;                                                                                                   \
        before_store((const void *)(uintptr_t)a, sizeof v);                                                            \
        __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                                      \
    }                                                                                                                  \
    type __tsan_atomic##bits##_exchange(volatile type *a, type v, int order);                                          \
    type __tsan_atomic##bits##_exchange(volatile type *a, type v, int order) {                                         \
        (void)order;                                                                                                   \
        before_store((const void *)(uintptr_t)a, sizeof v);                                                            \
        return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                                            \
    }                                                                                                                  \
    FETCH(bits, type, fetch_add)                                                                                       \
    FETCH(bits, type, fetch_sub)                                                                                       \
    FETCH(bits, type, fetch_and)                                                                                       \
    FETCH(bits, type, fetch_or)                                                                                        \
    FETCH(bits, type, fetch_xor)                                                                                       \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type *a, type *c, type v, int order, int failed);       \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type *a, type *c, type v, int order, int failed) {      \
        (void)order, (void)failed;                                                                                     \
        before_store((const void *)(uintptr_t)a, sizeof v);                                                            \
        return __atomic_compare_exchange_n(a, c, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                            \
    }                                                                                                                  \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile type *a, type *c, type v, int order, int failed);         \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile type *a, type *c, type v, int order, int failed) {        \
        return __tsan_atomic##bits##_compare_exchange_strong(a, c, v, order, failed);                                  \
    }

ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

void __tsan_atomic_thread_fence(int order);
void __tsan_atomic_thread_fence(int order) {
    (void)order;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void __tsan_atomic_signal_fence(int order);
void __tsan_atomic_signal_fence(int order) {
    (void)order;
}

/* ---- memcpy and its like: word by word where it is short, at a few random places where it is long ------------------- */

void *hook_memcpy(void *to, const void *from, size_t size);
void *hook_memmove(void *to, const void *from, size_t size);
void *hook_memset(void *to, int byte, size_t size);

static size_t piece(size_t left, size_t size) {
    static uint64_t random = 1;
    random = random * 6364136223846793005u + 1442695040888963407u;
    size_t wanted = size <= 128 ? 8 : 8 + (random >> 33) % (size / 4) / 8 * 8;
    return wanted < left ? wanted : left;
}

void *hook_memcpy(void *to, const void *from, size_t size) {
    return hook_memmove(to, from, size);
}

void *hook_memmove(void *to, const void *from, size_t size) {
    if (!listener || !is_file(to))
        return memmove(to, from, size);
    bool overlaps = (uintptr_t)to < (uintptr_t)from + size && (uintptr_t)from < (uintptr_t)to + size;
    for (size_t at = 0; at < size;) {
        size_t now = overlaps ? size : piece(size - at, size);
        moment();
        memmove((unsigned char *)to + at, (const unsigned char *)from + at, now);
        at += now;
    }
    return to;
}

void *hook_memset(void *to, int byte, size_t size) {
    if (!listener || !is_file(to))
        return memset(to, byte, size);
    for (size_t at = 0; at < size;) {
        size_t now = piece(size - at, size);
        moment();
        memset((unsigned char *)to + at, byte, now);
        at += now;
    }
    return to;
}

/* ---- os.c and lock.c, wrapped by the linker ------------------------------------------------------------------------- */

#define WRAP(type, name, declaration, arguments, before, after)                                                        \
    type __real_##name declaration;                                                                                    \
    type __wrap_##name declaration;                                                                                    \
    type __wrap_##name declaration {                                                                                   \
        before;                                                                                                        \
        type result = __real_##name arguments;                                                                         \
        after;                                                                                                         \
        return result;                                                                                                 \
    }
#define CHANGE(name, declaration, arguments) WRAP(ds_status, name, declaration, arguments, moment(), files_changed())

/* Where in its file a mapped byte is. */
static uint64_t position(const void *address) {
    const unsigned char *at = address;
    for (int i = 0; i < MAPPINGS; i++)
        if (mappings[i].from && at >= mappings[i].from && at < mappings[i].from + mappings[i].size)
            return (uint64_t)(at - mappings[i].from);
    abort();
}

static void synced(ds_status status, const char *name, uint64_t from, uint64_t size) {
    if (listener && listener->synced && status == DS_OK)
        listener->synced(listener->context, name, from, size);
}

typedef const struct ds_directory *directory;
CHANGE(ds__os_allocate, (directory d, const char *name, int fd, uint64_t size), (d, name, fd, size))
CHANGE(ds__os_write, (directory d, const char *name, int fd, const void *data, size_t size, uint64_t at),
       (d, name, fd, data, size, at))
CHANGE(ds__os_rename, (directory d, const char *from, const char *to), (d, from, to))
CHANGE(ds__os_unlink, (directory d, const char *name), (d, name))
WRAP(ds_status, ds__os_directory_sync, (directory d), (d), moment(), synced(result, NULL, 0, 0))
WRAP(ds_status, ds__os_datasync, (directory d, const char *name, int fd), (d, name, fd), moment(),
     synced(result, name, 0, UINT64_MAX))
WRAP(ds_status, ds__os_range_sync, (directory d, const char *name, void *address, uint64_t size),
     (d, name, address, size), moment(), synced(result, name, position(address), size))
WRAP(ds_status, ds__os_open, (directory d, const char *name, int mode, int *fd), (d, name, mode, fd),
     mode == DS_OS_CREATE ? moment() : (void)0, mode == DS_OS_CREATE ? files_changed() : (void)0)
WRAP(ds_status, ds__lock_take,
     (struct ds_lock * lock, const char *holder, int timeout_ms, const char *path, bool *died),
     (lock, holder, timeout_ms, path, died), (void)0, moment())

ds_status __real_ds__os_map(directory d, const char *name, int fd, uint64_t size, bool writable, void **out);
ds_status __wrap_ds__os_map(directory d, const char *name, int fd, uint64_t size, bool writable, void **out);
ds_status __wrap_ds__os_map(directory d, const char *name, int fd, uint64_t size, bool writable, void **out) {
    ds_status status = __real_ds__os_map(d, name, fd, size, writable, out);
    if (status != DS_OK || !writable)
        return status;
    for (int i = 0; i < MAPPINGS; i++)
        if (!mappings[i].from) {
            mappings[i].from = *out;
            mappings[i].size = size;
            return status;
        }
    abort(); /* more files than any test has: enlarge the table */
}

/* A second per look at the clock: a writer that is not quick gets small segments, and images are small then. */
uint64_t __wrap_ds__os_now_ns(void);
uint64_t __wrap_ds__os_now_ns(void) {
    static uint64_t now;
    return now += 1000000000u;
}

void __wrap_ds__keeper_ask(ds_store *store);
void __wrap_ds__keeper_ask(ds_store *store) {
    (void)store;
}

void __real_ds__os_unmap(void *address, uint64_t size);
void __wrap_ds__os_unmap(void *address, uint64_t size);
void __wrap_ds__os_unmap(void *address, uint64_t size) {
    replay_copy();
    for (int i = 0; i < MAPPINGS; i++)
        if (address && mappings[i].from == address)
            mappings[i].from = NULL;
    __real_ds__os_unmap(address, size);
}
