"""The epilogues in Triton. Small arguments keep their relative accuracy: a PINN's first layers live there."""

# pyright: reportArgumentType=false
import triton
import triton.language as tl


@triton.jit
def tanh(v):
    """tanh, to a few units in the last place: near 0 the odd polynomial of Cephes (Moshier, tanhf), else by sigmoid."""
    z = v * v
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    return tl.where(tl.abs(v) < 0.625, v + v * z * p, 2.0 * tl.sigmoid(2.0 * v) - 1.0)


@triton.jit
def _expm1(v):
    """exp(v) - 1 for v <= 0: the Taylor polynomial of degree 8 near 0, where the difference would cancel."""
    p = v / 8.0 + 1.0
    p = p * (v / 7.0) + 1.0
    p = p * (v / 6.0) + 1.0
    p = p * (v / 5.0) + 1.0
    p = p * (v / 4.0) + 1.0
    p = p * (v / 3.0) + 1.0
    p = p * (v / 2.0) + 1.0
    return tl.where(tl.abs(v) < 0.5, v * p, tl.exp(v) - 1.0)


@triton.jit
def _log1p(u):
    """log(1 + u) for 0 <= u <= 1; what 1 + u loses is divided out (Kahan; Goldberg, Computing Surveys 23, 1991)."""
    w = 1.0 + u
    d = w - 1.0
    return tl.where(d == 0.0, u, tl.log(w) * (u / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def activate(v, NAME: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The epilogue NAME of a block of float32 numbers. NaN stays NaN."""
    if NAME == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif NAME == "sigmoid":
        v = tl.sigmoid(v)
    elif NAME == "silu":
        v = v * tl.sigmoid(v)
    elif NAME == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif NAME == "tanh":
        v = tanh(v)
    elif NAME == "sin":
        v = tl.sin(v)
    elif NAME == "cos":
        v = tl.cos(v)
    elif NAME == "exp":
        v = tl.exp(v)
    elif NAME == "neg":
        v = -v
    elif NAME == "abs":
        v = tl.abs(v)
    elif NAME == "erf":
        v = tl.erf(v)
    elif NAME == "log":
        v = tl.log(v)
    elif NAME == "sqrt":
        v = tl.sqrt(v)
    elif NAME == "reciprocal":
        v = 1.0 / v
    elif NAME == "mish":
        v = v * tanh(tl.maximum(v, 0.0) + _log1p(tl.exp(-tl.abs(v))))
    elif NAME == "leaky_relu":
        v = tl.where(v < 0, v * FIRST, v)
    elif NAME == "elu":
        v = tl.where(v < 0, FIRST * _expm1(v), v)
    elif NAME == "softplus":
        scaled = FIRST * v
        v = (tl.maximum(scaled, 0.0) + _log1p(tl.exp(-tl.abs(scaled)))) / FIRST
    elif NAME == "clamp":
        v = tl.where(v < FIRST, FIRST, tl.where(v > SECOND, SECOND, v))
    return v
