/* Who a process is, so that a recycled pid is never taken for its predecessor. */
#ifndef HAL_PROCESS_H
#define HAL_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The caller, in one word: pid:22 | low bits of its pid namespace's inode:16 | of its start time:26
 * (/proc/PID/stat, field 22; at 100 Hz they wrap after a week). 0 when /proc cannot be read. */
uint64_t hal_process_self(void);

/* True when the process is of the caller's own pid namespace, so that its pid means something here. */
bool hal_process_is_here(uint64_t process);

/* True while the process of that word can still hold memory: false only when its death is certain.
 * A zombie holds none, unless only its first thread has ended. A pid of another pid namespace means
 * nothing here, so such a process counts as alive. */
bool hal_process_lives(uint64_t process);

#endif
