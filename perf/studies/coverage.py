"""`python -m hrt.perf.studies.coverage`: how often the 99 % limit of a certificate holds where few rows hold the error.

Small tanh networks are compressed with normal inputs, whose rare large rows hold much of the squared error. The error
on 400,000 fresh rows stands for the truth; then the certificate's limit is worked out on many draws of as few rows as a
user would hold out, and compared with it.

    python -m hrt.perf.studies.coverage
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import hrt
from hrt.calibration.output_error import output_error


def network(seed: int) -> nn.Module:
    """3 -> 48 -> 48 -> 1, tanh."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=750, help="rows held out (default 750)")
    parser.add_argument("--draws", type=int, default=2000, help="draws per network (default 2000)")
    parser.add_argument("--fresh", type=int, default=400_000, help="rows that stand for the truth")
    parser.add_argument("--networks", type=int, default=5)
    args = parser.parse_args(arguments)
    table = Table(title=f"limits on {args.rows} rows, {args.draws} draws, tol 1e-5")
    for name in ("network", "share of the 1 % largest", "limit exceeded", "limit / error"):
        table.add_column(name, justify="right")
    for seed in range(args.networks):
        net, g = network(seed), torch.Generator().manual_seed(100 + seed)
        model = hrt.compress(net, inputs=torch.randn(3000, 3, generator=g), tol=1e-5, progress=False)
        x = torch.randn(args.fresh, 3, generator=g).double()
        with torch.no_grad():
            y = net.double()(x)
        found = torch.as_tensor(np.asarray(model.predict(x.numpy())))
        truth = output_error(y, found).value
        e2 = (found - y).square().sum(1).sort().values
        share = float(e2[-args.fresh // 100 :].sum() / e2.sum())
        picks = (torch.randint(0, args.fresh, (args.rows,), generator=g) for _ in range(args.draws))
        limits = np.array([output_error(y[i], found[i]).upper_99 for i in picks])
        table.add_row(str(seed), f"{share:.0%}", f"{np.mean(limits < truth):.1%}", f"{np.mean(limits) / truth:.2f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
