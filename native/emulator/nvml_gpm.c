/* GPM: figures over the time between two samples. Hopper and later have it. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "nvml_call.h"

#define LEAST INT64_C(100000000) /* nanoseconds that the guide wants between two samples */

/* What was so when it was read; a figure over the time between two is the mean of both. */
struct nvmlGpmSample_st {
    const struct hal_machine_device *d; /* NULL: nothing was read into it */
    const struct hal_machine_mig *gpu;  /* NULL: the whole GPU */
    int64_t at;
    int64_t busy, memory, decoder, jpeg, flow, rx, tx;
};

static bool has_gpm(const struct hal_machine_device *d) {
    return d->arch_major >= 9;
}

NVML nvmlGpmQueryDeviceSupport(nvmlDevice_t handle, nvmlGpmSupport_t *out) {
    DEVICE(handle);
    CHECK(out != NULL);
    if (out->version != NVML_GPM_SUPPORT_VERSION) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    out->isSupportedDevice = has_gpm(d);
    return NVML_SUCCESS;
}

NVML nvmlGpmSampleAlloc(nvmlGpmSample_t *out) {
    READY;
    CHECK(out != NULL);
    nvmlGpmSample_t sample = calloc(1, sizeof *sample);
    if (sample == NULL) return NVML_ERROR_MEMORY;
    *out = sample;
    return NVML_SUCCESS;
}

NVML nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    READY;
    CHECK(sample != NULL);
    free(sample);
    return NVML_SUCCESS;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

NVML nvmlGpmSampleGet(nvmlDevice_t handle, nvmlGpmSample_t sample) {
    DEVICE(handle);
    CHECK(sample != NULL);
    if (!has_gpm(d)) return NVML_ERROR_NOT_SUPPORTED;
    *sample = (struct nvmlGpmSample_st){
        .d = d,
        .at = now(),
        .busy = d->compute_busy_percent,
        .memory = d->memory_busy_percent,
        .decoder = d->nvidia_decoder_percent,
        .jpeg = d->nvidia_jpeg_percent,
        .flow = d->nvidia_ofa_percent,
        .rx = d->nvidia_pcie_rx_kilobytes_per_second,
        .tx = d->nvidia_pcie_tx_kilobytes_per_second,
    };
    return NVML_SUCCESS;
}

NVML nvmlGpmMigSampleGet(nvmlDevice_t handle, unsigned id, nvmlGpmSample_t sample) {
    DEVICE(handle);
    CHECK(sample != NULL);
    if (!has_gpm(d) || !d->nvidia_mig) return NVML_ERROR_NOT_SUPPORTED;
    const struct hal_machine_mig *gpu = nvml_mig_instance(d, id);
    CHECK(gpu != NULL);
    *sample = (struct nvmlGpmSample_st){
        .d = d,
        .gpu = gpu,
        .at = now(),
        .busy = gpu->busy_percent,
        .memory = gpu->busy_percent / 2,
        .decoder = HAL_UNKNOWN,
        .jpeg = HAL_UNKNOWN,
        .flow = HAL_UNKNOWN,
        .rx = HAL_UNKNOWN,
        .tx = HAL_UNKNOWN,
    };
    return NVML_SUCCESS;
}

/* The description has one figure of how busy it is: the finer ones are plausible shares of that. */
static bool figure(const struct nvmlGpmSample_st *s, unsigned id, double *out) {
    int64_t from = s->busy;
    double share = 1;
    switch (id) {
    case NVML_GPM_METRIC_GRAPHICS_UTIL: break;
    case NVML_GPM_METRIC_SM_UTIL: share = 0.75; break;
    case NVML_GPM_METRIC_SM_OCCUPANCY: share = 0.5; break;
    case NVML_GPM_METRIC_ANY_TENSOR_UTIL: share = 0.25; break;
    case NVML_GPM_METRIC_INTEGER_UTIL: share = 0.125; break;
    case NVML_GPM_METRIC_FP32_UTIL: share = 0.25; break;
    case NVML_GPM_METRIC_FP16_UTIL: share = 0.125; break;
    case NVML_GPM_METRIC_FP64_UTIL: share = 0; break;
    case NVML_GPM_METRIC_DRAM_BW_UTIL: from = s->memory; break;
    case NVML_GPM_METRIC_NVDEC_0_UTIL: from = s->decoder; break;
    case NVML_GPM_METRIC_NVJPG_0_UTIL: from = s->jpeg; break;
    case NVML_GPM_METRIC_NVOFA_0_UTIL: from = s->flow; break;
    case NVML_GPM_METRIC_PCIE_RX_PER_SEC: from = s->rx, share = 1000.0 / (1 << 20); break;
    case NVML_GPM_METRIC_PCIE_TX_PER_SEC: from = s->tx, share = 1000.0 / (1 << 20); break;
    default: return false;
    }
    *out = (double)from * share;
    return from != HAL_UNKNOWN;
}

/* A fault of one metric is asked for as "metric 2". */
static int faulty(unsigned id, int *status) {
    char name[24];
    if (!emulator_faulty) return 0;
    snprintf(name, sizeof name, "metric %u", id);
    return emulator_fault(name, status);
}

/* The call succeeds; each metric has an answer of its own. Too soon after the first, the second
 * sample has nothing new in it, and 0 of 0 cycles is no number. */
NVML nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get) {
    READY;
    CHECK(get != NULL && get->sample1 != NULL && get->sample2 != NULL);
    if (get->version != NVML_GPM_METRICS_GET_VERSION) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    const struct nvmlGpmSample_st *a = get->sample1, *b = get->sample2;
    CHECK(get->numMetrics > 0 && get->numMetrics <= NVML_GPM_METRIC_MAX);
    CHECK(a->d != NULL && a->d == b->d && a->gpu == b->gpu && a->at < b->at);
    for (nvmlGpmMetric_t *m = get->metrics; m < get->metrics + get->numMetrics; m++) {
        double first, second;
        bool known = figure(a, m->metricId, &first) && figure(b, m->metricId, &second);
        int status = known ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
        (void)faulty(m->metricId, &status);
        m->nvmlReturn = (unsigned)status;
        m->value = status != NVML_SUCCESS || b->at - a->at < LEAST ? (double)NAN : (first + second) / 2;
    }
    return NVML_SUCCESS;
}
