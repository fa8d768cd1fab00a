/* What has gone wrong with a device: memory errors, retired pages, remapped rows, and events. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "nvml_call.h"

/* ---- error correction ------------------------------------------------------------------------ */

NVML nvmlDeviceGetEccMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    CHECK(pending != NULL);
    TRY(nvml_give(d->nvidia_ecc, current));
    *pending = d->nvidia_ecc_pending == HAL_UNKNOWN ? *current : (unsigned)d->nvidia_ecc_pending;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetDefaultEccMode(nvmlDevice_t handle, unsigned *mode) {
    DEVICE(handle);
    return nvml_give(d->nvidia_ecc == HAL_UNKNOWN ? HAL_UNKNOWN : 1, mode);
}

int64_t nvml_storm(const struct hal_machine_device *d, int64_t count) {
    struct timespec t;
    if (count == HAL_UNKNOWN || d->nvidia_ecc_storm <= 0) return count;
    clock_gettime(CLOCK_BOOTTIME, &t);
    int64_t ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - (int64_t)emulator_machine()->created;
    return count + ns / 1000000 * d->nvidia_ecc_storm / 1000;
}

static int64_t errors(const struct hal_machine_device *d, unsigned type, unsigned counter,
                      bool sram) {
    const int64_t figures[2][2][2] = {
        {{nvml_storm(d, d->nvidia_dram_corrected), d->nvidia_dram_uncorrected},
         {nvml_storm(d, d->nvidia_dram_corrected_ever), d->nvidia_dram_uncorrected_ever}},
        {{d->nvidia_sram_corrected, d->nvidia_sram_uncorrected},
         {d->nvidia_sram_corrected_ever, d->nvidia_sram_uncorrected_ever}},
    };
    return d->nvidia_ecc == 1 ? figures[sram][counter][type] : HAL_UNKNOWN;
}

NVML nvmlDeviceGetTotalEccErrors(nvmlDevice_t handle, unsigned type, unsigned counter,
                                 unsigned long long *out) {
    unsigned long long dram, sram;
    DEVICE(handle);
    CHECK(type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT);
    CHECK(out != NULL);
    TRY(nvml_give_wide(errors(d, type, counter, false), &dram));
    TRY(nvml_give_wide(errors(d, type, counter, true), &sram));
    *out = dram + sram;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t handle, unsigned type, unsigned counter,
                                     unsigned location, unsigned long long *out) {
    DEVICE(handle);
    CHECK(type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT &&
          location < NVML_MEMORY_LOCATION_COUNT);
    if (location != NVML_MEMORY_LOCATION_DRAM && location != NVML_MEMORY_LOCATION_SRAM)
        return NVML_ERROR_NOT_SUPPORTED;
    return nvml_give_wide(errors(d, type, counter, location == NVML_MEMORY_LOCATION_SRAM), out);
}

/* ---- memory taken out of use ----------------------------------------------------------------- */

static int64_t retired(const struct hal_machine_device *d, unsigned cause) {
    return cause == NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS
               ? d->nvidia_pages_single_bit
               : d->nvidia_pages_double_bit;
}

/* Addresses are made up, the first pages of the memory. */
static nvmlReturn_t retired_pages(nvmlDevice_t handle, unsigned cause, unsigned *count,
                                  unsigned long long *addresses, unsigned long long *times) {
    FIND(handle);
    CHECK(cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT && count != NULL);
    CHECK(*count == 0 || addresses != NULL);
    unsigned pages, room = *count;
    TRY(nvml_give(retired(d, cause), &pages));
    *count = pages;
    if (pages > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < pages; i++) {
        addresses[i] = i * 4096ull;
        if (times != NULL) times[i] = (unsigned long long)nvml_now();
    }
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetRetiredPages(nvmlDevice_t handle, unsigned cause, unsigned *count,
                               unsigned long long *addresses) {
    BEGIN;
    return retired_pages(handle, cause, count, addresses, NULL);
}

NVML nvmlDeviceGetRetiredPages_v2(nvmlDevice_t handle, unsigned cause, unsigned *count,
                                  unsigned long long *addresses, unsigned long long *times) {
    BEGIN;
    return retired_pages(handle, cause, count, addresses, times);
}

FIGURE(nvmlDeviceGetRetiredPagesPendingStatus, d->nvidia_pages_pending)

NVML nvmlDeviceGetRemappedRows(nvmlDevice_t handle, unsigned *corrected, unsigned *uncorrected,
                               unsigned *pending, unsigned *failed) {
    DEVICE(handle);
    CHECK(corrected != NULL && uncorrected != NULL && pending != NULL && failed != NULL);
    TRY(nvml_give(d->nvidia_rows_corrected, corrected));
    TRY(nvml_give(d->nvidia_rows_uncorrected, uncorrected));
    TRY(nvml_give(d->nvidia_rows_pending, pending));
    return nvml_give(d->nvidia_rows_failed, failed);
}

/* ---- events ---------------------------------------------------------------------------------- */

enum {
    EVENTS = nvmlEventTypeXidCriticalError | nvmlEventMigConfigChange |
             nvmlEventTypeSingleBitEccErrorStorm | nvmlEventTypeDramRetirementEvent |
             nvmlEventTypeDramRetirementFailure | nvmlEventTypeNonFatalPoisonError |
             nvmlEventTypeFatalPoisonError | nvmlEventTypeGpuUnavailableError |
             nvmlEventTypeGpuRecoveryAction,
    EVENTS_OF_OLD = nvmlEventTypeXidCriticalError | nvmlEventMigConfigChange,
};

struct nvmlEventSet_st {
    uint64_t watched[HAL_LEDGER_DEVICES]; /* types */
    uint64_t seen; /* how many of the machine's events were there before, or were given */
};

void nvml_event(const struct hal_machine_device *d, uint64_t type, uint32_t data) {
    struct hal_machine *m = emulator_machine();
    uint64_t number = atomic_load(&m->nvidia_xids);
    m->nvidia_xid[number % HAL_MACHINE_XIDS] =
        (struct hal_machine_xid){.device = nvml_index(d), .code = data, .type = type};
    atomic_store(&m->nvidia_xids, number + 1);
}

static uint64_t type_of(const struct hal_machine_xid *x) {
    return x->type == 0 ? nvmlEventTypeXidCriticalError : x->type;
}

NVML nvmlEventSetCreate(nvmlEventSet_t *out) {
    READY;
    CHECK(out != NULL);
    nvmlEventSet_t set = calloc(1, sizeof *set);
    if (set == NULL) return NVML_ERROR_MEMORY;
    set->seen = atomic_load(&emulator_machine()->nvidia_xids);
    *out = set;
    return NVML_SUCCESS;
}

NVML nvmlEventSetFree(nvmlEventSet_t set) {
    READY;
    CHECK(set != NULL);
    free(set);
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetSupportedEventTypes(nvmlDevice_t handle, unsigned long long *types) {
    DEVICE(handle);
    return nvml_give_wide(nvml_is_old ? EVENTS_OF_OLD : EVENTS, types);
}

NVML nvmlDeviceRegisterEvents(nvmlDevice_t handle, unsigned long long types, nvmlEventSet_t set) {
    DEVICE(handle);
    CHECK(set != NULL);
    if (types & ~(uint64_t)(nvml_is_old ? EVENTS_OF_OLD : EVENTS)) return NVML_ERROR_NOT_SUPPORTED;
    set->watched[nvml_index(d)] |= types;
    return NVML_SUCCESS;
}

static bool next_event(nvmlEventSet_t set, nvmlEventData_t *out) {
    const struct hal_machine *m = emulator_machine();
    uint64_t written = atomic_load(&m->nvidia_xids);
    if (written - set->seen > HAL_MACHINE_XIDS) set->seen = written - HAL_MACHINE_XIDS;
    while (set->seen < written) {
        const struct hal_machine_xid *x = &m->nvidia_xid[set->seen++ % HAL_MACHINE_XIDS];
        if (x->device >= m->devices || !(set->watched[x->device] & type_of(x))) continue;
        *out = (nvmlEventData_t){.device = nvml_handle(&m->device[x->device]),
                                 .eventType = type_of(x),
                                 .eventData = x->code,
                                 .gpuInstanceId = ~0u,
                                 .computeInstanceId = ~0u};
        return true;
    }
    return false;
}

static bool lost(const struct nvmlEventSet_st *set) {
    const struct hal_machine *m = emulator_machine();
    for (unsigned i = 0; i < m->devices; i++)
        if (set->watched[i] != 0 && m->device[i].nvidia_lost) return true;
    return false;
}

static nvmlReturn_t wait_event(nvmlEventSet_t set, nvmlEventData_t *out, unsigned milliseconds) {
    const struct timespec tick = {.tv_nsec = 1000000};
    TRY(nvml_ready());
    CHECK(set != NULL && out != NULL);
    while (!next_event(set, out)) {
        if (lost(set)) return NVML_ERROR_GPU_IS_LOST;
        if (milliseconds-- == 0) return NVML_ERROR_TIMEOUT;
        nanosleep(&tick, NULL);
    }
    return NVML_SUCCESS;
}
NAMED(nvmlEventSetWait_v2, wait_event,
      (nvmlEventSet_t set, nvmlEventData_t *out, unsigned milliseconds), (set, out, milliseconds))
NAMED(nvmlEventSetWait, wait_event,
      (nvmlEventSet_t set, nvmlEventData_t *out, unsigned milliseconds), (set, out, milliseconds))
