#define _GNU_SOURCE
#include "hal_ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"

static const char MAGIC[8] = {'H', 'A', 'L', 'S', 'L', 'I', 'C', 'E'};

enum { RECOUNT_TRIES = 2000, TRIES_A_TURN = 16 };

/* ---- the file ------------------------------------------------------------------------------- */

void hal_ledger_format(struct hal_ledger *l, const char *name, unsigned devices) {
    memcpy(l->magic, MAGIC, sizeof MAGIC);
    l->version = HAL_LEDGER_VERSION;
    l->size = (uint32_t)sizeof *l;
    l->devices = devices < HAL_LEDGER_DEVICES ? devices : HAL_LEDGER_DEVICES;
    snprintf(l->name, sizeof l->name, "%s", name);
    for (unsigned d = 0; d < HAL_LEDGER_DEVICES; d++) {
        atomic_store(&l->device[d].share_milli, HAL_SHARE_ALL);
        atomic_store(&l->device[d].share_trim, 1000);
    }
}

void hal_ledger_set_share(struct hal_ledger *l, unsigned device, uint32_t milli, bool elastic) {
    struct hal_ledger_device *d = &l->device[device];
    atomic_store(&d->share_milli, milli < 1 ? 1 : milli > HAL_SHARE_ALL ? HAL_SHARE_ALL : milli);
    atomic_store(&d->share_elastic, elastic);
    if (milli < HAL_SHARE_ALL) atomic_store(&l->shares, 1);
    atomic_store(&d->share_until, 0); /* what was owed was owed by the old terms */
    atomic_fetch_add(&d->share_terms, 1);
    syscall(SYS_futex, &d->share_terms, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int hal_ledger_create(const char *path, const char *name, unsigned devices) {
    char draft[4096];
    if (snprintf(draft, sizeof draft, "%s.%d.new", path, (int)getpid()) >= (int)sizeof draft) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int fd = open(draft, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    int result = -1;
    /* Not sparse: a full disk is to be met here, not as a SIGBUS at the first touch. */
    if ((errno = posix_fallocate(fd, 0, sizeof(struct hal_ledger))) == 0) {
        struct hal_ledger *l =
            mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (l != MAP_FAILED) {
            hal_ledger_format(l, name, devices);
            munmap(l, sizeof *l);
            result = link(draft, path); /* unlike rename, never replaces a ledger in use */
        }
    }
    int saved = errno;
    unlink(draft);
    close(fd);
    errno = saved;
    return result;
}

struct hal_ledger *hal_ledger_open(const char *path, enum hal_ledger_error *error) {
    *error = HAL_LEDGER_SYSTEM;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return NULL;
    struct stat st;
    struct hal_ledger *l = MAP_FAILED;
    if (fstat(fd, &st) == 0) {
        if (!S_ISREG(st.st_mode) || (size_t)st.st_size < offsetof(struct hal_ledger, name))
            *error = HAL_LEDGER_FOREIGN;
        else
            l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    int saved = errno;
    close(fd);
    errno = saved;
    if (l == MAP_FAILED) return NULL;
    /* The head lies in the first page, which exists: reading it cannot fault on a short file. */
    if (memcmp(l->magic, MAGIC, sizeof MAGIC) != 0)
        *error = HAL_LEDGER_FOREIGN;
    else if (l->version != HAL_LEDGER_VERSION)
        *error = HAL_LEDGER_OTHER_VERSION;
    else if (l->size != sizeof *l || st.st_size != (off_t)sizeof *l ||
             l->devices > HAL_LEDGER_DEVICES)
        *error = HAL_LEDGER_FOREIGN;
    else
        *error = HAL_LEDGER_OK;
    if (*error == HAL_LEDGER_OK) return l;
    munmap(l, sizeof *l);
    return NULL;
}

void hal_ledger_close(struct hal_ledger *l) { munmap(l, sizeof *l); }

/* ---- slots ---------------------------------------------------------------------------------- */

static int claim(struct hal_ledger *l, uint64_t me) {
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &l->slot[i];
        uint64_t nobody = 0;
        if (atomic_load_explicit(&s->owner, memory_order_relaxed) != 0 ||
            !atomic_compare_exchange_strong(&s->owner, &nobody, me))
            continue;
        /* A slot freed from a dead process still holds its figures, so that freeing is one step.
         * They count as ours until cleared here: too much for a moment, never too little. */
        atomic_fetch_add(&s->begun, 1);
        for (unsigned d = 0; d < HAL_LEDGER_DEVICES; d++) atomic_store(&s->mine[d], 0);
        atomic_store(&s->ended, atomic_load(&s->begun));
        return i;
    }
    return -1;
}

int hal_ledger_join(struct hal_ledger *l) {
    uint64_t me = hal_process_self();
    if (me == 0) return -1;
    int slot = claim(l, me);
    if (slot < 0 && hal_ledger_reap(l) > 0) slot = claim(l, me);
    if (slot >= 0)
        for (unsigned d = 0; d < l->devices; d++) hal_ledger_recount(l, d);
    return slot;
}

void hal_ledger_forget_self(struct hal_ledger *l) {
    uint64_t me = hal_process_self();
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        uint64_t owner = me;
        if (me != 0) atomic_compare_exchange_strong(&l->slot[i].owner, &owner, 0);
    }
    if (me != 0) { /* the program before may also have been replaced in the middle of a recount */
        uint64_t holder = me;
        atomic_compare_exchange_strong(&l->recounting, &holder, 0);
    }
    for (unsigned d = 0; d < l->devices; d++) hal_ledger_recount(l, d);
}

void hal_ledger_leave(struct hal_ledger *l, int slot) {
    atomic_store(&l->slot[slot].owner, 0);
    for (unsigned d = 0; d < l->devices; d++) hal_ledger_recount(l, d);
}

/* ---- reserve and release: the hot path ------------------------------------------------------ */

static bool take(struct hal_ledger *l, struct hal_ledger_slot *s, unsigned device, uint64_t bytes) {
    struct hal_ledger_device *d = &l->device[device];
    atomic_fetch_add(&s->begun, 1);
    uint64_t limit = atomic_load_explicit(&d->limit, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&d->used, memory_order_relaxed);
    bool fits;
    do {
        fits = used <= limit && bytes <= limit - used;
    } while (fits && !atomic_compare_exchange_weak(&d->used, &used, used + bytes));
    if (fits) atomic_fetch_add(&s->mine[device], bytes); /* after `used`: used >= sum(mine) */
    atomic_fetch_add(&s->ended, 1);
    return fits;
}

bool hal_ledger_reserve(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes) {
    if (device >= l->devices) return false;
    struct hal_ledger_slot *s = &l->slot[slot];
    if (take(l, s, device, bytes)) return true;
    hal_ledger_reap(l);
    if (take(l, s, device, bytes)) return true;
    atomic_fetch_add_explicit(&l->device[device].refused, 1, memory_order_relaxed);
    return false;
}

void hal_ledger_release(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes) {
    struct hal_ledger_slot *s = &l->slot[slot];
    atomic_fetch_add(&s->begun, 1);
    atomic_fetch_sub(&s->mine[device], bytes); /* before `used`: used >= sum(mine) */
    atomic_fetch_sub(&l->device[device].used, bytes);
    atomic_fetch_add(&s->ended, 1);
}

/* ---- the dead ------------------------------------------------------------------------------- */

/* One try: reads every slot twice, and `used` in between. If no slot had an operation in flight and
 * none ran meanwhile, the sum belonged to the `used` that was read; the final compare-and-swap fails
 * if `used` moved since. A change that leaves `used` as it was leaves the sum as it was, too. */
static bool try_recount(struct hal_ledger *l, unsigned device) {
    uint64_t owners[HAL_LEDGER_SLOTS], sum = 0;
    uint32_t ended[HAL_LEDGER_SLOTS];
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &l->slot[i];
        owners[i] = atomic_load(&s->owner);
        if (owners[i] == 0) continue;
        ended[i] = atomic_load(&s->ended);
        if (atomic_load(&s->begun) != ended[i]) return false;
        sum += atomic_load(&s->mine[device]);
    }
    uint64_t used = atomic_load(&l->device[device].used);
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &l->slot[i];
        if (atomic_load(&s->owner) != owners[i]) return false;
        if (owners[i] != 0 && atomic_load(&s->begun) != ended[i]) return false;
    }
    return used == sum || atomic_compare_exchange_strong(&l->device[device].used, &used, sum);
}

/* Only one recounts at a time, or else: one sums up and pauses; an allocation, refused, recounts, succeeds
 * and brings `used` back to what the first had read; its stale sum would then be taken for true. A dead
 * holder is replaced; nobody waits for a living one. */
static bool may_recount(struct hal_ledger *l, uint64_t me) {
    uint64_t holder = 0;
    if (atomic_compare_exchange_strong(&l->recounting, &holder, me)) return true;
    return holder != me && !hal_process_lives(holder) &&
           atomic_compare_exchange_strong(&l->recounting, &holder, me);
}

bool hal_ledger_recount(struct hal_ledger *l, unsigned device) {
    uint64_t me = hal_process_self();
    for (int i = 1; me != 0 && i <= RECOUNT_TRIES; i++) {
        if (may_recount(l, me)) {
            bool done = try_recount(l, device);
            atomic_store(&l->recounting, 0);
            if (done) return true;
        }
        /* Who has an operation in flight may wait for this very processor. */
        if (i % TRIES_A_TURN == 0) sched_yield();
    }
    return false;
}

unsigned hal_ledger_reap(struct hal_ledger *l) {
    unsigned freed = 0;
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &l->slot[i];
        uint64_t owner = atomic_load(&s->owner);
        if (owner != 0 && !hal_process_lives(owner) &&
            atomic_compare_exchange_strong(&s->owner, &owner, 0))
            freed++;
    }
    /* Also when nobody died just now: an earlier reaper may have been killed, or given up. */
    for (unsigned d = 0; d < l->devices; d++) hal_ledger_recount(l, d);
    return freed;
}
