/* What the files of the AMD SMI stand-in share: the processors that it shows, and how a function
 * begins. */
#ifndef HAL_EMULATOR_AMDSMI_PARTS_H
#define HAL_EMULATOR_AMDSMI_PARTS_H

#include "amdsmi.h"
#include "emulator.h"
#include "faults.h"
#include "partition.h"

typedef struct hal_machine_device device;

/* A card, or one partition of it; the first one stands for the card as well. */
typedef struct {
    device *card;
    unsigned partition;
} processor;

bool amdsmi_ready(void);
uint32_t amdsmi_major(void);

/* The processor behind a handle, or what is wrong with the question; `out` is for its answer. */
amdsmi_status_t amdsmi_find(const void *handle, const void *out, const processor **found);

/* All processors in AMD SMI's order: a card's partitions, then the next card's. Calls `visit` for
 * each until it is false. */
typedef bool (*amdsmi_visit)(const processor *p, unsigned position, void *context);
void amdsmi_each(amdsmi_visit visit, void *context);
unsigned amdsmi_position(const processor *p);

unsigned amdsmi_index(const device *d);
amdsmi_bdf_t amdsmi_bdf(const processor *p);

/* The n of a card's NPSn; 0 where it cannot be divided. */
unsigned amdsmi_memory_ranges(const device *d);

/* Nanoseconds since the machine was made. */
uint64_t amdsmi_age(void);

#define FUNCTION EMULATOR_EXPORT amdsmi_status_t

/* Leaves with what HAL_EMULATOR_FAULTS says of the function, if it says anything. */
#define FAULTS \
    do { \
        int fault = 0; \
        if (emulator_fault(__func__, &fault)) return (amdsmi_status_t)fault; \
    } while (0)

/* Declares `p`, the processor that was asked about, and its card `d`; or says what is wrong. */
#define PROCESSOR(handle, out) \
    FAULTS; \
    const processor *p = NULL; \
    do { \
        amdsmi_status_t wrong = amdsmi_find(handle, out, &p); \
        if (wrong != AMDSMI_STATUS_SUCCESS) return wrong; \
    } while (0); \
    device *d = p->card; \
    (void)d

/* The same for what only the whole card measures: its first partition has it. */
#define CARD(handle, out) \
    PROCESSOR(handle, out); \
    if (p->partition != 0) return AMDSMI_STATUS_NOT_SUPPORTED

/* Functions that give one number about a processor. */
#define FIGURE(begin, name, type, value) \
    FUNCTION name(void *handle, type *out) { \
        begin(handle, out); \
        *out = (type)(value); \
        return AMDSMI_STATUS_SUCCESS; \
    }

static inline uint64_t amdsmi_or(int64_t value, uint64_t none) {
    return value == HAL_UNKNOWN ? none : (uint64_t)value;
}

#endif
