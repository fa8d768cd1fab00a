/* When the work of an emulated device is done, though nothing is computed.
 *
 * A *mark* is a place in a device's work; it is reached when all work submitted up to it is done.
 * HAL_EMULATOR_SHARING says how contexts share a device: "sliced" (the default; all that have work get equal
 * parts of the time, as NVIDIA's time slices and AMD's queues do on the average) or "fifo" (first come, first
 * served). Within a context work runs in the order in which it was submitted.
 * HAL_EMULATOR_QUEUE bounds what a context may have waiting: "1024" launches (the default) or "100ms" of work; "0": work takes no
 * time at all, for measuring what a call itself costs. */
#ifndef HAL_EMULATOR_TIMELINE_H
#define HAL_EMULATOR_TIMELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hal_machine;

/* Prepares the timelines of a new machine file. */
void timeline_format(struct hal_machine *m);

/* Nanoseconds of the clock that the timelines run on. */
int64_t timeline_now(void);

/* Submits `ns` of work for this process and returns its mark; waits first while the queue is full. */
int64_t timeline_submit(unsigned device, int64_t ns);

/* The mark of all that this process has submitted to the device. */
int64_t timeline_mark(unsigned device);

bool timeline_done(unsigned device, int64_t mark);
void timeline_wait(unsigned device, int64_t mark);

/* When a mark that is done was reached, on timeline_now()'s clock. */
int64_t timeline_reached(unsigned device, int64_t mark);

/* The share of the device, in thousandths, that a process had in the last half second or so; -1 when
 * nothing was ever submitted to the device. pid 0: of all processes together. */
int timeline_share(unsigned device, int32_t pid);

/* "10ms", "20us", "5000ns" or "5000" as nanoseconds; -1 when it is none of these. */
int64_t timeline_duration(const char *text);

#endif
