/* How the parts that can be partitioned may be: NVIDIA's "MIG User Guide", the tables of GPU
 * instance profiles and the output of `nvidia-smi mig -lgip` and `-lgipp`. */
#ifndef HAL_NVML_MIG_PROFILES_H
#define HAL_NVML_MIG_PROFILES_H

#include <stdint.h>

#include "hal_machine.h"

enum { NVML_MIG_SHAPES = 7 };

/* The shape of a GPU instance, the same on every part. A part has 8 memory slices. */
struct nvml_mig_shape {
    unsigned profile, id;     /* NVML_GPU_INSTANCE_PROFILE_..., and how instances name it */
    unsigned slices, size;    /* of compute, of memory */
    unsigned starts;          /* the memory slices where it may begin, as bits */
    unsigned most;            /* how many fit on an empty part */
    unsigned copy, ofa;       /* engines */
};
extern const struct nvml_mig_shape nvml_mig_shapes[NVML_MIG_SHAPES];

/* What a shape is on one part. */
struct nvml_mig_part {
    unsigned arch_major, gibibytes; /* which part: its memory, at most */
    struct {
        const char *name;
        unsigned multiprocessors, decoders, jpegs;
        uint64_t mebibytes;
    } shape[NVML_MIG_SHAPES];
};

/* NULL for a part that cannot be partitioned. */
const struct nvml_mig_part *nvml_mig_part(const struct hal_machine_device *d);

#endif
