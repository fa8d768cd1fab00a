/* How each call of the NVML stand-in begins and ends, and what its files share.
 *
 * A handle is an address in the mapped machine, so that it can be checked and stays valid for the
 * life of the process: of a device's description, or for a MIG device of its compute instance. What
 * each call answers is as NVIDIA's "NVML API Reference Guide" says. */
#ifndef HAL_NVML_CALL_H
#define HAL_NVML_CALL_H

#include "emulator.h"
#include "faults.h"
#include "nvml.h"
#include "nvml_branch.h"

#define NVML EMULATOR_EXPORT nvmlReturn_t

#define TRY(expression)                                                                            \
    do {                                                                                           \
        nvmlReturn_t failed_ = (expression);                                                       \
        if (failed_ != NVML_SUCCESS) return failed_;                                               \
    } while (0)

/* Begins every exported function. */
#define BEGIN                                                                                      \
    do {                                                                                           \
        int status_;                                                                               \
        if (nvml_is_old && nvml_is_missing(__func__)) return NVML_ERROR_FUNCTION_NOT_FOUND;        \
        if (emulator_fault(__func__, &status_)) return (nvmlReturn_t)status_;                      \
    } while (0)

/* Begins one that needs nvmlInit. */
#define READY                                                                                      \
    BEGIN;                                                                                         \
    TRY(nvml_ready())

/* `d` becomes the description of the device behind a handle. */
#define FIND(handle)                                                                               \
    const struct hal_machine_device *d;                                                            \
    TRY(nvml_device_of(handle, &d));                                                               \
    (void)d

/* Begins a call on a device. */
#define DEVICE(handle)                                                                             \
    BEGIN;                                                                                         \
    FIND(handle)

/* An exported name of a function that has several. */
#define NAMED(name, function, parameters, arguments)                                               \
    NVML name parameters {                                                                         \
        BEGIN;                                                                                     \
        return function arguments;                                                                 \
    }

/* A call that gives one figure of the description `d`. */
#define FIGURE(function, expression)                                                               \
    NVML function(nvmlDevice_t handle, unsigned *out) {                                            \
        DEVICE(handle);                                                                            \
        return nvml_give((expression), out);                                                       \
    }

/* An argument that the caller got wrong. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) return NVML_ERROR_INVALID_ARGUMENT;                                      \
    } while (0)

nvmlReturn_t nvml_ready(void);
nvmlReturn_t nvml_device_of(nvmlDevice_t handle, const struct hal_machine_device **out);
nvmlReturn_t nvml_give(int64_t figure, unsigned *out);
nvmlReturn_t nvml_give_wide(int64_t figure, unsigned long long *out);
nvmlReturn_t nvml_give_text(const char *text, char *out, unsigned length);

static inline unsigned nvml_index(const struct hal_machine_device *d) {
    return (unsigned)(d - emulator_machine()->device);
}

static inline nvmlDevice_t nvml_handle(const struct hal_machine_device *d) {
    return (nvmlDevice_t)(uintptr_t)d;
}

/* Time in microseconds since 1970, and millijoules since the machine was made. */
int64_t nvml_now(void);
int64_t nvml_energy(const struct hal_machine_device *d);

/* A count of corrected errors with those of a storm. */
int64_t nvml_storm(const struct hal_machine_device *d, int64_t count);

/* Writes an event down for all that watch the device (nvml_health.c). */
void nvml_event(const struct hal_machine_device *d, uint64_t type, uint32_t data);

/* NOT_SUPPORTED without NVLink, INVALID_ARGUMENT for a link that is not there. */
nvmlReturn_t nvml_link(const struct hal_machine_device *d, unsigned link);

/* ---- MIG (nvml_mig.c) ------------------------------------------------------------------------ */

struct nvml_mig {
    struct hal_machine_device *d;
    struct hal_machine_mig *gpu;
    struct hal_machine_compute *compute;
};

/* Whether this is a MIG device's handle, and what is behind it. */
bool nvml_mig_of(nvmlDevice_t handle, struct nvml_mig *out);
uint64_t nvml_mig_bytes(const struct nvml_mig *mig);
void nvml_mig_name(const struct nvml_mig *mig, char *out, size_t room);
void nvml_mig_uuid(const struct nvml_mig *mig, char *out, size_t room);

/* The GPU instance with this id: NULL when there is none. */
const struct hal_machine_mig *nvml_mig_instance(const struct hal_machine_device *d, unsigned id);

/* The MIG device with this UUID: NULL when there is none. */
nvmlDevice_t nvml_mig_by_uuid(const char *uuid);

#endif
