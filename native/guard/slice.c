#define _GNU_SOURCE
#include "slice.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "hal_ledger.h"
#include "member.h"
#include "pool.h"
#include "say.h"
#include "sizes.h"

/* ABSENT: not in a slice. CLOSED: in one whose ledger cannot be used; nothing is granted. */
enum state { UNKNOWN, ABSENT, OPEN, CLOSED };

static _Atomic int state = UNKNOWN;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct hal_member member;

/* ---- words to the user ---------------------------------------------------------------------- */

static const double GIB = 1024.0 * 1024.0 * 1024.0;

void slice_refused(unsigned device, uint64_t bytes) {
    const struct hal_ledger *l = member.ledger;
    if (atomic_load(&state) != OPEN || !say_now()) return; /* why it is not open was said at the start */
    if (hal_member_slot(&member) < 0)
        say(SAY_REFUSALS, "slice %.96s: refused %.2f GiB: it already has as many processes as it can hold",
            l->name, (double)bytes / GIB);
    else if (device >= l->devices)
        say(SAY_REFUSALS, "slice %.96s: refused %.2f GiB: device %u is not in this slice", l->name,
            (double)bytes / GIB, device);
    else
        say(SAY_REFUSALS, "slice %.96s: refused %.2f GiB: %.2f of %.2f GiB in use on %.96s", l->name,
            (double)bytes / GIB, (double)atomic_load(&l->device[device].used) / GIB,
            (double)atomic_load(&l->device[device].limit) / GIB, l->device[device].id);
}

/* ---- start ---------------------------------------------------------------------------------- */

static void forked(void) {
    hal_member_forked(&member);
    hal_sizes_clear();
    pool_forked();
}

static void start(void) {
    const char *path = getenv("HAL_SLICE");
    if (path == NULL || *path == 0) {
        atomic_store(&state, ABSENT);
        return;
    }
    say_start();
    enum hal_ledger_error error;
    member.ledger = hal_ledger_open(path, &error);
    pthread_atfork(NULL, NULL, forked);
    if (member.ledger != NULL) {
        hal_ledger_forget_self(member.ledger);
        say(SAY_INFO, "slice %.96s: process %d is in it", member.ledger->name, (int)getpid());
    } else {
        say(SAY_REFUSALS, "every allocation is refused: the slice %.200s cannot be used: %s", path,
            hal_ledger_reason(error));
    }
    atomic_store(&state, member.ledger != NULL ? OPEN : CLOSED);
}

static int current(void) {
    int now = atomic_load_explicit(&state, memory_order_acquire);
    if (now == UNKNOWN) {
        pthread_once(&once, start);
        now = atomic_load(&state);
    }
    return now;
}

bool slice_active(void) { return current() != ABSENT; }

bool slice_is_plural(void) { return current() == OPEN && member.ledger->devices > 1; }

bool slice_limits_time(void) {
    return current() == OPEN && (atomic_load_explicit(&member.ledger->limits_time, memory_order_relaxed) != 0 ||
                                 !hal_ledger_is_running(member.ledger));
}

void slice_await_running(void) {
    while (!hal_ledger_is_running(member.ledger) &&
           hal_ledger_wait_running(member.ledger, INT64_MAX) == HAL_SLICE_PAUSE)
        continue;
}

struct hal_ledger *slice_ledger(void) { return member.ledger; }

struct hal_ledger_device *slice_device(unsigned device) {
    return current() == OPEN && device < hal_ledger_devices(member.ledger) ? &member.ledger->device[device] : NULL;
}

/* ---- memory --------------------------------------------------------------------------------- */

bool slice_try(unsigned device, uint64_t bytes) {
    if (current() != OPEN) return false;
    slice_await_running();
    int slot = hal_member_slot(&member);
    bool done = slot >= 0 && hal_ledger_reserve(member.ledger, slot, device, bytes);
    if (say_all())
        say(SAY_ALL, "%s %llu bytes on device %u", done ? "charged" : "no room for",
            (unsigned long long)bytes, device);
    return done;
}

void slice_release(unsigned device, uint64_t bytes) {
    if (say_all()) say(SAY_ALL, "gave back %llu bytes on device %u", (unsigned long long)bytes, device);
    hal_ledger_release(member.ledger, hal_member_slot(&member), device, bytes);
}

unsigned slice_devices(void) { return current() == OPEN ? hal_ledger_devices(member.ledger) : 0; }

const char *slice_id(unsigned device) { return member.ledger->device[device].id; }

bool slice_has(uint32_t pid) {
    for (int i = 0; current() == OPEN && i < HAL_LEDGER_SLOTS; i++)
        if (hal_ledger_living(member.ledger, i) == pid) return pid != 0;
    return false;
}

void slice_account(unsigned device, uint64_t *used, uint64_t *limit) {
    *used = *limit = 0;
    if (current() != OPEN || device >= hal_ledger_devices(member.ledger)) return;
    struct hal_ledger_device *d = &member.ledger->device[device];
    *limit = atomic_load_explicit(&d->limit, memory_order_relaxed);
    *used = atomic_load_explicit(&d->used, memory_order_relaxed);
}

void slice_narrow(unsigned device, size_t *free_bytes, size_t *total_bytes) {
    uint64_t limit, used;
    slice_account(device, &used, &limit);
    uint64_t left = used < limit ? limit - used : 0;
    if (free_bytes != NULL && *free_bytes > left) *free_bytes = left;
    if (total_bytes != NULL && *total_bytes > limit) *total_bytes = limit;
}
