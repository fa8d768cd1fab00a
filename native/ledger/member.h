/* The calling process as a member of a ledger: joins on first use, once, and again after a fork. */
#ifndef HAL_MEMBER_H
#define HAL_MEMBER_H

#include <stddef.h>

#include "hal_ledger.h"

/* A zeroed one with its ledger set is ready. */
struct hal_member {
    struct hal_ledger *ledger;
    /* The slot + 1, or 0 before the first use. In a page that the kernel wipes in every forked child, also of
     * a fork that runs no handlers (_Fork, clone): the slot is the parent's. */
    _Atomic int *_Atomic joined;
    _Atomic int unwiped; /* in its stead, where there is no such page */
};

int hal_member_join(struct hal_member *m); /* the slow half of hal_member_slot */

/* The process's slot, or -1 when the ledger has none left. */
static inline int hal_member_slot(struct hal_member *m) {
    _Atomic int *joined = atomic_load_explicit(&m->joined, memory_order_acquire);
    int mine = joined != NULL ? atomic_load_explicit(joined, memory_order_acquire) : 0;
    return mine > 0 ? mine - 1 : hal_member_join(m);
}

/* In the child of a fork, from pthread_atfork. */
void hal_member_forked(struct hal_member *m);

#endif
