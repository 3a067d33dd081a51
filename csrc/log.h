/* log.h: the files of a store, and the log in them, read from its start. */
#ifndef DS_LOG_H
#define DS_LOG_H

#include "store.h"

/* What is in the directory. */
struct ds_inventory {
    uint64_t *bases; /* of the segments, ascending */
    size_t count, room;
    size_t first; /* where the log begins among them; those before are leftovers of compaction */
    uint64_t newest_generation;
    bool control, floor, reserve, foreign, blobs;
    char foreign_name[64];
};

/* Owns `bases` afterwards; free() them. */
ds_status ds__inventory(const struct ds_directory *directory, struct ds_inventory *out);
/* The names that are not spelled out elsewhere. */
#define DS_CONTROL_NAME  "control"
#define DS_CONTROL_DRAFT "control.new"
bool ds__is_blob_name(const char *name);
/* After an unclean end of a boot, sequences go on this much higher: those between may have been seen by somebody before
 * the power went, and must not come back for other data. */
#define DS_SEQUENCE_GAP (UINT64_C(1) << 32)

/* Where the valid log ends. */
struct ds_log_end {
    struct ds_segment *segment;
    uint64_t offset;
    uint64_t sequence;
    uint32_t crc;
    bool torn;        /* bytes that make no sense follow */
    uint64_t dropped; /* how many, zeros at the end not counted */
    uint64_t head;    /* the highest start of the log that a HEAD frame names */
    size_t segments;  /* of the inventory up to here */
};

/* Reads the log from segment number files->first to wherever it ends, or to the last frame that does not go beyond `limit`,
 * and visits its frames. A status other than DS_OK is about the world, or the visitor's; where the log ends, and whether that
 * is torn, is told by `end`. */
ds_status ds__log_read(ds_store *store, const struct ds_inventory *files, uint64_t limit, ds__frame_visitor *visit,
                       void *context, struct ds_log_end *end);

#endif
