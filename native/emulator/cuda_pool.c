/* libcuda.so.1 over the emulated machine: pools, and allocation in stream order.
 *
 * * A pool takes memory from its device in steps of 32 MiB (as the driver's reserved figure is seen to
 * grow), or of 2 MiB where no more is left, hands out any part of it, and gives back what is over its
 * threshold at a synchronization. Streams have no depth here: a free takes effect at once. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_memory.h"
#include "cuda_parts.h"
#include "sizes.h"

enum { POOLS = 512, PIECE = 512 };
static const uint64_t STEP = 32 << 20, LEAST = 2 << 20;

struct CUmemPoolHandle_st {
    bool made, dying, host;
    unsigned device;
    uint64_t reserved, reserved_high, used, used_high, threshold;
};

/* The first ones are the devices' own. */
static struct CUmemPoolHandle_st pools[POOLS];
static CUmemoryPool chosen[HAL_LEDGER_DEVICES]; /* by the machine's index; NULL: its own */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* By the machine's index. */
static CUmemoryPool own_pool(unsigned device) {
    pools[device].device = device;
    pools[device].made = true;
    return &pools[device];
}

static CUresult known(CUmemoryPool p) {
    TRY(cuda_ready());
    uintptr_t from = (uintptr_t)p - (uintptr_t)pools;
    if (from >= sizeof pools || from % sizeof *pools != 0 || !p->made || p->dying)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

/* ---- what a pool holds ------------------------------------------------------------------------- */

static void shrink(CUmemoryPool p, uint64_t keep) {
    uint64_t least = cuda_round_up(p->used > keep ? p->used : keep, LEAST);
    if (least >= p->reserved) return;
    if (!p->host) emulator_give(p->device, p->reserved - least);
    p->reserved = least;
}

static bool grow(CUmemoryPool p, uint64_t bytes) {
    uint64_t more = p->used + bytes > p->reserved ? p->used + bytes - p->reserved : 0;
    if (more == 0) return true;
    uint64_t step = cuda_round_up(more, STEP), least = cuda_round_up(more, LEAST);
    if (!p->host && !emulator_take(p->device, step)) {
        for (CUmemoryPool other = pools; other < pools + POOLS; other++)
            if (other != p && other->made) shrink(other, 0); /* before it gives up */
        if (!emulator_take(p->device, step = least)) return false;
    }
    p->reserved += step;
    if (p->reserved > p->reserved_high) p->reserved_high = p->reserved;
    return true;
}

static bool take(CUmemoryPool p, uint64_t bytes, uint64_t *address) {
    uint64_t room = cuda_round_up(bytes, PIECE);
    if (room < bytes || room > UINT64_C(1) << 50 || !grow(p, room)) return false;
    *address = emulator_address(bytes, PIECE);
    if (!hal_sizes_put(*address + 1, (struct hal_allocation){room, (uint64_t)(uintptr_t)p, p->device}))
        return false;
    p->used += room;
    if (p->used > p->used_high) p->used_high = p->used;
    return true;
}

/* A pool that was destroyed goes with the last that was taken from it. */
static void bury(CUmemoryPool p) {
    shrink(p, 0);
    if (p->used == 0) p->made = false;
}

bool cuda_pool_free(uint64_t address) {
    struct hal_allocation a;
    if (!hal_sizes_take(address + 1, &a)) return false;
    pthread_mutex_lock(&lock);
    CUmemoryPool p = (CUmemoryPool)(uintptr_t)a.note;
    p->used -= a.bytes;
    if (p->dying) bury(p);
    pthread_mutex_unlock(&lock);
    return true;
}

void cuda_pools_release(void) {
    pthread_mutex_lock(&lock);
    for (CUmemoryPool p = pools; p < pools + POOLS; p++)
        if (p->made && p->reserved > p->threshold) shrink(p, p->threshold);
    pthread_mutex_unlock(&lock);
}

/* ---- pools ------------------------------------------------------------------------------------- */

CUDA cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props) {
    unsigned device = 0;
    TRY(cuda_ready());
    if (out == NULL || props == NULL || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    bool host = props->location.type == CU_MEM_LOCATION_TYPE_HOST ||
                props->location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    if (!host && props->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
    if (!host) TRY(cuda_device(props->location.id, &device));
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (CUmemoryPool p = pools + HAL_LEDGER_DEVICES; p < pools + POOLS; p++) {
        if (p->made) continue;
        *p = (struct CUmemPoolHandle_st){.made = true, .host = host, .device = device};
        *out = p;
        result = CUDA_SUCCESS;
        break;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUDA cuMemPoolDestroy(CUmemoryPool p) {
    TRY(known(p));
    if (p < pools + HAL_LEDGER_DEVICES) return CUDA_ERROR_INVALID_VALUE; /* a device's own stays */
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < HAL_LEDGER_DEVICES; i++)
        if (chosen[i] == p) chosen[i] = NULL;
    p->dying = true;
    bury(p);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUDA cuMemPoolTrimTo(CUmemoryPool p, size_t keep) {
    TRY(known(p));
    pthread_mutex_lock(&lock);
    shrink(p, keep);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUDA cuMemPoolSetAttribute(CUmemoryPool p, int attribute, void *value) {
    TRY(known(p));
    if (value == NULL || attribute < 1 || attribute > CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        return CUDA_ERROR_INVALID_VALUE;
    if (attribute < CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) return CUDA_SUCCESS; /* how it reuses: at once, here */
    uint64_t number = *(uint64_t *)value;
    pthread_mutex_lock(&lock);
    if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) p->threshold = number;
    if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH) p->reserved_high = p->reserved;
    if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH) p->used_high = p->used;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUDA cuMemPoolGetAttribute(CUmemoryPool p, int attribute, void *value) {
    TRY(known(p));
    if (value == NULL) return CUDA_ERROR_INVALID_VALUE;
    uint64_t *number = value;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: *number = p->threshold; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: *number = p->reserved; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: *number = p->reserved_high; break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: *number = p->used; break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: *number = p->used_high; break;
    default:
        if (attribute < 1 || attribute > 3) return CUDA_ERROR_INVALID_VALUE;
        *(int *)value = 1;
    }
    return CUDA_SUCCESS;
}

CUDA cuDeviceGetDefaultMemPool(CUmemoryPool *out, CUdevice device) {
    unsigned index;
    TRY(cuda_device(device, &index));
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = own_pool(index);
    return CUDA_SUCCESS;
}

CUDA cuDeviceGetMemPool(CUmemoryPool *out, CUdevice device) {
    unsigned index;
    TRY(cuda_device(device, &index));
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = chosen[index] != NULL ? chosen[index] : own_pool(index);
    return CUDA_SUCCESS;
}

CUDA cuDeviceSetMemPool(CUdevice device, CUmemoryPool p) {
    unsigned index;
    TRY(cuda_device(device, &index));
    TRY(known(p));
    if (p->host || p->device != index) return CUDA_ERROR_INVALID_DEVICE;
    chosen[index] = p;
    return CUDA_SUCCESS;
}

/* ---- allocation in stream order ----------------------------------------------------------------- */

static CUresult allocate(CUdeviceptr *out, size_t bytes, CUmemoryPool p, CUstream s) {
    uint64_t address;
    if (out == NULL || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    CUgraph graph = cuda_capturing(s);
    if (graph != NULL) return cuda_graph_capture(graph, p->device, bytes, out);
    pthread_mutex_lock(&lock);
    bool taken = take(p, bytes, &address);
    pthread_mutex_unlock(&lock);
    if (!taken) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = address;
    return CUDA_SUCCESS;
}

CUDA cuMemAllocFromPoolAsync(CUdeviceptr *out, size_t bytes, CUmemoryPool p, CUstream s) {
    unsigned device;
    TRY(cuda_current(&device));
    TRY(known(p));
    return allocate(out, bytes, p, s);
}

CUDA cuMemAllocAsync(CUdeviceptr *out, size_t bytes, CUstream s) {
    unsigned device;
    TRY(cuda_current(&device));
    return allocate(out, bytes, chosen[device] != NULL ? chosen[device] : own_pool(device), s);
}

CUDA cuMemFreeAsync(CUdeviceptr address, CUstream s) {
    unsigned device;
    TRY(cuda_current(&device));
    if (address == 0) return CUDA_ERROR_INVALID_VALUE;
    CUgraph graph = cuda_capturing(s);
    if (graph != NULL) return cuda_graph_capture_free(graph, address);
    if (cuda_pool_free(address) || emulator_free(address) == EMULATOR_OK || cuda_graph_free(address))
        return CUDA_SUCCESS;
    return CUDA_ERROR_INVALID_VALUE;
}

CUDA cuMemAllocAsync_ptsz(CUdeviceptr *out, size_t bytes, CUstream s) {
    return cuMemAllocAsync(out, bytes, cuda_own_stream(s));
}
CUDA cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *out, size_t bytes, CUmemoryPool p, CUstream s) {
    return cuMemAllocFromPoolAsync(out, bytes, p, cuda_own_stream(s));
}
CUDA cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream s) {
    return cuMemFreeAsync(address, cuda_own_stream(s));
}
