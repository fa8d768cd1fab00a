/* What can be set on the stand-in's cards: power cap, performance level, clock limits; and resets.
 * Which values are refused, and with what, follows rocm_smi.cc. */
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>

#include "amdsmi_parts.h"

amdsmi_status_t amdsmi_may_change(void) {
    bool root = emulator_machine()->amd_root == 0 || geteuid() == 0;
    return root ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_NO_PERM;
}

bool amdsmi_busy(const device *d) {
    struct emulator_process one;
    return emulator_processes(amdsmi_index(d), &one, 1) > 0;
}

/* Microwatts. */
FUNCTION amdsmi_set_power_cap(void *handle, uint32_t sensor, uint64_t cap) {
    CHANGE(handle);
    if (sensor != 0 || d->power_limit_milliwatts == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    uint64_t least = amdsmi_or(d->power_min_milliwatts, 0) * 1000;
    uint64_t most = amdsmi_or(d->power_max_milliwatts, (uint64_t)d->power_limit_milliwatts) * 1000;
    if (cap < least || cap > most) return AMDSMI_STATUS_INVAL;
    d->power_limit_milliwatts = (int64_t)(cap / 1000);
    return AMDSMI_STATUS_SUCCESS;
}

FIGURE(CARD, amdsmi_get_gpu_perf_level, uint32_t, d->amd_performance_level)

/* Any level but the manual one lifts the limits of the clocks. */
FUNCTION amdsmi_set_gpu_perf_level(void *handle, uint32_t level) {
    CHANGE(handle);
    if (level > AMDSMI_DEV_PERF_LEVEL_LAST) return AMDSMI_STATUS_INVAL;
    d->amd_performance_level = level;
    if (level == AMDSMI_DEV_PERF_LEVEL_MANUAL) return AMDSMI_STATUS_SUCCESS;
    d->amd_compute_low_megahertz = d->amd_compute_high_megahertz = 0;
    d->amd_memory_low_megahertz = d->amd_memory_high_megahertz = 0;
    return AMDSMI_STATUS_SUCCESS;
}

struct domain {
    uint32_t *low, *high, most;
};

static bool domain_of(device *d, uint32_t kind, struct domain *out) {
    if (kind == AMDSMI_CLK_TYPE_GFX)
        *out = (struct domain){&d->amd_compute_low_megahertz, &d->amd_compute_high_megahertz,
                               d->amd_compute_max_megahertz};
    else if (kind == AMDSMI_CLK_TYPE_MEM)
        *out = (struct domain){&d->amd_memory_low_megahertz, &d->amd_memory_high_megahertz,
                               d->amd_memory_max_megahertz};
    return kind == AMDSMI_CLK_TYPE_GFX || kind == AMDSMI_CLK_TYPE_MEM;
}

/* Megahertz; with the performance level manual from then on. */
FUNCTION amdsmi_set_gpu_clk_limit(void *handle, uint32_t kind, uint32_t end, uint64_t megahertz) {
    CHANGE(handle);
    struct domain domain;
    if (!domain_of(d, kind, &domain) || end > AMDSMI_CLK_LIMIT_MAX) return AMDSMI_STATUS_INVAL;
    if (domain.most == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    bool low = end == AMDSMI_CLK_LIMIT_MIN;
    uint32_t high = *domain.high != 0 ? *domain.high : domain.most;
    if (megahertz == 0 || megahertz > domain.most) return AMDSMI_STATUS_INVAL;
    if (low ? megahertz > high : megahertz < *domain.low) return AMDSMI_STATUS_INVAL;
    *(low ? domain.low : domain.high) = (uint32_t)megahertz;
    d->amd_performance_level = AMDSMI_DEV_PERF_LEVEL_MANUAL;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_set_gpu_clk_range(void *handle, uint64_t least, uint64_t most, uint32_t kind) {
    CHANGE(handle);
    struct domain domain;
    if (!domain_of(d, kind, &domain)) return AMDSMI_STATUS_INVAL;
    if (domain.most == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    if (least == 0 || least > most || most > domain.most) return AMDSMI_STATUS_INVAL;
    *domain.low = (uint32_t)least;
    *domain.high = (uint32_t)most;
    d->amd_performance_level = AMDSMI_DEV_PERF_LEVEL_MANUAL;
    return AMDSMI_STATUS_SUCCESS;
}

/* It answers again at once; what was set is gone. Programs keep what they hold here. */
FUNCTION amdsmi_reset_gpu(void *handle) {
    CHANGE(handle);
    char sequence[16];
    snprintf(sequence, sizeof sequence, "%x", (unsigned)emulator_machine()->amd_events + 1);
    amdsmi_report(d, AMDSMI_EVT_NOTIF_GPU_PRE_RESET, sequence);
    d->amd_performance_level = 0;
    d->amd_compute_low_megahertz = d->amd_compute_high_megahertz = 0;
    d->amd_memory_low_megahertz = d->amd_memory_high_megahertz = 0;
    if (d->amd_power_default_milliwatts != HAL_UNKNOWN)
        d->power_limit_milliwatts = d->amd_power_default_milliwatts;
    amdsmi_report(d, AMDSMI_EVT_NOTIF_GPU_POST_RESET, sequence);
    return AMDSMI_STATUS_SUCCESS;
}
