#define _GNU_SOURCE
#include "amdsmi_old.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[64];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[32];
    uint32_t oam_id, num_of_compute_units;
    uint64_t target_graphics_version;
    uint32_t reserved[16];
} asic_24;

typedef struct {
    char driver_version[64], driver_date[64], driver_name[64];
} driver_24;

typedef struct {
    uint32_t current_socket_power, average_socket_power;
    uint32_t gfx_voltage, soc_voltage, mem_voltage, power_limit;
    uint32_t reserved[11];
} power_24;

typedef struct {
    uint64_t socket_power;
    uint32_t current_socket_power, average_socket_power;
    uint32_t gfx_voltage, soc_voltage, mem_voltage, power_limit;
    uint64_t reserved;
} power_25;

typedef struct {
    char name[32];
    uint32_t pid;
    uint64_t mem;
    uint64_t engine_usage[8];
    uint64_t memory_usage[8]; /* gtt, cpu, vram */
    char container_name[32];
    uint32_t reserved[4];
} process_24;

typedef struct {
    void *processor_handle;
    uint32_t event;
    char message[96];
} event_24;

_Static_assert(sizeof(asic_24) == 456 && sizeof(driver_24) == 192, "library 24");
_Static_assert(sizeof(power_24) == 68 && sizeof(power_25) == 40, "libraries 24 and 25");
_Static_assert(sizeof(process_24) == 224 && sizeof(event_24) == 112, "library 24");

/* Cut off where the old field is shorter. */
#define COPY(field, text) snprintf(field, sizeof field, "%.*s", (int)sizeof field - 1, text)

/* The numbers of gfx90a one after another, 9010; from library 25 on they are hexadecimal digits. */
static uint64_t decimal(uint64_t gfx) {
    char text[32];
    snprintf(text, sizeof text, "%u%u%u", (unsigned)(gfx >> 8), (unsigned)(gfx >> 4 & 15),
             (unsigned)(gfx & 15));
    return strtoull(text, NULL, 10);
}

void amdsmi_put_asic(void *out, const amdsmi_asic_info_t *now) {
    if (amdsmi_major() > 24) {
        memcpy(out, now, sizeof *now);
        return;
    }
    asic_24 old = {.vendor_id = now->vendor_id,
                   .subvendor_id = now->subvendor_id,
                   .device_id = now->device_id,
                   .rev_id = now->rev_id,
                   .oam_id = now->oam_id,
                   .num_of_compute_units = now->num_of_compute_units,
                   .target_graphics_version = decimal(now->target_graphics_version)};
    COPY(old.market_name, now->market_name);
    COPY(old.vendor_name, now->vendor_name);
    COPY(old.asic_serial, now->asic_serial);
    memcpy(out, &old, sizeof old);
}

void amdsmi_put_driver(void *out, const amdsmi_driver_info_t *now) {
    if (amdsmi_major() > 24) {
        memcpy(out, now, sizeof *now);
        return;
    }
    driver_24 old = {{0}, {0}, {0}};
    COPY(old.driver_version, now->driver_version);
    COPY(old.driver_date, now->driver_date);
    COPY(old.driver_name, now->driver_name);
    memcpy(out, &old, sizeof old);
}

void amdsmi_put_power(void *out, const amdsmi_power_info_t *now) {
    uint32_t gfx = (uint32_t)now->gfx_voltage, soc = (uint32_t)now->soc_voltage;
    uint32_t mem = (uint32_t)now->mem_voltage;
    if (amdsmi_major() <= 24)
        *(power_24 *)out = (power_24){now->current_socket_power, now->average_socket_power, gfx, soc,
                                      mem, now->power_limit, {0}};
    else if (amdsmi_major() == 25)
        *(power_25 *)out =
            (power_25){now->socket_power, now->current_socket_power, now->average_socket_power, gfx,
                       soc, mem, now->power_limit, 0};
    else
        memcpy(out, now, sizeof *now);
}

void amdsmi_put_process(void *list, uint32_t at, const amdsmi_proc_info_t *now) {
    if (amdsmi_major() > 24) {
        memcpy((amdsmi_proc_info_t *)list + at, now, sizeof *now);
        return;
    }
    process_24 old = {.pid = now->pid, .mem = now->mem};
    old.memory_usage[2] = now->memory_usage.vram_mem;
    COPY(old.name, now->name);
    memcpy((process_24 *)list + at, &old, sizeof old);
}

void amdsmi_put_event(void *list, uint32_t at, const amdsmi_evt_notification_data_t *now) {
    if (amdsmi_major() > 25) {
        memcpy((amdsmi_evt_notification_data_t *)list + at, now, sizeof *now);
        return;
    }
    event_24 old = {now->processor_handle, now->event, {0}};
    COPY(old.message, now->message);
    memcpy((event_24 *)list + at, &old, sizeof old);
}

size_t amdsmi_metrics_size(void) {
    if (amdsmi_major() <= 24) return AMDSMI_METRICS_24;
    if (amdsmi_major() == 25) return AMDSMI_METRICS_25;
    return amdsmi_major() == 26 ? sizeof(amdsmi_gpu_metrics_t) : (size_t)AMDSMI_METRICS_27;
}
