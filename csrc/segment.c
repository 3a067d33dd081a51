/* segment.c: naming, creating, mapping and finding segments. See segment.h. */
#include "segment.h"

#include "sigbus.h"
#include "status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- mappings -------------------------------------------------------------------------------------------------- */

void ds__mapping_pin(struct ds_mapping *mapping) {
    atomic_fetch_add_explicit(&mapping->references, 1, memory_order_relaxed);
}

void ds__mapping_unpin(struct ds_mapping *mapping) {
    /* Release: what this owner read came before. Acquire at the last: the others' reads came before the unmapping. */
    if (atomic_fetch_sub_explicit(&mapping->references, 1, memory_order_acq_rel) == 1) {
        ds__os_unmap(mapping->bytes, mapping->size);
        free(mapping);
    }
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

void ds__segment_name(uint64_t base, char name[DS_NAME_SIZE]) {
    snprintf(name, DS_NAME_SIZE, "%016llx.log", (unsigned long long)base);
}

bool ds__segment_parse_name(const char *name, uint64_t *base) {
    uint64_t value = 0;
    for (int i = 0; i < 16; i++) {
        char c = name[i];
        uint64_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint64_t)(c - 'a') + 10;
        else
            return false; /* the terminating zero too */
        value = value << 4 | digit;
    }
    *base = value;
    return strcmp(name + 16, ".log") == 0;
}

/* ---- the table ------------------------------------------------------------------------------------------------- */

static struct ds_segment_table *make_table(uint32_t room) {
    struct ds_segment_table *table = calloc(1, sizeof *table + room * sizeof table->items[0]);
    if (table != NULL)
        table->room = room;
    return table;
}

ds_status ds__segments_init(struct ds_segments *segments, const struct ds_directory *directory, const uint8_t uuid[16],
                            bool writable) {
    struct ds_segment_table *empty = make_table(16);
    if (empty == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    segments->directory = directory;
    segments->writable = writable;
    memcpy(segments->uuid, uuid, sizeof segments->uuid);
    atomic_init(&segments->table, empty);
    segments->fenced = !ds__os_fence_threads();
    pthread_mutex_init(&segments->changing, NULL);
    return DS_OK;
}

static void free_tables(struct ds_segment_table *table) {
    while (table != NULL) {
        struct ds_segment_table *older = table->older;
        free(table);
        table = older;
    }
}

static void unpin_all(struct ds_segment *limbo) {
    while (limbo != NULL) {
        struct ds_segment *segment = limbo;
        limbo = segment->next_limbo;
        ds__mapping_unpin(&segment->mapping);
    }
}

void ds__segments_free(struct ds_segments *segments) {
    struct ds_segment_table *table = segments->table;
    if (table == NULL)
        return;
    for (uint32_t i = 0; i < table->count; i++)
        ds__mapping_unpin(&table->items[i]->mapping);
    unpin_all(segments->limbo);
    free_tables(table);
    segments->table = NULL;
    pthread_mutex_destroy(&segments->changing);
}

static void drop_below(struct ds_segments *segments, uint64_t start) {
    struct ds_segment_table *old = segments->table;
    uint32_t count = old->count, first = 0;
    while (first < count && old->items[first]->end <= start)
        first++;
    struct ds_segment_table *new = make_table(2 * (count - first) + 16);
    if (new == NULL)
        return; /* the next call tries again */
    memcpy(new->items, old->items + first, (count - first) * sizeof new->items[0]);
    new->count = count - first;
    new->older = old;
    /* Sequentially consistent, as is the read of `active` after it: a call that is not counted there yet will load this
     * table. */
    atomic_store_explicit(&segments->table, new, memory_order_seq_cst);
    atomic_store_explicit(&segments->start, start, memory_order_relaxed);
    /* After that: a child that is forked in between would give them up twice. */
    for (uint32_t i = 0; i < first; i++) {
        old->items[i]->next_limbo = segments->limbo;
        segments->limbo = old->items[i];
    }
}

static bool nobody_inside(const struct ds_segments *segments) {
    return atomic_load_explicit(&segments->active, memory_order_seq_cst) == 0 &&
           atomic_load_explicit(&segments->writing, memory_order_seq_cst) == 0;
}

bool ds__segments_idle(const struct ds_segments *segments) {
    /* Without the fence first, because it costs a system call; a busy handle is found busy most of the time. */
    return nobody_inside(segments) && (segments->fenced || ds__os_fence_threads()) && nobody_inside(segments);
}

void ds__segments_reclaim(struct ds_segments *segments, uint64_t start) {
    struct ds_segment *limbo = NULL;
    struct ds_segment_table *older = NULL;
    if (pthread_mutex_trylock(&segments->changing) != 0)
        return;
    if (start > atomic_load_explicit(&segments->start, memory_order_relaxed))
        drop_below(segments, start);
    if (ds__segments_idle(segments)) {
        limbo = atomic_exchange_explicit(&segments->limbo, NULL, memory_order_relaxed);
        atomic_fetch_add_explicit(&segments->unmapping, limbo != NULL, memory_order_relaxed);
        struct ds_segment_table *table = segments->table;
        older = table->older;
        table->older = NULL;
    }
    pthread_mutex_unlock(&segments->changing);
    free_tables(older);
    /* Out of the mutex, which a writer that opens a segment needs: the file goes with its last mapping, and that may take the
     * time of some transfers to the disk. */
    unpin_all(limbo);
    atomic_fetch_sub_explicit(&segments->unmapping, limbo != NULL, memory_order_release);
}

static bool holds(const struct ds_segment *segment, uint64_t offset) {
    return offset >= segment->base && offset < segment->end;
}

struct ds_segment *ds__segments_find(struct ds_segments *segments, uint64_t offset) {
    struct ds_segment_table *table = atomic_load_explicit(&segments->table, memory_order_seq_cst);
    struct ds_segment *recent = atomic_load_explicit(&table->recent, memory_order_acquire);
    if (recent != NULL && holds(recent, offset))
        return recent;
    /* The last segment whose base is <= offset. */
    uint32_t low = 0, high = atomic_load_explicit(&table->count, memory_order_acquire);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (table->items[middle]->base <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || !holds(table->items[low - 1], offset))
        return NULL;
    atomic_store_explicit(&table->recent, table->items[low - 1], memory_order_release);
    return table->items[low - 1];
}

static ds_status add_locked(struct ds_segments *segments, struct ds_segment *segment) {
    struct ds_segment_table *old = segments->table;
    uint32_t count = old->count;
    /* The common case: the log grew. */
    if (count < old->room && (count == 0 || old->items[count - 1]->base < segment->base)) {
        old->items[count] = segment;
        atomic_store_explicit(&old->count, count + 1, memory_order_release);
        return DS_OK;
    }
    struct ds_segment_table *new = make_table(2 * (count + 1));
    if (new == NULL) {
        ds__mapping_unpin(&segment->mapping);
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    }
    uint32_t at = 0;
    while (at < count && old->items[at]->base < segment->base)
        at++;
    memcpy(new->items, old->items, at * sizeof new->items[0]);
    new->items[at] = segment;
    memcpy(new->items + at + 1, old->items + at, (count - at) * sizeof new->items[0]);
    new->count = count + 1;
    new->older = old;
    atomic_store_explicit(&segments->table, new, memory_order_release);
    return DS_OK;
}

ds_status ds__segments_add(struct ds_segments *segments, struct ds_segment *segment) {
    pthread_mutex_lock(&segments->changing);
    ds_status status = add_locked(segments, segment);
    pthread_mutex_unlock(&segments->changing);
    return status;
}

void ds__segments_drop(struct ds_segments *segments, uint64_t base) {
    struct ds_segment_table *table = segments->table;
    while (table->count > 0 && table->items[table->count - 1]->base >= base)
        ds__mapping_unpin(&table->items[--table->count]->mapping);
    table->recent = NULL;
}

static ds_status at_locked(struct ds_segments *segments, uint64_t base, struct ds_segment **out) {
    *out = ds__segments_find(segments, base); /* another thread may have been faster */
    if (*out != NULL)
        return DS_OK;
    struct ds_segment *segment;
    ds_status status = ds__segment_open(segments, base, &segment);
    if (status == DS_OK)
        status = add_locked(segments, segment);
    if (status == DS_OK)
        *out = segment;
    return status;
}

ds_status ds__segments_at(struct ds_segments *segments, uint64_t base, struct ds_segment **out) {
    *out = ds__segments_find(segments, base);
    if (*out != NULL)
        return DS_OK;
    pthread_mutex_lock(&segments->changing);
    ds_status status = at_locked(segments, base, out);
    pthread_mutex_unlock(&segments->changing);
    return status;
}

/* The mapped segment with the highest base that is <= offset. */
static struct ds_segment *last_before(struct ds_segments *segments, uint64_t offset) {
    const struct ds_segment_table *table = segments->table;
    struct ds_segment *last = NULL;
    for (uint32_t i = 0; i < table->count && table->items[i]->base <= offset; i++)
        last = table->items[i];
    return last;
}

ds_status ds__segments_get(struct ds_segments *segments, uint64_t start, uint64_t offset, struct ds_segment **out) {
    *out = ds__segments_find(segments, offset);
    if (*out != NULL)
        return DS_OK;
    pthread_mutex_lock(&segments->changing);
    struct ds_segment *segment = last_before(segments, offset);
    ds_status status = DS_OK;
    /* What is mapped below `start` leads nowhere: the segments between may be gone. */
    if (segment == NULL || segment->end <= start)
        status = at_locked(segments, start, &segment);
    while (status == DS_OK && offset >= segment->end)
        status = at_locked(segments, segment->end, &segment);
    if (status == DS_OK && offset < segment->base) /* the log has moved on past it */
        status = ds__fail(DS_MISSING, 0, "%s: log offset %llu was compacted away", segments->directory->path,
                          (unsigned long long)offset);
    if (status == DS_OK)
        *out = segment;
    pthread_mutex_unlock(&segments->changing);
    return status;
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static ds_status damaged(const struct ds_directory *directory, const char *name, const char *what) {
    return ds__fail(DS_CORRUPT, 0, "%s/%s: %s; nothing was changed: restore the file, or repair the store",
                    directory->path, name, what);
}

ds_status ds__segment_check(const struct ds_directory *directory, const char *name,
                            const struct ds_segment_header *header, uint64_t base, uint64_t size, const uint8_t *uuid) {
    if (header->magic != DS_SEGMENT_MAGIC)
        return damaged(directory, name, "does not begin with a segment's magic number");
    /* Before the crc: a later version may have moved it. */
    if (header->version == 0) /* which no build ever wrote */
        return damaged(directory, name, "the segment's header is cut off after its magic number");
    if (header->version != DS_FORMAT_VERSION || (header->incompat & ~(uint32_t)DS_KNOWN_INCOMPAT) != 0)
        return ds__fail(
            DS_FORMAT, 0,
            "%s/%s: format version %u, incompatible features 0x%x; this build reads version %d. Open it with "
            "the dora-state that wrote it",
            directory->path, name, header->version, header->incompat, DS_FORMAT_VERSION);
    if (ds__segment_header_crc(header) != header->crc)
        return damaged(directory, name, "the segment's header fails its checksum");
    if (header->base != base || header->size != size)
        return damaged(directory, name, "the segment's header belongs to a file of another name or size");
    if (uuid != NULL && memcmp(header->uuid, uuid, 16) != 0)
        return damaged(directory, name, "the segment belongs to another store");
    return DS_OK;
}

static ds_status map_segment(const struct ds_segments *segments, const char *name, int fd, uint64_t size,
                             struct ds_segment **out) {
    struct ds_segment *segment = calloc(1, sizeof *segment);
    if (segment == NULL)
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    void *bytes;
    ds_status status = ds__os_map(segments->directory, name, fd, size, segments->writable, &bytes);
    if (status != DS_OK) {
        free(segment);
        return status;
    }
    segment->mapping.bytes = bytes;
    segment->mapping.size = size;
    atomic_init(&segment->mapping.references, 1);
    *out = segment;
    return DS_OK;
}

/* In a shorter segment the file system would make large pages too, but the processor maps them in small pieces: then each
 * piece that is written again after a sync takes a page fault that costs as much as the whole. */
ds_status ds__segment_map_new(const struct ds_segments *segments, const char *name, int fd, uint64_t size, bool quick,
                              struct ds_segment **out) {
    bool large = size > DS_OS_LARGE_PAGE;
    ds_status status = DS_OK;
    if (quick && segments->large_pages && !large)
        status = ds__os_write_zeros(segments->directory, name, fd, size);
    if (status == DS_OK)
        status = map_segment(segments, name, fd, size, out);
    if (status == DS_OK && segments->large_pages && large)
        ds__os_large_pages((*out)->mapping.bytes, size);
    if (status == DS_OK && quick) {
        ds__os_populate((*out)->mapping.bytes, size);
        (*out)->populated = size;
    }
    return status;
}

static void describe(struct ds_segment *segment) {
    const struct ds_segment_header *header = ds__segment_header(segment);
    segment->base = header->base;
    segment->end = header->base + header->size;
    segment->seed = ds__segment_seed(header);
    segment->header_crc = header->crc;
}

ds_status ds__segment_open(const struct ds_segments *segments, uint64_t base, struct ds_segment **out) {
    char name[DS_NAME_SIZE];
    ds__segment_name(base, name);
    int fd;
    ds_status status = ds__os_open(segments->directory, name, segments->writable ? DS_OS_WRITE : DS_OS_READ, &fd);
    if (status != DS_OK)
        return status;
    uint64_t size = 0;
    struct ds_segment *segment = NULL;
    status = ds__os_size(segments->directory, name, fd, &size);
    if (status == DS_OK && size < DS_SEGMENT_HEADER)
        status = damaged(segments->directory, name, "shorter than a segment's header");
    if (status == DS_OK)
        status = map_segment(segments, name, fd, size, &segment);
    ds__os_close(fd);
    if (status == DS_OK)
        status = ds__segment_check(segments->directory, name, ds__segment_header(segment), base, size, segments->uuid);
    if (status == DS_CORRUPT && segment != NULL && ds__sigbus_broken(segment->mapping.bytes))
        status =
            ds__fail(DS_IO, EIO, "%s/%s: cannot be read; nothing was changed: check the disk, then repair the store",
                     segments->directory->path, name);
    if (status == DS_OK && segments->writable &&
        (ds__segment_header(segment)->ro_compat & ~(uint32_t)DS_KNOWN_RO_COMPAT) != 0)
        status = ds__fail(DS_FORMAT, 0, "%s/%s: has features (0x%x) that this build can only read; open it read-only",
                          segments->directory->path, name, ds__segment_header(segment)->ro_compat);
    if (status != DS_OK) {
        if (segment != NULL)
            ds__mapping_unpin(&segment->mapping);
        return status;
    }
    describe(segment);
    *out = segment;
    return DS_OK;
}

/* The bytes of a new segment, all zero, mapped: of the reserve, or of a new file. */
static ds_status take_file(struct ds_segments *segments, const char *from, bool reserve, uint64_t size, bool quick,
                           struct ds_segment **out) {
    int fd;
    uint64_t found = size;
    ds_status status = ds__os_open(segments->directory, from, reserve ? DS_OS_WRITE : DS_OS_CREATE, &fd);
    if (status != DS_OK)
        return status;
    status = reserve ? ds__os_size(segments->directory, from, fd, &found)
                     : ds__os_allocate(segments->directory, from, fd, size);
    if (status == DS_OK && found != size)
        status = ds__fail(DS_FULL, 0, "%s/%s: the reserve is not usable", segments->directory->path, from);
    if (status == DS_OK)
        status = ds__segment_map_new(segments, from, fd, size, quick, out);
    ds__os_close(fd);
    return status;
}

ds_status ds__segment_begin(struct ds_segment_header *header, struct ds_segment *segment) {
    ds_status status = ds__os_random(&header->salt, sizeof header->salt);
    if (status != DS_OK)
        return status;
    header->magic = DS_SEGMENT_MAGIC;
    header->version = DS_FORMAT_VERSION;
    header->crc = ds__segment_header_crc(header);
    memcpy(segment->mapping.bytes, header, sizeof *header);
    describe(segment);
    return DS_OK;
}

static ds_status name_segment(struct ds_segments *segments, const char *from, struct ds_segment *segment) {
    char name[DS_NAME_SIZE];
    ds__segment_name(segment->base, name);
    /* The first header is the store: half of it on disk would be damage for ever, so it goes there before its name. */
    ds_status status = DS_OK;
    if (segment->base == 0)
        status = ds__os_range_sync(segments->directory, from, segment->mapping.bytes, sizeof(struct ds_segment_header));
    if (status == DS_OK)
        status = ds__os_rename(segments->directory, from, name);
    if (status == DS_OK && segment->base == 0)
        status = ds__os_directory_sync(segments->directory);
    return status;
}

static ds_status make_segment(struct ds_segments *segments, struct ds_segment_header *header, bool reserve, bool quick,
                              struct ds_segment **out) {
    /* One at a time: its maker holds the writer lock, or the directory's. */
    const char *from = reserve ? DS_RESERVE_NAME : DS_SEGMENT_DRAFT;
    struct ds_segment *segment = NULL;
    ds_status status = take_file(segments, from, reserve, header->size, quick, &segment);
    if (status == DS_OK)
        status = ds__segment_begin(header, segment);
    if (status == DS_OK)
        status = name_segment(segments, from, segment);
    if (status == DS_OK) {
        *out = segment;
        return DS_OK;
    }
    if (segment != NULL)
        ds__mapping_unpin(&segment->mapping);
    if (!reserve) {
        /* Gives the blocks back; a draft that stays is overwritten by the next. The first failure is the one to tell. */
        char sentence[4608];
        snprintf(sentence, sizeof sentence, "%s", ds_error());
        int error = ds_error_errno();
        (void)ds__os_unlink(segments->directory, from);
        (void)ds__fail(status, error, "%s", sentence);
    }
    return status;
}

ds_status ds__segment_create(struct ds_segments *segments, struct ds_segment_header *header, bool quick,
                             struct ds_segment **out) {
    return make_segment(segments, header, false, quick, out);
}

ds_status ds__segment_from_reserve(struct ds_segments *segments, struct ds_segment_header *header,
                                   struct ds_segment **out) {
    header->size = DS_SEGMENT_MIN;
    return make_segment(segments, header, true, false, out);
}

ds_status ds__reserve_make(const struct ds_directory *directory) {
    int fd;
    ds_status status = ds__os_open(directory, DS_RESERVE_DRAFT, DS_OS_CREATE, &fd);
    if (status != DS_OK)
        return status;
    status = ds__os_allocate(directory, DS_RESERVE_DRAFT, fd, DS_SEGMENT_MIN);
    ds__os_close(fd);
    if (status == DS_OK)
        status = ds__os_rename(directory, DS_RESERVE_DRAFT, DS_RESERVE_NAME);
    if (status != DS_OK)
        (void)ds__os_unlink(directory, DS_RESERVE_DRAFT);
    return status;
}
