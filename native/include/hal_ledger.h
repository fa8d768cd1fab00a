/* The ledger: one fixed-size mapped file that holds a slice to its memory limit.
 *
 * Every process of the slice maps the file. Memory is reserved with one compare-and-swap against
 * the limit before the vendor's driver is asked, and given back after the driver freed it, so the
 * sum can never pass the limit. docs/enforcement.md explains the protocol in prose.
 *
 * Invariant, for each device d, at every instruction of every process:
 *     device[d].used  >=  sum over claimed slots of mine[d]  >=  what the driver has given out
 * A process killed inside an operation can only leave `used` too high; hal_ledger_reap() frees the
 * slots of the dead and makes it exact again.
 */
#ifndef HAL_LEDGER_H
#define HAL_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    HAL_LEDGER_VERSION = 1,
    HAL_LEDGER_DEVICES = 64,
    HAL_LEDGER_SLOTS = 256,
    HAL_LEDGER_ID = 96,
    HAL_SHARE_ALL = 1000, /* thousandths of a device's time: no limit */
    HAL_NEIGHBOURS_UNKNOWN = 0,
    HAL_NO_NEIGHBOURS = 1,
};

/* One process of the slice. A process keeps its slot for life; slots are never moved. */
struct hal_ledger_slot {
    /* 0 when free, else pid:22 | pid namespace:16 | start time:26, from the top (process.h).
     * Claimed and freed by compare-and-swap, so identity and claim are one step. */
    _Alignas(64) _Atomic uint64_t owner;
    /* Operations begun and ended. They differ while `used` and `mine` may disagree; a recount
     * trusts a slot only when both are equal and unchanged across its reading. */
    _Atomic uint32_t begun, ended;
    _Atomic uint64_t mine[HAL_LEDGER_DEVICES]; /* bytes of this process, by device */
};

struct hal_ledger_device {
    _Alignas(64) _Atomic uint64_t used; /* bytes reserved by all processes */
    _Atomic uint64_t limit;             /* bytes; may be changed live */
    _Atomic uint64_t refused;           /* reservations refused */
    char id[HAL_LEDGER_ID];             /* the device, as hal names it */
    /* Device time (guard/share.c). What a launch takes is added, divided by the share, to the time until which
     * the slice has had its due; who finds that time in the future sleeps. Nanoseconds of CLOCK_MONOTONIC. */
    _Alignas(64) _Atomic int64_t share_until;
    _Atomic uint32_t share_milli;      /* 1..HAL_SHARE_ALL; may be changed live */
    _Atomic uint32_t share_terms;      /* a futex: counts the changes of what holds for the launches */
    _Atomic uint32_t share_trim;       /* thousandths by which a charge is corrected: the driver's own figure is truer */
    _Atomic uint32_t share_neighbours; /* HAL_NO_NEIGHBOURS: nobody else uses the device */
    _Atomic uint32_t share_elastic;    /* 1: may have more while nobody else wants it */
    _Atomic int64_t share_charged;     /* nanoseconds of device time charged so far */
    _Atomic int64_t share_contended;   /* when somebody else's work was last seen to run */
};

struct hal_ledger {
    char magic[8]; /* "HALSLICE" */
    uint32_t version;
    uint32_t size; /* of this structure: a file of another size is foreign */
    uint32_t devices;
    _Atomic uint32_t shares; /* 1: some device's share_milli is, or was, less than HAL_SHARE_ALL */
    /* Who recounts (an owner word), or 0: two at once could each undo what happened to the other. */
    _Atomic uint64_t recounting;
    char name[HAL_LEDGER_ID];
    struct hal_ledger_device device[HAL_LEDGER_DEVICES];
    struct hal_ledger_slot slot[HAL_LEDGER_SLOTS];
};

/* What can be wrong with a file that is opened as a ledger. */
enum hal_ledger_error {
    HAL_LEDGER_OK = 0,
    HAL_LEDGER_SYSTEM,  /* errno says it */
    HAL_LEDGER_FOREIGN, /* not a ledger, or cut short */
    HAL_LEDGER_OTHER_VERSION,
};

/* Lays out an empty ledger in `l` (zeroed memory of sizeof *l). Limits start at 0. */
void hal_ledger_format(struct hal_ledger *l, const char *name, unsigned devices);

/* Creates the file `path` (mode 0600), complete before it becomes visible. 0, or -1 with errno. */
int hal_ledger_create(const char *path, const char *name, unsigned devices);

/* Maps an existing file and checks it. NULL with *error set (and errno for HAL_LEDGER_SYSTEM). */
struct hal_ledger *hal_ledger_open(const char *path, enum hal_ledger_error *error);
void hal_ledger_close(struct hal_ledger *l);

/* Claims a slot for the calling process: its index, or -1 when all slots belong to the living. */
int hal_ledger_join(struct hal_ledger *l);

/* Gives the slot back; whatever it still held is no longer counted. */
void hal_ledger_leave(struct hal_ledger *l, int slot);

/* Reserves `bytes` on a device: false when it would pass the limit. No system call unless the
 * limit is met; then the dead are reaped once before the answer is no. */
bool hal_ledger_reserve(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes);
void hal_ledger_release(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes);

/* Frees the caller's own slots: of the program that it was before an exec, which kept pid and start time. */
void hal_ledger_forget_self(struct hal_ledger *l);

/* Frees the slots of dead processes and makes `used` exact where it can be proven. Returns how many
 * slots were freed. */
unsigned hal_ledger_reap(struct hal_ledger *l);

/* Makes one device's `used` equal the sum of its slots: false when operations in flight kept it from
 * being proven within a bounded number of tries. */
bool hal_ledger_recount(struct hal_ledger *l, unsigned device);

/* Gives a device's time anew: `milli` thousandths of it, more when `elastic` and nobody wants it. Wakes who sleeps. */
void hal_ledger_set_share(struct hal_ledger *l, unsigned device, uint32_t milli, bool elastic);

/* The pid in an owner word, as its own pid namespace numbers it. */
static inline uint32_t hal_ledger_owner_pid(uint64_t owner) { return (uint32_t)(owner >> 42); }

#endif
