/* libamdhip64.so over the emulated machine: virtual memory management.
 *
 * Memory is made in multiples of 2 MiB, and goes when nobody holds its handle and nothing is mapped to it.
 * What is exported stays the exporter's: whoever imports it gets a handle that takes no memory. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hip_parts.h"
#include "sizes.h"

enum { HANDLES = 1 << 16, MAPPING = 2, SEARCHED = 1 << 16 };
static const uint64_t GRANULARITY = 2 << 20, FIRST_HANDLE = UINT64_C(0x600000000);

struct physical {
    unsigned users; /* those who hold the handle, and mappings; 0: there is no such */
    bool counted;   /* on the device */
    unsigned device;
    uint64_t bytes;
    hipMemAllocationProp prop;
};

static struct physical memory[HANDLES];
static unsigned unused_from; /* none before this is free */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct physical *physical(hipMemGenericAllocationHandle_t handle) {
    if (handle < FIRST_HANDLE || handle >= FIRST_HANDLE + HANDLES) return NULL;
    struct physical *p = &memory[handle - FIRST_HANDLE];
    return p->users > 0 ? p : NULL;
}

static void drop(struct physical *p) {
    if (--p->users > 0) return;
    if (p->counted) emulator_give(p->device, p->bytes);
    if ((unsigned)(p - memory) < unused_from) unused_from = (unsigned)(p - memory);
}

static hipError_t make(hipMemGenericAllocationHandle_t *out, struct physical wanted) {
    for (unsigned i = unused_from; i < HANDLES; i++) {
        if (memory[i].users > 0) continue;
        memory[i] = wanted;
        memory[i].users = 1;
        unused_from = i + 1;
        *out = FIRST_HANDLE + i;
        return hip_answer(hipSuccess);
    }
    return hip_answer(hipErrorOutOfMemory);
}

/* ---- memory ------------------------------------------------------------------------------------- */

static hipError_t located(const hipMemAllocationProp *prop, bool *counted, unsigned *device) {
    if (prop == NULL || prop->type != PINNED) return hip_answer(hipErrorInvalidValue);
    *counted = prop->location.type == LOCATED_ON_DEVICE;
    *device = 0;
    if (*counted) return hip_index_of(prop->location.id, device);
    return prop->location.type >= LOCATED_ON_HOST &&
                   prop->location.type <= LOCATED_ON_HOST_NODE_HERE
               ? hipSuccess
               : hipErrorInvalidValue;
}

HIP hipMemCreate(hipMemGenericAllocationHandle_t *out, size_t bytes, const hipMemAllocationProp *prop,
                 unsigned long long flags) {
    struct physical wanted = {.bytes = bytes};
    if (out == NULL || flags != 0 || bytes == 0 || bytes % GRANULARITY != 0) return hip_answer(hipErrorInvalidValue);
    TRY(located(prop, &wanted.counted, &wanted.device));
    wanted.prop = *prop;
    if (wanted.counted && !emulator_take(wanted.device, bytes)) return hip_answer(hipErrorOutOfMemory);
    pthread_mutex_lock(&lock);
    hipError_t result = make(out, wanted);
    pthread_mutex_unlock(&lock);
    if (result != hipSuccess && wanted.counted) emulator_give(wanted.device, bytes);
    return hip_answer(result);
}

HIP hipMemRelease(hipMemGenericAllocationHandle_t handle) {
    pthread_mutex_lock(&lock);
    struct physical *p = physical(handle);
    if (p != NULL) drop(p);
    pthread_mutex_unlock(&lock);
    return hip_answer(p != NULL ? hipSuccess : hipErrorInvalidValue);
}

HIP hipMemGetAllocationGranularity(size_t *out, const hipMemAllocationProp *prop, int option) {
    bool counted;
    unsigned device;
    if (out == NULL || option < 0 || option > 1) return hip_answer(hipErrorInvalidValue);
    TRY(located(prop, &counted, &device));
    *out = GRANULARITY;
    return hip_answer(hipSuccess);
}

HIP hipMemGetAllocationPropertiesFromHandle(hipMemAllocationProp *out, hipMemGenericAllocationHandle_t handle) {
    if (out == NULL || physical(handle) == NULL) return hip_answer(hipErrorInvalidValue);
    *out = physical(handle)->prop;
    return hip_answer(hipSuccess);
}

/* ---- addresses ---------------------------------------------------------------------------------- */

HIP hipMemAddressReserve(uint64_t *out, size_t bytes, size_t alignment, uint64_t at,
                         unsigned long long flags) {
    (void)at; /* a wish */
    if (out == NULL || bytes == 0 || bytes % GRANULARITY != 0 || flags != 0) return hip_answer(hipErrorInvalidValue);
    if ((alignment & (alignment - 1)) != 0 || bytes > UINT64_C(1) << 44) return hip_answer(hipErrorInvalidValue);
    *out = emulator_address(bytes, alignment > GRANULARITY ? alignment : GRANULARITY);
    return hip_answer(hipSuccess);
}

HIP hipMemAddressFree(uint64_t at, size_t bytes) {
    return hip_answer(at == 0 || at % GRANULARITY != 0 || bytes == 0 ? hipErrorInvalidValue : hipSuccess);
}

/* Mappings stand in the table of sizes, under their address and 2; other addresses are multiples of 512. */
HIP hipMemMap(uint64_t at, size_t bytes, size_t offset, hipMemGenericAllocationHandle_t handle,
              unsigned long long flags) {
    struct hal_allocation there;
    if (at == 0 || at % GRANULARITY != 0 || bytes == 0 || bytes % GRANULARITY != 0 || offset != 0 ||
        flags != 0)
        return hip_answer(hipErrorInvalidValue);
    pthread_mutex_lock(&lock);
    struct physical *p = physical(handle);
    hipError_t result = p == NULL || bytes > p->bytes ? hipErrorInvalidValue : hipSuccess;
    if (result == hipSuccess && hal_sizes_find(at + MAPPING, &there)) result = hipErrorInvalidValue;
    if (result == hipSuccess && !hal_sizes_put(at + MAPPING, (struct hal_allocation){bytes, handle, 0}))
        result = hipErrorOutOfMemory;
    if (result == hipSuccess) p->users++;
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}

/* One mapping, or several that lie one after another. */
HIP hipMemUnmap(uint64_t at, size_t bytes) {
    struct hal_allocation mapped;
    hipError_t result = hipSuccess;
    uint64_t next = at, end = at + bytes;
    pthread_mutex_lock(&lock);
    while (next < end && hal_sizes_find(next + MAPPING, &mapped)) next += mapped.bytes;
    if (bytes == 0 || next != end) result = hipErrorInvalidValue;
    for (next = at; result == hipSuccess && next < end; next += mapped.bytes) {
        hal_sizes_take(next + MAPPING, &mapped);
        drop(physical(mapped.note));
    }
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}

HIP hipMemSetAccess(uint64_t at, size_t bytes, const hipMemAccessDesc *access, size_t count) {
    struct hal_allocation mapped;
    if (bytes == 0 || access == NULL || count == 0) return hip_answer(hipErrorInvalidValue);
    return hip_answer(hal_sizes_find(at + MAPPING, &mapped) ? hipSuccess : hipErrorInvalidValue);
}

HIP hipMemRetainAllocationHandle(hipMemGenericAllocationHandle_t *out, void *address) {
    struct hal_allocation mapped;
    if (out == NULL) return hip_answer(hipErrorInvalidValue);
    uint64_t at = (uint64_t)(uintptr_t)address & ~(GRANULARITY - 1);
    hipError_t result = hipErrorInvalidValue;
    pthread_mutex_lock(&lock);
    for (uint64_t back = 0; result != hipSuccess && back < SEARCHED; back++) {
        if (!hal_sizes_find(at - back * GRANULARITY + MAPPING, &mapped)) continue;
        if (mapped.bytes <= back * GRANULARITY) break;
        physical(mapped.note)->users++;
        *out = mapped.note;
        result = hipSuccess;
    }
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}

/* ---- sharing ------------------------------------------------------------------------------------ */

struct shared {
    hipMemGenericAllocationHandle_t handle;
    int64_t pid;
    uint64_t bytes;
    hipMemAllocationProp prop;
};

HIP hipMemExportToShareableHandle(void *out, hipMemGenericAllocationHandle_t handle, int type,
                                  unsigned long long flags) {
    struct physical *p = physical(handle);
    if (out == NULL || p == NULL || flags != 0) return hip_answer(hipErrorInvalidValue);
    if (type != POSIX_FILE || !(p->prop.requestedHandleType & type))
        return hip_answer(hipErrorNotSupported);
    struct shared s = {handle, getpid(), p->bytes, p->prop};
    int fd = memfd_create("hal-exported", MFD_CLOEXEC);
    if (fd < 0) return hip_answer(hipErrorOutOfMemory);
    if (pwrite(fd, &s, sizeof s, 0) != (ssize_t)sizeof s) {
        close(fd);
        return hip_answer(hipErrorOutOfMemory);
    }
    *(int *)out = fd;
    return hip_answer(hipSuccess);
}

HIP hipMemImportFromShareableHandle(hipMemGenericAllocationHandle_t *out, void *handle, int type) {
    struct shared s;
    if (type != POSIX_FILE) return hip_answer(hipErrorNotSupported);
    if (out == NULL || pread((int)(intptr_t)handle, &s, sizeof s, 0) != (ssize_t)sizeof s)
        return hip_answer(hipErrorInvalidValue);
    hipError_t result = hipSuccess;
    pthread_mutex_lock(&lock);
    struct physical *own = s.pid == getpid() ? physical(s.handle) : NULL;
    if (own != NULL) {
        own->users++;
        *out = s.handle;
    } else {
        result = make(out, (struct physical){.bytes = s.bytes, .prop = s.prop});
    }
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}
