/* Memory limits of control groups, which NVML has since 615 and sets for root only. */
#include <stdlib.h>
#include <unistd.h>

#include "hold.h"
#include "nvml_call.h"

enum { SINCE = 615 };

static bool too_old(void) { return atoi(emulator_machine()->nvidia_driver) < SINCE; }

NVML nvmlDeviceSetMemoryLimits_v1(nvmlDevice_t handle, const nvmlSetMemoryLimits_v1_t *limits) {
    struct nvml_mig mig;
    BEGIN;
    TRY(nvml_ready());
    if (too_old()) return NVML_ERROR_FUNCTION_NOT_FOUND;
    if (nvml_mig_of(handle, &mig)) return NVML_ERROR_NOT_SUPPORTED;
    FIND(handle);
    CHECK(limits != NULL && limits->nameSpace != NULL && limits->softLimit <= limits->hardLimit);
    if (geteuid() != 0) return NVML_ERROR_NO_PERMISSION;
    if (access(limits->nameSpace, F_OK) != 0) return NVML_ERROR_INVALID_ARGUMENT;
    return hold_set(nvml_index(d), limits->nameSpace, limits->softLimit, limits->hardLimit)
               ? NVML_SUCCESS
               : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

NVML nvmlDeviceGetMemoryLimits_v1(nvmlDevice_t handle, nvmlGetMemoryLimits_v1_t *limits) {
    struct nvml_mig mig;
    uint64_t soft, hard, used;
    BEGIN;
    TRY(nvml_ready());
    if (too_old()) return NVML_ERROR_FUNCTION_NOT_FOUND;
    if (nvml_mig_of(handle, &mig)) return NVML_ERROR_NOT_SUPPORTED;
    FIND(handle);
    CHECK(limits != NULL && limits->nameSpace != NULL);
    if (!hold_get(nvml_index(d), limits->nameSpace, &soft, &hard, &used)) return NVML_ERROR_NOT_FOUND;
    limits->softLimit = soft;
    limits->hardLimit = hard;
    limits->currentUsed = used;
    return NVML_SUCCESS;
}
