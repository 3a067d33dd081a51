/* index.h: the hash index, key -> offset of the newest record, in a file that all processes map. Derived.
 *
 * Open addressing, linear probing. A slot is one atomic word: 0 is empty; else the upper 52 bits are the record's offset
 * divided by 8 and the lower 12 a tag of the key's hash, so that most foreign keys are passed without touching the log.
 * Keys are compared by whoever probes (read.c). Slots are written under the writer lock only.
 *
 * A slot once taken by a key stays that key's: a delete points it at the tombstone, because shifting slots would make
 * passing readers miss. Tombstones leave when the index is copied into its next generation, a new file; an old
 * generation is never changed again, so a reader in it sees a past that is consistent, and notices afterwards. */
#ifndef DS_INDEX_H
#define DS_INDEX_H

#include "os.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>

#define DS_INDEX_MAGIC UINT64_C(0x0a0d58444e495344)

enum { DS_INDEX_TAG_BITS = 12, DS_INDEX_MIN = 1024, DS_INDEX_HEADER = 64 };

struct ds_index_header {
    uint64_t magic;
    uint64_t generation;
    uint64_t capacity; /* slots, a power of two */
    uint8_t uuid[16];
    uint64_t reserved[3];
};
static_assert(sizeof(struct ds_index_header) == DS_INDEX_HEADER, "index header layout");

/* One mapped generation. */
struct ds_index {
    struct ds_index *older; /* replaced ones; these structs live as long as the handle */
    _Atomic uint64_t *slots;
    uint64_t mask;
    uint64_t generation;
    void *bytes;
    uint64_t size;
    bool unmapped; /* replaced, and given back */
};

static inline uint64_t ds__slot(uint64_t offset, uint64_t hash) {
    return offset / 8 << DS_INDEX_TAG_BITS | hash >> (64 - DS_INDEX_TAG_BITS);
}

static inline uint64_t ds__slot_offset(uint64_t slot) {
    return (slot >> DS_INDEX_TAG_BITS) * 8;
}

/* In place of a tombstone whose record compaction has dropped: no key's, but not empty either. */
#define DS_SLOT_GONE (UINT64_C(1) << DS_INDEX_TAG_BITS)

/* More slots than this and it must grow: beyond 70 % probes get long, below 35 % memory is wasted. */
static inline uint64_t ds__index_limit(uint64_t capacity) {
    return capacity / 10 * 7;
}

/* The capacity for so many keys: half again as many fit before it grows. */
uint64_t ds__index_capacity_for(uint64_t keys);

enum { DS_INDEX_NAME = 32 };
void ds__index_name(uint64_t generation, char name[DS_INDEX_NAME]);
bool ds__index_parse_name(const char *name, uint64_t *generation);
/* A new file, empty, mapped. */
ds_status ds__index_create(const struct ds_directory *directory, const uint8_t uuid[16], uint64_t generation,
                           uint64_t capacity, struct ds_index **out);
/* An index of this process alone, for read-only opens. */
ds_status ds__index_private(uint64_t generation, uint64_t capacity, struct ds_index **out);
/* DS_MISSING, quietly, when that generation is gone. */
ds_status ds__index_open(const struct ds_directory *directory, const uint8_t uuid[16], uint64_t generation,
                         bool writable, struct ds_index **out);
/* Gives back what was replaced by `index`, but for the structs: hints may still be taken from those. */
void ds__index_unmap_older(struct ds_index *index);
void ds__index_free(struct ds_index *index);

/* Walks the slots where a hash may be:
 *     struct ds_probe probe = ds__probe(index, hash);
 *     while ((offset = ds__probe_next(index, &probe)) != 0) ...compare the key at offset...
 * 0: an empty slot (`probe.at`, where the key would go), or the whole index was seen (`probe.left` is 0). */
struct ds_probe {
    uint64_t at;
    uint64_t next;
    uint64_t left;
    uint64_t tag;
};

static inline struct ds_probe ds__probe(const struct ds_index *index, uint64_t hash) {
    struct ds_probe probe = {0, hash & index->mask, index->mask + 1, hash >> (64 - DS_INDEX_TAG_BITS)};
    return probe;
}

static inline uint64_t ds__probe_next(const struct ds_index *index, struct ds_probe *probe) {
    while (probe->left > 0) {
        probe->at = probe->next;
        probe->next = (probe->next + 1) & index->mask;
        probe->left--;
        /* Acquire: the record this slot points at was written before the slot. */
        uint64_t slot = atomic_load_explicit(&index->slots[probe->at], memory_order_acquire);
        if (slot == 0)
            return 0;
        if ((slot & ((1u << DS_INDEX_TAG_BITS) - 1)) == probe->tag && slot != DS_SLOT_GONE)
            return ds__slot_offset(slot);
    }
    return 0;
}

/* A hint: a probe for this hash will follow. */
static inline void ds__index_fetch(const struct ds_index *index, uint64_t hash) {
    __builtin_prefetch((const void *)&index->slots[hash & index->mask]);
}

/* Release: whoever finds the slot finds the record. */
static inline void ds__index_set(struct ds_index *index, uint64_t at, uint64_t slot) {
    atomic_store_explicit(&index->slots[at], slot, memory_order_release);
}

/* Points a key's slot at `offset`: the one that holds `previous` (0: none does), or holds `offset` already, or the first
 * empty one. Idempotent. */
void ds__index_apply(struct ds_index *index, uint64_t hash, uint64_t offset, uint64_t previous);

#endif
