/* hooks.h: an engine that tells a listener before every store into a store's files. Used by every_store.c.
 *
 * The hooked engine is a module of its own (dlopen), compiled from the same sources with gcc's -fsanitize=thread, which
 * puts a call of __tsan_write8(address) and the like before each store. We link no sanitizer: hooks.c defines those calls
 * and forwards the ones that hit a mapped file. What the compiler does not announce is announced by other means: memcpy(),
 * memmove() and memset() are macros here (hook_string.h) and copy in pieces; system calls of os.c are wrapped by the
 * linker; the copy of a whole struct is replayed afterwards, 8 bytes at a time, forwards and backwards.
 *
 * Not seen: stores that glibc makes into its mutex. The lock counts as taken or not, nothing between. */
#ifndef HOOKS_H
#define HOOKS_H

#include "dora_state.h"

typedef struct hooks {
    /* The files are now as a process that dies here would leave them. */
    void (*moment)(void *context);
    /* A file was made, sized, renamed or removed, or mapped. */
    void (*files_changed)(void *context);
    void *context;
} hooks;

/* What the module exports beside the engine's own functions. NULL: nobody listens, the engine runs at full speed. */
void hooks_listen(const hooks *listener);
/* A moment of the listener's own choice, after any that the last store still owes. */
void hooks_moment(void);

#endif
