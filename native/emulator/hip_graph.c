/* libamdhip64.so over the emulated machine: graphs, and allocation by their nodes.
 *
 * Each device has a pool for graphs. A launch takes from it what all allocation nodes need together,
 * growing it in steps of 2 MiB; what the graph frees itself is free when the launch returns, the rest when
 * the program frees it. The pool keeps what is free until hipDeviceGraphMemTrim. */
#define _GNU_SOURCE
#include "hip_graph.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "hip_parts.h"
#include "sizes.h"

enum { MOST_NODES = 1 << 16, UNFREED = 3, AUTO_FREE_ON_LAUNCH = 1 };
static const uint64_t STEP = 2 << 20;

struct hip_graph_memory {
    uint64_t address, bytes;
    unsigned device; /* the ordinal */
    bool freed; /* by the graph itself */
};

static struct {
    uint64_t reserved, reserved_high, used, used_high;
} pool[HAL_LEDGER_DEVICES]; /* by ordinal */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- building ----------------------------------------------------------------------------------- */

static hipError_t add(hipGraphNode_t *out, hipGraph_t graph, struct hipGraphNode wanted) {
    hipGraphNode_t made = malloc(sizeof *made);
    hipGraphNode_t *more = realloc(graph->node, (graph->nodes + 1) * sizeof *more);
    if (more != NULL) graph->node = more;
    if (made == NULL || more == NULL || graph->nodes == MOST_NODES) {
        free(made);
        return hip_answer(hipErrorOutOfMemory);
    }
    *made = wanted;
    graph->node[graph->nodes++] = made;
    if (out != NULL) *out = made;
    return hip_answer(hipSuccess);
}

HIP hipGraphCreate(hipGraph_t *out, unsigned flags) {
    if (out == NULL || flags != 0) return hip_answer(hipErrorInvalidValue);
    hipGraph_t graph = calloc(1, sizeof *graph);
    if (graph == NULL) return hip_answer(hipErrorOutOfMemory);
    *out = graph;
    return hip_answer(hipSuccess);
}

/* It has an address from now on, and memory while it runs. */
HIP hipGraphAddMemAllocNode(hipGraphNode_t *out, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                            hipMemAllocNodeParams *p) {
    struct hipGraphNode node = {.type = hipGraphNodeTypeMemAlloc};
    (void)before, (void)count; /* the order of things that take no time */
    if (out == NULL || graph == NULL || p == NULL || p->bytesize == 0) return hip_answer(hipErrorInvalidValue);
    if (p->poolProps.location.type != LOCATED_ON_DEVICE) return hip_answer(hipErrorInvalidValue);
    TRY(hip_check(p, p->poolProps.location.id));
    node.device = (unsigned)p->poolProps.location.id;
    node.allocation = *p;
    node.allocation.dptr = emulator_address(p->bytesize, 512);
    TRY(add(out, graph, node));
    p->dptr = node.allocation.dptr;
    return hip_answer(hipSuccess);
}

HIP hipGraphAddMemFreeNode(hipGraphNode_t *out, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                           uint64_t address) {
    (void)before, (void)count;
    if (out == NULL || graph == NULL || address == 0) return hip_answer(hipErrorInvalidValue);
    struct hipGraphNode node = {.type = hipGraphNodeTypeMemFree, .allocation.dptr = address};
    return add(out, graph, node);
}

hipError_t hip_graph_capture(hipGraph_t graph, uint64_t bytes, void **out) {
    struct hipGraphNode node = {.type = hipGraphNodeTypeMemAlloc, .device = (unsigned)hip_current()};
    node.allocation.poolProps.location = (hipMemLocation){LOCATED_ON_DEVICE, hip_current()};
    node.allocation.bytesize = bytes;
    node.allocation.dptr = emulator_address(bytes, 512);
    TRY(add(NULL, graph, node));
    *out = (void *)(uintptr_t)node.allocation.dptr;
    return hip_answer(hipSuccess);
}

hipError_t hip_graph_capture_free(hipGraph_t graph, void *address) {
    struct hipGraphNode node = {.type = hipGraphNodeTypeMemFree, .allocation.dptr = (uint64_t)(uintptr_t)address};
    return add(NULL, graph, node);
}

HIP hipGraphGetNodes(hipGraph_t graph, hipGraphNode_t *out, size_t *count) {
    if (graph == NULL || count == NULL) return hip_answer(hipErrorInvalidValue);
    for (size_t i = 0; out != NULL && i < *count; i++) out[i] = i < graph->nodes ? graph->node[i] : NULL;
    if (out == NULL || *count > graph->nodes) *count = graph->nodes;
    return hip_answer(hipSuccess);
}

HIP hipGraphNodeGetType(hipGraphNode_t node, int *out) {
    if (node == NULL || out == NULL) return hip_answer(hipErrorInvalidValue);
    *out = node->type;
    return hip_answer(hipSuccess);
}

HIP hipGraphMemAllocNodeGetParams(hipGraphNode_t node, hipMemAllocNodeParams *out) {
    if (node == NULL || out == NULL || node->type != hipGraphNodeTypeMemAlloc)
        return hip_answer(hipErrorInvalidValue);
    *out = node->allocation;
    return hip_answer(hipSuccess);
}

HIP hipGraphDestroy(hipGraph_t graph) {
    if (graph == NULL) return hip_answer(hipErrorInvalidValue);
    for (unsigned i = 0; i < graph->nodes; i++) free(graph->node[i]);
    free(graph->node);
    free(graph);
    return hip_answer(hipSuccess);
}

/* ---- running ------------------------------------------------------------------------------------ */

static bool frees(hipGraph_t graph, uint64_t address) {
    for (unsigned i = 0; i < graph->nodes; i++)
        if (graph->node[i]->type == hipGraphNodeTypeMemFree && graph->node[i]->allocation.dptr == address)
            return true;
    return false;
}

HIP hipGraphInstantiateWithFlags(hipGraphExec_t *out, hipGraph_t graph, unsigned long long flags) {
    if (out == NULL || graph == NULL) return hip_answer(hipErrorInvalidValue);
    hipGraphExec_t exec = calloc(1, sizeof *exec);
    if (exec == NULL) return hip_answer(hipErrorOutOfMemory);
    exec->memory = calloc(graph->nodes + 1, sizeof *exec->memory);
    if (exec->memory == NULL) return free(exec), hip_answer(hipErrorOutOfMemory);
    for (unsigned i = 0; i < graph->nodes; i++) {
        hipGraphNode_t n = graph->node[i];
        if (n->type != hipGraphNodeTypeMemAlloc) continue;
        exec->memory[exec->count++] = (struct hip_graph_memory){
            n->allocation.dptr, n->allocation.bytesize, n->device, frees(graph, n->allocation.dptr)};
    }
    exec->ns = graph->ns;
    exec->frees_on_launch = flags & AUTO_FREE_ON_LAUNCH;
    *out = exec;
    return hip_answer(hipSuccess);
}

HIP hipGraphInstantiate(hipGraphExec_t *out, hipGraph_t graph, hipGraphNode_t *where, char *log, size_t length) {
    (void)where, (void)log, (void)length;
    return VIA(hipGraphInstantiateWithFlags)(out, graph, 0);
}

HIP hipGraphInstantiateWithParams(hipGraphExec_t *out, hipGraph_t graph, hipGraphInstantiateParams *p) {
    if (p == NULL) return hip_answer(hipErrorInvalidValue);
    return VIA(hipGraphInstantiateWithFlags)(out, graph, p->flags);
}

bool hip_graph_free(uint64_t address) {
    struct hal_allocation a;
    if (!hal_sizes_take(address + UNFREED, &a)) return false;
    pthread_mutex_lock(&lock);
    pool[a.device].used -= a.bytes;
    pthread_mutex_unlock(&lock);
    return true;
}

static bool grow(hipGraphExec_t exec, unsigned device) {
    uint64_t needs = 0;
    for (unsigned i = 0; i < exec->count; i++)
        if (exec->memory[i].device == device) needs += hip_round_up(exec->memory[i].bytes, STEP);
    uint64_t idle = pool[device].reserved - pool[device].used;
    if (needs > idle && !emulator_take(hip_index((int)device), needs - idle)) return false;
    if (needs > idle) pool[device].reserved += needs - idle;
    uint64_t reserved = pool[device].reserved, used = pool[device].used + needs;
    if (reserved > pool[device].reserved_high) pool[device].reserved_high = reserved;
    if (used > pool[device].used_high) pool[device].used_high = used;
    return true;
}

hipError_t hip_graph_reserve(hipGraphExec_t exec) {
    struct hal_allocation before;
    for (unsigned i = 0; i < exec->count; i++) {
        struct hip_graph_memory *m = &exec->memory[i];
        if (m->freed || !hal_sizes_find(m->address + UNFREED, &before)) continue;
        if (!exec->frees_on_launch) return hip_answer(hipErrorInvalidValue); /* its last launch's is still there */
        hip_graph_free(m->address);
    }
    hipError_t result = hipSuccess;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; result == hipSuccess && i < exec->count; i++)
        if (!grow(exec, exec->memory[i].device)) result = hipErrorOutOfMemory;
    for (unsigned i = 0; result == hipSuccess && i < exec->count; i++) {
        struct hip_graph_memory *m = &exec->memory[i];
        uint64_t bytes = hip_round_up(m->bytes, STEP);
        if (m->freed) continue;
        pool[m->device].used += bytes;
        hal_sizes_put(m->address + UNFREED, (struct hal_allocation){bytes, 0, m->device});
    }
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}

/* Here it only makes room beforehand. */
HIP hipGraphUpload(hipGraphExec_t exec, hipStream_t s) {
    (void)s;
    if (exec == NULL) return hip_answer(hipErrorInvalidValue);
    hipError_t result = hipSuccess;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; result == hipSuccess && i < exec->count; i++)
        if (!grow(exec, exec->memory[i].device)) result = hipErrorOutOfMemory;
    pthread_mutex_unlock(&lock);
    return hip_answer(result);
}

HIP hipGraphExecDestroy(hipGraphExec_t exec) {
    if (exec == NULL) return hip_answer(hipErrorInvalidValue);
    free(exec->memory);
    free(exec);
    return hip_answer(hipSuccess);
}

/* ---- the pool ----------------------------------------------------------------------------------- */

HIP hipDeviceGraphMemTrim(int ordinal) {
    ASKED(&ordinal, ordinal);
    pthread_mutex_lock(&lock);
    emulator_give(hip_index(ordinal), pool[ordinal].reserved - pool[ordinal].used);
    pool[ordinal].reserved = pool[ordinal].used;
    pthread_mutex_unlock(&lock);
    return hip_answer(hipSuccess);
}

HIP hipDeviceGetGraphMemAttribute(int ordinal, int attribute, void *value) {
    ASKED(&ordinal, ordinal);
    if (value == NULL) return hip_answer(hipErrorInvalidValue);
    switch (attribute) {
    case hipGraphMemAttrUsedMemCurrent: *(uint64_t *)value = pool[ordinal].used; break;
    case hipGraphMemAttrUsedMemHigh: *(uint64_t *)value = pool[ordinal].used_high; break;
    case hipGraphMemAttrReservedMemCurrent: *(uint64_t *)value = pool[ordinal].reserved; break;
    case hipGraphMemAttrReservedMemHigh: *(uint64_t *)value = pool[ordinal].reserved_high; break;
    default: return hip_answer(hipErrorInvalidValue);
    }
    return hip_answer(hipSuccess);
}
