/* A slot's life: claimed, settled, vacated. */
#ifndef HAL_SLOT_H
#define HAL_SLOT_H

#include <stdbool.h>

#include "hal_ledger.h"
#include "process.h"

#define HAL_UNVOUCHED (UINT64_C(1) << 31)

/* Who the slot says that it belongs to. */
struct hal_process hal_slot_process(const struct hal_ledger_slot *s, uint64_t owner);

/* No operation is under way in it. */
bool hal_slot_is_quiet(const struct hal_ledger_slot *s);

/* For whoever the slot belongs to, by joining or because its byte is locked and its process dead. Killed at
 * any instruction they leave the slot claimed, and either quiet with a true sum, or not quiet. */
void hal_slot_settle(struct hal_ledger *l, struct hal_ledger_slot *s); /* of a quiet one: releases all */
void hal_slot_erase(struct hal_ledger_slot *s);  /* of one whose memory is not in any `used` any more */
void hal_slot_vacate(struct hal_ledger_slot *s); /* quiet and empty: free */

/* Its lanes' sum. False: operations began while it was read, so it is of no one moment. */
bool hal_slot_sum(const struct hal_ledger_slot *s, unsigned device, uint64_t *bytes);

/* An ordinary release, which does not wait for a hold. */
void hal_slot_release(struct hal_ledger *l, struct hal_ledger_slot *s, unsigned device, uint64_t bytes);

#endif
