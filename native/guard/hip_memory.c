/* HIP runtime: linear memory. Each allocation is charged as many bytes as were asked for; a pitched one as many
 * as its rows take; a managed one in full, to the device that is current. */
#define _GNU_SOURCE
#include "charge.h"
#include "hip.h"
#include "slice.h"

/* What rows are a multiple of on every device so far; the runtime's answer is what is charged. */
enum { PITCH = 256, SIGNAL_MEMORY = 2 };

static uint64_t key(void *address) { return (uint64_t)(uintptr_t)address; }

/* The end of an allocation: what the runtime gave is kept. Asked for nothing, HIP gives NULL and success:
 * nothing will be freed. */
static result honour(result outcome, void *fresh, struct charge c) {
    if (outcome == SUCCESS && fresh == NULL) {
        charge_undo(c.device, c.bytes);
        return SUCCESS;
    }
    if (outcome == SUCCESS && !charge_keep(CHARGE_MEMORY, key(fresh), c)) {
        REAL(hipFree)(fresh);
        outcome = OUT_OF_MEMORY;
    }
    if (outcome != SUCCESS) charge_undo(c.device, c.bytes);
    return outcome;
}

/* The runtime's own call is made with `fresh` in place of the program's. */
#define ALLOCATE(call)                                                                               \
    struct charge c = {.bytes = bytes};                                                              \
    void *fresh = NULL;                                                                              \
    if (out == NULL || !hip_here(&c.device, &c.note)) return call(out);                              \
    if (!charge_begin(c.device, c.bytes)) return hip_refusal();                                      \
    result outcome = call(&fresh);                                                                   \
    outcome = honour(outcome, fresh, c);                                                             \
    if (outcome == SUCCESS) *out = fresh;                                                            \
    return outcome

HIP_HOOK(hipMalloc, (void **out, size_t bytes), (out, bytes)) {
#define CALL(at) REAL(hipMalloc)(at, bytes)
    ALLOCATE(CALL);
#undef CALL
}

HIP_HOOK(hipExtMallocWithFlags, (void **out, size_t bytes, unsigned flags), (out, bytes, flags)) {
#define CALL(at) REAL(hipExtMallocWithFlags)(at, bytes, flags)
    if (flags == SIGNAL_MEMORY) return CALL(out); /* 8 bytes of the host's */
    ALLOCATE(CALL);
#undef CALL
}

HIP_HOOK(hipMallocManaged, (void **out, size_t bytes, unsigned flags), (out, bytes, flags)) {
#define CALL(at) REAL(hipMallocManaged)(at, bytes, flags)
    ALLOCATE(CALL);
#undef CALL
}

/* ---- pitched: the runtime alone knows the pitch ---------------------------------------------------- */

/* A guess is reserved beforehand, and corrected to what it became. */
static bool correct(struct charge *c, uint64_t bytes) {
    if (bytes > c->bytes && !charge_begin(c->device, bytes - c->bytes)) return false;
    if (bytes < c->bytes) charge_undo(c->device, c->bytes - bytes);
    c->bytes = bytes;
    return true;
}

static uint64_t product(uint64_t a, uint64_t b) {
    uint64_t out;
    return __builtin_mul_overflow(a, b, &out) ? UINT64_MAX : out;
}

static uint64_t guess(size_t width, uint64_t rows) {
    uint64_t row = width > UINT64_MAX - PITCH ? UINT64_MAX : (width + PITCH - 1) / PITCH * PITCH;
    return product(row, rows);
}

/* `fresh` and `pitch` are what the call gives; `rows` how many there are. */
static result settle(result outcome, struct charge *c, void *fresh, size_t pitch, uint64_t rows) {
    if (outcome == SUCCESS && fresh != NULL && !correct(c, product(pitch, rows))) {
        REAL(hipFree)(fresh);
        outcome = hip_refusal();
    }
    return honour(outcome, fresh, *c);
}

#define PITCHED(name, parameters, arguments, call)                                                   \
    HIP_HOOK(name, parameters, arguments) {                                                          \
        struct charge c = {.bytes = guess(width, height)};                                           \
        void *fresh = NULL;                                                                          \
        size_t row = 0;                                                                              \
        if (out == NULL || pitch == NULL || !hip_here(&c.device, &c.note)) return REAL(name) arguments; \
        if (!charge_begin(c.device, c.bytes)) return hip_refusal();                                  \
        result outcome = REAL(name) call;                                                            \
        outcome = settle(outcome, &c, fresh, row, height);                                           \
        if (outcome != SUCCESS) return outcome;                                                      \
        *out = fresh;                                                                                \
        *pitch = row;                                                                                \
        return SUCCESS;                                                                              \
    }
PITCHED(hipMallocPitch, (void **out, size_t *pitch, size_t width, size_t height), (out, pitch, width, height),
        (&fresh, &row, width, height))
PITCHED(hipMemAllocPitch, (void **out, size_t *pitch, size_t width, size_t height, unsigned element),
        (out, pitch, width, height, element), (&fresh, &row, width, height, element))

HIP_HOOK(hipMalloc3D, (struct pitched *out, struct extent extent), (out, extent)) {
    uint64_t rows = product(extent.height, extent.depth);
    struct charge c = {.bytes = guess(extent.width, rows)};
    if (out == NULL || !hip_here(&c.device, &c.note)) return REAL(hipMalloc3D)(out, extent);
    struct pitched fresh = {0};
    if (!charge_begin(c.device, c.bytes)) return hip_refusal();
    result outcome = REAL(hipMalloc3D)(&fresh, extent);
    outcome = settle(outcome, &c, fresh.address, fresh.pitch, rows);
    if (outcome == SUCCESS) *out = fresh;
    return outcome;
}

/* ---- free: also of what came from a pool ----------------------------------------------------------- */

HIP_HOOK(hipFree, (void *address), (address)) {
    struct charge c;
    if (!charge_take(CHARGE_MEMORY, key(address), &c)) return REAL(hipFree)(address);
    result outcome = REAL(hipFree)(address);
    charge_end(CHARGE_MEMORY, key(address), c, outcome == SUCCESS);
    return outcome;
}
