#include "nvml_branch.h"

#include <stdlib.h>
#include <string.h>

#include "emulator.h"

bool nvml_is_old;
uint32_t nvml_fields = UINT32_MAX;
static int branch;

/* The first branch that has a function, by the headers of the CUDA toolkits: 11.6 came with 510, 12.0
 * with 525, 12.2 with 535, 12.3 with 545, 12.4 with 550, 12.7 with 565, 12.8 with 570. */
#define NVML_SINCE(X)                                                                              \
    X(nvmlDeviceGetMemoryInfo_v2, 510)                                                             \
    X(nvmlDeviceGetComputeRunningProcesses_v3, 510)                                                \
    X(nvmlDeviceGetGraphicsRunningProcesses_v3, 510)                                               \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v3, 510)                                             \
    X(nvmlDeviceGetGpuInstanceProfileInfoV, 510)                                                   \
    X(nvmlGpuInstanceGetComputeInstanceProfileInfoV, 510)                                          \
    X(nvmlDeviceGetNumGpuCores, 510)                                                               \
    X(nvmlDeviceGetNumFans, 510)                                                                   \
    X(nvmlDeviceGetDefaultEccMode, 510)                                                            \
    X(nvmlDeviceGetMemoryBusWidth, 510)                                                            \
    X(nvmlDeviceGetPcieLinkMaxSpeed, 510)                                                          \
    X(nvmlDeviceGetPowerSource, 510)                                                               \
    X(nvmlGpmMetricsGet, 525)                                                                      \
    X(nvmlGpmMigSampleGet, 525)                                                                    \
    X(nvmlGpmQueryDeviceSupport, 525)                                                              \
    X(nvmlGpmSampleAlloc, 525)                                                                     \
    X(nvmlGpmSampleFree, 525)                                                                      \
    X(nvmlGpmSampleGet, 525)                                                                       \
    X(nvmlDeviceGetCurrentClocksEventReasons, 535)                                                 \
    X(nvmlDeviceGetSupportedClocksEventReasons, 535)                                               \
    X(nvmlDeviceGetRunningProcessDetailList, 535)                                                  \
    X(nvmlDeviceSetPowerManagementLimit_v2, 535)                                                   \
    X(nvmlDeviceGetJpgUtilization, 545)                                                            \
    X(nvmlDeviceGetOfaUtilization, 545)                                                            \
    X(nvmlDeviceGetProcessesUtilizationInfo, 550)                                                  \
    X(nvmlDeviceGetFanSpeedRPM, 565)                                                               \
    X(nvmlDeviceGetGpuInstanceProfileInfoByIdV, 570)                                               \
    X(nvmlDeviceGetTemperatureV, 570)

static const struct {
    const char *function;
    int branch;
} since[] = {
#define SINCE(function, branch) {#function, branch},
    NVML_SINCE(SINCE)};

/* NVML_FI_MAX of the newest header that a branch knows. */
static const struct {
    int before;
    uint32_t fields;
} fields[] = {{525, 161}, {530, 184}, {545, 197}, {570, 226}};

const char *nvml_driver(void) {
    const char *asked = getenv("HAL_EMULATOR_NVIDIA_DRIVER");
    return asked != NULL && *asked != 0 ? asked : emulator_machine()->nvidia_driver;
}

void nvml_find_branch(void) {
    branch = atoi(nvml_driver());
    nvml_is_old = branch > 0 && branch < 570;
    for (size_t i = sizeof fields / sizeof *fields; i-- > 0;)
        if (nvml_is_old && branch < fields[i].before) nvml_fields = fields[i].fields;
}

bool nvml_is_missing(const char *function) {
    for (size_t i = 0; i < sizeof since / sizeof *since; i++)
        if (branch < since[i].branch && strcmp(since[i].function, function) == 0) return true;
    return false;
}
