"""Streams: their terms are Faa di Bruno's, what is not closed is refused."""

from math import factorial, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad

from hrt.derivatives.differentiate import closure
from hrt.kernels.derivative_streams import VALUE, Streams


def chosen(indices):
    return Streams(((), *closure([tuple(sorted(i)) for i in indices])))


def partial_by(f, c):
    return lambda a: grad(f)(a)[c]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=2), st.integers(0, 999))
def test_terms_are_those_of_automatic_differentiation(indices, seed):
    """f = sin of z(a) = sum over the streams S of z_S a^S / (how often S names each coordinate)!, at a = 0."""
    streams = chosen(indices)
    z = torch.randn(len(streams.indices), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def path(a):
        powers = [prod((a[c] for c in s), start=torch.ones(())) for s in streams.indices]
        return sum(
            n * p / prod(factorial(s.count(c)) for c in set(s))
            for n, p, s in zip(z, powers, streams.indices, strict=True)
        )

    v = z[0]
    coefficients = [v.sin(), v.cos(), -v.sin() / 2, -v.cos() / 6]
    for k, index in enumerate(streams.indices[1:], 1):
        derivative = lambda a: torch.sin(path(a))  # noqa: E731
        for c in index:
            derivative = partial_by(derivative, c)
        expected = derivative(torch.zeros(3, dtype=torch.float64))
        found = coefficients[1] * z[k] + sum(
            n * coefficients[len(blocks)] * prod(z[b] for b in blocks) for n, blocks in streams.terms(k)
        )
        assert abs(float(found - expected)) <= 1e-12 * (1 + abs(float(expected)))


def test_written_as_kernels_take_them():
    assert VALUE.code == "" and VALUE.rows == 1
    assert chosen([(0,)]).code == ";"
    u = Streams(((), (0,), (1,), (0, 0)))
    assert u.code == ";;;2.1.1" and u.rows == 4 and u.terms(3) == ((2, (1, 1)),)
    assert chosen([(0, 0, 0)]).code == ";;2.1.1;6.1.1.1+6.1.2"
    assert chosen([(0,), (1, 2)]).rows == 8


@pytest.mark.parametrize(
    "indices",
    [
        (),
        ((0,),),
        ((), (0, 0)),
        ((), (0,), (0,)),
        ((), (1,), (0,), (1, 0)),
        ((), (0,), (0, 0), (0,) * 3, (0,) * 4),
        ((), *((k,) for k in range(16))),
    ],
)
def test_what_is_no_set_of_streams_is_refused(indices):
    with pytest.raises(ValueError, match="Expected"):
        Streams(indices)
