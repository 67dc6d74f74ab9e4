"""What `hrt.compress` leaves as it was in the process that calls it: threads, random states, numpy's errors."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import hrt


def rows(count: int = 300) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))


def smaller(net) -> hrt.CompressedModel:
    return hrt.compress(net, inputs=rows(), tol=1e-2, progress=False)


@pytest.fixture
def onnx_file(tmp_path):
    hrt.export_onnx(smaller(network()), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_several_threads_may_compress_one_network_and_others():
    nets = [network(seed) for seed in range(3)]
    work = [nets[0], nets[0], *nets]
    with ThreadPoolExecutor(len(work)) as pool:
        models = list(pool.map(smaller, work))
    for net, model in zip(work, models, strict=True):
        assert net.training and torch.equal(model.predict(rows()), smaller(net).predict(rows()))


def test_an_onnx_file_is_read_without_the_callers_random_numbers(onnx_file):
    before = torch.get_rng_state()
    hrt.compress(onnx_file, inputs=rows(), progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_numpys_errors_may_be_exceptions(onnx_file):
    with np.errstate(all="raise"):
        hrt.to_trainable(hrt.compress(onnx_file, inputs=rows(), progress=False))
        assert np.geterr()["under"] == "raise"


def test_a_number_beyond_float32_is_refused_where_it_stands():
    wide = rows().double().numpy()
    wide[3, 1] = 1e300
    with pytest.raises(hrt.InputError, match=r"beyond float32.*1e\+300.*row 3, column 1"):
        hrt.compress(network(), inputs=wide, progress=False)


@pytest.mark.parametrize(
    ("options", "error"), [({"tol": True}, hrt.ToleranceError), ({"per_output": "no"}, hrt.InputError)]
)
def test_options_of_another_kind_are_refused(options, error):
    with pytest.raises(error, match="Found"):
        hrt.compress(network(), inputs=rows(), progress=False, **options)


def test_of_very_few_rows_no_limit_is_reported():
    report = hrt.compress(network(), inputs=rows(5), progress=False).report()
    assert "99 % confidence" not in report and "fewer than 8 held-out rows" in report


def test_a_negated_view_is_an_array():
    model = smaller(network())
    assert torch.equal(model.predict(torch._neg_view(-rows())), model.predict(rows()))
