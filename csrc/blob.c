/* blob.c: values too large for the log, each in a file of its own. The record in the log names the file, its size and
 * its hash; the file is complete before that record is written, and never changes. */
#include "store.h"

#include "crc32c.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void blob_name(uint64_t id, char name[DS_NAME_SIZE]) {
    snprintf(name, DS_NAME_SIZE, "%016llx.blob", (unsigned long long)id);
}

ds_status ds__blob_write(ds_store *store, const void *value, uint64_t size, struct ds_blob_reference *out) {
    struct ds_blob_reference reference = {.size = size};
    ds_status status = ds__os_random(&reference.id, sizeof reference.id);
    if (status != DS_OK)
        return status;
    char name[DS_NAME_SIZE];
    blob_name(reference.id, name);
    int fd;
    void *bytes = NULL;
    status = ds__os_open(&store->directory, name, DS_OS_CREATE, &fd);
    if (status != DS_OK)
        return status;
    status = ds__os_allocate(&store->directory, name, fd, size);
    if (status == DS_OK)
        status = ds__os_map(&store->directory, name, fd, size, true, &bytes);
    ds__os_close(fd);
    if (status != DS_OK) {
        (void)ds__os_unlink(&store->directory, name);
        return status;
    }
    memcpy(bytes, value, size);
    reference.hash = ds__lane_hash((uint32_t)reference.id, bytes, size);
    bool cut = ds__sigbus_cut(bytes, size);
    ds__os_unmap(bytes, size);
    if (cut) {
        (void)ds__os_unlink(&store->directory, name);
        return ds__fail(DS_CORRUPT, 0, "%s/%s: was cut while it was written", store->directory.path, name);
    }
    *out = reference;
    return DS_OK;
}

ds_status ds__blob_map(ds_store *store, const struct ds_blob_reference *reference, bool check,
                       struct ds_mapping **out) {
    char name[DS_NAME_SIZE];
    blob_name(reference->id, name);
    int fd;
    ds_status status = ds__os_open(&store->directory, name, DS_OS_READ, &fd);
    if (status == DS_MISSING)
        return ds__fail(DS_CORRUPT, 0, "%s/%s: the file of a large value is missing; nothing was changed",
                        store->directory.path, name);
    if (status != DS_OK)
        return status;
    uint64_t size = 0;
    void *bytes = NULL;
    status = ds__os_size(&store->directory, name, fd, &size);
    if (status == DS_OK && size != reference->size)
        status = ds__fail(DS_CORRUPT, 0, "%s/%s: has %llu bytes, not %llu; nothing was changed", store->directory.path,
                          name, (unsigned long long)size, (unsigned long long)reference->size);
    if (status == DS_OK)
        status = ds__os_map(&store->directory, name, fd, size, false, &bytes);
    ds__os_close(fd);
    if (status != DS_OK)
        return status;
    struct ds_mapping *mapping = malloc(sizeof *mapping);
    if (mapping == NULL) {
        status = ds__fail(DS_NO_MEMORY, ENOMEM, "out of memory");
    } else if (check && ds__lane_hash((uint32_t)reference->id, bytes, size) != reference->hash) {
        status = ds__fail(DS_CORRUPT, 0, "%s/%s: fails its checksum; nothing was changed", store->directory.path, name);
    }
    if (status != DS_OK) {
        free(mapping);
        ds__os_unmap(bytes, size);
        return status;
    }
    mapping->bytes = bytes;
    mapping->size = size;
    atomic_init(&mapping->references, 1);
    *out = mapping;
    return DS_OK;
}

ds_status ds__blob_link(ds_store *store, const struct ds_directory *from, const struct ds_blob_reference *reference) {
    char name[DS_NAME_SIZE];
    struct ds_mapping *mapping;
    blob_name(reference->id, name);
    ds_status status = ds__os_link(from, &store->directory, name);
    if (status == DS_MISSING)
        return ds__fail(DS_CORRUPT, 0, "%s/%s: the file of a large value is missing", from->path, name);
    if (status == DS_CONFLICT) /* an earlier record brought it */
        return DS_OK;
    if (status == DS_OK)
        status = ds__blob_map(store, reference, true, &mapping);
    if (status == DS_OK)
        ds__mapping_unpin(mapping);
    else if (status == DS_CORRUPT)
        (void)ds__os_unlink(&store->directory, name);
    return status;
}

ds_status ds__blob_sync(ds_store *store, const struct ds_blob_reference *reference) {
    char name[DS_NAME_SIZE];
    blob_name(reference->id, name);
    int fd;
    ds_status status = ds__os_open(&store->directory, name, DS_OS_WRITE, &fd);
    if (status == DS_MISSING)
        return DS_OK; /* overwritten, compacted away or swept since: nobody will ask for it */
    if (status == DS_OK)
        status = ds__os_datasync(&store->directory, name, fd);
    ds__os_close(fd);
    return status == DS_OK ? ds__os_directory_sync(&store->directory) : status;
}

ds_status ds__blob_redirty(ds_store *store, const struct ds_blob_reference *reference) {
    char name[DS_NAME_SIZE];
    blob_name(reference->id, name);
    int fd;
    uint64_t size = 0;
    void *bytes = NULL;
    ds_status status = ds__os_open(&store->directory, name, DS_OS_WRITE, &fd);
    if (status == DS_MISSING)
        return DS_OK; /* as in ds__blob_sync() */
    if (status == DS_OK)
        status = ds__os_size(&store->directory, name, fd, &size);
    if (status == DS_OK && size > 0)
        status = ds__os_map(&store->directory, name, fd, size, true, &bytes);
    ds__os_close(fd);
    if (status != DS_OK || bytes == NULL)
        return status;
    for (uint64_t at = 0; at < size; at += 4096)
        atomic_fetch_or_explicit((_Atomic unsigned char *)bytes + at, 0, memory_order_relaxed);
    ds__os_unmap(bytes, size);
    return DS_OK;
}

bool ds__blob_remove(ds_store *store, const struct ds_blob_reference *reference) {
    char name[DS_NAME_SIZE];
    int fd;
    blob_name(reference->id, name);
    if (ds__os_open(&store->directory, name, DS_OS_READ, &fd) == DS_MISSING)
        return false;
    ds__os_close(fd);
    (void)ds__os_unlink(&store->directory, name);
    return true;
}
