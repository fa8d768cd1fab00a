#define _GNU_SOURCE
#include "say.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum say_level say_level = SAY_REFUSALS;

void say_start(void) {
    static const char *const names[] = {"quiet", "refusals", "info", "debug"};
    const char *wanted = getenv("HAL_GUARD_LOG");
    if (wanted == NULL || *wanted == 0) return;
    for (int i = SAY_NOTHING; i <= SAY_ALL; i++)
        if (strcmp(wanted, names[i]) == 0) {
            say_level = (enum say_level)i;
            return;
        }
    say(SAY_REFUSALS, "HAL_GUARD_LOG is quiet, refusals, info or debug, not '%.40s'", wanted);
}

/* One write, so that lines of several processes do not run into one another. */
void say(enum say_level level, const char *format, ...) {
    char line[512] = "hal: ";
    const int prefix = (int)strlen(line), room = (int)sizeof line - 1;
    if (level > say_level) return;
    va_list arguments;
    va_start(arguments, format);
    int n = prefix + vsnprintf(line + prefix, (size_t)(room - prefix), format, arguments);
    va_end(arguments);
    if (n > room - 1) n = room - 1;
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)n) < 0) return; /* nobody to tell */
}

bool say_now(void) {
    static _Atomic int64_t last = INT64_MIN;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t before = atomic_load(&last);
    return before != (int64_t)now.tv_sec && atomic_compare_exchange_strong(&last, &before, now.tv_sec);
}
