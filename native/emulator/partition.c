#include "partition.h"

#include <string.h>

unsigned emulator_partitions(const struct hal_machine_device *d) {
    static const struct {
        const char *mode;
        unsigned parts;
    } modes[] = {{"SPX", 1}, {"DPX", 2}, {"TPX", 3}, {"QPX", 4}};
    unsigned parts = 1;
    for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++)
        if (strcmp(d->amd_compute_partition, modes[i].mode) == 0) parts = modes[i].parts;
    if (strcmp(d->amd_compute_partition, "CPX") == 0) parts = d->amd_dies; /* one for each */
    return parts >= 1 && parts <= EMULATOR_PARTITIONS ? parts : 1;
}
