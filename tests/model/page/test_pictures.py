"""Pictures as shapes: blocks cover the matrix, curves go through the singular values."""

import re

import pytest
import torch

from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.page.pictures import FEW, HEIGHT, LEFT, RIGHT, SIDE, WIDTH, Blocks, Spectrum

from helpers import random_hmatrix
from models import any_hmatrix

RECTANGLE = re.compile(r"M([\d.e+-]+) ([\d.e+-]+)h([\d.e+-]+)v([\d.e+-]+)h-[\d.e+-]+z")


def area(picture: Blocks, style: str = "") -> float:
    outlines = [o for name, o in picture.outlines.items() if name.startswith(style)]
    return sum(float(w) * float(h) for o in outlines for _, _, w, h in RECTANGLE.findall(o))


class TestBlocks:
    @pytest.mark.parametrize("shape", [(90, 70), (70, 90), (3, 400), (400, 3), (1, 1)])
    def test_cover_the_matrix_at_their_places(self, shape):
        h = any_hmatrix(1, *shape, depth=4)
        picture = Blocks.of(h)
        assert area(picture) == pytest.approx(picture.width * picture.height, rel=2e-3)
        assert max(picture.width, picture.height) == SIDE and picture.count == len(h.blocks())
        assert sum(len(RECTANGLE.findall(o)) for o in picture.outlines.values()) == picture.count
        dense = sum(e.rows * e.cols for e in h.leaves if e.is_dense) / (shape[0] * shape[1])
        assert area(picture, "dense") == pytest.approx(dense * area(picture), rel=2e-3, abs=1e-9)

    def test_ranks_are_written_where_they_can_be_read(self):
        h = random_hmatrix(1, 200, 200, depth=2)
        picture = Blocks.of(h)
        ranks = {str(sum(e.rank for e in leaves)) for leaves in h.blocks().values() if not leaves[0].is_dense}
        assert picture.texts and {t.text for t in picture.texts} <= ranks
        assert all(0 < t.x < picture.width and 0 < t.y < picture.height for t in picture.texts)

    def test_the_smallest_of_very_many_are_left_out_and_counted(self):
        h = random_hmatrix(1, 300, 300, depth=5)
        picture = Blocks.of(h, 10)
        assert picture.left_out == len(h.blocks()) - 10 and picture.count == len(h.blocks())
        assert area(picture) == pytest.approx(area(Blocks.of(h)) * sum(
            sorted((b[0].rows * b[0].cols for b in h.blocks().values()), reverse=True)[:10]
        ) / 90_000, rel=2e-3)  # fmt: skip


class TestSpectrum:
    @pytest.mark.parametrize("size", [5, 60])
    def test_goes_through_the_singular_values(self, size):
        torch.manual_seed(0)
        w = torch.randn(size, size + 3)
        values = torch.linalg.svdvals(w)
        s = Spectrum.of(HMatrix.from_dense(w))
        one, tenth = (y for y, _ in s.rows[:2])
        assert [label for _, label in s.rows[:2]] == ["1", "0.1"] and len(s.points) == size
        assert s.single == (size <= FEW) and not s.partial
        for k, (x, y) in enumerate(s.points):
            share = float(values[k] / values[0])
            assert 10 ** ((one - y) / (tenth - one)) == pytest.approx(share, rel=0.02)
            assert x == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) * k / (size - 1), abs=0.06)

    def test_labels_stay_inside(self):
        s = Spectrum.of(HMatrix.from_dense(torch.diag(10.0 ** -torch.arange(7.0))), tol=1e-3)
        assert [label for _, label in s.rows] == ["1", "0.1", "0.01", "0.001", "0.0001", "1e-05", "1e-06"]
        assert all(0 < y < HEIGHT for y, _ in s.rows) and all(LEFT <= x <= WIDTH - RIGHT for x, _ in s.columns)
        assert s.tol == s.rows[3][0]

    @pytest.mark.parametrize(
        "h, words", [(HMatrix((0, 5), ()), "no entries"), (HMatrix.from_dense(torch.zeros(3, 4)), "all zero")]
    )
    def test_where_there_is_none_it_says_so(self, h, words):
        assert Spectrum.of(h).none == words
