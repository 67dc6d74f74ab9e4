"""Pictures: drawn for every kind of layer, in every format asked for, and never half-written."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.plot import COMPRESSED, DENSE, ORIGINAL, SKETCH_SIDE, draw_blocks, draw_decay, singular_values
from hrt.model.plot_fields import Reference
from hrt.program.program import Node, Program, Value

from helpers import random_hmatrix
from models import any_hmatrix, as_int8, linear_model

OPENINGS = {"png": b"\x89PNG\r\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def pixels(path) -> np.ndarray:
    """(height, width, 3) in 0..1."""
    from matplotlib.image import imread

    return imread(path)[:, :, :3]


def share_of(image: np.ndarray, colour: str) -> float:
    from matplotlib.colors import to_rgb

    return float((np.abs(image - np.array(to_rgb(colour))).max(axis=2) < 0.02).mean())


def low_rank(m: int, n: int, rank: int) -> HMatrix:
    t = torch.Generator().manual_seed(0)
    u, vt = torch.randn(m, rank, generator=t), torch.randn(rank, n, generator=t)
    return HMatrix((m, n), (Leaf(0, m, 0, n, u=u, vt=vt),))


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots(1, 1)


class TestPicture:
    @pytest.mark.parametrize(
        "h",
        [
            *(HMatrix.from_dense(full) for full in (torch.ones(3, 2), torch.zeros(3, 2), torch.ones(1, 1))),
            *(low_rank(30, 20, rank) for rank in (3, 0)),
            *(HMatrix(shape, ()) for shape in ((0, 5), (5, 0))),
            any_hmatrix(1, 90, 70, depth=4),
            random_hmatrix(1, 1, 400),
        ],
        ids=repr,
    )
    @pytest.mark.filterwarnings("error")
    def test_of_any_layer(self, h, tmp_path):
        linear_model(h).plot(tmp_path / "p.png")
        image = pixels(tmp_path / "p.png")
        assert image.shape[0] > 300 and image.shape[1] > 1000 and 0.001 < (image < 0.9).any(axis=2).mean() < 0.9

    @pytest.mark.parametrize("suffix", OPENINGS)
    def test_in_every_format(self, suffix, tmp_path):
        linear_model(low_rank(8, 8, 2)).plot(str(tmp_path / f"p.{suffix}"))
        assert (tmp_path / f"p.{suffix}").read_bytes().startswith(OPENINGS[suffix])

    def test_dense_leaves_are_told_from_low_rank_ones(self, tmp_path):
        for name, h in (("dense", HMatrix.from_dense(torch.ones(64, 64))), ("low", low_rank(64, 64, 2))):
            linear_model(h).plot(tmp_path / f"{name}.png")
        assert share_of(pixels(tmp_path / "dense.png"), DENSE) > 0.06
        assert share_of(pixels(tmp_path / "low.png"), DENSE) < 0.02

    def test_of_more_layers_than_a_picture_can_hold(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hrt.model.plot.MAX_PANELS", 4)
        nodes = tuple(Node(f"h{k + 1}", "linear", (f"h{k}", f"w{k}"), (2,), {}) for k in range(7))
        program = Program((Value("h0", (2,)),), nodes, ("h7",), {f"w{k}": torch.ones(2, 2) for k in range(7)})
        model = hrt.CompressedModel(program, hrt.Certificate(1e-3, "layers", ()))
        model.plot(tmp_path / "p.svg")
        assert (tmp_path / "p.svg").read_text().count("<!-- singular values of the weight -->") == 4


class TestMistakes:
    @pytest.mark.parametrize("name", ["p.foo", "p", "p.hrt", ".png", "p.jpg", "p.eps"])
    def test_an_unknown_format(self, name, tmp_path):
        with pytest.raises(hrt.InputError, match=r"one of \.png, \.pdf, \.svg"):
            linear_model(low_rank(8, 8, 2)).plot(tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_a_network_without_weights(self, tmp_path):
        program = Program((Value("x", (2,)),), (Node("y", "tanh", ("x",), (2,), {}),), ("y",), {})
        with pytest.raises(hrt.InputError, match="no weight matrix"):
            hrt.CompressedModel(program, hrt.Certificate(1e-3, "layers", ())).plot(tmp_path / "p.png")


class Squares(torch.nn.Module):
    """Of one or two numbers, with weights called as a compressed one's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(width, 16), torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


class TestFields:
    @pytest.mark.parametrize("width", [1, 2])
    @pytest.mark.parametrize("boxed", [True, False])
    def test_of_the_original_and_the_compressed_network(self, width, boxed, tmp_path):
        torch.manual_seed(0)
        net = Squares(width)
        model = hrt.compress(net, tol=1e-1, progress=False)
        inputs = hrt.Box([-1] * width, [1] * width) if boxed else torch.rand(50, width)
        model.plot(tmp_path / "p.svg", reference=net, inputs=inputs)
        text = (tmp_path / "p.svg").read_text()
        for k in range(2):
            assert f"<!-- output column {k}: original u, compressed u_h; relative L2 difference" in text
        assert "<!-- compressed H -->" in text and "<!-- original W -->" in text and "<!-- tol 0.1 -->" in text
        model.plot(tmp_path / "alone.svg", inputs=inputs)
        assert "(the original is not known)" in (tmp_path / "alone.svg").read_text()
        model.plot(tmp_path / "none.svg")
        assert "output column" not in (tmp_path / "none.svg").read_text()

    def test_are_what_both_networks_answer(self):
        net = Squares(2)
        model = hrt.compress(net, tol=1e-1, progress=False)
        reference = Reference.of(model, net, hrt.Box([0, 1], [2, 3]))
        points, (u, u_h) = reference.points, reference.fields
        assert points.amin(0).tolist() == [0, 1] and points.amax(0).tolist() == [2, 3]
        assert torch.allclose(u.float(), net(points.float()), atol=1e-5)
        assert torch.allclose(u_h.float(), model.predict(points.float()), atol=1e-5)

    def test_of_three_numbers_are_not_drawn(self, tmp_path):
        model = hrt.compress(Squares(3), tol=1e-1, progress=False)
        model.plot(tmp_path / "p.svg", inputs=torch.rand(50, 3))
        assert "output column" not in (tmp_path / "p.svg").read_text()

    def test_another_network_is_no_reference(self, tmp_path):
        model = hrt.compress(Squares(2), tol=1e-1, progress=False)
        for other in (Squares(1), torch.nn.Linear(2, 2)):
            with pytest.raises(hrt.InputError, match="Expected the original"):
                model.plot(tmp_path / "p.png", reference=other)
        assert not list(tmp_path.iterdir())


class TestPanels:
    def test_ranks_are_written_where_they_can_be_read(self, axes):
        big, small = torch.ones(96, 5), torch.ones(4, 3)
        leaves = (
            Leaf(0, 96, 0, 96, u=big, vt=big.T.contiguous()),
            Leaf(0, 96, 96, 4, u=big[:, :2].contiguous(), vt=torch.ones(2, 4)),
            Leaf(96, 4, 0, 96, u=small[:, :1].contiguous(), vt=torch.ones(1, 96)),
            Leaf(96, 4, 96, 4, dense=torch.ones(4, 4)),
        )
        draw_blocks(axes, HMatrix((100, 100), leaves), "w")
        texts = {t.get_text(): t.get_fontsize() for t in axes.texts}
        assert texts["5"] > 15 and set(texts) <= {"5", "2", "1"} and all(size >= 3 for size in texts.values())
        assert axes.get_ylim() == (100, 0)  # the first row on top

    def test_every_leaf_stands_at_its_place(self, axes):
        h = random_hmatrix(2, 50, 60, depth=4, ordered=True)
        draw_blocks(axes, h, "w")
        boxes = {tuple(np.round(path.get_extents().bounds).astype(int)) for path in axes.collections[0].get_paths()}
        assert boxes == {(e.col, e.row, e.cols, e.rows) for e in h.leaves}

    def test_leaves_of_one_block_are_drawn_as_one(self, axes):
        (leaf,) = low_rank(60, 50, 7).leaves
        h = HMatrix((60, 50), (leaf, as_int8(leaf)))
        draw_blocks(axes, h, "w")
        assert [t.get_text() for t in axes.texts] == ["14"] and len(axes.collections[0].get_paths()) == 1
        assert "rank 14" in axes.get_title()

    def test_singular_values_end_with_the_rank(self, axes):
        draw_decay(axes, low_rank(60, 50, 7))
        (curve,) = axes.lines
        assert axes.get_xscale() == "linear" and axes.get_yscale() == "log"
        assert len(curve.get_xdata()) == 7 and curve.get_ydata()[0] == pytest.approx(1.0)

    def test_the_originals_singular_values_stand_beside_the_kept_ones_and_the_tolerance(self, axes):
        w = torch.diag(torch.logspace(0, -3, 40, dtype=torch.float64))
        vt = torch.linalg.svd(w).Vh
        kept = HMatrix((40, 40), (Leaf(0, 40, 0, 40, u=(w @ vt.T)[:, :5].float(), vt=vt[:5].float()),))
        draw_decay(axes, kept, w, tol=1e-2)
        original, compressed, tolerance = axes.lines
        assert [line.get_label() for line in axes.lines] == [ORIGINAL, COMPRESSED, "tol 0.01"]
        assert np.allclose(original.get_ydata(), w.diagonal().numpy(), rtol=1e-4)
        assert np.allclose(compressed.get_ydata(), original.get_ydata()[:5], rtol=1e-4)
        assert set(tolerance.get_ydata()) == {1e-2} and axes.get_xscale() == "linear"

    def test_as_inputs_see_them(self, axes):
        w, root = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
        draw_decay(axes, HMatrix.from_dense(w), w, root)
        assert np.allclose(axes.lines[0].get_ydata(), [1.0, 0.5, 0.25]) and "inputs see it" in axes.get_title()

    def test_leading_singular_values_of_a_large_matrix_come_from_a_sketch(self):
        n = SKETCH_SIDE + 52
        diagonal = torch.zeros(n)
        diagonal[:40] = torch.logspace(0, -4, 40)
        found = singular_values(torch.diag(diagonal))
        assert torch.allclose(found[:40], diagonal[:40], rtol=1e-3, atol=1e-6) and len(found) < n


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, hrt, hrt.cli.main, hrt.model.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
