/* libcuda.so.1 over the emulated machine: modules, streams, events, launches, capture.
 *
 * Nothing is computed: a kernel takes the time that its name states ("spin_20us", "step_5ms"), or 10 us, on the
 * device's timeline (timeline.h), whatever its grid. Work of one context runs in order, also across streams. */
#define _GNU_SOURCE
#include "cuda_launch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"
#include "cuda_parts.h"
#include "timeline.h"

enum { DEFAULT_KERNEL_NS = 10000, FUNCTIONS = 4096 };
#define LEGACY ((CUstream)1)
#define PER_THREAD ((CUstream)2)

struct CUmod_st {
    int unused;
};

struct CUfunc_st {
    char name[64];
    int64_t ns;
};

struct CUstream_st {
    unsigned device;
    _Atomic int64_t mark; /* of the last work in it */
    CUgraph graph;        /* NULL: it is not being captured */
    CUstreamCaptureMode mode;
    bool spoiled;
};

struct CUevent_st {
    bool timed, recorded, captured;
    unsigned device;
    int64_t mark, at; /* what it waits for, and when it was recorded */
};

/* ---- capture ------------------------------------------------------------------------------------ */

/* Captures in global mode of all threads; while there is one, calls that could wait for its work spoil it, but
 * for threads in relaxed mode (cuThreadExchangeStreamCaptureMode). One at a time is all that is told apart. */
static _Atomic(CUstream) captured;
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static CUresult unsafe_call(void) {
    CUstream s = atomic_load(&captured);
    if (s == NULL || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    s->spoiled = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static bool is_default(CUstream s) { return s == NULL || s == LEGACY || s == PER_THREAD; }

/* The legacy stream waits for all others, so it cannot be used while one of them is captured. */
static CUresult implicit(CUstream s) {
    CUstream other = atomic_load(&captured);
    if (s == PER_THREAD || !is_default(s) || other == NULL) return CUDA_SUCCESS;
    other->spoiled = true;
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

CUDA cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    if (mode == NULL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

CUDA cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode mode) {
    unsigned device;
    TRY(cuda_current(&device));
    if (is_default(s) || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (s->graph != NULL) return CUDA_ERROR_ILLEGAL_STATE;
    if ((s->graph = calloc(1, sizeof *s->graph)) == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    s->mode = mode;
    s->spoiled = false;
    if (mode == CU_STREAM_CAPTURE_MODE_GLOBAL) atomic_store(&captured, s);
    return CUDA_SUCCESS;
}

CUDA cuStreamEndCapture(CUstream s, CUgraph *out) {
    if (is_default(s) || s->graph == NULL) return CUDA_ERROR_ILLEGAL_STATE;
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUstream me = s;
    atomic_compare_exchange_strong(&captured, &me, NULL);
    *out = s->graph;
    s->graph = NULL;
    if (!s->spoiled) return CUDA_SUCCESS;
    cuGraphDestroy(*out);
    *out = NULL;
    return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

CUDA cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *status) {
    unsigned device;
    TRY(cuda_current(&device));
    if (status == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (is_default(s) && s != PER_THREAD && atomic_load(&captured) != NULL)
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    *status = is_default(s) || s->graph == NULL ? CU_STREAM_CAPTURE_STATUS_NONE
              : s->spoiled                      ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

/* ---- modules ------------------------------------------------------------------------------------ */

static struct CUmod_st module;
static struct CUfunc_st functions[FUNCTIONS];
static _Atomic unsigned known;

CUDA cuModuleLoadData(CUmodule *out, const void *image) {
    unsigned device;
    TRY(cuda_current(&device));
    if (out == NULL || image == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = &module;
    return CUDA_SUCCESS;
}

CUDA cuModuleLoad(CUmodule *out, const char *path) { return cuModuleLoadData(out, path); }

CUDA cuModuleUnload(CUmodule m) { return m == &module ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }

CUDA cuModuleGetFunction(CUfunction *out, CUmodule m, const char *name) {
    if (out == NULL || name == NULL || m != &module) return CUDA_ERROR_INVALID_VALUE;
    unsigned i = atomic_fetch_add(&known, 1);
    if (i >= FUNCTIONS || strlen(name) >= sizeof functions[i].name) return CUDA_ERROR_NOT_FOUND;
    strcpy(functions[i].name, name);
    const char *stated = strrchr(name, '_');
    int64_t ns = stated == NULL ? -1 : timeline_duration(stated + 1);
    functions[i].ns = ns < 0 ? DEFAULT_KERNEL_NS : ns;
    *out = &functions[i];
    return CUDA_SUCCESS;
}

/* ---- streams ------------------------------------------------------------------------------------ */

static CUresult create(CUstream *out) {
    unsigned device;
    TRY(cuda_current(&device));
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    if ((*out = calloc(1, sizeof **out)) == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    (*out)->device = device;
    return CUDA_SUCCESS;
}

CUDA cuStreamCreate(CUstream *out, unsigned flags) {
    (void)flags;
    return create(out);
}

CUDA cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority) {
    (void)flags, (void)priority;
    return create(out);
}

CUDA cuStreamDestroy_v2(CUstream s) {
    if (is_default(s)) return CUDA_ERROR_INVALID_HANDLE;
    CUstream me = s;
    atomic_compare_exchange_strong(&captured, &me, NULL);
    if (s->graph != NULL) cuGraphDestroy(s->graph);
    free(s);
    return CUDA_SUCCESS;
}

static int64_t mark_of(CUstream s, unsigned device) {
    return is_default(s) ? timeline_mark(device) : atomic_load(&s->mark);
}

CUDA cuStreamSynchronize(CUstream s) {
    unsigned device;
    TRY(cuda_current(&device));
    if (!is_default(s) && s->graph != NULL) {
        s->spoiled = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    TRY(unsafe_call());
    timeline_wait(device, mark_of(s, device));
    cuda_pools_release();
    return CUDA_SUCCESS;
}

CUDA cuStreamQuery(CUstream s) {
    unsigned device;
    TRY(cuda_current(&device));
    TRY(unsafe_call());
    return timeline_done(device, mark_of(s, device)) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

/* Work of a context runs in the order of its submission, so there is nothing to wait for. */
CUDA cuStreamWaitEvent(CUstream s, CUevent event, unsigned flags) {
    (void)s, (void)flags;
    return event == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

/* ---- events ------------------------------------------------------------------------------------- */

CUDA cuEventCreate(CUevent *out, unsigned flags) {
    unsigned device;
    TRY(cuda_current(&device));
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    if ((*out = calloc(1, sizeof **out)) == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    (*out)->device = device;
    (*out)->timed = !(flags & CU_EVENT_DISABLE_TIMING);
    return CUDA_SUCCESS;
}

CUDA cuEventDestroy_v2(CUevent event) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    free(event);
    return CUDA_SUCCESS;
}

CUDA cuEventRecord(CUevent event, CUstream s) {
    unsigned device;
    TRY(cuda_current(&device));
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    TRY(implicit(s));
    event->captured = !is_default(s) && s->graph != NULL;
    event->recorded = true;
    event->device = device;
    event->mark = mark_of(s, device);
    event->at = timeline_now();
    return CUDA_SUCCESS;
}

static CUresult usable(CUevent event) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (event->captured) { /* it is a part of the graph: asking for it spoils the capture */
        CUstream s = atomic_load(&captured);
        if (s != NULL) s->spoiled = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    return unsafe_call();
}

CUDA cuEventQuery(CUevent event) {
    TRY(usable(event));
    return !event->recorded || timeline_done(event->device, event->mark) ? CUDA_SUCCESS
                                                                           : CUDA_ERROR_NOT_READY;
}

CUDA cuEventSynchronize(CUevent event) {
    TRY(usable(event));
    if (event->recorded) timeline_wait(event->device, event->mark);
    cuda_pools_release();
    return CUDA_SUCCESS;
}

/* Not before it was recorded, and not before the work in front of it was done. */
static int64_t time_of(CUevent event) {
    int64_t reached = timeline_reached(event->device, event->mark);
    return reached > event->at ? reached : event->at;
}

CUDA cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    if (ms == NULL || from == NULL || to == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (!from->recorded || !to->recorded || !from->timed || !to->timed) return CUDA_ERROR_INVALID_HANDLE;
    TRY(cuEventQuery(from));
    TRY(cuEventQuery(to));
    *ms = (float)((double)(time_of(to) - time_of(from)) / 1e6);
    return CUDA_SUCCESS;
}
ALSO(cuEventElapsedTime_v2, cuEventElapsedTime);

/* ---- launches ----------------------------------------------------------------------------------- */

static CUresult put(CUstream s, int64_t ns) {
    unsigned device;
    TRY(cuda_current(&device));
    TRY(implicit(s));
    if (!is_default(s) && s->graph != NULL) {
        s->graph->ns += ns;
        s->graph->kernels++;
        return CUDA_SUCCESS;
    }
    int64_t mark = timeline_submit(device, ns);
    if (!is_default(s)) atomic_store(&s->mark, mark);
    return CUDA_SUCCESS;
}

static CUresult launch(CUfunction f, uint64_t threads, CUstream s) {
    if (f < functions || f >= functions + FUNCTIONS) return CUDA_ERROR_INVALID_HANDLE;
    return threads == 0 ? CUDA_ERROR_INVALID_VALUE : put(s, f->ns);
}

CUDA cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                    unsigned shared, CUstream s, void **parameters, void **extra) {
    (void)shared, (void)parameters, (void)extra;
    return launch(f, (uint64_t)gx * gy * gz * bx * by * bz, s);
}

CUDA cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned shared, CUstream s, void **parameters) {
    return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, s, parameters, NULL);
}

CUDA cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
    if (c == NULL) return CUDA_ERROR_INVALID_VALUE;
    return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                          c->sharedMemBytes, c->hStream, parameters, extra);
}

CUDA cuLaunch(CUfunction f) { return launch(f, 1, NULL); }
CUDA cuLaunchGrid(CUfunction f, int width, int height) { return launch(f, (uint64_t)(width * height), NULL); }
CUDA cuLaunchGridAsync(CUfunction f, int width, int height, CUstream s) {
    return launch(f, (uint64_t)(width * height), s);
}

CUDA cuGraphLaunch(CUgraphExec graph, CUstream s) {
    if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    TRY(cuda_graph_reserve(graph));
    return put(s, graph->ns);
}

/* ---- the forms whose NULL is the thread's own stream ------------------------------------------------ */

CUgraph cuda_capturing(CUstream s) { return is_default(s) ? NULL : s->graph; }

CUstream cuda_own_stream(CUstream s) { return s == NULL ? PER_THREAD : s; }
static CUstream own(CUstream s) { return s == NULL ? PER_THREAD : s; }

CUDA cuStreamSynchronize_ptsz(CUstream s) { return cuStreamSynchronize(own(s)); }
CUDA cuStreamQuery_ptsz(CUstream s) { return cuStreamQuery(own(s)); }
CUDA cuStreamWaitEvent_ptsz(CUstream s, CUevent e, unsigned flags) { return cuStreamWaitEvent(own(s), e, flags); }
CUDA cuStreamBeginCapture_v2_ptsz(CUstream s, CUstreamCaptureMode m) { return cuStreamBeginCapture_v2(own(s), m); }
CUDA cuStreamEndCapture_ptsz(CUstream s, CUgraph *out) { return cuStreamEndCapture(own(s), out); }
CUDA cuStreamIsCapturing_ptsz(CUstream s, CUstreamCaptureStatus *out) { return cuStreamIsCapturing(own(s), out); }
CUDA cuEventRecord_ptsz(CUevent e, CUstream s) { return cuEventRecord(e, own(s)); }
CUDA cuGraphLaunch_ptsz(CUgraphExec graph, CUstream s) { return cuGraphLaunch(graph, own(s)); }
CUDA cuLaunchKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                         unsigned shared, CUstream s, void **parameters, void **extra) {
    return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, own(s), parameters, extra);
}
CUDA cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                    unsigned bz, unsigned shared, CUstream s, void **parameters) {
    return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, own(s), parameters, NULL);
}
CUDA cuLaunchKernelEx_ptsz(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
    CUlaunchConfig mine;
    if (c == NULL) return CUDA_ERROR_INVALID_VALUE;
    mine = *c;
    mine.hStream = own(c->hStream);
    return cuLaunchKernelEx(&mine, f, parameters, extra);
}
