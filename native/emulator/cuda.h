/* The part of the CUDA driver's binary interface that the stand-in speaks.
 *
 * Names and numbers are those of the toolkit's cuda.h, the versions in CUDA_ENTRY_POINTS those of
 * its cudaTypedefs.h (13.0): facts that a program is compiled against. */
#ifndef HAL_CUDA_H
#define HAL_CUDA_H

#include <stdint.h>

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct {
    char bytes[16];
} CUuuid;

/* Each result with its number and what cuGetErrorString says of it. */
#define CUDA_RESULTS(R)                                                                            \
    R(CUDA_SUCCESS, 0, "no error")                                                                 \
    R(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                             \
    R(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                \
    R(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                                       \
    R(CUDA_ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                             \
    R(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                    \
    R(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                                   \
    R(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                   \
    R(CUDA_ERROR_ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")     \
    R(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                                         \
    R(CUDA_ERROR_NOT_READY, 600, "device not ready")                                               \
    R(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709, "context is destroyed")                                \
    R(CUDA_ERROR_NOT_SUPPORTED, 801, "operation not supported")                                    \
    R(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing") \
    R(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture") \
    R(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906, "operation would make the legacy stream depend on a capturing blocking stream") \
    R(CUDA_ERROR_CAPTURED_EVENT, 907, "operation not permitted on an event last recorded in a capturing stream") \
    R(CUDA_ERROR_UNKNOWN, 999, "unknown error")

#define CUDA_RESULT(name, number, text) name = number,
typedef enum { CUDA_RESULTS(CUDA_RESULT) } CUresult;
#undef CUDA_RESULT

typedef enum {
    CU_DEVICE_ATTRIBUTE_WARP_SIZE = 10,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_MODE = 20,
    CU_DEVICE_ATTRIBUTE_PCI_BUS_ID = 33,
    CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID = 34,
    CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING = 41,
    CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID = 50,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID = 134,
    CU_DEVICE_ATTRIBUTE_GPU_PCI_DEVICE_ID = 139,    /* device id above, vendor id below */
    CU_DEVICE_ATTRIBUTE_GPU_PCI_SUBSYSTEM_ID = 140, /* likewise */
} CUdevice_attribute;

enum {
    CU_GET_PROC_ADDRESS_DEFAULT = 0,
    CU_GET_PROC_ADDRESS_LEGACY_STREAM = 1,
    CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM = 2,
};

typedef enum {
    CU_GET_PROC_ADDRESS_SUCCESS = 0,
    CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND = 1,
    CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT = 2,
} CUdriverProcAddressQueryResult;

/* Every function: the name that cuGetProcAddress knows, the CUDA version from which that name means
 * this function, and the function's own name. The forms of one name stand in rising order. */
#define CUDA_ENTRY_POINTS(E)                                                                       \
    E(cuInit, 2000, cuInit)                                                                        \
    E(cuDriverGetVersion, 2020, cuDriverGetVersion)                                                \
    E(cuDeviceGet, 2000, cuDeviceGet)                                                              \
    E(cuDeviceGetCount, 2000, cuDeviceGetCount)                                                    \
    E(cuDeviceGetName, 2000, cuDeviceGetName)                                                      \
    E(cuDeviceGetUuid, 9020, cuDeviceGetUuid)                                                      \
    E(cuDeviceGetUuid, 11040, cuDeviceGetUuid_v2)                                                  \
    E(cuDeviceGetAttribute, 2000, cuDeviceGetAttribute)                                            \
    E(cuDeviceGetPCIBusId, 4010, cuDeviceGetPCIBusId)                                              \
    E(cuDevicePrimaryCtxRetain, 7000, cuDevicePrimaryCtxRetain)                                    \
    E(cuDevicePrimaryCtxRelease, 7000, cuDevicePrimaryCtxRelease)                                  \
    E(cuDevicePrimaryCtxRelease, 11000, cuDevicePrimaryCtxRelease_v2)                              \
    E(cuDevicePrimaryCtxReset, 7000, cuDevicePrimaryCtxReset)                                      \
    E(cuDevicePrimaryCtxReset, 11000, cuDevicePrimaryCtxReset_v2)                                  \
    E(cuDevicePrimaryCtxGetState, 7000, cuDevicePrimaryCtxGetState)                                \
    E(cuCtxCreate, 2000, cuCtxCreate)                                                              \
    E(cuCtxCreate, 3020, cuCtxCreate_v2)                                                           \
    E(cuCtxCreate, 11040, cuCtxCreate_v3)                                                          \
    E(cuCtxCreate, 12050, cuCtxCreate_v4)                                                          \
    E(cuCtxDestroy, 2000, cuCtxDestroy)                                                            \
    E(cuCtxDestroy, 4000, cuCtxDestroy_v2)                                                         \
    E(cuCtxSetCurrent, 4000, cuCtxSetCurrent)                                                      \
    E(cuCtxGetCurrent, 4000, cuCtxGetCurrent)                                                      \
    E(cuCtxPushCurrent, 2000, cuCtxPushCurrent)                                                    \
    E(cuCtxPushCurrent, 4000, cuCtxPushCurrent_v2)                                                 \
    E(cuCtxPopCurrent, 2000, cuCtxPopCurrent)                                                      \
    E(cuCtxPopCurrent, 4000, cuCtxPopCurrent_v2)                                                   \
    E(cuCtxGetDevice, 2000, cuCtxGetDevice)                                                        \
    E(cuCtxGetDevice, 13000, cuCtxGetDevice_v2)                                                    \
    E(cuCtxSynchronize, 2000, cuCtxSynchronize)                                                    \
    E(cuCtxSynchronize, 13000, cuCtxSynchronize_v2)                                                \
    E(cuGetErrorName, 6000, cuGetErrorName)                                                        \
    E(cuGetErrorString, 6000, cuGetErrorString)

#endif
