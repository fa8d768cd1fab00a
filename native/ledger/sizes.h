/* The sizes of one process's live allocations, by address: lock-free, O(1) at any live count. */
#ifndef HAL_SIZES_H
#define HAL_SIZES_H

#include <stdbool.h>
#include <stdint.h>

struct hal_allocation {
    uint64_t bytes;
    uint64_t note; /* the caller's own: what it belongs to, or how many use it */
    uint32_t device;
};

/* Remembers a live allocation. False only when the system has no memory left for the table. */
bool hal_sizes_put(uint64_t address, struct hal_allocation a);

/* Removes and returns it; false when the address is not known (it was not allocated under the guard). */
bool hal_sizes_take(uint64_t address, struct hal_allocation *out);

/* Looks without removing. */
bool hal_sizes_find(uint64_t address, struct hal_allocation *out);

/* Adds to the note, and removes the entry when that makes it 0; `out` is what it then is. False: not known. */
bool hal_sizes_count(uint64_t address, int64_t more, struct hal_allocation *out);

/* Removes every entry whose note is this and whose address has all bits of `mask` as in `bits`, and gives
 * each to `each`. Slow: it looks at all there are. */
void hal_sizes_drain(uint64_t note, uint64_t mask, uint64_t bits,
                     void (*each)(uint64_t address, struct hal_allocation a));

/* Forgets everything: for a forked child, which owns none of its parent's memory. */
void hal_sizes_clear(void);

#endif
