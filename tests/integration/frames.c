/* Reaches a vendor's memory functions in one way at one time, and prints what they answer.
 *
 *   frames HOW WHEN ORDINAL LIBRARY
 *
 * HOW: "linked" or "dlsym", then any number of "+proc1", "+proc2": each asks the getter before it for the
 * next one. WHEN: main, constructor, child, threads, or user-forks. Stops at "full" and "freed" until it
 * gets a line. Built with -DHIP for HIP and -DLINKED against the library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef HIP
#define FUNCTIONS(X) \
    X(allocate, hipMalloc, "hipMalloc", (uint64_t *, size_t)) \
    X(release, hipFree, "hipFree", (uint64_t)) \
    X(query, hipMemGetInfo, "hipMemGetInfo", (size_t *, size_t *)) \
    X(use, hipSetDevice, "hipSetDevice", (int))
#define GETTERS(X) X(proc1, hipGetProcAddress, "hipGetProcAddress", 0)
#else
#define FUNCTIONS(X) \
    X(allocate, cuMemAlloc_v2, "cuMemAlloc", (uint64_t *, size_t)) \
    X(release, cuMemFree_v2, "cuMemFree", (uint64_t)) \
    X(query, cuMemGetInfo_v2, "cuMemGetInfo", (size_t *, size_t *)) \
    X(init, cuInit, "cuInit", (unsigned)) \
    X(retain, cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (void **, int)) \
    X(set_current, cuCtxSetCurrent, "cuCtxSetCurrent", (void *))
#define GETTERS(X) \
    X(proc1, cuGetProcAddress, "cuGetProcAddress", 11030) \
    X(proc2, cuGetProcAddress_v2, "cuGetProcAddress", 12000)
#endif

enum { THREADS = 8, CHURN = 2000, MOST = 4096 };
static const uint64_t CHUNK = 96 << 20, SENTINEL = 0x5a5a5a5a5a5a5a5a;

/* ---- how ------------------------------------------------------------------------------------- */

#define POINTER(ours, symbol, base, parameters) static int (*ours) parameters;
FUNCTIONS(POINTER)

#ifdef LINKED
#define DECLARE(ours, symbol, base, parameters) int symbol parameters;
#define DECLARE_GETTER(word, symbol, base, version) int symbol(const char *, void **, int, uint64_t, int *);
FUNCTIONS(DECLARE)
GETTERS(DECLARE_GETTER)
#define SAME_NAME(ours, symbol, base, parameters) if (strcmp(name, #symbol) == 0) return (void *)symbol;
#define SAME_GETTER(word, symbol, base, version) if (strcmp(name, #symbol) == 0) return (void *)symbol;
static void *linked(const char *name) {
    FUNCTIONS(SAME_NAME)
    GETTERS(SAME_GETTER)
    return NULL;
}
#else
static void *linked(const char *name) { return (void)name, NULL; }
#endif

/* The first form has no last argument, and does not look for one. */
static int (*getter)(const char *, void **, int, uint64_t, int *);
static void *library;

static void *find(const char *symbol, const char *base, int version) {
    void *found = NULL;
    if (getter != NULL) getter(base, &found, version, 0, NULL);
    else if (library != NULL) found = dlsym(library, symbol);
    else found = linked(symbol);
    if (found == NULL) {
        printf("not found: %s\n", symbol);
        exit(1);
    }
    return found;
}

static void resolve(char *how, const char *soname) {
    char *save = NULL, *word = strtok_r(how, "+", &save);
    if (strcmp(word, "dlsym") == 0) {
        library = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) exit((puts(dlerror()), 1));
    }
    while ((word = strtok_r(NULL, "+", &save)) != NULL) {
#define NEXT(ours, symbol, base, version) \
    if (strcmp(word, #ours) == 0) getter = (__typeof__(getter))find(#symbol, base, version);
        GETTERS(NEXT)
    }
#define RESOLVE(ours, symbol, base, parameters) ours = (__typeof__(ours))find(#symbol, base, 12000);
    FUNCTIONS(RESOLVE)
}

/* ---- what ------------------------------------------------------------------------------------ */

static int on(int ordinal) {
#ifdef HIP
    return use(ordinal);
#else
    void *context = NULL;
    int code = init(0);
    if (code == 0) code = retain(&context, ordinal);
    return code != 0 ? code : set_current(context);
#endif
}

struct filled {
    uint64_t address[MOST], held;
    int ordinal, count, code, untouched;
};

/* Takes all there is, to the byte; what the last refusal said stays in `code`. */
static void fill(struct filled *f) {
    for (uint64_t bytes = CHUNK; bytes > 0 && f->count < MOST;) {
        uint64_t at = SENTINEL;
        f->code = allocate(&at, bytes);
        if (f->code == 0) {
            f->address[f->count++] = at;
            f->held += bytes;
        } else {
            f->untouched = at == SENTINEL;
            bytes /= 2;
        }
    }
}

static pthread_barrier_t churned;

static void *fill_in_thread(void *argument) {
    struct filled *f = argument;
    uint64_t at;
    on(f->ordinal);
    for (int i = 0; i < CHURN; i++)
        if (allocate(&at, 4096) != 0 || release(at) != 0) f->code = -1;
    pthread_barrier_wait(&churned);
    if (f->code == 0) fill(f);
    return NULL;
}

static void say_memory(const char *when) {
    size_t free_bytes = 0, total = 0;
    int code = query(&free_bytes, &total);
    printf("%s code=%d free=%zu total=%zu\n", when, code, free_bytes, total);
}

static void pause_at(const char *where) {
    puts(where);
    fflush(stdout);
    while (getchar() != '\n' && !feof(stdin)) continue;
}

static struct filled part[THREADS];

static int body(int ordinal, int threads) {
    size_t one = 7;
    uint64_t at = SENTINEL;
#ifndef HIP
    printf("early alloc=%d free=%d info=%d\n", allocate(&at, 1), release(4096), query(&one, &one));
#endif
    if (on(ordinal) != 0) return puts("no device"), 1;
    say_memory("empty");
    printf("nulls %d", query(NULL, NULL));
    printf(" %d", query(&one, NULL));
    printf(" %d\n", query(NULL, &one));
    pthread_t id[THREADS];
    pthread_barrier_init(&churned, NULL, THREADS);
    for (int i = 0; i < threads; i++) part[i].ordinal = ordinal;
    if (threads == 1) fill(&part[0]);
    for (int i = 0; threads > 1 && i < threads; i++) pthread_create(&id[i], NULL, fill_in_thread, &part[i]);
    for (int i = 0; threads > 1 && i < threads; i++) pthread_join(id[i], NULL);
    uint64_t held = 0;
    int code = 2, untouched = 1;
    for (int i = 0; i < threads; i++) {
        held += part[i].held;
        untouched &= part[i].untouched;
        if (part[i].code != 2) code = part[i].code;
    }
    printf("filled held=%llu code=%d untouched=%d zero=%d\n", (unsigned long long)held, code, untouched,
           allocate(&at, 0));
    say_memory("full");
    pause_at("full");
    printf("unknown=%d null=%d\n", release(UINT64_C(0x123456000)), release(0));
    on(1); /* where there is a second device: what is freed belongs to the first all the same */
    int bad = 0;
    at = SENTINEL;
    for (int i = 0; i < threads; i++)
        for (int n = 0; n < part[i].count; n++) bad += release(at = part[i].address[n]) != 0;
    on(ordinal);
    printf("freed bad=%d twice=%d\n", bad, release(at));
    say_memory("empty");
    pause_at("freed");
    return 0;
}

/* A process that uses the device forks: the child owns nothing of its parent's. */
static int user_forks(int ordinal) {
    struct filled *own = &part[0], *childs = &part[1];
    uint64_t at = SENTINEL;
    if (on(ordinal) != 0 || allocate(&at, CHUNK) != 0) return puts("no device"), 1;
    pid_t child = fork();
    if (child == 0) {
        fill(childs);
        printf("child held=%llu code=%d free=%d\n", (unsigned long long)childs->held, childs->code,
               release(at));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    fill(own);
    printf("parent held=%llu code=%d free=%d\n", (unsigned long long)(own->held + CHUNK), own->code,
           release(at));
    return 0;
}

/* ---- when ------------------------------------------------------------------------------------ */

static int run(char **argv, const char *when) {
    char how[64];
    snprintf(how, sizeof how, "%s", argv[1]);
    resolve(how, argv[4]);
    int ordinal = atoi(argv[3]);
    if (strcmp(when, "user-forks") == 0) return user_forks(ordinal);
    if (strcmp(when, "child") != 0) return body(ordinal, strcmp(when, "threads") == 0 ? THREADS : 1);
    query(NULL, NULL); /* what the guard keeps of the parent must not be believed by the child */
    pid_t child = fork();
    int status = child == 0 ? body(ordinal, 1) : 0;
    if (child == 0) {
        fflush(stdout);
        _exit(status);
    }
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

__attribute__((constructor)) static void early(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[2], "constructor") == 0) exit(run(argv, "constructor"));
}

int main(int argc, char **argv) { return argc == 5 ? run(argv, argv[2]) : 2; }
