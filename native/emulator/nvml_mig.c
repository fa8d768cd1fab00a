/* MIG: GPU instances, the compute instances in them, and the MIG devices that these are.
 *
 * A GPU instance is named by its place in the device's list plus one (0 would be the whole GPU), a
 * compute instance by its place in its GPU instance's. One program at a time may partition. */
#include "nvml_mig_profiles.h"

#include <stdio.h>
#include <string.h>

#include "nvml_call.h"

/* ---- handles --------------------------------------------------------------------------------- */

static struct hal_machine_device *owner(const void *handle) {
    struct hal_machine *m = emulator_machine();
    uintptr_t from = (uintptr_t)handle - (uintptr_t)m->device;
    return from < m->devices * sizeof *m->device ? &m->device[from / sizeof *m->device] : NULL;
}

static struct hal_machine_mig *gpu_of(const void *handle, struct hal_machine_device **d) {
    *d = owner(handle);
    for (unsigned i = 0; *d != NULL && i < HAL_MACHINE_PARTITIONS; i++)
        if (&(*d)->nvidia_partition[i] == handle && (*d)->nvidia_partition[i].made)
            return &(*d)->nvidia_partition[i];
    return NULL;
}

bool nvml_mig_of(nvmlDevice_t handle, struct nvml_mig *out) {
    struct hal_machine_device *d = owner(handle);
    if (d == NULL || !d->nvidia_mig) return false;
    for (unsigned g = 0; g < HAL_MACHINE_PARTITIONS; g++)
        for (unsigned c = 0; c < HAL_MACHINE_PARTITIONS; c++) {
            struct hal_machine_compute *compute = &d->nvidia_partition[g].compute[c];
            if ((const void *)compute != (const void *)handle) continue;
            *out = (struct nvml_mig){d, &d->nvidia_partition[g], compute};
            return out->gpu->made && compute->made;
        }
    return false;
}

static unsigned gpu_id(const struct hal_machine_device *d, const struct hal_machine_mig *gpu) {
    return (unsigned)(gpu - d->nvidia_partition) + 1;
}

static unsigned compute_id(const struct hal_machine_mig *gpu,
                           const struct hal_machine_compute *compute) {
    return (unsigned)(compute - gpu->compute);
}

#define GPU_INSTANCE(handle)                                                                       \
    struct hal_machine_device *d;                                                                  \
    READY;                                                                                         \
    struct hal_machine_mig *gpu = gpu_of(handle, &d);                                              \
    CHECK(gpu != NULL)

#define MIG_DEVICE(handle)                                                                         \
    struct nvml_mig mig;                                                                           \
    READY;                                                                                         \
    CHECK(nvml_mig_of(handle, &mig))

/* ---- profiles -------------------------------------------------------------------------------- */

/* Profiles are asked for by number and, once made, known by id: its place in the table. */
static int shape_by(unsigned number, bool id) {
    for (int i = 0; i < NVML_MIG_SHAPES; i++)
        if ((id ? nvml_mig_shapes[i].id : nvml_mig_shapes[i].profile) == number) return i;
    return -1;
}

static const char *shape_name(const struct hal_machine_device *d,
                              const struct hal_machine_mig *gpu) {
    return nvml_mig_part(d)->shape[gpu->profile].name;
}

uint64_t nvml_mig_bytes(const struct nvml_mig *mig) {
    return nvml_mig_part(mig->d)->shape[mig->gpu->profile].mebibytes << 20;
}

void nvml_mig_name(const struct nvml_mig *mig, char *out, size_t room) {
    const char *shape = shape_name(mig->d, mig->gpu);
    if (mig->compute->slices == nvml_mig_shapes[mig->gpu->profile].slices)
        snprintf(out, room, "%s MIG %s", mig->d->model, shape);
    else
        snprintf(out, room, "%s MIG %uc.%s", mig->d->model, mig->compute->slices, shape);
}

/* Always the same for the same place of the same GPU (FNV-1a, twice). */
void nvml_mig_uuid(const struct nvml_mig *mig, char *out, size_t room) {
    char text[HAL_MACHINE_TEXT + 32];
    uint64_t half[2] = {UINT64_C(0xcbf29ce484222325), UINT64_C(0x9ae16a3b2f90404f)};
    snprintf(text, sizeof text, "%s/%u/%u", mig->d->uuid, gpu_id(mig->d, mig->gpu),
             compute_id(mig->gpu, mig->compute));
    for (unsigned h = 0; h < 2; h++)
        for (const char *c = text; *c != 0; c++)
            half[h] = (half[h] ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    snprintf(out, room, "MIG-%08x-%04x-5%03x-%04x-%012llx", (unsigned)(half[0] >> 32),
             (unsigned)(half[0] >> 16 & 0xffff), (unsigned)(half[0] & 0xfff),
             (unsigned)(half[1] >> 48 & 0x3fff) | 0x8000,
             (unsigned long long)(half[1] & UINT64_C(0xffffffffffff)));
}

static bool overlaps(unsigned a, unsigned a_size, unsigned b, unsigned b_size) {
    return a < b + b_size && b < a + a_size;
}

static bool room_at(const struct hal_machine_device *d, int shape, unsigned start) {
    const struct hal_machine_mig *gpu = d->nvidia_partition;
    unsigned used = 0;
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++) {
        if (!gpu[i].made) continue;
        if (overlaps(start, nvml_mig_shapes[shape].size, gpu[i].start, gpu[i].size)) return false;
        used += nvml_mig_shapes[gpu[i].profile].slices;
    }
    return used + nvml_mig_shapes[shape].slices <= 7;
}

/* How many more of a shape fit: each put at the first place that is left. */
static unsigned remaining(const struct hal_machine_device *d, int shape) {
    struct hal_machine_device then = *d;
    unsigned count = 0;
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++)
        count += then.nvidia_partition[i].made &&
                 then.nvidia_partition[i].profile == (unsigned)shape;
    unsigned before = count;
    for (unsigned start = 0; start < 8 && count < nvml_mig_shapes[shape].most; start++) {
        if (!(nvml_mig_shapes[shape].starts >> start & 1)) continue;
        if (!room_at(&then, shape, start)) continue;
        unsigned free_place = 0;
        while (free_place < HAL_MACHINE_PARTITIONS && then.nvidia_partition[free_place].made)
            free_place++;
        if (free_place == HAL_MACHINE_PARTITIONS) break;
        then.nvidia_partition[free_place] = (struct hal_machine_mig){
            .made = 1, .profile = (unsigned)shape, .start = start,
            .size = nvml_mig_shapes[shape].size};
        count++;
    }
    return count - before;
}

static nvmlReturn_t profile_info(nvmlDevice_t handle, int shape,
                                 nvmlGpuInstanceProfileInfo_v2_t *out) {
    FIND(handle);
    CHECK(out != NULL);
    const struct nvml_mig_part *part = nvml_mig_part(d);
    if (part == NULL || shape < 0) return NVML_ERROR_NOT_SUPPORTED;
    const struct nvml_mig_shape *s = &nvml_mig_shapes[shape];
    out->id = s->id;
    out->isP2pSupported = 0;
    out->sliceCount = s->slices;
    out->instanceCount = s->most;
    out->multiprocessorCount = part->shape[shape].multiprocessors;
    out->copyEngineCount = s->copy;
    out->decoderCount = part->shape[shape].decoders;
    out->encoderCount = 0;
    out->jpegCount = part->shape[shape].jpegs;
    out->ofaCount = s->ofa;
    out->memorySizeMB = part->shape[shape].mebibytes;
    snprintf(out->name, sizeof out->name, "MIG %s", part->shape[shape].name);
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t handle, unsigned profile,
                                          nvmlGpuInstanceProfileInfo_v2_t *out) {
    BEGIN;
    CHECK(out != NULL && profile < NVML_GPU_INSTANCE_PROFILE_COUNT);
    if (out->version != (unsigned)nvmlGpuInstanceProfileInfo_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return profile_info(handle, shape_by(profile, false), out);
}

NVML nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvmlDevice_t handle, unsigned id,
                                              nvmlGpuInstanceProfileInfo_v2_t *out) {
    BEGIN;
    CHECK(out != NULL);
    if (out->version != (unsigned)nvmlGpuInstanceProfileInfo_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return profile_info(handle, shape_by(id, true), out);
}

NVML nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t handle, unsigned profile,
                                         nvmlGpuInstanceProfileInfo_t *out) {
    nvmlGpuInstanceProfileInfo_v2_t now;
    BEGIN;
    CHECK(out != NULL && profile < NVML_GPU_INSTANCE_PROFILE_COUNT);
    TRY(profile_info(handle, shape_by(profile, false), &now));
    *out = (nvmlGpuInstanceProfileInfo_t){
        now.id, now.isP2pSupported, now.sliceCount, now.instanceCount, now.multiprocessorCount,
        now.copyEngineCount, now.decoderCount, now.encoderCount, now.jpegCount, now.ofaCount,
        now.memorySizeMB};
    return NVML_SUCCESS;
}

/* What a call about a profile of a partitioned device begins with. */
#define PROFILE(handle, id)                                                                        \
    DEVICE(handle);                                                                                \
    int shape = shape_by(id, true);                                                                \
    if (nvml_mig_part(d) == NULL || !d->nvidia_mig) return NVML_ERROR_NOT_SUPPORTED;               \
    CHECK(shape >= 0)

NVML nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t handle, unsigned id,
                                                   nvmlGpuInstancePlacement_t *out,
                                                   unsigned *count) {
    PROFILE(handle, id);
    CHECK(count != NULL);
    unsigned found = 0;
    for (unsigned start = 0; start < 8; start++) {
        if (!(nvml_mig_shapes[shape].starts >> start & 1)) continue;
        if (out != NULL)
            out[found] = (nvmlGpuInstancePlacement_t){start, nvml_mig_shapes[shape].size};
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t handle, unsigned id, unsigned *count) {
    PROFILE(handle, id);
    return nvml_give(remaining(d, shape), count);
}

/* ---- the mode -------------------------------------------------------------------------------- */

NVML nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    CHECK(current != NULL && pending != NULL);
    if (nvml_mig_part(d) == NULL) return NVML_ERROR_NOT_SUPPORTED;
    *current = d->nvidia_mig;
    *pending = d->nvidia_mig_pending;
    return NVML_SUCCESS;
}

static bool partitioned(const struct hal_machine_device *d) {
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++)
        if (d->nvidia_partition[i].made) return true;
    return false;
}

/* Takes effect at once, as on a GPU that nobody uses. */
NVML nvmlDeviceSetMigMode(nvmlDevice_t handle, unsigned mode, unsigned *activation) {
    DEVICE(handle);
    CHECK(mode <= NVML_DEVICE_MIG_ENABLE && activation != NULL);
    if (nvml_mig_part(d) == NULL) return NVML_ERROR_NOT_SUPPORTED;
    bool busy = emulator_used(nvml_index(d)) > 0 || partitioned(d);
    struct hal_machine_device *changed = emulator_device(nvml_index(d));
    changed->nvidia_mig_pending = mode;
    *activation = busy ? NVML_ERROR_IN_USE : NVML_SUCCESS;
    if (!busy) changed->nvidia_mig = mode;
    return NVML_SUCCESS;
}

/* "zero if MIG is not supported or enabled" */
FIGURE(nvmlDeviceGetMaxMigDeviceCount, d->nvidia_mig ? 7 : 0)

/* ---- GPU instances --------------------------------------------------------------------------- */

static nvmlReturn_t create(const struct hal_machine_device *d, int shape, unsigned starts,
                           nvmlGpuInstance_t *out) {
    struct hal_machine_mig *list = emulator_device(nvml_index(d))->nvidia_partition;
    struct hal_machine_mig *free_place = NULL;
    CHECK(out != NULL);
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS && free_place == NULL; i++)
        if (!list[i].made) free_place = &list[i];
    if (free_place == NULL || remaining(d, shape) == 0) return NVML_ERROR_INSUFFICIENT_RESOURCES;
    for (unsigned start = 0; start < 8; start++) {
        if (!(starts >> start & 1) || !room_at(d, shape, start)) continue;
        *free_place = (struct hal_machine_mig){.made = 1,
                                               .profile = (unsigned)shape,
                                               .start = start,
                                               .size = nvml_mig_shapes[shape].size};
        *out = (nvmlGpuInstance_t)(void *)free_place;
        nvml_event(d, nvmlEventMigConfigChange, 0);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

NVML nvmlDeviceCreateGpuInstance(nvmlDevice_t handle, unsigned id, nvmlGpuInstance_t *out) {
    PROFILE(handle, id);
    return create(d, shape, nvml_mig_shapes[shape].starts, out);
}

NVML nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t handle, unsigned id,
                                              const nvmlGpuInstancePlacement_t *placement,
                                              nvmlGpuInstance_t *out) {
    PROFILE(handle, id);
    CHECK(placement != NULL && placement->size == nvml_mig_shapes[shape].size);
    CHECK(placement->start < 8 && nvml_mig_shapes[shape].starts >> placement->start & 1);
    return create(d, shape, 1u << placement->start, out);
}

NVML nvmlGpuInstanceDestroy(nvmlGpuInstance_t handle) {
    GPU_INSTANCE(handle);
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++)
        if (gpu->compute[i].made) return NVML_ERROR_IN_USE;
    gpu->made = 0;
    nvml_event(d, nvmlEventMigConfigChange, 0);
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetGpuInstances(nvmlDevice_t handle, unsigned id, nvmlGpuInstance_t *out,
                               unsigned *count) {
    PROFILE(handle, id);
    CHECK(out != NULL && count != NULL);
    unsigned found = 0;
    for (unsigned i = 0; i < HAL_MACHINE_PARTITIONS; i++)
        if (d->nvidia_partition[i].made && d->nvidia_partition[i].profile == (unsigned)shape)
            out[found++] = (nvmlGpuInstance_t)(uintptr_t)&d->nvidia_partition[i];
    *count = found;
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetGpuInstanceById(nvmlDevice_t handle, unsigned id, nvmlGpuInstance_t *out) {
    DEVICE(handle);
    CHECK(out != NULL);
    if (!d->nvidia_mig) return NVML_ERROR_NOT_SUPPORTED;
    const struct hal_machine_mig *gpu = nvml_mig_instance(d, id);
    if (gpu == NULL) return NVML_ERROR_NOT_FOUND;
    *out = (nvmlGpuInstance_t)(uintptr_t)gpu;
    return NVML_SUCCESS;
}

const struct hal_machine_mig *nvml_mig_instance(const struct hal_machine_device *d, unsigned id) {
    if (id == 0 || id > HAL_MACHINE_PARTITIONS || !d->nvidia_partition[id - 1].made) return NULL;
    return &d->nvidia_partition[id - 1];
}

NVML nvmlGpuInstanceGetInfo(nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *out) {
    GPU_INSTANCE(handle);
    CHECK(out != NULL);
    *out = (nvmlGpuInstanceInfo_t){nvml_handle(d), gpu_id(d, gpu), nvml_mig_shapes[gpu->profile].id,
                                   {gpu->start, gpu->size}};
    return NVML_SUCCESS;
}

/* ---- MIG devices ----------------------------------------------------------------------------- */

static nvmlDevice_t nth(const struct hal_machine_device *d, unsigned n) {
    for (unsigned g = 0; g < HAL_MACHINE_PARTITIONS; g++)
        for (unsigned c = 0; d->nvidia_partition[g].made && c < HAL_MACHINE_PARTITIONS; c++)
            if (d->nvidia_partition[g].compute[c].made && n-- == 0)
                return (nvmlDevice_t)(uintptr_t)&d->nvidia_partition[g].compute[c];
    return NULL;
}

NVML nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t handle, unsigned index, nvmlDevice_t *out) {
    DEVICE(handle);
    if (!d->nvidia_mig) return NVML_ERROR_NOT_SUPPORTED;
    CHECK(out != NULL && index < 7);
    nvmlDevice_t found = nth(d, index);
    if (found == NULL) return NVML_ERROR_NOT_FOUND;
    *out = found;
    return NVML_SUCCESS;
}

nvmlDevice_t nvml_mig_by_uuid(const char *uuid) {
    const struct hal_machine *m = emulator_machine();
    for (unsigned i = 0; i < m->devices; i++)
        for (unsigned n = 0; m->device[i].nvidia_mig; n++) {
            struct nvml_mig mig;
            char own[HAL_MACHINE_TEXT];
            nvmlDevice_t handle = nth(&m->device[i], n);
            if (handle == NULL || !nvml_mig_of(handle, &mig)) break;
            nvml_mig_uuid(&mig, own, sizeof own);
            if (strcmp(own, uuid) == 0) return handle;
        }
    return NULL;
}

NVML nvmlDeviceIsMigDeviceHandle(nvmlDevice_t handle, unsigned *out) {
    struct nvml_mig mig;
    READY;
    if (nvml_mig_of(handle, &mig)) return nvml_give(1, out);
    FIND(handle);
    return nvml_give(0, out);
}

NVML nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t handle, nvmlDevice_t *out) {
    MIG_DEVICE(handle);
    CHECK(out != NULL);
    *out = nvml_handle(mig.d);
    return NVML_SUCCESS;
}

NVML nvmlDeviceGetGpuInstanceId(nvmlDevice_t handle, unsigned *id) {
    MIG_DEVICE(handle);
    return nvml_give(gpu_id(mig.d, mig.gpu), id);
}

NVML nvmlDeviceGetComputeInstanceId(nvmlDevice_t handle, unsigned *id) {
    MIG_DEVICE(handle);
    return nvml_give(compute_id(mig.gpu, mig.compute), id);
}

NVML nvmlDeviceGetAttributes_v2(nvmlDevice_t handle, nvmlDeviceAttributes_t *out) {
    MIG_DEVICE(handle);
    CHECK(out != NULL);
    const struct nvml_mig_shape *s = &nvml_mig_shapes[mig.gpu->profile];
    const struct nvml_mig_part *part = nvml_mig_part(mig.d);
    *out = (nvmlDeviceAttributes_t){
        .multiprocessorCount =
            part->shape[mig.gpu->profile].multiprocessors * mig.compute->slices / s->slices,
        .sharedCopyEngineCount = s->copy,
        .sharedDecoderCount = part->shape[mig.gpu->profile].decoders,
        .sharedJpegCount = part->shape[mig.gpu->profile].jpegs,
        .sharedOfaCount = s->ofa,
        .gpuInstanceSliceCount = s->slices,
        .computeInstanceSliceCount = mig.compute->slices,
        .memorySizeMB = part->shape[mig.gpu->profile].mebibytes,
    };
    return NVML_SUCCESS;
}
