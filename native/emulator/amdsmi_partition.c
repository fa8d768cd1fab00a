/* How the stand-in's cards are divided: by compute (SPX, DPX, TPX, QPX, CPX) and by memory (NPS1, 2, 4).
 * Which go together is amdgpu's own rule (aqua_vanjaram.c); what is refused, and with what, rocm_smi.cc's. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "amdsmi_parts.h"

enum { NPS1 = 1, NPS2 = 2, NPS4 = 4 }; /* as bits of capabilities: NPS4 is the third */
enum { SPX = 1, DPX, TPX, QPX, CPX };  /* amdsmi_compute_partition_type_t */

/* AMD's profiles, with the memory modes that each can be combined with. */
static const struct profile {
    const char *name;
    unsigned type, memory;
} profiles[] = {
    {"SPX", SPX, NPS1},        {"DPX", DPX, NPS1 | NPS2}, {"TPX", TPX, NPS1 | NPS4},
    {"QPX", QPX, NPS1 | NPS4}, {"CPX", CPX, NPS1 | NPS4},
};
enum { PROFILES = sizeof profiles / sizeof *profiles };

/* Whether as many dies can be divided so. */
static bool possible(const device *d, unsigned type) {
    unsigned dies = d->amd_dies;
    if (d->amd_compute_partition[0] == 0) return false;
    switch (type) {
    case DPX: return dies == 8 || dies == 4;
    case TPX: return dies == 6;
    case QPX: return dies == 8;
    default: return true;
    }
}

/* The n-th profile that this card has; NULL after the last. */
static const struct profile *nth(const device *d, uint32_t n) {
    for (const struct profile *p = profiles; p < profiles + PROFILES; p++)
        if (possible(d, p->type) && n-- == 0) return p;
    return NULL;
}

static const struct profile *profile_of(const device *d, uint32_t *index) {
    const struct profile *p;
    for (*index = 0; (p = nth(d, *index)) != NULL; ++*index)
        if (strcmp(d->amd_compute_partition, p->name) == 0) break;
    return p;
}

unsigned amdsmi_memory_ranges(const device *d) {
    unsigned ranges = 0;
    return sscanf(d->amd_memory_partition, "NPS%u", &ranges) == 1 ? ranges : 0;
}

/* A later partition has no such file of its own; library 24 reads the card's instead. */
static amdsmi_status_t mode(const processor *p, char *text, uint32_t length, const char *now) {
    if (length == 0) return AMDSMI_STATUS_INVAL;
    if (*now == 0 || (p->partition != 0 && amdsmi_major() != 24))
        return AMDSMI_STATUS_NOT_SUPPORTED;
    int needed = snprintf(text, length, "%s", now);
    return (uint32_t)needed < length ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_INSUFFICIENT_SIZE;
}

FUNCTION amdsmi_get_gpu_compute_partition(void *handle, char *text, uint32_t length) {
    PROCESSOR(handle, text);
    return mode(p, text, length, d->amd_compute_partition);
}

FUNCTION amdsmi_get_gpu_memory_partition(void *handle, char *text, uint32_t length) {
    PROCESSOR(handle, text);
    return mode(p, text, length, d->amd_memory_partition);
}

FUNCTION amdsmi_get_gpu_memory_partition_config(void *handle,
                                                amdsmi_memory_partition_config_t *config) {
    CARD(handle, config);
    if (amdsmi_memory_ranges(d) == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *config = (amdsmi_memory_partition_config_t){.partition_caps = NPS1 | NPS2 | NPS4,
                                                 .mp_mode = amdsmi_memory_ranges(d)};
    return AMDSMI_STATUS_SUCCESS;
}

static amdsmi_accelerator_partition_profile_t described(const device *d, uint32_t index) {
    const struct profile *profile = nth(d, index);
    device so = *d;
    snprintf(so.amd_compute_partition, sizeof so.amd_compute_partition, "%s", profile->name);
    return (amdsmi_accelerator_partition_profile_t){.profile_type = profile->type,
                                                    .num_partitions = emulator_partitions(&so),
                                                    .memory_caps = profile->memory,
                                                    .profile_index = index};
}

/* The number of the partition is given even where there is no profile. */
FUNCTION amdsmi_get_gpu_accelerator_partition_profile(
    void *handle, amdsmi_accelerator_partition_profile_t *profile, uint32_t *partition) {
    PROCESSOR(handle, profile);
    uint32_t now = 0;
    if (partition == NULL) return AMDSMI_STATUS_INVAL;
    *partition = p->partition;
    if (profile_of(d, &now) == NULL || p->partition != 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *profile = described(d, now);
    return AMDSMI_STATUS_SUCCESS;
}

/* For root only, as what sets them. What a profile's partitions share is not described. */
FUNCTION amdsmi_get_gpu_accelerator_partition_profile_config(
    void *handle, amdsmi_accelerator_partition_profile_config_t *config) {
    CHANGE(handle);
    if (config == NULL) return AMDSMI_STATUS_INVAL;
    if (d->amd_compute_partition[0] == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *config = (amdsmi_accelerator_partition_profile_config_t){0};
    for (uint32_t i = 0; nth(d, i) != NULL; i++)
        config->profiles[config->num_profiles++] = described(d, i);
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- to another mode ------------------------------------------------------------------------ */

/* The names of two modes differ in one letter: nobody reads half a change. */
static amdsmi_status_t divide(device *d, const struct profile *wanted) {
    uint32_t now = 0;
    if (d->amd_compute_partition[0] == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    unsigned ranges = amdsmi_memory_ranges(d);
    if (wanted == NULL || !possible(d, wanted->type) || !(wanted->memory & ranges))
        return AMDSMI_STATUS_SETTING_UNAVAILABLE;
    if (profile_of(d, &now) == wanted) return AMDSMI_STATUS_SUCCESS;
    if (amdsmi_busy(d)) return AMDSMI_STATUS_BUSY;
    d->amd_compute_partition[0] = wanted->name[0];
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_set_gpu_compute_partition(void *handle, uint32_t type) {
    CHANGE(handle);
    if (type < SPX || type > CPX) return AMDSMI_STATUS_INVAL;
    return divide(d, &profiles[type - SPX]);
}

FUNCTION amdsmi_set_gpu_accelerator_partition_profile(void *handle, uint32_t index) {
    CHANGE(handle);
    if (d->amd_compute_partition[0] == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    return nth(d, index) == NULL ? AMDSMI_STATUS_INVAL : divide(d, nth(d, index));
}

/* All cards of a hive have the same one. What they are busy with is not asked here. */
static void each_of_hive(const device *d, void (*change)(device *, unsigned), unsigned mode) {
    unsigned index[HAL_LEDGER_DEVICES];
    for (unsigned i = 0, count = emulator_devices("amd", index); i < count; i++) {
        device *other = emulator_device(index[i]);
        bool joined = d->amd_hive != 0 && other->amd_hive == d->amd_hive;
        if ((other == d || joined) && amdsmi_memory_ranges(other) != 0) change(other, mode);
    }
}

static void ask_for(device *d, unsigned mode) {
    snprintf(d->amd_memory_partition_next, sizeof d->amd_memory_partition_next, "NPS%u", mode);
}

/* amdgpu begins with the compute mode that goes with the memory's. */
static void begin_anew(device *d) {
    if (d->amd_memory_partition_next[0] == 0) return;
    d->amd_memory_partition[3] = d->amd_memory_partition_next[3];
    d->amd_memory_partition_next[0] = 0;
    unsigned ranges = amdsmi_memory_ranges(d);
    d->amd_compute_partition[0] = ranges == 1 ? 'S' : ranges == 2 ? 'D' : d->amd_dies == 6 ? 'T' : 'C';
}

static amdsmi_status_t load_driver(void) {
    unsigned index[HAL_LEDGER_DEVICES], count = emulator_devices("amd", index);
    for (unsigned i = 0; i < count; i++)
        if (amdsmi_busy(emulator_device(index[i]))) return AMDSMI_STATUS_AMDGPU_RESTART_ERR;
    for (unsigned i = 0; i < count; i++) begin_anew(emulator_device(index[i]));
    return AMDSMI_STATUS_SUCCESS;
}

/* NPS8 passes the library, and then a card that has not so many refuses it. Up to library 25 the
 * driver is loaded anew at once; from 26 on that is a call of its own. */
static amdsmi_status_t set_memory(device *d, uint32_t mode) {
    unsigned now = amdsmi_memory_ranges(d);
    if (now == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    if (mode != NPS1 && mode != NPS2 && mode != NPS4) return AMDSMI_STATUS_INVAL;
    if (mode == now) return AMDSMI_STATUS_SUCCESS;
    each_of_hive(d, ask_for, mode);
    return amdsmi_major() < 26 ? load_driver() : AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_set_gpu_memory_partition(void *handle, uint32_t mode) {
    CHANGE(handle);
    return set_memory(d, mode);
}

FUNCTION amdsmi_set_gpu_memory_partition_mode(void *handle, uint32_t mode) {
    CHANGE(handle);
    return set_memory(d, mode);
}

FUNCTION amdsmi_gpu_driver_reload(void) {
    FAULTS;
    if (!amdsmi_ready()) return AMDSMI_STATUS_NOT_INIT;
    amdsmi_status_t status = amdsmi_may_change();
    return status == AMDSMI_STATUS_SUCCESS ? load_driver() : status;
}
