/* What can be set. Everybody may here; to have it denied, ask for a fault of 4. */
#include <string.h>

#include "nvml_call.h"

static struct hal_machine_device *changed(const struct hal_machine_device *d) {
    return emulator_device(nvml_index(d));
}

/* ---- power and clocks ------------------------------------------------------------------------ */

static nvmlReturn_t set_power_limit(nvmlDevice_t handle, unsigned milliwatts) {
    FIND(handle);
    if (d->power_min_milliwatts == HAL_UNKNOWN || d->power_max_milliwatts == HAL_UNKNOWN)
        return NVML_ERROR_NOT_SUPPORTED;
    CHECK(milliwatts >= d->power_min_milliwatts && milliwatts <= d->power_max_milliwatts);
    changed(d)->power_limit_milliwatts = milliwatts;
    return NVML_SUCCESS;
}

NVML nvmlDeviceSetPowerManagementLimit(nvmlDevice_t handle, unsigned milliwatts) {
    BEGIN;
    return set_power_limit(handle, milliwatts);
}

NVML nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t handle, const nvmlPowerValue_v2_t *value) {
    BEGIN;
    TRY(nvml_ready());
    CHECK(value != NULL);
    if (value->version != nvmlPowerValue_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (value->powerScope != NVML_POWER_SCOPE_GPU) return NVML_ERROR_NOT_SUPPORTED;
    return set_power_limit(handle, value->powerValueMw);
}

NVML nvmlDeviceSetGpuLockedClocks(nvmlDevice_t handle, unsigned min, unsigned max) {
    DEVICE(handle);
    if (d->nvidia_graphics_max_megahertz == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    CHECK(min <= max && max > 0 && max <= d->nvidia_graphics_max_megahertz);
    changed(d)->nvidia_locked_graphics_min = min;
    changed(d)->nvidia_locked_graphics_max = max;
    return NVML_SUCCESS;
}

NVML nvmlDeviceResetGpuLockedClocks(nvmlDevice_t handle) {
    DEVICE(handle);
    changed(d)->nvidia_locked_graphics_min = changed(d)->nvidia_locked_graphics_max = 0;
    return NVML_SUCCESS;
}

NVML nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t handle, unsigned min, unsigned max) {
    DEVICE(handle);
    if (d->nvidia_memory_max_megahertz == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    CHECK(min <= max && max > 0 && max <= d->nvidia_memory_max_megahertz);
    changed(d)->nvidia_locked_memory_min = min;
    changed(d)->nvidia_locked_memory_max = max;
    return NVML_SUCCESS;
}

NVML nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t handle) {
    DEVICE(handle);
    changed(d)->nvidia_locked_memory_min = changed(d)->nvidia_locked_memory_max = 0;
    return NVML_SUCCESS;
}

/* ---- modes ----------------------------------------------------------------------------------- */

#define MODE(function, member, most)                                                               \
    NVML function(nvmlDevice_t handle, unsigned mode) {                                            \
        DEVICE(handle);                                                                            \
        if (d->member == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;                             \
        CHECK(mode <= (most));                                                                     \
        changed(d)->member = mode;                                                                 \
        return NVML_SUCCESS;                                                                       \
    }
MODE(nvmlDeviceSetPersistenceMode, nvidia_persistence, NVML_FEATURE_ENABLED)
MODE(nvmlDeviceSetComputeMode, nvidia_compute_mode, NVML_COMPUTEMODE_COUNT - 1)

NVML nvmlDeviceSetEccMode(nvmlDevice_t handle, unsigned mode) { /* after the next reset */
    DEVICE(handle);
    if (d->nvidia_ecc == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    CHECK(mode <= NVML_FEATURE_ENABLED);
    changed(d)->nvidia_ecc_pending = mode;
    return NVML_SUCCESS;
}

static void clear(int64_t *figure) {
    if (*figure != HAL_UNKNOWN) *figure = 0;
}

static void clear_volatile(struct hal_machine_device *d) {
    clear(&d->nvidia_dram_corrected);
    clear(&d->nvidia_dram_uncorrected);
    clear(&d->nvidia_sram_corrected);
    clear(&d->nvidia_sram_uncorrected);
}

NVML nvmlDeviceClearEccErrorCounts(nvmlDevice_t handle, unsigned counter) {
    DEVICE(handle);
    CHECK(counter < NVML_ECC_COUNTER_TYPE_COUNT);
    if (d->nvidia_ecc != 1) return NVML_ERROR_NOT_SUPPORTED;
    struct hal_machine_device *own = changed(d);
    if (counter == NVML_VOLATILE_ECC) {
        clear_volatile(own);
        return NVML_SUCCESS;
    }
    clear(&own->nvidia_dram_corrected_ever);
    clear(&own->nvidia_dram_uncorrected_ever);
    clear(&own->nvidia_sram_corrected_ever);
    clear(&own->nvidia_sram_uncorrected_ever);
    return NVML_SUCCESS;
}

/* ---- on demand ------------------------------------------------------------------------------- */

/* What a reset of the GPU does, which NVML has no call for: it is found again, and modes that waited
 * take effect. 0, or -1 when the machine has no such device. */
EMULATOR_EXPORT int hal_emulator_reset(unsigned index) {
    if (emulator_machine() == NULL || index >= emulator_machine()->devices) return -1;
    struct hal_machine_device *d = emulator_device(index);
    d->nvidia_lost = 0;
    d->nvidia_locked_graphics_min = d->nvidia_locked_graphics_max = 0;
    d->nvidia_locked_memory_min = d->nvidia_locked_memory_max = 0;
    if (d->nvidia_ecc_pending != HAL_UNKNOWN) d->nvidia_ecc = d->nvidia_ecc_pending;
    d->nvidia_ecc_pending = HAL_UNKNOWN;
    d->nvidia_mig = d->nvidia_mig_pending;
    memset(d->nvidia_partition, 0, sizeof d->nvidia_partition);
    clear_volatile(d);
    return 0;
}

/* An event of a device (type 0: an XID), as if the hardware had reported it. */
EMULATOR_EXPORT int hal_emulator_event(unsigned index, uint64_t type, uint32_t data) {
    if (emulator_machine() == NULL || index >= emulator_machine()->devices) return -1;
    nvml_event(emulator_device(index), type, data);
    return 0;
}
