/* A file that is cut short leaves its mapping without pages, and a touch of them is SIGBUS: a job could end
 * the daemon that looks after it. Whoever asks for it gets zeros instead, and is told. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vouch.h"

static struct sigaction before;
static size_t page;

static void pass_on(int number, siginfo_t *info, void *context) {
    if ((before.sa_flags & SA_SIGINFO) != 0) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* the touch is repeated, and ends the process as if we were not here */
    }
}

/* Only system calls and atomics: all of it may run inside anything. A private page of zeros in place of the
 * lost one says "no devices, no slots" and takes what is written. */
static void on_bus_error(int number, siginfo_t *info, void *context) {
    struct hal_home *home = info->si_code == BUS_ADRERR ? hal_home_at(info->si_addr) : NULL;
    if (home == NULL) {
        pass_on(number, info, context);
        return;
    }
    hal_home_lose(home);
    void *at = (void *)((uintptr_t)info->si_addr & ~(uintptr_t)(page - 1));
    if (mmap(at, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        pass_on(number, info, context);
}

int hal_ledger_outlive_truncation(void) {
    static _Atomic bool done;
    if (atomic_exchange(&done, true)) return 0;
    page = (size_t)sysconf(_SC_PAGESIZE);
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, &before);
}
