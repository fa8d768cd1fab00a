/* MIG compute instances: parts of a GPU instance that share its memory. */
#include <stdio.h>

#include "nvml_call.h"
#include "nvml_mig_profiles.h"

/* How many compute slices a NVML_COMPUTE_INSTANCE_PROFILE_... has. 0: there is no such one. */
static const unsigned slices_of[NVML_COMPUTE_INSTANCE_PROFILE_COUNT] = {
    [NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE] = 1, [NVML_COMPUTE_INSTANCE_PROFILE_2_SLICE] = 2,
    [NVML_COMPUTE_INSTANCE_PROFILE_3_SLICE] = 3, [NVML_COMPUTE_INSTANCE_PROFILE_4_SLICE] = 4,
    [NVML_COMPUTE_INSTANCE_PROFILE_7_SLICE] = 7,
};

static struct hal_machine_mig *gpu_of(nvmlGpuInstance_t handle, struct hal_machine_device **out) {
    struct hal_machine *m = emulator_machine();
    for (unsigned i = 0; i < m->devices; i++)
        for (unsigned g = 0; g < HAL_MACHINE_PARTITIONS; g++)
            if ((void *)&m->device[i].nvidia_partition[g] == (void *)handle) {
                *out = &m->device[i];
                struct hal_machine_mig *gpu = &m->device[i].nvidia_partition[g];
                return gpu->made ? gpu : NULL;
            }
    return NULL;
}

#define GPU_INSTANCE(handle)                                                                       \
    struct hal_machine_device *d;                                                                  \
    READY;                                                                                         \
    struct hal_machine_mig *gpu = gpu_of(handle, &d);                                              \
    CHECK(gpu != NULL);                                                                            \
    const struct nvml_mig_shape *s = &nvml_mig_shapes[gpu->profile];                               \
    (void)s

/* A compute instance's handle is also its MIG device's. */
#define COMPUTE_INSTANCE(handle)                                                                   \
    struct nvml_mig mig;                                                                           \
    READY;                                                                                         \
    CHECK(nvml_mig_of((nvmlDevice_t)(void *)(handle), &mig))

/* A profile that this GPU instance can have. */
#define COMPUTE_PROFILE(handle, profile)                                                           \
    GPU_INSTANCE(handle);                                                                          \
    CHECK(profile < NVML_COMPUTE_INSTANCE_PROFILE_COUNT);                                          \
    unsigned slices = slices_of[profile];                                                          \
    if (slices == 0 || slices > s->slices) return NVML_ERROR_NOT_SUPPORTED

static bool room_at(const struct hal_machine_mig *gpu, unsigned start, unsigned slices) {
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++) {
        const struct hal_machine_compute *c = &gpu->compute[i];
        if (c->made && start < c->start + c->slices && c->start < start + slices) return false;
    }
    return start + slices <= nvml_mig_shapes[gpu->profile].slices;
}

/* They begin at multiples of their size; those of three slices at 0 and 4. */
static unsigned step(unsigned slices) { return slices == 3 ? 4 : slices; }

static unsigned fitting(const struct hal_machine_mig *gpu, unsigned slices) {
    unsigned count = 0;
    for (unsigned start = 0; start < 7; start += step(slices)) count += room_at(gpu, start, slices);
    return count;
}

static nvmlReturn_t profile_info(const struct hal_machine_device *d,
                                 const struct hal_machine_mig *gpu, unsigned profile,
                                 nvmlComputeInstanceProfileInfo_v2_t *out) {
    const struct hal_machine_mig empty = {.made = 1, .profile = gpu->profile};
    const struct nvml_mig_shape *s = &nvml_mig_shapes[gpu->profile];
    const struct nvml_mig_part *part = nvml_mig_part(d);
    unsigned slices = slices_of[profile];
    CHECK(out != NULL);
    out->id = profile;
    out->sliceCount = slices;
    out->instanceCount = fitting(&empty, slices);
    out->multiprocessorCount = part->shape[gpu->profile].multiprocessors * slices / s->slices;
    out->sharedCopyEngineCount = s->copy;
    out->sharedDecoderCount = part->shape[gpu->profile].decoders;
    out->sharedEncoderCount = 0;
    out->sharedJpegCount = part->shape[gpu->profile].jpegs;
    out->sharedOfaCount = s->ofa;
    if (slices == s->slices)
        snprintf(out->name, sizeof out->name, "MIG %s", part->shape[gpu->profile].name);
    else
        snprintf(out->name, sizeof out->name, "MIG %uc.%s", slices, part->shape[gpu->profile].name);
    return NVML_SUCCESS;
}

NVML nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t handle, unsigned profile,
                                                   unsigned engines,
                                                   nvmlComputeInstanceProfileInfo_v2_t *out) {
    COMPUTE_PROFILE(handle, profile);
    CHECK(out != NULL && engines == NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED);
    if (out->version != (unsigned)nvmlComputeInstanceProfileInfo_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return profile_info(d, gpu, profile, out);
}

NVML nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t handle, unsigned profile,
                                                  unsigned engines,
                                                  nvmlComputeInstanceProfileInfo_t *out) {
    nvmlComputeInstanceProfileInfo_v2_t now;
    COMPUTE_PROFILE(handle, profile);
    CHECK(out != NULL && engines == NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED);
    TRY(profile_info(d, gpu, profile, &now));
    *out = (nvmlComputeInstanceProfileInfo_t){
        now.id, now.sliceCount, now.instanceCount, now.multiprocessorCount,
        now.sharedCopyEngineCount, now.sharedDecoderCount, now.sharedEncoderCount,
        now.sharedJpegCount, now.sharedOfaCount};
    return NVML_SUCCESS;
}

NVML nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlGpuInstance_t handle, unsigned profile,
                                                        unsigned *count) {
    COMPUTE_PROFILE(handle, profile);
    return nvml_give(fitting(gpu, slices), count);
}

NVML nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlGpuInstance_t handle, unsigned profile,
                                                         nvmlComputeInstancePlacement_t *out,
                                                         unsigned *count) {
    COMPUTE_PROFILE(handle, profile);
    CHECK(count != NULL);
    unsigned found = 0;
    for (unsigned start = 0; start + slices <= s->slices; start += step(slices)) {
        if (out != NULL) out[found] = (nvmlComputeInstancePlacement_t){start, slices};
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}

static nvmlReturn_t create(struct hal_machine_mig *gpu, unsigned profile, unsigned first,
                           unsigned last, nvmlComputeInstance_t *out) {
    unsigned slices = slices_of[profile], place = 0;
    CHECK(out != NULL);
    while (place < HAL_MACHINE_PARTITIONS && gpu->compute[place].made) place++;
    for (unsigned start = first; start <= last; start += step(slices)) {
        if (place == HAL_MACHINE_PARTITIONS || !room_at(gpu, start, slices)) continue;
        gpu->compute[place] = (struct hal_machine_compute){1, profile, start, slices};
        *out = (nvmlComputeInstance_t)(void *)&gpu->compute[place];
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

NVML nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t handle, unsigned profile,
                                          nvmlComputeInstance_t *out) {
    COMPUTE_PROFILE(handle, profile);
    return create(gpu, profile, 0, 6, out);
}

NVML nvmlGpuInstanceCreateComputeInstanceWithPlacement(
    nvmlGpuInstance_t handle, unsigned profile, const nvmlComputeInstancePlacement_t *placement,
    nvmlComputeInstance_t *out) {
    COMPUTE_PROFILE(handle, profile);
    CHECK(placement != NULL && placement->size == slices && placement->start % step(slices) == 0);
    return create(gpu, profile, placement->start, placement->start, out);
}

NVML nvmlComputeInstanceDestroy(nvmlComputeInstance_t handle) {
    COMPUTE_INSTANCE(handle);
    mig.compute->made = 0;
    return NVML_SUCCESS;
}

NVML nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t handle, unsigned profile,
                                        nvmlComputeInstance_t *out, unsigned *count) {
    COMPUTE_PROFILE(handle, profile);
    CHECK(out != NULL && count != NULL);
    unsigned found = 0;
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++)
        if (gpu->compute[i].made && gpu->compute[i].profile == profile)
            out[found++] = (nvmlComputeInstance_t)(void *)&gpu->compute[i];
    *count = found;
    return NVML_SUCCESS;
}

NVML nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t handle, unsigned id,
                                           nvmlComputeInstance_t *out) {
    GPU_INSTANCE(handle);
    CHECK(out != NULL);
    if (id >= HAL_MACHINE_PARTITIONS || !gpu->compute[id].made) return NVML_ERROR_NOT_FOUND;
    *out = (nvmlComputeInstance_t)(void *)&gpu->compute[id];
    return NVML_SUCCESS;
}

NVML nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *out) {
    COMPUTE_INSTANCE(handle);
    CHECK(out != NULL);
    *out = (nvmlComputeInstanceInfo_t){
        nvml_handle(mig.d), (nvmlGpuInstance_t)(void *)mig.gpu,
        (unsigned)(mig.compute - mig.gpu->compute), mig.compute->profile,
        {mig.compute->start, mig.compute->slices}};
    return NVML_SUCCESS;
}
