/* The guard is preloaded into programs of older systems, down to glibc 2.28. glibc 2.34 moved these into libc and
 * gave them a new version; the first one means the same functions. Included before every source of the guard. */
#ifndef HAL_GUARD_GLIBC_H
#define HAL_GUARD_GLIBC_H

#if defined __x86_64__
#define HAL_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined __aarch64__
#define HAL_FIRST_GLIBC "GLIBC_2.17"
#endif

#ifdef HAL_FIRST_GLIBC
__asm__(".symver dlopen, dlopen@" HAL_FIRST_GLIBC);
__asm__(".symver dlclose, dlclose@" HAL_FIRST_GLIBC);
__asm__(".symver dlerror, dlerror@" HAL_FIRST_GLIBC);
__asm__(".symver dlvsym, dlvsym@" HAL_FIRST_GLIBC);
__asm__(".symver pthread_once, pthread_once@" HAL_FIRST_GLIBC);
#endif

#endif
