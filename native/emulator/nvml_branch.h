/* Which driver the stand-in is: a branch (470, 535, 580 and so on) that lacks what came later.
 *
 * The machine's nvidia_driver says it; HAL_EMULATOR_NVIDIA_DRIVER="470.256.02" says otherwise for one
 * program. A real driver of the branch lacks the symbols; a status of 13 (function not found) from one
 * that is there looks the same through the Python wrapper. */
#ifndef HAL_NVML_BRANCH_H
#define HAL_NVML_BRANCH_H

#include <stdbool.h>
#include <stdint.h>

extern bool nvml_is_old;     /* it lacks something */
extern uint32_t nvml_fields; /* fields from this number on are not known */

void nvml_find_branch(void);
const char *nvml_driver(void);
bool nvml_is_missing(const char *function);

#endif
