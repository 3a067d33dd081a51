/* fuzz_recovery.c: hostile and damaged logs, opened, walked and verified (T7: I14, I27).
 *
 *     fuzz_recovery [iterations] [seed] [directory]
 *     fuzz_recovery replay DIRECTORY                 opens that store as an iteration does
 *
 * Takes stores whose making is known, changes bytes, words, lengths and whole pieces of their files, and opens what is left
 * as after a reboot. In half of the iterations the checksums are made right again afterwards, so that nonsense gets past
 * them and deep into recovery, compaction and reads: nothing is promised about values then, but that nothing crashes
 * (under the sanitizers), nothing hangs, and memory stays within a multiple of the files' size. In the other half every value
 * that is read must be one that was put under its key.
 *
 * Everything follows from seed and iteration. The input of an iteration that fails is kept in fuzz-failures/ below the
 * working directory; what was found once goes into tests/c/corpus/, which every run replays first. */
#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format.h"
#include "image.h"
#include "store_help.h"

enum {
    KEYS = 40,
    MODELS = 4,
    PER_CHILD = 200,
    LIMIT_S = 20,       /* an iteration that takes longer hangs */
    SLACK = 4 << 20,    /* memory that is not for the files: handle, cursor, libc */
    PER_FILE_BYTE = 16, /* an index slot is 8 bytes, a record 40; rebuilding keeps both for a while */
};

/* ---- memory, counted (ld --wrap) -------------------------------------------------------------------------------- */

static size_t asked_for; /* since the iteration began, freed or not */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_malloc(size_t size) {
    asked_for += size;
    return __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
    asked_for += count * size;
    return __real_calloc(count, size);
}
void *__wrap_realloc(void *memory, size_t size) {
    asked_for += size;
    return __real_realloc(memory, size);
}

/* ---- the stores to begin with ---------------------------------------------------------------------------------------- */

static size_t key_name(char name[32], unsigned key) {
    if (key == 0)
        return 0;
    return (size_t)snprintf(name, 32, "key %u%s", key, key % 5 ? "" : " with a longer name");
}

/* A value tells its key and version, and all else follows from them. */
static size_t value_make(uint64_t number, unsigned char *bytes) {
    uint64_t random = number;
    size_t size = 8 + check_below(&random, check_below(&random, 8) ? 200 : 9000);
    memcpy(bytes, &number, 8);
    for (size_t at = 8; at < size; at++)
        bytes[at] = (unsigned char)(number + at * at);
    return size;
}

static void fill_store(ds_store *store, uint64_t seed, unsigned commits) {
    static unsigned char bytes[6][10000];
    uint64_t random = seed;
    for (unsigned i = 0; i < commits; i++) {
        ds_change changes[6];
        char names[6][32];
        size_t count = 1 + check_below(&random, 6);
        for (size_t c = 0; c < count; c++) {
            unsigned key = (unsigned)check_below(&random, KEYS);
            changes[c] = (ds_change){.kind = check_below(&random, 5) ? DS_PUT : DS_DELETE,
                                     .keyspace = key % 3 == 0 ? DS_RUNTIME : DS_USER,
                                     .key = names[c],
                                     .key_size = key_name(names[c], key),
                                     .value = bytes[c]};
            changes[c].value_size = value_make((uint64_t)key << 32 | i, bytes[c]);
        }
        CHECK_OK(ds_commit(store, changes, count, NULL));
    }
}

static void make_models(const char *dir, image models[MODELS]) {
    for (unsigned i = 0; i < MODELS; i++) {
        char *path = check_format("%s/model", dir);
        ds_store *store = open_store(path);
        fill_store(store, i + 1, (const unsigned[]){3, 40, 400, 120}[i]);
        if (i == 3)
            CHECK_OK(ds_compact(store));
        if (i == 3)
            fill_store(store, 99, 20);
        CHECK_OK(ds_close(store));
        image live = {0};
        image_map(&live, path);
        image_copy(&models[i], &live);
        check_remove(path);
    }
}

/* ---- changing them --------------------------------------------------------------------------------------------------- */

static bool is_log(const char *name) {
    return strlen(name) > 4 && strcmp(name + strlen(name) - 4, ".log") == 0;
}

static uint64_t interesting(uint64_t *random, uint64_t near) {
    static const uint64_t edges[] = {0,          1,           7,          8,          24,         40,
                                     0x7fffffff, 0x80000000u, 0xffffffff, UINT64_MAX, 1ull << 63, 1ull << 32,
                                     65535,      65536,       4096,       16u << 20,  3,          (16u << 20) + 1};
    switch (check_below(random, 4)) {
    case 0:
        return near + 8 * check_below(random, 9) - 32;
    case 1:
        return near ^ UINT64_C(1) << check_below(random, 64);
    case 2:
        return check_random(random) >> check_below(random, 64);
    default:
        return edges[check_below(random, CHECK_COUNT(edges))];
    }
}

static uint64_t word_at(const unsigned char *bytes, size_t at) {
    uint64_t word;
    memcpy(&word, bytes + at, 8);
    return word;
}

/* Calls for each frame and record that lies within the file, as far as the lengths lead. */
typedef void visit_piece(void *context, unsigned char *bytes, size_t at, bool is_frame);

static void walk_pieces(unsigned char *bytes, size_t size, visit_piece *visit, void *context) {
    for (size_t at = DS_SEGMENT_HEADER; at + sizeof(struct ds_frame) <= size;) {
        struct ds_frame frame;
        memcpy(&frame, bytes + at, sizeof frame);
        uint64_t length = ds__frame_length(frame.word0);
        if (frame.word0 == 0)
            return;
        visit(context, bytes, at, true);
        size_t end = length < sizeof frame || length % 8 || length > size - at ? size : at + length;
        size_t next = at + sizeof frame;
        for (uint32_t i = 0; i < frame.count && next + sizeof(struct ds_record) <= end; i++) {
            struct ds_record record;
            visit(context, bytes, next, false);
            memcpy(&record, bytes + next, sizeof record);
            if (record.value_size > end - next || ds__record_length(record.key_size, record.value_size) > end - next)
                break;
            next += ds__record_length(record.key_size, record.value_size);
        }
        if (end == size)
            return;
        at = end;
    }
}

typedef struct choice {
    uint64_t wanted, count;
    size_t at;
    bool is_frame;
} choice;

static void choose(void *context, unsigned char *bytes, size_t at, bool is_frame) {
    choice *c = context;
    (void)bytes;
    if (c->count++ == c->wanted)
        c->at = at, c->is_frame = is_frame;
}

static void change_piece(unsigned char *bytes, size_t size, uint64_t *random) {
    choice c = {.wanted = UINT64_MAX};
    walk_pieces(bytes, size, choose, &c);
    if (c.count == 0)
        return;
    c = (choice){.wanted = check_below(random, c.count)};
    walk_pieces(bytes, size, choose, &c);
    static const struct {
        unsigned at, size;
    } fields[2][8] = {
        {{0, 8}, {8, 8}, {16, 8}, {24, 8}, {32, 4}, {36, 1}, {37, 1}, {40, 8}},
        {{0, 4}, {4, 1}, {5, 1}, {6, 2}, {8, 8}, {16, 4}, {20, 4}, {0, 8}},
    };
    unsigned field = (unsigned)check_below(random, 8);
    size_t at = c.at + fields[c.is_frame][field].at, width = fields[c.is_frame][field].size;
    if (at + 8 > size)
        return;
    uint64_t old = 0;
    memcpy(&old, bytes + at, width);
    uint64_t value = width == 1 ? check_below(random, 6) : interesting(random, old);
    memcpy(bytes + at, &value, width);
}

static void change_file(image *i, size_t f, uint64_t *random) {
    unsigned char *bytes = i->files[f].bytes;
    size_t size = i->files[f].size;
    if (size < 64)
        return;
    size_t words = size / 8, used = words;
    while (used > 32 && word_at(bytes, (used - 1) * 8) == 0)
        used--; /* most of a file may be zeros */
    size_t at = check_below(random, used + 4 < words ? used + 4 : words) * 8;
    size_t from = check_below(random, used) * 8, length = 8 + 8 * check_below(random, 64);
    switch (check_below(random, 12)) {
    case 0:
        bytes[at + check_below(random, 8)] ^= (unsigned char)(1u << check_below(random, 8));
        break;
    case 1:
        bytes[at] = (unsigned char)check_random(random);
        break;
    case 2: {
        uint64_t value = interesting(random, word_at(bytes, at));
        memcpy(bytes + at, &value, 8);
        break;
    }
    case 3: /* a piece from elsewhere */
        if (at + length <= size && from + length <= size)
            memmove(bytes + at, bytes + from, length);
        break;
    case 4:
        memset(bytes + at, 0, at + length <= size ? length : size - at);
        break;
    case 5:
        i->files[f].size = check_below(random, 2) ? check_below(random, size) : at;
        break;
    case 6: { /* the header of the file */
        uint64_t value = interesting(random, word_at(bytes, 8 * (at / 8 % 16)));
        memcpy(bytes + 8 * (at / 8 % 16), &value, 8);
        break;
    }
    case 7: /* another name, which may take the place of a neighbour */
        if (is_log(i->files[f].name))
            snprintf(i->files[f].name, sizeof i->files[f].name, "%016llx.log",
                     (unsigned long long)(check_below(random, 2) ? 65536 * check_below(random, 8)
                                                                 : interesting(random, 65536)));
        break;
    default:
        if (is_log(i->files[f].name))
            change_piece(bytes, size, random);
    }
}

/* ---- making the checksums right again ------------------------------------------------------------------------------- */

typedef struct repair {
    uint32_t seed, before;
    uint64_t base;
    size_t size, frame;
    bool open; /* a frame whose records are being visited */
} repair;

static void seal_frame(repair *r, unsigned char *bytes) {
    if (!r->open)
        return;
    struct ds_frame *frame = (struct ds_frame *)(void *)(bytes + r->frame);
    if (ds__frame_well_formed(frame, frame->word0, r->size - r->frame))
        frame->crc = ds__frame_crc(r->seed, r->base + r->frame, r->before, frame->word0, frame);
    r->before = frame->crc;
    r->open = false;
}

static void repair_piece(void *context, unsigned char *bytes, size_t at, bool is_frame) {
    repair *r = context;
    if (is_frame) {
        seal_frame(r, bytes);
        r->frame = at;
        r->open = true;
        return;
    }
    struct ds_record *record = (struct ds_record *)(void *)(bytes + at);
    uint32_t seed = ds__record_seed(r->seed, r->base + at, record);
    record->check = (uint16_t)seed;
    if (record->value_size < r->size - at && ds__record_length(record->key_size, record->value_size) <= r->size - at)
        record->hash = ds__record_hash(seed, record, ds__record_length(record->key_size, record->value_size));
}

static void repair_checksums(image *i) {
    for (size_t f = 0; f < i->count; f++) {
        unsigned char *bytes = i->files[f].bytes;
        size_t size = i->files[f].size;
        if (!is_log(i->files[f].name) || size < DS_SEGMENT_HEADER)
            continue;
        struct ds_segment_header *header = (struct ds_segment_header *)(void *)bytes;
        header->crc = ds__segment_header_crc(header);
        repair r = {.seed = ds__segment_seed(header), .before = header->crc, .base = header->base, .size = size};
        walk_pieces(bytes, size, repair_piece, &r);
        seal_frame(&r, bytes);
    }
}

/* In memory that outlives a crash. */
typedef struct board {
    _Atomic uint64_t iteration, opened, values;
} board;

static board *the_board;

/* ---- one iteration --------------------------------------------------------------------------------------------------- */

static uint64_t run_seed;

/* What the iteration opens. True: the checksums are right. */
static bool make_input(const image *models, uint64_t iteration, image *out) {
    uint64_t random = check_mix(run_seed, iteration);
    image_copy(out, &models[check_below(&random, MODELS)]);
    bool repaired = check_below(&random, 2);
    for (unsigned n = 1 + (unsigned)check_below(&random, 5); n > 0; n--)
        change_file(out, check_below(&random, out->count), &random);
    if (repaired)
        repair_checksums(out);
    if (check_below(&random, 3) == 0) /* else the floor turns most damage away */
        for (size_t f = 0; f < out->count; f++)
            if (strcmp(out->files[f].name, "floor") == 0)
                out->files[f].size = 0;
    return repaired;
}

static void judge_value(const void *key, size_t key_size, const ds_value *value, bool hostile) {
    static unsigned char wanted[10000];
    volatile unsigned char sum = 0;
    atomic_fetch_add(&the_board->values, 1);
    for (size_t i = 0; i < value->size; i++)
        sum = (unsigned char)(sum + ((const unsigned char *)value->data)[i]);
    for (size_t i = 0; i < key_size; i++)
        sum = (unsigned char)(sum + ((const unsigned char *)key)[i]);
    if (hostile)
        return;
    uint64_t number;
    char name[32];
    CHECK(value->size >= 8);
    memcpy(&number, value->data, 8);
    CHECK(number >> 32 < KEYS && key_name(name, (unsigned)(number >> 32)) == key_size);
    CHECK(memcmp(name, key, key_size) == 0);
    CHECK_EQ(value_make(number, wanted), value->size);
    CHECK(memcmp(wanted, value->data, value->size) == 0);
}

static void read_everything(ds_store *store, bool hostile) {
    for (uint8_t keyspace = 0; keyspace < DS_KEYSPACES; keyspace++) {
        ds_cursor *cursor;
        ds_changes *changes;
        ds_change_told told;
        const void *key;
        size_t size;
        ds_value value;
        if (ds_cursor_open(store, keyspace, &cursor) == DS_OK) {
            while (ds_cursor_next(cursor, &key, &size, &value) == DS_OK) {
                judge_value(key, size, &value, hostile);
                ds_unpin(&value);
            }
            ds_cursor_close(cursor);
        }
        if (ds_changes_open(store, keyspace, 0, &changes) == DS_OK) {
            while (ds_changes_next(changes, &told) == DS_OK)
                if (told.value.owner) {
                    judge_value(told.key, told.key_size, &told.value, hostile);
                    ds_unpin(&told.value);
                }
            ds_changes_close(changes);
        }
        for (unsigned k = 0; k < KEYS; k++) {
            char name[32];
            size = key_name(name, k);
            if (ds_get(store, keyspace, name, size, &value) == DS_OK) {
                judge_value(name, size, &value, hostile);
                ds_unpin(&value);
            }
        }
    }
    (void)ds_verify(store, NULL);
}

static void use_store(const char *dir, bool read_only, bool hostile, size_t file_bytes) {
    ds_options options = options_default();
    options.create = false;
    options.read_only = read_only;
    ds_store *store = NULL;
    asked_for = 0;
    if (ds_open(dir, &options, &store) != DS_OK)
        return;
    atomic_fetch_add(&the_board->opened, 1);
    CHECK(asked_for <= SLACK + PER_FILE_BYTE * file_bytes);
    read_everything(store, hostile);
    if (!read_only) {
        static unsigned char bytes[10000];
        char name[32];
        size_t size = value_make(UINT64_C(7) << 32, bytes);
        (void)ds_put(store, DS_USER, name, key_name(name, 7), bytes, size, NULL);
        (void)ds_delete(store, DS_RUNTIME, name, key_name(name, 9), NULL);
        (void)ds_compact(store);
        read_everything(store, hostile);
    }
    (void)ds_close(store);
}

static size_t bytes_of(const image *i) {
    size_t sum = 0;
    for (size_t f = 0; f < i->count; f++)
        sum += i->files[f].size;
    return sum;
}

static void i27_hostile_files_do_no_harm(const image *models, uint64_t iteration, const char *dir) {
    image input = {0};
    bool hostile = make_input(models, iteration, &input);
    image_write(&input, dir, true);
    size_t size = bytes_of(&input);
    image_free(&input);
    use_store(dir, true, hostile, size);
    use_store(dir, false, hostile, size);
    use_store(dir, false, hostile, size + (4 << 20)); /* and what the last one made of it */
}

static void run_child(const image *models, uint64_t from, uint64_t to, const char *dir) {
    for (uint64_t i = from; i < to; i++) {
        alarm(LIMIT_S);
        atomic_store(&the_board->iteration, i);
        i27_hostile_files_do_no_harm(models, i, dir);
    }
}

/* Made once more, for whoever looks into the failure. */
static void keep_input(const image *models, uint64_t iteration) {
    char *path = check_format("fuzz-failures/%llx-%llu", (unsigned long long)run_seed, (unsigned long long)iteration);
    image input = {0};
    make_input(models, iteration, &input);
    (void)mkdir("fuzz-failures", 0700);
    (void)mkdir(path, 0700);
    image_write(&input, path, true);
    fprintf(stderr, "fuzz_recovery: iteration %llu of seed %#llx fails; its input is kept in %s\n",
            (unsigned long long)iteration, (unsigned long long)run_seed, path);
}

static int replay(const char *path, const char *dir) {
    image input = {0};
    image_map(&input, path);
    image_write(&input, dir, true);
    alarm(LIMIT_S);
    use_store(dir, true, true, bytes_of(&input));
    use_store(dir, false, true, bytes_of(&input));
    use_store(dir, false, true, bytes_of(&input) + (4 << 20));
    return 0;
}

static int replay_apart(const char *path, const char *dir) {
    fflush(NULL);
    pid_t pid = fork();
    int status = 0;
    CHECK(pid >= 0);
    if (pid == 0)
        exit(replay(path, dir));
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status != 0)
        fprintf(stderr, "fuzz_recovery: %s fails with status %#x\n", path, (unsigned)status);
    return status != 0;
}

static int replay_corpus(const char *dir) {
    int failed = 0;
    DIR *list = opendir(CORPUS);
    for (struct dirent *entry; list && (entry = readdir(list));)
        if (entry->d_name[0] != '.' && entry->d_type == DT_DIR)
            failed += replay_apart(check_format("%s/%s", CORPUS, entry->d_name), dir);
    if (list)
        closedir(list);
    return failed;
}

static int run_all(uint64_t iterations, const char *parent, const char *dir) {
    static image models[MODELS];
    int failed = replay_corpus(dir);
    make_models(parent, models);
    uint64_t begin = check_now_ns();
    for (uint64_t from = 0; from < iterations && failed < 10;) {
        uint64_t to = from + PER_CHILD < iterations ? from + PER_CHILD : iterations;
        fflush(NULL);
        pid_t pid = fork();
        int status = 0;
        CHECK(pid >= 0);
        if (pid == 0) {
            run_child(models, from, to, dir);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        from = to;
        if (status != 0) {
            failed++;
            from = atomic_load(&the_board->iteration) + 1; /* go on behind it */
            keep_input(models, from - 1);
        }
    }
    printf("%llu iterations, %llu opens succeeded, %llu values read, %d failed, %.1f s\n",
           (unsigned long long)iterations, (unsigned long long)the_board->opened, (unsigned long long)the_board->values,
           failed, (double)(check_now_ns() - begin) / 1e9);
    for (unsigned i = 0; i < MODELS; i++)
        image_free(&models[i]);
    return failed != 0;
}

int main(int argc, char **argv) {
    bool replays = argc > 2 && strcmp(argv[1], "replay") == 0;
    uint64_t iterations = argc > 1 && !replays ? strtoull(argv[1], NULL, 0) : 2000;
    run_seed = argc > 2 && !replays ? strtoull(argv[2], NULL, 0) : check_now_ns();
    char *parent = check_directory(argc > 3 ? argv[3] : NULL), *dir = check_format("%s/store", parent);
    CHECK(mkdir(dir, 0700) == 0);
    the_board = mmap(NULL, sizeof *the_board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(the_board != MAP_FAILED);
    if (!replays)
        printf("fuzz_recovery %llu %#llx\n", (unsigned long long)iterations, (unsigned long long)run_seed);
    int result = replays ? replay_apart(argv[2], dir) : run_all(iterations, parent, dir);
    check_remove(parent);
    return result;
}
