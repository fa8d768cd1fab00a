/* The hooked functions of the HIP runtime, one row each. Types and codes as hip_runtime_api.h of ROCm 6 and 7 has
 * them. */
#ifndef HAL_GUARD_HIP_H
#define HAL_GUARD_HIP_H

#include <stddef.h>
#include <stdint.h>

#include "guard.h"

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3 };

typedef int result; /* hipError_t */

struct dim3 {
    uint32_t x, y, z;
};

enum { LOCATED_ON_DEVICE = 1 };

struct location { /* hipMemLocation */
    int type, id;
};

struct memory_prop { /* hipMemAllocationProp and hipMemPoolProps, as far as both begin alike */
    int type, handles;
    struct location location;
};

struct pool_props { /* hipMemPoolProps */
    struct memory_prop first;
    void *security;
    size_t most;
    unsigned char reserved[56];
};

struct alloc_node { /* hipMemAllocNodeParams */
    struct pool_props pool;
    const void *access;
    size_t accesses, bytes;
    void *address;
};

struct extent { /* hipExtent */
    size_t width, height, depth;
};

struct pitched { /* hipPitchedPtr */
    void *address;
    size_t pitch, width, height;
};

struct channels { /* hipChannelFormatDesc: bits of each */
    int x, y, z, w, kind;
};

struct array { /* HIP_ARRAY_DESCRIPTOR */
    size_t width, height;
    unsigned format, channels;
};
struct array_3d { /* HIP_ARRAY3D_DESCRIPTOR */
    size_t width, height, depth;
    unsigned format, channels, flags;
};

/* ---- the hooks --------------------------------------------------------------------------------- */

HOOK result hipGetProcAddress(const char *name, void **out, int version, uint64_t flags, int *status);
HOOK result hipMemGetInfo(size_t *free_bytes, size_t *total_bytes);
HOOK result hipDeviceTotalMem(size_t *bytes, int device);
HOOK result hipGetDeviceProperties(void *out, int device);
HOOK result hipGetDevicePropertiesR0000(void *out, int device);
HOOK result hipGetDevicePropertiesR0600(void *out, int device);
HOOK result hipDeviceReset(void);
HOOK result hipDevicePrimaryCtxReset(int device);
HOOK result hipDeviceSynchronize(void);
HOOK result hipCtxSynchronize(void);
HOOK result hipStreamSynchronize(void *stream);
HOOK result hipStreamSynchronize_spt(void *stream);
HOOK result hipEventSynchronize(void *event);

HOOK result hipMalloc(void **out, size_t bytes);
HOOK result hipExtMallocWithFlags(void **out, size_t bytes, unsigned flags);
HOOK result hipMallocManaged(void **out, size_t bytes, unsigned flags);
HOOK result hipMallocPitch(void **out, size_t *pitch, size_t width, size_t height);
HOOK result hipMemAllocPitch(void **out, size_t *pitch, size_t width, size_t height, unsigned element);
HOOK result hipMalloc3D(struct pitched *out, struct extent extent);
HOOK result hipFree(void *address);

HOOK result hipMallocAsync(void **out, size_t bytes, void *stream);
HOOK result hipMallocFromPoolAsync(void **out, size_t bytes, void *pool, void *stream);
HOOK result hipFreeAsync(void *address, void *stream);
HOOK result hipMemPoolCreate(void **out, const struct memory_prop *props);
HOOK result hipMemPoolDestroy(void *pool);
HOOK result hipMemPoolTrimTo(void *pool, size_t keep);

HOOK result hipMemCreate(void **out, size_t bytes, const struct memory_prop *prop, unsigned long long flags);
HOOK result hipMemRelease(void *handle);
HOOK result hipMemMap(void *at, size_t bytes, size_t offset, void *handle, unsigned long long flags);
HOOK result hipMemUnmap(void *at, size_t bytes);
HOOK result hipMemRetainAllocationHandle(void **out, void *address);
HOOK result hipMemImportFromShareableHandle(void **out, void *handle, int type);

HOOK result hipMallocArray(void **out, const struct channels *element, size_t width, size_t height,
                           unsigned flags);
HOOK result hipMalloc3DArray(void **out, const struct channels *element, struct extent extent, unsigned flags);
HOOK result hipArrayCreate(void **out, const struct array *wanted);
HOOK result hipArray3DCreate(void **out, const struct array_3d *wanted);
HOOK result hipMallocMipmappedArray(void **out, const struct channels *element, struct extent extent,
                                    unsigned levels, unsigned flags);
HOOK result hipMipmappedArrayCreate(void **out, struct array_3d *wanted, unsigned levels);
HOOK result hipFreeArray(void *array);
HOOK result hipArrayDestroy(void *array);
HOOK result hipFreeMipmappedArray(void *array);
HOOK result hipMipmappedArrayDestroy(void *array);

HOOK result hipGraphInstantiate(void **out, void *graph, void **node, char *log, size_t length);
HOOK result hipGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags);
HOOK result hipGraphInstantiateWithParams(void **out, void *graph, void *parameters);
HOOK result hipGraphUpload(void *graph, void *stream);
HOOK result hipGraphExecDestroy(void *graph);
HOOK result hipDeviceGraphMemTrim(int device);

/* Function, and the name that hipGetProcAddress knows. */
#define HIP_MEMORY_ROWS(X)                                               \
    X(hipGetProcAddress, "hipGetProcAddress")                            \
    X(hipMemGetInfo, "hipMemGetInfo")                                    \
    X(hipDeviceTotalMem, "hipDeviceTotalMem")                            \
    X(hipGetDeviceProperties, "hipGetDeviceProperties")                  \
    X(hipGetDevicePropertiesR0000, "hipGetDevicePropertiesR0000")        \
    X(hipGetDevicePropertiesR0600, "hipGetDevicePropertiesR0600")        \
    X(hipDeviceReset, "hipDeviceReset")                                  \
    X(hipDevicePrimaryCtxReset, "hipDevicePrimaryCtxReset")              \
    X(hipDeviceSynchronize, "hipDeviceSynchronize")                      \
    X(hipCtxSynchronize, "hipCtxSynchronize")                            \
    X(hipStreamSynchronize, "hipStreamSynchronize")                      \
    X(hipStreamSynchronize_spt, "hipStreamSynchronize_spt")              \
    X(hipEventSynchronize, "hipEventSynchronize")                        \
    X(hipMalloc, "hipMalloc")                                            \
    X(hipExtMallocWithFlags, "hipExtMallocWithFlags")                    \
    X(hipMallocManaged, "hipMallocManaged")                              \
    X(hipMallocPitch, "hipMallocPitch")                                  \
    X(hipMemAllocPitch, "hipMemAllocPitch")                              \
    X(hipMalloc3D, "hipMalloc3D")                                        \
    X(hipFree, "hipFree")                                                \
    X(hipMallocAsync, "hipMallocAsync")                                  \
    X(hipMallocFromPoolAsync, "hipMallocFromPoolAsync")                  \
    X(hipFreeAsync, "hipFreeAsync")                                      \
    X(hipMemPoolCreate, "hipMemPoolCreate")                              \
    X(hipMemPoolDestroy, "hipMemPoolDestroy")                            \
    X(hipMemPoolTrimTo, "hipMemPoolTrimTo")                              \
    X(hipMemCreate, "hipMemCreate")                                      \
    X(hipMemRelease, "hipMemRelease")                                    \
    X(hipMemMap, "hipMemMap")                                            \
    X(hipMemUnmap, "hipMemUnmap")                                        \
    X(hipMemRetainAllocationHandle, "hipMemRetainAllocationHandle")      \
    X(hipMemImportFromShareableHandle, "hipMemImportFromShareableHandle")\
    X(hipMallocArray, "hipMallocArray")                                  \
    X(hipMalloc3DArray, "hipMalloc3DArray")                              \
    X(hipArrayCreate, "hipArrayCreate")                                  \
    X(hipArray3DCreate, "hipArray3DCreate")                              \
    X(hipMallocMipmappedArray, "hipMallocMipmappedArray")                \
    X(hipMipmappedArrayCreate, "hipMipmappedArrayCreate")                \
    X(hipFreeArray, "hipFreeArray")                                      \
    X(hipArrayDestroy, "hipArrayDestroy")                                \
    X(hipFreeMipmappedArray, "hipFreeMipmappedArray")                    \
    X(hipMipmappedArrayDestroy, "hipMipmappedArrayDestroy")              \
    X(hipGraphInstantiate, "hipGraphInstantiate")                        \
    X(hipGraphInstantiateWithFlags, "hipGraphInstantiateWithFlags")      \
    X(hipGraphInstantiateWithParams, "hipGraphInstantiateWithParams")    \
    X(hipGraphUpload, "hipGraphUpload")                                  \
    X(hipGraphExecDestroy, "hipGraphExecDestroy")                        \
    X(hipDeviceGraphMemTrim, "hipDeviceGraphMemTrim")

HOOK result hipModuleLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                  unsigned bz, unsigned shared, void *stream, void **parameters, void **extra);
HOOK result hipModuleLaunchCooperativeKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                             unsigned by, unsigned bz, unsigned shared, void *stream,
                                             void **parameters);
HOOK result hipExtModuleLaunchKernel(void *f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by,
                                     uint32_t bz, size_t shared, void *stream, void **parameters, void **extra,
                                     void *start, void *stop, uint32_t flags);
#define HIP_KERNEL                                                                                   \
    (const void *f, struct dim3 grid, struct dim3 block, void **parameters, size_t shared, void *stream)
HOOK result hipLaunchKernel HIP_KERNEL;
HOOK result hipLaunchKernel_spt HIP_KERNEL;
HOOK result hipExtLaunchKernel(const void *f, struct dim3 grid, struct dim3 block, void **parameters, size_t shared,
                               void *stream, void *start, void *stop, int flags);
#define HIP_COOPERATIVE                                                                              \
    (const void *f, struct dim3 grid, struct dim3 block, void **parameters, unsigned shared, void *stream)
HOOK result hipLaunchCooperativeKernel HIP_COOPERATIVE;
HOOK result hipLaunchCooperativeKernel_spt HIP_COOPERATIVE;
HOOK result hipGraphLaunch(void *graph, void *stream);
HOOK result hipGraphLaunch_spt(void *graph, void *stream);

#define HIP_LAUNCH_ROWS(X)                                                   \
    X(hipModuleLaunchKernel, "hipModuleLaunchKernel")                        \
    X(hipModuleLaunchCooperativeKernel, "hipModuleLaunchCooperativeKernel")  \
    X(hipExtModuleLaunchKernel, "hipExtModuleLaunchKernel")                  \
    X(hipLaunchKernel, "hipLaunchKernel")                                    \
    X(hipLaunchKernel_spt, "hipLaunchKernel_spt")                            \
    X(hipExtLaunchKernel, "hipExtLaunchKernel")                              \
    X(hipLaunchCooperativeKernel, "hipLaunchCooperativeKernel")              \
    X(hipLaunchCooperativeKernel_spt, "hipLaunchCooperativeKernel_spt")      \
    X(hipGraphLaunch, "hipGraphLaunch")                                      \
    X(hipGraphLaunch_spt, "hipGraphLaunch_spt")

#define HIP_ROWS(X) HIP_MEMORY_ROWS(X) HIP_LAUNCH_ROWS(X)

#define HIP_INDEX(function, base) ROW_##function,
enum { HIP_ROWS(HIP_INDEX) ROW_COUNT };

extern struct guard_row hip_rows[ROW_COUNT];

#define REAL(function) ((__typeof__(&function))guard_real(&guard_hip, &hip_rows[ROW_##function]))

#define HIP_NEEDS(returns, name, ...) GUARD_NEEDS(guard_hip, returns, name, __VA_ARGS__)

/* The HIP runtime may call its own exported functions, which come back here (seen on ROCm 7). What the
 * runtime does for itself inside a call is part of that call and is not counted twice. */
extern _Thread_local int hip_inside;

/* A hook passes through outside of a slice, and where the runtime calls itself; what follows is its body in a
 * slice, in which every call of the runtime's is its own. */
#define HIP_HOOK(name, parameters, arguments)                                                        \
    static result name##_held parameters;                                                            \
    result name parameters {                                                                         \
        if (REAL(name) == NULL) return NOT_INITIALIZED;                                              \
        if (hip_inside > 0 || !slice_active()) return REAL(name) arguments;                          \
        hip_inside++;                                                                                \
        result outcome = name##_held arguments;                                                      \
        hip_inside--;                                                                                \
        return outcome;                                                                              \
    }                                                                                                \
    static result name##_held parameters

/* ---- what the parts share ---------------------------------------------------------------------- */

result hip_current_device(int *out);

/* The slice's device behind an ordinal. The visible ones are the slice's, in order; of a card that is
 * partitioned, each partition has an ordinal, whether the slice has them one by one or the whole card. */
unsigned hip_device(int ordinal);

/* Which of the slice's devices a call that allocates is on, and the note by which its reset ends it; false: the
 * runtime will say what is wrong. */
bool hip_here(unsigned *on, uint64_t *note);

/* What an allocation that the slice has no room for gives, also as the thread's last error. */
result hip_refusal(void);

/* The slice's device of a location; -1: it is not device memory. */
int hip_located(struct location where);

/* A launch or upload of a graph, around `launch`: the memory of its nodes. */
result hip_graph_run(void *graph, void *stream, result (*launch)(void *graph, void *stream));

/* A device was reset: what its pools and its graphs have is gone. */
void hip_pools_reset(unsigned on);

#endif
