/* The functions that are there and answer nothing. Their arguments differ; the C calling
 * conventions let a function ignore them. */
#include "nvml_symbols.h"

#include "nvml_call.h"

#define UNANSWERED(function)                                                                       \
    EMULATOR_EXPORT nvmlReturn_t function(void);                                                   \
    NVML function(void) {                                                                          \
        READY;                                                                                     \
        return NVML_ERROR_NOT_SUPPORTED;                                                           \
    }
NVML_UNANSWERED(UNANSWERED)
