/* What the functions of activations.h should give: in float64 for float32, compiled with -ffast-math, so that libmvec
   answers; in long double for float64. */
#include "references.h"
#include <stdint.h>
#include <string.h>
#include <tgmath.h>
#define PI 3.14159265358979323846264338327950288L

#define R(name, expression) \
    void reference_##name(const number *in, wide *out) { \
        for (int i = 0; i < BLOCK; i++) { \
            wide x = in[i]; \
            out[i] = expression; \
        } \
    }
R(exp, exp(x))
R(expm1, expm1(x))
R(log, log(x))
R(log1p, log1p(x))
R(sigmoid, 1 / (1 + exp(-x)))
R(silu, x / (1 + exp(-x)))
R(softplus, (x > 0 ? x : 0) + log1p(exp(-fabs(x))))
R(mish, x > 40 ? x : x * (exp(x) * (exp(x) + 2) / (exp(x) * (exp(x) + 2) + 2)))
R(elu, x > 0 ? x : expm1(x))
R(tanh, tanh(x))
R(erf, erf(x))
R(gelu, x / 2 * erfc(-x * (wide)0.707106781186547524400844362104849039L))
R(gelu_tanh, x / (1 + exp(-(wide)1.59576912160573071175978423973752747L * (x + (wide)0.044715L * x * x * x))))
R(sin, sin(x))
R(cos, cos(x))
R(tan, tan(x))
R(sinc, x == 0 ? 1 : (1 - 2 * fabs(rint(x) - 2 * rint(rint(x) / 2))) * sin((wide)PI * (x - rint(x))) / ((wide)PI * x))
R(atan, atan(x))
R(asin, asin(x))
R(acos, acos(x))
R(asinh, asinh(x))
R(acosh, acosh(x))
R(atanh, atanh(x))
R(sqrt, sqrt(x))
R(floor, floor(x))
R(round, rint(x))

typedef union {
    number x;
    word b;
} both;
static inline word bits_of(number x) { return (both){.x = x}.b; }
static inline number number_of(word b) { return (both){.b = b}.x; }

/* Of numbers of an interval: how many, how many are NaN, the largest |y - ref| in units in the last place of ref in the
   numbers' precision (below the least normal number, of that), and as it is where |ref| < 1. Then where those are. */
void errors_of(const number *x, const number *value, const wide *reference, wide low, wide high, block *r) {
    static double ulps[BLOCK], errors[BLOCK];
    double worst = 0, largest = 0;
    int inside_all = 0, nans = 0;
#pragma omp simd reduction(max : worst, largest) reduction(+ : inside_all, nans)
    for (int i = 0; i < BLOCK; i++) {
        const wide ref = fmin(fabs(reference[i]), (wide)HALF_LINE), y = fmin(fabs((wide)value[i]), (wide)HALF_LINE);
        const wide e = reference[i] * value[i] < 0 ? ref + y : fabs(ref - y);
        const number size = (number)fmin(fmax(ref, (wide)LEAST_NORMAL), (wide)LARGEST);
        const word unit = bits_of(size) & (word)~0 << MANTISSA;
        const int inside = (x[i] >= low) & (x[i] <= high) & ((bits_of(x[i]) & (word)~0 >> 1) < INFINITE);
        const int nan = inside & ((bits_of(value[i]) & (word)~0 >> 1) > INFINITE), counts = inside & !nan;
        inside_all += inside;
        nans += nan;
        ulps[i] = counts ? (double)(e / number_of(unit) * ((word)1 << MANTISSA)) : 0;
        errors[i] = counts & (ref < 1) ? (double)e : 0;
        worst = ulps[i] > worst ? ulps[i] : worst;
        largest = errors[i] > largest ? errors[i] : largest;
    }
    r->inside = inside_all;
    r->nans = nans;
    if (worst > r->ulps) for (int i = 0; i < BLOCK; i++) if (ulps[i] == worst) r->ulps = worst, r->ulps_at = x[i];
    if (largest > r->error) for (int i = 0; i < BLOCK; i++) if (errors[i] == largest) r->error = largest, r->error_at = x[i];
}
