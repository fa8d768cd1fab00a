/* HIP runtime: allocation in stream order. A pool is charged what it has taken (pool.h). */
#define _GNU_SOURCE
#include "charge.h"
#include "hip.h"
#include "pool.h"
#include "slice.h"

enum { RESERVED_NOW = 5, CAPTURE_NONE = 0 };
#define LEGACY_STREAM ((void *)1)
#define OWN_STREAM ((void *)2)

HIP_NEEDS(result, hipMemPoolGetAttribute, void *, int, void *)
HIP_NEEDS(result, hipDeviceGetMemPool, void **, int)
HIP_NEEDS(result, hipDeviceGetDefaultMemPool, void **, int)
HIP_NEEDS(result, hipGetDeviceCount, int *)
HIP_NEEDS(result, hipStreamIsCapturing, void *, int *)
HIP_NEEDS(result, hipStreamGetDevice, void *, int *)

static uint64_t number(void *pool) { return (uint64_t)(uintptr_t)pool; }
static void *pool_of(uint64_t number_of_it) { return (void *)(uintptr_t)number_of_it; }

/* ---- what pools hold -------------------------------------------------------------------------------- */

static bool reserved(uint64_t handle, uint64_t *bytes) {
    return hipMemPoolGetAttribute_of() != NULL &&
           hipMemPoolGetAttribute_of()(pool_of(handle), RESERVED_NOW, bytes) == SUCCESS;
}

static void trim(uint64_t handle) { REAL(hipMemPoolTrimTo)(pool_of(handle), 0); }

static const struct pool_driver driver = {reserved, trim};

/* The pools that the program makes are known from hipMemPoolCreate. Of others, those that devices have of
 * themselves are device memory; imported ones (whose exporter is charged) are not counted. */
static struct pool *account(void *handle) {
    int count = 0;
    struct pool *found = pool_find(&driver, number(handle));
    if (found != NULL || hipDeviceGetDefaultMemPool_of() == NULL) return found;
    if (hipGetDeviceCount_of() == NULL || hipGetDeviceCount_of()(&count) != SUCCESS) return NULL;
    for (int on = 0; on < count; on++) {
        void *own = NULL;
        if (hipDeviceGetDefaultMemPool_of()(&own, on) == SUCCESS && own == handle)
            return pool_open(&driver, number(handle), hip_device(on));
    }
    return NULL;
}

HIP_HOOK(hipMemPoolCreate, (void **out, const struct memory_prop *props), (out, props)) {
    void *fresh = NULL;
    if (out == NULL || props == NULL) return REAL(hipMemPoolCreate)(out, props);
    int on = hip_located(props->location);
    result outcome = REAL(hipMemPoolCreate)(&fresh, props);
    if (outcome == SUCCESS && on >= 0 && pool_open(&driver, number(fresh), (unsigned)on) == NULL) {
        REAL(hipMemPoolDestroy)(fresh);
        return OUT_OF_MEMORY;
    }
    if (outcome == SUCCESS) *out = fresh;
    return outcome;
}

HIP_HOOK(hipMemPoolDestroy, (void *pool), (pool)) {
    struct pool *mine = pool_find(&driver, number(pool));
    if (mine == NULL) return REAL(hipMemPoolDestroy)(pool);
    pool_settle(mine, 0); /* afterwards nobody can ask it */
    result outcome = REAL(hipMemPoolDestroy)(pool);
    if (outcome == SUCCESS) pool_close(mine);
    return outcome;
}

HIP_HOOK(hipMemPoolTrimTo, (void *pool, size_t keep), (pool, keep)) {
    result outcome = REAL(hipMemPoolTrimTo)(pool, keep);
    struct pool *mine = pool_find(&driver, number(pool));
    if (mine != NULL) pool_settle(mine, 0);
    return outcome;
}

/* ---- allocation -------------------------------------------------------------------------------------- */

/* An allocation that is captured becomes a node of a graph, and no pool changes. */
static bool is_captured(void *stream) {
    int status = CAPTURE_NONE;
    if (stream == NULL || stream == LEGACY_STREAM || hipStreamIsCapturing_of() == NULL) return false;
    return hipStreamIsCapturing_of()(stream, &status) == SUCCESS && status != CAPTURE_NONE;
}

/* The pool that is current on the stream's device. */
static void *pool_of_stream(void *stream) {
    int on = 0;
    void *pool = NULL;
    bool own = stream == NULL || stream == LEGACY_STREAM || stream == OWN_STREAM;
    if (hipDeviceGetMemPool_of() == NULL) return NULL;
    if (own || hipStreamGetDevice_of() == NULL || hipStreamGetDevice_of()(stream, &on) != SUCCESS)
        if (hip_current_device(&on) != SUCCESS) return NULL;
    return hipDeviceGetMemPool_of()(&pool, on) == SUCCESS ? pool : NULL;
}

/* The runtime has allocated; false: the pool grew by more than there is room for. */
static bool keep(struct pool *pool, uint64_t promised, void *fresh, size_t bytes) {
    if (!pool_settle(pool, promised)) return false;
    struct charge c = {.bytes = bytes, .note = pool_number(pool), .device = CHARGE_POOLED};
    if (!charge_keep(CHARGE_MEMORY, number(fresh), c)) return false;
    pool_used(pool, bytes);
    return true;
}

/* Cold: back to where it was before, which the runtime does at a synchronization. */
static result take_back(struct pool *pool, uint64_t handle, void *fresh, size_t bytes, void *stream) {
    if (REAL(hipFreeAsync)(fresh, stream) == SUCCESS && REAL(hipStreamSynchronize) != NULL)
        REAL(hipStreamSynchronize)(stream);
    trim(handle);
    pool_settle(pool, 0);
    slice_refused(pool_device(pool), bytes);
    return hip_refusal();
}

#define POOLED(name, parameters, arguments, handle, call)                                            \
    HIP_HOOK(name, parameters, arguments) {                                                          \
        void *from = out != NULL && bytes > 0 ? handle : NULL, *fresh = NULL;                        \
        struct pool *mine = from != NULL && !is_captured(stream) ? account(from) : NULL;             \
        uint64_t promised;                                                                           \
        if (mine == NULL) return REAL(name) arguments;                                               \
        if (!pool_begin(mine, bytes, &promised)) return hip_refusal();                               \
        result outcome = REAL(name) call;                                                            \
        if (outcome != SUCCESS) {                                                                    \
            pool_settle(mine, promised);                                                             \
            return outcome;                                                                          \
        }                                                                                            \
        if (!keep(mine, promised, fresh, bytes)) return take_back(mine, number(from), fresh, bytes, stream); \
        *out = fresh;                                                                                \
        return SUCCESS;                                                                              \
    }
POOLED(hipMallocAsync, (void **out, size_t bytes, void *stream), (out, bytes, stream), pool_of_stream(stream),
       (&fresh, bytes, stream))
POOLED(hipMallocFromPoolAsync, (void **out, size_t bytes, void *pool, void *stream), (out, bytes, pool, stream),
       pool, (&fresh, bytes, pool, stream))

HIP_HOOK(hipFreeAsync, (void *address, void *stream), (address, stream)) {
    struct charge c;
    if (!charge_take(CHARGE_MEMORY, number(address), &c)) return REAL(hipFreeAsync)(address, stream);
    result outcome = REAL(hipFreeAsync)(address, stream);
    charge_end(CHARGE_MEMORY, number(address), c, outcome == SUCCESS);
    return outcome;
}

/* ---- the reset of a device ends all of its pools ------------------------------------------------------ */

void hip_pools_reset(unsigned on) { pool_end(&driver, on, charge_forget_pool); }
