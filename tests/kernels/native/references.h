#include <float.h>
#include <stdint.h>
#ifdef HRT_DOUBLE
typedef double number;
typedef long double wide;
typedef uint64_t word;
#define HALF_LINE 0x1p1024L
#define LEAST DBL_TRUE_MIN
#define LEAST_NORMAL DBL_MIN
#define LARGEST DBL_MAX
#define BELOW_1 0x1.fffffffffffffp-1
#define MANTISSA 52
#define INFINITE ((word)0x7ff << MANTISSA)
#else
typedef float number;
typedef double wide;
typedef uint32_t word;
#define HALF_LINE 0x1p128
#define LEAST 0x1p-149f
#define LEAST_NORMAL FLT_MIN
#define LARGEST FLT_MAX
#define BELOW_1 0x1.fffffep-1f
#define MANTISSA 23
#define INFINITE ((word)0xff << MANTISSA)
#endif
/* name, interval on which it is defined: X(name, low, high), ends included. */
#define FUNCTIONS(X) \
    X(exp, -HALF_LINE, HALF_LINE) X(expm1, -HALF_LINE, HALF_LINE) X(log, LEAST, HALF_LINE) \
    X(log1p, -BELOW_1, HALF_LINE) X(sigmoid, -HALF_LINE, HALF_LINE) X(silu, -HALF_LINE, HALF_LINE) \
    X(softplus, -HALF_LINE, HALF_LINE) X(mish, -HALF_LINE, HALF_LINE) X(elu, -HALF_LINE, HALF_LINE) \
    X(tanh, -HALF_LINE, HALF_LINE) X(erf, -HALF_LINE, HALF_LINE) X(gelu, -HALF_LINE, HALF_LINE) \
    X(gelu_tanh, -HALF_LINE, HALF_LINE) X(sin, -HALF_LINE, HALF_LINE) X(cos, -HALF_LINE, HALF_LINE) \
    X(tan, -HALF_LINE, HALF_LINE) X(sinc, -HALF_LINE, HALF_LINE) X(atan, -HALF_LINE, HALF_LINE) \
    X(asin, -1, 1) X(acos, -1, 1) X(asinh, -HALF_LINE, HALF_LINE) X(acosh, 1, HALF_LINE) \
    X(atanh, -BELOW_1, BELOW_1) X(sqrt, 0, HALF_LINE) X(floor, -HALF_LINE, HALF_LINE) \
    X(round, -HALF_LINE, HALF_LINE)
#define DECLARE(name, low, high) void reference_##name(const number *in, wide *out);
FUNCTIONS(DECLARE)
#define BLOCK 4096
typedef struct {
    int inside, nans;
    double ulps, ulps_at, error, error_at;
} block;
void errors_of(const number *x, const number *value, const wide *reference, wide low, wide high, block *r);
