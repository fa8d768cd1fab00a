/* The part of AMD SMI's ABI that the stand-in answers: values and layouts of release 7.0, as the
 * ctypes of the Python package amdsmi 7.0.2 have them. Padding is the compiler's own;
 * tests/unit/test_amdsmi_layout.py compares every size and offset with that package. */
#ifndef HAL_EMULATOR_AMDSMI_H
#define HAL_EMULATOR_AMDSMI_H

#include <stdint.h>

enum {
    AMDSMI_TEXT = 256,
    AMDSMI_UUID = 38,
    AMDSMI_XCC = 8,
    AMDSMI_XCP = 8,
    AMDSMI_XGMI_LINKS = 8,
    AMDSMI_DEVICES = 32
};

/* What a figure has that the card does not measure: the width depends on the structure. */
#define AMDSMI_NONE16 UINT32_C(0xFFFF)
#define AMDSMI_NONE32 UINT32_MAX
#define AMDSMI_NONE64 UINT64_MAX

#define AMDSMI_STATUSES(X) \
    X(SUCCESS, 0) \
    X(INVAL, 1) \
    X(NOT_SUPPORTED, 2) \
    X(NOT_YET_IMPLEMENTED, 3) \
    X(FAIL_LOAD_MODULE, 4) \
    X(FAIL_LOAD_SYMBOL, 5) \
    X(DRM_ERROR, 6) \
    X(API_FAILED, 7) \
    X(TIMEOUT, 8) \
    X(RETRY, 9) \
    X(NO_PERM, 10) \
    X(INTERRUPT, 11) \
    X(IO, 12) \
    X(ADDRESS_FAULT, 13) \
    X(FILE_ERROR, 14) \
    X(OUT_OF_RESOURCES, 15) \
    X(INTERNAL_EXCEPTION, 16) \
    X(INPUT_OUT_OF_BOUNDS, 17) \
    X(INIT_ERROR, 18) \
    X(REFCOUNT_OVERFLOW, 19) \
    X(DIRECTORY_NOT_FOUND, 20) \
    X(BUSY, 30) \
    X(NOT_FOUND, 31) \
    X(NOT_INIT, 32) \
    X(NO_SLOT, 33) \
    X(DRIVER_NOT_LOADED, 34) \
    X(MORE_DATA, 39) \
    X(NO_DATA, 40) \
    X(INSUFFICIENT_SIZE, 41) \
    X(UNEXPECTED_SIZE, 42) \
    X(UNEXPECTED_DATA, 43) \
    X(NON_AMD_CPU, 44) \
    X(NO_ENERGY_DRV, 45) \
    X(NO_MSR_DRV, 46) \
    X(NO_HSMP_DRV, 47) \
    X(NO_HSMP_SUP, 48) \
    X(NO_HSMP_MSG_SUP, 49) \
    X(HSMP_TIMEOUT, 50) \
    X(NO_DRV, 51) \
    X(FILE_NOT_FOUND, 52) \
    X(ARG_PTR_NULL, 53) \
    X(AMDGPU_RESTART_ERR, 54) \
    X(SETTING_UNAVAILABLE, 55) \
    X(CORRUPTED_EEPROM, 56)

#define AMDSMI_STATUS_VALUE(name, value) AMDSMI_STATUS_##name = value,
enum { AMDSMI_STATUSES(AMDSMI_STATUS_VALUE) };
#define AMDSMI_STATUS_UNKNOWN_ERROR UINT32_MAX /* too wide for the enumeration */
typedef uint32_t amdsmi_status_t;

enum { AMDSMI_PROCESSOR_TYPE_AMD_GPU = 1 };
enum {
    AMDSMI_TEMPERATURE_TYPE_EDGE = 0,
    AMDSMI_TEMPERATURE_TYPE_HOTSPOT = 1,
    AMDSMI_TEMPERATURE_TYPE_VRAM = 2,
    AMDSMI_TEMPERATURE_TYPE_HBM_0 = 3,
    AMDSMI_TEMPERATURE_TYPE_HBM_3 = 6
};
enum { AMDSMI_TEMP_CURRENT = 0, AMDSMI_TEMP_CRITICAL = 5, AMDSMI_TEMP_EMERGENCY = 7 };
enum { AMDSMI_MEM_TYPE_VRAM = 0, AMDSMI_MEM_TYPE_VIS_VRAM = 1, AMDSMI_MEM_TYPE_GTT = 2 };
enum { AMDSMI_VRAM_TYPE_UNKNOWN = 0 };
enum {
    AMDSMI_CLK_TYPE_GFX = 0,
    AMDSMI_CLK_TYPE_SOC = 3,
    AMDSMI_CLK_TYPE_MEM = 4,
    AMDSMI_CLK_TYPE_VCLK0 = 6
};
enum { AMDSMI_CARD_FORM_FACTOR_PCIE = 0, AMDSMI_CARD_FORM_FACTOR_OAM = 1 };
enum { AMDSMI_GPU_BLOCK_UMC = 1 };
enum { AMDSMI_RAS_ERR_STATE_DISABLED = 1, AMDSMI_RAS_ERR_STATE_ENABLED = 6 };
enum { AMDSMI_MEM_PAGE_STATUS_RESERVED = 0, AMDSMI_MEM_PAGE_STATUS_PENDING = 1 };
enum { AMDSMI_LINK_TYPE_INTERNAL = 0, AMDSMI_LINK_TYPE_PCIE = 1, AMDSMI_LINK_TYPE_XGMI = 2 };
enum { AMDSMI_XGMI_LINK_UP = 1 };
enum { AMDSMI_CLK_LIMIT_MIN = 0, AMDSMI_CLK_LIMIT_MAX = 1 };
enum { AMDSMI_DEV_PERF_LEVEL_MANUAL = 3, AMDSMI_DEV_PERF_LEVEL_LAST = 8 };
enum { AMDSMI_MAX_FAN_SPEED = 255 };
enum {
    AMDSMI_EVT_NOTIF_VMFAULT = 1,
    AMDSMI_EVT_NOTIF_THERMAL_THROTTLE = 2,
    AMDSMI_EVT_NOTIF_GPU_PRE_RESET = 3,
    AMDSMI_EVT_NOTIF_GPU_POST_RESET = 4,
    AMDSMI_EVT_NOTIF_LAST = 13
};

/* function:3 | device:5 | bus:8 | domain:48, from the bottom. A union of bit-fields in the vendor's
 * header, which is passed as this integer is. */
typedef uint64_t amdsmi_bdf_t;

typedef struct {
    uint32_t major, minor, release;
    const char *build;
} amdsmi_version_t;

typedef struct {
    uint32_t drm_render, drm_card, hsa_id, hip_id;
    char hip_uuid[AMDSMI_TEXT];
} amdsmi_enumeration_info_t;

typedef struct {
    char market_name[AMDSMI_TEXT];
    uint32_t vendor_id;
    char vendor_name[AMDSMI_TEXT];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[AMDSMI_TEXT];
    uint32_t oam_id;
    uint32_t num_of_compute_units;
    uint64_t target_graphics_version; /* its hexadecimal digits follow "gfx" */
    uint32_t subsystem_id;
    uint32_t reserved[21];
} amdsmi_asic_info_t;

typedef struct {
    char model_number[AMDSMI_TEXT];
    char product_serial[AMDSMI_TEXT];
    char fru_id[AMDSMI_TEXT];
    char product_name[AMDSMI_TEXT];
    char manufacturer_name[AMDSMI_TEXT];
    uint64_t reserved[64];
} amdsmi_board_info_t;

typedef struct {
    char driver_version[AMDSMI_TEXT];
    char driver_date[AMDSMI_TEXT];
    char driver_name[AMDSMI_TEXT];
} amdsmi_driver_info_t;

typedef struct {
    uint64_t kfd_id;
    uint32_t node_id, current_partition_id;
    uint32_t reserved[12];
} amdsmi_kfd_info_t;

typedef struct {
    uint32_t vram_type;
    char vram_vendor[AMDSMI_TEXT];
    uint64_t vram_size; /* MiB */
    uint32_t vram_bit_width;
    uint64_t vram_max_bandwidth;
    uint64_t reserved[37];
} amdsmi_vram_info_t;

typedef struct {
    uint32_t vram_total, vram_used; /* MiB */
    uint32_t reserved[2];
} amdsmi_vram_usage_t;

typedef struct {
    uint32_t gfx_activity, umc_activity, mm_activity; /* percent */
    uint32_t reserved[13];
} amdsmi_engine_usage_t;

typedef struct {
    uint64_t socket_power;                               /* watts, as the next two */
    uint32_t current_socket_power, average_socket_power; /* MI300 and later; MI200 and Navi */
    uint64_t gfx_voltage, soc_voltage, mem_voltage;
    uint32_t power_limit; /* microwatts */
    uint64_t reserved[18];
} amdsmi_power_info_t;

typedef struct {
    uint64_t power_cap, default_power_cap; /* microwatts */
    uint64_t dpm_cap;
    uint64_t min_power_cap, max_power_cap; /* microwatts */
    uint64_t reserved[3];
} amdsmi_power_cap_info_t;

typedef struct {
    char name[AMDSMI_TEXT];
    uint32_t pid;
    uint64_t mem; /* bytes, as all of memory_usage */
    struct {
        uint64_t gfx, enc;
        uint32_t reserved[12];
    } engine_usage;
    struct {
        uint64_t gtt_mem, cpu_mem, vram_mem;
        uint32_t reserved[10];
    } memory_usage;
    char container_name[AMDSMI_TEXT];
    uint32_t cu_occupancy;
    uint32_t reserved[11];
} amdsmi_proc_info_t;

typedef struct {
    uint32_t process_id;
    uint64_t vram_usage, sdma_usage;
    uint32_t cu_occupancy;
} amdsmi_process_info_t;

typedef struct {
    uint32_t clk, min_clk, max_clk; /* MHz */
    uint8_t clk_locked, clk_deep_sleep;
    uint32_t reserved[4];
} amdsmi_clk_info_t;

typedef struct {
    struct {
        uint16_t max_pcie_width;
        uint32_t max_pcie_speed; /* MT/s of a lane */
        uint32_t pcie_interface_version;
        uint32_t slot_type;
        uint32_t max_pcie_interface_version;
        uint64_t reserved[9];
    } pcie_static;
    struct {
        uint16_t pcie_width;
        uint32_t pcie_speed, pcie_bandwidth; /* MT/s of a lane; Mb/s in both directions together */
        uint64_t pcie_replay_count, pcie_l0_to_recovery_count, pcie_replay_roll_over_count;
        uint64_t pcie_nak_sent_count, pcie_nak_received_count;
        uint32_t pcie_lc_perf_other_end_recovery_count;
        uint64_t reserved[12];
    } pcie_metric;
    uint64_t reserved[32];
} amdsmi_pcie_info_t;

typedef struct {
    uint64_t correctable_count, uncorrectable_count, deferred_count;
    uint64_t reserved[5];
} amdsmi_error_count_t;

typedef struct {
    uint32_t ras_eeprom_version, ecc_correction_schema_flag;
} amdsmi_ras_feature_t;

typedef struct {
    uint64_t page_address, page_size;
    uint32_t status;
} amdsmi_retired_page_record_t;

typedef struct {
    uint32_t num_links;
    struct {
        amdsmi_bdf_t bdf;
        uint32_t bit_rate, max_bandwidth; /* Gb/s: of a lane, of the link */
        uint32_t link_type;
        uint64_t read, write; /* KB since the driver was loaded */
        uint64_t reserved[2];
    } links[64];
    uint64_t reserved[7];
} amdsmi_link_metrics_t;

typedef struct {
    uint32_t total_links;
    uint32_t status[AMDSMI_XGMI_LINKS];
    uint64_t reserved[7];
} amdsmi_xgmi_link_status_t;

typedef struct {
    uint8_t xgmi_lanes;
    uint64_t xgmi_hive_id, xgmi_node_id;
    uint32_t index;
    uint32_t reserved[9];
} amdsmi_xgmi_info_t;

typedef struct {
    uint8_t is_iolink_coherent, is_iolink_atomics_32bit, is_iolink_atomics_64bit;
    uint8_t is_iolink_dma, is_iolink_bi_directional;
} amdsmi_p2p_capability_t;

typedef struct {
    uint32_t count;
    void *processor_list[AMDSMI_DEVICES];
    uint64_t reserved[15];
} amdsmi_topology_nearest_t;

typedef struct {
    uint32_t profile_type, num_partitions;
    uint32_t memory_caps; /* a union of bit-fields: NPS1, NPS2, NPS4, NPS8 from the bottom */
    uint32_t profile_index, num_resources;
    uint32_t resources[AMDSMI_XCP][AMDSMI_DEVICES];
    uint64_t reserved[13];
} amdsmi_accelerator_partition_profile_t;

typedef struct {
    uint32_t num_profiles, num_resource_profiles;
    struct {
        uint32_t profile_index, resource_type;
        uint32_t partition_resource, num_partitions_share_resource;
        uint64_t reserved[6];
    } resource_profiles[32];
    uint32_t default_profile_index;
    amdsmi_accelerator_partition_profile_t profiles[32];
    uint64_t reserved[30];
} amdsmi_accelerator_partition_profile_config_t;

typedef struct {
    void *processor_handle;
    uint32_t event;
    char message[AMDSMI_TEXT];
} amdsmi_evt_notification_data_t;

typedef struct {
    uint32_t partition_caps; /* as memory_caps */
    uint32_t mp_mode;        /* N of NPSn */
    uint32_t num_numa_ranges;
    struct {
        uint32_t memory_type;
        uint64_t start, end;
    } numa_range[32];
    uint64_t reserved[11];
} amdsmi_memory_partition_config_t;

/* Shares of time held down. `acc_...` count firmware cycles since the driver was loaded, of which
 * there were `acc_counter`; `per_...` are percent of the last moments. Those in tables are by
 * partition and die. */
typedef struct {
    uint64_t reference_timestamp, violation_timestamp; /* CPU, in us; firmware, in ns */
    uint64_t acc_counter;
    uint64_t acc_prochot_thrm, acc_ppt_pwr, acc_socket_thrm, acc_vr_thrm, acc_hbm_thrm;
    uint64_t acc_gfx_clk_below_host_limit;
    uint64_t per_prochot_thrm, per_ppt_pwr, per_socket_thrm, per_vr_thrm, per_hbm_thrm;
    uint64_t per_gfx_clk_below_host_limit;
    uint8_t active_prochot_thrm, active_ppt_pwr, active_socket_thrm, active_vr_thrm;
    uint8_t active_hbm_thrm, active_gfx_clk_below_host_limit;
    uint64_t acc_gfx_clk_below_host_limit_pwr[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t acc_gfx_clk_below_host_limit_thm[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t acc_low_utilization[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t acc_gfx_clk_below_host_limit_total[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t per_gfx_clk_below_host_limit_pwr[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t per_gfx_clk_below_host_limit_thm[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t per_low_utilization[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t per_gfx_clk_below_host_limit_total[AMDSMI_XCP][AMDSMI_XCC];
    uint8_t active_gfx_clk_below_host_limit_pwr[AMDSMI_XCP][AMDSMI_XCC];
    uint8_t active_gfx_clk_below_host_limit_thm[AMDSMI_XCP][AMDSMI_XCC];
    uint8_t active_low_utilization[AMDSMI_XCP][AMDSMI_XCC];
    uint8_t active_gfx_clk_below_host_limit_total[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t reserved[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t reserved2[AMDSMI_XCP][AMDSMI_XCC];
    uint64_t reserved3[AMDSMI_XCP][AMDSMI_XCC];
} amdsmi_violation_status_t;

typedef struct {
    uint16_t structure_size;
    uint8_t format_revision, content_revision;
} amd_metrics_table_header_t;

typedef struct {
    uint32_t gfx_busy_inst[AMDSMI_XCC]; /* percent, as the next two */
    uint16_t jpeg_busy[40];
    uint16_t vcn_busy[4];
    uint64_t gfx_busy_acc[AMDSMI_XCC];
    uint64_t gfx_below_host_limit_acc[AMDSMI_XCC];
    uint64_t gfx_below_host_limit_ppt_acc[AMDSMI_XCC];
    uint64_t gfx_below_host_limit_thm_acc[AMDSMI_XCC];
    uint64_t gfx_low_utilization_acc[AMDSMI_XCC];
    uint64_t gfx_below_host_limit_total_acc[AMDSMI_XCC];
} amdsmi_gpu_xcp_metrics_t;

/* Of library 26. That of 27 is longer, those of 24 and 25 are shorter from xcp_stats on. */
typedef struct {
    amd_metrics_table_header_t common_header;
    uint16_t temperature_edge, temperature_hotspot, temperature_mem;
    uint16_t temperature_vrgfx, temperature_vrsoc, temperature_vrmem;
    uint16_t average_gfx_activity, average_umc_activity, average_mm_activity;
    uint16_t average_socket_power;
    uint64_t energy_accumulator, system_clock_counter;
    uint16_t average_gfxclk_frequency, average_socclk_frequency, average_uclk_frequency;
    uint16_t average_vclk0_frequency, average_dclk0_frequency;
    uint16_t average_vclk1_frequency, average_dclk1_frequency;
    uint16_t current_gfxclk, current_socclk, current_uclk;
    uint16_t current_vclk0, current_dclk0, current_vclk1, current_dclk1;
    uint32_t throttle_status;
    uint16_t current_fan_speed, pcie_link_width, pcie_link_speed;
    uint32_t gfx_activity_acc, mem_activity_acc;
    uint16_t temperature_hbm[4];
    uint64_t firmware_timestamp;
    uint16_t voltage_soc, voltage_gfx, voltage_mem;
    uint64_t indep_throttle_status;
    uint16_t current_socket_power;
    uint16_t vcn_activity[4];
    uint32_t gfxclk_lock_status;
    uint16_t xgmi_link_width, xgmi_link_speed;
    uint64_t pcie_bandwidth_acc, pcie_bandwidth_inst, pcie_l0_to_recov_count_acc;
    uint64_t pcie_replay_count_acc, pcie_replay_rover_count_acc;
    uint64_t xgmi_read_data_acc[AMDSMI_XGMI_LINKS], xgmi_write_data_acc[AMDSMI_XGMI_LINKS];
    uint16_t current_gfxclks[AMDSMI_XCC];
    uint16_t current_socclks[4], current_vclk0s[4], current_dclk0s[4];
    uint16_t jpeg_activity[32];
    uint32_t pcie_nak_sent_count_acc, pcie_nak_rcvd_count_acc;
    uint64_t accumulation_counter, prochot_residency_acc, ppt_residency_acc;
    uint64_t socket_thm_residency_acc, vr_thm_residency_acc, hbm_thm_residency_acc;
    uint16_t num_partition;
    amdsmi_gpu_xcp_metrics_t xcp_stats[AMDSMI_XCP];
    uint32_t pcie_lc_perf_other_end_recovery;
    uint64_t vram_max_bandwidth;
    uint16_t xgmi_link_status[AMDSMI_XGMI_LINKS];
} amdsmi_gpu_metrics_t;

enum { AMDSMI_METRICS_24 = 1832, AMDSMI_METRICS_25 = 2368, AMDSMI_METRICS_27 = 4720 };

#endif
