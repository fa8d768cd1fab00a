/* Reserve and release: the hot path. Two locked operations each, no system call, no lock. */
#define _GNU_SOURCE
#include "hal_ledger.h"

#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <time.h>

#include "hold.h"
#include "slot.h"

enum { YIELDS = 100, NAPS = 300 }; /* of a millisecond */

/* The lanes are full only when so many threads of one process were stopped in the middle of an operation. */
static bool wait_for_lane(unsigned turn) {
    if (turn < YIELDS) sched_yield();
    else nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return turn < YIELDS + NAPS;
}

/* Begins an operation. NULL when no lane came free in a third of a second. */
static struct hal_ledger_lane *begin(struct hal_ledger_slot *s, unsigned device, uint64_t bytes) {
    unsigned first = (unsigned)((uint64_t)(uintptr_t)pthread_self() * UINT64_C(0x9E3779B97F4A7C15) >> 61);
    for (unsigned turn = 0;; turn++) {
        for (unsigned i = 0; i < HAL_LEDGER_LANES; i++) {
            struct hal_ledger_lane *lane = &s->lane[(first + i) % HAL_LEDGER_LANES];
            uint64_t op = atomic_load_explicit(&lane->op, memory_order_relaxed);
            if ((op & 0xff) != 0 || !atomic_compare_exchange_strong(&lane->op, &op, (op + 0x100) | (device + 1)))
                continue;
            atomic_store_explicit(&lane->bytes, bytes, memory_order_release);
            return lane;
        }
        if (!wait_for_lane(turn)) return NULL;
    }
}

static void end(struct hal_ledger_lane *lane) {
    uint64_t op = atomic_load_explicit(&lane->op, memory_order_relaxed);
    atomic_store_explicit(&lane->op, op & ~UINT64_C(0xff), memory_order_release);
}

static void note_peak(struct hal_ledger_device *d, uint64_t used) {
    uint64_t peak = atomic_load_explicit(&d->peak, memory_order_relaxed);
    while (used > peak && !atomic_compare_exchange_weak(&d->peak, &peak, used)) continue;
}

/* What an operation does is seen in its order, which a recount relies on:
 *     reserve: lane, bytes, `used`, `mine`, lane        release: lane, bytes, `mine`, `used`, lane
 * Each of these writes is a release: none is seen before those ahead of it (the first `lane` and `used` are
 * sequentially consistent read-modify-writes). Who loads (acquire) what one of them wrote sees all before it, also
 * through later read-modify-writes of `used`: C11 5.1.2.4. x86 shows stores in their order anyway; on ARM they are
 * STLR, and CASAL and LDADDAL or their LDAXR and STLXR. Killed, a process has done some first part of this order.
 * `mine` is loaded relaxed: it was last written by the lane's owner before, whose `end` this `begin` acquired. */
static void add(struct hal_ledger_lane *lane, unsigned device, uint64_t bytes) {
    uint64_t mine = atomic_load_explicit(&lane->mine[device], memory_order_relaxed);
    atomic_store_explicit(&lane->mine[device], mine + bytes, memory_order_release);
}

static bool take(struct hal_ledger *l, struct hal_ledger_slot *s, unsigned device, uint64_t bytes) {
    struct hal_ledger_device *d = &l->device[device];
    struct hal_ledger_lane *lane = begin(s, device, bytes);
    if (lane == NULL) return false;
    uint64_t limit = atomic_load_explicit(&d->limit, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&d->used, memory_order_relaxed);
    bool fits;
    do {
        fits = used <= limit && bytes <= limit - used;
    } while (fits && !atomic_compare_exchange_weak(&d->used, &used, used + bytes));
    if (fits) add(lane, device, bytes); /* after `used`: used >= sum(mine) */
    end(lane);
    if (fits) note_peak(d, used + bytes);
    return fits;
}

bool hal_ledger_reserve(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes) {
    if (device >= hal_ledger_devices(l)) return false;
    struct hal_ledger_slot *s = &l->slot[slot];
    hal_hold_heed(l);
    if (take(l, s, device, bytes)) return true;
    hal_ledger_reap(l);
    if (take(l, s, device, bytes)) return true;
    atomic_fetch_add_explicit(&l->device[device].refused, 1, memory_order_relaxed);
    return false;
}

void hal_slot_release(struct hal_ledger *l, struct hal_ledger_slot *s, unsigned device, uint64_t bytes) {
    struct hal_ledger_lane *lane = begin(s, device, bytes);
    if (lane == NULL) return; /* stays counted for as long as the process lives: too much, never too little */
    add(lane, device, -bytes); /* before `used`: used >= sum(mine) */
    atomic_fetch_sub(&l->device[device].used, bytes);
    end(lane);
}

void hal_ledger_release(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes) {
    hal_hold_heed(l);
    hal_slot_release(l, &l->slot[slot], device, bytes);
}
