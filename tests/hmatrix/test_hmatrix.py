"""HMatrix: leaves that tile the matrix, nothing else gets in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt import HMatrix, InputError, Leaf
from hrt.hmatrix.hmatrix import check_cover


def dense(row, rows, col, cols):
    return Leaf(row, rows, col, cols, dense=torch.ones(rows, cols))


def test_to_dense_apply_and_bytes_by_hand():
    u, vt = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0, 5.0]])
    h = HMatrix((2, 4), (Leaf(0, 2, 1, 3, u=u, vt=vt), dense(0, 2, 0, 1)), row_order=[1, 0], col_order=[3, 0, 1, 2])
    # positions: row 0 is original row 1; column 0 is original column 3
    expected = torch.tensor([[6.0, 8.0, 10.0, 1.0], [3.0, 4.0, 5.0, 1.0]], dtype=torch.float64)
    assert torch.equal(h.to_dense(), expected)
    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    assert torch.equal(h.apply(x), x @ expected.T)
    numbers, table, storage, orders = 4 * (5 + 2), 2 * 5 * 2, 2, 2 * (2 + 4)
    assert h.nbytes == numbers + table + storage + orders


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_cover_check_agrees_with_painting(m, n, data):
    """Random cuts are accepted; moving, dropping or repeating any block is caught exactly when painting shows it."""
    blocks = [(0, m, 0, n)]
    for _ in range(data.draw(st.integers(0, 12))):
        r, h, c, w = blocks.pop(data.draw(st.integers(0, len(blocks) - 1)))
        if data.draw(st.booleans()) and h > 1:
            k = data.draw(st.integers(1, h - 1))
            blocks += [(r, k, c, w), (r + k, h - k, c, w)]
        elif w > 1:
            k = data.draw(st.integers(1, w - 1))
            blocks += [(r, h, c, k), (r, h, c + k, w - k)]
        else:
            blocks.append((r, h, c, w))
    check_cover((m, n), blocks)
    index = data.draw(st.integers(0, len(blocks) - 1))
    r, h, c, w = blocks[index]
    changed = data.draw(
        st.sampled_from(
            [[], [(r + 1, h, c, w)], [(r, h, c + 1, w)], [(r, h, c, w)] * 2, [(r, h + 1, c, w)], [(r, h, c, w)]]
        )
    )
    trial = blocks[:index] + changed + blocks[index + 1 :]
    paint = torch.zeros(m + 2, n + 2, dtype=torch.int64)
    for a, p, b, q in trial:
        paint[a : a + p, b : b + q] += 1
    fine = bool((paint[:m, :n] == 1).all()) and int(paint.sum()) == m * n
    if fine:
        check_cover((m, n), trial)
    else:
        with pytest.raises(InputError):
            check_cover((m, n), trial)


@pytest.mark.parametrize("order", [[0, 0], [0], [0, 2], [1, -1]])
def test_orderings_that_are_no_permutation_are_refused(order):
    with pytest.raises(InputError, match="permutation"):
        HMatrix((2, 2), (dense(0, 2, 0, 2),), row_order=order)


def test_leaf_data_of_the_wrong_shape_is_refused():
    for kwargs in (
        {"dense": torch.ones(2, 2)},
        {"u": torch.ones(2, 1), "vt": torch.ones(2, 3)},
        {"u": torch.ones(2, 1)},
        {"dense": torch.ones(2, 3), "u": torch.ones(2, 1), "vt": torch.ones(1, 3)},
        {"u": torch.ones(2, 1), "vt": torch.ones(1, 3, dtype=torch.float16)},
    ):
        with pytest.raises(InputError):
            Leaf(0, 2, 0, 3, **kwargs)


def test_error_is_relative_and_honest_about_zero():
    h = HMatrix.from_dense(torch.eye(3))
    assert h.error(torch.eye(3)) == 0
    assert h.error(2 * torch.eye(3)) == pytest.approx(0.5)
    assert h.error(torch.zeros(3, 3)) == float("inf")
    c = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    assert h.error(torch.diag(torch.tensor([2.0, 7.0, 7.0])), c) == pytest.approx(0.5)


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(2, 4), torch.ones(2, 3, dtype=torch.int64)])
def test_apply_says_what_it_expects(x):
    with pytest.raises(InputError, match=r"\(batch, 3\)"):
        HMatrix.from_dense(torch.eye(3)).apply(x)


def test_apply_on_an_empty_batch():
    assert HMatrix.from_dense(torch.ones(4, 3)).apply(torch.ones(0, 3)).shape == (0, 4)
