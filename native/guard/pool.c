#define _GNU_SOURCE
#include "pool.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "slice.h"

enum { POOLS = 1024, VERSION_SHIFT = 48 };

struct pool {
    _Atomic(const struct pool_driver *) driver; /* NULL: free */
    _Atomic uint64_t handle;                    /* 0: destroyed */
    unsigned device;
    /* Charged bytes below, a count of changes above, so that a figure that was read before another thread's
     * correction is never put over it. */
    _Atomic uint64_t charged;
    _Atomic uint64_t promised; /* reserved by allocations that are under way */
    _Atomic uint64_t live;     /* handed out */
};

static struct pool pools[POOLS];
static _Atomic unsigned opened; /* none is open from here on */
static _Atomic bool freed;      /* pools may be smaller than they were */
static struct pool *_Atomic recent;

static uint64_t bytes_of(uint64_t charged) { return charged & ((UINT64_C(1) << VERSION_SHIFT) - 1); }

static uint64_t next(uint64_t charged, uint64_t bytes) {
    return ((charged >> VERSION_SHIFT) + 1) << VERSION_SHIFT | bytes;
}

static bool is(struct pool *p, const struct pool_driver *driver, uint64_t handle) {
    return atomic_load_explicit(&p->driver, memory_order_acquire) == driver &&
           atomic_load_explicit(&p->handle, memory_order_acquire) == handle;
}

struct pool *pool_find(const struct pool_driver *driver, uint64_t handle) {
    struct pool *p = atomic_load_explicit(&recent, memory_order_acquire);
    if (p != NULL && is(p, driver, handle)) return p;
    unsigned count = atomic_load(&opened);
    for (p = pools; p < pools + count; p++) {
        if (!is(p, driver, handle)) continue;
        atomic_store(&recent, p);
        return p;
    }
    return NULL;
}

struct pool *pool_open(const struct pool_driver *driver, uint64_t handle, unsigned device) {
    static _Atomic int busy; /* two threads that open the same pool would charge it twice */
    struct pool *found;
    while (atomic_exchange(&busy, 1) != 0) continue; /* a few stores long, once a pool */
    found = pool_find(driver, handle);
    for (unsigned i = 0; found == NULL && i < POOLS; i++) {
        struct pool *p = &pools[i];
        if (atomic_load(&p->driver) != NULL) continue;
        p->device = device;
        atomic_store(&p->charged, 0);
        atomic_store(&p->promised, 0);
        atomic_store(&p->live, 0);
        atomic_store(&p->handle, handle);
        atomic_store(&p->driver, driver);
        if (i >= atomic_load(&opened)) atomic_store(&opened, i + 1);
        found = p;
    }
    atomic_store(&busy, 0);
    return found;
}

unsigned pool_number(const struct pool *p) { return (unsigned)(p - pools); }

unsigned pool_device(const struct pool *p) { return p->device; }

bool pool_begin(struct pool *p, uint64_t bytes, uint64_t *promised) {
    uint64_t has = bytes_of(atomic_load(&p->charged)), live = atomic_load(&p->live);
    *promised = 0;
    if (live <= has && has - live >= bytes) return true;
    if (!slice_try(p->device, bytes) && !(pool_squeeze(p->device) && slice_try(p->device, bytes))) {
        slice_refused(p->device, bytes);
        return false;
    }
    atomic_fetch_add(&p->promised, bytes);
    *promised = bytes;
    return true;
}

static void give(struct pool *p, uint64_t bytes) {
    if (bytes > 0) slice_release(p->device, bytes);
}

bool pool_settle(struct pool *p, uint64_t promised) {
    uint64_t before, now, has;
    if (promised > 0) atomic_fetch_sub(&p->promised, promised);
    do {
        before = atomic_load(&p->charged);
        has = bytes_of(before);
        const struct pool_driver *driver = atomic_load(&p->driver);
        uint64_t handle = atomic_load(&p->handle);
        if (driver == NULL || handle == 0 || !driver->reserved(handle, &now) || now == has) {
            give(p, promised);
            return true;
        }
    } while (!atomic_compare_exchange_strong(&p->charged, &before, next(before, now)));
    uint64_t owed = now > has ? now - has : 0, spare = promised + (has > now ? has - now : 0);
    if (spare >= owed) {
        give(p, spare - owed);
        return true;
    }
    uint64_t lacks = owed - spare;
    if (slice_try(p->device, lacks)) return true;
    before = atomic_load(&p->charged); /* charged is what the slice's ledger has */
    do {
        has = bytes_of(before);
        now = has > lacks ? has - lacks : 0;
    } while (!atomic_compare_exchange_weak(&p->charged, &before, next(before, now)));
    return atomic_load(&p->promised) >= lacks; /* it was another's growth that was seen, and that one pays */
}

void pool_used(struct pool *p, uint64_t bytes) { atomic_fetch_add(&p->live, bytes); }

static void bury(struct pool *p) {
    give(p, bytes_of(atomic_exchange(&p->charged, 0)));
    atomic_store(&p->driver, NULL);
}

void pool_freed(unsigned number, uint64_t bytes) {
    struct pool *p = &pools[number];
    uint64_t live = atomic_fetch_sub(&p->live, bytes) - bytes;
    if (atomic_load(&p->handle) == 0 && live == 0)
        bury(p);
    else if (!atomic_load(&freed))
        atomic_store(&freed, true);
}

void pool_close(struct pool *p) {
    struct pool *me = p;
    atomic_compare_exchange_strong(&recent, &me, NULL);
    atomic_store(&p->handle, 0);
    if (atomic_load(&p->live) == 0) bury(p);
}

void pool_end(const struct pool_driver *driver, unsigned device, void (*forget)(unsigned)) {
    unsigned count = atomic_load(&opened);
    for (struct pool *p = pools; p < pools + count; p++) {
        if (atomic_load(&p->driver) != driver || p->device != device) continue;
        struct pool *me = p;
        atomic_compare_exchange_strong(&recent, &me, NULL);
        forget(pool_number(p));
        atomic_store(&p->live, 0);
        atomic_store(&p->handle, 0);
        bury(p);
    }
}

static bool settle_all(unsigned device, bool trim, bool any_device) {
    bool gave = false;
    unsigned count = atomic_load(&opened);
    for (struct pool *p = pools; p < pools + count; p++) {
        const struct pool_driver *driver = atomic_load(&p->driver);
        uint64_t handle = atomic_load(&p->handle), had = bytes_of(atomic_load(&p->charged));
        if (driver == NULL || handle == 0 || had == 0 || !(any_device || p->device == device)) continue;
        if (trim) driver->trim(handle);
        pool_settle(p, 0);
        gave |= bytes_of(atomic_load(&p->charged)) < had;
    }
    return gave;
}

static bool keeps_something(void) {
    unsigned count = atomic_load(&opened);
    for (struct pool *p = pools; p < pools + count; p++)
        if (atomic_load(&p->driver) != NULL && bytes_of(atomic_load(&p->charged)) > atomic_load(&p->live))
            return true;
    return false;
}

/* While a pool keeps something it may let go of that later. Looked at again after the flag is down: a free
 * that still saw it up was before. */
void pool_settle_freed(void) {
    if (!atomic_load_explicit(&freed, memory_order_relaxed)) return;
    settle_all(0, false, true);
    if (keeps_something()) return;
    atomic_store(&freed, false);
    if (keeps_something()) atomic_store(&freed, true);
}

bool pool_squeeze(unsigned device) { return settle_all(device, true, false); }

void pool_forked(void) {
    memset(pools, 0, sizeof pools);
    atomic_store(&opened, 0);
    atomic_store(&recent, NULL);
}
