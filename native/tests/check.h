/* CHECK(condition): says where and what, and ends the test; also where NDEBUG is defined. */
#ifndef HAL_CHECK_H
#define HAL_CHECK_H

#include <stdio.h>
#include <stdlib.h>

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

#endif
