#define _GNU_SOURCE
#include "slot.h"

#include <unistd.h>

#include "vouch.h"

static const uint64_t GENERATION = UINT64_C(1) << 32;
enum { LOOKS = 100 }; /* for a moment at which none of a process's operations begins */

struct hal_process hal_slot_process(const struct hal_ledger_slot *s, uint64_t owner) {
    /* The namespace is written last and wiped first: while it is there, so is the rest. */
    struct hal_process p = {.pid = hal_ledger_owner_pid(owner), .pid_namespace = atomic_load(&s->pid_namespace)};
    p.time_namespace = atomic_load(&s->time_namespace);
    p.start = atomic_load(&s->start);
    return p;
}

bool hal_slot_is_quiet(const struct hal_ledger_slot *s) {
    for (int i = 0; i < HAL_LEDGER_LANES; i++)
        if ((atomic_load(&s->lane[i].op) & 0xff) != 0) return false;
    return true;
}

static uint64_t begun(const struct hal_ledger_slot *s) {
    uint64_t count = 0;
    for (int i = 0; i < HAL_LEDGER_LANES; i++) count += atomic_load(&s->lane[i].op) >> 8;
    return count;
}

/* Where no operation began meanwhile, each that was under way is in the sum or is not. Else an allocation may
 * have been missed and its free seen. */
bool hal_slot_sum(const struct hal_ledger_slot *s, unsigned device, uint64_t *bytes) {
    uint64_t before = begun(s);
    *bytes = 0;
    for (int i = 0; i < HAL_LEDGER_LANES; i++) *bytes += atomic_load(&s->lane[i].mine[device]);
    return begun(s) == before;
}

uint64_t hal_ledger_mine(const struct hal_ledger_slot *s, unsigned device) {
    uint64_t bytes = 0;
    for (int look = 0; look < LOOKS && !hal_slot_sum(s, device, &bytes); look++) continue;
    return bytes <= HAL_LEDGER_MOST ? bytes : 0; /* above: below zero, as it never is at one moment */
}

void hal_slot_settle(struct hal_ledger *l, struct hal_ledger_slot *s) {
    for (unsigned d = 0; d < hal_ledger_devices(l); d++) {
        uint64_t bytes = 0;
        hal_slot_sum(s, d, &bytes);
        if (bytes != 0) hal_slot_release(l, s, d, bytes);
    }
}

void hal_slot_erase(struct hal_ledger_slot *s) {
    for (int i = 0; i < HAL_LEDGER_LANES; i++)
        for (unsigned d = 0; d < HAL_LEDGER_DEVICES; d++) atomic_store(&s->lane[i].mine[d], 0);
    /* Only now: with a lane at rest, `mine` would be believed. */
    for (int i = 0; i < HAL_LEDGER_LANES; i++) atomic_fetch_and(&s->lane[i].op, ~UINT64_C(0xff));
}

void hal_slot_vacate(struct hal_ledger_slot *s) {
    uint64_t owner = atomic_load(&s->owner);
    /* Its lanes stay as they are: they add up to 0, and would not at every instruction of clearing them. */
    atomic_store(&s->pid_namespace, 0);
    atomic_store(&s->owner, owner & ~(GENERATION - 1));
}

/* The claim is the compare-and-swap. The byte was locked before it, so that no reaper ever sees a vouched
 * slot of a living process with its byte free. */
static int claim(struct hal_ledger *l, const struct hal_process *me) {
    struct hal_home *home = hal_home_of(l);
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &l->slot[i];
        uint64_t owner = atomic_load(&s->owner);
        if (hal_ledger_owner_pid(owner) != 0) continue;
        enum hal_vouch vouch = home != NULL ? hal_vouch(home, i) : HAL_VOUCH_IMPOSSIBLE;
        if (vouch == HAL_VOUCH_TAKEN) continue;
        if (vouch == HAL_VOUCH_IMPOSSIBLE) home = NULL;
        uint64_t mine = ((owner & ~(GENERATION - 1)) + GENERATION) | me->pid;
        if (vouch != HAL_VOUCHED) mine |= HAL_UNVOUCHED;
        if (atomic_compare_exchange_strong(&s->owner, &owner, mine)) {
            atomic_store(&s->start, me->start);
            atomic_store(&s->time_namespace, me->time_namespace);
            atomic_store(&s->pid_namespace, me->pid_namespace);
            return i;
        }
        if (vouch == HAL_VOUCHED) hal_unvouch(home, i);
    }
    return -1;
}

int hal_ledger_join(struct hal_ledger *l) {
    struct hal_process me = hal_process_self();
    int slot = claim(l, &me);
    return slot < 0 && hal_ledger_reap(l) > 0 ? claim(l, &me) : slot;
}

void hal_ledger_leave(struct hal_ledger *l, int slot) {
    struct hal_home *home = hal_home_of(l);
    hal_slot_settle(l, &l->slot[slot]);
    hal_slot_vacate(&l->slot[slot]);
    if (home != NULL) hal_unvouch(home, slot);
}

uint32_t hal_ledger_living(const struct hal_ledger *l, int slot) {
    const struct hal_ledger_slot *s = &l->slot[slot];
    struct hal_process p = hal_slot_process(s, atomic_load(&s->owner));
    if (p.pid == 0) return 0;
    enum hal_fate fate = hal_process_fate(&p);
    return fate == HAL_LIVES || fate == HAL_DYING ? p.pid : 0;
}

unsigned hal_ledger_pids(const struct hal_ledger *l, uint32_t *pids) {
    unsigned count = 0;
    for (int slot = 0; slot < HAL_LEDGER_SLOTS; slot++) {
        uint32_t pid = hal_ledger_living(l, slot);
        if (pid != 0) pids[count++] = pid;
    }
    return count;
}
