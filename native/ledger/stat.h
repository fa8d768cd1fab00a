/* What a file is, by statx: stat and fstat carry a version of glibc 2.33, and the guard runs on 2.28. */
#ifndef HAL_STAT_H
#define HAL_STAT_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct hal_stat {
    uint64_t device, inode, size;
    bool is_regular;
};

/* Of the path, or with "" of the descriptor. False with errno. */
static inline bool hal_stat(int fd, const char *path, struct hal_stat *out) {
    struct statx st;
    int flags = path[0] == 0 ? AT_EMPTY_PATH : 0;
    if (statx(path[0] == 0 ? fd : AT_FDCWD, path, flags, STATX_TYPE | STATX_INO | STATX_SIZE, &st) != 0) return false;
    *out = (struct hal_stat){
        .device = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor,
        .inode = st.stx_ino,
        .size = st.stx_size,
        .is_regular = S_ISREG(st.stx_mode),
    };
    return true;
}

#endif
