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
