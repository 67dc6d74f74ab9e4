/* contractions.h: products of two values, or of a value and constants. It needs vectors.h.

   o[r, c] = sum over k of a[r, k] b[k, c], every array by strides, in numbers. `adds`: to what o holds. A value has L
   lanes a number, a constant one. A block of samples multiplies lane by lane, whatever the strides are. One row runs
   along c where that lies side by side, along k where that does in both, else number by number. */
typedef struct {
    size_t rows, columns, sums, a_row, a_sum, b_sum, b_column, o_row, o_column;
    int adds;
} hrt_contraction;

HRT_INLINE void hrt_contract_columns(real *o, const real *a, const real *b, const hrt_contraction *s, const int rows, int left) {
    hrt_v sums[4], more[4];
    const int wide = left > (int)HRT_LANES;
    HRT_UNROLL for (int r = 0; r < rows; r++) sums[r] = more[r] = hrt_splat(0);
    if (wide) for (size_t k = 0; k < s->sums; k++, a += s->a_sum, b += s->b_sum) {
        const hrt_v x = hrt_load(b), y = hrt_load(b + HRT_LANES);
        HRT_UNROLL for (int r = 0; r < rows; r++) {
            const hrt_v factor = hrt_splat(a[(size_t)r * s->a_row]);
            sums[r] = factor * x + sums[r];
            more[r] = factor * y + more[r];
        }
    } else for (size_t k = 0; k < s->sums; k++, a += s->a_sum, b += s->b_sum) {
        const hrt_v x = hrt_load(b);
        HRT_UNROLL for (int r = 0; r < rows; r++) sums[r] = hrt_splat(a[(size_t)r * s->a_row]) * x + sums[r];
    }
    HRT_UNROLL for (int r = 0; r < rows; r++, o += s->o_row) {
        if (s->adds) {
            sums[r] = sums[r] + hrt_load_part(o, left);
            if (wide) more[r] = more[r] + hrt_load_part(o + HRT_LANES, left - (int)HRT_LANES);
        }
        hrt_store_part(o, sums[r], left);
        if (wide) hrt_store_part(o + HRT_LANES, more[r], left - (int)HRT_LANES);
    }
}
HRT_INLINE real hrt_dot(const real *a, const real *b, size_t n) {
    hrt_v x = hrt_splat(0), y = x;
    size_t k = 0;
    for (; k + 2 * HRT_LANES <= n; k += 2 * HRT_LANES) {
        x = hrt_load(a + k) * hrt_load(b + k) + x;
        y = hrt_load(a + k + HRT_LANES) * hrt_load(b + k + HRT_LANES) + y;
    }
    for (; k + HRT_LANES <= n; k += HRT_LANES) x = hrt_load(a + k) * hrt_load(b + k) + x;
    return hrt_sum(hrt_load_part(a + k, (int)(n - k)) * hrt_load_part(b + k, (int)(n - k)) + (x + y));
}
HRT_APART void hrt_contract_row(real *o, const real *a, const real *b, const hrt_contraction *s) {
    if (s->b_column == 1 && s->o_column == 1) {
        for (size_t c = 0; c < s->columns; c += 2 * HRT_LANES) {
            const int left = s->columns - c < 2 * HRT_LANES ? (int)(s->columns - c) : 2 * (int)HRT_LANES;
            const real *x = a;
            real *at = o + c;
            for (size_t r = 0; r < s->rows / 4; r++, x += 4 * s->a_row, at += 4 * s->o_row)
                hrt_contract_columns(at, x, b + c, s, 4, left);
            for (size_t r = 0; r < s->rows % 4; r++, x += s->a_row, at += s->o_row)
                hrt_contract_columns(at, x, b + c, s, 1, left);
        }
    } else for (size_t r = 0; r < s->rows; r++) for (size_t c = 0; c < s->columns; c++) {
        const real *x = a + r * s->a_row, *y = b + c * s->b_column;
        real *at = o + r * s->o_row + c * s->o_column, sum = 0;
        if (s->a_sum == 1 && s->b_sum == 1) sum = hrt_dot(x, y, s->sums);
        else for (size_t k = 0; k < s->sums; k++, x += s->a_sum, y += s->b_sum) sum += *x * *y;
        *at = s->adds ? *at + sum : sum;
    }
}

HRT_INLINE void hrt_contract_tile(size_t L, real *o, const real *a, const real *b, const hrt_contraction *s, const int la, const int lb, const int rows, const int columns) {
    const size_t A = la ? L : 1, B = lb ? L : 1;
    hrt_v sums[4][4], x[4], y[4];
    HRT_UNROLL for (int r = 0; r < rows; r++) HRT_UNROLL for (int c = 0; c < columns; c++) sums[r][c] = hrt_splat(0);
    for (size_t k = 0; k < s->sums; k++, a += A * s->a_sum, b += B * s->b_sum) {
        HRT_UNROLL for (int r = 0; r < rows; r++) {
            const real *p = a + A * s->a_row * (size_t)r;
            x[r] = la ? hrt_load(p) : hrt_splat(*p);
        }
        HRT_UNROLL for (int c = 0; c < columns; c++) {
            const real *p = b + B * s->b_column * (size_t)c;
            y[c] = lb ? hrt_load(p) : hrt_splat(*p);
        }
        HRT_UNROLL for (int r = 0; r < rows; r++)
            HRT_UNROLL for (int c = 0; c < columns; c++) sums[r][c] = x[r] * y[c] + sums[r][c];
    }
    HRT_UNROLL for (int r = 0; r < rows; r++) HRT_UNROLL for (int c = 0; c < columns; c++) {
        real *at = o + L * ((size_t)r * s->o_row + (size_t)c * s->o_column);
        hrt_store(at, s->adds ? hrt_load(at) + sums[r][c] : sums[r][c]);
    }
}
HRT_INLINE void hrt_contract_lanes(size_t L, real *o, const real *a, const real *b, const hrt_contraction *s, const int la, const int lb) {
    const size_t A = la ? L : 1, B = lb ? L : 1;
    for (size_t j = 0; j < L; j += HRT_LANES) for (size_t r = 0; r < s->rows; r += 4) {
        const real *x = a + A * r * s->a_row + (la ? j : 0);
        for (size_t c = 0; c < s->columns;) {
            const real *y = b + B * c * s->b_column + (lb ? j : 0);
            real *at = o + L * (r * s->o_row + c * s->o_column) + j;
            if (s->rows - r >= 4 && s->columns - c >= 4) hrt_contract_tile(L, at, x, y, s, la, lb, 4, 4), c += 4;
            else if (s->rows - r >= 4) hrt_contract_tile(L, at, x, y, s, la, lb, 4, 1), c++;
            else if (s->columns - c >= 4) {
                for (size_t q = 0; q < s->rows - r; q++)
                    hrt_contract_tile(L, at + L * q * s->o_row, x + A * q * s->a_row, y, s, la, lb, 1, 4);
                c += 4;
            } else {
                for (size_t q = 0; q < s->rows - r; q++)
                    hrt_contract_tile(L, at + L * q * s->o_row, x + A * q * s->a_row, y, s, la, lb, 1, 1);
                c++;
            }
        }
    }
}
HRT_APART void hrt_contract_values(size_t L, real *o, const real *a, const real *b, const hrt_contraction *s) {
    hrt_contract_lanes(L, o, a, b, s, 1, 1);
}
HRT_APART void hrt_contract_constants(size_t L, real *o, const real *a, const real *b, const hrt_contraction *s) {
    hrt_contract_lanes(L, o, a, b, s, 1, 0); /* b has one number for all samples */
}
