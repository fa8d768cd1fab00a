/* Memory in the stand-in libamdhip64: linear, pools, virtual, arrays, graphs. */
#ifndef HAL_HIP_MEMORY_H
#define HAL_HIP_MEMORY_H

#include <stddef.h>
#include <stdint.h>

typedef struct ihipMemPoolHandle_t *hipMemPool_t;
typedef struct hipArray *hipArray_t;
typedef struct hipMipmappedArray *hipMipmappedArray_t;
typedef struct hipGraphNode *hipGraphNode_t;
typedef struct hipExtMemory *hipExternalMemory_t;
typedef uint64_t hipMemGenericAllocationHandle_t; /* there a pointer; so with addresses below */

enum {
    LOCATED_ON_DEVICE = 1,
    LOCATED_ON_HOST = 2,
    LOCATED_ON_HOST_NODE = 3,
    LOCATED_ON_HOST_NODE_HERE = 4,
    PINNED = 1,
    POSIX_FILE = 1,
    hipMemAttachGlobal = 1,
    hipMemAttachHost = 2,
    hipMallocSignalMemory = 2,
    hipMemPoolAttrReleaseThreshold = 4,
    hipMemPoolAttrReservedMemCurrent = 5,
    hipMemPoolAttrReservedMemHigh = 6,
    hipMemPoolAttrUsedMemCurrent = 7,
    hipMemPoolAttrUsedMemHigh = 8,
    hipGraphMemAttrUsedMemCurrent = 0,
    hipGraphMemAttrUsedMemHigh = 1,
    hipGraphMemAttrReservedMemCurrent = 2,
    hipGraphMemAttrReservedMemHigh = 3,
    hipGraphNodeTypeMemAlloc = 10,
    hipGraphNodeTypeMemFree = 11,
};

typedef struct {
    int type, id;
} hipMemLocation;

typedef struct {
    int type, requestedHandleType;
    hipMemLocation location;
    void *win32HandleMetaData;
    struct {
        unsigned char compressionType, gpuDirectRDMACapable;
        unsigned short usage;
    } allocFlags;
} hipMemAllocationProp;

typedef struct {
    hipMemLocation location;
    int flags;
} hipMemAccessDesc;

typedef struct {
    int allocType, handleTypes;
    hipMemLocation location;
    void *win32SecurityAttributes;
    size_t maxSize;
    unsigned char reserved[56];
} hipMemPoolProps;
_Static_assert(sizeof(hipMemPoolProps) == 88, "as hip_runtime_api.h has it");

typedef struct {
    hipMemPoolProps poolProps;
    const hipMemAccessDesc *accessDescs;
    size_t accessDescCount, bytesize;
    uint64_t dptr;
} hipMemAllocNodeParams;

typedef struct {
    size_t width, height, depth;
} hipExtent;

typedef struct {
    void *ptr;
    size_t pitch, xsize, ysize;
} hipPitchedPtr;

typedef struct {
    int x, y, z, w, f; /* bits of each, and of which kind they are */
} hipChannelFormatDesc;

typedef struct {
    size_t Width, Height;
    unsigned Format, NumChannels;
} HIP_ARRAY_DESCRIPTOR;

typedef struct {
    size_t Width, Height, Depth;
    unsigned Format, NumChannels, Flags;
} HIP_ARRAY3D_DESCRIPTOR;

typedef struct {
    hipGraphNode_t errNode_out;
    unsigned long long flags;
    int result_out;
    hipStream_t uploadStream;
} hipGraphInstantiateParams;

typedef struct {
    char reserved[64];
} hipIpcMemHandle_t;

typedef struct {
    int type;
    union {
        int fd;
        struct {
            void *handle;
            const void *name;
        } win32;
    } handle;
    unsigned long long size;
    unsigned flags, reserved[16];
} hipExternalMemoryHandleDesc;

typedef struct {
    unsigned long long offset, size;
    unsigned flags, reserved[16];
} hipExternalMemoryBufferDesc;

#define HIP_LINEAR_FUNCTIONS(X) \
    X(hipError_t, hipMalloc, (void **address, size_t bytes)) \
    X(hipError_t, hipExtMallocWithFlags, (void **address, size_t bytes, unsigned flags)) \
    X(hipError_t, hipMallocManaged, (void **address, size_t bytes, unsigned flags)) \
    X(hipError_t, hipMallocPitch, (void **address, size_t *pitch, size_t width, size_t height)) \
    X(hipError_t, hipMemAllocPitch, \
      (void **address, size_t *pitch, size_t width, size_t height, unsigned element)) \
    X(hipError_t, hipMalloc3D, (hipPitchedPtr *out, hipExtent extent)) \
    X(hipError_t, hipFree, (void *address)) \
    X(hipError_t, hipMemGetInfo, (size_t *available, size_t *total)) \
    X(hipError_t, hipMemPtrGetInfo, (void *address, size_t *bytes)) \
    X(hipError_t, hipHostMalloc, (void **address, size_t bytes, unsigned flags)) \
    X(hipError_t, hipMallocHost, (void **address, size_t bytes)) \
    X(hipError_t, hipHostFree, (void *address)) \
    X(hipError_t, hipDeviceReset, (void)) \
    X(hipError_t, hipDevicePrimaryCtxReset, (int ordinal)) \
    X(hipError_t, hipIpcGetMemHandle, (hipIpcMemHandle_t *out, void *address)) \
    X(hipError_t, hipIpcOpenMemHandle, (void **out, hipIpcMemHandle_t handle, unsigned flags)) \
    X(hipError_t, hipIpcCloseMemHandle, (void *address)) \
    X(hipError_t, hipImportExternalMemory, (hipExternalMemory_t *out, const hipExternalMemoryHandleDesc *d)) \
    X(hipError_t, hipExternalMemoryGetMappedBuffer, \
      (void **out, hipExternalMemory_t m, const hipExternalMemoryBufferDesc *d)) \
    X(hipError_t, hipDestroyExternalMemory, (hipExternalMemory_t m))

#define HIP_POOL_FUNCTIONS(X) \
    X(hipError_t, hipMallocAsync, (void **out, size_t bytes, hipStream_t s)) \
    X(hipError_t, hipMallocFromPoolAsync, (void **out, size_t bytes, hipMemPool_t p, hipStream_t s)) \
    X(hipError_t, hipFreeAsync, (void *address, hipStream_t s)) \
    X(hipError_t, hipMemPoolCreate, (hipMemPool_t *out, const hipMemPoolProps *props)) \
    X(hipError_t, hipMemPoolDestroy, (hipMemPool_t p)) \
    X(hipError_t, hipMemPoolTrimTo, (hipMemPool_t p, size_t keep)) \
    X(hipError_t, hipMemPoolSetAttribute, (hipMemPool_t p, int attribute, void *value)) \
    X(hipError_t, hipMemPoolGetAttribute, (hipMemPool_t p, int attribute, void *value)) \
    X(hipError_t, hipDeviceGetDefaultMemPool, (hipMemPool_t *out, int ordinal)) \
    X(hipError_t, hipDeviceGetMemPool, (hipMemPool_t *out, int ordinal)) \
    X(hipError_t, hipDeviceSetMemPool, (int ordinal, hipMemPool_t p))

#define HIP_VIRTUAL_FUNCTIONS(X) \
    X(hipError_t, hipMemAddressReserve, \
      (uint64_t *out, size_t bytes, size_t alignment, uint64_t at, unsigned long long flags)) \
    X(hipError_t, hipMemAddressFree, (uint64_t at, size_t bytes)) \
    X(hipError_t, hipMemCreate, \
      (hipMemGenericAllocationHandle_t *out, size_t bytes, const hipMemAllocationProp *prop, \
       unsigned long long flags)) \
    X(hipError_t, hipMemRelease, (hipMemGenericAllocationHandle_t handle)) \
    X(hipError_t, hipMemMap, \
      (uint64_t at, size_t bytes, size_t offset, hipMemGenericAllocationHandle_t handle, \
       unsigned long long flags)) \
    X(hipError_t, hipMemUnmap, (uint64_t at, size_t bytes)) \
    X(hipError_t, hipMemSetAccess, (uint64_t at, size_t bytes, const hipMemAccessDesc *access, size_t count)) \
    X(hipError_t, hipMemRetainAllocationHandle, (hipMemGenericAllocationHandle_t *out, void *address)) \
    X(hipError_t, hipMemExportToShareableHandle, \
      (void *out, hipMemGenericAllocationHandle_t handle, int type, unsigned long long flags)) \
    X(hipError_t, hipMemImportFromShareableHandle, \
      (hipMemGenericAllocationHandle_t *out, void *handle, int type)) \
    X(hipError_t, hipMemGetAllocationGranularity, (size_t *out, const hipMemAllocationProp *prop, int option)) \
    X(hipError_t, hipMemGetAllocationPropertiesFromHandle, \
      (hipMemAllocationProp *out, hipMemGenericAllocationHandle_t handle))

#define HIP_ARRAY_FUNCTIONS(X) \
    X(hipError_t, hipMallocArray, \
      (hipArray_t *out, const hipChannelFormatDesc *element, size_t width, size_t height, unsigned flags)) \
    X(hipError_t, hipMalloc3DArray, \
      (hipArray_t *out, const hipChannelFormatDesc *element, hipExtent extent, unsigned flags)) \
    X(hipError_t, hipArrayCreate, (hipArray_t *out, const HIP_ARRAY_DESCRIPTOR *d)) \
    X(hipError_t, hipArray3DCreate, (hipArray_t *out, const HIP_ARRAY3D_DESCRIPTOR *d)) \
    X(hipError_t, hipMallocMipmappedArray, \
      (hipMipmappedArray_t *out, const hipChannelFormatDesc *element, hipExtent extent, unsigned levels, \
       unsigned flags)) \
    X(hipError_t, hipMipmappedArrayCreate, \
      (hipMipmappedArray_t *out, HIP_ARRAY3D_DESCRIPTOR *d, unsigned levels)) \
    X(hipError_t, hipFreeArray, (hipArray_t a)) \
    X(hipError_t, hipArrayDestroy, (hipArray_t a)) \
    X(hipError_t, hipFreeMipmappedArray, (hipMipmappedArray_t a)) \
    X(hipError_t, hipMipmappedArrayDestroy, (hipMipmappedArray_t a))

#define HIP_GRAPH_FUNCTIONS(X) \
    X(hipError_t, hipGraphCreate, (hipGraph_t *out, unsigned flags)) \
    X(hipError_t, hipGraphAddMemAllocNode, \
      (hipGraphNode_t *out, hipGraph_t graph, const hipGraphNode_t *before, size_t count, \
       hipMemAllocNodeParams *p)) \
    X(hipError_t, hipGraphAddMemFreeNode, \
      (hipGraphNode_t *out, hipGraph_t graph, const hipGraphNode_t *before, size_t count, uint64_t address)) \
    X(hipError_t, hipGraphMemAllocNodeGetParams, (hipGraphNode_t node, hipMemAllocNodeParams *out)) \
    X(hipError_t, hipGraphGetNodes, (hipGraph_t graph, hipGraphNode_t *out, size_t *count)) \
    X(hipError_t, hipGraphNodeGetType, (hipGraphNode_t node, int *out)) \
    X(hipError_t, hipGraphInstantiate, \
      (hipGraphExec_t *out, hipGraph_t graph, hipGraphNode_t *where, char *log, size_t length)) \
    X(hipError_t, hipGraphInstantiateWithFlags, \
      (hipGraphExec_t *out, hipGraph_t graph, unsigned long long flags)) \
    X(hipError_t, hipGraphInstantiateWithParams, \
      (hipGraphExec_t *out, hipGraph_t graph, hipGraphInstantiateParams *p)) \
    X(hipError_t, hipGraphUpload, (hipGraphExec_t exec, hipStream_t s)) \
    X(hipError_t, hipGraphExecDestroy, (hipGraphExec_t exec)) \
    X(hipError_t, hipGraphDestroy, (hipGraph_t graph)) \
    X(hipError_t, hipDeviceGraphMemTrim, (int ordinal)) \
    X(hipError_t, hipDeviceGetGraphMemAttribute, (int ordinal, int attribute, void *value))

#define HIP_MEMORY_FUNCTIONS(X) \
    HIP_LINEAR_FUNCTIONS(X) HIP_POOL_FUNCTIONS(X) HIP_VIRTUAL_FUNCTIONS(X) HIP_ARRAY_FUNCTIONS(X) \
    HIP_GRAPH_FUNCTIONS(X)

#endif
