/* moves.h: numbers from one place to another, for every L. It needs vectors.h. */

/* n numbers of every sample. */
HRT_INLINE void hrt_copy(const int L, real *o, const real *x, size_t n) { memcpy(o, x, n * (size_t)L * sizeof(real)); }
/* o[i] = x[table[i]]; zero where table[i] < 0. */
HRT_INLINE void hrt_take(const int L, real *o, const real *x, const int32_t *table, size_t n) {
    for (size_t i = 0; i < n; i++, o += L) {
        if (table[i] < 0) HRT_UNROLL for (int s = 0; s < L; s += L < (int)HRT_LANES ? 1 : (int)HRT_LANES)
            if (L < (int)HRT_LANES) o[s] = 0; else hrt_store(o + s, hrt_splat(0));
        else hrt_copy(L, o, x + (size_t)L * (size_t)table[i], 1);
    }
}
/* A row of n numbers, the numbers of x at table[i] where there is one, with 16 zeros behind it. */
HRT_INLINE void hrt_padded(real *o, const real *x, const int32_t *table, size_t n) {
    if (table) for (size_t i = 0; i < n; i++) o[i] = x[table[i]];
    else memcpy(o, x, n * sizeof(real));
    memset(o + n, 0, 16 * sizeof(real));
}
/* rows x n numbers, stride apart, as n x L with samples as lanes; lanes beyond rows repeat the last row. */
HRT_INLINE void hrt_lanes_in(const int L, real *o, const real *x, size_t stride, size_t n, size_t rows) {
    if (L == 1) {
        hrt_padded(o, x, 0, n);
        return;
    }
    for (size_t s = 0; s < (size_t)L; s++) {
        const real *row = x + stride * (s < rows ? s : rows - 1);
        for (size_t i = 0; i < n; i++) o[i * (size_t)L + s] = row[i];
    }
}
/* The inverse. */
HRT_INLINE void hrt_lanes_out(const int L, real *y, const real *o, size_t stride, size_t m, size_t rows) {
    if (L == 1) {
        memcpy(y, o, m * sizeof(real));
        return;
    }
    for (size_t s = 0; s < rows; s++)
        for (size_t i = 0; i < m; i++) y[stride * s + i] = o[i * (size_t)L + s];
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
/* What every step of a window over three axes covers of `channels` x size numbers: steps x channels x kernel. */
typedef struct {
    size_t channels;
    int size[3], steps[3], kernel[3], stride[3], dilation[3], padding[3];
} hrt_window;
HRT_INLINE void hrt_patches(const int L, real *o, const real *x, const hrt_window *w) {
    const int *n = w->size, *d = w->dilation;
    for (int a = 0; a < w->steps[0]; a++) for (int b = 0; b < w->steps[1]; b++) for (int c = 0; c < w->steps[2]; c++) {
        const int p = a * w->stride[0] - w->padding[0], q = b * w->stride[1] - w->padding[1];
        const int r = c * w->stride[2] - w->padding[2];
        const real *channel = x;
        for (size_t k = 0; k < w->channels; k++, channel += (size_t)L * (size_t)(n[0] * n[1] * n[2]))
            for (int e = p; e < p + w->kernel[0] * d[0]; e += d[0]) for (int f = q; f < q + w->kernel[1] * d[1]; f += d[1]) {
                const int inside = e >= 0 && e < n[0] && f >= 0 && f < n[1];
                const real *row = channel + (size_t)L * (size_t)(inside ? (e * n[1] + f) * n[2] : 0);
                for (int g = r; g < r + w->kernel[2] * d[2]; g += d[2], o += L) {
                    if (inside && g >= 0 && g < n[2]) hrt_copy(L, o, row + (size_t)L * (size_t)g, 1);
                    else memset(o, 0, (size_t)L * sizeof(real));
                }
            }
    }
}
