#define _GNU_SOURCE
#include "charge.h"

#include "pool.h"
#include "sizes.h"
#include "slice.h"

enum { KIND_SHIFT = 60 };

static uint64_t keyed(enum charge_kind kind, uint64_t key) { return key + ((uint64_t)kind << KIND_SHIFT); }

static struct charge charge_from(struct hal_allocation a) {
    return (struct charge){a.bytes, a.note, a.device};
}

bool charge_begin(unsigned device, uint64_t bytes) {
    if (slice_try(device, bytes)) return true;
    if (pool_squeeze(device) && slice_try(device, bytes)) return true;
    slice_refused(device, bytes);
    return false;
}

void charge_undo(unsigned device, uint64_t bytes) {
    if (bytes > 0) slice_release(device, bytes);
}

bool charge_keep(enum charge_kind kind, uint64_t key, struct charge c) {
    return hal_sizes_put(keyed(kind, key), (struct hal_allocation){c.bytes, c.note, c.device});
}

bool charge_take(enum charge_kind kind, uint64_t key, struct charge *out) {
    struct hal_allocation a;
    if (!hal_sizes_take(keyed(kind, key), &a)) return false;
    *out = charge_from(a);
    return true;
}

void charge_end(enum charge_kind kind, uint64_t key, struct charge c, bool freed) {
    if (!freed)
        charge_keep(kind, key, c);
    else if (c.device & CHARGE_POOLED)
        pool_freed((unsigned)c.note, c.bytes);
    else
        charge_undo(c.device, c.bytes);
}

bool charge_count(enum charge_kind kind, uint64_t key, int more, struct charge *out) {
    struct hal_allocation a;
    if (!hal_sizes_count(keyed(kind, key), more, &a)) return false;
    *out = charge_from(a);
    return true;
}

static void give_back(uint64_t key, struct hal_allocation a) {
    (void)key;
    charge_end(CHARGE_MEMORY, 0, charge_from(a), true);
}

void charge_end_of(uint64_t context) {
    const uint64_t kind = UINT64_C(15) << KIND_SHIFT;
    hal_sizes_drain(context, kind, keyed(CHARGE_MEMORY, 0), give_back);
    hal_sizes_drain(context, kind, keyed(CHARGE_ARRAY, 0), give_back);
}

static void nothing(uint64_t key, struct hal_allocation a) { (void)key, (void)a; }

void charge_forget_pool(unsigned number) {
    hal_sizes_drain(number, UINT64_C(15) << KIND_SHIFT, keyed(CHARGE_MEMORY, 0), nothing);
}
