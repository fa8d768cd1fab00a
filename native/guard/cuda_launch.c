/* CUDA driver API: what puts work on a device. Each of them asks the slice's share first (share.h). */
#define _GNU_SOURCE
#include "cuda.h"

#include <string.h>

#include "share.h"
#include "slice.h"

enum { CAPTURE_NONE = 0, CAPTURE_RELAXED = 2, NOT_READY = 600, DEFAULT_EVENT = 0 };

CUDA_NEEDS(result, cuStreamIsCapturing, void *, int *)
CUDA_NEEDS(result, cuThreadExchangeStreamCaptureMode, int *)
CUDA_NEEDS(result, cuEventCreate, void **, unsigned)
CUDA_NEEDS(result, cuEventRecord, void *, void *)
CUDA_NEEDS(result, cuEventQuery, void *)
CUDA_NEEDS(result, cuEventElapsedTime, float *, void *, void *)

/* An event call on a stream that is captured becomes part of the graph or ends the capture; while another
 * stream is captured, a call of this thread may end that, unless the thread's mode is relaxed meanwhile. */
static enum share_view enter(void *stream, int *kept) {
    int capturing = CAPTURE_NONE;
    *kept = CAPTURE_RELAXED;
    if (cuStreamIsCapturing_of() == NULL || cuThreadExchangeStreamCaptureMode_of() == NULL)
        return SHARE_READY; /* too old to capture */
    if (cuStreamIsCapturing_of()(stream, &capturing) != SUCCESS || capturing != CAPTURE_NONE)
        return SHARE_CAPTURED;
    return cuThreadExchangeStreamCaptureMode_of()(kept) == SUCCESS ? SHARE_READY : SHARE_BLIND;
}

static void leave(int kept) {
    if (cuThreadExchangeStreamCaptureMode_of() != NULL) cuThreadExchangeStreamCaptureMode_of()(&kept);
}

static void *make(void) {
    void *event = NULL;
    return cuEventCreate_of() != NULL && cuEventCreate_of()(&event, DEFAULT_EVENT) == SUCCESS ? event : NULL;
}

static bool record(void *event, void *stream) {
    return cuEventRecord_of() != NULL && cuEventRecord_of()(event, stream) == SUCCESS;
}

static int ask(void *event) {
    result state = cuEventQuery_of() != NULL ? cuEventQuery_of()(event) : NOT_INITIALIZED;
    return state == SUCCESS ? 1 : state == NOT_READY ? 0 : -1;
}

static bool between(void *from, void *to, int64_t *ns) {
    float ms;
    if (cuEventElapsedTime_of() == NULL || cuEventElapsedTime_of()(&ms, from, to) != SUCCESS) return false;
    *ns = (int64_t)((double)ms * 1e6);
    return true;
}

static const struct share_driver driver = {enter, leave, make, record, ask, between};

/* Where the program's NULL means its thread's own stream (the _ptsz forms), the guard's events say so. */
static void *per_thread(void *stream) { return stream == NULL ? (void *)2 : stream; }

static bool limited(unsigned *on) {
    device current = 0;
    if (!slice_limits_time()) return false;
    if (slice_is_plural() && cuda_current_device(&current) != SUCCESS) return false;
    *on = (unsigned)current;
    return true;
}

#define LAUNCH(name, kind, size, stream, arguments)                                                 \
    do {                                                                                            \
        __typeof__(&name) real = REAL(name);                                                        \
        unsigned on;                                                                                \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        if (!limited(&on)) return real arguments;                                                   \
        struct share_ticket ticket;                                                                 \
        share_before(&driver, on, (uint64_t)(uintptr_t)(kind), size, stream, &ticket);              \
        result outcome = real arguments;                                                            \
        share_after(&ticket, outcome == SUCCESS);                                                   \
        return outcome;                                                                             \
    } while (0)

static uint64_t volume(uint64_t x, uint64_t y, uint64_t z) { return x * y * z; }

#define KERNEL(name, own_stream)                                                                    \
    result name(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,           \
                unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {      \
        LAUNCH(name, f, volume(gx, gy, gz) * volume(bx, by, bz), own_stream,                        \
               (f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra));                     \
    }
KERNEL(cuLaunchKernel, stream)
KERNEL(cuLaunchKernel_ptsz, per_thread(stream))

#define COOPERATIVE(name, own_stream)                                                               \
    result name(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,           \
                unsigned bz, unsigned shared, void *stream, void **parameters) {                    \
        LAUNCH(name, f, volume(gx, gy, gz) * volume(bx, by, bz), own_stream,                        \
               (f, gx, gy, gz, bx, by, bz, shared, stream, parameters));                            \
    }
COOPERATIVE(cuLaunchCooperativeKernel, stream)
COOPERATIVE(cuLaunchCooperativeKernel_ptsz, per_thread(stream))

#define EXTENDED(name, own_stream)                                                                  \
    result name(const struct launch_config *c, void *f, void **parameters, void **extra) {          \
        if (c == NULL) return REAL(name) != NULL ? REAL(name)(c, f, parameters, extra) : NOT_INITIALIZED; \
        LAUNCH(name, f, volume(c->grid[0], c->grid[1], c->grid[2]) *                                \
                            volume(c->block[0], c->block[1], c->block[2]),                          \
               own_stream, (c, f, parameters, extra));                                              \
    }
EXTENDED(cuLaunchKernelEx, c->stream)
EXTENDED(cuLaunchKernelEx_ptsz, per_thread(c->stream))

/* A graph may allocate, too: cuda_graph_run sees to that. */
#define GRAPH(name, own_stream)                                                                     \
    static result name##_timed(void *graph, void *stream) {                                         \
        LAUNCH(name, graph, 0, own_stream, (graph, stream));                                        \
    }                                                                                               \
    result name(void *graph, void *stream) { return cuda_graph_run(graph, stream, name##_timed); }
GRAPH(cuGraphLaunch, stream)
GRAPH(cuGraphLaunch_ptsz, per_thread(stream))

/* The forms of CUDA 2, whose blocks were set beforehand. */
result cuLaunch(void *f) { LAUNCH(cuLaunch, f, 1, NULL, (f)); }
result cuLaunchGrid(void *f, int width, int height) {
    LAUNCH(cuLaunchGrid, f, (uint64_t)width * (uint64_t)height, NULL, (f, width, height));
}
result cuLaunchGridAsync(void *f, int width, int height, void *stream) {
    LAUNCH(cuLaunchGridAsync, f, (uint64_t)width * (uint64_t)height, stream, (f, width, height, stream));
}
