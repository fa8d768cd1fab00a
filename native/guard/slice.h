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

/* Reserves; false: the slice has no room, or its ledger could not be used (an unreadable limit is no
 * licence). */
bool slice_try(unsigned device, uint64_t bytes);
void slice_release(unsigned device, uint64_t bytes);

/* Says on stderr, once a second at most, what was refused and why. */
void slice_refused(unsigned device, uint64_t bytes);

/* What the slice is on, by hal's own names; and whether a process belongs to it (pids as this namespace has
 * them). */
unsigned slice_devices(void);
const char *slice_id(unsigned device);
bool slice_has(uint32_t pid);

/* Bytes of a device that all processes of the slice use, and that it may use; 0 and 0 when there is none. */
void slice_account(unsigned device, uint64_t *used, uint64_t *limit);

/* Narrows what the driver says of a device's memory to what the slice has. NULL is allowed. */
void slice_narrow(unsigned device, size_t *free_bytes, size_t *total_bytes);

#endif
