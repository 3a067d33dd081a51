/* repair.c: a new store out of what is intact in a damaged one.
 *
 *   1. lock       nobody may have the store open; openers wait meanwhile
 *   2. salvage    read what is intact (salvage.c)
 *   3. draft      a new store, `<path>.repaired-draft`, gets the same commits with the same sequences through append.c;
 *                 blobs are linked, not copied. Then sequences go on 2^32 above the highest seen: what was lost
 *                 may have been seen by somebody. Verified, synced, closed.
 *   4. name       the draft becomes `<path>.damaged-<n>`, the name that the damaged directory will have
 *   5. exchange   the two directories swap names, in one step; the parent is synced
 *
 * Killed before 5, the damaged store is in its place, untouched; a draft that is left behind goes with the next
 * repair, one that had its new name already stays as a copy. Nothing else is ever removed.
 *
 * Where commits are missing, `changes` must not pretend to be complete: the draft is compacted, so that everybody who
 * follows it starts over (DS_COMPACTED). The log of a healthy store that was never compacted stays as it is. */
#include "salvage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* A value whose blob cannot be had. Whether it is missed depends on what comes later. */
struct lost_blob {
    unsigned char *key;
    uint64_t sequence;
    uint32_t key_size;
    uint8_t keyspace;
};

struct repair {
    struct ds_directory directory;
    struct ds_salvage salvage;
    ds_store *draft;
    char path[DS_PATH_SIZE];
    char draft_path[DS_PATH_SIZE];
    ds_repair_report report;

    ds_change *changes; /* of the frame that is being copied */
    struct ds_plan *plans;
    size_t room;
    struct lost_blob *lost;
    size_t lost_count, lost_room;
};

/* ---- 1: lock --------------------------------------------------------------------------------------------------- */

static ds_status in_use(const struct repair *repair) {
    return ds__fail(DS_IN_USE, 0,
                    "%s: is open, or being opened or repaired; close the store everywhere, then repair it",
                    repair->path);
}

/* Whoever has the store open holds a shared lock on its control page. Whatever else is wrong with that file does not
 * matter: it may be gone, or be no file at all. */
static ds_status check_unused(const struct repair *repair) {
    int fd;
    ds_status status = ds__os_open(&repair->directory, DS_CONTROL_NAME, DS_OS_READ, &fd);
    if (status == DS_MISSING || status == DS_NOT_A_STORE || (status == DS_IO && ds_error_errno() == ELOOP))
        return DS_OK;
    if (status != DS_OK)
        return status;
    status = ds__os_flock(&repair->directory, DS_CONTROL_NAME, fd, DS_OS_EXCLUSIVE, 0);
    ds__os_close(fd);
    return status == DS_TIMEOUT ? in_use(repair) : status;
}

static ds_status lock(struct repair *repair) {
    bool there = false, ours = false;
    ds_status status = ds__os_flock(&repair->directory, "", repair->directory.fd, DS_OS_EXCLUSIVE, DS_LOCK_TIMEOUT_MS);
    if (status == DS_TIMEOUT)
        return in_use(repair);
    if (status == DS_OK)
        status = ds__os_directory_check(&repair->directory, &there, &ours);
    if (status != DS_OK)
        return status;
    if (!ours) /* the new files would be root's */
        return ds__fail(DS_IO, EPERM, "%s: belongs to another user; repair it as that user", repair->path);
    return there ? check_unused(repair) : in_use(repair);
}

/* ---- 3: draft -------------------------------------------------------------------------------------------------- */

static ds_status note_lost(struct repair *repair, const struct ds_record *record) {
    for (size_t i = 0; i < repair->lost_count; i++) {
        struct lost_blob *lost = &repair->lost[i];
        if (ds__record_is(record, lost->keyspace, lost->key, lost->key_size)) {
            lost->sequence = record->sequence;
            return DS_OK;
        }
    }
    if (repair->lost_count == repair->lost_room) {
        size_t room = repair->lost_room ? 2 * repair->lost_room : 16;
        struct lost_blob *lost = realloc(repair->lost, room * sizeof *lost);
        if (lost == NULL)
            return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
        repair->lost = lost;
        repair->lost_room = room;
    }
    unsigned char *key = malloc(record->key_size + 1);
    if (key == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    memcpy(key, ds__record_key(record), record->key_size);
    repair->lost[repair->lost_count++] = (struct lost_blob){key, record->sequence, record->key_size, record->keyspace};
    return DS_OK;
}

static ds_status make_room(struct repair *repair, size_t count) {
    if (count <= repair->room)
        return DS_OK;
    free(repair->changes);
    free(repair->plans);
    repair->changes = malloc(count * sizeof *repair->changes);
    repair->plans = malloc(count * sizeof *repair->plans);
    repair->room = repair->changes != NULL && repair->plans != NULL ? count : 0;
    return repair->room != 0 ? DS_OK : ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
}

/* What the draft holds of the key so far. */
static ds_status find(struct repair *repair, uint8_t keyspace, const void *key, size_t key_size, struct ds_plan *plan,
                      struct ds_found *found) {
    struct ds_index *index;
    bool gone = false;
    plan->hash = ds__hash(repair->draft->hash_seed, keyspace, key, key_size);
    ds_status status = ds__index_now(repair->draft, &index);
    if (status == DS_OK)
        status = ds__find(repair->draft, index, plan->hash, keyspace, key, key_size, found, &gone);
    plan->slot = found->slot;
    plan->previous = status == DS_OK ? found->offset : 0;
    plan->replaced_bytes =
        status == DS_OK && found->record->op != DS_RECORD_TOMBSTONE ? ds__live_size(found->record) : 0;
    return status;
}

/* As when it was put: the expiry goes into the plan. */
static void describe_value(const struct ds_record *record, ds_change *change, struct ds_plan *plan) {
    uint64_t expiry_size = ds__expiry_size(record->op);
    if (expiry_size > 0)
        plan->expiry = ds__record_expiry(record);
    change->value = ds__record_payload(record);
    change->value_size = record->value_size - expiry_size;
}

static ds_status plan_record(struct repair *repair, const struct ds_record *record, ds_change *change,
                             struct ds_plan *plan) {
    const unsigned char *key = ds__record_key(record);
    struct ds_found found;
    *change = (ds_change){.kind = record->op == DS_RECORD_TOMBSTONE ? DS_DELETE : DS_PUT,
                          .keyspace = record->keyspace,
                          .key = key,
                          .key_size = record->key_size};
    memset(plan, 0, sizeof *plan);
    describe_value(record, change, plan);
    ds_status status = find(repair, record->keyspace, key, record->key_size, plan, &found);
    if (status != DS_OK && status != DS_MISSING)
        return status;
    /* A copy that compaction made of something older than what is here already is of no use. */
    plan->write = status == DS_MISSING || found.record->sequence <= record->sequence;
    plan->op = record->op;
    plan->sequence = record->sequence;
    plan->length = ds__record_length(record->key_size, record->value_size);
    if (!ds__op_is_blob(record->op) || !plan->write)
        return DS_OK;
    plan->blob = ds__record_blob(record);
    status = ds__blob_link(repair->draft, &repair->directory, &plan->blob);
    if (status != DS_CORRUPT)
        return status;
    plan->write = false;
    return note_lost(repair, record);
}

/* The engine counts keys when they are committed. A copy that compaction made of a commit that is gone is the first that
 * the draft hears of its key. */
static void account_relocated(struct repair *repair, size_t count) {
    struct ds_tail *tail = &repair->draft->control->tail;
    for (size_t i = 0; i < count; i++) {
        const struct ds_plan *plan = &repair->plans[i];
        uint8_t keyspace = repair->changes[i].keyspace;
        if (!plan->write)
            continue;
        tail->slots_used += plan->previous == 0;
        tail->keys[keyspace] += plan->replaced_bytes == 0;
        tail->live_bytes += plan->length - plan->replaced_bytes;
        if (ds__op_is_blob(plan->op)) {
            tail->live_bytes += plan->blob.size;
            tail->blob_bytes += plan->blob.size;
        }
    }
}

static ds_status reserve_slots(struct repair *repair, uint64_t count) {
    struct ds_index *index;
    ds_status status = ds__index_now(repair->draft, &index);
    if (status == DS_OK && repair->draft->control->tail.slots_used + count > ds__index_limit(index->mask + 1))
        status = ds__grow_index(repair->draft, index, count, &index);
    return status;
}

/* One intact frame, once more, with the same sequences. */
static ds_status copy_frame(void *context, uint64_t offset, const struct ds_frame *frame) {
    (void)offset;
    struct repair *repair = context;
    struct ds_tail *tail = &repair->draft->control->tail;
    uint8_t type = ds__frame_type(frame->word0);
    if (type == DS_FRAME_HEAD)
        return DS_OK;
    ds_status status = make_room(repair, frame->count);
    if (status == DS_OK)
        status = reserve_slots(repair, frame->count);
    uint64_t length = sizeof *frame, records = 0;
    const unsigned char *at = (const unsigned char *)(frame + 1);
    for (uint32_t i = 0; status == DS_OK && i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)at;
        status = plan_record(repair, record, &repair->changes[i], &repair->plans[i]);
        if (status == DS_OK && repair->plans[i].write) {
            length += repair->plans[i].length;
            records++;
        }
        at += ds__record_length(record->key_size, record->value_size);
    }
    if (status != DS_OK || records == 0)
        return status;
    if (type == DS_FRAME_COMMIT)
        tail->sequence = frame->sequence - 1;
    bool fresh;
    status = ds__needs_fresh(repair->draft, repair->plans, frame->count, &fresh);
    if (status == DS_OK)
        status = ds__append(repair->draft, type, repair->changes, repair->plans, frame->count, length, fresh);
    if (status != DS_OK)
        return status;
    if (type == DS_FRAME_RELOCATE)
        account_relocated(repair, frame->count);
    repair->report.commits += type == DS_FRAME_COMMIT;
    repair->report.records += records;
    return DS_OK;
}

/* Of the blobs that were not found, those count whose key has nothing newer: a dead value's may be gone by rights. */
static ds_status count_lost(struct repair *repair) {
    for (size_t i = 0; i < repair->lost_count; i++) {
        const struct lost_blob *lost = &repair->lost[i];
        struct ds_plan plan;
        struct ds_found found;
        ds_status status = find(repair, lost->keyspace, lost->key, lost->key_size, &plan, &found);
        if (status != DS_OK && status != DS_MISSING)
            return status;
        repair->report.lost_blobs += status == DS_MISSING || found.record->sequence < lost->sequence;
    }
    return DS_OK;
}

static ds_status copy_log(struct repair *repair) {
    ds_status status = ds__writer_enter(repair->draft);
    if (status != DS_OK)
        return status;
    status = ds__salvage_read(&repair->salvage, copy_frame, repair);
    if (status == DS_OK)
        status = count_lost(repair);
    repair->report.sequence = repair->salvage.highest + DS_SEQUENCE_GAP;
    repair->draft->control->tail.sequence = repair->report.sequence;
    ds__writer_leave(repair->draft);
    return status;
}

static ds_status fill_draft(struct repair *repair) {
    ds_status status = copy_log(repair);
    if (status == DS_OK && (!repair->salvage.whole || repair->lost_count > 0))
        status = ds_compact(repair->draft);
    return status == DS_OK ? ds_verify(repair->draft, NULL) : status;
}

static ds_status write_draft(struct repair *repair) {
    ds_options options;
    ds_options_init(&options);
    ds_status status = ds_open(repair->draft_path, &options, &repair->draft);
    if (status != DS_OK)
        return status;
    status = fill_draft(repair);
    char sentence[1024];
    int error = ds_error_errno();
    snprintf(sentence, sizeof sentence, "%s", ds_error());
    ds_status closed = ds_close(repair->draft); /* syncs */
    return status == DS_OK ? closed : ds__fail(status, error, "%s", sentence);
}

/* Files of a store only: should somebody keep others there, the directory stays. */
static ds_status remove_file(void *context, const char *name) {
    const struct ds_directory *directory = context;
    uint64_t number;
    bool known = ds__segment_parse_name(name, &number) || ds__index_parse_name(name, &number) ||
                 ds__is_blob_name(name) || strcmp(name, "floor") == 0 || strcmp(name, DS_CONTROL_NAME) == 0 ||
                 strcmp(name, DS_CONTROL_DRAFT) == 0 || strcmp(name, DS_SEGMENT_DRAFT) == 0 ||
                 strcmp(name, DS_RESERVE_NAME) == 0 || strcmp(name, DS_RESERVE_DRAFT) == 0;
    return known ? ds__os_unlink(directory, name) : DS_OK;
}

static ds_status remove_draft(const char *path) {
    struct ds_directory directory;
    ds_status status = ds__os_directory_open(path, false, false, &directory);
    if (status == DS_NOT_A_STORE && ds_error_errno() == ENOENT)
        return DS_OK;
    if (status != DS_OK)
        return status;
    status = ds__os_directory_list(&directory, remove_file, &directory);
    ds__os_directory_close(&directory);
    return status == DS_OK ? ds__os_directory_remove(path) : status;
}

/* ---- 4 and 5: swap --------------------------------------------------------------------------------------------- */

static ds_status name_draft(struct repair *repair) {
    ds_status status = DS_CONFLICT;
    for (unsigned n = 1; status == DS_CONFLICT; n++) {
        char *name = repair->report.damaged_path;
        int length = snprintf(name, DS_PATH_SIZE, "%s.damaged-%u", repair->path, n);
        if (length >= DS_PATH_SIZE)
            return ds__fail(DS_INVALID, ENAMETOOLONG, "%s: the path is too long", repair->path);
        status = ds__os_directory_rename(repair->draft_path, name);
        if (status == DS_OK)
            memcpy(repair->draft_path, name, (size_t)length + 1);
    }
    return status;
}

/* *swapped: from here on there is nothing to undo. */
static ds_status swap(struct repair *repair, bool *swapped) {
    ds_status status = name_draft(repair);
    if (status == DS_OK)
        status = ds__os_directory_exchange(repair->draft_path, repair->path);
    *swapped = status == DS_OK;
    if (status != DS_OK || ds__os_parent_sync(repair->path) == DS_OK)
        return status;
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", ds_error());
    return ds__fail(DS_IO, ds_error_errno(), "repaired, but not known to be on disk: %s", sentence);
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

/* Nothing that this build would recognize as a store's: better to say so than to put an empty one in its place. */
static ds_status check_found(struct repair *repair) {
    const struct ds_salvage *salvage = &repair->salvage;
    if (repair->report.records > 0 || ds__salvage_known(salvage))
        return DS_OK;
    return ds__fail(DS_CORRUPT, 0, "%s: nothing in the log can be read; nothing was changed. Restore it from a copy",
                    repair->path);
}

static void report_damage(struct repair *repair) {
    const struct ds_salvage *salvage = &repair->salvage;
    ds_repair_report *report = &repair->report;
    report->first_damage = salvage->damage_count > 0 ? salvage->damages[0].offset : UINT64_MAX;
    report->damages = salvage->damage_count;
    for (size_t i = 0; i < salvage->damage_count; i++)
        report->dropped_bytes += salvage->damages[i].bytes;
}

static ds_status replace(struct repair *repair) {
    bool swapped = false;
    ds_status status = remove_draft(repair->draft_path); /* of a repair that died */
    if (status != DS_OK)
        return status;
    status = write_draft(repair);
    if (status == DS_OK)
        status = check_found(repair);
    if (status == DS_OK)
        status = swap(repair, &swapped);
    if (status == DS_OK || swapped)
        return status;
    char sentence[1024];
    int error = ds_error_errno();
    snprintf(sentence, sizeof sentence, "%s", ds_error());
    (void)remove_draft(repair->draft_path);
    return ds__fail(status, error, "%s", sentence);
}

static ds_status repair_locked(struct repair *repair) {
    ds_status status = lock(repair);
    if (status == DS_OK)
        status = ds__salvage_open(&repair->salvage, &repair->directory);
    if (status == DS_OK) {
        report_damage(repair);
        status = replace(repair);
    }
    ds__salvage_free(&repair->salvage);
    return status;
}

static ds_status open_directory(struct repair *repair, const char *path) {
    if (path == NULL || path[0] == '\0')
        return ds__fail(DS_INVALID, 0, "an empty path; give the directory of the store");
    ds_status status = ds__os_real_path(path, repair->path);
    if (status != DS_OK)
        return status;
    int length = snprintf(repair->draft_path, DS_PATH_SIZE, "%s.repaired-draft", repair->path);
    if (length >= DS_PATH_SIZE)
        return ds__fail(DS_INVALID, ENAMETOOLONG, "%s: the path is too long", path);
    return ds__os_directory_open(repair->path, false, false, &repair->directory);
}

static void free_repair(struct repair *repair) {
    for (size_t i = 0; i < repair->lost_count; i++)
        free(repair->lost[i].key);
    free(repair->lost);
    free(repair->changes);
    free(repair->plans);
    free(repair);
}

ds_status ds_repair(const char *path, ds_repair_report *out) {
    struct repair *repair = calloc(1, sizeof *repair);
    if (repair == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    ds_status status = open_directory(repair, path);
    if (status == DS_OK) {
        status = repair_locked(repair);
        ds__os_directory_close(&repair->directory); /* and with it the lock */
    }
    if (status == DS_OK && out != NULL)
        *out = repair->report;
    free_repair(repair);
    return status;
}
