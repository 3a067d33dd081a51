/* crc32c.c: CRC-32C with the machine's instruction where there is one, by table elsewhere.
 *
 * The lane hash cuts its input into three equal runs of whole 8-byte words, takes a CRC of each side by side and of
 * the rest after them, and mixes the four into 64 bits: the low half is the CRC of the four CRCs (so any damage that
 * changes a lane changes it), the high half folds them with rotations (so two lanes do not cancel in both halves). */
#include "crc32c.h"

#include <stdbool.h>
#include <string.h>

#if defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#elif defined(__x86_64__)
#include <nmmintrin.h>
#include <wmmintrin.h>
#endif

enum { LANES = 3 };

static uint64_t load64(const unsigned char *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static uint32_t rotate(uint32_t x, int by) {
    return (x << by) | (x >> (32 - by));
}

static uint64_t mix(uint32_t (*crc32c)(uint32_t, const void *, size_t), uint32_t seed, const uint32_t lane[LANES],
                    uint32_t rest) {
    uint32_t all[LANES + 1] = {lane[0], lane[1], lane[2], rest};
    uint32_t low = crc32c(seed, all, sizeof all);
    uint32_t high = lane[0] ^ rotate(lane[1], 11) ^ rotate(lane[2], 22) ^ rotate(rest, 5);
    return ((uint64_t)high << 32) | low;
}

/* The lane hash, once for each way to take a CRC: `word` continues a CRC by 8 bytes, `bytes` by any number. */
#define DEFINE_LANE_HASH(name, attributes, word, bytes)                                                                \
    attributes uint64_t name(uint32_t seed, const void *data, size_t size) {                                           \
        const unsigned char *p = data;                                                                                 \
        size_t run = size / (LANES * 8) * 8;                                                                           \
        uint32_t lane[LANES] = {seed, ~seed, rotate(seed, 16)};                                                        \
        for (size_t i = 0; i < run; i += 8) {                                                                          \
            lane[0] = word(lane[0], load64(p + i));                                                                    \
            lane[1] = word(lane[1], load64(p + run + i));                                                              \
            lane[2] = word(lane[2], load64(p + 2 * run + i));                                                          \
        }                                                                                                              \
        uint32_t rest = bytes(seed, p + LANES * run, size - LANES * run);                                              \
        return mix(bytes, seed, lane, rest);                                                                           \
    }

/* ---- by table -------------------------------------------------------------------------------------------------- */

static uint32_t table[8][256];

static void make_table(void) {
    const uint32_t polynomial = 0x82f63b78u; /* reflected Castagnoli */
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) ? polynomial : 0);
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xff];
}

static uint32_t portable_word(uint32_t crc, uint64_t word) {
    word ^= crc;
    uint32_t out = 0;
    for (int k = 0; k < 8; k++)
        out ^= table[7 - k][(word >> (8 * k)) & 0xff];
    return out;
}

uint32_t ds__crc32c_portable(uint32_t crc, const void *data, size_t size) {
    const unsigned char *p = data;
    for (; size >= 8; size -= 8, p += 8)
        crc = portable_word(crc, load64(p));
    for (; size > 0; size--, p++)
        crc = (crc >> 8) ^ table[0][(crc ^ *p) & 0xff];
    return crc;
}

DEFINE_LANE_HASH(ds__lane_hash_portable, , portable_word, ds__crc32c_portable)

/* ---- by instruction -------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define HAVE_INSTRUCTION 1
#define INSTRUCTION      __attribute__((target("sse4.2")))
#define WORD(crc, x)     ((uint32_t)_mm_crc32_u64((crc), (x)))
#define BYTE(crc, x)     _mm_crc32_u8((crc), (x))
static bool machine_has_it(void) {
    return __builtin_cpu_supports("sse4.2") != 0;
}
#elif defined(__aarch64__)
#define HAVE_INSTRUCTION 1
#define INSTRUCTION      __attribute__((target("+crc")))
#define WORD(crc, x)     __crc32cd((crc), (x))
#define BYTE(crc, x)     __crc32cb((crc), (x))
static bool machine_has_it(void) {
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}
#endif

/* The instruction takes three cycles and can begin in each. Three runs side by side, of equal length, are put together by
 * moving the CRC of the earlier ones over as many zeros as the later ones have bytes: a multiplication without carries by
 * x^(8 n - 33), whose product the instruction itself reduces, times x^33. */
#if defined(__x86_64__)
enum { SHORTEST = 8, LONGEST = 512 }; /* words in three runs; shorter is quicker in one, longer has the lane hash */
static uint32_t over_zeros[2 * (LONGEST / LANES) + 1]; /* by words */

static void make_over_zeros(void) {
    over_zeros[1] = 1; /* x^31, reflected */
    for (int i = 2; i <= 2 * (LONGEST / LANES); i++)
        over_zeros[i] = portable_word(over_zeros[i - 1], 0);
}

__attribute__((target("sse4.2,pclmul"))) static inline uint32_t move_over(uint32_t crc, size_t words) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)crc), _mm_cvtsi32_si128((int)over_zeros[words]), 0);
    return WORD(0, (uint64_t)_mm_cvtsi128_si64(product));
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t crc32c_in_runs(uint32_t crc, const void *data, size_t size) {
    const unsigned char *p = data;
    size_t words = size / 8;
    if (words >= SHORTEST && words <= LONGEST) {
        size_t run = words / LANES;
        uint32_t second = 0, third = 0;
        const unsigned char *q = p + 8 * run, *r = q + 8 * run;
        for (size_t i = 0; i < 8 * run; i += 8) {
            crc = WORD(crc, load64(p + i));
            second = WORD(second, load64(q + i));
            third = WORD(third, load64(r + i));
        }
        crc = move_over(crc, 2 * run) ^ move_over(second, run) ^ third;
        p = r + 8 * run;
        size -= LANES * 8 * run;
    }
    for (; size >= 8; size -= 8, p += 8)
        crc = WORD(crc, load64(p));
    for (; size > 0; size--, p++)
        crc = BYTE(crc, *p);
    return crc;
}
#endif

#ifdef HAVE_INSTRUCTION
INSTRUCTION static inline uint32_t instruction_word(uint32_t crc, uint64_t word) {
    return WORD(crc, word);
}

INSTRUCTION static uint32_t crc32c_instruction(uint32_t crc, const void *data, size_t size) {
    const unsigned char *p = data;
    for (; size >= 8; size -= 8, p += 8)
        crc = WORD(crc, load64(p));
    for (; size > 0; size--, p++)
        crc = BYTE(crc, *p);
    return crc;
}

DEFINE_LANE_HASH(lane_hash_instruction, INSTRUCTION static, instruction_word, crc32c_instruction)
#endif

/* ---- the choice ------------------------------------------------------------------------------------------------ */

uint32_t (*ds__crc32c)(uint32_t, const void *, size_t) = ds__crc32c_portable;
uint64_t (*ds__lane_hash)(uint32_t, const void *, size_t) = ds__lane_hash_portable;

/* Runs before main() or at dlopen(), so no thread can see the pointers change. */
__attribute__((constructor)) void ds__crc32c_choose(void) {
    make_table();
#ifdef HAVE_INSTRUCTION
    if (machine_has_it()) {
        ds__crc32c = crc32c_instruction;
        ds__lane_hash = lane_hash_instruction;
    }
#endif
#if defined(__x86_64__)
    make_over_zeros();
    if (machine_has_it() && __builtin_cpu_supports("pclmul"))
        ds__crc32c = crc32c_in_runs;
#endif
}
