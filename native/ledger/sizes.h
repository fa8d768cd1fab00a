/* The sizes of one process's live allocations, by address: lock-free, O(1) at any live count. */
#ifndef HAL_SIZES_H
#define HAL_SIZES_H

#include <stdbool.h>
#include <stdint.h>

struct hal_allocation {
    uint64_t bytes;
    uint32_t device;
};

/* Remembers a live allocation. False only when the system has no memory left for the table. */
bool hal_sizes_put(uint64_t address, struct hal_allocation a);

/* Removes and returns it; false when the address is not known (it was not allocated under the guard). */
bool hal_sizes_take(uint64_t address, struct hal_allocation *out);

/* Forgets everything: for a forked child, which owns none of its parent's memory. */
void hal_sizes_clear(void);

#endif
