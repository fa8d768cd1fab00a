/* A graph in the stand-in libamdhip64: how long its kernels take, and the memory that its nodes allocate. */
#ifndef HAL_HIP_GRAPH_H
#define HAL_HIP_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

#include "hip.h"

struct hipGraphNode {
    int type; /* hipGraphNodeTypeMemAlloc or Free; kernels are not kept as nodes */
    unsigned device;
    hipMemAllocNodeParams allocation; /* of a free: its address only */
};

struct ihipGraph {
    int64_t ns;
    unsigned nodes;
    hipGraphNode_t *node;
};

struct hip_graph_memory;
struct hipGraphExec {
    int64_t ns;
    bool frees_on_launch;
    unsigned count;
    struct hip_graph_memory *memory;
};

/* Takes what the graph's allocations need; a launch comes after it. */
hipError_t hip_graph_reserve(hipGraphExec_t exec);

#endif
