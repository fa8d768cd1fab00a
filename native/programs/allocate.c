/* hal-allocate: allocates device memory on command, as a program on the CUDA driver API or on HIP does.
 *
 *   hal-allocate cuda|hip|auto [COMMAND ...]     without commands, one a line from standard input
 *
 *   alloc MIB   one allocation          fill MIB   allocations of that size until one is refused
 *   free        frees them all          info       the device and its memory
 *   wait        until standard input ends
 *
 * Each prints one line of "word key=value ..." with bytes and the runtime's own codes. A refused
 * allocation is an answer, not a failure: the exit code is 0; 1 when the runtime cannot be used. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 65536 };
static const uint64_t MIB = 1024 * 1024;

/* A runtime as this program needs it; every function gives the runtime's own code, 0 for success. */
struct runtime {
    const char *name;
    const char *libraries[4];
    int (*start)(void *library, char *device, int room);
    int (*allocate)(uint64_t *address, size_t bytes);
    int (*release)(uint64_t address);
    int (*query)(size_t *free_bytes, size_t *total_bytes);
    const char *(*code_name)(int code);
};

static void fail(const char *what, int code) {
    printf("failed what=%s code=%d\n", what, code);
    exit(1);
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) fail(name, -1);
    return found;
}

/* ---- CUDA ----------------------------------------------------------------------------------- */

static int (*cu_alloc)(uint64_t *, size_t), (*cu_free)(uint64_t), (*cu_info)(size_t *, size_t *);
static int (*cu_name)(int, const char **);

static int cuda_start(void *library, char *device, int room) {
    int (*init)(unsigned) = (int (*)(unsigned))symbol(library, "cuInit");
    int (*get)(int *, int) = (int (*)(int *, int))symbol(library, "cuDeviceGet");
    int (*label)(char *, int, int) = (int (*)(char *, int, int))symbol(library, "cuDeviceGetName");
    int (*retain)(void **, int) = (int (*)(void **, int))symbol(library, "cuDevicePrimaryCtxRetain");
    int (*make_current)(void *) = (int (*)(void *))symbol(library, "cuCtxSetCurrent");
    cu_alloc = (int (*)(uint64_t *, size_t))symbol(library, "cuMemAlloc_v2");
    cu_free = (int (*)(uint64_t))symbol(library, "cuMemFree_v2");
    cu_info = (int (*)(size_t *, size_t *))symbol(library, "cuMemGetInfo_v2");
    cu_name = (int (*)(int, const char **))symbol(library, "cuGetErrorName");
    void *context = NULL;
    int ordinal, code;
    if ((code = init(0)) != 0 || (code = get(&ordinal, 0)) != 0) return code;
    if ((code = retain(&context, ordinal)) != 0 || (code = make_current(context)) != 0) return code;
    return label(device, room, ordinal);
}

static int cuda_allocate(uint64_t *address, size_t bytes) { return cu_alloc(address, bytes); }
static int cuda_release(uint64_t address) { return cu_free(address); }
static int cuda_query(size_t *free_bytes, size_t *total) { return cu_info(free_bytes, total); }
static const char *cuda_code_name(int code) {
    const char *text = "?";
    return cu_name(code, &text) == 0 ? text : "?";
}

/* ---- HIP ------------------------------------------------------------------------------------ */

static int (*hip_malloc)(void **, size_t), (*hip_free)(void *), (*hip_info)(size_t *, size_t *);
static const char *(*hip_name)(int);

static int hip_start(void *library, char *device, int room) {
    int (*set)(int) = (int (*)(int))symbol(library, "hipSetDevice");
    int (*label)(char *, int, int) = (int (*)(char *, int, int))symbol(library, "hipDeviceGetName");
    hip_malloc = (int (*)(void **, size_t))symbol(library, "hipMalloc");
    hip_free = (int (*)(void *))symbol(library, "hipFree");
    hip_info = (int (*)(size_t *, size_t *))symbol(library, "hipMemGetInfo");
    hip_name = (const char *(*)(int))symbol(library, "hipGetErrorName");
    int code = set(0);
    return code != 0 ? code : label(device, room, 0);
}

static int hip_allocate(uint64_t *address, size_t bytes) {
    void *at = NULL;
    int code = hip_malloc(&at, bytes);
    *address = (uint64_t)(uintptr_t)at;
    return code;
}
static int hip_release(uint64_t address) { return hip_free((void *)(uintptr_t)address); }
static int hip_query(size_t *free_bytes, size_t *total) { return hip_info(free_bytes, total); }
static const char *hip_code_name(int code) { return hip_name(code); }

static const struct runtime runtimes[] = {
    {"cuda", {"libcuda.so.1", NULL}, cuda_start, cuda_allocate, cuda_release, cuda_query, cuda_code_name},
    {"hip",
     {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", NULL},
     hip_start,
     hip_allocate,
     hip_release,
     hip_query,
     hip_code_name},
};

/* ---- commands ------------------------------------------------------------------------------- */

static const struct runtime *runtime;
static uint64_t live[MOST];
static unsigned lives;
static uint64_t held;

static int allocate(uint64_t bytes) {
    if (lives == MOST) return -1;
    int code = runtime->allocate(&live[lives], bytes);
    if (code == 0) {
        lives++;
        held += bytes;
    }
    return code;
}

static void say_allocated(uint64_t asked, int code) {
    if (code == 0)
        printf("allocated bytes=%llu held=%llu\n", (unsigned long long)asked, (unsigned long long)held);
    else
        printf("refused bytes=%llu held=%llu code=%d name=%s\n", (unsigned long long)asked,
               (unsigned long long)held, code, runtime->code_name(code));
}

static void run(char *line) {
    char *save = NULL, *word = strtok_r(line, " \t\n", &save), *operand = strtok_r(NULL, " \t\n", &save);
    uint64_t bytes = operand != NULL ? strtoull(operand, NULL, 10) * MIB : 0;
    if (word == NULL) return;
    if (strcmp(word, "alloc") == 0) {
        say_allocated(bytes, allocate(bytes));
    } else if (strcmp(word, "fill") == 0 && bytes > 0) {
        int code = 0;
        while (code == 0) code = allocate(bytes);
        say_allocated(bytes, code);
    } else if (strcmp(word, "free") == 0) {
        while (lives > 0)
            if (runtime->release(live[--lives]) != 0) fail("free", -1);
        held = 0;
        printf("freed\n");
    } else if (strcmp(word, "info") == 0) {
        size_t free_bytes = 0, total = 0;
        int code = runtime->query(&free_bytes, &total);
        if (code != 0) fail("memory query", code);
        printf("memory free=%zu total=%zu\n", free_bytes, total);
    } else if (strcmp(word, "wait") == 0) {
        char rest[64];
        while (read(STDIN_FILENO, rest, sizeof rest) > 0) continue;
    } else {
        printf("unknown command %s\n", word);
    }
    fflush(stdout);
}

/* Starts the runtime of that name, or with "auto" the first that has a device to show. */
static bool start(const char *name, char *device, int room) {
    bool any = strcmp(name, "auto") == 0;
    for (size_t i = 0; runtime == NULL && i < sizeof runtimes / sizeof *runtimes; i++) {
        const struct runtime *candidate = &runtimes[i];
        if (!any && strcmp(name, candidate->name) != 0) continue;
        void *library = NULL;
        for (int n = 0; library == NULL && candidate->libraries[n] != NULL; n++)
            library = dlopen(candidate->libraries[n], RTLD_NOW);
        int code = library != NULL ? candidate->start(library, device, room) : 0;
        if (library != NULL && code == 0)
            runtime = candidate;
        else if (library == NULL)
            fprintf(stderr, "hal-allocate: %s\n", dlerror());
        else if (!any)
            fail(candidate->name, code);
    }
    return runtime != NULL;
}

int main(int argc, char **argv) {
    char device[128] = "";
    if (argc < 2) {
        fprintf(stderr, "usage: hal-allocate cuda|hip|auto [alloc MIB | fill MIB | free | info | wait] ...\n");
        return 2;
    }
    if (!start(argv[1], device, sizeof device - 1)) {
        fprintf(stderr, "hal-allocate: no device for '%s'\n", argv[1]);
        return 1;
    }
    printf("device pid=%d runtime=%s name=%s\n", (int)getpid(), runtime->name, device);
    fflush(stdout);
    char line[128];
    if (argc == 2)
        while (fgets(line, sizeof line, stdin) != NULL) run(line);
    for (int i = 2; i < argc; i++) {
        bool takes_size = strcmp(argv[i], "alloc") == 0 || strcmp(argv[i], "fill") == 0;
        snprintf(line, sizeof line, "%.60s %.60s", argv[i], takes_size && i + 1 < argc ? argv[i + 1] : "");
        i += takes_size;
        run(line);
    }
    return 0;
}
