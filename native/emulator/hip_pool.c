/* libamdhip64.so over the emulated machine: pools, and allocation in stream order.
 *
 * A pool takes from its device what an allocation needs beyond what it has, in pages, hands out any part of it, and
 * gives back what is over its threshold at a synchronization. A free takes effect at once. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "hip_parts.h"
#include "sizes.h"

enum { POOLS = 512, PIECE = 512, PAGE = 4096 };

struct ihipMemPoolHandle_t {
    bool made, dying, host;
    unsigned device;
    uint64_t reserved, reserved_high, used, used_high, threshold;
};

/* The first ones are the devices' own, by their ordinals. */
static struct ihipMemPoolHandle_t pools[POOLS];
static hipMemPool_t chosen[HAL_LEDGER_DEVICES]; /* by ordinal; NULL: its own */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static hipMemPool_t own_pool(int ordinal) {
    pools[ordinal].device = hip_index(ordinal);
    pools[ordinal].made = true;
    return &pools[ordinal];
}

static hipError_t known(hipMemPool_t p) {
    uintptr_t from = (uintptr_t)p - (uintptr_t)pools;
    if (from >= sizeof pools || from % sizeof *pools != 0 || !p->made || p->dying) return hipErrorInvalidValue;
    return hipSuccess;
}

/* ---- what a pool holds ------------------------------------------------------------------------- */

static void shrink(hipMemPool_t p, uint64_t keep) {
    uint64_t least = hip_round_up(p->used > keep ? p->used : keep, PAGE);
    if (least >= p->reserved) return;
    if (!p->host) emulator_give(p->device, p->reserved - least);
    p->reserved = least;
}

static bool grow(hipMemPool_t p, uint64_t bytes) {
    uint64_t more = p->used + bytes > p->reserved ? p->used + bytes - p->reserved : 0;
    if (more == 0) return true;
    uint64_t step = hip_round_up(more, PAGE);
    if (!p->host && !emulator_take(p->device, step)) {
        for (hipMemPool_t other = pools; other < pools + POOLS; other++)
            if (other != p && other->made) shrink(other, 0); /* before it gives up */
        if (!emulator_take(p->device, step)) return false;
    }
    p->reserved += step;
    if (p->reserved > p->reserved_high) p->reserved_high = p->reserved;
    return true;
}

static bool take(hipMemPool_t p, uint64_t bytes, uint64_t *address) {
    uint64_t room = hip_round_up(bytes, PIECE);
    if (room < bytes || room > UINT64_C(1) << 50 || !grow(p, room)) return false;
    *address = emulator_address(bytes, PIECE);
    if (!hal_sizes_put(*address + 1, (struct hal_allocation){room, (uint64_t)(uintptr_t)p, p->device}))
        return false;
    p->used += room;
    if (p->used > p->used_high) p->used_high = p->used;
    return true;
}

/* A pool that was destroyed goes with the last that was taken from it. */
static void bury(hipMemPool_t p) {
    shrink(p, 0);
    if (p->used == 0) p->made = false;
}

bool hip_pool_free(uint64_t address) {
    struct hal_allocation a;
    if (!hal_sizes_take(address + 1, &a)) return false;
    pthread_mutex_lock(&lock);
    hipMemPool_t p = (hipMemPool_t)(uintptr_t)a.note;
    p->used -= a.bytes;
    if (p->dying) bury(p);
    pthread_mutex_unlock(&lock);
    return true;
}

void hip_pools_release(void) {
    pthread_mutex_lock(&lock);
    for (hipMemPool_t p = pools; p < pools + POOLS; p++)
        if (p->made && p->reserved > p->threshold) shrink(p, p->threshold);
    pthread_mutex_unlock(&lock);
}

/* ---- pools ------------------------------------------------------------------------------------- */

HIP hipMemPoolCreate(hipMemPool_t *out, const hipMemPoolProps *props) {
    unsigned device = 0;
    if (out == NULL || props == NULL || props->allocType != PINNED)
        return hip_answer(hipErrorInvalidValue);
    bool host = props != NULL && props->location.type == LOCATED_ON_HOST;
    if (!host && props->location.type != LOCATED_ON_DEVICE) return hip_answer(hipErrorInvalidValue);
    if (!host) TRY(hip_index_of(props->location.id, &device));
    hipError_t result = hipErrorOutOfMemory;
    pthread_mutex_lock(&lock);
    for (hipMemPool_t p = pools + HAL_LEDGER_DEVICES; p < pools + POOLS; p++) {
        if (p->made) continue;
        *p = (struct ihipMemPoolHandle_t){.made = true, .host = host, .device = device};
        *out = p;
        result = hipSuccess;
        break;
    }
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}

HIP hipMemPoolDestroy(hipMemPool_t p) {
    TRY(known(p));
    if (p < pools + HAL_LEDGER_DEVICES) return hip_answer(hipErrorInvalidValue); /* a device's own stays */
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < HAL_LEDGER_DEVICES; i++)
        if (chosen[i] == p) chosen[i] = NULL;
    p->dying = true;
    bury(p);
    pthread_mutex_unlock(&lock);
    return hip_answer(hipSuccess);
}

HIP hipMemPoolTrimTo(hipMemPool_t p, size_t keep) {
    TRY(known(p));
    pthread_mutex_lock(&lock);
    shrink(p, keep);
    pthread_mutex_unlock(&lock);
    return hip_answer(hipSuccess);
}

HIP hipMemPoolSetAttribute(hipMemPool_t p, int attribute, void *value) {
    TRY(known(p));
    if (value == NULL || attribute < 1 || attribute > hipMemPoolAttrUsedMemHigh)
        return hip_answer(hipErrorInvalidValue);
    if (attribute < hipMemPoolAttrReleaseThreshold) return hip_answer(hipSuccess); /* how it reuses: at once, here */
    uint64_t number = *(uint64_t *)value;
    pthread_mutex_lock(&lock);
    if (attribute == hipMemPoolAttrReleaseThreshold) p->threshold = number;
    if (attribute == hipMemPoolAttrReservedMemHigh) p->reserved_high = p->reserved;
    if (attribute == hipMemPoolAttrUsedMemHigh) p->used_high = p->used;
    pthread_mutex_unlock(&lock);
    return hip_answer(hipSuccess);
}

HIP hipMemPoolGetAttribute(hipMemPool_t p, int attribute, void *value) {
    TRY(known(p));
    if (value == NULL) return hip_answer(hipErrorInvalidValue);
    uint64_t *number = value;
    switch (attribute) {
    case hipMemPoolAttrReleaseThreshold: *number = p->threshold; break;
    case hipMemPoolAttrReservedMemCurrent: *number = p->reserved; break;
    case hipMemPoolAttrReservedMemHigh: *number = p->reserved_high; break;
    case hipMemPoolAttrUsedMemCurrent: *number = p->used; break;
    case hipMemPoolAttrUsedMemHigh: *number = p->used_high; break;
    default:
        if (attribute < 1 || attribute > 3) return hip_answer(hipErrorInvalidValue);
        *(int *)value = 1;
    }
    return hip_answer(hipSuccess);
}

HIP hipDeviceGetDefaultMemPool(hipMemPool_t *out, int ordinal) {
    ASKED(out, ordinal);
    *out = own_pool(ordinal);
    return hip_answer(hipSuccess);
}

static hipMemPool_t pool_on(int ordinal) { return chosen[ordinal] != NULL ? chosen[ordinal] : own_pool(ordinal); }

HIP hipDeviceGetMemPool(hipMemPool_t *out, int ordinal) {
    ASKED(out, ordinal);
    *out = pool_on(ordinal);
    return hip_answer(hipSuccess);
}

HIP hipDeviceSetMemPool(int ordinal, hipMemPool_t p) {
    ASKED(&p, ordinal);
    TRY(known(p));
    if (p->host || p->device != hip_index(ordinal)) return hip_answer(hipErrorInvalidDevice);
    chosen[ordinal] = p;
    return hip_answer(hipSuccess);
}

static void forget(uint64_t address, struct hal_allocation a) { (void)address, (void)a; }

void hip_pools_end(int ordinal) {
    pthread_mutex_lock(&lock);
    chosen[ordinal] = NULL;
    for (hipMemPool_t p = pools; p < pools + POOLS; p++) {
        bool own = p < pools + HAL_LEDGER_DEVICES;
        if (!p->made || p->host || (own ? p - pools != ordinal : p->device != hip_index(ordinal))) continue;
        hal_sizes_drain((uint64_t)(uintptr_t)p, 0, 0, forget);
        emulator_give(p->device, p->reserved);
        *p = (struct ihipMemPoolHandle_t){0};
    }
    pthread_mutex_unlock(&lock);
}

/* ---- allocation in stream order ----------------------------------------------------------------- */

HIP hipMallocFromPoolAsync(void **out, size_t bytes, hipMemPool_t p, hipStream_t s) {
    uint64_t address;
    unsigned device;
    TRY(hip_here(&device));
    TRY(known(p));
    if (out == NULL) return hip_answer(hipErrorInvalidValue);
    if (bytes == 0) return *out = NULL, hip_answer(hipSuccess);
    hipGraph_t graph = hip_capturing(s);
    if (graph != NULL) return hip_graph_capture(graph, bytes, out);
    pthread_mutex_lock(&lock);
    bool taken = take(p, bytes, &address);
    pthread_mutex_unlock(&lock);
    if (!taken) return hip_answer(hipErrorOutOfMemory);
    *out = (void *)(uintptr_t)address;
    return hip_answer(hipSuccess);
}

HIP hipMallocAsync(void **out, size_t bytes, hipStream_t s) {
    unsigned device;
    TRY(hip_here(&device));
    return VIA(hipMallocFromPoolAsync)(out, bytes, pool_on(hip_current()), s);
}

HIP hipFreeAsync(void *address, hipStream_t s) {
    unsigned device;
    TRY(hip_here(&device));
    if (address == NULL) return hip_answer(hipErrorInvalidValue);
    hipGraph_t graph = hip_capturing(s);
    if (graph != NULL) return hip_graph_capture_free(graph, address);
    return VIA(hipFree)(address);
}
