/* The slice that this process runs in: the ledger that HAL_SLICE names. */
#ifndef HAL_GUARD_SLICE_H
#define HAL_GUARD_SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True when this process is in a slice. Everything passes through when it is not. */
bool slice_active(void);

/* True when the slice is on more than one device, so that the current one must be asked for. */
bool slice_is_plural(void);

/* True when launches are of interest: the slice has a share of some device's time only, or is paused. */
bool slice_limits_time(void);

/* Waits while the slice is paused, for as long as whoever paused it likes. For a slice that is open. */
void slice_await_running(void);

/* The ledger of a slice that is open. */
struct hal_ledger *slice_ledger(void);

/* The ledger's account of a device; NULL when the slice has no such device or could not be used. */
struct hal_ledger_device *slice_device(unsigned device);

/* Reserves before the driver is asked; false: the slice has no room, or its ledger could not be used
 * (an unreadable limit is no licence). Says so on stderr, once a second at most. */
bool slice_reserve(unsigned device, uint64_t bytes);

/* Gives back a reservation that the driver did not honour. */
void slice_release(unsigned device, uint64_t bytes);

/* Keeps the size of an honoured reservation for its free; false: no memory for that. */
bool slice_remember(uint64_t address, unsigned device, uint64_t bytes);

/* An address is about to be freed: takes its size out of the table before the driver can hand the
 * address to another thread. False: not allocated under the guard. */
struct slice_claim {
    uint64_t bytes;
    unsigned device;
};
bool slice_take(uint64_t address, struct slice_claim *out);

/* Narrows what the driver says of a device's memory to what the slice has. NULL is allowed. */
void slice_narrow(unsigned device, size_t *free_bytes, size_t *total_bytes);

#endif
