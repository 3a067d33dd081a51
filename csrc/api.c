/* api.c: the table of include/dora_state_api.h. */
#include "dora_state_api.h"

#define X(name) .ds_##name = ds_##name,
const struct ds_api ds__api = {.version = DS_API_VERSION, .size = sizeof(struct ds_api), DS_API_MAP(X)};
#undef X
