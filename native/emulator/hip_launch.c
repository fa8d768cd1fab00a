/* libamdhip64.so over the emulated machine: modules, streams, events, launches, capture.
 *
 * Nothing is computed: a kernel of a module takes the time that its name states ("spin_20us", "step_5ms"), any
 * other 10 us, on the device's timeline (timeline.h). Work of one process on a device runs in order. */
#define _GNU_SOURCE
#include "hip_graph.h"
#include "hip_parts.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "timeline.h"

enum { DEFAULT_KERNEL_NS = 10000, FUNCTIONS = 4096 };
#define PER_THREAD ((hipStream_t)2)

struct ihipModule_t {
    int unused;
};

struct ihipModuleSymbol_t {
    char name[64];
    int64_t ns;
};

struct ihipStream_t {
    _Atomic int64_t mark; /* of the last work in it */
    hipGraph_t graph;     /* NULL: it is not being captured */
    bool spoiled;
};

struct ihipEvent_t {
    bool timed, recorded, captured;
    unsigned device;
    int64_t mark, at; /* what it waits for, and when it was recorded */
};

static bool is_default(hipStream_t s) { return s == NULL || s == PER_THREAD; }

hipGraph_t hip_capturing(hipStream_t s) { return is_default(s) ? NULL : s->graph; }

/* ---- capture --------------------------------------------------------------------------------- */

/* A capture in global mode. While there is one, calls that could wait for its work spoil it, but for threads in
 * relaxed mode (hipThreadExchangeStreamCaptureMode). One at a time is all that is told apart. */
static _Atomic(hipStream_t) captured;
static _Thread_local hipStreamCaptureMode thread_mode = hipStreamCaptureModeGlobal;

static hipError_t unsafe_call(void) {
    hipStream_t s = atomic_load(&captured);
    if (s == NULL || thread_mode == hipStreamCaptureModeRelaxed) return hipSuccess;
    s->spoiled = true;
    return hipErrorStreamCaptureUnsupported;
}

/* The null stream waits for all others, so it cannot be used while one of them is captured. */
static hipError_t implicit(hipStream_t s) {
    hipStream_t other = atomic_load(&captured);
    if (s != NULL || other == NULL) return hipSuccess;
    other->spoiled = true;
    return hipErrorStreamCaptureImplicit;
}

hipError_t hipThreadExchangeStreamCaptureMode(hipStreamCaptureMode *mode) {
    if (mode == NULL || *mode > hipStreamCaptureModeRelaxed) return hip_answer(hipErrorInvalidValue);
    hipStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return hip_answer(hipSuccess);
}

hipError_t hipStreamBeginCapture(hipStream_t s, hipStreamCaptureMode mode) {
    unsigned device;
    TRY(hip_here(&device));
    if (is_default(s) || mode > hipStreamCaptureModeRelaxed) return hip_answer(hipErrorStreamCaptureUnsupported);
    if (s->graph != NULL) return hip_answer(hipErrorIllegalState);
    if ((s->graph = calloc(1, sizeof *s->graph)) == NULL) return hip_answer(hipErrorOutOfMemory);
    s->spoiled = false;
    if (mode == hipStreamCaptureModeGlobal) atomic_store(&captured, s);
    return hip_answer(hipSuccess);
}

hipError_t hipStreamEndCapture(hipStream_t s, hipGraph_t *out) {
    if (is_default(s) || s->graph == NULL) return hip_answer(hipErrorIllegalState);
    if (out == NULL) return hip_answer(hipErrorInvalidValue);
    hipStream_t me = s;
    atomic_compare_exchange_strong(&captured, &me, NULL);
    *out = s->graph;
    s->graph = NULL;
    if (!s->spoiled) return hip_answer(hipSuccess);
    hipGraphDestroy(*out);
    *out = NULL;
    return hip_answer(hipErrorStreamCaptureInvalidated);
}

hipError_t hipStreamIsCapturing(hipStream_t s, hipStreamCaptureStatus *status) {
    if (status == NULL) return hip_answer(hipErrorInvalidValue);
    if (s == NULL && atomic_load(&captured) != NULL) return hip_answer(hipErrorStreamCaptureImplicit);
    *status = is_default(s) || s->graph == NULL ? hipStreamCaptureStatusNone
              : s->spoiled                      ? hipStreamCaptureStatusInvalidated
                                                : hipStreamCaptureStatusActive;
    return hip_answer(hipSuccess);
}

/* ---- modules --------------------------------------------------------------------------------- */

static struct ihipModule_t the_module;
static struct ihipModuleSymbol_t functions[FUNCTIONS];
static _Atomic unsigned known;

hipError_t hipModuleLoadData(hipModule_t *out, const void *image) {
    unsigned device;
    TRY(hip_here(&device));
    if (out == NULL || image == NULL) return hip_answer(hipErrorInvalidValue);
    *out = &the_module;
    return hip_answer(hipSuccess);
}

hipError_t hipModuleUnload(hipModule_t m) {
    return hip_answer(m == &the_module ? hipSuccess : hipErrorInvalidHandle);
}

hipError_t hipModuleGetFunction(hipFunction_t *out, hipModule_t m, const char *name) {
    if (out == NULL || name == NULL || m != &the_module) return hip_answer(hipErrorInvalidValue);
    unsigned i = atomic_fetch_add(&known, 1);
    if (i >= FUNCTIONS || strlen(name) >= sizeof functions[i].name) return hip_answer(hipErrorNotFound);
    strcpy(functions[i].name, name);
    const char *stated = strrchr(name, '_');
    int64_t ns = stated == NULL ? -1 : timeline_duration(stated + 1);
    functions[i].ns = ns < 0 ? DEFAULT_KERNEL_NS : ns;
    *out = &functions[i];
    return hip_answer(hipSuccess);
}

/* ---- streams --------------------------------------------------------------------------------- */

hipError_t hipStreamCreate(hipStream_t *out) {
    unsigned device;
    TRY(hip_here(&device));
    if (out == NULL) return hip_answer(hipErrorInvalidValue);
    *out = calloc(1, sizeof **out);
    return hip_answer(*out == NULL ? hipErrorOutOfMemory : hipSuccess);
}

hipError_t hipStreamCreateWithFlags(hipStream_t *out, unsigned flags) {
    (void)flags;
    return hipStreamCreate(out);
}

hipError_t hipStreamCreateWithPriority(hipStream_t *out, unsigned flags, int priority) {
    (void)flags, (void)priority;
    return hipStreamCreate(out);
}

hipError_t hipStreamDestroy(hipStream_t s) {
    if (is_default(s)) return hip_answer(hipErrorInvalidHandle);
    hipStream_t me = s;
    atomic_compare_exchange_strong(&captured, &me, NULL);
    if (s->graph != NULL) hipGraphDestroy(s->graph);
    free(s);
    return hip_answer(hipSuccess);
}

static int64_t mark_of(hipStream_t s, unsigned device) {
    return is_default(s) ? timeline_mark(device) : atomic_load(&s->mark);
}

hipError_t hipStreamSynchronize(hipStream_t s) {
    unsigned device;
    TRY(hip_here(&device));
    if (!is_default(s) && s->graph != NULL) {
        s->spoiled = true;
        return hip_answer(hipErrorStreamCaptureUnsupported);
    }
    TRY(unsafe_call());
    timeline_wait(device, mark_of(s, device));
    hip_pools_release();
    return hip_answer(hipSuccess);
}

hipError_t hipStreamGetDevice(hipStream_t s, hipDevice_t *device) {
    (void)s; /* the current one, here */
    return hipGetDevice(device);
}

hipError_t hipStreamQuery(hipStream_t s) {
    unsigned device;
    TRY(hip_here(&device));
    TRY(unsafe_call());
    return timeline_done(device, mark_of(s, device)) ? hip_answer(hipSuccess) : hip_answer(hipErrorNotReady);
}

/* Work of a process runs in the order of its submission, so there is nothing to wait for. */
hipError_t hipStreamWaitEvent(hipStream_t s, hipEvent_t event, unsigned flags) {
    (void)s, (void)flags;
    return hip_answer(event == NULL ? hipErrorInvalidHandle : hipSuccess);
}

/* ---- events ---------------------------------------------------------------------------------- */

hipError_t hipEventCreateWithFlags(hipEvent_t *out, unsigned flags) {
    unsigned device;
    TRY(hip_here(&device));
    if (out == NULL) return hip_answer(hipErrorInvalidValue);
    if ((*out = calloc(1, sizeof **out)) == NULL) return hip_answer(hipErrorOutOfMemory);
    (*out)->timed = !(flags & hipEventDisableTiming);
    return hip_answer(hipSuccess);
}

hipError_t hipEventCreate(hipEvent_t *out) { return hipEventCreateWithFlags(out, 0); }

hipError_t hipEventDestroy(hipEvent_t event) {
    if (event == NULL) return hip_answer(hipErrorInvalidHandle);
    free(event);
    return hip_answer(hipSuccess);
}

hipError_t hipEventRecord(hipEvent_t event, hipStream_t s) {
    unsigned device;
    TRY(hip_here(&device));
    if (event == NULL) return hip_answer(hipErrorInvalidHandle);
    TRY(implicit(s));
    event->captured = !is_default(s) && s->graph != NULL;
    event->recorded = true;
    event->device = device;
    event->mark = mark_of(s, device);
    event->at = timeline_now();
    return hip_answer(hipSuccess);
}

static hipError_t usable(hipEvent_t event) {
    if (event == NULL) return hipErrorInvalidHandle;
    if (!event->captured) return unsafe_call();
    hipStream_t s = atomic_load(&captured); /* it is a part of the graph: asking for it spoils the capture */
    if (s != NULL) s->spoiled = true;
    return hipErrorCapturedEvent;
}

hipError_t hipEventQuery(hipEvent_t event) {
    TRY(usable(event));
    bool done = !event->recorded || timeline_done(event->device, event->mark);
    return hip_answer(done ? hipSuccess : hipErrorNotReady);
}

hipError_t hipEventSynchronize(hipEvent_t event) {
    TRY(usable(event));
    if (event->recorded) timeline_wait(event->device, event->mark);
    hip_pools_release();
    return hip_answer(hipSuccess);
}

/* Not before it was recorded, and not before the work in front of it was done. */
static int64_t time_of(hipEvent_t event) {
    int64_t reached = timeline_reached(event->device, event->mark);
    return reached > event->at ? reached : event->at;
}

hipError_t hipEventElapsedTime(float *ms, hipEvent_t from, hipEvent_t to) {
    if (ms == NULL || from == NULL || to == NULL) return hip_answer(hipErrorInvalidValue);
    if (!from->recorded || !to->recorded || !from->timed || !to->timed)
        return hip_answer(hipErrorInvalidHandle);
    TRY(hipEventQuery(from));
    TRY(hipEventQuery(to));
    *ms = (float)((double)(time_of(to) - time_of(from)) / 1e6);
    return hip_answer(hipSuccess);
}

/* ---- launches -------------------------------------------------------------------------------- */

static hipError_t put(hipStream_t s, int64_t ns) {
    unsigned device;
    TRY(hip_here(&device));
    TRY(implicit(s));
    if (!is_default(s) && s->graph != NULL) {
        s->graph->ns += ns;
        return hip_answer(hipSuccess);
    }
    int64_t mark = timeline_submit(device, ns);
    if (!is_default(s)) atomic_store(&s->mark, mark);
    return hip_answer(hipSuccess);
}

static bool in_module(hipFunction_t f) { return f >= functions && f < functions + FUNCTIONS; }

static hipError_t launch(hipFunction_t f, uint64_t threads, hipStream_t s) {
    if (!in_module(f)) return hip_answer(hipErrorInvalidHandle);
    return threads == 0 ? hip_answer(hipErrorInvalidValue) : put(s, f->ns);
}

/* A function of the program's own, known by an address in it. */
static hipError_t launch_own(const void *f, dim3 grid, dim3 block, hipStream_t s) {
    uint64_t threads = (uint64_t)grid.x * grid.y * grid.z * block.x * block.y * block.z;
    if (f == NULL || threads == 0) return hip_answer(hipErrorInvalidValue);
    return put(s, DEFAULT_KERNEL_NS);
}

hipError_t hipModuleLaunchKernel(hipFunction_t f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                 unsigned bz, unsigned shared, hipStream_t s, void **parameters, void **extra) {
    (void)shared, (void)parameters, (void)extra;
    return launch(f, (uint64_t)gx * gy * gz * bx * by * bz, s);
}

hipError_t hipModuleLaunchCooperativeKernel(hipFunction_t f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                            unsigned by, unsigned bz, unsigned shared, hipStream_t s,
                                            void **parameters) {
    return hipModuleLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, s, parameters, NULL);
}

/* Here the sizes are those of the whole grid, in work items. */
hipError_t hipExtModuleLaunchKernel(hipFunction_t f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by,
                                    uint32_t bz, size_t shared, hipStream_t s, void **parameters, void **extra,
                                    hipEvent_t start, hipEvent_t stop, uint32_t flags) {
    (void)shared, (void)parameters, (void)extra, (void)flags;
    if (bx == 0 || by == 0 || bz == 0) return hip_answer(hipErrorInvalidValue);
    if (start != NULL) TRY(hipEventRecord(start, s));
    TRY(launch(f, (uint64_t)gx * gy * gz, s));
    return stop == NULL ? hip_answer(hipSuccess) : hipEventRecord(stop, s);
}

hipError_t hipLaunchKernel(const void *f, dim3 grid, dim3 block, void **parameters, size_t shared, hipStream_t s) {
    (void)parameters, (void)shared;
    return launch_own(f, grid, block, s);
}

hipError_t hipExtLaunchKernel(const void *f, dim3 grid, dim3 block, void **parameters, size_t shared, hipStream_t s,
                              hipEvent_t start, hipEvent_t stop, int flags) {
    (void)parameters, (void)shared, (void)flags;
    if (start != NULL) TRY(hipEventRecord(start, s));
    TRY(launch_own(f, grid, block, s));
    return stop == NULL ? hip_answer(hipSuccess) : hipEventRecord(stop, s);
}

hipError_t hipLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **parameters, unsigned shared,
                                      hipStream_t s) {
    (void)parameters, (void)shared;
    return launch_own(f, grid, block, s);
}

hipError_t hipGraphLaunch(hipGraphExec_t graph, hipStream_t s) {
    if (graph == NULL) return hip_answer(hipErrorInvalidValue);
    TRY(hip_graph_reserve(graph));
    return put(s, graph->ns);
}

/* ---- the forms whose NULL is the thread's own stream --------------------------------------------- */

static hipStream_t own(hipStream_t s) { return s == NULL ? PER_THREAD : s; }

hipError_t hipLaunchKernel_spt(const void *f, dim3 grid, dim3 block, void **parameters, size_t shared,
                               hipStream_t s) {
    return VIA(hipLaunchKernel)(f, grid, block, parameters, shared, own(s));
}

hipError_t hipLaunchCooperativeKernel_spt(const void *f, dim3 grid, dim3 block, void **parameters, uint32_t shared,
                                          hipStream_t s) {
    return VIA(hipLaunchCooperativeKernel)(f, grid, block, parameters, shared, own(s));
}

hipError_t hipGraphLaunch_spt(hipGraphExec_t graph, hipStream_t s) {
    return VIA(hipGraphLaunch)(graph, own(s));
}

hipError_t hipStreamSynchronize_spt(hipStream_t s) { return VIA(hipStreamSynchronize)(own(s)); }
