"""The roofline's command: its matrices, its tables and its files, at small sizes."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import y0

from hrt.perf.measuring.provenance import commit
from hrt.perf.networks.integral_kernels import KERNELS, SETTINGS, helmholtz_circle
from hrt.perf.networks.operators import laplace_2d, laplace_2d_kernel, log_kernel
from hrt.perf.studies.roofline import LABEL, main, ranges
from hrt.perf.studies.tried import load_cases, measured, narrowed
from hrt.schedule.roofline import BATCHES, CHIPS, schedule_floor

SMALL = ["--size", "64", "--min-leaf", "0", "16", "--tile", "32x32", "16x16", "--batch", "1", "4096"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of one small run of every kernel and precision."""
    file = tmp_path_factory.mktemp("roofline") / "deep" / "out.json"
    assert main([*SMALL, "--json", str(file)]) == 0
    return file


class TestKernels:
    @pytest.mark.parametrize("name", KERNELS)
    def test_are_symmetric_finite_float64(self, name):
        w, points = KERNELS[name].build(96)
        assert w.shape == (96, 96) and w.dtype == np.float64
        assert np.isfinite(w).all() and np.array_equal(w, w.T)
        assert points is None or points.shape == (96, 2)

    def test_log_kernel_is_that_of_the_operators(self):
        assert np.array_equal(KERNELS["log"].build(100)[0], log_kernel(100))

    def test_laplace_on_a_square_is_that_of_the_operators(self):
        for found, expected in zip(laplace_2d(144), laplace_2d_kernel(12), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-13)

    def test_laplace_on_a_rectangle_has_square_cells(self):
        w, points = laplace_2d(8)  # 2 x 4
        assert np.allclose(points, [[(i + 0.5) / 4, (j + 0.5) / 4] for i in range(2) for j in range(4)])
        distance = np.linalg.norm(points[:, None] - points, axis=-1)
        off = ~np.eye(8, dtype=bool)
        np.testing.assert_allclose(w[off], np.log(distance[off]) / 16, rtol=1e-12)

    def test_helmholtz_entries_from_their_formula(self):
        n, h = 40, 2 * math.pi / 40
        k = 2 * math.pi / (10 * h)  # ten points a wavelength
        angle = h * np.arange(n)
        points = np.stack([np.cos(angle), np.sin(angle)], 1)
        w = helmholtz_circle(n)
        for i, j in ((0, 1), (3, 17), (39, 0), (20, 5)):
            expected = -h / 4 * y0(k * np.linalg.norm(points[i] - points[j]))
            assert w[i, j] == pytest.approx(expected, rel=1e-9)
        cell = quad(lambda s: y0(k * s), 0, h / 2)[0]
        assert w[7, 7] == pytest.approx(-2 * cell / 4, rel=1e-8)

    def test_helmholtz_single_layer_has_the_known_eigenvalues(self):
        """On the unit circle e^(i m t) has the eigenvalue -pi/2 J_m(k) Y_m(k) (the real part of i pi/2 J_m H_m)."""
        from scipy.special import jv, yv

        n = 512
        k = n / 100  # a hundred points a wavelength: the rule is first-order accurate
        w = helmholtz_circle(n, 100)
        for m in (0, 1, 4):
            mode = np.cos(m * 2 * math.pi * np.arange(n) / n)
            assert mode @ w @ mode / (mode @ mode) == pytest.approx(-math.pi / 2 * jv(m, k) * yv(m, k), abs=5e-3)


class TestFacts:
    def test_padding_and_bytes_are_those_of_the_schedule(self):
        (case,) = measured("log", 128, ["bf16"], [32], ["32x16"])
        (tried,) = case.tried
        assert 0 < tried.packed - tried.padded <= tried.nbytes
        assert 0 <= tried.padded_share < 1
        floor = schedule_floor(tried.work, 1, "bf16", CHIPS["h200"])
        assert floor.flops == 2 * tried.packed // 2
        assert len(tried.work) == 2

    def test_orderings_at_both_ends_are_no_launches(self):
        (case,) = measured("laplace", 256, ["tf32"], [32], ["32x32"])
        assert len(case.tried[0].work) == 2

    def test_kept_pair_is_the_best_of_those_tried(self):
        (case,) = measured("log", 128, ["tf32"], [0, 32], ["16x16", "64x64"])
        times = {t: schedule_floor(t.work, 4096, "tf32", CHIPS["h200"]).seconds for t in case.tried}
        assert times[case.best((4096,), CHIPS["h200"])] == min(times.values())

    def test_settings_leave_bfloat16_room_for_its_own_rounding(self):
        w = torch.as_tensor(log_kernel(256))
        rounding = float((w - w.bfloat16()).norm() / w.norm())
        assert rounding < SETTINGS["bf16"][1] / 3

    def test_programs_load_each_weight_tile_and_its_columns_once_per_block_of_rows(self):
        (case,) = measured("log", 128, ["tf32"], [32], ["32x16"])
        chip, batch = CHIPS["h200"], 64
        steps = case.tried[0].packed // (4 * 32 * 16)
        (p,) = case.predictions((batch,), chip)
        seconds = schedule_floor(case.tried[0].work, batch, "tf32", chip).ideal_s
        assert p.l2_bytes_per_s * seconds == pytest.approx(steps * 4 * (32 * 16 + batch * 16))


class TestCommand:
    def test_prints_every_layer_and_labels_every_figure(self, written, capsys):
        assert main(["--from", str(written)]) == 0
        text = " ".join(capsys.readouterr().out.split())  # titles of narrow tables are broken into lines
        assert text.count(LABEL) >= 4
        for word in (*KERNELS, *SETTINGS, "measured", "assumed", "padding", "choice", "LOSE", "h200", "4096"):
            assert word in text

    def test_file_says_command_versions_and_chip(self, written):
        document = json.loads(written.read_text())
        assert (
            document["command"] == f"python -m hrt.perf.studies.roofline {' '.join([*SMALL, '--json', str(written)])}"
        )
        assert document["versions"]["torch"] == torch.__version__
        assert document["chip"]["name"] == "h200" and "PREDICTED" in document["what"]
        assert [c["kernel"] for c in document["cases"]] == [k for k in KERNELS for _ in SETTINGS]
        for case in document["cases"]:
            assert [row["batch"] for row in case["predicted"]["rows"]] == [1, 4096]
            assert set(case["predicted"]["break_even"]) <= set(BATCHES)

    def test_printing_from_a_file_is_the_same_as_at_first(self, written, tmp_path, capsys):
        again = tmp_path / "again.json"
        assert main(["--from", str(written), "--batch", "1", "4096", "--json", str(again)]) == 0
        assert load_cases([again]) == load_cases([written])
        first, second = (json.loads(f.read_text())["cases"] for f in (written, again))
        assert first == second

    def test_file_serves_another_chip_and_other_batches(self, written, tmp_path):
        other = tmp_path / "h100.json"
        assert main(["--from", str(written), "--chip", "h100", "--batch", "7", "--json", str(other)]) == 0
        document = json.loads(other.read_text())
        assert document["chip"]["name"] == "h100"
        first = json.loads(written.read_text())
        assert document["counted_by"] == first["counted_by"] == [f"{first['command']} (at {commit()})"]
        assert first["command"] != document["command"]
        for case in load_cases([other]):
            (p,) = case.predictions((7,), CHIPS["h100"])
            best = case.best((7,), CHIPS["h100"])
            assert p.hrt_s == schedule_floor(best.work, 7, case.precision, CHIPS["h100"]).seconds

    def test_files_of_one_layer_are_put_together(self, written):
        (once, twice) = (load_cases([written] * k) for k in (1, 2))
        assert [c.tried * 2 for c in once] == [c.tried for c in twice]

    def test_part_of_a_file(self, written):
        (case,) = narrowed(load_cases([written]), ["log"], [64], ["tf32"], [16], ["16x16"])
        assert [(t.min_leaf, t.tile) for t in case.tried] == [(16, "16x16")]

    def test_small_layers_are_said_to_lose(self, written, capsys):
        assert main(["--from", str(written), "--batch", "1"]) == 0
        text = capsys.readouterr().out
        assert "hrt is predicted to LOSE in 6 of 6 rows; the planner takes dense in 6." in text

    @pytest.mark.parametrize(
        "arguments, found",
        [
            (["--chip", "b200"], "Found chip 'b200'. Expected one of h100, h200."),
            (["--kernel", "log", "stokes"], "Found kernel 'stokes'. Expected one of log, helmholtz, laplace."),
            (["--precision", "fp8"], "Found precision 'fp8'. Expected one of bf16, tf32."),
            (["--tile", "64"], "Found tile '64'. Expected rows x columns, such as 64x32."),
            (["--tile", "0x8"], "Found tile '0x8'. Expected rows x columns, such as 64x32."),
            (["--size", "0"], "Found a size or batch below 1"),
            (["--batch", "0"], "Found a size or batch below 1"),
            (["--min-leaf", "-1"], "Found a size or batch below 1, or a negative leaf size"),
            (["--size", "16", "--kernel", "log", "--tile", "8x12"], "step_columns a multiple of unit"),
        ],
    )
    def test_bad_names_are_one_line(self, arguments, found, capsys):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        *progress, last = err.splitlines()
        assert found in last and not out
        assert all(line.startswith(("log 16", "    ")) for line in progress)

    @pytest.mark.parametrize(
        "text", [None, "", "[]", "{}", '{"cases": [{"kernel": "log"}]}', '{"cases": [{"tried": 3}]}']
    )
    def test_bad_files_are_one_line(self, text, tmp_path, capsys):
        file = tmp_path / "bad.json"
        if text is not None:
            file.write_text(text)
        assert main(["--from", str(file)]) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and "bad.json is no file that --json wrote" in err and not out

    def test_a_file_without_what_was_asked_for(self, written, capsys):
        assert main(["--from", str(written), "--size", "4096"]) == 2
        assert "hold none of the layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "batches, text",
    [((), "none"), ((4,), "4"), ((1, 2, 4), "1-4"), ((1, 2, 64, 128, 512), "1-2, 64-128, 512"), (BATCHES, "1-65536")],
)
def test_ranges(batches, text):
    assert ranges(batches) == text
