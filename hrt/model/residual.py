"""PDE residuals of a deployed network: `residual(model, x, "d1 + u*d0 - 0.00318*d0d0")`. The names of derivatives in
the expression decide what is asked of the network.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.derivatives.expressions import Names, Term, Values, parse_expression
from hrt.errors import InputError
from hrt.model.contents import Predictor
from hrt.model.rows import Rows
from hrt.support.arrays import as_tensor
from hrt.support.torch_state import guarded_values
from hrt.support.types import Kind


@guarded_values
def residual(model: Predictor, x: Kind | Sequence[Kind], expression: str | Callable[..., Any]) -> Kind:
    """The residual of a differential equation at every row of `x`.

    The network computes in float32, and all derivatives that are named in one pass. What is made of them is float64.

    Args:
        model: From `hrt.compress` or `hrt.load`.
        x: As `predict` takes it: (rows, features), or a tuple for several inputs.
        expression: Text such as "d1 + u*d0 - 0.00318*d0d0", or a Python function whose arguments are called as names
            are there, `def burgers(u, d0, d1, d0d0): ...`; those with a default are its own. It gets float64 arrays of
            the kind of `x`, (rows,) or (components, rows) where the network has several, and returns (rows,) or one.

    Returns:
        (rows,) in float64, numpy or torch as `x` is; of a grid of samples, its axes.

    Raises:
        InputError: `x` or the expression does not fit.
        DerivativeError: An op has no rule for the order asked. What a function raises passes as it is.

    Example:
        >>> import torch, hrt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> model = hrt.compress(net, tol=1e-3, progress=False)
        >>> hrt.residual(model, torch.rand(5, 2), "d1 + u*d0 - 0.00318*d0d0").shape
        torch.Size([5])
    """
    names = Names.of(model.program)
    given = Rows.of(model.program, x)
    arrays = not isinstance(given.arrays[0], Tensor)
    if isinstance(expression, str):
        parsed = parse_expression(expression, names)
        derivatives, evaluate = parsed.derivatives, parsed.evaluate
    elif callable(expression):
        derivatives, evaluate = _of_function(expression, names, arrays)
    else:
        raise InputError(f"Found {type(expression).__name__}. Expected an expression as text, or a function.")
    values = _values(model, given, derivatives)
    rows = values["u"].shape[1]
    result = evaluate(values).to(values["u"])
    if result.shape not in ((), (rows,)):
        raise InputError(f"Found a residual of shape {tuple(result.shape)}. Expected ({rows},), one number a row.")
    result = result.expand(rows).clone().reshape(given.lead)
    answer: Any = result.numpy() if arrays else result
    return answer


@dataclass(frozen=True)
class Summary:
    """Figures of finite residuals; of absolute values `maximum`, in `row`, and `percentile`: 99 % are below."""

    rows: int
    rms: float
    percentile: float
    maximum: float
    row: int
    not_finite: int


def summarize(residuals: np.ndarray) -> Summary:
    """Figures of residuals (rows,). Raises InputError where no row is finite, or there is none."""
    size = np.abs(np.asarray(residuals, dtype=np.float64))
    finite = size[np.isfinite(size)]
    if not len(finite):
        raise InputError(f"Found {len(size)} rows, none with a finite residual. Expected at least one.")
    largest = float(finite.max())
    scale = largest or 1.0  # squares of large residuals shall not overflow
    rms = scale * float(np.sqrt(np.mean((finite / scale) ** 2)))
    row = int(np.flatnonzero(size == largest)[0])
    return Summary(len(size), rms, float(np.percentile(finite, 99)), largest, row, len(size) - len(finite))


def _of_function(function: Callable[..., Any], names: Names, arrays: bool) -> tuple[tuple[str, ...], Term]:
    """The derivatives among the argument names of a user's function, and that function of values."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise InputError(f"Found a function whose arguments cannot be read: {error}. Expected a plain one.") from error
    keys: dict[str, str] = {}
    for p in parameters:
        if p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        key = p.name if p.name == "pi" else names.resolve(p.name)
        if key is None or p.kind is p.POSITIONAL_ONLY:
            raise InputError(
                f"Found a function with the argument {p.name!r}. Expected arguments called as {names}; what is "
                "the function's own needs a default."
            )
        keys[p.name] = key

    def evaluate(values: Values) -> Tensor:
        given = {name: values[key] for name, key in keys.items() if key != "pi"}
        given = {name: v[0] if v.ndim == 2 and names.components == 1 else v for name, v in given.items()}
        given = {name: v.numpy() for name, v in given.items()} if arrays else given
        answer = function(**given, **({"pi": math.pi} if "pi" in keys else {}))
        try:
            numbers = torch.as_tensor(answer).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"Found a function that returns {type(answer).__name__}. Expected numbers.") from error
        if numbers.is_complex():
            raise InputError("Found a function that returns complex numbers. Expected real ones, such as their abs().")
        return numbers.to(torch.float64)

    return tuple(dict.fromkeys(key for key in keys.values() if key[0] == "d")), evaluate


def _values(model: Predictor, given: Rows, derivatives: tuple[str, ...]) -> Values:
    """What is named, computed by the network in float32 and handed on in float64."""
    rows, count = given.arrays[0].shape[0], len(model.program.outputs)
    answer = (model.differentiated(derivatives) if derivatives else model).predict(tuple(given.part(0, rows)))
    outputs = answer if isinstance(answer, tuple) else (answer,)

    def flat(parts: Sequence[Any]) -> Tensor:  # (features, rows)
        columns = [as_tensor(p, "value").reshape(rows, math.prod(p.shape[1:])).double() for p in parts]
        return torch.cat([c.to(columns[0].device) for c in columns], 1).T

    groups = [flat(outputs[k : k + count]) for k in range(0, len(outputs), count)]
    coordinates = {f"x{k}": row for k, row in enumerate(flat(given.arrays))}
    return dict(zip(("u", *derivatives), groups, strict=True)) | coordinates
