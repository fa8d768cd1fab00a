/* HIP runtime: memory that graphs allocate. The runtime takes it, for all graphs of a device together,
 * when one is launched, and keeps it until hipDeviceGraphMemTrim; so that is a pool of its own (pool.h).
 *
 * An executable graph's first launch, and its first after a trim, has to find room for all that its nodes
 * allocate. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "charge.h"
#include "hip.h"
#include "pool.h"
#include "slice.h"

enum { GRAPH_RESERVED_NOW = 2, NODE_GRAPH = 4, NODE_ALLOCATES = 10, DEPTH = 8 };

HIP_NEEDS(result, hipGraphGetNodes, void *, void **, size_t *)
HIP_NEEDS(result, hipGraphNodeGetType, void *, int *)
HIP_NEEDS(result, hipGraphChildGraphNodeGetGraph, void *, void **)
HIP_NEEDS(result, hipGraphMemAllocNodeGetParams, void *, struct alloc_node *)
HIP_NEEDS(result, hipDeviceGetGraphMemAttribute, int, int, void *)

static _Atomic unsigned allocating; /* executable graphs that there are: mostly none */
static _Atomic uint64_t trims = 1;  /* a graph's note is this at its last launch, or 0 */

/* ---- the pool: its handle is the device's ordinal and 1 ------------------------------------------- */

static bool reserved(uint64_t handle, uint64_t *bytes) {
    return hipDeviceGetGraphMemAttribute_of() != NULL &&
           hipDeviceGetGraphMemAttribute_of()((int)handle - 1, GRAPH_RESERVED_NOW, bytes) == SUCCESS;
}

static void trim(uint64_t handle) {
    REAL(hipDeviceGraphMemTrim)((int)handle - 1);
    atomic_fetch_add(&trims, 1);
}

static const struct pool_driver driver = {reserved, trim};

static struct pool *pool_on(unsigned ordinal) {
    struct pool *pool = pool_find(&driver, (uint64_t)ordinal + 1);
    return pool != NULL ? pool : pool_open(&driver, (uint64_t)ordinal + 1, hip_device((int)ordinal));
}

HIP_HOOK(hipDeviceGraphMemTrim, (int on), (on)) {
    result outcome = REAL(hipDeviceGraphMemTrim)(on);
    struct pool *pool = pool_find(&driver, (uint64_t)on + 1);
    if (pool != NULL) {
        atomic_fetch_add(&trims, 1);
        pool_settle(pool, 0);
    }
    return outcome;
}

/* ---- instantiation ---------------------------------------------------------------------------------- */

/* Adds up what the nodes allocate; the device is the ordinal of the last, since a graph is
 * seldom on several. */
static void sum_up(void *graph, struct charge *c, int depth) {
    size_t count = 0;
    if (depth == DEPTH || hipGraphGetNodes_of()(graph, NULL, &count) != SUCCESS || count == 0) return;
    void **nodes = malloc(count * sizeof *nodes);
    if (nodes == NULL || hipGraphGetNodes_of()(graph, nodes, &count) != SUCCESS) count = 0;
    for (size_t i = 0; i < count; i++) {
        int type = -1;
        struct alloc_node a;
        void *child = NULL;
        if (hipGraphNodeGetType_of()(nodes[i], &type) != SUCCESS) continue;
        if (type == NODE_GRAPH && hipGraphChildGraphNodeGetGraph_of() != NULL &&
            hipGraphChildGraphNodeGetGraph_of()(nodes[i], &child) == SUCCESS)
            sum_up(child, c, depth + 1);
        if (type != NODE_ALLOCATES || hipGraphMemAllocNodeGetParams_of()(nodes[i], &a) != SUCCESS) continue;
        if (a.pool.first.location.type != LOCATED_ON_DEVICE) continue;
        c->bytes += a.bytes;
        c->device = (unsigned)a.pool.first.location.id;
    }
    free(nodes);
}

static void instantiated(void *graph, void *exec) {
    struct charge c = {0};
    if (hipGraphGetNodes_of() == NULL || hipGraphMemAllocNodeGetParams_of() == NULL) return;
    sum_up(graph, &c, 0);
    if (c.bytes > 0 && charge_keep(CHARGE_GRAPH, (uint64_t)(uintptr_t)exec, c))
        atomic_fetch_add(&allocating, 1);
}

#define INSTANTIATE(name, parameters, arguments)                                                     \
    HIP_HOOK(name, parameters, arguments) {                                                          \
        result outcome = REAL(name) arguments;                                                       \
        if (outcome == SUCCESS && out != NULL) instantiated(graph, *out);                            \
        return outcome;                                                                              \
    }
INSTANTIATE(hipGraphInstantiate, (void **out, void *graph, void **node, char *log, size_t length),
            (out, graph, node, log, length))
INSTANTIATE(hipGraphInstantiateWithFlags, (void **out, void *graph, unsigned long long flags),
            (out, graph, flags))
INSTANTIATE(hipGraphInstantiateWithParams, (void **out, void *graph, void *parameters),
            (out, graph, parameters))

HIP_HOOK(hipGraphExecDestroy, (void *graph), (graph)) {
    struct charge c;
    uint64_t key = (uint64_t)(uintptr_t)graph;
    if (atomic_load_explicit(&allocating, memory_order_relaxed) == 0 || !charge_take(CHARGE_GRAPH, key, &c))
        return REAL(hipGraphExecDestroy)(graph);
    result outcome = REAL(hipGraphExecDestroy)(graph);
    if (outcome != SUCCESS) {
        charge_keep(CHARGE_GRAPH, key, c);
        return outcome;
    }
    atomic_fetch_sub(&allocating, 1);
    if (c.note != 0) pool_freed(pool_number(pool_on(c.device)), c.bytes);
    return outcome;
}

/* ---- launch ------------------------------------------------------------------------------------------- */

/* The launch is not the guard's own call: it is held to the slice's share. */
static result launched(void *graph, void *stream, result (*launch)(void *, void *)) {
    hip_inside--;
    result outcome = launch(graph, stream);
    hip_inside++;
    return outcome;
}

static result run(void *graph, void *stream, struct charge *c, result (*launch)(void *, void *)) {
    struct pool *pool = pool_on(c->device);
    uint64_t promised;
    if (c->note == atomic_load(&trims) || pool == NULL) return launched(graph, stream, launch);
    if (!pool_begin(pool, c->bytes, &promised)) return hip_refusal();
    uint64_t now = atomic_load(&trims); /* to find room, it may have been trimmed */
    result outcome = launched(graph, stream, launch);
    pool_settle(pool, promised);
    if (outcome == SUCCESS && c->note == 0) pool_used(pool, c->bytes);
    if (outcome == SUCCESS) c->note = now;
    return outcome;
}

result hip_graph_run(void *graph, void *stream, result (*launch)(void *, void *)) {
    struct charge c;
    uint64_t key = (uint64_t)(uintptr_t)graph;
    if (atomic_load_explicit(&allocating, memory_order_relaxed) == 0 || !charge_take(CHARGE_GRAPH, key, &c))
        return launch(graph, stream);
    hip_inside++;
    result outcome = run(graph, stream, &c, launch);
    charge_keep(CHARGE_GRAPH, key, c);
    hip_inside--;
    return outcome;
}

HIP_HOOK(hipGraphUpload, (void *graph, void *stream), (graph, stream)) {
    return hip_graph_run(graph, stream, REAL(hipGraphUpload));
}
