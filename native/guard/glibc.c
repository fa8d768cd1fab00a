/* The guard is preloaded into programs that bring an older glibc than it was built with: it needs nothing
 * that is newer than 2.28. What glibc gave a new version since then is here, for the guard alone; the dl
 * functions, which moved, are asked for by their first version (guard.c). A test reads the list of what is
 * needed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* 2.33 made these functions of their own. */
int stat(const char *restrict path, struct stat *restrict out) {
    return (int)syscall(SYS_newfstatat, AT_FDCWD, path, out, 0);
}

int fstat(int fd, struct stat *out) { return (int)syscall(SYS_newfstatat, fd, "", out, AT_EMPTY_PATH); }

/* 2.34 moved it into libc. */
int pthread_once(pthread_once_t *once, void (*start)(void)) {
    enum { NOT_BEGUN, BEGUN, DONE };
    int seen = NOT_BEGUN;
    if (__atomic_load_n(once, __ATOMIC_ACQUIRE) == DONE) return 0;
    if (__atomic_compare_exchange_n(once, &seen, BEGUN, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        start();
        __atomic_store_n(once, DONE, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(once, __ATOMIC_ACQUIRE) != DONE) sched_yield();
    return 0;
}
