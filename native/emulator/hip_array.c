/* libamdhip64.so over the emulated machine: arrays and mipmapped arrays. Rows of each level are multiples of 256
 * bytes, and the whole one of a page. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "hip_parts.h"
#include "sizes.h"

enum { ROW = 256, PAGE = 4096, LEVELS = 17 };

struct hipArray {
    uint64_t bytes;
};

static hipError_t size_of(hipExtent e, uint64_t bits, unsigned levels, uint64_t *out) {
    uint64_t sum = 0;
    if (e.width == 0 || bits == 0 || bits > 128 || levels == 0 || levels > LEVELS) return hipErrorInvalidValue;
    if (e.width > 1 << 17 || e.height > 1 << 17 || e.depth > 1 << 14) return hipErrorInvalidValue;
    for (unsigned level = 0; level < levels; level++) {
        uint64_t w = e.width >> level, h = e.height >> level, z = e.depth >> level;
        sum += hip_round_up((w > 0 ? w : 1) * bits / 8, ROW) * (h > 0 ? h : 1) * (z > 0 ? z : 1);
    }
    *out = hip_round_up(sum, PAGE);
    return hipSuccess;
}

/* An array is its own key in the table of sizes. */
static hipError_t make(hipArray_t *out, hipExtent extent, uint64_t bits, unsigned levels) {
    uint64_t owner, bytes;
    unsigned device;
    TRY(hip_owner(&owner, &device));
    TRY(size_of(extent, bits, levels, &bytes));
    hipArray_t a = malloc(sizeof *a);
    if (a == NULL) return hip_answer(hipErrorOutOfMemory);
    bool taken = emulator_take(device, bytes);
    if (!taken || !hal_sizes_put((uint64_t)(uintptr_t)a, (struct hal_allocation){bytes, owner, device})) {
        if (taken) emulator_give(device, bytes);
        free(a);
        return hip_answer(hipErrorOutOfMemory);
    }
    a->bytes = bytes;
    *out = a;
    return hip_answer(hipSuccess);
}

static uint64_t bits_of(const HIP_ARRAY3D_DESCRIPTOR *d) {
    switch (d->Format) {
    case 0x01: case 0x08: return 8 * d->NumChannels;
    case 0x02: case 0x09: case 0x10: return 16 * d->NumChannels;
    case 0x03: case 0x0a: case 0x20: return 32 * d->NumChannels;
    default: return 0;
    }
}

HIP hipMipmappedArrayCreate(hipMipmappedArray_t *out, HIP_ARRAY3D_DESCRIPTOR *d, unsigned levels) {
    if (out == NULL || d == NULL) return hip_answer(hipErrorInvalidValue);
    return make((hipArray_t *)out, (hipExtent){d->Width, d->Height, d->Depth}, bits_of(d), levels);
}

HIP hipArray3DCreate(hipArray_t *out, const HIP_ARRAY3D_DESCRIPTOR *d) {
    if (out == NULL || d == NULL) return hip_answer(hipErrorInvalidValue);
    return make(out, (hipExtent){d->Width, d->Height, d->Depth}, bits_of(d), 1);
}

HIP hipArrayCreate(hipArray_t *out, const HIP_ARRAY_DESCRIPTOR *d) {
    if (d == NULL) return hip_answer(hipErrorInvalidValue);
    HIP_ARRAY3D_DESCRIPTOR whole = {d->Width, d->Height, 0, d->Format, d->NumChannels, 0};
    return VIA(hipArray3DCreate)(out, &whole);
}

static HIP_ARRAY3D_DESCRIPTOR described(const hipChannelFormatDesc *e, hipExtent extent) {
    unsigned format = e->x == 8 ? 0x01 : e->x == 16 ? 0x02 : e->x == 32 ? 0x03 : 0;
    unsigned channels = (e->x > 0) + (e->y > 0) + (e->z > 0) + (e->w > 0);
    return (HIP_ARRAY3D_DESCRIPTOR){extent.width, extent.height, extent.depth, format, channels, 0};
}

HIP hipMalloc3DArray(hipArray_t *out, const hipChannelFormatDesc *element, hipExtent extent, unsigned flags) {
    (void)flags;
    if (element == NULL) return hip_answer(hipErrorInvalidValue);
    HIP_ARRAY3D_DESCRIPTOR d = described(element, extent);
    return VIA(hipArray3DCreate)(out, &d);
}

HIP hipMallocArray(hipArray_t *out, const hipChannelFormatDesc *element, size_t width, size_t height,
                   unsigned flags) {
    return VIA(hipMalloc3DArray)(out, element, (hipExtent){width, height, 0}, flags);
}

HIP hipMallocMipmappedArray(hipMipmappedArray_t *out, const hipChannelFormatDesc *element, hipExtent extent,
                            unsigned levels, unsigned flags) {
    (void)flags;
    if (element == NULL) return hip_answer(hipErrorInvalidValue);
    HIP_ARRAY3D_DESCRIPTOR d = described(element, extent);
    return VIA(hipMipmappedArrayCreate)(out, &d, levels);
}

/* A reset takes it, too; then it is unknown here. */
HIP hipArrayDestroy(hipArray_t a) {
    if (a == NULL || emulator_free((uint64_t)(uintptr_t)a) != EMULATOR_OK)
        return hip_answer(hipErrorInvalidHandle);
    free(a);
    return hip_answer(hipSuccess);
}

HIP hipFreeArray(hipArray_t a) { return VIA(hipArrayDestroy)(a); }
HIP hipMipmappedArrayDestroy(hipMipmappedArray_t a) { return VIA(hipArrayDestroy)((hipArray_t)a); }
HIP hipFreeMipmappedArray(hipMipmappedArray_t a) { return VIA(hipMipmappedArrayDestroy)(a); }
