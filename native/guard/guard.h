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
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HOOK __attribute__((visibility("default")))

struct guard_row {
    const char *name;    /* exported by the vendor's library and by the guard */
    const char *base;    /* as GetProcAddress is asked for it */
    int since;           /* the first version of the interface for which base means this function */
    void *hook;          /* NULL: the guard needs the function for itself only */
    void *_Atomic real;  /* NULL until resolved */
    void *_Atomic alias; /* the address that the vendor's GetProcAddress gives for it, if that is another */
};

struct guard_family {
    const char *prefix;         /* of every name */
    const char *const *sonames; /* the library, newest first; ends with NULL */
    struct guard_row *rows;
    size_t count;
    void *(*ask)(const struct guard_row *row); /* the vendor's GetProcAddress; may be NULL */
    _Atomic bool asked;                        /* all rows that there are were resolved */
};

extern struct guard_family guard_cuda, guard_hip, guard_nvml;

void *guard_resolve(struct guard_family *family, struct guard_row *row);

/* The vendor's own function; NULL when its library is not loaded in this process. */
static inline void *guard_real(struct guard_family *family, struct guard_row *row) {
    void *real = atomic_load_explicit(&row->real, memory_order_acquire);
    return real != NULL ? real : guard_resolve(family, row);
}

/* What the program gets in place of `found`, which the vendor's library gave: a hook, or `found` itself. */
void *guard_swap(struct guard_family *family, void *found);

/* A function of the vendor's that the guard calls for itself: name_of() gives it, or NULL. */
#define GUARD_NEEDS(family, returns, name, ...)                                                    \
    static inline returns (*name##_of(void))(__VA_ARGS__) {                                        \
        static struct guard_row row = {#name, #name, 0, NULL, NULL, NULL};                         \
        return (returns(*)(__VA_ARGS__))guard_real(&family, &row);                                 \
    }

#endif
