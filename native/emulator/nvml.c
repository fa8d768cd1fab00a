/* libnvidia-ml.so.1 over the emulated machine, the devices whose vendor is "nvidia": starting it,
 * finding a device, and what it is. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "nvml_call.h"

static _Atomic unsigned users; /* nvmlInit less nvmlShutdown */

/* ---- life ------------------------------------------------------------------------------------ */

static nvmlReturn_t start(void) {
    unsigned index[HAL_LEDGER_DEVICES];
    if (emulator_devices("nvidia", index) == 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    nvml_find_branch();
    atomic_fetch_add(&users, 1);
    return NVML_SUCCESS;
}

NVML nvmlInitWithFlags(unsigned flags) {
    BEGIN;
    (void)flags; /* they decide what a driver without GPUs answers; here there is no such driver */
    return start();
}

NAMED(nvmlInit_v2, start, (void), ())
NAMED(nvmlInit, start, (void), ())

NVML nvmlShutdown(void) {
    BEGIN;
    unsigned now = atomic_load(&users);
    do {
        if (now == 0) return NVML_ERROR_UNINITIALIZED;
    } while (!atomic_compare_exchange_weak(&users, &now, now - 1));
    return NVML_SUCCESS;
}

EMULATOR_EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
#define TEXT_OF(name, number, text)                                                                \
    case name: return text;
        NVML_RESULTS(TEXT_OF)
    }
    return "Unknown Error";
}

/* ---- what most calls begin and end with ------------------------------------------------------ */

nvmlReturn_t nvml_ready(void) {
    return atomic_load(&users) > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvml_device_of(nvmlDevice_t handle, const struct hal_machine_device **out) {
    struct nvml_mig mig;
    TRY(nvml_ready());
    const struct hal_machine *m = emulator_machine();
    uintptr_t from = (uintptr_t)handle - (uintptr_t)m->device; /* huge when it lies before them */
    if (nvml_mig_of(handle, &mig)) return NVML_ERROR_NOT_SUPPORTED; /* only the physical GPU can */
    CHECK(from < m->devices * sizeof *m->device && from % sizeof *m->device == 0);
    *out = &m->device[from / sizeof *m->device];
    CHECK(strcmp((*out)->vendor, "nvidia") == 0);
    return (*out)->nvidia_lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

nvmlReturn_t nvml_give_text(const char *text, char *out, unsigned length) {
    CHECK(out != NULL);
    if (*text == 0) return NVML_ERROR_NOT_SUPPORTED;
    if (strlen(text) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}

nvmlReturn_t nvml_give(int64_t figure, unsigned *out) {
    CHECK(out != NULL);
    if (figure == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    *out = (unsigned)figure;
    return NVML_SUCCESS;
}

nvmlReturn_t nvml_give_wide(int64_t figure, unsigned long long *out) {
    CHECK(out != NULL);
    if (figure == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    *out = (unsigned long long)figure;
    return NVML_SUCCESS;
}

/* ---- the system ------------------------------------------------------------------------------ */

NVML nvmlSystemGetDriverVersion(char *version, unsigned length) {
    READY;
    return nvml_give_text(nvml_driver(), version, length);
}

NVML nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    READY;
    return nvml_give_text(emulator_machine()->nvml_version, version, length);
}

static nvmlReturn_t cuda_version(int *version) {
    TRY(nvml_ready());
    CHECK(version != NULL);
    *version = (int)emulator_machine()->cuda_version;
    return NVML_SUCCESS;
}
NAMED(nvmlSystemGetCudaDriverVersion_v2, cuda_version, (int *version), (version))
NAMED(nvmlSystemGetCudaDriverVersion, cuda_version, (int *version), (version))

NVML nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    READY;
    CHECK(name != NULL && length > 0);
    char path[32], command[4096];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return NVML_ERROR_NOT_FOUND;
    command[fread(command, 1, sizeof command - 1, file)] = 0; /* its first string is the name */
    fclose(file);
    snprintf(name, length, "%s", command); /* cut to the length, as the guide says */
    return NVML_SUCCESS;
}

/* ---- finding a device ------------------------------------------------------------------------ */

static nvmlReturn_t count_devices(unsigned *count) {
    unsigned index[HAL_LEDGER_DEVICES];
    TRY(nvml_ready());
    CHECK(count != NULL);
    *count = emulator_devices("nvidia", index);
    return NVML_SUCCESS;
}
NAMED(nvmlDeviceGetCount_v2, count_devices, (unsigned *count), (count))
NAMED(nvmlDeviceGetCount, count_devices, (unsigned *count), (count))

static nvmlReturn_t by_index(unsigned which, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES];
    TRY(nvml_ready());
    CHECK(handle != NULL && which < emulator_devices("nvidia", index));
    const struct hal_machine_device *d = emulator_device(index[which]);
    if (d->nvidia_lost) return NVML_ERROR_GPU_IS_LOST;
    *handle = nvml_handle(d);
    return NVML_SUCCESS;
}
NAMED(nvmlDeviceGetHandleByIndex_v2, by_index, (unsigned index, nvmlDevice_t *handle),
      (index, handle))
NAMED(nvmlDeviceGetHandleByIndex, by_index, (unsigned index, nvmlDevice_t *handle), (index, handle))

/* Its place among the devices of this vendor. */
static unsigned place(const struct hal_machine_device *d) {
    unsigned index[HAL_LEDGER_DEVICES], which = 0;
    emulator_devices("nvidia", index);
    while (index[which] != nvml_index(d)) which++;
    return which;
}
FIGURE(nvmlDeviceGetIndex, place(d))
FIGURE(nvmlDeviceGetMinorNumber, place(d)) /* /dev/nvidia0 is the first, and so on */

NVML nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES];
    READY;
    CHECK(uuid != NULL && handle != NULL);
    unsigned count = emulator_devices("nvidia", index);
    for (unsigned i = 0; i < count; i++)
        if (strcmp(emulator_device(index[i])->uuid, uuid) == 0) return by_index(i, handle);
    nvmlDevice_t mig = nvml_mig_by_uuid(uuid);
    if (mig == NULL) return NVML_ERROR_NOT_FOUND;
    *handle = mig;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES];
    READY;
    CHECK(serial != NULL && handle != NULL);
    unsigned count = emulator_devices("nvidia", index);
    for (unsigned i = 0; i < count; i++)
        if (strcmp(emulator_device(index[i])->serial, serial) == 0) return by_index(i, handle);
    return NVML_ERROR_NOT_FOUND;
}

/* "domain:bus:device.function", where the domain and the function may be left out. */
static nvmlReturn_t by_bus_id(const char *text, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES], domain = 0, bus = 0, device = 0, function = 0;
    TRY(nvml_ready());
    CHECK(text != NULL && handle != NULL);
    if (sscanf(text, "%x:%x:%x.%x", &domain, &bus, &device, &function) < 3) {
        domain = 0;
        CHECK(sscanf(text, "%x:%x.%x", &bus, &device, &function) >= 2);
    }
    unsigned count = emulator_devices("nvidia", index);
    for (unsigned i = 0; i < count; i++) {
        const struct hal_machine_device *d = emulator_device(index[i]);
        if (d->pci_domain == domain && d->pci_bus == bus && d->pci_device == device &&
            d->pci_function == function)
            return by_index(i, handle);
    }
    return NVML_ERROR_NOT_FOUND;
}
NAMED(nvmlDeviceGetHandleByPciBusId_v2, by_bus_id, (const char *text, nvmlDevice_t *handle),
      (text, handle))
NAMED(nvmlDeviceGetHandleByPciBusId, by_bus_id, (const char *text, nvmlDevice_t *handle),
      (text, handle))

/* ---- what a device is ------------------------------------------------------------------------ */

NVML nvmlDeviceGetName(nvmlDevice_t handle, char *out, unsigned length) {
    struct nvml_mig mig;
    char name[2 * HAL_MACHINE_TEXT];
    READY;
    if (nvml_mig_of(handle, &mig)) {
        nvml_mig_name(&mig, name, sizeof name);
        return nvml_give_text(name, out, length);
    }
    FIND(handle);
    return nvml_give_text(d->model, out, length);
}

NVML nvmlDeviceGetUUID(nvmlDevice_t handle, char *out, unsigned length) {
    struct nvml_mig mig;
    char uuid[HAL_MACHINE_TEXT];
    READY;
    if (nvml_mig_of(handle, &mig)) {
        nvml_mig_uuid(&mig, uuid, sizeof uuid);
        return nvml_give_text(uuid, out, length);
    }
    FIND(handle);
    return nvml_give_text(d->uuid, out, length);
}

NVML nvmlDeviceGetSerial(nvmlDevice_t handle, char *out, unsigned length) {
    DEVICE(handle);
    return nvml_give_text(d->serial, out, length);
}

static void bus_id(const struct hal_machine_device *d, int digits, char *out, size_t room) {
    snprintf(out, room, "%0*X:%02X:%02X.%X", digits, d->pci_domain, d->pci_bus, d->pci_device,
             d->pci_function);
}

NVML nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, nvmlPciInfo_t *out) {
    DEVICE(handle);
    CHECK(out != NULL);
    *out = (nvmlPciInfo_t){
        .domain = d->pci_domain,
        .bus = d->pci_bus,
        .device = d->pci_device,
        .pciDeviceId = d->pci_device_id << 16 | d->pci_vendor_id,
        .pciSubSystemId = d->pci_subsystem_id << 16 | d->pci_subsystem_vendor_id,
    };
    bus_id(d, 4, out->busIdLegacy, sizeof out->busIdLegacy);
    bus_id(d, 8, out->busId, sizeof out->busId);
    return NVML_SUCCESS;
}

static nvmlReturn_t short_pci_info(nvmlDevice_t handle, nvmlPciInfo_v2_t *out) {
    FIND(handle);
    CHECK(out != NULL);
    *out = (nvmlPciInfo_v2_t){.domain = d->pci_domain,
                              .bus = d->pci_bus,
                              .device = d->pci_device,
                              .pciDeviceId = d->pci_device_id << 16 | d->pci_vendor_id,
                              .pciSubSystemId =
                                  d->pci_subsystem_id << 16 | d->pci_subsystem_vendor_id};
    bus_id(d, 4, out->busId, sizeof out->busId);
    return NVML_SUCCESS;
}
NAMED(nvmlDeviceGetPciInfo_v2, short_pci_info, (nvmlDevice_t handle, nvmlPciInfo_v2_t *out),
      (handle, out))
NAMED(nvmlDeviceGetPciInfo, short_pci_info, (nvmlDevice_t handle, nvmlPciInfo_v2_t *out),
      (handle, out))

/* The machine file has no brand; the marketing name says it. */
static int brand(const char *model) {
    static const struct {
        const char *word;
        int brand;
    } known[] = {
        {"GeForce", NVML_BRAND_GEFORCE}, {"TITAN", NVML_BRAND_TITAN},
        {"Quadro RTX", NVML_BRAND_QUADRO_RTX}, {"Quadro", NVML_BRAND_QUADRO},
        {"Tesla", NVML_BRAND_TESLA}, {"RTX", NVML_BRAND_NVIDIA_RTX}, {"NVIDIA", NVML_BRAND_NVIDIA},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(model, known[i].word) != NULL) return known[i].brand;
    return NVML_BRAND_UNKNOWN;
}

/* By compute capability: CUDA C++ Programming Guide, "Compute Capabilities". */
static unsigned architecture(unsigned major, unsigned minor) {
    switch (major) {
    case 3: return NVML_DEVICE_ARCH_KEPLER;
    case 5: return NVML_DEVICE_ARCH_MAXWELL;
    case 6: return NVML_DEVICE_ARCH_PASCAL;
    case 7: return minor < 5 ? NVML_DEVICE_ARCH_VOLTA : NVML_DEVICE_ARCH_TURING;
    case 8: return minor < 9 ? NVML_DEVICE_ARCH_AMPERE : NVML_DEVICE_ARCH_ADA;
    case 9: return NVML_DEVICE_ARCH_HOPPER;
    case 10: case 11: case 12: return NVML_DEVICE_ARCH_BLACKWELL;
    default: return NVML_DEVICE_ARCH_UNKNOWN;
    }
}

FIGURE(nvmlDeviceGetBrand, brand(d->model))
FIGURE(nvmlDeviceGetArchitecture, architecture(d->arch_major, d->arch_minor))

NVML nvmlDeviceGetCudaComputeCapability(nvmlDevice_t handle, int *major, int *minor) {
    DEVICE(handle);
    CHECK(major != NULL && minor != NULL);
    *major = (int)d->arch_major;
    *minor = (int)d->arch_minor;
    return NVML_SUCCESS;
}

FIGURE(nvmlDeviceGetNumGpuCores, d->cores == 0 ? HAL_UNKNOWN : (int64_t)d->cores)
