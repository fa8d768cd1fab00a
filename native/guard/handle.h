/* Memory that has a handle and is mapped where the program likes: charged until nobody holds the handle and
 * nothing is mapped to it. Knows no vendor. */
#ifndef HAL_GUARD_HANDLE_H
#define HAL_GUARD_HANDLE_H

#include "charge.h"

/* One holder less: at the last, the handle is taken and `last` is set; `c` is its charge. False: it is not
 * charged. After the driver: `handle_dropped` gives it back, or puts it back where it was. */
bool handle_drop(uint64_t handle, struct charge *c, bool *last);
void handle_dropped(uint64_t handle, struct charge c, bool last, bool freed);

/* Also of a handle that is not charged, so that a range of several is walked whole when it is unmapped. */
void handle_mapped(uint64_t at, uint64_t bytes, uint64_t handle);

/* What a range that is unmapped has in it, taken out before the driver can hand it to another thread; mappings
 * begin at multiples of `step`. */
struct handle_range;
struct handle_range *handle_unmap(uint64_t at, uint64_t bytes, uint64_t step);
void handle_unmapped(struct handle_range *range, bool freed);

#endif
