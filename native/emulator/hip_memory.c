/* libamdhip64.so over the emulated machine: linear memory, host memory, memory of other processes, resets.
 *
 * An allocation takes exactly the bytes that were asked for, of the card that the device is on. Managed memory
 * takes them at once, as if all of it were used there. Nothing gives NULL. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hip_parts.h"
#include "sizes.h"

enum { PITCH = 256 };

static uint64_t number(const void *address) { return (uint64_t)(uintptr_t)address; }

/* ---- linear ---------------------------------------------------------------------------------- */

HIP hipExtMallocWithFlags(void **out, size_t bytes, unsigned flags) {
    uint64_t owner, at = 0;
    unsigned device;
    TRY(hip_owner(&owner, &device));
    if (out == NULL || flags > 4) return hip_answer(hipErrorInvalidValue);
    if (flags == hipMallocSignalMemory) return VIA(hipHostMalloc)(out, bytes, 0);
    if (bytes > 0 && emulator_allocate_for(owner, device, bytes, &at) != EMULATOR_OK)
        return hip_answer(hipErrorOutOfMemory);
    *out = (void *)(uintptr_t)at;
    return hip_answer(hipSuccess);
}

HIP hipMalloc(void **out, size_t bytes) { return VIA(hipExtMallocWithFlags)(out, bytes, 0); }

HIP hipMallocManaged(void **out, size_t bytes, unsigned flags) {
    if (flags != hipMemAttachGlobal && flags != hipMemAttachHost) return hip_answer(hipErrorInvalidValue);
    return VIA(hipMalloc)(out, bytes);
}

HIP hipMemAllocPitch(void **out, size_t *pitch, size_t width, size_t height, unsigned element) {
    unsigned device;
    TRY(hip_here(&device));
    if (out == NULL || pitch == NULL || width > SIZE_MAX - PITCH) return hip_answer(hipErrorInvalidValue);
    if (element != 4 && element != 8 && element != 16) return hip_answer(hipErrorInvalidValue);
    size_t row = hip_round_up(width, PITCH);
    if (height != 0 && row > SIZE_MAX / height) return hip_answer(hipErrorOutOfMemory);
    TRY(VIA(hipMalloc)(out, row * height));
    *pitch = row;
    return hip_answer(hipSuccess);
}

HIP hipMallocPitch(void **out, size_t *pitch, size_t width, size_t height) {
    return VIA(hipMemAllocPitch)(out, pitch, width, height, 4);
}

HIP hipMalloc3D(hipPitchedPtr *out, hipExtent extent) {
    size_t rows;
    if (out == NULL || __builtin_mul_overflow(extent.height, extent.depth, &rows))
        return hip_answer(hipErrorInvalidValue);
    hipPitchedPtr made = {.xsize = extent.width, .ysize = extent.height};
    TRY(VIA(hipMallocPitch)(&made.ptr, &made.pitch, extent.width, rows));
    *out = made;
    return hip_answer(hipSuccess);
}

HIP hipFree(void *address) {
    unsigned device;
    TRY(hip_here(&device));
    if (address == NULL || emulator_free(number(address)) == EMULATOR_OK || hip_pool_free(number(address)) ||
        hip_graph_free(number(address)))
        return hip_answer(hipSuccess);
    return hip_answer(hipErrorInvalidValue);
}

HIP hipMemPtrGetInfo(void *address, size_t *bytes) {
    struct hal_allocation a;
    if (bytes == NULL || !hal_sizes_find(number(address), &a)) return hip_answer(hipErrorInvalidValue);
    *bytes = a.bytes;
    return hip_answer(hipSuccess);
}

/* ---- the host's -------------------------------------------------------------------------------- */

HIP hipHostMalloc(void **out, size_t bytes, unsigned flags) {
    unsigned device;
    (void)flags;
    TRY(hip_here(&device));
    if (out == NULL) return hip_answer(hipErrorInvalidValue);
    if (posix_memalign(out, 4096, bytes) != 0) return hip_answer(hipErrorOutOfMemory);
    return hip_answer(hipSuccess);
}

HIP hipMallocHost(void **out, size_t bytes) { return VIA(hipHostMalloc)(out, bytes, 0); }

HIP hipHostFree(void *address) {
    free(address);
    return hip_answer(hipSuccess);
}

/* ---- resets -------------------------------------------------------------------------------------- */

HIP hipDeviceReset(void) {
    uint64_t owner;
    unsigned device;
    TRY(hip_owner(&owner, &device));
    emulator_free_of(owner);
    hip_pools_end(hip_current());
    return hip_answer(hipSuccess);
}

/* As its documentation has it; ROCm 6 itself does nothing (clr: hip_context.cpp). HAL_EMULATOR_HIP_KEEPS=1. */
HIP hipDevicePrimaryCtxReset(int ordinal) {
    const char *keeps = getenv("HAL_EMULATOR_HIP_KEEPS");
    int before = hip_current();
    if (keeps != NULL && *keeps == '1') return hip_answer(hipSuccess);
    TRY(VIA(hipSetDevice)(ordinal));
    hipError_t outcome = VIA(hipDeviceReset)();
    VIA(hipSetDevice)(before);
    return hip_answer(outcome);
}

/* ---- of other processes: the memory stays its exporter's ---------------------------------------- */

struct ipc {
    uint64_t address;
    int64_t pid;
};
_Static_assert(sizeof(struct ipc) <= sizeof(hipIpcMemHandle_t), "it travels in the handle");

HIP hipIpcGetMemHandle(hipIpcMemHandle_t *out, void *address) {
    struct hal_allocation a;
    if (out == NULL || !hal_sizes_find(number(address), &a)) return hip_answer(hipErrorInvalidValue);
    struct ipc i = {number(address), getpid()};
    memset(out, 0, sizeof *out);
    memcpy(out, &i, sizeof i);
    return hip_answer(hipSuccess);
}

/* An address with nothing behind it that is of this process. */
static hipError_t foreign(void **out) {
    uint64_t owner, address;
    unsigned device;
    TRY(hip_owner(&owner, &device));
    if (emulator_allocate_for(owner, device, 0, &address) != EMULATOR_OK) return hipErrorOutOfMemory;
    *out = (void *)(uintptr_t)address;
    return hipSuccess;
}

HIP hipIpcOpenMemHandle(void **out, hipIpcMemHandle_t handle, unsigned flags) {
    struct ipc i;
    memcpy(&i, &handle, sizeof i);
    if (out == NULL || flags != 1) return hip_answer(hipErrorInvalidValue); /* lazy peer access is the only one */
    if (i.pid == getpid()) return hip_answer(hipErrorInvalidContext);
    return hip_answer(foreign(out));
}

HIP hipIpcCloseMemHandle(void *address) {
    struct hal_allocation a;
    if (!hal_sizes_find(number(address), &a) || a.bytes != 0) return hip_answer(hipErrorInvalidValue);
    emulator_free(number(address));
    return hip_answer(hipSuccess);
}

struct hipExtMemory {
    uint64_t bytes;
};

HIP hipImportExternalMemory(hipExternalMemory_t *out, const hipExternalMemoryHandleDesc *d) {
    if (out == NULL || d == NULL || d->size == 0) return hip_answer(hipErrorInvalidValue);
    if ((*out = malloc(sizeof **out)) == NULL) return hip_answer(hipErrorOutOfMemory);
    (*out)->bytes = d->size;
    return hip_answer(hipSuccess);
}

HIP hipExternalMemoryGetMappedBuffer(void **out, hipExternalMemory_t m, const hipExternalMemoryBufferDesc *d) {
    if (out == NULL || m == NULL || d == NULL || d->offset > m->bytes || d->size > m->bytes - d->offset)
        return hip_answer(hipErrorInvalidValue);
    return hip_answer(foreign(out));
}

HIP hipDestroyExternalMemory(hipExternalMemory_t m) {
    free(m);
    return hip_answer(hipSuccess);
}
