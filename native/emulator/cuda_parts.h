/* What the parts of the stand-in libcuda share. */
#ifndef HAL_CUDA_PARTS_H
#define HAL_CUDA_PARTS_H

#include "cuda.h"
#include "emulator.h"

#define CUDA EMULATOR_EXPORT CUresult

/* Gives an older name to a newer function. For forms older than CUDA 3.2 that is a liberty: their
 * sizes and addresses had 32 bits, which are of no use to a 64-bit program. */
#define ALSO(older, newer) EMULATOR_EXPORT __typeof__(newer) older __attribute__((alias(#newer)))

#define TRY(expression)                                                                            \
    do {                                                                                           \
        CUresult failed = (expression);                                                            \
        if (failed != CUDA_SUCCESS) return failed;                                                 \
    } while (0)

/* The machine's index of the device of the current context. */
CUresult cuda_current(unsigned *device);

#endif
