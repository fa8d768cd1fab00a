/* CUDA driver API: memory, and how functions are found. */
#define _GNU_SOURCE
#include "cuda.h"

#include "slice.h"

#define ROW(function, base, since) [ROW_##function] = {#function, base, since, (void *)function, NULL},
struct guard_row cuda_rows[] = {CUDA_ROWS(ROW)};

static const char *const sonames[] = {"libcuda.so.1", "libcuda.so", NULL};

struct guard_family guard_cuda = {"cu", sonames, cuda_rows, ROW_COUNT};

result cuda_current_device(device *out) {
    static struct guard_row row = {"cuCtxGetDevice", "cuCtxGetDevice", 0, NULL, NULL};
    result (*get)(device *) = (result(*)(device *))guard_real(&guard_cuda, &row);
    return get != NULL ? get(out) : NOT_INITIALIZED;
}

result cuMemAlloc_v2(pointer *out, size_t bytes) {
    result (*real)(pointer *, size_t) = REAL(cuMemAlloc_v2);
    if (real == NULL) return NOT_INITIALIZED;
    device on = 0;
    if (!slice_active() || (slice_is_plural() && cuda_current_device(&on) != SUCCESS))
        return real(out, bytes);
    if (!slice_reserve((unsigned)on, bytes)) {
        result state = cuda_current_device(&on); /* the driver, too, looks at the context first */
        return state != SUCCESS ? state : OUT_OF_MEMORY;
    }
    result outcome = real(out, bytes);
    if (outcome == SUCCESS && !slice_remember(*out, (unsigned)on, bytes)) {
        REAL(cuMemFree_v2)(*out);
        outcome = OUT_OF_MEMORY;
    }
    if (outcome != SUCCESS) slice_release((unsigned)on, bytes);
    return outcome;
}

result cuMemFree_v2(pointer address) {
    result (*real)(pointer) = REAL(cuMemFree_v2);
    if (real == NULL) return NOT_INITIALIZED;
    struct slice_claim claim;
    if (!slice_active() || !slice_take(address, &claim)) return real(address);
    result outcome = real(address);
    if (outcome == SUCCESS)
        slice_release(claim.device, claim.bytes);
    else
        slice_remember(address, claim.device, claim.bytes);
    return outcome;
}

result cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    result (*real)(size_t *, size_t *) = REAL(cuMemGetInfo_v2);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(free_bytes, total_bytes);
    device on = 0;
    if (outcome == SUCCESS && slice_active() && (!slice_is_plural() || cuda_current_device(&on) == SUCCESS))
        slice_narrow((unsigned)on, free_bytes, total_bytes);
    return outcome;
}

result cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
    result (*real)(const char *, void **, int, uint64_t) = REAL(cuGetProcAddress);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(name, out, version, flags);
    if (outcome == SUCCESS && out != NULL && *out != NULL)
        *out = guard_swap(&guard_cuda, *out, name, version);
    return outcome;
}

result cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status) {
    result (*real)(const char *, void **, int, uint64_t, int *) = REAL(cuGetProcAddress_v2);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(name, out, version, flags, status);
    if (outcome == SUCCESS && out != NULL && *out != NULL)
        *out = guard_swap(&guard_cuda, *out, name, version);
    return outcome;
}
