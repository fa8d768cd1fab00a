/* The part of NVML's binary interface that the stand-in speaks.
 *
 * Written from the layouts and values that the Python package nvidia-ml-py (pynvml.py) declares in
 * ctypes; tests/unit/test_nvml_layout.py holds the two against each other. */
#ifndef HAL_NVML_H
#define HAL_NVML_H

#include <stdint.h>

typedef struct nvmlDevice_st *nvmlDevice_t;

/* Each result with its number and what nvmlErrorString says of it. */
#define NVML_RESULTS(R)                                                                            \
    R(NVML_SUCCESS, 0, "Success")                                                                  \
    R(NVML_ERROR_UNINITIALIZED, 1, "Uninitialized")                                                \
    R(NVML_ERROR_INVALID_ARGUMENT, 2, "Invalid Argument")                                          \
    R(NVML_ERROR_NOT_SUPPORTED, 3, "Not Supported")                                                \
    R(NVML_ERROR_NO_PERMISSION, 4, "Insufficient Permissions")                                     \
    R(NVML_ERROR_ALREADY_INITIALIZED, 5, "Already Initialized")                                    \
    R(NVML_ERROR_NOT_FOUND, 6, "Not Found")                                                        \
    R(NVML_ERROR_INSUFFICIENT_SIZE, 7, "Insufficient Size")                                        \
    R(NVML_ERROR_INSUFFICIENT_POWER, 8, "Insufficient External Power")                             \
    R(NVML_ERROR_DRIVER_NOT_LOADED, 9, "Driver Not Loaded")                                        \
    R(NVML_ERROR_TIMEOUT, 10, "Timeout")                                                           \
    R(NVML_ERROR_IRQ_ISSUE, 11, "Interrupt Request Issue")                                         \
    R(NVML_ERROR_LIBRARY_NOT_FOUND, 12, "NVML Shared Library Not Found")                           \
    R(NVML_ERROR_FUNCTION_NOT_FOUND, 13, "Function Not Found")                                     \
    R(NVML_ERROR_CORRUPTED_INFOROM, 14, "Corrupted infoROM")                                       \
    R(NVML_ERROR_GPU_IS_LOST, 15, "GPU is lost")                                                   \
    R(NVML_ERROR_RESET_REQUIRED, 16, "GPU requires reset")                                         \
    R(NVML_ERROR_OPERATING_SYSTEM, 17, "GPU access blocked by the operating system")               \
    R(NVML_ERROR_LIB_RM_VERSION_MISMATCH, 18, "Driver/library version mismatch")                   \
    R(NVML_ERROR_IN_USE, 19, "In use by another client")                                           \
    R(NVML_ERROR_MEMORY, 20, "Insufficient Memory")                                                \
    R(NVML_ERROR_NO_DATA, 21, "No data")                                                           \
    R(NVML_ERROR_INSUFFICIENT_RESOURCES, 23, "Insufficient Resources")                             \
    R(NVML_ERROR_ARGUMENT_VERSION_MISMATCH, 25, "Argument version mismatch")                       \
    R(NVML_ERROR_UNKNOWN, 999, "Unknown Error")

#define NVML_RESULT(name, number, text) name = number,
typedef enum { NVML_RESULTS(NVML_RESULT) } nvmlReturn_t;
#undef NVML_RESULT

enum {
    NVML_BRAND_UNKNOWN = 0,
    NVML_BRAND_QUADRO = 1,
    NVML_BRAND_TESLA = 2,
    NVML_BRAND_GEFORCE = 5,
    NVML_BRAND_TITAN = 6,
    NVML_BRAND_QUADRO_RTX = 12,
    NVML_BRAND_NVIDIA_RTX = 13,
    NVML_BRAND_NVIDIA = 14,
};

#define NVML_DEVICE_ARCH_UNKNOWN UINT32_C(0xffffffff)
enum {
    NVML_DEVICE_ARCH_KEPLER = 2,
    NVML_DEVICE_ARCH_MAXWELL = 3,
    NVML_DEVICE_ARCH_PASCAL = 4,
    NVML_DEVICE_ARCH_VOLTA = 5,
    NVML_DEVICE_ARCH_TURING = 6,
    NVML_DEVICE_ARCH_AMPERE = 7,
    NVML_DEVICE_ARCH_ADA = 8,
    NVML_DEVICE_ARCH_HOPPER = 9,
    NVML_DEVICE_ARCH_BLACKWELL = 10,
};

enum {
    NVML_TEMPERATURE_GPU = 0,
    NVML_TEMPERATURE_COUNT = 2,
    NVML_TEMPERATURE_THRESHOLD_SHUTDOWN = 0,
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1,
    NVML_TEMPERATURE_THRESHOLD_COUNT = 8,
    NVML_FI_DEV_MEMORY_TEMP = 82,
    NVML_VALUE_TYPE_UNSIGNED_INT = 1,
    NVML_COMPUTEMODE_DEFAULT = 0,
    NVML_PSTATE_0 = 0,
    NVML_FEATURE_DISABLED = 0,
    NVML_DEVICE_MIG_DISABLE = 0,
    NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE = 16,
    NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE = 32,
};

/* nvmlDeviceGetPciInfo and its _v2; _v3 moved the bus id to the end to make it longer. */
typedef struct {
    char busId[NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE];
    unsigned domain, bus, device;
    unsigned pciDeviceId, pciSubSystemId; /* device id in the upper half, vendor id in the lower */
    unsigned reserved0, reserved1, reserved2, reserved3;
} nvmlPciInfo_v2_t;

typedef struct {
    char busIdLegacy[NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE];
    unsigned domain, bus, device;
    unsigned pciDeviceId, pciSubSystemId;
    char busId[NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE];
} nvmlPciInfo_t;

typedef struct {
    unsigned long long total, free, used; /* used has in it what the driver reserves */
} nvmlMemory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned version;
    unsigned sensorType;
    int temperature;
} nvmlTemperature_v1_t;

typedef union {
    double dVal;
    unsigned uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
    signed long long sllVal;
    int siVal;
    unsigned short usVal;
} nvmlValue_t;

typedef struct {
    uint32_t fieldId, scopeId;
    int64_t timestamp; /* microseconds since 1970 */
    int64_t latencyUsec;
    unsigned valueType;
    unsigned nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
} nvmlProcessInfo_v1_t;

typedef struct { /* _v2 and _v3 */
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId; /* all ones without MIG */
} nvmlProcessInfo_v2_t;

/* The first word of a versioned structure: its number over its size. */
enum {
    nvmlMemory_v2 = 2 << 24 | (int)sizeof(nvmlMemory_v2_t),
    nvmlTemperature_v1 = 1 << 24 | (int)sizeof(nvmlTemperature_v1_t),
};

#endif
