/* Who uses a device. */
#include <string.h>

#include "nvml_call.h"
#include "timeline.h"

/* Asked with too little room, the library says how much it needs and writes nothing. */
static nvmlReturn_t running(nvmlDevice_t handle, unsigned *count,
                            struct emulator_process list[HAL_LEDGER_SLOTS], const void *out) {
    struct nvml_mig mig;
    TRY(nvml_ready());
    CHECK(count != NULL && (*count == 0 || out != NULL));
    unsigned room = *count;
    *count = 0;
    if (nvml_mig_of(handle, &mig)) return NVML_SUCCESS; /* no program can run on it here */
    FIND(handle);
    *count = emulator_processes(nvml_index(d), list, HAL_LEDGER_SLOTS);
    return *count > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static nvmlReturn_t compute(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_v2_t *out) {
    struct emulator_process list[HAL_LEDGER_SLOTS];
    TRY(running(handle, count, list, out));
    for (unsigned i = 0; i < *count; i++)
        out[i] = (nvmlProcessInfo_v2_t){(unsigned)list[i].pid, list[i].bytes, ~0u, ~0u};
    return NVML_SUCCESS;
}
NAMED(nvmlDeviceGetComputeRunningProcesses_v3, compute,
      (nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_v2_t *out), (handle, count, out))
NAMED(nvmlDeviceGetComputeRunningProcesses_v2, compute,
      (nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_v2_t *out), (handle, count, out))

NVML nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t handle, unsigned *count,
                                          nvmlProcessInfo_v1_t *out) {
    struct emulator_process list[HAL_LEDGER_SLOTS];
    BEGIN;
    TRY(running(handle, count, list, out));
    for (unsigned i = 0; i < *count; i++)
        out[i] = (nvmlProcessInfo_v1_t){(unsigned)list[i].pid, list[i].bytes};
    return NVML_SUCCESS;
}

/* Nothing draws here and no MPS server runs: these lists are empty in every version. */
static nvmlReturn_t none(nvmlDevice_t handle, unsigned *count, const void *out) {
    struct nvml_mig mig;
    TRY(nvml_ready());
    CHECK(count != NULL && (*count == 0 || out != NULL));
    if (!nvml_mig_of(handle, &mig)) {
        FIND(handle);
    }
    *count = 0;
    return NVML_SUCCESS;
}
#define EMPTY(name)                                                                                \
    NAMED(name, none, (nvmlDevice_t handle, unsigned *count, void *out), (handle, count, out))
EMPTY(nvmlDeviceGetGraphicsRunningProcesses_v3)
EMPTY(nvmlDeviceGetGraphicsRunningProcesses_v2)
EMPTY(nvmlDeviceGetGraphicsRunningProcesses)
EMPTY(nvmlDeviceGetMPSComputeRunningProcesses_v3)
EMPTY(nvmlDeviceGetMPSComputeRunningProcesses_v2)
EMPTY(nvmlDeviceGetMPSComputeRunningProcesses)

/* One sample of each living process, now: what it had of the device's time in the last half second, or while
 * none has given the device any work, the work that the description tells of in equal parts. */
NVML nvmlDeviceGetProcessUtilization(nvmlDevice_t handle, nvmlProcessUtilizationSample_t *out,
                                     unsigned *count, unsigned long long since) {
    struct emulator_process list[HAL_LEDGER_SLOTS];
    DEVICE(handle);
    CHECK(count != NULL);
    (void)since;
    if (d->compute_busy_percent == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    unsigned room = out == NULL ? 0 : *count;
    unsigned users = emulator_processes(nvml_index(d), list, HAL_LEDGER_SLOTS);
    *count = users;
    if (users == 0) return NVML_ERROR_NOT_FOUND;
    if (users > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < users; i++) {
        int share = timeline_share(nvml_index(d), (int32_t)list[i].pid);
        out[i] = (nvmlProcessUtilizationSample_t){
            .pid = (unsigned)list[i].pid,
            .timeStamp = (unsigned long long)nvml_now(),
            .smUtil = share < 0 ? (unsigned)d->compute_busy_percent / users : (unsigned)(share + 5) / 10,
            .memUtil = d->memory_busy_percent == HAL_UNKNOWN
                           ? 0
                           : (unsigned)d->memory_busy_percent / users,
        };
    }
    return NVML_SUCCESS;
}
