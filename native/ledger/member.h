/* The calling process as a member of a ledger: joins on first use, once, and again after a fork. */
#ifndef HAL_MEMBER_H
#define HAL_MEMBER_H

#include "hal_ledger.h"

struct hal_member {
    struct hal_ledger *ledger;
    _Atomic int slot; /* HAL_NOT_JOINED until first use */
};

enum { HAL_NOT_JOINED = -1 };

/* The process's slot, or -1 when the ledger has none left. */
static inline int hal_member_slot(struct hal_member *m) {
    int mine = atomic_load_explicit(&m->slot, memory_order_acquire);
    if (mine != HAL_NOT_JOINED) return mine;
    int fresh = hal_ledger_join(m->ledger);
    if (fresh < 0 || atomic_compare_exchange_strong(&m->slot, &mine, fresh)) return fresh;
    hal_ledger_leave(m->ledger, fresh); /* another thread was first */
    return mine;
}

/* In the child of a fork: the slot is the parent's. */
static inline void hal_member_forked(struct hal_member *m) {
    atomic_store(&m->slot, HAL_NOT_JOINED);
    hal_ledger_forked();
}

#endif
