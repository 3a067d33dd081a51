/* dora_state_api.h: the engine's functions for C and C++ extension modules.
 *
 * The engine is inside of the Python module dora_state._core, and its symbols are hidden: a second copy of it in the
 * process, linked in, could not be mixed up with it. So an extension module links nothing. It gets a table of functions:
 *
 *     #include <dora_state_api.h>              after Python.h; compile with the directory dora_state.get_include()
 *
 *     static const struct ds_api *api;
 *     ...
 *     api = ds_import_api();                   in the module's init, with the GIL
 *     if (api == NULL)
 *         return NULL;                         an ImportError is set
 *     ...
 *     status = api->ds_put(store, DS_USER, "pose", 4, &pose, sizeof pose, NULL);     no GIL needed
 *
 * api->ds_put is ds_put() of dora_state.h, and so on. */
#ifndef DORA_STATE_API_H
#define DORA_STATE_API_H

#include "dora_state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Grows by one when the meaning or the layout of anything in dora_state.h changes, not when functions are added. */
#define DS_API_VERSION 1
#define DS_API_CAPSULE "dora_state._core.api"

/* New functions come last: who was built against fewer finds his own where they were. */
#define DS_API_MAP(X)                                                                                                  \
    X(status_name)                                                                                                     \
    X(status_text)                                                                                                     \
    X(error)                                                                                                           \
    X(error_errno)                                                                                                     \
    X(error_sequence)                                                                                                  \
    X(options_init)                                                                                                    \
    X(open)                                                                                                            \
    X(close)                                                                                                           \
    X(commit)                                                                                                          \
    X(put)                                                                                                             \
    X(try_put)                                                                                                         \
    X(delete)                                                                                                          \
    X(get)                                                                                                             \
    X(pin)                                                                                                             \
    X(borrow)                                                                                                          \
    X(return)                                                                                                          \
    X(unpin)                                                                                                           \
    X(value_check)                                                                                                     \
    X(get_many)                                                                                                        \
    X(cursor_open)                                                                                                     \
    X(cursor_next)                                                                                                     \
    X(cursor_close)                                                                                                    \
    X(changes_open)                                                                                                    \
    X(changes_next)                                                                                                    \
    X(changes_close)                                                                                                   \
    X(wait)                                                                                                            \
    X(compact)                                                                                                         \
    X(settle)                                                                                                          \
    X(fence)                                                                                                           \
    X(sync)                                                                                                            \
    X(stats_read)                                                                                                      \
    X(verify)                                                                                                          \
    X(repair)                                                                                                          \
    X(exchange)                                                                                                        \
    X(put_expiring)                                                                                                    \
    X(try_commit)                                                                                                      \
    X(cursor_peek)                                                                                                     \
    X(count)                                                                                                           \
    X(turn_wait)                                                                                                       \
    X(turn_take)                                                                                                       \
    X(turn_end)                                                                                                        \
    X(cursor_ttl)

/* C++ takes a member's type by a name that the member itself hides only if it is said to be the global one. */
#ifdef __cplusplus
#define DS_API_GLOBAL ::
#else
#define DS_API_GLOBAL
#endif

struct ds_api {
    uint32_t version; /* DS_API_VERSION of the engine */
    uint32_t size;    /* of its table, in bytes */
#define X(name) __typeof__(DS_API_GLOBAL ds_##name) *ds_##name;
    DS_API_MAP(X)
#undef X
};

/* The engine's own table, for the binding. */
extern const struct ds_api ds__api;

#ifdef Py_PYTHON_H
/* The table of the installed dora_state; NULL with an ImportError if it is none that this was built for. */
static inline const struct ds_api *ds_import_api(void) {
    const struct ds_api *api = (const struct ds_api *)PyCapsule_Import(DS_API_CAPSULE, 0);
    if (api == NULL || (api->version == DS_API_VERSION && api->size >= sizeof *api))
        return api;
    PyErr_Format(
        PyExc_ImportError,
        "this module was built for version %d of dora_state's C interface with %zu bytes, and version %u with %u "
        "is installed; build the module again",
        DS_API_VERSION, sizeof *api, (unsigned)api->version, (unsigned)api->size);
    return NULL;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
