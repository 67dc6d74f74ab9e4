"""The harness: errors that match on rows nothing was tuned on, rows for everything that can go wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_cases import plan

from hrt.errors import InputError
from hrt.perf.bench import candidates
from hrt.perf.bench.candidates import Timing
from hrt.perf.bench.runner import Plan, run
from hrt.perf.measuring.bursts import Latency
from hrt.perf.measuring.results import FAILED, MEASURED, MISSING, NOISY, OK, UNREACHABLE, read
from hrt.perf.methods.catalogue import METHODS
from hrt.perf.methods.matched_error import Execution, Offer
from hrt.perf.networks import registry

pytestmark = pytest.mark.usefixtures("cheap")


class TestRun:
    @pytest.mark.parametrize(
        "name, module", [("torchao int8 weights", "torchao"), ("onnxruntime int8 blocks", "onnx_ir")]
    )
    def test_an_absent_library_is_a_row_with_the_command(self, name, module, monkeypatch, registered):
        for loaded in [m for m in sys.modules if m.split(".")[0] == module or "matmul_nbits" in m]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)
        (row,) = [r for r in run(plan(f"quantized, {name}")).rows if r.family == "quantized"]
        assert row.status == MISSING and "pip install" in row.note and row.p50_us is None

    def test_without_onnxruntime_torch_is_measured_alone(self, registered, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        results = run(plan())
        assert all("onnx" not in r.backend and r.status in MEASURED for r in results.rows) and results.rows

    def test_every_loss_has_a_line_of_its_own_figures(self, registered):
        """Dense bytes are more, so that only time can be lost; the line holds the measured times."""

        def instant(workload, tol):
            answers = {
                x.tobytes(): y for x, y in zip(workload.fresh[0].numpy(), workload.reference("fresh"), strict=True)
            }

            def bind(x):
                ready = torch.stack([answers[v.tobytes()] for v in x[0]])
                return lambda: ready

            return Offer(8, (Execution("memory", bind),), "knows the answers")

        results = run(plan("svd", "hrt", rounds=4), methods={**METHODS, "svd": instant})
        ((_, line),) = [(w["batch"], w["line"]) for w in results.facts["why"]]
        assert "bytes: svd needs 8" in line and "time: svd (memory)" in line and "multiply-adds" in line

    def test_rows_errors_times_and_a_file_that_gives_them_back(self, registered, tmp_path):
        results = run(plan("svd, data-weighted", "hrt", tols=(1e-1, 1e-2), batches=(1, 4)))
        assert all(r.status in MEASURED and r.error <= r.target for r in results.rows), results.rows
        assert {(r.batch, r.target) for r in results.rows} == {(b, t) for b in (1, 4) for t in (1e-1, 1e-2)}
        assert {r.method for r in results.rows} == {"dense float32", "svd, data-weighted", "hrt"}
        assert all(r.p50_us > 0 for r in results.rows)
        assert all(r.ratio_low <= r.ratio_vs_best_dense <= r.ratio_high for r in results.rows if r.status == OK)
        assert sorted(results.samples) == list(range(len(results.rows)))
        assert all(len(s) in (2, 4) for s in results.samples.values()), "noisy groups are timed once more, longer"
        results.write(tmp_path / "rows.json")
        again = read(tmp_path / "rows.json")
        assert again.rows == results.rows and again.facts["threads"] == 1

    def test_who_misses_the_error_on_fresh_rows_has_no_times(self, registered, monkeypatch):
        def off(workload, tol):
            bind = lambda x: lambda: 1.05 * workload.net(torch.from_numpy(x[0])).detach()  # noqa: E731
            return Offer(8, (Execution("torch", bind),))

        methods = {**METHODS, "svd": off, "hrt": off}
        rows = {r.method: r for r in run(plan("svd", "hrt"), methods=methods).rows}
        assert rows["svd"].status == UNREACHABLE and rows["hrt"].status == FAILED
        for row in (rows["svd"], rows["hrt"]):
            assert row.error == pytest.approx(0.05, rel=0.01) and row.p50_us is None and "fresh" in row.note
            assert row.ratio_vs_best_dense is None

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of luck\nsecond line"), ValueError()])
    def test_a_method_that_fails_is_a_row(self, error, registered):
        def fails(workload, tol):
            raise error

        (row,) = [r for r in run(plan("svd"), methods={**METHODS, "svd": fails}).rows if r.method == "svd"]
        assert row.status == FAILED and row.note and "\n" not in row.note

    def test_an_execution_that_fails_is_a_row(self, registered):
        def bind(x):
            raise RuntimeError("no such kernel")

        methods = {**METHODS, "svd": lambda w, t: Offer(8, (Execution("torch", bind),))}
        (row,) = [r for r in run(plan("svd"), methods=methods).rows if r.method == "svd"]
        assert row.status == FAILED and "no such kernel" in row.note

    def test_a_workload_that_does_not_fit_is_a_row(self, monkeypatch):
        results = run(plan(workloads=("random:10000000",)))
        assert [r.status for r in results.rows] == [FAILED] and "does not fit" in results.rows[0].note

    def test_a_workload_whose_wheel_is_missing_is_a_row(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HRT_QLKNN", str(tmp_path))
        results = run(plan(workloads=("qlknn",)))
        assert [r.status for r in results.rows] == [MISSING] and "pip install" in results.rows[0].note

    def test_an_interruption_keeps_the_rows_so_far(self, registered):
        count = []

        def second_time(workload, tol):
            count.append(1)
            if len(count) > 1:
                raise KeyboardInterrupt
            return METHODS["svd"](workload, tol)

        monkeyed = {**METHODS, "svd": second_time}
        results = run(plan("svd", workloads=("small", "small")), methods=monkeyed)
        assert results.facts["interrupted"] and {r.method for r in results.rows} == {"dense float32", "svd"}

    def test_rows_are_kept_after_every_workload(self, registered):
        kept = []
        results = run(plan("svd", workloads=("small", "small")), keep=lambda found: kept.append(len(found.rows)))
        assert kept == [len(results.rows) // 2, len(results.rows), len(results.rows)]

    @pytest.mark.parametrize(
        "rounds, late",
        [(candidates.SCOUT_ROUNDS, ["a/1"]), (candidates.SCOUT_ROUNDS - 1, []), (candidates.SCOUT_ROUNDS + 1, [])],
    )
    def test_only_a_methods_own_best_makes_an_execution_uninteresting(self, rounds, late):
        medians = {"a/0": [1.0] * 5, "a/1": [1.6] * 5, "a/2": [1.4] * 5, "b/0": [9.0] * 5, "c/0": [1], "c/1": [5]}
        assert candidates.behind(("c/1", "control"), rounds, {**medians, "control": [1.0], "empty": [0.1]}) == late

    def test_a_noisy_machine_gets_no_ratios(self, registered, monkeypatch):
        asked = []

        def noisy(calls, *, rounds, **more):
            asked.append(rounds)
            shift = {name: 1.0 + 3.0 * (name == candidates.CONTROL) for name in calls}
            return {n: Latency(v, v, v, (v,) * rounds, calls=rounds) for n, v in shift.items()}

        monkeypatch.setattr(candidates, "bursts", noisy)
        results = run(plan("svd, data-weighted"))
        assert asked == [2, 4]  # tried again for longer
        assert {r.status for r in results.rows} == {NOISY}
        assert all(r.ratio_vs_best_dense is None and "itself" in r.note for r in results.rows)

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"workloads": ("nothing",)}, "burgers"),
            ({"methods": ("dense float32", "magic")}, "svd"),
            ({"methods": ("hrt",)}, "dense"),
            ({"tols": (2.0,)}, "between 0 and 1"),
            ({"tols": ()}, "between 0 and 1"),
            ({"batches": (0,)}, "positive"),
            ({"threads": 0}, "at least"),
            ({"timing": Timing(1)}, "at least"),
            ({"inputs": (Path("x.npy"),), "workloads": ("burgers",)}, "file"),
        ],
    )
    def test_mistakes_are_found_before_any_work(self, changes, words):
        with pytest.raises(InputError, match=words):
            Plan(**changes)


class TestFiles:
    @pytest.mark.parametrize("name", ["net.pt2", "net.onnx", "net.hrt"])
    @pytest.mark.parametrize("given", [True, False])
    def test_any_network_of_a_user(self, name, given, files):
        inputs = (files / "x.npy",) if given else ()
        results = run(plan("hrt", workloads=(str(files / name),), inputs=inputs))
        rows = {r.method for r in results.rows if r.status in MEASURED}
        assert rows == {"dense float32", "hrt"}, results.rows
        about = next(iter(results.facts["about"].values()))
        assert ("standard normal" in about) is not given and ("written-out" in about) is (name == "net.hrt")

    def test_too_few_rows_are_refused(self, files, tmp_path):
        np.save(tmp_path / "few.npy", np.zeros((10, 3), np.float32))
        with pytest.raises(InputError, match="64"):
            registry.from_file(files / "net.pt2", (tmp_path / "few.npy",))
