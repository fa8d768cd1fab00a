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

#include <stdint.h>

#include "hal_ledger.h"

enum { HAL_MACHINE_VERSION = 1, HAL_MACHINE_TEXT = 96 };

enum { HAL_UNKNOWN = -1 };

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
    struct hal_machine_device device[HAL_LEDGER_DEVICES];
    struct hal_ledger ledger; /* device i here is device i there; limit = memory - reserved */
};

/* Creates the file at `path`, empty of devices, for hal_machine_open. 0, or -1 with errno. */
int hal_machine_create(const char *path, const char *name);

/* Maps it; NULL when it is not a machine file of this version. */
struct hal_machine *hal_machine_open(const char *path);
void hal_machine_close(struct hal_machine *m);

#endif
