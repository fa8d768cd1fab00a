#define _GNU_SOURCE
#include "sizes.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

/* A chain of open-addressing tables, each four times the one before. A key is looked for within REACH
 * cells of its hash in each; when none of those is free, the next table takes it. Addresses of live
 * allocations are unique, so nobody inserts or takes the same key at the same time as another. */
enum { EMPTY = 0, TOMB = 1, REACH = 16, TABLES = 10, FIRST_BITS = 12 };

struct cell {
    _Alignas(32) _Atomic uint64_t key; /* EMPTY (never used), TOMB (used before), or the address */
    uint64_t bytes; /* written before the address is handed to anybody who could free it */
    _Atomic uint64_t note;
    uint32_t device;
};

static struct cell *_Atomic tables[TABLES];

static unsigned table_bits(int t) { return FIRST_BITS + 2 * (unsigned)t; }

static size_t table_bytes(int t) { return sizeof(struct cell) * (((size_t)1 << table_bits(t)) + REACH); }

static struct cell *table(int t) {
    struct cell *cells = atomic_load_explicit(&tables[t], memory_order_acquire);
    if (cells != NULL) return cells;
    struct cell *fresh =
        mmap(NULL, table_bytes(t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED) return NULL;
    if (atomic_compare_exchange_strong(&tables[t], &cells, fresh)) return fresh;
    munmap(fresh, table_bytes(t));
    return cells;
}

static struct cell *home(struct cell *cells, int t, uint64_t address) {
    return &cells[address * UINT64_C(0x9E3779B97F4A7C15) >> (64 - table_bits(t))];
}

bool hal_sizes_put(uint64_t address, struct hal_allocation a) {
    for (int t = 0; t < TABLES; t++) {
        struct cell *cells = table(t);
        if (cells == NULL) return false;
        struct cell *c = home(cells, t, address);
        for (int i = 0; i < REACH; i++, c++) {
            uint64_t key = atomic_load_explicit(&c->key, memory_order_relaxed);
            if (key > TOMB || !atomic_compare_exchange_strong(&c->key, &key, address)) continue;
            c->bytes = a.bytes;
            c->device = a.device;
            atomic_store_explicit(&c->note, a.note, memory_order_release);
            return true;
        }
    }
    return false;
}

static struct cell *find(uint64_t address) {
    if (address <= TOMB) return NULL;
    for (int t = 0; t < TABLES; t++) {
        struct cell *cells = atomic_load_explicit(&tables[t], memory_order_acquire);
        if (cells == NULL) return NULL;
        struct cell *c = home(cells, t, address);
        for (int i = 0; i < REACH; i++, c++) {
            uint64_t key = atomic_load_explicit(&c->key, memory_order_acquire);
            if (key == EMPTY) return NULL; /* it would have been put here */
            if (key == address) return c;
        }
    }
    return NULL;
}

static struct hal_allocation content(struct cell *c) {
    return (struct hal_allocation){c->bytes, atomic_load_explicit(&c->note, memory_order_acquire), c->device};
}

/* A drain and a free may both be after it: one gets it. */
static bool remove_cell(struct cell *c, uint64_t address) {
    return atomic_compare_exchange_strong_explicit(&c->key, &address, TOMB, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

bool hal_sizes_take(uint64_t address, struct hal_allocation *out) {
    struct cell *c = find(address);
    if (c == NULL) return false;
    *out = content(c);
    return remove_cell(c, address);
}

bool hal_sizes_find(uint64_t address, struct hal_allocation *out) {
    struct cell *c = find(address);
    if (c == NULL) return false;
    *out = content(c);
    return true;
}

bool hal_sizes_count(uint64_t address, int64_t more, struct hal_allocation *out) {
    struct cell *c = find(address);
    if (c == NULL) return false;
    *out = content(c);
    out->note = atomic_fetch_add(&c->note, (uint64_t)more) + (uint64_t)more;
    return out->note != 0 || remove_cell(c, address);
}

void hal_sizes_drain(uint64_t note, uint64_t mask, uint64_t bits,
                     void (*each)(uint64_t address, struct hal_allocation a)) {
    for (int t = 0; t < TABLES; t++) {
        struct cell *cells = atomic_load_explicit(&tables[t], memory_order_acquire);
        if (cells == NULL) return;
        for (struct cell *c = cells; c < cells + table_bytes(t) / sizeof *c; c++) {
            uint64_t key = atomic_load_explicit(&c->key, memory_order_acquire);
            if (key <= TOMB || (key & mask) != bits) continue;
            struct hal_allocation a = content(c);
            if (a.note == note && remove_cell(c, key)) each(key, a);
        }
    }
}

void hal_sizes_clear(void) {
    for (int t = 0; t < TABLES; t++) {
        struct cell *cells = atomic_exchange(&tables[t], NULL);
        if (cells != NULL) munmap(cells, table_bytes(t));
    }
}
