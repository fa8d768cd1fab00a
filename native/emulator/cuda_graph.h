/* A graph in the stand-in libcuda: how long its kernels take, and the memory that its nodes allocate. */
#ifndef HAL_CUDA_GRAPH_H
#define HAL_CUDA_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_memory.h"

struct CUgraphNode_st {
    int type; /* CU_GRAPH_NODE_TYPE_MEM_ALLOC or _FREE; kernels are not kept as nodes */
    unsigned device;
    CUDA_MEM_ALLOC_NODE_PARAMS allocation; /* of a free: its address only */
};

struct CUgraph_st {
    int64_t ns;
    unsigned kernels, nodes;
    CUgraphNode *node;
};

struct cuda_graph_memory;
struct CUgraphExec_st {
    int64_t ns;
    bool frees_on_launch;
    unsigned count;
    struct cuda_graph_memory *memory;
};

CUresult cuGraphDestroy(CUgraph graph);

/* Takes what the graph's allocations need; a launch comes after it. */
CUresult cuda_graph_reserve(CUgraphExec exec);

#endif
