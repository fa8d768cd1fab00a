#define _GNU_SOURCE
#include "vouch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stat.h"

struct hal_home {
    struct hal_home *next;                  /* homes are never unmapped: a detached one is used again */
    const struct hal_ledger *_Atomic ledger; /* NULL: detached */
    uint64_t device, inode;
    off_t offset; /* of the ledger in its file */
    _Atomic bool lost;
    void *vouched[HAL_LEDGER_SLOTS];
    char path[PATH_MAX];
};

static struct hal_home *_Atomic homes;
/* Marks a home that is being filled in. */
static const struct hal_ledger *const FILLING = (const struct hal_ledger *)&homes;

/* ---- where a ledger's file is --------------------------------------------------------------- */

struct hal_home *hal_home_of(const struct hal_ledger *l) {
    for (struct hal_home *h = atomic_load(&homes); h != NULL; h = h->next)
        if (atomic_load(&h->ledger) == l) return h;
    return NULL;
}

struct hal_home *hal_home_at(const void *address) {
    for (struct hal_home *h = atomic_load(&homes); h != NULL; h = h->next) {
        const char *l = (const char *)atomic_load(&h->ledger);
        const char *at = address;
        if (l != NULL && l != (const char *)FILLING && at >= l && at < l + sizeof(struct hal_ledger)) return h;
    }
    return NULL;
}

void hal_home_lose(struct hal_home *home) { atomic_store(&home->lost, true); }

bool hal_ledger_is_lost(const struct hal_ledger *l) {
    struct hal_home *home = hal_home_of(l);
    return home != NULL && atomic_load(&home->lost);
}

static struct hal_home *unused_home(void) {
    for (struct hal_home *h = atomic_load(&homes); h != NULL; h = h->next) {
        const struct hal_ledger *none = NULL;
        if (atomic_compare_exchange_strong(&h->ledger, &none, FILLING)) return h;
    }
    struct hal_home *h = mmap(NULL, sizeof *h, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (h == MAP_FAILED) return NULL;
    atomic_store(&h->ledger, FILLING);
    h->next = atomic_load(&homes);
    while (!atomic_compare_exchange_weak(&homes, &h->next, h)) continue;
    return h;
}

/* A relative path is one from the directory that is current now. */
static void absolute(char out[PATH_MAX], const char *path) {
    char from[PATH_MAX] = "";
    if (path[0] != '/' && getcwd(from, sizeof from) == NULL) from[0] = 0;
    int n = snprintf(out, PATH_MAX, "%s%s%s", from, from[0] != 0 ? "/" : "", path);
    if (n >= PATH_MAX) out[0] = 0; /* cannot be opened again */
}

bool hal_ledger_attach(struct hal_ledger *l, const char *path, int fd, uint64_t offset) {
    struct hal_stat st;
    struct hal_home *h = hal_stat(fd, "", &st) ? unused_home() : NULL;
    if (h == NULL) return false;
    h->device = st.device;
    h->inode = st.inode;
    h->offset = (off_t)offset;
    atomic_store(&h->lost, false);
    memset(h->vouched, 0, sizeof h->vouched);
    absolute(h->path, path);
    atomic_store(&h->ledger, l);
    return true;
}

int hal_ledger_move(struct hal_ledger *l, const char *path) {
    struct hal_home *home = hal_home_of(l);
    if (renameat2(AT_FDCWD, home->path, AT_FDCWD, path, RENAME_NOREPLACE) != 0) return -1;
    absolute(home->path, path);
    return 0;
}

void hal_ledger_detach(struct hal_ledger *l) {
    struct hal_home *home = hal_home_of(l);
    if (home != NULL) atomic_store(&home->ledger, NULL);
}

/* ---- descriptors, which live for the length of one call -------------------------------------- */

enum { AT_ONCE = 16 };
static _Atomic int shown[AT_ONCE]; /* descriptor + 1 of those now open, as far as there is room */

static int show(int fd) {
    for (int i = 0; i < AT_ONCE; i++) {
        int none = 0;
        if (atomic_compare_exchange_strong(&shown[i], &none, fd + 1)) break;
    }
    return fd;
}

void hal_home_shut(int fd) {
    for (int i = 0; i < AT_ONCE; i++) {
        int this = fd + 1;
        if (atomic_compare_exchange_strong(&shown[i], &this, 0)) break;
    }
    close(fd);
}

/* Else the child would hold on to the parent's locks. */
void hal_ledger_forked(void) {
    for (int i = 0; i < AT_ONCE; i++) {
        int fd = atomic_exchange(&shown[i], 0) - 1;
        if (fd >= 0) close(fd);
    }
}

int hal_home_open(struct hal_home *home) {
    struct hal_stat st;
    int fd = open(home->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return -1;
    if (hal_stat(fd, "", &st) && st.device == home->device && st.inode == home->inode) return show(fd);
    close(fd);
    errno = ESTALE;
    return -1;
}

/* ---- locks ---------------------------------------------------------------------------------- */

static struct flock byte_of(const struct hal_home *home, int which, short kind) {
    size_t at = which == HAL_RECOUNT ? 0 : offsetof(struct hal_ledger, slot[which]);
    return (struct flock){.l_type = kind, .l_whence = SEEK_SET, .l_start = home->offset + (off_t)at, .l_len = 1};
}

bool hal_home_lock(struct hal_home *home, int fd, int which) {
    struct flock wanted = byte_of(home, which, F_WRLCK);
    return fcntl(fd, F_OFD_SETLK, &wanted) == 0;
}

void hal_home_unlock(struct hal_home *home, int fd, int which) {
    struct flock wanted = byte_of(home, which, F_UNLCK);
    fcntl(fd, F_OFD_SETLK, &wanted);
}

static bool is_locked(struct hal_home *home, int which) {
    struct flock found = byte_of(home, which, F_WRLCK);
    int fd = hal_home_open(home);
    if (fd < 0) return false;
    bool locked = fcntl(fd, F_OFD_GETLK, &found) == 0 && found.l_type != F_UNLCK;
    hal_home_shut(fd);
    return locked;
}

enum hal_vouch hal_vouch(struct hal_home *home, int slot) {
    int fd = hal_home_open(home);
    if (fd < 0) return HAL_VOUCH_IMPOSSIBLE;
    if (!hal_home_lock(home, fd, slot)) {
        int why = errno;
        hal_home_shut(fd);
        return why == EAGAIN || why == EACCES ? HAL_VOUCH_TAKEN : HAL_VOUCH_IMPOSSIBLE;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *held = mmap(NULL, page, PROT_NONE, MAP_SHARED, fd, 0);
    bool sound = held != MAP_FAILED && madvise(held, page, MADV_DONTFORK) == 0;
    if (!sound) hal_home_unlock(home, fd, slot);
    hal_home_shut(fd);
    /* Not on every file system does the mapping hold the lock: look. */
    if (sound && is_locked(home, slot)) {
        home->vouched[slot] = held;
        return HAL_VOUCHED;
    }
    if (held != MAP_FAILED) munmap(held, page);
    return HAL_VOUCH_IMPOSSIBLE;
}

void hal_unvouch(struct hal_home *home, int slot) {
    void *held = home->vouched[slot];
    home->vouched[slot] = NULL;
    if (held != NULL) munmap(held, (size_t)sysconf(_SC_PAGESIZE));
}
