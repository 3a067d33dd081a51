/* exchange.c: two directories swap names in one step, durably. */
#include "os.h"

#include "status.h"

#include <errno.h>
#include <stdio.h>

static ds_status exchanged(const char *parent_of) {
    if (ds__os_parent_sync(parent_of) == DS_OK)
        return DS_OK;
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", ds_error());
    return ds__fail(DS_IO, ds_error_errno(), "exchanged, but not known to be on disk: %s", sentence);
}

ds_status ds_exchange(const char *path, const char *with) {
    char a[DS_PATH_SIZE], b[DS_PATH_SIZE];
    if (path == NULL || path[0] == '\0' || with == NULL || with[0] == '\0')
        return ds__fail(DS_INVALID, 0, "an empty path; give two directories");
    ds_status status = ds__os_real_path(path, a);
    if (status == DS_OK)
        status = ds__os_real_path(with, b);
    if (status == DS_OK)
        status = ds__os_directory_exchange(a, b);
    if (status == DS_OK)
        status = exchanged(a);
    return status == DS_OK ? exchanged(b) : status;
}
