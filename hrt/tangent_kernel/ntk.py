"""The empirical neural tangent kernel of a network's value, or of any function of it, on a sample of points.

Theta[(i, a), (j, b)] = sum over parameters p of d g_a(x_i)/dp  d g_b(x_j)/dp  (Jacot, Gabriel, Hongler, NeurIPS 2018),
with g the network's outputs or a residual's components. The parameters of a compressed network are those of the dense
network that it stands for: every H(W) is written out, as a matrix of independent entries.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_leaves

from hrt.calibration.samples import as_rows
from hrt.capture.torch_export import capture
from hrt.errors import HrtError, InputError
from hrt.hmatrix.hmatrix import relative_difference
from hrt.program.dense_view import DenseView
from hrt.program.program import Program, carried_nbytes
from hrt.support.arrays import as_parts
from hrt.support.torch_state import guarded
from hrt.support.types import Inputs
from hrt.tangent_kernel.kernel_drift import LEADING, Drift, drift

Residual = Callable[..., Tensor]  # (network, *points) -> (rows, ...): network(*points) is a tensor, or a tuple of them
Parameters = Mapping[str, Tensor]
MEMORY = 1 << 30  # bytes
COPIES = 6  # blocks of the Jacobian alive at once: two, and what the uses of a weight add up to (5.2 measured for u_xx)
KERNELS = 3  # the same of Theta, where one block is all of it
FEWEST_ROWS, MOST_ROWS = 8, 32  # points of the kernel in a certificate
EVALUATIONS = 32  # of the network on as many rows as verify it: no search takes less, and the drift may take no more
LEAST_WORK = 10**9  # multiplications, a fraction of a second
BACKWARD = 16  # of one component's derivatives, in multiplications per parameter
DTYPES = (torch.float64, torch.float32)


@runtime_checkable
class HoldsProgram(Protocol):
    """Anything with a program: a CompressedModel, or a DenseView."""

    @property
    def program(self) -> Program: ...


Network = nn.Module | Program | HoldsProgram


@guarded
def ntk(
    net: Network,
    points: Inputs,
    *,
    residual: Residual | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The empirical neural tangent kernel of a network on a sample of points.

    Args:
        net: An nn.Module, in evaluation mode, with all its parameters. Or a CompressedModel or its program, with the
            weights, written out, and biases of its linear layers. It is not changed.
        points: Tensor or array (rows, *shape), a tuple of them for several inputs.
        residual: None for the network's value. Else residual(network, *points) of shape (rows, ...), each row a
            function of its own point alone, differentiated with torch.func (jvp, jacrev), not torch.autograd.grad.
        memory: Bytes for kernel, parameters and Jacobians, computed by blocks of points that fit.
        dtype: torch.float64 or torch.float32, of all arithmetic.

    Returns:
        Theta (rows * k, rows * k) of `dtype`, symmetric, for k components. Row i * k + a is component a of point i.

    Raises:
        InputError: No points, something not finite, a residual that does not depend on the network, or too little
            memory; the message names the bytes that would do.

    Example:
        >>> import torch, hrt
        >>> hrt.ntk(torch.nn.Linear(3, 2), torch.rand(4, 3)).shape
        torch.Size([8, 8])

    Source:
        Jacot, Gabriel and Hongler, "Neural tangent kernel", NeurIPS 2018.
    """
    if dtype not in DTYPES:
        raise InputError(f"Found dtype {dtype!r}. Expected torch.float64 or torch.float32.")
    tensors = as_points(points, dtype)
    with _function(net, residual, dtype) as (function, parameters):
        return _kernel(function, parameters, tensors, memory, dtype)


@guarded
def compare_ntk(
    net: Network,
    compressed: Network,
    points: Inputs,
    *,
    residual: Residual | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float64,
    leading: int = LEADING,
) -> Drift:
    """How far the tangent kernel of `compressed` is from that of `net`, in the parameters of linear layers.

    Args:
        net: An nn.Module, a CompressedModel or its program. A module beside one of the others is captured.
        compressed: The same network, of any of these kinds.
        points: As for `ntk`, which takes `residual`, `memory` and `dtype` too.
        residual: The function of the network whose kernel it is; None for the value.
        memory: Bytes.
        dtype: torch.float64 or torch.float32.
        leading: How many leading eigenvectors span the spaces whose angles are compared.

    Returns:
        The drift.

    Raises:
        InputError: As `ntk`, or the two have other parameters, or the kernel of `net` is zero.

    Example:
        >>> import torch, hrt
        >>> net = torch.nn.Linear(3, 2)
        >>> hrt.compare_ntk(net, net, torch.rand(4, 3)).relative
        0.0
    """
    pair = [net, compressed]
    if not all(isinstance(n, nn.Module) for n in pair):
        rows = as_points(points, torch.float64)
        pair = [capture(n, [x[:2] for x in rows]) if isinstance(n, nn.Module) else n for n in pair]
    shapes = []
    for n in pair:
        with _function(n, residual, dtype) as (_, parameters):
            shapes.append(sorted(tuple(p.shape) for p in parameters.values()))
    if shapes[0] != shapes[1]:
        raise InputError(f"Found parameters of shapes {shapes[0]} and {shapes[1]}. Expected the same network twice.")
    before, after = (ntk(n, points, residual=residual, memory=memory, dtype=dtype) for n in pair)
    return drift(before, after, leading)


def affordable_drift(
    original: DenseView, compressed: DenseView, rows: Sequence[Tensor]
) -> tuple[float | None, int, str]:
    """The relative drift of the value's kernel on the first few `rows` (one tensor per input), how many, and why there
    is none. Work is counted, not timed: the same network has the same certificate on every machine.
    """
    program = original.program
    if parts := carried_nbytes(program):
        return None, 0, f"nothing is known of the derivatives of {', '.join(parts)}"
    names = {name for node in program.linear_nodes for name in node.inputs[1:]} - program.generated.keys()
    count = sum(math.prod(program.constants[name].shape) for name in names)
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    width = max(1, sum(math.prod(shapes.get(name, ())) for name in program.outputs))
    each = torch.float64.itemsize * COPIES * width * count
    most = min(MOST_ROWS, len(rows[0]), MEMORY // 2 // max(1, each))
    budget = max(LEAST_WORK, EVALUATIONS * 2 * count * len(rows[0]))
    size = max((n for n in range(most + 1) if kernel_work(n * width, count) <= budget), default=0)
    if size < FEWEST_ROWS:
        return None, 0, f"{width} output(s) times {count:,} parameters allow {size} point(s), fewer than {FEWEST_ROWS}"
    try:
        before, after = (ntk(n, tuple(x[:size] for x in rows)) for n in (original, compressed))
        if not float(before.norm()):
            raise InputError("The kernel is zero: nothing is relative to it.")
        return relative_difference(after, before), size, ""
    except InputError as error:
        return None, 0, str(error)


def kernel_work(components: int, parameters: int) -> int:
    """Multiplications, about, for two kernels of so many points times outputs."""
    return 2 * parameters * components * (components + BACKWARD)


def as_points(points: Inputs, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Points as tensors (rows, ...) of `dtype`. Raises InputError for none, unequal numbers, and NaN or infinity."""
    return tuple(x.to(dtype) for x in as_rows(as_parts(points), "point array"))


Function = Callable[..., Tensor]  # (parameters, *points of one row) -> (components,)


@contextmanager
def _function(net: Network, residual: Residual | None, dtype: torch.dtype) -> Iterator[tuple[Function, Parameters]]:
    """What is differentiated, and by which parameters. A module is in evaluation mode meanwhile."""
    of = residual or _value
    if isinstance(net, nn.Module):
        whole = _Applied(net, of)
        tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        state = {k: v.detach().to(dtype if v.is_floating_point() else v.dtype) for k, v in tensors.items()}
        names = [k for k, _ in whole.named_parameters()]
        modes = [(m, m.training) for m in net.modules()]

        def call(parameters: Parameters, *points: Tensor) -> Any:
            return functional_call(whole, {**state, **parameters}, points)
    elif isinstance(net, (Program, HoldsProgram)):
        view = net if isinstance(net, DenseView) else DenseView(net if isinstance(net, Program) else net.program)
        program, state = view.program, {k: c.to(dtype) for k, c in view.constants.items()}
        linear = dict.fromkeys(name for node in program.linear_nodes for name in node.inputs[1:])
        names = [name for name in linear if name not in program.generated]
        modes = []

        def call(parameters: Parameters, *points: Tensor) -> Any:
            def network(*x: Tensor) -> Any:
                program.check_inputs(x)
                outputs = program.run(x, dtype=dtype, constants={**state, **parameters})
                return outputs[0] if len(outputs) == 1 else outputs

            return of(network, *points)
    else:
        raise InputError(f"Found a {type(net).__name__}. Expected an nn.Module, a Program or a CompressedModel.")
    if not names:
        raise InputError("The network has no parameters. Expected weights to differentiate by.")

    def function(parameters: Parameters, *points: Tensor) -> Tensor:
        """Components of one point, given without the axis of rows."""
        value = call(parameters, *(x[None] for x in points))
        if not isinstance(value, Tensor) or value.ndim < 1 or value.shape[0] != 1:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"The residual gave {what} for one point. Expected a tensor (rows, ...), here (1, ...).")
        return value.reshape(-1)

    try:
        for module, _ in modes:
            module.training = False
        yield function, {k: state[k] for k in names}
    finally:
        for module, training in modes:
            module.training = training


class _Applied(nn.Module):
    """A function of a network as a module, so that the network's parameters can be exchanged while it runs."""

    def __init__(self, net: nn.Module, of: Residual) -> None:
        super().__init__()
        self.net, self.of = net, of

    def forward(self, *points: Tensor) -> Tensor:
        return self.of(self.net, *points)


def _value(network: Callable[..., Any], *points: Tensor) -> Tensor:
    """All outputs side by side, (rows, features)."""
    return torch.cat([y.flatten(1) if y.ndim > 1 else y[:, None] for y in tree_leaves(network(*points))], dim=1)


def _kernel(
    function: Function, parameters: Parameters, points: Sequence[Tensor], memory: int, dtype: torch.dtype
) -> Tensor:
    rows, width = len(points[0]), _width(function, parameters, points)
    count = sum(p.numel() for p in parameters.values())
    fixed = dtype.itemsize * (KERNELS * (rows * width) ** 2 + 2 * count)
    each = dtype.itemsize * COPIES * width * count
    if not isinstance(memory, (int, float)) or not memory >= fixed + each:
        raise InputError(
            f"Found memory = {memory!r} bytes. Expected at least {fixed + each:,}: {fixed:,} for the kernel of {rows} "
            f"points with {width} component(s) and for {count:,} parameters, {each:,} for a block of one point."
        )
    size = min(rows, int((memory - fixed) // each))
    jacobian = vmap(jacrev(function), in_dims=(None, *[0] * len(points)))
    theta = torch.empty(rows * width, rows * width, dtype=dtype, device=next(iter(parameters.values())).device)

    def block(start: int) -> list[Tensor]:
        try:
            jacobians = jacobian(dict(parameters), *(x[start : start + size] for x in points))
        except HrtError:
            raise
        except Exception as error:
            raise InputError(
                f"The Jacobian cannot be computed: {error} Expected a function of one point at a time that torch.func "
                "can differentiate (in a residual torch.func.jvp or jacrev, not torch.autograd.grad)."
            ) from error
        return [j.detach().flatten(2).flatten(0, 1) for j in jacobians.values()]

    for start in range(0, rows, size):
        rows_here = block(start)
        here = slice(start * width, (start + size) * width)
        square = _products(rows_here, rows_here)
        theta[here, here] = (square + square.T) / 2
        for before in range(0, start, size):
            there = slice(before * width, (before + size) * width)
            theta[here, there] = _products(rows_here, block(before))
            theta[there, here] = theta[here, there].T
    if not bool(torch.isfinite(theta).all()):
        raise InputError("The kernel is NaN or infinite: so is a derivative at some point. Expected finite ones.")
    return theta


def _products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    total = a[0] @ b[0].T
    for x, y in zip(a[1:], b[1:], strict=True):
        total.addmm_(x, y.T)
    return total


def _width(function: Function, parameters: Parameters, points: Sequence[Tensor]) -> int:
    """How many components a point has. Raises InputError where they do not depend on the parameters at all."""
    leaves = {k: p.clone().requires_grad_() for k, p in parameters.items()}
    with torch.enable_grad():
        try:
            value = function(leaves, *(x[0] for x in points))
        except HrtError:
            raise
        except Exception as error:
            raise InputError(f"The function fails on the first point: {type(error).__name__}: {error}") from error
    if not value.requires_grad:
        raise InputError(
            "The residual does not depend on the network's parameters: its kernel would be zero. Expected a function "
            "of the network that it is given (not of another one), without detach or no_grad."
        )
    if not value.numel():
        raise InputError(f"The function gave {tuple(value.shape)} for one point. Expected at least one component.")
    return value.numel()
