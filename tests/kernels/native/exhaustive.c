/* The functions of activations.h over arrays, and their errors: built as a library for test_activations.py. */
#include "vectors.h"
#include "coefficients.h"
#include "activations.h"
#include "references.h"
#include <time.h>

typedef struct {
    const char *name;
    void (*value)(const number *, number *);
    void (*reference)(const number *, wide *);
    wide low, high;
} function;
#define VALUE(name, low, high) \
    static void value_##name(const number *in, number *out) { \
        for (int i = 0; i < BLOCK; i += HRT_LANES) hrt_store(out + i, hrt_##name(hrt_load(in + i))); \
    }
#define hrt_elu(x) hrt_elu(x, 1)
FUNCTIONS(VALUE)
#undef hrt_elu
#define ROW(name, low, high) {#name, value_##name, reference_##name, low, high},
static const function functions[] = {FUNCTIONS(ROW)};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static number number_at(uint64_t k) {
#ifdef HRT_DOUBLE
    uint64_t b = (k + 1) * 0x9e3779b97f4a7c15u;
    number x;
    b = (b ^ b >> 30) * 0xbf58476d1ce4e5b9u;
    b = (b ^ b >> 27) * 0x94d049bb133111ebu;
    b ^= b >> 31;
    if (k & 1) return (number)(int64_t)b * 0x1p-58;
#else
    uint32_t b = (uint32_t)k;
    number x;
#endif
    memcpy(&x, &b, sizeof x);
    return x;
}

typedef struct {
    uint64_t numbers; /* in the function's interval */
    double ulps, ulps_at; /* the largest error in units in the last place */
    double error, error_at; /* the largest error of values below 1 */
    uint64_t nans; /* that should be none */
    double nanoseconds; /* a number */
    uint64_t digest; /* of all answers; NaN are alike */
} result;

/* Every step-th float32; for float64 `step` numbers, half of any bits, half between -32 and 32. */
int measure(const char *name, uint64_t step, result *r) {
    static number in[BLOCK], out[BLOCK];
    static wide reference[BLOCK];
    uint64_t end = (uint64_t)1 << 32;
    const function *f = 0;
    block all = {0};
    if (sizeof(number) == 8) end = step, step = 1;
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++)
        if (!strcmp(functions[k].name, name)) f = functions + k;
    if (!f) return -1;
    memset(r, 0, sizeof *r);
    for (uint64_t first = 0; first < end; first += BLOCK * step) {
        double start;
        for (int i = 0; i < BLOCK; i++) in[i] = number_at(first + (uint64_t)i * step);
        start = now();
        f->value(in, out);
        r->nanoseconds += (now() - start) / (double)(end / step);
        f->reference(in, reference);
        errors_of(in, out, reference, f->low, f->high, &all);
        r->numbers += (uint64_t)all.inside;
        r->nans += (uint64_t)all.nans;
        for (int i = 0; i < BLOCK; i++) {
            word b, nan = 1;
            memcpy(&b, out + i, sizeof b);
            b = (b & (word)~0 >> 1) > INFINITE ? nan : b;
            r->digest += (b + first + (uint64_t)i) * 0x9e3779b97f4a7c15u ^ (uint64_t)b << 7;
        }
    }
    r->ulps = all.ulps, r->ulps_at = all.ulps_at, r->error = all.error, r->error_at = all.error_at;
    return 0;
}

/* out = name(x), or name(x, y), of BLOCK numbers. */
int apply(const char *name, const number *x, const number *y, number *out) {
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++)
        if (!strcmp(functions[k].name, name)) return functions[k].value(x, out), 0;
    for (int i = 0; i < BLOCK; i += HRT_LANES) {
        hrt_v a = hrt_load(x + i), b = hrt_load(y + i), c;
        if (!strcmp(name, "atan2")) c = hrt_atan2(a, b);
        else if (!strcmp(name, "fmod")) c = hrt_fmod(a, b);
        else if (!strcmp(name, "power")) c = hrt_power(a, (double)y[0]);
        else if (!strcmp(name, "whole_power")) c = hrt_whole_power(a, (int)y[0]);
        else return -1;
        hrt_store(out + i, c);
    }
    return 0;
}
