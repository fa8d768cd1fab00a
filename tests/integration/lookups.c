/* What dlsym says to a program and to two libraries: compiled with -DPART=first, =second, and as a program. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define TEXT(x) #x
#define NAME(x) TEXT(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

static const char *answer(void *handle, const char *name) {
    const char *(*found)(void) = (const char *(*)(void))dlsym(handle, name);
    const char *error = dlerror();
    return error != NULL ? error : found();
}

void JOIN(look_from_, PART)(void) {
    printf("%s: next %s\n", NAME(PART), answer(RTLD_NEXT, "who"));
    printf("%s: default %s\n", NAME(PART), answer(RTLD_DEFAULT, "who"));
    printf("%s: next of nothing %s\n", NAME(PART), answer(RTLD_NEXT, "cuNothingOfTheKind"));
    printf("%s: malloc %d\n", NAME(PART), dlsym(RTLD_NEXT, "malloc") == dlsym(RTLD_DEFAULT, "malloc"));
    /* A driver's function, in the order in which the program is linked. */
    int (*query)(size_t *, size_t *) = (int (*)(size_t *, size_t *))dlsym(RTLD_NEXT, "cuMemGetInfo_v2");
    printf("%s: driver's next %d\n", NAME(PART), query == NULL ? -1 : query(NULL, NULL));
    query = (int (*)(size_t *, size_t *))dlsym(RTLD_DEFAULT, "cuMemGetInfo_v2");
    printf("%s: driver's default %d\n", NAME(PART), query == NULL ? -1 : query(NULL, NULL));
}

#ifdef PROGRAM
void look_from_first(void), look_from_second(void);
int cuInit(unsigned flags);

int main(int argc, char **argv) {
    look_from_program();
    look_from_first();
    look_from_second();
    for (int i = 1; i + 1 < argc; i += 2) { /* the usual way to know whether a lookup failed */
        void *library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        dlerror();
        void *found = library != NULL ? dlsym(library, argv[i + 1]) : NULL;
        const char *error = dlerror();
        int own = found != NULL && strcmp(argv[i], "libfirst.so") == 0;
        printf("%s: %d %s %d\n", argv[i + 1], found != NULL, error != NULL ? error : "no error",
               own ? ((int (*)(void **, size_t))found)(NULL, 0) : 0);
    }
    return cuInit(1) == 1 ? 0 : 1;
}
#else
const char *who(void) { return NAME(PART); }
int hipMalloc(void **out, size_t bytes) { return (void)out, (void)bytes, 77; } /* nobody's but ours */
#endif
