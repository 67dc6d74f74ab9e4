"""Elementwise nodes of one shape as one loop, whatever their arguments' shapes broadcast to."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

from hrt.export.c.body import Body, Place
from hrt.export.c.layout.workspace import lined
from hrt.program.program import Node

Expression = Callable[[Body, Node], str]  # C of type hrt_v with {0}, {1}... in place of the arguments


def elementwise(body: Body, step: Sequence[Node], expressions: Mapping[str, Expression]) -> None:
    """One loop over the numbers of the result, nested where an argument is broadcast."""
    inside = {node.name for node in step}
    same = body.plan.same
    outer = {name: node.shape for node in step for name in node.inputs if same(name) not in inside}
    places = {name: body.of(name) for name in outer}
    dims = _merged(lined(step[0].shape), {name: _strides(places[name], shape) for name, shape in outer.items()})
    names = {name: f"v{k}" for k, name in enumerate([*outer, *(node.name for node in step)])}
    size, last = dims[-1]

    lines = []
    for name in outer:
        p, unit, where = places[name], last[name] == 1, _index(dims, name)
        pointer = p.pointer if where == "0" else p.at(where)
        if p.number is not None:
            load = f"hrt_splat({p.number})"
        elif p.batch:
            load = f"hrt_load({pointer} + j)" if unit else f"hrt_spread(L, {pointer}, j)"
        else:
            load = f"hrt_constant(L, {pointer}, j)" if unit else f"hrt_splat(*({pointer}))"
        lines.append(f"const hrt_v {names[name]} = {load};")
    for node, line in zip(step, _computed(body, step, names, expressions), strict=True):
        lines.append(line)
        if node.name not in body.plan.inside:
            p = body.out(node)
            where = _index(dims, None)
            lines.append(f"hrt_store({p.pointer if where == '0' else p.at(where)} + j, {names[node.name]});")
    for k, (count, _) in enumerate(dims[:-1]):
        body.add("    " * k + f"for (size_t i{k} = 0; i{k} < {count}; i{k}++)")
    pad = "    " * (len(dims) - 1)
    body.add(f"{pad}for (size_t j = 0; j < {size} * (size_t)L; j += HRT_LANES) {{")
    body.add(*(f"{pad}    {line}" for line in lines), f"{pad}}}")


def _computed(
    body: Body, step: Sequence[Node], names: Mapping[str, str], expressions: Mapping[str, Expression]
) -> list[str]:
    """The line of every node of a step. names: in C, of its arguments and results."""
    inside, same = {node.name for node in step}, body.plan.same
    return [
        f"const hrt_v {names[node.name]} = "
        + expressions[node.op](body, node).format(
            *(names[same(name) if same(name) in inside else name] for name in node.inputs)
        )
        + ";"
        for node in step
    ]


def follows(body: Body, step: Sequence[Node], before: Sequence[Node]) -> bool:
    """Whether an elementwise step needs nothing but the result of the one before it, in whose memory it leaves its own:
    what has just been computed may then be taken on at once, a few numbers after the other.
    """
    inside, same, source = {node.name for node in step}, body.plan.same, before[-1].name
    outer = {same(name) for node in step for name in node.inputs} - inside
    values = {name for name in outer if name in body.shapes}
    stored = [node.name for node in step if node.name not in body.plan.inside]
    if values != {source} or stored != [step[-1].name] or any(body.of(c).number is None for c in outer - values):
        return False
    return source not in body.plan.direct and body.plan.offset(source) == body.plan.offset(stored[0])


def in_place(body: Body, step: Sequence[Node], expressions: Mapping[str, Expression]) -> str:
    """The name of a C function, written here, that computes such a step over n numbers at o."""
    inside, same = {node.name for node in step}, body.plan.same
    outer = dict.fromkeys(name for node in step for name in node.inputs if same(name) not in inside)
    names = {name: "v" if name in body.shapes else f"hrt_splat({body.of(name).number})" for name in outer}
    names |= {node.name: f"v{k}" for k, node in enumerate(step)}
    name = f"{body.name}_after_{len(body.functions)}"
    lines = ["const hrt_v v = hrt_load(o + j);", *_computed(body, step, names, expressions)]
    lines.append(f"hrt_store(o + j, {names[step[-1].name]});")
    text = [f"HRT_APART void {name}(real *o, size_t n) {{", "    HRT_BY_4 for (size_t j = 0; j < n; j += HRT_LANES) {"]
    body.functions.append("\n".join([*text, *(f"        {line}" for line in lines), "    }", "}"]))
    return name


Dim = tuple[int, dict[str | None, int]]  # numbers, and the stride of every argument; None: the result


def _strides(place: Place, shape: Sequence[int]) -> list[int]:
    """Of an argument at every axis of a result of this shape that has over one number; 0 where it is broadcast."""
    sizes = place.shape[-len(shape) :] if shape else ()  # a constant may be (1, *shape)
    sizes = (1,) * (len(shape) - len(sizes)) + sizes
    steps = [prod(sizes[k + 1 :]) if n > 1 else 0 for k, n in enumerate(sizes)]
    return [step for step, n in zip(steps, shape, strict=True) if n != 1]


def _merged(shape: Sequence[int], strides: dict[str, list[int]]) -> list[Dim]:
    """The axes of a result, each of over one number, merged where all arguments allow it; at least one."""
    whole = prod(shape)
    dims: list[Dim] = []
    for k, size in enumerate(shape):
        whole //= max(size, 1)
        here: dict[str | None, int] = {**{name: s[k] for name, s in strides.items()}, None: whole}
        if dims and all(dims[-1][1][name] == size * here[name] for name in here):
            dims[-1] = (dims[-1][0] * size, here)
        else:
            dims.append((size, here))
    return dims or [(1, {**dict.fromkeys(strides, 1), None: 1})]


def _index(dims: Sequence[Dim], name: str | None) -> str:
    """Where an argument is read in the outer loops, in numbers of one sample."""
    terms = [f"i{k} * {d[1][name]}" for k, d in enumerate(dims[:-1]) if d[1][name]]
    return " + ".join(terms) or "0"
