"""Every op of the table at the shapes that generated C must tell apart, as one program."""

from dataclasses import replace

import torch

from hrt.program.program import Node, Program, Value

from op_cases import ACTIVATIONS, CASES, Case, grid, program_of

SEEDED = torch.Generator().manual_seed(0)


def some(*shape: int) -> torch.Tensor:
    """Numbers between 0.5 and 1.5, so that sums lose no digits."""
    return torch.rand(*shape, generator=SEEDED, dtype=torch.float64) + 0.5


# Longer than vectors, of odd widths, along every axis; what one row and what blocks of rows do differently.
LONG, HEADS, WIDE, CUBE = some(5, 3, 37, 2), some(5, 2, 9, 20), some(5, 2, 20, 40), some(5, 2, 3, 4, 5)
WINDOW = {"kernel": [2, 3, 2], "stride": [1, 2, 1], "dilation": [2, 1, 1], "padding": [1, 0, 2, 0, 1, 1]}
MORE: list[Case] = [
    *((op, (LONG,), {"axes": axes, "keep": keep})
      for op in ("sum", "mean", "amax", "amin", "logsumexp")
      for axes, keep in (([-2], True), ([-1], False), ([-1, -3], False), ([-3, -2, -1], True))),
    *((op, (LONG,), {"axis": axis}) for op in ("softmax", "log_softmax", "cumsum") for axis in (-1, -2, -3)),
    *((op, (some(5, 37),), {"axis": -1}) for op in ("softmax", "log_softmax", "cumsum")),
    ("softmax", (100 * (HEADS - 1),), {"axis": -1}),
    *(("layer_norm", (some(5, 2, 37), *more), {"shape": [37], "eps": 1e-5}) for more in ((), (some(37),))),
    ("layer_norm", (LONG, some(37, 2), some(37, 2)), {"shape": [37, 2], "eps": 1e-5}),
    ("matmul", (HEADS, WIDE), {}),
    ("matmul", (HEADS, HEADS.mT), {}),
    ("matmul", (HEADS, some(20, 7)), {}),
    ("matmul", (some(6, 9), HEADS), {}),
    ("matmul", (HEADS, WIDE[:, :1, :, :3]), {}),
    ("matmul", (HEADS, some(20)), {}),
    ("einsum", (HEADS, some(5, 2, 7, 20)), {"equation": "bhqd,bhkd->bhqk"}),
    ("einsum", (HEADS.transpose(1, 2), some(5, 7, 2, 20)), {"equation": "bqhd,bkhd->bhqk"}),
    ("einsum", (HEADS, some(5, 20, 2, 33)), {"equation": "bhqk,bkhd->bqhd"}),
    ("einsum", (HEADS, HEADS), {"equation": "bhnd,bhnd->bhn"}),
    ("einsum", (HEADS, HEADS), {"equation": "bhnd,bhnd->bdh"}),
    ("einsum", (some(5, 4), some(5, 6)), {"equation": "bi,bj->bij"}),
    ("einsum", (some(5, 4), some(5, 4), some(4, 6)), {"equation": "bi,bj,jk->bik"}),
    ("einsum", (some(5, 4, 4), some(7)), {"equation": "bii,k->bik"}),
    ("einsum", (HEADS,), {"equation": "bhnd->bdh"}),
    ("einsum", (some(6, 4, 20), some(5, 3, 6, 20)), {"equation": "tmn,bctn->bctm"}),
    ("einsum", (HEADS, some(5, 9, 20)), {"equation": "b...d,b...d->b..."}),
    ("patches", (CUBE,), WINDOW),
    ("patches", (LONG,), {"kernel": [4], "stride": [3], "dilation": [1], "padding": [2, 3]}),
    ("transpose", (CUBE,), {"axes": [-2, -4, -1, -3]}),
    ("expand", (CUBE[:, :1, :, :1],), {"shape": [2, 3, 4, 5]}),
    ("slice", (CUBE,), {"axis": -3, "start": 1, "stop": None, "step": 1}),
    ("slice", (LONG,), {"axis": -2, "start": 3, "stop": -2, "step": 4}),
    ("concat", (CUBE, CUBE[..., :2], CUBE), {"axis": -1}),
    ("concat", (CUBE, CUBE[:, :1]), {"axis": -4}),
    ("gather", (CUBE, torch.tensor([3.0, 0, 0]).double()), {"axis": -2}),
    ("gather", (some(5, 9), torch.tensor([8.0, 2, 2, 5]).double()), {"axis": -1}),
    ("add", (CUBE, some(3, 1, 5)), {}),
    ("mul", (CUBE, CUBE[:, :, :1, :, :1]), {}),
    ("sub", (some(5, 1, 20), some(5, 9, 1)), {}),
    *(("power", (some(5, 40),), {"exponent": e}) for e in (0.0, 1.0, -3.0, 0.5, -0.5, 5.0, 40.0, -41.0, 0.3)),
    ("power", (some(5, 40) - 1,), {"exponent": 21.0}),
    ("clamp", (some(5, 40),), {"low": 0.9, "high": 1.1}),
]  # fmt: skip


def every_case() -> list[Case]:
    """The cases of all tests of the table, those above, and every activation on its own grid."""
    cases: list[Case] = [(name, arguments, attrs) for name, arguments, attrs, _ in CASES if name != "carried"]
    for parameters in ACTIVATIONS:
        op, attrs = parameters.values
        x = grid(op, attrs, 999)  # type: ignore[arg-type]
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))][:750]
        cases.append((op.name, (x.reshape(5, -1),), attrs))  # type: ignore[union-attr]
    return cases + MORE


def together(part: int = 0, parts: int = 1) -> tuple[Program, list[torch.Tensor]]:
    """All cases as one program, or every parts-th of them, and five rows of its inputs, rounded to float32."""
    values: list[Value] = []
    nodes: list[Node] = []
    constants: dict[str, torch.Tensor] = {}
    rows: list[torch.Tensor] = []
    for k, case in enumerate(every_case()[part::parts]):
        program, inputs = program_of(case)
        names = {name: f"{name}_{k}" for name in (*(v.name for v in program.inputs), *program.constants)}
        values += [replace(v, name=names[v.name]) for v in program.inputs]
        constants |= {names[name]: c.float().double() for name, c in program.constants.items()}  # type: ignore
        (node,) = program.nodes
        nodes.append(replace(node, name=f"y{k}", inputs=tuple(names[name] for name in node.inputs)))
        rows += [x.float().double() for x in inputs]
    return Program(tuple(values), tuple(nodes), tuple(node.name for node in nodes), constants), rows
