/* libcuda.so.1 over the emulated machine: the devices whose vendor is "nvidia", as far as
 * CUDA_VISIBLE_DEVICES leaves them. What each call answers is as NVIDIA's "CUDA Driver API" says. */
#define _GNU_SOURCE
#include "cuda.h"

#include <ctype.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_parts.h"
#include "faults.h"
#include "timeline.h"

/* What a program asks while it starts begins with this, so that tests can have it fail or take its time. */
#define FAULTY()                                                                                   \
    do {                                                                                           \
        int status_;                                                                               \
        if (emulator_fault(__func__, &status_)) return (CUresult)status_;                          \
    } while (0)

/* ---- life ------------------------------------------------------------------------------------ */

struct CUctx_st {
    _Atomic unsigned users; /* 0: destroyed, or not made yet */
    CUdevice device;
};

enum { CONTEXTS = 1024, DEPTH = 64 };

static struct CUctx_st primary[HAL_LEDGER_DEVICES], made[CONTEXTS];
static _Thread_local CUcontext stack[DEPTH]; /* the last one is current */
static _Thread_local unsigned depth;

static unsigned visible[HAL_LEDGER_DEVICES]; /* CUDA's ordinal -> index in the machine */
static int devices;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic CUresult state = CUDA_ERROR_NOT_INITIALIZED;
static CUresult started;

/* A child that was forked after cuInit cannot use the driver, nor start it again. */
static void forked(void) {
    if (atomic_load(&state) == CUDA_SUCCESS) started = CUDA_ERROR_NOT_INITIALIZED;
    atomic_store(&state, CUDA_ERROR_NOT_INITIALIZED);
}

static void start(void) {
    unsigned index[HAL_LEDGER_DEVICES];
    unsigned count = emulator_devices("nvidia", index);
    devices = (int)emulator_visible(getenv("CUDA_VISIBLE_DEVICES"), index, count, visible);
    for (int i = 0; i < devices; i++) primary[i].device = i;
    started = devices > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
    pthread_atfork(NULL, NULL, forked);
}

CUDA cuInit(unsigned flags) {
    FAULTY();
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    pthread_once(&once, start);
    if (started == CUDA_SUCCESS) atomic_store_explicit(&state, started, memory_order_release);
    return started;
}

static inline CUresult ready(void) { return atomic_load_explicit(&state, memory_order_acquire); }

CUDA cuDriverGetVersion(int *version) {
    FAULTY();
    if (version == NULL) return CUDA_ERROR_INVALID_VALUE;
    *version = emulator_machine() == NULL ? 0 : (int)emulator_machine()->cuda_version;
    return CUDA_SUCCESS;
}

CUDA cuGetErrorName(CUresult error, const char **out) {
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = NULL;
    switch (error) {
#define NAME_OF(name, number, text)                                                                \
    case name: *out = #name; break;
        CUDA_RESULTS(NAME_OF)
    }
    return *out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUDA cuGetErrorString(CUresult error, const char **out) {
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = NULL;
    switch (error) {
#define TEXT_OF(name, number, text)                                                                \
    case name: *out = text; break;
        CUDA_RESULTS(TEXT_OF)
    }
    return *out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* ---- devices --------------------------------------------------------------------------------- */

CUresult cuda_ready(void) { return ready(); }

CUresult cuda_device(CUdevice device, unsigned *index) {
    TRY(ready());
    if (device < 0 || device >= devices) return CUDA_ERROR_INVALID_DEVICE;
    *index = visible[device];
    return CUDA_SUCCESS;
}

static CUresult check(CUdevice device, const void *out) {
    TRY(ready());
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    return device >= 0 && device < devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static const struct hal_machine_device *of(CUdevice device) {
    return emulator_device(visible[device]);
}

static uint64_t total(CUdevice device) {
    return of(device)->memory_bytes - of(device)->memory_reserved_bytes;
}

CUDA cuDeviceGetCount(int *count) {
    FAULTY();
    TRY(ready());
    if (count == NULL) return CUDA_ERROR_INVALID_VALUE;
    *count = devices;
    return CUDA_SUCCESS;
}

CUDA cuDeviceGet(CUdevice *device, int ordinal) {
    FAULTY();
    TRY(check(ordinal, device));
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUDA cuDeviceGetName(char *name, int length, CUdevice device) {
    FAULTY();
    TRY(check(device, name));
    if (length < 1) return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, (size_t)length, "%s", of(device)->model);
    return CUDA_SUCCESS;
}

/* The 16 bytes that the UUID's text, "GPU-" and hexadecimal digits in groups, stands for. */
CUDA cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    FAULTY();
    TRY(check(device, uuid));
    CUuuid now = {{0}};
    const char *text = strchr(of(device)->uuid, '-');
    for (unsigned digit = 0; text != NULL && *text != 0 && digit < 32; text++) {
        const char *digits = "0123456789abcdef";
        const char *at = strchr(digits, tolower((unsigned char)*text));
        if (at == NULL) continue;
        now.bytes[digit / 2] = (char)(now.bytes[digit / 2] << 4 | (at - digits));
        digit++;
    }
    *uuid = now;
    return CUDA_SUCCESS;
}
ALSO(cuDeviceGetUuid, cuDeviceGetUuid_v2);

CUDA cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    FAULTY();
    TRY(check(device, bytes));
    *bytes = total(device);
    return CUDA_SUCCESS;
}

/* Before CUDA 3.2 sizes had 32 bits; what does not fit says as much as there is room for. */
CUDA cuDeviceTotalMem(unsigned *bytes, CUdevice device) {
    TRY(check(device, bytes));
    *bytes = total(device) < UINT32_MAX ? (unsigned)total(device) : UINT32_MAX;
    return CUDA_SUCCESS;
}

CUDA cuDeviceGetAttribute(int *out, CUdevice_attribute attribute, CUdevice device) {
    FAULTY();
    TRY(check(device, out));
    const struct hal_machine_device *d = of(device);
    uint32_t value;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: value = 32; break; /* of every capability so far */
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: value = d->compute_units; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: value = 0; break; /* default: shared */
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: value = d->pci_bus; break;
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID: value = d->pci_device; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: value = 1; break; /* of every 64-bit process */
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID: value = d->pci_domain; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: value = d->arch_major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: value = d->arch_minor; break;
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID: value = (uint32_t)d->numa_node; break; /* or -1 */
    case CU_DEVICE_ATTRIBUTE_GPU_PCI_DEVICE_ID:
        value = d->pci_device_id << 16 | d->pci_vendor_id;
        break;
    case CU_DEVICE_ATTRIBUTE_GPU_PCI_SUBSYSTEM_ID:
        value = d->pci_subsystem_id << 16 | d->pci_subsystem_vendor_id;
        break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    *out = (int)value;
    return CUDA_SUCCESS;
}

CUDA cuDeviceGetPCIBusId(char *out, int length, CUdevice device) {
    FAULTY();
    TRY(check(device, out));
    const struct hal_machine_device *d = of(device);
    char text[48];
    int written = snprintf(text, sizeof text, "%04X:%02X:%02X.%X", d->pci_domain, d->pci_bus,
                           d->pci_device, d->pci_function);
    if (length <= written) return CUDA_ERROR_INVALID_VALUE;
    strcpy(out, text);
    return CUDA_SUCCESS;
}

/* ---- contexts -------------------------------------------------------------------------------- */

/* Contexts come from two arrays, so that any handle can be checked. */
static bool within(CUcontext context, struct CUctx_st *array, size_t bytes) {
    uintptr_t from = (uintptr_t)context - (uintptr_t)array; /* huge when it lies before */
    return from < bytes && from % sizeof *array == 0;
}

static inline bool alive(CUcontext context) {
    return atomic_load_explicit(&context->users, memory_order_acquire) > 0;
}

static CUresult usable(CUcontext context) {
    if (!within(context, made, sizeof made) && !within(context, primary, sizeof primary))
        return CUDA_ERROR_INVALID_CONTEXT;
    return alive(context) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

static inline CUresult current(CUcontext *out) {
    TRY(ready());
    if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
    *out = stack[depth - 1];
    return alive(*out) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult cuda_current(unsigned *device) {
    CUcontext context;
    TRY(current(&context));
    *device = visible[context->device];
    return CUDA_SUCCESS;
}

CUresult cuda_owner(uint64_t *owner, unsigned *device) {
    CUcontext context;
    TRY(current(&context));
    *owner = (uint64_t)(uintptr_t)context;
    *device = visible[context->device];
    return CUDA_SUCCESS;
}

CUDA cuCtxPushCurrent_v2(CUcontext context) {
    TRY(ready());
    TRY(usable(context));
    if (depth == DEPTH) return CUDA_ERROR_OUT_OF_MEMORY;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}
ALSO(cuCtxPushCurrent, cuCtxPushCurrent_v2);

CUDA cuCtxPopCurrent_v2(CUcontext *out) {
    TRY(ready());
    if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (out != NULL) *out = stack[depth];
    return CUDA_SUCCESS;
}
ALSO(cuCtxPopCurrent, cuCtxPopCurrent_v2);

CUDA cuCtxSetCurrent(CUcontext context) {
    TRY(ready());
    if (context == NULL) { /* the same as popping, and no error when there is nothing to pop */
        if (depth > 0) depth--;
        return CUDA_SUCCESS;
    }
    if (depth == 0) return cuCtxPushCurrent_v2(context);
    TRY(usable(context));
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

CUDA cuCtxGetCurrent(CUcontext *out) {
    TRY(ready());
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = depth > 0 ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

CUDA cuCtxCreate_v2(CUcontext *out, unsigned flags, CUdevice device) {
    FAULTY();
    (void)flags; /* how the processor waits, and the like: nothing here waits */
    TRY(check(device, out));
    if (depth == DEPTH) return CUDA_ERROR_OUT_OF_MEMORY;
    for (CUcontext c = made; c < made + CONTEXTS; c++) {
        unsigned unused = 0;
        if (!atomic_compare_exchange_strong(&c->users, &unused, 1)) continue;
        c->device = device;
        *out = stack[depth++] = c;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}
ALSO(cuCtxCreate, cuCtxCreate_v2);

CUDA cuCtxCreate_v3(CUcontext *out, void *affinities, int count, unsigned flags, CUdevice device) {
    (void)affinities;
    return count == 0 ? cuCtxCreate_v2(out, flags, device) : CUDA_ERROR_NOT_SUPPORTED;
}

CUDA cuCtxCreate_v4(CUcontext *out, void *parameters, unsigned flags, CUdevice device) {
    return parameters == NULL ? cuCtxCreate_v2(out, flags, device) : CUDA_ERROR_NOT_SUPPORTED;
}

CUDA cuCtxDestroy_v2(CUcontext context) {
    TRY(ready());
    if (!within(context, made, sizeof made)) return CUDA_ERROR_INVALID_CONTEXT;
    if (atomic_exchange(&context->users, 0) == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (depth > 0 && stack[depth - 1] == context) depth--;
    emulator_free_of((uint64_t)(uintptr_t)context);
    return CUDA_SUCCESS;
}
ALSO(cuCtxDestroy, cuCtxDestroy_v2);

CUDA cuCtxGetDevice(CUdevice *device) {
    CUcontext context;
    TRY(current(&context));
    if (device == NULL) return CUDA_ERROR_INVALID_VALUE;
    *device = context->device;
    return CUDA_SUCCESS;
}

CUDA cuCtxGetDevice_v2(CUdevice *device, CUcontext context) {
    if (context == NULL) return cuCtxGetDevice(device);
    TRY(ready());
    TRY(usable(context));
    if (device == NULL) return CUDA_ERROR_INVALID_VALUE;
    *device = context->device;
    return CUDA_SUCCESS;
}

CUDA cuCtxSynchronize(void) {
    unsigned device;
    TRY(cuda_current(&device));
    timeline_wait(device, timeline_mark(device));
    cuda_pools_release();
    return CUDA_SUCCESS;
}

CUDA cuCtxSynchronize_v2(CUcontext context) {
    if (context == NULL) return cuCtxSynchronize();
    TRY(ready());
    TRY(usable(context));
    timeline_wait(visible[context->device], timeline_mark(visible[context->device]));
    cuda_pools_release();
    return CUDA_SUCCESS;
}

CUDA cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device) {
    FAULTY();
    TRY(check(device, out));
    atomic_fetch_add(&primary[device].users, 1);
    *out = &primary[device];
    return CUDA_SUCCESS;
}

CUDA cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    TRY(check(device, &device));
    unsigned users = atomic_load(&primary[device].users);
    do {
        if (users == 0) return CUDA_ERROR_INVALID_CONTEXT;
    } while (!atomic_compare_exchange_weak(&primary[device].users, &users, users - 1));
    if (users == 1) emulator_free_of((uint64_t)(uintptr_t)&primary[device]);
    return CUDA_SUCCESS;
}
ALSO(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2);

/* Whoever retains it goes on with an empty one. */
CUDA cuDevicePrimaryCtxReset_v2(CUdevice device) {
    TRY(check(device, &device));
    emulator_free_of((uint64_t)(uintptr_t)&primary[device]);
    return CUDA_SUCCESS;
}
ALSO(cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2);

CUDA cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    TRY(check(device, flags));
    if (active == NULL) return CUDA_ERROR_INVALID_VALUE;
    *flags = 0;
    *active = alive(&primary[device]);
    return CUDA_SUCCESS;
}
