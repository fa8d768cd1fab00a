#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "stat.h"

enum { PF_EXITING = 4 }; /* linux/sched.h; field 9 of /proc/PID/stat */

struct stat_line {
    char state;
    unsigned long flags, threads;
    unsigned long long start;
};

/* The file's beginning as a string; no malloc: this may run inside another program's allocator. */
static bool read_text(const char *path, char *text, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, room - 1);
    int saved = n < 0 ? errno : ESRCH;
    close(fd);
    errno = saved;
    if (n <= 0) return false;
    text[n] = 0;
    return true;
}

/* /proc/PID/stat (proc(5)): state is field 3, flags 9, num_threads 20, starttime 22. The name in field 2
 * may hold spaces and parentheses, so fields are counted from the last ')'. */
static bool read_stat(uint32_t pid, struct stat_line *out) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", (unsigned)pid);
    if (!read_text(path, text, sizeof text)) return false;
    char *at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ') return false;
    out->state = at[2];
    at += 3;
    for (int field = 4; field <= 22; field++) {
        at = strchr(at, ' ');
        if (at == NULL) return false;
        at++;
        if (field == 9) out->flags = strtoul(at, NULL, 10);
        if (field == 20) out->threads = strtoul(at, NULL, 10);
        if (field == 22) out->start = strtoull(at, NULL, 10);
    }
    return true;
}

static uint64_t inode(const char *path) {
    struct hal_stat st;
    return hal_stat(-1, path, &st) ? st.inode : 0;
}

/* Does /proc number processes as the caller does? It may be that of an outer namespace: then NSpid
 * (proc(5), Linux 4.1) gives more numbers than one. */
static bool proc_is_ours(void) {
    char text[4096], *end;
    if (!read_text("/proc/self/status", text, sizeof text)) return false;
    const char *at = strstr(text, "\nNSpid:");
    if (at == NULL) return false;
    long pid = strtol(at + 7, &end, 10);
    return pid == (long)getpid() && *end == '\n';
}

struct hal_process hal_process_self(void) {
    struct stat_line line;
    struct hal_process me = {
        .pid = (uint32_t)getpid(),
        .pid_namespace = inode("/proc/self/ns/pid"),
        .time_namespace = inode("/proc/self/ns/time"),
    };
    if (proc_is_ours() && read_stat(me.pid, &line)) me.start = line.start;
    return me;
}

enum hal_fate hal_process_fate(const struct hal_process *process) {
    struct stat_line line;
    if (process->pid_namespace == 0 || process->pid_namespace != inode("/proc/self/ns/pid"))
        return HAL_UNKNOWN_FATE;
    if (!proc_is_ours() || !read_stat(process->pid, &line))
        /* No entry is death only if the kernel says so too: /proc may be hidden or absent. */
        return kill((pid_t)process->pid, 0) != 0 && errno == ESRCH ? HAL_DEAD : HAL_UNKNOWN_FATE;
    if (process->start == 0 || process->time_namespace != inode("/proc/self/ns/time"))
        return HAL_UNKNOWN_FATE;
    if (line.start != process->start) return HAL_DEAD; /* the pid was used again */
    if ((line.state == 'Z' || line.state == 'X') && line.threads <= 1) return HAL_DEAD;
    return (line.flags & PF_EXITING) != 0 ? HAL_DYING : HAL_LIVES;
}
