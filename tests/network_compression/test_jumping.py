"""Networks whose values jump are held to the tolerance on fresh rows, too: rare crossings of a jump count."""

import pytest
from jumping_networks import KINDS, error_over_tol

SLOW_SEEDS = range(30)
EXCEEDED = 2  # of 30 limits of 99 %, with a confidence of 99.6 % (binomial)


@pytest.mark.parametrize(("kind", "seed"), [("one_hot", 11), ("route", 16)])
def test_few_rows_do_not_hide_a_jump(kind: str, seed: int) -> None:
    """Of 1000 and 50 held-out rows none crosses, and fresh ones were off by 2.5 and 3.1 times the tolerance."""
    error, model = error_over_tol(kind, seed)
    assert error <= 1
    (remark,) = [r for r in model.certificate.context["remarks"] if "it may jump, in" in r]
    assert "The limit counts such rows" in remark


@pytest.mark.slow
def test_random_networks_of_every_kind_hold() -> None:
    """21 of these 30 exceeded the tolerance, by up to 7 times."""
    kinds = list(KINDS)
    assert sum(error_over_tol(kinds[k % len(kinds)], k)[0] > 1 for k in SLOW_SEEDS) <= EXCEEDED
