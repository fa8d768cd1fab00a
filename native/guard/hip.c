/* HIP runtime: how functions are found, how much memory there is, and the resets of devices. */
#define _GNU_SOURCE
#include "hip.h"

#include <string.h>

#include "charge.h"
#include "pool.h"
#include "slice.h"

#define ROW(function, base) [ROW_##function] = {#function, base, 0, (void *)function, NULL, NULL},
struct guard_row hip_rows[] = {HIP_ROWS(ROW)};

static const char *const sonames[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", NULL};

static void *ask(const struct guard_row *row);
struct guard_family guard_hip = {"hip", sonames, hip_rows, ROW_COUNT, ask, false};

_Thread_local int hip_inside;

HIP_NEEDS(result, hipGetDevice, int *)
HIP_NEEDS(result, hipSetDevice, int)
HIP_NEEDS(result, hipGetDeviceCount, int *)
HIP_NEEDS(result, hipDeviceGetPCIBusId, char *, int, int)
HIP_NEEDS(result, hipGetLastError, void)
HIP_NEEDS(result, hipPeekAtLastError, void)
HIP_NEEDS(result, hipRuntimeGetVersion, int *)

/* ---- entry points ------------------------------------------------------------------------------ */

/* For the version that it has: one name may mean another function in an older one. A name that it does not know
 * becomes its last error, which is taken back. */
static void *ask(const struct guard_row *row) {
    void *found = NULL;
    int status, version = 0;
    if (REAL(hipGetProcAddress) == NULL) return NULL;
    if (hipRuntimeGetVersion_of() != NULL) hipRuntimeGetVersion_of()(&version);
    bool clean = hipPeekAtLastError_of() != NULL && hipPeekAtLastError_of()() == SUCCESS;
    result outcome = REAL(hipGetProcAddress)(row->base, &found, version, 0, &status);
    if (outcome != SUCCESS && clean && hipGetLastError_of() != NULL) hipGetLastError_of()();
    return outcome == SUCCESS ? found : NULL;
}

result hipGetProcAddress(const char *name, void **out, int version, uint64_t flags, int *status) {
    result (*real)(const char *, void **, int, uint64_t, int *) = REAL(hipGetProcAddress);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(name, out, version, flags, status);
    if (outcome == SUCCESS && out != NULL && *out != NULL) *out = guard_swap(&guard_hip, *out);
    return outcome;
}

/* ---- where the caller is ------------------------------------------------------------------------ */

result hip_current_device(int *out) {
    return hipGetDevice_of() != NULL ? hipGetDevice_of()(out) : NOT_INITIALIZED;
}

enum { ORDINALS = 128, ADDRESS = 32 };

/* Partitions of a card differ in their PCI function at most. */
static bool card_of(int ordinal, char out[ADDRESS]) {
    if (hipDeviceGetPCIBusId_of() == NULL || hipDeviceGetPCIBusId_of()(out, ADDRESS, ordinal) != SUCCESS)
        return false;
    char *function = strrchr(out, '.');
    if (function != NULL) *function = 0;
    return true;
}

/* Where there are more ordinals than the slice has devices, these are whole cards, in order. */
unsigned hip_device(int ordinal) {
    char cards[ORDINALS][ADDRESS];
    unsigned known = 0;
    int count = 0;
    if (!slice_is_plural() || ordinal < 0) return 0;
    if (hipGetDeviceCount_of() == NULL || hipGetDeviceCount_of()(&count) != SUCCESS) return (unsigned)ordinal;
    if ((unsigned)count <= slice_devices() || count > ORDINALS || ordinal >= count) return (unsigned)ordinal;
    for (int i = 0; i <= ordinal; i++) {
        if (!card_of(i, cards[known])) return (unsigned)ordinal;
        unsigned same = 0;
        while (same < known && strcmp(cards[same], cards[known]) != 0) same++;
        if (i == ordinal) return same;
        if (same == known) known++;
    }
    return (unsigned)ordinal;
}

/* No address is like it, nor is the number of a pool. */
static uint64_t note_of(int ordinal) { return UINT64_C(0x4849500000000000) | (unsigned)ordinal; }

bool hip_here(unsigned *on, uint64_t *note) {
    int current = 0;
    if (hip_current_device(&current) != SUCCESS) return false;
    *on = hip_device(current);
    *note = note_of(current);
    return true;
}

/* To ask for more than there can be makes the runtime itself keep the error. */
result hip_refusal(void) {
    int on;
    void *none = NULL;
    result state = hip_current_device(&on);
    if (state != SUCCESS) return state;
    if (REAL(hipMalloc) != NULL && REAL(hipMalloc)(&none, SIZE_MAX / 4) == SUCCESS) REAL(hipFree)(none);
    return OUT_OF_MEMORY;
}

int hip_located(struct location where) {
    return where.type == LOCATED_ON_DEVICE ? (int)hip_device(where.id) : -1;
}

/* ---- how much there is -------------------------------------------------------------------------- */

HIP_HOOK(hipMemGetInfo, (size_t *free_bytes, size_t *total_bytes), (free_bytes, total_bytes)) {
    unsigned on;
    uint64_t note;
    pool_settle_freed();
    result outcome = REAL(hipMemGetInfo)(free_bytes, total_bytes);
    if (outcome == SUCCESS && hip_here(&on, &note)) slice_narrow(on, free_bytes, total_bytes);
    return outcome;
}

HIP_HOOK(hipDeviceTotalMem, (size_t *bytes, int device), (bytes, device)) {
    result outcome = REAL(hipDeviceTotalMem)(bytes, device);
    if (outcome == SUCCESS) slice_narrow(hip_device(device), NULL, bytes);
    return outcome;
}

/* Where totalGlobalMem is in hipDeviceProp_t: until ROCm 5, and since 6, which has identities before it. */
enum { TOTAL_R0000 = 256, TOTAL_R0600 = 288 };

static void narrow_properties(void *properties, int device, size_t at) {
    size_t total;
    memcpy(&total, (char *)properties + at, sizeof total);
    slice_narrow(hip_device(device), NULL, &total);
    memcpy((char *)properties + at, &total, sizeof total);
}

#define PROPERTIES(name, at)                                                                         \
    HIP_HOOK(name, (void *out, int device), (out, device)) {                                         \
        result outcome = REAL(name)(out, device);                                                    \
        if (outcome == SUCCESS) narrow_properties(out, device, at);                                  \
        return outcome;                                                                              \
    }
PROPERTIES(hipGetDeviceProperties, TOTAL_R0000)
PROPERTIES(hipGetDevicePropertiesR0000, TOTAL_R0000)
PROPERTIES(hipGetDevicePropertiesR0600, TOTAL_R0600)

/* ---- resets: all memory of the device goes, too -------------------------------------------------- */

static void reset(int ordinal) {
    charge_end_of(note_of(ordinal));
    hip_pools_reset(hip_device(ordinal));
}

HIP_HOOK(hipDeviceReset, (void), ()) {
    int current;
    bool known = hip_current_device(&current) == SUCCESS;
    result outcome = REAL(hipDeviceReset)();
    if (outcome == SUCCESS && known) reset(current);
    return outcome;
}

/* Of the primary context ROCm 6 leaves everything as it is (clr: hip_context.cpp), against what is written of
 * the function. Whether it was ended shows by what happened to a small allocation. */
HIP_HOOK(hipDevicePrimaryCtxReset, (int device), (device)) {
    int before = 0;
    void *probe = NULL;
    bool moved = hip_current_device(&before) == SUCCESS && hipSetDevice_of() != NULL &&
                 hipSetDevice_of()(device) == SUCCESS;
    bool probing = moved && REAL(hipMalloc)(&probe, 1) == SUCCESS;
    result outcome = REAL(hipDevicePrimaryCtxReset)(device);
    bool ended = probing && REAL(hipFree)(probe) != SUCCESS;
    if (ended && hipGetLastError_of() != NULL) hipGetLastError_of()();
    if (outcome == SUCCESS && ended) reset(device);
    if (moved) hipSetDevice_of()(before);
    return outcome;
}

/* ---- synchronization: pools hand back to the device what is over their thresholds ---------------- */

#define SYNCHRONIZE(name, parameters, arguments)                                                     \
    HIP_HOOK(name, parameters, arguments) {                                                          \
        result outcome = REAL(name) arguments;                                                       \
        pool_settle_freed();                                                                         \
        return outcome;                                                                              \
    }
SYNCHRONIZE(hipDeviceSynchronize, (void), ())
SYNCHRONIZE(hipCtxSynchronize, (void), ())
SYNCHRONIZE(hipStreamSynchronize, (void *stream), (stream))
SYNCHRONIZE(hipStreamSynchronize_spt, (void *stream), (stream))
SYNCHRONIZE(hipEventSynchronize, (void *event), (event))
