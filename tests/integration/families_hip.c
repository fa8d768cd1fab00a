/* Takes device memory by one family of HIP's functions, reached in one way at one time, until it is refused.
 *
 *   families_hip HOW WHEN FAMILY CHUNK LIBRARY      CHUNK in MiB
 *
 * HOW: linked, dlsym or proc (hipGetProcAddress). WHEN: main, constructor (before main) or child (after a fork).
 * It prints "full held=BYTES code=CODE untouched=1 ...", waits for a line, gives everything back and prints
 * "freed". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 8192, VERSION = 60000000 };
#define SENTINEL ((void *)UINT64_C(0x5a5a5a5a5a5a5a5a))

struct location { int type, id; };
struct prop { int type, handles; struct location at; void *meta; uint64_t flags; };
struct pool_props { int type, handles; struct location at; void *security; size_t most; unsigned char rest[56]; };
struct alloc_node { struct pool_props pool; void *access; size_t accesses, bytes; void *address; };
struct channels { int x, y, z, w, f; };
struct extent { size_t w, h, d; };
struct pitched { void *address; size_t pitch, w, h; };
struct flat { size_t w, h; unsigned format, channels; };
struct deep { size_t w, h, d; unsigned format, channels, flags; };
struct instantiate { void *node; unsigned long long flags; int result; void *stream; };

#define FUNCTIONS(F) \
    F(hipInit, (unsigned)) \
    F(hipSetDevice, (int)) \
    F(hipGetLastError, (void)) \
    F(hipDeviceSynchronize, (void)) \
    F(hipCtxSynchronize, (void)) \
    F(hipDeviceReset, (void)) \
    F(hipDevicePrimaryCtxReset, (int)) \
    F(hipStreamCreate, (void **)) \
    F(hipStreamSynchronize, (void *)) \
    F(hipStreamSynchronize_spt, (void *)) \
    F(hipEventCreate, (void **)) \
    F(hipEventRecord, (void *, void *)) \
    F(hipEventSynchronize, (void *)) \
    F(hipStreamBeginCapture, (void *, int)) \
    F(hipStreamEndCapture, (void *, void **)) \
    F(hipMemGetInfo, (size_t *, size_t *)) \
    F(hipDeviceTotalMem, (size_t *, int)) \
    F(hipGetDeviceProperties, (void *, int)) \
    F(hipGetDevicePropertiesR0000, (void *, int)) \
    F(hipGetDevicePropertiesR0600, (void *, int)) \
    F(hipMalloc, (void **, size_t)) \
    F(hipExtMallocWithFlags, (void **, size_t, unsigned)) \
    F(hipMallocManaged, (void **, size_t, unsigned)) \
    F(hipMallocPitch, (void **, size_t *, size_t, size_t)) \
    F(hipMemAllocPitch, (void **, size_t *, size_t, size_t, unsigned)) \
    F(hipMalloc3D, (struct pitched *, struct extent)) \
    F(hipFree, (void *)) \
    F(hipMallocAsync, (void **, size_t, void *)) \
    F(hipMallocFromPoolAsync, (void **, size_t, void *, void *)) \
    F(hipFreeAsync, (void *, void *)) \
    F(hipMemPoolCreate, (void **, struct pool_props *)) \
    F(hipMemPoolDestroy, (void *)) \
    F(hipMemPoolTrimTo, (void *, size_t)) \
    F(hipMemAddressReserve, (void **, size_t, size_t, void *, unsigned long long)) \
    F(hipMemCreate, (void **, size_t, struct prop *, unsigned long long)) \
    F(hipMemRelease, (void *)) \
    F(hipMemMap, (void *, size_t, size_t, void *, unsigned long long)) \
    F(hipMemUnmap, (void *, size_t)) \
    F(hipMemRetainAllocationHandle, (void **, void *)) \
    F(hipMemExportToShareableHandle, (void *, void *, int, unsigned long long)) \
    F(hipMemImportFromShareableHandle, (void **, void *, int)) \
    F(hipMallocArray, (void **, struct channels *, size_t, size_t, unsigned)) \
    F(hipMalloc3DArray, (void **, struct channels *, struct extent, unsigned)) \
    F(hipArrayCreate, (void **, struct flat *)) \
    F(hipArray3DCreate, (void **, struct deep *)) \
    F(hipMallocMipmappedArray, (void **, struct channels *, struct extent, unsigned, unsigned)) \
    F(hipMipmappedArrayCreate, (void **, struct deep *, unsigned)) \
    F(hipFreeArray, (void *)) \
    F(hipArrayDestroy, (void *)) \
    F(hipFreeMipmappedArray, (void *)) \
    F(hipMipmappedArrayDestroy, (void *)) \
    F(hipGraphCreate, (void **, unsigned)) \
    F(hipGraphAddMemAllocNode, (void **, void *, void **, size_t, struct alloc_node *)) \
    F(hipGraphInstantiate, (void **, void *, void **, char *, size_t)) \
    F(hipGraphInstantiateWithFlags, (void **, void *, unsigned long long)) \
    F(hipGraphInstantiateWithParams, (void **, void *, struct instantiate *)) \
    F(hipGraphUpload, (void *, void *)) \
    F(hipGraphLaunch, (void *, void *)) \
    F(hipGraphLaunch_spt, (void *, void *)) \
    F(hipGraphExecDestroy, (void *)) \
    F(hipDeviceGraphMemTrim, (int))

#ifdef LINKED
#define DECLARE(name, parameters) int name parameters;
FUNCTIONS(DECLARE)
#endif
#define POINTER(name, parameters) static int(*p_##name) parameters;
FUNCTIONS(POINTER)

static void *found(void *at, const char *name) {
    if (at == NULL) exit((printf("not found: %s\n", name), 1));
    return at;
}

static void resolve(const char *how, const char *soname) {
    if (strcmp(how, "linked") == 0) {
#ifdef LINKED
#define LINK(name, parameters) p_##name = name;
        FUNCTIONS(LINK)
#endif
        return;
    }
    void *library = found(dlopen(soname, RTLD_NOW | RTLD_LOCAL), soname);
#define LOOK_UP(name, parameters) p_##name = (int(*) parameters)found(dlsym(library, #name), #name);
    FUNCTIONS(LOOK_UP)
    if (strcmp(how, "proc") != 0) return;
    int (*get)(const char *, void **, int, uint64_t, int *);
    get = (__typeof__(get))found(dlsym(library, "hipGetProcAddress"), "hipGetProcAddress");
    void *at;
    int status;
#define ASK(name, parameters) \
    at = NULL; \
    if (get(#name, &at, VERSION, 0, &status) != 0) at = NULL; \
    p_##name = (int(*) parameters)found(at, #name);
    FUNCTIONS(ASK)
}

/* ---- the families: each takes one piece, and gives it back ----------------------------------------------------- */

static void *stream, *pool, *event;
static const struct location device0 = {1, 0};
static struct channels one32 = {32, 0, 0, 0, 2};
static size_t piece;

#define TAKE(family) static int take_##family(void **out, size_t bytes)
#define GIVE(family) static int give_##family(void *it)

TAKE(alloc) { return p_hipMalloc(out, bytes); }
GIVE(alloc) { return p_hipFree(it); }
TAKE(flags) { return p_hipExtMallocWithFlags(out, bytes, 1); }
#define give_flags give_alloc
TAKE(managed) { return p_hipMallocManaged(out, bytes, 1); }
#define give_managed give_alloc
TAKE(pitch) { size_t p; return p_hipMallocPitch(out, &p, 1 << 20, bytes >> 20); }
#define give_pitch give_alloc
TAKE(pitch2) { size_t p; return p_hipMemAllocPitch(out, &p, 1 << 20, bytes >> 20, 4); }
#define give_pitch2 give_alloc
TAKE(solid) {
    struct pitched p = {.address = SENTINEL};
    int code = p_hipMalloc3D(&p, (struct extent){1 << 20, 2, bytes >> 21});
    *out = p.address;
    return code;
}
#define give_solid give_alloc

TAKE(async) { return p_hipMallocAsync(out, bytes, stream); }
GIVE(async) { return p_hipFreeAsync(it, stream) + p_hipStreamSynchronize(stream); }
TAKE(async_own) { return p_hipMallocAsync(out, bytes, NULL); }
GIVE(async_own) { return p_hipFreeAsync(it, NULL) + p_hipStreamSynchronize_spt(NULL); }
TAKE(async_free) { return p_hipMallocAsync(out, bytes, NULL); } /* freed as if it were not */
GIVE(async_free) { return p_hipFree(it) + p_hipDeviceSynchronize() + p_hipCtxSynchronize(); }
static int make_pool(void) {
    struct pool_props props = {.type = 1, .at = device0};
    return pool == NULL ? p_hipMemPoolCreate(&pool, &props) : 0;
}
TAKE(pool) { return make_pool() ? 1 : p_hipMallocFromPoolAsync(out, bytes, pool, stream); }
GIVE(pool) { return p_hipFreeAsync(it, stream) + p_hipEventRecord(event, stream) + p_hipEventSynchronize(event); }
TAKE(pool_trim) { return make_pool() ? 1 : p_hipMallocFromPoolAsync(out, bytes, pool, NULL); }
GIVE(pool_trim) { return p_hipFreeAsync(it, NULL) + p_hipMemPoolTrimTo(pool, 0); }
TAKE(pool_gone) { return make_pool() ? 1 : p_hipMallocFromPoolAsync(out, bytes, pool, stream); } /* outlives it */
GIVE(pool_gone) {
    int code = pool != NULL ? p_hipMemPoolDestroy(pool) : 0;
    pool = NULL;
    return code + p_hipFreeAsync(it, stream);
}

static struct prop located(int type) { return (struct prop){.type = 1, .handles = 1, .at = {type, 0}}; }
TAKE(vmm) { struct prop p = located(1); return p_hipMemCreate(out, bytes, &p, 0); }
GIVE(vmm) { return p_hipMemRelease(it); }
/* Mapped, and released at once: it is there until it is unmapped. */
TAKE(mapped) {
    struct prop p = located(1);
    void *handle = SENTINEL, *at;
    int code = p_hipMemCreate(&handle, piece = bytes, &p, 0);
    if (code != 0) return *out = handle, code;
    code = p_hipMemAddressReserve(&at, bytes, 0, 0, 0) + p_hipMemMap(at, bytes, 0, handle, 0);
    *out = at;
    return code + p_hipMemRelease(handle);
}
GIVE(mapped) {
    void *handle;
    int code = p_hipMemRetainAllocationHandle(&handle, it);
    return code + p_hipMemUnmap(it, piece) + p_hipMemRelease(handle);
}
TAKE(shared) { /* exported and imported by the same process: one piece */
    struct prop p = located(1);
    void *again;
    int fd, code = p_hipMemCreate(out, bytes, &p, 0);
    if (code != 0) return code;
    code = p_hipMemExportToShareableHandle(&fd, *out, 1, 0);
    code += p_hipMemImportFromShareableHandle(&again, (void *)(intptr_t)fd, 1) + p_hipMemRelease(again);
    close(fd);
    return code;
}
#define give_shared give_vmm

TAKE(array) { return p_hipMallocArray(out, &one32, 1 << 16, bytes >> 18, 0); }
GIVE(array) { return p_hipFreeArray(it); }
TAKE(array3) { return p_hipMalloc3DArray(out, &one32, (struct extent){1 << 12, 1 << 8, bytes >> 22}, 0); }
#define give_array3 give_array
TAKE(flat) { struct flat d = {1 << 16, bytes >> 18, 0x20, 1}; return p_hipArrayCreate(out, &d); }
GIVE(flat) { return p_hipArrayDestroy(it); }
TAKE(deep) { struct deep d = {1 << 12, 1 << 8, bytes >> 22, 0x20, 1, 0}; return p_hipArray3DCreate(out, &d); }
#define give_deep give_flat
TAKE(mipmap) { return p_hipMallocMipmappedArray(out, &one32, (struct extent){1 << 16, bytes >> 18, 0}, 1, 0); }
GIVE(mipmap) { return p_hipFreeMipmappedArray(it); }
TAKE(mipmap2) { struct deep d = {1 << 16, bytes >> 18, 0, 0x20, 1, 0}; return p_hipMipmappedArrayCreate(out, &d, 1); }
GIVE(mipmap2) { return p_hipMipmappedArrayDestroy(it); }

/* One graph a piece, which does not free it, so that the next finds nothing idle. */
static void *new_graph(size_t bytes) {
    void *graph = NULL, *node;
    struct alloc_node a = {.pool = {.type = 1, .at = device0}, .bytes = bytes};
    if (p_hipGraphCreate(&graph, 0) != 0 || p_hipGraphAddMemAllocNode(&node, graph, NULL, 0, &a) != 0) return NULL;
    return graph;
}
#define GRAPH(family, make, launch) \
    TAKE(family) { \
        void *exec = NULL, *graph = new_graph(bytes); \
        struct instantiate p = {0}; \
        (void)p; \
        if (graph == NULL || make != 0) return -1; \
        int code = launch; \
        if (code == 0) *out = exec; \
        return code; \
    } \
    GIVE(family) { (void)it; return 0; }
GRAPH(graph, p_hipGraphInstantiateWithFlags(&exec, graph, 0), p_hipGraphLaunch(exec, stream))
GRAPH(graph1, p_hipGraphInstantiate(&exec, graph, NULL, NULL, 0), p_hipGraphLaunch_spt(exec, NULL))
GRAPH(graph2, p_hipGraphInstantiateWithParams(&exec, graph, &p), p_hipGraphUpload(exec, stream) ?: p_hipGraphLaunch(exec, stream))
TAKE(captured) { /* the allocation of a stream becomes a node */
    void *graph, *exec, *at;
    int code = p_hipStreamBeginCapture(stream, 0);
    code += p_hipMallocAsync(&at, bytes, stream) + p_hipStreamEndCapture(stream, &graph);
    if (code != 0 || p_hipGraphInstantiateWithFlags(&exec, graph, 0) != 0) return -1;
    code = p_hipGraphLaunch(exec, stream);
    if (code == 0) *out = exec;
    return code;
}
GIVE(captured) { (void)it; return 0; }

/* A reset takes all that is on the device. */
#define ENDS(family) GIVE(family) { (void)it; return 0; }
#define take_reset take_alloc
ENDS(reset)
#define take_reset_array take_array
ENDS(reset_array)
#define take_reset_pool take_async
ENDS(reset_pool)
#define take_reset_primary take_pitch
ENDS(reset_primary)

#define FAMILIES(X) \
    X(alloc) X(flags) X(managed) X(pitch) X(pitch2) X(solid) X(async) X(async_own) X(async_free) X(pool) X(pool_trim) \
    X(pool_gone) X(vmm) X(mapped) X(shared) X(array) X(array3) X(flat) X(deep) X(mipmap) X(mipmap2) X(graph) X(graph1) \
    X(graph2) X(captured) X(reset) X(reset_array) X(reset_pool) X(reset_primary)
#define ROW(family) {#family, take_##family, give_##family},
static const struct { const char *name; int (*take)(void **, size_t), (*give)(void *); } families[] = {FAMILIES(ROW)};

/* What is given back only with something larger. */
static int end(const char *family) {
    if (strcmp(family, "reset_primary") == 0) return p_hipDevicePrimaryCtxReset(0);
    return strncmp(family, "reset", 5) == 0 ? p_hipDeviceReset() : 0;
}

static int start(void) {
    int code = p_hipInit(0);
    if (code == 0) code = p_hipSetDevice(0);
    if (code == 0) code = p_hipStreamCreate(&stream);
    return code == 0 ? p_hipEventCreate(&event) : code;
}

static size_t total_in(int (*ask)(void *, int), size_t at) {
    static char properties[4096];
    size_t total = 0;
    if (ask(properties, 0) == 0) memcpy(&total, properties + at, sizeof total);
    return total;
}

static int body(const char *name, size_t chunk) {
    static void *held[MOST];
    size_t f = 0, count = 0, free_bytes = 1, total, all, bytes = 0;
    while (strcmp(families[f].name, name) != 0)
        if (++f == sizeof families / sizeof *families) return puts("no such family"), 2;
    if (start() != 0) return puts("no device"), 1;
    int code = 0, untouched = 1;
    while (code == 0 && count < MOST) {
        void *at = SENTINEL;
        code = families[f].take(&at, chunk);
        if (code == 0) held[count++] = at, bytes += chunk;
        else untouched = at == SENTINEL;
    }
    int last = p_hipGetLastError();
    p_hipMemGetInfo(&free_bytes, &total);
    p_hipDeviceTotalMem(&all, 0);
    int same = total_in(p_hipGetDeviceProperties, 256) == all && total_in(p_hipGetDevicePropertiesR0000, 256) == all &&
               total_in(p_hipGetDevicePropertiesR0600, 288) == all;
    printf("full held=%zu code=%d last=%d untouched=%d free=%zu total=%zu all=%zu same=%d\n", bytes, code, last,
           untouched, free_bytes, total, all, same);
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
    resolve(argv[1], argv[5]);
    size_t chunk = (size_t)atoi(argv[4]) << 20;
    if (strcmp(argv[2], "child") != 0) return body(argv[3], chunk);
    p_hipMemGetInfo(NULL, NULL); /* the guard has looked at its slice before the fork */
    pid_t child = fork();
    if (child == 0) {
        p_hipGetLastError();
        status = body(argv[3], chunk);
        fflush(stdout);
        _exit(status);
    }
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

__attribute__((constructor)) static void early(int argc, char **argv) {
    if (argc == 6 && strcmp(argv[2], "constructor") == 0) exit(run(argv));
}

int main(int argc, char **argv) { return argc == 6 ? run(argv) : 2; }
