/* products.h: products of a hierarchical matrix, y = H x + b, by two waves. It needs vectors.h.

   wave 1   t = V^T x: every low-rank block gives a few numbers, in its place of t
   wave 2   y = [D U] [x ; t]: a strip of rows sums columns of dense blocks over x and of low-rank ones over t

   One row: wave 1 as dot products along the rows of V^T, wave 2 as columns times numbers, HRT_LANES outputs at a time.
   Blocks: L samples are lanes; a block is decoded once to scratch, and both waves are the same loop.
   Streams are rows that share a weight at the same time: it is decoded once for all of them. */

enum { HRT_I8, HRT_F16, HRT_BF16, HRT_F32, HRT_F64, HRT_KINDS };

typedef struct { /* where the stored numbers lie, by storage type */
    const int8_t *i8;
    const uint16_t *f16, *bf16;
    const float *f32;
    const double *f64;
    const real *reals;
    const int32_t *ints;
    const hrt_index *index;
} hrt_numbers;

typedef struct { /* wave 1 over x[column .. column + columns): rows by storage type, each padded to a multiple of 16 */
    uint32_t column, columns, place, scale; /* scale: of the int8 rows, in reals */
    uint32_t count[HRT_KINDS], at[HRT_KINDS];
} hrt_dots;
typedef struct { /* wave 2: rows [row, row + rows); first the segments over x, then those over t */
    uint32_t row, rows, segment, over_x, over_t;
} hrt_strip;
typedef struct { /* count columns of one type, each padded to a multiple of 16; scale: of their rows, where scaled */
    uint32_t kind, scaled, count, index, at, scale;
} hrt_segment;
typedef struct {
    const hrt_dots *dots;
    const hrt_strip *strips;
    const hrt_segment *segments;
    uint32_t dots_count, strips_count, bias; /* bias: in reals */
} hrt_layer;
typedef struct { /* one pointer for every stream; the first so many streams have the bias */
    const real *const *x;
    real *const *t, *const *y;
    int streams, biased, spare;        /* spare: 15 numbers behind every y may be written */
    void (*ending)(real *, size_t);    /* of blocks: called with some of y's numbers as soon as they are there, or null */
} hrt_ports;

#if HRT_WIDTH == 64 || (HRT_WIDTH == 16 && defined(__aarch64__)) /* 32 registers */
#define HRT_SUMS 16
#else
#define HRT_SUMS 8
#endif
#define HRT_UP16(n) (((n) + 15) / 16 * 16)
#define HRT_ROOM ((HRT_WIDTH ? HRT_SUMS : 16) * (int)HRT_LANES)
/* Outputs of a strip that are summed at once: the largest part of tall that is whole vectors and fits the registers. */
#define HRT_FITS(tall, part, streams)                                                                                  \
    ((tall) % (part) == 0 && (tall) / (part) % (int)HRT_LANES == 0 && (tall) / (part) * (streams) <= HRT_ROOM)
#define HRT_STEP(tall, streams)                                                                                        \
    (HRT_FITS(tall, 1, streams) ? (tall) : HRT_FITS(tall, 2, streams) ? (tall) / 2 :                                   \
     HRT_FITS(tall, 3, streams) ? (tall) / 3 : HRT_FITS(tall, 4, streams) ? (tall) / 4 :                               \
     HRT_FITS(tall, 6, streams) ? (tall) / 6 : HRT_FITS(tall, 8, streams) ? (tall) / 8 : (int)HRT_LANES)
#define HRT_MOST 64 /* sums at once, also where a compiler has few registers */

HRT_INLINE hrt_v hrt_decode(const int kind, const hrt_numbers *N, size_t at) {
    switch (kind) {
    case HRT_I8: return hrt_load_i8(N->i8 + at);
    case HRT_F16: return hrt_load_f16(N->f16 + at);
    case HRT_BF16: return hrt_load_bf16(N->bf16 + at);
#ifdef HRT_DOUBLE
    case HRT_F64: return hrt_load_f64(N->f64 + at);
#endif
    default: return hrt_load_f32(N->f32 + at);
    }
}

/* One row -------------------------------------------------------------------------------------------------------- */

/* t[s][j] = sum over k of V[j, k] x[s][k], for count rows of V^T of 16-padded columns; scale: of every row, or null. */
HRT_INLINE void hrt_dot_rows(const int kind, const int streams, const int count, const hrt_numbers *N, size_t at,
                             int columns, const real *const *x, int column, real *const *t, int place,
                             const real *scale) {
    hrt_v a[HRT_MOST];
    HRT_UNROLL for (int j = 0; j < streams * count; j++) a[j] = hrt_splat(0);
    for (int k = 0; k < columns; k += HRT_LANES) {
        hrt_v v[8];
        HRT_UNROLL for (int s = 0; s < streams; s++) v[s] = hrt_load(x[s] + column + k);
        HRT_UNROLL for (int j = 0; j < count; j++) {
            hrt_v d = hrt_decode(kind, N, at + (size_t)(j * columns + k));
            HRT_UNROLL for (int s = 0; s < streams; s++) a[s * count + j] = hrt_fma(d, v[s], a[s * count + j]);
        }
    }
    HRT_UNROLL for (int s = 0; s < streams; s++) {
        real *o = t[s] + place;
        const hrt_v *b = a + s * count;
        HRT_UNROLL for (int j = 0; j + 4 <= count; j += 4)
            hrt_sums4(o + j, b[j], b[j + 1], b[j + 2], b[j + 3], 4, scale ? scale + j : 0);
        const int done = count / 4 * 4;
        if (count % 4 == 1) o[done] = scale ? hrt_sum(b[done]) * scale[done] : hrt_sum(b[done]);
        if (count % 4 >= 2) {
            const hrt_v last = count % 4 == 3 ? b[done + 2] : hrt_splat(0);
            hrt_sums4(o + done, b[done], b[done + 1], last, hrt_splat(0), count % 4, scale ? scale + done : 0);
        }
    }
}

/* Any number of rows, eight at a time or as many as the registers hold. */
HRT_INLINE void hrt_dots_of(const int kind, const int streams, const hrt_numbers *N, size_t at, int columns, int count,
                            const real *const *x, int column, real *const *t, int place, const real *scale) {
    const int most = streams * 8 <= HRT_SUMS ? 8 : streams * 4 <= HRT_SUMS ? 4 : 2;
#define HRT_ROWS(r) hrt_dot_rows(kind, streams, r, N, at, columns, x, column, t, place, scale)
    for (; count >= most; count -= most, place += most, at += (size_t)(most * columns), scale = scale ? scale + most : 0)
        HRT_ROWS(most);
    switch (count) {
    case 1: HRT_ROWS(1); break;
    case 2: if (most > 2) HRT_ROWS(2); break;
    case 3: if (most > 2) HRT_ROWS(3); break;
    case 4: if (most > 4) HRT_ROWS(4); break;
    case 5: if (most > 4) HRT_ROWS(5); break;
    case 6: if (most > 4) HRT_ROWS(6); break;
    case 7: if (most > 4) HRT_ROWS(7); break;
    }
#undef HRT_ROWS
}

/* The same of which nothing is known beforehand: for layers of many blocks. */
HRT_INLINE void hrt_many_dots(const int streams, const hrt_numbers *N, const hrt_layer *layer, const real *const *x,
                              real *const *t) {
    for (uint32_t b = 0; b < layer->dots_count; b++) {
        const hrt_dots *d = layer->dots + b;
        const int columns = (int)HRT_UP16(d->columns);
        int place = (int)d->place;
#define HRT_KIND(kind, scale)                                                                                          \
        if (d->count[kind]) {                                                                                          \
            hrt_dots_of(kind, streams, N, d->at[kind], columns, (int)d->count[kind], x, (int)d->column, t, place,      \
                        scale);                                                                                        \
            place += (int)d->count[kind];                                                                              \
        }
        HRT_EACH_KIND
#undef HRT_KIND
    }
}

/* acc[s][j] += sum over k of x[s][index[k]] W[j, k]: a step of outputs of a strip whose columns are tall apart. */
HRT_INLINE void hrt_columns(const int kind, const int streams, const int step, hrt_v *acc, const hrt_numbers *N,
                            size_t at, int tall, size_t index, int count, const real *const *x) {
    const int panels = step / (int)HRT_LANES, twice = streams * panels * 2 <= HRT_SUMS;
    const hrt_index *p = N->index + index;
    hrt_v b[HRT_MOST];
    int k = 0;
    if (twice) { /* two sums of each, for the latency of additions */
        HRT_UNROLL for (int j = 0; j < streams * panels; j++) b[j] = hrt_splat(0);
        for (; k + 1 < count; k += 2, at += (size_t)(2 * tall)) {
            HRT_UNROLL for (int j = 0; j < panels; j++) {
                const hrt_v d = hrt_decode(kind, N, at + (size_t)(j * (int)HRT_LANES));
                const hrt_v e = hrt_decode(kind, N, at + (size_t)(tall + j * (int)HRT_LANES));
                HRT_UNROLL for (int s = 0; s < streams; s++) {
                    acc[s * panels + j] = hrt_fma(d, hrt_splat(x[s][p[k]]), acc[s * panels + j]);
                    b[s * panels + j] = hrt_fma(e, hrt_splat(x[s][p[k + 1]]), b[s * panels + j]);
                }
            }
        }
        HRT_UNROLL for (int j = 0; j < streams * panels; j++) acc[j] += b[j];
    }
    for (; k < count; k++, at += (size_t)tall) {
        HRT_UNROLL for (int j = 0; j < panels; j++) {
            const hrt_v d = hrt_decode(kind, N, at + (size_t)(j * (int)HRT_LANES));
            HRT_UNROLL for (int s = 0; s < streams; s++)
                acc[s * panels + j] = hrt_fma(d, hrt_splat(x[s][p[k]]), acc[s * panels + j]);
        }
    }
}

/* The same for int8 numbers that are scaled row by row. */
HRT_INLINE void hrt_scaled_columns(const int streams, const int step, hrt_v *acc, const hrt_numbers *N,
                                   size_t at, int tall, size_t index, int count, const real *const *x,
                                   const real *scale) {
    const int panels = step / (int)HRT_LANES;
    hrt_v sums[HRT_MOST];
    HRT_UNROLL for (int j = 0; j < streams * panels; j++) sums[j] = hrt_splat(0);
    hrt_columns(HRT_I8, streams, step, sums, N, at, tall, index, count, x);
    HRT_UNROLL for (int j = 0; j < panels; j++)
        HRT_UNROLL for (int s = 0; s < streams; s++)
            acc[s * panels + j] = hrt_fma(hrt_load(scale + j * (int)HRT_LANES), sums[s * panels + j], acc[s * panels + j]);
}

/* Sums begin with the bias of a step of outputs, which the first so many streams have. */
HRT_INLINE void hrt_begin(const int streams, const int step, hrt_v *acc, const real *bias, const int biased) {
    const int panels = step / (int)HRT_LANES;
    HRT_UNROLL for (int s = 0; s < streams; s++)
        HRT_UNROLL for (int j = 0; j < panels; j++)
            acc[s * panels + j] = s < biased ? hrt_load(bias + j * (int)HRT_LANES) : hrt_splat(0);
}
/* The first rows of a step of outputs of every stream. */
HRT_INLINE void hrt_end(const int streams, const int step, const hrt_v *acc, real *const *y, int row, const int rows) {
    const int panels = step / (int)HRT_LANES;
    HRT_UNROLL for (int s = 0; s < streams; s++)
        HRT_UNROLL for (int j = 0; j < panels; j++)
            hrt_store_part(y[s] + row + j * (int)HRT_LANES, acc[s * panels + j], rows - j * (int)HRT_LANES);
}

/* Strips of which nothing is known beforehand. */
HRT_INLINE void hrt_any_strip(const int streams, const int step, const hrt_numbers *N, const hrt_layer *layer,
                              const hrt_strip *strip, int c, const hrt_ports *ports) {
    const hrt_segment *s = layer->segments + strip->segment;
    const int tall = (int)HRT_UP16(strip->rows), rows = (int)strip->rows - c;
    hrt_v acc[HRT_MOST];
    hrt_begin(streams, step, acc, N->reals + layer->bias + strip->row + c, ports->biased);
    for (uint32_t k = 0; k < strip->over_x + strip->over_t; k++, s++) {
        const real *const *v = k < strip->over_x ? ports->x : (const real *const *)ports->t;
        if (s->scaled) {
            hrt_scaled_columns(streams, step, acc, N, s->at + (size_t)c, tall, s->index, (int)s->count, v,
                               N->reals + s->scale + c);
            continue;
        }
        switch (s->kind) {
#define HRT_KIND(kind, scale)                                                                                          \
        case kind: hrt_columns(kind, streams, step, acc, N, s->at + (size_t)c, tall, s->index, (int)s->count, v); break;
        HRT_EACH_KIND
#undef HRT_KIND
        }
    }
    hrt_end(streams, step, acc, ports->y, (int)strip->row + c, rows < step && !ports->spare ? rows : step);
}
HRT_INLINE void hrt_many_strips(const int streams, const hrt_numbers *N, const hrt_layer *layer,
                                const hrt_ports *ports) {
    for (uint32_t b = 0; b < layer->strips_count; b++) {
        const hrt_strip *strip = layer->strips + b;
        const int tall = (int)HRT_UP16(strip->rows);
        int c = 0;
        for (; c + HRT_STEP(64, streams) <= tall; c += HRT_STEP(64, streams))
            hrt_any_strip(streams, HRT_STEP(64, streams), N, layer, strip, c, ports);
        for (; c + HRT_STEP(32, streams) <= tall; c += HRT_STEP(32, streams))
            hrt_any_strip(streams, HRT_STEP(32, streams), N, layer, strip, c, ports);
        for (; c < tall; c += HRT_STEP(16, streams))
            hrt_any_strip(streams, HRT_STEP(16, streams), N, layer, strip, c, ports);
    }
}
/* One row of a layer of many blocks, for every stream. */
HRT_INLINE void hrt_many(const int streams, const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports) {
    hrt_many_dots(streams, N, layer, ports->x, ports->t);
    hrt_many_strips(streams, N, layer, ports);
}

/* Blocks --------------------------------------------------------------------------------------------------------- */

/* Repetition by macros, not by loops: sums are then variables, which every compiler keeps in registers. */
#define HRT_TIMES16(M)                                                                                                 \
    M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)

/* out[i] = b[i] + sum over k of w[i, k] x[index[k]], then the same over t: rows of L lanes, L being one vector, two or
   four. A null bias is 0. */
HRT_INLINE void hrt_tile(const int L, const int rows, const real *w, size_t row_step, size_t column_step,
                         const hrt_index *index, int over_x, const real *x, int over_t, const real *t, real *out,
                         const real *bias) {
    const int wide = L / (int)HRT_LANES, lanes = (int)HRT_LANES;
    const hrt_v zero = hrt_splat(0);
#define HRT_SUM(i, j) hrt_v a##i##_##j = bias && i < rows && j < wide ? hrt_splat(bias[i]) : zero;
#define HRT_ROW(i) HRT_SUM(i, 0) HRT_SUM(i, 1) HRT_SUM(i, 2) HRT_SUM(i, 3)
    HRT_TIMES16(HRT_ROW)
#undef HRT_SUM
#undef HRT_ROW
#define HRT_SUM(i, j) if (j < wide) a##i##_##j = hrt_fma(s, v##j, a##i##_##j);
#define HRT_ROW(i)                                                                                                     \
    if (i < rows) {                                                                                                    \
        const hrt_v s = hrt_splat(w[i * row_step]);                                                                    \
        HRT_SUM(i, 0) HRT_SUM(i, 1) HRT_SUM(i, 2) HRT_SUM(i, 3)                                                        \
    }
#define HRT_COLUMN(from)                                                                                               \
    {                                                                                                                  \
        const real *p = (from) + (size_t)L * (index ? (size_t)index[k] : (size_t)k);                                   \
        const hrt_v v0 = hrt_load(p), v1 = wide > 1 ? hrt_load(p + lanes) : zero;                                      \
        const hrt_v v2 = wide > 2 ? hrt_load(p + 2 * lanes) : zero, v3 = wide > 3 ? hrt_load(p + 3 * lanes) : zero;    \
        HRT_TIMES16(HRT_ROW)                                                                                           \
        w += column_step;                                                                                              \
    }
    int k = 0;
    for (; k < over_x; k++) HRT_COLUMN(x)
    for (; k < over_x + over_t; k++) HRT_COLUMN(t)
#undef HRT_COLUMN
#undef HRT_SUM
#undef HRT_ROW
#define HRT_SUM(i, j) if (i < rows && j < wide) hrt_store(out + i * L + j * lanes, a##i##_##j);
#define HRT_ROW(i) HRT_SUM(i, 0) HRT_SUM(i, 1) HRT_SUM(i, 2) HRT_SUM(i, 3)
    HRT_TIMES16(HRT_ROW)
#undef HRT_SUM
#undef HRT_ROW
}

#if HRT_SUMS == 16 /* rows of a tile: so many sums fit the registers */
#define HRT_TILE(L) ((L) == (int)HRT_LANES ? 16 : 24 * (int)HRT_LANES / (L))
#else
#define HRT_TILE(L) ((L) == (int)HRT_LANES ? 8 : 12 * (int)HRT_LANES / (L))
#endif

/* Any number of rows, in tiles of nearly one height. */
HRT_INLINE void hrt_tiles(const int L, const int columns_first, int rows, const real *w, int ld, const hrt_index *index,
                          int over_x, const real *x, int over_t, const real *t, real *out, const real *bias,
                          void (*ending)(real *, size_t)) {
    const int most = HRT_TILE(L);
    int tiles = (rows + most - 1) / most;
    for (; tiles; tiles--) {
        const int r = (rows + tiles - 1) / tiles;
        switch (r) {
#define HRT_ROWS(n)                                                                                                    \
        case n: if (n <= most) hrt_tile(L, n, w, columns_first ? 1 : (size_t)ld, columns_first ? (size_t)ld : 1, index, over_x, x,     \
                                        over_t, t, out, bias); break;
        HRT_ROWS(1) HRT_ROWS(2) HRT_ROWS(3) HRT_ROWS(4) HRT_ROWS(5) HRT_ROWS(6) HRT_ROWS(7) HRT_ROWS(8)
#if HRT_SUMS == 16
        HRT_ROWS(9) HRT_ROWS(10) HRT_ROWS(11) HRT_ROWS(12) HRT_ROWS(13) HRT_ROWS(14) HRT_ROWS(15) HRT_ROWS(16)
#endif
#undef HRT_ROWS
        }
        if (ending) ending(out, (size_t)(r * L));
        rows -= r, w += columns_first ? r : r * ld, out += r * L, bias = bias ? bias + r : 0;
    }
}

HRT_INLINE real *hrt_decode_to(real *o, const int kind, const hrt_numbers *N, size_t at, size_t count) {
    for (size_t k = 0; k < count; k += HRT_LANES) hrt_store(o + k, hrt_decode(kind, N, at + k));
    return o + count;
}

/* Wave 1 of one block row of x: t (places x L). scratch: a block, decoded. */
HRT_INLINE void hrt_block_dots(const int L, const hrt_dots *d, const real *x, real *t, const real *scratch) {
    int rows = 0;
    for (int k = 0; k < HRT_KINDS; k++) rows += (int)d->count[k];
    hrt_tiles(L, 0, rows, scratch, (int)HRT_UP16(d->columns), 0, (int)d->columns, x + (size_t)L * d->column, 0, x,
              t + (size_t)L * d->place, 0, 0);
}
HRT_INLINE void hrt_decode_dots(const hrt_numbers *N, const hrt_dots *d, real *scratch) {
    const size_t columns = HRT_UP16(d->columns);
#define HRT_KIND(kind, scale) scratch = hrt_decode_to(scratch, kind, N, d->at[kind], d->count[kind] * columns);
    real *first = scratch;
    HRT_EACH_KIND
#undef HRT_KIND
    for (uint32_t r = 0; r < d->count[HRT_I8]; r++) /* the int8 rows are the first */
        for (size_t k = 0; k < columns; k++) first[r * columns + k] *= N->reals[d->scale + r];
}
HRT_INLINE void hrt_decode_strip(const hrt_numbers *N, const hrt_layer *layer, const hrt_strip *strip, real *scratch) {
    const size_t tall = HRT_UP16(strip->rows);
    const hrt_segment *s = layer->segments + strip->segment;
    for (uint32_t k = 0; k < strip->over_x + strip->over_t; k++, s++) {
        if (s->scaled) {
            for (uint32_t c = 0; c < s->count; c++)
                for (size_t i = 0; i < tall; i += HRT_LANES, scratch += HRT_LANES)
                    hrt_store(scratch, hrt_decode(HRT_I8, N, s->at + c * tall + i) * hrt_load(N->reals + s->scale + i));
            continue;
        }
        switch (s->kind) {
#define HRT_KIND(kind, scale) case kind: scratch = hrt_decode_to(scratch, kind, N, s->at, s->count * tall); break;
        HRT_EACH_KIND
#undef HRT_KIND
        }
    }
}
HRT_INLINE void hrt_block_strip(const int L, const hrt_numbers *N, const hrt_layer *layer, const hrt_strip *strip,
                                const hrt_ports *ports, int stream, const real *scratch) {
    const hrt_segment *s = layer->segments + strip->segment;
    int over_x = 0, over_t = 0;
    const size_t index = strip->over_x + strip->over_t ? s->index : 0;
    for (uint32_t k = 0; k < strip->over_x; k++, s++) over_x += (int)s->count;
    for (uint32_t k = 0; k < strip->over_t; k++, s++) over_t += (int)s->count;
    hrt_tiles(L, 1, (int)strip->rows, scratch, (int)HRT_UP16(strip->rows), N->index + index, over_x, ports->x[stream],
              over_t, ports->t[stream], ports->y[stream] + (size_t)L * strip->row,
              stream < ports->biased ? N->reals + layer->bias + strip->row : 0, ports->ending);
}

/* y = H x + b for streams of L samples: x (n, L), t (places, L), y (m, L). scratch: a block, decoded. */
HRT_INLINE void hrt_block(const int L, const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports,
                          real *scratch) {
    for (uint32_t b = 0; b < layer->dots_count; b++) {
        hrt_decode_dots(N, layer->dots + b, scratch);
        for (int s = 0; s < ports->streams; s++)
            hrt_block_dots(L, layer->dots + b, ports->x[s], ports->t[s], scratch);
    }
    for (uint32_t b = 0; b < layer->strips_count; b++) {
        hrt_decode_strip(N, layer, layer->strips + b, scratch);
        for (int s = 0; s < ports->streams; s++)
            hrt_block_strip(L, N, layer, layer->strips + b, ports, s, scratch);
    }
}
