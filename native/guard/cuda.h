/* The hooked functions of the CUDA driver API, one row each. Types and codes as cuda.h of CUDA 11 to 13 has
 * them; the versions are those of its cudaTypedefs.h. */
#ifndef HAL_GUARD_CUDA_H
#define HAL_GUARD_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "guard.h"

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3 };

typedef int result;       /* CUresult */
typedef int device;       /* CUdevice: the ordinal among the visible ones */
typedef uint64_t pointer; /* CUdeviceptr */

struct launch_config { /* CUlaunchConfig */
    unsigned grid[3], block[3], shared;
    void *stream;
    void *attributes;
    unsigned count;
};

enum { LOCATED_ON_DEVICE = 1, LOCATED_IN_DOMAIN = 6, TYPE_MANAGED = 2 };

struct location { /* CUmemLocation */
    int type, id;
};

struct memory_prop { /* CUmemAllocationProp and CUmemPoolProps, as far as both begin alike */
    int type, handles;
    struct location location;
};

struct pool_props { /* CUmemPoolProps */
    struct memory_prop first;
    void *security;
    size_t most;
    unsigned short usage;
    unsigned char reserved[54];
};

struct alloc_node { /* CUDA_MEM_ALLOC_NODE_PARAMS */
    struct pool_props pool;
    const void *access;
    size_t accesses, bytes;
    pointer address;
};

struct array { /* CUDA_ARRAY_DESCRIPTOR; _v1 is the one of CUDA 2 */
    size_t width, height;
    unsigned format, channels;
};
struct array_v1 {
    unsigned width, height, format, channels;
};
struct array_3d { /* CUDA_ARRAY3D_DESCRIPTOR */
    size_t width, height, depth;
    unsigned format, channels, flags;
};
struct array_3d_v1 {
    unsigned width, height, depth, format, channels, flags;
};
struct array_needs { /* CUDA_ARRAY_MEMORY_REQUIREMENTS */
    size_t bytes, alignment;
    unsigned reserved[4];
};

/* ---- the hooks --------------------------------------------------------------------------------- */

HOOK result cuGetProcAddress(const char *name, void **out, int version, uint64_t flags);
HOOK result cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status);

HOOK result cuMemGetInfo(unsigned *free_bytes, unsigned *total_bytes);
HOOK result cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes);
HOOK result cuDeviceTotalMem(unsigned *bytes, device on);
HOOK result cuDeviceTotalMem_v2(size_t *bytes, device on);

HOOK result cuCtxDestroy(void *context);
HOOK result cuCtxDestroy_v2(void *context);
HOOK result cuDevicePrimaryCtxRelease(device on);
HOOK result cuDevicePrimaryCtxRelease_v2(device on);
HOOK result cuDevicePrimaryCtxReset(device on);
HOOK result cuDevicePrimaryCtxReset_v2(device on);
HOOK result cuCtxSynchronize(void);
HOOK result cuCtxSynchronize_v2(void *context);
HOOK result cuStreamSynchronize(void *stream);
HOOK result cuStreamSynchronize_ptsz(void *stream);
HOOK result cuEventSynchronize(void *event);

HOOK result cuMemAlloc(unsigned *out, unsigned bytes);
HOOK result cuMemAlloc_v2(pointer *out, size_t bytes);
HOOK result cuMemAllocPitch(unsigned *out, unsigned *pitch, unsigned width, unsigned height,
                            unsigned element);
HOOK result cuMemAllocPitch_v2(pointer *out, size_t *pitch, size_t width, size_t height, unsigned element);
HOOK result cuMemAllocManaged(pointer *out, size_t bytes, unsigned flags);
HOOK result cuMemFree(unsigned address);
HOOK result cuMemFree_v2(pointer address);

HOOK result cuMemAllocAsync(pointer *out, size_t bytes, void *stream);
HOOK result cuMemAllocAsync_ptsz(pointer *out, size_t bytes, void *stream);
HOOK result cuMemAllocFromPoolAsync(pointer *out, size_t bytes, void *pool, void *stream);
HOOK result cuMemAllocFromPoolAsync_ptsz(pointer *out, size_t bytes, void *pool, void *stream);
HOOK result cuMemFreeAsync(pointer address, void *stream);
HOOK result cuMemFreeAsync_ptsz(pointer address, void *stream);
HOOK result cuMemPoolCreate(void **out, const struct memory_prop *props);
HOOK result cuMemPoolDestroy(void *pool);
HOOK result cuMemPoolTrimTo(void *pool, size_t keep);

HOOK result cuMemCreate(uint64_t *out, size_t bytes, const struct memory_prop *prop,
                        unsigned long long flags);
HOOK result cuMemRelease(uint64_t handle);
HOOK result cuMemMap(pointer at, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags);
HOOK result cuMemUnmap(pointer at, size_t bytes);
HOOK result cuMemRetainAllocationHandle(uint64_t *out, void *address);
HOOK result cuMemImportFromShareableHandle(uint64_t *out, void *handle, int type);

HOOK result cuArrayCreate(void **out, const struct array_v1 *wanted);
HOOK result cuArrayCreate_v2(void **out, const struct array *wanted);
HOOK result cuArray3DCreate(void **out, const struct array_3d_v1 *wanted);
HOOK result cuArray3DCreate_v2(void **out, const struct array_3d *wanted);
HOOK result cuArrayDestroy(void *array);
HOOK result cuMipmappedArrayCreate(void **out, const struct array_3d *wanted, unsigned levels);
HOOK result cuMipmappedArrayDestroy(void *array);

HOOK result cuGraphInstantiate(void **out, void *graph, void **node, char *log, size_t length);
HOOK result cuGraphInstantiate_v2(void **out, void *graph, void **node, char *log, size_t length);
HOOK result cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags);
HOOK result cuGraphInstantiateWithParams(void **out, void *graph, void *parameters);
HOOK result cuGraphInstantiateWithParams_ptsz(void **out, void *graph, void *parameters);
HOOK result cuGraphUpload(void *graph, void *stream);
HOOK result cuGraphUpload_ptsz(void *graph, void *stream);
HOOK result cuGraphExecDestroy(void *graph);
HOOK result cuDeviceGraphMemTrim(device on);

#define CUDA_KERNEL                                                                                 \
    (void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,         \
     unsigned shared, void *stream, void **parameters, void **extra)
#define CUDA_COOPERATIVE                                                                            \
    (void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,         \
     unsigned shared, void *stream, void **parameters)
#define CUDA_EXTENDED (const struct launch_config *c, void *f, void **parameters, void **extra)
HOOK result cuLaunchKernel CUDA_KERNEL;
HOOK result cuLaunchKernel_ptsz CUDA_KERNEL;
HOOK result cuLaunchCooperativeKernel CUDA_COOPERATIVE;
HOOK result cuLaunchCooperativeKernel_ptsz CUDA_COOPERATIVE;
HOOK result cuLaunchKernelEx CUDA_EXTENDED;
HOOK result cuLaunchKernelEx_ptsz CUDA_EXTENDED;
HOOK result cuGraphLaunch(void *graph, void *stream);
HOOK result cuGraphLaunch_ptsz(void *graph, void *stream);
HOOK result cuLaunch(void *f);
HOOK result cuLaunchGrid(void *f, int width, int height);
HOOK result cuLaunchGridAsync(void *f, int width, int height, void *stream);

/* ---- the table --------------------------------------------------------------------------------- */

/* Function, the name that cuGetProcAddress knows, and the version from which that name means this function.
 * The _ptsz and _ptds forms have the name without it: the caller's flags choose them. */
#define CUDA_MEMORY_ROWS(X)                                                    \
    X(cuMemAlloc, "cuMemAlloc", 2000)                                          \
    X(cuMemAlloc_v2, "cuMemAlloc", 3020)                                       \
    X(cuMemAllocPitch, "cuMemAllocPitch", 2000)                                \
    X(cuMemAllocPitch_v2, "cuMemAllocPitch", 3020)                             \
    X(cuMemAllocManaged, "cuMemAllocManaged", 6000)                            \
    X(cuMemFree, "cuMemFree", 2000)                                            \
    X(cuMemFree_v2, "cuMemFree", 3020)                                         \
    X(cuMemGetInfo, "cuMemGetInfo", 2000)                                      \
    X(cuMemGetInfo_v2, "cuMemGetInfo", 3020)                                   \
    X(cuDeviceTotalMem, "cuDeviceTotalMem", 2000)                              \
    X(cuDeviceTotalMem_v2, "cuDeviceTotalMem", 3020)                           \
    X(cuMemAllocAsync, "cuMemAllocAsync", 11020)                               \
    X(cuMemAllocAsync_ptsz, "cuMemAllocAsync", 11020)                          \
    X(cuMemAllocFromPoolAsync, "cuMemAllocFromPoolAsync", 11020)               \
    X(cuMemAllocFromPoolAsync_ptsz, "cuMemAllocFromPoolAsync", 11020)          \
    X(cuMemFreeAsync, "cuMemFreeAsync", 11020)                                 \
    X(cuMemFreeAsync_ptsz, "cuMemFreeAsync", 11020)                            \
    X(cuMemPoolCreate, "cuMemPoolCreate", 11020)                               \
    X(cuMemPoolDestroy, "cuMemPoolDestroy", 11020)                             \
    X(cuMemPoolTrimTo, "cuMemPoolTrimTo", 11020)                               \
    X(cuMemCreate, "cuMemCreate", 10020)                                       \
    X(cuMemRelease, "cuMemRelease", 10020)                                     \
    X(cuMemMap, "cuMemMap", 10020)                                             \
    X(cuMemUnmap, "cuMemUnmap", 10020)                                         \
    X(cuMemRetainAllocationHandle, "cuMemRetainAllocationHandle", 11000)       \
    X(cuMemImportFromShareableHandle, "cuMemImportFromShareableHandle", 10020) \
    X(cuArrayCreate, "cuArrayCreate", 2000)                                    \
    X(cuArrayCreate_v2, "cuArrayCreate", 3020)                                 \
    X(cuArray3DCreate, "cuArray3DCreate", 2000)                                \
    X(cuArray3DCreate_v2, "cuArray3DCreate", 3020)                             \
    X(cuArrayDestroy, "cuArrayDestroy", 2000)                                  \
    X(cuMipmappedArrayCreate, "cuMipmappedArrayCreate", 5000)                  \
    X(cuMipmappedArrayDestroy, "cuMipmappedArrayDestroy", 5000)                \
    X(cuGraphInstantiate, "cuGraphInstantiate", 10000)                         \
    X(cuGraphInstantiate_v2, "cuGraphInstantiate", 11000)                      \
    X(cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags", 11040)       \
    X(cuGraphInstantiateWithParams, "cuGraphInstantiateWithParams", 12000)     \
    X(cuGraphInstantiateWithParams_ptsz, "cuGraphInstantiateWithParams", 12000) \
    X(cuGraphUpload, "cuGraphUpload", 11010)                                   \
    X(cuGraphUpload_ptsz, "cuGraphUpload", 11010)                              \
    X(cuGraphExecDestroy, "cuGraphExecDestroy", 10000)                         \
    X(cuDeviceGraphMemTrim, "cuDeviceGraphMemTrim", 11040)

/* What ends memory, or is the moment at which pools shrink. */
#define CUDA_CONTEXT_ROWS(X)                                                   \
    X(cuCtxDestroy, "cuCtxDestroy", 2000)                                      \
    X(cuCtxDestroy_v2, "cuCtxDestroy", 4000)                                   \
    X(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease", 7000)            \
    X(cuDevicePrimaryCtxRelease_v2, "cuDevicePrimaryCtxRelease", 11000)        \
    X(cuDevicePrimaryCtxReset, "cuDevicePrimaryCtxReset", 7000)                \
    X(cuDevicePrimaryCtxReset_v2, "cuDevicePrimaryCtxReset", 11000)            \
    X(cuCtxSynchronize, "cuCtxSynchronize", 2000)                              \
    X(cuCtxSynchronize_v2, "cuCtxSynchronize", 13000)                          \
    X(cuStreamSynchronize, "cuStreamSynchronize", 2000)                        \
    X(cuStreamSynchronize_ptsz, "cuStreamSynchronize", 7000)                   \
    X(cuEventSynchronize, "cuEventSynchronize", 2000)                          \
    X(cuGetProcAddress, "cuGetProcAddress", 11030)                             \
    X(cuGetProcAddress_v2, "cuGetProcAddress", 12000)

#define CUDA_LAUNCH_ROWS(X)                                                    \
    X(cuLaunchKernel, "cuLaunchKernel", 4000)                                  \
    X(cuLaunchKernel_ptsz, "cuLaunchKernel", 7000)                             \
    X(cuLaunchCooperativeKernel, "cuLaunchCooperativeKernel", 9000)            \
    X(cuLaunchCooperativeKernel_ptsz, "cuLaunchCooperativeKernel", 9000)       \
    X(cuLaunchKernelEx, "cuLaunchKernelEx", 11060)                             \
    X(cuLaunchKernelEx_ptsz, "cuLaunchKernelEx", 11060)                        \
    X(cuGraphLaunch, "cuGraphLaunch", 10000)                                   \
    X(cuGraphLaunch_ptsz, "cuGraphLaunch", 10000)                              \
    X(cuLaunch, "cuLaunch", 2000)                                              \
    X(cuLaunchGrid, "cuLaunchGrid", 2000)                                      \
    X(cuLaunchGridAsync, "cuLaunchGridAsync", 2000)

#define CUDA_ROWS(X) CUDA_MEMORY_ROWS(X) CUDA_CONTEXT_ROWS(X) CUDA_LAUNCH_ROWS(X)

#define CUDA_INDEX(function, base, since) ROW_##function,
enum { CUDA_ROWS(CUDA_INDEX) ROW_COUNT };

extern struct guard_row cuda_rows[ROW_COUNT];

/* The driver's own function, typed as its hook; a call that never had a driver is not initialized. */
#define REAL(function) ((__typeof__(&function))guard_real(&guard_cuda, &cuda_rows[ROW_##function]))

#define CUDA_NEEDS(returns, name, ...) GUARD_NEEDS(guard_cuda, returns, name, __VA_ARGS__)

/* ---- what the parts share ---------------------------------------------------------------------- */

/* Which of the slice's devices the caller is on: the visible ones are the slice's, in order. */
result cuda_current_device(device *out);

/* The same for a call that allocates in the current context; false: it is none of the guard's business, and
 * the driver answers. */
bool cuda_here(unsigned *on, uint64_t *context);

/* What an allocation that the slice has no room for gives: OUT_OF_MEMORY, or what is wrong with the caller's
 * context, which the driver looks at first. */
result cuda_refusal(void);

/* The slice's device of a location; -1: it is not device memory. */
int cuda_located(struct location where);

/* A launch or upload of a graph, around `launch`: the memory of its nodes. */
result cuda_graph_run(void *graph, void *stream, result (*launch)(void *graph, void *stream));

#endif
