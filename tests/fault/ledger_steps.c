/* Single-steps a process through the ledger's operations and kills it after each instruction.
 *
 *   ledger_steps FILE       prints one line for each operation: how many instructions, how many deaths
 *
 * Reserve and release: a death after every instruction, and a standstill after every instruction while the
 * slot of another, which died inside an operation, is reaped. The longer operations: a death after every
 * instruction that changed anything in the file; between those the dead leave the same.
 * Afterwards the ledger must never have counted too little, and must be exact once reaped. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hal_ledger.h"

enum { MINE = 30, HELD = 70, LIMIT = 1000, WATCHED = 4 };

static struct hal_ledger *l;
static int mine, slot; /* of this process, and of the child in itself */
static long at;        /* instruction or change that is being tested, for messages */
static const char *what;

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s, %ld: line %d: %s: used %llu\n", what, at, __LINE__, #condition, \
                    (unsigned long long)used());                                                \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

static uint64_t used(void) { return atomic_load(&l->device[0].used); }

static uint64_t sum(int *claimed) {
    uint64_t all = 0;
    *claimed = 0;
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        if (hal_ledger_owner_pid(atomic_load(&l->slot[i].owner)) == 0) continue;
        all += hal_ledger_mine(&l->slot[i], 0);
        ++*claimed;
    }
    return all;
}

/* ---- operations ------------------------------------------------------------------------------ */

static void nothing(void) {}

static void hold(void) {
    slot = hal_ledger_join(l);
    if (slot < 0 || !hal_ledger_reserve(l, slot, 0, HELD)) _exit(1);
}

/* As much, but one lane has more and another is below zero: the free went by another than the allocation. */
static void hold_in_lanes(void) {
    hold();
    struct hal_ledger_lane *lane = l->slot[slot].lane;
    for (int by = 0; by < 2; by++) {
        for (int i = 0; i < HAL_LEDGER_LANES; i++) atomic_fetch_or(&lane[i].op, (uint64_t)(i != by));
        if (by == 0 && !hal_ledger_reserve(l, slot, 0, 200)) _exit(1);
        if (by == 1) hal_ledger_release(l, slot, 0, 200);
        for (int i = 0; i < HAL_LEDGER_LANES; i++) atomic_fetch_and(&lane[i].op, ~UINT64_C(0xff));
    }
}

static void reserve(void) { hal_ledger_reserve(l, slot, 0, 200); }
static void release(void) { hal_ledger_release(l, slot, 0, 20); }
static void refuse(void) { hal_ledger_reserve(l, slot, 0, 5000); }
static void leave(void) { hal_ledger_leave(l, slot); }
static void reap(void) { hal_ledger_reap(l); }

struct operation {
    const char *name;
    void (*before)(void), (*run)(void);
    uint64_t least, after; /* what the child holds at least all the time, and when it is through */
};

/* ---- a child, instruction by instruction ------------------------------------------------------ */

static void stop_here(void) { kill(getpid(), SIGSTOP); }

/* Stopped just before the operation. */
static pid_t start(const struct operation *o) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        o->before();
        stop_here();
        o->run();
        stop_here();
        _exit(0);
    }
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    return pid;
}

/* One instruction on: false when the operation is through. */
static bool step(pid_t pid) {
    int status;
    CHECK(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFSTOPPED(status) && (WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP));
    return WSTOPSIG(status) == SIGTRAP;
}

static void finish(pid_t pid) {
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
}

/* Everybody but this process is dead. */
static void must_be_exact(void) {
    int claimed;
    CHECK(used() >= MINE);
    CHECK(!hal_ledger_reserve(l, mine, 0, LIMIT - MINE + 1)); /* reaps */
    CHECK(used() == MINE && sum(&claimed) == MINE && claimed == 1);
    CHECK(hal_ledger_reserve(l, mine, 0, LIMIT - MINE));
    hal_ledger_release(l, mine, 0, LIMIT - MINE);
    CHECK(atomic_load(&l->hold) == 0 && hal_ledger_recount(l, 0) && used() == MINE);
}

/* Dies between two steps of a reserve: `used` has it, `mine` has not. */
static const struct operation half = {"half a reserve", hold, reserve, HELD, HELD + 200};

static void die_inside(void) {
    uint64_t before = used();
    pid_t pid = start(&half);
    uint64_t with = used();
    CHECK(with == before + HELD);
    while (used() == with) CHECK(step(pid));
    finish(pid);
}

static void die_quietly(void) {
    pid_t pid = start(&half);
    finish(pid);
}

static void die_with_lanes(void) {
    static const struct operation lanes = {"lanes", hold_in_lanes, nothing, HELD, HELD};
    finish(start(&lanes));
}

/* ---- every instruction ------------------------------------------------------------------------ */

static void kill_at_each_instruction(const struct operation *o) {
    bool through = false;
    int claimed;
    what = o->name;
    for (at = 0; !through; at++) {
        pid_t pid = start(o);
        for (long n = 0; n < at && !through; n++) {
            through = !step(pid);
            CHECK(used() >= MINE + o->least && used() >= sum(&claimed) && used() <= LIMIT);
        }
        finish(pid);
        must_be_exact();
    }
    printf("%s: %ld instructions, each died after\n", o->name, at - 1);
}

static void stand_still_at_each_instruction(const struct operation *o, uint64_t bytes) {
    bool through = false;
    int status;
    what = o->name;
    for (at = 0; !through; at++) {
        pid_t pid = start(o);
        for (long n = 0; n < at && !through; n++) through = !step(pid);
        die_inside();
        hal_ledger_reap(l);
        /* All that the dead one held is back, but for what the other's operation may account for: what it moves,
         * or, while it has not noted that yet, what the operation before it has moved. */
        CHECK(used() >= MINE + o->least && used() <= MINE + HELD + (2 * bytes > HELD ? 2 * bytes : HELD));
        if (!through) { /* it goes on to the end */
            CHECK(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0 && waitpid(pid, &status, 0) == pid);
            CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        }
        hal_ledger_reap(l);
        CHECK(used() == MINE + o->after);
        finish(pid);
        must_be_exact();
    }
    printf("%s: %ld instructions, stood still after each while another was reaped\n", o->name, at - 1);
}

/* ---- every change ------------------------------------------------------------------------------- */

struct words {
    uint64_t hold, used, slot[WATCHED][4 + 2 * HAL_LEDGER_LANES];
};

static struct words look(void) {
    struct words w = {.hold = atomic_load(&l->hold), .used = used()};
    for (int i = 0; i < WATCHED; i++) {
        const struct hal_ledger_slot *s = &l->slot[i];
        w.slot[i][0] = atomic_load(&s->owner);
        w.slot[i][1] = atomic_load(&s->start);
        w.slot[i][2] = atomic_load(&s->pid_namespace);
        w.slot[i][3] = atomic_load(&s->time_namespace);
        for (int n = 0; n < HAL_LEDGER_LANES; n++) {
            w.slot[i][4 + 2 * n] = atomic_load(&s->lane[n].op);
            w.slot[i][5 + 2 * n] = atomic_load(&s->lane[n].mine[0]);
        }
    }
    return w;
}

static void kill_at_each_change(const struct operation *o, void (*other)(void), const char *of) {
    bool through = false;
    long steps = 0;
    what = o->name;
    for (at = 0; !through; at++) {
        other();
        pid_t pid = start(o);
        steps = 0;
        struct words before = look();
        for (long changes = 0; changes < at && !through; steps++) {
            through = !step(pid);
            CHECK(used() >= MINE + o->least);
            struct words now = look();
            changes += memcmp(&now, &before, sizeof now) != 0;
            before = now;
        }
        finish(pid);
        must_be_exact();
    }
    printf("%s%s: %ld instructions, died after each of %ld that changed anything\n", o->name, of, steps, at - 1);
}

int main(int argc, char **argv) {
    enum hal_ledger_error error;
    what = "start";
    CHECK(argc == 2 && hal_ledger_create(argv[1], "steps", 1) == 0);
    l = hal_ledger_open(argv[1], &error);
    CHECK(l != NULL && hal_ledger_set_limit(l, 0, LIMIT));
    mine = hal_ledger_join(l);
    CHECK(mine >= 0 && hal_ledger_reserve(l, mine, 0, MINE));

    const struct operation reserving = {"reserve", hold, reserve, HELD, HELD + 200};
    const struct operation releasing = {"release", hold, release, HELD - 20, HELD - 20};
    kill_at_each_instruction(&reserving);
    kill_at_each_instruction(&releasing);
    stand_still_at_each_instruction(&reserving, 200);
    stand_still_at_each_instruction(&releasing, 20);

    const struct operation joining = {"join and reserve", nothing, hold, 0, HELD};
    const struct operation leaving = {"leave", hold, leave, 0, 0};
    const struct operation refusing = {"refused reserve", hold, refuse, HELD, HELD};
    const struct operation reaping = {"reap", nothing, reap, 0, 0};
    kill_at_each_change(&joining, nothing, "");
    kill_at_each_change(&leaving, nothing, "");
    const struct operation leaving_lanes = {"leave lanes", hold_in_lanes, leave, 0, 0};
    kill_at_each_change(&leaving_lanes, nothing, "");
    kill_at_each_change(&reaping, die_with_lanes, " of one that had lanes below zero");
    kill_at_each_change(&refusing, die_quietly, " that reaps");
    kill_at_each_change(&reaping, die_quietly, " of one that died at rest");
    kill_at_each_change(&reaping, die_inside, " of one that died inside a reserve");
    return 0;
}
