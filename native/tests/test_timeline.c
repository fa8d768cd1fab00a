/* The devices' timelines: who waits for whom, by the model's own clock, and that no death stops them. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"
#include "emulator.h"
#include "timeline.h"

static const int64_t MS = 1000000;
static _Atomic int64_t *shared; /* what the processes tell one another */

static void in_child(void (*body)(void)) {
    pid_t pid = fork_child();
    if (pid == 0) {
        body();
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Each test has a machine and an environment of its own. */
static void with_machine(const char *sharing, const char *queue, void (*body)(void)) {
    const char *path = fresh_path("timeline");
    CHECK(hal_machine_create(path, "test") == 0);
    struct hal_machine *m = hal_machine_open(path);
    CHECK(m != NULL);
    m->devices = 1;
    strcpy(m->device[0].vendor, "nvidia");
    setenv("HAL_EMULATED_MACHINE", path, 1);
    setenv("HAL_EMULATOR_SHARING", sharing, 1);
    setenv("HAL_EMULATOR_QUEUE", queue, 1);
    in_child(body);
    unlink(path);
}

static void work_ends_in_order(void) {
    int64_t before = timeline_now(), mark[3];
    for (int i = 0; i < 3; i++) mark[i] = timeline_submit(0, 5 * MS);
    CHECK(!timeline_done(0, mark[2]));
    timeline_wait(0, mark[2]);
    for (int i = 0; i < 3; i++) {
        CHECK(timeline_done(0, mark[i]));
        CHECK(timeline_reached(0, mark[i]) >= before + (i + 1) * 5 * MS);
    }
    /* Nothing else ran: one after the other, without a gap. */
    CHECK(timeline_reached(0, mark[2]) - timeline_reached(0, mark[0]) == 10 * MS);
}

enum { READY, BEGUN, ENDED = 3 };

static void ten_units(int who) {
    int64_t mark = 0;
    atomic_fetch_add(&shared[READY], 1);
    while (atomic_load(&shared[READY]) < 2) continue; /* both at once */
    atomic_store(&shared[BEGUN + who], timeline_now());
    for (int i = 0; i < 10; i++) mark = timeline_submit(0, 20 * MS);
    timeline_wait(0, mark);
    atomic_store(&shared[ENDED + who], timeline_reached(0, mark));
}

/* Two have 200 ms of work at the same time: neither is done before its own, nor both before both. */
static void two_share(void) {
    pid_t pid = fork_child();
    if (pid == 0) {
        ten_units(0);
        _exit(0);
    }
    ten_units(1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    const _Atomic int64_t *begun = &shared[BEGUN], *ended = &shared[ENDED];
    CHECK(ended[0] - begun[0] >= 200 * MS && ended[1] - begun[1] >= 200 * MS);
    int64_t first = begun[0] < begun[1] ? begun[0] : begun[1];
    int64_t last = ended[0] > ended[1] ? ended[0] : ended[1];
    CHECK(last - first >= 400 * MS);
    for (int i = 0; i < 8; i++) atomic_store(&shared[i], 0);
}

static void a_full_queue_holds_the_launch(void) {
    int64_t mark[5];
    for (int i = 0; i < 5; i++) mark[i] = timeline_submit(0, 3 * MS);
    CHECK(timeline_done(0, mark[2])); /* two may wait: the fifth could only come when the third was done */
}

static void much_work_holds_the_launch(void) {
    timeline_submit(0, 8 * MS);
    int64_t second = timeline_submit(0, 8 * MS), third = timeline_submit(0, 1 * MS);
    CHECK(third > second);
    CHECK(timeline_reached(0, second) - timeline_now() <= 10 * MS); /* no more than that was left */
}

static void nothing_takes_time(void) {
    CHECK(timeline_done(0, timeline_submit(0, 1000 * MS)));
    CHECK(timeline_now() == 0);
}

/* Killed at any moment, also inside the lock. */
static void deaths_stop_nobody(void) {
    for (int i = 0; i < 100; i++) {
        pid_t pid = fork_child();
        if (pid == 0)
            for (;;) timeline_done(0, timeline_submit(0, 1));
        usleep((unsigned)(i * 37 % 1500));
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, NULL, 0) == pid);
        timeline_wait(0, timeline_submit(0, 1));
    }
}

static void durations_are_read(void) {
    CHECK(timeline_duration("5000") == 5000 && timeline_duration("20us") == 20000);
    CHECK(timeline_duration("3ms") == 3 * MS && timeline_duration("2s") == 2000 * MS);
    CHECK(timeline_duration("") == -1 && timeline_duration("ms") == -1 && timeline_duration("-1ms") == -1);
    CHECK(timeline_duration("5 parsecs") == -1 && timeline_duration("99999999999999999s") == -1);
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    durations_are_read();
    with_machine("fifo", "1024", work_ends_in_order);
    with_machine("sliced", "1024", work_ends_in_order);
    with_machine("fifo", "1024", two_share);
    with_machine("sliced", "1024", two_share);
    with_machine("sliced", "2", a_full_queue_holds_the_launch);
    with_machine("fifo", "2", a_full_queue_holds_the_launch);
    with_machine("sliced", "10ms", much_work_holds_the_launch);
    with_machine("sliced", "0", nothing_takes_time);
    with_machine("sliced", "1024", deaths_stop_nobody);
    with_machine("fifo", "1024", deaths_stop_nobody);
    return 0;
}
