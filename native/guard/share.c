#define _GNU_SOURCE
#include "share.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hal_ledger.h"
#include "slice.h"

enum { US = 1000, MS = 1000000 };
enum {
    SETTLE = 200 * US,      /* of device time that a thread collects before it goes to the bucket */
    BURST = 5 * MS,         /* of wall time by which the slice may be ahead: hides the wake-up of a sleeper; more for
                               long work, which neighbours make longer: it waits on the device, not for the clock */
    CREDIT = 50 * MS,       /* of wall time that may be made up for after an idle spell */
    MEASURE = 5 * MS,       /* of device time, by function and grid, from one measurement to the next */
    RUN_AHEAD = 50 * MS,    /* of device time that may be charged and not known to be done */
    UNKNOWN = 200 * MS,     /* of wall time to wait for the first measurement of a function */
    STUCK = 500 * MS,       /* of wall time to wait for work that does not end: it may wait for the host */
    CALM = 200 * MS,        /* of wall time without contention after which an elastic slice may exceed its share */
};
static const int64_t FORGET = 30000 * (int64_t)MS; /* wall time for which a least time is believed, at least */

enum { NEUTRAL = 1000, LEAST_TRIM = 250 }; /* thousandths, as in hal/enforce/trim.py */
enum { KINDS = 2048, SAMPLES = 32, PROBES = 16 };

/* One function with one size of grid, of this process. */
struct kind {
    _Atomic uint64_t key;    /* 0: free */
    _Atomic int64_t takes;   /* nanoseconds of the device when nobody else uses it; 0: not known yet */
    _Atomic int64_t since;   /* charged since it was last measured */
    _Atomic int64_t unpaid;  /* launches before it was known */
    /* Under `busy`. Since it has its present price: what was charged for it, and the slice's total then. */
    int64_t least, least_before, turned, mean, price, paid, total;
};

/* FREE -> OPEN under `busy`; OPEN -> ENDED or FREE by the thread that launches; ENDED -> FREE under `busy`. */
enum { FREE, OPEN, ENDED };

struct share_sample {
    _Atomic int state;
    struct kind *kind;
    void *from, *to;
    unsigned device;
    int64_t charged; /* the process's total when it was taken */
};

static struct kind kinds[KINDS], others; /* `others` when the table is full */
static struct share_sample samples[SAMPLES];
static atomic_flag busy = ATOMIC_FLAG_INIT; /* samples and measurements: who does not get it goes without */
static _Atomic int64_t charged;             /* by this process, in nanoseconds of device time */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What this thread has launched and not brought to the bucket. */
static _Thread_local int64_t pending;
static _Thread_local unsigned pending_on;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void nap(int64_t ns) { nanosleep(&(struct timespec){0, (long)ns}, NULL); }

/* ---- what a launch takes ------------------------------------------------------------------------- */

/* Sizes within an eighth of an octave are one class: exact up to 16, a few percent apart above. */
static uint64_t class_of(uint64_t size) {
    int octave = size < 16 ? 0 : 60 - __builtin_clzll(size);
    return (uint64_t)octave << 8 | size >> octave;
}

static struct kind *kind_of(uint64_t function, uint64_t size) {
    size = class_of(size);
    uint64_t key = function * UINT64_C(0x9E3779B97F4A7C15) ^ (size + 1) * UINT64_C(0xC2B2AE3D27D4EB4F);
    key |= 1;
    for (unsigned i = 0; i < PROBES; i++) {
        struct kind *k = &kinds[((key >> 40) + i) % KINDS];
        uint64_t there = atomic_load_explicit(&k->key, memory_order_relaxed);
        if (there == key) return k;
        if (there == 0 && (atomic_compare_exchange_strong(&k->key, &there, key) || there == key)) return k;
    }
    return &others;
}

/* Under steady contention `takes` is too high until a launch happens to meet nobody; by then whoever looks at the
 * driver's figures has corrected for it. A new price must not upset what that correction makes of them both: it would
 * be wrong for as long as those figures need to show it. */
static void reprice(struct kind *k, struct hal_ledger_device *d, int64_t price, int64_t now) {
    int64_t old = k->price, off = price - old, total = atomic_load(&d->share_charged_ns);
    int64_t since = atomic_load(&k->since); /* not counted as paid before the next measurement */
    if (old != 0 && (off < 0 ? -off : off) <= old / 32) return; /* together, small steps come to more than that */
    double part = total > k->total ? (double)(k->paid + since) / (double)(total - k->total) : 1;
    k->price = price;
    k->paid = -since;
    k->total = total;
    if (old == 0 || (off > 0 && atomic_load(&d->share_contended_ns) <= now)) return; /* nobody corrects it */
    double dearer = 1 + (part < 1 ? part : 1) * (double)off / (double)old;
    uint32_t trim = atomic_load(&d->share_trim);
    double kept = (double)trim / dearer;
    if (off < 0 && kept > NEUTRAL) kept = trim > NEUTRAL ? trim : NEUTRAL;
    if (off > 0 && kept < LEAST_TRIM) kept = trim < LEAST_TRIM ? trim : LEAST_TRIM;
    atomic_compare_exchange_strong(&d->share_trim, &trim, (uint32_t)(kept + 0.5));
}

/* Another program's work may run between two events (cuda.h says so), and makes the time too long, never too
 * short: so the least of a while is taken, or the mean where it is known that nobody else is there. */
static void learn(struct kind *k, struct hal_ledger_device *d, int64_t ns) {
    int64_t now = now_ns();
    if (ns < 1) ns = 1;
    if (k->mean == 0) k->turned = now;
    k->mean = k->mean == 0 ? ns : k->mean + (ns - k->mean) / 8;
    if (now - k->turned > FORGET) {
        k->least_before = k->least;
        k->least = 0;
        k->turned = now;
    }
    if (k->least == 0 || ns < k->least) k->least = ns;
    int64_t least = k->least_before != 0 && k->least_before < k->least ? k->least_before : k->least;
    bool alone = atomic_load_explicit(&d->share_alone, memory_order_relaxed) != 0;
    /* Who looks at the driver's figures may have written a time to come (hal/scheduler/agent/shares.py). */
    if (!alone && ns > least + least / 4 && atomic_load(&d->share_contended_ns) < now)
        atomic_store(&d->share_contended_ns, now);
    int64_t takes = alone ? k->mean : least;
    atomic_store(&k->takes, takes);
    reprice(k, d, takes, now);
}

/* ---- the bucket ---------------------------------------------------------------------------------- */

static int64_t add(struct hal_ledger_device *d, int64_t ns, int64_t now) {
    int64_t cap = atomic_load_explicit(&d->compute_milli, memory_order_relaxed);
    int64_t trim = atomic_load_explicit(&d->share_trim, memory_order_relaxed);
    int64_t cost = ns * trim / (cap > 0 ? cap : 1);
    int64_t until = atomic_load(&d->share_until_ns), from;
    do {
        from = until > now - CREDIT ? until : now - CREDIT;
    } while (!atomic_compare_exchange_weak(&d->share_until_ns, &until, from + cost));
    atomic_fetch_add_explicit(&d->share_charged_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&charged, ns, memory_order_relaxed);
    return from;
}

/* An elastic slice goes on while it meets nobody; then it owes nothing for that. */
static bool may_exceed(struct hal_ledger_device *d, int64_t now) {
    if (!atomic_load_explicit(&slice_ledger()->elastic, memory_order_relaxed)) return false;
    if (now - atomic_load(&d->share_contended_ns) < CALM) return false;
    int64_t until = atomic_load(&d->share_until_ns);
    if (until > now) atomic_compare_exchange_strong(&d->share_until_ns, &until, now);
    return true;
}

static int64_t ahead(const struct kind *k) {
    int64_t takes = atomic_load(&k->takes);
    return takes < BURST ? BURST : takes > RUN_AHEAD ? RUN_AHEAD : takes;
}

/* Sleeps to the time itself, not in steps. Who is given another share meanwhile is let go: what was owed was
 * reckoned by terms that hold no more. */
static void sleep_until(struct hal_ledger_device *d, int64_t then) {
    struct hal_ledger *l = slice_ledger();
    uint32_t milli = atomic_load(&d->compute_milli), epoch = atomic_load(&l->epoch);
    for (int64_t now = now_ns(); now < then && !may_exceed(d, now); now = now_ns()) {
        int64_t elastic = now + CALM; /* neighbours may come to rest */
        epoch = hal_ledger_wait_epoch(l, epoch, then < elastic ? then : elastic);
        if (atomic_load(&d->compute_milli) != milli) return;
    }
}

/* ---- measuring ----------------------------------------------------------------------------------- */

static bool take_busy(void) { return !atomic_flag_test_and_set_explicit(&busy, memory_order_acquire); }
static void give_busy(void) { atomic_flag_clear_explicit(&busy, memory_order_release); }

static void collect(const struct share_driver *driver) {
    for (struct share_sample *s = samples; s < samples + SAMPLES; s++) {
        int64_t ns;
        if (atomic_load_explicit(&s->state, memory_order_acquire) != ENDED) continue;
        int reached = driver->ask(s->to);
        if (reached == 0) continue;
        if (reached > 0 && driver->between(s->from, s->to, &ns)) {
            struct hal_ledger_device *d = slice_device(s->device);
            bool first = atomic_load(&s->kind->takes) == 0;
            learn(s->kind, d, ns);
            if (first) {
                int64_t owed = atomic_exchange(&s->kind->unpaid, 0) * ns;
                s->kind->paid += owed;
                add(d, owed, now_ns());
            }
        }
        atomic_store(&s->state, FREE);
    }
}

static struct share_sample *begin(const struct share_driver *driver, unsigned device, struct kind *k,
                                  void *stream) {
    for (struct share_sample *s = samples; s < samples + SAMPLES; s++) {
        if (atomic_load_explicit(&s->state, memory_order_acquire) != FREE) continue;
        if (s->from == NULL) s->from = driver->make();
        if (s->to == NULL) s->to = driver->make();
        if (s->from == NULL || s->to == NULL || !driver->record(s->from, stream)) return NULL;
        s->kind = k;
        s->device = device;
        s->charged = atomic_load(&charged);
        atomic_store(&s->state, OPEN);
        return s;
    }
    return NULL;
}

/* The oldest measurement that is not known to have ended; `of` only this kind's, or NULL. */
static const struct share_sample *oldest(const struct kind *of) {
    const struct share_sample *found = NULL;
    for (const struct share_sample *s = samples; s < samples + SAMPLES; s++)
        if (atomic_load(&s->state) == ENDED && (of == NULL || s->kind == of) &&
            (found == NULL || s->charged < found->charged))
            found = s;
    return found;
}

/* Too much is on its way that is not known to be done: the estimates may be wrong, or the device behind. */
static bool too_far(const struct kind *k) {
    const struct share_sample *first = oldest(NULL);
    if (first == NULL) return false;
    int64_t allowed = 2 * atomic_load(&k->takes);
    if (allowed < RUN_AHEAD) allowed = RUN_AHEAD;
    return atomic_load(&charged) - first->charged > allowed;
}

/* Each wait has an end: the work may itself wait for what the program does next. */
static void catch_up(const struct share_driver *driver, struct kind *k) {
    int64_t start = now_ns();
    collect(driver);
    for (int64_t spent = 0; spent < STUCK; spent = now_ns() - start) {
        bool unknown = spent < UNKNOWN && atomic_load(&k->takes) == 0 && oldest(k) != NULL;
        if (!unknown && !too_far(k)) return;
        nap(spent < MS ? 20 * US : 200 * US);
        collect(driver);
    }
}

/* ---- for the hooks ------------------------------------------------------------------------------- */

static void forked(void) {
    memset(samples, 0, sizeof samples); /* events, and what they measure, are the parent's */
    for (struct kind *k = kinds; k < kinds + KINDS; k++) atomic_store(&k->unpaid, 0);
    atomic_store(&charged, 0);
    atomic_flag_clear(&busy);
    pending = 0;
}

static void start(void) { pthread_atfork(NULL, NULL, forked); }

static void settle(const struct share_driver *driver, unsigned device, struct kind *k, void *stream,
                   struct share_ticket *out) {
    struct hal_ledger_device *d = slice_device(device);
    int kept;
    pthread_once(&once, start);
    enum share_view view = driver->enter(stream, &kept);
    if (view == SHARE_CAPTURED) { /* it is charged when the graph is launched */
        pending = 0;
        return;
    }
    bool measuring = view == SHARE_READY && take_busy();
    if (measuring) catch_up(driver, k);
    int64_t from = add(d, pending, now_ns());
    pending = 0;
    bool wanted = atomic_load(&k->takes) == 0 || atomic_load(&k->since) >= MEASURE;
    if (measuring && !wanted) give_busy();
    int64_t when = from - ahead(k);
    if (when > now_ns()) {
        /* Nobody waits for a sleeper's measurement: it is begun after the sleep. */
        if (measuring && wanted) give_busy();
        sleep_until(d, when);
        measuring = view == SHARE_READY && wanted && take_busy();
    }
    if (measuring && wanted) {
        out->sample = begin(driver, device, k, stream);
        if (out->sample != NULL) k->paid += atomic_exchange(&k->since, 0);
        give_busy();
    }
    if (view == SHARE_READY) driver->leave(kept);
}

void share_before(const struct share_driver *driver, unsigned device, uint64_t kind, uint64_t size,
                  void *stream, struct share_ticket *out) {
    *out = (struct share_ticket){driver, NULL, stream};
    struct hal_ledger_device *d = slice_device(device);
    slice_await_running();
    if (d == NULL || atomic_load_explicit(&d->compute_milli, memory_order_relaxed) >= HAL_LEDGER_MILLI) return;
    struct kind *k = kind_of(kind, size);
    int64_t takes = atomic_load_explicit(&k->takes, memory_order_relaxed);
    if (pending_on != device) { /* a few microseconds go to the other device's account */
        pending_on = device;
        pending = 0;
    }
    pending += takes;
    int64_t since = atomic_load_explicit(&k->since, memory_order_relaxed) + takes;
    atomic_store_explicit(&k->since, since, memory_order_relaxed);
    if (takes == 0) atomic_fetch_add(&k->unpaid, 1);
    if (takes == 0 || pending >= SETTLE || since >= MEASURE) settle(driver, device, k, stream, out);
}

void share_after(struct share_ticket *ticket, bool launched) {
    struct share_sample *s = ticket->sample;
    if (s == NULL) return;
    int kept;
    if (launched && ticket->driver->enter(ticket->stream, &kept) == SHARE_READY) {
        launched = ticket->driver->record(s->to, ticket->stream);
        ticket->driver->leave(kept);
    } else {
        launched = false;
    }
    atomic_store_explicit(&s->state, launched ? ENDED : FREE, memory_order_release);
}
