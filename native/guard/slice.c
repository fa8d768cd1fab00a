#define _GNU_SOURCE
#include "slice.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "hal_ledger.h"
#include "member.h"
#include "sizes.h"

/* ABSENT: not in a slice. CLOSED: in one whose ledger cannot be used; nothing is granted. */
enum state { UNKNOWN, ABSENT, OPEN, CLOSED };

static _Atomic int state = UNKNOWN;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct hal_member member;

/* ---- words to the user ---------------------------------------------------------------------- */

static void say(const char *text) {
    char line[512];
    int n = snprintf(line, sizeof line, "hal: %s\n", text);
    if (n > (int)sizeof line - 1) n = sizeof line - 1;
    if (write(STDERR_FILENO, line, (size_t)n) < 0) return; /* nobody to tell */
}

static bool may_speak(void) {
    static _Atomic int64_t last = INT64_MIN;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t before = atomic_load(&last);
    return before != (int64_t)now.tv_sec && atomic_compare_exchange_strong(&last, &before, now.tv_sec);
}

static void say_refused(unsigned device, uint64_t bytes) {
    if (!may_speak()) return;
    const double gib = 1024.0 * 1024.0 * 1024.0;
    const struct hal_ledger *l = member.ledger;
    char text[400];
    if (device >= l->devices)
        snprintf(text, sizeof text, "slice %.96s: refused %.2f GiB: device %u is not in this slice",
                 l->name, (double)bytes / gib, device);
    else
        snprintf(text, sizeof text, "slice %.96s: refused %.2f GiB: %.2f of %.2f GiB in use on %.96s",
                 l->name, (double)bytes / gib, (double)atomic_load(&l->device[device].used) / gib,
                 (double)atomic_load(&l->device[device].limit) / gib, l->device[device].id);
    say(text);
}

/* ---- start ---------------------------------------------------------------------------------- */

static void forked(void) {
    hal_member_forked(&member);
    hal_sizes_clear();
}

static void start(void) {
    const char *path = getenv("HAL_SLICE");
    if (path == NULL || *path == 0) {
        atomic_store(&state, ABSENT);
        return;
    }
    enum hal_ledger_error error;
    member.ledger = hal_ledger_open(path, &error);
    pthread_atfork(NULL, NULL, forked);
    if (member.ledger != NULL) {
        hal_ledger_forget_self(member.ledger);
    } else {
        char text[400];
        snprintf(text, sizeof text, "every allocation is refused: the slice %.200s cannot be used: %s",
                 path, hal_ledger_reason(error));
        say(text);
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

bool slice_reserve(unsigned device, uint64_t bytes) {
    if (current() != OPEN) return false;
    slice_await_running();
    int slot = hal_member_slot(&member);
    if (slot < 0) {
        if (may_speak()) say("allocation refused: this slice already has as many processes as it can hold");
        return false;
    }
    if (hal_ledger_reserve(member.ledger, slot, device, bytes)) return true;
    say_refused(device, bytes);
    return false;
}

void slice_release(unsigned device, uint64_t bytes) {
    hal_ledger_release(member.ledger, hal_member_slot(&member), device, bytes);
}

bool slice_remember(uint64_t address, unsigned device, uint64_t bytes) {
    return hal_sizes_put(address, (struct hal_allocation){bytes, device});
}

bool slice_take(uint64_t address, struct slice_claim *out) {
    struct hal_allocation a;
    if (!hal_sizes_take(address, &a)) return false;
    *out = (struct slice_claim){a.bytes, a.device};
    return true;
}

void slice_narrow(unsigned device, size_t *free_bytes, size_t *total_bytes) {
    uint64_t limit = 0, used = 0;
    if (current() == OPEN && device < member.ledger->devices) {
        struct hal_ledger_device *d = &member.ledger->device[device];
        limit = atomic_load_explicit(&d->limit, memory_order_relaxed);
        used = atomic_load_explicit(&d->used, memory_order_relaxed);
    }
    uint64_t left = used < limit ? limit - used : 0;
    if (free_bytes != NULL && *free_bytes > left) *free_bytes = left;
    if (total_bytes != NULL && *total_bytes > limit) *total_bytes = limit;
}
