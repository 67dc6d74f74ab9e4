"""What a picture may know beside the compressed network: the original, and inputs, so that fields can be drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.moments import evaluate, layer_moments
from hrt.calibration.samples import Box, Inputs, given_inputs
from hrt.capture.calls import PLAIN_CALL
from hrt.capture.network import Captured, Network, call_for, captured_network
from hrt.errors import InputError
from hrt.model.contents import Contents
from hrt.program.dense_view import to_float64
from hrt.support.arrays import as_parts

SAMPLES = 1024  # of a box, where moments are taken
ALONG, ACROSS = 401, 121  # points of a line; of each side of a square
FIELDS = 3  # output columns that are drawn, the first ones


@dataclass(frozen=True, eq=False)
class Reference:
    """The network that was compressed. inputs: rows or boxes where it is used; None: nothing is known of them."""

    model: Contents
    network: Captured | None
    inputs: Inputs | None
    samples: tuple[Tensor, ...] | None  # of these

    @staticmethod
    def of(model: Contents, network: Network | None, inputs: Inputs | None) -> "Reference":
        """Raises InputError for a network that is no original of `model`, and for inputs that do not fit."""
        given = None if inputs is None else given_inputs(inputs, count=SAMPLES)
        samples, call = (None if given is None else given.rows), PLAIN_CALL
        if given is not None and network is not None:
            samples, call = call_for(network, given)
        if samples is not None:
            model.program.check_inputs(samples)
        captured = None if network is None else captured_network(network, samples, call)
        shapes = {} if captured is None else {k: tuple(c.shape) for k, c in captured.program.constants.items()}
        missing = [k for k in model.program.weights if shapes.get(k) != tuple(model.program.constants[k].shape)]
        if captured is not None and missing:
            raise InputError(f"The reference has no such weight {missing[0]!r}. Expected the original network.")
        return Reference(model, captured, inputs, samples)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The original weights, float64, by name; empty where the original is not known."""
        if self.network is None:
            return {}
        return {k: to_float64(self.network.program.constants[k]) for k in self.model.program.weights}

    @cached_property
    def roots(self) -> Mapping[str, Tensor]:
        """By weight, R with R R^T = E[x x^T] of what it multiplies; empty without inputs."""
        if self.samples is None:
            return {}
        program = self.model.program if self.network is None else self.network.program
        moments = layer_moments(program, self.samples)
        return {k: _root(moments[k].second) for k in self.model.program.weights if k in moments}

    @property
    def has_fields(self) -> bool:
        """Whether there is one input of one or two numbers, and something known of it."""
        shapes = [v.shape for v in self.model.program.inputs]
        return self.inputs is not None and shapes in ([(1,)], [(2,)])

    @cached_property
    def points(self) -> Tensor:
        """Where fields are drawn, (rows, 1 or 2): a grid over the box, or the rows, along a line in order."""
        if self.samples is None:
            return torch.zeros(0, 1, dtype=torch.float64)
        part = as_parts(self.inputs)[0]
        if not isinstance(part, Box):
            rows = self.samples[0]
            return rows[rows[:, 0].argsort()] if rows.shape[1] == 1 else rows
        count = ALONG if part.width == 1 else ACROSS
        axes = [torch.linspace(a, b, count, dtype=torch.float64) for a, b in zip(part.low, part.high, strict=True)]
        return torch.cartesian_prod(*axes).reshape(-1, part.width)

    @cached_property
    def fields(self) -> tuple[Tensor | None, Tensor]:
        """The original's outputs (None where it is not known) and the compressed network's, (rows, columns) float64."""
        rows = (self.points.to(torch.float32),)
        compressed = evaluate(self.model.program, rows)
        if self.network is None:
            return None, compressed
        answers = self.network.answers
        return (evaluate(self.network.program, rows) if answers is None else answers.flat(rows)), compressed


def _root(second: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(second)
    return vectors * values.clamp_min(0).sqrt()


def draw_fields(figures: Any, reference: Reference, column: int) -> None:
    """One output column: along a line u and u_h, and their difference; over a plane three pictures.

    figures: a sub-figure of matplotlib.
    """
    original, compressed = reference.fields
    u = None if original is None else original[:, column]
    u_h, points = compressed[:, column], reference.points
    parts = [("u_h", u_h)] if u is None else [("u", u), ("u_h", u_h), ("u - u_h", u - u_h)]
    figures.suptitle(_title(parts, column), fontsize=10)
    if points.shape[1] == 2:
        for axes, (name, values) in zip(figures.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
            _plane(axes, points, values, name, parts)
        return
    shown = figures.subplots(1, min(2, len(parts)), squeeze=False)[0]
    x = points[:, 0].tolist()
    for (name, values), style in zip(parts[:2], ("-", "--"), strict=False):
        shown[0].plot(x, values.tolist(), style, label=name)
    shown[0].legend(fontsize=8, frameon=False)
    for name, values in parts[2:]:
        shown[1].plot(x, values.tolist(), label=name, color="#c8553d")
        shown[1].legend(fontsize=8, frameon=False)
    for axes in shown:
        axes.set_xlabel("x0")
        axes.tick_params(labelsize=8)


def _title(parts: list[tuple[str, Tensor]], column: int) -> str:
    if len(parts) == 1:
        return f"output column {column}, compressed (the original is not known)"
    size = float(parts[0][1].norm())
    share = f"{float(parts[2][1].norm()) / size:.2e}" if size else "-"
    return f"output column {column}: original u, compressed u_h; relative L2 difference on these points {share}"


def _plane(axes: Any, points: Tensor, values: Tensor, name: str, parts: list[tuple[str, Tensor]]) -> None:
    """u and u_h share their colours, the difference is centred at zero."""
    if name.startswith("u -"):
        high = float(values.abs().max()) or 1.0
        style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -high, "vmax": high}
    else:
        first = parts[0][1]
        style = {"cmap": "viridis", "vmin": float(first.min()), "vmax": float(first.max())}
    if len(points) == ACROSS**2:
        x, y, v = (t.reshape(ACROSS, ACROSS).numpy() for t in (points[:, 0], points[:, 1], values))
        drawn = axes.pcolormesh(x, y, v, shading="gouraud", rasterized=True, **style)
    else:
        drawn = axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), c=values.numpy(), s=6, **style)
    bar = axes.figure.colorbar(drawn, ax=axes)
    bar.ax.tick_params(labelsize=8)
    axes.set_title(name, fontsize=10)
    axes.set(xlabel="x0", ylabel="x1")
    axes.tick_params(labelsize=8)
