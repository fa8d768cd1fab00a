/* Memory in the stand-in libcuda: linear, pools, virtual, arrays, graphs; see cuda.h for what the columns
 * mean. */
#ifndef HAL_CUDA_MEMORY_H
#define HAL_CUDA_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "cuda.h"
#include "cuda_launch.h"

typedef struct CUmemPoolHandle_st *CUmemoryPool;
typedef struct CUarray_st *CUarray;
typedef struct CUmipmappedArray_st *CUmipmappedArray;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUextMemory_st *CUexternalMemory;
typedef unsigned long long CUmemGenericAllocationHandle;

enum {
    CU_MEM_LOCATION_TYPE_DEVICE = 1,
    CU_MEM_LOCATION_TYPE_HOST = 2,
    CU_MEM_LOCATION_TYPE_HOST_NUMA = 3,
    CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT = 4,
    CU_MEM_ALLOCATION_TYPE_PINNED = 1,
    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1,
    CU_MEM_ATTACH_GLOBAL = 1,
    CU_MEM_ATTACH_HOST = 2,
    CU_POINTER_ATTRIBUTE_CONTEXT = 1,
    CU_MEMPOOL_ATTR_RELEASE_THRESHOLD = 4,
    CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT = 5,
    CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH = 6,
    CU_MEMPOOL_ATTR_USED_MEM_CURRENT = 7,
    CU_MEMPOOL_ATTR_USED_MEM_HIGH = 8,
    CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT = 0,
    CU_GRAPH_MEM_ATTR_USED_MEM_HIGH = 1,
    CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT = 2,
    CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH = 3,
    CU_GRAPH_NODE_TYPE_MEM_ALLOC = 10,
    CU_GRAPH_NODE_TYPE_MEM_FREE = 11,
    CUDA_ARRAY3D_SPARSE = 0x40,
    CUDA_ARRAY3D_DEFERRED_MAPPING = 0x80,
};

typedef struct {
    int type, id;
} CUmemLocation;

typedef struct {
    int type, requestedHandleTypes;
    CUmemLocation location;
    void *win32HandleMetaData;
    struct {
        unsigned char compressionType, gpuDirectRDMACapable;
        unsigned short usage;
        unsigned char reserved[4];
    } allocFlags;
} CUmemAllocationProp;

typedef struct {
    CUmemLocation location;
    int flags;
} CUmemAccessDesc;

typedef struct {
    int allocType, handleTypes;
    CUmemLocation location;
    void *win32SecurityAttributes;
    size_t maxSize;
    unsigned short usage;
    unsigned char reserved[54];
} CUmemPoolProps;
_Static_assert(sizeof(CUmemPoolProps) == 88, "as cuda.h has it");

typedef struct {
    CUmemPoolProps poolProps;
    const CUmemAccessDesc *accessDescs;
    size_t accessDescCount, bytesize;
    CUdeviceptr dptr;
} CUDA_MEM_ALLOC_NODE_PARAMS;

typedef struct {
    size_t Width, Height;
    unsigned Format, NumChannels;
} CUDA_ARRAY_DESCRIPTOR;

typedef struct {
    size_t Width, Height, Depth;
    unsigned Format, NumChannels, Flags;
} CUDA_ARRAY3D_DESCRIPTOR;

typedef struct { /* of CUDA 2 */
    unsigned Width, Height, Format, NumChannels;
} CUDA_ARRAY_DESCRIPTOR_v1;

typedef struct {
    unsigned Width, Height, Depth, Format, NumChannels, Flags;
} CUDA_ARRAY3D_DESCRIPTOR_v1;

typedef struct {
    size_t size, alignment;
    unsigned reserved[4];
} CUDA_ARRAY_MEMORY_REQUIREMENTS;

typedef struct {
    uint64_t flags;
    CUstream hUploadStream;
    CUgraphNode hErrNode_out;
    int result_out;
} CUDA_GRAPH_INSTANTIATE_PARAMS;

typedef struct {
    char reserved[64];
} CUipcMemHandle;

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
} CUDA_EXTERNAL_MEMORY_HANDLE_DESC;

typedef struct {
    unsigned long long offset, size;
    unsigned flags, reserved[16];
} CUDA_EXTERNAL_MEMORY_BUFFER_DESC;

#define CUDA_MEMORY_POINTS(E)                                                                      \
    E(cuDeviceTotalMem, 2000, cuDeviceTotalMem)                                                    \
    E(cuDeviceTotalMem, 3020, cuDeviceTotalMem_v2)                                                 \
    E(cuMemAlloc, 2000, cuMemAlloc)                                                                \
    E(cuMemAlloc, 3020, cuMemAlloc_v2)                                                             \
    E(cuMemAllocPitch, 2000, cuMemAllocPitch)                                                      \
    E(cuMemAllocPitch, 3020, cuMemAllocPitch_v2)                                                   \
    E(cuMemAllocManaged, 6000, cuMemAllocManaged)                                                  \
    E(cuMemFree, 2000, cuMemFree)                                                                  \
    E(cuMemFree, 3020, cuMemFree_v2)                                                               \
    E(cuMemGetInfo, 2000, cuMemGetInfo)                                                            \
    E(cuMemGetInfo, 3020, cuMemGetInfo_v2)                                                         \
    E(cuMemGetAddressRange, 3020, cuMemGetAddressRange_v2)                                         \
    E(cuMemAllocHost, 3020, cuMemAllocHost_v2)                                                     \
    E(cuMemHostAlloc, 2020, cuMemHostAlloc)                                                        \
    E(cuMemFreeHost, 2000, cuMemFreeHost)                                                          \
    E(cuIpcGetMemHandle, 4010, cuIpcGetMemHandle)                                                  \
    E(cuIpcOpenMemHandle, 11000, cuIpcOpenMemHandle_v2)                                            \
    E(cuIpcCloseMemHandle, 4010, cuIpcCloseMemHandle)                                              \
    E(cuImportExternalMemory, 10000, cuImportExternalMemory)                                       \
    E(cuExternalMemoryGetMappedBuffer, 10000, cuExternalMemoryGetMappedBuffer)                     \
    E(cuDestroyExternalMemory, 10000, cuDestroyExternalMemory)                                     \
    E(cuMemAddressReserve, 10020, cuMemAddressReserve)                                             \
    E(cuMemAddressFree, 10020, cuMemAddressFree)                                                   \
    E(cuMemCreate, 10020, cuMemCreate)                                                             \
    E(cuMemRelease, 10020, cuMemRelease)                                                           \
    E(cuMemMap, 10020, cuMemMap)                                                                   \
    E(cuMemUnmap, 10020, cuMemUnmap)                                                               \
    E(cuMemSetAccess, 10020, cuMemSetAccess)                                                       \
    E(cuMemRetainAllocationHandle, 11000, cuMemRetainAllocationHandle)                             \
    E(cuMemExportToShareableHandle, 10020, cuMemExportToShareableHandle)                           \
    E(cuMemImportFromShareableHandle, 10020, cuMemImportFromShareableHandle)                       \
    E(cuMemGetAllocationGranularity, 10020, cuMemGetAllocationGranularity)                         \
    E(cuMemGetAllocationPropertiesFromHandle, 10020, cuMemGetAllocationPropertiesFromHandle)       \
    E(cuMemPoolCreate, 11020, cuMemPoolCreate)                                                     \
    E(cuMemPoolDestroy, 11020, cuMemPoolDestroy)                                                   \
    E(cuMemPoolTrimTo, 11020, cuMemPoolTrimTo)                                                     \
    E(cuMemPoolSetAttribute, 11020, cuMemPoolSetAttribute)                                         \
    E(cuMemPoolGetAttribute, 11020, cuMemPoolGetAttribute)                                         \
    E(cuDeviceGetDefaultMemPool, 11020, cuDeviceGetDefaultMemPool)                                 \
    E(cuDeviceGetMemPool, 11020, cuDeviceGetMemPool)                                               \
    E(cuDeviceSetMemPool, 11020, cuDeviceSetMemPool)                                               \
    E(cuArrayCreate, 2000, cuArrayCreate)                                                          \
    E(cuArrayCreate, 3020, cuArrayCreate_v2)                                                       \
    E(cuArray3DCreate, 2000, cuArray3DCreate)                                                      \
    E(cuArray3DCreate, 3020, cuArray3DCreate_v2)                                                   \
    E(cuArrayDestroy, 2000, cuArrayDestroy)                                                        \
    E(cuMipmappedArrayCreate, 5000, cuMipmappedArrayCreate)                                        \
    E(cuMipmappedArrayDestroy, 5000, cuMipmappedArrayDestroy)                                      \
    E(cuArrayGetMemoryRequirements, 11060, cuArrayGetMemoryRequirements)                           \
    E(cuMipmappedArrayGetMemoryRequirements, 11060, cuMipmappedArrayGetMemoryRequirements)         \
    E(cuGraphCreate, 10000, cuGraphCreate)                                                         \
    E(cuGraphAddMemAllocNode, 11040, cuGraphAddMemAllocNode)                                       \
    E(cuGraphAddMemFreeNode, 11040, cuGraphAddMemFreeNode)                                         \
    E(cuGraphMemAllocNodeGetParams, 11040, cuGraphMemAllocNodeGetParams)                           \
    E(cuGraphGetNodes, 10000, cuGraphGetNodes)                                                     \
    E(cuGraphNodeGetType, 10000, cuGraphNodeGetType)                                               \
    E(cuGraphInstantiate, 10000, cuGraphInstantiate)                                               \
    E(cuGraphInstantiate, 11000, cuGraphInstantiate_v2)                                            \
    E(cuGraphInstantiate, 12000, cuGraphInstantiateWithFlags)                                      \
    E(cuGraphInstantiateWithFlags, 11040, cuGraphInstantiateWithFlags)                             \
    E(cuGraphExecDestroy, 10000, cuGraphExecDestroy)                                               \
    E(cuGraphDestroy, 10000, cuGraphDestroy)                                                       \
    E(cuDeviceGraphMemTrim, 11040, cuDeviceGraphMemTrim)                                           \
    E(cuDeviceGetGraphMemAttribute, 11040, cuDeviceGetGraphMemAttribute)

/* With a form for programs whose default stream is their thread's own. */
#define CUDA_MEMORY_STREAM_POINTS(E)                                                               \
    E(cuMemAllocAsync, 11020, cuMemAllocAsync)                                                     \
    E(cuMemAllocFromPoolAsync, 11020, cuMemAllocFromPoolAsync)                                     \
    E(cuMemFreeAsync, 11020, cuMemFreeAsync)                                                       \
    E(cuGraphInstantiateWithParams, 12000, cuGraphInstantiateWithParams)                           \
    E(cuGraphUpload, 11010, cuGraphUpload)

#endif
