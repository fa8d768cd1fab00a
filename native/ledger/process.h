/* Who a process is, so that a recycled pid is never taken for its predecessor, and what became of it. */
#ifndef HAL_PROCESS_H
#define HAL_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

struct hal_process {
    uint32_t pid;            /* as its own pid namespace numbers it */
    uint64_t start;          /* /proc/PID/stat, field 22, as its own time namespace shows it; 0: not known */
    uint64_t pid_namespace;  /* inode of /proc/self/ns/pid; 0: not known */
    uint64_t time_namespace; /* of /proc/self/ns/time; 0 where the kernel has none (before 5.6) */
};

struct hal_process hal_process_self(void);

/* What can be proven from here. A pid means something in its own namespace only, a start time in its own
 * time namespace, and /proc only where it shows the caller's namespace: else the answer is UNKNOWN.
 * DYING: it has given up its memory and may still hold open files, as the driver's are.
 * A zombie is dead, unless only its first thread has ended. */
enum hal_fate { HAL_UNKNOWN_FATE, HAL_LIVES, HAL_DYING, HAL_DEAD };
enum hal_fate hal_process_fate(const struct hal_process *process);

#endif
