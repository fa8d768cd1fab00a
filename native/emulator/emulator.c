#define _GNU_SOURCE
#include "emulator.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "hold.h"
#include "member.h"
#include "sizes.h"
#include "timeline.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct hal_machine *machine;

static struct hal_member member;

static void forked(void) {
    hal_member_forked(&member);
    hal_sizes_clear();
}

static void start(void) {
    const char *path = getenv("HAL_EMULATED_MACHINE");
    if (path != NULL && *path != 0) machine = hal_machine_open(path);
    if (machine != NULL) member.ledger = &machine->ledger;
    pthread_atfork(NULL, NULL, forked);
}

struct hal_machine *emulator_machine(void) {
    pthread_once(&once, start);
    return machine;
}

unsigned emulator_devices(const char *vendor, unsigned index[HAL_LEDGER_DEVICES]) {
    struct hal_machine *m = emulator_machine();
    unsigned count = 0;
    for (unsigned i = 0; m != NULL && i < m->devices; i++)
        if (strcmp(m->device[i].vendor, vendor) == 0) index[count++] = i;
    return count;
}

/* ---- memory --------------------------------------------------------------------------------- */

bool emulator_take(unsigned index, uint64_t bytes) {
    int mine = hal_member_slot(&member);
    return mine >= 0 && hold_allows(index, bytes) && hal_ledger_reserve(&machine->ledger, mine, index, bytes);
}

void emulator_give(unsigned index, uint64_t bytes) {
    hal_ledger_release(&machine->ledger, hal_member_slot(&member), index, bytes);
}

uint64_t emulator_address(uint64_t bytes, uint64_t alignment) {
    static _Atomic uint64_t next = UINT64_C(0x700000000000);
    /* Zero bytes, too, get an address of their own. */
    uint64_t room = (bytes + (bytes == 0) + 511) & ~UINT64_C(511);
    if (alignment <= 512) return atomic_fetch_add(&next, room);
    return (atomic_fetch_add(&next, room + alignment) + alignment - 1) & ~(alignment - 1);
}

enum emulator_memory emulator_allocate_for(uint64_t owner, unsigned index, uint64_t bytes, uint64_t *address) {
    if (!emulator_take(index, bytes)) return EMULATOR_NO_MEMORY;
    uint64_t at = emulator_address(bytes, 512);
    if (!hal_sizes_put(at, (struct hal_allocation){bytes, owner, index})) {
        emulator_give(index, bytes);
        return EMULATOR_NO_MEMORY;
    }
    *address = at;
    return EMULATOR_OK;
}

enum emulator_memory emulator_allocate(unsigned index, uint64_t bytes, uint64_t *address) {
    return emulator_allocate_for(0, index, bytes, address);
}

enum emulator_memory emulator_free(uint64_t address) {
    struct hal_allocation a;
    if (!hal_sizes_take(address, &a)) return EMULATOR_NOT_MINE;
    emulator_give(a.device, a.bytes);
    return EMULATOR_OK;
}

static void free_one(uint64_t address, struct hal_allocation a) {
    (void)address;
    emulator_give(a.device, a.bytes);
}

void emulator_free_of(uint64_t owner) { hal_sizes_drain(owner, 0, 0, free_one); }

uint64_t emulator_used(unsigned index) {
    /* It is never less than what all hold together: of nothing, nothing is a dead one's. */
    if (atomic_load(&machine->ledger.device[index].used) == 0) return 0;
    hal_ledger_reap(&machine->ledger);
    return atomic_load(&machine->ledger.device[index].used);
}

uint64_t emulator_used_lately(unsigned index) {
    static _Atomic int64_t looked;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t tick = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (atomic_exchange_explicit(&looked, tick, memory_order_relaxed) != tick) return emulator_used(index);
    return atomic_load(&machine->ledger.device[index].used);
}

unsigned emulator_processes(unsigned index, struct emulator_process *out, unsigned room) {
    unsigned count = 0;
    hal_ledger_reap(&machine->ledger);
    for (int i = 0; i < HAL_LEDGER_SLOTS; i++) {
        struct hal_ledger_slot *s = &machine->ledger.slot[i];
        uint64_t owner = atomic_load(&s->owner), bytes = hal_ledger_mine(s, index);
        if (hal_ledger_owner_pid(owner) == 0 || bytes == 0) continue;
        if (count < room) out[count] = (struct emulator_process){(pid_t)hal_ledger_owner_pid(owner), bytes};
        count++;
    }
    return count;
}

int64_t emulator_busy_percent(const struct hal_machine_device *d) {
    unsigned index = (unsigned)(d - machine->device);
    int share = d->compute_busy_percent == HAL_UNKNOWN ? -1 : timeline_share(index, 0);
    return share < 0 ? d->compute_busy_percent : share > 1000 ? 100 : (share + 5) / 10;
}

/* ---- visibility ----------------------------------------------------------------------------- */

/* By its UUID, or as ROCr calls it: "GPU-" and the 16 digits of the unique id. */
static bool called(const struct hal_machine_device *d, const char *text, size_t length) {
    char rocr[HAL_MACHINE_TEXT + 4];
    snprintf(rocr, sizeof rocr, "GPU-%s", d->serial + (strncmp(d->serial, "0x", 2) == 0 ? 2 : 0));
    return strncasecmp(d->uuid, text, length) == 0 || strncasecmp(rocr, text, length) == 0;
}

static int named(const char *entry, size_t length, const unsigned *index, unsigned count) {
    char text[HAL_MACHINE_TEXT];
    if (length == 0 || length >= sizeof text) return -1;
    memcpy(text, entry, length);
    text[length] = 0;
    char *end;
    unsigned long ordinal = strtoul(text, &end, 10);
    if (isdigit((unsigned char)text[0]) && *end == 0) return ordinal < count ? (int)ordinal : -1;
    for (unsigned i = 0; i < count; i++)
        if (called(emulator_device(index[i]), text, length)) return (int)i;
    return -1;
}

unsigned emulator_visible(const char *text, const unsigned *index, unsigned count,
                          unsigned visible[HAL_LEDGER_DEVICES]) {
    if (text == NULL) {
        memcpy(visible, index, count * sizeof *visible);
        return count;
    }
    unsigned found = 0;
    while (found < HAL_LEDGER_DEVICES) {
        text += strspn(text, " ");
        size_t length = strcspn(text, ", ");
        int which = named(text, length, index, count);
        if (which < 0) break;
        visible[found++] = index[which];
        text += length;
        text += strspn(text, " ");
        if (*text++ != ',') break;
    }
    return found;
}
