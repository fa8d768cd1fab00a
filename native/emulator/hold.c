#define _GNU_SOURCE
#include "hold.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "emulator.h"

enum { FREE, WRITING, HOLDS, MEMBERS = 1024, GENERATIONS = 32 };

static unsigned members_of(const char *group, long pids[MEMBERS]) {
    char path[HAL_MACHINE_PATH + 16];
    unsigned count = 0;
    snprintf(path, sizeof path, "%s/cgroup.procs", group);
    FILE *file = fopen(path, "re");
    while (file != NULL && count < MEMBERS && fscanf(file, "%ld", &pids[count]) == 1) count++;
    if (file != NULL) fclose(file);
    return count;
}

static long parent_of(long pid) {
    char path[40], text[512];
    long parent = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    const char *at = strrchr(text, ')');
    return at != NULL && sscanf(at, ") %*c %ld", &parent) == 1 ? parent : 0;
}

static bool is_member(long pid, const long *pids, unsigned count) {
    for (int i = 0; i < GENERATIONS && pid > 1; i++, pid = parent_of(pid))
        for (unsigned k = 0; k < count; k++)
            if (pids[k] == pid) return true;
    return false;
}

static uint64_t used_by(unsigned device, const long *pids, unsigned count) {
    struct emulator_process users[HAL_LEDGER_SLOTS];
    uint64_t sum = 0;
    unsigned all = emulator_processes(device, users, HAL_LEDGER_SLOTS);
    for (unsigned i = 0; i < all && i < HAL_LEDGER_SLOTS; i++)
        if (is_member(users[i].pid, pids, count)) sum += users[i].bytes;
    return sum;
}

static struct hal_machine_hold *find(unsigned device, const char *group) {
    struct hal_machine *m = emulator_machine();
    for (struct hal_machine_hold *h = m->hold; h < m->hold + HAL_MACHINE_HOLDS; h++)
        if (atomic_load(&h->state) == HOLDS && h->device == device && strcmp(h->group, group) == 0) return h;
    return NULL;
}

/* Removing the group clears its limits. */
static void sweep(struct hal_machine *m) {
    for (struct hal_machine_hold *h = m->hold; h < m->hold + HAL_MACHINE_HOLDS; h++)
        if (atomic_load(&h->state) == HOLDS && access(h->group, F_OK) != 0) atomic_store(&h->state, FREE);
}

bool hold_set(unsigned device, const char *group, uint64_t soft, uint64_t hard) {
    struct hal_machine *m = emulator_machine();
    sweep(m);
    struct hal_machine_hold *h = find(device, group);
    for (unsigned i = 0; h == NULL && i < HAL_MACHINE_HOLDS; i++) {
        uint32_t unused = FREE;
        if (atomic_compare_exchange_strong(&m->hold[i].state, &unused, WRITING)) h = &m->hold[i];
    }
    if (h == NULL || strlen(group) >= sizeof h->group) {
        if (h != NULL) atomic_store(&h->state, FREE);
        return false;
    }
    h->device = device;
    h->soft = soft;
    h->hard = hard;
    strcpy(h->group, group);
    atomic_store(&h->state, HOLDS);
    return true;
}

bool hold_get(unsigned device, const char *group, uint64_t *soft, uint64_t *hard, uint64_t *used) {
    long pids[MEMBERS];
    sweep(emulator_machine());
    const struct hal_machine_hold *h = find(device, group);
    if (h == NULL) return false;
    *soft = h->soft;
    *hard = h->hard;
    *used = used_by(device, pids, members_of(group, pids));
    return true;
}

bool hold_allows(unsigned device, uint64_t bytes) {
    struct hal_machine *m = emulator_machine();
    long pids[MEMBERS];
    for (const struct hal_machine_hold *h = m->hold; h < m->hold + HAL_MACHINE_HOLDS; h++) {
        if (atomic_load_explicit(&h->state, memory_order_relaxed) != HOLDS || h->device != device) continue;
        unsigned count = members_of(h->group, pids);
        if (!is_member((long)getpid(), pids, count)) continue;
        uint64_t used = used_by(device, pids, count);
        if (used > h->hard || bytes > h->hard - used) return false;
    }
    return true;
}
