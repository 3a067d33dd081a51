/* salvage.h: what is intact in a log that is damaged, read without believing anything that cannot be checked.
 *
 * Where log.c stops at the first thing that is wrong, this goes on behind it. It changes no file and maps none: a file that
 * cannot be read here and there is read around the bad blocks. */
#ifndef DS_SALVAGE_H
#define DS_SALVAGE_H

#include "log.h"

struct ds_damage {
    uint64_t offset; /* in the log */
    uint64_t bytes;  /* that are of no use; 0: only something around a commit, which itself is intact */
};

struct ds_salvage {
    const struct ds_directory *directory;
    struct ds_inventory files;
    struct ds_floor floor;
    uint8_t uuid[16];
    struct ds_piece *pieces; /* one for each segment file, by base */
    uint64_t start;          /* the log begins here; segments below are leftovers of compaction */
    uint64_t highest;        /* sequence that may have been given out */
    bool whole;              /* nothing is damaged and nothing was ever compacted away */

    struct ds_damage *damages;
    size_t damage_count, damage_room;
    struct ds_head *heads;
    size_t head_count, head_room;
    bool surveyed; /* damages and heads are complete */
};

/* Called with each intact frame, in order of offsets. It lies in memory that is gone afterwards. */
typedef ds_status ds__salvage_visitor(void *context, uint64_t offset, const struct ds_frame *frame);

/* Reads all there is once, to find the start of the log and what is damaged. ds__salvage_free() in any case. */
ds_status ds__salvage_open(struct ds_salvage *salvage, const struct ds_directory *directory);
/* Visits the intact frames of the log. */
ds_status ds__salvage_read(struct ds_salvage *salvage, ds__salvage_visitor *visit, void *context);
/* Is there anything by which the files can be told to be a store's? */
bool ds__salvage_known(const struct ds_salvage *salvage);
void ds__salvage_free(struct ds_salvage *salvage);

#endif
