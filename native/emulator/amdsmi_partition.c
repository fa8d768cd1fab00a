/* How the stand-in's cards are divided: by compute (SPX, DPX, QPX, CPX) and by memory (NPS1, 2, 4).
 * The machine's description says it; nothing here changes it. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "amdsmi_parts.h"

enum { NPS1 = 1, NPS2 = 2, NPS4 = 4 }; /* as bits of capabilities: NPS4 is the third */

/* AMD's profiles, with the memory modes that each can be combined with. */
static const struct {
    const char *name;
    unsigned type, memory;
} profiles[] = {
    {"SPX", 1, NPS1},
    {"DPX", 2, NPS1 | NPS2},
    {"QPX", 4, NPS1 | NPS2 | NPS4},
    {"CPX", 5, NPS1 | NPS2 | NPS4},
};
enum { PROFILES = sizeof profiles / sizeof *profiles };

static int profile_of(const device *d) {
    for (int i = 0; i < PROFILES; i++)
        if (strcmp(d->amd_compute_partition, profiles[i].name) == 0) return i;
    return -1;
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

/* The number of the partition is given even where there is no profile. */
FUNCTION amdsmi_get_gpu_accelerator_partition_profile(
    void *handle, amdsmi_accelerator_partition_profile_t *profile, uint32_t *partition) {
    PROCESSOR(handle, profile);
    if (partition == NULL) return AMDSMI_STATUS_INVAL;
    *partition = p->partition;
    int now = profile_of(d);
    if (now < 0 || p->partition != 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *profile = (amdsmi_accelerator_partition_profile_t){.profile_type = profiles[now].type,
                                                        .num_partitions = emulator_partitions(d),
                                                        .memory_caps = profiles[now].memory,
                                                        .profile_index = (uint32_t)now};
    return AMDSMI_STATUS_SUCCESS;
}
