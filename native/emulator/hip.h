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
    X(hipErrorNotSupported, 801, "not supported") \
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

/* Every function that there is: result, name, parameters. */
#define HIP_FUNCTIONS(X) \
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
    X(hipError_t, hipMalloc, (void **address, size_t bytes)) \
    X(hipError_t, hipFree, (void *address)) \
    X(hipError_t, hipMemGetInfo, (size_t *available, size_t *total)) \
    X(const char *, hipGetErrorName, (hipError_t error)) \
    X(const char *, hipGetErrorString, (hipError_t error)) \
    X(hipError_t, hipGetLastError, (void)) \
    X(hipError_t, hipPeekAtLastError, (void)) \
    X(hipError_t, hipGetProcAddress, \
      (const char *name, void **function, int version, uint64_t flags, \
       hipDriverProcAddressQueryResult *found))

#endif
