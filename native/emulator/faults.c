#define _GNU_SOURCE
#include "faults.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "emulator.h"

enum { RULES = 256, NAME = 80, CALLED = 512 };
enum kind { STATUS, HANG, ABORT, DELAY };

bool emulator_faulty;

static struct rule {
    char function[NAME];
    enum kind kind;
    int64_t figure; /* the status, or nanoseconds */
} rules[RULES];
static unsigned count;

static bool parse(const char *text, size_t length, bool latency, struct rule *out) {
    const char *equals = memchr(text, '=', length);
    char value[32];
    if (equals == NULL || equals == text || equals - text >= NAME) return false;
    size_t rest = length - (size_t)(equals + 1 - text);
    if (rest == 0 || rest >= sizeof value) return false;
    memcpy(out->function, text, (size_t)(equals - text));
    out->function[equals - text] = 0;
    memcpy(value, equals + 1, rest);
    value[rest] = 0;
    out->kind = latency ? DELAY : STATUS;
    char *end;
    out->figure = strtoll(value, &end, 10);
    if (*end == 0) return true;
    out->kind = strcmp(value, "hang") == 0 ? HANG : ABORT;
    return !latency && (out->kind == HANG || strcmp(value, "abort") == 0);
}

static void read_rules(const char *text, const char *variable) {
    bool latency = strcmp(variable, "HAL_EMULATOR_LATENCY") == 0;
    while (text != NULL && *text != 0) {
        size_t length = strcspn(text, ";");
        if (length > 0 && (count == RULES || !parse(text, length, latency, &rules[count])))
            fprintf(stderr, "%s: no rule, or one too many: %.*s\n", variable, (int)length, text);
        else if (length > 0)
            count++;
        text += length + (text[length] == ';');
    }
}

/* What the variables do, while a program runs: for tests that try many faults. NULL: none. */
EMULATOR_EXPORT void hal_emulator_faults(const char *faults, const char *latency) {
    emulator_faulty = false;
    count = 0;
    read_rules(faults, "HAL_EMULATOR_FAULTS");
    read_rules(latency, "HAL_EMULATOR_LATENCY");
    emulator_faulty = count > 0;
}

__attribute__((constructor)) static void start(void) {
    hal_emulator_faults(getenv("HAL_EMULATOR_FAULTS"), getenv("HAL_EMULATOR_LATENCY"));
}

static const struct rule *rule_of(const char *function, bool latency) {
    const struct rule *every = NULL;
    for (const struct rule *r = rules; r < rules + count; r++) {
        if ((r->kind == DELAY) != latency) continue;
        if (strcmp(r->function, function) == 0) return r;
        if (strcmp(r->function, "*") == 0 && strchr(function, ' ') == NULL) every = r;
    }
    return every;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static const char *called[CALLED];

/* The n-th function that was called while there were rules (HAL_EMULATOR_LATENCY="*=0" is one), each
 * once, for tests that have to know them all. NULL: there are no more. */
EMULATOR_EXPORT const char *hal_emulator_called(unsigned n) {
    return n < CALLED ? called[n] : NULL;
}

static void remember(const char *function) {
    if (strchr(function, ' ') != NULL) return; /* a part of what one gives */
    for (unsigned i = 0; i < CALLED; i++) {
        if (called[i] == NULL) called[i] = function;
        if (strcmp(called[i], function) == 0) return;
    }
}

int emulator_fault_slowly(const char *function, int *status) {
    remember(function);
    int64_t begun = now();
    const struct rule *delay = rule_of(function, true), *fault = rule_of(function, false);
    while (delay != NULL && now() - begun < delay->figure) continue;
    if (fault == NULL) return 0;
    if (fault->kind == ABORT) abort();
    while (fault->kind == HANG) pause();
    *status = (int)fault->figure;
    return 1;
}
