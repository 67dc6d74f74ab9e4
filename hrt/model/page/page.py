"""One HTML file that says of a compressed network what the report says, and shows its layers.

The file loads nothing. Names in it may come from a stranger's `.hrt`: all text is escaped, made printable, and cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

import hrt
from hrt.certificate.certificate import LayerRecord
from hrt.errors import printable
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.contents import Contents
from hrt.model.page.facts import Outputs, Words, predicted
from hrt.model.page.pictures import MOST_BLOCKS, Blocks, Spectrum
from hrt.model.sizes import Sizes
from hrt.program.program import Program
from hrt.support.atomic_files import replacing
from hrt.support.progress import Advance, silent

TEMPLATE = "page.html.jinja"
PICTURED = 12  # layers that are drawn, the largest
LONGEST_NAME, LONGEST_REASON, LONGEST_TEXT = 120, 200, 1200  # characters; of longer ones both ends are shown
ROW = 200  # bytes of a row of a table without its texts
DRAWN = 0.6  # of the work is pictures
MOST_ROWS = 600_000  # bytes of the table of all layers
MOST_BYTES = 2_000_000  # of a page, whatever the network


@dataclass(frozen=True)
class Layer:
    """A layer that is drawn: its record, where the certificate has one, its blocks (None without entries), its
    singular values.
    """

    name: str
    shape: tuple[int, int]
    record: LayerRecord | None
    blocks: Blocks | None
    spectrum: Spectrum


def write_page(
    model: Contents,
    path: str | PathLike[str],
    *,
    title: str,
    sizes: Sizes,
    measured: Mapping[int, Any] | None = None,
    force: bool = True,
    advance: Advance = silent,
) -> None:
    """Write the page of `model`, whole or not at all.

    title: what the page is called.  measured: by rows, what has the microseconds p50_us, p05_us and p95_us of a call.
    Raises InputError where the file cannot be written.
    """
    text = page(model, title=title, sizes=sizes, measured=measured or {}, advance=advance)
    with replacing(path, force=force) as file:
        file.write(text.encode("utf-8"))


def page(model: Contents, *, title: str, sizes: Sizes, measured: Mapping[int, Any], advance: Advance = silent) -> str:
    """The HTML text; see `write_page`."""
    program, layers = model.program, list(_pictured(model, advance))
    outputs = Outputs.of(model)
    advance("predict latencies", DRAWN)
    return _template().render(
        title=title,
        version=hrt.__version__,
        c=model.certificate,
        words=Words.of(model),
        outputs=outputs,
        gauge=outputs.gauge,
        sizes=sizes,
        largest_size=max(1, sizes.dense, sizes.stored, sizes.file or 0, *sizes.resident.values()),
        ratio=model.compression_ratio,
        latencies=predicted(program) if program.weights else [],
        measured=measured,
        pictured=layers,
        layers=rows_within(model.certificate.layers, MOST_ROWS),
        weights=len(program.weights),
        inputs=[(v.name, v.shape, v.kind) for v in program.inputs],
        results=[(name, program.shape_of(name)) for name in program.outputs],
        ops=_counts(program),
    )


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_plain)
    environment.filters.update(figure=_figure, us=_microseconds, size=_size, name=_cut, sentence=_sentence)
    return environment.get_template(TEMPLATE)


def _pictured(model: Contents, advance: Advance) -> Iterator[Layer]:
    """The largest layers, in the network's order."""
    constants, weights = model.program.constants, list(model.program.weights)
    largest = sorted(weights, key=lambda name: -constants[name].shape[0] * constants[name].shape[1])[:PICTURED]
    records = {record.name: record for record in model.certificate.layers}
    tol = model.certificate.tol if model.certificate.kind == "layers" else None  # else it is of the output alone
    names = [name for name in weights if name in largest]
    for k, name in enumerate(names):
        advance(f"drew {k} of {len(names)} layers", DRAWN * k / len(names))
        weight = constants[name]
        h = weight if isinstance(weight, HMatrix) else HMatrix.from_dense(weight)
        blocks = Blocks.of(h, MOST_BLOCKS // len(names)) if h.leaves and all(h.shape) else None
        yield Layer(name, h.shape, records.get(name), blocks, Spectrum.of(h, tol))


def _counts(program: Program) -> dict[str, int]:
    """How many nodes have each op, the most frequent first."""
    counts: dict[str, int] = {}
    for node in program.nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _plain(value: Any) -> Any:
    """What stands in the page for a value: texts on one line, without characters that turn the direction of writing."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cut(text: str, most: int = LONGEST_NAME) -> str:
    """Printable, and both ends where it is long."""
    for _ in range(2):  # escapes make it longer
        if len(text) > most:
            text = f"{text[: most // 2]} … {text[-most // 2 :]}"[: most + 3]
        text = printable(text)
    return text


def rows_within(layers: Sequence[LayerRecord], nbytes: int) -> list[LayerRecord]:
    """The records in their order; where their rows take more than `nbytes`, the largest."""
    order, left, chosen = sorted(range(len(layers)), key=lambda k: -layers[k].dense_nbytes), nbytes, []
    for k in order:
        texts = (layers[k].name, layers[k].structure, layers[k].reason)
        left -= ROW + sum(len(escape(_cut(text, LONGEST_REASON))) for text in texts)
        if left < 0:
            break
        chosen.append(k)
    return [layers[k] for k in sorted(chosen)]


def _sentence(text: str) -> str:
    """With a capital letter, and of some length."""
    return _cut(text[:1].upper() + text[1:], LONGEST_TEXT)


def _figure(value: float) -> str:
    return f"{value:.2e}"


def _microseconds(us: float) -> str:
    """With three digits, and the unit."""
    return f"{us:.3g} µs" if us < 1e3 else f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def _size(nbytes: int) -> str:
    """In the unit that suits."""
    for unit, letters in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {letters}"
    return f"{nbytes} bytes"
