/* sync.c: from the page cache to the disk, and the floor that says how far.
 *
 * One process syncs at a time; committers that wait for it find their own commit covered and return. What is committed is
 * read first, so a sync covers at least everything that was committed when it was asked for.
 *
 * A sync that failed is final for every process: after it the kernel may have dropped the dirty pages and call them
 * clean, so a later success would say nothing about them. That holds too for a sync whose caller died before it could
 * tell the result: `sync_intent` stands for it, and the range is made dirty again before the next. */
#include "store.h"

#include "crc32c.h"
#include "lock.h"

#include <errno.h>

static const char FLOOR[] = "floor";

/* The kernel makes each dirty page read-only before it writes it, and interrupts every core that runs this process to say so:
 * a few us for each page, of writers too. Of a range of this many bytes the pages are let go before, which interrupts once, and
 * mapped again read-only, because puts look at the keys they overwrite. */
enum { READ_ONLY_FROM = 64 * 1024 };

/* ---- the floor ------------------------------------------------------------------------------------------------- */

ds_status ds__floor_read(const struct ds_directory *directory, const uint8_t uuid[16], struct ds_floor *out) {
    memset(out, 0, sizeof *out);
    int fd;
    ds_status status = ds__os_open(directory, FLOOR, DS_OS_READ, &fd);
    if (status == DS_MISSING)
        return DS_OK; /* nothing was ever synced */
    for (int i = 0; status == DS_OK && i < DS_FLOOR_SLOTS; i++) {
        struct ds_floor slot = {0};
        size_t got = 0;
        status = ds__os_read(directory, FLOOR, fd, &slot, sizeof slot, (uint64_t)i * DS_FLOOR_SPACING, &got);
        if (status == DS_OK && got == sizeof slot && slot.crc == ds__floor_crc(uuid, &slot) && slot.count > out->count)
            *out = slot;
    }
    ds__os_close(fd);
    return status;
}

ds_status ds__floor_write(const struct ds_directory *directory, const uint8_t uuid[16], struct ds_floor *slot,
                          bool durable) {
    slot->crc = ds__floor_crc(uuid, slot);
    int fd;
    bool made = false;
    ds_status status = ds__os_open(directory, FLOOR, DS_OS_WRITE, &fd);
    if (status == DS_MISSING) {
        status = ds__os_open(directory, FLOOR, DS_OS_CREATE, &fd);
        made = status == DS_OK;
    }
    if (status != DS_OK)
        return status;
    status = ds__os_write(directory, FLOOR, fd, slot, sizeof *slot, slot->count % DS_FLOOR_SLOTS * DS_FLOOR_SPACING);
    if (status == DS_OK && made) {
        /* Room for the other slot, too: else a full disk would refuse the next open, and with it deletes. */
        struct ds_floor none = {0};
        (void)ds__os_write(directory, FLOOR, fd, &none, sizeof none,
                           (slot->count + 1) % DS_FLOOR_SLOTS * DS_FLOOR_SPACING);
    }
    if (status == DS_OK && (durable || made))
        status = ds__os_datasync(directory, FLOOR, fd);
    ds__os_close(fd);
    if (status == DS_OK && made)
        status = ds__os_directory_sync(directory);
    return status;
}

/* Under the sync lock. */
static ds_status raise_floor(ds_store *store, uint64_t offset, uint64_t sequence, uint32_t flags, bool durable) {
    struct ds_control *control = store->control;
    struct ds_floor slot = {.offset = offset, .sequence = sequence, .flags = flags};
    slot.count = atomic_load_explicit(&control->floor_count, memory_order_relaxed) + 1;
    ds_status status = ds__floor_write(&store->directory, store->uuid, &slot, durable);
    if (status == DS_OK)
        atomic_store_explicit(&control->floor_count, slot.count, memory_order_relaxed);
    return status;
}

/* ---- the range ------------------------------------------------------------------------------------------------- */

typedef ds_status blob_visitor(ds_store *store, const struct ds_blob_reference *blob);

static ds_status visit_blobs_of_frame(ds_store *store, struct ds_segment *segment, uint64_t offset,
                                      blob_visitor *visit) {
    const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, offset);
    uint64_t at = offset + sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)ds__segment_at(segment, at);
        if (ds__op_is_blob(record->op)) {
            struct ds_blob_reference reference = ds__record_blob(record);
            ds_status status = visit(store, &reference);
            if (status != DS_OK)
                return status;
        }
        at += ds__record_length(record->key_size, record->value_size);
    }
    return DS_OK;
}

/* Where the frames of a segment below `limit` end: dead bytes may follow, and they may look like anything. */
static ds_status frames_end(ds_store *store, const struct ds_segment *segment, uint64_t limit, uint64_t *end) {
    struct ds_segment *successor;
    *end = limit;
    if (limit <= segment->end)
        return DS_OK;
    ds_status status = ds__segments_at(&store->segments, segment->end, &successor);
    if (status == DS_OK)
        *end = ds__segment_header(successor)->before_end;
    return status;
}

/* Does a frame from `from` on name a blob? `after` was filled before the commit point was passed, so it knows of every one that
 * is committed. */
static bool names_blobs(const struct ds_control *control, uint64_t from) {
    uint64_t last_blob = ds__word_load(&control->intent.after.last_blob);
    uint64_t earlier = ds__word_load(&control->tail.last_blob);
    if (last_blob < earlier)
        last_blob = earlier;
    return last_blob != 0 && last_blob >= from;
}

/* The blobs that frames in the range name. */
static ds_status visit_blobs(ds_store *store, uint64_t from, uint64_t to, blob_visitor *visit) {
    while (from < to && names_blobs(store->control, from)) {
        struct ds_segment *segment;
        uint64_t end = 0;
        ds_status status = ds__segment_of(store, from, &segment);
        if (status != DS_OK)
            return status;
        status = frames_end(store, segment, to, &end);
        if (from < segment->base + DS_SEGMENT_HEADER)
            from = segment->base + DS_SEGMENT_HEADER;
        while (status == DS_OK && from < end) {
            const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, from);
            if (!ds__frame_well_formed(frame, frame->word0, segment->end - from))
                return ds__fail(DS_CORRUPT, 0, "%s: the frame at log offset %llu is damaged", store->directory.path,
                                (unsigned long long)from);
            status = visit_blobs_of_frame(store, segment, from, visit);
            from += ds__frame_length(frame->word0);
        }
        if (status != DS_OK)
            return status;
        from = segment->end;
    }
    return DS_OK;
}

/* The kernel writes whole pieces (os.h), so what follows in the last one is let go as well. */
static void make_read_only(struct ds_segment *segment, uint64_t start, uint64_t stop) {
    uint64_t pieces = (stop - segment->base + DS_OS_PIECE - 1) / DS_OS_PIECE * DS_OS_PIECE;
    uint64_t end = pieces < segment->mapping.size ? segment->base + pieces : segment->end;
    ds__os_let_go(ds__segment_at(segment, start), end - start);
    ds__os_populate_read(ds__segment_at(segment, start), stop - start);
}

static ds_status sync_segments(ds_store *store, uint64_t from, uint64_t to) {
    bool fresh = from == 0;
    for (uint64_t at = from; at < to;) {
        struct ds_segment *segment;
        char name[DS_NAME_SIZE];
        ds_status status = ds__segment_of(store, at, &segment);
        if (status != DS_OK)
            return status;
        uint64_t stop = to < segment->end ? to : segment->end;
        /* From the first byte when nothing of it was synced yet: its header belongs to the promise. */
        uint64_t start = at <= segment->base + DS_SEGMENT_HEADER ? segment->base : at;
        fresh = fresh || start == segment->base;
        ds__segment_name(segment->base, name);
        if (ds__sigbus_cut(segment->mapping.bytes, segment->mapping.size))
            return ds__fail(DS_CORRUPT, 0, "%s/%s: was cut or became unreadable while it was in use; its end is lost",
                            store->directory.path, name);
        if (stop - start >= READ_ONLY_FROM)
            make_read_only(segment, start, stop);
        status = ds__os_range_sync(&store->directory, name, ds__segment_at(segment, start), stop - start);
        if (status != DS_OK)
            return status;
        at = segment->end;
    }
    return fresh ? ds__os_directory_sync(&store->directory) : DS_OK;
}

/* After the death of a syncing process: whatever its sync came to, the next one writes every page of the range again. */
static ds_status redirty(ds_store *store, uint64_t from, uint64_t to) {
    ds_status status = DS_OK;
    for (uint64_t at = from & ~UINT64_C(4095); status == DS_OK && at < to; at += 4096) {
        struct ds_segment *segment;
        status = ds__segment_of(store, at, &segment);
        if (status ==
            DS_OK) /* adds nothing to a word that others only read: the page is dirty, its bytes are the same */
            atomic_fetch_or_explicit((_Atomic uint64_t *)(void *)ds__segment_at(segment, at), 0, memory_order_relaxed);
    }
    return status == DS_OK ? visit_blobs(store, from, to, ds__blob_redirty) : status;
}

/* Without a descriptor the sync of a blob did not even begin, which says nothing about the disk. */
static bool disk_failed(ds_status status) {
    int error = ds_error_errno();
    return (status == DS_IO && error != EMFILE && error != ENFILE) || status == DS_FULL;
}

ds_status ds__sync_refused(const ds_store *store) {
    const struct ds_control *control = store->control;
    int sticky = atomic_load_explicit(&control->sync_error, memory_order_relaxed);
    if (sticky == 0)
        return DS_OK;
    return ds__fail(DS_IO, sticky,
                    "%s: an earlier sync failed (errno %d); what was committed since log offset %llu may not be on "
                    "disk. Copy the store to another disk",
                    store->directory.path, sticky,
                    (unsigned long long)atomic_load_explicit(&control->synced, memory_order_relaxed));
}

static ds_status sync_locked(ds_store *store, uint64_t start, uint64_t to) {
    struct ds_control *control = store->control;
    uint64_t from = atomic_load_explicit(&control->synced, memory_order_relaxed);
    ds_status status = ds__sync_refused(store);
    if (status != DS_OK)
        return status;
    uint64_t unknown = atomic_load_explicit(&control->sync_intent, memory_order_relaxed);
    status = unknown != 0 ? redirty(store, from, unknown) : DS_OK;
    if (status != DS_OK || to <= from)
        return status;
    if (from < start)
        from = start;
    atomic_store_explicit(&control->sync_intent, to, memory_order_relaxed);
    status = visit_blobs(store, from, to, ds__blob_sync);
    if (status == DS_OK)
        status = sync_segments(store, from, to);
    if (status == DS_OK)
        atomic_store_explicit(&control->synced, to, memory_order_release);
    else if (disk_failed(status))
        atomic_store_explicit(&control->sync_error, ds_error_errno() ? ds_error_errno() : EIO, memory_order_relaxed);
    atomic_store_explicit(&control->sync_intent, 0, memory_order_relaxed);
    return status;
}

static ds_status enter(ds_store *store) {
    bool died;
    ds_status status = ds__lock_take(&store->control->sync_lock, "another sync", store->options.lock_timeout_ms,
                                     store->directory.path, &died);
    return ds__advise(status, DS_TIMEOUT, "what was committed stays so, but may not be on disk yet: sync again");
}

/* Up to `to`, but for what lies below `start`. */
static ds_status sync_between(ds_store *store, uint64_t start, uint64_t to, bool clean) {
    struct ds_control *control = store->control;
    uint64_t sequence = ds__word_load(&control->tail.sequence); /* exact when `clean`: nobody else has the store then */
    if (!clean && atomic_load_explicit(&control->synced, memory_order_acquire) >= to &&
        atomic_load_explicit(&control->sync_error, memory_order_relaxed) == 0)
        return DS_OK;
    ds_status status = enter(store);
    if (status != DS_OK)
        return status;
    uint64_t before = atomic_load_explicit(&control->synced, memory_order_relaxed);
    ds__enter(store);
    status = sync_locked(store, start, to);
    ds__leave(store);
    /* On disk itself only when it says that the store ends here: one that is too low merely makes a damaged log look
     * torn. */
    if (status == DS_OK)
        status = ds__intact(store, status); /* else `to` may be anything */
    status = ds__all_there(store, status);
    if (status == DS_OK && (clean || before < to))
        status = raise_floor(store, to, sequence, clean ? DS_FLOOR_CLEAN : 0, clean);
    ds__lock_release(&control->sync_lock);
    return status;
}

ds_status ds__sync(ds_store *store, bool clean) {
    return sync_between(store, 0, atomic_load_explicit(&store->control->committed, memory_order_acquire), clean);
}

ds_status ds__sync_between(ds_store *store, uint64_t start, uint64_t to) {
    return sync_between(store, start, to, false);
}

ds_status ds_sync(ds_store *store) {
    ds_status status = ds__check_writable(store);
    return status == DS_OK ? ds__sync(store, false) : status;
}

ds_status ds__floor_reopen(ds_store *store) {
    struct ds_floor floor;
    ds_status status = ds__floor_read(&store->directory, store->uuid, &floor);
    if (status != DS_OK || (floor.flags & DS_FLOOR_CLEAN) == 0)
        return status;
    status = enter(store);
    if (status != DS_OK)
        return status;
    status = raise_floor(store, floor.offset, floor.sequence, 0, true);
    ds__lock_release(&store->control->sync_lock);
    return status;
}
