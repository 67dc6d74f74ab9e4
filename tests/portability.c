/* Calls a generated file as its users do: rows from a file, answers to a file. call.h says what it is:
   REAL, INPUTS and OUTPUTS (numbers of a row), NAME(function), CALL(x, y, stride, rows, workspace).
   Prints: the self-test's code, allocations while it computed, and whether it wrote beyond what it was given. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "call.h"
#include "net.h"

#define GUARD 64
static size_t allocations;
static void *taken[3];

#ifdef COUNTED /* linked with --wrap */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n) { allocations++; return __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t m) { allocations++; return __real_calloc(n, m); }
void *__wrap_realloc(void *p, size_t n) { allocations++; return __real_realloc(p, n); }
#endif

/* Memory at a multiple of 64 that is full of NaN. */
static unsigned char *memory(size_t n) {
    static int count;
    unsigned char *p = taken[count++] = malloc(n + 128);
    if (!p) exit(9);
    p += 64 - (uintptr_t)p % 64;
    memset(p, 255, n);
    return p;
}
static int written(const unsigned char *p) {
    for (size_t k = 0; k < GUARD; k++) if (p[k] != 0xa5) return 1;
    return 0;
}

int main(void) {
    static const size_t batches[] = {1, 9, 45};
    const size_t most = 45, needed = NAME(workspace)();
    REAL *const x = (REAL *)memory(most * INPUTS * sizeof(REAL));
    REAL *const y = (REAL *)memory(most * OUTPUTS * sizeof(REAL) + GUARD);
    unsigned char *const w = memory(needed + GUARD);
    FILE *const in = fopen("x.bin", "rb"), *const out = fopen("y.bin", "wb");
    size_t counted = 0;
    int beyond = 0;
    if (!in || !out) return 8;
    memset(w + needed, 0xa5, GUARD);
    for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
        const size_t rows = batches[k], before = allocations;
        if (fread(x, sizeof(REAL) * INPUTS, rows, in) != rows) return 7;
        memset((unsigned char *)(y + rows * OUTPUTS), 0xa5, GUARD);
        if (CALL(x, y, rows, rows, w) != 0) return 6;
        beyond |= written((unsigned char *)(y + rows * OUTPUTS));
        counted += k ? allocations - before : 0; /* the first time files allocate buffers */
        if (fwrite(y, sizeof(REAL) * OUTPUTS, rows, out) != rows) return 5;
    }
    if (CALL(x, y, most, 0, NULL) != 0) return 10;
    if (CALL(x, y, most, 1, NULL) != 1) return 11;
    if (CALL(x, y, most, 1, w + 4) != 2) return 12;
    if (CALL(x, y, most, (size_t)-1, w) != 3) return 13;
    const size_t before = allocations;
    const int status = NAME(self_test)(w);
    printf("%d %zu %d\n", status, counted + allocations - before, beyond | written(w + needed));
    for (size_t k = 0; k < 3; k++) free(taken[k]);
    return fclose(in) || fclose(out);
}
