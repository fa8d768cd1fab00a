/* CUDA driver API: virtual memory management. Memory that is located on a device is charged from cuMemCreate
 * until nobody holds its handle and nothing is mapped to it; host memory, and what another process exported,
 * never is. */
#define _GNU_SOURCE
#include "charge.h"
#include "cuda.h"
#include "handle.h"
#include "slice.h"

static const uint64_t GRANULARITY = 2 << 20; /* the least on every device so far */

result cuMemCreate(uint64_t *out, size_t bytes, const struct memory_prop *prop, unsigned long long flags) {
    result (*real)(uint64_t *, size_t, const struct memory_prop *, unsigned long long) = REAL(cuMemCreate);
    if (real == NULL) return NOT_INITIALIZED;
    int on = prop != NULL && slice_active() ? cuda_located(prop->location) : -1;
    if (out == NULL || on < 0) return real(out, bytes, prop, flags);
    struct charge c = {bytes, 1, (unsigned)on};
    uint64_t fresh = 0;
    if (!charge_begin(c.device, bytes)) return OUT_OF_MEMORY; /* it needs no context */
    result outcome = real(&fresh, bytes, prop, flags);
    if (outcome == SUCCESS && !charge_keep(CHARGE_HANDLE, fresh, c)) {
        REAL(cuMemRelease)(fresh);
        outcome = OUT_OF_MEMORY;
    }
    if (outcome == SUCCESS)
        *out = fresh;
    else
        charge_undo(c.device, bytes);
    return outcome;
}

result cuMemRelease(uint64_t handle) {
    result (*real)(uint64_t) = REAL(cuMemRelease);
    if (real == NULL) return NOT_INITIALIZED;
    struct charge c;
    bool last;
    if (!handle_drop(handle, &c, &last)) return real(handle);
    result outcome = real(handle);
    handle_dropped(handle, c, last, outcome == SUCCESS);
    return outcome;
}

result cuMemMap(pointer at, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags) {
    result (*real)(pointer, size_t, size_t, uint64_t, unsigned long long) = REAL(cuMemMap);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(at, bytes, offset, handle, flags);
    if (outcome == SUCCESS && slice_active()) handle_mapped(at, bytes, handle);
    return outcome;
}

result cuMemUnmap(pointer at, size_t bytes) {
    result (*real)(pointer, size_t) = REAL(cuMemUnmap);
    if (real == NULL) return NOT_INITIALIZED;
    if (!slice_active()) return real(at, bytes);
    struct handle_range *range = handle_unmap(at, bytes, GRANULARITY);
    result outcome = real(at, bytes);
    handle_unmapped(range, outcome == SUCCESS);
    return outcome;
}

/* Both give one more hold on a handle, which may be one of this process's own. */
result cuMemRetainAllocationHandle(uint64_t *out, void *address) {
    result (*real)(uint64_t *, void *) = REAL(cuMemRetainAllocationHandle);
    if (real == NULL) return NOT_INITIALIZED;
    struct charge c;
    result outcome = real(out, address);
    if (outcome == SUCCESS && slice_active()) charge_count(CHARGE_HANDLE, *out, 1, &c);
    return outcome;
}

result cuMemImportFromShareableHandle(uint64_t *out, void *handle, int type) {
    result (*real)(uint64_t *, void *, int) = REAL(cuMemImportFromShareableHandle);
    if (real == NULL) return NOT_INITIALIZED;
    struct charge c;
    result outcome = real(out, handle, type);
    if (outcome == SUCCESS && slice_active()) charge_count(CHARGE_HANDLE, *out, 1, &c);
    return outcome;
}
