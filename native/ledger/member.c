#define _GNU_SOURCE
#include "member.h"

#include <sys/mman.h>
#include <unistd.h>

static _Atomic int *place(struct hal_member *m) {
    _Atomic int *known = atomic_load(&m->joined);
    if (known != NULL) return known;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *fresh = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool wiped = fresh != MAP_FAILED && madvise(fresh, page, MADV_WIPEONFORK) == 0;
    if (atomic_compare_exchange_strong(&m->joined, &known, wiped ? fresh : &m->unwiped) && wiped) return fresh;
    if (fresh != MAP_FAILED) munmap(fresh, page);
    return atomic_load(&m->joined);
}

int hal_member_join(struct hal_member *m) {
    _Atomic int *joined = place(m);
    int mine = atomic_load(joined);
    if (mine > 0) return mine - 1;
    int fresh = hal_ledger_join(m->ledger);
    if (fresh < 0 || atomic_compare_exchange_strong(joined, &mine, fresh + 1)) return fresh;
    hal_ledger_leave(m->ledger, fresh); /* another thread was first */
    return mine - 1;
}

void hal_member_forked(struct hal_member *m) {
    _Atomic int *joined = atomic_load(&m->joined);
    if (joined != NULL) atomic_store(joined, 0);
    hal_ledger_forked();
}
