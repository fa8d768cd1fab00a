#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct stat_line {
    char state;
    unsigned long threads;
    unsigned long long start;
};

/* Reads /proc/PID/stat (proc(5)): state is field 3, num_threads 20, starttime 22. The name in field 2
 * may hold spaces and parentheses, so fields are counted from the last ')'. No malloc: this may run
 * inside another program's allocator. */
static bool read_stat(pid_t pid, struct stat_line *out) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    int saved = n < 0 ? errno : ESRCH;
    close(fd);
    errno = saved;
    if (n <= 0) return false;
    text[n] = 0;
    char *at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ') return false;
    out->state = at[2];
    at += 3;
    for (int field = 4; field <= 22; field++) {
        at = strchr(at, ' ');
        if (at == NULL) return false;
        at++;
        if (field == 20) out->threads = strtoul(at, NULL, 10);
        if (field == 22) out->start = strtoull(at, NULL, 10);
    }
    return true;
}

static uint64_t own_namespace(void) {
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino & 0xffff : 0;
}

static uint64_t pack(pid_t pid, uint64_t namespace, unsigned long long start) {
    return (uint64_t)pid << 42 | namespace << 26 | (start & 0x3ffffff);
}

uint64_t hal_process_self(void) {
    struct stat_line line;
    pid_t pid = getpid();
    return read_stat(pid, &line) ? pack(pid, own_namespace(), line.start) : 0;
}

bool hal_process_is_here(uint64_t process) { return (process >> 26 & 0xffff) == own_namespace(); }

bool hal_process_lives(uint64_t process) {
    pid_t pid = (pid_t)(process >> 42);
    uint64_t namespace = process >> 26 & 0xffff;
    struct stat_line line;
    if (!hal_process_is_here(process)) return true;
    if (!read_stat(pid, &line))
        /* No entry is death only if the kernel says so too: /proc may be hidden or absent. */
        return kill(pid, 0) == 0 || errno != ESRCH;
    if (pack(pid, namespace, line.start) != process) return false;
    return (line.state != 'Z' && line.state != 'X') || line.threads > 1;
}
