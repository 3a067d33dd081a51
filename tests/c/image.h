/* image.h: the files of a store's directory at one moment, for tests that recover from copies.
 *
 * A copy is meant to be the store itself as a dead process left it: see same_identity.c, which every user links. */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>
#include <stddef.h>

enum { IMAGE_FILES = 256 };

typedef struct image {
    size_t count;
    struct {
        char name[64];
        size_t size;
        unsigned char *bytes;
    } files[IMAGE_FILES];
} image;

/* The files of a live directory, mapped, so that what a writer stores shows up here at once. Replaces what `i` mapped. */
void image_map(image *i, const char *dir);
void image_unmap(image *i);
/* Bytes of one's own. */
void image_copy(image *to, const image *from);
void image_free(image *i);
/* Makes `dir` hold exactly these files; `rebooted` leaves out control page and index. A lock held by this thread, or by
 * the one named to image_dies(), is written as the kernel leaves it when its owner dies. */
void image_write(const image *i, const char *dir, bool rebooted);
void image_dies(int thread);

/* Control page and index: what lives in shared memory and no reboot survives. */
bool image_is_derived(const char *name);
/* Removes those from a directory. */
void image_reboot(const char *dir);

#endif
