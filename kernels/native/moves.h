/* moves.h: numbers from one place to another, for every L. It needs vectors.h. */

/* n numbers of every sample. */
HRT_INLINE void hrt_copy(const int L, real *o, const real *x, size_t n) { memcpy(o, x, n * (size_t)L * sizeof(real)); }
/* o[i] = x[table[i]]; zero where table[i] < 0. */
HRT_INLINE void hrt_take(const int L, real *o, const real *x, const int32_t *table, size_t n) {
    for (size_t i = 0; i < n; i++, o += L) {
        if (table[i] < 0) memset(o, 0, (size_t)L * sizeof(real));
        else hrt_copy(L, o, x + (size_t)L * (size_t)table[i], 1);
    }
}
/* A row of n numbers, the numbers of x at table[i] where there is one, with 16 zeros behind it. */
HRT_INLINE void hrt_padded(real *o, const real *x, const int32_t *table, size_t n) {
    if (table) for (size_t i = 0; i < n; i++) o[i] = x[table[i]];
    else memcpy(o, x, n * sizeof(real));
    memset(o + n, 0, 16 * sizeof(real));
}

/* A square of HRT_SQUARE x HRT_SQUARE numbers, transposed: rows of x are x_step apart, those of o o_step. */
#if HRT_WIDTH == 64 && !defined(HRT_DOUBLE)
#define HRT_SQUARE 16
HRT_INLINE void hrt_transpose(real *o, size_t o_step, const real *x, size_t x_step) {
    __m512 r[16], s[16];
    HRT_UNROLL for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_ps(x + (size_t)k * x_step);
    HRT_UNROLL for (int k = 0; k < 16; k += 2) {
        s[k] = _mm512_unpacklo_ps(r[k], r[k + 1]);
        s[k + 1] = _mm512_unpackhi_ps(r[k], r[k + 1]);
    }
    HRT_UNROLL for (int k = 0; k < 16; k += 4) /* r[k + c]: columns 4 q + c, of rows k to k + 3, in quarter q */
        HRT_UNROLL for (int h = 0; h < 2; h++) {
            const __m512d low = _mm512_castps_pd(s[k + h]), high = _mm512_castps_pd(s[k + 2 + h]);
            r[k + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            r[k + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    HRT_UNROLL for (int c = 0; c < 4; c++) {
        const __m512 a = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        const __m512 d = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        const __m512 e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        _mm512_storeu_ps(o + (size_t)c * o_step, _mm512_shuffle_f32x4(a, d, 0x88));
        _mm512_storeu_ps(o + (size_t)(4 + c) * o_step, _mm512_shuffle_f32x4(b, e, 0x88));
        _mm512_storeu_ps(o + (size_t)(8 + c) * o_step, _mm512_shuffle_f32x4(a, d, 0xdd));
        _mm512_storeu_ps(o + (size_t)(12 + c) * o_step, _mm512_shuffle_f32x4(b, e, 0xdd));
    }
}
#elif HRT_WIDTH && defined(__SSE2__) && !defined(HRT_DOUBLE)
#define HRT_SQUARE 4
HRT_INLINE void hrt_transpose(real *o, size_t o_step, const real *x, size_t x_step) {
    const __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + x_step);
    const __m128 c = _mm_loadu_ps(x + 2 * x_step), d = _mm_loadu_ps(x + 3 * x_step);
    const __m128 e = _mm_unpacklo_ps(a, b), f = _mm_unpackhi_ps(a, b);
    const __m128 g = _mm_unpacklo_ps(c, d), h = _mm_unpackhi_ps(c, d);
    _mm_storeu_ps(o, _mm_movelh_ps(e, g));
    _mm_storeu_ps(o + o_step, _mm_movehl_ps(g, e));
    _mm_storeu_ps(o + 2 * o_step, _mm_movelh_ps(f, h));
    _mm_storeu_ps(o + 3 * o_step, _mm_movehl_ps(h, f));
}
#else
#define HRT_SQUARE 1
HRT_INLINE void hrt_transpose(real *o, size_t o_step, const real *x, size_t x_step) {
    (void)o_step, (void)x_step;
    *o = *x;
}
#endif
/* o[j][i] = x[i][j] for rows x columns numbers. */
HRT_INLINE void hrt_transposed(real *o, size_t o_step, const real *x, size_t x_step, size_t rows, size_t columns) {
    size_t i = 0;
    for (; HRT_SQUARE > 1 && i + HRT_SQUARE <= rows; i += HRT_SQUARE) {
        size_t j = 0;
        for (; j + HRT_SQUARE <= columns; j += HRT_SQUARE)
            hrt_transpose(o + j * o_step + i, o_step, x + i * x_step + j, x_step);
        for (; j < columns; j++)
            for (size_t k = i; k < i + HRT_SQUARE; k++) o[j * o_step + k] = x[k * x_step + j];
    }
    for (; i < rows; i++)
        for (size_t j = 0; j < columns; j++) o[j * o_step + i] = x[i * x_step + j];
}
/* rows x n numbers, stride apart, as n x L with samples as lanes; lanes beyond rows repeat the last row. */
HRT_INLINE void hrt_lanes_in(const int L, real *o, const real *x, size_t stride, size_t n, size_t rows) {
    if (L == 1) {
        hrt_padded(o, x, 0, n);
        return;
    }
    hrt_transposed(o, (size_t)L, x, stride, rows, n);
    for (size_t s = rows; s < (size_t)L; s++)
        for (size_t i = 0; i < n; i++) o[i * (size_t)L + s] = o[i * (size_t)L + rows - 1];
}
/* The inverse. */
HRT_INLINE void hrt_lanes_out(const int L, real *y, const real *o, size_t stride, size_t m, size_t rows) {
    if (L == 1) memcpy(y, o, m * sizeof(real));
    else hrt_transposed(y, stride, o, (size_t)L, m, rows);
}

/* What element j of a loop over n x L numbers reads: hrt_spread of a value that is one number, hrt_constant of a table
   that has no samples. */
HRT_INLINE hrt_v hrt_spread(const int L, const real *p, size_t j) {
    return L == 1 ? hrt_splat(*p) : hrt_load(p + j % (size_t)L);
}
HRT_INLINE hrt_v hrt_constant(const int L, const real *p, size_t j) {
    return L == 1 ? hrt_load(p + j) : hrt_splat(p[j / (size_t)L]);
}

/* n numbers, each so many numbers after the one before; x_step 0 repeats one. */
HRT_INLINE void hrt_copy_steps(const int L, real *o, const real *x, size_t n, size_t o_step, size_t x_step) {
    for (size_t i = 0; i < n; i++) hrt_copy(L, o + (size_t)L * (i * o_step), x + (size_t)L * (i * x_step), 1);
}
/* n numbers one after the other, of one sample. */
HRT_INLINE void hrt_line(real *o, const real *x, size_t n) {
    for (; n >= 8; n -= 8, o += 8, x += 8) memcpy(o, x, 8 * sizeof(real));
    while (n--) *o++ = *x++;
}
/* n x L, number i of row r being at x[i * stride + r]: rows as lanes, those that are missing zeros; and the inverse. */
HRT_INLINE void hrt_runs_in(const int L, real *o, const real *x, size_t stride, size_t n, size_t count) {
    if (count < (size_t)L) memset(o, 0, n * (size_t)L * sizeof(real));
    for (size_t i = 0; i < n; i++, o += L, x += stride) {
        if (count == (size_t)L) memcpy(o, x, (size_t)L * sizeof(real));
        else hrt_line(o, x, count);
    }
}
HRT_INLINE void hrt_runs_out(const int L, real *y, const real *o, size_t stride, size_t m, size_t count) {
    for (size_t i = 0; i < m; i++, o += L, y += stride) {
        if (count == (size_t)L) memcpy(y, o, (size_t)L * sizeof(real));
        else hrt_line(y, o, count);
    }
}

/* A window over three axes of `channels` images. Step r covers channels x kernel numbers, zeros outside. */
typedef struct {
    size_t channels;
    int size[3], steps[3], kernel[3], stride[3], dilation[3], padding[3];
} hrt_window;
HRT_INLINE void hrt_window_row(const int L, real *o, const real *x, const hrt_window *w, size_t step) {
    const int *n = w->size, *d = w->dilation, *k = w->kernel;
    const int c = (int)(step % (size_t)w->steps[2]), ab = (int)(step / (size_t)w->steps[2]);
    const int p = ab / w->steps[1] * w->stride[0] - w->padding[0], q = ab % w->steps[1] * w->stride[1] - w->padding[1];
    const int r = c * w->stride[2] - w->padding[2];
    for (size_t i = 0; i < w->channels; i++, x += (size_t)L * (size_t)(n[0] * n[1] * n[2]))
        for (int e = p; e < p + k[0] * d[0]; e += d[0]) for (int f = q; f < q + k[1] * d[1]; f += d[1]) {
            const int inside = e >= 0 && e < n[0] && f >= 0 && f < n[1];
            const real *row = x + (size_t)L * (size_t)(inside ? (e * n[1] + f) * n[2] : 0);
            for (int g = r; g < r + k[2] * d[2]; g += d[2], o += L) {
                if (inside && g >= 0 && g < n[2]) hrt_copy(L, o, row + (size_t)L * (size_t)g, 1);
                else memset(o, 0, (size_t)L * sizeof(real));
            }
        }
}
/* Of one sample, steps r to r + count - 1 as lanes: along the last axis its numbers are runs. */
HRT_APART void hrt_window_lanes(size_t L, real *lanes, const real *x, const hrt_window *w, size_t r, size_t count) {
    const int *n = w->size, *d = w->dilation, *k = w->kernel, stride = w->stride[2];
    const size_t image = (size_t)(n[0] * n[1] * n[2]);
    if (count < L) memset(lanes, 0, w->channels * (size_t)(k[0] * k[1] * k[2]) * L * sizeof(real));
    for (size_t s = 0; s < count;) {
        const int c = (int)((r + s) % (size_t)w->steps[2]), ab = (int)((r + s) / (size_t)w->steps[2]);
        const int p = ab / w->steps[1] * w->stride[0] - w->padding[0], q = ab % w->steps[1] * w->stride[1] - w->padding[1];
        const int left = w->steps[2] - c, run = (size_t)left < count - s ? left : (int)(count - s);
        real *o = lanes + s;
        for (size_t i = 0; i < w->channels; i++)
            for (int e = p; e < p + k[0] * d[0]; e += d[0]) for (int f = q; f < q + k[1] * d[1]; f += d[1]) {
                const int inside = e >= 0 && e < n[0] && f >= 0 && f < n[1];
                const real *row = x + i * image + (inside ? (e * n[1] + f) * n[2] : 0);
                int g = c * stride - w->padding[2];
                for (int j = 0; j < k[2]; j++, g += d[2], o += L) {
                    /* lanes 0 to low - 1 are left of the image, those from high on right of it */
                    int low = g < 0 ? (stride - 1 - g) / stride : 0, high = n[2] > g ? (n[2] - g + stride - 1) / stride : 0;
                    if (!inside) high = 0;
                    if (high > run) high = run;
                    if (low > high) low = high;
                    for (int z = 0; z < low; z++) o[z] = 0;
                    if (stride == 1) hrt_line(o + low, row + g + low, (size_t)(high - low));
                    else for (int z = low; z < high; z++) o[z] = row[g + z * stride];
                    for (int z = high; z < run; z++) o[z] = 0;
                }
            }
        s += (size_t)run;
    }
}
