/* The part of AMD SMI's ABI that the stand-in answers: values and layouts of release 7.0, as the
 * ctypes of the Python package amdsmi 7.0.2 have them. Padding is the compiler's own;
 * tests/unit/test_amdsmi_layout.py compares every size and offset with that package. */
#ifndef HAL_EMULATOR_AMDSMI_H
#define HAL_EMULATOR_AMDSMI_H

#include <stdint.h>

enum { AMDSMI_TEXT = 256, AMDSMI_UUID = 38 };

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
enum { AMDSMI_TEMPERATURE_TYPE_HOTSPOT = 1, AMDSMI_TEMPERATURE_TYPE_VRAM = 2 };
enum { AMDSMI_TEMP_CURRENT = 0, AMDSMI_TEMP_CRITICAL = 5, AMDSMI_TEMP_EMERGENCY = 7 };
enum { AMDSMI_MEM_TYPE_VRAM = 0, AMDSMI_MEM_TYPE_VIS_VRAM = 1, AMDSMI_MEM_TYPE_GTT = 2 };
enum { AMDSMI_VRAM_TYPE_UNKNOWN = 0 };

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

#endif
