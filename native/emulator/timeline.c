#define _GNU_SOURCE
#include "timeline.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "emulator.h"

enum { CONTEXTS = 64, BENDS = 1024, QUEUE = 1024 };
enum { MS = 1000000, WINDOW = 500 * MS };

/* What one process has on one device. */
struct context {
    int32_t pid;
    int64_t until;                /* the mark of its last work */
    int64_t used;                 /* nanoseconds of the device that it has had */
    int64_t used_before, before;  /* the same when the last window began, and when that was */
    int32_t share;                /* in that window, in thousandths */
};

/* Where the pace of `progress` changed. */
struct bend {
    int64_t at, progress;
    int32_t active;
};

/* Sliced: every context that has work comes forward at the same pace, 1/active of real time; `progress`
 * is how far such a context has come. So when a context's work ends depends only on `progress`, and
 * whoever comes later changes the pace and nothing that was said before.
 * First come, first served: `progress` is real time itself, and there is one queue for all. */
struct timeline {
    pthread_mutex_t lock; /* robust: its holder may be killed */
    int64_t at, progress, queued;
    uint64_t bends;
    struct context context[CONTEXTS];
    struct bend bend[BENDS];
};
_Static_assert(sizeof(struct timeline) <= HAL_MACHINE_TIMELINE, "enlarge HAL_MACHINE_TIMELINE");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool fifo, timeless;
static int64_t most_work = INT64_MAX;
static unsigned most_launches = QUEUE;

static struct {
    int64_t mark[QUEUE];
    _Atomic uint64_t submitted;
} queue[HAL_LEDGER_DEVICES]; /* of this process */

int64_t timeline_duration(const char *text) {
    static const struct {
        const char *unit;
        int64_t ns;
    } units[] = {{"", 1}, {"ns", 1}, {"us", 1000}, {"ms", MS}, {"s", 1000 * MS}};
    char *end;
    long long number = strtoll(text, &end, 10);
    if (end == text || number < 0) return -1;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(end, units[i].unit) == 0 && number <= INT64_MAX / 1000 / units[i].ns)
            return number * units[i].ns;
    return -1;
}

static void forget_queue(void) { memset(queue, 0, sizeof queue); }

static void start(void) {
    const char *sharing = getenv("HAL_EMULATOR_SHARING"), *depth = getenv("HAL_EMULATOR_QUEUE");
    fifo = sharing != NULL && strcmp(sharing, "fifo") == 0;
    timeless = depth != NULL && timeline_duration(depth) == 0;
    if (depth != NULL && timeline_duration(depth) > 0) {
        bool is_count = strspn(depth, "0123456789") == strlen(depth);
        if (!is_count) most_work = timeline_duration(depth);
        if (is_count && atoi(depth) < QUEUE) most_launches = (unsigned)atoi(depth);
    }
    pthread_atfork(NULL, NULL, forget_queue);
}

static bool is_timeless(void) {
    pthread_once(&once, start);
    return timeless;
}

int64_t timeline_now(void) {
    struct timespec t;
    if (is_timeless()) return 0;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct timeline *of(unsigned device) {
    return (struct timeline *)(void *)emulator_machine()->timeline[device];
}

void timeline_format(struct hal_machine *m) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    for (unsigned i = 0; i < HAL_LEDGER_DEVICES; i++)
        pthread_mutex_init(&((struct timeline *)(void *)m->timeline[i])->lock, &kind);
    pthread_mutexattr_destroy(&kind);
}

/* ---- under the lock ---------------------------------------------------------------------------- */

static int active(const struct timeline *t) {
    int count = 0;
    for (int i = 0; i < CONTEXTS; i++) count += t->context[i].until > t->progress;
    return count;
}

static void bend(struct timeline *t) {
    int now = active(t);
    struct bend *last = &t->bend[(t->bends - 1) % BENDS];
    if (t->bends > 0 && last->active == now && last->active > 0) return; /* it goes on as before */
    t->bend[t->bends++ % BENDS] = (struct bend){t->at, t->progress, now};
}

static void credit(struct timeline *t, int64_t each) {
    for (int i = 0; i < CONTEXTS; i++)
        if (t->context[i].until > t->progress) t->context[i].used += each;
}

/* From one end of some context's work to the next, up to `now`. */
static void advance_sliced(struct timeline *t, int64_t now) {
    for (;;) {
        int64_t next = INT64_MAX;
        int count = active(t);
        if (count == 0) break;
        for (int i = 0; i < CONTEXTS; i++)
            if (t->context[i].until > t->progress && t->context[i].until < next)
                next = t->context[i].until;
        int64_t step = next - t->progress, possible = (now - t->at) / count;
        if (step > possible) {
            credit(t, possible);
            t->progress += possible;
            t->at += possible * count; /* the rest, less than a nanosecond each, stays for the next time */
            return;
        }
        credit(t, step);
        t->progress = next;
        t->at += step * count;
        bend(t);
    }
    t->at = now;
}

static void window(struct timeline *t, int64_t now) {
    for (int i = 0; i < CONTEXTS; i++) {
        struct context *c = &t->context[i];
        if (now - c->before < WINDOW) continue;
        c->share = (int32_t)((c->used - c->used_before) * 1000 / (now - c->before));
        c->used_before = c->used;
        c->before = now;
    }
}

static struct timeline *enter(unsigned device) {
    pthread_once(&once, start);
    struct timeline *t = of(device);
    if (pthread_mutex_lock(&t->lock) == EOWNERDEAD) pthread_mutex_consistent(&t->lock);
    int64_t now = timeline_now();
    if (fifo)
        t->at = t->progress = now;
    else
        advance_sliced(t, now);
    window(t, now);
    return t;
}

static void leave(struct timeline *t) { pthread_mutex_unlock(&t->lock); }

/* This process's own; made on first use, in place of one that has been idle the longest. */
static struct context *mine(struct timeline *t) {
    struct context *oldest = NULL;
    int32_t me = (int32_t)getpid();
    for (int i = 0; i < CONTEXTS; i++) {
        struct context *c = &t->context[i];
        if (c->pid == me) return c;
        if (c->until <= t->progress && (oldest == NULL || c->until < oldest->until)) oldest = c;
    }
    if (oldest == NULL) oldest = &t->context[me % CONTEXTS]; /* all are busy: it shares with another */
    *oldest = (struct context){.pid = me, .until = oldest->until, .before = t->at};
    return oldest;
}

/* ---- for the drivers ---------------------------------------------------------------------------- */

static void sleep_until(int64_t then) {
    struct timespec t = {then / 1000000000, then % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

void timeline_wait(unsigned device, int64_t mark) {
    if (is_timeless()) return;
    for (;;) {
        struct timeline *t = enter(device);
        int64_t missing = mark - t->progress, now = t->at;
        int count = fifo ? 1 : active(t);
        leave(t);
        if (missing <= 0) return;
        sleep_until(now + missing * (count > 0 ? count : 1)); /* or later, when others come */
    }
}

static bool is_full(unsigned device, int64_t *mark) {
    uint64_t n = atomic_load(&queue[device].submitted);
    *mark = n >= most_launches ? queue[device].mark[(n - most_launches) % QUEUE] : 0;
    if (*mark != 0 && !timeline_done(device, *mark)) return true;
    if (most_work == INT64_MAX) return false;
    struct timeline *t = enter(device);
    *mark = mine(t)->until - most_work;
    bool full = *mark > t->progress;
    leave(t);
    return full;
}

int64_t timeline_submit(unsigned device, int64_t ns) {
    int64_t mark;
    pthread_once(&once, start);
    if (timeless) return 0;
    while (is_full(device, &mark)) timeline_wait(device, mark);
    struct timeline *t = enter(device);
    struct context *c = mine(t);
    int64_t from = fifo ? t->queued : c->until;
    bool idle = c->until <= t->progress;
    mark = (from > t->progress ? from : t->progress) + ns;
    c->until = t->queued = mark;
    if (fifo)
        c->used += ns; /* ahead of time, by no more than what waits */
    else if (idle)
        bend(t);
    leave(t);
    uint64_t n = atomic_fetch_add(&queue[device].submitted, 1);
    queue[device].mark[n % QUEUE] = mark;
    return mark;
}

int64_t timeline_mark(unsigned device) {
    if (is_timeless()) return 0;
    struct timeline *t = enter(device);
    int64_t mark = mine(t)->until;
    leave(t);
    return mark;
}

bool timeline_done(unsigned device, int64_t mark) {
    if (is_timeless()) return true;
    struct timeline *t = enter(device);
    bool done = mark <= t->progress;
    leave(t);
    return done;
}

int64_t timeline_reached(unsigned device, int64_t mark) {
    if (is_timeless()) return 0;
    struct timeline *t = enter(device);
    int64_t at = mark;
    if (!fifo && t->bends > 0) {
        /* The newest bend before the mark; from there it went on at that pace. */
        uint64_t i = t->bends, oldest = t->bends > BENDS ? t->bends - BENDS : 0;
        while (--i > oldest && t->bend[i % BENDS].progress >= mark) continue;
        const struct bend *b = &t->bend[i % BENDS];
        at = b->at + (mark - b->progress) * b->active;
    }
    leave(t);
    return at;
}

int timeline_share(unsigned device, int32_t pid) {
    struct timeline *t = enter(device);
    int total = -1;
    for (int i = 0; i < CONTEXTS; i++) {
        const struct context *c = &t->context[i];
        if (c->pid == 0) continue;
        if (total < 0) total = 0;
        if (pid == 0 || c->pid == pid) total += c->share;
    }
    leave(t);
    return total;
}
