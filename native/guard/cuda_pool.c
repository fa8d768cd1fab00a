/* CUDA driver API: allocation in stream order. A pool is charged what it has taken (pool.h). */
#define _GNU_SOURCE
#include "charge.h"
#include "cuda.h"
#include "pool.h"
#include "slice.h"

enum { RESERVED_NOW = 5, CAPTURE_NONE = 0 };
#define LEGACY_STREAM ((void *)1)
#define OWN_STREAM ((void *)2)

CUDA_NEEDS(result, cuMemPoolGetAttribute, void *, int, void *)
CUDA_NEEDS(result, cuDeviceGetMemPool, void **, device)
CUDA_NEEDS(result, cuDeviceGetDefaultMemPool, void **, device)
CUDA_NEEDS(result, cuMemGetDefaultMemPool, void **, struct location *, int)
CUDA_NEEDS(result, cuStreamIsCapturing, void *, int *)
CUDA_NEEDS(result, cuStreamGetCtx, void *, void **)
CUDA_NEEDS(result, cuCtxPushCurrent_v2, void *)
CUDA_NEEDS(result, cuCtxPopCurrent_v2, void **)

/* ---- what pools hold -------------------------------------------------------------------------------- */

static bool reserved(uint64_t handle, uint64_t *bytes) {
    return cuMemPoolGetAttribute_of()((void *)(uintptr_t)handle, RESERVED_NOW, bytes) == SUCCESS;
}

static void trim(uint64_t handle) { REAL(cuMemPoolTrimTo)((void *)(uintptr_t)handle, 0); }

static const struct pool_driver driver = {reserved, trim};

static uint64_t number(void *pool) { return (uint64_t)(uintptr_t)pool; }

/* The pools that the program makes are known from cuMemPoolCreate. Of others, those that devices have of
 * themselves are device memory; host pools and imported ones (whose exporter is charged) are not counted. */
static struct pool *account(void *handle) {
    struct pool *found = pool_find(&driver, number(handle));
    for (unsigned on = 0; found == NULL && on < slice_devices(); on++) {
        void *own = NULL;
        struct location here = {LOCATED_ON_DEVICE, (int)on};
        if (cuDeviceGetDefaultMemPool_of()(&own, (device)on) == SUCCESS && own == handle)
            return pool_open(&driver, number(handle), on);
        if (cuMemGetDefaultMemPool_of() == NULL) continue;
        if (cuMemGetDefaultMemPool_of()(&own, &here, TYPE_MANAGED) == SUCCESS && own == handle)
            return pool_open(&driver, number(handle), on);
    }
    return found;
}

result cuMemPoolCreate(void **out, const struct memory_prop *props) {
    result (*real)(void **, const struct memory_prop *) = REAL(cuMemPoolCreate);
    if (real == NULL) return NOT_INITIALIZED;
    void *fresh = NULL;
    if (out == NULL || props == NULL || !slice_active()) return real(out, props);
    int on = cuda_located(props->location);
    result outcome = real(&fresh, props);
    if (outcome == SUCCESS && on >= 0 && pool_open(&driver, number(fresh), (unsigned)on) == NULL) {
        REAL(cuMemPoolDestroy)(fresh);
        return OUT_OF_MEMORY;
    }
    if (outcome == SUCCESS) *out = fresh;
    return outcome;
}

result cuMemPoolDestroy(void *pool) {
    result (*real)(void *) = REAL(cuMemPoolDestroy);
    if (real == NULL) return NOT_INITIALIZED;
    struct pool *mine = slice_active() ? pool_find(&driver, number(pool)) : NULL;
    if (mine == NULL) return real(pool);
    pool_settle(mine, 0); /* afterwards nobody can ask it */
    result outcome = real(pool);
    if (outcome == SUCCESS) pool_close(mine);
    return outcome;
}

result cuMemPoolTrimTo(void *pool, size_t keep) {
    result (*real)(void *, size_t) = REAL(cuMemPoolTrimTo);
    if (real == NULL) return NOT_INITIALIZED;
    result outcome = real(pool, keep);
    struct pool *mine = slice_active() ? pool_find(&driver, number(pool)) : NULL;
    if (mine != NULL) pool_settle(mine, 0);
    return outcome;
}

/* ---- allocation -------------------------------------------------------------------------------------- */

/* An allocation that is captured becomes a node of a graph, and no pool changes. */
static bool is_captured(void *stream) {
    int status = CAPTURE_NONE;
    if (stream == NULL || stream == LEGACY_STREAM || cuStreamIsCapturing_of() == NULL) return false;
    return cuStreamIsCapturing_of()(stream, &status) == SUCCESS && status != CAPTURE_NONE;
}

/* The pool that is current on the stream's device. */
static void *pool_of_stream(void *stream) {
    device on = 0;
    void *pool = NULL, *context = NULL;
    if (cuDeviceGetMemPool_of() == NULL) return NULL;
    if (slice_is_plural()) {
        bool other = stream != NULL && stream != LEGACY_STREAM && stream != OWN_STREAM &&
                     cuStreamGetCtx_of() != NULL && cuStreamGetCtx_of()(stream, &context) == SUCCESS &&
                     cuCtxPushCurrent_v2_of()(context) == SUCCESS;
        result known = cuda_current_device(&on);
        if (other) cuCtxPopCurrent_v2_of()(&context);
        if (known != SUCCESS) return NULL;
    }
    return cuDeviceGetMemPool_of()(&pool, on) == SUCCESS ? pool : NULL;
}

/* The driver has allocated; false: the pool grew by more than there is room for. */
static bool keep(struct pool *pool, uint64_t promised, pointer fresh, size_t bytes) {
    if (!pool_settle(pool, promised)) return false;
    struct charge c = {.bytes = bytes, .note = pool_number(pool), .device = CHARGE_POOLED};
    if (!charge_keep(CHARGE_MEMORY, fresh, c)) return false;
    pool_used(pool, bytes);
    return true;
}

/* Cold: back to where it was before, which the driver does at a synchronization. */
static result take_back(struct pool *pool, uint64_t handle, pointer fresh, size_t bytes, void *stream,
                        result (*free_async)(pointer, void *), result (*synchronize)(void *)) {
    if (free_async(fresh, stream) == SUCCESS && synchronize != NULL) synchronize(stream);
    trim(handle);
    pool_settle(pool, 0);
    slice_refused(pool_device(pool), bytes);
    return OUT_OF_MEMORY;
}

#define POOLED(name, parameters, handle, call, free_async, synchronize)                             \
    result name parameters {                                                                        \
        __typeof__(&name) real = REAL(name);                                                        \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        void *from = out != NULL && slice_active() ? handle : NULL;                                 \
        struct pool *mine = from != NULL && !is_captured(stream) ? account(from) : NULL;            \
        pointer fresh = 0;                                                                          \
        uint64_t promised;                                                                          \
        if (mine == NULL) return real call(out);                                                    \
        if (!pool_begin(mine, bytes, &promised)) return cuda_refusal();                             \
        result outcome = real call(&fresh);                                                         \
        if (outcome != SUCCESS) {                                                                   \
            pool_settle(mine, promised);                                                            \
            return outcome;                                                                         \
        }                                                                                           \
        if (!keep(mine, promised, fresh, bytes))                                                    \
            return take_back(mine, number(from), fresh, bytes, stream, REAL(free_async),            \
                             REAL(synchronize));                                                    \
        *out = fresh;                                                                               \
        return SUCCESS;                                                                             \
    }
#define CURRENT(at) (at, bytes, stream)
#define GIVEN(at) (at, bytes, pool, stream)
POOLED(cuMemAllocAsync, (pointer * out, size_t bytes, void *stream), pool_of_stream(stream), CURRENT,
       cuMemFreeAsync, cuStreamSynchronize)
POOLED(cuMemAllocAsync_ptsz, (pointer * out, size_t bytes, void *stream), pool_of_stream(stream), CURRENT,
       cuMemFreeAsync_ptsz, cuStreamSynchronize_ptsz)
POOLED(cuMemAllocFromPoolAsync, (pointer * out, size_t bytes, void *pool, void *stream), pool, GIVEN,
       cuMemFreeAsync, cuStreamSynchronize)
POOLED(cuMemAllocFromPoolAsync_ptsz, (pointer * out, size_t bytes, void *pool, void *stream), pool, GIVEN,
       cuMemFreeAsync_ptsz, cuStreamSynchronize_ptsz)

#define FREE_ASYNC(name)                                                                            \
    result name(pointer address, void *stream) {                                                    \
        __typeof__(&name) real = REAL(name);                                                        \
        struct charge c;                                                                            \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        if (!charge_take(CHARGE_MEMORY, address, &c)) return real(address, stream);                 \
        result outcome = real(address, stream);                                                     \
        charge_end(CHARGE_MEMORY, address, c, outcome == SUCCESS);                                  \
        return outcome;                                                                             \
    }
FREE_ASYNC(cuMemFreeAsync)
FREE_ASYNC(cuMemFreeAsync_ptsz)
