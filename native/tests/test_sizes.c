/* The table of live allocations: what is put is taken once, by whichever thread, at any live count. */
#define _GNU_SOURCE
#include "sizes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"

enum { MANY = 100000, THREADS = 4 };

static uint64_t address(unsigned i) { return UINT64_C(0x700000000000) + (uint64_t)i * 512; }

static void put(unsigned i) {
    CHECK(hal_sizes_put(address(i), (struct hal_allocation){.bytes = i * UINT64_C(7) + 1, .device = i % 64}));
}

static bool take(unsigned i) {
    struct hal_allocation a = {0};
    if (!hal_sizes_take(address(i), &a)) return false;
    CHECK(a.bytes == i * UINT64_C(7) + 1 && a.device == i % 64);
    return true;
}

static void test_one(void) {
    struct hal_allocation a = {.bytes = 5, .device = 6};
    for (uint64_t nobody = 0; nobody < 3; nobody++) CHECK(!hal_sizes_take(nobody, &a));
    CHECK(!take(1) && a.bytes == 5 && a.device == 6); /* untouched */
    put(1);
    CHECK(!take(2) && take(1) && !take(1));
    put(1); /* the driver gave the same address again */
    CHECK(take(1) && !take(1));
    uint64_t last = UINT64_MAX;
    CHECK(hal_sizes_put(last, (struct hal_allocation){UINT64_MAX, 1, UINT32_MAX}));
    CHECK(hal_sizes_take(last, &a) && a.bytes == UINT64_MAX && a.device == UINT32_MAX);
}

static uint64_t drained;

static void drain_one(uint64_t key, struct hal_allocation a) {
    CHECK(key >= address(1) && a.note == 7);
    drained += a.bytes;
}

/* What belongs to something goes with it; what is held by many goes with the last. */
static void test_notes(void) {
    struct hal_allocation a;
    const uint64_t kind = UINT64_C(1) << 60;
    for (unsigned i = 1; i <= 100; i++)
        CHECK(hal_sizes_put(address(i) + (i % 2) * kind, (struct hal_allocation){i, i % 3 == 0 ? 7 : 8, 0}));
    CHECK(hal_sizes_find(address(2), &a) && a.bytes == 2 && a.note == 8 && !hal_sizes_find(address(1), &a));
    hal_sizes_drain(7, kind, 0, drain_one);
    CHECK(drained == 6 * (16 * 17 / 2)); /* multiples of 6 up to 96 */
    hal_sizes_drain(7, 0, 0, drain_one);
    CHECK(drained == 3 * (33 * 34 / 2));
    for (unsigned i = 1; i <= 100; i++) CHECK(hal_sizes_take(address(i) + (i % 2) * kind, &a) == (i % 3 != 0));
    CHECK(hal_sizes_put(address(1), (struct hal_allocation){5, 1, 2}));
    CHECK(hal_sizes_count(address(1), 1, &a) && a.note == 2 && hal_sizes_count(address(1), -1, &a) && a.note == 1);
    CHECK(hal_sizes_count(address(1), -1, &a) && a.note == 0 && a.bytes == 5 && a.device == 2);
    CHECK(!hal_sizes_count(address(1), -1, &a) && !hal_sizes_find(address(1), &a));
}

static void test_many(void) {
    for (unsigned i = 0; i < MANY; i++) put(i);
    for (unsigned i = 0; i < MANY; i += 2) CHECK(take(i));
    for (unsigned i = 0; i < MANY; i += 2) CHECK(!take(i));
    for (unsigned i = MANY; i < MANY + MANY / 2; i++) put(i); /* into the cells that are free again */
    for (unsigned i = 1; i < MANY; i += 2) CHECK(take(i));
    for (unsigned i = MANY; i < MANY + MANY / 2; i++) CHECK(take(i));
    for (unsigned i = 0; i < MANY + MANY / 2; i++) CHECK(!take(i));
    struct hal_allocation a;
    for (uint64_t mark = 0; mark < 2; mark++) CHECK(!hal_sizes_take(mark, &a)); /* what free cells hold */
}

static long greatest_kib(void) {
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_maxrss;
}

/* Few live at a time and never the same address: the table must not silt up. */
static void test_reuse(void) {
    long before = greatest_kib();
    for (unsigned i = 0; i < 2000000; i++) {
        put(i);
        if (i >= 8) CHECK(take(i - 8));
    }
    for (unsigned i = 2000000 - 8; i < 2000000; i++) CHECK(take(i));
    CHECK(greatest_kib() - before < 16 * 1024);
}

static void test_clear(void) {
    for (unsigned i = 0; i < MANY; i++) put(i);
    hal_sizes_clear();
    for (unsigned i = 0; i < MANY; i++) CHECK(!take(i));
    hal_sizes_clear();
    put(1);
    CHECK(take(1));
}

/* Each thread puts its own addresses and hands half of them to its neighbour, who takes them. */
enum { EACH = 30000 };

static _Atomic unsigned handed[THREADS]; /* so many of the odd ones are there for the neighbour */

static void *work(void *argument) {
    unsigned me = (unsigned)(uintptr_t)argument, neighbour = (me + 1) % THREADS, taken = 1;
    for (unsigned i = 0; i < EACH; i++) {
        put(me * EACH + i);
        if (i % 2 == 0)
            CHECK(take(me * EACH + i) && !take(me * EACH + i));
        else
            atomic_store(&handed[me], i);
        for (; taken <= atomic_load(&handed[neighbour]); taken += 2) CHECK(take(neighbour * EACH + taken));
    }
    while (taken < EACH)
        for (; taken <= atomic_load(&handed[neighbour]); taken += 2) CHECK(take(neighbour * EACH + taken));
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i) == 0);
    for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < THREADS * EACH; i++) CHECK(!take(i));
}

int main(void) {
    test_one();
    test_reuse();
    test_notes();
    test_many();
    test_clear();
    test_threads();
    hal_sizes_clear();
    return 0;
}
