#define _GNU_SOURCE
#include "guard.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "slice.h"

/* glibc 2.34 moved these from libdl to libc, under a new version; the first is there in both (glibc.c). */
#if defined(__x86_64__)
#define FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FIRST_GLIBC "GLIBC_2.17"
#endif
#ifdef FIRST_GLIBC
__asm__(".symver dlopen, dlopen@" FIRST_GLIBC);
__asm__(".symver dlclose, dlclose@" FIRST_GLIBC);
__asm__(".symver dlerror, dlerror@" FIRST_GLIBC);
__asm__(".symver dlvsym, dlvsym@" FIRST_GLIBC);
#endif

typedef void *(*dlsym_function)(void *, const char *);
typedef void *(*dlmopen_function)(Lmid_t, const char *, int);

static dlsym_function _Atomic next_dlsym;
static struct guard_family *const families[] = {&guard_cuda, &guard_hip, &guard_nvml};
enum { FAMILIES = sizeof families / sizeof *families };

/* dlvsym finds what our own dlsym hides. glibc moved dlsym from libdl to libc in 2.34; the baseline
 * version is the architecture's first. */
static void *resolve_next(const char *name) {
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.3.4", "GLIBC_2.2.5", "GLIBC_2.17"};
    void *found = NULL;
    for (size_t i = 0; found == NULL && i < sizeof versions / sizeof *versions; i++)
        found = dlvsym(RTLD_NEXT, name, versions[i]);
    if (found == NULL) abort(); /* not glibc: nothing in this process could look up a symbol */
    return found;
}

static dlsym_function resolve_dlsym(void) {
    void *found = resolve_next("dlsym");
    dlsym_function function;
    memcpy(&function, &found, sizeof function);
    atomic_store(&next_dlsym, function);
    return function;
}

static inline dlsym_function real_dlsym(void) {
    dlsym_function function = atomic_load_explicit(&next_dlsym, memory_order_acquire);
    return function != NULL ? function : resolve_dlsym();
}

/* ---- the vendors' functions ------------------------------------------------------------------- */

/* NODELETE: were it unloaded and loaded again elsewhere, what is remembered here would be stale. */
static void *loaded(const struct guard_family *family, const char *name) {
    void *found = NULL;
    for (size_t i = 0; found == NULL && family->sonames[i] != NULL; i++) {
        void *library = dlopen(family->sonames[i], RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
        if (library == NULL) continue;
        found = real_dlsym()(library, name);
        dlclose(library); /* NOLOAD counted one more user */
    }
    if (found == NULL) dlerror(); /* the caller's lookup may have succeeded: ours left an error behind */
    return found;
}

void *guard_resolve(struct guard_family *family, struct guard_row *row) {
    /* What an older library lacks is looked for once, or every lookup would do it again. */
    if (row->hook != NULL && atomic_load_explicit(&family->asked, memory_order_acquire)) return NULL;
    void *real = loaded(family, row->name);
    if (real != NULL) atomic_store(&row->real, real);
    return real;
}

static void resolve_all(struct guard_family *family) {
    bool any = false;
    for (size_t i = 0; i < family->count; i++) {
        struct guard_row *row = &family->rows[i];
        void *real = guard_real(family, row);
        any |= real != NULL;
        void *alias = real != NULL && family->ask != NULL ? family->ask(row) : NULL;
        if (alias != real) atomic_store(&row->alias, alias);
    }
    if (any) atomic_store(&family->asked, true);
}

void *guard_swap(struct guard_family *family, void *found) {
    if (!atomic_load_explicit(&family->asked, memory_order_acquire)) resolve_all(family);
    for (size_t i = 0; i < family->count; i++) {
        struct guard_row *row = &family->rows[i];
        if (found == row->hook || found == atomic_load_explicit(&row->real, memory_order_relaxed) ||
            found == atomic_load_explicit(&row->alias, memory_order_relaxed))
            return row->hook;
    }
    return found;
}

/* ---- how programs look for them --------------------------------------------------------------- */

static struct guard_family *family_of(const char *name) {
    for (size_t f = 0; f < FAMILIES; f++) {
        if (strncmp(name, families[f]->prefix, strlen(families[f]->prefix)) != 0) continue;
        for (size_t i = 0; i < families[f]->count; i++)
            if (strcmp(families[f]->rows[i].name, name) == 0) return families[f];
    }
    return NULL;
}

/* RTLD_NEXT means "after the caller", which the real dlsym reads from its return address: those calls,
 * and all names that are not ours, leave by a tail call (the build fixes -O2 for that) and nothing of
 * the guard stays on the stack. */
HOOK void *dlsym(void *restrict handle, const char *restrict name) {
    dlsym_function next = real_dlsym();
    struct guard_family *family = handle != RTLD_NEXT ? family_of(name) : NULL;
    if (family == NULL) return next(handle, name);
    if (handle == RTLD_DEFAULT) {
        /* It finds our hook in any case; without the vendor's library there is nothing to be found. */
        return loaded(family, name) != NULL ? next(handle, name) : next(RTLD_NEXT, name);
    }
    void *found = next(handle, name);
    return found == NULL ? NULL : guard_swap(family, found);
}

/* In a namespace of its own a vendor's library would have no guard before it: in a slice it is opened in the
 * program's. */
static bool is_vendors(const char *file) {
    const char *base = strrchr(file, '/');
    base = base != NULL ? base + 1 : file;
    for (size_t f = 0; f < FAMILIES; f++)
        for (size_t i = 0; families[f]->sonames[i] != NULL; i++)
            if (strcmp(base, families[f]->sonames[i]) == 0) return true;
    return false;
}

HOOK void *dlmopen(Lmid_t where, const char *file, int mode) {
    static void *_Atomic kept;
    void *found = atomic_load_explicit(&kept, memory_order_acquire);
    if (found == NULL) atomic_store(&kept, found = resolve_next("dlmopen"));
    dlmopen_function next;
    memcpy(&next, &found, sizeof next);
    if (where != LM_ID_BASE && file != NULL && is_vendors(file) && slice_active()) return dlopen(file, mode);
    return next(where, file, mode);
}
