/* libcuda.so.1 over the emulated machine: cuGetProcAddress. */
#include <stddef.h>
#include <string.h>

#include "cuda_launch.h"
#include "cuda_memory.h"
#include "cuda_parts.h"

/* Only their addresses are of interest here. */
#define DECLARE(name, since, function) void function(void);
#define DECLARE_BOTH(name, since, function) void function(void); void function##_ptsz(void);
CUDA cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags,
                         CUdriverProcAddressQueryResult *status);
CUDA cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags);
CUDA_ENTRY_POINTS(DECLARE) CUDA_LAUNCH_POINTS(DECLARE) CUDA_STREAM_POINTS(DECLARE_BOTH)
CUDA_MEMORY_POINTS(DECLARE) CUDA_MEMORY_STREAM_POINTS(DECLARE_BOTH)

static const struct {
    const char *name;
    int since;
    void *function, *per_thread; /* NULL: the default stream is nothing to it */
} entry_points[] = {
#define ENTRY(name, since, function) {#name, since, (void *)function, NULL},
#define BOTH(name, since, function) {#name, since, (void *)function, (void *)function##_ptsz},
    CUDA_ENTRY_POINTS(ENTRY) CUDA_LAUNCH_POINTS(ENTRY) CUDA_STREAM_POINTS(BOTH)
    CUDA_MEMORY_POINTS(ENTRY) CUDA_MEMORY_STREAM_POINTS(BOTH)
    {"cuGetProcAddress", 11030, (void *)cuGetProcAddress, NULL},
    {"cuGetProcAddress", 12000, (void *)cuGetProcAddress_v2, NULL},
};

/* The newest form of the name that the version knows. The flags
 * choose what a NULL stream means. That no form is found is no failure of the
 * call: it succeeds with NULL, and the status says why. */
CUresult cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags,
                             CUdriverProcAddressQueryResult *status) {
    if (symbol == NULL || out == NULL || flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    const struct hal_machine *m = emulator_machine();
    if (m != NULL && m->cuda_version >= 13000 && version > (int)m->cuda_version)
        return CUDA_ERROR_INVALID_VALUE; /* cuda.h says this from 13.0 on */
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    *out = NULL;
    for (size_t i = 0; i < sizeof entry_points / sizeof *entry_points; i++) {
        if (strcmp(entry_points[i].name, symbol) != 0) continue;
        bool own = flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM && entry_points[i].per_thread != NULL;
        if (version >= entry_points[i].since)
            *out = own ? entry_points[i].per_thread : entry_points[i].function;
        found = *out != NULL ? CU_GET_PROC_ADDRESS_SUCCESS
                             : CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
    }
    if (status != NULL) *status = found;
    return CUDA_SUCCESS;
}

/* The form of CUDA 11 has no status, and fails instead. */
CUresult cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags) {
    TRY(cuGetProcAddress_v2(symbol, out, version, flags, NULL));
    return *out == NULL ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}
