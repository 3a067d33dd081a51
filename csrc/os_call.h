/* os_call.h: what os.c, os_directory.c and os_machine.c share. Nobody else needs it. */
#ifndef DS_OS_CALL_H
#define DS_OS_CALL_H

#include "os.h"

/* Each system call that can fail is made through CALL(what it gives when it fails, call), so that a test can make it fail. The
 * places where that is done are listed by the linker: each puts itself into a section, which os.c finds by its name. */
#ifdef DS_FAULTS
bool ds__os_fault_at(const struct ds_os_site *site);
#define CALL(failure, call)                                                                                            \
    __extension__({                                                                                                    \
        static const struct ds_os_site site                                                                            \
            __attribute__((section("ds_os_sites"), used)) = {__FILE__, __LINE__, #call};                               \
        ds__os_fault_at(&site) ? (failure) : (call);                                                                   \
    })
#else
#define CALL(failure, call) (call)
#endif

/* The status and the sentence for errno: "<directory>/<name>: cannot <what>: ...". */
ds_status ds__os_fail(const struct ds_directory *directory, const char *name, const char *what);

/* A process may have closed its standard streams. A file of ours that took the place of one would take in what any library
 * prints, which has destroyed databases. */
int ds__os_beyond_standard(int fd);

#endif
