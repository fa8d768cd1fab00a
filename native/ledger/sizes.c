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
    _Atomic uint64_t key; /* EMPTY (never used), TOMB (used before), or the address */
    uint64_t bytes;       /* written before the address is handed to anybody who could free it */
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
            return true;
        }
    }
    return false;
}

bool hal_sizes_take(uint64_t address, struct hal_allocation *out) {
    if (address <= TOMB) return false;
    for (int t = 0; t < TABLES; t++) {
        struct cell *cells = atomic_load_explicit(&tables[t], memory_order_acquire);
        if (cells == NULL) return false;
        struct cell *c = home(cells, t, address);
        for (int i = 0; i < REACH; i++, c++) {
            uint64_t key = atomic_load_explicit(&c->key, memory_order_acquire);
            if (key == EMPTY) return false; /* it would have been put here */
            if (key != address) continue;
            *out = (struct hal_allocation){c->bytes, c->device};
            atomic_store_explicit(&c->key, TOMB, memory_order_release);
            return true;
        }
    }
    return false;
}

void hal_sizes_clear(void) {
    for (int t = 0; t < TABLES; t++) {
        struct cell *cells = atomic_exchange(&tables[t], NULL);
        if (cells != NULL) munmap(cells, table_bytes(t));
    }
}
