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

HOOK result hipMalloc(void **out, size_t bytes);
HOOK result hipFree(void *address);
HOOK result hipMemGetInfo(size_t *free_bytes, size_t *total_bytes);
HOOK result hipGetProcAddress(const char *name, void **out, int version, uint64_t flags, int *status);

#define HIP_MEMORY_ROWS(X)            \
    X(hipMalloc, "hipMalloc")         \
    X(hipFree, "hipFree")             \
    X(hipMemGetInfo, "hipMemGetInfo") \
    X(hipGetProcAddress, "hipGetProcAddress")

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

/* The HIP runtime may call its own exported functions, which come back here (seen on ROCm 7). What the
 * runtime does for itself inside a call is part of that call and is not counted twice. */
extern _Thread_local int hip_inside;

result hip_current_device(int *out);

#endif
