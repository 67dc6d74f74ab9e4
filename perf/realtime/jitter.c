/* Behind a network's session (export/c/session.c): what single calls take, without Python. */
#include <stdlib.h>
#include <time.h>

static size_t allocations;
size_t hrt_allocations(void) { return allocations; }

#ifdef COUNTED /* linked with --wrap */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n) { allocations++; return __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t m) { allocations++; return __real_calloc(n, m); }
void *__wrap_realloc(void *p, size_t n) { allocations++; return __real_realloc(p, n); }
#endif

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Nanoseconds of every call of one row; the kinds of rows take turns. empty: only the clock is read. */
void hrt_time_calls(int64_t *ns, size_t calls, const call *asked, size_t kinds, void *workspace, int empty) {
    for (size_t k = 0; k < calls; k++) {
        const int64_t start = now();
        if (!empty) run_rows(&asked[k % kinds], 0, 1, workspace);
        ns[k] = now() - start;
    }
}
