/* HIP runtime: memory, and how functions are found. */
#define _GNU_SOURCE
#include "hip.h"

#include "charge.h"
#include "slice.h"

#define ROW(function, base) [ROW_##function] = {#function, base, 0, (void *)function, NULL, NULL},
struct guard_row hip_rows[] = {HIP_ROWS(ROW)};

static const char *const sonames[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", NULL};

static void *ask(const struct guard_row *row);
struct guard_family guard_hip = {"hip", sonames, hip_rows, ROW_COUNT, ask, false};

_Thread_local int hip_inside;

GUARD_NEEDS(guard_hip, result, hipGetDevice, int *)

static void *ask(const struct guard_row *row) {
    void *found = NULL;
    int status;
    if (REAL(hipGetProcAddress) == NULL) return NULL;
    return REAL(hipGetProcAddress)(row->base, &found, 0, 0, &status) == SUCCESS ? found : NULL;
}

result hip_current_device(int *out) {
    return hipGetDevice_of() != NULL ? hipGetDevice_of()(out) : NOT_INITIALIZED;
}

result hipMalloc(void **out, size_t bytes) {
    result (*real)(void **, size_t) = REAL(hipMalloc);
    if (real == NULL) return NOT_INITIALIZED;
    int on = 0;
    if (hip_inside > 0 || !slice_active() || (slice_is_plural() && hip_current_device(&on) != SUCCESS))
        return real(out, bytes);
    struct charge c = {.bytes = bytes, .device = (unsigned)on};
    if (!charge_begin(c.device, bytes)) {
        result state = hip_current_device(&on); /* no device at all is said before no memory */
        return state != SUCCESS ? state : OUT_OF_MEMORY;
    }
    hip_inside++;
    result outcome = real(out, bytes);
    /* Asked for nothing, HIP gives NULL and success: nothing will be freed. */
    if (outcome == SUCCESS && *out != NULL &&
        !charge_keep(CHARGE_MEMORY, (uint64_t)(uintptr_t)*out, c)) {
        REAL(hipFree)(*out);
        outcome = OUT_OF_MEMORY;
    }
    hip_inside--;
    if (outcome != SUCCESS) charge_undo(c.device, bytes);
    return outcome;
}

result hipFree(void *address) {
    result (*real)(void *) = REAL(hipFree);
    if (real == NULL) return NOT_INITIALIZED;
    uint64_t key = (uint64_t)(uintptr_t)address;
    struct charge c;
    if (hip_inside > 0 || !charge_take(CHARGE_MEMORY, key, &c)) return real(address);
    hip_inside++;
    result outcome = real(address);
    hip_inside--;
    charge_end(CHARGE_MEMORY, key, c, outcome == SUCCESS);
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
    if (outcome == SUCCESS && out != NULL && *out != NULL) *out = guard_swap(&guard_hip, *out);
    return outcome;
}
