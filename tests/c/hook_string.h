/* hook_string.h: included before everything else into the hooked engine's sources. See hooks.h. */
#ifndef HOOK_STRING_H
#define HOOK_STRING_H

#include <string.h>

void *hook_memcpy(void *to, const void *from, size_t size);
void *hook_memmove(void *to, const void *from, size_t size);
void *hook_memset(void *to, int byte, size_t size);

#undef memcpy
#undef memmove
#undef memset
#define memcpy  hook_memcpy
#define memmove hook_memmove
#define memset  hook_memset

#endif
