"""What the page says of a compressed network, as rows and figures. Every figure is the certificate's own."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hrt.certificate.certificate import Certificate, LayerRecord, Statement
from hrt.hmatrix.diagonal import block_count
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.contents import Contents
from hrt.model.verdict import column_names, details, head
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.runtime.native_costs import ONNX, UNKNOWN, native_us, onnx_features
from hrt.runtime.onnx_costs import program_us

BATCHES = (1, 8, 64, 256, 1024)
MOST_COLUMNS = 16  # output columns in the table: the worst ones
MOST_POINTS = 300  # of the line through all of them
LEAST_GAUGE = 0.25  # of a gauge's width is the tolerance, where errors are far beyond it
KINDS = ("measured", "estimated", "guaranteed")
CONTEXT = {  # facts of a certificate that stand at the end, and what they are
    "calibration_rows": "rows that calibrated",
    "search_rows": "rows that the search used",
    "held_out_rows": "rows held out",
    "seed": "seed",
    "target": "target",
    "reference": "reference",
    "torch": "torch",
    "compiler": "compiler",
    "precision": "arithmetic on a GPU",
}


@dataclass(frozen=True)
class Column:
    """An output column or a derivative. error: relative, measured.  upper: its 99 % limit, where it has one of its own.
    rms: of its values.  largest: the largest absolute error.
    """

    name: str
    error: float
    upper: float | None = None
    rms: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class Gauge:
    """A bar of 100 units for errors. tol: where the tolerance stands.  unit: units for an error of 1."""

    tol: float
    unit: float

    @staticmethod
    def of(tol: float, errors: Iterable[float]) -> "Gauge":
        """Wide enough for the largest error, but for those far beyond the tolerance."""
        share = max(LEAST_GAUGE, min([0.8, *(0.9 * tol / e for e in errors if e > tol)]))
        return Gauge(round(100 * share, 2), 100 * share / tol)

    def at(self, error: float) -> float:
        """Where an error stands; the end for those beyond it."""
        return 0.0 if math.isnan(error) else round(min(self.unit * error, 100.0), 2)


@dataclass(frozen=True)
class Outputs:
    """The worst columns of all, with how many there are and how many beyond `tol`, and a row for all of them together.

    profile: a line through the errors of all columns, where there are more than the worst; empty else.
    """

    columns: tuple[Column, ...]
    count: int
    over: int
    together: tuple[Column, ...]
    gauge: Gauge
    profile: str

    @staticmethod
    def of(model: Contents) -> "Outputs":
        """The rows in the order of their columns where all are shown, else the worst first."""
        c, program = model.certificate, model.program
        errors = list(c.measured.get("per_output", ()))
        names = column_names([(n, program.shape_of(n)) for n in program.outputs], len(errors))
        upper, rms, largest = (
            _as_many(figures, len(errors))
            for figures in (
                c.estimated.get("per_output_upper_99", ()),
                c.measured.get("output_rms", ()),
                c.measured.get("max_abs_error", ()),
            )
        )
        columns = [Column(*row) for row in zip(names, errors, upper, rms, largest, strict=True)]
        over = sum(1 for column in columns if column.rms != 0 and not column.error <= c.tol)
        together = tuple(_together(c))
        gauge = Gauge.of(c.tol, (e for row in (*together, *columns) for e in (row.error, row.upper or 0.0)))
        if len(columns) <= MOST_COLUMNS:
            return Outputs(tuple(columns), len(errors), over, together, gauge, "")
        worst = sorted(columns, key=lambda column: -_sortable(column.error))[:MOST_COLUMNS]
        return Outputs(tuple(worst), len(errors), over, together, gauge, _profile(errors, gauge))

    @property
    def rows(self) -> tuple[Column, ...]:
        """What is held to the tolerance first, then the columns. One column and all together are one row."""
        if self.count == 1 and self.together:
            (column,), (first, *more) = self.columns, self.together
            return (replace(column, error=first.error, upper=first.upper), *more)
        return self.together + self.columns


def _profile(errors: Sequence[float], gauge: Gauge) -> str:
    """Steps from column to column, 100 units wide and high; of very many columns the worst of each bin."""
    each = -(-len(errors) // MOST_POINTS)
    bins = [max(gauge.at(e) for e in errors[k : k + each]) for k in range(0, len(errors), each)]
    width = 100 / len(bins)
    steps = (f"{'L' if k else 'M'}{k * width:.4g} {100 - v:.4g}H{(k + 1) * width:.4g}" for k, v in enumerate(bins))
    return "".join(steps)


def _together(c: Certificate) -> Iterable[Column]:
    """The errors that are held to the tolerance: of all columns together, and of each derivative."""
    measured, estimated = c.measured, c.estimated
    error = measured.get("runtime_error", measured.get("output_error"))
    if error is not None:
        yield Column("all outputs together", error, estimated.get("output_error_upper_99"))
    for name in c.derivatives:
        error = measured["derivative_runtime_error"][name]
        yield Column(f"derivative {name}", error, estimated["derivative_error_upper_99"][name])


def _as_many(figures: Sequence[float], count: int) -> Sequence[float | None]:
    """`figures` if there is one for every column, else none of them."""
    return figures if len(figures) == count else [None] * count


def _sortable(value: float) -> float:
    return -math.inf if math.isnan(value) else value


@dataclass(frozen=True)
class Latency:
    """Microseconds of a call on so many rows, predicted, on one thread. native: None where hrt predicts nothing."""

    rows: int
    onnxruntime: float
    dense: float
    native: float | None


def predicted(program: Program, batches: Sequence[int] = BATCHES) -> list[Latency]:
    """What the cost models expect of the network on a CPU. dense: ONNX Runtime with every weight written out."""
    program = joined(program)
    native = not any(node.op in UNKNOWN for node in program.nodes)
    weights = {name: program.constants[name] for name in program.weights}
    stacks = {name for name, h in weights.items() if isinstance(h, HMatrix) and block_count(h)}
    written_out = {name: "stacked" if name in stacks else "multiplied" for name in weights}
    latencies = []
    for rows in batches:
        features = onnx_features(program, rows)  # once: of a large operator they take a while
        compressed = sum(ONNX[k] * v for k, v in features.items())
        more = program_us(program, written_out, rows) - features["linear"]
        us = native_us(program, rows) if native else None
        latencies.append(Latency(rows, compressed, compressed + ONNX["linear"] * more, us))
    return latencies


@dataclass(frozen=True)
class Verdict:
    """status: "good", "bad" or "partly"; words: the verdict by itself; sentence: what it rests on."""

    status: str
    words: str
    sentence: str


@dataclass(frozen=True)
class Words:
    """The certificate in the words of the report, each line under its own kind."""

    verdict: Verdict
    by_kind: Mapping[str, tuple[str, ...]]
    besides: tuple[str, ...]
    remarks: tuple[str, ...]
    statements: tuple[Statement, ...]
    by_statement: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(model: Contents) -> "Words":
        """Of a model's certificate."""
        c, program = model.certificate, model.program
        first, *lines = head(c, [(name, program.shape_of(name)) for name in program.outputs])
        lines += details(c, program.outputs, verbose=True)
        in_tables = tuple(f"{name}: measured" for name in c.derivatives)
        lines = [line for line in lines if not line.startswith(in_tables)]
        by_kind = {k: tuple(line.removeprefix(k).lstrip(": ") for line in lines if line.startswith(k)) for k in KINDS}
        words, _, sentence = first.removeprefix("verdict: ").partition("; ")
        if c.kind != "output":
            words, sentence = "of the weights alone", words
        status = {"held": "good", "NOT held": "bad"}.get(words, "partly")
        return Words(
            Verdict(status, words, sentence),
            by_kind,
            tuple(line for line in lines if not line.startswith(KINDS)),
            tuple(c.context.get("remarks", ())),
            c.statements,
            _counted(c.layers),
            {label: str(c.context[k]) for k, label in CONTEXT.items() if k in c.context},
        )


def _counted(layers: Sequence[LayerRecord]) -> dict[str, Counter[str]]:
    """Of the paper's statements on layers, by name: how often each verdict was given."""
    verdicts: dict[str, Counter[str]] = {}
    for layer in layers:
        for statement in layer.statements:
            verdicts.setdefault(statement.name, Counter())[statement.verdict] += 1
    return verdicts
