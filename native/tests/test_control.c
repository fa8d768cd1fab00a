/* Controls: their ranges, the epoch, and waiting for them across processes. */
#define _GNU_SOURCE
#include <limits.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"
#include "hal_ledger.h"

static int64_t in(double seconds) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + (int64_t)(seconds * 1e9);
}

static struct hal_ledger *fresh(void) {
    enum hal_ledger_error error;
    const char *path = fresh_path("control");
    CHECK(hal_ledger_create(path, "test", 2) == 0);
    struct hal_ledger *l = hal_ledger_open(path, &error);
    CHECK(l != NULL);
    return l;
}

static void test_ranges(void) {
    struct hal_ledger *l = fresh();
    CHECK(atomic_load(&l->state) == HAL_SLICE_RUN && atomic_load(&l->weight) == 100);
    CHECK(atomic_load(&l->device[1].compute_milli) == HAL_LEDGER_MILLI);
    uint32_t epoch = atomic_load(&l->epoch);
    CHECK(!hal_ledger_set_limit(l, 2, 1) && !hal_ledger_set_limit(l, 0, HAL_LEDGER_MOST + 1));
    CHECK(!hal_ledger_set_compute(l, 2, 1) && !hal_ledger_set_compute(l, 0, HAL_LEDGER_MILLI + 1));
    CHECK(!hal_ledger_set_state(l, HAL_SLICE_STATES) && !hal_ledger_set_weight(l, 0));
    CHECK(!hal_ledger_set_weight(l, HAL_LEDGER_WEIGHT + 1) && !hal_ledger_set_priority(l, INT32_MIN));
    CHECK(!hal_ledger_set_priority(l, 101) && !hal_ledger_set_priority(l, -101));
    CHECK(!hal_ledger_set_enforcers(l, HAL_ENFORCERS, 0) && !hal_ledger_set_enforcers(l, 0, UINT32_MAX));
    CHECK(atomic_load(&l->epoch) == epoch && hal_ledger_damage(l) == NULL);
    CHECK(hal_ledger_set_limit(l, 1, HAL_LEDGER_MOST) && hal_ledger_set_compute(l, 1, 500));
    CHECK(hal_ledger_set_state(l, HAL_SLICE_STOP) && hal_ledger_set_weight(l, HAL_LEDGER_WEIGHT));
    CHECK(hal_ledger_set_priority(l, -100) && hal_ledger_set_elastic(l, true));
    CHECK(hal_ledger_set_enforcers(l, HAL_BY_DRIVER, HAL_BY_GUARD));
    CHECK(atomic_load(&l->epoch) == epoch + 7 && hal_ledger_damage(l) == NULL);
    hal_ledger_close(l);
}

static void test_waiting(void) {
    struct hal_ledger *l = fresh();
    CHECK(hal_ledger_is_running(l) && hal_ledger_wait_running(l, 0) == HAL_SLICE_RUN);
    CHECK(hal_ledger_set_state(l, HAL_SLICE_PAUSE) && !hal_ledger_is_running(l));
    CHECK(hal_ledger_wait_running(l, 0) == HAL_SLICE_PAUSE);
    CHECK(hal_ledger_wait_running(l, in(0.02)) == HAL_SLICE_PAUSE);
    for (uint32_t next = HAL_SLICE_RUN; next <= HAL_SLICE_STOP; next += 2) {
        CHECK(hal_ledger_set_state(l, HAL_SLICE_PAUSE));
        pid_t pid = fork_child();
        if (pid == 0) _exit((int)hal_ledger_wait_running(l, in(30)) + 10);
        usleep(20000);
        CHECK(hal_ledger_set_weight(l, 1)); /* another change does not end it */
        usleep(20000);
        CHECK(waitpid(pid, NULL, WNOHANG) == 0);
        CHECK(hal_ledger_set_state(l, next));
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == (int)next + 10);
    }
    uint32_t seen = atomic_load(&l->epoch);
    CHECK(hal_ledger_wait_epoch(l, seen - 1, in(30)) == seen);
    CHECK(hal_ledger_wait_epoch(l, seen, in(0.02)) == seen);
    pid_t pid = fork_child();
    if (pid == 0) _exit(hal_ledger_wait_epoch(l, seen, in(30)) == seen + 1 ? 0 : 1);
    usleep(20000);
    CHECK(hal_ledger_set_elastic(l, true));
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    hal_ledger_close(l);
}

int main(void) {
    test_ranges();
    test_waiting();
    fresh_path("control");
    return 0;
}
