"""Which of 183 public networks are captured: python tests/architectures/count.py FILE writes the table.

Plain ones are tried in small versions, those of packages by their own classes where the package can be imported. The
rest is said to be not tried.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("DDE_BACKEND", "pytorch")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from hrt.calibration.samples import given_inputs  # noqa: E402
from hrt.capture.network import call_for, captured_network  # noqa: E402
from hrt.errors import HrtError  # noqa: E402

from architectures import public_flows, public_more  # noqa: E402, F401
from architectures.networks_wheels import torchvision_stands_in  # noqa: E402
from architectures.public_packages import PACKAGES  # noqa: E402
from architectures.public_plain import PLAIN  # noqa: E402

PROCESSES = 4
LONGEST = 260  # characters of a reason
DISTRIBUTIONS = (
    *("deepxde", "neuraloperator", "nvidia-physicsnemo", "pina-mathlab", "torchphysics", "sbi", "nflows", "zuko"),
    *("torchani", "pykan", "sagenetgw", "dark_emulator2", "torch_geometric"),
)
OWN_WEIGHTS = "its stored weights in layers of ours"
OWN_CLASS = "the package's own class"
TORCH_SCATTER = f"{OWN_CLASS}, torch's sums for torch_scatter where that is not installed"


def made_as(row: dict[str, str]) -> str:
    """What stands for a network of the list."""
    name = row["network"]
    if row["from"] == "plain":
        return "a small one of ours"
    if name.endswith("rebuilt as nn.Module"):
        return OWN_WEIGHTS
    return TORCH_SCATTER if "MeshGraphNet" in name else OWN_CLASS


def versions() -> Iterator[str]:
    """Of torch and the packages that are there."""
    for name in ("torch", *DISTRIBUTIONS):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    if torchvision_stands_in():
        yield "an empty module for torchvision, which cannot be imported here"


def commit() -> str:
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def outcome(name: str) -> str:
    """captured, or why not."""
    make = {**PLAIN, **PACKAGES}.get(name)
    if make is None:
        return "not tried"
    torch.manual_seed(0)
    try:
        net, inputs = make()
    except Exception as error:  # a package that is not there, or of another version
        return f"not tried: {type(error).__name__}: {error}".replace("\n", " ")[:LONGEST]
    try:
        samples, call = call_for(net.eval(), given_inputs(inputs))
        program = captured_network(net.eval(), samples, call).program
    except HrtError as error:
        return str(error).replace("\n", " ").replace("|", "/")[:LONGEST]
    weights = sum(program.constants[k].numel() for k in program.weights)
    total = sum(c.numel() for k, c in program.constants.items() if k not in program.generated)
    return f"captured, {weights / max(total, 1):.0%} in reach"


def main() -> None:
    rows, made_with = list(csv.DictReader((HERE / "public_networks.csv").open())), ", ".join(versions())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = {}
        names = [row["network"] for row in rows]
        with ProcessPoolExecutor(PROCESSES) as pool:
            futures = {pool.submit(outcome, name): name for name in names}
            for k, done in enumerate(as_completed(futures), 1):
                outcomes[futures[done]] = done.result()
                print(f"{k} of {len(names)}:", futures[done], "|", done.result(), flush=True)
    counts = Counter(
        next((w for w in ("captured", "not tried") if o.startswith(w)), "refused") for o in outcomes.values()
    )
    before = sum(row["before"] == "captured" for row in rows)
    lines = [
        "# Which public networks are captured",
        "",
        f"Of {len(rows)} public networks {counts['captured']} are captured, {counts['refused']} are refused, "
        f"{counts['not tried']} were not tried. {before} were captured before the batch, "
        "convolutions and spectral layers were understood.",
        "",
        "`python tests/architectures/count.py docs/results/networks.md` wrote this page in one run "
        f"at commit {commit()}, "
        f"with {made_with}.",
        "Captured means that the program gives the network's answers on random rows; how well a network compresses is "
        "another question (`python tests/architectures/table.py`). In reach: the share of the numbers that are weights "
        "which the planner may compress.",
        "",
        "| network | from | tried as | before | now |",
        "|---|---|---|---|---|",
        *(f"| {r['network']} | {r['from']} | {made_as(r)} | {r['before']} | {outcomes[r['network']]} |" for r in rows),
    ]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
