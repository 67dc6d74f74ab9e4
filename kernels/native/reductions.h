/* reductions.h: along one axis of `outer` x n x `inner` numbers of every sample. It needs activations.h.

   The inner numbers of all samples lie side by side: where they are more than one, they are lanes; a single row is summed
   across lanes. Whole vectors are read behind the end, and written where what stands there is written later. */

HRT_INLINE hrt_v hrt_toward(hrt_v a, hrt_v b, const int largest) { return largest ? hrt_larger(a, b) : -hrt_larger(-a, -b); }
HRT_INLINE hrt_v hrt_finite(hrt_v m) { /* 0 for infinities: e^(x - m) is no NaN where all are alike */
    return hrt_select(hrt_less(hrt_abs(m), hrt_infinity()) | hrt_is_nan(m), m, hrt_splat(0));
}

/* One row: n numbers side by side. */
HRT_INLINE real hrt_row_sum(const real *x, size_t n) {
    hrt_v a = hrt_splat(0), b = a, c = a, d = a;
    size_t k = 0;
    for (; k + 4 * HRT_LANES <= n; k += 4 * HRT_LANES) {
        a = a + hrt_load(x + k);
        b = b + hrt_load(x + k + HRT_LANES);
        c = c + hrt_load(x + k + 2 * HRT_LANES);
        d = d + hrt_load(x + k + 3 * HRT_LANES);
    }
    for (; k + HRT_LANES <= n; k += HRT_LANES) a = a + hrt_load(x + k);
    return hrt_sum((a + hrt_load_part(x + k, (int)(n - k))) + b + (c + d));
}
HRT_INLINE real hrt_row_extreme(const real *x, size_t n, const int largest) {
    hrt_v m = hrt_splat(x[0]);
    size_t k = 0;
    for (; k + HRT_LANES <= n; k += HRT_LANES) m = hrt_toward(m, hrt_load(x + k), largest);
    for (; k < n; k++) m = hrt_toward(m, hrt_splat(x[k]), largest);
    for (int j = 1; j < (int)HRT_LANES; j++) m = hrt_toward(m, hrt_splat(HRT_LANE(m, j)), largest);
    return HRT_LANE(m, 0);
}
/* o = e^(x - m); the sum. */
HRT_INLINE real hrt_row_exp(real *o, const real *x, size_t n, const real m) {
    for (size_t k = 0; k < n; k += HRT_LANES) hrt_store_part(o + k, hrt_exp(hrt_load(x + k) - m), (int)(n - k));
    return hrt_row_sum(o, n);
}

/* Rows of lanes: vector j of n numbers, `width` apart. */
HRT_INLINE hrt_v hrt_lanes_sum(const real *x, size_t n, size_t width) {
    hrt_v a = hrt_splat(0), b = a, c = a, d = a;
    size_t k = 0;
    for (; k + 4 <= n; k += 4, x += 4 * width) {
        a = a + hrt_load(x);
        b = b + hrt_load(x + width);
        c = c + hrt_load(x + 2 * width);
        d = d + hrt_load(x + 3 * width);
    }
    for (; k < n; k++, x += width) a = a + hrt_load(x);
    return (a + b) + (c + d);
}
HRT_INLINE hrt_v hrt_lanes_extreme(const real *x, size_t n, size_t width, const int largest) {
    hrt_v m = hrt_load(x);
    for (size_t k = 1; k < n; k++) m = hrt_toward(m, hrt_load(x + k * width), largest);
    return m;
}
HRT_INLINE hrt_v hrt_lanes_exp(real *o, const real *x, size_t n, size_t width, hrt_v m, const int count) {
    hrt_v sum = hrt_splat(0);
    for (size_t k = 0; k < n; k++) {
        hrt_v e = hrt_exp(hrt_load(x + k * width) - m);
        hrt_store_part(o + k * width, e, count);
        sum = sum + e;
    }
    return sum;
}

HRT_APART void hrt_reduce_sum(real *o, const real *x, size_t outer, size_t n, size_t width, real divisor) {
    for (size_t r = 0; r < outer; r++, x += n * width, o += width) {
        if (width == 1) *o = hrt_row_sum(x, n) / divisor;
        else for (size_t j = 0; j < width; j += HRT_LANES) hrt_store(o + j, hrt_lanes_sum(x + j, n, width) / divisor);
    }
}
HRT_INLINE void hrt_reduce_extreme(real *o, const real *x, size_t outer, size_t n, size_t width, const int largest) {
    for (size_t r = 0; r < outer; r++, x += n * width, o += width) {
        if (width == 1) *o = hrt_row_extreme(x, n, largest);
        else for (size_t j = 0; j < width; j += HRT_LANES) hrt_store(o + j, hrt_lanes_extreme(x + j, n, width, largest));
    }
}
HRT_APART void hrt_reduce_amax(real *o, const real *x, size_t outer, size_t n, size_t width) {
    hrt_reduce_extreme(o, x, outer, n, width, 1);
}
HRT_APART void hrt_reduce_amin(real *o, const real *x, size_t outer, size_t n, size_t width) {
    hrt_reduce_extreme(o, x, outer, n, width, 0);
}
HRT_APART void hrt_reduce_logsumexp(real *o, const real *x, size_t outer, size_t n, size_t width, real *scratch) {
    for (size_t r = 0; r < outer; r++, x += n * width, o += width) {
        for (size_t j = 0; j < width; j += HRT_LANES) {
            hrt_v m, sum;
            if (width == 1) {
                m = hrt_finite(hrt_splat(hrt_row_extreme(x, n, 1)));
                sum = hrt_splat(hrt_row_exp(scratch, x, n, HRT_LANE(m, 0)));
            } else {
                m = hrt_finite(hrt_lanes_extreme(x + j, n, width, 1));
                sum = hrt_lanes_exp(scratch, x + j, n, width, m, 0);
            }
            hrt_store(o + j, m + hrt_log(sum));
        }
    }
}
HRT_INLINE void hrt_softmax(real *o, const real *x, size_t outer, size_t n, size_t width, const int logarithm) {
    for (size_t r = 0; r < outer; r++, x += n * width, o += n * width) {
        for (size_t j = 0; j < width; j += HRT_LANES) {
            if (width == 1) {
                const real m = hrt_row_extreme(x, n, 1), sum = hrt_row_exp(o, x, n, m);
                const hrt_v by = logarithm ? hrt_log(hrt_splat(sum)) : 1 / hrt_splat(sum);
                for (size_t k = 0; k < n; k += HRT_LANES)
                    hrt_store_part(o + k, logarithm ? (hrt_load(x + k) - m) - by : hrt_load(o + k) * by, (int)(n - k));
            } else {
                const int count = width - j < HRT_LANES ? (int)(width - j) : (int)HRT_LANES;
                const hrt_v m = hrt_lanes_extreme(x + j, n, width, 1);
                const hrt_v sum = hrt_lanes_exp(o + j, x + j, n, width, m, count);
                const hrt_v by = logarithm ? hrt_log(sum) : 1 / sum;
                for (size_t k = 0; k < n; k++) {
                    real *at = o + j + k * width;
                    hrt_store_part(at, logarithm ? (hrt_load(x + j + k * width) - m) - by : hrt_load(at) * by, count);
                }
            }
        }
    }
}
HRT_APART void hrt_along_softmax(real *o, const real *x, size_t outer, size_t n, size_t width) {
    hrt_softmax(o, x, outer, n, width, 0);
}
HRT_APART void hrt_along_log_softmax(real *o, const real *x, size_t outer, size_t n, size_t width) {
    hrt_softmax(o, x, outer, n, width, 1);
}
HRT_APART void hrt_along_cumsum(real *o, const real *x, size_t outer, size_t n, size_t width) {
    for (size_t r = 0; r < outer; r++)
        for (size_t k = 0; k < n; k++, x += width, o += width) {
            if (width == 1) *o = k ? o[-1] + *x : *x;
            else for (size_t j = 0; j < width; j += HRT_LANES)
                hrt_store(o + j, k ? hrt_load(o + j - width) + hrt_load(x + j) : hrt_load(x + j));
        }
}
/* (x - mean) / sqrt(variance + eps) * weight + bias over n numbers; weight and bias may be 0. */
HRT_APART void hrt_layer_norm(const int L, real *o, const real *x, size_t outer, size_t n, real eps, const real *weight, const real *bias) {
    for (size_t r = 0; r < outer; r++, x += n * (size_t)L, o += n * (size_t)L) {
        if (L == 1) {
            const hrt_v mean = hrt_splat(hrt_row_sum(x, n) / (real)n);
            hrt_v by, square = hrt_splat(0);
            size_t k = 0;
            for (; k + HRT_LANES <= n; k += HRT_LANES) {
                hrt_v d = hrt_load(x + k) - mean;
                square = d * d + square;
            }
            if (k < n) {
                hrt_v d = hrt_load_part(x + k, (int)(n - k)) - mean;
                real left[HRT_LANES];
                hrt_store(left, d * d);
                square = square + hrt_load_part(left, (int)(n - k));
            }
            by = 1 / hrt_sqrt(hrt_splat(hrt_sum(square) / (real)n + eps));
            for (k = 0; k < n; k += HRT_LANES) {
                hrt_v y = (hrt_load(x + k) - mean) * by;
                if (weight) y = y * hrt_load(weight + k);
                if (bias) y = y + hrt_load(bias + k);
                hrt_store_part(o + k, y, (int)(n - k));
            }
        } else for (size_t s = 0; s < (size_t)L; s += HRT_LANES) {
            const hrt_v mean = hrt_lanes_sum(x + s, n, (size_t)L) / (real)n;
            hrt_v by, square = hrt_splat(0), other = square;
            for (size_t k = 0; k < n; k++) {
                hrt_v d = hrt_load(x + s + k * (size_t)L) - mean;
                if (k % 2) other = d * d + other;
                else square = d * d + square;
            }
            by = 1 / hrt_sqrt((square + other) / (real)n + eps);
            for (size_t k = 0; k < n; k++) {
                hrt_v y = (hrt_load(x + s + k * (size_t)L) - mean) * by;
                if (weight) y = y * weight[k];
                if (bias) y = y + bias[k];
                hrt_store(o + s + k * (size_t)L, y);
            }
        }
    }
}
