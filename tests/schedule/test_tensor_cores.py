"""What `hrt.schedule.precision` and `tests/card.py` assume of products, against products formed to the bit.

The comparison is printed as a table (-s).
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.hmatrix.hmatrix import HMatrix
from hrt.schedule.precision import EMULATED, LOSS, emulate

from card import arithmetic_bound
from helpers import MIXED, random_hmatrix
from models import linear_program
from tensor_cores import CORES, Core, Sums, add_block, cut_to_float32, nearest_tf32


def one_block(c, products, kind="fp16", core=CORES["H100"]):
    """c plus products of two numbers each."""
    a, b = (np.array([pair[k] for pair in products], dtype=np.float64) for k in (0, 1))
    return float(add_block(np.array(c, dtype=np.float64), a, b, kind, core))


def test_products_are_exact_and_subnormal_numbers_count():
    a = 1 + 2.0**-10
    assert one_block(0, [(a, a)]) == a * a
    assert one_block(0, [(2.0**-24, 2.0**-24)]) == 2.0**-48
    assert one_block(2.0**-149, [(2.0**-24, 0)]) == 2.0**-149


def test_sums_are_cut_towards_zero():
    """Fasi et al., section 3.3: not to nearest, whatever the sign."""
    for sign in (1.0, -1.0):
        assert one_block(sign, [(sign * 1.5 * 2.0**-12, 2.0**-12)]) == sign
        assert one_block(sign, [(-sign * 2.0**-12, 2.0**-13)]) == sign * (1 - 2.0**-24)


@pytest.mark.parametrize(("extra", "count", "kept"), [(0, 2, False), (1, 2, True), (1, 4, False), (2, 4, True)])
def test_extra_bits_of_the_alignment(extra, count, kept):
    """Terms of a unit in the last place together, each below it: lost where the alignment has no bits for them."""
    core = Core(16, 8, extra)
    total = one_block(1.0, [(2.0**-12, 2.0**-11 / count)] * count, core=core)
    assert total == (1 + 2.0**-23 if kept else 1.0)


def test_cutting_and_rounding_of_single_numbers():
    v = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    cut = cut_to_float32(v)
    assert (np.abs(cut) <= np.abs(v)).all() and (cut == cut.astype(np.float32)).all()
    assert (np.abs(v - cut) < np.spacing(np.abs(cut).astype(np.float32))).all()
    assert nearest_tf32(np.array([1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12])).tolist() == [
        1 + 2.0**-10,
        -1 - 2.0**-10,
        1,
    ]


def operands(kind, columns, count=8):
    """x and w (count, columns): what makes sums long, large on their way, or hard to round."""
    g = torch.Generator().manual_seed(columns)
    a, b = (torch.rand(count, columns, generator=g) for _ in range(2))
    if kind == "random signs":
        return torch.randn(count, columns, generator=g), torch.randn(count, columns, generator=g)
    if kind == "one sign":
        return (1 + a) / 2, (1 + b) / 2
    if kind == "up, then down":
        return (1 + a) / 2, torch.where(torch.arange(columns) < columns // 2, 1 + b, -1 - b) / 2
    if kind == "one large, the others small":
        a = a / 1024
        a[:, 0] = b[:, 0] = 1
        return a, b
    halves = [1 + torch.randint(0, 128, (count, columns), generator=g) / 128 for _ in range(2)]
    return halves[0] + 2.0**-8 + 2.0**-11 + 2.0**-12, halves[1] + 2.0**-8 + 2.0**-11 + 2.0**-12


KINDS = ("random signs", "one sign", "up, then down", "one large, the others small", "halves of every type")
WIDTHS = [64, 512, 4096, pytest.param(16_384, marks=pytest.mark.slow)]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_card_errs_more_than_the_certificate_assumes(kind, columns):
    """The norm of the error, of the kernel's numbers on each card, is at most that of the worse of both ends."""
    x, w = operands(kind, columns)
    exact = x.double() @ w.double().T
    size = float((x.abs().double() @ w.abs().double().T).norm())
    for precision in (*EMULATED, "tf32x3"):
        if precision == "tf32x3":
            assumed = 2e-6 * size  # "about 1e-6 of the sum of absolute products"
        else:
            ends = [emulate(linear_program(w), [x], precision, loss)[0][0].double() for loss in (0.0, LOSS)]
            assumed = max(float((y - exact).norm()) for y in ends)
        answers = {card: Sums(core, precision).layer(x, HMatrix.from_dense(w)) for card, core in CORES.items()}
        errors = {card: float((y - exact).norm()) for card, y in answers.items()}
        row = "  ".join(f"{card} {error / size:.2e}" for card, error in errors.items())
        print(f"\n{kind:28} {columns:6} {precision:6} assumed {assumed / size:.2e}  {row}", end="")
        assert max(errors.values()) <= 1.02 * assumed


def small_leaves(seed, most):
    """A random H-matrix of every storage type without orderings, its products within float16's range."""
    m, n = (int(k) for k in np.random.default_rng(seed).integers(17, most, 2))
    h = random_hmatrix(seed, m, n, storages=MIXED, ordered=False)
    for leaf in h.leaves:
        if leaf.scale is not None:
            leaf.scale.mul_(0.02)
    return h


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.sampled_from(EMULATED), st.sampled_from(tuple(CORES)), st.sampled_from(KINDS))
def test_hierarchical_layers_err_no_more_than_the_certificate_assumes(seed, precision, card, kind):
    h = small_leaves(seed, 150)
    x = operands(kind, h.shape[1], 8)[0]
    exact = x.double() @ h.to_dense().T
    ends = [emulate(linear_program(h), [x], precision, loss)[0][0].double() for loss in (0.0, LOSS)]
    error = float((Sums(CORES[card], precision).layer(x, h) - exact).norm())
    assert error <= 1.02 * max(float((y - exact).norm()) for y in ends)


def check_bound(x, h, precision, core):
    bias = torch.zeros(h.shape[0], dtype=torch.float64)
    expected = x.double() @ h.to_dense().T
    error = (Sums(core, precision).layer(x, h) - expected).abs()
    ratio = error / arithmetic_bound(x, h, bias, precision)
    assert bool((ratio <= 1).all()), float(ratio.max())


@settings(max_examples=60)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("bf16", "fp16", "tf32", "tf32x3")),
    st.sampled_from(tuple(CORES)),
    st.integers(-20, 6),
    st.sampled_from(KINDS),
)
def test_the_bound_of_the_card_s_tests_holds(seed, precision, card, exponent, kind):
    """For random H-matrices of every storage type and inputs that are hard to sum, large or hardly numbers at all."""
    h = small_leaves(seed, 90)
    x = operands(kind, h.shape[1], 4)[0] * 2.0**exponent
    check_bound(x, h, precision, CORES[card])


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "tf32x3"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_the_card_s_tests_holds_for_long_sums(kind, precision):
    x, w = operands(kind, 2048, 4)
    for core in CORES.values():
        check_bound(x, HMatrix.from_dense(w), precision, core)


def test_that_a_certificate_without_losses_would_be_too_good():
    """Long sums of one sign: what was assumed before is exceeded, so that the loss is needed."""
    x, w = operands("one sign", 4096)
    exact = x.double() @ w.double().T
    (y,), _ = emulate(linear_program(w), [x], "tf32")
    error = float((Sums(CORES["A100"], "tf32").layer(x, HMatrix.from_dense(w)) - exact).norm())
    assert error > 1.05 * float((y.double() - exact).norm())
