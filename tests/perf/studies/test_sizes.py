"""The baselines that hrt is measured against: each against its definition, and the comparison as a whole."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import sparse
from torch import Tensor, nn

from hrt.perf.methods import pruning
from hrt.perf.methods import svd as low_rank
from hrt.perf.studies import quantization, sizes
from hrt.perf.studies.baselines import Form, Problem, Result, smallest_bisected, smallest_widened


def random_matrix(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(n: int, rows: int, seed: int = 1) -> Tensor:
    x = random_matrix(rows, n, seed) @ random_matrix(n, n, seed + 1)
    return x.T @ x / rows


def weighted2(e: Tensor, c: Tensor) -> float:
    return float(((e @ c) * e).sum())


@pytest.fixture(scope="module")
def problem() -> Problem:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))
    return Problem.make(net, random_matrix(300, 3, 1).float(), random_matrix(200, 3, 2).float())


class TestProblem:
    def test_counts_dense_bytes(self, problem: Problem) -> None:
        assert problem.dense_nbytes == 4 * (3 * 24 + 24 * 24 + 24 * 2 + 24 + 24 + 2)
        assert problem.rest_nbytes == 4 * (24 + 24 + 2)

    def test_second_moments_are_those_of_the_layer_inputs(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        x = random_matrix(50, 3)
        found = Problem.make(net, x, x)
        hidden = torch.tanh(net[0](x)).detach()
        first, second = (found.moments[name] for name in found.program.weights)
        torch.testing.assert_close(first, x.T @ x / 50)
        torch.testing.assert_close(second, hidden.T @ hidden / 50)

    def test_exact_forms_have_no_error(self, problem: Problem) -> None:
        found = problem.measure({name: Form.dense(w) for name, w in problem.weights.items()})
        assert found == Result(problem.dense_nbytes, 0.0)

    def test_measures_the_replaced_network(self, problem: Problem) -> None:
        zeros = {name: Form(0, torch.zeros_like(w)) for name, w in problem.weights.items()}
        bias = problem.reference - problem.reference  # of the last layer alone: read it from a zero input
        last = [c for name, c in problem.program.constants.items() if tuple(c.shape) == (2,)]
        expected = float((problem.reference - (bias + last[0])).norm() / problem.reference.norm())
        assert problem.measure(zeros).error == pytest.approx(expected, rel=1e-9)

    def test_not_a_number_counts_as_infinite(self, problem: Problem) -> None:
        name = next(iter(problem.weights))
        assert problem.measure({name: Form(0, problem.weights[name] * torch.nan)}).error == float("inf")


class TestSearch:
    def test_widens_only_what_must_be(self, problem: Problem) -> None:
        first, second, third = problem.weights
        w = problem.weights
        bad, good = Form(1, torch.zeros_like(w[second])), Form(1, w[first])
        found = smallest_widened(problem, [{first: good, second: bad, third: Form(1, w[third])}], 1e-3)
        assert found is not None and found.error == 0
        assert found.nbytes == problem.rest_nbytes + 2 + 4 * w[second].numel()

    def test_takes_the_next_wider_form_first(self, problem: Problem) -> None:
        spoilt = {name: Form(1, 0.7 * w) for name, w in problem.weights.items()}
        exact = {name: Form(2, w) for name, w in problem.weights.items()}
        found = smallest_widened(problem, [spoilt, exact], 1e-3)
        assert found == Result(problem.rest_nbytes + 6, 0.0)

    def test_says_where_nothing_below_dense_reaches(self, problem: Problem) -> None:
        spoilt = {name: Form(1, torch.zeros_like(w)) for name, w in problem.weights.items()}
        assert smallest_widened(problem, [spoilt], 1e-3) is None

    def test_drops_forms_that_a_wider_one_undercuts(self, problem: Problem) -> None:
        costly = {name: Form(3, torch.zeros_like(w)) for name, w in problem.weights.items()}
        cheap = {name: Form(2, w) for name, w in problem.weights.items()}
        found = smallest_widened(problem, [costly, cheap], float("inf"))
        assert found == Result(problem.rest_nbytes + 6, 0.0)

    def test_bisection_finds_the_loosest_that_holds(self, problem: Problem) -> None:
        def family(t: float) -> dict[str, Form]:
            return {k: Form(int(100 * (1 - t)), w * (1 if t < 0.037 else 2)) for k, w in problem.weights.items()}

        found = smallest_bisected(problem, family, 1e-6)
        assert found is not None and found.error == 0
        assert found.nbytes == problem.rest_nbytes + 3 * 96


class TestQuantization:
    def test_absmax_is_within_half_a_step(self) -> None:
        w = random_matrix(7, 30)
        found = quantization.rounded(w)
        assert found.q.dtype == torch.int8 and int(found.q.abs().max()) == 127
        assert bool(((w - found.form.matrix).abs() <= 0.5001 * found.s).all())
        assert found.form.nbytes == 7 * 30 + 7 * 4

    def test_rows_of_zeros_stay_zero(self) -> None:
        w = torch.cat([random_matrix(2, 5), torch.zeros(1, 5, dtype=torch.float64)])
        assert bool((quantization.rounded(w).form.matrix[2] == 0).all())
        assert bool((quantization.compensated(w, second_moment(5, 40)).form.matrix[2] == 0).all())

    @pytest.mark.parametrize("damping", [1e-2, 1e-6])
    def test_compensation_is_the_published_recursion(self, damping: float) -> None:
        w, c = random_matrix(9, 16), second_moment(16, 100)
        h = c + damping * c.diagonal().mean() * torch.eye(16, dtype=c.dtype)
        r = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)  # algorithm 1 of arXiv 2210.17323
        s, rest, q = quantization.scales(w), w.clone(), torch.zeros_like(w)
        for j in range(16):
            q[:, j] = (rest[:, j] / s[:, 0]).round().clamp(-127, 127)
            rest[:, j:] -= ((rest[:, j] - s[:, 0] * q[:, j]) / r[j, j])[:, None] * r[j, j:]
        found = quantization.compensated(w, c, damping, sort=False)
        torch.testing.assert_close(found.q.double(), q, rtol=0, atol=0)

    @pytest.mark.parametrize("sort", [True, False])
    def test_compensation_lowers_the_error_on_correlated_data(self, sort: bool) -> None:
        w, x = random_matrix(40, 60), random_matrix(500, 60) * 0.8 ** torch.arange(60)
        c = (x @ random_matrix(60, 60, 3)).T @ (x @ random_matrix(60, 60, 3)) / 500
        plain = weighted2(w - quantization.rounded(w).form.matrix, c)
        assert weighted2(w - quantization.compensated(w, c, 1e-4, sort).form.matrix, c) < 0.3 * plain

    def test_uncorrelated_data_leave_nothing_to_compensate(self) -> None:
        w = random_matrix(8, 12)
        found = quantization.compensated(w, torch.eye(12, dtype=torch.float64))
        assert torch.equal(found.q, quantization.rounded(w).q)

    def test_singular_second_moments_are_damped(self) -> None:
        for c in (torch.zeros(12, 12, dtype=torch.float64), second_moment(12, 1)):
            assert bool(torch.isfinite(quantization.compensated(random_matrix(8, 12), c).form.matrix).all())

    def test_casts(self) -> None:
        w = torch.tensor([[1.0, 1 + 2**-9, 1e5]], dtype=torch.float64)
        assert quantization.cast(w, torch.float16).matrix.tolist() == [[1.0, 1 + 2**-9, float("inf")]]
        assert quantization.cast(w, torch.bfloat16).matrix[0, :2].tolist() == [1.0, 1.0]
        assert quantization.cast(w, torch.bfloat16).nbytes == 6


class TestPruning:
    @pytest.mark.parametrize("rows, cols, count", [(3, 5, 4), (7, 256, 100), (7, 257, 300), (40, 300, 11000)])
    def test_bytes_are_those_of_the_arrays(self, rows: int, cols: int, count: int) -> None:
        places = np.random.default_rng(0).permutation(rows * cols)[:count]
        dense = np.zeros(rows * cols, np.float32)
        dense[places] = 1
        csr = sparse.csr_array(dense.reshape(rows, cols))
        narrow = [np.min_scalar_type(top) for top in (cols - 1, count)]
        expected = csr.data.nbytes + csr.indices.astype(narrow[0]).nbytes + csr.indptr.astype(narrow[1]).nbytes
        assert pruning.csr_nbytes(rows, cols, count) == expected

    def test_keeps_the_largest(self) -> None:
        w = torch.tensor([[3.0, -1.0, 0.5, 0.1], [0.2, -4.0, 0.3, 0.0]], dtype=torch.float64)
        expected = torch.tensor([[3.0, 0, 0, 0], [0, -4.0, 0, 0]], dtype=torch.float64)
        assert torch.equal(pruned := pruning.pruned(w, 2).matrix, expected), pruned

    def test_is_dense_where_sparse_is_larger(self) -> None:
        w = random_matrix(4, 6)
        assert pruning.pruned(w, 23).nbytes == 4 * 24
        assert torch.equal(pruning.pruned(w, 23).matrix, w)

    def test_share_of_the_norm(self) -> None:
        w = random_matrix(20, 30)
        kept = pruning.needed(w, 0.3)
        errors = [float((w - pruning.pruned(w, k).matrix).norm() / w.norm()) for k in (kept, kept - 1)]
        assert errors[0] <= 0.3 < errors[1]


class TestLowRank:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_truncation_meets_its_tolerance_with_the_least_rank(self, weighted: bool) -> None:
        w = random_matrix(30, 20) * 0.5 ** torch.arange(20)
        c = second_moment(20, 200) if weighted else None
        factors = low_rank.svd_factors(w, c)
        form = low_rank.truncated(w, factors, 0.05, torch.float32)
        identity = torch.eye(20, dtype=torch.float64) if c is None else c
        error = (weighted2(w - form.matrix, identity) / weighted2(w, identity)) ** 0.5
        rank = form.nbytes // (4 * 50)
        values, vectors = torch.linalg.eigh(identity)
        s = torch.linalg.svdvals(w @ (vectors * values.clamp_min(0).sqrt()))
        best = (s[rank:].square().sum() / s.square().sum()).sqrt()
        assert error == pytest.approx(float(best), rel=1e-4)  # no rank-r matrix comes closer
        assert error <= 0.05 < float((s[rank - 1 :].square().sum() / s.square().sum()).sqrt())

    def test_is_dense_where_factors_are_larger(self) -> None:
        w = random_matrix(20, 20)
        assert low_rank.truncated(w, low_rank.svd_factors(w), 1e-3, torch.float32).nbytes == 4 * 400

    def test_float16_factors_do_not_overflow(self) -> None:
        w = 1e6 * torch.outer(torch.ones(20, dtype=torch.float64), random_matrix(1, 20)[0])
        form = low_rank.truncated(w, low_rank.svd_factors(w), 1e-2, torch.float16)
        assert form.nbytes == 2 * 40
        assert float((w - form.matrix).norm() / w.norm()) < 1e-3


@pytest.fixture(scope="module")
def compared() -> tuple[nn.Module, Problem, list[sizes.Row]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
    points = sizes.burgers_points(800, 1), sizes.burgers_points(400, 2)
    return net, *sizes.compare(net, *points, [1e-2])


class TestComparison:
    def test_every_figure_holds_its_tolerance(self, compared) -> None:
        net, problem, rows = compared
        assert [row.method for row in rows] == [*sizes.METHODS, "hrt"]
        assert sizes.faults(net, problem, rows) == []
        assert all(row.result.error <= 1e-2 for row in rows if row.result)

    def test_float16_halves_the_weights(self, compared) -> None:
        _, problem, rows = compared
        (found,) = (row.result for row in rows if row.method == "float16")
        assert found.nbytes == problem.rest_nbytes + (problem.dense_nbytes - problem.rest_nbytes) // 2

    def test_table_says_what_cannot_be_reached(self, compared) -> None:
        _, problem, rows = compared
        console = Console(width=118, file=io.StringIO())
        console.print(sizes.table("a network", problem, [sizes.Row("x", 1e-9, None, 0.0), *rows]))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "cannot reach" in text and "hrt" in text
        assert max(map(len, text.splitlines())) <= 118

    def test_broken_figures_are_named(self, compared) -> None:
        net, problem, _ = compared
        rows = [sizes.Row("x", 1e-2, Result(10, 0.02), 0.0), sizes.Row("y", 1e-2, Result(10**9, 0.0), 0.0)]
        high, large = sizes.faults(net, problem, rows)
        assert "x at 0.01: error 0.02" in high and "y at 0.01: 1000000000 bytes" in large

    @pytest.mark.parametrize(
        "ours, theirs, words",
        [(100, 200, "hrt is smallest, 2.00 times"), (200, 100, "hrt LOSES, 2.00 times"), (100, 100, "equally small")],
    )
    def test_wins_and_losses_are_said_alike(self, problem: Problem, ours: int, theirs: int, words: str) -> None:
        rows = [sizes.Row("a", 0.1, Result(theirs, 0.0), 0.0), sizes.Row("hrt", 0.1, Result(ours, 0.0), 0.0)]
        (line,) = sizes.verdicts(problem, rows, {0.1: 1e6})
        assert words in line and "MISSED" in line

    def test_alone_below_dense(self, problem: Problem) -> None:
        rows = [sizes.Row("a", 0.1, None, 0.0), sizes.Row("hrt", 0.1, Result(100, 0.0), 0.0)]
        assert "no baseline reaches it" in sizes.verdicts(problem, rows, {})[0]


def test_every_module_counts_biases_alike(problem: Problem) -> None:
    for method in sizes.METHODS.values():
        found = method(problem, 0.5)
        assert found is None or problem.rest_nbytes < found.nbytes < problem.dense_nbytes
