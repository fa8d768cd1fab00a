#define _GNU_SOURCE
#include "hal_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "timeline.h"

static const char MAGIC[8] = {'H', 'A', 'L', 'M', 'A', 'C', 'H', 'N'};

static struct hal_machine *map(int fd) {
    struct hal_machine *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return m == MAP_FAILED ? NULL : m;
}

int hal_machine_create(const char *path, const char *name) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    struct hal_machine *m = (errno = posix_fallocate(fd, 0, sizeof *m)) == 0 ? map(fd) : NULL;
    close(fd);
    if (m == NULL) return -1;
    memcpy(m->magic, MAGIC, sizeof MAGIC);
    m->version = HAL_MACHINE_VERSION;
    m->size = (uint32_t)sizeof *m;
    snprintf(m->name, sizeof m->name, "%s", name);
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    m->created = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    hal_ledger_format(&m->ledger, name, HAL_LEDGER_DEVICES);
    timeline_format(m);
    munmap(m, sizeof *m);
    return 0;
}

struct hal_machine *hal_machine_open(const char *path) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct stat st;
    struct hal_machine *m = NULL;
    if (fstat(fd, &st) == 0 && st.st_size == (off_t)sizeof *m) m = map(fd);
    if (m != NULL && memcmp(m->magic, MAGIC, sizeof MAGIC) == 0 && m->version == HAL_MACHINE_VERSION &&
        m->size == sizeof *m && m->devices <= HAL_LEDGER_DEVICES &&
        hal_ledger_attach(&m->ledger, path, fd, offsetof(struct hal_machine, ledger))) {
        close(fd);
        return m;
    }
    close(fd);
    if (m != NULL) munmap(m, sizeof *m);
    return NULL;
}

void hal_machine_close(struct hal_machine *m) {
    hal_ledger_detach(&m->ledger);
    munmap(m, sizeof *m);
}
