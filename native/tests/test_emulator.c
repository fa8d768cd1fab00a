/* The emulated machine: its file, its memory to the last byte, and who sees which device. */
#define _GNU_SOURCE
#include "emulator.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { NVIDIA = 3, AMD = 2, MEMORY = 1000000 };

static struct hal_machine *machine;

static void test_file(void) {
    const char *path = fresh_path("file");
    CHECK(hal_machine_open(path) == NULL);
    CHECK(hal_machine_create(path, "empty") == 0);
    CHECK(hal_machine_create(path, "again") == -1 && errno == EEXIST);
    CHECK(hal_machine_create("/no/such/place", "x") == -1 && errno == ENOENT);
    struct hal_machine *m = hal_machine_open(path);
    CHECK(m != NULL && m->devices == 0 && strcmp(m->name, "empty") == 0);
    m->devices = HAL_LEDGER_DEVICES + 1;
    CHECK(hal_machine_open(path) == NULL);
    m->devices = 0;
    m->version++;
    CHECK(hal_machine_open(path) == NULL);
    m->version--;
    m->magic[0] ^= 1;
    CHECK(hal_machine_open(path) == NULL);
    m->magic[0] ^= 1;
    hal_machine_close(m);
    CHECK(truncate(path, (off_t)sizeof *m - 1) == 0 && hal_machine_open(path) == NULL);
    CHECK(truncate(path, 0) == 0 && hal_machine_open(path) == NULL);
    unlink(path);
}

/* NVIDIA and AMD alternate, so that a vendor's ordinals are not the machine's indices. */
static void make_machine(void) {
    const char *path = fresh_path("machine");
    CHECK(hal_machine_create(path, "test") == 0);
    struct hal_machine *m = hal_machine_open(path);
    CHECK(m != NULL);
    m->devices = NVIDIA + AMD;
    for (unsigned i = 0; i < m->devices; i++) {
        struct hal_machine_device *d = &m->device[i];
        snprintf(d->vendor, sizeof d->vendor, "%s", i % 2 == 0 ? "nvidia" : "amd");
        snprintf(d->uuid, sizeof d->uuid, "GPU-%08x-0000", 0xabc0 + i);
        snprintf(d->serial, sizeof d->serial, "0x%016x", 0xdef0 + i);
        d->memory_bytes = MEMORY;
        atomic_store(&m->ledger.device[i].limit, MEMORY);
    }
    hal_machine_close(m);
    CHECK(setenv("HAL_EMULATED_MACHINE", path, 1) == 0);
    machine = emulator_machine(); /* the file stays: the dead are found by its locks */
    CHECK(machine != NULL && emulator_machine() == machine && emulator_device(1) == &machine->device[1]);
}

static void test_vendors(void) {
    unsigned index[HAL_LEDGER_DEVICES];
    CHECK(emulator_devices("nvidia", index) == NVIDIA && index[0] == 0 && index[1] == 2 && index[2] == 4);
    CHECK(emulator_devices("amd", index) == AMD && index[0] == 1 && index[1] == 3);
    CHECK(emulator_devices("tpu", index) == 0 && emulator_devices("", index) == 0);
}

static void test_memory(void) {
    uint64_t at = 77, more = 0, all[100];
    CHECK(emulator_used(0) == 0);
    CHECK(emulator_allocate(0, MEMORY + 1, &at) == EMULATOR_NO_MEMORY && at == 77);
    CHECK(emulator_allocate(0, UINT64_MAX, &at) == EMULATOR_NO_MEMORY && at == 77);
    CHECK(emulator_allocate(0, MEMORY, &at) == EMULATOR_OK && at % 512 == 0 && at != 0);
    CHECK(emulator_used(0) == MEMORY && emulator_used(2) == 0);
    CHECK(emulator_allocate(0, 1, &more) == EMULATOR_NO_MEMORY);
    CHECK(emulator_allocate(2, 1, &more) == EMULATOR_OK && more >= at + MEMORY);
    CHECK(emulator_free(at + 512) == EMULATOR_NOT_MINE && emulator_free(0) == EMULATOR_NOT_MINE);
    CHECK(emulator_free(at) == EMULATOR_OK && emulator_free(at) == EMULATOR_NOT_MINE);
    CHECK(emulator_free(more) == EMULATOR_OK && emulator_used(0) == 0 && emulator_used(2) == 0);
    for (int i = 0; i < 100; i++) {
        CHECK(emulator_allocate(1, 513, &all[i]) == EMULATOR_OK && all[i] % 512 == 0);
        CHECK(i == 0 || all[i] >= all[i - 1] + 513);
    }
    CHECK(emulator_used(1) == 100 * 513);
    for (int i = 0; i < 100; i++) CHECK(emulator_free(all[i]) == EMULATOR_OK);
}

static void test_processes(void) {
    struct emulator_process list[2];
    uint64_t at, parents;
    int ready[2];
    CHECK(emulator_allocate(3, 100, &parents) == EMULATOR_OK && pipe(ready) == 0);
    pid_t pid = fork_child();
    if (pid == 0) { /* it is a process of its own: its parent's memory is not its to free */
        if (emulator_free(parents) != EMULATOR_NOT_MINE) _exit(1);
        if (emulator_allocate(3, MEMORY - 100, &at) != EMULATOR_OK) _exit(2);
        if (emulator_allocate(3, 1, &at) != EMULATOR_NO_MEMORY || write(ready[1], "", 1) != 1) _exit(3);
        pause();
    }
    char byte;
    close(ready[1]);
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK(emulator_used(3) == MEMORY && emulator_processes(3, list, 2) == 2);
    CHECK(list[0].pid == getpid() && list[0].bytes == 100);
    CHECK(list[1].pid == pid && list[1].bytes == MEMORY - 100);
    CHECK(emulator_processes(3, NULL, 0) == 2 && emulator_processes(1, list, 2) == 0);
    list[1].pid = -1;
    CHECK(emulator_processes(3, list, 1) == 2 && list[1].pid == -1); /* no more than there is room for */
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
    CHECK(emulator_used(3) == 100 && emulator_processes(3, list, 2) == 1); /* gone with it */
    CHECK(emulator_free(parents) == EMULATOR_OK && emulator_used(3) == 0);
    close(ready[0]);
}

static void *churn(void *argument) {
    (void)argument;
    for (int i = 0; i < 5000; i++) {
        uint64_t at;
        if (emulator_allocate(4, MEMORY / 3, &at) == EMULATOR_OK) CHECK(emulator_free(at) == EMULATOR_OK);
    }
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, churn, NULL) == 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(emulator_used(4) == 0);
}

/* ---- visibility ----------------------------------------------------------------------------- */

static void sees(const char *text, const char *expected) {
    unsigned index[HAL_LEDGER_DEVICES], visible[HAL_LEDGER_DEVICES];
    unsigned count = emulator_devices("nvidia", index), found;
    char got[4 * HAL_LEDGER_DEVICES] = "";
    found = emulator_visible(text, index, count, visible);
    CHECK(found <= HAL_LEDGER_DEVICES);
    for (unsigned i = 0; i < found; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%u", i == 0 ? "" : " ", visible[i]);
    if (strcmp(got, expected) != 0) fprintf(stderr, "'%s' shows [%s]\n", text != NULL ? text : "NULL", got);
    CHECK(strcmp(got, expected) == 0);
}

static void test_visibility(void) {
    sees(NULL, "0 2 4");
    sees("", "");
    sees("0", "0");
    sees("2,0", "4 0");
    sees(" 1 , 2 ", "2 4");
    sees("-1", "");
    sees("none", "");
    sees("1,-1,2", "2"); /* the first that names no device ends the list */
    sees("1,3,2", "2");
    sees("1,,2", "2");
    sees("1 2", "2");
    sees(",1", "");
    sees("1,", "2");
    sees("00", "0");
    sees("+1", "");
    sees("0x1", "");
    sees("1;2", "");
    sees("4294967296", "");
    sees("18446744073709551616", "");
    sees("99999999999999999999999999999999", "");
    sees("GPU-0000abc2-0000", "2");
    sees("gpu-0000ABC2", "2");
    sees("GPU-0000abc4,GPU-0000abc0", "4 0");
    sees("GPU-0000abc1-0000", ""); /* an AMD card's */
    sees("GPU-000000000000def4", "4"); /* as ROCr calls it */
    sees("GPU-0000abc2-0000-more", "");
    sees("\xff\xfe\x01%s%n", "");
    sees("\n0", "");
}

static void test_garbage(void) {
    static const char alphabet[] = "0123456789,- GPUgpu-abcdefx\t\xff%";
    unsigned seed = 4711, index[HAL_LEDGER_DEVICES], visible[HAL_LEDGER_DEVICES];
    unsigned count = emulator_devices("nvidia", index);
    for (int round = 0; round < 20000; round++) {
        size_t length = (size_t)(rand_r(&seed) % 200);
        char *text = malloc(length + 1); /* of exactly that size: reading past it is seen */
        CHECK(text != NULL);
        for (size_t i = 0; i < length; i++) text[i] = alphabet[(size_t)rand_r(&seed) % (sizeof alphabet - 1)];
        text[length] = 0;
        unsigned found = emulator_visible(text, index, count, visible);
        CHECK(found <= HAL_LEDGER_DEVICES);
        for (unsigned i = 0; i < found; i++) CHECK(visible[i] % 2 == 0 && visible[i] <= 4);
        free(text);
    }
    char many[1000] = "0"; /* more entries than a machine has devices */
    for (int i = 0; i < 300; i++) strcat(many, ",0");
    CHECK(emulator_visible(many, index, count, visible) == HAL_LEDGER_DEVICES);
    memset(many, '0', sizeof many - 1); /* one entry, longer than any name */
    CHECK(emulator_visible(many, index, count, visible) == 0);
}

int main(void) {
    test_file();
    make_machine();
    test_vendors();
    test_memory();
    test_processes();
    test_visibility();
    test_garbage();
    test_threads();
    unlink(getenv("HAL_EMULATED_MACHINE"));
    return 0;
}
