/* The stand-in's sensors: activity, power, energy, temperatures, clocks, throttling. */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "amdsmi_old.h"

static const float RESOLUTION = 15.259F; /* microjoules of one count of the energy counter */

FUNCTION amdsmi_get_gpu_activity(void *handle, amdsmi_engine_usage_t *info) {
    CARD(handle, info);
    *info = (amdsmi_engine_usage_t){
        .gfx_activity = (uint32_t)amdsmi_or(emulator_busy_percent(d), AMDSMI_NONE16),
        .umc_activity = (uint32_t)amdsmi_or(d->memory_busy_percent, AMDSMI_NONE16),
        .mm_activity = (uint32_t)amdsmi_or(d->amd_media_busy_percent, AMDSMI_NONE16)};
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- power and energy ----------------------------------------------------------------------- */

static uint64_t scaled(int64_t milliwatts, int64_t up, int64_t down, uint64_t none) {
    return milliwatts == HAL_UNKNOWN ? none : (uint64_t)(milliwatts * up / down);
}

/* MI300 and later measure the power now, MI200 and Navi an average: the other one is none. The
 * limit is hwmon's power1_cap, which the real library hands on undivided. */
FUNCTION amdsmi_get_power_info(void *handle, void *out) {
    CARD(handle, out);
    uint64_t watts = scaled(d->power_milliwatts, 1, 1000, AMDSMI_NONE16);
    bool now = d->arch_major == 9 && d->arch_minor >= 4;
    amdsmi_power_info_t info = {
        .socket_power = watts,
        .current_socket_power = now ? (uint32_t)watts : AMDSMI_NONE16,
        .average_socket_power = now ? AMDSMI_NONE16 : (uint32_t)watts,
        .gfx_voltage = AMDSMI_NONE16,
        .soc_voltage = AMDSMI_NONE16,
        .mem_voltage = AMDSMI_NONE16,
        .power_limit = (uint32_t)scaled(d->power_limit_milliwatts, 1000, 1, AMDSMI_NONE16)};
    amdsmi_put_power(out, &info);
    return AMDSMI_STATUS_SUCCESS;
}

/* Library 25 has it only, but there is one stand-in for all: it must not fail where that one works. */
FUNCTION amdsmi_get_power_info_v2(void *handle, uint32_t sensor, void *out);
FUNCTION amdsmi_get_power_info_v2(void *handle, uint32_t sensor, void *out) {
    return sensor == 0 ? amdsmi_get_power_info(handle, out) : AMDSMI_STATUS_NOT_SUPPORTED;
}

FUNCTION amdsmi_get_power_cap_info(void *handle, uint32_t sensor, amdsmi_power_cap_info_t *info) {
    CARD(handle, info);
    if (sensor != 0 || d->power_limit_milliwatts == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    uint64_t cap = scaled(d->power_limit_milliwatts, 1000, 1, 0);
    uint64_t most = scaled(d->power_max_milliwatts, 1000, 1, cap);
    *info = (amdsmi_power_cap_info_t){
        .power_cap = cap,
        .default_power_cap = scaled(d->amd_power_default_milliwatts, 1000, 1, most),
        .min_power_cap = scaled(d->power_min_milliwatts, 1000, 1, 0),
        .max_power_cap = most};
    return AMDSMI_STATUS_SUCCESS;
}

/* What the card has used at the power that it shows, since the machine was made. */
FUNCTION amdsmi_get_energy_count(void *handle, uint64_t *count, float *resolution, uint64_t *time) {
    CARD(handle, count);
    if (resolution == NULL || time == NULL) return AMDSMI_STATUS_INVAL;
    if (d->power_milliwatts == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    uint64_t age = amdsmi_age();
    double microjoules = (double)d->power_milliwatts * (double)age / 1e6;
    *count = (uint64_t)(microjoules / (double)RESOLUTION);
    *resolution = RESOLUTION;
    *time = age;
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- temperatures --------------------------------------------------------------------------- */

static int64_t temperature(const device *d, uint32_t sensor, uint32_t metric) {
    if (sensor == AMDSMI_TEMPERATURE_TYPE_HOTSPOT) {
        if (metric == AMDSMI_TEMP_CURRENT) return d->temperature_celsius;
        if (metric == AMDSMI_TEMP_CRITICAL) return d->temperature_slowdown_celsius;
        if (metric == AMDSMI_TEMP_EMERGENCY) return d->temperature_shutdown_celsius;
    } else if (sensor == AMDSMI_TEMPERATURE_TYPE_VRAM) {
        if (metric == AMDSMI_TEMP_CURRENT) return d->memory_temperature_celsius;
        if (metric == AMDSMI_TEMP_CRITICAL) return d->amd_memory_slowdown_celsius;
        if (metric == AMDSMI_TEMP_EMERGENCY) return d->amd_memory_shutdown_celsius;
    } else if (metric == AMDSMI_TEMP_CURRENT) {
        if (sensor == AMDSMI_TEMPERATURE_TYPE_EDGE) return d->amd_edge_temperature_celsius;
        if (sensor >= AMDSMI_TEMPERATURE_TYPE_HBM_0 && sensor <= AMDSMI_TEMPERATURE_TYPE_HBM_3)
            return d->amd_hbm_temperature_celsius;
    }
    return HAL_UNKNOWN;
}

/* Degrees: the real library divides the kernel's millidegrees. MI300 has no edge sensor. */
FUNCTION amdsmi_get_temp_metric(void *handle, uint32_t sensor, uint32_t metric, int64_t *degrees) {
    CARD(handle, degrees);
    int64_t value = temperature(d, sensor, metric);
    if (value == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    *degrees = value;
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- fans ----------------------------------------------------------------------------------- */

static amdsmi_status_t fan(uint32_t sensor, int64_t value, int64_t *out) {
    if (sensor != 0 || value == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    *out = value;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_fan_rpms(void *handle, uint32_t sensor, int64_t *rpm) {
    CARD(handle, rpm);
    return fan(sensor, d->amd_fan_rpm, rpm);
}

FUNCTION amdsmi_get_gpu_fan_speed(void *handle, uint32_t sensor, int64_t *speed) {
    CARD(handle, speed);
    return fan(sensor, d->amd_fan_level, speed);
}

FUNCTION amdsmi_get_gpu_fan_speed_max(void *handle, uint32_t sensor, uint64_t *most) {
    CARD(handle, most);
    if (sensor != 0 || d->amd_fan_level == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    *most = AMDSMI_MAX_FAN_SPEED;
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- clocks --------------------------------------------------------------------------------- */

FUNCTION amdsmi_get_clock_info(void *handle, uint32_t domain, amdsmi_clk_info_t *info) {
    CARD(handle, info);
    const struct {
        uint32_t domain, now, most, low, high;
    } clocks[] = {
        {AMDSMI_CLK_TYPE_GFX, d->amd_compute_megahertz, d->amd_compute_max_megahertz,
         d->amd_compute_low_megahertz, d->amd_compute_high_megahertz},
        {AMDSMI_CLK_TYPE_MEM, d->amd_memory_megahertz, d->amd_memory_max_megahertz,
         d->amd_memory_low_megahertz, d->amd_memory_high_megahertz},
        {AMDSMI_CLK_TYPE_SOC, d->amd_soc_megahertz, d->amd_soc_max_megahertz, 0, 0},
        {AMDSMI_CLK_TYPE_VCLK0, d->amd_video_megahertz, d->amd_video_max_megahertz, 0, 0},
    };
    uint32_t now = 0, most = 0, low = 0;
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        if (clocks[i].domain != domain) continue;
        now = amdsmi_held(clocks[i].now, clocks[i].low, clocks[i].high);
        most = clocks[i].high != 0 ? clocks[i].high : clocks[i].most;
        low = clocks[i].low;
    }
    if (now == 0 && most == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *info = (amdsmi_clk_info_t){.clk = now != 0 ? now : AMDSMI_NONE32,
                                .min_clk = low != 0 ? low : AMDSMI_NONE32,
                                .max_clk = most != 0 ? most : AMDSMI_NONE32,
                                .clk_locked = 0xFF,
                                .clk_deep_sleep = 0xFF};
    return AMDSMI_STATUS_SUCCESS;
}

FIGURE(CARD, amdsmi_get_gpu_xcd_counter, uint16_t, d->amd_dies)

/* ---- throttling ----------------------------------------------------------------------------- */

/* From MI300 (gfx94x) on. Only power ever holds an emulated card down; a firmware cycle is 1 ms. */
FUNCTION amdsmi_get_violation_status(void *handle, amdsmi_violation_status_t *info) {
    CARD(handle, info);
    if (d->amd_throttled_percent == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t age = amdsmi_age(), percent = (uint64_t)d->amd_throttled_percent;
    memset(info, 0xFF, sizeof *info);
    info->reference_timestamp = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    info->violation_timestamp = age;
    info->acc_counter = age / 1000000;
    info->acc_ppt_pwr = info->acc_counter * percent / 100;
    info->acc_prochot_thrm = info->acc_socket_thrm = info->acc_vr_thrm = info->acc_hbm_thrm = 0;
    info->per_ppt_pwr = percent;
    info->per_prochot_thrm = info->per_socket_thrm = info->per_vr_thrm = info->per_hbm_thrm = 0;
    info->active_ppt_pwr = percent > 0;
    info->active_prochot_thrm = info->active_socket_thrm = 0;
    info->active_vr_thrm = info->active_hbm_thrm = 0;
    return AMDSMI_STATUS_SUCCESS;
}
