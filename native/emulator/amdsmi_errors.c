/* The stand-in's memory errors: counts by block of the card, and pages taken out of use. */
#define _GNU_SOURCE
#include "amdsmi_parts.h"

static amdsmi_error_count_t errors(const device *d) {
    uint64_t storm = amdsmi_age() / 1000000000 * d->amd_ecc_corrected_per_second;
    return (amdsmi_error_count_t){
        d->amd_ecc_corrected + storm, d->amd_ecc_uncorrected, d->amd_ecc_deferred, {0}};
}

FUNCTION amdsmi_get_gpu_total_ecc_count(void *handle, amdsmi_error_count_t *count) {
    CARD(handle, count);
    if (d->amd_ecc_blocks == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *count = errors(d);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_ecc_count(void *handle, uint64_t block, amdsmi_error_count_t *count) {
    CARD(handle, count);
    if ((d->amd_ecc_blocks & block) == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *count = block == AMDSMI_GPU_BLOCK_UMC ? errors(d) : (amdsmi_error_count_t){0};
    return AMDSMI_STATUS_SUCCESS;
}

FIGURE(CARD, amdsmi_get_gpu_ecc_enabled, uint64_t, d->amd_ecc_blocks)

static uint32_t state(const device *d, uint64_t block) {
    return d->amd_ecc_blocks & block ? AMDSMI_RAS_ERR_STATE_ENABLED : AMDSMI_RAS_ERR_STATE_DISABLED;
}

FUNCTION amdsmi_get_gpu_ecc_status(void *handle, uint64_t block, uint32_t *enabled) {
    CARD(handle, enabled);
    *enabled = state(d, block);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_ras_block_features_enabled(void *handle, uint64_t block,
                                                   uint32_t *enabled) {
    CARD(handle, enabled);
    *enabled = state(d, block);
    return AMDSMI_STATUS_SUCCESS;
}

/* Asked without a list it gives the count. */
FUNCTION amdsmi_get_gpu_bad_page_info(void *handle, uint32_t *count,
                                      amdsmi_retired_page_record_t *list) {
    static const uint64_t PAGE = 4096;
    CARD(handle, count);
    if (d->amd_ecc_blocks == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    uint32_t room = *count, all = d->amd_bad_pages + d->amd_bad_pages_pending;
    *count = all;
    for (uint32_t i = 0; list != NULL && i < all && i < room; i++) {
        uint32_t status = i < d->amd_bad_pages ? AMDSMI_MEM_PAGE_STATUS_RESERVED
                                               : AMDSMI_MEM_PAGE_STATUS_PENDING;
        list[i] = (amdsmi_retired_page_record_t){i * PAGE, PAGE, status};
    }
    return AMDSMI_STATUS_SUCCESS;
}
