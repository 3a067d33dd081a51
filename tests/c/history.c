#include "history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONG_NS UINT64_C(3600000000000)

static char problem[512];

const char *history_problem(void) {
    return problem;
}

/* Names differ in length from 6 to 300 bytes, and hold NUL bytes, so that neither order nor termination can matter. */
static void name_key(history_key *key, unsigned writer, unsigned index, unsigned keyspaces) {
    int size = snprintf(key->name, sizeof key->name, "w%02u/%03u", writer, index);
    unsigned padding = index % 16 == 7 ? 290 : index % 5 * 9;
    for (unsigned i = 0; i < padding && (size_t)size < sizeof key->name; i++)
        key->name[size++] = (char)(index * i);
    key->size = (uint16_t)size;
    key->keyspace = keyspaces > 1 && index % 7 == 3 ? DS_RUNTIME : DS_USER;
}

void history_init(history *h, uint64_t seed, unsigned writer, unsigned keys, unsigned keyspaces, size_t value_limit) {
    *h = (history){.seed = check_mix(seed, writer), .writer = writer, .keys = keys, .value_limit = value_limit};
    h->expiring = h->seed % 2 == 0; /* every second one */
    h->key = calloc(keys + 1, sizeof *h->key);
    h->bytes = malloc(HISTORY_CHANGES * (value_limit + 8));
    CHECK(h->key && h->bytes);
    for (unsigned i = 0; i < keys; i++)
        name_key(&h->key[i], writer, i, keyspaces);
    history_key *marker = &h->key[keys];
    marker->size = (uint16_t)snprintf(marker->name, sizeof marker->name, "w%02u/marker", writer);
    for (unsigned i = 0; i <= keys; i++)
        h->key[i].seen = DS_MISSING;
}

void history_release(history *h) {
    for (unsigned i = 0; i <= h->keys; i++) {
        if (h->key[i].seen == DS_OK)
            ds_unpin(&h->key[i].value);
        h->key[i].seen = DS_MISSING;
    }
}

void history_free(history *h) {
    history_release(h);
    free(h->key);
    free(h->bytes);
    h->key = NULL;
    h->bytes = NULL;
}

/* One change of one batch, without its bytes. */
typedef struct plan {
    unsigned key;
    bool is_put; /* and is to be seen */
    uint64_t ttl_ns;
    size_t size;
    uint64_t content; /* seed of the bytes */
} plan;

static size_t plan_size(const history *h, uint64_t *random) {
    static const size_t classes[] = {1, 9, 64, 64, 200, 1000, 4500};
    size_t limit = check_below(random, 12) == 0 ? h->value_limit : classes[check_below(random, CHECK_COUNT(classes))];
    if (limit > h->value_limit)
        limit = h->value_limit;
    return check_below(random, limit + 1);
}

static size_t plan_batch(const history *h, uint64_t batch, plan plans[HISTORY_CHANGES]) {
    uint64_t random = check_mix(h->seed, batch);
    size_t count = 1 + check_below(&random, HISTORY_CHANGES);
    size_t marker = check_below(&random, count);
    for (size_t i = 0; i < count; i++) {
        plan *p = &plans[i];
        p->key = i == marker ? h->keys : (unsigned)check_below(&random, h->keys);
        p->is_put = i == marker || check_below(&random, 4) > 0;
        p->size = i == marker ? sizeof batch : plan_size(h, &random);
        p->content = check_random(&random);
        p->ttl_ns = h->expiring && i != marker && p->content % 3 == 0 ? (p->is_put ? LONG_NS : 1) : 0;
    }
    return count;
}

void history_advance(history *h, uint64_t batch) {
    CHECK(batch >= h->batch);
    while (h->batch < batch) {
        plan plans[HISTORY_CHANGES];
        size_t count = plan_batch(h, ++h->batch, plans);
        for (size_t i = 0; i < count; i++) {
            h->key[plans[i].key].batch = plans[i].is_put ? h->batch : 0;
            h->key[plans[i].key].change = (unsigned)i;
        }
    }
}

static void fill(unsigned char *bytes, size_t size, uint64_t content) {
    for (size_t at = 0; at < size; at += 8) {
        uint64_t word = check_random(&content);
        memcpy(bytes + at, &word, size - at < 8 ? size - at : 8);
    }
}

size_t history_make(history *h, uint64_t batch, ds_change changes[HISTORY_CHANGES]) {
    plan plans[HISTORY_CHANGES];
    size_t count = plan_batch(h, batch, plans);
    h->number = batch;
    unsigned char *bytes = h->bytes;
    for (size_t i = 0; i < count; i++) {
        const history_key *key = &h->key[plans[i].key];
        bool is_put = plans[i].is_put || plans[i].ttl_ns > 0;
        changes[i] = (ds_change){.kind = is_put ? DS_PUT : DS_DELETE,
                                 .keyspace = key->keyspace,
                                 .key = key->name,
                                 .key_size = key->size,
                                 .ttl_ns = plans[i].ttl_ns};
        if (!is_put)
            continue;
        changes[i].value_size = plans[i].size;
        changes[i].value = plans[i].key == h->keys ? (const void *)&h->number : bytes;
        if (plans[i].key != h->keys) {
            fill(bytes, plans[i].size, plans[i].content);
            bytes += plans[i].size;
        }
    }
    return count;
}

ds_status history_collect(history *h, ds_store *store) {
    history_release(h);
    for (unsigned i = 0; i <= h->keys; i++) {
        history_key *key = &h->key[i];
        key->seen = ds_get(store, key->keyspace, key->name, key->size, &key->value);
    }
    return DS_OK;
}

static history_key *find(history *set, size_t count, uint8_t keyspace, const void *name, size_t size) {
    for (size_t s = 0; s < count; s++)
        for (unsigned i = 0; i <= set[s].keys; i++) {
            history_key *key = &set[s].key[i];
            if (key->keyspace == keyspace && key->size == size && memcmp(key->name, name, size) == 0)
                return key;
        }
    return NULL;
}

static ds_status walk_one(history *set, size_t count, ds_store *store, uint8_t keyspace, const char *ignored) {
    ds_cursor *cursor = NULL;
    ds_status status = ds_cursor_open(store, keyspace, &cursor);
    if (status != DS_OK)
        return status;
    const void *name;
    size_t size;
    ds_value value;
    while ((status = ds_cursor_next(cursor, &name, &size, &value)) == DS_OK) {
        history_key *key = find(set, count, keyspace, name, size);
        if (!key && ignored && size == strlen(ignored) && memcmp(name, ignored, size) == 0) {
            ds_unpin(&value);
            continue;
        }
        if (!key || key->seen == DS_OK) {
            ds_unpin(&value);
            snprintf(problem, sizeof problem, "the walk gave %s key of %zu bytes", key ? "twice a" : "an unknown",
                     size);
            status = DS_CORRUPT;
            break;
        }
        key->seen = DS_OK;
        key->value = value;
    }
    ds_cursor_close(cursor);
    return status == DS_MISSING ? DS_OK : status;
}

ds_status history_walk(history *set, size_t count, ds_store *store, const char *ignored) {
    for (size_t s = 0; s < count; s++)
        history_release(&set[s]);
    ds_status status = DS_OK;
    for (unsigned keyspace = 0; keyspace < DS_KEYSPACES && status == DS_OK; keyspace++)
        status = walk_one(set, count, store, (uint8_t)keyspace, ignored);
    return status;
}

uint64_t history_seen(const history *h) {
    const history_key *marker = &h->key[h->keys];
    uint64_t number = 0;
    if (marker->seen == DS_OK && marker->value.size == sizeof number)
        memcpy(&number, marker->value.data, sizeof number);
    return number;
}

static bool mismatch(const history *h, unsigned index, const char *what) {
    const history_key *key = &h->key[index];
    snprintf(problem, sizeof problem,
             "writer %u after batch %llu: key %u %s (last put by batch %llu change %u, seen %s, %zu bytes)", h->writer,
             (unsigned long long)h->batch, index, what, (unsigned long long)key->batch, key->change,
             ds_status_name(key->seen), key->seen == DS_OK ? key->value.size : 0);
    return false;
}

bool history_key_matches(const history *h, unsigned i) {
    const history_key *key = &h->key[i];
    if ((key->batch != 0) != (key->seen == DS_OK))
        return mismatch(h, i, key->batch ? "is missing" : "is back from the dead");
    if (!key->batch)
        return true;
    plan plans[HISTORY_CHANGES];
    plan_batch(h, key->batch, plans);
    const plan *p = &plans[key->change];
    if (key->value.size != p->size)
        return mismatch(h, i, "has another size");
    if (i == h->keys)
        return memcmp(key->value.data, &key->batch, sizeof key->batch) == 0 || mismatch(h, i, "is another batch's");
    uint64_t content = p->content;
    const unsigned char *bytes = key->value.data;
    for (size_t at = 0; at < p->size; at += 8) {
        uint64_t word = check_random(&content);
        if (memcmp(bytes + at, &word, p->size - at < 8 ? p->size - at : 8) != 0)
            return mismatch(h, i, "has other bytes");
    }
    return true;
}

bool history_matches(const history *h) {
    for (unsigned i = 0; i <= h->keys; i++) {
        if (h->key[i].seen != DS_OK && h->key[i].seen != DS_MISSING)
            return mismatch(h, i, "cannot be read");
        if (!history_key_matches(h, i))
            return false;
    }
    return true;
}
