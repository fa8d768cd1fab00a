/* libcuda.so.1 over the emulated machine: virtual memory management.
 *
 * * Memory is made in multiples of 2 MiB, and goes when nobody holds its handle and nothing is mapped to it.
 * What is exported stays the exporter's: whoever imports it gets a handle that takes no memory. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_memory.h"
#include "cuda_parts.h"
#include "sizes.h"

enum { HANDLES = 1 << 16, MAPPING = 2, SEARCHED = 1 << 16 };
static const uint64_t GRANULARITY = 2 << 20, FIRST_HANDLE = UINT64_C(0x600000000);

struct physical {
    unsigned users; /* those who hold the handle, and mappings; 0: there is no such */
    bool counted;   /* on the device */
    unsigned device;
    uint64_t bytes;
    CUmemAllocationProp prop;
};

static struct physical memory[HANDLES];
static unsigned unused_from; /* none before this is free */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct physical *physical(CUmemGenericAllocationHandle handle) {
    if (handle < FIRST_HANDLE || handle >= FIRST_HANDLE + HANDLES) return NULL;
    struct physical *p = &memory[handle - FIRST_HANDLE];
    return p->users > 0 ? p : NULL;
}

static void drop(struct physical *p) {
    if (--p->users > 0) return;
    if (p->counted) emulator_give(p->device, p->bytes);
    if ((unsigned)(p - memory) < unused_from) unused_from = (unsigned)(p - memory);
}

static CUresult make(CUmemGenericAllocationHandle *out, struct physical wanted) {
    for (unsigned i = unused_from; i < HANDLES; i++) {
        if (memory[i].users > 0) continue;
        memory[i] = wanted;
        memory[i].users = 1;
        unused_from = i + 1;
        *out = FIRST_HANDLE + i;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* ---- memory ------------------------------------------------------------------------------------- */

static CUresult located(const CUmemAllocationProp *prop, bool *counted, unsigned *device) {
    if (prop == NULL || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
    *counted = prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    *device = 0;
    if (*counted) return cuda_device(prop->location.id, device);
    return prop->location.type >= CU_MEM_LOCATION_TYPE_HOST &&
                   prop->location.type <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

/* It needs no context. */
CUDA cuMemCreate(CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *prop,
                 unsigned long long flags) {
    struct physical wanted = {.bytes = bytes};
    TRY(cuda_ready());
    if (out == NULL || flags != 0 || bytes == 0 || bytes % GRANULARITY != 0) return CUDA_ERROR_INVALID_VALUE;
    TRY(located(prop, &wanted.counted, &wanted.device));
    wanted.prop = *prop;
    if (wanted.counted && !emulator_take(wanted.device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    CUresult result = make(out, wanted);
    pthread_mutex_unlock(&lock);
    if (result != CUDA_SUCCESS && wanted.counted) emulator_give(wanted.device, bytes);
    return result;
}

CUDA cuMemRelease(CUmemGenericAllocationHandle handle) {
    TRY(cuda_ready());
    pthread_mutex_lock(&lock);
    struct physical *p = physical(handle);
    if (p != NULL) drop(p);
    pthread_mutex_unlock(&lock);
    return p != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA cuMemGetAllocationGranularity(size_t *out, const CUmemAllocationProp *prop, int option) {
    bool counted;
    unsigned device;
    TRY(cuda_ready());
    if (out == NULL || option < 0 || option > 1) return CUDA_ERROR_INVALID_VALUE;
    TRY(located(prop, &counted, &device));
    *out = GRANULARITY;
    return CUDA_SUCCESS;
}

CUDA cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *out, CUmemGenericAllocationHandle handle) {
    TRY(cuda_ready());
    if (out == NULL || physical(handle) == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = physical(handle)->prop;
    return CUDA_SUCCESS;
}

/* ---- addresses ---------------------------------------------------------------------------------- */

CUDA cuMemAddressReserve(CUdeviceptr *out, size_t bytes, size_t alignment, CUdeviceptr at,
                         unsigned long long flags) {
    (void)at; /* a wish */
    TRY(cuda_ready());
    if (out == NULL || bytes == 0 || bytes % GRANULARITY != 0 || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if ((alignment & (alignment - 1)) != 0 || bytes > UINT64_C(1) << 44) return CUDA_ERROR_INVALID_VALUE;
    *out = emulator_address(bytes, alignment > GRANULARITY ? alignment : GRANULARITY);
    return CUDA_SUCCESS;
}

CUDA cuMemAddressFree(CUdeviceptr at, size_t bytes) {
    TRY(cuda_ready());
    return at == 0 || at % GRANULARITY != 0 || bytes == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* Mappings stand in the table of sizes, under their address and 2; other addresses are multiples of 512. */
CUDA cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
              unsigned long long flags) {
    struct hal_allocation there;
    TRY(cuda_ready());
    if (at == 0 || at % GRANULARITY != 0 || bytes == 0 || bytes % GRANULARITY != 0 || offset != 0 ||
        flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    struct physical *p = physical(handle);
    CUresult result = p == NULL || bytes > p->bytes ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS && hal_sizes_find(at + MAPPING, &there)) result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS && !hal_sizes_put(at + MAPPING, (struct hal_allocation){bytes, handle, 0}))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS) p->users++;
    pthread_mutex_unlock(&lock);
    return result;
}

/* One mapping, or several that lie one after another. */
CUDA cuMemUnmap(CUdeviceptr at, size_t bytes) {
    struct hal_allocation mapped;
    TRY(cuda_ready());
    CUresult result = CUDA_SUCCESS;
    uint64_t next = at, end = at + bytes;
    pthread_mutex_lock(&lock);
    while (next < end && hal_sizes_find(next + MAPPING, &mapped)) next += mapped.bytes;
    if (bytes == 0 || next != end) result = CUDA_ERROR_INVALID_VALUE;
    for (next = at; result == CUDA_SUCCESS && next < end; next += mapped.bytes) {
        hal_sizes_take(next + MAPPING, &mapped);
        drop(physical(mapped.note));
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUDA cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t count) {
    struct hal_allocation mapped;
    TRY(cuda_ready());
    if (bytes == 0 || access == NULL || count == 0) return CUDA_ERROR_INVALID_VALUE;
    return hal_sizes_find(at + MAPPING, &mapped) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *out, void *address) {
    struct hal_allocation mapped;
    TRY(cuda_ready());
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    uint64_t at = (uint64_t)(uintptr_t)address & ~(GRANULARITY - 1);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (uint64_t back = 0; result != CUDA_SUCCESS && back < SEARCHED; back++) {
        if (!hal_sizes_find(at - back * GRANULARITY + MAPPING, &mapped)) continue;
        if (mapped.bytes <= back * GRANULARITY) break;
        physical(mapped.note)->users++;
        *out = mapped.note;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- sharing ------------------------------------------------------------------------------------ */

struct shared {
    CUmemGenericAllocationHandle handle;
    int64_t pid;
    uint64_t bytes;
    CUmemAllocationProp prop;
};

CUDA cuMemExportToShareableHandle(void *out, CUmemGenericAllocationHandle handle, int type,
                                  unsigned long long flags) {
    TRY(cuda_ready());
    struct physical *p = physical(handle);
    if (out == NULL || p == NULL || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !(p->prop.requestedHandleTypes & type))
        return CUDA_ERROR_NOT_SUPPORTED;
    struct shared s = {handle, getpid(), p->bytes, p->prop};
    int fd = memfd_create("hal-exported", MFD_CLOEXEC);
    if (fd < 0) return CUDA_ERROR_OUT_OF_MEMORY;
    if (pwrite(fd, &s, sizeof s, 0) != (ssize_t)sizeof s) {
        close(fd);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *(int *)out = fd;
    return CUDA_SUCCESS;
}

CUDA cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *out, void *handle, int type) {
    struct shared s;
    TRY(cuda_ready());
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
    if (out == NULL || pread((int)(intptr_t)handle, &s, sizeof s, 0) != (ssize_t)sizeof s)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    struct physical *own = s.pid == getpid() ? physical(s.handle) : NULL;
    if (own != NULL) {
        own->users++;
        *out = s.handle;
    } else {
        result = make(out, (struct physical){.bytes = s.bytes, .prop = s.prop});
    }
    pthread_mutex_unlock(&lock);
    return result;
}
