"""What a caller hands in as calibration inputs: boxes of any width, arrays, and data sets of torch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import hrt
from hrt.calibration.datasets import STREAMED
from hrt.calibration.samples import BOX_NUMBERS, as_samples, distinct, sample_boxes
from hrt.tangent_kernel.ntk import as_points

X = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Samples(Dataset):
    """A map from numbers to samples, each made of a row of X."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        return self.make(X[k])


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def endless():
    while True:
        yield np.zeros(1, "f4")


class TestDataSets:
    @pytest.mark.parametrize(
        "data",
        [
            TensorDataset(X),
            TensorDataset(X, torch.zeros(40)),
            Samples(lambda x: x),
            Samples(lambda x: (x, 0.0)),
            Samples(lambda x: [x, "label"]),
            Samples(lambda x: x.tolist()),
            Samples(lambda x: x.numpy()[::-1].astype(">f8")[::-1]),
            Samples(lambda x: {"x": x, "y": 1}),
            Samples(lambda x: {"inputs": x, "targets": 1}),
            Samples(lambda x: {"points": x}),
            Stream(X),
            Stream([{"x": x} for x in X]),
            DataLoader(TensorDataset(X, torch.zeros(40)), batch_size=16),
            DataLoader(Samples(lambda x: {"x": x, "y": 1}), batch_size=7),
            DataLoader(Stream(X), batch_size=None),
            DataLoader(Stream(X), batch_size=9),
        ],
    )
    def test_give_their_inputs(self, data):
        (rows,) = as_samples(data)
        assert torch.equal(rows, X)

    def test_pairs_of_several_inputs_give_them_all(self):
        a, b = as_samples(Samples(lambda x: ((x, x[:1]), 0.0)))
        assert torch.equal(a, X) and torch.equal(b, X[:, :1])

    def test_what_shuffles_and_draws_gives_the_same_rows_and_leaves_the_callers_generator(self):
        for data in (DataLoader(TensorDataset(X), shuffle=True), Samples(lambda x: x + torch.rand(3))):
            torch.manual_seed(5)
            before = torch.get_rng_state()
            first = as_samples(data, 1)[0]
            assert torch.equal(torch.get_rng_state(), before)
            torch.rand(3)
            assert torch.equal(as_samples(data, 1)[0], first) and not torch.equal(as_samples(data, 2)[0], first)

    def test_a_stream_may_have_no_end(self):
        assert as_samples(Stream(endless()))[0].shape == (STREAMED, 1)
        assert len(as_samples(DataLoader(Stream(endless()), batch_size=1000))[0]) >= STREAMED

    @pytest.mark.parametrize(
        "data, words",
        [
            (Samples(lambda x: {"a": x, "b": x}), "'a', 'b'"),
            (Samples(lambda x: x[: 1 + int(x[0] > 0.5)]), "Expected one shape"),
            (Samples(lambda x: (x,) if x[0] > 0.5 else ((x, x), 1)), "Expected one shape"),
            (Samples(lambda x: "row"), "sample of <U3"),
            (Dataset(), "without a length"),
            (Stream([]), "no rows"),
        ],
    )
    def test_that_are_no_rows_are_refused(self, data, words):
        with pytest.raises(hrt.InputError, match=words):
            as_samples(data)


class TestArrays:
    @pytest.mark.parametrize(
        "same",
        [
            X.numpy().astype(">f8"),
            X.numpy()[::-1].copy()[::-1],
            X.numpy().astype(np.longdouble),
            np.asfortranarray(X.numpy()),
            np.ma.masked_less(X.numpy(), -1),
            X.clone().requires_grad_(),
        ],
        ids=["big-endian", "negative strides", "long double", "Fortran order", "masked nowhere", "with a gradient"],
    )
    def test_every_layout_is_the_same_rows(self, same):
        assert torch.equal(as_samples(same)[0], X)
        assert torch.equal(as_points(same, torch.float64)[0], X)
        for given in ([same, same], (same, same)):  # lists of arrays, as DeepXDE has them
            assert len(as_samples(given)) == 2

    def test_times_become_one_feature(self):
        for times in (X[:, 0], X[:, 0].numpy(), X[:, 0].tolist()):
            assert torch.equal(as_samples(times)[0], X[:, :1])

    def test_whole_numbers_become_floats(self):
        assert torch.equal(as_samples([[1, 2], [3, 4]])[0], torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))

    def test_a_number_that_is_none_is_named(self):
        x = X.clone()
        x[7, 2], x[9, 0] = torch.nan, torch.inf
        with pytest.raises(hrt.InputError, match=r"2 numbers in .*input 1 that are NaN.*\(nan\) in row 7, column 2"):
            as_samples((X, x))

    def test_hidden_numbers_are_not_used(self):
        with pytest.raises(hrt.InputError, match="masked"):
            as_samples(np.ma.masked_less(X.numpy(), 0.5))


class TestWideBoxes:
    def test_beyond_the_last_sobol_sequence_every_feature_is_spread_evenly(self, monkeypatch):
        whole = sample_boxes([hrt.Box([-1.0] * 6, [3.0] * 6)], 64, seed=3)[0]
        monkeypatch.setattr(torch.quasirandom.SobolEngine, "MAXDIM", 6)
        box = hrt.Box([-1.0] * 15, [3.0] * 15)
        (x,) = sample_boxes([box], 64, seed=3)
        assert torch.equal(x[:, :6], whole) and torch.equal(x, sample_boxes([box], 64, seed=3)[0])
        assert not torch.equal(x[:, 6:], sample_boxes([box], 64, seed=4)[0][:, 6:])
        strata = ((x + 1) / 4 * 64).floor().sort(dim=0).values
        assert torch.equal(strata, torch.arange(64.0, dtype=torch.float64)[:, None].expand(64, 15))
        assert len({tuple(column) for column in x.T.tolist()}) == 15

    def test_torch_ends_where_it_is_said_to(self):
        (x,) = sample_boxes([hrt.Box([0.0] * 21205, [1.0] * 21205)], 4, seed=0)
        assert x.shape == (4, 21205) and torch.quasirandom.SobolEngine.MAXDIM == 21201

    def test_memory_is_bounded(self, monkeypatch):
        drawn = []
        engine = SimpleNamespace(
            draw=lambda count, dtype: drawn.append(count) or torch.zeros(count, 20000, dtype=dtype)
        )
        monkeypatch.setattr("torch.quasirandom.SobolEngine", Engine := lambda *a, **k: engine)
        Engine.MAXDIM = 21201
        sample_boxes([hrt.Box([0] * 20000, [1] * 20000)], 16384, 0)
        assert drawn == [2048] and BOX_NUMBERS >= 2048 * 20000


def test_values_that_inputs_often_have_stay_and_copied_rows_go():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(60, 2, generator=g).double()
    dry = torch.cat([x, torch.zeros(40, 2, dtype=torch.float64)])[torch.randperm(100, generator=g)]
    assert torch.equal(distinct((dry,))[0], dry), "an atom of the distribution"
    assert len(distinct((x.repeat(3, 1),))[0]) == 60 and len(distinct((torch.cat([x, x[:20]]),))[0]) == 60, "copies"
    assert len(distinct((dry.repeat(2, 1),))[0]) == 60 + 80, "copies go, the atom keeps the weight that copying gave it"
