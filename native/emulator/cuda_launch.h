/* Streams, events, kernels and capture in the stand-in libcuda; see cuda.h for what the columns mean. */
#ifndef HAL_CUDA_LAUNCH_H
#define HAL_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda.h"

typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

typedef enum { CU_STREAM_CAPTURE_STATUS_NONE, CU_STREAM_CAPTURE_STATUS_ACTIVE, CU_STREAM_CAPTURE_STATUS_INVALIDATED }
    CUstreamCaptureStatus;
typedef enum { CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_RELAXED }
    CUstreamCaptureMode;
enum { CU_EVENT_DISABLE_TIMING = 2 };

typedef struct {
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    CUstream hStream;
    void *attrs;
    unsigned numAttrs;
} CUlaunchConfig;

#define CUDA_LAUNCH_POINTS(E)                                                                      \
    E(cuModuleLoadData, 2000, cuModuleLoadData)                                                    \
    E(cuModuleLoad, 2000, cuModuleLoad)                                                            \
    E(cuModuleUnload, 2000, cuModuleUnload)                                                        \
    E(cuModuleGetFunction, 2000, cuModuleGetFunction)                                              \
    E(cuStreamCreate, 2000, cuStreamCreate)                                                        \
    E(cuStreamCreateWithPriority, 5050, cuStreamCreateWithPriority)                                \
    E(cuStreamDestroy, 4000, cuStreamDestroy_v2)                                                   \
    E(cuThreadExchangeStreamCaptureMode, 10010, cuThreadExchangeStreamCaptureMode)                 \
    E(cuEventCreate, 2000, cuEventCreate)                                                          \
    E(cuEventDestroy, 4000, cuEventDestroy_v2)                                                     \
    E(cuEventQuery, 2000, cuEventQuery)                                                            \
    E(cuEventSynchronize, 2000, cuEventSynchronize)                                                \
    E(cuEventElapsedTime, 2000, cuEventElapsedTime)                                                \
    E(cuEventElapsedTime, 12080, cuEventElapsedTime_v2)                                            \
    E(cuLaunch, 2000, cuLaunch)                                                                    \
    E(cuLaunchGrid, 2000, cuLaunchGrid)                                                            \
    E(cuLaunchGridAsync, 2000, cuLaunchGridAsync)

/* These have a form for programs whose default stream is their thread's own: the same name and _ptsz. */
#define CUDA_STREAM_POINTS(E)                                                                      \
    E(cuStreamSynchronize, 2000, cuStreamSynchronize)                                              \
    E(cuStreamQuery, 2000, cuStreamQuery)                                                          \
    E(cuStreamWaitEvent, 3020, cuStreamWaitEvent)                                                  \
    E(cuStreamBeginCapture, 10010, cuStreamBeginCapture_v2)                                        \
    E(cuStreamEndCapture, 10000, cuStreamEndCapture)                                               \
    E(cuStreamIsCapturing, 10000, cuStreamIsCapturing)                                             \
    E(cuEventRecord, 2000, cuEventRecord)                                                          \
    E(cuLaunchKernel, 4000, cuLaunchKernel)                                                        \
    E(cuLaunchKernelEx, 11060, cuLaunchKernelEx)                                                   \
    E(cuLaunchCooperativeKernel, 9000, cuLaunchCooperativeKernel)                                  \
    E(cuGraphLaunch, 10000, cuGraphLaunch)

#endif
