/* nvmlDeviceGetFieldValues: many figures in one call. */
#include <stdio.h>

#include "nvml_call.h"

#define EVERY_LINK UINT32_MAX /* all links together */

struct answer {
    int64_t figure;
    unsigned type;
};

static struct answer narrow(int64_t figure) {
    return (struct answer){figure, NVML_VALUE_TYPE_UNSIGNED_INT};
}

static struct answer wide(int64_t figure) {
    return (struct answer){figure, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG};
}

static int64_t sum(int64_t a, int64_t b) {
    return a == HAL_UNKNOWN || b == HAL_UNKNOWN ? HAL_UNKNOWN : a + b;
}

static int64_t times(int64_t figure, int64_t count) {
    return figure == HAL_UNKNOWN ? HAL_UNKNOWN : figure * count;
}

/* Fields of a link, whose number is the field's scope. */
static struct answer link_field(const struct hal_machine_device *d, uint32_t id,
                                uint32_t scope) {
    int64_t links = scope == EVERY_LINK ? (int64_t)d->nvidia_links : 1;
    if (d->nvidia_links == 0 || (scope != EVERY_LINK && scope >= d->nvidia_links))
        return wide(HAL_UNKNOWN);
    switch (id) {
    case NVML_FI_DEV_NVLINK_GET_STATE:
        return narrow(scope == EVERY_LINK ? HAL_UNKNOWN : !(d->nvidia_links_down >> scope & 1));
    case NVML_FI_DEV_NVLINK_GET_SPEED: return narrow(d->nvidia_link_megabytes_per_second);
    case NVML_FI_DEV_NVLINK_GET_VERSION: return narrow(d->nvidia_link_version);
    case NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY: return wide(d->nvidia_link_replay_errors);
    case NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY: return wide(d->nvidia_link_recovery_errors);
    case NVML_FI_DEV_NVLINK_ERROR_DL_CRC: return wide(d->nvidia_link_crc_errors);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
        return wide(times(d->nvidia_link_tx_kibibytes, links));
    default: return wide(times(d->nvidia_link_rx_kibibytes, links));
    }
}

static int64_t power(const struct hal_machine_device *d, uint32_t scope, int64_t all) {
    switch (scope) {
    case NVML_POWER_SCOPE_GPU: return all;
    case NVML_POWER_SCOPE_MODULE: return d->nvidia_module_power_milliwatts;
    case NVML_POWER_SCOPE_MEMORY: return d->nvidia_memory_power_milliwatts;
    default: return HAL_UNKNOWN;
    }
}

static struct answer field(const struct hal_machine_device *d, uint32_t id, uint32_t scope) {
    switch (id) {
    case NVML_FI_DEV_ECC_CURRENT: return narrow(d->nvidia_ecc);
    case NVML_FI_DEV_ECC_PENDING:
        return narrow(d->nvidia_ecc_pending == HAL_UNKNOWN ? d->nvidia_ecc : d->nvidia_ecc_pending);
    case NVML_FI_DEV_ECC_SBE_VOL_TOTAL:
        return wide(sum(nvml_storm(d, d->nvidia_dram_corrected), d->nvidia_sram_corrected));
    case NVML_FI_DEV_ECC_DBE_VOL_TOTAL:
        return wide(sum(d->nvidia_dram_uncorrected, d->nvidia_sram_uncorrected));
    case NVML_FI_DEV_ECC_SBE_AGG_TOTAL:
        return wide(sum(nvml_storm(d, d->nvidia_dram_corrected_ever), d->nvidia_sram_corrected_ever));
    case NVML_FI_DEV_ECC_DBE_AGG_TOTAL:
        return wide(sum(d->nvidia_dram_uncorrected_ever, d->nvidia_sram_uncorrected_ever));
    case NVML_FI_DEV_RETIRED_SBE: return wide(d->nvidia_pages_single_bit);
    case NVML_FI_DEV_RETIRED_DBE: return wide(d->nvidia_pages_double_bit);
    case NVML_FI_DEV_RETIRED_PENDING: return wide(d->nvidia_pages_pending);
    case NVML_FI_DEV_PERF_POLICY_POWER: return wide(d->nvidia_throttled_power_ns);
    case NVML_FI_DEV_PERF_POLICY_THERMAL: return wide(d->nvidia_throttled_thermal_ns);
    case NVML_FI_DEV_PERF_POLICY_SYNC_BOOST: return wide(d->nvidia_throttled_sync_ns);
    case NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT: return wide(d->nvidia_throttled_board_ns);
    case NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION: return wide(d->nvidia_throttled_idle_ns);
    case NVML_FI_DEV_PERF_POLICY_RELIABILITY: return wide(d->nvidia_throttled_reliability_ns);
    case NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN:
        return wide(d->nvidia_throttled_thermal_ns);
    case NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN:
        return wide(d->nvidia_throttled_hardware_thermal_ns);
    case NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN:
        return wide(d->nvidia_throttled_brake_ns);
    case NVML_FI_DEV_MEMORY_TEMP: return narrow(d->memory_temperature_celsius);
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: return wide(nvml_energy(d));
    case NVML_FI_DEV_PCIE_REPLAY_COUNTER: return narrow(d->nvidia_pcie_replays);
    case NVML_FI_DEV_REMAPPED_COR: return narrow(d->nvidia_rows_corrected);
    case NVML_FI_DEV_REMAPPED_UNC: return narrow(d->nvidia_rows_uncorrected);
    case NVML_FI_DEV_REMAPPED_PENDING: return narrow(d->nvidia_rows_pending);
    case NVML_FI_DEV_REMAPPED_FAILURE: return narrow(d->nvidia_rows_failed);
    case NVML_FI_DEV_POWER_AVERAGE: return narrow(power(d, scope, d->power_milliwatts));
    case NVML_FI_DEV_POWER_INSTANT:
        return narrow(power(d, scope, d->nvidia_power_instant_milliwatts));
    case NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED: return narrow(d->nvidia_pcie_naks_received);
    case NVML_FI_DEV_PCIE_COUNT_NAKS_SENT: return narrow(d->nvidia_pcie_naks_sent);
    case NVML_FI_DEV_PCIE_COUNT_TX_BYTES: return wide(d->nvidia_pcie_tx_bytes);
    case NVML_FI_DEV_PCIE_COUNT_RX_BYTES: return wide(d->nvidia_pcie_rx_bytes);
    case NVML_FI_DEV_POWER_MIN_LIMIT: return narrow(d->power_min_milliwatts);
    case NVML_FI_DEV_POWER_MAX_LIMIT: return narrow(d->power_max_milliwatts);
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT: return narrow(d->nvidia_power_default_milliwatts);
    case NVML_FI_DEV_POWER_CURRENT_LIMIT: return narrow(d->power_limit_milliwatts);
    case NVML_FI_DEV_NVLINK_LINK_COUNT: return narrow((int64_t)d->nvidia_links);
    case NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: return narrow(d->nvidia_link_megabytes_per_second);
    case NVML_FI_DEV_NVLINK_GET_STATE:
    case NVML_FI_DEV_NVLINK_GET_SPEED:
    case NVML_FI_DEV_NVLINK_GET_VERSION:
    case NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY:
    case NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY:
    case NVML_FI_DEV_NVLINK_ERROR_DL_CRC:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: return link_field(d, id, scope);
    default: return narrow(HAL_UNKNOWN);
    }
}

/* A fault of one field is asked for as "field 82". */
static int faulty(uint32_t id, int *status) {
    char name[24];
    if (!emulator_faulty) return 0;
    snprintf(name, sizeof name, "field %u", id);
    return emulator_fault(name, status);
}

/* The call succeeds; each field has an answer of its own. */
NVML nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t *values) {
    DEVICE(handle);
    CHECK(count > 0 && values != NULL);
    int64_t now = nvml_now();
    for (nvmlFieldValue_t *v = values; v < values + count; v++) {
        struct answer a = field(d, v->fieldId, v->scopeId);
        int status = a.figure == HAL_UNKNOWN ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        if (v->fieldId >= nvml_fields) status = NVML_ERROR_INVALID_ARGUMENT;
        (void)faulty(v->fieldId, &status);
        v->timestamp = now;
        v->latencyUsec = 0;
        v->valueType = a.type;
        v->nvmlReturn = (unsigned)status;
        v->value = (nvmlValue_t){.ullVal = status == NVML_SUCCESS ? (uint64_t)a.figure : 0};
    }
    return NVML_SUCCESS;
}
