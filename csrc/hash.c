/* hash.c: multiply-and-fold over 8-byte words. Not for keeping secrets; the index compares full keys anyway. */
#include "hash.h"

#include <string.h>

static uint64_t fold(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

#define K0 UINT64_C(0x9e3779b97f4a7c15)
#define K1 UINT64_C(0xd6e8feb86659fd93)

uint64_t ds__hash(uint64_t seed, uint8_t keyspace, const void *key, size_t size) {
    const unsigned char *p = key;
    uint64_t state = seed ^ (K0 * (keyspace + UINT64_C(1)));
    size_t left = size;
    for (; left >= 8; left -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        state = fold(state ^ word, K1);
    }
    uint64_t rest = 0;
    if (left)
        memcpy(&rest, p, left);
    state = fold(state ^ rest, K0 ^ size);
    return fold(state ^ seed, K1);
}
