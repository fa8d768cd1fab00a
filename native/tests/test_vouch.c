/* Who is dead: whatever threads end, descriptors are swept away, programs replaced, namespaces entered. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "hal_ledger.h"
#include "member.h"
#include "process.h"

enum { HELD = 70 };

static struct hal_ledger *l;
static const char *path;
static int ready[2];

static void fresh(void) {
    enum hal_ledger_error error;
    path = fresh_path("vouch");
    CHECK(hal_ledger_create(path, "test", 1) == 0);
    l = hal_ledger_open(path, &error);
    CHECK(l != NULL && hal_ledger_set_limit(l, 0, 1000) && pipe2(ready, O_CLOEXEC) == 0);
}

static uint64_t used(void) { return atomic_load(&l->device[0].used); }

/* In the child: joins and reserves. */
static int hold(void) {
    int slot = hal_ledger_join(l);
    if (slot < 0 || !hal_ledger_reserve(l, slot, 0, HELD)) _exit(9);
    return slot;
}

static void tell(void) {
    if (write(ready[1], "", 1) != 1) _exit(8);
}

static void hear(void) {
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
}

static void wait_for_end(void) {
    tell();
    for (;;) pause();
}

static void *join_in_thread(void *unused) {
    hold();
    return unused;
}

/* A thread, only, ends; glibc and thus any list of locks that are to be handed on knows nothing of it. */
static void *join_and_end_raw(void *unused) {
    hold();
    syscall(SYS_exit, 0);
    return unused;
}

static void *stay(void *unused) {
    wait_for_end();
    return unused;
}

static void in_thread(void *(*work)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) != 0) _exit(7);
    if (work != stay && pthread_join(thread, NULL) != 0) _exit(7);
}

/* ---- ways to live on ------------------------------------------------------------------------- */

static void lives_as_it_is(void) {
    hold();
    wait_for_end();
}

static void its_joining_thread_ended(void) {
    in_thread(join_in_thread);
    wait_for_end();
}

static void its_joining_thread_ended_raw(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, join_and_end_raw, NULL) != 0) _exit(7);
    while (used() != HELD) usleep(1000);
    usleep(50000);
    wait_for_end();
}

static void its_first_thread_ended(void) {
    hold();
    in_thread(stay);
    pthread_exit(NULL);
}

static void it_closed_all_descriptors(void) {
    hold();
    for (int fd = 0; fd < 1024; fd++)
        if (fd != ready[1]) close(fd);
    wait_for_end();
}

static void it_closed_all_at_once(void) {
    hold();
    tell();
    syscall(SYS_close_range, 0, ~0u, 0);
    for (;;) pause();
}

static void it_started_a_program_by_vfork(void) {
    hold();
    pid_t pid = vfork();
    if (pid == 0) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    waitpid(pid, NULL, 0);
    wait_for_end();
}

static void it_forked_and_the_child_died(void) {
    hold();
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
    wait_for_end();
}

static void it_joined_in_a_fork_of_a_member(void) {
    int slot = hold();
    pid_t pid = fork();
    if (pid != 0) { /* the parent goes, its child stays */
        for (;;) pause();
    }
    hold();
    (void)slot;
    kill(getppid(), SIGKILL);
    while (getppid() != 1 && hal_ledger_reap(l) == 0) usleep(1000);
    wait_for_end();
}

/* ---- ways to die with it ---------------------------------------------------------------------- */

static void exits(void) {
    hold();
    _exit(0);
}

static void executes(void) {
    hold();
    execl("/bin/sh", "sh", "-c", "read unused", NULL);
    _exit(1);
}

static void *execute(void *unused) {
    hold();
    execl("/bin/sh", "sh", "-c", "read unused", NULL);
    _exit(1);
    return unused;
}

static void executes_in_a_thread(void) {
    in_thread(execute);
}

static void dies_and_its_child_stays(void) {
    hold();
    if (fork() == 0) {
        for (;;) pause();
    }
    /* The child was made after it joined, and never joined itself: it holds nothing. */
    raise(SIGKILL);
}

/* ---- both ------------------------------------------------------------------------------------- */

static void reap_until(uint64_t expected) {
    for (int i = 0; i < 5000 && used() != expected; i++) {
        hal_ledger_reap(l);
        usleep(1000);
    }
    CHECK(used() == expected);
}

static void lives(const char *name, void (*way)(void)) {
    fresh();
    pid_t pid = fork_child();
    if (pid == 0) {
        setpgid(0, 0);
        way();
        _exit(6);
    }
    hear();
    usleep(20000);
    for (int i = 0; i < 3; i++) CHECK(hal_ledger_reap(l) == 0 || i == 0);
    if (used() != HELD) fprintf(stderr, "%s: %llu\n", name, (unsigned long long)used());
    CHECK(used() == HELD);
    CHECK(!hal_ledger_reserve(l, hal_ledger_join(l), 0, 1000 - HELD + 1));
    kill(-pid, SIGKILL);
    waitpid(pid, NULL, 0);
    reap_until(0);
    hal_ledger_close(l);
    close(ready[0]);
    close(ready[1]);
}

static void dies(void (*way)(void)) {
    int input[2];
    fresh();
    CHECK(pipe2(input, O_CLOEXEC) == 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        setpgid(0, 0);
        dup2(input[0], 0);
        way();
        _exit(6);
    }
    siginfo_t info = {.si_pid = 0};
    while (used() != HELD && info.si_pid == 0) { /* it may have come and gone */
        CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT | WNOHANG) == 0);
        usleep(1000);
    }
    CHECK(used() == HELD);
    reap_until(0); /* the zombie, or the program that came after, is still there */
    kill(-pid, SIGKILL);
    close(input[0]);
    close(input[1]);
    waitpid(pid, NULL, 0);
    hal_ledger_close(l);
    close(ready[0]);
    close(ready[1]);
}

/* ---- other namespaces -------------------------------------------------------------------------- */

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static void put(const char *file, const char *text) {
    int fd = open(file, O_WRONLY);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0) errno = 0;
    if (fd >= 0) close(fd);
}

/* A holder in a namespace of its own, under a /proc that numbers processes otherwise. False: not allowed here. */
static bool in_namespace(int flags, bool own_proc) {
    fresh();
    pid_t pid = fork_child();
    if (pid == 0) {
        if (unshare(flags) != 0 && unshare(CLONE_NEWUSER | flags) != 0) _exit(5);
        if (flags & CLONE_NEWTIME) put("/proc/self/timens_offsets", "boottime 86400 0\n");
        pid_t inner = fork(); /* the first that is inside */
        if (inner == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (own_proc && mount("proc", "/proc", "proc", 0, NULL) != 0) _exit(5);
            hold();
            /* From inside, the one outside is not taken for dead either. */
            if (hal_ledger_reap(l) != 0) _exit(4);
            wait_for_end();
        }
        int status;
        waitpid(inner, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 0);
    }
    int outside = hal_ledger_join(l);
    CHECK(hal_ledger_reserve(l, outside, 0, 5));
    close(ready[1]);
    char byte;
    bool allowed = read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    if (allowed) {
        usleep(20000);
        CHECK(hal_ledger_reap(l) == 0 && used() == HELD + 5);
        for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
            uint32_t living = hal_ledger_living(l, i);
            CHECK(living == 0 || living == (uint32_t)getpid() || (flags & CLONE_NEWPID) == 0);
        }
    }
    kill(pid, SIGKILL);
    int status;
    waitpid(pid, &status, 0);
    if (allowed) reap_until(5);
    else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    hal_ledger_close(l);
    return allowed;
}

static void test_namespaces(void) {
    const int pids = CLONE_NEWPID, times = CLONE_NEWTIME, proc = CLONE_NEWPID | CLONE_NEWNS;
    if (!in_namespace(pids, false)) puts("skipped: no pid namespace may be made here");
    if (!in_namespace(times, false)) puts("skipped: no time namespace may be made here");
    if (!in_namespace(proc, true)) puts("skipped: no /proc may be mounted here");
}

/* ---- where the kernel cannot vouch -------------------------------------------------------------- */

static void test_unvouched(void) {
    fresh();
    pid_t pid = fork_child();
    if (pid == 0) {
        struct rlimit few = {64, 64};
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        while (open("/dev/null", O_RDONLY) >= 0) continue;
        hold();
        wait_for_end();
    }
    hear();
    int found = 0;
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++)
        found += hal_ledger_owner_pid(atomic_load(&l->slot[i].owner)) != 0 &&
                 (atomic_load(&l->slot[i].owner) >> 31 & 1) != 0;
    CHECK(found == 1 && hal_ledger_reap(l) == 0 && used() == HELD);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    /* It had no descriptor to read /proc by, either. That its pid is no more is enough. */
    CHECK(hal_ledger_reap(l) == 1 && used() == 0);
    hal_ledger_close(l);
    close(ready[0]);
    close(ready[1]);
}

static void test_member_forks(bool with_handlers) {
    fresh();
    struct hal_member member = {.ledger = l};
    int mine = hal_member_slot(&member);
    CHECK(mine >= 0 && hal_member_slot(&member) == mine && hal_ledger_reserve(l, mine, 0, 5));
    pid_t pid = with_handlers ? fork_child() : (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (with_handlers) hal_member_forked(&member);
        int own = hal_member_slot(&member);
        if (own < 0 || own == mine || !hal_ledger_reserve(l, own, 0, HELD)) _exit(1);
        wait_for_end();
    }
    hear();
    CHECK(used() == HELD + 5 && hal_ledger_reap(l) == 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    CHECK(hal_ledger_reap(l) == 1 && used() == 5);
    hal_ledger_leave(l, mine);
    CHECK(used() == 0);
    hal_ledger_close(l);
}

/* ---- who a process is ---------------------------------------------------------------------------- */

static void test_process(void) {
    struct hal_process me = hal_process_self(), other = me;
    CHECK(me.pid == (uint32_t)getpid() && me.start != 0 && hal_process_fate(&me) == HAL_LIVES);
    other.start ^= 1; /* the pid was used again */
    CHECK(hal_process_fate(&other) == HAL_DEAD);
    other.time_namespace ^= 1; /* by whom, another time namespace cannot tell */
    CHECK(hal_process_fate(&other) == HAL_UNKNOWN_FATE);
    other = me;
    other.pid = 0x3fffff;
    CHECK(hal_process_fate(&other) == HAL_DEAD);
    other.pid_namespace ^= 1;
    CHECK(hal_process_fate(&other) == HAL_UNKNOWN_FATE);
    other = me;
    other.start = 0;
    CHECK(hal_process_fate(&other) == HAL_UNKNOWN_FATE);
    fresh();
    pid_t pid = fork_child();
    if (pid == 0) {
        me = hal_process_self();
        if (write(ready[1], &me, sizeof me) != sizeof me) _exit(1);
        in_thread(stay);
        pthread_exit(NULL);
    }
    CHECK(read(ready[0], &other, sizeof other) == sizeof other);
    hear();
    usleep(50 * 1000);
    CHECK(hal_process_fate(&other) != HAL_DEAD);
    kill(pid, SIGKILL);
    siginfo_t info;
    CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
    CHECK(hal_process_fate(&other) == HAL_DEAD); /* a zombie */
    waitpid(pid, NULL, 0);
    CHECK(hal_process_fate(&other) == HAL_DEAD);
    hal_ledger_close(l);
}

int main(void) {
    lives("as it is", lives_as_it_is);
    lives("joining thread ended", its_joining_thread_ended);
    lives("joining thread ended by SYS_exit", its_joining_thread_ended_raw);
    lives("first thread ended", its_first_thread_ended);
    lives("closed all", it_closed_all_descriptors);
    lives("close_range", it_closed_all_at_once);
    lives("vfork", it_started_a_program_by_vfork);
    lives("fork, child died", it_forked_and_the_child_died);
    lives("fork, parent died", it_joined_in_a_fork_of_a_member);
    dies(exits);
    dies(executes);
    dies(executes_in_a_thread);
    dies(dies_and_its_child_stays);
    test_namespaces();
    test_unvouched();
    test_member_forks(true);
    test_member_forks(false);
    test_process();
    fresh_path("vouch");
    return 0;
}
