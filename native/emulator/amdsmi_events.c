/* The stand-in's events: what KFD reports of a card, for each process that watches it.
 * They come from the machine's ring, and from rules of HAL_EMULATOR_FAULTS: "event 2=5" gives this
 * process five events of type 2 (amdsmi_evt_notification_type_t) of each processor that it watches. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "amdsmi_old.h"

enum { TYPES = AMDSMI_EVT_NOTIF_LAST + 1 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct watch {
    bool on;
    uint64_t mask, seen; /* events of the ring that were there before, or were given */
    unsigned given[TYPES]; /* of the rules */
} watches[HAL_LEDGER_DEVICES][AMDSMI_XCP];

static struct watch *watch_of(const processor *p) {
    return &watches[amdsmi_index(p->card)][p->partition];
}

void amdsmi_report(const device *d, uint32_t type, const char *message) {
    struct hal_machine *m = emulator_machine();
    uint64_t number = atomic_fetch_add(&m->amd_events, 1) + 1;
    struct hal_machine_amd_event *e = &m->amd_event[(number - 1) % HAL_MACHINE_AMD_EVENTS];
    atomic_store(&e->number, 0);
    e->device = amdsmi_index(d);
    e->partition = UINT32_MAX;
    e->type = type;
    snprintf(e->message, sizeof e->message, "%s", message);
    atomic_store(&e->number, number);
}

FUNCTION amdsmi_init_gpu_event_notification(void *handle) {
    PROCESSOR(handle, &p);
    pthread_mutex_lock(&lock);
    *watch_of(p) = (struct watch){.on = true, .seen = atomic_load(&emulator_machine()->amd_events)};
    pthread_mutex_unlock(&lock);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_set_gpu_event_notification_mask(void *handle, uint64_t mask) {
    PROCESSOR(handle, &p);
    pthread_mutex_lock(&lock);
    bool on = watch_of(p)->on;
    if (on) watch_of(p)->mask = mask;
    pthread_mutex_unlock(&lock);
    return on ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_INIT_ERROR;
}

FUNCTION amdsmi_stop_gpu_event_notification(void *handle) {
    FAULTS;
    const processor *p = NULL;
    amdsmi_status_t status = amdsmi_named(handle, &p, &p); /* of a lost card, too */
    if (status != AMDSMI_STATUS_SUCCESS) return status;
    pthread_mutex_lock(&lock);
    bool on = watch_of(p)->on;
    *watch_of(p) = (struct watch){0};
    pthread_mutex_unlock(&lock);
    return on ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_INVAL;
}

struct list {
    void *data;
    uint32_t count, room;
};

static void put(struct list *list, const processor *p, uint32_t type, const char *message) {
    amdsmi_evt_notification_data_t one = {(void *)(uintptr_t)p, type, {0}};
    snprintf(one.message, sizeof one.message, "%s", message);
    amdsmi_put_event(list->data, list->count++, &one);
}

static bool wanted(const struct watch *w, uint32_t type) {
    return type >= 1 && type < TYPES && w->mask >> (type - 1) & 1;
}

static void from_rules(struct list *list, const processor *p, struct watch *w) {
    for (uint32_t type = 1; type < TYPES; type++) {
        char name[16], message[64];
        int many = 0;
        snprintf(name, sizeof name, "event %u", type);
        if (!wanted(w, type) || !emulator_fault(name, &many)) continue;
        for (; w->given[type] < (unsigned)many && list->count < list->room; w->given[type]++) {
            const char *format = type == AMDSMI_EVT_NOTIF_VMFAULT ? "%x:emulated" : "%x:1";
            snprintf(message, sizeof message, format, w->given[type] + 1);
            put(list, p, type, message);
        }
    }
}

/* What was overwritten before it was read is lost, as in KFD's own queue. */
static void from_ring(struct list *list, const processor *p, struct watch *w) {
    struct hal_machine *m = emulator_machine();
    uint64_t all = atomic_load(&m->amd_events);
    if (all - w->seen > HAL_MACHINE_AMD_EVENTS) w->seen = all - HAL_MACHINE_AMD_EVENTS;
    while (w->seen < all && list->count < list->room) {
        const struct hal_machine_amd_event *e = &m->amd_event[w->seen % HAL_MACHINE_AMD_EVENTS];
        if (atomic_load(&e->number) != w->seen + 1) break; /* it is being written */
        w->seen++;
        if (e->device != amdsmi_index(p->card) || !wanted(w, e->type)) continue;
        if (e->partition != UINT32_MAX && e->partition != p->partition) continue;
        put(list, p, e->type, e->message);
    }
}

static bool visit(const processor *p, unsigned position, void *context) {
    struct list *list = context;
    struct watch *w = watch_of(p);
    (void)position;
    if (!w->on) return true;
    from_ring(list, p, w);
    if (emulator_faulty) from_rules(list, p, w);
    return list->count < list->room;
}

/* Of all processors that are watched, whichever the caller thinks of. */
FUNCTION amdsmi_get_gpu_event_notification(int timeout, uint32_t *count, void *data) {
    FAULTS;
    const struct timespec tick = {.tv_nsec = 1000000};
    if (!amdsmi_ready()) return AMDSMI_STATUS_NOT_INIT;
    if (count == NULL || data == NULL || *count == 0) return AMDSMI_STATUS_INVAL;
    struct list list = {data, 0, *count};
    while (true) {
        pthread_mutex_lock(&lock);
        amdsmi_each(visit, &list);
        pthread_mutex_unlock(&lock);
        if (list.count > 0 || timeout-- <= 0) break;
        nanosleep(&tick, NULL);
    }
    *count = list.count;
    return list.count > 0 ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_NO_DATA;
}
