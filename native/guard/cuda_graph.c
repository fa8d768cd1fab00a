/* CUDA driver API: memory that graphs allocate. The driver takes it, for all graphs of a device together,
 * when one is launched, and keeps it until cuDeviceGraphMemTrim; so that is a pool of its own (pool.h).
 *
 * * An executable graph's first launch, and its first after a trim, has to find room for all that its nodes
 * allocate. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "charge.h"
#include "cuda.h"
#include "pool.h"
#include "slice.h"

enum { GRAPH_RESERVED_NOW = 2, NODE_GRAPH = 4, NODE_ALLOCATES = 10, DEPTH = 8 };

CUDA_NEEDS(result, cuGraphGetNodes, void *, void **, size_t *)
CUDA_NEEDS(result, cuGraphNodeGetType, void *, int *)
CUDA_NEEDS(result, cuGraphChildGraphNodeGetGraph, void *, void **)
CUDA_NEEDS(result, cuGraphMemAllocNodeGetParams, void *, struct alloc_node *)
CUDA_NEEDS(result, cuDeviceGetGraphMemAttribute, device, int, void *)

static _Atomic unsigned allocating; /* executable graphs that there are: mostly none */
static _Atomic uint64_t trims = 1;  /* a graph's note is this at its last launch, or 0 */

/* ---- the pool: its handle is the device's ordinal and 1 ------------------------------------------- */

static bool reserved(uint64_t handle, uint64_t *bytes) {
    return cuDeviceGetGraphMemAttribute_of() != NULL &&
           cuDeviceGetGraphMemAttribute_of()((device)handle - 1, GRAPH_RESERVED_NOW, bytes) == SUCCESS;
}

static void trim(uint64_t handle) {
    REAL(cuDeviceGraphMemTrim)((device)handle - 1);
    atomic_fetch_add(&trims, 1);
}

static const struct pool_driver driver = {reserved, trim};

static struct pool *pool_on(unsigned on) {
    struct pool *pool = pool_find(&driver, on + 1);
    return pool != NULL ? pool : pool_open(&driver, on + 1, on);
}

result cuDeviceGraphMemTrim(device on) {
    result (*real)(device) = REAL(cuDeviceGraphMemTrim);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(on);
    struct pool *pool = slice_active() ? pool_find(&driver, (uint64_t)on + 1) : NULL;
    if (pool != NULL) {
        atomic_fetch_add(&trims, 1);
        pool_settle(pool, 0);
    }
    return outcome;
}

/* ---- instantiation ---------------------------------------------------------------------------------- */

/* Adds up what the nodes allocate; the device is the last one's, since a graph is seldom on several. */
static void sum_up(void *graph, struct charge *c, int depth) {
    size_t count = 0;
    if (depth == DEPTH || cuGraphGetNodes_of()(graph, NULL, &count) != SUCCESS || count == 0) return;
    void **nodes = malloc(count * sizeof *nodes);
    if (nodes == NULL || cuGraphGetNodes_of()(graph, nodes, &count) != SUCCESS) count = 0;
    for (size_t i = 0; i < count; i++) {
        int type = -1;
        struct alloc_node a;
        void *child = NULL;
        if (cuGraphNodeGetType_of()(nodes[i], &type) != SUCCESS) continue;
        if (type == NODE_GRAPH && cuGraphChildGraphNodeGetGraph_of() != NULL &&
            cuGraphChildGraphNodeGetGraph_of()(nodes[i], &child) == SUCCESS)
            sum_up(child, c, depth + 1);
        if (type != NODE_ALLOCATES || cuGraphMemAllocNodeGetParams_of()(nodes[i], &a) != SUCCESS) continue;
        int on = cuda_located(a.pool.first.location);
        if (on < 0) continue;
        c->bytes += a.bytes;
        c->device = (unsigned)on;
    }
    free(nodes);
}

static void instantiated(void *graph, void *exec) {
    struct charge c = {0};
    if (!slice_active() || cuGraphGetNodes_of() == NULL || cuGraphMemAllocNodeGetParams_of() == NULL) return;
    sum_up(graph, &c, 0);
    if (c.bytes > 0 && charge_keep(CHARGE_GRAPH, (uint64_t)(uintptr_t)exec, c))
        atomic_fetch_add(&allocating, 1);
}

#define INSTANTIATE(name, parameters, arguments)                                                    \
    result name parameters {                                                                        \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        result outcome = real arguments;                                                            \
        if (outcome == SUCCESS && out != NULL) instantiated(graph, *out);                           \
        return outcome;                                                                             \
    }
INSTANTIATE(cuGraphInstantiate, (void **out, void *graph, void **node, char *log, size_t length),
            (out, graph, node, log, length))
INSTANTIATE(cuGraphInstantiate_v2, (void **out, void *graph, void **node, char *log, size_t length),
            (out, graph, node, log, length))
INSTANTIATE(cuGraphInstantiateWithFlags, (void **out, void *graph, unsigned long long flags),
            (out, graph, flags))
INSTANTIATE(cuGraphInstantiateWithParams, (void **out, void *graph, void *parameters),
            (out, graph, parameters))
INSTANTIATE(cuGraphInstantiateWithParams_ptsz, (void **out, void *graph, void *parameters),
            (out, graph, parameters))

result cuGraphExecDestroy(void *graph) {
    result (*real)(void *) = REAL(cuGraphExecDestroy);
    if (real == NULL) return NOT_INITIALIZED;
    struct charge c;
    uint64_t key = (uint64_t)(uintptr_t)graph;
    if (atomic_load_explicit(&allocating, memory_order_relaxed) == 0 || !charge_take(CHARGE_GRAPH, key, &c))
        return real(graph);
    result outcome = real(graph);
    if (outcome != SUCCESS) {
        charge_keep(CHARGE_GRAPH, key, c);
        return outcome;
    }
    atomic_fetch_sub(&allocating, 1);
    if (c.note != 0) pool_freed(pool_number(pool_on(c.device)), c.bytes);
    return outcome;
}

/* ---- launch ------------------------------------------------------------------------------------------- */

result cuda_graph_run(void *graph, void *stream, result (*launch)(void *, void *)) {
    struct charge c;
    uint64_t key = (uint64_t)(uintptr_t)graph, promised, now;
    if (atomic_load_explicit(&allocating, memory_order_relaxed) == 0 || !charge_take(CHARGE_GRAPH, key, &c))
        return launch(graph, stream);
    struct pool *pool = pool_on(c.device);
    result outcome = OUT_OF_MEMORY;
    now = atomic_load(&trims);
    if (c.note == now || pool == NULL) {
        outcome = launch(graph, stream);
    } else if (pool_begin(pool, c.bytes, &promised)) {
        now = atomic_load(&trims); /* to find room, it may have been trimmed */
        outcome = launch(graph, stream);
        pool_settle(pool, promised);
        if (outcome == SUCCESS && c.note == 0) pool_used(pool, c.bytes);
        if (outcome == SUCCESS) c.note = now;
    } else {
        outcome = cuda_refusal();
    }
    charge_keep(CHARGE_GRAPH, key, c);
    return outcome;
}

static result upload(void *graph, void *stream) {
    return REAL(cuGraphUpload) != NULL ? REAL(cuGraphUpload)(graph, stream) : NOT_INITIALIZED;
}

static result upload_ptsz(void *graph, void *stream) {
    return REAL(cuGraphUpload_ptsz) != NULL ? REAL(cuGraphUpload_ptsz)(graph, stream) : NOT_INITIALIZED;
}

result cuGraphUpload(void *graph, void *stream) { return cuda_graph_run(graph, stream, upload); }
result cuGraphUpload_ptsz(void *graph, void *stream) { return cuda_graph_run(graph, stream, upload_ptsz); }
