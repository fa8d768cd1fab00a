/* The hooked functions of the CUDA driver API, one row each. Types and codes as cuda.h of CUDA 12 and 13 has
 * them. */
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

HOOK result cuMemAlloc_v2(pointer *out, size_t bytes);
HOOK result cuMemFree_v2(pointer address);
HOOK result cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes);
HOOK result cuGetProcAddress(const char *name, void **out, int version, uint64_t flags);
HOOK result cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status);

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

/* Function, the name that cuGetProcAddress knows, and the version from which that name means this function. */
#define CUDA_MEMORY_ROWS(X)                          \
    X(cuMemAlloc_v2, "cuMemAlloc", 3020)             \
    X(cuMemFree_v2, "cuMemFree", 3020)               \
    X(cuMemGetInfo_v2, "cuMemGetInfo", 3020)         \
    X(cuGetProcAddress, "cuGetProcAddress", 11030)   \
    X(cuGetProcAddress_v2, "cuGetProcAddress", 12000)

#define CUDA_LAUNCH_ROWS(X)                                               \
    X(cuLaunchKernel, "cuLaunchKernel", 4000)                             \
    X(cuLaunchKernel_ptsz, "", 7000)                                      \
    X(cuLaunchCooperativeKernel, "cuLaunchCooperativeKernel", 9000)       \
    X(cuLaunchCooperativeKernel_ptsz, "", 9000)                           \
    X(cuLaunchKernelEx, "cuLaunchKernelEx", 11060)                        \
    X(cuLaunchKernelEx_ptsz, "", 11060)                                   \
    X(cuGraphLaunch, "cuGraphLaunch", 10000)                              \
    X(cuGraphLaunch_ptsz, "", 10000)                                      \
    X(cuLaunch, "cuLaunch", 2000)                                         \
    X(cuLaunchGrid, "cuLaunchGrid", 2000)                                 \
    X(cuLaunchGridAsync, "cuLaunchGridAsync", 2000)

#define CUDA_ROWS(X) CUDA_MEMORY_ROWS(X) CUDA_LAUNCH_ROWS(X)

#define CUDA_INDEX(function, base, since) ROW_##function,
enum { CUDA_ROWS(CUDA_INDEX) ROW_COUNT };

extern struct guard_row cuda_rows[ROW_COUNT];

/* The driver's own function, typed as its hook; a call that never had a driver is not initialized. */
#define REAL(function) ((__typeof__(&function))guard_real(&guard_cuda, &cuda_rows[ROW_##function]))

/* Which of the slice's devices the caller is on: the visible ones are the slice's, in order. */
result cuda_current_device(device *out);

#endif
