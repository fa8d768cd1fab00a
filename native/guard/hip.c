/* HIP runtime. Types and codes as hip_runtime_api.h of ROCm 6 and 7 has them. */
#define _GNU_SOURCE
#include <stdint.h>

#include "guard.h"
#include "slice.h"

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3 };

typedef int result; /* hipError_t */

HOOK result hipMalloc(void **out, size_t bytes);
HOOK result hipFree(void *address);
HOOK result hipMemGetInfo(size_t *free_bytes, size_t *total_bytes);
HOOK result hipGetProcAddress(const char *name, void **out, int version, uint64_t flags, int *status);

#define ROWS(X)                     \
    X(hipMalloc, "hipMalloc")       \
    X(hipFree, "hipFree")           \
    X(hipMemGetInfo, "hipMemGetInfo") \
    X(hipGetProcAddress, "hipGetProcAddress")

#define INDEX(function, base) ROW_##function,
enum { ROWS(INDEX) ROW_COUNT };

#define ROW(function, base) [ROW_##function] = {#function, base, 0, (void *)function, NULL},
static struct guard_row rows[] = {ROWS(ROW)};

static const char *const sonames[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", NULL};

struct guard_family guard_hip = {"hip", sonames, rows, ROW_COUNT};

#define REAL(function) ((__typeof__(&function))guard_real(&guard_hip, &rows[ROW_##function]))

/* The HIP runtime may call its own exported functions, which come back here (seen on ROCm 7). What the
 * runtime does for itself inside a call is part of that call and is not counted twice. */
static _Thread_local int inside;

static result current_device(int *out) {
    static struct guard_row row = {"hipGetDevice", "hipGetDevice", 0, NULL, NULL};
    result (*get)(int *) = (result(*)(int *))guard_real(&guard_hip, &row);
    return get != NULL ? get(out) : NOT_INITIALIZED;
}

result hipMalloc(void **out, size_t bytes) {
    result (*real)(void **, size_t) = REAL(hipMalloc);
    if (real == NULL) return NOT_INITIALIZED;
    int on = 0;
    if (inside > 0 || !slice_active() || (slice_is_plural() && current_device(&on) != SUCCESS))
        return real(out, bytes);
    if (!slice_reserve((unsigned)on, bytes)) {
        result state = current_device(&on); /* no device at all is said before no memory */
        return state != SUCCESS ? state : OUT_OF_MEMORY;
    }
    inside++;
    result outcome = real(out, bytes);
    /* Asked for nothing, HIP gives NULL and success: nothing will be freed. */
    if (outcome == SUCCESS && *out != NULL &&
        !slice_remember((uint64_t)(uintptr_t)*out, (unsigned)on, bytes)) {
        REAL(hipFree)(*out);
        outcome = OUT_OF_MEMORY;
    }
    inside--;
    if (outcome != SUCCESS) slice_release((unsigned)on, bytes);
    return outcome;
}

result hipFree(void *address) {
    result (*real)(void *) = REAL(hipFree);
    if (real == NULL) return NOT_INITIALIZED;
    uint64_t key = (uint64_t)(uintptr_t)address;
    struct slice_claim claim;
    if (inside > 0 || !slice_active() || !slice_take(key, &claim)) return real(address);
    inside++;
    result outcome = real(address);
    inside--;
    if (outcome == SUCCESS)
        slice_release(claim.device, claim.bytes);
    else
        slice_remember(key, claim.device, claim.bytes);
    return outcome;
}

result hipMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    result (*real)(size_t *, size_t *) = REAL(hipMemGetInfo);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(free_bytes, total_bytes);
    int on = 0;
    if (outcome == SUCCESS && inside == 0 && slice_active() &&
        (!slice_is_plural() || current_device(&on) == SUCCESS))
        slice_narrow((unsigned)on, free_bytes, total_bytes);
    return outcome;
}

result hipGetProcAddress(const char *name, void **out, int version, uint64_t flags, int *status) {
    result (*real)(const char *, void **, int, uint64_t, int *) = REAL(hipGetProcAddress);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(name, out, version, flags, status);
    if (outcome == SUCCESS && out != NULL && *out != NULL)
        *out = guard_swap(&guard_hip, *out, name, version);
    return outcome;
}
