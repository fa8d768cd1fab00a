/* Takes device memory by one family of CUDA's functions, reached in one way at one time, until it is refused.
 *
 *   families HOW WHEN FAMILY CHUNK      CHUNK in MiB
 *
 * HOW: linked, dlsym or proc (cuGetProcAddress). WHEN: main, constructor (before main) or child (after a fork).
 * It prints "full held=BYTES code=CODE untouched=1", waits for a line, gives everything back and prints "freed". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 8192 };
#define SENTINEL UINT64_C(0x5a5a5a5a5a5a5a5a)

struct location { int type, id; };
struct prop { int type, handles; struct location at; void *meta; uint64_t flags; };
struct pool_props { int type, handles; struct location at; void *security; size_t most; unsigned char rest[56]; };
struct alloc_node { struct pool_props pool; void *access; size_t accesses, bytes; uint64_t address; };
struct flat { size_t w, h; unsigned format, channels; };
struct deep { size_t w, h, d; unsigned format, channels, flags; };
struct flat1 { unsigned w, h, format, channels; };
struct deep1 { unsigned w, h, d, format, channels, flags; };
struct instantiate { uint64_t flags; void *stream, *node; int result; };
typedef uint64_t u64;

/* Function, the name that cuGetProcAddress knows, the version that means it, flags (2: the thread's own stream). */
#define FUNCTIONS(F) \
    F(cuInit, "cuInit", 2000, 0, (unsigned)) \
    F(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", 7000, 0, (void **, int)) \
    F(cuDevicePrimaryCtxRelease_v2, "cuDevicePrimaryCtxRelease", 11000, 0, (int)) \
    F(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease", 7000, 0, (int)) \
    F(cuDevicePrimaryCtxReset_v2, "cuDevicePrimaryCtxReset", 11000, 0, (int)) \
    F(cuDevicePrimaryCtxReset, "cuDevicePrimaryCtxReset", 7000, 0, (int)) \
    F(cuCtxCreate_v2, "cuCtxCreate", 3020, 0, (void **, unsigned, int)) \
    F(cuCtxDestroy_v2, "cuCtxDestroy", 4000, 0, (void *)) \
    F(cuCtxDestroy, "cuCtxDestroy", 2000, 0, (void *)) \
    F(cuCtxSetCurrent, "cuCtxSetCurrent", 4000, 0, (void *)) \
    F(cuCtxSynchronize, "cuCtxSynchronize", 2000, 0, (void)) \
    F(cuCtxSynchronize_v2, "cuCtxSynchronize", 13000, 0, (void *)) \
    F(cuStreamCreate, "cuStreamCreate", 2000, 0, (void **, unsigned)) \
    F(cuStreamSynchronize, "cuStreamSynchronize", 2000, 0, (void *)) \
    F(cuStreamSynchronize_ptsz, "cuStreamSynchronize", 7000, 2, (void *)) \
    F(cuEventCreate, "cuEventCreate", 2000, 0, (void **, unsigned)) \
    F(cuEventRecord, "cuEventRecord", 2000, 0, (void *, void *)) \
    F(cuEventSynchronize, "cuEventSynchronize", 2000, 0, (void *)) \
    F(cuStreamBeginCapture_v2, "cuStreamBeginCapture", 10010, 0, (void *, int)) \
    F(cuStreamEndCapture, "cuStreamEndCapture", 10000, 0, (void *, void **)) \
    F(cuMemGetInfo, "cuMemGetInfo", 2000, 0, (unsigned *, unsigned *)) \
    F(cuMemGetInfo_v2, "cuMemGetInfo", 3020, 0, (size_t *, size_t *)) \
    F(cuDeviceTotalMem, "cuDeviceTotalMem", 2000, 0, (unsigned *, int)) \
    F(cuDeviceTotalMem_v2, "cuDeviceTotalMem", 3020, 0, (size_t *, int)) \
    F(cuMemAlloc, "cuMemAlloc", 2000, 0, (unsigned *, unsigned)) \
    F(cuMemAlloc_v2, "cuMemAlloc", 3020, 0, (u64 *, size_t)) \
    F(cuMemAllocPitch, "cuMemAllocPitch", 2000, 0, (unsigned *, unsigned *, unsigned, unsigned, unsigned)) \
    F(cuMemAllocPitch_v2, "cuMemAllocPitch", 3020, 0, (u64 *, size_t *, size_t, size_t, unsigned)) \
    F(cuMemAllocManaged, "cuMemAllocManaged", 6000, 0, (u64 *, size_t, unsigned)) \
    F(cuMemFree, "cuMemFree", 2000, 0, (unsigned)) \
    F(cuMemFree_v2, "cuMemFree", 3020, 0, (u64)) \
    F(cuMemHostAlloc, "cuMemHostAlloc", 2020, 0, (void **, size_t, unsigned)) \
    F(cuMemFreeHost, "cuMemFreeHost", 2000, 0, (void *)) \
    F(cuMemAllocAsync, "cuMemAllocAsync", 11020, 0, (u64 *, size_t, void *)) \
    F(cuMemAllocAsync_ptsz, "cuMemAllocAsync", 11020, 2, (u64 *, size_t, void *)) \
    F(cuMemAllocFromPoolAsync, "cuMemAllocFromPoolAsync", 11020, 0, (u64 *, size_t, void *, void *)) \
    F(cuMemAllocFromPoolAsync_ptsz, "cuMemAllocFromPoolAsync", 11020, 2, (u64 *, size_t, void *, void *)) \
    F(cuMemFreeAsync, "cuMemFreeAsync", 11020, 0, (u64, void *)) \
    F(cuMemFreeAsync_ptsz, "cuMemFreeAsync", 11020, 2, (u64, void *)) \
    F(cuMemPoolCreate, "cuMemPoolCreate", 11020, 0, (void **, struct pool_props *)) \
    F(cuMemPoolDestroy, "cuMemPoolDestroy", 11020, 0, (void *)) \
    F(cuMemPoolTrimTo, "cuMemPoolTrimTo", 11020, 0, (void *, size_t)) \
    F(cuMemPoolSetAttribute, "cuMemPoolSetAttribute", 11020, 0, (void *, int, void *)) \
    F(cuDeviceGetMemPool, "cuDeviceGetMemPool", 11020, 0, (void **, int)) \
    F(cuMemAddressReserve, "cuMemAddressReserve", 10020, 0, (u64 *, size_t, size_t, u64, u64)) \
    F(cuMemCreate, "cuMemCreate", 10020, 0, (u64 *, size_t, struct prop *, u64)) \
    F(cuMemRelease, "cuMemRelease", 10020, 0, (u64)) \
    F(cuMemMap, "cuMemMap", 10020, 0, (u64, size_t, size_t, u64, u64)) \
    F(cuMemUnmap, "cuMemUnmap", 10020, 0, (u64, size_t)) \
    F(cuMemRetainAllocationHandle, "cuMemRetainAllocationHandle", 11000, 0, (u64 *, void *)) \
    F(cuMemExportToShareableHandle, "cuMemExportToShareableHandle", 10020, 0, (void *, u64, int, u64)) \
    F(cuMemImportFromShareableHandle, "cuMemImportFromShareableHandle", 10020, 0, (u64 *, void *, int)) \
    F(cuArrayCreate, "cuArrayCreate", 2000, 0, (void **, struct flat1 *)) \
    F(cuArrayCreate_v2, "cuArrayCreate", 3020, 0, (void **, struct flat *)) \
    F(cuArray3DCreate, "cuArray3DCreate", 2000, 0, (void **, struct deep1 *)) \
    F(cuArray3DCreate_v2, "cuArray3DCreate", 3020, 0, (void **, struct deep *)) \
    F(cuArrayDestroy, "cuArrayDestroy", 2000, 0, (void *)) \
    F(cuMipmappedArrayCreate, "cuMipmappedArrayCreate", 5000, 0, (void **, struct deep *, unsigned)) \
    F(cuMipmappedArrayDestroy, "cuMipmappedArrayDestroy", 5000, 0, (void *)) \
    F(cuGraphCreate, "cuGraphCreate", 10000, 0, (void **, unsigned)) \
    F(cuGraphAddMemAllocNode, "cuGraphAddMemAllocNode", 11040, 0, (void **, void *, void **, size_t, struct alloc_node *)) \
    F(cuGraphAddMemFreeNode, "cuGraphAddMemFreeNode", 11040, 0, (void **, void *, void **, size_t, u64)) \
    F(cuGraphInstantiate, "cuGraphInstantiate", 10000, 0, (void **, void *, void **, char *, size_t)) \
    F(cuGraphInstantiate_v2, "cuGraphInstantiate", 11000, 0, (void **, void *, void **, char *, size_t)) \
    F(cuGraphInstantiateWithFlags, "cuGraphInstantiate", 12000, 0, (void **, void *, u64)) \
    F(cuGraphInstantiateWithParams, "cuGraphInstantiateWithParams", 12000, 0, (void **, void *, struct instantiate *)) \
    F(cuGraphInstantiateWithParams_ptsz, "cuGraphInstantiateWithParams", 12000, 2, (void **, void *, struct instantiate *)) \
    F(cuGraphLaunch, "cuGraphLaunch", 10000, 0, (void *, void *)) \
    F(cuGraphLaunch_ptsz, "cuGraphLaunch", 10000, 2, (void *, void *)) \
    F(cuGraphUpload, "cuGraphUpload", 11010, 0, (void *, void *)) \
    F(cuGraphUpload_ptsz, "cuGraphUpload", 11010, 2, (void *, void *)) \
    F(cuGraphExecDestroy, "cuGraphExecDestroy", 10000, 0, (void *)) \
    F(cuDeviceGraphMemTrim, "cuDeviceGraphMemTrim", 11040, 0, (int))

#ifdef LINKED
#define DECLARE(name, base, version, flags, parameters) int name parameters;
FUNCTIONS(DECLARE)
#endif
#define POINTER(name, base, version, flags, parameters) static int(*p_##name) parameters;
FUNCTIONS(POINTER)

static void *found(void *at, const char *name) {
    if (at == NULL) exit((printf("not found: %s\n", name), 1));
    return at;
}

static void resolve(const char *how) {
    if (strcmp(how, "linked") == 0) {
#ifdef LINKED
#define LINK(name, base, version, flags, parameters) p_##name = name;
        FUNCTIONS(LINK)
#endif
        return;
    }
    void *library = found(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), "libcuda.so.1");
#define LOOK_UP(name, base, version, flags, parameters) p_##name = (int(*) parameters)found(dlsym(library, #name), #name);
    FUNCTIONS(LOOK_UP)
    if (strcmp(how, "proc") != 0) return;
    int (*get)(const char *, void **, int, u64, int *);
    get = (__typeof__(get))found(dlsym(library, "cuGetProcAddress_v2"), "cuGetProcAddress_v2");
    void *at;
    int status;
#define ASK(name, base, version, flags, parameters) \
    at = NULL; \
    if (get(base, &at, version, flags, &status) != 0) at = NULL; \
    p_##name = (int(*) parameters)found(at, #name);
    FUNCTIONS(ASK)
}

/* ---- the families: each takes one piece, and gives it back ----------------------------------------------------- */

static void *context, *stream, *pool, *event;
static const struct location device0 = {1, 0};

#define TAKE(family) static int take_##family(u64 *out, size_t bytes)
#define GIVE(family) static int give_##family(u64 it)
#define V1(out, call) unsigned at = (unsigned)SENTINEL; int code = call; *out = code == 0 || at != (unsigned)SENTINEL ? at : *out; return code

TAKE(alloc) { return p_cuMemAlloc_v2(out, bytes); }
GIVE(alloc) { return p_cuMemFree_v2(it); }
TAKE(alloc1) { V1(out, p_cuMemAlloc(&at, (unsigned)bytes)); }
GIVE(alloc1) { return p_cuMemFree((unsigned)it); }
TAKE(pitch) { size_t p; return p_cuMemAllocPitch_v2(out, &p, 1 << 20, bytes >> 20, 4); }
#define give_pitch give_alloc
TAKE(pitch1) { unsigned p; V1(out, p_cuMemAllocPitch(&at, &p, 1 << 20, (unsigned)(bytes >> 20), 4)); }
#define give_pitch1 give_alloc1
TAKE(managed) { return p_cuMemAllocManaged(out, bytes, 1); }
#define give_managed give_alloc

TAKE(async) { return p_cuMemAllocAsync(out, bytes, stream); }
GIVE(async) { return p_cuMemFreeAsync(it, stream) + p_cuStreamSynchronize(stream); }
TAKE(async_own) { return p_cuMemAllocAsync_ptsz(out, bytes, NULL); }
GIVE(async_own) { return p_cuMemFreeAsync_ptsz(it, NULL) + p_cuStreamSynchronize_ptsz(NULL); }
TAKE(async_free) { return p_cuMemAllocAsync(out, bytes, NULL); } /* freed as if it were not */
GIVE(async_free) { return p_cuMemFree_v2(it) + p_cuCtxSynchronize(); }
static int make_pool(void) {
    struct pool_props props = {.type = 1, .at = device0};
    return pool == NULL ? p_cuMemPoolCreate(&pool, &props) : 0;
}
TAKE(pool) { return make_pool() ? 1 : p_cuMemAllocFromPoolAsync(out, bytes, pool, stream); }
GIVE(pool) { return p_cuMemFreeAsync(it, stream) + p_cuEventRecord(event, stream) + p_cuEventSynchronize(event); }
TAKE(pool_own) { return make_pool() ? 1 : p_cuMemAllocFromPoolAsync_ptsz(out, bytes, pool, NULL); }
GIVE(pool_own) { return p_cuMemFreeAsync_ptsz(it, NULL) + p_cuMemPoolTrimTo(pool, 0); }
TAKE(pool_gone) { return make_pool() ? 1 : p_cuMemAllocFromPoolAsync(out, bytes, pool, stream); } /* outlives its pool */
GIVE(pool_gone) {
    int code = pool != NULL ? p_cuMemPoolDestroy(pool) : 0;
    pool = NULL;
    return code + p_cuMemFreeAsync(it, stream);
}

static struct prop located(int type) { return (struct prop){.type = 1, .handles = 1, .at = {type, 0}}; }
TAKE(vmm) { struct prop p = located(1); return p_cuMemCreate(out, bytes, &p, 0); }
GIVE(vmm) { return p_cuMemRelease(it); }
/* Mapped, and released at once: it is there until it is unmapped. */
static size_t piece;
TAKE(mapped) {
    struct prop p = located(1);
    u64 handle = SENTINEL, at;
    int code = p_cuMemCreate(&handle, piece = bytes, &p, 0);
    if (code != 0) return *out = handle, code;
    code = p_cuMemAddressReserve(&at, bytes, 0, 0, 0) + p_cuMemMap(at, bytes, 0, handle, 0);
    *out = at;
    return code + p_cuMemRelease(handle);
}
GIVE(mapped) {
    u64 handle;
    int code = p_cuMemRetainAllocationHandle(&handle, (void *)(uintptr_t)it);
    return code + p_cuMemUnmap(it, piece) + p_cuMemRelease(handle);
}
TAKE(shared) { /* exported and imported by the same process: one piece */
    struct prop p = located(1);
    u64 again;
    int fd, code = p_cuMemCreate(out, bytes, &p, 0);
    if (code != 0) return code;
    code = p_cuMemExportToShareableHandle(&fd, *out, 1, 0);
    code += p_cuMemImportFromShareableHandle(&again, (void *)(intptr_t)fd, 1) + p_cuMemRelease(again);
    close(fd);
    return code;
}
#define give_shared give_vmm

TAKE(array1) { struct flat1 d = {1 << 16, (unsigned)(bytes >> 18), 0x20, 1}; void *a = (void *)SENTINEL; int code = p_cuArrayCreate(&a, &d); *out = (u64)a; return code; }
GIVE(array1) { return p_cuArrayDestroy((void *)it); }
TAKE(array) { struct flat d = {1 << 16, bytes >> 18, 0x20, 1}; return p_cuArrayCreate_v2((void **)out, &d); }
#define give_array give_array1
TAKE(deep1) { struct deep1 d = {1 << 12, 1 << 8, (unsigned)(bytes >> 22), 0x20, 1, 0}; return p_cuArray3DCreate((void **)out, &d); }
#define give_deep1 give_array1
TAKE(deep) { struct deep d = {1 << 12, 1 << 8, bytes >> 22, 0x20, 1, 0}; return p_cuArray3DCreate_v2((void **)out, &d); }
#define give_deep give_array1
TAKE(mipmap) { struct deep d = {1 << 16, bytes >> 18, 0, 0x20, 1, 0}; return p_cuMipmappedArrayCreate((void **)out, &d, 1); }
GIVE(mipmap) { return p_cuMipmappedArrayDestroy((void *)it); }

/* One graph a piece, which does not free it, so that the next finds nothing idle. */
static void *new_graph(size_t bytes) {
    void *graph = NULL, *node;
    struct alloc_node a = {.pool = {.type = 1, .at = device0}, .bytes = bytes};
    if (p_cuGraphCreate(&graph, 0) != 0 || p_cuGraphAddMemAllocNode(&node, graph, NULL, 0, &a) != 0) return NULL;
    return graph;
}
#define GRAPH(family, make, launch) \
    TAKE(family) { \
        void *exec = NULL, *graph = new_graph(bytes); \
        struct instantiate p = {0}; \
        (void)p; \
        if (graph == NULL || make != 0) return -1; \
        int code = launch; \
        if (code == 0) *out = (u64)exec; \
        return code; \
    } \
    GIVE(family) { (void)it; return 0; }
GRAPH(graph, p_cuGraphInstantiateWithFlags(&exec, graph, 0), p_cuGraphLaunch(exec, stream))
GRAPH(graph1, p_cuGraphInstantiate(&exec, graph, NULL, NULL, 0), p_cuGraphLaunch(exec, stream))
GRAPH(graph2, p_cuGraphInstantiate_v2(&exec, graph, NULL, NULL, 0), p_cuGraphLaunch_ptsz(exec, NULL))
GRAPH(graph3, p_cuGraphInstantiateWithParams(&exec, graph, &p), p_cuGraphUpload(exec, stream) ?: p_cuGraphLaunch(exec, stream))
GRAPH(graph4, p_cuGraphInstantiateWithParams_ptsz(&exec, graph, &p), p_cuGraphUpload_ptsz(exec, NULL) ?: p_cuGraphLaunch_ptsz(exec, NULL))
TAKE(captured) { /* the allocation of a stream becomes a node */
    void *graph, *exec;
    u64 at;
    int code = p_cuStreamBeginCapture_v2(stream, 0);
    code += p_cuMemAllocAsync(&at, bytes, stream) + p_cuStreamEndCapture(stream, &graph);
    if (code != 0 || p_cuGraphInstantiateWithFlags(&exec, graph, 0) != 0) return -1;
    code = p_cuGraphLaunch(exec, stream);
    if (code == 0) *out = (u64)exec;
    return code;
}
GIVE(captured) { (void)it; return 0; }

/* The end of a context takes all that is in it. */
#define ENDS(family) GIVE(family) { (void)it; return 0; }
#define take_destroyed take_alloc
ENDS(destroyed)
#define take_destroyed1 take_array
ENDS(destroyed1)
#define take_reset take_alloc
ENDS(reset)
#define take_reset1 take_pitch
ENDS(reset1)
#define take_released take_managed
ENDS(released)
#define take_released1 take_mipmap
ENDS(released1)

#define FAMILIES(X) \
    X(alloc) X(alloc1) X(pitch) X(pitch1) X(managed) X(async) X(async_own) X(async_free) X(pool) X(pool_own) X(pool_gone) \
    X(vmm) X(mapped) X(shared) X(array) X(array1) X(deep) X(deep1) X(mipmap) X(graph) X(graph1) X(graph2) X(graph3) \
    X(graph4) X(captured) X(destroyed) X(destroyed1) X(reset) X(reset1) X(released) X(released1)
#define ROW(family) {#family, take_##family, give_##family},
static const struct { const char *name; int (*take)(u64 *, size_t), (*give)(u64); } families[] = {FAMILIES(ROW)};

/* What is given back only with something larger. */
static int end(const char *family) {
    if (strncmp(family, "graph", 5) == 0 || strcmp(family, "captured") == 0) {
        return 0; /* what no node frees is there until the process ends */
    }
    if (strcmp(family, "destroyed") == 0) return p_cuCtxDestroy_v2(context);
    if (strcmp(family, "destroyed1") == 0) return p_cuCtxDestroy(context);
    if (strcmp(family, "reset") == 0) return p_cuDevicePrimaryCtxReset_v2(0);
    if (strcmp(family, "reset1") == 0) return p_cuDevicePrimaryCtxReset(0);
    if (strcmp(family, "released") == 0) return p_cuDevicePrimaryCtxRelease_v2(0);
    if (strcmp(family, "released1") == 0) return p_cuDevicePrimaryCtxRelease(0);
    return 0;
}

static int start(const char *family) {
    int code = p_cuInit(0);
    if (code == 0 && strncmp(family, "destroyed", 9) == 0) code = p_cuCtxCreate_v2(&context, 0, 0);
    else if (code == 0) code = p_cuDevicePrimaryCtxRetain(&context, 0);
    if (code == 0) code = p_cuCtxSetCurrent(context);
    if (code == 0) code = p_cuStreamCreate(&stream, 0);
    return code == 0 ? p_cuEventCreate(&event, 0) : code;
}

static int body(const char *name, size_t chunk) {
    static u64 held[MOST];
    size_t f = 0, count = 0, free_bytes, total, asked = chunk;
    while (strcmp(families[f].name, name) != 0)
        if (++f == sizeof families / sizeof *families) return puts("no such family"), 2;
    if (start(name) != 0) return puts("no device"), 1;
    u64 bytes = 0, at;
    int code = 0, untouched = 1;
    while (code == 0 && count < MOST) {
        at = SENTINEL;
        code = families[f].take(&at, asked);
        if (code == 0) held[count++] = at, bytes += asked;
        else untouched = at == SENTINEL || at == (unsigned)SENTINEL;
    }
    p_cuMemGetInfo_v2(&free_bytes, &total);
    size_t all;
    p_cuDeviceTotalMem_v2(&all, 0);
    printf("full held=%llu code=%d untouched=%d free=%zu total=%zu all=%zu\n", (unsigned long long)bytes, code, untouched,
           free_bytes, total, all);
    fflush(stdout);
    while (getchar() != '\n' && !feof(stdin)) continue;
    int bad = 0;
    while (count > 0) bad += families[f].give(held[--count]) != 0;
    printf("freed bad=%d\n", bad + (end(name) != 0));
    fflush(stdout);
    while (getchar() != '\n' && !feof(stdin)) continue;
    return 0;
}

static int run(char **argv) {
    int status;
    resolve(argv[1]);
    size_t chunk = (size_t)atoi(argv[4]) << 20;
    if (strcmp(argv[2], "child") != 0) return body(argv[3], chunk);
    p_cuMemGetInfo_v2(NULL, NULL); /* the guard has looked at its slice before the fork */
    pid_t child = fork();
    if (child == 0) {
        status = body(argv[3], chunk);
        fflush(stdout);
        _exit(status);
    }
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

__attribute__((constructor)) static void early(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[2], "constructor") == 0) exit(run(argv));
}

int main(int argc, char **argv) { return argc == 5 ? run(argv) : 2; }
