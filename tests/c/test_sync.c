/* I10: a failed sync is final, for every handle and every process, since the kernel may call clean what it has lost. The
 * linker wraps the one function of os.c that puts log bytes on disk (ld --wrap). */
#include <errno.h>
#include <unistd.h>

#include "os.h"
#include "status.h"
#include "store_help.h"

static unsigned failing; /* so many syncs fail from now on */

ds_status __real_ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address,
                                   uint64_t size);
ds_status __wrap_ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address,
                                   uint64_t size);
ds_status __wrap_ds__os_range_sync(const struct ds_directory *directory, const char *name, void *address,
                                   uint64_t size) {
    if (failing == 0)
        return __real_ds__os_range_sync(directory, name, address, size);
    failing--;
    return ds__fail(DS_IO, EIO, "%s/%s: cannot sync", directory->path, name);
}

static void sync_elsewhere(void *context) {
    ds_store *store = open_store(context);
    CHECK_IS(ds_sync(store), DS_IO);
    CHECK_EQ(ds_error_errno(), EIO);
    expect_value(store, "later", "still works");
    CHECK_IS(ds_close(store), DS_IO);
}

static void i10_a_failed_sync_is_final_for_all(const char *dir) {
    ds_options options = options_default();
    options.durability = DS_COMMIT;
    ds_store *store = open_store(dir), *other = open_store(dir), *third = open_with(dir, options), *none = NULL;
    put(store, "key", "value");
    CHECK_OK(ds_sync(store));
    put(store, "key", "lost, perhaps");
    failing = 1;
    CHECK_IS(ds_sync(store), DS_IO);
    CHECK_EQ(failing, 0);
    CHECK_IS(ds_sync(store), DS_IO); /* the disk is well again, which says nothing */
    CHECK_IS(ds_sync(other), DS_IO);
    put(other, "later", "still works"); /* process durability needs no disk */
    CHECK_IS(ds_put(third, DS_USER, "key", 3, "told", 4, NULL), DS_IO);
    CHECK(strncmp(ds_error(), "committed", 9) == 0);
    CHECK_IS(ds_open(dir, &options, &none), DS_IO); /* it would promise what it cannot know */
    check_join(check_spawn(sync_elsewhere, check_format("%s", dir)));
    CHECK_IS(ds_close(third), DS_IO);
    CHECK_IS(ds_close(other), DS_IO);
    expect_value(store, "key", "told");
    CHECK_IS(ds_close(store), DS_IO);
}

int main(int argc, char **argv) {
    static const check_test tests[] = {TEST(i10_a_failed_sync_is_final_for_all)};
    return check_main(argc, argv, tests, CHECK_COUNT(tests));
}
