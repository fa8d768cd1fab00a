/* What the four stand-in drivers share: the machine's devices, its memory and its processes. */
#ifndef HAL_EMULATOR_H
#define HAL_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "hal_machine.h"

#define EMULATOR_EXPORT __attribute__((visibility("default")))

/* The machine that HAL_EMULATED_MACHINE names, mapped once; NULL when there is none. */
struct hal_machine *emulator_machine(void);

/* The devices of one vendor, in machine order: writes their indices (at most HAL_LEDGER_DEVICES) and
 * returns how many there are. 0 is what a vendor's library sees on a machine without its driver. */
unsigned emulator_devices(const char *vendor, unsigned index[HAL_LEDGER_DEVICES]);

static inline struct hal_machine_device *emulator_device(unsigned index) {
    return &emulator_machine()->device[index];
}

/* Device memory of the calling process. Never more than the device has, whoever asks; what a process
 * holds is gone with it. Addresses are unique within a process and 512-byte aligned; nothing is
 * behind them. */
enum emulator_memory { EMULATOR_OK, EMULATOR_NO_MEMORY, EMULATOR_NOT_MINE };
enum emulator_memory emulator_allocate(unsigned index, uint64_t bytes, uint64_t *address);
enum emulator_memory emulator_free(uint64_t address);

/* The same for what `owner` (not 0) keeps: the end of it frees all that is left. */
enum emulator_memory emulator_allocate_for(uint64_t owner, unsigned index, uint64_t bytes, uint64_t *address);
void emulator_free_of(uint64_t owner);

/* Memory without an address, and addresses without memory (aligned to `alignment`, a power of two). */
bool emulator_take(unsigned index, uint64_t bytes);
void emulator_give(unsigned index, uint64_t bytes);
uint64_t emulator_address(uint64_t bytes, uint64_t alignment);

/* Bytes that programs hold on a device now, the dead left out. */
uint64_t emulator_used(unsigned index);

/* The same for who asks all the time: the dead are looked for once every few milliseconds. */
uint64_t emulator_used_lately(unsigned index);

struct emulator_process {
    pid_t pid;
    uint64_t bytes;
};

/* The living processes that hold memory on a device: writes at most `room`, returns how many there are. */
unsigned emulator_processes(unsigned index, struct emulator_process *out, unsigned room);

/* How busy the device is, in percent: from the work that programs gave it, or what the description says while
 * they gave it none. HAL_UNKNOWN where the description knows no such figure. */
int64_t emulator_busy_percent(const struct hal_machine_device *d);

/* The devices that a visibility variable leaves, in its order: `text` is its value (NULL: all of them).
 * Entries are ordinals or UUIDs, also shortened, and the first one that names no device ends the list,
 * as CUDA (programming guide, CUDA_VISIBLE_DEVICES) and HIP (GPU isolation) do it. */
unsigned emulator_visible(const char *text, const unsigned *index, unsigned count,
                          unsigned visible[HAL_LEDGER_DEVICES]);

#endif
