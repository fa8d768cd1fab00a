/* Holds a slice to its share of a device's *time*, whatever its kernels' grids.
 *
 * What a launch will take is learned from event pairs around a few of them, by function and grid. Each launch
 * is charged to one bucket per slice and device, in the ledger, which all processes of the slice share; who is
 * ahead of the slice's share sleeps until it is not. A launch that is not sampled and is not ahead costs a
 * table lookup: no lock, no system call, no driver call. */
#ifndef HAL_GUARD_SHARE_H
#define HAL_GUARD_SHARE_H

#include <stdbool.h>
#include <stdint.h>

/* CAPTURED: what is launched on the stream becomes a part of a graph, and does not run now.
 * BLIND: it runs, but events cannot be used just now. READY: they can, until `leave`. */
enum share_view { SHARE_CAPTURED, SHARE_BLIND, SHARE_READY };

/* What a runtime has to offer. Events are only made, recorded and asked for between `enter` and `leave`. */
struct share_driver {
    enum share_view (*enter)(void *stream, int *kept);
    void (*leave)(int kept);
    void *(*make)(void); /* an event that keeps the time; NULL: there are none */
    bool (*record)(void *event, void *stream);
    int (*ask)(void *event);                                  /* 1 reached, 0 not yet, -1 lost */
    bool (*between)(void *from, void *to, int64_t *ns);
};

struct share_ticket {
    const struct share_driver *driver;
    struct share_sample *sample; /* NULL: this launch is not measured */
    void *stream;
};

/* Before a launch on a device of the slice: sleeps while the slice is paused or ahead of its share. `kind` is the
 * function or the graph, `size` the number of its threads. */
void share_before(const struct share_driver *driver, unsigned device, uint64_t kind, uint64_t size,
                  void *stream, struct share_ticket *out);

/* After it, whatever came of it. */
void share_after(struct share_ticket *ticket, bool launched);

#endif
