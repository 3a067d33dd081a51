/* format.c: the checksums and the form of frames and records. Pure functions over bytes. */
#include "format.h"

#include "crc32c.h"

uint32_t ds__segment_header_crc(const struct ds_segment_header *header) {
    return ds__crc32c(UINT32_MAX, header, offsetof(struct ds_segment_header, crc));
}

uint32_t ds__segment_seed(const struct ds_segment_header *header) {
    uint32_t seed = ds__crc32c(UINT32_MAX, header->uuid, sizeof header->uuid);
    seed = ds__crc32c(seed, &header->salt, sizeof header->salt);
    return ds__crc32c(seed, &header->base, sizeof header->base);
}

uint32_t ds__frame_crc(uint32_t seed, uint64_t offset, uint32_t before, uint64_t word0, const struct ds_frame *frame) {
    uint64_t head[4] = {offset, word0, frame->sequence, (uint64_t)frame->count << 32 | before};
    uint32_t crc = ds__crc32c(seed, head, sizeof head);
    const unsigned char *at = (const unsigned char *)(frame + 1);
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)at;
        crc = ds__crc32c(crc, &record->hash, sizeof record->hash);
        at += ds__record_length(record->key_size, record->value_size);
    }
    return crc;
}

uint32_t ds__record_seed(uint32_t seed, uint64_t offset, const struct ds_record *record) {
    uint64_t head[DS_RECORD_HEAD];
    ds__record_head(offset, record, head);
    return ds__crc32c(seed, head, sizeof head);
}

uint64_t ds__record_hash(uint32_t record_seed, const struct ds_record *record, uint64_t length) {
    const unsigned char *bytes = (const unsigned char *)(record + 1);
    size_t size = (size_t)length - sizeof *record;
    return length >= DS_WIDE_HASH_FROM ? ds__lane_hash(record_seed, bytes, size) : ds__crc32c(record_seed, bytes, size);
}

bool ds__record_header_valid(uint32_t seed, uint64_t offset, const struct ds_record *record) {
    return (uint16_t)ds__record_seed(seed, offset, record) == record->check;
}

bool ds__record_valid(uint32_t seed, uint64_t offset, const struct ds_record *record, uint64_t length) {
    uint32_t record_seed = ds__record_seed(seed, offset, record);
    return (uint16_t)record_seed == record->check && ds__record_hash(record_seed, record, length) == record->hash;
}

uint32_t ds__floor_crc(const uint8_t uuid[16], const struct ds_floor *floor) {
    uint32_t seed = ds__crc32c(UINT32_MAX, uuid, 16);
    return ds__crc32c(seed, floor, offsetof(struct ds_floor, crc));
}

uint32_t ds__expiry_crc(const struct ds_expiry *expiry) {
    return ds__crc32c(UINT32_MAX, expiry, offsetof(struct ds_expiry, crc));
}

bool ds__op_valid(uint8_t op) {
    uint8_t kind = op & (uint8_t)~DS_RECORD_EXPIRES;
    if (ds__op_expires(op))
        return kind == DS_RECORD_PUT || kind == DS_RECORD_BLOB;
    return kind >= DS_RECORD_PUT && kind <= DS_RECORD_START;
}

static bool value_size_fits(uint8_t op, uint64_t size) {
    uint64_t expiry = ds__expiry_size(op);
    if (ds__op_is_blob(op))
        return size == expiry + sizeof(struct ds_blob_reference);
    return op == DS_RECORD_TOMBSTONE ? size == 0 : op == DS_RECORD_START ? size == sizeof(uint64_t) : size >= expiry;
}

static bool zeros(const unsigned char *bytes, uint64_t from, uint64_t to) {
    unsigned char any = 0;
    for (uint64_t i = from; i < to; i++)
        any |= bytes[i];
    return any == 0;
}

bool ds__frame_well_formed(const struct ds_frame *frame, uint64_t word0, uint64_t room) {
    uint64_t length = ds__frame_length(word0);
    uint8_t type = ds__frame_type(word0);
    if (word0 >> 48 != DS_FRAME_MARK || (word0 >> 40 & 0xff) != 0 || type < DS_FRAME_COMMIT || type > DS_FRAME_HEAD)
        return false;
    if (length < sizeof *frame || length % 8 != 0 || length > room)
        return false;
    if (type == DS_FRAME_HEAD && frame->count != 1)
        return false;
    uint64_t at = sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        if (length - at < sizeof(struct ds_record))
            return false;
        const struct ds_record *record = (const struct ds_record *)(const void *)((const char *)frame + at);
        /* Compared one by one, so that no sum can wrap around. */
        uint64_t left = length - at - sizeof *record;
        if (record->key_size > DS_KEY_LIMIT || record->value_size > left)
            return false;
        if (DS_ALIGN((uint64_t)record->key_size) + DS_ALIGN(record->value_size) > left)
            return false;
        if (!ds__op_valid(record->op) || record->keyspace >= DS_KEYSPACES)
            return false;
        if ((record->op == DS_RECORD_START) != (type == DS_FRAME_HEAD))
            return false;
        if (!value_size_fits(record->op, record->value_size))
            return false;
        const unsigned char *key = ds__record_key(record);
        const unsigned char *value = ds__record_value(record, record->key_size);
        if (!zeros(key, record->key_size, DS_ALIGN((uint64_t)record->key_size)) ||
            !zeros(value, record->value_size, DS_ALIGN(record->value_size)))
            return false;
        at += ds__record_length(record->key_size, record->value_size);
    }
    return at == length;
}

bool ds__frame_valid(const struct ds_frame *frame, uint64_t room, uint32_t seed, uint64_t offset, uint32_t before) {
    uint64_t word0 = frame->word0;
    if (!ds__frame_well_formed(frame, word0, room))
        return false;
    if (ds__frame_crc(seed, offset, before, word0, frame) != frame->crc)
        return false;
    uint64_t at = sizeof *frame;
    for (uint32_t i = 0; i < frame->count; i++) {
        const struct ds_record *record = (const struct ds_record *)(const void *)((const char *)frame + at);
        uint64_t length = ds__record_length(record->key_size, record->value_size);
        if (!ds__record_valid(seed, offset + at, record, length))
            return false;
        at += length;
    }
    return true;
}
