/* index.c: the files of the index. See index.h. */
#include "index.h"

#include "status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t ds__index_capacity_for(uint64_t keys) {
    uint64_t capacity = DS_INDEX_MIN;
    while (ds__index_limit(capacity) < keys + keys / 2)
        capacity *= 2;
    return capacity;
}

void ds__index_name(uint64_t generation, char name[DS_INDEX_NAME]) {
    snprintf(name, DS_INDEX_NAME, "index.%016llx", (unsigned long long)generation);
}

bool ds__index_parse_name(const char *name, uint64_t *generation) {
    if (strncmp(name, "index.", 6) != 0 || strlen(name) != 22)
        return false;
    char *end;
    *generation = strtoull(name + 6, &end, 16);
    return *end == '\0';
}

static ds_status describe(void *bytes, uint64_t size, uint64_t generation, uint64_t capacity, struct ds_index **out) {
    struct ds_index *index = calloc(1, sizeof *index);
    if (index == NULL) {
        ds__os_unmap(bytes, size);
        return ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    }
    index->bytes = bytes;
    index->size = size;
    index->slots = (_Atomic uint64_t *)(void *)((char *)bytes + DS_INDEX_HEADER);
    index->mask = capacity - 1;
    index->generation = generation;
    *out = index;
    return DS_OK;
}

static void write_header(void *bytes, const uint8_t uuid[16], uint64_t generation, uint64_t capacity) {
    struct ds_index_header *header = bytes;
    header->magic = DS_INDEX_MAGIC;
    header->generation = generation;
    header->capacity = capacity;
    memcpy(header->uuid, uuid, sizeof header->uuid);
}

ds_status ds__index_create(const struct ds_directory *directory, const uint8_t uuid[16], uint64_t generation,
                           uint64_t capacity, struct ds_index **out) {
    char name[DS_INDEX_NAME];
    ds__index_name(generation, name);
    uint64_t size = DS_INDEX_HEADER + capacity * 8;
    int fd;
    ds_status status = ds__os_open(directory, name, DS_OS_CREATE, &fd);
    if (status != DS_OK)
        return status;
    void *bytes = NULL;
    status = ds__os_allocate(directory, name, fd, size);
    if (status == DS_OK)
        status = ds__os_map(directory, name, fd, size, true, &bytes);
    ds__os_close(fd);
    if (status == DS_OK) {
        ds__os_large_pages(bytes, size); /* accessed all over, and nobody syncs it */
        ds__os_populate(bytes, size);
        write_header(bytes, uuid, generation, capacity);
        status = describe(bytes, size, generation, capacity, out);
    }
    return status;
}

ds_status ds__index_private(uint64_t generation, uint64_t capacity, struct ds_index **out) {
    uint64_t size = DS_INDEX_HEADER + capacity * 8;
    void *bytes;
    ds_status status = ds__os_map_anonymous(size, &bytes);
    return status == DS_OK ? describe(bytes, size, generation, capacity, out) : status;
}

ds_status ds__index_open(const struct ds_directory *directory, const uint8_t uuid[16], uint64_t generation,
                         bool writable, struct ds_index **out) {
    char name[DS_INDEX_NAME];
    ds__index_name(generation, name);
    int fd;
    ds_status status = ds__os_open(directory, name, writable ? DS_OS_WRITE : DS_OS_READ, &fd);
    if (status != DS_OK)
        return status;
    uint64_t size = 0;
    void *bytes = NULL;
    status = ds__os_size(directory, name, fd, &size);
    if (status == DS_OK && size < DS_INDEX_HEADER)
        status = ds__fail(DS_CORRUPT, 0, "%s/%s: too short for an index", directory->path, name);
    if (status == DS_OK)
        status = ds__os_map(directory, name, fd, size, writable, &bytes);
    ds__os_close(fd);
    if (status != DS_OK)
        return status;
    const struct ds_index_header *header = bytes;
    uint64_t capacity = header->capacity;
    if (header->magic != DS_INDEX_MAGIC || header->generation != generation ||
        memcmp(header->uuid, uuid, sizeof header->uuid) != 0 || capacity < 8 || (capacity & (capacity - 1)) != 0 ||
        capacity > size / 8 || size != DS_INDEX_HEADER + capacity * 8) {
        ds__os_unmap(bytes, size);
        return ds__fail(DS_CORRUPT, 0,
                        "%s/%s: not an index of this store; it is rebuilt when no process has the store open",
                        directory->path, name);
    }
    return describe(bytes, size, generation, capacity, out);
}

void ds__index_unmap_older(struct ds_index *index) {
    for (struct ds_index *older = index->older; older != NULL && !older->unmapped; older = older->older) {
        ds__os_unmap(older->bytes, older->size);
        older->unmapped = true;
    }
}

void ds__index_free(struct ds_index *index) {
    while (index != NULL) {
        struct ds_index *older = index->older;
        if (!index->unmapped)
            ds__os_unmap(index->bytes, index->size);
        free(index);
        index = older;
    }
}

void ds__index_apply(struct ds_index *index, uint64_t hash, uint64_t offset, uint64_t previous) {
    uint64_t at = hash & index->mask;
    for (uint64_t i = 0; i <= index->mask; i++, at = (at + 1) & index->mask) {
        uint64_t slot = atomic_load_explicit(&index->slots[at], memory_order_relaxed);
        uint64_t there = ds__slot_offset(slot);
        if (slot == 0 || there == offset || (previous != 0 && there == previous)) {
            ds__index_set(index, at, ds__slot(offset, hash));
            return;
        }
    }
}
