/* The ledger: one fixed-size mapped file that holds a slice to its memory limit.
 *
 * Every process of the slice maps the file. Memory is reserved with one compare-and-swap against
 * the limit before the vendor's driver is asked, and given back after the driver freed it, so the
 * sum can never pass the limit. docs/ledger.md explains the protocol in prose.
 *
 * Invariant, for each device d, at every instruction of every process:
 *     device[d].used  >=  sum over claimed slots of what they hold  >=  what the driver has given out
 * Outside of operations the first two are equal, but for what dead operations left over in `used`;
 * hal_ledger_reap() takes that away again.
 */
#ifndef HAL_LEDGER_H
#define HAL_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    /* A program keeps its guard through an upgrade of hal: code of all versions from OLDEST on may use one file
     * at a time. How the layout may grow for that, docs/ledger.md says; where it cannot, both are raised. */
    HAL_LEDGER_VERSION = 3,
    HAL_LEDGER_OLDEST = 3,
    HAL_LEDGER_DEVICES = 64,
    HAL_LEDGER_SLOTS = 256,
    HAL_LEDGER_LANES = 8, /* operations that one process can have under way at once */
    HAL_LEDGER_ID = 96,
    HAL_LEDGER_PRIORITY = 100, /* -100 to 100 */
    HAL_LEDGER_WEIGHT = 10000, /* 1 to 10000, as in cgroup v2 */
    HAL_LEDGER_MILLI = 1000,   /* compute in thousandths of the device: no cap */
};

/* The largest limit, in bytes (1 EiB): a greater one is taken for damage. */
#define HAL_LEDGER_MOST (UINT64_C(1) << 60)

/* What the programs of a slice are to do. */
enum hal_ledger_state { HAL_SLICE_RUN, HAL_SLICE_PAUSE, HAL_SLICE_STOP, HAL_SLICE_STATES };

/* Who holds the slice to a limit (hal.model.Rung). */
enum hal_ledger_enforcer {
    HAL_BY_NOBODY,
    HAL_BY_GUARD,
    HAL_BY_RUNTIME,
    HAL_BY_KERNEL,
    HAL_BY_DRIVER,
    HAL_BY_HARDWARE,
    HAL_ENFORCERS,
};

/* One operation under way. Claimed by compare-and-swap for as long as it lasts, so that another thread
 * of the process takes another lane; its owner alone writes the rest, and so needs no locked instruction.
 *
 * What a process holds of a device is the sum of `mine` over its lanes, modulo 2^64: one lane may be below
 * zero, for a free may go by another lane than its allocation did. The sum is exact where no lane is taken.
 * Also in a free slot only the sum is 0. */
struct hal_ledger_lane {
    /* Operations so far << 8 | (device + 1, or 0 when none is under way). */
    _Alignas(64) _Atomic uint64_t op;
    _Atomic uint64_t bytes; /* that it reserves or releases; written after `op`, before `used` and `mine` */
    /* By device. Reserve: `used`, then `mine`. Release: `mine`, then `used`. */
    _Atomic uint64_t mine[HAL_LEDGER_DEVICES];
};

/* One process of the slice. A process keeps its slot for life; slots are never moved. */
struct hal_ledger_slot {
    /* generation:32 | unvouched:1 | 0 | pid:30; the pid is 0 when the slot is free. Claimed by
     * compare-and-swap; the generation makes each claim another word.
     * Vouched: for as long as the process's memory lives, the kernel holds this slot's byte of the file
     * locked (vouch.c). It is locked before `owner` is written. Unvouched: only /proc can tell. */
    _Alignas(64) _Atomic uint64_t owner;
    _Atomic uint64_t start, pid_namespace, time_namespace; /* who that is (process.h); 0: not known */
    _Atomic uint64_t reserved[4];
    struct hal_ledger_lane lane[HAL_LEDGER_LANES];
};

struct hal_ledger_device {
    /* Bytes reserved by all processes. Alone in its line, which every operation of every process writes. */
    _Alignas(64) _Atomic uint64_t used;
    _Alignas(64) _Atomic uint64_t limit; /* bytes; may be changed live */
    _Atomic uint64_t peak;               /* the greatest `used`: a figure, which a killed process may not have set */
    _Atomic uint64_t refused;            /* reservations refused */
    _Atomic uint32_t compute_milli;      /* thousandths of the device's time; HAL_LEDGER_MILLI: all of it */
    uint32_t padding;
    _Atomic uint64_t reserved[4];
    /* The bucket of device time that all processes of the slice draw from (guard/share.c). What a launch takes is
     * added, divided by the share, to the time until which the slice has had its due; who finds that time in the
     * future sleeps. Nanoseconds of CLOCK_MONOTONIC. */
    _Alignas(64) _Atomic int64_t share_until_ns;
    _Atomic int64_t share_charged_ns;   /* device time charged so far, as the guard estimates it */
    _Atomic int64_t share_contended_ns; /* when somebody else's work was last seen to run */
    _Atomic uint32_t share_trim;        /* thousandths by which estimates are corrected (hal/enforce/trim.py) */
    _Atomic uint32_t share_alone;       /* 1: nobody else uses the device */
    _Atomic int64_t share_reserved[4];
    _Alignas(64) char id[HAL_LEDGER_ID]; /* the device, as hal names it */
};

struct hal_ledger {
    char magic[8]; /* "HALSLICE" */
    uint32_t version; /* that made it */
    uint32_t size;    /* of this structure: a file of another size is foreign */
    uint32_t devices;
    uint32_t reads; /* the oldest version whose code may use it; 0: only its own and later ones */
    char name[HAL_LEDGER_ID];
    /* Read by every operation, written seldom. */
    _Alignas(64) _Atomic uint32_t hold; /* not 0: a recount asks new operations to wait a moment (reap.c) */
    _Atomic uint32_t state;             /* enum hal_ledger_state */
    _Atomic uint32_t epoch;             /* one more with every change of a control; waited on as a futex */
    _Atomic int32_t priority;
    _Atomic uint32_t weight;
    _Atomic uint32_t elastic;                /* 1: may use what others leave idle */
    _Atomic uint32_t memory_by, compute_by;  /* enum hal_ledger_enforcer */
    _Atomic uint32_t limits_time; /* 1: some device's compute_milli is, or was, below HAL_LEDGER_MILLI */
    uint32_t padding_2;
    _Atomic uint64_t reserved[11];
    struct hal_ledger_device device[HAL_LEDGER_DEVICES];
    struct hal_ledger_slot slot[HAL_LEDGER_SLOTS];
};

/* What can be wrong with a file that is opened as a ledger. */
enum hal_ledger_error {
    HAL_LEDGER_OK = 0,
    HAL_LEDGER_SYSTEM,  /* errno says it */
    HAL_LEDGER_FOREIGN, /* not a ledger, or cut short */
    HAL_LEDGER_OTHER_VERSION, /* which cannot share a file with this one */
    HAL_LEDGER_DAMAGED, /* a field holds what none of ours can */
};

/* ---- the file (file.c) ---------------------------------------------------------------------- */

/* Lays out an empty ledger in `l` (zeroed memory of sizeof *l). Limits start at 0, compute at "no cap". */
void hal_ledger_format(struct hal_ledger *l, const char *name, unsigned devices);

/* Creates the file `path` (mode 0600), complete before it becomes visible. 0, or -1 with errno. */
int hal_ledger_create(const char *path, const char *name, unsigned devices);

/* Maps an existing file and checks it. NULL with *error set (and errno for HAL_LEDGER_SYSTEM). */
struct hal_ledger *hal_ledger_open(const char *path, enum hal_ledger_error *error);
/* Unmaps it. Slots that this process joined stay its own until it ends. */
void hal_ledger_close(struct hal_ledger *l);

/* Gives the file of a ledger that nobody else uses yet the name `path`, where there must be none. 0, or -1 with
 * errno: EINVAL where the file system cannot do that (NFS). */
int hal_ledger_move(struct hal_ledger *l, const char *path);

/* What is wrong with a ledger's fields, for a person; NULL for nothing. */
const char *hal_ledger_damage(const struct hal_ledger *l);

/* Why the last hal_ledger_open failed, for a person. To be asked at once: errno is read for HAL_LEDGER_SYSTEM. */
const char *hal_ledger_reason(enum hal_ledger_error error);

/* For a ledger that lies inside another mapped file, open as `fd`, at byte `offset`: makes it known, so
 * that it can be joined and reaped. False when there is no memory. Ended by hal_ledger_detach. */
bool hal_ledger_attach(struct hal_ledger *l, const char *path, int fd, uint64_t offset);
void hal_ledger_detach(struct hal_ledger *l);

/* Once called, a ledger that is cut short under a reader shows zeros instead of ending the process with
 * SIGBUS; hal_ledger_is_lost() then says so, for good. For daemons: it takes over SIGBUS. 0, or -1 with errno. */
int hal_ledger_outlive_truncation(void);
bool hal_ledger_is_lost(const struct hal_ledger *l);

/* ---- slots (slot.c) ------------------------------------------------------------------------- */

/* Claims a slot for the calling process: its index, or -1 when all slots belong to the living. */
int hal_ledger_join(struct hal_ledger *l);

/* Gives back a slot that this process joined; whatever it still held is no longer counted. No operation
 * may be under way in it. */
void hal_ledger_leave(struct hal_ledger *l, int slot);

/* At the start of a program: frees what the program held that this process was before an exec. */
void hal_ledger_forget_self(struct hal_ledger *l);

/* In the child of a fork, from pthread_atfork: shuts files that another thread of the parent had open. */
void hal_ledger_forked(void);

/* The pid of the slot's process while that lives, in the caller's pid namespace; else 0. */
uint32_t hal_ledger_living(const struct hal_ledger *l, int slot);

/* Those of all slots, into `pids`, which has room for HAL_LEDGER_SLOTS; how many there are. */
unsigned hal_ledger_pids(const struct hal_ledger *l, uint32_t *pids);

/* ---- memory (ledger.c, reap.c) -------------------------------------------------------------- */

/* Reserves `bytes` on a device: false when it would pass the limit. No system call unless the
 * limit is met; then the dead are reaped once before the answer is no. */
bool hal_ledger_reserve(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes);
void hal_ledger_release(struct hal_ledger *l, int slot, unsigned device, uint64_t bytes);

/* What a slot's process holds of a device, in bytes: exact while none of its operations begins or ends. */
uint64_t hal_ledger_mine(const struct hal_ledger_slot *s, unsigned device);

/* Frees the slots of dead processes. Returns how many. One that died inside an operation stays until a
 * recount has proven what it left over. */
unsigned hal_ledger_reap(struct hal_ledger *l);

/* Makes one device's `used` equal the sum of its slots. False when that could not be proven just now,
 * because an operation stood still or another process recounts; it is then at most too high. */
bool hal_ledger_recount(struct hal_ledger *l, unsigned device);

/* How many devices there are: a program of the slice may have written any number there. */
static inline unsigned hal_ledger_devices(const struct hal_ledger *l) {
    uint32_t devices = *(const volatile uint32_t *)&l->devices;
    return devices <= HAL_LEDGER_DEVICES ? devices : HAL_LEDGER_DEVICES;
}

/* ---- control (control.c) -------------------------------------------------------------------- */

/* Each makes the change, counts the epoch up and wakes who waits. False: out of range, nothing changed. */
bool hal_ledger_set_limit(struct hal_ledger *l, unsigned device, uint64_t bytes);
bool hal_ledger_set_compute(struct hal_ledger *l, unsigned device, uint32_t milli);
bool hal_ledger_set_state(struct hal_ledger *l, uint32_t state);
bool hal_ledger_set_priority(struct hal_ledger *l, int32_t priority);
bool hal_ledger_set_weight(struct hal_ledger *l, uint32_t weight);
bool hal_ledger_set_elastic(struct hal_ledger *l, bool elastic);
bool hal_ledger_set_enforcers(struct hal_ledger *l, uint32_t memory_by, uint32_t compute_by);

/* True at once while the slice runs: one load. */
static inline bool hal_ledger_is_running(const struct hal_ledger *l) {
    return atomic_load_explicit(&l->state, memory_order_acquire) == HAL_SLICE_RUN;
}

/* Waits while the slice is paused, until `deadline_ns` of the caller's CLOCK_MONOTONIC (in the past: does
 * not wait). Returns the state found: HAL_SLICE_RUN, HAL_SLICE_STOP, or after the deadline HAL_SLICE_PAUSE. */
enum hal_ledger_state hal_ledger_wait_running(struct hal_ledger *l, int64_t deadline_ns);

/* Waits until the epoch is another than `seen`, or the deadline has passed; returns it. */
uint32_t hal_ledger_wait_epoch(struct hal_ledger *l, uint32_t seen, int64_t deadline_ns);

/* The pid in an owner word, as its own pid namespace numbers it; 0: the slot is free. */
static inline uint32_t hal_ledger_owner_pid(uint64_t owner) { return (uint32_t)(owner & 0x3fffffff); }

#endif
