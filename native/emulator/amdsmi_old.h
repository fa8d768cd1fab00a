/* What libraries before 26 wrote where that was another structure: the ctypes of amdsmi 6.3.3 (library 24)
 * and 6.4.3 (library 25) have these sizes and fields. A wrapper of another major version has made room for
 * another one, and that is what the backend has to see coming. */
#ifndef HAL_EMULATOR_AMDSMI_OLD_H
#define HAL_EMULATOR_AMDSMI_OLD_H

#include "amdsmi_parts.h"

/* Write in the layout of this machine's library what a newer one would have written. */
void amdsmi_put_asic(void *out, const amdsmi_asic_info_t *now);
void amdsmi_put_driver(void *out, const amdsmi_driver_info_t *now);
void amdsmi_put_power(void *out, const amdsmi_power_info_t *now);
void amdsmi_put_process(void *list, uint32_t at, const amdsmi_proc_info_t *now);
void amdsmi_put_event(void *list, uint32_t at, const amdsmi_evt_notification_data_t *now);

/* Of gpu_metrics, whose first part is the same in all. */
size_t amdsmi_metrics_size(void);

#endif
