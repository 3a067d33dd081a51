/* hash.h: the hash of a key, seeded per store so that nobody can choose keys that collide. */
#ifndef DS_HASH_H
#define DS_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t ds__hash(uint64_t seed, uint8_t keyspace, const void *key, size_t size);

#endif
