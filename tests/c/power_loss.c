/* power_loss.c: what may be left on disk when the power goes, and what the store must make of it.
 *
 *     power_loss [images] [seed] [directory]
 *
 * A hooked engine (hooks.h) works on a store, and after each of its stores we note what every page of its files holds.
 * Between two syncs of a page all of these versions may reach the disk, in any order and each page for itself; that is all
 * that can be said about mmap. So an image takes for every page, or for every sector of 512 bytes, any version since
 * the last sync that covered it (ALICE's idea). Names are kept like that too: since the last sync of the directory it
 * may be on disk as it was after any of its changes, those in order, as a journal keeps them.
 *
 * An ordinary engine then opens the image, without control page and index. Whatever it was,
 *     the content is exactly that after batches 1..m, synced <= m <= begun                 (I7, I8, I9, I13)
 *     a sequence that was given out is never given out again                               (I34)
 *     and the same holds when the power goes again, right after a recovery and a commit
 *     one in four takes another batch, and all of it is there after one more reboot        (nothing follows torn bytes) */
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "history.h"
#include "hooks.h"
#include "image.h"

enum {
    PAGE = 4096,
    SECTOR = 512,
    KEYS = 12,
    BATCHES = 80,      /* of one store; and so the most that may lie between two syncs */
    BATCHES_FULL = 16, /* of one that is to be compacted */
    IMAGES_AT_ONCE = 3,
    TWICE_ONE_IN = 10, /* of the images */
    FOLLOW_ONE_IN = 4, /* of the images: another batch, and another reboot */
    IMAGE_ONE_IN = 12, /* of the moments */
    LIMIT_S = 7200,
};

/* ---- a disk that has not made up its mind -------------------------------------------------------------------------- */

typedef struct page {
    unsigned char **versions; /* [0] is on disk for sure */
    size_t count, room;
} page;

typedef struct file {
    uint64_t inode;
    size_t size;
    page *pages;
    size_t page_count;
    struct file *next;
} file;

/* The names in the directory at one time. */
typedef struct names {
    size_t count;
    struct {
        char name[64];
        file *file;
    } entries[IMAGE_FILES];
} names;

typedef struct disk {
    file *files;
    names *states; /* [0] is on disk for sure */
    size_t count, room;
} disk;

static void add_version(page *p, const unsigned char *bytes) {
    if (p->count == p->room) {
        p->room = p->room ? 2 * p->room : 4;
        p->versions = realloc(p->versions, p->room * sizeof *p->versions);
        CHECK(p->versions);
    }
    unsigned char *copy = malloc(PAGE);
    CHECK(copy);
    memcpy(copy, bytes, PAGE);
    p->versions[p->count++] = copy;
}

/* Only the newest is left. */
static void settle_page(page *p) {
    for (size_t v = 0; v + 1 < p->count; v++)
        free(p->versions[v]);
    if (p->count > 0)
        p->versions[0] = p->versions[p->count - 1];
    p->count = p->count > 0;
}

static file *find_file(disk *d, uint64_t inode) {
    for (file *f = d->files; f; f = f->next)
        if (f->inode == inode)
            return f;
    file *f = calloc(1, sizeof *f);
    CHECK(f);
    f->inode = inode;
    f->next = d->files;
    d->files = f;
    return f;
}

/* Notes what the file holds now. A page that is new to us was zero on disk, as allocated blocks are. */
static void note_file(file *f, const unsigned char *bytes, size_t size) {
    static const unsigned char zeros[PAGE];
    size_t wanted = (size + PAGE - 1) / PAGE;
    if (wanted > f->page_count) {
        f->pages = realloc(f->pages, wanted * sizeof *f->pages);
        CHECK(f->pages);
        for (; f->page_count < wanted; f->page_count++) {
            f->pages[f->page_count] = (page){0};
            add_version(&f->pages[f->page_count], zeros);
        }
    }
    f->size = size;
    for (size_t i = 0; i < wanted; i++) {
        unsigned char now[PAGE] = {0};
        size_t here = size - i * PAGE < PAGE ? size - i * PAGE : PAGE;
        memcpy(now, bytes + i * PAGE, here);
        page *p = &f->pages[i];
        if (memcmp(now, p->versions[p->count - 1], PAGE) != 0)
            add_version(p, now);
    }
}

static void free_file(file *f) {
    for (size_t i = 0; i < f->page_count; i++) {
        settle_page(&f->pages[i]);
        free(f->pages[i].versions[0]);
        free(f->pages[i].versions);
    }
    free(f->pages);
    free(f);
}

static void disk_free(disk *d) {
    while (d->files) {
        file *next = d->files->next;
        free_file(d->files);
        d->files = next;
    }
    free(d->states);
    *d = (disk){0};
}

/* Notes the names of now, if they changed. */
static void note_names(disk *d, const char *dir) {
    names now = {0};
    DIR *list = opendir(dir);
    CHECK(list);
    for (struct dirent *entry; (entry = readdir(list));) {
        if (entry->d_name[0] == '.' || image_is_derived(entry->d_name))
            continue;
        CHECK(now.count < IMAGE_FILES && strlen(entry->d_name) < sizeof now.entries[0].name);
        strcpy(now.entries[now.count].name, entry->d_name);
        now.entries[now.count++].file = find_file(d, entry->d_ino);
    }
    closedir(list);
    if (d->count && memcmp(&d->states[d->count - 1], &now, sizeof now) == 0)
        return;
    if (d->count == d->room) {
        d->room = d->room ? 2 * d->room : 4;
        d->states = realloc(d->states, d->room * sizeof *d->states);
        CHECK(d->states);
    }
    d->states[d->count++] = now;
}

static void sync_names(disk *d) {
    if (d->count)
        d->states[0] = d->states[d->count - 1];
    d->count = d->count > 0;
}

static void sync_file(disk *d, const char *name, uint64_t from, uint64_t size) {
    const names *now = &d->states[d->count - 1];
    for (size_t i = 0; i < now->count; i++) {
        file *f = now->entries[i].file;
        if (strcmp(now->entries[i].name, name) != 0)
            continue;
        for (size_t p = from / PAGE; p < f->page_count && p * PAGE < size + from; p++)
            settle_page(&f->pages[p]);
    }
}

enum mood { OLD, NEW, ANY, ANY_SECTOR, MOODS };

static const unsigned char *choose(const page *p, enum mood mood, uint64_t *random) {
    size_t pick = check_below(random, p->count);
    if (check_below(random, 8) > 0) {
        if (mood == OLD)
            pick = 0;
        if (mood == NEW)
            pick = p->count - 1;
    }
    return p->versions[pick];
}

/* One thing that may be on this disk. */
static void draw(const disk *d, uint64_t *random, image *out) {
    enum mood mood = (enum mood)check_below(random, MOODS);
    const names *listed = &d->states[mood == NEW ? d->count - 1 : check_below(random, d->count)];
    out->count = listed->count;
    for (size_t i = 0; i < listed->count; i++) {
        const file *f = listed->entries[i].file;
        strcpy(out->files[i].name, listed->entries[i].name);
        out->files[i].size = f->size;
        out->files[i].bytes = malloc(f->page_count * PAGE + 1);
        CHECK(out->files[i].bytes);
        for (size_t p = 0; p < f->page_count; p++)
            for (size_t s = 0; s < PAGE; s += mood == ANY_SECTOR ? SECTOR : PAGE)
                memcpy(out->files[i].bytes + p * PAGE + s, choose(&f->pages[p], mood, random) + s,
                       mood == ANY_SECTOR ? SECTOR : PAGE);
    }
}

/* ---- the test ------------------------------------------------------------------------------------------------------- */

static struct {
    uint64_t images, seed;
} arguments;

typedef struct scene {
    char *live, *copy;
    disk disk;
    image now;               /* maps the live files */
    history at[BATCHES + 2]; /* the state after batch first + i; what was collected is in at[0] */
    uint64_t first;
    uint64_t segment;                 /* the tail's, when it was synced last */
    bool full;                        /* there is much to compact */
    bool compacting;                  /* then every moment counts */
    uint64_t synced, begun, sequence; /* the highest that was given out */
    uint64_t random, seed, images, torn, twice, stores, compactions;
} scene;

static scene *the_scene;
static hooked_engine hooked;

__attribute__((format(printf, 1, 2), noreturn)) static void violated(const char *format, ...);
static void violated(const char *format, ...) {
    scene *s = the_scene;
    fprintf(stderr, "power_loss: seed %#llx, store seed %#llx, batch %llu (synced %llu), image %llu: ",
            (unsigned long long)arguments.seed, (unsigned long long)s->seed, (unsigned long long)s->begun,
            (unsigned long long)s->synced, (unsigned long long)s->images);
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
    fflush(NULL);
    _exit(1);
}

/* The ordinary engine compacts nothing behind our back: its syncs would be unknown to us. */
void __wrap_ds__keeper_ask(ds_store *store);
void __wrap_ds__keeper_ask(ds_store *store) {
    (void)store;
}

/* Which of the floor's slots are in the page cache only, by bits? The hooked engine has functions of its own. */
static unsigned floor_unsynced;

ds_status __real_ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *bytes,
                              size_t size, uint64_t at);
ds_status __wrap_ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *bytes,
                              size_t size, uint64_t at);
ds_status __wrap_ds__os_write(const struct ds_directory *directory, const char *name, int fd, const void *bytes,
                              size_t size, uint64_t at) {
    if (strcmp(name, "floor") == 0)
        floor_unsynced |= 1u << at / DS_FLOOR_SPACING;
    return __real_ds__os_write(directory, name, fd, bytes, size, at);
}

ds_status __real_ds__os_datasync(const struct ds_directory *directory, const char *name, int fd);
ds_status __wrap_ds__os_datasync(const struct ds_directory *directory, const char *name, int fd);
ds_status __wrap_ds__os_datasync(const struct ds_directory *directory, const char *name, int fd) {
    if (strcmp(name, "floor") == 0)
        floor_unsynced = 0;
    return __real_ds__os_datasync(directory, name, fd);
}

/* The syncs of a compaction inside the commit after a recovery are none that mix() knows of. */
static bool again;
bool __real_ds__compaction_overdue(ds_store *store, uint64_t length);
bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length);
bool __wrap_ds__compaction_overdue(ds_store *store, uint64_t length) {
    return !again && __real_ds__compaction_overdue(store, length);
}

static void must(ds_status status, const char *what, const char *why) {
    if (status != DS_OK)
        violated("%s gave %s: %s", what, ds_status_name(status), why);
}

static ds_store *open_copy(const scene *s) {
    ds_options options;
    ds_options_init(&options);
    options.create = true;
    ds_store *store = NULL;
    must(ds_open(s->copy, &options, &store), "open", ds_error());
    return store;
}

static uint64_t judge(scene *s, ds_store *store, uint64_t least, uint64_t most) {
    history *any = &s->at[0];
    must(history_walk(any, 1, store, NULL), "a walk", ds_error());
    uint64_t m = history_seen(any);
    if (m < least || m > most)
        violated("at batch %llu, not between %llu and %llu", (unsigned long long)m, (unsigned long long)least,
                 (unsigned long long)most);
    history *h = &s->at[m - s->first];
    for (unsigned k = 0; h != any && k <= h->keys; k++)
        h->key[k].seen = any->key[k].seen, h->key[k].value = any->key[k].value;
    bool good = history_matches(h);
    for (unsigned k = 0; h != any && k <= h->keys; k++)
        h->key[k].seen = DS_MISSING; /* not pinned twice */
    if (!good)
        violated("%s", history_problem());
    history_release(any);
    must(ds_verify(store, NULL), "verify", ds_error());
    return m;
}

/* ---- and once more: the power goes again, after a recovery and one commit that nothing synced ----------------------- */

/* What is in the files when it happens; nothing that the store does while it is closed counts. */
static uint64_t commit_once(scene *s, image *after, unsigned *floor_lost) {
    image files = {0};
    uint64_t sequence = 0;
    floor_unsynced = 0;
    ds_store *store = open_copy(s);
    uint64_t m = judge(s, store, s->synced, s->begun);
    ds_change changes[HISTORY_CHANGES];
    size_t count = history_make(&s->at[0], m + 1, changes);
    again = true;
    must(ds_commit(store, changes, count, &sequence), "a commit before the power goes again", ds_error());
    again = false;
    *floor_lost = floor_unsynced;
    image_map(&files, s->copy);
    image_copy(after, &files);
    image_unmap(&files);
    must(ds_close(store), "close", ds_error());
    return sequence;
}

static size_t find_name(const image *i, const char *name) {
    size_t at = 0;
    while (at < i->count && strcmp(i->files[at].name, name) != 0)
        at++;
    return at;
}

/* A file's pages, each as before or as after; of the floor's, those that are `lost`. */
static void mix_file(scene *s, const image *before, const image *after, const char *name, unsigned lost, image *out) {
    bool any = strcmp(name, "floor") != 0;
    size_t old = find_name(before, name), new = find_name(after, name);
    bool gone = new == after->count, made = old == before->count;
    const image *from = gone ? before : after;
    size_t size = from->files[gone ? old : new].size;
    unsigned char *bytes = malloc(size + 1);
    CHECK(bytes && out->count < IMAGE_FILES);
    for (size_t at = 0; at < size; at += SECTOR) {
        size_t length = size - at < SECTOR ? size - at : SECTOR;
        bool may_be_old = any || (lost >> at / DS_FLOOR_SPACING & 1) != 0;
        bool newer = !gone && (!may_be_old || check_below(&s->random, 2));
        if (newer)
            memcpy(bytes + at, after->files[new].bytes + at, length);
        else if (made || at + length > before->files[old].size)
            memset(bytes + at, 0, length);
        else
            memcpy(bytes + at, before->files[old].bytes + at, length);
    }
    strcpy(out->files[out->count].name, name);
    out->files[out->count].size = size;
    out->files[out->count++].bytes = bytes;
}

/* Names: recovery removes torn segments, newest first; then the commit may make one. The journal keeps that order. */
static void mix(scene *s, const image *before, const image *after, unsigned floor_lost, image *out) {
    bool made_is_there = check_below(&s->random, 2);
    const char *lowest_removed = ""; /* this one and those above are gone on disk; "": all */
    for (size_t f = 0; f < before->count; f++)
        if (!made_is_there && find_name(after, before->files[f].name) == after->count && check_below(&s->random, 2))
            lowest_removed = before->files[f].name;
    out->count = 0;
    for (size_t f = 0; f < before->count; f++) {
        const char *name = before->files[f].name;
        bool removed = find_name(after, name) == after->count;
        if (image_is_derived(name) || (removed && strcmp(name, lowest_removed) >= 0))
            continue;
        mix_file(s, before, after, name, floor_lost, out);
    }
    for (size_t f = 0; f < after->count; f++) {
        const char *name = after->files[f].name;
        bool made = find_name(before, name) == before->count;
        if (!image_is_derived(name) && made && (made_is_there || strcmp(name, "floor") == 0))
            mix_file(s, before, after, name, floor_lost, out);
    }
}

static bool has_segments(const image *i) {
    return find_name(i, "0000000000000000.log") < i->count;
}

static void lose_power_again(scene *s, const image *before) {
    if (!has_segments(before)) /* the store is made anew, and that is synced */
        return;
    image_write(before, s->copy, true);
    image after, mixed;
    unsigned floor_lost;
    uint64_t given = commit_once(s, &after, &floor_lost);
    mix(s, before, &after, floor_lost, &mixed);
    image_write(&mixed, s->copy, true);
    s->images++;
    s->twice++;
    ds_store *store = open_copy(s);
    judge(s, store, s->synced, s->begun + 1);
    ds_stats stats;
    must(ds_stats_read(store, &stats), "stats", ds_error());
    if (stats.sequence < given)
        violated("sequences go on at %llu, and %llu was given out before", (unsigned long long)stats.sequence + 1,
                 (unsigned long long)given);
    must(ds_close(store), "close", ds_error());
    image_free(&mixed);
    image_free(&after);
}

/* One batch more, and all of it is there after one more reboot: nothing follows torn bytes. */
static void follow(scene *s, ds_store *store, uint64_t m) {
    ds_change changes[HISTORY_CHANGES];
    size_t count = history_make(&s->at[0], m + 1, changes);
    uint64_t sequence = 0;
    must(ds_commit(store, changes, count, &sequence), "the next commit", ds_error());
    if (sequence <= s->sequence)
        violated("sequence %llu was given out before, up to %llu", (unsigned long long)sequence,
                 (unsigned long long)s->sequence);
    must(ds_close(store), "close", ds_error());
    image_reboot(s->copy);
    store = open_copy(s);
    judge(s, store, m + 1, m + 1);
    ds_stats stats;
    must(ds_stats_read(store, &stats), "stats", ds_error());
    if (stats.dropped_bytes != 0)
        violated("%llu bytes dropped of a store that was closed", (unsigned long long)stats.dropped_bytes);
    must(ds_close(store), "close", ds_error());
}

static void recover(scene *s, const image *i) {
    /* Where compaction is due, the ordinary engine would do it, and sync. */
    if (!s->full && check_below(&s->random, TWICE_ONE_IN) == 0)
        lose_power_again(s, i);
    image_write(i, s->copy, true);
    s->images++;
    ds_store *store = open_copy(s);
    uint64_t m = judge(s, store, s->synced, s->begun);
    ds_stats stats;
    must(ds_stats_read(store, &stats), "stats", ds_error());
    s->torn += stats.dropped_bytes > 0;
    if (check_below(&s->random, FOLLOW_ONE_IN) == 0)
        follow(s, store, m);
    else
        must(ds_close(store), "close", ds_error());
}

static void note(scene *s) {
    for (size_t f = 0; f < s->now.count; f++) {
        struct stat status;
        char *path = check_format("%s/%s", s->live, s->now.files[f].name);
        if (!image_is_derived(s->now.files[f].name) && stat(path, &status) == 0)
            note_file(find_file(&s->disk, status.st_ino), s->now.files[f].bytes, s->now.files[f].size);
        free(path);
    }
}

static void on_moment(void *context) {
    scene *s = context;
    note(s);
    if (!s->compacting && check_below(&s->random, IMAGE_ONE_IN) != 0)
        return;
    for (int i = 0; i < IMAGES_AT_ONCE; i++) {
        image drawn;
        draw(&s->disk, &s->random, &drawn);
        recover(s, &drawn);
        image_free(&drawn);
    }
}

static void on_files_changed(void *context) {
    scene *s = context;
    image_map(&s->now, s->live);
    note_names(&s->disk, s->live);
    note(s);
}

static void on_synced(void *context, const char *name, uint64_t from, uint64_t size) {
    scene *s = context;
    note(s);
    if (name)
        sync_file(&s->disk, name, from, size == UINT64_MAX ? UINT64_MAX / 2 : size);
    else
        sync_names(&s->disk);
}

/* Unhooked batches until there is something to compact; all of it is on disk then. Their number. */
static uint64_t prepare(scene *s, history *writer, ds_store *store) {
    uint64_t b = 0;
    while (!hooked.compaction_due(store)) {
        ds_change changes[HISTORY_CHANGES];
        size_t count = history_make(writer, ++b, changes);
        must(hooked.commit(store, changes, count, &s->sequence), "a quiet commit", hooked.error());
    }
    must(hooked.sync(store), "a quiet sync", hooked.error());
    image_map(&s->now, s->live);
    note_names(&s->disk, s->live);
    note(s);
    sync_names(&s->disk);
    for (file *f = s->disk.files; f; f = f->next)
        for (size_t p = 0; p < f->page_count; p++)
            settle_page(&f->pages[p]);
    return b;
}

/* Now and then a compaction, a sync, or an end and a new beginning. */
static void run_other(scene *s, const ds_options *options, ds_store **store) {
    if (hooked.compaction_due(*store) && check_below(&s->random, 4) == 0) {
        s->compacting = true;
        must(hooked.compact(*store, true, DS_COMPACT_DUE), "the hooked compaction", hooked.error());
        s->compacting = false;
        s->compactions++;
    }
    /* Soon after a new segment, too: its name and its header are new on disk then. */
    bool fresh = (*store)->control->tail.segment_base != s->segment;
    uint64_t other = check_below(&s->random, fresh ? 4 : 48);
    if (other > 2)
        return;
    s->segment = (*store)->control->tail.segment_base;
    if (other > 0) {
        must(hooked.sync(*store), "the hooked sync", hooked.error());
    } else {
        must(hooked.close(*store), "the hooked close", hooked.error());
        must(hooked.open(s->live, options, store), "the hooked open", hooked.error());
    }
    s->synced = s->begun;
}

typedef struct shape {
    size_t value_limit;
    bool full;      /* about to be compacted */
    bool committed; /* durability: a commit that returns is on disk */
} shape;

static void run_store(scene *s, const shape *form) {
    hooks listener = {.moment = on_moment, .files_changed = on_files_changed, .synced = on_synced, .context = s};
    history writer;
    history_init(&writer, s->seed, 0, KEYS, DS_KEYSPACES, form->value_limit);
    s->first = s->sequence = s->segment = 0;
    s->full = form->full;
    CHECK(mkdir(s->live, 0700) == 0);
    note_names(&s->disk, s->live);
    ds_options options;
    ds_options_init(&options);
    if (form->committed)
        options.durability = DS_COMMIT;
    ds_store *store = NULL;
    if (form->full) {
        must(hooked.open(s->live, &options, &store), "a quiet open", hooked.error());
        s->first = prepare(s, &writer, store);
    }
    s->synced = s->begun = s->first;
    for (uint64_t i = 0; i < BATCHES + 2; i++) {
        history_init(&s->at[i], s->seed, 0, KEYS, DS_KEYSPACES, form->value_limit);
        history_advance(&s->at[i], s->first + i);
    }
    hooked.listen(&listener);
    if (!form->full)
        must(hooked.open(s->live, &options, &store), "the hooked open", hooked.error());
    for (uint64_t i = 0; i < (form->full ? BATCHES_FULL : BATCHES) && s->images < arguments.images; i++) {
        ds_change changes[HISTORY_CHANGES];
        size_t count = history_make(&writer, ++s->begun, changes);
        uint64_t sequence;
        must(hooked.commit(store, changes, count, &sequence), "the hooked commit", hooked.error());
        hooked.moment();
        s->sequence = sequence;
        if (form->committed)
            s->synced = s->begun;
        run_other(s, &options, &store);
    }
    hooked.listen(NULL);
    must(hooked.close(store), "the hooked close", hooked.error());
    for (uint64_t i = 0; i < BATCHES + 2; i++)
        history_free(&s->at[i]);
    history_free(&writer);
    disk_free(&s->disk);
    check_remove(s->live);
    s->stores++;
}

static void run(const char *dir) {
    static scene s;
    the_scene = &s;
    s.random = arguments.seed;
    s.live = check_format("%s/live", dir);
    s.copy = check_format("%s/copy", dir);
    CHECK(mkdir(s.copy, 0700) == 0);
    uint64_t start = check_now_ns();
    while (s.images < arguments.images) {
        static const shape shapes[] = {{.value_limit = 1500},
                                       {.value_limit = 1000, .full = true},
                                       {.value_limit = 8000},
                                       {.value_limit = 3000, .committed = true},
                                       {.value_limit = 8000, .full = true},
                                       {.value_limit = 200},
                                       {.value_limit = 1000, .full = true, .committed = true}};
        s.seed = check_random(&s.random);
        run_store(&s, &shapes[s.stores % CHECK_COUNT(shapes)]);
    }
    double seconds = (double)(check_now_ns() - start) / 1e9;
    printf("images %llu of %llu stores, %llu with a torn end, %llu of a second loss, %llu compactions, violations 0, "
           "%.1f s, %.0f images/s\n",
           (unsigned long long)s.images, (unsigned long long)s.stores, (unsigned long long)s.torn,
           (unsigned long long)s.twice, (unsigned long long)s.compactions, seconds, (double)s.images / seconds);
    CHECK(s.stores < 3 || (s.torn > 0 && s.twice > 0 && s.compactions > 0)); /* it saw what it is for */
}

int main(int argc, char **argv) {
    arguments.images = argc > 1 ? strtoull(argv[1], NULL, 0) : 20000;
    arguments.seed = argc > 2 ? strtoull(argv[2], NULL, 0) : check_now_ns();
    const char *parent = argc > 3 ? argv[3] : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    printf("power_loss %llu %#llx\n", (unsigned long long)arguments.images, (unsigned long long)arguments.seed);
    hooked_load(&hooked, HOOKED_ENGINE);
    const check_test test = {"power_loss", run};
    return !check_isolated(&test, parent, LIMIT_S);
}
