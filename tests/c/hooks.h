/* hooks.h: an engine that tells a listener before every store into a store's files. Used by every_store.c.
 *
 * The hooked engine is a module of its own (dlopen), compiled from the same sources with gcc's -fsanitize=thread, which
 * puts a call of __tsan_write8(address) and the like before each store. We link no sanitizer: hooks.c defines those calls
 * and forwards the ones that hit a mapped file. What the compiler does not announce is announced by other means: memcpy(),
 * memmove() and memset() are macros here (hook_string.h) and copy in pieces; system calls of os.c are wrapped by the
 * linker; the copy of a whole struct is replayed afterwards, 8 bytes at a time, forwards and backwards.
 *
 * The hooked engine starts no thread: who wants it to compact calls ds__compact().
 *
 * Not seen: stores that glibc makes into its mutex. The lock counts as taken or not, nothing between. */
#ifndef HOOKS_H
#define HOOKS_H

#include "store.h"

typedef struct hooks {
    /* The files are now as a process that dies here would leave them. */
    void (*moment)(void *context);
    /* A file was made, sized, written, renamed or removed. */
    void (*files_changed)(void *context);
    /* These bytes of that file are on disk now; without a name, the directory is. May be NULL. */
    void (*synced)(void *context, const char *name, uint64_t from, uint64_t size);
    void *context;
} hooks;

/* What the module exports beside the engine's own functions. NULL: nobody listens, the engine runs at full speed. */
void hooks_listen(const hooks *listener);
/* A moment of the listener's own choice, after any that the last store still owes. */
void hooks_moment(void);

/* The module's functions, for a program that has an ordinary engine too. */
typedef struct hooked_engine {
    __typeof__(ds_open) *open;
    __typeof__(ds_close) *close;
    __typeof__(ds_commit) *commit;
    __typeof__(ds_settle) *settle;
    __typeof__(ds_sync) *sync;
    __typeof__(ds_error) *error;
    __typeof__(ds__compact) *compact;
    __typeof__(ds__compaction_due) *compaction_due;
    __typeof__(hooks_listen) *listen;
    __typeof__(hooks_moment) *moment;
} hooked_engine;

void hooked_load(hooked_engine *out, const char *path);

#endif
