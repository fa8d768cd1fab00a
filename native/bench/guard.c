/* guard-bench: nanoseconds for one call of the CUDA driver, as a program makes it.
 *
 *   guard-bench PROCESSES
 *   guard-bench 1 start        only starts, as a program does: for timing the whole process
 *
 * Run it once as it is and once under the guard: the difference is the guard's cost. Prints "NAME NS" lines, the
 * mean over all processes of the fastest of some rounds. The functions come from cuGetProcAddress, as they do in a
 * program on the CUDA runtime. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 7, CALLS = 20000, LIVE = 10000, MOST_PROCESSES = 64 };
static const size_t PIECE = 2 << 20, SMALL = 4096;

struct prop {
    int type, handles, location, id;
    void *meta;
    uint64_t flags;
};

typedef int (*getter)(const char *, void **, int, uint64_t, int *);
static getter get;

static void must(int code, const char *what) {
    if (code == 0) return;
    fprintf(stderr, "guard-bench: %s failed: %d\n", what, code);
    exit(1);
}

static void *function(const char *name) {
    void *found = NULL;
    int status;
    must(get(name, &found, 12000, 0, &status) != 0 || found == NULL, name);
    return found;
}

static int (*alloc)(uint64_t *, size_t), (*release)(uint64_t), (*info)(size_t *, size_t *);
static int (*alloc_async)(uint64_t *, size_t, void *), (*free_async)(uint64_t, void *);
static int (*create)(uint64_t *, size_t, struct prop *, uint64_t), (*drop)(uint64_t);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void start(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *context = NULL, *pool = NULL;
    uint64_t forever = UINT64_MAX;
    must(library == NULL, "dlopen");
    get = (getter)dlsym(library, "cuGetProcAddress_v2");
    must(((int (*)(unsigned))function("cuInit"))(0), "cuInit");
    must(((int (*)(void **, int))function("cuDevicePrimaryCtxRetain"))(&context, 0), "cuDevicePrimaryCtxRetain");
    must(((int (*)(void *))function("cuCtxSetCurrent"))(context), "cuCtxSetCurrent");
    must(((int (*)(void **, int))function("cuDeviceGetMemPool"))(&pool, 0), "cuDeviceGetMemPool");
    must(((int (*)(void *, int, void *))function("cuMemPoolSetAttribute"))(pool, 4, &forever), "keeping");
    alloc = (__typeof__(alloc))function("cuMemAlloc");
    release = (__typeof__(release))function("cuMemFree");
    info = (__typeof__(info))function("cuMemGetInfo");
    alloc_async = (__typeof__(alloc_async))function("cuMemAllocAsync");
    free_async = (__typeof__(free_async))function("cuMemFreeAsync");
    create = (__typeof__(create))function("cuMemCreate");
    drop = (__typeof__(drop))function("cuMemRelease");
}

/* ---- what is measured --------------------------------------------------------------------------- */

static uint64_t live[LIVE];

static void pair(void) {
    uint64_t at;
    must(alloc(&at, SMALL) || release(at), "a pair");
}

static void pair_among_many(void) {
    static unsigned oldest;
    uint64_t *at = &live[oldest++ % LIVE];
    must(release(*at) || alloc(at, SMALL), "a pair among many");
}

static void pair_async(void) {
    uint64_t at;
    must(alloc_async(&at, SMALL, NULL) || free_async(at, NULL), "an asynchronous pair");
}

static void pair_virtual(void) {
    struct prop prop = {1, 0, 1, 0, NULL, 0};
    uint64_t handle;
    must(create(&handle, PIECE, &prop, 0) || drop(handle), "a virtual pair");
}

static void query(void) {
    size_t left, all;
    must(info(&left, &all), "a query");
}

static void look_up(void) { function("cuMemAlloc"); }

static double measure(void (*call)(void), int calls) {
    double best = 1e30;
    for (int round = 0; round < ROUNDS; round++) {
        double from = now();
        for (int i = 0; i < calls; i++) call();
        double each = (now() - from) / calls;
        if (each < best) best = each;
    }
    return best;
}

static const struct {
    const char *name;
    void (*call)(void);
    int calls;
} rows[] = {
    {"alloc+free", pair, CALLS},
    {"allocAsync+freeAsync", pair_async, CALLS},
    {"memCreate+memRelease", pair_virtual, CALLS},
    {"memGetInfo", query, CALLS},
    {"getProcAddress", look_up, CALLS / 10},
    {"alloc+free, 10000 live", pair_among_many, CALLS}, /* the last: it leaves them */
};
enum { ROWS = sizeof rows / sizeof *rows };

static void process(double *out) {
    start();
    for (int i = 0; i < ROWS; i++) {
        if (rows[i].call == pair_among_many)
            for (int n = 0; n < LIVE; n++) must(alloc(&live[n], SMALL), "10000 allocations");
        out[i] = measure(rows[i].call, rows[i].calls);
    }
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1;
    if (count < 1 || count > MOST_PROCESSES) return 2;
    if (count == 1 && argc > 2) return start(), 0; /* how long a process takes to start */
    double *all = mmap(NULL, sizeof(double) * ROWS * MOST_PROCESSES, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return 1;
    for (int i = 0; i < count; i++)
        if (fork() == 0) {
            process(all + i * ROWS);
            _exit(0);
        }
    int status, bad = 0;
    while (wait(&status) > 0) bad |= status;
    for (int row = 0; row < ROWS; row++) {
        double sum = 0;
        for (int i = 0; i < count; i++) sum += all[i * ROWS + row];
        printf("%s\t%.1f\n", rows[row].name, sum / count);
    }
    return bad != 0;
}
