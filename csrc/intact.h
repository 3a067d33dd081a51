/* intact.h: what bytes tell of themselves where all around them may be damaged. Pure functions: no file, no store. */
#ifndef DS_INTACT_H
#define DS_INTACT_H

#include "format.h"

/* Is there a frame each of whose records is right where it lies, all of the one commit that the frame names, which fill it to
 * its end, and does no further record follow? So half a commit is never taken for a whole one. It stands in for the chain where
 * the frame before is damaged. `room` reaches to where frames may end, `offset` is the frame's in the log. */
bool ds__frame_whole(const struct ds_frame *frame, uint64_t room, uint32_t seed, uint64_t offset);

/* Of the `size` bytes of a segment at `base`, header included: is any frame in them whole under this seed? */
bool ds__any_frame_whole(const unsigned char *bytes, uint64_t size, uint64_t base, uint32_t seed);

/* The seed of a segment whose header is lost: one that makes sense of at least two records. */
bool ds__find_seed(const unsigned char *bytes, uint64_t size, uint64_t base, uint32_t *seed);

#endif
