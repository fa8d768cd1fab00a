/* libamd_smi.so over the emulated machine. What it checks, in which order, and what it answers for
 * a sensor that is not there, follow ROCm/amdsmi, src/amd_smi/amd_smi.cc; units its API pages. */
#define _GNU_SOURCE
#include "amdsmi.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "amdsmi_symbols.h"
#include "emulator.h"

typedef struct hal_machine_device device;

static const uint64_t MIB = 1 << 20;
static const char VENDOR[] = "Advanced Micro Devices Inc. [AMD/ATI]"; /* as pci.ids has 1002 */

static atomic_bool ready;

/* A processor's handle is its description; its socket, which holds nothing else, is its name. */
static unsigned cards(unsigned index[HAL_LEDGER_DEVICES]) { return emulator_devices("amd", index); }
static void *processor(unsigned index) { return emulator_device(index); }
static void *socket_of(unsigned index) { return emulator_device(index)->model; }

static unsigned index_of(const device *d) { return (unsigned)(d - emulator_machine()->device); }

/* How many cards are before this one: the ordinal that every tool of AMD's gives it here. */
static uint32_t position(const device *d) {
    unsigned index[HAL_LEDGER_DEVICES], count = cards(index), at = 0;
    while (at < count && index[at] < index_of(d)) at++;
    return at;
}

static amdsmi_status_t find(const void *handle, const void *out, device **d) {
    unsigned index[HAL_LEDGER_DEVICES];
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (out == NULL || handle == NULL) return AMDSMI_STATUS_INVAL;
    for (unsigned i = 0, count = cards(index); i < count; i++) {
        *d = emulator_device(index[i]);
        if (handle == processor(index[i])) return AMDSMI_STATUS_SUCCESS;
    }
    return AMDSMI_STATUS_NOT_FOUND;
}

/* Declares `d`, the device that was asked about, or leaves with what is wrong with the question. */
#define DEVICE(d, handle, out) \
    device *d = NULL; \
    do { \
        amdsmi_status_t wrong = find(handle, out, &d); \
        if (wrong != AMDSMI_STATUS_SUCCESS) return wrong; \
    } while (0)

#define FUNCTION EMULATOR_EXPORT amdsmi_status_t

/* Whatever its arguments are: they are not looked at. */
#define STUB(name) \
    FUNCTION name(void); \
    FUNCTION name(void) { return ready ? AMDSMI_STATUS_NOT_SUPPORTED : AMDSMI_STATUS_NOT_INIT; }
AMDSMI_UNANSWERED(STUB)

/* A function that gives one number about the device `d`. */
#define FIGURE(name, type, value) \
    FUNCTION name(void *handle, type *out) { \
        DEVICE(d, handle, out); \
        *out = (type)(value); \
        return AMDSMI_STATUS_SUCCESS; \
    }

static uint64_t or_none(int64_t value, uint64_t none) {
    return value == HAL_UNKNOWN ? none : (uint64_t)value;
}

#define COPY(field, text) snprintf(field, sizeof field, "%s", text)

static const char *digits(const char *hex) { return hex + (strncmp(hex, "0x", 2) == 0 ? 2 : 0); }

static uint64_t used(const device *d) {
    return d->memory_reserved_bytes + emulator_used(index_of(d));
}

/* ---- the library ---------------------------------------------------------------------------- */

FUNCTION amdsmi_init(uint64_t flags) {
    unsigned index[HAL_LEDGER_DEVICES];
    (void)flags; /* there are only GPUs here */
    if (cards(index) == 0) return AMDSMI_STATUS_DRIVER_NOT_LOADED;
    ready = true;
    return AMDSMI_STATUS_SUCCESS;
}

/* Not counted: the first one ends it for everybody, as in the real library. */
FUNCTION amdsmi_shut_down(void) {
    ready = false;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_lib_version(amdsmi_version_t *version) {
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (version == NULL) return AMDSMI_STATUS_INVAL;
    const struct hal_machine *m = emulator_machine();
    *version = (amdsmi_version_t){m->amdsmi_major, m->amdsmi_minor, m->amdsmi_release, "emulated"};
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_status_code_to_string(amdsmi_status_t status, const char **text) {
    if (text == NULL) return AMDSMI_STATUS_INVAL;
    switch (status) {
#define CASE(name, value) \
    case value: *text = "AMDSMI_STATUS_" #name; return AMDSMI_STATUS_SUCCESS;
        AMDSMI_STATUSES(CASE)
    default: *text = "AMDSMI_STATUS_UNKNOWN_ERROR"; return AMDSMI_STATUS_UNKNOWN_ERROR;
    }
}

EMULATOR_EXPORT void amdsmi_free_name_value_pairs(void *pairs) { free(pairs); }

/* ---- sockets and processors ----------------------------------------------------------------- */

FUNCTION amdsmi_get_socket_handles(uint32_t *count, void **handles) {
    unsigned index[HAL_LEDGER_DEVICES], all = cards(index);
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (count == NULL) return AMDSMI_STATUS_INVAL;
    if (handles == NULL || *count > all) *count = all;
    for (uint32_t i = 0; handles != NULL && i < *count; i++) handles[i] = socket_of(index[i]);
    return AMDSMI_STATUS_SUCCESS;
}

static amdsmi_status_t find_socket(const void *handle, const void *out, unsigned *which) {
    unsigned index[HAL_LEDGER_DEVICES];
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    for (unsigned i = 0, count = cards(index); out != NULL && i < count; i++) {
        *which = index[i];
        if (handle == socket_of(index[i])) return AMDSMI_STATUS_SUCCESS;
    }
    return AMDSMI_STATUS_INVAL;
}

FUNCTION amdsmi_get_socket_info(void *handle, size_t length, char *name) {
    unsigned which = 0;
    amdsmi_status_t status = find_socket(handle, name, &which);
    if (status != AMDSMI_STATUS_SUCCESS) return status;
    const device *d = emulator_device(which);
    snprintf(name, length, "%04x:%02x:%02x", d->pci_domain, d->pci_bus, d->pci_device);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_processor_handles(void *handle, uint32_t *count, void **handles) {
    unsigned which = 0;
    amdsmi_status_t status = find_socket(handle, count, &which);
    if (status != AMDSMI_STATUS_SUCCESS) return status;
    if (handles == NULL || *count > 1) *count = 1;
    if (handles != NULL && *count == 1) handles[0] = processor(which);
    return AMDSMI_STATUS_SUCCESS;
}

FIGURE(amdsmi_get_processor_type, uint32_t, AMDSMI_PROCESSOR_TYPE_AMD_GPU)

static amdsmi_bdf_t bdf_of(const device *d) {
    return (uint64_t)d->pci_domain << 16 | d->pci_bus << 8 | d->pci_device << 3 | d->pci_function;
}

FUNCTION amdsmi_get_processor_handle_from_bdf(amdsmi_bdf_t bdf, void **handle) {
    unsigned index[HAL_LEDGER_DEVICES];
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (handle == NULL) return AMDSMI_STATUS_INVAL;
    for (unsigned i = 0, count = cards(index); i < count; i++) {
        if (bdf_of(emulator_device(index[i])) != bdf) continue;
        *handle = processor(index[i]);
        return AMDSMI_STATUS_SUCCESS;
    }
    return AMDSMI_STATUS_API_FAILED;
}

/* ---- identity ------------------------------------------------------------------------------- */

FIGURE(amdsmi_get_gpu_id, uint16_t, d->pci_device_id)
FIGURE(amdsmi_get_gpu_subsystem_id, uint16_t, d->pci_subsystem_id)
FIGURE(amdsmi_get_gpu_device_bdf, amdsmi_bdf_t, bdf_of(d))
/* The same as KFD arranges it (rocm_smi.h, rsmi_dev_pci_id_get). */
FIGURE(amdsmi_get_gpu_bdf_id, uint64_t, (uint64_t)d->pci_domain << 32 | (bdf_of(d) & 0xFFFF))
/* The kernel's numa_node, which is -1 too where there is none. */
FIGURE(amdsmi_get_gpu_topo_numa_affinity, int32_t, d->numa_node)

FUNCTION amdsmi_get_gpu_device_uuid(void *handle, uint32_t *length, char *uuid) {
    DEVICE(d, handle, uuid);
    if (length == NULL || *length < AMDSMI_UUID) return AMDSMI_STATUS_INVAL;
    snprintf(uuid, *length, "%s", d->uuid);
    return AMDSMI_STATUS_SUCCESS;
}

/* KFD numbers the processors' nodes first, one for each NUMA node, and the cards after them. */
static uint32_t kfd_node(const device *d) {
    unsigned index[HAL_LEDGER_DEVICES];
    int64_t last = 0;
    for (unsigned i = 0, count = cards(index); i < count; i++) {
        int64_t node = emulator_device(index[i])->numa_node;
        if (node > last) last = node;
    }
    return (uint32_t)last + 1 + position(d);
}

FUNCTION amdsmi_get_gpu_kfd_info(void *handle, amdsmi_kfd_info_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_kfd_info_t){.kfd_id = AMDSMI_NONE64, .node_id = kfd_node(d)};
    return AMDSMI_STATUS_SUCCESS;
}

/* DRM's first card is the server's own display, as on real nodes: no two numberings agree. */
FUNCTION amdsmi_get_gpu_enumeration_info(void *handle, amdsmi_enumeration_info_t *info) {
    DEVICE(d, handle, info);
    uint32_t at = position(d);
    *info = (amdsmi_enumeration_info_t){
        .drm_render = 128 + at, .drm_card = 1 + at, .hsa_id = kfd_node(d), .hip_id = at};
    snprintf(info->hip_uuid, sizeof info->hip_uuid, "GPU-%s", digits(d->serial));
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_asic_info(void *handle, amdsmi_asic_info_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_asic_info_t){.vendor_id = d->pci_vendor_id,
                                 .subvendor_id = d->pci_subsystem_vendor_id,
                                 .device_id = d->pci_device_id,
                                 .oam_id = AMDSMI_NONE32,
                                 .num_of_compute_units = d->compute_units,
                                 .subsystem_id = d->pci_subsystem_id};
    COPY(info->market_name, d->model);
    COPY(info->vendor_name, VENDOR);
    snprintf(info->asic_serial, sizeof info->asic_serial, "0x%s", digits(d->serial));
    char gfx[32]; /* LLVM's name of the target: 9.0.10 is gfx90a, 11.0.0 is gfx1100 */
    snprintf(gfx, sizeof gfx, "%u%x%x", d->arch_major, d->arch_minor, d->arch_stepping);
    info->target_graphics_version = strtoull(gfx, NULL, 16);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_board_info(void *handle, amdsmi_board_info_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_board_info_t){0};
    COPY(info->product_name, d->model);
    COPY(info->manufacturer_name, VENDOR);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_driver_info(void *handle, amdsmi_driver_info_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_driver_info_t){.driver_name = "amdgpu"};
    COPY(info->driver_version, emulator_machine()->amd_driver);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_topo_get_numa_node_number(void *handle, uint32_t *node) {
    DEVICE(d, handle, node);
    if (d->numa_node == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    *node = (uint32_t)d->numa_node;
    return AMDSMI_STATUS_SUCCESS;
}

/* Cards from MI300 (gfx94x) on can be divided; the emulated ones are whole. */
static amdsmi_status_t mode(void *handle, char *text, uint32_t length, const char *now) {
    DEVICE(d, handle, text);
    if (length == 0) return AMDSMI_STATUS_INVAL;
    if (d->arch_major != 9 || d->arch_minor < 4) return AMDSMI_STATUS_NOT_SUPPORTED;
    int needed = snprintf(text, length, "%s", now);
    return (uint32_t)needed < length ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_INSUFFICIENT_SIZE;
}

FUNCTION amdsmi_get_gpu_compute_partition(void *handle, char *text, uint32_t length) {
    return mode(handle, text, length, "SPX");
}

FUNCTION amdsmi_get_gpu_memory_partition(void *handle, char *text, uint32_t length) {
    return mode(handle, text, length, "NPS1");
}

/* ---- memory --------------------------------------------------------------------------------- */

FUNCTION amdsmi_get_gpu_vram_info(void *handle, amdsmi_vram_info_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_vram_info_t){.vram_type = AMDSMI_VRAM_TYPE_UNKNOWN,
                                 .vram_size = d->memory_bytes / MIB,
                                 .vram_bit_width = AMDSMI_NONE32,
                                 .vram_max_bandwidth = AMDSMI_NONE64};
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_vram_usage(void *handle, amdsmi_vram_usage_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_vram_usage_t){.vram_total = (uint32_t)(d->memory_bytes / MIB),
                                  .vram_used = (uint32_t)(used(d) / MIB)};
    return AMDSMI_STATUS_SUCCESS;
}

/* All of the memory is visible to the processor (large BAR); GTT is not described. */
static amdsmi_status_t heap(uint32_t type) {
    if (type > AMDSMI_MEM_TYPE_GTT) return AMDSMI_STATUS_INVAL;
    return type == AMDSMI_MEM_TYPE_GTT ? AMDSMI_STATUS_NOT_SUPPORTED : AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_memory_total(void *handle, uint32_t type, uint64_t *bytes) {
    DEVICE(d, handle, bytes);
    if (heap(type) == AMDSMI_STATUS_SUCCESS) *bytes = d->memory_bytes;
    return heap(type);
}

FUNCTION amdsmi_get_gpu_memory_usage(void *handle, uint32_t type, uint64_t *bytes) {
    DEVICE(d, handle, bytes);
    if (heap(type) == AMDSMI_STATUS_SUCCESS) *bytes = used(d);
    return heap(type);
}

/* ---- sensors -------------------------------------------------------------------------------- */

FUNCTION amdsmi_get_gpu_activity(void *handle, amdsmi_engine_usage_t *info) {
    DEVICE(d, handle, info);
    *info = (amdsmi_engine_usage_t){
        .gfx_activity = (uint32_t)or_none(d->compute_busy_percent, AMDSMI_NONE16),
        .umc_activity = (uint32_t)or_none(d->memory_busy_percent, AMDSMI_NONE16),
        .mm_activity = AMDSMI_NONE16};
    return AMDSMI_STATUS_SUCCESS;
}

static uint64_t scaled(int64_t milliwatts, int64_t up, int64_t down, uint64_t none) {
    return milliwatts == HAL_UNKNOWN ? none : (uint64_t)(milliwatts * up / down);
}

/* MI300 and later measure the power now, MI200 and Navi an average: the other one is none. The
 * limit is hwmon's power1_cap, which the real library hands on undivided. */
FUNCTION amdsmi_get_power_info(void *handle, amdsmi_power_info_t *info) {
    DEVICE(d, handle, info);
    uint64_t watts = scaled(d->power_milliwatts, 1, 1000, AMDSMI_NONE16);
    bool now = d->arch_major == 9 && d->arch_minor >= 4;
    *info = (amdsmi_power_info_t){
        .socket_power = watts,
        .current_socket_power = now ? (uint32_t)watts : AMDSMI_NONE16,
        .average_socket_power = now ? AMDSMI_NONE16 : (uint32_t)watts,
        .gfx_voltage = AMDSMI_NONE16,
        .soc_voltage = AMDSMI_NONE16,
        .mem_voltage = AMDSMI_NONE16,
        .power_limit = (uint32_t)scaled(d->power_limit_milliwatts, 1000, 1, AMDSMI_NONE16)};
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_power_cap_info(void *handle, uint32_t sensor, amdsmi_power_cap_info_t *info) {
    DEVICE(d, handle, info);
    if (sensor != 0 || d->power_limit_milliwatts == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    uint64_t cap = scaled(d->power_limit_milliwatts, 1000, 1, 0);
    uint64_t most = scaled(d->power_max_milliwatts, 1000, 1, cap);
    *info = (amdsmi_power_cap_info_t){.power_cap = cap,
                                      .default_power_cap = most,
                                      .min_power_cap = scaled(d->power_min_milliwatts, 1000, 1, 0),
                                      .max_power_cap = most};
    return AMDSMI_STATUS_SUCCESS;
}

/* Degrees: the real library divides the kernel's millidegrees. MI300 has no edge sensor. */
FUNCTION amdsmi_get_temp_metric(void *handle, uint32_t sensor, uint32_t metric, int64_t *degrees) {
    DEVICE(d, handle, degrees);
    int64_t value = HAL_UNKNOWN;
    if (sensor == AMDSMI_TEMPERATURE_TYPE_HOTSPOT) {
        if (metric == AMDSMI_TEMP_CURRENT) value = d->temperature_celsius;
        if (metric == AMDSMI_TEMP_CRITICAL) value = d->temperature_slowdown_celsius;
        if (metric == AMDSMI_TEMP_EMERGENCY) value = d->temperature_shutdown_celsius;
    } else if (sensor == AMDSMI_TEMPERATURE_TYPE_VRAM && metric == AMDSMI_TEMP_CURRENT) {
        value = d->memory_temperature_celsius;
    }
    if (value == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    *degrees = value;
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- processes ------------------------------------------------------------------------------ */

static void name_of(pid_t pid, char name[AMDSMI_TEXT]) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) return;
    if (fgets(name, AMDSMI_TEXT, f) != NULL) name[strcspn(name, "\n")] = 0;
    fclose(f);
}

/* Asked with a count of 0 it gives the count; with too short a list what fits, and an error. */
FUNCTION amdsmi_get_gpu_process_list(void *handle, uint32_t *count, amdsmi_proc_info_t *list) {
    DEVICE(d, handle, count);
    struct emulator_process all[HAL_LEDGER_SLOTS];
    uint32_t room = *count, found = emulator_processes(index_of(d), all, HAL_LEDGER_SLOTS);
    if (room != 0 && found != 0 && list == NULL) return AMDSMI_STATUS_INVAL;
    *count = found;
    for (uint32_t i = 0; i < found && i < room; i++) {
        list[i] = (amdsmi_proc_info_t){.pid = (uint32_t)all[i].pid,
                                       .mem = all[i].bytes,
                                       .memory_usage.vram_mem = all[i].bytes,
                                       .cu_occupancy = AMDSMI_NONE32};
        name_of(all[i].pid, list[i].name);
    }
    return room == 0 || room >= found ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_OUT_OF_RESOURCES;
}

enum { PROCESSES = HAL_LEDGER_SLOTS };

/* The processes of all cards, each once. */
static uint32_t collect(amdsmi_process_info_t out[PROCESSES]) {
    unsigned index[HAL_LEDGER_DEVICES];
    uint32_t found = 0;
    for (unsigned i = 0, count = cards(index); i < count; i++) {
        struct emulator_process on[PROCESSES];
        unsigned many = emulator_processes(index[i], on, PROCESSES);
        for (unsigned p = 0; p < many; p++) {
            uint32_t pid = (uint32_t)on[p].pid, at = 0;
            while (at < found && out[at].process_id != pid) at++;
            if (at == PROCESSES) continue; /* they changed while they were read */
            if (at == found)
                out[found++] = (amdsmi_process_info_t){pid, 0, 0, AMDSMI_NONE32};
            out[at].vram_usage += on[p].bytes;
        }
    }
    return found;
}

FUNCTION amdsmi_get_gpu_compute_process_info(amdsmi_process_info_t *list, uint32_t *count) {
    amdsmi_process_info_t all[PROCESSES];
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (count == NULL) return AMDSMI_STATUS_INVAL;
    uint32_t found = collect(all), room = *count;
    for (uint32_t i = 0; list != NULL && i < found && i < room; i++) list[i] = all[i];
    if (list != NULL && room < found) return AMDSMI_STATUS_INSUFFICIENT_SIZE;
    *count = found;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_compute_process_info_by_pid(uint32_t pid, amdsmi_process_info_t *info) {
    amdsmi_process_info_t all[PROCESSES];
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (info == NULL) return AMDSMI_STATUS_INVAL;
    for (uint32_t i = 0, found = collect(all); i < found; i++) {
        if (all[i].process_id != pid) continue;
        *info = all[i];
        return AMDSMI_STATUS_SUCCESS;
    }
    return AMDSMI_STATUS_NOT_FOUND;
}
