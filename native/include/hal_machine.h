/* The emulated machine: one mapped file that all stand-in drivers of all processes share.
 *
 * `hal emulate` fills in the description from a machine file (hal/emulation/machines/) and names the
 * file to its children in HAL_EMULATED_MACHINE. What the programs allocate is kept in the ledger at
 * the end: its limits are the devices' memories, its slots the processes that use them.
 *
 * A figure that the description does not give is HAL_UNKNOWN, and the stand-in answers as the real
 * library does for a sensor that is not there.
 */
#ifndef HAL_MACHINE_H
#define HAL_MACHINE_H

#include <stdatomic.h>
#include <stdint.h>

#include "hal_ledger.h"

enum { HAL_MACHINE_VERSION = 2, HAL_MACHINE_TEXT = 96, HAL_MACHINE_TIMELINE = 28672 };

enum { HAL_UNKNOWN = -1 };

enum { HAL_MACHINE_PARTITIONS = 8, HAL_MACHINE_XIDS = 64, HAL_MACHINE_AMD_EVENTS = 64 };
enum { HAL_MACHINE_HOLDS = 32, HAL_MACHINE_PATH = 256 };

/* A fault that an NVIDIA device reported. */
struct hal_machine_xid {
    uint32_t device, code;
    uint64_t type; /* nvmlEventType..., where it is no XID: 0 */
};

/* What KFD reported of an AMD device. */
struct hal_machine_amd_event {
    _Atomic uint64_t number; /* its place among all there ever were, from 1; written last */
    uint32_t device, partition; /* UINT32_MAX: all of its partitions */
    uint32_t type;              /* as amdsmi_evt_notification_type_t */
    char message[64];           /* in KFD's format for its type */
};

/* A MIG compute instance, and the GPU instance that it is cut from. */
struct hal_machine_compute {
    uint32_t made, profile, start, slices; /* compute slices, counted within the GPU instance */
};

struct hal_machine_mig {
    uint32_t made, profile, start, size; /* memory slices */
    struct hal_machine_compute compute[HAL_MACHINE_PARTITIONS];
    uint32_t busy_percent; /* no program can run on it: what its counters tell all the same */
};

struct hal_machine_device {
    char vendor[16]; /* which family of stand-ins shows it: "nvidia" or "amd" */
    char model[HAL_MACHINE_TEXT];
    char uuid[HAL_MACHINE_TEXT]; /* as the vendor's library prints it */
    char serial[HAL_MACHINE_TEXT];
    uint32_t pci_domain, pci_bus, pci_device, pci_function;
    uint32_t pci_vendor_id, pci_device_id, pci_subsystem_vendor_id, pci_subsystem_id;
    int64_t numa_node;
    uint64_t memory_bytes;          /* all of it */
    uint64_t memory_reserved_bytes; /* of which the driver and the firmware keep */
    uint32_t compute_units;         /* SM or CU */
    uint32_t cores;                 /* arithmetic units in all of them; 0 where nobody counts them */
    uint32_t arch_major, arch_minor, arch_stepping; /* CUDA capability, or gfx target */
    int64_t power_milliwatts, power_limit_milliwatts; /* HAL_UNKNOWN: no such sensor */
    int64_t power_min_milliwatts, power_max_milliwatts;
    int64_t temperature_celsius, memory_temperature_celsius;
    int64_t temperature_slowdown_celsius, temperature_shutdown_celsius;
    int64_t compute_busy_percent, memory_busy_percent;

    /* Of AMD's parts only. 0 or "": the part has no such thing. */
    char amd_compute_partition[8], amd_memory_partition[8]; /* now: "CPX", "NPS4" */
    uint32_t amd_dies;                                      /* XCC */
    uint32_t amd_video_engines, amd_jpeg_engines;
    int64_t amd_video_busy_percent, amd_jpeg_busy_percent;
    int64_t amd_edge_temperature_celsius, amd_hbm_temperature_celsius; /* of each stack */
    int64_t amd_memory_slowdown_celsius, amd_memory_shutdown_celsius;
    int64_t amd_power_default_milliwatts;
    uint32_t amd_compute_megahertz, amd_compute_max_megahertz;
    uint32_t amd_memory_megahertz, amd_memory_max_megahertz;
    uint32_t amd_soc_megahertz, amd_soc_max_megahertz;
    uint32_t amd_video_megahertz, amd_video_max_megahertz;
    uint32_t amd_pcie_generation, amd_pcie_width, amd_pcie_max_generation, amd_pcie_max_width;
    uint64_t amd_pcie_replays;
    uint32_t amd_hive; /* cards of one hive are joined by XGMI, each to each */
    uint32_t amd_xgmi_lanes, amd_xgmi_gigabits; /* of one link; bits per second of one lane */
    uint64_t amd_ecc_blocks; /* AMDSMI_GPU_BLOCK_... where error correction is on */
    uint64_t amd_ecc_corrected, amd_ecc_uncorrected, amd_ecc_deferred; /* all in memory (UMC) */
    uint32_t amd_bad_pages, amd_bad_pages_pending;
    int64_t amd_throttled_percent; /* share of its life for which power held it down */
    char amd_xgmi[32]; /* for each card of the hive, in order: links to it, '-' none, '?' not known.
                        * "": one to each */
    char amd_memory_partition_next[8]; /* after the driver is loaded anew; "": no change */
    uint64_t amd_gtt_bytes;            /* of the host's memory; 0: not said */
    uint64_t amd_visible_bytes;        /* of its own memory, to the host; 0: all */
    int64_t amd_media_busy_percent;
    int64_t amd_fan_rpm, amd_fan_level; /* level: of 255 */
    uint64_t amd_pcie_naks_sent, amd_pcie_naks_received;
    uint32_t amd_performance_level;                              /* as amdsmi_dev_perf_level_t */
    uint32_t amd_compute_low_megahertz, amd_compute_high_megahertz; /* limits that were set */
    uint32_t amd_memory_low_megahertz, amd_memory_high_megahertz;   /* 0: none was */
    uint32_t amd_ecc_corrected_per_second;                       /* an error storm */
    uint32_t amd_lost;                                           /* 1: off the bus */

    /* Of NVIDIA's parts only. A figure that is HAL_UNKNOWN is one that the part does not have. */
    uint32_t nvidia_lost; /* 1: it has fallen off the bus */
    uint32_t nvidia_links, nvidia_links_down; /* NVLinks; those that are down as bits */
    uint32_t nvidia_switches, nvidia_switch_bus; /* they end at these NVSwitches, in turn */
    int64_t nvidia_link_version, nvidia_link_megabytes_per_second;
    int64_t nvidia_link_rx_kibibytes, nvidia_link_tx_kibibytes; /* of each link */
    int64_t nvidia_link_crc_errors, nvidia_link_replay_errors, nvidia_link_recovery_errors;
    int64_t nvidia_encoder_percent, nvidia_decoder_percent, nvidia_jpeg_percent, nvidia_ofa_percent;
    int64_t nvidia_power_instant_milliwatts, nvidia_power_default_milliwatts;
    int64_t nvidia_temperature_gpu_max_celsius, nvidia_temperature_memory_max_celsius;
    int64_t nvidia_graphics_megahertz, nvidia_graphics_max_megahertz;
    int64_t nvidia_sm_megahertz, nvidia_sm_max_megahertz;
    int64_t nvidia_memory_megahertz, nvidia_memory_max_megahertz;
    int64_t nvidia_video_megahertz, nvidia_video_max_megahertz;
    int64_t nvidia_clock_reasons; /* nvmlClocksEventReason... */
    int64_t nvidia_throttled_power_ns, nvidia_throttled_sync_ns, nvidia_throttled_thermal_ns;
    int64_t nvidia_throttled_hardware_thermal_ns, nvidia_throttled_brake_ns;
    int64_t nvidia_pcie_generation, nvidia_pcie_generation_max;
    int64_t nvidia_pcie_width, nvidia_pcie_width_max, nvidia_pcie_replays;
    int64_t nvidia_pcie_rx_kilobytes_per_second, nvidia_pcie_tx_kilobytes_per_second;
    int64_t nvidia_ecc; /* 1: on. The errors below: since the driver was loaded, and ever */
    int64_t nvidia_dram_corrected, nvidia_dram_uncorrected;
    int64_t nvidia_dram_corrected_ever, nvidia_dram_uncorrected_ever;
    int64_t nvidia_sram_corrected, nvidia_sram_uncorrected;
    int64_t nvidia_sram_corrected_ever, nvidia_sram_uncorrected_ever;
    int64_t nvidia_pages_single_bit, nvidia_pages_double_bit, nvidia_pages_pending;
    int64_t nvidia_rows_corrected, nvidia_rows_uncorrected;
    int64_t nvidia_rows_pending, nvidia_rows_failed;
    int64_t nvidia_performance_state, nvidia_persistence, nvidia_compute_mode, nvidia_fan_percent;
    uint32_t nvidia_mig, nvidia_mig_pending; /* 1: partitioned; after the next reset */
    struct hal_machine_mig nvidia_partition[HAL_MACHINE_PARTITIONS];
    int64_t nvidia_bar1_bytes, nvidia_bar1_used_bytes, nvidia_fan_rpm;
    int64_t nvidia_memory_power_milliwatts, nvidia_module_power_milliwatts;
    int64_t nvidia_throttled_reliability_ns, nvidia_throttled_idle_ns, nvidia_throttled_board_ns;
    int64_t nvidia_pcie_rx_bytes, nvidia_pcie_tx_bytes;
    int64_t nvidia_pcie_naks_received, nvidia_pcie_naks_sent;
    int64_t nvidia_ecc_pending;     /* after the next reset; HAL_UNKNOWN: as it is */
    int64_t nvidia_ecc_storm;       /* corrected errors in memory each second, since `created` */
    uint32_t nvidia_locked_graphics_min, nvidia_locked_graphics_max; /* MHz; 0: not locked */
    uint32_t nvidia_locked_memory_min, nvidia_locked_memory_max;

    /* The bridges above it, as below /sys/devices: "pci0000:00/0000:00:01.0". "": not told. */
    char pci_path[HAL_MACHINE_TEXT];
};

/* A limit that the driver holds the programs of a control group to. */
struct hal_machine_hold {
    _Atomic uint32_t state; /* 0: free, 1: being written, 2: holds */
    uint32_t device;
    uint64_t soft, hard;
    char group[HAL_MACHINE_PATH];
};

struct hal_machine {
    char magic[8]; /* "HALMACHN" */
    uint32_t version;
    uint32_t size; /* of this structure */
    uint32_t devices;
    uint32_t cuda_version; /* as cuDriverGetVersion gives it, e.g. 13000 */
    uint32_t hip_version;  /* as hipDriverGetVersion gives it, e.g. 70051831 */
    uint32_t amdsmi_major, amdsmi_minor, amdsmi_release;
    char name[HAL_MACHINE_TEXT];
    char nvidia_driver[HAL_MACHINE_TEXT]; /* e.g. "580.95.05" */
    char nvml_version[HAL_MACHINE_TEXT];  /* e.g. "13.580.95.05" */
    char amd_driver[HAL_MACHINE_TEXT];    /* the amdgpu module's version */
    uint64_t created;                     /* CLOCK_BOOTTIME in nanoseconds: counters start here */
    struct hal_machine_xid nvidia_xid[HAL_MACHINE_XIDS]; /* a ring: the n-th is at n % XIDS */
    _Atomic uint64_t nvidia_xids;                        /* how many there ever were */
    uint32_t amd_root; /* 1: what changes a card is for root only */
    struct hal_machine_amd_event amd_event[HAL_MACHINE_AMD_EVENTS]; /* a ring: n is at n-1 % EVENTS */
    _Atomic uint64_t amd_events;                                    /* how many there ever were */
    struct hal_machine_device device[HAL_LEDGER_DEVICES];
    struct hal_ledger ledger; /* device i here is device i there; limit = memory - reserved */
    struct hal_machine_hold hold[HAL_MACHINE_HOLDS];
    _Alignas(64) uint8_t timeline[HAL_LEDGER_DEVICES][HAL_MACHINE_TIMELINE]; /* emulator/timeline.c */
};

/* Creates the file at `path`, empty of devices, for hal_machine_open. 0, or -1 with errno. */
int hal_machine_create(const char *path, const char *name);

/* Maps it; NULL when it is not a machine file of this version. */
struct hal_machine *hal_machine_open(const char *path);
void hal_machine_close(struct hal_machine *m);

#endif
