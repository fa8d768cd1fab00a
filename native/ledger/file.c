#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hal_ledger.h"
#include "slot.h"
#include "stat.h"

static const char MAGIC[8] = {'H', 'A', 'L', 'S', 'L', 'I', 'C', 'E'};

enum { PID_MOST = 1 << 22 }; /* PID_MAX_LIMIT, linux/threads.h */

void hal_ledger_format(struct hal_ledger *l, const char *name, unsigned devices) {
    memcpy(l->magic, MAGIC, sizeof MAGIC);
    l->version = HAL_LEDGER_VERSION;
    l->size = (uint32_t)sizeof *l;
    l->reads = HAL_LEDGER_OLDEST;
    l->devices = devices < HAL_LEDGER_DEVICES ? devices : HAL_LEDGER_DEVICES;
    snprintf(l->name, sizeof l->name, "%s", name);
    atomic_store(&l->weight, 100);
    for (unsigned d = 0; d < HAL_LEDGER_DEVICES; d++) {
        atomic_store(&l->device[d].compute_milli, HAL_LEDGER_MILLI);
        atomic_store(&l->device[d].share_trim, 1000);
    }
}

/* The locks that a process's life hangs on (vouch.h). Without them the dead would count for ever. */
static bool can_lock(int fd) {
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &all) != 0) return false;
    all.l_type = F_UNLCK;
    return fcntl(fd, F_OFD_SETLK, &all) == 0;
}

/* Written, not only reserved: a full disk is met here and not as a SIGBUS at the first touch, and whoever maps
   the file finds its pages there, which is several times quicker than a fault for each. */
static bool fill(int fd) {
    static const char zeros[1 << 18];
    for (size_t left = sizeof(struct hal_ledger); left > 0;) {
        ssize_t n = write(fd, zeros, left < sizeof zeros ? left : sizeof zeros);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        left -= (size_t)n;
    }
    return true;
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
    if (can_lock(fd) && fill(fd)) {
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

/* ---- what may be in it ---------------------------------------------------------------------- */

#define DAMAGED "it is damaged: "

static bool ends(const char *text) { return memchr(text, 0, HAL_LEDGER_ID) != NULL; }

static const char *device_damage(const struct hal_ledger_device *d) {
    if (!ends(d->id)) return DAMAGED "a device's id has no end";
    if (atomic_load(&d->limit) > HAL_LEDGER_MOST) return DAMAGED "a limit is past all reason";
    if (atomic_load(&d->used) > HAL_LEDGER_MOST) return DAMAGED "a use is past all reason";
    if (atomic_load(&d->compute_milli) > HAL_LEDGER_MILLI) return DAMAGED "a compute share is past the whole";
    return NULL;
}

static const char *slot_damage(const struct hal_ledger *l, const struct hal_ledger_slot *s) {
    uint64_t owner = atomic_load(&s->owner);
    if (hal_ledger_owner_pid(owner) > PID_MOST || (owner >> 30 & 1) != 0) return DAMAGED "a pid is out of range";
    bool idle = true, nothing = true;
    for (int i = 0; i < HAL_LEDGER_LANES; i++) {
        uint64_t device = atomic_load(&s->lane[i].op) & 0xff;
        if (device > hal_ledger_devices(l)) return DAMAGED "an operation is on no device of the slice";
        idle = idle && device == 0;
    }
    for (unsigned d = 0; d < hal_ledger_devices(l); d++) {
        uint64_t bytes;
        bool exact = hal_slot_sum(s, d, &bytes) && idle; /* else it may seem below zero */
        if (exact && bytes > HAL_LEDGER_MOST) return DAMAGED "a process holds more than can be";
        nothing = nothing && bytes == 0;
    }
    /* Unless it was claimed while we looked. */
    if (hal_ledger_owner_pid(owner) == 0 && !(idle && nothing) && atomic_load(&s->owner) == owner)
        return DAMAGED "memory is held by nobody";
    return NULL;
}

const char *hal_ledger_damage(const struct hal_ledger *l) {
    const char *why = NULL;
    if (l->devices < 1 || l->devices > HAL_LEDGER_DEVICES) return DAMAGED "the number of devices is impossible";
    if (!ends(l->name)) return DAMAGED "its name has no end";
    int32_t priority = atomic_load(&l->priority);
    uint32_t weight = atomic_load(&l->weight);
    if (atomic_load(&l->state) >= HAL_SLICE_STATES) return DAMAGED "its state is unknown";
    if (priority < -HAL_LEDGER_PRIORITY || priority > HAL_LEDGER_PRIORITY)
        return DAMAGED "its priority is out of range";
    if (weight < 1 || weight > HAL_LEDGER_WEIGHT) return DAMAGED "its weight is out of range";
    if (atomic_load(&l->elastic) > 1) return DAMAGED "its elastic flag is neither 0 nor 1";
    if (atomic_load(&l->memory_by) >= HAL_ENFORCERS || atomic_load(&l->compute_by) >= HAL_ENFORCERS)
        return DAMAGED "who enforces it is unknown";
    for (unsigned d = 0; why == NULL && d < hal_ledger_devices(l); d++) why = device_damage(&l->device[d]);
    for (int i = 0; why == NULL && i < HAL_LEDGER_SLOTS; i++) why = slot_damage(l, &l->slot[i]);
    return why;
}

static const char *_Atomic damage = DAMAGED; /* the last that was found */

const char *hal_ledger_reason(enum hal_ledger_error error) {
    switch (error) {
        case HAL_LEDGER_OK: return "nothing is wrong with it";
        case HAL_LEDGER_SYSTEM: return strerror(errno);
        case HAL_LEDGER_FOREIGN: return "it is not a slice file, or is cut short";
        case HAL_LEDGER_OTHER_VERSION: return "it was made by another version of hal";
        case HAL_LEDGER_DAMAGED: return atomic_load(&damage);
    }
    return "?";
}

/* ---- opening -------------------------------------------------------------------------------- */

/* Of two versions the later one knows whether both can use a file: it reads the earlier one's, or does not, and
 * says in its own from which version on that may be read. */
static bool is_shared(const struct hal_ledger *l) {
    if (l->version <= HAL_LEDGER_VERSION) return l->version >= HAL_LEDGER_OLDEST;
    return l->reads != 0 && l->reads <= HAL_LEDGER_VERSION;
}

/* The head lies in the first page, which exists: reading it cannot fault on a short file. */
static enum hal_ledger_error check(const struct hal_ledger *l, uint64_t size) {
    if (memcmp(l->magic, MAGIC, sizeof MAGIC) != 0) return HAL_LEDGER_FOREIGN;
    if (!is_shared(l)) return HAL_LEDGER_OTHER_VERSION;
    if (l->size != sizeof *l || size != sizeof *l) return HAL_LEDGER_FOREIGN;
    const char *found = hal_ledger_damage(l);
    if (found != NULL) atomic_store(&damage, found);
    return found == NULL ? HAL_LEDGER_OK : HAL_LEDGER_DAMAGED;
}

static struct hal_ledger *map(const char *path, int fd, enum hal_ledger_error *error) {
    struct hal_stat st;
    if (!hal_stat(fd, "", &st)) return NULL;
    *error = HAL_LEDGER_FOREIGN;
    if (!st.is_regular || st.size < offsetof(struct hal_ledger, name)) return NULL;
    struct hal_ledger *l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    bool known = l != MAP_FAILED && hal_ledger_attach(l, path, fd, 0);
    *error = known ? check(l, st.size) : HAL_LEDGER_SYSTEM;
    if (*error == HAL_LEDGER_OK && hal_ledger_is_lost(l)) *error = HAL_LEDGER_FOREIGN;
    if (*error == HAL_LEDGER_OK) return l;
    if (known) hal_ledger_detach(l);
    if (l != MAP_FAILED) munmap(l, sizeof *l);
    return NULL;
}

struct hal_ledger *hal_ledger_open(const char *path, enum hal_ledger_error *error) {
    *error = HAL_LEDGER_SYSTEM;
    /* Without waiting: a named pipe opens at once and is seen to be none of ours. */
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return NULL;
    struct hal_ledger *l = map(path, fd, error);
    int saved = errno;
    close(fd);
    errno = saved;
    return l;
}

void hal_ledger_close(struct hal_ledger *l) {
    hal_ledger_detach(l);
    munmap(l, sizeof *l);
}
