/* ledger-bench: nanoseconds for one reserve and release, for 1 and 4 processes and 1, 2 and 4 threads, with one
 * device and a ledger file in the working directory. Prints "PROCESSES THREADS NS" lines: the mean of the
 * fastest of five rounds, each thread's own time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hal_ledger.h"

enum { PAIRS = 2000000, ROUNDS = 5 };

static struct hal_ledger *ledger;
static int slot;
static _Atomic int *gate; /* shared by the processes: how many threads are ready */
static int everybody;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void *pairs(void *out) {
    double best = 1e30;
    for (int round = 1; round <= ROUNDS; round++) {
        atomic_fetch_add(gate, 1);
        while (atomic_load(gate) < round * everybody) continue;
        double start = now();
        for (int i = 0; i < PAIRS; i++) {
            if (!hal_ledger_reserve(ledger, slot, 0, 4096)) abort();
            hal_ledger_release(ledger, slot, 0, 4096);
        }
        double each = (now() - start) / PAIRS;
        if (each < best) best = each;
    }
    *(double *)out = best;
    return NULL;
}

static double process(const char *path, int threads) {
    enum hal_ledger_error error;
    ledger = hal_ledger_open(path, &error);
    if (ledger == NULL || (slot = hal_ledger_join(ledger)) < 0) abort();
    pthread_t thread[8];
    double result[8], sum = 0;
    for (int i = 0; i < threads; i++) pthread_create(&thread[i], NULL, pairs, &result[i]);
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        sum += result[i];
    }
    return sum / threads;
}

static void measure(int processes, int threads) {
    char path[64];
    int reply[2];
    snprintf(path, sizeof path, "ledger-bench.%d", (int)getpid());
    unlink(path);
    if (hal_ledger_create(path, "bench", 1) != 0 || pipe(reply) != 0) {
        perror("ledger-bench");
        exit(1);
    }
    enum hal_ledger_error error;
    struct hal_ledger *l = hal_ledger_open(path, &error);
    atomic_store(&l->device[0].limit, 1ull << 40);
    atomic_store(gate, 0);
    everybody = processes * threads;
    for (int i = 0; i < processes; i++) {
        if (fork() != 0) continue;
        double ns = process(path, threads);
        _exit(write(reply[1], &ns, sizeof ns) != sizeof ns);
    }
    double sum = 0, ns;
    for (int i = 0; i < processes; i++)
        if (read(reply[0], &ns, sizeof ns) == sizeof ns) sum += ns;
    while (wait(NULL) > 0) continue;
    printf("%d %d %.1f\n", processes, threads, sum / processes);
    fflush(stdout);
    hal_ledger_close(l);
    unlink(path);
}

int main(void) {
    gate = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    measure(1, 1);
    measure(1, 2);
    measure(1, 4);
    measure(4, 1);
    return 0;
}
