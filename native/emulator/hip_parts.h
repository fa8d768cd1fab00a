/* What the parts of the stand-in libamdhip64 share. */
#ifndef HAL_HIP_PARTS_H
#define HAL_HIP_PARTS_H

#include <stdbool.h>
#include <stdint.h>

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

/* The machine's index of an ordinal. */
hipError_t hip_index_of(int ordinal, unsigned *index);

/* The machine's index of the current device; the same, and the owner of what is allocated on it. */
hipError_t hip_here(unsigned *device);
hipError_t hip_owner(uint64_t *owner, unsigned *device);

/* A function of this library's as a runtime calls it that re-enters itself (HAL_EMULATOR_HIP_REENTERS=1, seen on
 * ROCm 7): through the global symbol table, where a preloaded library comes first. */
void *hip_via(const char *name, void *own);
#define VIA(function) ((__typeof__(&function))hip_via(#function, (void *)function))

/* Pools give back what they keep beyond their thresholds: at every synchronization (hip_pool.c). */
void hip_pools_release(void);
void hip_pools_end(int ordinal); /* a reset */

bool hip_pool_free(uint64_t address);  /* false: it is not from a pool */
bool hip_graph_free(uint64_t address); /* false: no launch of a graph left it */

/* The graph that work in this stream becomes a part of; NULL: it is not being captured (hip_launch.c). */
hipGraph_t hip_capturing(hipStream_t s);
hipError_t hip_graph_capture(hipGraph_t graph, uint64_t bytes, void **out);
hipError_t hip_graph_capture_free(hipGraph_t graph, void *address);

static inline uint64_t hip_round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

#define HIP EMULATOR_EXPORT hipError_t

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
