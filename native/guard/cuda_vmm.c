/* CUDA driver API: virtual memory management. Memory that is located on a device is charged from cuMemCreate
 * until nobody holds its handle and nothing is mapped to it; host memory, and what another process exported,
 * never is. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "charge.h"
#include "cuda.h"
#include "slice.h"

static const uint64_t GRANULARITY = 2 << 20; /* the least on every device so far */

/* One holder less: at the last, the handle is taken and `last` is its charge. False: it is not charged. */
static bool drop(uint64_t handle, struct charge *c, bool *last) {
    if (!charge_count(CHARGE_HANDLE, handle, -1, c)) return false;
    *last = c->note == 0;
    return true;
}

/* The driver refused to let it go. */
static void restore(uint64_t handle, struct charge c, bool last) {
    c.note = 1;
    if (last)
        charge_keep(CHARGE_HANDLE, handle, c);
    else
        charge_count(CHARGE_HANDLE, handle, 1, &c);
}

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
    if (!drop(handle, &c, &last)) return real(handle);
    result outcome = real(handle);
    if (outcome != SUCCESS)
        restore(handle, c, last);
    else if (last)
        charge_undo(c.device, c.bytes);
    return outcome;
}

/* Also of a handle that is not charged, so that a range of several is walked whole when it is unmapped. */
result cuMemMap(pointer at, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags) {
    result (*real)(pointer, size_t, size_t, uint64_t, unsigned long long) = REAL(cuMemMap);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(at, bytes, offset, handle, flags);
    if (outcome != SUCCESS || !slice_active()) return outcome;
    struct charge mapping = {.bytes = bytes, .note = handle}, c;
    if (charge_keep(CHARGE_MAPPING, at, mapping)) charge_count(CHARGE_HANDLE, handle, 1, &c);
    return outcome;
}

/* What a range that is unmapped had in it, taken out before the driver can hand it to another thread. */
struct unmapped {
    pointer at;
    struct charge mapping, memory;
    bool known, last;
};

static struct unmapped *take_range(pointer at, size_t bytes, size_t *count) {
    struct unmapped *list = NULL;
    *count = 0;
    for (pointer next = at; next < at + bytes;) {
        struct unmapped u = {.at = next};
        struct unmapped *more = realloc(list, (*count + 1) * sizeof *list);
        if (more == NULL) break; /* what is left stays charged */
        list = more;
        if (!charge_take(CHARGE_MAPPING, next, &u.mapping)) {
            next += GRANULARITY;
            continue;
        }
        u.known = drop(u.mapping.note, &u.memory, &u.last);
        list[(*count)++] = u;
        next += u.mapping.bytes;
    }
    return list;
}

result cuMemUnmap(pointer at, size_t bytes) {
    result (*real)(pointer, size_t) = REAL(cuMemUnmap);
    if (real == NULL) return NOT_INITIALIZED;
    if (!slice_active()) return real(at, bytes);
    size_t count;
    struct unmapped *list = take_range(at, bytes, &count);
    result outcome = real(at, bytes);
    for (size_t i = 0; i < count; i++) {
        struct unmapped u = list[i];
        if (outcome != SUCCESS) charge_keep(CHARGE_MAPPING, u.at, u.mapping);
        if (outcome != SUCCESS && u.known) restore(u.mapping.note, u.memory, u.last);
        if (outcome == SUCCESS && u.known && u.last) charge_undo(u.memory.device, u.memory.bytes);
    }
    free(list);
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
