/* Into how many processors an AMD card is divided: AMD SMI and HIP show each of them. */
#ifndef HAL_EMULATOR_PARTITION_H
#define HAL_EMULATOR_PARTITION_H

#include "hal_machine.h"

enum { EMULATOR_PARTITIONS = 8 }; /* the most that a card can have */

/* 1 where it is whole, or cannot be divided. */
unsigned emulator_partitions(const struct hal_machine_device *d);

#endif
