/* libcuda.so.1 over the emulated machine: arrays and mipmapped arrays.
 *
 * * How large an array is, the driver alone knows. Here each level lies in blocks of 64 bytes by 8 rows, and
 * the whole in 64 KiB, the alignment that arrays state. Sparse arrays, and those whose mapping is deferred,
 * take nothing. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdlib.h>

#include "cuda_memory.h"
#include "cuda_parts.h"
#include "sizes.h"

enum { BLOCK_BYTES = 64, BLOCK_ROWS = 8, ALIGNMENT = 65536, LEVELS = 17 };

struct CUarray_st {
    uint64_t bytes;
    bool backed;
};

static unsigned channel_bytes(unsigned format) {
    switch (format) {
    case 0x01: case 0x08: return 1; /* 8 bits */
    case 0x02: case 0x09: case 0x10: return 2;
    case 0x03: case 0x0a: case 0x20: return 4;
    default: return 0; /* video and compressed formats are not known here */
    }
}

static CUresult size_of(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels, uint64_t *out) {
    uint64_t element = (uint64_t)channel_bytes(d->Format) * d->NumChannels, sum = 0;
    if (d->NumChannels != 1 && d->NumChannels != 2 && d->NumChannels != 4) return CUDA_ERROR_INVALID_VALUE;
    if (element == 0 || d->Width == 0 || levels == 0 || levels > LEVELS) return CUDA_ERROR_INVALID_VALUE;
    if (d->Width > 1 << 17 || d->Height > 1 << 17 || d->Depth > 1 << 14) return CUDA_ERROR_INVALID_VALUE;
    for (unsigned level = 0; level < levels; level++) {
        uint64_t w = d->Width >> level, h = d->Height >> level, z = d->Depth >> level;
        uint64_t row = cuda_round_up((w > 0 ? w : 1) * element, BLOCK_BYTES);
        sum += row * (h > 1 ? cuda_round_up(h, BLOCK_ROWS) : 1) * (z > 0 ? z : 1);
    }
    *out = cuda_round_up(sum, ALIGNMENT);
    return CUDA_SUCCESS;
}

/* An array is its own key in the table of sizes. */
static CUresult make(struct CUarray_st **out, const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels) {
    uint64_t owner;
    unsigned device;
    struct CUarray_st made;
    TRY(cuda_owner(&owner, &device));
    if (out == NULL || d == NULL) return CUDA_ERROR_INVALID_VALUE;
    TRY(size_of(d, levels, &made.bytes));
    made.backed = !(d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING));
    uint64_t takes = made.backed ? made.bytes : 0;
    struct CUarray_st *a = malloc(sizeof *a);
    if (a == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    bool taken = emulator_take(device, takes);
    if (!taken || !hal_sizes_put((uint64_t)(uintptr_t)a, (struct hal_allocation){takes, owner, device})) {
        if (taken) emulator_give(device, takes);
        free(a);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *a = made;
    *out = a;
    return CUDA_SUCCESS;
}

static CUresult destroy(struct CUarray_st *a) {
    TRY(cuda_ready());
    /* The context's end takes it, too; then it is unknown here. */
    if (a == NULL || emulator_free((uint64_t)(uintptr_t)a) != EMULATOR_OK) return CUDA_ERROR_INVALID_HANDLE;
    free(a);
    return CUDA_SUCCESS;
}

CUDA cuArray3DCreate_v2(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR *d) { return make(out, d, 1); }

CUDA cuArrayCreate_v2(CUarray *out, const CUDA_ARRAY_DESCRIPTOR *d) {
    unsigned device;
    TRY(cuda_current(&device));
    if (d == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR whole = {d->Width, d->Height, 0, d->Format, d->NumChannels, 0};
    return make(out, &whole, 1);
}

CUDA cuArray3DCreate(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR_v1 *d) {
    unsigned device;
    TRY(cuda_current(&device));
    if (d == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR whole = {d->Width, d->Height, d->Depth, d->Format, d->NumChannels, d->Flags};
    return make(out, &whole, 1);
}

CUDA cuArrayCreate(CUarray *out, const CUDA_ARRAY_DESCRIPTOR_v1 *d) {
    unsigned device;
    TRY(cuda_current(&device));
    if (d == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR whole = {d->Width, d->Height, 0, d->Format, d->NumChannels, 0};
    return make(out, &whole, 1);
}

CUDA cuArrayDestroy(CUarray a) { return destroy(a); }

CUDA cuMipmappedArrayCreate(CUmipmappedArray *out, const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels) {
    return make((CUarray *)out, d, levels);
}

CUDA cuMipmappedArrayDestroy(CUmipmappedArray a) { return destroy((CUarray)a); }

/* cuda.h: of an array that was made with deferred mapping only. */
CUDA cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, CUarray a, CUdevice device) {
    unsigned index;
    TRY(cuda_device(device, &index));
    if (out == NULL || a == NULL || a->backed) return CUDA_ERROR_INVALID_VALUE;
    *out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = a->bytes, .alignment = ALIGNMENT};
    return CUDA_SUCCESS;
}

CUDA cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, CUmipmappedArray a,
                                           CUdevice device) {
    return cuArrayGetMemoryRequirements(out, (CUarray)a, device);
}
