/* What the guard says on stderr: lines that begin with "hal: ", as many as HAL_GUARD_LOG asks for. */
#ifndef HAL_GUARD_SAY_H
#define HAL_GUARD_SAY_H

#include <stdbool.h>

enum say_level {
    SAY_NOTHING,  /* "quiet" */
    SAY_REFUSALS, /* "refusals", where nothing is set: what was refused, once a second at most, and why */
    SAY_INFO,     /* "info": also which slice this process is in */
    SAY_ALL,      /* "debug": also every charge; slow */
};

extern enum say_level say_level;

/* Reads HAL_GUARD_LOG; called once. */
void say_start(void);

__attribute__((format(printf, 2, 3))) void say(enum say_level level, const char *format, ...);

/* True once a second. */
bool say_now(void);

static inline bool say_all(void) { return __builtin_expect(say_level == SAY_ALL, 0); }

#endif
