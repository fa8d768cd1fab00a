/* The part of HIP's ABI that the stand-in answers: values of hip_runtime_api.h in ROCm 6 and 7. */
#ifndef HAL_EMULATOR_HIP_H
#define HAL_EMULATOR_HIP_H

#include <stddef.h>
#include <stdint.h>

/* name, value, text */
#define HIP_ERRORS(X) \
    X(hipSuccess, 0, "no error") \
    X(hipErrorInvalidValue, 1, "invalid argument") \
    X(hipErrorOutOfMemory, 2, "out of memory") \
    X(hipErrorNotInitialized, 3, "not initialized") \
    X(hipErrorNoDevice, 100, "no device is visible") \
    X(hipErrorInvalidDevice, 101, "invalid device ordinal") \
    X(hipErrorInvalidContext, 201, "invalid device context") \
    X(hipErrorInvalidHandle, 400, "invalid resource handle") \
    X(hipErrorIllegalState, 401, "the operation cannot be performed in the present state") \
    X(hipErrorNotFound, 500, "named symbol not found") \
    X(hipErrorNotReady, 600, "device not ready") \
    X(hipErrorNotSupported, 801, "not supported") \
    X(hipErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing") \
    X(hipErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture") \
    X(hipErrorStreamCaptureImplicit, 906, "operation would make the legacy stream depend on a capturing stream") \
    X(hipErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream") \
    X(hipErrorUnknown, 999, "unknown error")

#define HIP_ERROR_VALUE(name, value, text) name = value,
typedef enum { HIP_ERRORS(HIP_ERROR_VALUE) } hipError_t;

typedef enum {
    hipDeviceAttributeIntegrated = 16,
    hipDeviceAttributeComputeCapabilityMajor = 23,
    hipDeviceAttributeComputeCapabilityMinor = 61,
    hipDeviceAttributeMultiprocessorCount = 63,
    hipDeviceAttributePciBusId = 67,
    hipDeviceAttributePciDeviceId = 68,
    hipDeviceAttributePciDomainID = 69,
    hipDeviceAttributeWarpSize = 87,
} hipDeviceAttribute_t;

typedef enum {
    HIP_GET_PROC_ADDRESS_SUCCESS = 0,
    HIP_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND = 1,
} hipDriverProcAddressQueryResult;

typedef int hipDevice_t;

/* The 16 hexadecimal digits of the card's unique id, as text and without an end. */
typedef struct {
    char bytes[16];
} hipUUID;

typedef struct ihipModule_t *hipModule_t;
typedef struct ihipModuleSymbol_t *hipFunction_t;
typedef struct ihipStream_t *hipStream_t;
typedef struct ihipEvent_t *hipEvent_t;
typedef struct ihipGraph *hipGraph_t;
typedef struct hipGraphExec *hipGraphExec_t;
typedef struct {
    uint32_t x, y, z;
} dim3;

typedef enum {
    hipStreamCaptureModeGlobal,
    hipStreamCaptureModeThreadLocal,
    hipStreamCaptureModeRelaxed,
} hipStreamCaptureMode;
typedef enum {
    hipStreamCaptureStatusNone,
    hipStreamCaptureStatusActive,
    hipStreamCaptureStatusInvalidated,
} hipStreamCaptureStatus;
enum { hipEventDisableTiming = 2 };

#include "hip_memory.h"

/* Modules, streams, events, launches, capture: hip_launch.c. */
#define HIP_LAUNCH_FUNCTIONS(X) \
    X(hipError_t, hipModuleLoadData, (hipModule_t *module, const void *image)) \
    X(hipError_t, hipModuleUnload, (hipModule_t module)) \
    X(hipError_t, hipModuleGetFunction, (hipFunction_t *function, hipModule_t module, const char *name)) \
    X(hipError_t, hipStreamCreate, (hipStream_t *stream)) \
    X(hipError_t, hipStreamCreateWithFlags, (hipStream_t *stream, unsigned flags)) \
    X(hipError_t, hipStreamCreateWithPriority, (hipStream_t *stream, unsigned flags, int priority)) \
    X(hipError_t, hipStreamDestroy, (hipStream_t stream)) \
    X(hipError_t, hipStreamGetDevice, (hipStream_t stream, hipDevice_t *device)) \
    X(hipError_t, hipStreamSynchronize, (hipStream_t stream)) \
    X(hipError_t, hipStreamSynchronize_spt, (hipStream_t stream)) \
    X(hipError_t, hipStreamQuery, (hipStream_t stream)) \
    X(hipError_t, hipStreamWaitEvent, (hipStream_t stream, hipEvent_t event, unsigned flags)) \
    X(hipError_t, hipStreamBeginCapture, (hipStream_t stream, hipStreamCaptureMode mode)) \
    X(hipError_t, hipStreamEndCapture, (hipStream_t stream, hipGraph_t *graph)) \
    X(hipError_t, hipStreamIsCapturing, (hipStream_t stream, hipStreamCaptureStatus *status)) \
    X(hipError_t, hipThreadExchangeStreamCaptureMode, (hipStreamCaptureMode *mode)) \
    X(hipError_t, hipEventCreate, (hipEvent_t *event)) \
    X(hipError_t, hipEventCreateWithFlags, (hipEvent_t *event, unsigned flags)) \
    X(hipError_t, hipEventDestroy, (hipEvent_t event)) \
    X(hipError_t, hipEventRecord, (hipEvent_t event, hipStream_t stream)) \
    X(hipError_t, hipEventQuery, (hipEvent_t event)) \
    X(hipError_t, hipEventSynchronize, (hipEvent_t event)) \
    X(hipError_t, hipEventElapsedTime, (float *ms, hipEvent_t from, hipEvent_t to)) \
    X(hipError_t, hipModuleLaunchKernel, \
      (hipFunction_t f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, \
       unsigned shared, hipStream_t stream, void **parameters, void **extra)) \
    X(hipError_t, hipModuleLaunchCooperativeKernel, \
      (hipFunction_t f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, \
       unsigned shared, hipStream_t stream, void **parameters)) \
    X(hipError_t, hipExtModuleLaunchKernel, \
      (hipFunction_t f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz, \
       size_t shared, hipStream_t stream, void **parameters, void **extra, hipEvent_t start, \
       hipEvent_t stop, uint32_t flags)) \
    X(hipError_t, hipLaunchKernel, \
      (const void *f, dim3 grid, dim3 block, void **parameters, size_t shared, hipStream_t stream)) \
    X(hipError_t, hipLaunchKernel_spt, \
      (const void *f, dim3 grid, dim3 block, void **parameters, size_t shared, hipStream_t stream)) \
    X(hipError_t, hipExtLaunchKernel, \
      (const void *f, dim3 grid, dim3 block, void **parameters, size_t shared, hipStream_t stream, \
       hipEvent_t start, hipEvent_t stop, int flags)) \
    X(hipError_t, hipLaunchCooperativeKernel, \
      (const void *f, dim3 grid, dim3 block, void **parameters, unsigned shared, hipStream_t stream)) \
    X(hipError_t, hipLaunchCooperativeKernel_spt, \
      (const void *f, dim3 grid, dim3 block, void **parameters, uint32_t shared, hipStream_t stream)) \
    X(hipError_t, hipGraphLaunch, (hipGraphExec_t graph, hipStream_t stream)) \
    X(hipError_t, hipGraphLaunch_spt, (hipGraphExec_t graph, hipStream_t stream))

/* Every function that there is: result, name, parameters. */
#define HIP_FUNCTIONS(X) \
    HIP_LAUNCH_FUNCTIONS(X) HIP_MEMORY_FUNCTIONS(X) \
    X(hipError_t, hipInit, (unsigned flags)) \
    X(hipError_t, hipDriverGetVersion, (int *version)) \
    X(hipError_t, hipRuntimeGetVersion, (int *version)) \
    X(hipError_t, hipGetDeviceCount, (int *number)) \
    X(hipError_t, hipSetDevice, (int ordinal)) \
    X(hipError_t, hipGetDevice, (int *ordinal)) \
    X(hipError_t, hipDeviceGet, (hipDevice_t *device, int ordinal)) \
    X(hipError_t, hipDeviceGetName, (char *name, int length, hipDevice_t device)) \
    X(hipError_t, hipDeviceGetUuid, (hipUUID *uuid, hipDevice_t device)) \
    X(hipError_t, hipDeviceGetPCIBusId, (char *id, int length, int ordinal)) \
    X(hipError_t, hipDeviceTotalMem, (size_t *bytes, hipDevice_t device)) \
    X(hipError_t, hipDeviceGetAttribute, (int *value, hipDeviceAttribute_t which, int ordinal)) \
    X(hipError_t, hipDeviceSynchronize, (void)) \
    X(hipError_t, hipCtxSynchronize, (void)) \
    X(hipError_t, hipGetDeviceProperties, (void *properties, int ordinal)) \
    X(hipError_t, hipGetDevicePropertiesR0000, (void *properties, int ordinal)) \
    X(hipError_t, hipGetDevicePropertiesR0600, (void *properties, int ordinal)) \
    X(const char *, hipGetErrorName, (hipError_t error)) \
    X(const char *, hipGetErrorString, (hipError_t error)) \
    X(hipError_t, hipGetLastError, (void)) \
    X(hipError_t, hipPeekAtLastError, (void)) \
    X(hipError_t, hipGetProcAddress, \
      (const char *name, void **function, int version, uint64_t flags, \
       hipDriverProcAddressQueryResult *found))

#endif
