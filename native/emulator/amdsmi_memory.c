/* The stand-in's memory and the processes that hold it. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "amdsmi_old.h"

static const uint64_t MIB = 1 << 20;

/* The first partition shows the whole card's memory, a later one what KFD lets it have; what
 * programs allocate here is on the card as a whole, and so on its first partition. */
static uint64_t total(const processor *p) {
    uint64_t bytes = p->card->memory_bytes;
    return p->partition == 0 ? bytes : bytes / emulator_partitions(p->card);
}

static uint64_t used(const processor *p) {
    if (p->partition != 0) return 0;
    return p->card->memory_reserved_bytes + emulator_used(amdsmi_index(p->card));
}

FUNCTION amdsmi_get_gpu_vram_info(void *handle, amdsmi_vram_info_t *info) {
    PROCESSOR(handle, info);
    *info = (amdsmi_vram_info_t){.vram_type = AMDSMI_VRAM_TYPE_UNKNOWN,
                                 .vram_size = total(p) / MIB,
                                 .vram_bit_width = AMDSMI_NONE32,
                                 .vram_max_bandwidth = AMDSMI_NONE64};
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_vram_usage(void *handle, amdsmi_vram_usage_t *info) {
    PROCESSOR(handle, info);
    *info = (amdsmi_vram_usage_t){.vram_total = (uint32_t)(total(p) / MIB),
                                  .vram_used = (uint32_t)(used(p) / MIB)};
    return AMDSMI_STATUS_SUCCESS;
}

/* Nobody uses GTT here. The part that the host sees fills up first. */
static amdsmi_status_t heap(const processor *p, uint32_t type, uint64_t *size, uint64_t *taken) {
    const device *d = p->card;
    *size = total(p);
    *taken = used(p);
    if (type > AMDSMI_MEM_TYPE_GTT) return AMDSMI_STATUS_INVAL;
    if (type == AMDSMI_MEM_TYPE_GTT) *size = d->amd_gtt_bytes, *taken = 0;
    if (type == AMDSMI_MEM_TYPE_VIS_VRAM && d->amd_visible_bytes != 0) {
        *size = d->amd_visible_bytes < *size ? d->amd_visible_bytes : *size;
        *taken = *taken < *size ? *taken : *size;
    }
    return *size == 0 ? AMDSMI_STATUS_NOT_SUPPORTED : AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_memory_total(void *handle, uint32_t type, uint64_t *bytes) {
    uint64_t taken;
    PROCESSOR(handle, bytes);
    return heap(p, type, bytes, &taken);
}

FUNCTION amdsmi_get_gpu_memory_usage(void *handle, uint32_t type, uint64_t *bytes) {
    uint64_t size;
    PROCESSOR(handle, bytes);
    return heap(p, type, &size, bytes);
}

/* ---- processes ------------------------------------------------------------------------------ */

static void name_of(pid_t pid, char name[AMDSMI_TEXT]) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) return;
    if (fgets(name, AMDSMI_TEXT, f) != NULL) name[strcspn(name, "\n")] = 0;
    fclose(f);
}

/* Asked with a count of 0 it gives the count; with too short a list what fits, and an error. */
FUNCTION amdsmi_get_gpu_process_list(void *handle, uint32_t *count, void *list) {
    PROCESSOR(handle, count);
    struct emulator_process all[HAL_LEDGER_SLOTS];
    uint32_t room = *count, found = 0;
    if (p->partition == 0) found = emulator_processes(amdsmi_index(d), all, HAL_LEDGER_SLOTS);
    if (room != 0 && found != 0 && list == NULL) return AMDSMI_STATUS_INVAL;
    *count = found;
    for (uint32_t i = 0; i < found && i < room; i++) {
        amdsmi_proc_info_t one = {.pid = (uint32_t)all[i].pid,
                                  .mem = all[i].bytes,
                                  .memory_usage.vram_mem = all[i].bytes,
                                  .cu_occupancy = AMDSMI_NONE32};
        name_of(all[i].pid, one.name);
        amdsmi_put_process(list, i, &one);
    }
    return room == 0 || room >= found ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_OUT_OF_RESOURCES;
}

enum { PROCESSES = HAL_LEDGER_SLOTS };

/* The processes of all cards, each once. */
static uint32_t collect(amdsmi_process_info_t out[PROCESSES]) {
    unsigned index[HAL_LEDGER_DEVICES];
    uint32_t found = 0;
    for (unsigned i = 0, count = emulator_devices("amd", index); i < count; i++) {
        struct emulator_process on[PROCESSES];
        unsigned many = emulator_processes(index[i], on, PROCESSES);
        for (unsigned p = 0; p < many; p++) {
            uint32_t pid = (uint32_t)on[p].pid, at = 0;
            while (at < found && out[at].process_id != pid) at++;
            if (at == PROCESSES) continue; /* they changed while they were read */
            if (at == found)
                out[found++] = (amdsmi_process_info_t){pid, 0, 0, AMDSMI_NONE32};
            out[at].vram_usage += on[p].bytes;
        }
    }
    return found;
}

FUNCTION amdsmi_get_gpu_compute_process_info(amdsmi_process_info_t *list, uint32_t *count) {
    FAULTS;
    amdsmi_process_info_t all[PROCESSES];
    if (!amdsmi_ready()) return AMDSMI_STATUS_NOT_INIT;
    if (count == NULL) return AMDSMI_STATUS_INVAL;
    uint32_t found = collect(all), room = *count;
    for (uint32_t i = 0; list != NULL && i < found && i < room; i++) list[i] = all[i];
    if (list != NULL && room < found) return AMDSMI_STATUS_INSUFFICIENT_SIZE;
    *count = found;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_compute_process_info_by_pid(uint32_t pid, amdsmi_process_info_t *info) {
    FAULTS;
    amdsmi_process_info_t all[PROCESSES];
    if (!amdsmi_ready()) return AMDSMI_STATUS_NOT_INIT;
    if (info == NULL) return AMDSMI_STATUS_INVAL;
    for (uint32_t i = 0, found = collect(all); i < found; i++) {
        if (all[i].process_id != pid) continue;
        *info = all[i];
        return AMDSMI_STATUS_SUCCESS;
    }
    return AMDSMI_STATUS_NOT_FOUND;
}
