"""The one door for arrays: the same numbers from whatever holds them, a clear word for what holds none."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader, TensorDataset

import hrt
from hrt.errors import InputError
from hrt.support.arrays import as_array, as_parts, as_tensor, is_numbers

DTYPES = ("f2", "f4", "f8", "g", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
ROWS = np.random.default_rng(0).integers(-3, 4, (6, 3)).astype(float)


class Frame:
    """What a data frame of pandas offers, with missing numbers where its own types allow them."""

    def __init__(self, rows, columns=("x", "t"), dtype=object):
        self.rows, self.columns, self.dtype = rows, columns, dtype

    def to_numpy(self, dtype=None, na_value=None):
        values = [[na_value if v is None and dtype else v for v in row] for row in self.rows]
        return np.array(values, dtype=dtype or self.dtype)


@st.composite
def laid_out(draw):
    """An array of any type, byte order, strides and writability, and the numbers in it as they are."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES))).newbyteorder(draw(st.sampled_from("=<>")))
    shape = draw(st.tuples(st.integers(0, 5), st.integers(1, 4)))
    low = 0 if dtype.kind == "u" else -100
    x = draw(arrays(np.int64, shape, elements=st.integers(low, 100))).astype(dtype)
    steps = draw(st.tuples(*[st.sampled_from((1, 2, -1, -2))] * 2))
    room = np.zeros([abs(s) * n for s, n in zip(steps, shape, strict=True)], dtype, order=draw(st.sampled_from("CF")))
    view = room[:: steps[0], :: steps[1]]
    view[...] = x
    view.flags.writeable = draw(st.booleans())
    return view, x.astype(np.float64)


@given(laid_out())
def test_any_type_byte_order_and_strides_are_the_same_numbers(case):
    view, numbers = case
    before = view.copy()
    t = as_tensor(view, "input")
    assert tuple(t.shape) == numbers.shape and np.array_equal(t.double().numpy(), numbers)
    becomes_float = view.dtype.kind == "f" or (view.dtype.kind, view.dtype.itemsize) == ("u", 8)
    assert np.array_equal(view, before) and t.is_floating_point() == becomes_float


@pytest.mark.filterwarnings("error")
def test_nothing_is_copied_that_torch_can_read():
    x = np.zeros((4, 2), np.float32)
    x.flags.writeable = False
    assert as_tensor(x, "input").data_ptr() == x.ctypes.data and as_array(x, "input") is x


@pytest.mark.parametrize(
    "same",
    [
        ROWS.tolist(),
        [tuple(row) for row in ROWS.tolist()],
        [*ROWS],
        np.ma.masked_greater(ROWS, 100),
        memoryview(ROWS),
        Frame(ROWS.tolist()),
        torch.tensor(ROWS, requires_grad=True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_whatever_holds_the_numbers(same):
    t = as_tensor(same, "input")
    assert torch.equal(t, torch.tensor(ROWS)) and not t.requires_grad


def test_numbers_missing_in_a_frame_are_nan():
    assert np.array_equal(as_array(Frame([[1, None]]), "input"), [[1.0, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (np.ma.masked_less(np.arange(6).reshape(3, 2), 2), r"masked input, entry \[0, 0\] and 1 more"),
        (scipy.sparse.eye(4), "toarray"),
        (torch.eye(4).to_sparse(), "to_dense"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "nested"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, dtype=torch.bool), "bool"),
        (np.ones(2, complex), "complex128"),
        (np.ones(2, bool), "bool"),
        ("x.npy", "str"),
        (None, "NoneType"),
        ({"x": 1}, "dict"),
        ([[1.0], [1.0, 2.0]], "no array"),
        (Frame([[1.0, "a"]]), "columns x, t"),
        (Frame([["1.0", "2.0"]], dtype="U3"), "columns x, t"),
        (Frame([[1.0, True]]), "columns x, t"),
        (Frame([["2020-01-01", "2020-01-02"]], dtype="M8[ns]"), "columns x, t"),
    ],
)
def test_what_holds_no_real_numbers_is_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        as_tensor(wrong, "input")


X = np.zeros((3, 2))


@pytest.mark.parametrize(
    "given, count",
    [
        (X, 1),
        ((X,), 1),
        ([X, X], 2),
        ((X.tolist(), X.tolist()), 2),
        ([torch.zeros(3), X], 2),
        ([1.0, 2.0], 1),
        ((1, 2), 1),
        ([[1.0, 2.0], [3.0, 4.0]], 1),
        ([np.float32(1), 2], 1),
        ((), 0),
    ],
)
def test_arrays_in_a_list_are_several_inputs_and_numbers_are_one(given, count):
    assert len(as_parts(given)) == count
    assert is_numbers(given) == (
        count == 1 and isinstance(given, (list, tuple)) and not isinstance(given[0], np.ndarray)
    )


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.uint64])
@pytest.mark.parametrize("make", [np.asarray, lambda v: torch.from_numpy(v.astype(np.int64)), list])
def test_whole_numbers_that_float32_leaves_out_are_refused(kind, make):
    largest = np.array([[0, 1 << 24]], kind)
    assert np.asarray(as_array(make(largest), "input")).astype(np.float32)[0, 1] == 1 << 24
    with pytest.raises(InputError, match=r"size 16,777,217\. Expected at most 16,777,216.*offset"):
        as_array(make(largest + kind(1)), "input")
    assert as_array(np.zeros((0, 3), kind), "input").shape == (0, 3)


@pytest.mark.parametrize("make", [torch.ones, np.ones])
def test_a_list_of_rows_is_one_input_where_there_are_more_than_numbers_in_each(make):
    rows = [make(3) for _ in range(4)]
    (x,) = as_parts(rows)
    assert x.shape == (4, 3) and len(as_parts(rows[:3])) == 3 and len(as_parts(tuple(rows))) == 4


def test_rows_in_a_list_and_data_sets_are_told_what_to_do():
    net = torch.nn.Linear(3, 2)
    model = hrt.compress(net, progress=False)
    x = torch.rand(5, 3)
    assert torch.equal(model.predict(list(x)), model.predict(x))
    with pytest.raises(InputError, match=r"torch\.stack\(rows\)"):
        model.predict(list(x[:2]))
    with pytest.raises(InputError, match=r"torch\.stack\(rows\)"):
        hrt.compress(net, inputs=list(x[:2]), progress=False)
    for data in (TensorDataset(x), DataLoader(TensorDataset(x))):
        with pytest.raises(InputError, match="call once for every batch"):
            model.predict(data)
