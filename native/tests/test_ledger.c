/* The ledger: files, slots, the limit to the byte, threads, and processes that are killed. */
#define _GNU_SOURCE
#include "hal_ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "slot.h"

static struct hal_ledger *fresh(unsigned devices, uint64_t limit) {
    enum hal_ledger_error error;
    const char *path = fresh_path("ledger");
    CHECK(hal_ledger_create(path, "test", devices) == 0);
    struct hal_ledger *l = hal_ledger_open(path, &error);
    CHECK(l != NULL && error == HAL_LEDGER_OK); /* the file stays: the dead are found by its locks */
    for (unsigned d = 0; d < devices; d++) atomic_store(&l->device[d].limit, limit);
    return l;
}

static uint64_t used(struct hal_ledger *l, unsigned d) { return atomic_load(&l->device[d].used); }

static uint64_t sum(struct hal_ledger *l, unsigned d) {
    uint64_t all = 0;
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++)
        if (hal_ledger_owner_pid(atomic_load(&l->slot[i].owner)) != 0) all += hal_ledger_mine(&l->slot[i], d);
    return all;
}

/* ---- the file ------------------------------------------------------------------------------- */

static enum hal_ledger_error opening(const char *path) {
    enum hal_ledger_error error;
    struct hal_ledger *l = hal_ledger_open(path, &error);
    CHECK((l != NULL) == (error == HAL_LEDGER_OK));
    if (l != NULL) hal_ledger_close(l);
    return error;
}

static void put(const char *path, size_t at, const void *bytes, size_t count) {
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, bytes, count, (off_t)at) == (ssize_t)count);
    close(fd);
}

static void test_file(void) {
    const char *path = fresh_path("file");
    struct stat st;
    CHECK(opening(path) == HAL_LEDGER_SYSTEM && errno == ENOENT);
    CHECK(hal_ledger_create(path, "a name", 3) == 0);
    CHECK(stat(path, &st) == 0 && st.st_size == (off_t)sizeof(struct hal_ledger));
    CHECK((st.st_mode & 0777) == 0600 && st.st_nlink == 1);
    CHECK(hal_ledger_create(path, "another", 3) == -1 && errno == EEXIST);
    CHECK(opening(path) == HAL_LEDGER_OK);
    CHECK(opening(".") == HAL_LEDGER_SYSTEM); /* a directory cannot be opened for writing */
    CHECK(hal_ledger_create("/no/such/place", "x", 1) == -1 && errno == ENOENT);
    char longest[5000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    CHECK(hal_ledger_create(longest, "x", 1) == -1 && errno == ENAMETOOLONG);

    uint32_t size = sizeof(struct hal_ledger), less = size - 8, many = HAL_LEDGER_DEVICES + 1, three = 3;
    put(path, offsetof(struct hal_ledger, size), &less, sizeof less);
    CHECK(opening(path) == HAL_LEDGER_FOREIGN);
    put(path, offsetof(struct hal_ledger, size), &size, sizeof size);
    put(path, offsetof(struct hal_ledger, devices), &many, sizeof many);
    CHECK(opening(path) == HAL_LEDGER_DAMAGED && strstr(hal_ledger_reason(HAL_LEDGER_DAMAGED), "devices") != NULL);
    put(path, offsetof(struct hal_ledger, devices), &three, sizeof three);
    CHECK(opening(path) == HAL_LEDGER_OK);
    put(path, 0, "hal", 3);
    CHECK(opening(path) == HAL_LEDGER_FOREIGN);
    put(path, 0, "HAL", 3);
    off_t lengths[] = {size - 1, size + 1, 4096, 24, 23, 8, 0};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        CHECK(truncate(path, lengths[i]) == 0);
        CHECK(opening(path) == HAL_LEDGER_FOREIGN);
    }
    char link[160];
    snprintf(link, sizeof link, "%s.link", path);
    unlink(link);
    CHECK(symlink(path, link) == 0 && opening(link) == HAL_LEDGER_SYSTEM && errno == ELOOP);
    unlink(link);
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0 && opening(path) == HAL_LEDGER_FOREIGN);
    unlink(path);
}

/* Between versions, whoever is later says whether they share a file. */
static void test_versions(void) {
    const uint32_t now = HAL_LEDGER_VERSION, oldest = HAL_LEDGER_OLDEST, most = UINT32_MAX;
    const struct {
        uint32_t version, reads;
        enum hal_ledger_error found;
    } cases[] = {
        {now, oldest, HAL_LEDGER_OK},
        {now, 0, HAL_LEDGER_OK}, /* as it was made before the word was there */
        {oldest, oldest, HAL_LEDGER_OK},
        {oldest - 1, 0, HAL_LEDGER_OTHER_VERSION},
        {oldest - 1, oldest - 1, HAL_LEDGER_OTHER_VERSION},
        {0, 0, HAL_LEDGER_OTHER_VERSION},
        {now + 1, now, HAL_LEDGER_OK},
        {now + 1, 1, HAL_LEDGER_OK},
        {most, now, HAL_LEDGER_OK},
        {now + 1, 0, HAL_LEDGER_OTHER_VERSION},
        {now + 1, now + 1, HAL_LEDGER_OTHER_VERSION},
        {most, most, HAL_LEDGER_OTHER_VERSION},
    };
    const char *path = fresh_path("versions");
    CHECK(hal_ledger_create(path, "test", 1) == 0);
    enum hal_ledger_error error;
    struct hal_ledger *l = hal_ledger_open(path, &error);
    CHECK(l != NULL && l->version == now && l->reads == oldest);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        l->version = cases[i].version;
        l->reads = cases[i].reads;
        CHECK(opening(path) == cases[i].found);
    }
    l->version = now + 1; /* of whatever version: what is in it has to make sense */
    l->reads = now;
    atomic_store(&l->state, HAL_SLICE_STATES);
    CHECK(opening(path) == HAL_LEDGER_DAMAGED);
    atomic_store(&l->state, HAL_SLICE_RUN);
    l->size += 8;
    CHECK(opening(path) == HAL_LEDGER_FOREIGN);
    hal_ledger_close(l);
    unlink(path);
}

static void test_format_bounds(void) {
    struct hal_ledger *l = fresh(1, 0);
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    hal_ledger_format(l, name, 1000);
    CHECK(l->devices == HAL_LEDGER_DEVICES && strlen(l->name) == HAL_LEDGER_ID - 1);
    hal_ledger_close(l);
}

/* ---- the limit ------------------------------------------------------------------------------ */

static void test_limit(void) {
    struct hal_ledger *l = fresh(2, 1000);
    int slot = hal_ledger_join(l), other = hal_ledger_join(l);
    CHECK(slot >= 0 && other >= 0 && slot != other);
    CHECK(hal_ledger_owner_pid(atomic_load(&l->slot[slot].owner)) == (uint32_t)getpid());
    CHECK(hal_ledger_reserve(l, slot, 0, 600) && hal_ledger_reserve(l, other, 0, 400));
    CHECK(used(l, 0) == 1000 && used(l, 1) == 0);
    CHECK(!hal_ledger_reserve(l, slot, 0, 1) && !hal_ledger_reserve(l, other, 0, 1000));
    CHECK(hal_ledger_reserve(l, slot, 0, 0)); /* nothing always fits */
    CHECK(hal_ledger_reserve(l, slot, 1, 1000)); /* devices do not share */
    CHECK(!hal_ledger_reserve(l, slot, 2, 0) && !hal_ledger_reserve(l, slot, UINT32_MAX, 1));
    CHECK(atomic_load(&l->device[0].refused) == 2 && atomic_load(&l->device[1].refused) == 0);
    hal_ledger_release(l, slot, 0, 1);
    CHECK(hal_ledger_reserve(l, other, 0, 1) && used(l, 0) == 1000);
    atomic_store(&l->device[0].limit, 500); /* below what is used */
    CHECK(!hal_ledger_reserve(l, slot, 0, 1) && used(l, 0) == 1000);
    hal_ledger_release(l, slot, 0, 599);
    CHECK(used(l, 0) == 401 && !hal_ledger_reserve(l, slot, 0, 100) && hal_ledger_reserve(l, slot, 0, 99));
    hal_ledger_leave(l, slot);
    CHECK(used(l, 0) == 401 && used(l, 1) == 0 && sum(l, 0) == 401);
    hal_ledger_leave(l, other);
    CHECK(used(l, 0) == 0);
    hal_ledger_close(l);
}

static void test_overflow(void) {
    const uint64_t most = UINT64_MAX;
    struct hal_ledger *l = fresh(1, most);
    int slot = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, slot, 0, 10));
    CHECK(!hal_ledger_reserve(l, slot, 0, most) && !hal_ledger_reserve(l, slot, 0, most - 9));
    CHECK(used(l, 0) == 10);
    CHECK(hal_ledger_reserve(l, slot, 0, most - 10) && used(l, 0) == most);
    CHECK(!hal_ledger_reserve(l, slot, 0, 1) && !hal_ledger_reserve(l, slot, 0, most));
    hal_ledger_release(l, slot, 0, most - 10);
    atomic_store(&l->device[0].limit, 5);
    CHECK(!hal_ledger_reserve(l, slot, 0, most) && !hal_ledger_reserve(l, slot, 0, most - 4));
    CHECK(!hal_ledger_reserve(l, slot, 0, 0)); /* over the limit even nothing is too much */
    CHECK(used(l, 0) == 10);
    hal_ledger_close(l);
}

/* ---- threads -------------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 20000 };

struct job {
    struct hal_ledger *ledger;
    int slot; /* shared by all threads of a process, as the guard does it */
    unsigned seed;
    uint64_t kept;
};

static void *churn(void *argument) {
    struct job *job = argument;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t bytes = (uint64_t)(rand_r(&job->seed) % 400);
        bool granted = hal_ledger_reserve(job->ledger, job->slot, 0, bytes);
        CHECK(used(job->ledger, 0) <= 1000);
        if (!granted) continue;
        if (i % 1000 == 999 && job->kept == 0 && bytes < 100)
            job->kept = bytes;
        else
            hal_ledger_release(job->ledger, job->slot, 0, bytes);
    }
    return NULL;
}

static void test_threads(bool own_slots) {
    struct hal_ledger *l = fresh(1, 1000);
    pthread_t threads[THREADS];
    struct job jobs[THREADS];
    int shared = hal_ledger_join(l);
    for (unsigned i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){l, own_slots ? hal_ledger_join(l) : shared, i, 0};
        CHECK(pthread_create(&threads[i], NULL, churn, &jobs[i]) == 0);
    }
    uint64_t kept = 0;
    for (int i = 0; i < 200; i++) { /* beside them, whatever it finds */
        hal_ledger_recount(l, 0);
        CHECK(hal_ledger_damage(l) == NULL);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        kept += jobs[i].kept;
    }
    CHECK(used(l, 0) == kept && sum(l, 0) == kept);
    CHECK(hal_ledger_recount(l, 0) && used(l, 0) == kept);
    hal_ledger_close(l);
}

/* Half of the threads only allocate, each for another that only frees: their lanes rise and fall. */
static _Atomic int given[THREADS / 2], through;

static void *hand_on(void *argument) {
    struct job *job = argument;
    _Atomic int *between = &given[job->seed / 2];
    bool gives = job->seed % 2 == 0;
    for (int i = 0; i < ROUNDS; i++) {
        while (atomic_load(between) == (gives ? 4 : 0)) sched_yield();
        if (gives) CHECK(hal_ledger_reserve(job->ledger, job->slot, 0, 10));
        else hal_ledger_release(job->ledger, job->slot, 0, 10);
        atomic_fetch_add(between, gives ? 1 : -1);
    }
    atomic_fetch_add(&through, 1);
    return NULL;
}

static void test_handing_on(void) {
    struct hal_ledger *l = fresh(1, 1000);
    int slot = hal_ledger_join(l);
    pthread_t threads[THREADS];
    struct job jobs[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){l, slot, i, 0};
        CHECK(pthread_create(&threads[i], NULL, hand_on, &jobs[i]) == 0);
    }
    while (atomic_load(&through) < THREADS) {
        uint64_t bytes;
        if (hal_slot_sum(&l->slot[slot], 0, &bytes)) /* else it is below zero at times, as a lane is */
            CHECK(bytes <= 1000);
        CHECK(hal_ledger_mine(&l->slot[slot], 0) <= HAL_LEDGER_MOST);
    }
    for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(used(l, 0) == 0 && sum(l, 0) == 0 && hal_ledger_recount(l, 0) && used(l, 0) == 0);
    hal_ledger_leave(l, slot);
    CHECK(hal_ledger_damage(l) == NULL);
    hal_ledger_close(l);
}

/* All lanes but one are taken, so that an operation goes by this one. */
static void reserve_by(struct hal_ledger *l, int slot, int by, int64_t bytes) {
    struct hal_ledger_lane *lane = l->slot[slot].lane;
    for (int i = 0; i < HAL_LEDGER_LANES; i++) atomic_fetch_or(&lane[i].op, (uint64_t)(i != by));
    uint64_t before = atomic_load(&lane[by].mine[0]);
    if (bytes < 0) hal_ledger_release(l, slot, 0, (uint64_t)-bytes);
    else CHECK(hal_ledger_reserve(l, slot, 0, (uint64_t)bytes));
    CHECK(atomic_load(&lane[by].mine[0]) == before + (uint64_t)bytes);
    for (int i = 0; i < HAL_LEDGER_LANES; i++) atomic_fetch_and(&lane[i].op, ~UINT64_C(0xff));
}

static void test_lanes(void) {
    /* A free may go by another lane than its allocation: only the sum counts, also for the slot's next owner. */
    struct hal_ledger *l = fresh(1, 1000);
    int slot = hal_ledger_join(l);
    reserve_by(l, slot, 2, 500);
    reserve_by(l, slot, 5, -400);
    CHECK(used(l, 0) == 100 && hal_ledger_mine(&l->slot[slot], 0) == 100 && hal_ledger_damage(l) == NULL);
    CHECK(hal_ledger_recount(l, 0) && used(l, 0) == 100);
    hal_ledger_leave(l, slot);
    CHECK(used(l, 0) == 0 && sum(l, 0) == 0 && hal_ledger_damage(l) == NULL);
    CHECK(hal_ledger_join(l) == slot && hal_ledger_mine(&l->slot[slot], 0) == 0);
    reserve_by(l, slot, 5, 70);
    CHECK(hal_ledger_mine(&l->slot[slot], 0) == 70 && hal_ledger_recount(l, 0) && used(l, 0) == 70);
    pid_t pid = fork_child();
    if (pid == 0) {
        int own = hal_ledger_join(l);
        if (own < 0) _exit(1);
        reserve_by(l, own, 0, 500);
        reserve_by(l, own, 7, -300);
        _exit(0);
    }
    CHECK(waitpid(pid, NULL, 0) == pid && used(l, 0) == 270);
    CHECK(hal_ledger_reap(l) == 1 && used(l, 0) == 70 && hal_ledger_damage(l) == NULL);
    hal_ledger_close(l);
}

/* ---- processes ------------------------------------------------------------------------------ */

static void collect(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

/* A child that holds 100 bytes and churns above them until it is killed. */
static pid_t churning(struct hal_ledger *l) {
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        int slot = hal_ledger_join(l);
        if (slot < 0 || !hal_ledger_reserve(l, slot, 0, 100) || write(ready[1], "", 1) != 1) _exit(1);
        for (unsigned seed = (unsigned)getpid();;) {
            uint64_t bytes = (uint64_t)(rand_r(&seed) % 500);
            if (hal_ledger_reserve(l, slot, 0, bytes)) hal_ledger_release(l, slot, 0, bytes);
        }
    }
    char byte;
    close(ready[1]); /* a child that fails ends the reading, too */
    CHECK(read(ready[0], &byte, 1) == 1);
    close(ready[0]);
    return pid;
}

static void test_killed(void) {
    struct hal_ledger *l = fresh(1, 1000);
    int slot = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, slot, 0, 50));
    unsigned seed = 4711;
    for (int round = 0; round < 100; round++) {
        pid_t first = churning(l), second = churning(l);
        usleep((useconds_t)(rand_r(&seed) % 2000));
        CHECK(used(l, 0) >= 250);
        kill(first, SIGKILL);
        siginfo_t info; /* wait, and leave the zombie: it holds nothing either */
        CHECK(waitid(P_PID, (id_t)first, &info, WEXITED | WNOWAIT) == 0);
        CHECK(used(l, 0) >= 150);
        hal_ledger_reap(l);
        CHECK(used(l, 0) >= 150 && used(l, 0) <= 1000);
        kill(second, SIGKILL);
        collect(second);
        collect(first);
        hal_ledger_reap(l);
        CHECK(used(l, 0) == 50 && sum(l, 0) == 50);
        CHECK(hal_ledger_reap(l) == 0);
    }
    hal_ledger_close(l);
}

/* Begins an operation as ledger.c does it, and gets no further than `step`. */
static void half_an_operation(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes, int step) {
    struct hal_ledger_slot *s = &l->slot[slot];
    struct hal_ledger_lane *lane = &s->lane[3];
    atomic_store(&lane->op, ((atomic_load(&lane->op) >> 8) + 1) << 8 | (device + 1));
    atomic_store(&lane->bytes, bytes);
    if (step > 0) atomic_fetch_add(&l->device[device].used, bytes); /* reserve: used, then mine */
    if (step > 1) atomic_fetch_add(&lane->mine[device], bytes);
}

static void test_every_step_of_a_death(void) {
    /* What a process leaves that dies between the steps of an operation; each is mended exactly. */
    struct hal_ledger *l = fresh(1, 1000);
    int mine = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, mine, 0, 30));
    for (int step = 0; step < 3; step++) {
        pid_t pid = fork_child();
        if (pid == 0) {
            int slot = hal_ledger_join(l);
            if (slot < 0 || !hal_ledger_reserve(l, slot, 0, 70)) _exit(1);
            half_an_operation(l, slot, 0, 200, step);
            _exit(0);
        }
        collect(pid);
        CHECK(used(l, 0) >= 100);
        CHECK(!hal_ledger_reserve(l, mine, 0, 971)); /* too much: but it reaps */
        CHECK(hal_ledger_reserve(l, mine, 0, 970));  /* to the byte */
        hal_ledger_release(l, mine, 0, 970);
        CHECK(used(l, 0) == 30 && sum(l, 0) == 30);
    }
    hal_ledger_close(l);
}

/* A process that stands still inside an operation (stopped, or in a debugger) must not keep the others from
 * what the dead held: all but the bytes in doubt comes back. */
static void test_standing_still(void) {
    for (int step = 0; step < 3; step++) {
        struct hal_ledger *l = fresh(2, 1000);
        int mine = hal_ledger_join(l), still = hal_ledger_join(l);
        CHECK(hal_ledger_reserve(l, mine, 0, 30) && hal_ledger_reserve(l, still, 0, 40));
        half_an_operation(l, still, 0, 5, step);
        pid_t pid = fork_child();
        if (pid == 0) {
            int slot = hal_ledger_join(l);
            if (slot < 0 || !hal_ledger_reserve(l, slot, 0, 300) || !hal_ledger_reserve(l, slot, 1, 300)) _exit(1);
            half_an_operation(l, slot, 0, 200, 1);
            _exit(0);
        }
        collect(pid);
        hal_ledger_reap(l);
        uint64_t real = 70 + (step > 0 ? 5 : 0);
        CHECK(used(l, 0) >= real && used(l, 0) <= real + 5 && used(l, 1) == 0);
        /* It goes on, and all is exact. */
        if (step < 1) atomic_fetch_add(&l->device[0].used, 5);
        if (step < 2) atomic_fetch_add(&l->slot[still].lane[3].mine[0], 5);
        atomic_fetch_and(&l->slot[still].lane[3].op, ~UINT64_C(0xff));
        CHECK(hal_ledger_reap(l) == 1 && used(l, 0) == 75 && sum(l, 0) == 75);
        hal_ledger_close(l);
    }
}

/* A dead recounter's hold costs each process a moment once. */
static void test_stale_hold(void) {
    struct hal_ledger *l = fresh(1, 1000);
    int slot = hal_ledger_join(l);
    atomic_store(&l->hold, 4711);
    CHECK(hal_ledger_reserve(l, slot, 0, 10));
    hal_ledger_release(l, slot, 0, 10);
    CHECK(atomic_load(&l->hold) == 4711);
    hal_ledger_reap(l);
    CHECK(atomic_load(&l->hold) == 0 && used(l, 0) == 0);
    hal_ledger_close(l);
}

/* Threads that never come back may cost their lanes; then nothing is granted, and nothing hangs. */
static void test_no_lane_left(void) {
    struct hal_ledger *l = fresh(1, 1000);
    int slot = hal_ledger_join(l), other = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, slot, 0, 10));
    for (int i = 0; i < HAL_LEDGER_LANES; i++) atomic_store(&l->slot[slot].lane[i].op, 1);
    CHECK(!hal_ledger_reserve(l, slot, 0, 1));
    hal_ledger_release(l, slot, 0, 10);
    CHECK(used(l, 0) == 10 && hal_ledger_reserve(l, other, 0, 990));
    hal_ledger_close(l);
}

static void test_slots_run_out(void) {
    struct hal_ledger *l = fresh(1, 10000);
    pid_t pid = fork_child();
    int count = 0, slot;
    if (pid == 0) {
        while ((slot = hal_ledger_join(l)) >= 0) count += hal_ledger_reserve(l, slot, 0, 3);
        _exit(count == HAL_LEDGER_SLOTS ? 0 : 1);
    }
    siginfo_t info; /* dead, not collected */
    CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0 && info.si_status == 0);
    CHECK(used(l, 0) == 3 * HAL_LEDGER_SLOTS);
    while ((slot = hal_ledger_join(l)) >= 0) count++;
    CHECK(count == HAL_LEDGER_SLOTS && used(l, 0) == 0 && sum(l, 0) == 0);
    collect(pid);
    hal_ledger_leave(l, 7);
    CHECK(hal_ledger_join(l) == 7 && hal_ledger_join(l) == -1);
    hal_ledger_close(l);
}

static void test_recount(void) {
    struct hal_ledger *l = fresh(2, 1000);
    int slot = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, slot, 0, 10) && hal_ledger_reserve(l, slot, 1, 20));
    atomic_store(&l->device[0].used, 999);
    CHECK(hal_ledger_recount(l, 0) && used(l, 0) == 10 && used(l, 1) == 20);
    atomic_store(&l->device[0].used, 3); /* also upwards */
    CHECK(hal_ledger_recount(l, 0) && used(l, 0) == 10);
    half_an_operation(l, slot, 0, 7, 0); /* nothing can be proven but that it is no more than so much */
    atomic_store(&l->device[0].used, 999);
    atomic_store(&l->device[1].used, 999);
    CHECK(!hal_ledger_recount(l, 0) && used(l, 0) == 17);
    CHECK(hal_ledger_recount(l, 1) && used(l, 1) == 20);
    atomic_fetch_and(&l->slot[slot].lane[3].op, ~UINT64_C(0xff));
    CHECK(hal_ledger_recount(l, 0) && used(l, 0) == 10);
    CHECK(!hal_ledger_recount(l, 2));
    hal_ledger_close(l);
}

/* What belongs to nobody is taken away once, however many recount at a time. */
enum { RECOUNTERS = 3, RECOUNTS = 1000 };

static _Atomic int arrived;

/* Turns all threads loose at the same instant, as no barrier of the system does. */
static void together(int *target) {
    *target += RECOUNTERS;
    atomic_fetch_add(&arrived, 1);
    for (int turn = 0; atomic_load(&arrived) < *target; turn++)
        if (turn % 1000 == 999) sched_yield();
}

static void *recount_together(void *argument) {
    struct job *job = argument;
    int target = 0;
    for (int i = 0; i < RECOUNTS; i++) {
        if (job->seed == 0) atomic_fetch_add(&job->ledger->device[0].used, 500);
        together(&target);
        hal_ledger_recount(job->ledger, 0);
        together(&target);
        CHECK(used(job->ledger, 0) == 10);
        together(&target);
    }
    return NULL;
}

static void test_recounts_at_once(void) {
    struct hal_ledger *l = fresh(1, 1000);
    pthread_t threads[RECOUNTERS];
    struct job jobs[RECOUNTERS];
    int slot = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, slot, 0, 10));
    for (unsigned i = 0; i < RECOUNTERS; i++) {
        jobs[i] = (struct job){l, slot, i, 0};
        CHECK(pthread_create(&threads[i], NULL, recount_together, &jobs[i]) == 0);
    }
    for (int i = 0; i < RECOUNTERS; i++) pthread_join(threads[i], NULL);
    hal_ledger_close(l);
}

int main(void) {
    test_file();
    test_versions();
    test_format_bounds();
    test_limit();
    test_overflow();
    test_recount();
    test_recounts_at_once();
    test_every_step_of_a_death();
    test_standing_still();
    test_stale_hold();
    test_no_lane_left();
    test_slots_run_out();
    test_killed();
    test_threads(false);
    test_threads(true);
    test_handing_on();
    test_lanes();
    fresh_path("ledger");
    return 0;
}
