/* intact.c: records and frames that prove themselves. See intact.h.
 *
 * A segment's seed is in its header. When that is lost, the seed follows from any small record: its hash is a CRC that began
 * with the seed, and each step of a CRC can be undone. */
#include "intact.h"

/* ---- frames ---------------------------------------------------------------------------------------------------- */

/* Is there an intact record? */
static bool record_at(const unsigned char *bytes, uint64_t room, uint32_t seed, uint64_t offset) {
    const struct ds_record *record = (const struct ds_record *)(const void *)bytes;
    if (room < sizeof *record || record->key_size > DS_KEY_LIMIT || record->value_size > room ||
        !ds__op_valid(record->op))
        return false;
    uint64_t length = ds__record_length(record->key_size, record->value_size);
    return length <= room && ds__record_valid(seed, offset, record, length);
}

bool ds__frame_whole(const struct ds_frame *frame, uint64_t room, uint32_t seed, uint64_t offset) {
    if (!ds__frame_well_formed(frame, frame->word0, room) || frame->count == 0)
        return false;
    const unsigned char *bytes = (const unsigned char *)frame;
    uint64_t at = sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)(bytes + at);
        if (!record_at(bytes + at, room - at, seed, offset + at))
            return false;
        if (ds__frame_type(frame->word0) == DS_FRAME_COMMIT && record->sequence != frame->sequence)
            return false;
        at += ds__record_length(record->key_size, record->value_size);
    }
    return !record_at(bytes + at, room - at, seed, offset + at);
}

/* ---- a segment whose header is gone ---------------------------------------------------------------------------- */

/* The CRC's state before these bytes, from the one after them. */
static uint32_t unwind(uint32_t crc, const void *data, size_t size) {
    const unsigned char *bytes = data;
    for (size_t i = size; i-- > 0;) {
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 0x80000000u ? (crc ^ 0x82f63b78u) << 1 | 1 : crc << 1;
        crc ^= bytes[i];
    }
    return crc;
}

/* The seed under which this record's hash is right, if its header's check agrees. */
static bool seed_of(const struct ds_record *record, uint64_t offset, uint32_t *seed) {
    uint64_t length = ds__record_length(record->key_size, record->value_size);
    if (length >= DS_WIDE_HASH_FROM || record->hash > UINT32_MAX)
        return false;
    uint64_t head[DS_RECORD_HEAD];
    ds__record_head(offset, record, head);
    uint32_t start = unwind((uint32_t)record->hash, record + 1, (size_t)length - sizeof *record);
    *seed = unwind(start, head, sizeof head);
    return (uint16_t)start == record->check;
}

bool ds__find_seed(const unsigned char *bytes, uint64_t size, uint64_t base, uint32_t *seed) {
    uint32_t one = 0;
    bool have_one = false;
    for (uint64_t at = DS_SEGMENT_HEADER; size - at >= sizeof(struct ds_frame) + sizeof(struct ds_record); at += 8) {
        const struct ds_frame *frame = (const struct ds_frame *)(const void *)(bytes + at);
        const struct ds_record *record = (const struct ds_record *)(const void *)(frame + 1);
        if (frame->word0 >> 48 != DS_FRAME_MARK || !ds__frame_well_formed(frame, frame->word0, size - at) ||
            frame->count == 0 || !seed_of(record, base + at + sizeof *frame, seed) ||
            !ds__frame_whole(frame, size - at, *seed, base + at))
            continue;
        if (frame->count > 1 || (have_one && one == *seed))
            return true;
        have_one = true;
        one = *seed;
    }
    return false;
}

bool ds__any_frame_whole(const unsigned char *bytes, uint64_t size, uint64_t base, uint32_t seed) {
    for (uint64_t at = DS_SEGMENT_HEADER; size - at >= sizeof(struct ds_frame); at += 8)
        if (ds__frame_whole((const struct ds_frame *)(const void *)(bytes + at), size - at, seed, base + at))
            return true;
    return false;
}
