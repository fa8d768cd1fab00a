/* Faults and delays on demand: for every function that the management stand-ins export, and for those that a
 * program on the CUDA stand-in asks while it starts (FAULTY in cuda.c).
 *
 * HAL_EMULATOR_FAULTS="nvmlDeviceGetPowerUsage=15;nvmlInitWithFlags=abort;..." makes a call give
 * that status at once (a number), never return (hang) or end the process (abort).
 * HAL_EMULATOR_LATENCY="nvmlDeviceGetMemoryInfo_v2=11600;*=5000" makes it busy for so many
 * nanoseconds.
 * `*` is every function that has no rule of its own. A name with a space in it is a part of what a
 * function gives: "field 82" of nvmlDeviceGetFieldValues, "metric 2" of nvmlGpmMetricsGet, "event 2"
 * of the AMD SMI notifications (its figure is how many there are). */
#ifndef HAL_EMULATOR_FAULTS_H
#define HAL_EMULATOR_FAULTS_H

#include <stdbool.h>

extern bool emulator_faulty; /* there are rules */

int emulator_fault_slowly(const char *function, int *status);

/* What every exported function asks first: 1 when it has to give *status at once. */
static inline int emulator_fault(const char *function, int *status) {
    return __builtin_expect(emulator_faulty, 0) ? emulator_fault_slowly(function, status) : 0;
}

#endif
