/* CUDA driver API: arrays. The driver alone knows how large one is, and says so of an array whose mapping is
 * deferred (CUDA 11.6): such a twin, which takes no memory, is made first and asked. Where that fails the
 * size is computed. Sparse and deferred arrays have no memory of their own: what is mapped to them is
 * charged (cuda_vmm.c). */
#define _GNU_SOURCE
#include "charge.h"
#include "cuda.h"
#include "slice.h"

enum { SPARSE = 0x40, DEFERRED = 0x80, ALIGNMENT = 65536 };

CUDA_NEEDS(result, cuArrayGetMemoryRequirements, struct array_needs *, void *, device)
CUDA_NEEDS(result, cuMipmappedArrayGetMemoryRequirements, struct array_needs *, void *, device)

/* Bits of an element; of video formats the most that one may take. */
static uint64_t element_bits(unsigned format, unsigned channels) {
    switch (format) {
    case 0x01: case 0x08: return 8 * channels;
    case 0x02: case 0x09: case 0x10: return 16 * channels;
    case 0x03: case 0x0a: case 0x20: return 32 * channels;
    case 0x91: case 0x92: case 0x97: case 0x98: return 4; /* BC1, BC4: 8 bytes for 4 by 4 elements */
    case 0xc0: case 0xc6: return 8;
    case 0xc1: case 0xc3: case 0xc7: case 0xc9: return 16;
    case 0xc2: case 0xc4: case 0xc8: case 0xca: return 32;
    case 0xc5: case 0xcb: return 64;
    default: return format >= 0x93 && format <= 0x9e ? 8 : 64;
    }
}

static uint64_t computed(const struct array_3d *d, unsigned levels) {
    uint64_t sum = 0;
    for (unsigned level = 0; level < levels && level < 32; level++) {
        uint64_t w = d->width >> level, h = d->height >> level, z = d->depth >> level;
        uint64_t row = ((w > 0 ? w : 1) * element_bits(d->format, d->channels) + 7) / 8;
        sum += row * (h > 0 ? h : 1) * (z > 0 ? z : 1);
    }
    return (sum + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* levels 0: it is no mipmapped array. */
static uint64_t size_of(const struct array_3d *wanted, unsigned levels, unsigned on) {
    struct array_3d twin = *wanted;
    struct array_needs needs = {0};
    void *array = NULL;
    twin.flags |= DEFERRED;
    result (*ask)(struct array_needs *, void *, device) =
        levels == 0 ? cuArrayGetMemoryRequirements_of() : cuMipmappedArrayGetMemoryRequirements_of();
    if (ask != NULL && (levels == 0 ? REAL(cuArray3DCreate_v2)(&array, &twin)
                                    : REAL(cuMipmappedArrayCreate)(&array, &twin, levels)) == SUCCESS) {
        if (ask(&needs, array, (device)on) != SUCCESS) needs.bytes = 0;
        if (levels == 0)
            REAL(cuArrayDestroy)(array);
        else
            REAL(cuMipmappedArrayDestroy)(array);
    }
    return needs.bytes > 0 ? needs.bytes : computed(wanted, levels > 0 ? levels : 1);
}

static bool begin(const struct array_3d *wanted, unsigned levels, struct charge *c) {
    c->bytes = size_of(wanted, levels, c->device);
    return charge_begin(c->device, c->bytes);
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

/* `whole` is what is wanted in the form that has most to it. */
#define ARRAY(name, type, whole)                                                                    \
    result name(void **out, const type *wanted) {                                                   \
        __typeof__(&name) real = REAL(name);                                                        \
        struct charge c;                                                                            \
        void *fresh = NULL;                                                                         \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        if (out == NULL || wanted == NULL || !cuda_here(&c.device, &c.note)) return real(out, wanted); \
        struct array_3d d = whole;                                                                  \
        if (d.flags & (SPARSE | DEFERRED)) return real(out, wanted);                                \
        if (!begin(&d, 0, &c)) return cuda_refusal();                                               \
        result outcome = real(&fresh, wanted);                                                      \
        return end(outcome, fresh, c, REAL(cuArrayDestroy), out);                                   \
    }
#define FLAT {wanted->width, wanted->height, 0, wanted->format, wanted->channels, 0}
#define DEEP {wanted->width, wanted->height, wanted->depth, wanted->format, wanted->channels, wanted->flags}
ARRAY(cuArrayCreate, struct array_v1, FLAT)
ARRAY(cuArrayCreate_v2, struct array, FLAT)
ARRAY(cuArray3DCreate, struct array_3d_v1, DEEP)
ARRAY(cuArray3DCreate_v2, struct array_3d, DEEP)

result cuMipmappedArrayCreate(void **out, const struct array_3d *wanted, unsigned levels) {
    result (*real)(void **, const struct array_3d *, unsigned) = REAL(cuMipmappedArrayCreate);
    struct charge c;
    void *fresh = NULL;
    if (real == NULL) return NOT_INITIALIZED;
    if (out == NULL || wanted == NULL || levels == 0 || !cuda_here(&c.device, &c.note) ||
        wanted->flags & (SPARSE | DEFERRED))
        return real(out, wanted, levels);
    if (!begin(wanted, levels, &c)) return cuda_refusal();
    result outcome = real(&fresh, wanted, levels);
    return end(outcome, fresh, c, REAL(cuMipmappedArrayDestroy), out);
}

#define DESTROY(name)                                                                               \
    result name(void *array) {                                                                      \
        __typeof__(&name) real = REAL(name);                                                        \
        struct charge c;                                                                            \
        uint64_t key = (uint64_t)(uintptr_t)array;                                                  \
        if (real == NULL) return NOT_INITIALIZED;                                                   \
        if (!charge_take(CHARGE_ARRAY, key, &c)) return real(array);                                \
        result outcome = real(array);                                                               \
        charge_end(CHARGE_ARRAY, key, c, outcome == SUCCESS);                                       \
        return outcome;                                                                             \
    }
DESTROY(cuArrayDestroy)
DESTROY(cuMipmappedArrayDestroy)
