/* status.h: how a failure is told. A status travels up as the return value; its sentence waits in the thread. */
#ifndef DS_STATUS_H
#define DS_STATUS_H

#include "dora_state.h"

/* Notes the sentence and the errno of a failure for this thread and returns `status`, so that a failing branch is
 * one line: return ds__fail(DS_CORRUPT, 0, "..."). */
ds_status ds__fail(ds_status status, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* DS_CONFLICT carries the sequence that was found. */
ds_status ds__fail_conflict(uint64_t sequence, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Of the thread's last failure, if `status` is one of that kind: `advice` instead of what stands behind its last semicolon.
 * For those who know better what was asked for. */
ds_status ds__advise(ds_status status, ds_status kind, const char *advice);

#endif
