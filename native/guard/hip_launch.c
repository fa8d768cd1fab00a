/* HIP: what puts work on a device. Each of them asks the slice's share first (share.h). */
#define _GNU_SOURCE
#include "hip.h"

#include "share.h"
#include "slice.h"

enum { CAPTURE_NONE = 0, CAPTURE_RELAXED = 2, NOT_READY = 600 };

HIP_NEEDS(result, hipStreamIsCapturing, void *, int *)
HIP_NEEDS(result, hipThreadExchangeStreamCaptureMode, int *)
HIP_NEEDS(result, hipEventCreate, void **)
HIP_NEEDS(result, hipEventRecord, void *, void *)
HIP_NEEDS(result, hipEventQuery, void *)
HIP_NEEDS(result, hipEventElapsedTime, float *, void *, void *)
HIP_NEEDS(result, hipPeekAtLastError, void)
HIP_NEEDS(result, hipGetLastError, void)

/* "Not ready" and the like would stay the program's last error, were it not taken back. */
static result quietly(result outcome) {
    if (outcome != SUCCESS && hipGetLastError_of() != NULL) hipGetLastError_of()();
    return outcome;
}

static enum share_view enter(void *stream, int *kept) {
    int capturing = CAPTURE_NONE;
    *kept = CAPTURE_RELAXED;
    if (hipPeekAtLastError_of() != NULL && hipPeekAtLastError_of()() != SUCCESS)
        return SHARE_BLIND; /* an error waits to be asked for: no call of ours may hide it */
    if (hipStreamIsCapturing_of() == NULL || hipThreadExchangeStreamCaptureMode_of() == NULL)
        return SHARE_READY; /* too old to capture */
    if (quietly(hipStreamIsCapturing_of()(stream, &capturing)) != SUCCESS || capturing != CAPTURE_NONE)
        return SHARE_CAPTURED;
    return quietly(hipThreadExchangeStreamCaptureMode_of()(kept)) == SUCCESS ? SHARE_READY : SHARE_BLIND;
}

static void leave(int kept) {
    if (hipThreadExchangeStreamCaptureMode_of() != NULL) hipThreadExchangeStreamCaptureMode_of()(&kept);
}

static void *make(void) {
    void *event = NULL;
    return hipEventCreate_of() != NULL && quietly(hipEventCreate_of()(&event)) == SUCCESS ? event : NULL;
}

static bool record(void *event, void *stream) {
    return hipEventRecord_of() != NULL && quietly(hipEventRecord_of()(event, stream)) == SUCCESS;
}

static int ask(void *event) {
    result state = hipEventQuery_of() != NULL ? quietly(hipEventQuery_of()(event)) : NOT_INITIALIZED;
    return state == SUCCESS ? 1 : state == NOT_READY ? 0 : -1;
}

static bool between(void *from, void *to, int64_t *ns) {
    float ms;
    if (hipEventElapsedTime_of() == NULL || quietly(hipEventElapsedTime_of()(&ms, from, to)) != SUCCESS)
        return false;
    *ns = (int64_t)((double)ms * 1e6);
    return true;
}

static const struct share_driver driver = {enter, leave, make, record, ask, between};

/* Where the program's NULL means its thread's own stream (the _spt forms), the guard's events say so. */
static void *per_thread(void *stream) { return stream == NULL ? (void *)2 : stream; }

static bool limited(unsigned *on) {
    int current = 0;
    if (hip_inside > 0 || !slice_limits_time()) return false;
    if (slice_is_plural() && hip_current_device(&current) != SUCCESS) return false;
    *on = (unsigned)current;
    return true;
}

#define LAUNCH(name, kind, size, stream, arguments)                                                  \
    do {                                                                                             \
        __typeof__(&name) real = REAL(name);                                                         \
        unsigned on;                                                                                 \
        if (real == NULL) return NOT_INITIALIZED;                                                    \
        if (!limited(&on)) return real arguments;                                                    \
        struct share_ticket ticket;                                                                  \
        hip_inside++;                                                                                \
        share_before(&driver, on, (uint64_t)(uintptr_t)(kind), size, stream, &ticket);               \
        result outcome = real arguments;                                                             \
        share_after(&ticket, outcome == SUCCESS);                                                    \
        hip_inside--;                                                                                \
        return outcome;                                                                              \
    } while (0)

static uint64_t volume(uint64_t x, uint64_t y, uint64_t z) { return x * y * z; }
static uint64_t threads(struct dim3 grid, struct dim3 block) {
    return volume(grid.x, grid.y, grid.z) * volume(block.x, block.y, block.z);
}

result hipModuleLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                             unsigned shared, void *stream, void **parameters, void **extra) {
    LAUNCH(hipModuleLaunchKernel, f, volume(gx, gy, gz) * volume(bx, by, bz), stream,
           (f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra));
}

result hipModuleLaunchCooperativeKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                        unsigned bz, unsigned shared, void *stream, void **parameters) {
    LAUNCH(hipModuleLaunchCooperativeKernel, f, volume(gx, gy, gz) * volume(bx, by, bz), stream,
           (f, gx, gy, gz, bx, by, bz, shared, stream, parameters));
}

result hipExtModuleLaunchKernel(void *f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by,
                                uint32_t bz, size_t shared, void *stream, void **parameters, void **extra,
                                void *start, void *stop, uint32_t flags) {
    LAUNCH(hipExtModuleLaunchKernel, f, volume(gx, gy, gz), stream,
           (f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra, start, stop, flags));
}

#define KERNEL(name, own_stream)                                                                     \
    result name HIP_KERNEL {                                                                         \
        LAUNCH(name, f, threads(grid, block), own_stream, (f, grid, block, parameters, shared, stream)); \
    }
KERNEL(hipLaunchKernel, stream)
KERNEL(hipLaunchKernel_spt, per_thread(stream))

result hipExtLaunchKernel(const void *f, struct dim3 grid, struct dim3 block, void **parameters, size_t shared,
                          void *stream, void *start, void *stop, int flags) {
    LAUNCH(hipExtLaunchKernel, f, threads(grid, block), stream,
           (f, grid, block, parameters, shared, stream, start, stop, flags));
}

#define COOPERATIVE(name, own_stream)                                                                \
    result name HIP_COOPERATIVE {                                                                    \
        LAUNCH(name, f, threads(grid, block), own_stream, (f, grid, block, parameters, shared, stream)); \
    }
COOPERATIVE(hipLaunchCooperativeKernel, stream)
COOPERATIVE(hipLaunchCooperativeKernel_spt, per_thread(stream))

/* A graph may allocate, too: hip_graph_run sees to that; its launch is held to the share from here. */
#define GRAPH(name, own_stream)                                                                      \
    static result name##_timed(void *graph, void *stream) {                                          \
        LAUNCH(name, graph, 0, own_stream, (graph, stream));                                         \
    }                                                                                                \
    result name(void *graph, void *stream) {                                                         \
        if (hip_inside > 0 || !slice_active()) return name##_timed(graph, stream);                   \
        return hip_graph_run(graph, stream, name##_timed);                                           \
    }
GRAPH(hipGraphLaunch, stream)
GRAPH(hipGraphLaunch_spt, per_thread(stream))
