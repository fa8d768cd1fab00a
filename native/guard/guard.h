/* How a call reaches a hook, whichever way the program found the function.
 *
 * Linked directly: the hook is exported under the function's own name, and LD_PRELOAD puts it first.
 * By dlsym: our dlsym (guard.c). By the runtime's own GetProcAddress: that is hooked, too.
 * The last two ask the real library first and swap only pointers that are known to be hooked, so that
 * versions, flags and functions of the future stay as the driver gives them.
 */
#ifndef HAL_GUARD_H
#define HAL_GUARD_H

#include <stdatomic.h>
#include <stddef.h>

#define HOOK __attribute__((visibility("default")))

struct guard_row {
    const char *name;   /* exported by the vendor's library and by the guard */
    const char *base;   /* as GetProcAddress is asked for it */
    int since;          /* the first version of the interface for which base means this function */
    void *hook;
    void *_Atomic real; /* NULL until resolved */
};

struct guard_family {
    const char *prefix;         /* of every name */
    const char *const *sonames; /* the library, newest first; ends with NULL */
    struct guard_row *rows;
    size_t count;
};

extern struct guard_family guard_cuda, guard_hip;

/* The vendor's own function; NULL when its library is not loaded in this process. */
void *guard_real(struct guard_family *family, struct guard_row *row);

/* What the program gets in place of `found`, which the vendor's library gave for the name `base` at
 * interface version `version`: a hook, or `found` itself. */
void *guard_swap(struct guard_family *family, void *found, const char *base, int version);

#endif
