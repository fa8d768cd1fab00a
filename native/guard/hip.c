/* HIP runtime: memory, and how functions are found. */
#define _GNU_SOURCE
#include "hip.h"

#include "slice.h"

#define ROW(function, base) [ROW_##function] = {#function, base, 0, (void *)function, NULL},
struct guard_row hip_rows[] = {HIP_ROWS(ROW)};

static const char *const sonames[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", NULL};

struct guard_family guard_hip = {"hip", sonames, hip_rows, ROW_COUNT};

_Thread_local int hip_inside;

result hip_current_device(int *out) {
    static struct guard_row row = {"hipGetDevice", "hipGetDevice", 0, NULL, NULL};
    result (*get)(int *) = (result(*)(int *))guard_real(&guard_hip, &row);
    return get != NULL ? get(out) : NOT_INITIALIZED;
}

result hipMalloc(void **out, size_t bytes) {
    result (*real)(void **, size_t) = REAL(hipMalloc);
    if (real == NULL) return NOT_INITIALIZED;
    int on = 0;
    if (hip_inside > 0 || !slice_active() || (slice_is_plural() && hip_current_device(&on) != SUCCESS))
        return real(out, bytes);
    if (!slice_reserve((unsigned)on, bytes)) {
        result state = hip_current_device(&on); /* no device at all is said before no memory */
        return state != SUCCESS ? state : OUT_OF_MEMORY;
    }
    hip_inside++;
    result outcome = real(out, bytes);
    /* Asked for nothing, HIP gives NULL and success: nothing will be freed. */
    if (outcome == SUCCESS && *out != NULL &&
        !slice_remember((uint64_t)(uintptr_t)*out, (unsigned)on, bytes)) {
        REAL(hipFree)(*out);
        outcome = OUT_OF_MEMORY;
    }
    hip_inside--;
    if (outcome != SUCCESS) slice_release((unsigned)on, bytes);
    return outcome;
}

result hipFree(void *address) {
    result (*real)(void *) = REAL(hipFree);
    if (real == NULL) return NOT_INITIALIZED;
    uint64_t key = (uint64_t)(uintptr_t)address;
    struct slice_claim claim;
    if (hip_inside > 0 || !slice_active() || !slice_take(key, &claim)) return real(address);
    hip_inside++;
    result outcome = real(address);
    hip_inside--;
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
    if (outcome == SUCCESS && hip_inside == 0 && slice_active() &&
        (!slice_is_plural() || hip_current_device(&on) == SUCCESS))
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
