/* status.c: the table of statuses and the thread's last failure. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A path may take PATH_MAX bytes; longer sentences are cut, never refused. */
static _Thread_local char last_sentence[4608];
static _Thread_local int last_errno;
static _Thread_local uint64_t last_sequence;

const char *ds_status_name(ds_status status) {
    switch (status) {
#define X(name, number, text)                                                                                          \
    case DS_##name:                                                                                                    \
        return #name;
        DS_STATUS_MAP(X)
#undef X
    }
    return "?";
}

const char *ds_status_text(ds_status status) {
    switch (status) {
#define X(name, number, text)                                                                                          \
    case DS_##name:                                                                                                    \
        return text;
        DS_STATUS_MAP(X)
#undef X
    }
    return "?";
}

const char *ds_error(void) {
    return last_sentence;
}

int ds_error_errno(void) {
    return last_errno;
}

uint64_t ds_error_sequence(void) {
    return last_sequence;
}

static void note(int error, uint64_t sequence, const char *format, va_list arguments) {
    last_errno = error;
    last_sequence = sequence;
    vsnprintf(last_sentence, sizeof last_sentence, format, arguments);
}

ds_status ds__fail(ds_status status, int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    note(error, 0, format, arguments);
    va_end(arguments);
    return status;
}

ds_status ds__fail_conflict(uint64_t sequence, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    note(0, sequence, format, arguments);
    va_end(arguments);
    return DS_CONFLICT;
}

ds_status ds__advise(ds_status status, ds_status kind, const char *advice) {
    if (status != kind)
        return status;
    char *last = strrchr(last_sentence, ';');
    size_t kept = last != NULL ? (size_t)(last - last_sentence) : strlen(last_sentence);
    snprintf(last_sentence + kept, sizeof last_sentence - kept, "; %s", advice);
    return status;
}
