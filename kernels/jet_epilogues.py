"""The epilogues of a block that carries derivatives beside the value, in registers: jets by Faa di Bruno's formula.

A block (BLOCK, ROWS) holds the streams of BLOCK / rows points (JET: see `hrt.kernels.derivative_streams`). A stream is
picked by a sum over the streams' axis in which the others are zero: exact. Formulas are those of
`hrt.program.taylor_table`, arranged so that tails and small arguments keep their relative accuracy.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportReturnType=false
import triton
import triton.language as tl

from hrt.kernels.epilogues import activate, tanh


@triton.constexpr_function
def rows_of(jet):
    """Rows of a point."""
    return 1 << jet.count(";").bit_length()


@triton.constexpr_function
def streams_of(jet):
    """Streams of a point."""
    return jet.count(";") + 1


@triton.constexpr_function
def terms_of(jet, stream):
    """Terms of a stream."""
    text = jet.split(";")[stream]
    return len(text.split("+")) if text else 0


@triton.constexpr_function
def number_of(jet, stream, term, place):
    """The number in front of a term (place 0) and the streams of its factors (1, 2, 3); 0 where there is none."""
    numbers = jet.split(";")[stream].split("+")[term].split(".")
    return int(numbers[place]) if place < len(numbers) else 0


@triton.jit
def by_row(numbers, JET: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers (ROWS,) that are added to every value; a derivative of what is constant is zero."""
    if JET == "":
        spread = numbers[None, :]
    else:
        is_value = tl.arange(0, BLOCK) % rows_of(JET) == 0
        spread = tl.where(is_value[:, None], numbers[None, :], 0.0)
    return spread


@triton.jit
def activate_jet(total, JET: tl.constexpr, NAME: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The epilogue NAME of a block (BLOCK, ROWS) float32 of streams. NaN stays in its own point."""
    BLOCK: tl.constexpr = total.shape[0]
    ROWS: tl.constexpr = total.shape[1]
    POINT: tl.constexpr = rows_of(JET)
    z = tl.reshape(total, (BLOCK // POINT, POINT, ROWS))
    stream = tl.arange(0, POINT)[None, :, None]
    value, first, second, third = series(_picked(z, stream, 0), NAME, FIRST, SECOND)
    out = tl.where(stream == 0, value[:, None, :], first[:, None, :] * z)
    for s in tl.static_range(1, streams_of(JET)):
        for t in tl.static_range(0, terms_of(JET, s)):
            term = _picked(z, stream, number_of(JET, s, t, 1)) * _picked(z, stream, number_of(JET, s, t, 2))
            if number_of(JET, s, t, 3) == 0:
                term = term * second
            else:
                term = term * _picked(z, stream, number_of(JET, s, t, 3)) * third
            term = term * number_of(JET, s, t, 0)
            out += tl.where(stream == s, term[:, None, :], 0.0)
    return tl.reshape(out, (BLOCK, ROWS))


@triton.jit
def _picked(z, stream, NUMBER: tl.constexpr):
    """One stream (points, ROWS) of z (points, streams, ROWS)."""
    return tl.sum(tl.where(stream == NUMBER, z, 0.0), axis=1)


@triton.jit
def series(v, NAME: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """f(v), f'(v), f''(v) / 2 and f'''(v) / 6 of the epilogue NAME, at a kink as `hrt.program.taylor_table` has it."""
    value = activate(v, NAME, FIRST, SECOND)
    second, third = tl.zeros_like(v), tl.zeros_like(v)
    if NAME == "relu":
        first = _step(v, 0.0, 1.0)
    elif NAME == "leaky_relu":
        first = _step(v, FIRST, 1.0)
    elif NAME == "abs":
        first = tl.where(v == 0.0, 0.0, _step(v, -1.0, 1.0))
    elif NAME == "clamp":
        first = tl.where((v < FIRST) | (v > SECOND), 0.0, _step(v, 1.0, 1.0))
    elif NAME == "neg":
        first = tl.zeros_like(v) - 1.0
    elif NAME == "elu":
        left = FIRST * tl.exp(tl.minimum(v, 0.0))
        first = _step(v, left, 1.0)
        second, third = _step(v, left / 2.0, 0.0), _step(v, left / 6.0, 0.0)
    elif NAME == "tanh":
        first, second, third = _tanh_series(v, value)
    elif NAME == "sigmoid":
        first, second, third = _sigmoid_series(v)
    elif NAME == "silu":
        first, second, third = _sigmoid_series(v)
        first, second, third = _times_argument(v, tl.sigmoid(v), first, second, third)
    elif NAME == "gelu":
        first = 0.3989422804014327 * tl.exp(-0.5 * v * v)
        second, third = first * (-0.5 * v), first * ((v * v - 1.0) / 6.0)
        first, second, third = _times_argument(v, 0.5 + 0.5 * tl.erf(v * 0.7071067811865476), first, second, third)
    elif NAME == "gelu_tanh":
        inner = 1.5957691216057308 * (v + 0.044715 * v * v * v)
        first, second, third = _sigmoid_series(inner)
        cubic = 1.5957691216057308 * 0.044715
        slope = 1.5957691216057308 + 3.0 * cubic * v * v
        first, second, third = _composed(first, second, third, slope, 3.0 * cubic * v, cubic)
        first, second, third = _times_argument(v, tl.sigmoid(inner), first, second, third)
    elif NAME == "mish":
        inner = activate(v, "softplus", 1.0, 0.0)
        outer = tanh(inner)
        first, second, third = _tanh_series(inner, outer)
        slope, bend, _ = _sigmoid_series(v)
        first, second, third = _composed(first, second, third, tl.sigmoid(v), slope / 2.0, bend / 3.0)
        first, second, third = _times_argument(v, outer, first, second, third)
    elif NAME == "softplus":
        first = tl.sigmoid(FIRST * v)
        slope, bend, _ = _sigmoid_series(FIRST * v)
        second, third = slope * (FIRST / 2.0), bend * (FIRST * FIRST / 3.0)
    elif NAME == "sin":
        first = tl.cos(v)
        second, third = -0.5 * value, first / -6.0
    elif NAME == "cos":
        first = -tl.sin(v)
        second, third = -0.5 * value, first / -6.0
    elif NAME == "exp":
        first, second, third = value, value / 2.0, value / 6.0
    elif NAME == "erf":
        first = 1.1283791670955126 * tl.exp(-v * v)
        second, third = -v * first, first * ((2.0 * v * v - 1.0) / 3.0)
    elif NAME == "log":
        first = 1.0 / v
        second, third = -0.5 * first * first, first * first * first / 3.0
    elif NAME == "sqrt":
        inverse = 1.0 / value
        first = 0.5 * inverse
        second = -0.25 * first * inverse * inverse
        third = -0.5 * second * inverse * inverse
    elif NAME == "reciprocal":
        first = -value * value
        second, third = -first * value, first * value * value
    else:
        first = tl.zeros_like(v) + 1.0
    return value, first, second, third


@triton.jit
def _step(v, low, high):
    """low up to 0, high beyond; NaN for NaN."""
    return tl.where(v > 0.0, high, tl.where(v == v, low, v))


@triton.jit
def _sigmoid_series(v):
    """The Taylor coefficients of sigmoid, none of them a difference of near numbers: sigmoid' = e / (1 + e)^2 with
    e = exp(-|v|), and 1 - 2 sigmoid = -tanh(v / 2).
    """
    e = tl.exp(-tl.abs(v))
    r = 1.0 / (1.0 + e)
    slope = e * r * r
    return slope, -0.5 * slope * tanh(0.5 * v), slope * (0.16666666666666666 - slope)


@triton.jit
def _tanh_series(v, y):
    """The Taylor coefficients of tanh at v, where y = tanh(v): tanh' = 4 e / (1 + e)^2 with e = exp(-2 |v|)."""
    e = tl.exp(-2.0 * tl.abs(v))
    r = 1.0 / (1.0 + e)
    slope = 4.0 * e * r * r
    return slope, -y * slope, slope * (y * y - 0.3333333333333333)


@triton.jit
def _times_argument(v, value, first, second, third):
    """The Taylor coefficients of v u(v): (v u)_k = v u_k + u_(k-1)."""
    return value + v * first, first + v * second, second + v * third


@triton.jit
def _composed(f1, f2, f3, g1, g2, g3):
    """The Taylor coefficients of f(g)."""
    return f1 * g1, f1 * g2 + f2 * g1 * g1, f1 * g3 + 2.0 * f2 * g1 * g2 + f3 * g1 * g1 * g1
