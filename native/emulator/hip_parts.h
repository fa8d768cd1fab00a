/* What the parts of the stand-in libamdhip64 share. */
#ifndef HAL_HIP_PARTS_H
#define HAL_HIP_PARTS_H

#include "emulator.h"
#include "hip.h"

#define DECLARE(result, name, parameters) EMULATOR_EXPORT result name parameters;
HIP_FUNCTIONS(DECLARE)

/* Every answer passes here: an error stays the thread's last one until it is asked for. */
hipError_t hip_answer(hipError_t error);

/* What is wrong with a question about a device: `out` is where the answer goes. */
hipError_t hip_check(const void *out, int ordinal);

/* The thread's current device, and the machine's index of the card behind it. */
int hip_current(void);
unsigned hip_index(int ordinal);

#define ASKED(out, ordinal) \
    do { \
        hipError_t wrong = hip_check(out, ordinal); \
        if (wrong != hipSuccess) return hip_answer(wrong); \
    } while (0)

#define TRY(expression) \
    do { \
        hipError_t failed = (expression); \
        if (failed != hipSuccess) return hip_answer(failed); \
    } while (0)

#endif
