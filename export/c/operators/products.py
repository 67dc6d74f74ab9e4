"""matmul and einsum: two operands at a time, as loops over products of matrices given by strides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hrt.export.c.body import Body
from hrt.export.c.operators.strides import Axis, at, loops, merged, offset
from hrt.program.check_program import einsum_labels
from hrt.program.program import Node

Lowering = Callable[[Body, Node], None]
BATCH = "\0"  # the label of samples, which are lanes


@dataclass(frozen=True)
class Operand:
    """A pointer, strides by label, sizes by label; batch: a value, not a constant."""

    pointer: str
    strides: Mapping[str, int]
    sizes: Mapping[str, int]
    batch: bool = True


def operand(pointer: str, labels: str, shape: Sequence[int], *, batch: bool = True) -> Operand:
    """Numbers one after the other. A label that stands twice walks a diagonal; axes of size 1 are left out."""
    strides: dict[str, int] = {}
    sizes: dict[str, int] = {}
    step = prod(shape)
    for label, n in zip(labels, shape, strict=True):
        step //= max(n, 1)
        if n != 1:
            strides[label] = strides.get(label, 0) + step
            sizes[label] = n
    return Operand(pointer, strides, sizes, batch)


def product(body: Body, o: Operand, a: Operand, b: Operand) -> None:
    """o = the sum of a times b over labels that o lacks."""
    if not a.batch:
        a, b = b, a
    operands = {"o": o, "a": a, "b": b}
    sizes = {**a.sizes, **b.sizes}

    def group(labels: Sequence[str]) -> list[Axis]:
        ordered = sorted(labels, key=lambda c: [-p.strides.get(c, 0) for p in (o, b, a)])
        return merged([Axis(sizes[c], {k: p.strides.get(c, 0) for k, p in operands.items()}) for c in ordered])

    rows = group([c for c in sizes if c in o.strides and c not in b.strides])
    columns = group([c for c in sizes if c in o.strides and c not in a.strides])
    both = group([c for c in sizes if c in o.strides and c in a.strides and c in b.strides])
    sums = group([c for c in sizes if c not in o.strides])
    if not sums and not columns and both and set(both[-1].strides.values()) == {1}:
        _multiplied(body, operands, [*rows, *both])
        return
    one = Axis(1, {"o": 0, "a": 0, "b": 0})
    row, column, total = (axes.pop() if axes else one for axes in (rows, columns, sums))
    outer = [*both, *rows, *columns, *sums]
    if sums:
        body.add(f"memset({o.pointer}, 0, (size_t)L * {prod(o.sizes.values())} * sizeof(real));")

    def call(function: str, first: str, second: str) -> str:
        """o = first times second: rows belong to the first."""
        r, c = (row, column) if first == "a" else (column, row)
        fields = [r.size, c.size, total.size, r.strides[first], total.strides[first], total.strides[second]]
        fields += [c.strides[second], r.strides["o"], c.strides["o"], int(bool(sums))]
        pointers = [at(p.pointer, offset(k, len(outer), outer), batch=p.batch) for k, p in operands.items()]
        z, x, y = (pointers["oab".index(k)] for k in ("o", first, second))
        return (
            f"{{ static const hrt_contraction s = {{{', '.join(map(str, fields))}}}; {function}{z}, {x}, {y}, &s); }}"
        )

    by_columns = column.strides["b"] == column.strides["o"] == 1 or not row.strides["a"] == row.strides["o"] == 1
    lanes = "hrt_contract_values" if b.batch else "hrt_contract_constants"
    pad = "    " * len(outer)
    body.add(
        *loops(outer),
        f"{pad}if (L == 1) {call('hrt_contract_row(', *('ab' if by_columns else 'ba'))}",
        f"{pad}else {call(f'{lanes}((size_t)L, ', 'a', 'b')}",
    )


def _multiplied(body: Body, operands: Mapping[str, Operand], axes: Sequence[Axis]) -> None:
    """Number by number: no sum, and the last axis is everyone's."""
    *outer, last = axes
    z, x, y = (at(p.pointer, offset(k, len(outer), outer), batch=p.batch) for k, p in operands.items())
    factor = f"hrt_load({y} + j)" if operands["b"].batch else f"hrt_constant(L, {y}, j)"
    pad = "    " * len(outer)
    body.add(
        *loops(outer),
        f"{pad}for (size_t j = 0; j < {last.size} * (size_t)L; j += HRT_LANES)",
        f"{pad}    hrt_store_part({z} + j, hrt_load({x} + j) * {factor}, (int)({last.size} * (size_t)L - j));",
    )


def _contract(body: Body, node: Node, terms: Sequence[str], result: str) -> None:
    """Operands one after the other; what is between them lies in scratch memory."""
    operands = []
    for name, labels in zip(node.inputs, terms, strict=True):
        place = body.of(name)
        inner = labels[1:] if place.batch else labels
        shape = place.shape
        operands.append(operand(place.pointer, inner, shape, batch=place.batch))
    out = operand(body.out(node).pointer, result, node.shape)
    if not prod(node.shape):
        return
    operands.sort(key=lambda p: not p.batch)  # a value first, so that results are values
    left, *others = operands
    if not others:
        others = [Operand(body.table([1.0]), {}, {}, batch=False)]
    for k, right in enumerate(others):
        later = {label for p in others[k + 1 :] for label in p.strides} | set(out.strides)
        target = out
        if k + 1 < len(others):
            sizes = {**left.sizes, **right.sizes}
            labels = [c for c in sizes if c in later]
            target = operand(body.scratch(prod(sizes[c] for c in labels)), "".join(labels), [sizes[c] for c in labels])
        product(body, target, left, right)
        left = target


def _einsum(body: Body, node: Node) -> None:
    ranks = [len(body.of(name).shape) + body.of(name).batch for name in node.inputs]
    *terms, result = einsum_labels(node.attrs["equation"], ranks)
    _contract(body, node, terms, result[1:])


def _matmul(body: Body, node: Node) -> None:
    """As einsum, axes counted from the end."""
    terms = []
    for k, name in enumerate(node.inputs):
        place = body.of(name)
        rank = len(place.shape) + place.batch
        last = "K" if rank == 1 else ("NK", "KM")[k]
        lead = "".join(chr(0x100 + rank - 3 - j) for j in range(rank - len(last)))
        terms.append(lead + last)
    ranks = [len(term) for term in terms]
    lead = max((term[: len(term) - 2] for term in terms), key=len)
    result = lead + ("N" if ranks[0] > 1 else "") + ("M" if ranks[1] > 1 else "")
    _contract(body, node, terms, result[1:])


PRODUCTS: Mapping[str, Lowering] = {"matmul": _matmul, "einsum": _einsum}
