/* What is changed while the slice lives, and waiting for it. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hal_ledger.h"
#include "hold.h"

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Not FUTEX_PRIVATE: other processes map the same word. The deadline is absolute, of CLOCK_MONOTONIC. */
static void futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t deadline_ns) {
    struct timespec until = {deadline_ns / 1000000000, deadline_ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, &until, NULL, FUTEX_BITSET_MATCH_ANY);
}

static void futex_wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }

/* ---- controls ------------------------------------------------------------------------------- */

static bool changed(struct hal_ledger *l) {
    atomic_fetch_add(&l->epoch, 1);
    futex_wake(&l->epoch);
    return true;
}

bool hal_ledger_set_limit(struct hal_ledger *l, unsigned device, uint64_t bytes) {
    if (device >= hal_ledger_devices(l) || bytes > HAL_LEDGER_MOST) return false;
    atomic_store(&l->device[device].limit, bytes);
    return changed(l);
}

bool hal_ledger_set_compute(struct hal_ledger *l, unsigned device, uint32_t milli) {
    if (device >= hal_ledger_devices(l) || milli > HAL_LEDGER_MILLI) return false;
    atomic_store(&l->device[device].compute_milli, milli);
    atomic_store(&l->device[device].share_until_ns, 0); /* what was owed was owed by the old terms */
    if (milli < HAL_LEDGER_MILLI) atomic_store(&l->limits_time, 1);
    return changed(l);
}

bool hal_ledger_set_state(struct hal_ledger *l, uint32_t state) {
    if (state >= HAL_SLICE_STATES) return false;
    atomic_store(&l->state, state);
    return changed(l);
}

bool hal_ledger_set_priority(struct hal_ledger *l, int32_t priority) {
    if (priority < -HAL_LEDGER_PRIORITY || priority > HAL_LEDGER_PRIORITY) return false;
    atomic_store(&l->priority, priority);
    return changed(l);
}

bool hal_ledger_set_weight(struct hal_ledger *l, uint32_t weight) {
    if (weight < 1 || weight > HAL_LEDGER_WEIGHT) return false;
    atomic_store(&l->weight, weight);
    return changed(l);
}

bool hal_ledger_set_elastic(struct hal_ledger *l, bool elastic) {
    atomic_store(&l->elastic, elastic);
    return changed(l);
}

bool hal_ledger_set_enforcers(struct hal_ledger *l, uint32_t memory_by, uint32_t compute_by) {
    if (memory_by >= HAL_ENFORCERS || compute_by >= HAL_ENFORCERS) return false;
    atomic_store(&l->memory_by, memory_by);
    atomic_store(&l->compute_by, compute_by);
    return changed(l);
}

/* ---- waiting -------------------------------------------------------------------------------- */

uint32_t hal_ledger_wait_epoch(struct hal_ledger *l, uint32_t seen, int64_t deadline_ns) {
    uint32_t epoch;
    while ((epoch = atomic_load(&l->epoch)) == seen && now_ns() < deadline_ns)
        futex_wait(&l->epoch, seen, deadline_ns);
    return epoch;
}

enum hal_ledger_state hal_ledger_wait_running(struct hal_ledger *l, int64_t deadline_ns) {
    for (;;) {
        uint32_t epoch = atomic_load(&l->epoch); /* before the state: a change after it ends the wait */
        uint32_t state = atomic_load(&l->state);
        if (state != HAL_SLICE_PAUSE) return (enum hal_ledger_state)state;
        if (now_ns() >= deadline_ns) return HAL_SLICE_PAUSE;
        futex_wait(&l->epoch, epoch, deadline_ns);
    }
}

/* ---- the hold ------------------------------------------------------------------------------- */

void hal_hold_wait(struct hal_ledger *l) {
    static _Atomic uint32_t ignored; /* waited for in vain, and never again by this process */
    uint32_t hold = atomic_load(&l->hold);
    int64_t deadline = now_ns() + HAL_HOLD_NS;
    while (hold != 0 && hold != atomic_load(&ignored)) {
        futex_wait(&l->hold, hold, deadline);
        if (atomic_load(&l->hold) != hold) return;
        if (now_ns() >= deadline) atomic_store(&ignored, hold);
    }
}

void hal_hold_raise(struct hal_ledger *l) { atomic_store(&l->hold, (uint32_t)now_ns() | 1); }

void hal_hold_drop(struct hal_ledger *l) {
    atomic_store(&l->hold, 0);
    futex_wake(&l->hold);
}
