/* libamdhip64.so over the emulated machine: devices and memory of the HIP runtime. Nothing needs
 * initialising: any call may come first. */
#define _GNU_SOURCE
#include "hip_parts.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition.h"
#include "timeline.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static unsigned visible[HAL_LEDGER_DEVICES], visible_count; /* the card behind each ordinal */

static _Thread_local int current;
static _Thread_local hipError_t last;

/* Each partition of a card is a device of its own; what it allocates is on the card as a whole. */
static unsigned processors(unsigned parts[HAL_LEDGER_DEVICES]) {
    unsigned cards[HAL_LEDGER_DEVICES], count = 0, all = emulator_devices("amd", cards);
    for (unsigned i = 0; i < all; i++)
        for (unsigned part = emulator_partitions(emulator_device(cards[i])); part > 0; part--)
            if (count < HAL_LEDGER_DEVICES) parts[count++] = cards[i];
    return count;
}

/* An empty variable hides everything from ROCr, but is as good as none to HIP (ROCr: flag.h; clr:
 * rocdevice.cpp). CUDA's is read where HIP's is none. */
static void look(void) {
    unsigned parts[HAL_LEDGER_DEVICES], left[HAL_LEDGER_DEVICES];
    unsigned count = processors(parts);
    count = emulator_visible(getenv("ROCR_VISIBLE_DEVICES"), parts, count, left);
    const char *text = getenv("HIP_VISIBLE_DEVICES");
    if (text == NULL || *text == 0) text = getenv("CUDA_VISIBLE_DEVICES");
    if (text != NULL && *text == 0) text = NULL;
    visible_count = emulator_visible(text, left, count, visible);
}

static unsigned devices(void) {
    pthread_once(&once, look);
    return visible_count;
}

hipError_t hip_answer(hipError_t error) {
    if (error != hipSuccess) last = error;
    return error;
}

hipError_t hip_check(const void *out, int ordinal) {
    unsigned count = devices();
    if (count == 0) return hipErrorNoDevice;
    if (out == NULL) return hipErrorInvalidValue;
    return ordinal >= 0 && (unsigned)ordinal < count ? hipSuccess : hipErrorInvalidDevice;
}

int hip_current(void) { return current; }

unsigned hip_index(int ordinal) { return visible[ordinal]; }

static const struct hal_machine_device *device_of(int ordinal) {
    return emulator_device(visible[ordinal]);
}

/* What KFD lets one partition have. */
static uint64_t memory_of(const struct hal_machine_device *d) {
    return d->memory_bytes / emulator_partitions(d);
}

/* ---- the library ---------------------------------------------------------------------------- */

hipError_t hipInit(unsigned flags) {
    if (devices() == 0) return hip_answer(hipErrorNoDevice);
    return hip_answer(flags == 0 ? hipSuccess : hipErrorInvalidValue);
}

hipError_t hipDriverGetVersion(int *version) {
    ASKED(version, 0);
    *version = (int)emulator_machine()->hip_version;
    return hip_answer(hipSuccess);
}

hipError_t hipRuntimeGetVersion(int *version) { return hipDriverGetVersion(version); }

const char *hipGetErrorName(hipError_t error) {
    switch (error) {
#define NAME(name, value, text) case name: return #name;
        HIP_ERRORS(NAME)
    }
    return "hipErrorUnknown";
}

const char *hipGetErrorString(hipError_t error) {
    switch (error) {
#define TEXT(name, value, text) case name: return text;
        HIP_ERRORS(TEXT)
    }
    return "unknown error";
}

hipError_t hipPeekAtLastError(void) { return last; }

hipError_t hipGetLastError(void) {
    hipError_t error = last;
    last = hipSuccess;
    return error;
}

hipError_t hipGetProcAddress(const char *name, void **function, int version, uint64_t flags,
                             hipDriverProcAddressQueryResult *found) {
#define ROW(result, symbol, parameters) {#symbol, (void *)symbol},
    static const struct {
        const char *name;
        void *function;
    } rows[] = {HIP_FUNCTIONS(ROW)};
    (void)version, (void)flags; /* no function has a second form here */
    if (name == NULL || function == NULL) return hip_answer(hipErrorInvalidValue);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strcmp(rows[i].name, name) != 0) continue;
        *function = rows[i].function;
        if (found != NULL) *found = HIP_GET_PROC_ADDRESS_SUCCESS;
        return hip_answer(hipSuccess);
    }
    *function = NULL;
    if (found != NULL) *found = HIP_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return hip_answer(hipErrorInvalidValue);
}

/* ---- devices -------------------------------------------------------------------------------- */

hipError_t hipGetDeviceCount(int *number) {
    if (number == NULL) return hip_answer(hipErrorInvalidValue);
    *number = (int)devices();
    return hip_answer(*number > 0 ? hipSuccess : hipErrorNoDevice);
}

hipError_t hipSetDevice(int ordinal) {
    ASKED(&ordinal, ordinal);
    current = ordinal;
    return hip_answer(hipSuccess);
}

hipError_t hipGetDevice(int *ordinal) {
    ASKED(ordinal, current);
    *ordinal = current;
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceGet(hipDevice_t *device, int ordinal) {
    ASKED(device, ordinal);
    *device = ordinal;
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceGetName(char *name, int length, hipDevice_t device) {
    ASKED(name, device);
    if (length <= 0) return hip_answer(hipErrorInvalidValue);
    snprintf(name, (size_t)length, "%s", device_of(device)->model);
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceGetUuid(hipUUID *uuid, hipDevice_t device) {
    ASKED(uuid, device);
    const char *serial = device_of(device)->serial;
    char text[sizeof uuid->bytes + 1] = {0};
    snprintf(text, sizeof text, "%s", serial + (strncmp(serial, "0x", 2) == 0 ? 2 : 0));
    memcpy(uuid->bytes, text, sizeof uuid->bytes);
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceGetPCIBusId(char *id, int length, int ordinal) {
    ASKED(id, ordinal);
    const struct hal_machine_device *d = device_of(ordinal);
    char text[32];
    int needed = snprintf(text, sizeof text, "%04x:%02x:%02x.%x", d->pci_domain, d->pci_bus,
                          d->pci_device, d->pci_function);
    if (length <= needed) return hip_answer(hipErrorInvalidValue);
    memcpy(id, text, (size_t)needed + 1);
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceTotalMem(size_t *bytes, hipDevice_t device) {
    ASKED(bytes, device);
    *bytes = memory_of(device_of(device));
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceGetAttribute(int *value, hipDeviceAttribute_t which, int ordinal) {
    ASKED(value, ordinal);
    const struct hal_machine_device *d = device_of(ordinal);
    switch (which) {
    case hipDeviceAttributeIntegrated: *value = 0; break;
    case hipDeviceAttributeComputeCapabilityMajor: *value = (int)d->arch_major; break;
    case hipDeviceAttributeComputeCapabilityMinor: *value = (int)d->arch_minor; break;
    case hipDeviceAttributeMultiprocessorCount: 
        *value = (int)(d->compute_units / emulator_partitions(d));
        break;
    case hipDeviceAttributePciBusId: *value = (int)d->pci_bus; break;
    case hipDeviceAttributePciDeviceId: *value = (int)d->pci_device; break;
    case hipDeviceAttributePciDomainID: *value = (int)d->pci_domain; break;
    case hipDeviceAttributeWarpSize: *value = d->arch_major < 10 ? 64 : 32; break;
    default: return hip_answer(hipErrorInvalidValue);
    }
    return hip_answer(hipSuccess);
}

hipError_t hipDeviceSynchronize(void) {
    ASKED(&current, current);
    timeline_wait(visible[current], timeline_mark(visible[current]));
    hip_pools_release();
    return hip_answer(hipSuccess);
}

hipError_t hipCtxSynchronize(void) { return VIA(hipDeviceSynchronize)(); }

/* Only what differs between the forms: where totalGlobalMem is, and how large the whole is. */
static hipError_t properties(void *out, int ordinal, size_t size, size_t at) {
    ASKED(out, ordinal);
    size_t total = memory_of(device_of(ordinal));
    memset(out, 0, size);
    snprintf(out, 256, "%s", device_of(ordinal)->model);
    memcpy((char *)out + at, &total, sizeof total);
    return hip_answer(hipSuccess);
}

hipError_t hipGetDevicePropertiesR0000(void *out, int ordinal) { return properties(out, ordinal, 792, 256); }
hipError_t hipGetDeviceProperties(void *out, int ordinal) { return properties(out, ordinal, 792, 256); }
hipError_t hipGetDevicePropertiesR0600(void *out, int ordinal) { return properties(out, ordinal, 1472, 288); }

/* ---- what the parts share ------------------------------------------------------------------------ */

/* By the program's handle: RTLD_DEFAULT begins in this library, which is linked with -Bsymbolic. */
void *hip_via(const char *name, void *own) {
    const char *reenters = getenv("HAL_EMULATOR_HIP_REENTERS");
    if (reenters == NULL || *reenters != '1') return own;
    void *program = dlopen(NULL, RTLD_LAZY), *found = program != NULL ? dlsym(program, name) : NULL;
    if (program != NULL) dlclose(program);
    return found != NULL ? found : own;
}

hipError_t hip_index_of(int ordinal, unsigned *index) {
    TRY(hip_check(index, ordinal));
    *index = visible[ordinal];
    return hipSuccess;
}

hipError_t hip_here(unsigned *device) { return hip_index_of(current, device); }

hipError_t hip_owner(uint64_t *owner, unsigned *device) {
    *owner = (uint64_t)current + 1;
    return hip_here(device);
}

hipError_t hipMemGetInfo(size_t *available, size_t *total) {
    ASKED(available, current);
    if (total == NULL) return hip_answer(hipErrorInvalidValue);
    const struct hal_machine_device *d = device_of(current);
    uint64_t taken = d->memory_reserved_bytes + emulator_used(visible[current]);
    uint64_t left = taken < d->memory_bytes ? d->memory_bytes - taken : 0;
    TRY(VIA(hipDeviceTotalMem)(total, current));
    *available = left < *total ? left : *total;
    return hip_answer(hipSuccess);
}
