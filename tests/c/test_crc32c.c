/* The checksums by this machine's instructions are those by table, which are those of the standard. */
#include <stdlib.h>

#include "check.h"
#include "crc32c.h"

enum { SIZE = 5000, OFFSETS = 9 };

static unsigned char bytes[SIZE + OFFSETS];

static void fill(void) {
    uint64_t random = 1;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)check_below(&random, 256);
}

/* RFC 3720, B.4: the check value and 32 bytes of zeros. */
static void the_standard_knows_them(const char *dir) {
    (void)dir;
    unsigned char zeros[32] = {0};
    CHECK_EQ(~ds__crc32c_portable(UINT32_MAX, "123456789", 9) & UINT32_MAX, 0xe3069283);
    CHECK_EQ(~ds__crc32c_portable(UINT32_MAX, zeros, sizeof zeros) & UINT32_MAX, 0x8a9136aa);
}

static void every_size_gives_the_same_by_instruction(const char *dir) {
    (void)dir;
    fill();
    for (size_t size = 0; size <= SIZE; size++) {
        uint32_t seed = (uint32_t)size * 2654435761u;
        const unsigned char *from = bytes + size % OFFSETS;
        CHECK_EQ(ds__crc32c(seed, from, size), ds__crc32c_portable(seed, from, size));
        CHECK_EQ(ds__lane_hash(seed, from, size), ds__lane_hash_portable(seed, from, size));
    }
}

int main(int argc, char **argv) {
    static const check_test tests[] = {
        TEST(the_standard_knows_them),
        TEST(every_size_gives_the_same_by_instruction),
    };
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
