/* Pools of the vendors' runtimes: what a pool has taken from its device is charged, whether it is in use or
 * kept for later. So memory that is reused inside a pool costs nothing more, and what the pool hands back to
 * the device is given back to the slice when the guard next looks: at the pool's next allocation, at a
 * synchronization, at a query, and before anything is refused. Knows no vendor. */
#ifndef HAL_GUARD_POOL_H
#define HAL_GUARD_POOL_H

#include <stdbool.h>
#include <stdint.h>

struct pool_driver {
    bool (*reserved)(uint64_t handle, uint64_t *bytes); /* from its device, now */
    void (*trim)(uint64_t handle);                      /* gives back all that it does not use */
};

struct pool;

/* The account of a pool; NULL: there is none yet. */
struct pool *pool_find(const struct pool_driver *driver, uint64_t handle);

/* Opens one; NULL: there are too many. */
struct pool *pool_open(const struct pool_driver *driver, uint64_t handle, unsigned device);
unsigned pool_number(const struct pool *p);
unsigned pool_device(const struct pool *p);

/* Reserves what an allocation may make the pool grow by, 0 when it has so much to spare. False: refused. */
bool pool_begin(struct pool *p, uint64_t bytes, uint64_t *promised);

/* The driver was asked: corrects the charge to what the pool has now. False: the pool grew by more than
 * there is room for, and the allocation has to be undone. */
bool pool_settle(struct pool *p, uint64_t promised);

/* Bytes of it were handed out, or freed (in stream order: they may be in use for a while). */
void pool_used(struct pool *p, uint64_t bytes);
void pool_freed(unsigned number, uint64_t bytes);

/* The pool was destroyed: it is given back with the last allocation from it. */
void pool_close(struct pool *p);

/* All pools of a driver on a device were ended with everything that came from them: `forget` is called with the
 * number of each. */
void pool_end(const struct pool_driver *driver, unsigned device, void (*forget)(unsigned number));

/* After a free, a pool may be smaller than it is charged for: asks those. */
void pool_settle_freed(void);

/* Trims all pools of a device that keep more than they use: true when that gave something back. */
bool pool_squeeze(unsigned device);

/* In the child of a fork. */
void pool_forked(void);

#endif
