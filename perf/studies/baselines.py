"""What every baseline shares: the network and its data, a layer's candidate forms, and the search for the smallest.

A baseline offers `Form`s, approximations of one weight with the bytes that they occupy. Biases stay float32 for all.
A baseline is searched on the very inputs on which it is then reported, which flatters it; hrt is not given these
inputs. A layer that a baseline would make larger than dense float32 stays dense.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hrt.calibration.moments import evaluate
from hrt.capture.torch_export import capture
from hrt.perf.methods.svd import second_moments
from hrt.program.program import Program


@dataclass(frozen=True, eq=False)
class Form:
    """One weight in some approximation: `matrix` (m, n) float64, and its bytes."""

    nbytes: int
    matrix: Tensor

    @staticmethod
    def dense(matrix: Tensor) -> "Form":
        """The float32 original."""
        return Form(4 * matrix.numel(), matrix)


Forms = Mapping[str, Form]  # by weight name


@dataclass(frozen=True)
class Result:
    """A compressed network: bytes of weights, tables and biases, and its error on the fresh inputs."""

    nbytes: int
    error: float


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, the second moments E[x x^T] of its layers' inputs on calibration rows, and fresh rows to measure on.

    reference: the outputs on `fresh`, float64 (rows, features).
    """

    program: Program
    moments: Mapping[str, Tensor]
    fresh: tuple[Tensor, ...]
    reference: Tensor

    @staticmethod
    def make(net: nn.Module | Program, calibration: Tensor, fresh: Tensor) -> "Problem":
        """Capture `net`, one input (batch, features), and observe its layers on `calibration`."""
        program = net if isinstance(net, Program) else capture(net, [calibration[:2]])
        return Problem(program, second_moments(program, (calibration,)), (fresh,), evaluate(program, [fresh]))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The float64 weight matrices by name."""
        constants = ((name, self.program.constants[name]) for name in self.program.weights)
        return {name: w for name, w in constants if isinstance(w, Tensor)}

    @property
    def rest_nbytes(self) -> int:
        """Bytes of the biases and other constants, float32."""
        weights = self.weights
        return sum(4 * math.prod(c.shape) for name, c in self.program.constants.items() if name not in weights)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the float32 network."""
        return self.rest_nbytes + sum(4 * w.numel() for w in self.weights.values())

    def measure(self, forms: Forms) -> Result:
        """The network with these forms, other weights as they are."""
        chosen = {name: Form.dense(w) for name, w in self.weights.items()} | dict(forms)
        outputs = evaluate(self.program.with_constants({k: f.matrix for k, f in forms.items()}), self.fresh)
        error = float((outputs - self.reference).norm() / self.reference.norm())
        nbytes = self.rest_nbytes + sum(f.nbytes for f in chosen.values())
        return Result(nbytes, error if math.isfinite(error) else math.inf)


def smallest_widened(problem: Problem, narrow: Sequence[Forms], tol: float) -> Result | None:
    """All weights in the first of the `narrow` forms, then, while the error is above `tol`, one weight at a time in the
    next of them and at last in float32: the step that lowers the squared error most per byte. None where nothing
    smaller than dense meets `tol`.
    """
    steps = {name: _increasing([f[name] for f in narrow], Form.dense(w)) for name, w in problem.weights.items()}
    found = problem.measure({name: forms[0] for name, forms in steps.items() if forms})
    while found.error > tol:
        best, gain = "", -math.inf
        trials = {name: problem.measure(_widened(problem, steps, name)) for name, forms in steps.items() if forms}
        for name, trial in trials.items():
            holds = trial.error <= tol
            lowered = min(found.error, 1e100) ** 2 - min(trial.error, 1e100) ** 2
            value = 1e300 / trial.nbytes if holds else lowered / max(1, trial.nbytes - found.nbytes)
            if value > gain:
                best, gain = name, value
        if not best:
            return None
        found = trials[best]
        steps[best] = steps[best][1:]
    return found if found.nbytes < problem.dense_nbytes else None


def _increasing(forms: list[Form], dense: Form) -> list[Form]:
    """Without those that a later form, or dense, undercuts: scales and tables weigh on narrow matrices."""
    return [f for k, f in enumerate(forms) if all(f.nbytes < later.nbytes for later in [*forms[k + 1 :], dense])]


def _widened(problem: Problem, steps: Mapping[str, list[Form]], name: str) -> Forms:
    """The current forms, but `name` one step wider."""
    current = {k: forms[0] for k, forms in steps.items() if forms and k != name}
    return current | ({name: steps[name][1]} if len(steps[name]) > 1 else {})


def smallest_bisected(problem: Problem, family: Callable[[float], Forms], tol: float) -> Result | None:
    """The smallest network of a one-parameter family, from 1 (all is lost) to 1e-8 (all is kept), that meets `tol`: the
    loosest of three values per decade that does, refined by bisection in the logarithm. None where it is not smaller
    than dense.
    """
    for step in range(1, 25):
        best = problem.measure(family(10.0 ** (-step / 3)))
        if best.error <= tol:
            break
    else:
        return None
    low, high = -step / 3, -(step - 1) / 3
    for _ in range(8):
        middle = (low + high) / 2
        found = problem.measure(family(10.0**middle))
        if found.error > tol:
            high = middle
        else:
            low = middle
            best = found if found.nbytes < best.nbytes else best
    return best if best.nbytes < problem.dense_nbytes else None
