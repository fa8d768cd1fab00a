/* hal-launch: keeps a device busy on command, as a program on the CUDA driver API does, and says what share of
 * the device's time it got.
 *
 *   hal-launch KERNEL GRID SECONDS [WARM-UP]     hal-launch spin_1ms 1000 10 3
 *
 * Only over the stand-in drivers, whose kernels take the time that their name states. Prints one line:
 * "share mean=0.301 deviation=0.004 launches=1505 longest_ms=3.4": the mean over all seconds after the warm-up, the
 * standard deviation over windows of a second, and the longest that a launch took to return. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WINDOWS = 3600 };

static void *driver;

static void fail(const char *what, int code) {
    printf("failed what=%s code=%d\n", what, code);
    exit(1);
}

static void *symbol(const char *name) {
    void *found = dlsym(driver, name);
    if (found == NULL) fail(name, -1);
    return found;
}

static void check(const char *what, int code) {
    if (code != 0) fail(what, code);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double stated_seconds(const char *kernel) {
    const char *at = strrchr(kernel, '_');
    char *unit;
    double number = at == NULL ? 0 : strtod(at + 1, &unit);
    if (number <= 0) fail("the kernel's name states no time, as spin_1ms does", -1);
    return number * (strcmp(unit, "s") == 0    ? 1
                     : strcmp(unit, "ms") == 0 ? 1e-3
                     : strcmp(unit, "us") == 0 ? 1e-6
                                               : 1e-9);
}

static double deviation(const double *x, int n, double mean) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return n > 1 ? sqrt(sum / (n - 1)) : 0;
}

int main(int argc, char **argv) {
    if (argc < 4) fail("hal-launch KERNEL GRID SECONDS [WARM-UP]", -1);
    double each = stated_seconds(argv[1]), seconds = atof(argv[3]), warm = argc > 4 ? atof(argv[4]) : 0;
    unsigned grid = (unsigned)atoi(argv[2]);
    if ((driver = dlopen("libcuda.so.1", RTLD_NOW)) == NULL) fail(dlerror(), -1);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                  void **) = symbol("cuLaunchKernel");
    int (*synchronize)(void) = symbol("cuCtxSynchronize");
    void *context, *module, *kernel, *stream;
    check("cuInit", ((int (*)(unsigned))symbol("cuInit"))(0));
    check("cuDevicePrimaryCtxRetain", ((int (*)(void **, int))symbol("cuDevicePrimaryCtxRetain"))(&context, 0));
    check("cuCtxSetCurrent", ((int (*)(void *))symbol("cuCtxSetCurrent"))(context));
    check("cuModuleLoadData", ((int (*)(void **, const void *))symbol("cuModuleLoadData"))(&module, ""));
    check("cuModuleGetFunction",
          ((int (*)(void **, void *, const char *))symbol("cuModuleGetFunction"))(&kernel, module, argv[1]));
    uint64_t memory; /* who has none is in no list of the device's users */
    check("cuMemAlloc", ((int (*)(uint64_t *, size_t))symbol("cuMemAlloc_v2"))(&memory, 1 << 20));
    check("cuStreamCreate", ((int (*)(void **, unsigned))symbol("cuStreamCreate"))(&stream, 1));

    static double window[WINDOWS];
    int windows = 0;
    uint64_t launches = 0, counted = 0;
    double begun = now(), start = 0, mark = 0, longest = 0, at = begun;
    while (at - begun < warm + seconds) {
        if (start == 0 && at - begun >= warm) {
            check("cuCtxSynchronize", synchronize());
            start = mark = now();
            launches = counted = 0;
        }
        double before = now();
        check("cuLaunchKernel", launch(kernel, grid, 1, 1, 128, 1, 1, 0, stream, NULL, NULL));
        at = now();
        launches++;
        if (at - before > longest) longest = at - before;
        if (start > 0 && at - mark >= 1 && windows < WINDOWS) {
            window[windows++] = (double)(launches - counted) * each / (at - mark);
            counted = launches;
            mark = at;
        }
    }
    check("cuCtxSynchronize", synchronize());
    double mean = (double)launches * each / (now() - start);
    printf("share mean=%.4f deviation=%.4f launches=%llu longest_ms=%.1f\n", mean, deviation(window, windows, mean),
           (unsigned long long)launches, longest * 1e3);
    return 0;
}
