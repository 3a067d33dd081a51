/* expiry.c: the store's clock, and which records are past their deadline by it.
 *
 * The clock
 *   A deadline must mean the same to all processes, and no jump of the wall clock may bring back what has expired or kill what
 *   has not. So the control page holds the clock's reading at the moment when the page was made, with CLOCK_BOOTTIME of
 *   that moment, and the clock is that reading plus what CLOCK_BOOTTIME has advanced: within a boot, nobody can set it.
 *   From boot to boot it goes on from the latest expiring record, which carries the clock's reading and by how much
 *   the wall clock was ahead then: plus what the wall clock has advanced since, or plus nothing where that says
 *   that it is earlier now. A store in which nothing expires yet begins with the wall clock.
 *   What is not exact here makes the clock of the next boot go ahead, never back: the difference is rounded down, and of two
 *   clocks the one is read first that has it so. A process may be stopped for long between the two.
 *
 * Expired is a fact of the record and the clock alone, so it needs no writer. It is final: a record that one reader has
 * found expired is so for all who look later. What a reader must not do is to read the clock after the slot: between the two
 * the key may have been renewed in time. Therefore the clock first, then the slot; and as most records never expire, the
 * clock is read only when one that may has been met, and the reader starts over. Who reads several keys as of one
 * point needs the clock and `committed` of the same moment (ds__moment). */
#include "store.h"

enum {
    LOOKS = 64, /* for a moment without a commit; beside a writer that does nothing else, one of two has none */
    NS_PER_S = 1000000000,
};

/* ---- the clock ------------------------------------------------------------------------------------------------- */

void ds__clock_start(struct ds_control *control, const struct ds_expiry *latest) {
    control->clock_boot_ns = ds__os_boot_ns(); /* first, see above */
    uint64_t wall = ds__os_wall_ns();
    control->clock_ns = wall;
    if (latest->written == 0)
        return;
    int64_t advanced = (int64_t)(wall - latest->written) - (int64_t)latest->wall_ahead_s * NS_PER_S;
    control->clock_ns = latest->written + (advanced > 0 ? (uint64_t)advanced : 0);
}

uint64_t ds__clock_now(const struct ds_control *control) {
    return control->clock_ns + (ds__os_boot_ns() - control->clock_boot_ns);
}

/* By how many seconds the wall clock is ahead, rounded down. */
static int64_t wall_ahead_s(const struct ds_control *control) {
    uint64_t wall = ds__os_wall_ns(); /* first, see above */
    int64_t ahead = (int64_t)(wall - ds__clock_now(control)), below = ahead % NS_PER_S < 0;
    return ahead / NS_PER_S - below;
}

void ds__expiry_make(const struct ds_control *control, uint64_t now, uint64_t ttl_ns, struct ds_expiry *out) {
    int64_t ahead_s = wall_ahead_s(control);
    if (ahead_s > INT32_MAX || ahead_s < INT32_MIN) /* 68 years: one of the two clocks knows nothing */
        ahead_s = ahead_s < 0 ? INT32_MIN : INT32_MAX;
    *out = (struct ds_expiry){.deadline = now + ttl_ns, .written = now, .wall_ahead_s = (int32_t)ahead_s};
    out->crc = ds__expiry_crc(out);
}

struct ds_expiry ds__record_expiry(const struct ds_record *record) {
    struct ds_expiry expiry;
    memcpy(&expiry, ds__record_value(record, record->key_size), sizeof expiry);
    return expiry;
}

/* ---- the question ---------------------------------------------------------------------------------------------- */

ds_status ds__expired(const ds_store *store, const struct ds_found *found, uint64_t now, bool *expired) {
    const struct ds_record *record = found->record;
    uint64_t room = found->segment->end - found->offset - sizeof *record;
    uint64_t key_room = DS_ALIGN((uint64_t)record->key_size);
    bool sound = key_room + sizeof(struct ds_expiry) <= room && record->value_size >= sizeof(struct ds_expiry) &&
                 ds__record_header_valid(found->segment->seed, found->offset, record);
    struct ds_expiry expiry = {0};
    if (sound)
        expiry = ds__record_expiry(record);
    if (!sound || expiry.crc != ds__expiry_crc(&expiry))
        return ds__fail(DS_CORRUPT, 0,
                        "%s: the expiry of the record at log offset %llu fails its checksum; nothing was "
                        "changed",
                        store->directory.path, (unsigned long long)found->offset);
    *expired = expiry.deadline <= now;
    return DS_OK;
}

/* ---- several keys at one point --------------------------------------------------------------------------------- */

static bool moment_timed(const ds_store *store, struct ds_moment *out) {
    const struct ds_control *control = store->control;
    ds__moment(store, out);
    for (int i = 0; i < LOOKS; i++) {
        out->now = ds__clock_now(control);
        uint64_t limit = atomic_load_explicit(&control->committed, memory_order_acquire);
        if (limit == out->limit)
            return true;
        out->limit = limit;
    }
    return false;
}

ds_status ds__moment_begin(ds_store *store, bool timed, struct ds_index **index, struct ds_moment *out, bool *gone) {
    ds_status status = ds__index_now(store, index);
    if (status != DS_OK)
        return status;
    if (timed)
        *gone = !moment_timed(store, out);
    else
        ds__moment(store, out);
    return DS_OK;
}

ds_status ds__missing_at(const ds_store *store, const struct ds_found *found, struct ds_moment *moment) {
    bool expired = false;
    if (moment->now == 0) {
        moment->untimed = true; /* the caller begins again with a moment that has a time */
        return DS_MISSING;
    }
    ds_status status = ds__expired(store, found, moment->now, &expired);
    return status == DS_OK && expired ? DS_MISSING : status;
}
