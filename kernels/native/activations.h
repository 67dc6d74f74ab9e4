/* activations.h: elementwise functions on vectors. It needs vectors.h. */

/* tanh: a rational function of degrees 4 and 3 in u = x^2 on [-8, 8]. NaN stays. */
HRT_INLINE hrt_v hrt_tanh(hrt_v x) {
    const hrt_v limit = hrt_splat(HRT_R(8.0));
    x = hrt_select(hrt_less(limit, x), limit, hrt_select(hrt_less(x, -limit), -limit, x));
    const hrt_v u = x * x;
    return x * hrt_fma(hrt_fma(hrt_fma(hrt_fma(hrt_splat(HRT_R(-0x1.a61bb40000000p-28)), u, hrt_splat(HRT_R(0x1.e0ad760000000p-18))), u, hrt_splat(HRT_R(0x1.616d5c0000000p-9))), u, hrt_splat(HRT_R(0x1.0459460000000p-3))), u, hrt_splat(HRT_R(0x1.fffff80000000p-1))) /
           hrt_fma(hrt_fma(hrt_fma(hrt_splat(HRT_R(0x1.9c9c620000000p-13)), u, hrt_splat(HRT_R(0x1.76619a0000000p-6))), u, hrt_splat(HRT_R(0x1.d781840000000p-2))), u, hrt_splat(HRT_R(0x1.0000000000000p+0)));
}
