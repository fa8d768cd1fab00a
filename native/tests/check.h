/* CHECK(condition): says where and what, and ends the test; also where NDEBUG is defined. */
#ifndef HAL_CHECK_H
#define HAL_CHECK_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition); \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* A new name in the test's working directory: of a file that is not there yet. */
static inline const char *fresh_path(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s.%ld.tmp", name, (long)getpid());
    unlink(path);
    return path;
}

/* A fork whose child ends with the test: what is left alive would keep CTest waiting for its output. */
static inline pid_t fork_child(void) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

#endif
