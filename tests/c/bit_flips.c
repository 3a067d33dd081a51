/* bit_flips.c: every bit of every segment and of the floor of a small stopped store, flipped one at a time (I12). Not of
 * control page and index, which are derived: damage to them lasts until the next boot. Nor of a large value's file: like a value
 * of 4 KiB and more in the same boot, below, it is only ds_verify() that reads it.
 *
 *     bit_flips [seed] [nth] [zeros] [first]    every nth bit (1), of the zeros that nothing is near only every zeros-th (997),
 *                                               from bit number `first` (0): 1 2 1 0 and 1 2 1 1 share all bits among two
 *
 * The store was closed cleanly, so its floor is the end of its log and nothing may be dropped. For a flip,
 * once with control page and index as they were and once as after a reboot, the only outcomes are:
 *
 *     open refuses with DS_CORRUPT (DS_FORMAT for the version and feature bits, NOT_A_STORE for a damaged magic number);
 *     every key has its value, and no key is there that should not be;
 *     a read of the damaged key, or ds_verify(), says DS_CORRUPT, and all that is given out is right.
 *
 * The bytes of a value of 4 KiB and more are not checked when it is read (dora_state.h says so). In the same boot such a
 * value may be wrong, but ds_verify() must report it: "found by verify only". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "history.h"
#include "image.h"

enum { BATCHES = 9, KEYS = 6, VALUE_LIMIT = 300, LARGE = 4200, LIMIT_S = 3600 };

static struct {
    uint64_t seed, nth, zeros, first;
} arguments;

typedef struct damage {
    image *files;
    size_t file, bit;
    bool rebooted;
    history life;
    unsigned char large[LARGE];
    uint64_t bits, flips, refused, unharmed, reported, late; /* a flip is a bit, recovered once */
} damage;

__attribute__((noreturn)) static void violated(const damage *d, const char *what) {
    check_fail("bit_flips", (int)arguments.seed, "seed %#llx, bit %zu of %s (byte %zu), %s: %s; %s",
               (unsigned long long)arguments.seed, d->bit, d->files->files[d->file].name, d->bit / 8,
               d->rebooted ? "rebooted" : "same boot", what, ds_error());
}

static void make_store(const char *dir, damage *d) {
    ds_options options;
    ds_options_init(&options);
    ds_store *store;
    CHECK_OK(ds_open(dir, &options, &store));
    history_init(&d->life, arguments.seed, 0, KEYS, DS_KEYSPACES, VALUE_LIMIT);
    for (uint64_t b = 1; b <= BATCHES; b++) {
        ds_change changes[HISTORY_CHANGES];
        size_t count = history_make(&d->life, b, changes);
        CHECK_OK(ds_commit(store, changes, count, NULL));
    }
    history_advance(&d->life, BATCHES);
    uint64_t random = arguments.seed;
    for (size_t i = 0; i < LARGE; i++)
        d->large[i] = (unsigned char)check_random(&random);
    CHECK_OK(ds_put(store, DS_USER, "large", 5, d->large, LARGE, NULL));
    CHECK_OK(ds_close(store));
}

/* What a flip came to. */
enum outcome { UNHARMED, REPORTED, LATE };

static enum outcome look_at_key(damage *d, unsigned i) {
    const history_key *key = &d->life.key[i];
    if (key->seen == DS_CORRUPT)
        return REPORTED;
    if (key->seen != DS_OK && key->seen != DS_MISSING)
        violated(d, "a read failed otherwise");
    if (!history_key_matches(&d->life, i))
        violated(d, history_problem());
    return UNHARMED;
}

static enum outcome look_at_large(damage *d, ds_store *store) {
    ds_value value;
    ds_status status = ds_get(store, DS_USER, "large", 5, &value);
    if (status == DS_CORRUPT)
        return REPORTED;
    if (status != DS_OK || value.size != LARGE)
        violated(d, "the large value is gone, or has another size");
    bool right = memcmp(value.data, d->large, LARGE) == 0;
    ds_unpin(&value);
    if (!right && d->rebooted)
        violated(d, "recovery let a wrong large value pass");
    return right ? UNHARMED : LATE;
}

static enum outcome look(damage *d, ds_store *store) {
    CHECK_OK(history_collect(&d->life, store));
    enum outcome worst = look_at_large(d, store);
    for (unsigned i = 0; i <= d->life.keys; i++) {
        enum outcome one = look_at_key(d, i);
        worst = one > worst ? one : worst;
    }
    ds_status verified = ds_verify(store, NULL);
    if (verified != DS_OK && verified != DS_CORRUPT)
        violated(d, "verify failed otherwise");
    if (worst != UNHARMED && verified == DS_OK)
        violated(d, "a read was harmed, and verify is content");
    return verified == DS_CORRUPT && worst == UNHARMED ? REPORTED : worst;
}

static void try_flip(damage *d, const char *dir) {
    image_write(d->files, dir, d->rebooted);
    ds_options options;
    ds_options_init(&options);
    options.create = true;
    ds_store *store = NULL;
    ds_status status = ds_open(dir, &options, &store);
    d->flips++;
    if (status != DS_OK) {
        if (status != DS_CORRUPT && status != DS_FORMAT)
            violated(d, ds_status_name(status));
        d->refused++;
        return;
    }
    switch (look(d, store)) {
    case UNHARMED:
        d->unharmed++;
        break;
    case REPORTED:
        d->reported++;
        break;
    case LATE:
        d->late++;
    }
    history_release(&d->life);
    ds_close(store);
}

static bool is_zero(const unsigned char *bytes, size_t size, size_t at) {
    for (size_t i = at < 64 ? 0 : at - 64; i < size && i < at + 64; i++)
        if (bytes[i])
            return false;
    return true;
}

static void flip_file(damage *d, size_t file, const char *dir) {
    unsigned char *bytes = d->files->files[file].bytes;
    size_t size = d->files->files[file].size;
    d->file = file;
    for (d->bit = arguments.first; d->bit < size * 8; d->bit += arguments.nth) {
        if ((d->bit - arguments.first) % arguments.zeros >= arguments.nth && is_zero(bytes, size, d->bit / 8))
            continue;
        d->bits++;
        bytes[d->bit / 8] ^= (unsigned char)(1 << d->bit % 8);
        for (int rebooted = 0; rebooted < 2; rebooted++) {
            d->rebooted = rebooted;
            try_flip(d, dir);
        }
        bytes[d->bit / 8] ^= (unsigned char)(1 << d->bit % 8);
    }
}

static void run(const char *dir) {
    static damage d;
    char *live = check_format("%s/live", dir), *copy = check_format("%s/copy", dir);
    CHECK(mkdir(copy, 0700) == 0);
    make_store(live, &d);
    image mapped = {0}, files;
    image_map(&mapped, live);
    image_copy(&files, &mapped);
    d.files = &files;
    uint64_t start = check_now_ns();
    for (size_t f = 0; f < files.count; f++)
        if (!image_is_derived(files.files[f].name))
            flip_file(&d, f, copy);
    printf("bits %llu, recoveries %llu: open refused %llu, unharmed %llu, reported %llu, found by verify only %llu; "
           "violations 0, %.1f s\n",
           (unsigned long long)d.bits, (unsigned long long)d.flips, (unsigned long long)d.refused,
           (unsigned long long)d.unharmed, (unsigned long long)d.reported, (unsigned long long)d.late,
           (double)(check_now_ns() - start) / 1e9);
    CHECK(d.refused > 0 && d.unharmed > 0 && d.reported > 0); /* all kinds of bytes were met */
    image_free(&files);
    history_free(&d.life);
    free(live);
    free(copy);
}

int main(int argc, char **argv) {
    arguments.seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    arguments.nth = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    arguments.zeros = argc > 3 ? strtoull(argv[3], NULL, 0) : 997;
    arguments.first = argc > 4 ? strtoull(argv[4], NULL, 0) : 0;
    CHECK(arguments.nth > 0 && arguments.zeros > 0);
    printf("bit_flips %#llx %llu %llu %llu\n", (unsigned long long)arguments.seed, (unsigned long long)arguments.nth,
           (unsigned long long)arguments.zeros, (unsigned long long)arguments.first);
    const check_test test = {"i12_no_flipped_bit_is_overlooked", run};
    return !check_isolated(&test, access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL, LIMIT_S);
}
