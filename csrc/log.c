/* log.c: which files there are, and walking the frames in them. See log.h. */
#include "log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- what is in the directory ---------------------------------------------------------------------------------- */

bool ds__is_blob_name(const char *name) {
    return strlen(name) == 21 && strcmp(name + 16, ".blob") == 0;
}

static ds_status take_stock(void *context, const char *name) {
    struct ds_inventory *found = context;
    uint64_t number;
    if (ds__segment_parse_name(name, &number)) {
        if (found->count == found->room) {
            size_t room = found->room ? 2 * found->room : 64;
            uint64_t *bases = realloc(found->bases, room * sizeof *bases);
            if (bases == NULL)
                return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
            found->bases = bases;
            found->room = room;
        }
        found->bases[found->count++] = number;
    } else if (ds__index_parse_name(name, &number)) {
        if (number > found->newest_generation)
            found->newest_generation = number;
    } else if (strcmp(name, DS_CONTROL_NAME) == 0) {
        found->control = true;
    } else if (strcmp(name, "floor") == 0) {
        found->floor = true;
    } else if (ds__is_blob_name(name)) {
        found->blobs = true;
    } else if (strcmp(name, DS_RESERVE_NAME) == 0) {
        found->reserve = true;
    } else if (strcmp(name, DS_SEGMENT_DRAFT) != 0 && strcmp(name, DS_CONTROL_DRAFT) != 0 &&
               strcmp(name, DS_RESERVE_DRAFT) != 0) {
        found->foreign = true;
        snprintf(found->foreign_name, sizeof found->foreign_name, "%s", name);
    }
    return DS_OK;
}

static int by_number(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

ds_status ds__inventory(const struct ds_directory *directory, struct ds_inventory *out) {
    memset(out, 0, sizeof *out);
    ds_status status = ds__os_directory_list(directory, take_stock, out);
    if (status != DS_OK) {
        free(out->bases);
        out->bases = NULL;
        return status;
    }
    if (out->count > 1)
        qsort(out->bases, out->count, sizeof *out->bases, by_number);
    return DS_OK;
}

/* ---- reading the log ------------------------------------------------------------------------------------------- */

struct walk {
    ds_store *store;
    ds__frame_visitor *visit;
    void *context;
    uint64_t end; /* no frame that goes beyond; UINT64_MAX: to wherever it ends */
};

static void note_head(const struct ds_frame *frame, struct ds_log_end *end) {
    if (ds__frame_type(frame->word0) != DS_FRAME_HEAD)
        return;
    const struct ds_record *record = (const struct ds_record *)(const void *)(frame + 1);
    uint64_t start;
    memcpy(&start, ds__record_value(record, record->key_size), sizeof start);
    if (start > end->head)
        end->head = start;
}

/* What the header of the next segment says of a segment's frames. */
struct successor {
    uint64_t before_end, before_sequence;
};

/* A frame behind the end that the next header tells. A recovery that ended the log there has left it behind, whole as it may
 * be, and has let the sequences go on above all that it left. Otherwise the frame came after that header, which a writer made
 * that died before it used it: then the header tells nothing. */
static bool dropped(const struct successor *next, uint64_t offset, const struct ds_frame *frame) {
    return offset >= next->before_end && frame->sequence < next->before_sequence;
}

/* The frames of one segment, from end->offset. Stops at the first word0 of zero, at a dropped frame, and at a bad one with
 * end->torn. */
static ds_status walk_segment(const struct walk *walk, struct ds_segment *segment, const struct successor *next,
                              struct ds_log_end *end) {
    while (end->offset < walk->end && segment->end - end->offset >= sizeof(struct ds_frame)) {
        const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, end->offset);
        if (frame->word0 == 0)
            break;
        if (!ds__frame_valid(frame, segment->end - end->offset, segment->seed, end->offset, end->crc) ||
            frame->sequence < end->sequence ||
            (frame->sequence == end->sequence && ds__frame_type(frame->word0) == DS_FRAME_COMMIT)) {
            end->torn = true;
            break;
        }
        if (ds__frame_length(frame->word0) > walk->end - end->offset || dropped(next, end->offset, frame))
            break;
        ds_status status = walk->visit(walk->context, segment, end->offset, frame);
        if (status != DS_OK)
            return status;
        note_head(frame, end);
        end->sequence = frame->sequence;
        end->crc = frame->crc;
        end->offset += ds__frame_length(frame->word0);
    }
    return DS_OK;
}

/* Does this segment go on where the last one ended? */
static bool linked(const struct ds_segment *segment, const struct ds_log_end *end) {
    const struct ds_segment_header *header = ds__segment_header(segment);
    if (end->segment == NULL)
        return true; /* whether the log may begin here is for pick_start() to say */
    return header->base == end->segment->end && header->before_base == end->segment->base &&
           header->before_end == end->offset && header->before_crc == end->crc &&
           header->before_sequence >= end->sequence; /* higher after a recovery that left the gap */
}

/* The last file may be a segment that nothing was ever written to: its maker died, and others went on in the one before. */
static bool left_over(const struct ds_segment *segment, const struct ds_log_end *end) {
    const struct ds_segment_header *header = ds__segment_header(segment);
    return header->base == end->segment->end && header->before_base == end->segment->base &&
           header->before_end < end->offset && header->before_sequence <= end->sequence;
}

static struct successor successor_of(const struct walk *walk, const struct ds_inventory *files, size_t i,
                                     const struct ds_segment *segment) {
    struct successor none = {UINT64_MAX, 0};
    struct ds_segment *next;
    if (walk->end <= segment->end || i + 1 == files->count || /* else it is a file that may yet be replaced */
        ds__segments_at(&walk->store->segments, files->bases[i + 1], &next) != DS_OK)
        return none;
    const struct ds_segment_header *header = ds__segment_header(next);
    if (header->base != segment->end || header->before_base != segment->base)
        return none;
    return (struct successor){header->before_end, header->before_sequence};
}

/* Walks segment after segment. A status other than DS_OK is about the world (or a visitor), never about where the log
 * ends: that is in `end`. */
static ds_status walk_segments(const struct walk *walk, const struct ds_inventory *files, struct ds_log_end *end) {
    memset(end, 0, sizeof *end);
    for (size_t i = files->first; i < files->count; i++) {
        struct ds_segment *segment;
        if (end->segment != NULL && end->offset >= walk->end)
            break;
        ds_status status = ds__segments_at(&walk->store->segments, files->bases[i], &segment);
        if (status == DS_CORRUPT || status == DS_MISSING || (status == DS_OK && !linked(segment, end))) {
            end->torn = end->torn || status != DS_OK || i + 1 < files->count || !left_over(segment, end);
            break;
        }
        if (status != DS_OK)
            return status;
        /* What the segment before has behind that end, torn or dropped, is history: this header vouches for the end. */
        end->torn = false;
        end->segment = segment;
        end->offset = segment->base + DS_SEGMENT_HEADER;
        end->crc = segment->header_crc;
        if (end->sequence < ds__segment_header(segment)->before_sequence)
            end->sequence = ds__segment_header(segment)->before_sequence;
        end->segments = i + 1;
        struct successor next = successor_of(walk, files, i, segment);
        status = walk_segment(walk, segment, &next, end);
        if (status != DS_OK)
            return status;
    }
    return DS_OK;
}

ds_status ds__log_read(ds_store *store, const struct ds_inventory *files, uint64_t limit, ds__frame_visitor *visit,
                       void *context, struct ds_log_end *end) {
    struct walk walk = {store, visit, context, limit};
    return walk_segments(&walk, files, end);
}

ds_status ds__log_walk(ds_store *store, uint64_t limit, ds__frame_visitor *visit, void *context) {
    struct ds_inventory files;
    ds_status status = ds__inventory(&store->directory, &files);
    if (status != DS_OK)
        return status;
    uint64_t start = atomic_load_explicit(&store->control->start, memory_order_relaxed);
    while (files.first < files.count && files.bases[files.first] < start)
        files.first++;
    struct walk walk = {store, visit, context, limit};
    struct ds_log_end end;
    status = walk_segments(&walk, &files, &end);
    free(files.bases);
    if (status == DS_OK && end.offset < limit)
        status = ds__fail(DS_CORRUPT, 0, "%s: the log makes no sense at offset %llu, but was committed up to %llu",
                          store->directory.path, (unsigned long long)end.offset, (unsigned long long)limit);
    return status;
}
