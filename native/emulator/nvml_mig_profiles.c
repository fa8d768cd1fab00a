#include "nvml_mig_profiles.h"

#include <stddef.h>

#include "nvml.h"

const struct nvml_mig_shape nvml_mig_shapes[NVML_MIG_SHAPES] = {
    {NVML_GPU_INSTANCE_PROFILE_1_SLICE, 19, 1, 1, 0x7f, 7, 1, 0},
    {NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1, 20, 1, 1, 0x7f, 1, 1, 1}, /* with media engines */
    {NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV2, 15, 1, 2, 0x55, 4, 1, 0}, /* with twice the memory */
    {NVML_GPU_INSTANCE_PROFILE_2_SLICE, 14, 2, 2, 0x15, 3, 2, 0},
    {NVML_GPU_INSTANCE_PROFILE_3_SLICE, 9, 3, 4, 0x11, 2, 3, 0},
    {NVML_GPU_INSTANCE_PROFILE_4_SLICE, 5, 4, 4, 0x01, 1, 4, 0},
    {NVML_GPU_INSTANCE_PROFILE_7_SLICE, 0, 7, 8, 0x01, 1, 7, 1},
};

/* name, multiprocessors, video decoders, JPEG decoders, MiB */
static const struct nvml_mig_part parts[] = {
    {8, 40,
     {{"1g.5gb", 14, 0, 0, 4864}, {"1g.5gb+me", 14, 1, 1, 4864}, {"1g.10gb", 14, 1, 0, 9856},
      {"2g.10gb", 28, 1, 0, 9856}, {"3g.20gb", 42, 2, 0, 19968}, {"4g.20gb", 56, 2, 0, 19968},
      {"7g.40gb", 98, 5, 1, 40192}}},
    {8, 80,
     {{"1g.10gb", 14, 0, 0, 9728}, {"1g.10gb+me", 14, 1, 1, 9728}, {"1g.20gb", 14, 1, 0, 19968},
      {"2g.20gb", 28, 1, 0, 19968}, {"3g.40gb", 42, 2, 0, 40192}, {"4g.40gb", 56, 2, 0, 40192},
      {"7g.80gb", 98, 5, 1, 80384}}},
    {9, 80,
     {{"1g.10gb", 16, 1, 1, 9984}, {"1g.10gb+me", 16, 1, 1, 9984}, {"1g.20gb", 26, 1, 1, 20096},
      {"2g.20gb", 32, 2, 2, 20096}, {"3g.40gb", 60, 3, 3, 40448}, {"4g.40gb", 64, 4, 4, 40448},
      {"7g.80gb", 132, 7, 7, 81152}}},
    {9, 141,
     {{"1g.18gb", 16, 1, 1, 16384}, {"1g.18gb+me", 16, 1, 1, 16384}, {"1g.35gb", 26, 1, 1, 33280},
      {"2g.35gb", 32, 2, 2, 33280}, {"3g.71gb", 60, 3, 3, 71168}, {"4g.71gb", 64, 4, 4, 71168},
      {"7g.141gb", 132, 7, 7, 143360}}},
};

const struct nvml_mig_part *nvml_mig_part(const struct hal_machine_device *d) {
    if (d->arch_major == 8 && d->arch_minor != 0) return NULL;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].arch_major == d->arch_major &&
            d->memory_bytes >> 30 <= parts[i].gibibytes)
            return &parts[i];
    return NULL;
}
