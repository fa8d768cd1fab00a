/* libamd_smi.so over the emulated machine: the library itself, its processors and what they are.
 * What is checked, in which order, and what is answered for a sensor that is not there, follow
 * ROCm/amdsmi, src/amd_smi/amd_smi.cc; units its API pages. The rest is in amdsmi_*.c, by topic. */
#define _GNU_SOURCE
#include "amdsmi.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "amdsmi_old.h"
#include "amdsmi_parts.h"
#include "amdsmi_symbols.h"

static const char VENDOR[] = "Advanced Micro Devices Inc. [AMD/ATI]"; /* as pci.ids has 1002 */

static atomic_bool ready;

/* A processor's handle is its place here; a socket, which is one card, is known by its name. */
static processor table[HAL_LEDGER_DEVICES][AMDSMI_XCP];

static bool absent[HAL_LEDGER_DEVICES]; /* they were lost before the library began */

static unsigned cards(unsigned index[HAL_LEDGER_DEVICES]) {
    unsigned count = emulator_devices("amd", index), left = 0;
    for (unsigned i = 0; i < count; i++)
        if (!absent[index[i]]) index[left++] = index[i];
    return left;
}

static void *socket_of(unsigned index) { return emulator_device(index)->model; }

bool amdsmi_ready(void) { return ready; }

/* What was loaded stays what it is, when the machine gets a newer one. */
uint32_t amdsmi_major(void) {
    static _Atomic uint32_t major;
    uint32_t none = 0;
    atomic_compare_exchange_strong(&major, &none, emulator_machine()->amdsmi_major);
    return major;
}

unsigned amdsmi_index(const device *d) { return (unsigned)(d - emulator_machine()->device); }

amdsmi_status_t amdsmi_named(const void *handle, const void *out, const processor **found) {
    uintptr_t start = (uintptr_t)table, at = (uintptr_t)handle;
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (out == NULL || handle == NULL) return AMDSMI_STATUS_INVAL;
    if (at < start || at >= start + sizeof table || (at - start) % sizeof **table != 0)
        return AMDSMI_STATUS_NOT_FOUND;
    const processor *p = handle;
    if (p->card == NULL || p->partition >= emulator_partitions(p->card))
        return AMDSMI_STATUS_NOT_FOUND;
    *found = p;
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_find(const void *handle, const void *out, const processor **found) {
    amdsmi_status_t status = amdsmi_named(handle, out, found);
    if (status == AMDSMI_STATUS_SUCCESS && (*found)->card->amd_lost) return AMDSMI_STATUS_NOT_FOUND;
    return status;
}

void amdsmi_each(amdsmi_visit visit, void *context) {
    unsigned index[HAL_LEDGER_DEVICES], position = 0;
    for (unsigned i = 0, count = cards(index); i < count; i++) {
        unsigned parts = emulator_partitions(emulator_device(index[i]));
        for (unsigned part = 0; part < parts; part++)
            if (!visit(&table[index[i]][part], position++, context)) return;
    }
}

struct search {
    const processor *p;
    unsigned position;
};

static bool reached(const processor *p, unsigned position, void *context) {
    struct search *search = context;
    search->position = position;
    return p != search->p;
}

unsigned amdsmi_position(const processor *p) {
    struct search search = {p, 0};
    amdsmi_each(reached, &search);
    return search.position;
}

/* The number of a partition is its function on the PCI bus, where there is no such function. */
amdsmi_bdf_t amdsmi_bdf(const processor *p) {
    const device *d = p->card;
    return (uint64_t)d->pci_domain << 16 | d->pci_bus << 8 | d->pci_device << 3 |
           (d->pci_function + p->partition);
}

uint64_t amdsmi_age(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    uint64_t at = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    return at - emulator_machine()->created;
}

/* Whatever its arguments are: they are not looked at. */
#define STUB(name) \
    FUNCTION name(void); \
    FUNCTION name(void) { \
        FAULTS; \
        return ready ? AMDSMI_STATUS_NOT_SUPPORTED : AMDSMI_STATUS_NOT_INIT; \
    }
AMDSMI_UNANSWERED(STUB)

#define COPY(field, text) snprintf(field, sizeof field, "%s", text)

static const char *digits(const char *hex) { return hex + (strncmp(hex, "0x", 2) == 0 ? 2 : 0); }

/* ---- the library ---------------------------------------------------------------------------- */

FUNCTION amdsmi_init(uint64_t flags) {
    FAULTS;
    unsigned index[HAL_LEDGER_DEVICES], all = emulator_devices("amd", index);
    (void)flags; /* there are only GPUs here */
    for (unsigned i = 0; i < all; i++) absent[index[i]] = emulator_device(index[i])->amd_lost;
    unsigned count = cards(index);
    if (count == 0) return AMDSMI_STATUS_DRIVER_NOT_LOADED;
    for (unsigned i = 0; i < count; i++)
        for (unsigned part = 0; part < AMDSMI_XCP; part++)
            table[index[i]][part] = (processor){emulator_device(index[i]), part};
    ready = true;
    return AMDSMI_STATUS_SUCCESS;
}

/* Not counted: the first one ends it for everybody, as in the real library. */
FUNCTION amdsmi_shut_down(void) {
    FAULTS;
    ready = false;
    return AMDSMI_STATUS_SUCCESS;
}

/* Library 24 has a year and ROCm's major version before its own; 25 the year and its major version,
 * which is the same number; 26 no year any more. */
FUNCTION amdsmi_get_lib_version(amdsmi_version_t *version) {
    FAULTS;
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (version == NULL) return AMDSMI_STATUS_INVAL;
    const struct hal_machine *m = emulator_machine();
    uint32_t major = amdsmi_major();
    uint32_t now[] = {major, m->amdsmi_minor, m->amdsmi_release, 0};
    uint32_t old[] = {major, major == 25 ? 25 : 7, m->amdsmi_minor, m->amdsmi_release};
    memcpy(version, major < 26 ? old : now, sizeof now); /* the last one is padding */
    version->build = "emulated";
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
    FAULTS;
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
    FAULTS;
    unsigned which = 0;
    amdsmi_status_t status = find_socket(handle, name, &which);
    if (status != AMDSMI_STATUS_SUCCESS) return status;
    const device *d = emulator_device(which);
    snprintf(name, length, "%04x:%02x:%02x", d->pci_domain, d->pci_bus, d->pci_device);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_processor_handles(void *handle, uint32_t *count, void **handles) {
    FAULTS;
    unsigned which = 0;
    amdsmi_status_t status = find_socket(handle, count, &which);
    if (status != AMDSMI_STATUS_SUCCESS) return status;
    unsigned all = emulator_partitions(emulator_device(which));
    if (handles == NULL || *count > all) *count = all;
    for (uint32_t part = 0; handles != NULL && part < *count; part++)
        handles[part] = &table[which][part];
    return AMDSMI_STATUS_SUCCESS;
}

FIGURE(PROCESSOR, amdsmi_get_processor_type, uint32_t, AMDSMI_PROCESSOR_TYPE_AMD_GPU)

struct place {
    amdsmi_bdf_t bdf;
    const processor *found;
};

static bool elsewhere(const processor *p, unsigned position, void *context) {
    struct place *place = context;
    (void)position;
    if (amdsmi_bdf(p) == place->bdf) place->found = p;
    return place->found == NULL;
}

FUNCTION amdsmi_get_processor_handle_from_bdf(amdsmi_bdf_t bdf, void **handle) {
    FAULTS;
    struct place place = {bdf, NULL};
    if (!ready) return AMDSMI_STATUS_NOT_INIT;
    if (handle == NULL) return AMDSMI_STATUS_INVAL;
    amdsmi_each(elsewhere, &place);
    if (place.found == NULL) return AMDSMI_STATUS_API_FAILED;
    *handle = (void *)(uintptr_t)place.found;
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- identity ------------------------------------------------------------------------------- */

FIGURE(PROCESSOR, amdsmi_get_gpu_id, uint16_t, d->pci_device_id)
FIGURE(PROCESSOR, amdsmi_get_gpu_subsystem_id, uint16_t, d->pci_subsystem_id)
/* Known since the start, and so of a lost card, too. */
FUNCTION amdsmi_get_gpu_device_bdf(void *handle, amdsmi_bdf_t *bdf) {
    FAULTS;
    const processor *p = NULL;
    amdsmi_status_t status = amdsmi_named(handle, bdf, &p);
    if (status == AMDSMI_STATUS_SUCCESS) *bdf = amdsmi_bdf(p);
    return status;
}
/* The same as KFD arranges it (rocm_smi.h, rsmi_dev_pci_id_get). */
FIGURE(PROCESSOR, amdsmi_get_gpu_bdf_id, uint64_t,
       (uint64_t)d->pci_domain << 32 | (amdsmi_bdf(p) & 0xFFFF))
/* The kernel's numa_node, which is -1 too where there is none. */
FIGURE(PROCESSOR, amdsmi_get_gpu_topo_numa_affinity, int32_t, d->numa_node)

/* Up to library 26 all partitions of a card have one UUID; from 27 on its second byte is theirs. */
FUNCTION amdsmi_get_gpu_device_uuid(void *handle, uint32_t *length, char *uuid) {
    PROCESSOR(handle, uuid);
    if (length == NULL || *length < AMDSMI_UUID) return AMDSMI_STATUS_INVAL;
    snprintf(uuid, *length, "%s", d->uuid);
    if (amdsmi_major() >= 27) {
        char byte[3];
        snprintf(byte, sizeof byte, "%02x", p->partition & 0xFF);
        memcpy(uuid + 2, byte, 2);
    }
    return AMDSMI_STATUS_SUCCESS;
}

/* KFD numbers the host's nodes first, one for each NUMA node, and the processors after them. */
static uint32_t kfd_node(const processor *p) {
    unsigned index[HAL_LEDGER_DEVICES];
    int64_t last = 0;
    for (unsigned i = 0, count = cards(index); i < count; i++) {
        int64_t node = emulator_device(index[i])->numa_node;
        if (node > last) last = node;
    }
    return (uint32_t)last + 1 + amdsmi_position(p);
}

FUNCTION amdsmi_get_gpu_kfd_info(void *handle, amdsmi_kfd_info_t *info) {
    PROCESSOR(handle, info);
    *info = (amdsmi_kfd_info_t){
        .kfd_id = AMDSMI_NONE64, .node_id = kfd_node(p), .current_partition_id = p->partition};
    return AMDSMI_STATUS_SUCCESS;
}

/* DRM's first card is the server's own display, as on real nodes: no two numberings agree. */
FUNCTION amdsmi_get_gpu_enumeration_info(void *handle, amdsmi_enumeration_info_t *info) {
    PROCESSOR(handle, info);
    uint32_t at = amdsmi_position(p);
    *info = (amdsmi_enumeration_info_t){
        .drm_render = 128 + at, .drm_card = 1 + at, .hsa_id = kfd_node(p), .hip_id = at};
    snprintf(info->hip_uuid, sizeof info->hip_uuid, "GPU-%s", digits(d->serial));
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_asic_info(void *handle, void *out) {
    PROCESSOR(handle, out);
    amdsmi_asic_info_t info = {.vendor_id = d->pci_vendor_id,
                                 .subvendor_id = d->pci_subsystem_vendor_id,
                                 .device_id = d->pci_device_id,
                                 .oam_id = AMDSMI_NONE32,
                                 .num_of_compute_units = d->compute_units / emulator_partitions(d),
                                 .subsystem_id = d->pci_subsystem_id};
    COPY(info.market_name, d->model);
    COPY(info.vendor_name, VENDOR);
    snprintf(info.asic_serial, sizeof info.asic_serial, "0x%s", digits(d->serial));
    char gfx[32]; /* LLVM's name of the target: 9.0.10 is gfx90a, 11.0.0 is gfx1100 */
    snprintf(gfx, sizeof gfx, "%u%x%x", d->arch_major, d->arch_minor, d->arch_stepping);
    info.target_graphics_version = strtoull(gfx, NULL, 16);
    amdsmi_put_asic(out, &info);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_board_info(void *handle, amdsmi_board_info_t *info) {
    PROCESSOR(handle, info);
    *info = (amdsmi_board_info_t){0};
    COPY(info->product_name, d->model);
    COPY(info->manufacturer_name, VENDOR);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_driver_info(void *handle, void *out) {
    PROCESSOR(handle, out);
    amdsmi_driver_info_t info = {.driver_name = "amdgpu"};
    COPY(info.driver_version, emulator_machine()->amd_driver);
    amdsmi_put_driver(out, &info);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_topo_get_numa_node_number(void *handle, uint32_t *node) {
    PROCESSOR(handle, node);
    if (d->numa_node == HAL_UNKNOWN) return AMDSMI_STATUS_NOT_SUPPORTED;
    *node = (uint32_t)d->numa_node;
    return AMDSMI_STATUS_SUCCESS;
}

