/* libnvidia-ml.so.1 over the emulated machine: the devices whose vendor is "nvidia".
 *
 * A handle is the address of the device's description in the mapped machine, so that it can be
 * checked and stays valid for the life of the process. What each call answers is as NVIDIA's "NVML
 * API Reference Guide" says. */
#define _GNU_SOURCE
#include "nvml.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "emulator.h"

#define NVML EMULATOR_EXPORT nvmlReturn_t

/* Gives an older name to a function whose meaning did not change with the suffix. */
#define ALSO(older, newer) EMULATOR_EXPORT __typeof__(newer) older __attribute__((alias(#newer)))

static _Atomic unsigned users; /* nvmlInit less nvmlShutdown */

#define TRY(expression)                                                                            \
    do {                                                                                           \
        nvmlReturn_t failed = (expression);                                                        \
        if (failed != NVML_SUCCESS) return failed;                                                 \
    } while (0)

/* ---- life ------------------------------------------------------------------------------------ */

NVML nvmlInitWithFlags(unsigned flags) {
    unsigned index[HAL_LEDGER_DEVICES];
    (void)flags; /* they decide what a driver without GPUs answers; here there is no such driver */
    if (emulator_devices("nvidia", index) == 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    atomic_fetch_add(&users, 1);
    return NVML_SUCCESS;
}

NVML nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
ALSO(nvmlInit, nvmlInit_v2);

NVML nvmlShutdown(void) {
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

static nvmlReturn_t ready(void) {
    return atomic_load(&users) > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

static nvmlReturn_t device_of(nvmlDevice_t handle, const struct hal_machine_device **out) {
    TRY(ready());
    const struct hal_machine *m = emulator_machine();
    uintptr_t from = (uintptr_t)handle - (uintptr_t)m->device; /* huge when it lies before them */
    if (from >= m->devices * sizeof *m->device || from % sizeof *m->device != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = &m->device[from / sizeof *m->device];
    return strcmp((*out)->vendor, "nvidia") == 0 ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

/* Begins a call on a device: `d` is its description. */
#define DEVICE(handle)                                                                             \
    const struct hal_machine_device *d;                                                            \
    TRY(device_of(handle, &d));                                                                    \
    (void)d

static unsigned in_machine(const struct hal_machine_device *d) {
    return (unsigned)(d - emulator_machine()->device);
}

static nvmlReturn_t give_text(const char *text, char *out, unsigned length) {
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (*text == 0) return NVML_ERROR_NOT_SUPPORTED;
    if (strlen(text) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}

static nvmlReturn_t give_figure(int64_t figure, unsigned *out) {
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (figure == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    *out = (unsigned)figure;
    return NVML_SUCCESS;
}

/* A call that gives one text, or one figure, of the description `d`. */
#define TEXT(function, member)                                                                     \
    NVML function(nvmlDevice_t handle, char *out, unsigned length) {                               \
        DEVICE(handle);                                                                            \
        return give_text(d->member, out, length);                                                  \
    }
#define FIGURE(function, expression)                                                               \
    NVML function(nvmlDevice_t handle, unsigned *out) {                                            \
        DEVICE(handle);                                                                            \
        return give_figure((expression), out);                                                     \
    }

/* ---- the system ------------------------------------------------------------------------------ */

NVML nvmlSystemGetDriverVersion(char *version, unsigned length) {
    TRY(ready());
    return give_text(emulator_machine()->nvidia_driver, version, length);
}

NVML nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    TRY(ready());
    return give_text(emulator_machine()->nvml_version, version, length);
}

NVML nvmlSystemGetCudaDriverVersion_v2(int *version) {
    TRY(ready());
    if (version == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *version = (int)emulator_machine()->cuda_version;
    return NVML_SUCCESS;
}
ALSO(nvmlSystemGetCudaDriverVersion, nvmlSystemGetCudaDriverVersion_v2);

NVML nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    TRY(ready());
    if (name == NULL || length == 0) return NVML_ERROR_INVALID_ARGUMENT;
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

NVML nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned index[HAL_LEDGER_DEVICES];
    TRY(ready());
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *count = emulator_devices("nvidia", index);
    return NVML_SUCCESS;
}
ALSO(nvmlDeviceGetCount, nvmlDeviceGetCount_v2);

NVML nvmlDeviceGetHandleByIndex_v2(unsigned which, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES];
    TRY(ready());
    if (handle == NULL || which >= emulator_devices("nvidia", index))
        return NVML_ERROR_INVALID_ARGUMENT;
    *handle = (nvmlDevice_t)(void *)emulator_device(index[which]);
    return NVML_SUCCESS;
}
ALSO(nvmlDeviceGetHandleByIndex, nvmlDeviceGetHandleByIndex_v2);

NVML nvmlDeviceGetIndex(nvmlDevice_t handle, unsigned *out) {
    unsigned index[HAL_LEDGER_DEVICES], which = 0;
    DEVICE(handle);
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    emulator_devices("nvidia", index);
    while (index[which] != in_machine(d)) which++;
    *out = which;
    return NVML_SUCCESS;
}
ALSO(nvmlDeviceGetMinorNumber, nvmlDeviceGetIndex); /* /dev/nvidia0 is the first, and so on */

NVML nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES];
    TRY(ready());
    if (uuid == NULL || handle == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned count = emulator_devices("nvidia", index);
    for (unsigned i = 0; i < count; i++)
        if (strcmp(emulator_device(index[i])->uuid, uuid) == 0)
            return nvmlDeviceGetHandleByIndex_v2(i, handle);
    return NVML_ERROR_NOT_FOUND;
}

/* "domain:bus:device.function", where the domain and the function may be left out. */
NVML nvmlDeviceGetHandleByPciBusId_v2(const char *text, nvmlDevice_t *handle) {
    unsigned index[HAL_LEDGER_DEVICES], domain = 0, bus = 0, device = 0, function = 0;
    TRY(ready());
    if (text == NULL || handle == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (sscanf(text, "%x:%x:%x.%x", &domain, &bus, &device, &function) < 3) {
        domain = 0;
        if (sscanf(text, "%x:%x.%x", &bus, &device, &function) < 2)
            return NVML_ERROR_INVALID_ARGUMENT;
    }
    unsigned count = emulator_devices("nvidia", index);
    for (unsigned i = 0; i < count; i++) {
        const struct hal_machine_device *d = emulator_device(index[i]);
        if (d->pci_domain == domain && d->pci_bus == bus && d->pci_device == device &&
            d->pci_function == function)
            return nvmlDeviceGetHandleByIndex_v2(i, handle);
    }
    return NVML_ERROR_NOT_FOUND;
}
ALSO(nvmlDeviceGetHandleByPciBusId, nvmlDeviceGetHandleByPciBusId_v2);

/* ---- what a device is ------------------------------------------------------------------------ */

TEXT(nvmlDeviceGetName, model)
TEXT(nvmlDeviceGetUUID, uuid)
TEXT(nvmlDeviceGetSerial, serial)

static void bus_id(const struct hal_machine_device *d, int digits, char *out, size_t room) {
    snprintf(out, room, "%0*X:%02X:%02X.%X", digits, d->pci_domain, d->pci_bus, d->pci_device,
             d->pci_function);
}

NVML nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, nvmlPciInfo_t *out) {
    DEVICE(handle);
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
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

NVML nvmlDeviceGetPciInfo_v2(nvmlDevice_t handle, nvmlPciInfo_v2_t *out) {
    nvmlPciInfo_t now;
    TRY(nvmlDeviceGetPciInfo_v3(handle, out == NULL ? NULL : &now));
    *out = (nvmlPciInfo_v2_t){.domain = now.domain,
                              .bus = now.bus,
                              .device = now.device,
                              .pciDeviceId = now.pciDeviceId,
                              .pciSubSystemId = now.pciSubSystemId};
    memcpy(out->busId, now.busIdLegacy, sizeof out->busId);
    return NVML_SUCCESS;
}
ALSO(nvmlDeviceGetPciInfo, nvmlDeviceGetPciInfo_v2);

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
    if (major == NULL || minor == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *major = (int)d->arch_major;
    *minor = (int)d->arch_minor;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetNumGpuCores(nvmlDevice_t handle, unsigned int *cores) {
    DEVICE(handle);
    if (cores == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (d->cores == 0) return NVML_ERROR_NOT_SUPPORTED;
    *cores = d->cores;
    return NVML_SUCCESS;
}

/* ---- how it is doing ------------------------------------------------------------------------- */

NVML nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, nvmlMemory_v2_t *out) {
    DEVICE(handle);
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (out->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    out->total = d->memory_bytes;
    out->reserved = d->memory_reserved_bytes;
    out->used = emulator_used(in_machine(d));
    out->free = out->total - out->reserved - out->used;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *out) {
    nvmlMemory_v2_t now = {.version = nvmlMemory_v2};
    TRY(nvmlDeviceGetMemoryInfo_v2(handle, out == NULL ? NULL : &now));
    *out = (nvmlMemory_t){now.total, now.free, now.used + now.reserved};
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t *out) {
    nvmlUtilization_t now;
    DEVICE(handle);
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    TRY(give_figure(d->compute_busy_percent, &now.gpu));
    TRY(give_figure(d->memory_busy_percent, &now.memory));
    *out = now;
    return NVML_SUCCESS;
}

FIGURE(nvmlDeviceGetPowerUsage, d->power_milliwatts)
FIGURE(nvmlDeviceGetPowerManagementLimit, d->power_limit_milliwatts)
FIGURE(nvmlDeviceGetEnforcedPowerLimit, d->power_limit_milliwatts)
FIGURE(nvmlDeviceGetPowerManagementDefaultLimit, d->power_limit_milliwatts) /* nothing changes it */

NVML nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t handle, unsigned *min,
                                                  unsigned *max) {
    unsigned low, high;
    DEVICE(handle);
    if (min == NULL || max == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    TRY(give_figure(d->power_min_milliwatts, &low));
    TRY(give_figure(d->power_max_milliwatts, &high));
    *min = low;
    *max = high;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetTemperature(nvmlDevice_t handle, unsigned sensor, unsigned *out) {
    DEVICE(handle);
    if (sensor >= NVML_TEMPERATURE_COUNT) return NVML_ERROR_INVALID_ARGUMENT;
    return give_figure(sensor == NVML_TEMPERATURE_GPU ? d->temperature_celsius : HAL_UNKNOWN, out);
}

NVML nvmlDeviceGetTemperatureV(nvmlDevice_t handle, nvmlTemperature_v1_t *out) {
    unsigned now;
    DEVICE(handle);
    if (out == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (out->version != nvmlTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    TRY(nvmlDeviceGetTemperature(handle, out->sensorType, &now));
    out->temperature = (int)now;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetTemperatureThreshold(nvmlDevice_t handle, unsigned which, unsigned *out) {
    DEVICE(handle);
    if (which >= NVML_TEMPERATURE_THRESHOLD_COUNT) return NVML_ERROR_INVALID_ARGUMENT;
    int64_t figure = HAL_UNKNOWN;
    if (which == NVML_TEMPERATURE_THRESHOLD_SHUTDOWN) figure = d->temperature_shutdown_celsius;
    if (which == NVML_TEMPERATURE_THRESHOLD_SLOWDOWN) figure = d->temperature_slowdown_celsius;
    return give_figure(figure, out);
}

/* The call succeeds; each field has an answer of its own. */
NVML nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t *values) {
    struct timespec now;
    DEVICE(handle);
    if (count < 1 || values == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    clock_gettime(CLOCK_REALTIME, &now);
    for (nvmlFieldValue_t *v = values; v < values + count; v++) {
        bool known = v->fieldId == NVML_FI_DEV_MEMORY_TEMP;
        v->timestamp = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        v->latencyUsec = 0;
        v->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        v->value = (nvmlValue_t){.ullVal = 0};
        v->nvmlReturn =
            give_figure(known ? d->memory_temperature_celsius : HAL_UNKNOWN, &v->value.uiVal);
    }
    return NVML_SUCCESS;
}

FIGURE(nvmlDeviceGetPersistenceMode, NVML_FEATURE_DISABLED)
FIGURE(nvmlDeviceGetComputeMode, NVML_COMPUTEMODE_DEFAULT)
FIGURE(nvmlDeviceGetPerformanceState, NVML_PSTATE_0)

/* ---- who uses it ----------------------------------------------------------------------------- */

/* Asked with too little room, the library says how much it needs and writes nothing. */
static nvmlReturn_t processes(nvmlDevice_t handle, unsigned *count,
                              struct emulator_process list[HAL_LEDGER_SLOTS], const void *out) {
    DEVICE(handle);
    if (count == NULL || (*count > 0 && out == NULL)) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = *count;
    *count = emulator_processes(in_machine(d), list, HAL_LEDGER_SLOTS);
    return *count > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

NVML nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned *count,
                                             nvmlProcessInfo_v2_t *out) {
    struct emulator_process list[HAL_LEDGER_SLOTS];
    TRY(processes(handle, count, list, out));
    for (unsigned i = 0; i < *count; i++)
        out[i] = (nvmlProcessInfo_v2_t){(unsigned)list[i].pid, list[i].bytes, ~0u, ~0u};
    return NVML_SUCCESS;
}
ALSO(nvmlDeviceGetComputeRunningProcesses_v2, nvmlDeviceGetComputeRunningProcesses_v3);

NVML nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t handle, unsigned *count,
                                          nvmlProcessInfo_v1_t *out) {
    struct emulator_process list[HAL_LEDGER_SLOTS];
    TRY(processes(handle, count, list, out));
    for (unsigned i = 0; i < *count; i++)
        out[i] = (nvmlProcessInfo_v1_t){(unsigned)list[i].pid, list[i].bytes};
    return NVML_SUCCESS;
}

/* Nothing draws here and no MPS server runs: these lists are empty in every version. */
NVML nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t handle, unsigned *count, void *out) {
    DEVICE(handle);
    if (count == NULL || (*count > 0 && out == NULL)) return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}
ALSO(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlDeviceGetGraphicsRunningProcesses_v3);
ALSO(nvmlDeviceGetGraphicsRunningProcesses, nvmlDeviceGetGraphicsRunningProcesses_v3);
ALSO(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlDeviceGetGraphicsRunningProcesses_v3);
ALSO(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlDeviceGetGraphicsRunningProcesses_v3);
ALSO(nvmlDeviceGetMPSComputeRunningProcesses, nvmlDeviceGetGraphicsRunningProcesses_v3);

/* ---- partitions: MIG is off ------------------------------------------------------------------ */

NVML nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    if (current == NULL || pending == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    /* MIG User Guide, "Supported GPUs": A100 and A30 are 8.0, H100 9.0, B200 10.0. */
    bool capable = d->arch_major == 9 || d->arch_major == 10 ||
                   (d->arch_major == 8 && d->arch_minor == 0);
    if (!capable) return NVML_ERROR_NOT_SUPPORTED;
    *current = *pending = NVML_DEVICE_MIG_DISABLE;
    return NVML_SUCCESS;
}

FIGURE(nvmlDeviceGetMaxMigDeviceCount, 0) /* "zero if MIG is not supported or enabled" */
FIGURE(nvmlDeviceIsMigDeviceHandle, 0)

/* ---- what the machine file does not know ----------------------------------------------------- */

/* The arguments after the handle differ; the C calling conventions let a function ignore them. */
#define NOT_SUPPORTED(function)                                                                    \
    NVML function(nvmlDevice_t handle) {                                                           \
        DEVICE(handle);                                                                            \
        return NVML_ERROR_NOT_SUPPORTED;                                                           \
    }
NOT_SUPPORTED(nvmlDeviceGetBAR1MemoryInfo)
NOT_SUPPORTED(nvmlDeviceGetBoardPartNumber)
NOT_SUPPORTED(nvmlDeviceGetClockInfo)
NOT_SUPPORTED(nvmlDeviceGetCurrPcieLinkGeneration)
NOT_SUPPORTED(nvmlDeviceGetCurrPcieLinkWidth)
NOT_SUPPORTED(nvmlDeviceGetEccMode)
NOT_SUPPORTED(nvmlDeviceGetFanSpeed)
NOT_SUPPORTED(nvmlDeviceGetMaxClockInfo)
NOT_SUPPORTED(nvmlDeviceGetNumaNodeId) /* asks for a GPU that is a NUMA node, as in Grace Hopper */
NOT_SUPPORTED(nvmlDeviceGetTotalEnergyConsumption)
NOT_SUPPORTED(nvmlDeviceGetVbiosVersion)
