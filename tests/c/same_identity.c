/* same_identity.c: linked in place of two functions of os.c (ld --wrap) where tests recover copies of a store.
 *
 * A control page knows the inode it was made in, so that a copied store is not taken for the one of this boot. The tests
 * mean their copies to be exactly that: the store as it was at one moment. And they repeat themselves: no true random. */
#include <stdint.h>
#include <string.h>

#include "os.h"

ds_status __wrap_ds__os_identity(const struct ds_directory *directory, const char *name, int fd,
                                 struct ds_identity *out);
ds_status __wrap_ds__os_identity(const struct ds_directory *directory, const char *name, int fd,
                                 struct ds_identity *out) {
    (void)directory, (void)name, (void)fd;
    *out = (struct ds_identity){.device = 1, .inode = 2, .birth_ns = 3};
    return DS_OK;
}

ds_status __wrap_ds__os_random(void *out, size_t size);
ds_status __wrap_ds__os_random(void *out, size_t size) {
    static uint64_t state = 7;
    for (size_t at = 0; at < size; at++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ((unsigned char *)out)[at] = (unsigned char)(state >> 56);
    }
    return DS_OK;
}
