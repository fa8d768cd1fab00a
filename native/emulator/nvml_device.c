/* How a device is doing: memory, activity, power, temperature, clocks, state. */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "nvml_call.h"

int64_t nvml_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t nvml_energy(const struct hal_machine_device *d) {
    struct timespec t;
    if (d->power_milliwatts == HAL_UNKNOWN) return HAL_UNKNOWN;
    clock_gettime(CLOCK_BOOTTIME, &t);
    int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    return (now - (int64_t)emulator_machine()->created) / 1000000 * d->power_milliwatts / 1000;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static nvmlReturn_t memory(nvmlDevice_t handle, nvmlMemory_v2_t *out) {
    struct nvml_mig mig;
    TRY(nvml_ready());
    if (nvml_mig_of(handle, &mig)) { /* no program can run on it here */
        out->total = out->free = nvml_mig_bytes(&mig);
        out->reserved = out->used = 0;
        return NVML_SUCCESS;
    }
    FIND(handle);
    out->total = d->memory_bytes;
    out->reserved = d->memory_reserved_bytes;
    out->used = emulator_used(nvml_index(d));
    out->free = out->total - out->reserved - out->used;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, nvmlMemory_v2_t *out) {
    READY;
    CHECK(out != NULL);
    if (out->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return memory(handle, out);
}

NVML nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *out) {
    nvmlMemory_v2_t now;
    READY;
    CHECK(out != NULL);
    TRY(memory(handle, &now));
    *out = (nvmlMemory_t){now.total, now.free, now.used + now.reserved};
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t handle, nvmlBAR1Memory_t *out) {
    struct nvml_mig mig;
    READY;
    CHECK(out != NULL);
    const struct hal_machine_device *d;
    if (nvml_mig_of(handle, &mig))
        d = mig.d;
    else
        TRY(nvml_device_of(handle, &d));
    unsigned long long total, used;
    TRY(nvml_give_wide(d->nvidia_bar1_bytes, &total));
    TRY(nvml_give_wide(d->nvidia_bar1_used_bytes, &used));
    if (d->nvidia_mig && handle != nvml_handle(d)) { /* each partition has its part */
        total = total / 8 * mig.gpu->size;
        used = 0;
    }
    *out = (nvmlBAR1Memory_t){total, total - used, used};
    return NVML_SUCCESS;
}

/* ---- activity -------------------------------------------------------------------------------- */

NVML nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t *out) {
    nvmlUtilization_t now;
    DEVICE(handle);
    CHECK(out != NULL);
    if (d->nvidia_mig) return NVML_ERROR_NOT_SUPPORTED; /* neither of the whole nor of a part */
    TRY(nvml_give(emulator_busy_percent(d), &now.gpu));
    TRY(nvml_give(d->memory_busy_percent, &now.memory));
    *out = now;
    return NVML_SUCCESS;
}

#define ENGINE(function, member)                                                                   \
    NVML function(nvmlDevice_t handle, unsigned *busy, unsigned *period) {                         \
        DEVICE(handle);                                                                            \
        CHECK(period != NULL);                                                                     \
        TRY(nvml_give(d->member, busy));                                                           \
        *period = 167000; /* microseconds: the sixth of a second that the guide names */           \
        return NVML_SUCCESS;                                                                       \
    }
ENGINE(nvmlDeviceGetEncoderUtilization, nvidia_encoder_percent)
ENGINE(nvmlDeviceGetDecoderUtilization, nvidia_decoder_percent)
ENGINE(nvmlDeviceGetJpgUtilization, nvidia_jpeg_percent)
ENGINE(nvmlDeviceGetOfaUtilization, nvidia_ofa_percent)

/* ---- power ----------------------------------------------------------------------------------- */

FIGURE(nvmlDeviceGetPowerUsage, d->power_milliwatts)
FIGURE(nvmlDeviceGetPowerManagementLimit, d->power_limit_milliwatts)
FIGURE(nvmlDeviceGetEnforcedPowerLimit, d->power_limit_milliwatts)
FIGURE(nvmlDeviceGetPowerManagementDefaultLimit, d->nvidia_power_default_milliwatts)

NVML nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t handle, unsigned *min,
                                                  unsigned *max) {
    unsigned low, high;
    DEVICE(handle);
    CHECK(min != NULL && max != NULL);
    TRY(nvml_give(d->power_min_milliwatts, &low));
    TRY(nvml_give(d->power_max_milliwatts, &high));
    *min = low;
    *max = high;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t handle, unsigned long long *millijoules) {
    DEVICE(handle);
    return nvml_give_wide(nvml_energy(d), millijoules);
}

/* ---- temperature ----------------------------------------------------------------------------- */

static int64_t temperature(const struct hal_machine_device *d, unsigned sensor) {
    return sensor == NVML_TEMPERATURE_GPU ? d->temperature_celsius : HAL_UNKNOWN;
}

NVML nvmlDeviceGetTemperature(nvmlDevice_t handle, unsigned sensor, unsigned *out) {
    DEVICE(handle);
    CHECK(sensor < NVML_TEMPERATURE_COUNT);
    return nvml_give(temperature(d, sensor), out);
}

NVML nvmlDeviceGetTemperatureV(nvmlDevice_t handle, nvmlTemperature_v1_t *out) {
    unsigned now;
    DEVICE(handle);
    CHECK(out != NULL);
    if (out->version != nvmlTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    CHECK(out->sensorType < NVML_TEMPERATURE_COUNT);
    TRY(nvml_give(temperature(d, out->sensorType), &now));
    out->temperature = (int)now;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetTemperatureThreshold(nvmlDevice_t handle, unsigned which, unsigned *out) {
    DEVICE(handle);
    CHECK(which < NVML_TEMPERATURE_THRESHOLD_COUNT);
    switch (which) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN:
        return nvml_give(d->temperature_shutdown_celsius, out);
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN:
        return nvml_give(d->temperature_slowdown_celsius, out);
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX:
        return nvml_give(d->nvidia_temperature_memory_max_celsius, out);
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX:
        return nvml_give(d->nvidia_temperature_gpu_max_celsius, out);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

FIGURE(nvmlDeviceGetFanSpeed, d->nvidia_fan_percent)
FIGURE(nvmlDeviceGetNumFans, d->nvidia_fan_percent == HAL_UNKNOWN ? 0 : 1)

NVML nvmlDeviceGetFanSpeed_v2(nvmlDevice_t handle, unsigned fan, unsigned *percent) {
    DEVICE(handle);
    if (d->nvidia_fan_percent != HAL_UNKNOWN) CHECK(fan == 0);
    return nvml_give(d->nvidia_fan_percent, percent);
}

NVML nvmlDeviceGetFanSpeedRPM(nvmlDevice_t handle, nvmlFanSpeedInfo_t *out) {
    DEVICE(handle);
    CHECK(out != NULL);
    if (out->version != nvmlFanSpeedInfo_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (d->nvidia_fan_rpm != HAL_UNKNOWN) CHECK(out->fan == 0);
    return nvml_give(d->nvidia_fan_rpm, &out->speed);
}

/* ---- clocks ---------------------------------------------------------------------------------- */

static int64_t locked(int64_t megahertz, uint32_t min, uint32_t max) {
    if (megahertz == HAL_UNKNOWN || max == 0) return megahertz;
    return megahertz < min ? min : megahertz > max ? max : megahertz;
}

static int64_t clock_now(const struct hal_machine_device *d, unsigned domain) {
    const uint32_t min = d->nvidia_locked_graphics_min, max = d->nvidia_locked_graphics_max;
    const int64_t now[NVML_CLOCK_COUNT] = {
        [NVML_CLOCK_GRAPHICS] = locked(d->nvidia_graphics_megahertz, min, max),
        [NVML_CLOCK_SM] = locked(d->nvidia_sm_megahertz, min, max),
        [NVML_CLOCK_MEM] = locked(d->nvidia_memory_megahertz, d->nvidia_locked_memory_min,
                                  d->nvidia_locked_memory_max),
        [NVML_CLOCK_VIDEO] = d->nvidia_video_megahertz,
    };
    return now[domain];
}

static int64_t clock_max(const struct hal_machine_device *d, unsigned domain) {
    const int64_t most[NVML_CLOCK_COUNT] = {
        [NVML_CLOCK_GRAPHICS] = d->nvidia_graphics_max_megahertz,
        [NVML_CLOCK_SM] = d->nvidia_sm_max_megahertz,
        [NVML_CLOCK_MEM] = d->nvidia_memory_max_megahertz,
        [NVML_CLOCK_VIDEO] = d->nvidia_video_max_megahertz,
    };
    return most[domain];
}

NVML nvmlDeviceGetClockInfo(nvmlDevice_t handle, unsigned domain, unsigned *megahertz) {
    DEVICE(handle);
    CHECK(domain < NVML_CLOCK_COUNT);
    return nvml_give(clock_now(d, domain), megahertz);
}

NVML nvmlDeviceGetMaxClockInfo(nvmlDevice_t handle, unsigned domain, unsigned *megahertz) {
    DEVICE(handle);
    CHECK(domain < NVML_CLOCK_COUNT);
    return nvml_give(clock_max(d, domain), megahertz);
}

NVML nvmlDeviceGetClock(nvmlDevice_t handle, unsigned domain, unsigned id, unsigned *megahertz) {
    DEVICE(handle);
    CHECK(domain < NVML_CLOCK_COUNT && id < NVML_CLOCK_ID_COUNT);
    if (id == NVML_CLOCK_ID_CURRENT) return nvml_give(clock_now(d, domain), megahertz);
    if (id == NVML_CLOCK_ID_CUSTOMER_BOOST_MAX) return nvml_give(clock_max(d, domain), megahertz);
    return NVML_ERROR_NOT_SUPPORTED; /* application clocks */
}

static nvmlReturn_t clock_reasons(nvmlDevice_t handle, unsigned long long *reasons) {
    FIND(handle);
    return nvml_give_wide(d->nvidia_clock_reasons, reasons);
}
NAMED(nvmlDeviceGetCurrentClocksEventReasons, clock_reasons,
      (nvmlDevice_t handle, unsigned long long *reasons), (handle, reasons))
NAMED(nvmlDeviceGetCurrentClocksThrottleReasons, clock_reasons,
      (nvmlDevice_t handle, unsigned long long *reasons), (handle, reasons))

static nvmlReturn_t every_clock_reason(nvmlDevice_t handle, unsigned long long *reasons) {
    FIND(handle);
    return nvml_give_wide(d->nvidia_clock_reasons == HAL_UNKNOWN ? HAL_UNKNOWN : 0x1ff, reasons);
}
NAMED(nvmlDeviceGetSupportedClocksEventReasons, every_clock_reason,
      (nvmlDevice_t handle, unsigned long long *reasons), (handle, reasons))
NAMED(nvmlDeviceGetSupportedClocksThrottleReasons, every_clock_reason,
      (nvmlDevice_t handle, unsigned long long *reasons), (handle, reasons))

NVML nvmlDeviceGetViolationStatus(nvmlDevice_t handle, unsigned policy, nvmlViolationTime_t *out) {
    DEVICE(handle);
    CHECK(out != NULL && policy < NVML_PERF_POLICY_COUNT);
    int64_t ns = HAL_UNKNOWN;
    if (policy == NVML_PERF_POLICY_POWER) ns = d->nvidia_throttled_power_ns;
    if (policy == NVML_PERF_POLICY_THERMAL) ns = d->nvidia_throttled_thermal_ns;
    if (policy == NVML_PERF_POLICY_SYNC_BOOST) ns = d->nvidia_throttled_sync_ns;
    if (policy == NVML_PERF_POLICY_BOARD_LIMIT) ns = d->nvidia_throttled_board_ns;
    if (policy == NVML_PERF_POLICY_LOW_UTILIZATION) ns = d->nvidia_throttled_idle_ns;
    if (policy == NVML_PERF_POLICY_RELIABILITY) ns = d->nvidia_throttled_reliability_ns;
    TRY(nvml_give_wide(ns, &out->violationTime));
    out->referenceTime = (unsigned long long)nvml_now();
    return NVML_SUCCESS;
}

/* ---- state ----------------------------------------------------------------------------------- */

FIGURE(nvmlDeviceGetPersistenceMode, d->nvidia_persistence)
FIGURE(nvmlDeviceGetComputeMode, d->nvidia_compute_mode)
FIGURE(nvmlDeviceGetPerformanceState, d->nvidia_performance_state)
FIGURE(nvmlDeviceGetPowerState, d->nvidia_performance_state)
