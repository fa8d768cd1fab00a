/* libcuda.so.1 over the emulated machine: graphs, and allocation by their nodes.
 *
 * * Each device has a pool for graphs. A launch takes from it what all allocation nodes need together,
 * growing it in steps of 2 MiB; what the graph frees itself is free when the launch returns, the rest when
 * the program frees it. The pool keeps what is free until cuDeviceGraphMemTrim. */
#define _GNU_SOURCE
#include "cuda_graph.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_parts.h"
#include "sizes.h"

enum { MOST_NODES = 1 << 16, UNFREED = 3, AUTO_FREE_ON_LAUNCH = 1 };
static const uint64_t STEP = 2 << 20;

struct cuda_graph_memory {
    uint64_t address, bytes;
    unsigned device;
    bool freed; /* by the graph itself */
};

static struct {
    uint64_t reserved, reserved_high, used, used_high;
} pool[HAL_LEDGER_DEVICES]; /* by the machine's index */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

CUresult cuCtxGetDevice(CUdevice *device);

/* ---- building ----------------------------------------------------------------------------------- */

static CUresult add(CUgraphNode *out, CUgraph graph, struct CUgraphNode_st wanted) {
    CUgraphNode made = malloc(sizeof *made);
    CUgraphNode *more = realloc(graph->node, (graph->nodes + 1) * sizeof *more);
    if (more != NULL) graph->node = more;
    if (made == NULL || more == NULL || graph->nodes == MOST_NODES) {
        free(made);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *made = wanted;
    graph->node[graph->nodes++] = made;
    if (out != NULL) *out = made;
    return CUDA_SUCCESS;
}

CUDA cuGraphCreate(CUgraph *out, unsigned flags) {
    TRY(cuda_ready());
    if (out == NULL || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    CUgraph graph = calloc(1, sizeof *graph);
    if (graph == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = graph;
    return CUDA_SUCCESS;
}

/* It has an address from now on, and memory while it runs. */
CUDA cuGraphAddMemAllocNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *before, size_t count,
                            CUDA_MEM_ALLOC_NODE_PARAMS *p) {
    struct CUgraphNode_st node = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
    (void)before, (void)count; /* the order of things that take no time */
    TRY(cuda_ready());
    if (out == NULL || graph == NULL || p == NULL || p->bytesize == 0) return CUDA_ERROR_INVALID_VALUE;
    if (p->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
    TRY(cuda_device(p->poolProps.location.id, &node.device));
    node.allocation = *p;
    node.allocation.dptr = emulator_address(p->bytesize, 512);
    TRY(add(out, graph, node));
    p->dptr = node.allocation.dptr;
    return CUDA_SUCCESS;
}

CUDA cuGraphAddMemFreeNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *before, size_t count,
                           CUdeviceptr address) {
    (void)before, (void)count;
    TRY(cuda_ready());
    if (out == NULL || graph == NULL || address == 0) return CUDA_ERROR_INVALID_VALUE;
    struct CUgraphNode_st node = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .allocation.dptr = address};
    return add(out, graph, node);
}

CUresult cuda_graph_capture(CUgraph graph, unsigned device, uint64_t bytes, CUdeviceptr *out) {
    struct CUgraphNode_st node = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC, .device = device};
    CUdevice ordinal;
    TRY(cuCtxGetDevice(&ordinal));
    node.allocation.poolProps.location = (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, ordinal};
    node.allocation.bytesize = bytes;
    node.allocation.dptr = emulator_address(bytes, 512);
    TRY(add(NULL, graph, node));
    *out = node.allocation.dptr;
    return CUDA_SUCCESS;
}

CUresult cuda_graph_capture_free(CUgraph graph, CUdeviceptr address) {
    struct CUgraphNode_st node = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .allocation.dptr = address};
    return add(NULL, graph, node);
}

CUDA cuGraphGetNodes(CUgraph graph, CUgraphNode *out, size_t *count) {
    if (graph == NULL || count == NULL) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; out != NULL && i < *count; i++) out[i] = i < graph->nodes ? graph->node[i] : NULL;
    if (out == NULL || *count > graph->nodes) *count = graph->nodes;
    return CUDA_SUCCESS;
}

CUDA cuGraphNodeGetType(CUgraphNode node, int *out) {
    if (node == NULL || out == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = node->type;
    return CUDA_SUCCESS;
}

CUDA cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *out) {
    if (node == NULL || out == NULL || node->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        return CUDA_ERROR_INVALID_VALUE;
    *out = node->allocation;
    return CUDA_SUCCESS;
}

CUDA cuGraphDestroy(CUgraph graph) {
    if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < graph->nodes; i++) free(graph->node[i]);
    free(graph->node);
    free(graph);
    return CUDA_SUCCESS;
}

/* ---- running ------------------------------------------------------------------------------------ */

static bool frees(CUgraph graph, CUdeviceptr address) {
    for (unsigned i = 0; i < graph->nodes; i++)
        if (graph->node[i]->type == CU_GRAPH_NODE_TYPE_MEM_FREE && graph->node[i]->allocation.dptr == address)
            return true;
    return false;
}

CUDA cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long flags) {
    if (out == NULL || graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUgraphExec exec = calloc(1, sizeof *exec);
    if (exec == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    exec->memory = calloc(graph->nodes + 1, sizeof *exec->memory);
    if (exec->memory == NULL) return free(exec), CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < graph->nodes; i++) {
        CUgraphNode n = graph->node[i];
        if (n->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC) continue;
        exec->memory[exec->count++] = (struct cuda_graph_memory){
            n->allocation.dptr, n->allocation.bytesize, n->device, frees(graph, n->allocation.dptr)};
    }
    exec->ns = graph->ns;
    exec->frees_on_launch = flags & AUTO_FREE_ON_LAUNCH;
    *out = exec;
    return CUDA_SUCCESS;
}

CUDA cuGraphInstantiate(CUgraphExec *out, CUgraph graph, CUgraphNode *where, char *log, size_t length) {
    (void)where, (void)log, (void)length;
    return cuGraphInstantiateWithFlags(out, graph, 0);
}
ALSO(cuGraphInstantiate_v2, cuGraphInstantiate);

CUDA cuGraphInstantiateWithParams(CUgraphExec *out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *p) {
    if (p == NULL) return CUDA_ERROR_INVALID_VALUE;
    return cuGraphInstantiateWithFlags(out, graph, p->flags);
}
ALSO(cuGraphInstantiateWithParams_ptsz, cuGraphInstantiateWithParams);

bool cuda_graph_free(uint64_t address) {
    struct hal_allocation a;
    if (!hal_sizes_take(address + UNFREED, &a)) return false;
    pthread_mutex_lock(&lock);
    pool[a.device].used -= a.bytes;
    pthread_mutex_unlock(&lock);
    return true;
}

static bool grow(CUgraphExec exec, unsigned device) {
    uint64_t needs = 0;
    for (unsigned i = 0; i < exec->count; i++)
        if (exec->memory[i].device == device) needs += cuda_round_up(exec->memory[i].bytes, STEP);
    uint64_t idle = pool[device].reserved - pool[device].used;
    if (needs > idle && !emulator_take(device, needs - idle)) return false;
    if (needs > idle) pool[device].reserved += needs - idle;
    uint64_t reserved = pool[device].reserved, used = pool[device].used + needs;
    if (reserved > pool[device].reserved_high) pool[device].reserved_high = reserved;
    if (used > pool[device].used_high) pool[device].used_high = used;
    return true;
}

CUresult cuda_graph_reserve(CUgraphExec exec) {
    struct hal_allocation before;
    for (unsigned i = 0; i < exec->count; i++) {
        struct cuda_graph_memory *m = &exec->memory[i];
        if (m->freed || !hal_sizes_find(m->address + UNFREED, &before)) continue;
        if (!exec->frees_on_launch) return CUDA_ERROR_INVALID_VALUE; /* its last launch's is still there */
        cuda_graph_free(m->address);
    }
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; result == CUDA_SUCCESS && i < exec->count; i++)
        if (!grow(exec, exec->memory[i].device)) result = CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < exec->count; i++) {
        struct cuda_graph_memory *m = &exec->memory[i];
        uint64_t bytes = cuda_round_up(m->bytes, STEP);
        if (m->freed) continue;
        pool[m->device].used += bytes;
        hal_sizes_put(m->address + UNFREED, (struct hal_allocation){bytes, 0, m->device});
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* Here it only makes room beforehand. */
CUDA cuGraphUpload(CUgraphExec exec, CUstream s) {
    (void)s;
    unsigned device;
    TRY(cuda_current(&device));
    if (exec == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; result == CUDA_SUCCESS && i < exec->count; i++)
        if (!grow(exec, exec->memory[i].device)) result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&lock);
    return result;
}
ALSO(cuGraphUpload_ptsz, cuGraphUpload);

CUDA cuGraphExecDestroy(CUgraphExec exec) {
    if (exec == NULL) return CUDA_ERROR_INVALID_VALUE;
    free(exec->memory);
    free(exec);
    return CUDA_SUCCESS;
}

/* ---- the pool ----------------------------------------------------------------------------------- */

CUDA cuDeviceGraphMemTrim(CUdevice device) {
    unsigned index;
    TRY(cuda_device(device, &index));
    pthread_mutex_lock(&lock);
    emulator_give(index, pool[index].reserved - pool[index].used);
    pool[index].reserved = pool[index].used;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUDA cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value) {
    unsigned index;
    TRY(cuda_device(device, &index));
    if (value == NULL) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT: *(uint64_t *)value = pool[index].used; break;
    case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH: *(uint64_t *)value = pool[index].used_high; break;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT: *(uint64_t *)value = pool[index].reserved; break;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH: *(uint64_t *)value = pool[index].reserved_high; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
