/* NVML in a slice: memory figures are the slice's, and process lists have only the slice's processes in
 * them. Layouts as nvml.h of CUDA 11 to 13 has them. Other devices are shown as they are. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "slice.h"

enum { SUCCESS = 0, UNINITIALIZED = 1, INSUFFICIENT_SIZE = 7, OUT_OF_MEMORY = 20 };
enum { UUID_ROOM = 96, MOST = 1 << 20 };

typedef int result; /* nvmlReturn_t */

struct memory { /* nvmlMemory_t */
    unsigned long long total, free, used;
};
struct memory_v2 { /* nvmlMemory_v2_t */
    unsigned version;
    unsigned long long total, reserved, free, used;
};
struct process_v1 { /* nvmlProcessInfo_v1_t */
    unsigned pid;
    unsigned long long bytes;
};
struct process_v2 { /* nvmlProcessInfo_v2_t, also of the _v3 functions */
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

HOOK result nvmlDeviceGetMemoryInfo(void *of, struct memory *out);
HOOK result nvmlDeviceGetMemoryInfo_v2(void *of, struct memory_v2 *out);

#define LISTS(X)                                                  \
    X(nvmlDeviceGetComputeRunningProcesses, struct process_v1)    \
    X(nvmlDeviceGetComputeRunningProcesses_v2, struct process_v2) \
    X(nvmlDeviceGetComputeRunningProcesses_v3, struct process_v2) \
    X(nvmlDeviceGetGraphicsRunningProcesses, struct process_v1)   \
    X(nvmlDeviceGetGraphicsRunningProcesses_v2, struct process_v2) \
    X(nvmlDeviceGetGraphicsRunningProcesses_v3, struct process_v2) \
    X(nvmlDeviceGetMPSComputeRunningProcesses, struct process_v1) \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v2, struct process_v2) \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v3, struct process_v2)

#define LIST_HOOK(name, type) HOOK result name(void *of, unsigned *count, type *out);
LISTS(LIST_HOOK)

#define INDEX(name, type) ROW_##name,
enum { ROW_nvmlDeviceGetMemoryInfo, ROW_nvmlDeviceGetMemoryInfo_v2, LISTS(INDEX) ROW_COUNT };

#define ROW(name, type) [ROW_##name] = {#name, #name, 0, (void *)name, NULL, NULL},
static struct guard_row rows[] = {
    ROW(nvmlDeviceGetMemoryInfo, ) ROW(nvmlDeviceGetMemoryInfo_v2, ) LISTS(ROW)};

static const char *const sonames[] = {"libnvidia-ml.so.1", "libnvidia-ml.so", NULL};

struct guard_family guard_nvml = {"nvml", sonames, rows, ROW_COUNT, NULL, false};

#define REAL(function) ((__typeof__(&function))guard_real(&guard_nvml, &rows[ROW_##function]))

GUARD_NEEDS(guard_nvml, result, nvmlDeviceGetUUID, void *, char *, unsigned)

/* Which of the slice's devices this is: NVML sees all of the machine, whatever is visible to CUDA. */
static int device_of(void *of) {
    char uuid[UUID_ROOM] = "";
    if (slice_devices() == 0 || nvmlDeviceGetUUID_of() == NULL) return -1;
    if (nvmlDeviceGetUUID_of()(of, uuid, sizeof uuid) != SUCCESS) return -1;
    for (unsigned i = 0; i < slice_devices(); i++) {
        const char *colon = strchr(slice_id(i), ':'); /* vendor:uuid, as hal names a device */
        if (colon != NULL && strcmp(colon + 1, uuid) == 0) return (int)i;
    }
    return -1;
}

/* ---- memory ------------------------------------------------------------------------------------------ */

/* The same figures as cuMemGetInfo gives; used is the whole slice's. */
static bool narrow(void *of, unsigned long long *total, unsigned long long *left, unsigned long long *used) {
    int on = device_of(of);
    uint64_t slice_used, limit;
    if (on < 0) return false;
    slice_account((unsigned)on, &slice_used, &limit);
    uint64_t rest = slice_used < limit ? limit - slice_used : 0;
    if (*total > limit) *total = limit;
    if (*left > rest) *left = rest;
    *used = slice_used < *total ? slice_used : *total;
    return true;
}

result nvmlDeviceGetMemoryInfo(void *of, struct memory *out) {
    result (*real)(void *, struct memory *) = REAL(nvmlDeviceGetMemoryInfo);
    if (real == NULL) return UNINITIALIZED;
    result outcome = real(of, out);
    if (outcome == SUCCESS && slice_active()) narrow(of, &out->total, &out->free, &out->used);
    return outcome;
}

result nvmlDeviceGetMemoryInfo_v2(void *of, struct memory_v2 *out) {
    result (*real)(void *, struct memory_v2 *) = REAL(nvmlDeviceGetMemoryInfo_v2);
    if (real == NULL) return UNINITIALIZED;
    result outcome = real(of, out);
    /* What the driver keeps for itself is not a part of the slice. */
    if (outcome == SUCCESS && slice_active() && narrow(of, &out->total, &out->free, &out->used))
        out->reserved = 0;
    return outcome;
}

/* ---- processes ----------------------------------------------------------------------------------------- */

/* Asks for the whole list, keeps those of the slice, and only then looks at how much room the caller has. */
#define LIST(name, type)                                                                            \
    result name(void *of, unsigned *count, type *out) {                                             \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return UNINITIALIZED;                                                     \
        if (count == NULL || device_of(of) < 0) return real(of, count, out);                        \
        unsigned room = 64, all, own = 0;                                                           \
        type *list = NULL;                                                                          \
        result outcome;                                                                             \
        do {                                                                                        \
            free(list);                                                                             \
            all = room *= 2;                                                                        \
            if ((list = malloc(room * sizeof *list)) == NULL) return OUT_OF_MEMORY;                 \
            outcome = real(of, &all, list);                                                         \
        } while (outcome == INSUFFICIENT_SIZE && room < MOST);                                      \
        for (unsigned i = 0; outcome == SUCCESS && i < all; i++)                                    \
            if (slice_has(list[i].pid)) list[own++] = list[i];                                      \
        if (outcome == SUCCESS && own > *count) outcome = INSUFFICIENT_SIZE;                        \
        if (outcome == SUCCESS && own > 0 && out != NULL) memcpy(out, list, own * sizeof *list);    \
        if (outcome == SUCCESS || outcome == INSUFFICIENT_SIZE) *count = own;                       \
        free(list);                                                                                 \
        return outcome;                                                                             \
    }
LISTS(LIST)
