/* CUDA driver API: how functions are found, how much memory there is, and the ends of contexts. */
#define _GNU_SOURCE
#include "cuda.h"

#include <string.h>

#include "charge.h"
#include "pool.h"
#include "slice.h"

#define ROW(function, base, since) [ROW_##function] = {#function, base, since, (void *)function, NULL, NULL},
struct guard_row cuda_rows[] = {CUDA_ROWS(ROW)};

static const char *const sonames[] = {"libcuda.so.1", "libcuda.so", NULL};

static void *ask(const struct guard_row *row);
struct guard_family guard_cuda = {"cu", sonames, cuda_rows, ROW_COUNT, ask, false};

CUDA_NEEDS(result, cuCtxGetDevice, device *)
CUDA_NEEDS(result, cuCtxGetCurrent, void **)
CUDA_NEEDS(result, cuDevicePrimaryCtxRetain, void **, device)
CUDA_NEEDS(result, cuDevicePrimaryCtxGetState, device, unsigned *, int *)

/* ---- entry points ------------------------------------------------------------------------------ */

static void *ask(const struct guard_row *row) {
    enum { PER_THREAD_DEFAULT_STREAM = 2 };
    const char *suffix = strstr(row->name, "_pt");
    bool own = suffix != NULL && (strcmp(suffix, "_ptsz") == 0 || strcmp(suffix, "_ptds") == 0);
    uint64_t flags = own ? PER_THREAD_DEFAULT_STREAM : 0;
    void *found = NULL;
    int status;
    result outcome = NOT_INITIALIZED;
    if (REAL(cuGetProcAddress_v2) != NULL)
        outcome = REAL(cuGetProcAddress_v2)(row->base, &found, row->since, flags, &status);
    else if (REAL(cuGetProcAddress) != NULL)
        outcome = REAL(cuGetProcAddress)(row->base, &found, row->since, flags);
    return outcome == SUCCESS ? found : NULL;
}

result cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
    result (*real)(const char *, void **, int, uint64_t) = REAL(cuGetProcAddress);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(name, out, version, flags);
    if (outcome == SUCCESS && out != NULL && *out != NULL) *out = guard_swap(&guard_cuda, *out);
    return outcome;
}

result cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status) {
    result (*real)(const char *, void **, int, uint64_t, int *) = REAL(cuGetProcAddress_v2);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(name, out, version, flags, status);
    if (outcome == SUCCESS && out != NULL && *out != NULL) *out = guard_swap(&guard_cuda, *out);
    return outcome;
}

/* ---- where the caller is ------------------------------------------------------------------------ */

result cuda_current_device(device *out) {
    return cuCtxGetDevice_of() != NULL ? cuCtxGetDevice_of()(out) : NOT_INITIALIZED;
}

bool cuda_here(unsigned *on, uint64_t *context) {
    device current = 0;
    void *handle = NULL;
    if (!slice_active() || (slice_is_plural() && cuda_current_device(&current) != SUCCESS)) return false;
    if (cuCtxGetCurrent_of() != NULL) cuCtxGetCurrent_of()(&handle);
    *on = (unsigned)current;
    *context = (uint64_t)(uintptr_t)handle;
    return true;
}

result cuda_refusal(void) {
    device on;
    result state = cuda_current_device(&on);
    return state != SUCCESS ? state : OUT_OF_MEMORY;
}

int cuda_located(struct location where) {
    if (where.type == LOCATED_ON_DEVICE) return where.id;
    return where.type == LOCATED_IN_DOMAIN ? where.id & 0xff : -1;
}

/* ---- how much there is -------------------------------------------------------------------------- */

result cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    result (*real)(size_t *, size_t *) = REAL(cuMemGetInfo_v2);
    if (real == NULL) return NOT_INITIALIZED;
    device on = 0;
    if (slice_active()) pool_settle_freed();
    result outcome = real(free_bytes, total_bytes);
    if (outcome == SUCCESS && slice_active() && (!slice_is_plural() || cuda_current_device(&on) == SUCCESS))
        slice_narrow((unsigned)on, free_bytes, total_bytes);
    return outcome;
}

/* The forms before CUDA 3.2 have 32 bits, whatever the driver does with what does not fit. */
static void narrow_v1(unsigned on, unsigned *free_bytes, unsigned *total_bytes) {
    size_t left = free_bytes != NULL ? *free_bytes : 0, all = total_bytes != NULL ? *total_bytes : 0;
    slice_narrow(on, &left, &all);
    if (free_bytes != NULL) *free_bytes = (unsigned)left;
    if (total_bytes != NULL) *total_bytes = (unsigned)all;
}

result cuMemGetInfo(unsigned *free_bytes, unsigned *total_bytes) {
    result (*real)(unsigned *, unsigned *) = REAL(cuMemGetInfo);
    if (real == NULL) return NOT_INITIALIZED;
    device on = 0;
    result outcome = real(free_bytes, total_bytes);
    if (outcome == SUCCESS && slice_active() && (!slice_is_plural() || cuda_current_device(&on) == SUCCESS))
        narrow_v1((unsigned)on, free_bytes, total_bytes);
    return outcome;
}

result cuDeviceTotalMem_v2(size_t *bytes, device on) {
    result (*real)(size_t *, device) = REAL(cuDeviceTotalMem_v2);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(bytes, on);
    if (outcome == SUCCESS && slice_active()) slice_narrow((unsigned)on, NULL, bytes);
    return outcome;
}

result cuDeviceTotalMem(unsigned *bytes, device on) {
    result (*real)(unsigned *, device) = REAL(cuDeviceTotalMem);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(bytes, on);
    if (outcome == SUCCESS && slice_active()) narrow_v1((unsigned)on, NULL, bytes);
    return outcome;
}

/* ---- the ends of contexts: all memory in them goes, too ----------------------------------------- */

#define DESTROY(name)                                                                               \
    result name(void *context) {                                                                    \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        result outcome = real(context);                                                             \
        if (outcome == SUCCESS && slice_active()) charge_end_of((uint64_t)(uintptr_t)context);      \
        return outcome;                                                                             \
    }
DESTROY(cuCtxDestroy)
DESTROY(cuCtxDestroy_v2)

static bool primary_active(device on) {
    unsigned flags;
    int active = 0;
    return cuDevicePrimaryCtxGetState_of() != NULL &&
           cuDevicePrimaryCtxGetState_of()(on, &flags, &active) == SUCCESS && active;
}

/* Its handle is learned by holding it for a moment, which never makes one that is not there. */
static uint64_t primary(device on, result (*release)(device)) {
    void *context = NULL;
    if (!slice_active() || release == NULL || cuDevicePrimaryCtxRetain_of() == NULL) return 0;
    if (!primary_active(on) || cuDevicePrimaryCtxRetain_of()(&context, on) != SUCCESS) return 0;
    release(on);
    return (uint64_t)(uintptr_t)context;
}

#define RELEASE(name)                                                                               \
    result name(device on) {                                                                        \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        uint64_t context = primary(on, real);                                                       \
        result outcome = real(on);                                                                  \
        if (outcome == SUCCESS && context != 0 && !primary_active(on)) charge_end_of(context);      \
        return outcome;                                                                             \
    }
RELEASE(cuDevicePrimaryCtxRelease)
RELEASE(cuDevicePrimaryCtxRelease_v2)

#define RESET(name)                                                                                 \
    result name(device on) {                                                                        \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        uint64_t context = primary(on, REAL(cuDevicePrimaryCtxRelease_v2));                         \
        result outcome = real(on);                                                                  \
        if (outcome == SUCCESS && context != 0) charge_end_of(context);                             \
        return outcome;                                                                             \
    }
RESET(cuDevicePrimaryCtxReset)
RESET(cuDevicePrimaryCtxReset_v2)

/* ---- synchronization: pools hand back to the device what is over their thresholds ---------------- */

#define SYNCHRONIZE(name, parameters, arguments)                                                    \
    result name parameters {                                                                        \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        result outcome = real arguments;                                                            \
        if (slice_active()) pool_settle_freed();                                                    \
        return outcome;                                                                             \
    }
SYNCHRONIZE(cuCtxSynchronize, (void), ())
SYNCHRONIZE(cuCtxSynchronize_v2, (void *context), (context))
SYNCHRONIZE(cuStreamSynchronize, (void *stream), (stream))
SYNCHRONIZE(cuStreamSynchronize_ptsz, (void *stream), (stream))
SYNCHRONIZE(cuEventSynchronize, (void *event), (event))
