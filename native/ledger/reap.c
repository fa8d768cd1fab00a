/* What the dead leave: their slots, and in `used` what an operation was about to do when it was cut off.
 *
 * A dead process's slot belongs to whoever locks its byte. If no operation was under way in it, its sum is
 * true and is released as the process itself would have done it: nothing is waited for, and a reaper that is
 * killed leaves a dead slot again. Else the slot stays until a recount, one at a time under a lock of the
 * kernel, has found how much of `used` belongs to nobody. That amount only operations that die can change:
 * once proven, it may be taken away at any later time, whatever the living do meanwhile.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>
#include <time.h>

#include "hal_ledger.h"
#include "hold.h"
#include "slot.h"
#include "vouch.h"

#define QUIET_NS INT64_C(5000000)  /* for operations under way to end: then they are taken to stand still */
#define GIVE_UP_NS INT64_C(10000000)

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- the recount ---------------------------------------------------------------------------- */

/* Slots whose process died inside an operation, with their bytes locked by this reaper. */
struct broken {
    unsigned count;
    bool is[HAL_LEDGER_SLOTS];
};

struct seen {
    uint64_t owner, op[HAL_LEDGER_LANES];
};

/* `used` minus what is accounted for: the slots' sums, and what operations under way may have put there. */
struct balance {
    uint64_t used, sum, doubtful;
    bool at_rest; /* no operation was under way on the device */
};

static uint64_t plus(uint64_t a, uint64_t b) { return a <= UINT64_MAX - b ? a + b : UINT64_MAX; }

/* Reads everything, then the owners and lanes again. True when none has changed: then each lane was at rest
 * or inside one and the same operation all the time, and nobody came or went. An operation under way moves
 * `used` and `mine` apart by its bytes at most, and those are read last: seen in `used`, they are seen. */
static bool look(const struct hal_ledger *l, unsigned device, const struct broken *broken, struct balance *out) {
    struct seen seen[HAL_LEDGER_SLOTS];
    *out = (struct balance){.at_rest = true};
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        const struct hal_ledger_slot *s = &l->slot[i];
        seen[i].owner = atomic_load(&s->owner);
        if (hal_ledger_owner_pid(seen[i].owner) == 0 || broken->is[i]) continue;
        for (int n = 0; n < HAL_LEDGER_LANES; n++) {
            seen[i].op[n] = atomic_load(&s->lane[n].op);
            out->sum += atomic_load(&s->lane[n].mine[device]);
        }
    }
    out->used = atomic_load(&l->device[device].used);
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        const struct hal_ledger_slot *s = &l->slot[i];
        bool claimed = hal_ledger_owner_pid(seen[i].owner) != 0 && !broken->is[i];
        for (int n = 0; claimed && n < HAL_LEDGER_LANES; n++) {
            if ((seen[i].op[n] & 0xff) == device + 1) {
                out->at_rest = false;
                out->doubtful = plus(out->doubtful, atomic_load(&s->lane[n].bytes));
            }
            if (atomic_load(&s->lane[n].op) != seen[i].op[n]) return false;
        }
        if (atomic_load(&s->owner) != seen[i].owner) return false;
    }
    return true;
}

/* The caller holds the recount's lock. True: `used` is exact. Where operations stand still, it takes away all
 * but what they may yet account for. */
static bool recount(struct hal_ledger *l, unsigned device, const struct broken *broken) {
    int64_t start = now_ns();
    struct balance b;
    for (unsigned turn = 1;; turn++) {
        int64_t spent = now_ns() - start;
        bool sound = look(l, device, broken, &b);
        if (sound && b.at_rest) {
            if (b.used != b.sum) atomic_fetch_sub(&l->device[device].used, b.used - b.sum);
            return true;
        }
        if (sound && spent > QUIET_NS) {
            uint64_t known = plus(b.sum, b.doubtful);
            if (b.used > known) atomic_fetch_sub(&l->device[device].used, b.used - known);
            return false;
        }
        if (spent > GIVE_UP_NS) return false;
        if (turn % 8 == 0) sched_yield(); /* who has an operation under way may wait for this processor */
    }
}

static bool recount_all(struct hal_ledger *l, const struct broken *broken) {
    bool exact = true;
    for (unsigned d = 0; d < hal_ledger_devices(l); d++) exact = recount(l, d, broken) && exact;
    return exact;
}

static bool begin_recount(struct hal_ledger *l, struct hal_home *home, int fd) {
    if (!hal_home_lock(home, fd, HAL_RECOUNT)) return false;
    hal_hold_raise(l);
    return true;
}

static void end_recount(struct hal_ledger *l, struct hal_home *home, int fd) {
    hal_hold_drop(l);
    hal_home_unlock(home, fd, HAL_RECOUNT);
}

bool hal_ledger_recount(struct hal_ledger *l, unsigned device) {
    static const struct broken none;
    struct hal_home *home = hal_home_of(l);
    int fd = home != NULL ? hal_home_open(home) : -1;
    if (fd < 0) return false;
    bool exact = false;
    if (device < hal_ledger_devices(l) && begin_recount(l, home, fd)) {
        exact = recount(l, device, &none);
        end_recount(l, home, fd);
    }
    hal_home_shut(fd);
    return exact;
}

/* ---- the dead ------------------------------------------------------------------------------- */

static bool same(const struct hal_process *a, const struct hal_process *b) {
    return a->start != 0 && a->start == b->start && a->pid == b->pid && a->pid_namespace == b->pid_namespace &&
           a->time_namespace == b->time_namespace;
}

/* Of a slot whose byte is locked by the caller. A vouched process is dead, then; but it gives up its memory
 * before its open files, and what the driver gave it is free only with those. */
static bool is_dead(const struct hal_ledger_slot *s, uint64_t owner, const struct hal_process *gone) {
    struct hal_process p = hal_slot_process(s, owner);
    enum hal_fate fate = hal_process_fate(&p);
    if ((owner & HAL_UNVOUCHED) == 0) return fate != HAL_DYING;
    return fate == HAL_DEAD || (gone != NULL && same(&p, gone));
}

/* `gone`: an unvouched process of that name is dead, too. */
static unsigned reap(struct hal_ledger *l, const struct hal_process *gone) {
    struct hal_home *home = hal_home_of(l);
    struct broken broken = {.count = 0};
    unsigned freed = 0;
    int fd = -1;
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &l->slot[i];
        uint64_t owner = atomic_load(&s->owner);
        if (hal_ledger_owner_pid(owner) == 0) continue;
        if (fd < 0 && (home == NULL || (fd = hal_home_open(home)) < 0)) return 0;
        if (!hal_home_lock(home, fd, i)) continue; /* it lives, or another reaper has it */
        if (atomic_load(&s->owner) == owner && is_dead(s, owner, gone)) {
            if (!hal_slot_is_quiet(s)) {
                broken.is[i] = true;
                broken.count++;
                continue; /* stays locked */
            }
            hal_slot_settle(l, s);
            hal_slot_vacate(s);
            freed++;
        }
        hal_home_unlock(home, fd, i);
    }
    /* A hold that is up while nobody recounts is a dead recounter's. */
    bool wanted = broken.count > 0 || atomic_load(&l->hold) != 0;
    if (fd >= 0 && wanted && begin_recount(l, home, fd)) {
        bool exact = broken.count == 0 || recount_all(l, &broken);
        for (int i = 0; exact && i < HAL_LEDGER_SLOTS; i++) {
            if (!broken.is[i]) continue;
            hal_slot_erase(&l->slot[i]);
            hal_slot_vacate(&l->slot[i]);
            freed++;
        }
        end_recount(l, home, fd);
    }
    for (int i = 0; broken.count > 0 && i < HAL_LEDGER_SLOTS; i++)
        if (broken.is[i]) hal_home_unlock(home, fd, i);
    if (fd >= 0) hal_home_shut(fd);
    return freed;
}

unsigned hal_ledger_reap(struct hal_ledger *l) { return reap(l, NULL); }

void hal_ledger_forget_self(struct hal_ledger *l) {
    struct hal_process me = hal_process_self();
    reap(l, &me);
}
