/* Elementary functions of vectors, without libm: coefficients.h holds the numbers, accuracy.csv every function's error.

   They stand on vectors.h alone. NaN and infinities are kept. A sum has one product at
   most, so that compilers that contract (a * b + c) cannot choose; `rounded` is put around a second one. */

#ifdef HRT_DOUBLE
#define HRT_MANTISSA 52
#define HRT_BIAS 1023
typedef uint64_t hrt_word;
#else
#define HRT_MANTISSA 23
#define HRT_BIAS 127
typedef uint32_t hrt_word;
#endif
#define HRT_TOP (8 * (int)sizeof(real) - 1) /* where the sign stands */

#if HRT_WIDTH
#define HRT_LANE(v, j) ((v)[j])
HRT_INLINE hrt_i hrt_shifted(hrt_i i, int n) { return i << n; }
#else
#define HRT_LANE(v, j) (v)
HRT_INLINE hrt_i hrt_shifted(hrt_i i, int n) { return (hrt_i)((hrt_word)i << n); }
#endif

/* A number that compilers may not look through, at no cost: a product that is rounded before it is added to another. */
HRT_INLINE hrt_v hrt_rounded(hrt_v x) {
#if defined(__GNUC__) && defined(__SSE2__)
#ifdef __AVX512F__
    __asm__("" : "+v"(x));
#else
    __asm__("" : "+x"(x));
#endif
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__("" : "+w"(x));
#elif defined(__GNUC__) && defined(__riscv_flen) && (__riscv_flen >= 64 || !defined(HRT_DOUBLE))
#if HRT_WIDTH /* a register holds one lane */
    for (int j = 0; j < HRT_LANES; j++) {
        real lane = x[j];
        __asm__("" : "+f"(lane));
        x[j] = lane;
    }
#else
    __asm__("" : "+f"(x));
#endif
#endif
    return x;
}

HRT_INLINE hrt_i hrt_sign_of(hrt_v x) { return hrt_bits(x) & hrt_shifted(hrt_splat_int(1), HRT_TOP); }
HRT_INLINE hrt_v hrt_with_sign(hrt_v x, hrt_v sign) { return hrt_of_bits(hrt_bits(hrt_abs(x)) | hrt_sign_of(sign)); }
HRT_INLINE hrt_i hrt_is_negative(hrt_v x) { return hrt_bits(x) >> HRT_TOP; } /* -0 and negative NaN too */
HRT_INLINE hrt_i hrt_is_nan(hrt_v x) { return ~hrt_equal(x, x); }

/* NaN stays. */
HRT_INLINE hrt_v hrt_at_least(hrt_v x, const real low) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x);
#elif HRT_WIDTH == 32 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#else
    return hrt_select(hrt_less(x, hrt_splat(low)), hrt_splat(low), x);
#endif
}
HRT_INLINE hrt_v hrt_at_most(hrt_v x, const real high) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
#elif HRT_WIDTH == 32 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#else
    return hrt_select(hrt_less(hrt_splat(high), x), hrt_splat(high), x);
#endif
}

HRT_INLINE hrt_v hrt_larger(hrt_v a, hrt_v b) { return hrt_select(hrt_less(a, b) | hrt_is_nan(b), b, a); } /* or NaN */
HRT_INLINE hrt_v hrt_infinity(void) { return hrt_of_bits(hrt_shifted(hrt_splat_int(2 * HRT_BIAS + 1), HRT_MANTISSA)); }
HRT_INLINE hrt_v hrt_not_a_number(void) { return hrt_of_bits(hrt_shifted(hrt_splat_int(4 * HRT_BIAS + 3), HRT_MANTISSA - 1)); }

HRT_INLINE int hrt_any(hrt_i mask) {
#if HRT_WIDTH == 64
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif HRT_WIDTH == 32
    return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif HRT_WIDTH
    hrt_word some = 0;
    for (int j = 0; j < (int)HRT_LANES; j++) some |= (hrt_word)mask[j];
    return some != 0;
#else
    return mask != 0;
#endif
}

/* Correctly rounded. */
HRT_INLINE real hrt_root(real x) {
#if HRT_WIDTH && defined(__SSE2__) && defined(HRT_DOUBLE)
    return _mm_cvtsd_f64(_mm_sqrt_sd(_mm_set_sd(x), _mm_set_sd(x)));
#elif HRT_WIDTH && defined(__SSE2__)
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#elif HRT_WIDTH && defined(__riscv_flen) && (__riscv_flen >= 64 || !defined(HRT_DOUBLE))
    real y;
#ifdef HRT_DOUBLE
    __asm__("fsqrt.d %0, %1" : "=f"(y) : "f"(x));
#else
    __asm__("fsqrt.s %0, %1" : "=f"(y) : "f"(x));
#endif
    return y;
#else /* a digit at a time */
    hrt_word b, root = 0, rest = 0;
    int exponent;
    memcpy(&b, &x, sizeof b);
    if (!(x > 0)) return x == 0 ? x : (x - x) / (x - x);
    if (b >> HRT_MANTISSA == 2 * HRT_BIAS + 1) return x;
    exponent = (int)(b >> HRT_MANTISSA);
    b &= ((hrt_word)1 << HRT_MANTISSA) - 1;
    if (exponent) b |= (hrt_word)1 << HRT_MANTISSA;
    else exponent = 1;
    for (; !(b >> HRT_MANTISSA); exponent--) b <<= 1;
    exponent -= HRT_BIAS;
    if (exponent & 1) b <<= 1, exponent--;
    /* b 2^-MANTISSA in [1, 4): the root has MANTISSA + 1 digits, and one more to round by */
    for (int k = 0; k < HRT_MANTISSA + 2; k++) {
        int shift = HRT_MANTISSA - 2 * k;
        rest = rest << 2 | (shift >= 0 ? b >> shift & 3 : shift == -1 ? b << 1 & 3 : 0);
        root <<= 1;
        if (rest > 2 * root) rest -= 2 * root + 1, root++;
    }
    b = (root >> 1) + (root & 1); /* halves do not occur: the rest is never 0 then */
    b += (hrt_word)(exponent / 2 + HRT_BIAS - 1) << HRT_MANTISSA;
    memcpy(&x, &b, sizeof b);
    return x;
#endif
}

HRT_INLINE hrt_v hrt_sqrt(hrt_v x) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm512_sqrt_ps((__m512)x);
#elif HRT_WIDTH == 64
    return (hrt_v)_mm512_sqrt_pd((__m512d)x);
#elif HRT_WIDTH == 32 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm256_sqrt_ps((__m256)x);
#elif HRT_WIDTH == 32
    return (hrt_v)_mm256_sqrt_pd((__m256d)x);
#elif HRT_WIDTH == 16 && defined(__SSE2__) && !defined(HRT_DOUBLE)
    return (hrt_v)_mm_sqrt_ps((__m128)x);
#elif HRT_WIDTH == 16 && defined(__SSE2__)
    return (hrt_v)_mm_sqrt_pd((__m128d)x);
#elif HRT_WIDTH == 16 && defined(__aarch64__) && !defined(HRT_DOUBLE)
    return (hrt_v)vsqrtq_f32((float32x4_t)x);
#elif HRT_WIDTH == 16 && defined(__aarch64__)
    return (hrt_v)vsqrtq_f64((float64x2_t)x);
#else
    for (int j = 0; j < (int)HRT_LANES; j++) HRT_LANE(x, j) = hrt_root(HRT_LANE(x, j));
    return x;
#endif
}

/* Whole numbers: halves go to the even one. */
HRT_INLINE hrt_v hrt_round(hrt_v x) {
    hrt_v a = hrt_abs(x), t = (a + HRT_TWO_TO_MANTISSA) - HRT_TWO_TO_MANTISSA;
    return hrt_with_sign(hrt_select(hrt_less(a, hrt_splat(HRT_TWO_TO_MANTISSA)), t, a), x);
}
HRT_INLINE hrt_v hrt_floor(hrt_v x) {
    hrt_v t = hrt_round(x);
    return hrt_select(hrt_less(x, t), t - 1, t);
}

/* e^x: x = k ln 2 + r. */
HRT_INLINE hrt_v hrt_exp_rest(hrt_v x, hrt_i *k) {
    hrt_v t = x * HRT_LOG2E + HRT_MAGIC;
    *k = hrt_bits(t) - hrt_bits(hrt_splat(HRT_MAGIC));
    t = t - HRT_MAGIC;
    x = x - t * HRT_LN2_0;
    return x - t * HRT_LN2_1;
}
HRT_INLINE hrt_v hrt_exp_less_1(hrt_v r) { /* for |r| <= ln 2 / 2 */
    hrt_v u = r * r;
    return u * HRT_EXP(r) + r;
}
HRT_INLINE hrt_v hrt_power_of_2(hrt_i k) { return hrt_of_bits(hrt_shifted(k + HRT_BIAS, HRT_MANTISSA)); }
HRT_INLINE hrt_v hrt_exp(hrt_v x) {
    hrt_i k, half;
    hrt_v y = hrt_exp_less_1(hrt_exp_rest(hrt_at_most(hrt_at_least(x, HRT_EXP_LOW), HRT_EXP_HIGH), &k)) + 1;
    half = k >> 1; /* in two steps: less than the least normal number, and more than 2^BIAS */
    return y * hrt_power_of_2(half) * hrt_power_of_2(k - half);
}
HRT_INLINE hrt_v hrt_expm1(hrt_v x) {
    hrt_i k;
    hrt_v p = hrt_exp_less_1(hrt_exp_rest(hrt_at_most(hrt_at_least(x, -2 * HRT_MANTISSA), HRT_EXP_HIGH), &k)), s = hrt_power_of_2(k - 1);
    return hrt_with_sign((s * p + (s - HRT_R(0.5))) * 2, x);
}

/* log(u) for u > 0: u = m 2^k, m in [sqrt(1/2), sqrt(2)), log(m) = 2 atanh(s) at s = (m - 1) / (m + 1). With `rest`,
   log(u + c) for a c that rounding lost: c / u more, 1 / m being 1 - 0.85 (m - 1) within 12 %. */
HRT_INLINE hrt_v hrt_log_sum(hrt_v u, hrt_v c, const int rest) {
    hrt_i tiny = hrt_less(u, hrt_splat(HRT_LEAST_NORMAL)), i, k;
    hrt_v f, s, h, t, z, low;
    i = hrt_bits(hrt_abs(hrt_select(tiny, u * HRT_TWO_TO_MANTISSA, u)));
    k = (i - hrt_bits(hrt_splat(HRT_SQRT_HALF))) >> HRT_MANTISSA;
    f = hrt_of_bits(i - hrt_shifted(k, HRT_MANTISSA)) - 1;
    t = hrt_of_bits(k - (tiny & HRT_MANTISSA) + hrt_bits(hrt_splat(HRT_MAGIC))) - HRT_MAGIC;
    s = f / (f + 2);
    z = s * s;
    h = hrt_rounded(f * f * HRT_R(0.5));
    low = t * HRT_LN2_1;
    if (rest) low = hrt_rounded(c * hrt_power_of_2(1 - k) * (HRT_R(0.5) - f * HRT_R(0.425))) + low;
    else low = hrt_rounded(low);
    return t * HRT_LN2_0 - ((h - (s * (z * HRT_LOG(z) + h) + low)) - f);
}
HRT_INLINE hrt_v hrt_log_ends(hrt_v y, hrt_v u) { /* y but where u is 0, negative, infinite or NaN */
    y = hrt_select(hrt_less(u, hrt_infinity()), y, u);
    return hrt_select(hrt_less(hrt_splat(0), u) | hrt_is_nan(u), y, hrt_select(hrt_equal(u, hrt_splat(0)), -hrt_infinity(), hrt_not_a_number()));
}
HRT_INLINE hrt_v hrt_log(hrt_v x) { return hrt_log_ends(hrt_log_sum(x, x, 0), x); }
HRT_INLINE hrt_v hrt_log1p(hrt_v x) {
    hrt_v u = x + 1, c = hrt_select(hrt_less(x, hrt_splat(1)), x - (u - 1), 1 - (u - x));
    return hrt_with_sign(hrt_log_ends(hrt_log_sum(u, c, 1), u), x);
}

HRT_INLINE hrt_v hrt_sigmoid(hrt_v x) {
    hrt_v e = hrt_exp(-hrt_abs(x));
    e = hrt_select(hrt_is_nan(x), x, e);
    return hrt_select(hrt_less(x, hrt_splat(0)), e, hrt_splat(1)) / (e + 1);
}
HRT_INLINE hrt_v hrt_silu(hrt_v x) { return x * hrt_sigmoid(x); }
HRT_INLINE hrt_v hrt_softplus(hrt_v x) { /* log(1 + e^x) */
    return hrt_select(hrt_less(hrt_splat(0), x), x, hrt_splat(0)) + hrt_log1p(hrt_exp(hrt_select(hrt_is_nan(x), x, -hrt_abs(x))));
}
HRT_INLINE hrt_v hrt_mish(hrt_v x) { /* x tanh(log(1 + e)) = x n / (n + 2) */
    hrt_v e = hrt_exp(hrt_at_most(x, HRT_MANTISSA)), n = e * (e + 2);
    return x * (n / (n + 2));
}
HRT_INLINE hrt_v hrt_elu(hrt_v x, real alpha) { return hrt_select(hrt_less(hrt_splat(0), x), x, hrt_expm1(hrt_at_most(x, 0)) * alpha); }

HRT_INLINE hrt_v hrt_tanh(hrt_v x) {
#ifdef HRT_DOUBLE
    hrt_v e = hrt_expm1(hrt_at_most(hrt_abs(x), 20) * 2);
    return hrt_with_sign(e / (e + 2), x);
#else
    hrt_v c = hrt_at_most(hrt_at_least(x, -HRT_TANH_LIMIT), HRT_TANH_LIMIT), u = c * c;
    return c * HRT_TANH_OVER(u) / HRT_TANH_UNDER(u); /* nowhere beyond 1, and 1 from the limit on */
#endif
}

HRT_INLINE hrt_v hrt_erf(hrt_v x) {
#ifdef HRT_DOUBLE
    hrt_v a = hrt_at_most(hrt_abs(x), 6), u = a * a, t = 1 / a - 0.5625, e = hrt_exp(-u);
    hrt_v near = a * HRT_ERF(u), far = 1 - e * HRT_ERFC(t);
    return hrt_with_sign(hrt_select(hrt_less(a, hrt_splat(1)), near, hrt_select(hrt_is_nan(x), x, far)), x);
#else
    hrt_v c = hrt_at_most(hrt_at_least(x, -HRT_ERF_LIMIT), HRT_ERF_LIMIT), u = c * c;
    return hrt_at_most(hrt_at_least(c * HRT_ERF_OVER(u) / HRT_ERF_UNDER(u), -1), 1);
#endif
}
HRT_INLINE hrt_v hrt_gelu(hrt_v x) { /* x (1 + erf(x / sqrt 2)) / 2 */
    return x * HRT_R(0.5) * (hrt_erf(x * HRT_SQRT_HALF) + 1);
}
HRT_INLINE hrt_v hrt_gelu_tanh(hrt_v x) { /* x (1 + tanh(z / 2)) / 2 = x sigmoid(z) */
    hrt_v u = x * x;
    return x * hrt_sigmoid(x * (u * HRT_GELU_CUBIC + HRT_GELU));
}

/* Angles of 2^13 and more (2^20 in float64), in float64: x mod pi / 2 by integers (Payne and Hanek), 245 bits long. */
static inline double hrt_double_of(uint64_t b) {
    double x;
    memcpy(&x, &b, sizeof x);
    return x;
}
HRT_APART void hrt_large_angle(double x, double *sine, double *cosine) {
    uint64_t b, m, borrow;
    uint32_t window[6], limbs[6] = {0};
    double high = 0, low = 0, p, a, a2, c, c2, s, u, half, unit = hrt_double_of((uint64_t)(1023 - 30) << 52);
    int e, start, quarter, flip;
    memcpy(&b, &x, sizeof b);
    e = (int)(b >> 52 & 2047) - 1075;
    m = (b & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
    start = e - 2 + 64; /* the first bit of 2 / pi whose product with m is no multiple of 4 */
    for (int k = 0; k < 6; k++) { /* 192 bits from there, least first */
        int at = start + 32 * (5 - k);
        const uint32_t *w = hrt_two_over_pi + at / 32;
        window[k] = at % 32 ? w[0] << at % 32 | w[1] >> (32 - at % 32) : w[0];
    }
    for (int i = 0; i < 2; i++) {
        uint64_t carry = 0, factor = i ? m >> 32 : m & 0xffffffffu;
        for (int k = 0; i + k < 6; k++) {
            carry += factor * window[k] + limbs[i + k];
            limbs[i + k] = (uint32_t)carry;
            carry >>= 32;
        }
    }
    quarter = (int)(limbs[5] >> 30);
    limbs[5] &= 0x3fffffffu;
    flip = (int)(limbs[5] >> 29);
    if (flip) { /* more than half: to the next quarter, less 1 - f */
        borrow = 1;
        for (int k = 0; k < 6; k++) {
            borrow += (uint32_t)~limbs[k];
            limbs[k] = (uint32_t)borrow;
            borrow >>= 32;
        }
        limbs[5] &= 0x3fffffffu;
        quarter++;
    }
    for (int k = 5; k >= 0; k--) { /* f = high + low */
        double part = limbs[k] * unit;
        s = high + part;
        low += part - (s - high);
        high = s;
        unit *= hrt_double_of((uint64_t)(1023 - 32) << 52);
    }
    s = high + low;
    low -= s - high;
    high = s;
    /* times pi / 2: the product's error by halves (Dekker) */
    p = high * HRT_D_HALF_PI;
    a = hrt_double_of(0x41a0000002000000u) * high; /* 2^27 + 1 */
    a = a - (a - high);
    a2 = high - a;
    c = hrt_double_of(0x3ff921fb58000000u);
    c2 = HRT_D_HALF_PI - c;
    s = a2 * c2 - (((p - a * c) - a2 * c) - a * c2);
    s = s + high * HRT_D_HALF_PI_LOW;
    s = s + low * HRT_D_HALF_PI;
    if (flip) p = -p, s = -s;
    if (b >> 63) p = -p, s = -s, quarter = -quarter;
    half = p * 0.5; /* sin(p + s) = sin p + s cos p, cos p = 1 - 2 sin(p / 2)^2 */
    u = half * half;
    half = half + half * u * HRT_D_SIN(u);
    c = 1 - 2 * half * half;
    u = p * p;
    a = p + (p * u * HRT_D_SIN(u) + s * c);
    c = c - s * a;
    *sine = quarter & 1 ? c : a;
    *cosine = quarter & 1 ? a : c;
    if (quarter & 2) *sine = -*sine;
    if ((quarter + 1) & 2) *cosine = -*cosine;
    if ((b >> 52 & 2047) == 2047) *sine = *cosine = x - x;
}
#define HRT_AT_LARGE_ANGLES(x, y, value) \
    if (hrt_any(hrt_less(hrt_splat(HRT_LARGE_ANGLE), hrt_abs(x)))) \
        for (int j = 0; j < (int)HRT_LANES; j++) { \
            double hrt_x = (double)HRT_LANE(x, j), sine, cosine; \
            if (hrt_x > HRT_LARGE_ANGLE || hrt_x < -HRT_LARGE_ANGLE) { \
                hrt_large_angle(hrt_x, &sine, &cosine); \
                HRT_LANE(y, j) = (real)(value); \
            } \
        }

HRT_INLINE hrt_v hrt_less_half_pis(hrt_v x, hrt_v t) { /* x - t pi / 2 */
    x = x - t * HRT_HALF_PI_0;
    x = x - t * HRT_HALF_PI_1;
    x = x - t * HRT_HALF_PI_2;
#ifdef HRT_HALF_PI_3
    x = x - t * HRT_HALF_PI_3;
#endif
    return x;
}
HRT_INLINE hrt_v hrt_signed_sine(hrt_v r, hrt_i k) { /* (-1)^k sin(r) for |r| <= pi / 2 */
    hrt_v u = r * r, y = r * u * HRT_SIN(u) + r;
    return hrt_of_bits(hrt_bits(y) ^ hrt_shifted(k, HRT_TOP));
}
HRT_INLINE hrt_v hrt_sin(hrt_v x) {
    hrt_v t = x * HRT_INV_PI + HRT_MAGIC;
    hrt_i k = hrt_bits(t);
    hrt_v y = hrt_signed_sine(hrt_less_half_pis(x, (t - HRT_MAGIC) * 2), k);
    y = hrt_select(hrt_equal(x, hrt_splat(0)), x, y);
    HRT_AT_LARGE_ANGLES(x, y, sine)
    return y;
}
HRT_INLINE hrt_v hrt_cos(hrt_v x) { /* of (k + 1/2) pi + r: -(-1)^k sin(r) */
    hrt_v t = (x * HRT_INV_PI - HRT_R(0.5)) + HRT_MAGIC;
    hrt_i k = hrt_bits(t);
    hrt_v y = hrt_signed_sine(hrt_less_half_pis(x, (t - HRT_MAGIC) * 2 + 1), k + 1);
    HRT_AT_LARGE_ANGLES(x, y, cosine)
    return y;
}
HRT_INLINE hrt_v hrt_tan(hrt_v x) {
    hrt_v t = x * HRT_TWO_OVER_PI + HRT_MAGIC, r, u, p, y;
    hrt_i odd = -(hrt_bits(t) & 1);
    r = hrt_less_half_pis(x, t - HRT_MAGIC);
    u = r * r;
    p = r * u * HRT_TAN(u) + r;
    y = hrt_select(odd, hrt_splat(-1), p) / hrt_select(odd, p, hrt_splat(1));
    y = hrt_select(hrt_equal(x, hrt_splat(0)), x, y);
    HRT_AT_LARGE_ANGLES(x, y, sine / cosine)
    return y;
}
HRT_INLINE hrt_v hrt_sinc(hrt_v x) { /* sin(pi x) / (pi x) */
    hrt_v a = hrt_abs(x), t = a + HRT_TWO_TO_MANTISSA, r, u, y;
    hrt_i k = hrt_bits(t);
    r = a - hrt_select(hrt_less(a, hrt_splat(HRT_TWO_TO_MANTISSA)), t - HRT_TWO_TO_MANTISSA, a);
    u = r * r;
    y = (r * u * HRT_SINPI(u) + r) / a;
    return hrt_select(hrt_equal(x, hrt_splat(0)), hrt_splat(1), hrt_of_bits(hrt_bits(y) ^ hrt_shifted(k, HRT_TOP)));
}

/* Inverses. */
HRT_INLINE hrt_v hrt_atan_sum(hrt_v z) { hrt_v u = z * z; return z * u * HRT_ATAN(u) + z; } /* for |z| <= 1 */
HRT_INLINE hrt_v hrt_atan(hrt_v x) {
    hrt_v a = hrt_abs(x);
    hrt_i steep = hrt_less(hrt_splat(1), a);
    hrt_v p = hrt_atan_sum(hrt_select(steep, hrt_splat(1), a) / hrt_select(steep, a, hrt_splat(1)));
    return hrt_with_sign(hrt_select(steep, (HRT_HALF_PI - p) + HRT_HALF_PI_LOW, p), x);
}
HRT_INLINE hrt_v hrt_atan2(hrt_v y, hrt_v x) {
    hrt_v a = hrt_abs(y), b = hrt_abs(x);
    hrt_i steep = hrt_less(b, a), same = hrt_equal(a, b);
    hrt_v z = hrt_select(steep, b, a) / hrt_select(steep, a, b), p;
    p = hrt_atan_sum(hrt_select(same, hrt_select(hrt_equal(a, hrt_splat(0)), hrt_splat(0), hrt_splat(1)), z));
    p = hrt_select(steep, (HRT_HALF_PI - p) + HRT_HALF_PI_LOW, p);
    p = hrt_select(hrt_is_negative(x), (HRT_PI - p) + HRT_PI_LOW, p);
    return hrt_select(hrt_is_nan(x) | hrt_is_nan(y), x + y, hrt_with_sign(p, y));
}
HRT_INLINE hrt_v hrt_asin_near(hrt_v x, hrt_i *far) { /* asin(a) for a = |x| <= 1/2, else asin(sqrt((1 - a) / 2)) */
    hrt_v a = hrt_abs(x), u, z;
    *far = hrt_less(hrt_splat(HRT_R(0.5)), a);
    u = hrt_select(*far, (1 - a) * HRT_R(0.5), a * a);
    z = hrt_select(*far, hrt_sqrt(u), a);
    return z * u * HRT_ASIN(u) + z;
}
HRT_INLINE hrt_v hrt_asin(hrt_v x) {
    hrt_i far;
    hrt_v p = hrt_asin_near(x, &far);
    return hrt_select(hrt_is_nan(p), p, hrt_with_sign(hrt_select(far, (HRT_HALF_PI - p * 2) + HRT_HALF_PI_LOW, p), x));
}
HRT_INLINE hrt_v hrt_acos(hrt_v x) {
    hrt_i far, left = hrt_is_negative(x);
    hrt_v p = hrt_asin_near(x, &far);
    hrt_v outer = hrt_select(left, (HRT_PI - p * 2) + HRT_PI_LOW, p * 2);
    return hrt_select(far, outer, (HRT_HALF_PI - hrt_with_sign(p, x)) + HRT_HALF_PI_LOW);
}
HRT_INLINE hrt_v hrt_asinh(hrt_v x) {
    hrt_v a = hrt_abs(x), u = a * a;
    hrt_i huge = hrt_less(hrt_splat(HRT_HUGE), a);
    hrt_v y = hrt_log1p(a + hrt_select(huge, hrt_splat(0), u / (hrt_sqrt(u + 1) + 1)));
    return hrt_with_sign(y + hrt_select(huge, hrt_splat(HRT_LN2), hrt_splat(0)), x);
}
HRT_INLINE hrt_v hrt_acosh(hrt_v x) {
    hrt_v t = x - 1;
    hrt_i huge = hrt_less(hrt_splat(HRT_HUGE), x);
    hrt_v y = hrt_log1p(hrt_select(huge, x, t + hrt_sqrt(hrt_select(hrt_less(t, hrt_splat(0)), t, t * (x + 1)))));
    return y + hrt_select(huge, hrt_splat(HRT_LN2), hrt_splat(0));
}
HRT_INLINE hrt_v hrt_atanh(hrt_v x) {
    hrt_v a = hrt_abs(x);
    return hrt_with_sign(hrt_log1p(a * 2 / (1 - a)) * HRT_R(0.5), x);
}

/* x - y trunc(x / y), exactly: what divides a whole number of times leaves a zero of x's sign. */
HRT_APART real hrt_remainder(real x, real y) {
    hrt_word a, b, sign, low = ((hrt_word)1 << HRT_MANTISSA) - 1;
    int i, j;
    memcpy(&a, &x, sizeof a);
    memcpy(&b, &y, sizeof b);
    sign = a & (hrt_word)1 << HRT_TOP;
    a ^= sign;
    b &= ~((hrt_word)1 << HRT_TOP);
    if (b == 0 || a >= (hrt_word)(2 * HRT_BIAS + 1) << HRT_MANTISSA || b > (hrt_word)(2 * HRT_BIAS + 1) << HRT_MANTISSA)
        return x * y / (x * y);
    if (a < b) return x;
    i = (int)(a >> HRT_MANTISSA);
    j = (int)(b >> HRT_MANTISSA);
    a &= low;
    b &= low;
    if (i) a |= low + 1;
    else for (i = 1; a <= low; i--) a <<= 1;
    if (j) b |= low + 1;
    else for (j = 1; b <= low; j--) b <<= 1;
    for (; i > j; i--) {
        if (a >= b) a -= b;
        a <<= 1;
    }
    if (a >= b) a -= b;
    for (; a && a <= low; j--) a <<= 1;
    if (a && j > 0) a = (a & low) | (hrt_word)j << HRT_MANTISSA;
    else a >>= a ? 1 - j : 0;
    a |= sign;
    memcpy(&x, &a, sizeof x);
    return x;
}
HRT_INLINE hrt_v hrt_fmod(hrt_v x, hrt_v y) {
    for (int j = 0; j < (int)HRT_LANES; j++) HRT_LANE(x, j) = hrt_remainder(HRT_LANE(x, j), HRT_LANE(y, j));
    return x;
}

/* x^y for x >= 0 and finite y that is not 0, in float64 with 8 more digits between log and exp. */
HRT_APART double hrt_real_power(double x, double y) {
    uint64_t b, i;
    int64_t k = 0, q;
    double m, f, d, s, low, z, p, a, a2, c, c2, t;
    if (x != x || x < 0) return (x - x) / (x - x);
    if (x == 0) return y > 0 ? 0 : 1 / x;
    if (x - x != 0) return y > 0 ? x : 0;
    if (x < hrt_double_of((uint64_t)1 << 52)) x *= hrt_double_of((uint64_t)(1023 + 54) << 52), k = -54;
    memcpy(&b, &x, sizeof b);
    i = b - 0x3fe6a09e00000000u + ((uint64_t)1024 << 52); /* sqrt(1/2); 1024 keeps it positive */
    k += (int64_t)(i >> 52) - 1024;
    b -= (uint64_t)((int64_t)(i >> 52) - 1024) << 52;
    memcpy(&m, &b, sizeof m);
    f = m - 1;
    d = m + 1;
    s = f / d; /* and s + low what it would be unrounded */
    memcpy(&b, &s, sizeof b);
    b &= 0xfffffffff8000000u;
    memcpy(&a, &b, sizeof a); /* the upper half of s; d in halves */
    memcpy(&b, &d, sizeof b);
    b &= 0xfffffffff8000000u;
    memcpy(&c, &b, sizeof c);
    c2 = (m - (c - 1));
    low = ((f - a * c) - a * c2) / d - (s - a);
    /* log m = 2 (s + low) + s^3 P */
    z = s * s;
    p = s * z * HRT_D_LOG(z) + 2 * low;
    t = 2 * s;
    /* log x = k ln 2 + t + p as a sum of two */
    d = (double)k * HRT_D_LN2_0;
    f = d + t;
    c = (d - f) + t;
    c = c + p;
    c = c + (double)k * HRT_D_LN2_1;
    s = f + c;
    c = (f - s) + c;
    /* times y, as a sum of two */
    memcpy(&b, &s, sizeof b);
    b &= 0xfffffffff8000000u;
    memcpy(&a, &b, sizeof a);
    a2 = s - a;
    memcpy(&b, &y, sizeof b);
    b &= 0xfffffffff8000000u;
    memcpy(&d, &b, sizeof d);
    c2 = y - d;
    p = s * y;
    t = a2 * c2 - (((p - a * d) - a2 * d) - a * c2);
    t = t + c * y;
    if (p > 720) return hrt_double_of((uint64_t)2047 << 52);
    if (p < -760) return 0;
    d = p * HRT_D_LOG2E + HRT_D_MAGIC;
    d = d - HRT_D_MAGIC;
    q = (int64_t)d;
    a = p - d * HRT_D_LN2_0;
    a = a - d * HRT_D_LN2_1;
    a = a + t;
    z = a * a;
    s = z * HRT_D_EXP(a) + a;
    s = s + 1;
    s = s * hrt_double_of((uint64_t)(q / 2 + 1023) << 52);
    return s * hrt_double_of((uint64_t)(q - q / 2 + 1023) << 52);
}
HRT_INLINE hrt_v hrt_power(hrt_v x, const double exponent) { /* no whole number */
    for (int j = 0; j < (int)HRT_LANES; j++) {
        double s = (double)HRT_LANE(x, j);
        HRT_LANE(x, j) = s - s != 0 && s < 0 ? (exponent > 0 ? (real)-s : 0) : (real)hrt_real_power(s, exponent);
    }
    return x;
}
HRT_INLINE hrt_v hrt_whole_power(hrt_v x, const int exponent) { /* by squares */
    hrt_v y = hrt_splat(1);
    int started = 0;
    for (int n = exponent < 0 ? -exponent : exponent; n; n >>= 1) {
        if (n & 1) {
            y = started ? y * x : x;
            started = 1;
        }
        x = n > 1 ? x * x : x;
    }
    return exponent < 0 ? 1 / y : y;
}
