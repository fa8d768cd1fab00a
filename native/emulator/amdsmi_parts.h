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
amdsmi_status_t amdsmi_named(const void *handle, const void *out, const processor **found);

/* The same where the card itself has to answer: one that is lost is not found. */
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

/* What changes a card is for root only, where the machine says so. */
amdsmi_status_t amdsmi_may_change(void);

/* Programs hold memory on it. */
bool amdsmi_busy(const device *d);

/* Notes what KFD would report; for all partitions of the card. */
void amdsmi_report(const device *d, uint32_t type, const char *message);

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

/* The same for what changes the card. */
#define CHANGE(handle) \
    FAULTS; \
    const processor *p = NULL; \
    do { \
        amdsmi_status_t wrong = amdsmi_find(handle, &p, &p); \
        if (wrong == AMDSMI_STATUS_SUCCESS) wrong = amdsmi_may_change(); \
        if (wrong != AMDSMI_STATUS_SUCCESS) return wrong; \
    } while (0); \
    if (p->partition != 0) return AMDSMI_STATUS_NOT_SUPPORTED; \
    device *d = p->card

/* Functions that give one number about a processor. */
#define FIGURE(begin, name, type, value) \
    FUNCTION name(void *handle, type *out) { \
        begin(handle, out); \
        *out = (type)(value); \
        return AMDSMI_STATUS_SUCCESS; \
    }

/* A clock within the limits that were set. */
static inline uint32_t amdsmi_held(uint32_t megahertz, uint32_t low, uint32_t high) {
    if (megahertz == 0) return 0;
    if (high != 0 && megahertz > high) return high;
    return megahertz < low ? low : megahertz;
}

static inline uint64_t amdsmi_or(int64_t value, uint64_t none) {
    return value == HAL_UNKNOWN ? none : (uint64_t)value;
}

#endif
