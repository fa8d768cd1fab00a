#define _GNU_SOURCE
#include "guard.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*dlsym_function)(void *, const char *);

static dlsym_function _Atomic next_dlsym;

/* dlvsym finds what our own dlsym hides. glibc moved dlsym from libdl to libc in 2.34; the baseline
 * version is the architecture's first. */
static dlsym_function resolve_dlsym(void) {
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};
    void *found = NULL;
    for (size_t i = 0; found == NULL && i < sizeof versions / sizeof *versions; i++)
        found = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
    if (found == NULL) abort(); /* not glibc: nothing in this process could look up a symbol */
    dlsym_function function;
    memcpy(&function, &found, sizeof function);
    atomic_store(&next_dlsym, function);
    return function;
}

static inline dlsym_function real_dlsym(void) {
    dlsym_function function = atomic_load_explicit(&next_dlsym, memory_order_acquire);
    return function != NULL ? function : resolve_dlsym();
}

void *guard_real(struct guard_family *family, struct guard_row *row) {
    void *real = atomic_load_explicit(&row->real, memory_order_acquire);
    /* NODELETE: were it unloaded and loaded again elsewhere, what is remembered here would be stale. */
    for (size_t i = 0; real == NULL && family->sonames[i] != NULL; i++) {
        void *library = dlopen(family->sonames[i], RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
        if (library == NULL) continue;
        real = real_dlsym()(library, row->name);
        dlclose(library); /* NOLOAD counted one more user */
        if (real != NULL) atomic_store(&row->real, real);
    }
    if (real == NULL) dlerror(); /* the caller's lookup may have succeeded: ours left an error behind */
    return real;
}

void *guard_swap(struct guard_family *family, void *found, const char *base, int version) {
    struct guard_row *named = NULL;
    for (size_t i = 0; i < family->count; i++) {
        struct guard_row *row = &family->rows[i];
        if (found == row->hook || found == guard_real(family, row)) return row->hook;
        if (strcmp(base, row->base) == 0 && version >= row->since &&
            (named == NULL || row->since > named->since))
            named = row;
    }
    /* A driver may hand out another address for the same function than the one it exports. */
    return named != NULL && atomic_load(&named->real) != NULL ? named->hook : found;
}

static bool is_row(const struct guard_family *family, const char *name) {
    for (size_t i = 0; i < family->count; i++)
        if (strcmp(family->rows[i].name, name) == 0) return true;
    return false;
}

static struct guard_family *family_of(const char *name) {
    struct guard_family *const families[] = {&guard_cuda, &guard_hip};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strncmp(name, families[i]->prefix, strlen(families[i]->prefix)) == 0 &&
            is_row(families[i], name))
            return families[i];
    return NULL;
}

/* RTLD_NEXT means "after the caller", which the real dlsym reads from its return address: those calls,
 * and all names that are not ours, leave by a tail call (the build fixes -O2 for that) and nothing of
 * the guard stays on the stack. */
HOOK void *dlsym(void *restrict handle, const char *restrict name) {
    dlsym_function next = real_dlsym();
    struct guard_family *family = NULL;
    if (handle != RTLD_NEXT && handle != RTLD_DEFAULT) family = family_of(name);
    if (family == NULL) return next(handle, name);
    void *found = next(handle, name);
    return found == NULL ? NULL : guard_swap(family, found, "", 0);
}
