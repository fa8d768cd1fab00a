/* HIP runtime: virtual memory management (handle.h). Host memory, and what another process exported, is never
 * charged. */
#define _GNU_SOURCE
#include "charge.h"
#include "handle.h"
#include "hip.h"
#include "slice.h"

static const uint64_t GRANULARITY = 4096; /* the least on every device so far */

static uint64_t number(void *handle) { return (uint64_t)(uintptr_t)handle; }

HIP_HOOK(hipMemCreate, (void **out, size_t bytes, const struct memory_prop *prop, unsigned long long flags),
         (out, bytes, prop, flags)) {
    int on = prop != NULL ? hip_located(prop->location) : -1;
    if (out == NULL || on < 0) return REAL(hipMemCreate)(out, bytes, prop, flags);
    struct charge c = {bytes, 1, (unsigned)on};
    void *fresh = NULL;
    if (!charge_begin(c.device, bytes)) return hip_refusal();
    result outcome = REAL(hipMemCreate)(&fresh, bytes, prop, flags);
    if (outcome == SUCCESS && !charge_keep(CHARGE_HANDLE, number(fresh), c)) {
        REAL(hipMemRelease)(fresh);
        outcome = OUT_OF_MEMORY;
    }
    if (outcome == SUCCESS)
        *out = fresh;
    else
        charge_undo(c.device, bytes);
    return outcome;
}

HIP_HOOK(hipMemRelease, (void *handle), (handle)) {
    struct charge c;
    bool last;
    if (!handle_drop(number(handle), &c, &last)) return REAL(hipMemRelease)(handle);
    result outcome = REAL(hipMemRelease)(handle);
    handle_dropped(number(handle), c, last, outcome == SUCCESS);
    return outcome;
}

HIP_HOOK(hipMemMap, (void *at, size_t bytes, size_t offset, void *handle, unsigned long long flags),
         (at, bytes, offset, handle, flags)) {
    result outcome = REAL(hipMemMap)(at, bytes, offset, handle, flags);
    if (outcome == SUCCESS) handle_mapped(number(at), bytes, number(handle));
    return outcome;
}

HIP_HOOK(hipMemUnmap, (void *at, size_t bytes), (at, bytes)) {
    struct handle_range *range = handle_unmap(number(at), bytes, GRANULARITY);
    result outcome = REAL(hipMemUnmap)(at, bytes);
    handle_unmapped(range, outcome == SUCCESS);
    return outcome;
}

/* Both give one more hold on a handle, which may be one of this process's own. */
#define HOLD(name, parameters, arguments)                                                            \
    HIP_HOOK(name, parameters, arguments) {                                                          \
        struct charge c;                                                                             \
        result outcome = REAL(name) arguments;                                                       \
        if (outcome == SUCCESS) charge_count(CHARGE_HANDLE, number(*out), 1, &c);                    \
        return outcome;                                                                              \
    }
HOLD(hipMemRetainAllocationHandle, (void **out, void *address), (out, address))
HOLD(hipMemImportFromShareableHandle, (void **out, void *handle, int type), (out, handle, type))
