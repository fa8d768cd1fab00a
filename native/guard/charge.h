/* What this process has been given in its slice, and by what it will give it back. Knows no vendor. */
#ifndef HAL_GUARD_CHARGE_H
#define HAL_GUARD_CHARGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Things that have a key of their own kind; two kinds may have the same number for different things. */
enum charge_kind { CHARGE_MEMORY = 1, CHARGE_ARRAY, CHARGE_HANDLE, CHARGE_MAPPING, CHARGE_GRAPH };

struct charge {
    uint64_t bytes;
    uint64_t note;   /* of memory and arrays: the context that ends them; of a handle: how many hold it */
    unsigned device; /* CHARGE_POOLED: it is a part of the pool that `note` numbers, which is charged */
};
#define CHARGE_POOLED (1u << 31)

/* Reserves before the driver is asked. When there is no room, pools that keep something they do not use give
 * that back first. False: refused, and said so. */
bool charge_begin(unsigned device, uint64_t bytes);

/* Gives back a reservation that the driver did not honour. */
void charge_undo(unsigned device, uint64_t bytes);

/* Keeps an honoured one for its free; false: no memory for that. */
bool charge_keep(enum charge_kind kind, uint64_t key, struct charge c);

/* Something is about to be freed: takes it out before the driver can hand its key to another thread. False:
 * not made under the guard. After the driver: either given back, or put back where it was. */
bool charge_take(enum charge_kind kind, uint64_t key, struct charge *out);
void charge_end(enum charge_kind kind, uint64_t key, struct charge c, bool freed);

/* More or fewer who hold a handle; at 0 it is taken. False: not known. */
bool charge_count(enum charge_kind kind, uint64_t key, int more, struct charge *out);

/* A context has ended, and all memory and arrays in it. */
void charge_end_of(uint64_t context);

/* A pool has ended with all that came from it; its account was closed elsewhere. */
void charge_forget_pool(unsigned number);

#endif
