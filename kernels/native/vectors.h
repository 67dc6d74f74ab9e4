/* vectors.h: one vector type for every processor. Generated files include its text; it needs no other file.

   real     float, or double where HRT_DOUBLE is defined
   hrt_v    HRT_LANES reals; + - * / work on it, also beside a number (x * HRT_R(0.5))
   hrt_i    HRT_LANES integers of the same width, for bits and masks; & | ^ ~ + - << >> work on it
   masks    hrt_i of all ones or all zeros, as hrt_less(a, b) gives them

   HRT_WIDTH, the bytes of a vector, follows from the compiler's macros: 64, 32, 16; 0 is plain C99 (hrt_v is real).
   Tables are padded to 16 numbers, so that they are the same for every width. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef HRT_WIDTH
#if !(defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 9))
#define HRT_WIDTH 0
#elif defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HRT_WIDTH 64
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HRT_WIDTH 32
#else
#define HRT_WIDTH 16
#endif
#endif
#if HRT_WIDTH >= 32
#include <immintrin.h>
#elif HRT_WIDTH == 16 && defined(__SSE2__)
#include <emmintrin.h>
#elif HRT_WIDTH == 16 && defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__GNUC__)
#define HRT_INLINE static inline __attribute__((always_inline, unused))
#define HRT_APART static __attribute__((noinline, unused)) /* a function that is not copied into its callers */
#define HRT_ALIGNED __attribute__((aligned(64)))
#else
#define HRT_INLINE static inline
#define HRT_APART static
#define HRT_ALIGNED
#endif
#if defined(__clang__)
#define HRT_UNROLL _Pragma("clang loop unroll(full)")
#define HRT_BY_4 _Pragma("clang loop unroll_count(4)")
#pragma clang diagnostic ignored "-Wpass-failed" /* where a processor has few registers it is not done: no fault */
#elif defined(__GNUC__)
#define HRT_UNROLL _Pragma("GCC unroll 64")
#define HRT_BY_4 _Pragma("GCC unroll 4")
#else
#define HRT_UNROLL
#define HRT_BY_4
#endif

#ifdef HRT_DOUBLE
typedef double real;
typedef int64_t hrt_int;
#define HRT_R(x) x
#define HRT_LANES (HRT_WIDTH ? HRT_WIDTH / 8 : 1)
#else
typedef float real;
typedef int32_t hrt_int;
#define HRT_R(x) x##f
#define HRT_LANES (HRT_WIDTH ? HRT_WIDTH / 4 : 1)
#endif

#if defined(__GNUC__) /* constants; a product that overflows is a warning there */
#define HRT_INFINITY ((real)__builtin_inf())
#define HRT_NAN ((real)__builtin_nan(""))
#else
#define HRT_INFINITY ((real)(1e300 * 1e300))
#define HRT_NAN (HRT_INFINITY - HRT_INFINITY)
#endif

#if HRT_WIDTH
typedef real hrt_v __attribute__((vector_size(HRT_WIDTH)));
typedef hrt_int hrt_i __attribute__((vector_size(HRT_WIDTH)));
typedef real hrt_near __attribute__((vector_size(HRT_WIDTH), aligned(sizeof(real)), may_alias)); /* in memory */
#else
typedef real hrt_v;
typedef hrt_int hrt_i;
#endif

/* Memory. */
#if HRT_WIDTH
HRT_INLINE hrt_v hrt_load(const real *p) { return *(const hrt_near *)p; }
HRT_INLINE void hrt_store(real *p, hrt_v v) { *(hrt_near *)p = v; }
HRT_INLINE hrt_v hrt_splat(real s) { return s - (hrt_v){0}; }
#else
HRT_INLINE hrt_v hrt_load(const real *p) { return *p; }
HRT_INLINE void hrt_store(real *p, hrt_v v) { *p = v; }
HRT_INLINE hrt_v hrt_splat(real s) { return s; }
#endif
/* The first count numbers of v, of at most HRT_LANES; none where count is not positive. */
HRT_INLINE void hrt_store_part(real *p, hrt_v v, const int count) {
    if (count >= (int)HRT_LANES) hrt_store(p, v);
    else if (count > 0) memcpy(p, &v, (size_t)count * sizeof(real));
}
HRT_INLINE hrt_v hrt_load_part(const real *p, const int count) {
    hrt_v v = hrt_splat(0);
    if (count >= (int)HRT_LANES) return hrt_load(p);
    if (count > 0) memcpy(&v, p, (size_t)count * sizeof(real));
    return v;
}

/* Comparisons give masks; a comparison with NaN is false. hrt_select(m, a, b): a where m, else b. */
#if HRT_WIDTH
HRT_INLINE hrt_i hrt_bits(hrt_v v) { return (hrt_i)v; }
HRT_INLINE hrt_v hrt_of_bits(hrt_i i) { return (hrt_v)i; }
HRT_INLINE hrt_i hrt_less(hrt_v a, hrt_v b) { return a < b; }
HRT_INLINE hrt_i hrt_equal(hrt_v a, hrt_v b) { return a == b; }
HRT_INLINE hrt_v hrt_select(hrt_i m, hrt_v a, hrt_v b) { return (hrt_v)(((hrt_i)a & m) | ((hrt_i)b & ~m)); }
HRT_INLINE hrt_i hrt_to_int(hrt_v v) { return __builtin_convertvector(v, hrt_i); } /* towards zero */
HRT_INLINE hrt_v hrt_to_real(hrt_i i) { return __builtin_convertvector(i, hrt_v); }
HRT_INLINE hrt_i hrt_splat_int(hrt_int s) { return s - (hrt_i){0}; }
#else
HRT_INLINE hrt_i hrt_bits(hrt_v v) { hrt_i i; memcpy(&i, &v, sizeof i); return i; }
HRT_INLINE hrt_v hrt_of_bits(hrt_i i) { hrt_v v; memcpy(&v, &i, sizeof v); return v; }
HRT_INLINE hrt_i hrt_less(hrt_v a, hrt_v b) { return -(hrt_i)(a < b); }
HRT_INLINE hrt_i hrt_equal(hrt_v a, hrt_v b) { return -(hrt_i)(a == b); }
HRT_INLINE hrt_v hrt_select(hrt_i m, hrt_v a, hrt_v b) { return m ? a : b; }
HRT_INLINE hrt_i hrt_to_int(hrt_v v) { return (hrt_i)v; }
HRT_INLINE hrt_v hrt_to_real(hrt_i i) { return (hrt_v)i; }
HRT_INLINE hrt_i hrt_splat_int(hrt_int s) { return s; }
#endif
HRT_INLINE hrt_i hrt_not_equal(hrt_v a, hrt_v b) { return ~hrt_equal(a, b); } /* true of NaN */
HRT_INLINE hrt_v hrt_abs(hrt_v v) { return hrt_of_bits(hrt_bits(v) & (hrt_int)(((uint64_t)1 << (8 * sizeof(real) - 1)) - 1)); }

/* a * b + c, rounded once where the processor can. */
HRT_INLINE hrt_v hrt_fma(hrt_v a, hrt_v b, hrt_v c) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif HRT_WIDTH == 64
    return (hrt_v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif HRT_WIDTH == 32 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif HRT_WIDTH == 32
    return (hrt_v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif HRT_WIDTH == 16 && defined(__aarch64__) && !defined(HRT_DOUBLE)
    return (hrt_v)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif HRT_WIDTH == 16 && defined(__aarch64__)
    return (hrt_v)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

/* Decoders: HRT_LANES stored numbers as reals, exactly. */
#if HRT_WIDTH
typedef float hrt_f32s __attribute__((vector_size(4 * HRT_LANES)));
typedef int32_t hrt_i32s __attribute__((vector_size(4 * HRT_LANES)));
typedef uint16_t hrt_u16s __attribute__((vector_size(2 * HRT_LANES)));
typedef int8_t hrt_i8s __attribute__((vector_size(HRT_LANES)));
#ifdef HRT_DOUBLE
typedef double hrt_f64s __attribute__((vector_size(8 * HRT_LANES)));
#endif
#else
typedef float hrt_f32s;
typedef int32_t hrt_i32s;
#endif
HRT_INLINE hrt_f32s hrt_floats_of_bits(hrt_i32s i) { hrt_f32s f; memcpy(&f, &i, sizeof f); return f; }
HRT_INLINE hrt_i32s hrt_bits_of_floats(hrt_f32s f) { hrt_i32s i; memcpy(&i, &f, sizeof i); return i; }
HRT_INLINE hrt_i32s hrt_load_u16(const uint16_t *p) {
#if HRT_WIDTH == 16 && defined(__SSE2__) && !defined(HRT_DOUBLE)
    return (hrt_i32s)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)p), _mm_setzero_si128());
#elif HRT_WIDTH
    hrt_u16s h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, hrt_i32s);
#else
    return *p;
#endif
}
HRT_INLINE hrt_i32s hrt_upper_half(hrt_i32s h) { /* h << 16 */
#if HRT_WIDTH
    return h << 16;
#else
    return (int32_t)((uint32_t)h << 16);
#endif
}
HRT_INLINE hrt_v hrt_widened(hrt_f32s f) {
#if HRT_WIDTH && defined(HRT_DOUBLE)
    return __builtin_convertvector(f, hrt_v);
#else
    return f;
#endif
}
HRT_INLINE hrt_v hrt_load_i8(const int8_t *p) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif HRT_WIDTH == 32 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#elif HRT_WIDTH == 16 && defined(__SSE2__) && !defined(HRT_DOUBLE)
    int32_t four;
    memcpy(&four, p, sizeof four);
    const __m128i bytes = _mm_cvtsi32_si128(four), pairs = _mm_unpacklo_epi8(bytes, bytes);
    return (hrt_v)_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
#elif HRT_WIDTH
    hrt_i8s b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, hrt_i32s), hrt_v);
#else
    return *p;
#endif
}
HRT_INLINE hrt_v hrt_load_f16(const uint16_t *p) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif HRT_WIDTH == 32 && !defined(HRT_DOUBLE)
    return (hrt_v)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif HRT_WIDTH == 16 && defined(__aarch64__) && !defined(HRT_DOUBLE)
    return (hrt_v)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else /* finite numbers, subnormal ones too */
    hrt_i32s h = hrt_load_u16(p);
    hrt_f32s m = hrt_floats_of_bits((h & 0x7fff) << 13) * 0x1p112f;
    return hrt_widened(hrt_floats_of_bits(hrt_bits_of_floats(m) | hrt_upper_half(h & 0x8000)));
#endif
}
HRT_INLINE hrt_v hrt_load_bf16(const uint16_t *p) { return hrt_widened(hrt_floats_of_bits(hrt_upper_half(hrt_load_u16(p)))); }
HRT_INLINE hrt_v hrt_load_f32(const float *p) {
    hrt_f32s f;
    memcpy(&f, p, sizeof f);
    return hrt_widened(f);
}
#ifdef HRT_DOUBLE
HRT_INLINE hrt_v hrt_load_f64(const double *p) { return hrt_load(p); }
#endif

/* Sums over lanes: of one vector, and of count of four, times their scales (null: 1), written to p. */
HRT_INLINE real hrt_sum(hrt_v v) {
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
    return _mm512_reduce_add_ps((__m512)v);
#elif HRT_WIDTH
    real s = 0;
    HRT_UNROLL for (int k = 0; k < (int)HRT_LANES; k++) s += v[k];
    return s;
#else
    return v;
#endif
}
HRT_INLINE void hrt_sums4(real *p, hrt_v a, hrt_v b, hrt_v c, hrt_v d, const int count,
                          const real *scale) {
#if HRT_WIDTH >= 32 && !defined(HRT_DOUBLE)
#if HRT_WIDTH == 64
    __m512 u = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    __m512 v = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
    __m512 r = _mm512_add_ps(_mm512_shuffle_ps(u, v, 0x44), _mm512_shuffle_ps(u, v, 0xee));
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(r), _mm512_extractf32x8_ps(r, 1));
#else
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
#endif
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    if (scale) t = _mm_mul_ps(t, _mm_loadu_ps(scale));
    if (count == 4) _mm_storeu_ps(p, t);
    else memcpy(p, &t, 4 * (size_t)count);
#elif HRT_WIDTH == 16 && defined(__SSE2__) && !defined(HRT_DOUBLE)
    const __m128 e = _mm_add_ps(_mm_unpacklo_ps((__m128)a, (__m128)b), _mm_unpackhi_ps((__m128)a, (__m128)b));
    const __m128 f = _mm_add_ps(_mm_unpacklo_ps((__m128)c, (__m128)d), _mm_unpackhi_ps((__m128)c, (__m128)d));
    __m128 t = _mm_add_ps(_mm_movelh_ps(e, f), _mm_movehl_ps(f, e));
    if (scale) t = _mm_mul_ps(t, _mm_loadu_ps(scale));
    if (count == 4) _mm_storeu_ps(p, t);
    else memcpy(p, &t, 4 * (size_t)count);
#else
    const hrt_v v[4] = {a, b, c, d};
    HRT_UNROLL for (int k = 0; k < count; k++) p[k] = scale ? hrt_sum(v[k]) * scale[k] : hrt_sum(v[k]);
#endif
}
