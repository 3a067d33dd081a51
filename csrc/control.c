/* control.c: whose control page is it? See control.h. */
#include "control.h"

#include <string.h>

ds_status ds__control_identity(const struct ds_directory *directory, const char *name, int fd, const uint8_t uuid[16],
                               struct ds_control_identity *out) {
    memset(out, 0, sizeof *out); /* padding too: it is compared as bytes */
    out->magic = DS_CONTROL_MAGIC;
    out->layout = DS_CONTROL_LAYOUT;
    out->bytes = sizeof(struct ds_control);
    out->mutex_size = sizeof(pthread_mutex_t);
#ifdef __GLIBC__
    out->libc = 1;
#else
    out->libc = 2;
#endif
    memcpy(out->uuid, uuid, sizeof out->uuid);
    out->pid_namespace = ds__os_pid_namespace();
    ds_status status = ds__os_boot_id(out->boot_id);
    if (status == DS_OK)
        status = ds__os_identity(directory, name, fd, &out->file);
    return status;
}
