#include "hooks.h"

#include <dlfcn.h>
#include <string.h>

#include "check.h"

static void *find(void *module, const char *name) {
    void *function = dlsym(module, name);
    if (!function)
        check_fail(__FILE__, __LINE__, "%s", dlerror());
    return function;
}

/* An object pointer becomes a function pointer, which only POSIX allows: by way of memory, to keep -Wpedantic quiet. */
#define LOAD(field, name) memcpy(&out->field, &(void *){find(module, name)}, sizeof out->field)

void hooked_load(hooked_engine *out, const char *path) {
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        check_fail(__FILE__, __LINE__, "%s", dlerror());
    LOAD(open, "ds_open");
    LOAD(close, "ds_close");
    LOAD(commit, "ds_commit");
    LOAD(settle, "ds_settle");
    LOAD(sync, "ds_sync");
    LOAD(error, "ds_error");
    LOAD(compact, "ds__compact");
    LOAD(compaction_due, "ds__compaction_due");
    LOAD(listen, "hooks_listen");
    LOAD(moment, "hooks_moment");
}
