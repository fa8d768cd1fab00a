/* libcuda.so.1 over the emulated machine: linear memory, host memory, and memory of other processes.
 *
 * * An allocation takes exactly the bytes that were asked for. Managed memory takes them at once from the
 * device that is current, as if all of it were used there. */
#define _GNU_SOURCE
#include "cuda_memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_parts.h"
#include "sizes.h"

enum { PITCH = 512 };

/* ---- linear ---------------------------------------------------------------------------------- */

CUDA cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
    uint64_t owner, address;
    unsigned device;
    TRY(cuda_owner(&owner, &device));
    if (out == NULL || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (emulator_allocate_for(owner, device, bytes, &address) != EMULATOR_OK) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = address;
    return CUDA_SUCCESS;
}

static CUresult pitched(size_t *pitch, size_t width, size_t height, unsigned element) {
    if (width == 0 || height == 0 || width > SIZE_MAX - PITCH) return CUDA_ERROR_INVALID_VALUE;
    if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
    *pitch = cuda_round_up(width, PITCH);
    return *pitch > SIZE_MAX / height ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUDA cuMemAllocPitch_v2(CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element) {
    unsigned device;
    size_t row;
    TRY(cuda_current(&device));
    if (out == NULL || pitch == NULL) return CUDA_ERROR_INVALID_VALUE;
    TRY(pitched(&row, width, height, element));
    TRY(cuMemAlloc_v2(out, row * height));
    *pitch = row;
    return CUDA_SUCCESS;
}

CUDA cuMemAllocManaged(CUdeviceptr *out, size_t bytes, unsigned flags) {
    unsigned device;
    TRY(cuda_current(&device));
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) return CUDA_ERROR_INVALID_VALUE;
    return cuMemAlloc_v2(out, bytes);
}

CUDA cuMemFree_v2(CUdeviceptr address) {
    unsigned device;
    TRY(cuda_current(&device));
    if (address == 0) return CUDA_SUCCESS;
    if (emulator_free(address) == EMULATOR_OK || cuda_pool_free(address) ||
        cuda_graph_free(address))
        return CUDA_SUCCESS;
    return CUDA_ERROR_INVALID_VALUE;
}

CUDA cuMemGetInfo_v2(size_t *available, size_t *all) {
    unsigned device;
    TRY(cuda_current(&device));
    if (available == NULL || all == NULL) return CUDA_ERROR_INVALID_VALUE;
    const struct hal_machine_device *d = emulator_device(device);
    *all = d->memory_bytes - d->memory_reserved_bytes;
    *available = *all - emulator_used_lately(device);
    return CUDA_SUCCESS;
}

CUDA cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
    unsigned device;
    struct hal_allocation a;
    TRY(cuda_current(&device));
    if (!hal_sizes_find(address, &a)) return CUDA_ERROR_NOT_FOUND; /* by its first address only, here */
    if (base != NULL) *base = address;
    if (bytes != NULL) *bytes = a.bytes;
    return CUDA_SUCCESS;
}

/* ---- the forms before CUDA 3.2, whose sizes and addresses have 32 bits ------------------------- */

CUDA cuMemAlloc(unsigned *out, unsigned bytes) {
    static _Atomic uint64_t next = 0x10000000;
    uint64_t owner;
    unsigned device;
    TRY(cuda_owner(&owner, &device));
    if (out == NULL || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (!emulator_take(device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    /* Nothing is behind an address, so a block needs no more of them than its first 512. */
    uint64_t at = atomic_fetch_add(&next, 512);
    if (at > UINT32_MAX || !hal_sizes_put(at, (struct hal_allocation){bytes, owner, device})) {
        emulator_give(device, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (unsigned)at;
    return CUDA_SUCCESS;
}

CUDA cuMemAllocPitch(unsigned *out, unsigned *pitch, unsigned width, unsigned height, unsigned element) {
    unsigned device;
    size_t row;
    TRY(cuda_current(&device));
    if (out == NULL || pitch == NULL) return CUDA_ERROR_INVALID_VALUE;
    TRY(pitched(&row, width, height, element));
    if (row * height > UINT32_MAX) return CUDA_ERROR_OUT_OF_MEMORY;
    TRY(cuMemAlloc(out, (unsigned)(row * height)));
    *pitch = (unsigned)row;
    return CUDA_SUCCESS;
}

CUDA cuMemFree(unsigned address) { return cuMemFree_v2(address); }

CUDA cuMemGetInfo(unsigned *available, unsigned *all) {
    size_t left, total;
    if (available == NULL || all == NULL) return CUDA_ERROR_INVALID_VALUE;
    TRY(cuMemGetInfo_v2(&left, &total));
    *available = left < UINT32_MAX ? (unsigned)left : UINT32_MAX;
    *all = total < UINT32_MAX ? (unsigned)total : UINT32_MAX;
    return CUDA_SUCCESS;
}

/* ---- the host's -------------------------------------------------------------------------------- */

CUDA cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    unsigned device;
    TRY(cuda_current(&device));
    if (out == NULL || bytes == 0 || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    return posix_memalign(out, 4096, bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUDA cuMemAllocHost_v2(void **out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }

CUDA cuMemFreeHost(void *address) {
    unsigned device;
    TRY(cuda_current(&device));
    if (address == NULL) return CUDA_ERROR_INVALID_VALUE;
    free(address);
    return CUDA_SUCCESS;
}

/* ---- of other processes: the memory stays its exporter's ---------------------------------------- */

struct ipc {
    uint64_t address;
    int64_t pid;
};
_Static_assert(sizeof(struct ipc) <= sizeof(CUipcMemHandle), "it travels in the handle");

CUDA cuIpcGetMemHandle(CUipcMemHandle *out, CUdeviceptr address) {
    unsigned device;
    struct hal_allocation a;
    TRY(cuda_current(&device));
    if (out == NULL || !hal_sizes_find(address, &a)) return CUDA_ERROR_INVALID_VALUE;
    struct ipc i = {address, getpid()};
    memset(out, 0, sizeof *out);
    memcpy(out, &i, sizeof i);
    return CUDA_SUCCESS;
}

CUDA cuIpcOpenMemHandle_v2(CUdeviceptr *out, CUipcMemHandle handle, unsigned flags) {
    uint64_t owner, address;
    unsigned device;
    struct ipc i;
    TRY(cuda_owner(&owner, &device));
    memcpy(&i, &handle, sizeof i);
    if (out == NULL || flags != 1) return CUDA_ERROR_INVALID_VALUE; /* lazy peer access is the only one */
    if (i.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    if (emulator_allocate_for(owner, device, 0, &address) != EMULATOR_OK) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = address;
    return CUDA_SUCCESS;
}

CUDA cuIpcCloseMemHandle(CUdeviceptr address) {
    unsigned device;
    struct hal_allocation a;
    TRY(cuda_current(&device));
    if (!hal_sizes_find(address, &a) || a.bytes != 0) return CUDA_ERROR_INVALID_VALUE;
    emulator_free(address);
    return CUDA_SUCCESS;
}

struct CUextMemory_st {
    uint64_t bytes;
};

CUDA cuImportExternalMemory(CUexternalMemory *out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *d) {
    TRY(cuda_ready());
    if (out == NULL || d == NULL || d->size == 0) return CUDA_ERROR_INVALID_VALUE;
    CUexternalMemory m = malloc(sizeof *m);
    if (m == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    m->bytes = d->size;
    *out = m;
    return CUDA_SUCCESS;
}

CUDA cuExternalMemoryGetMappedBuffer(CUdeviceptr *out, CUexternalMemory m,
                                     const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *d) {
    uint64_t owner, address;
    unsigned device;
    TRY(cuda_owner(&owner, &device));
    if (out == NULL || m == NULL || d == NULL || d->offset > m->bytes || d->size > m->bytes - d->offset)
        return CUDA_ERROR_INVALID_VALUE;
    if (emulator_allocate_for(owner, device, 0, &address) != EMULATOR_OK) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = address;
    return CUDA_SUCCESS;
}

CUDA cuDestroyExternalMemory(CUexternalMemory m) {
    TRY(cuda_ready());
    if (m == NULL) return CUDA_ERROR_INVALID_HANDLE;
    free(m);
    return CUDA_SUCCESS;
}
