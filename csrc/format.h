/* format.h: every byte of the files that are the truth: segments, blobs, the floor. docs/format.md tells the same in
 * tables and an example; change both or neither. What is derived (control, index) has its own headers.
 *
 * All integers are little-endian. Frames and records start at multiples of 8. A position in the log is an `offset`:
 * the segment's base plus the position in its file. Offset 0 lies in the first segment's header, so 0 is "none". */
#ifndef DS_FORMAT_H
#define DS_FORMAT_H

#include "dora_state.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || UINTPTR_MAX != UINT64_MAX
#error "dora-state stores are written by 64-bit little-endian machines only"
#endif

#define DS_ALIGN(size) (((size) + 7) & ~(uint64_t)7)

/* ---- segment: `<base in 16 hex digits>.log` -------------------------------------------------------------------- */

/* Like PNG's: not text, and a transfer that mangles line ends or the eighth bit is seen at once. */
#define DS_SEGMENT_MAGIC UINT64_C(0x0a0d54415453448b) /* 8b 'D' 'S' 'T' 'A' 'T' 0d 0a */

enum {
    DS_FORMAT_VERSION = 1,
    /* Feature bits, as in ext4: unknown compat bits may be ignored, unknown ro-compat bits allow reading only,
     * unknown incompat bits allow nothing. */
    DS_KNOWN_RO_COMPAT = 0,
    DS_EXPIRY_INCOMPAT = 1, /* records in here may expire. Once a segment has it, all that follow have it */
    DS_KNOWN_INCOMPAT = DS_EXPIRY_INCOMPAT,
    DS_SEGMENT_HEADER = 128,
    DS_SEGMENT_MIN = 64 * 1024,
    DS_SEGMENT_MAX = 64 * 1024 * 1024,
};

struct ds_segment_header {
    uint64_t magic;
    uint32_t version;
    uint32_t compat;
    uint32_t ro_compat;
    uint32_t incompat;
    uint8_t uuid[16];         /* of the store */
    uint64_t base;            /* log offset of this file's first byte */
    uint64_t size;            /* of the file, a power of two */
    uint64_t salt;            /* random; seeds every checksum in here, so another segment's bytes never pass */
    uint64_t hash_seed;       /* of the store's key hashes */
    uint64_t first_sequence;  /* no commit in here has a lower one */
    uint64_t before_base;     /* the segment before: its base,    */
    uint64_t before_end;      /* where its frames end,            */
    uint64_t before_sequence; /* the highest given out by then, */
    uint32_t before_crc;      /* and that frame's crc             */
    uint32_t reserved;        /* zero */
    uint64_t reserved2;       /* zero */
    uint32_t reserved3;       /* zero */
    uint32_t crc;             /* CRC-32C of the 124 bytes before it, seeded with ~0 */
};
static_assert(sizeof(struct ds_segment_header) == DS_SEGMENT_HEADER, "segment header layout");

/* ---- frame: one commit ----------------------------------------------------------------------------------------- */

/* The first word of a frame, stored last: while it is zero, there is no frame. */
enum { DS_FRAME_COMMIT = 1, DS_FRAME_RELOCATE = 2, DS_FRAME_HEAD = 3 };

struct ds_frame {
    uint64_t word0;    /* bits 0-31 length in bytes, 32-39 type, 40-47 flags (zero), 48-63 DS_FRAME_MARK */
    uint64_t sequence; /* of the commit; of the newest commit before it for other types */
    uint32_t count;    /* records */
    uint32_t crc;      /* see ds__frame_crc() */
    /* records follow */
};
static_assert(sizeof(struct ds_frame) == 24, "frame layout");

#define DS_FRAME_MARK UINT64_C(0xd57a)

static inline uint64_t ds__word0(uint64_t length, uint8_t type) {
    return DS_FRAME_MARK << 48 | (uint64_t)type << 32 | length;
}

static inline uint64_t ds__frame_length(uint64_t word0) {
    return word0 & UINT32_MAX;
}

static inline uint8_t ds__frame_type(uint64_t word0) {
    return (uint8_t)(word0 >> 32);
}

/* ---- record ---------------------------------------------------------------------------------------------------- */

/* START is not about a key: it stands alone in a HEAD frame, and its value is the base of the log's first segment.
 * EXPIRES may be added to PUT and BLOB: then an expiry lies before the value. */
enum {
    DS_RECORD_PUT = 1,
    DS_RECORD_TOMBSTONE = 2,
    DS_RECORD_BLOB = 3,
    DS_RECORD_START = 4,
    DS_RECORD_EXPIRES = 8,
};

static inline bool ds__op_expires(uint8_t op) {
    return (op & DS_RECORD_EXPIRES) != 0;
}

static inline bool ds__op_is_blob(uint8_t op) {
    return (op & ~DS_RECORD_EXPIRES) == DS_RECORD_BLOB;
}

bool ds__op_valid(uint8_t op);

struct ds_record {
    uint64_t hash;     /* see ds__record_hash() */
    uint64_t sequence; /* of the commit that wrote this version; a relocation keeps it */
    uint64_t previous; /* offset of the version of this key before it, 0 if there was none */
    uint64_t value_size;
    uint32_t key_size;
    uint8_t op;
    uint8_t keyspace;
    uint16_t check; /* of this header alone, see ds__record_seed(): sizes can be trusted without hashing the value */
    /* key, zeros up to a multiple of 8, value, zeros up to a multiple of 8 */
};
static_assert(sizeof(struct ds_record) == 40, "record layout");

/* From here on a record's hash is the lane hash; below it a CRC-32C. */
enum { DS_WIDE_HASH_FROM = 4096 };

static inline uint64_t ds__record_length(uint64_t key_size, uint64_t value_size) {
    return sizeof(struct ds_record) + DS_ALIGN(key_size) + DS_ALIGN(value_size);
}

static inline const unsigned char *ds__record_key(const struct ds_record *record) {
    return (const unsigned char *)(record + 1);
}

static inline const unsigned char *ds__record_value(const struct ds_record *record, uint64_t key_size) {
    return (const unsigned char *)(record + 1) + DS_ALIGN(key_size);
}

/* ---- expiry: the first bytes of the value of a record that expires ------------------------------------------------ */

/* Times are of the store's clock (expiry.c), in ns. */
struct ds_expiry {
    uint64_t deadline;    /* from here on the key is missing */
    uint64_t written;     /* when the commit was made */
    int32_t wall_ahead_s; /* by how much the wall clock was ahead of the store's then, rounded down */
    uint32_t crc; /* CRC-32C of the 20 bytes before it, seeded with ~0: a large value is not hashed on every read */
};
static_assert(sizeof(struct ds_expiry) == 24, "expiry layout");

static inline uint64_t ds__expiry_size(uint8_t op) {
    return ds__op_expires(op) ? sizeof(struct ds_expiry) : 0;
}

/* The value as it was put, or its blob's reference: what follows the expiry, if there is one. */
static inline const unsigned char *ds__record_payload(const struct ds_record *record) {
    return ds__record_value(record, record->key_size) + ds__expiry_size(record->op);
}

uint32_t ds__expiry_crc(const struct ds_expiry *expiry);

/* ---- blob: `<id in 16 hex digits>.blob`, the value alone ---------------------------------------------------------- */

/* A value above this size lies in a file of its own, written before the lock is taken; its record holds this. */
#ifndef DS_BLOB_FROM /* tests make do with less */
#define DS_BLOB_FROM (16 * 1024 * 1024)
#endif

struct ds_blob_reference {
    uint64_t id;
    uint64_t size; /* bytes */
    uint64_t hash; /* lane hash of the bytes, seeded with the low half of the id */
};
static_assert(sizeof(struct ds_blob_reference) == 24, "blob reference layout");

static inline struct ds_blob_reference ds__record_blob(const struct ds_record *record) {
    struct ds_blob_reference blob;
    memcpy(&blob, ds__record_payload(record), sizeof blob);
    return blob;
}

/* ---- floor: how far the log is known to be on disk ----------------------------------------------------------------- */

/* Two slots, written in turn, so that a torn write leaves the other. */
enum { DS_FLOOR_SLOTS = 2, DS_FLOOR_SPACING = 4096, DS_FLOOR_CLEAN = 1 };

struct ds_floor {
    uint64_t offset;   /* all frames that end at or below it are on disk */
    uint64_t sequence; /* of the last of them */
    uint64_t count;    /* how often the floor has been written; the higher slot wins */
    uint32_t flags;    /* DS_FLOOR_CLEAN: the store was closed here by its last opener */
    uint32_t crc;      /* CRC-32C of the 28 bytes before it, seeded with the CRC-32C of the store's uuid */
};
static_assert(sizeof(struct ds_floor) == 32, "floor layout");

/* ---- checksums, the same for writers and readers ------------------------------------------------------------------- */

uint32_t ds__segment_header_crc(const struct ds_segment_header *header);
/* Seeds all checksums inside one segment: uuid, salt and base. */
uint32_t ds__segment_seed(const struct ds_segment_header *header);
/* Chains over the seed, the frame's offset, the crc of the frame before it (for the first frame of a segment: the crc
 * of the segment's header), word0, sequence, count and the hash of each record. A valid frame in the wrong place or
 * behind the wrong neighbour therefore fails. `frame->word0` is not read: it may not be stored yet. */
uint32_t ds__frame_crc(uint32_t seed, uint64_t offset, uint32_t before, uint64_t word0, const struct ds_frame *frame);
/* What that begins with: the record's offset and its header, hash and check left out. Put together by whole words: a word that is
 * read at once, but was stored in pieces, waits until all of them are in the cache. */
enum { DS_RECORD_HEAD = 6 };
static inline void ds__record_head(uint64_t offset, const struct ds_record *record, uint64_t head[DS_RECORD_HEAD]) {
    static_assert(DS_RECORD_HEAD * sizeof *head == sizeof offset + sizeof *record, "the header, behind its offset");
    head[0] = offset;
    head[1] = 0; /* hash */
    head[2] = record->sequence;
    head[3] = record->previous;
    head[4] = record->value_size;
    head[5] = (uint64_t)record->keyspace << 40 | (uint64_t)record->op << 32 | record->key_size; /* check is 0 */
}
/* The CRC of that, seeded by the segment. Its low half is `check`. */
uint32_t ds__record_seed(uint32_t seed, uint64_t offset, const struct ds_record *record);
/* Over key and value, continued from ds__record_seed(): one record of a batch can be checked alone. `length` is the whole
 * record's. */
uint64_t ds__record_hash(uint32_t record_seed, const struct ds_record *record, uint64_t length);
/* Is the record's header what was written here? Its value may still not be. */
bool ds__record_header_valid(uint32_t seed, uint64_t offset, const struct ds_record *record);
/* Header, key and value. `length` as its sizes say, and within bounds. */
bool ds__record_valid(uint32_t seed, uint64_t offset, const struct ds_record *record, uint64_t length);
uint32_t ds__floor_crc(const uint8_t uuid[16], const struct ds_floor *floor);

/* Does a frame that was cut to `room` bytes hold its `count` records exactly, and only defined values and zeros where
 * zeros belong? Bounds only, no checksum. */
bool ds__frame_well_formed(const struct ds_frame *frame, uint64_t word0, uint64_t room);
/* Everything about a frame that can be checked without its neighbours: form, chain and every record's hash. */
bool ds__frame_valid(const struct ds_frame *frame, uint64_t room, uint32_t seed, uint64_t offset, uint32_t before);

#endif
