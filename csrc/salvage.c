/* salvage.c: reading a damaged log. See salvage.h.
 *
 * What is believed
 *   A segment's header, if its crc is right. Without one the segment is still read: its salt may be right, and if it is
 *   not, the seed of all its checksums follows from its records (ds__find_seed).
 *   A frame in its place in the chain, if it is valid as for everybody else (ds__frame_valid).
 *   A frame whose predecessor is damaged, if it proves itself (ds__frame_whole).
 *   Where frames end, what the next segment's header says: dead bytes behind that are none of the log. Unless the log
 *   goes on there.
 *   A HEAD, if nothing is damaged between the start that it names and itself; until its segments are on disk as a whole,
 *   the segments before them are still needed.
 * Behind a damaged place the next frame is looked for at every multiple of 8. */
#include "salvage.h"

#include "intact.h"

#include <errno.h>
#include <stdlib.h>

enum { BLOCK = 4096 };

struct ds_piece {
    struct ds_segment_header header; /* as it was found */
    uint64_t base, end;              /* what it covers of the log, as far as can be told */
    uint32_t seed;
    bool valid;   /* the header is right, and says that it belongs here */
    bool foreign; /* the header is right, and says that it does not */
};

struct ds_head {
    uint64_t at, start;
};

/* ---- notes ----------------------------------------------------------------------------------------------------- */

/* Room for one more item in a list that grows. */
static ds_status grow(void **items, size_t count, size_t *room, size_t size) {
    if (count < *room)
        return DS_OK;
    size_t larger = *room ? 2 * *room : 16;
    void *moved = realloc(*items, larger * size);
    if (moved == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    *items = moved;
    *room = larger;
    return DS_OK;
}

static ds_status note_damage(struct ds_salvage *salvage, uint64_t offset, uint64_t bytes) {
    if (salvage->surveyed)
        return DS_OK;
    void *items = salvage->damages;
    ds_status status = grow(&items, salvage->damage_count, &salvage->damage_room, sizeof *salvage->damages);
    salvage->damages = items;
    if (status == DS_OK)
        salvage->damages[salvage->damage_count++] = (struct ds_damage){offset, bytes};
    return status;
}

static ds_status note_head(struct ds_salvage *salvage, uint64_t at, const struct ds_frame *frame) {
    const struct ds_record *record = (const struct ds_record *)(const void *)(frame + 1);
    void *items = salvage->heads;
    ds_status status = grow(&items, salvage->head_count, &salvage->head_room, sizeof *salvage->heads);
    salvage->heads = items;
    if (status != DS_OK)
        return status;
    struct ds_head *head = &salvage->heads[salvage->head_count++];
    head->at = at;
    memcpy(&head->start, ds__record_value(record, record->key_size), sizeof head->start);
    return DS_OK;
}

static void note_sequence(struct ds_salvage *salvage, uint64_t sequence) {
    if (salvage->highest < sequence)
        salvage->highest = sequence;
}

/* ---- reading files --------------------------------------------------------------------------------------------- */

/* Up to `size` bytes; blocks that the disk does not give back read as zeros, as does what lies beyond the file's end. */
static ds_status read_around(const struct ds_directory *directory, const char *name, int fd, unsigned char *bytes,
                             uint64_t size) {
    memset(bytes, 0, size);
    for (uint64_t at = 0; at < size; at += BLOCK) {
        size_t want = size - at < BLOCK ? (size_t)(size - at) : BLOCK, got = 0;
        ds_status status = ds__os_read(directory, name, fd, bytes + at, want, at, &got);
        if (status == DS_IO && ds_error_errno() == EIO)
            memset(bytes + at, 0, want);
        else if (status != DS_OK)
            return status;
        else if (got < want)
            break;
    }
    return DS_OK;
}

static ds_status read_segment(const struct ds_directory *directory, uint64_t base, unsigned char *bytes, uint64_t size,
                              uint64_t *file_size) {
    char name[DS_NAME_SIZE];
    ds__segment_name(base, name);
    int fd;
    ds_status status = ds__os_open(directory, name, DS_OS_READ, &fd);
    if (status != DS_OK)
        return status;
    status = ds__os_size(directory, name, fd, file_size);
    if (status == DS_OK)
        status = read_around(directory, name, fd, bytes, size);
    ds__os_close(fd);
    return status;
}

/* ---- headers --------------------------------------------------------------------------------------------------- */

static ds_status refuse_version(const struct ds_salvage *salvage, const struct ds_segment_header *header) {
    char name[DS_NAME_SIZE];
    ds__segment_name(header->base, name);
    return ds__fail(DS_FORMAT, 0,
                    "%s/%s: format version %u, features 0x%x and 0x%x, which this build does not know; nothing was "
                    "changed. Repair the store with the dora-state that wrote it",
                    salvage->directory->path, name, header->version, header->incompat, header->ro_compat);
}

/* *future: it looks like a later version's, but its checksum does not say so. */
static ds_status read_header(struct ds_salvage *salvage, size_t i, const struct ds_segment_header **future) {
    struct ds_piece *piece = &salvage->pieces[i];
    struct ds_segment_header *header = &piece->header;
    uint64_t size = 0;
    ds_status status =
        read_segment(salvage->directory, salvage->files.bases[i], (unsigned char *)header, sizeof *header, &size);
    if (status != DS_OK)
        return status;
    piece->base = salvage->files.bases[i];
    piece->end = piece->base + (size < DS_SEGMENT_MAX ? size / 8 * 8 : DS_SEGMENT_MAX);
    if (header->magic != DS_SEGMENT_MAGIC)
        return DS_OK;
    piece->valid = ds__segment_header_crc(header) == header->crc;
    if (piece->valid &&
        (header->version != DS_FORMAT_VERSION || (header->incompat & ~(uint32_t)DS_KNOWN_INCOMPAT) != 0 ||
         (header->ro_compat & ~(uint32_t)DS_KNOWN_RO_COMPAT) != 0))
        return refuse_version(salvage, header);
    if (!piece->valid && header->version != DS_FORMAT_VERSION && header->version != 0)
        *future = header;
    if (piece->valid && (header->size < DS_SEGMENT_MIN || header->size > DS_SEGMENT_MAX || header->size % 8 != 0))
        piece->valid = false;
    if (piece->valid)
        piece->end = piece->base + header->size;
    return DS_OK;
}

/* Whose store it is: most segments', should a foreign one have got in among them. */
static bool pick_store(struct ds_salvage *salvage) {
    size_t most = 0;
    for (size_t i = 0; i < salvage->files.count && 2 * most < salvage->files.count; i++) {
        size_t same = 0;
        for (size_t k = 0; salvage->pieces[i].valid && k < salvage->files.count; k++)
            same += salvage->pieces[k].valid &&
                    memcmp(salvage->pieces[k].header.uuid, salvage->pieces[i].header.uuid, sizeof salvage->uuid) == 0;
        if (same > most) {
            most = same;
            memcpy(salvage->uuid, salvage->pieces[i].header.uuid, sizeof salvage->uuid);
        }
    }
    if (most == 0)
        memcpy(salvage->uuid, salvage->pieces[0].header.uuid, sizeof salvage->uuid);
    return most > 0;
}

static void describe_piece(struct ds_salvage *salvage, size_t i) {
    struct ds_piece *piece = &salvage->pieces[i];
    struct ds_segment_header header = piece->header;
    piece->foreign =
        piece->valid && (memcmp(header.uuid, salvage->uuid, sizeof header.uuid) != 0 || header.base != piece->base);
    piece->valid = piece->valid && !piece->foreign;
    if (i + 1 < salvage->files.count && piece->end > salvage->files.bases[i + 1])
        piece->end = salvage->files.bases[i + 1];
    memcpy(header.uuid, salvage->uuid, sizeof header.uuid);
    header.base = piece->base;
    piece->seed = ds__segment_seed(&header);
    if (piece->valid)
        note_sequence(salvage, header.before_sequence);
}

static ds_status read_headers(struct ds_salvage *salvage) {
    const struct ds_segment_header *future = NULL;
    salvage->pieces = calloc(salvage->files.count, sizeof *salvage->pieces);
    if (salvage->pieces == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    for (size_t i = 0; i < salvage->files.count; i++) {
        ds_status status = read_header(salvage, i, &future);
        if (status != DS_OK)
            return status;
    }
    bool known = pick_store(salvage);
    if (!known && future != NULL)
        return refuse_version(salvage, future);
    for (size_t i = 0; i < salvage->files.count; i++)
        describe_piece(salvage, i);
    return ds__floor_read(salvage->directory, salvage->uuid, &salvage->floor);
}

/* ---- walking --------------------------------------------------------------------------------------------------- */

struct scan {
    struct ds_salvage *salvage;
    ds__salvage_visitor *visit; /* NULL: survey */
    void *context;
    uint64_t last;     /* sequence of the last commit */
    uint64_t expected; /* base of the next segment */

    const struct ds_piece *piece;
    const unsigned char *bytes;
    uint64_t at, limit; /* in the segment; frames end at `limit` at the latest */
    bool vouched;       /* and exactly there */
    uint32_t before;    /* crc of the frame before, if that is `sure` */
    bool sure;
};

enum verdict { BROKEN, WHOLE, CHAINED };

static enum verdict judge(const struct scan *scan, const struct ds_frame *frame) {
    uint64_t room = scan->limit - scan->at, offset = scan->piece->base + scan->at;
    bool commit = ds__frame_type(frame->word0) == DS_FRAME_COMMIT;
    if (frame->word0 >> 48 != DS_FRAME_MARK)
        return BROKEN;
    if (ds__frame_valid(frame, room, scan->piece->seed, offset, scan->before) && frame->count > 0)
        return frame->sequence > scan->last || (frame->sequence == scan->last && !commit) ? CHAINED : BROKEN;
    if (!ds__frame_whole(frame, room, scan->piece->seed, offset))
        return BROKEN;
    return !commit || frame->sequence > scan->last ? WHOLE : BROKEN;
}

static ds_status take_frame(struct scan *scan, const struct ds_frame *frame, enum verdict verdict) {
    struct ds_salvage *salvage = scan->salvage;
    uint64_t offset = scan->piece->base + scan->at;
    /* The sequence of a RELOCATE or HEAD is under the frame's crc only. */
    if (verdict == CHAINED || ds__frame_type(frame->word0) == DS_FRAME_COMMIT) {
        scan->last = frame->sequence;
        note_sequence(salvage, frame->sequence);
    }
    scan->before = frame->crc;
    scan->sure = verdict == CHAINED;
    if (scan->visit != NULL)
        return offset >= salvage->start ? scan->visit(scan->context, offset, frame) : DS_OK;
    return ds__frame_type(frame->word0) == DS_FRAME_HEAD ? note_head(salvage, offset, frame) : DS_OK;
}

/* A damaged place at the end of a segment. Behind the last frame of a segment zeros are as it should be, but for what the
 * next header or the floor speaks of. */
static ds_status close_segment(struct scan *scan, uint64_t bad, bool last) {
    uint64_t to = scan->limit, base = scan->piece->base, floor = scan->salvage->floor.offset;
    last = last || floor < scan->piece->end;
    if (!scan->vouched)
        while (to > bad && scan->bytes[to - 1] == 0)
            to--;
    if (last && floor > base + to)
        to = floor - base;
    return to > bad ? note_damage(scan->salvage, base + bad, to - bad) : DS_OK;
}

static ds_status scan_frames(struct scan *scan, bool last) {
    const uint64_t none = UINT64_MAX;
    uint64_t bad = none;
    while (scan->limit - scan->at >= sizeof(struct ds_frame)) {
        const struct ds_frame *frame = (const struct ds_frame *)(const void *)(scan->bytes + scan->at);
        enum verdict verdict = judge(scan, frame);
        if (verdict == BROKEN) {
            if (bad == none)
                bad = scan->at;
            scan->at += 8;
            continue;
        }
        ds_status status = DS_OK;
        if (bad != none)
            status = note_damage(scan->salvage, scan->piece->base + bad, scan->at - bad);
        else if (verdict == WHOLE && scan->sure)
            status = note_damage(scan->salvage, scan->piece->base + scan->at, 0);
        if (status == DS_OK)
            status = take_frame(scan, frame, verdict);
        if (status != DS_OK)
            return status;
        bad = none;
        scan->at += ds__frame_length(frame->word0);
    }
    return close_segment(scan, bad == none ? scan->at : bad, last);
}

/* Are there frames of the log behind the end that the next header tells? As in log.c: then nobody ever used that header. */
static bool goes_on(const struct scan *scan, uint64_t before_end, uint64_t before_sequence) {
    uint64_t base = scan->piece->base;
    for (uint64_t at = before_end - base; scan->limit - at >= sizeof(struct ds_frame); at += 8) {
        const struct ds_frame *frame = (const struct ds_frame *)(const void *)(scan->bytes + at);
        if (ds__frame_whole(frame, scan->limit - at, scan->piece->seed, base + at) &&
            frame->sequence >= before_sequence)
            return true;
    }
    return false;
}

/* Where the frames of a segment end, if its successor is there to tell. */
static void set_limit(struct scan *scan, const struct ds_piece *next) {
    uint64_t base = scan->piece->base, end = scan->piece->end;
    scan->limit = end - base;
    scan->vouched = false;
    if (next == NULL || !next->valid || next->header.before_base != base || next->base != end)
        return;
    uint64_t before_end = next->header.before_end;
    if (before_end >= base + DS_SEGMENT_HEADER && before_end <= end && before_end % 8 == 0 &&
        !goes_on(scan, before_end, next->header.before_sequence)) {
        scan->limit = before_end - base;
        scan->vouched = true;
    }
}

static ds_status scan_bytes(struct scan *scan, struct ds_piece *piece, const struct ds_piece *next,
                            unsigned char *bytes) {
    uint64_t found;
    ds_status status = read_segment(scan->salvage->directory, piece->base, bytes, piece->end - piece->base, &found);
    if (status != DS_OK)
        return status;
    uint64_t size = piece->end - piece->base;
    uint32_t seed;
    if (!piece->valid && !scan->salvage->surveyed && !ds__any_frame_whole(bytes, size, piece->base, piece->seed) &&
        ds__find_seed(bytes, size, piece->base, &seed))
        piece->seed = seed;
    scan->piece = piece;
    scan->bytes = bytes;
    scan->at = DS_SEGMENT_HEADER;
    scan->before = piece->header.crc;
    scan->sure = piece->valid;
    if (piece->valid && scan->last < piece->header.before_sequence)
        scan->last = piece->header.before_sequence;
    set_limit(scan, next);
    return scan_frames(scan, next == NULL);
}

static ds_status scan_piece(struct scan *scan, size_t i) {
    struct ds_salvage *salvage = scan->salvage;
    struct ds_piece *piece = &salvage->pieces[i];
    const struct ds_piece *next = i + 1 < salvage->files.count ? piece + 1 : NULL;
    ds_status status = DS_OK;
    if (i > 0 && piece->base > scan->expected)
        status = note_damage(salvage, scan->expected, piece->base - scan->expected);
    scan->expected = piece->end;
    uint64_t size = piece->end - piece->base;
    bool readable = !piece->foreign && size > DS_SEGMENT_HEADER;
    if (status == DS_OK && !piece->valid)
        status = note_damage(salvage, piece->base, readable ? DS_SEGMENT_HEADER : size);
    if (status != DS_OK || !readable)
        return status;
    unsigned char *bytes = malloc(size);
    if (bytes == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    status = scan_bytes(scan, piece, next, bytes);
    free(bytes);
    return status;
}

static ds_status scan_all(struct ds_salvage *salvage, ds__salvage_visitor *visit, void *context) {
    struct scan scan = {.salvage = salvage, .visit = visit, .context = context};
    ds_status status = DS_OK;
    for (size_t i = 0; status == DS_OK && i < salvage->files.count; i++)
        if (visit == NULL || salvage->pieces[i].end > salvage->start)
            status = scan_piece(&scan, i);
    return status;
}

/* ---- the start ------------------------------------------------------------------------------------------------- */

static bool undamaged(const struct ds_salvage *salvage, uint64_t from, uint64_t to) {
    if (salvage->pieces[0].base > from)
        return false;
    for (size_t i = 0; i < salvage->damage_count; i++) {
        const struct ds_damage *damage = &salvage->damages[i];
        if (damage->offset < to && (damage->offset >= from || damage->offset + damage->bytes > from))
            return false;
    }
    return true;
}

static ds_status pick_start(struct ds_salvage *salvage) {
    uint64_t first = salvage->pieces[0].base, named = 0;
    for (size_t i = 0; i < salvage->head_count; i++) {
        const struct ds_head *head = &salvage->heads[i];
        if (head->start > named)
            named = head->start;
        if (head->start > salvage->start && undamaged(salvage, head->start, head->at))
            salvage->start = head->start;
    }
    size_t kept = 0;
    for (size_t i = 0; i < salvage->damage_count; i++)
        if (salvage->damages[i].offset >= salvage->start)
            salvage->damages[kept++] = salvage->damages[i];
    salvage->damage_count = kept;
    ds_status status = DS_OK;
    if (first > named) { /* before the first one there were others, and nothing says that they may be gone */
        status = note_damage(salvage, named, first - named);
        if (status == DS_OK) { /* it comes first */
            struct ds_damage front = salvage->damages[kept];
            memmove(salvage->damages + 1, salvage->damages, kept * sizeof front);
            salvage->damages[0] = front;
        }
    }
    salvage->whole = salvage->damage_count == 0 && first == 0 && salvage->start == 0;
    return status;
}

/* ---- the calls ------------------------------------------------------------------------------------------------- */

static ds_status nothing_here(const struct ds_salvage *salvage) {
    const char *path = salvage->directory->path;
    if (salvage->files.floor || salvage->files.control)
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the segments of the log are gone, so there is nothing to repair; restore "
                        "the *.log files from a copy",
                        path);
    return ds__fail(DS_NOT_A_STORE, 0, "%s: there is no store here", path);
}

ds_status ds__salvage_open(struct ds_salvage *salvage, const struct ds_directory *directory) {
    memset(salvage, 0, sizeof *salvage);
    salvage->directory = directory;
    ds_status status = ds__inventory(directory, &salvage->files);
    if (status == DS_OK && salvage->files.count == 0)
        status = nothing_here(salvage);
    if (status == DS_OK)
        status = read_headers(salvage);
    if (status != DS_OK)
        return status;
    note_sequence(salvage, salvage->floor.sequence);
    status = scan_all(salvage, NULL, NULL);
    if (status == DS_OK)
        status = pick_start(salvage);
    salvage->surveyed = true;
    return status;
}

ds_status ds__salvage_read(struct ds_salvage *salvage, ds__salvage_visitor *visit, void *context) {
    return scan_all(salvage, visit, context);
}

bool ds__salvage_known(const struct ds_salvage *salvage) {
    bool known = salvage->floor.count > 0;
    for (size_t i = 0; i < salvage->files.count; i++)
        known = known || salvage->pieces[i].valid;
    return known;
}

void ds__salvage_free(struct ds_salvage *salvage) {
    free(salvage->files.bases);
    free(salvage->pieces);
    free(salvage->damages);
    free(salvage->heads);
}
