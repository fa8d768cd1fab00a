/* The stand-in's gpu_metrics: one structure of everything that the firmware measures. Its size is
 * the library's own, whatever the caller has made room for. */
#define _GNU_SOURCE
#include <stddef.h>
#include <string.h>

#include "amdsmi_old.h"

static uint16_t short_of(int64_t value) { return (uint16_t)amdsmi_or(value, AMDSMI_NONE16); }
static uint16_t clock_of(uint32_t megahertz) {
    return (uint16_t)(megahertz != 0 ? megahertz : AMDSMI_NONE16);
}

static void power(const device *d, amdsmi_gpu_metrics_t *m) {
    bool now = d->arch_major == 9 && d->arch_minor >= 4;
    if (d->power_milliwatts == HAL_UNKNOWN) return;
    *(now ? &m->current_socket_power : &m->average_socket_power) =
        (uint16_t)(d->power_milliwatts / 1000);
}

static void clocks(const device *d, amdsmi_gpu_metrics_t *m) {
    m->current_gfxclk = clock_of(amdsmi_held(
        d->amd_compute_megahertz, d->amd_compute_low_megahertz, d->amd_compute_high_megahertz));
    m->current_socclk = clock_of(d->amd_soc_megahertz);
    m->current_uclk = clock_of(amdsmi_held(
        d->amd_memory_megahertz, d->amd_memory_low_megahertz, d->amd_memory_high_megahertz));
    m->current_vclk0 = clock_of(d->amd_video_megahertz);
    for (unsigned i = 0; i < d->amd_dies && i < AMDSMI_XCC; i++)
        m->current_gfxclks[i] = m->current_gfxclk;
}

/* A partition's own figures: each die's work, and the video engines that it was given. */
static void partitions(const device *d, amdsmi_gpu_metrics_t *m) {
    unsigned count = emulator_partitions(d), dies = d->amd_dies / count;
    m->num_partition = (uint16_t)count;
    for (unsigned part = 0; part < count; part++) {
        amdsmi_gpu_xcp_metrics_t *x = &m->xcp_stats[part];
        for (unsigned i = 0; i < dies && i < AMDSMI_XCC; i++)
            x->gfx_busy_inst[i] = (uint32_t)amdsmi_or(emulator_busy_percent(d), AMDSMI_NONE32);
        for (unsigned i = 0; i < d->amd_video_engines / count && i < 4; i++)
            x->vcn_busy[i] = short_of(d->amd_video_busy_percent);
        for (unsigned i = 0; i < d->amd_jpeg_engines / count && i < 40; i++)
            x->jpeg_busy[i] = short_of(d->amd_jpeg_busy_percent);
    }
}

/* Firmware cycles, of 1 ms each; of which power held the card down in these. */
static void residencies(const device *d, amdsmi_gpu_metrics_t *m) {
    if (d->amd_throttled_percent == HAL_UNKNOWN) return;
    m->accumulation_counter = m->system_clock_counter / 1000000;
    m->ppt_residency_acc = m->accumulation_counter * (uint64_t)d->amd_throttled_percent / 100;
    m->prochot_residency_acc = m->socket_thm_residency_acc = 0;
    m->vr_thm_residency_acc = m->hbm_thm_residency_acc = 0;
}

static void engines(const device *d, amdsmi_gpu_metrics_t *m) {
    m->average_gfx_activity = short_of(emulator_busy_percent(d));
    m->average_umc_activity = short_of(d->memory_busy_percent);
    m->average_mm_activity = short_of(d->amd_media_busy_percent);
    for (unsigned i = 0; i < d->amd_video_engines && i < 4; i++)
        m->vcn_activity[i] = short_of(d->amd_video_busy_percent);
    for (unsigned i = 0; i < d->amd_jpeg_engines && i < 32; i++)
        m->jpeg_activity[i] = short_of(d->amd_jpeg_busy_percent);
}

/* What all libraries have; then, from 26 on, its partitions. */
static void measure(const device *d, amdsmi_gpu_metrics_t *m) {
    m->common_header = (amd_metrics_table_header_t){(uint16_t)amdsmi_metrics_size(), 1, 8};
    m->temperature_edge = short_of(d->amd_edge_temperature_celsius);
    m->temperature_hotspot = short_of(d->temperature_celsius);
    m->temperature_mem = short_of(d->memory_temperature_celsius);
    for (unsigned i = 0; i < 4; i++)
        m->temperature_hbm[i] = short_of(d->amd_hbm_temperature_celsius);
    engines(d, m);
    power(d, m);
    clocks(d, m);
    m->system_clock_counter = amdsmi_age();
    residencies(d, m);
    if (d->amd_pcie_width != 0) m->pcie_link_width = (uint16_t)d->amd_pcie_width;
    m->pcie_replay_count_acc = d->amd_pcie_replays;
    m->pcie_nak_sent_count_acc = (uint32_t)d->amd_pcie_naks_sent;
    m->pcie_nak_rcvd_count_acc = (uint32_t)d->amd_pcie_naks_received;
    m->current_fan_speed = short_of(d->amd_fan_rpm);
    if (d->amd_dies != 0) partitions(d, m);
}

FUNCTION amdsmi_get_gpu_metrics_info(void *handle, void *out) {
    CARD(handle, out);
    amdsmi_gpu_metrics_t m;
    size_t size = amdsmi_metrics_size(), common = sizeof m;
    if (amdsmi_major() < 26) common = offsetof(amdsmi_gpu_metrics_t, xcp_stats);
    memset(&m, 0xFF, sizeof m);
    measure(d, &m);
    memset(out, 0xFF, size);
    memcpy(out, &m, common);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_metrics_header_info(void *handle, amd_metrics_table_header_t *header) {
    CARD(handle, header);
    *header = (amd_metrics_table_header_t){(uint16_t)amdsmi_metrics_size(), 1, 8};
    return AMDSMI_STATUS_SUCCESS;
}
