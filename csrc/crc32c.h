/* crc32c.h: CRC-32C (Castagnoli), the checksum of headers and small records. */
#ifndef DS_CRC32C_H
#define DS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues `crc` over `size` bytes. Start with any seed; no final inversion, so that calls can be chained. */
extern uint32_t (*ds__crc32c)(uint32_t crc, const void *data, size_t size);

/* A 64-bit hash for large records: three interleaved CRC lanes, because one CRC instruction waits three cycles for the
 * one before it. 1 MiB: 109 us in one lane, 37 us in three. Continues from `seed`. */
extern uint64_t (*ds__lane_hash)(uint32_t seed, const void *data, size_t size);

/* The portable versions, for tests that compare them with what the machine chose. */
uint32_t ds__crc32c_portable(uint32_t crc, const void *data, size_t size);
uint64_t ds__lane_hash_portable(uint32_t seed, const void *data, size_t size);

/* Picks the instructions this machine has. Idempotent; runs when the library is loaded. */
void ds__crc32c_choose(void);

#endif
