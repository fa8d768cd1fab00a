/* What the parts of the stand-in libcuda share. */
#ifndef HAL_CUDA_PARTS_H
#define HAL_CUDA_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda.h"
#include "emulator.h"

struct CUgraph_st;
struct CUstream_st;

#define CUDA EMULATOR_EXPORT CUresult

/* Gives an older name to a newer function. For forms older than CUDA 3.2 that is a liberty: their
 * sizes and addresses had 32 bits, which are of no use to a 64-bit program. */
#define ALSO(older, newer) EMULATOR_EXPORT __typeof__(newer) older __attribute__((alias(#newer)))

#define TRY(expression)                                                                            \
    do {                                                                                           \
        CUresult failed = (expression);                                                            \
        if (failed != CUDA_SUCCESS) return failed;                                                 \
    } while (0)

/* Whether cuInit has succeeded. */
CUresult cuda_ready(void);

/* The machine's index of the device of the current context. */
CUresult cuda_current(unsigned *device);

/* The same, and the context as the owner of what is allocated in it. */
CUresult cuda_owner(uint64_t *owner, unsigned *device);

/* The machine's index of a device that CUDA shows: INVALID_DEVICE when it does not. */
CUresult cuda_device(CUdevice device, unsigned *index);

/* Pools give back what they keep beyond their thresholds: at every synchronization (cuda_pool.c). */
void cuda_pools_release(void);

bool cuda_pool_free(uint64_t address); /* false: it is not from a pool */

/* The graph that work in this stream becomes a part of; NULL: it is not being captured (cuda_launch.c). */
struct CUgraph_st *cuda_capturing(struct CUstream_st *s);
struct CUstream_st *cuda_own_stream(struct CUstream_st *s); /* NULL means the thread's own */

bool cuda_graph_free(uint64_t address); /* false: no launch of a graph left it */

/* Allocation and free as parts of a graph (cuda_graph.c). */
CUresult cuda_graph_capture(struct CUgraph_st *graph, unsigned device, uint64_t bytes, CUdeviceptr *out);
CUresult cuda_graph_capture_free(struct CUgraph_st *graph, CUdeviceptr address);

static inline uint64_t cuda_round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

#endif
