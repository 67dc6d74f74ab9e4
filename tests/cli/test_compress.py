"""`hrt compress` does what `hrt.compress` does, and a mistake is noticed before the work."""

from pathlib import Path

import numpy as np
import pytest
import torch

import hrt
from hrt.capture.checkpoints import read_network
from hrt.cli.main import main

from checkpoint_cases import WRITERS, lightning, mlp


def test_is_hrt_compress_with_the_same_options(lab, capsys):
    """The same bytes, so that every option has arrived, and the same seed gave the same bytes."""
    options = ["--tol", "1e-2", "--storage", "float32", "--seed", "3", "--target", "bytes", "--derivatives", "d0"]
    options.append("--per-output")
    assert main(["compress", "net.py:build", "--box", "-1,0 : 1,1", "-o", "out.hrt", *options]) == 0
    out, err = capsys.readouterr()
    assert "measured:" in out and "wrote out.hrt" in out and err == ""
    net, box = read_network("net.py:build"), hrt.Box([-1, 0], [1, 1])
    expected = hrt.compress(
        net,
        inputs=box,
        tol=1e-2,
        storage="float32",
        seed=3,
        target="bytes",
        derivatives=["d0"],
        per_output=True,
        progress=False,
    )
    expected.save("expected.hrt")
    assert Path("out.hrt").read_bytes() == Path("expected.hrt").read_bytes()


def test_of_an_exported_program_keeps_the_bound(lab):
    batch = torch.export.Dim("batch")
    net = read_network("net.py:build").eval()
    exported = torch.export.export(net, (torch.ones(4, 2),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, "net.pt2")
    arguments = ["compress", "net.pt2", "--box", "-1,0 : 1,1", "--tol", "1e-2", "--target", "bytes", "-o", "out.hrt"]
    assert main(arguments) == 0
    x = torch.rand(2000, 2) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    y = net(x).detach()
    assert float((hrt.load("out.hrt").predict(x) - y).norm() / y.norm()) <= 1e-2


def test_with_weights(lab):
    net = read_network("net.py:build")
    state = {k: v * 3 for k, v in net.state_dict().items()}
    torch.save(state, "weights.pt")
    assert main(["compress", "net.py:build", "--weights", "weights.pt", "--tol", "1e-5", "-o", "out.hrt"]) == 0
    net.load_state_dict(state)
    x = torch.rand(50, 2)
    assert torch.allclose(hrt.load("out.hrt").predict(x), net(x).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", WRITERS)
def test_with_the_checkpoint_of_a_tool(name, lab):
    WRITERS[name](net := mlp(2, 24, 1), Path(name))
    assert main(["compress", "net.py:build", "--weights", name, "--tol", "1e-5", "-o", "out.hrt"]) == 0
    x = torch.rand(50, 2)
    assert torch.allclose(hrt.load("out.hrt").predict(x), net(x).detach(), rtol=1e-3, atol=1e-4)


def test_what_was_left_out_of_a_checkpoint_is_said(lab, capsys):
    lightning(mlp(2, 24, 1), Path("w.ckpt"), loss_weights=torch.ones(2))
    assert main(["compress", "net.py:build", "--weights", "w.ckpt", "-o", "out.hrt"]) == 0
    line = "hrt: w.ckpt: took what is below state_dict.model, and left out state_dict.loss_weights beside it.\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", ["lightning.ckpt", "fno", "shards", "net.mdlus", "deepxde-100.pt"])
def test_a_checkpoint_alone_is_described(name, lab, mistake):
    WRITERS[name](mlp(2, 24, 24, 1), Path(name))
    text = mistake("compress", name, "-o", "out.hrt")
    assert "MLP 2-24-24-1" in text and f"hrt compress mynets.py:build --weights {name}" in text


def test_with_a_table_that_has_names(lab, capsys, mistake):
    g = np.random.default_rng(0)
    np.savetxt("x.csv", g.standard_normal((300, 2)), delimiter=",", header="x,t", comments="")
    arguments = ["compress", "net.py:build", "--tol", "1e-2", "--target", "bytes", "-i"]
    assert main([*arguments, "x.csv", "-o", "out.hrt"]) == 0
    assert "x.csv has the columns 'x', 't'" in capsys.readouterr().err
    np.savetxt("wide.csv", g.standard_normal((300, 3)), delimiter=",", header="x,t,u", comments="")
    assert "wide.csv has the columns 'x', 't', 'u'" in mistake(*arguments, "wide.csv", "-o", "no.hrt")


def test_with_inputs_for_several_arguments(lab):
    g = np.random.default_rng(0)
    np.save("a.npy", g.standard_normal((300, 2)))
    np.savetxt("b.csv", g.standard_normal((300, 3)), delimiter=",")
    arguments = ["-i", "a.npy", "-i", "b.csv", "--tol", "1e-2", "--target", "bytes"]
    assert main(["compress", "net.py:Two", *arguments, "-o", "out.hrt"]) == 0
    assert main(["predict", "out.hrt", "a.npy", "b.csv", "-o", "y.npz"]) == 0
    with np.load("y.npz") as y:
        names = hrt.load("out.hrt").program.outputs
        assert y.files == list(names) and [y[n].shape for n in names] == [(300, 8), (300, 1)]


def test_an_existing_output_is_replaced_with_force_alone(lab, mistake):
    assert "--force" in mistake("compress", "net.py:build", "-o", "net.hrt")
    assert main(["compress", "net.py:build", "-o", "net.hrt", "--force"]) == 0
    assert len(hrt.load("net.hrt").program.nodes) == 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["missing.py:build"], "missing.py does not exist"),
        (["net.pt"], "net.pt2, net.onnx"),
        (["net.onnx"], "net.onnx cannot be read as ONNX"),
        (["net.py:broken"], "RuntimeError: the lab is closed (line 19 of net.py)"),
        (["net.py:build", "--weights", "x.npy"], "of no kind that is known"),
        (["net.py:build", "--box", "a,b:c,d"], "low,low : high,high"),
        (["net.py:build", "--box", "0,0,0:1,1,1"], "features"),
        (["net.py:build", "--box", "0,0:1,1", "-i", "x.npy"], "--inputs and --box"),
        (["net.py:build", "-i", "nan.npy"], "NaN"),
        (["net.py:build", "-i", "wide.npy"], "features"),
        (["net.py:build", "-i", "empty.npy"], "no rows"),
        (["net.py:build", "--target", "tpu"], "tpu"),
        (["net.py:build", "--storage", "int4"], "int4"),
        (["net.py:build", "--tol", "0"], "tol"),
        (["net.py:build", "--tol", "nan"], "tol"),
        (["net.py:build", "--tol", "1e-12", "--box", "0,0:1,1"], "tol"),
        (["net.py:build", "--tol", "small"], "Invalid value for '--tol'"),
        (["net.py:build", "--bogus"], "--bogus"),
    ],
)
def test_a_mistake(arguments, words, lab, mistake):
    np.save("nan.npy", np.full((9, 2), np.nan))
    np.save("wide.npy", np.ones((9, 5)))
    np.save("empty.npy", np.ones((0, 2)))
    assert words in mistake("compress", *arguments, "-o", "out.hrt")


@pytest.mark.parametrize("out", ["no/such/out.hrt", "."])
def test_an_output_that_cannot_be_written_is_noticed_before_the_work(out, lab, mistake):
    assert out.partition("/")[0] in mistake("compress", "net.py:broken", "-o", out)
