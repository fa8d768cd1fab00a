/* CUDA driver API: linear memory. Each allocation is charged as many bytes as were asked for; a pitched one
 * as many as its rows take; a managed one in full, to the device that is current. */
#define _GNU_SOURCE
#include "charge.h"
#include "cuda.h"

/* What rows are a multiple of on every device so far; the driver's answer is what is charged. */
enum { PITCH = 512 };

/* The end of an allocation: what the driver gave is kept, and only then shown to the program. */
static result honour(result outcome, pointer fresh, struct charge c, result (*undo)(pointer)) {
    if (outcome == SUCCESS && !charge_keep(CHARGE_MEMORY, fresh, c)) {
        undo(fresh);
        outcome = OUT_OF_MEMORY;
    }
    if (outcome != SUCCESS) charge_undo(c.device, c.bytes);
    return outcome;
}

static result undo_wide(pointer address) { return REAL(cuMemFree_v2)(address); }
static result undo_narrow(pointer address) { return REAL(cuMemFree)((unsigned)address); }

/* `type` is that of the address; the driver's own call is made with `fresh` in place of the program's. */
#define ALLOCATE(name, type, undo, call)                                                            \
    __typeof__(&name) real = REAL(name);                                                            \
    struct charge c = {.bytes = bytes};                                                             \
    type fresh = 0;                                                                                 \
    if (real == NULL) return NOT_INITIALIZED;                                                       \
    if (out == NULL || !cuda_here(&c.device, &c.note)) return real call(out);                       \
    if (!charge_begin(c.device, c.bytes)) return cuda_refusal();                                    \
    result outcome = real call(&fresh);                                                             \
    outcome = honour(outcome, fresh, c, undo);                                                      \
    if (outcome == SUCCESS) *out = fresh;                                                           \
    return outcome

result cuMemAlloc_v2(pointer *out, size_t bytes) {
#define CALL(at) (at, bytes)
    ALLOCATE(cuMemAlloc_v2, pointer, undo_wide, CALL);
}

result cuMemAlloc(unsigned *out, unsigned bytes) { ALLOCATE(cuMemAlloc, unsigned, undo_narrow, CALL); }
#undef CALL

result cuMemAllocManaged(pointer *out, size_t bytes, unsigned flags) {
#define CALL(at) (at, bytes, flags)
    ALLOCATE(cuMemAllocManaged, pointer, undo_wide, CALL);
#undef CALL
}

/* ---- pitched: the driver alone knows the pitch ---------------------------------------------------- */

/* A guess is reserved beforehand, and corrected to what it became. */
static bool correct(struct charge *c, uint64_t bytes) {
    if (bytes > c->bytes && !charge_begin(c->device, bytes - c->bytes)) return false;
    if (bytes < c->bytes) charge_undo(c->device, c->bytes - bytes);
    c->bytes = bytes;
    return true;
}

static uint64_t guess(size_t width, size_t height) {
    uint64_t row = width > UINT64_MAX - PITCH ? UINT64_MAX : (width + PITCH - 1) / PITCH * PITCH;
    return height != 0 && row > UINT64_MAX / height ? UINT64_MAX : row * height;
}

#define PITCHED(name, type, size, undo)                                                             \
    result name(type *out, size *pitch, size width, size height, unsigned element) {                \
        __typeof__(&name) real = REAL(name);                                                        \
        struct charge c = {.bytes = guess(width, height)};                                          \
        type fresh = 0;                                                                             \
        size rows = 0;                                                                              \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        if (out == NULL || pitch == NULL || !cuda_here(&c.device, &c.note))                         \
            return real(out, pitch, width, height, element);                                        \
        if (!charge_begin(c.device, c.bytes)) return cuda_refusal();                                \
        result outcome = real(&fresh, &rows, width, height, element);                               \
        if (outcome == SUCCESS && !correct(&c, (uint64_t)rows * height)) {                          \
            undo(fresh);                                                                            \
            outcome = OUT_OF_MEMORY;                                                                \
        }                                                                                           \
        outcome = honour(outcome, fresh, c, undo);                                                  \
        if (outcome != SUCCESS) return outcome;                                                     \
        *out = fresh;                                                                               \
        *pitch = rows;                                                                              \
        return SUCCESS;                                                                             \
    }
PITCHED(cuMemAllocPitch_v2, pointer, size_t, undo_wide)
PITCHED(cuMemAllocPitch, unsigned, unsigned, undo_narrow)

/* ---- free: also of what came from a pool ----------------------------------------------------------- */

#define FREE(name, type)                                                                            \
    result name(type address) {                                                                     \
        __typeof__(&name) real = REAL(name);                                                        \
        struct charge c;                                                                            \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        if (!charge_take(CHARGE_MEMORY, address, &c)) return real(address);                         \
        result outcome = real(address);                                                             \
        charge_end(CHARGE_MEMORY, address, c, outcome == SUCCESS);                                  \
        return outcome;                                                                             \
    }
FREE(cuMemFree_v2, pointer)
FREE(cuMemFree, unsigned)
