/* Limits that the driver holds control groups to (NVML 615). A group's programs are those that its cgroup.procs
 * lists, and their descendants, as the kernel would have it. */
#ifndef HAL_EMULATOR_HOLD_H
#define HAL_EMULATOR_HOLD_H

#include <stdbool.h>
#include <stdint.h>

/* Sets or replaces a limit. False: there is no room for another. */
bool hold_set(unsigned device, const char *group, uint64_t soft, uint64_t hard);

/* What is set for a group, and what its programs have now. False: nothing is set. */
bool hold_get(unsigned device, const char *group, uint64_t *soft, uint64_t *hard, uint64_t *used);

/* May this process have `bytes` more of the device? */
bool hold_allows(unsigned device, uint64_t bytes);

#endif
