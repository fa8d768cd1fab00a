/* A recount's request to new operations to wait a moment, so that it meets all of them at rest.
 * Nothing depends on its being heeded: a recount proves what it saw. So it is asked for by any value but 0,
 * waited for no longer than HAL_HOLD_NS, and a holder who dies costs each process that time once. */
#ifndef HAL_HOLD_H
#define HAL_HOLD_H

#include "hal_ledger.h"

#define HAL_HOLD_NS INT64_C(50000000)

void hal_hold_wait(struct hal_ledger *l);
void hal_hold_raise(struct hal_ledger *l);
void hal_hold_drop(struct hal_ledger *l);

static inline void hal_hold_heed(struct hal_ledger *l) {
    if (__builtin_expect(atomic_load_explicit(&l->hold, memory_order_relaxed) != 0, 0)) hal_hold_wait(l);
}

#endif
