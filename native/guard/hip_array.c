/* HIP runtime: arrays. No call says how large one is, so that is computed: rows of all levels in multiples of
 * 256 bytes, the whole in pages. What the hardware's layout takes beyond it, the agent's correction sees. */
#define _GNU_SOURCE
#include "charge.h"
#include "hip.h"
#include "slice.h"

enum { ROW = 256, PAGE = 4096, DEEPEST = 32 };

static uint64_t round_up(uint64_t bytes, uint64_t to) {
    return bytes > UINT64_MAX - to ? UINT64_MAX : (bytes + to - 1) / to * to;
}

static uint64_t product(uint64_t a, uint64_t b) {
    uint64_t out;
    return __builtin_mul_overflow(a, b, &out) ? UINT64_MAX / 2 : out;
}

static uint64_t size_of(size_t width, size_t height, size_t depth, uint64_t bits, unsigned levels) {
    uint64_t sum = 0;
    for (unsigned level = 0; level < levels && level < DEEPEST; level++) {
        uint64_t w = width >> level, h = height >> level, z = depth >> level;
        uint64_t row = round_up(product(w > 0 ? w : 1, bits) / 8, ROW);
        uint64_t all = product(product(row, h > 0 ? h : 1), z > 0 ? z : 1);
        sum = all > UINT64_MAX / 2 - sum ? UINT64_MAX / 2 : sum + all;
    }
    return round_up(sum, PAGE);
}

static uint64_t bits_of(const struct channels *c) { return (uint64_t)(c->x + c->y + c->z + c->w); }

static uint64_t bits_of_format(unsigned format, unsigned channels) {
    uint64_t one = format == 0x01 || format == 0x08 ? 8 : format == 0x02 || format == 0x09 || format == 0x10 ? 16 : 32;
    return one * channels;
}

static result end(result outcome, void *fresh, struct charge c, result (*destroy)(void *), void **out) {
    if (outcome == SUCCESS && !charge_keep(CHARGE_ARRAY, (uint64_t)(uintptr_t)fresh, c)) {
        destroy(fresh);
        outcome = OUT_OF_MEMORY;
    }
    if (outcome == SUCCESS)
        *out = fresh;
    else
        charge_undo(c.device, c.bytes);
    return outcome;
}

#define ARRAY(name, given, size, destroy, parameters, arguments, call)                               \
    HIP_HOOK(name, parameters, arguments) {                                                          \
        struct charge c;                                                                             \
        void *fresh = NULL;                                                                          \
        if (out == NULL || given == NULL || !hip_here(&c.device, &c.note)) return REAL(name) arguments; \
        c.bytes = size;                                                                              \
        if (!charge_begin(c.device, c.bytes)) return hip_refusal();                                  \
        result outcome = REAL(name) call;                                                            \
        return end(outcome, fresh, c, REAL(destroy), out);                                           \
    }
ARRAY(hipMallocArray, element, size_of(width, height, 0, bits_of(element), 1), hipFreeArray,
      (void **out, const struct channels *element, size_t width, size_t height, unsigned flags),
      (out, element, width, height, flags), (&fresh, element, width, height, flags))
ARRAY(hipMalloc3DArray, element, size_of(extent.width, extent.height, extent.depth, bits_of(element), 1),
      hipFreeArray, (void **out, const struct channels *element, struct extent extent, unsigned flags),
      (out, element, extent, flags), (&fresh, element, extent, flags))
ARRAY(hipArrayCreate, wanted,
      size_of(wanted->width, wanted->height, 0, bits_of_format(wanted->format, wanted->channels), 1),
      hipArrayDestroy, (void **out, const struct array *wanted), (out, wanted), (&fresh, wanted))
ARRAY(hipArray3DCreate, wanted,
      size_of(wanted->width, wanted->height, wanted->depth, bits_of_format(wanted->format, wanted->channels), 1),
      hipArrayDestroy, (void **out, const struct array_3d *wanted), (out, wanted), (&fresh, wanted))
ARRAY(hipMallocMipmappedArray, element,
      size_of(extent.width, extent.height, extent.depth, bits_of(element), levels), hipFreeMipmappedArray,
      (void **out, const struct channels *element, struct extent extent, unsigned levels, unsigned flags),
      (out, element, extent, levels, flags), (&fresh, element, extent, levels, flags))
ARRAY(hipMipmappedArrayCreate, wanted,
      size_of(wanted->width, wanted->height, wanted->depth, bits_of_format(wanted->format, wanted->channels),
              levels),
      hipMipmappedArrayDestroy, (void **out, struct array_3d *wanted, unsigned levels), (out, wanted, levels),
      (&fresh, wanted, levels))

#define DESTROY(name)                                                                                \
    HIP_HOOK(name, (void *array), (array)) {                                                         \
        struct charge c;                                                                             \
        uint64_t key = (uint64_t)(uintptr_t)array;                                                   \
        if (!charge_take(CHARGE_ARRAY, key, &c)) return REAL(name)(array);                           \
        result outcome = REAL(name)(array);                                                          \
        charge_end(CHARGE_ARRAY, key, c, outcome == SUCCESS);                                        \
        return outcome;                                                                              \
    }
DESTROY(hipFreeArray)
DESTROY(hipArrayDestroy)
DESTROY(hipFreeMipmappedArray)
DESTROY(hipMipmappedArrayDestroy)
