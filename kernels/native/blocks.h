/* blocks.h: how many rows are computed together. It needs products.h. */
#define HRT_SMALL ((int)HRT_LANES > 1 ? (int)HRT_LANES : 2) /* rows of a small block */
#define HRT_BLOCK (HRT_WIDE * (int)HRT_LANES)                /* HRT_WIDE: 2, or 4 for networks of few numbers */
#define HRT_FEW 10 /* rows from which a block is faster than one row after the other */
enum { HRT_OK, HRT_NULL, HRT_MISALIGNED, HRT_TOO_MANY, HRT_DIFFERS, HRT_WITHOUT_NUMBERS };

HRT_APART void hrt_block_small(const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports, real *scratch) {
    hrt_block(HRT_SMALL, N, layer, ports, scratch);
}
HRT_APART void hrt_block_whole(const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports, real *scratch) {
    hrt_block(HRT_BLOCK, N, layer, ports, scratch);
}
HRT_INLINE void hrt_blocks(const int L, const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports,
                           real *scratch) {
    if (L == HRT_SMALL) hrt_block_small(N, layer, ports, scratch);
    else hrt_block_whole(N, layer, ports, scratch);
}
