"""What a network as generated C cannot be faster than."""

import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.perf.bench import native_limits
from hrt.program.program import Node, Program, Value


def test_multiply_adds_are_those_of_what_is_stored() -> None:
    low_rank = Leaf(0, 4, 2, 3, u=torch.ones(4, 2), vt=torch.ones(2, 3))
    weight = HMatrix((4, 5), (Leaf(0, 4, 0, 2, dense=torch.ones(4, 2)), low_rank))
    nodes = (Node("y", "linear", ("x", "w"), (6, 4), {}), Node("z", "linear", ("y", "v"), (6, 1), {}))
    program = Program((Value("x", (6, 5)),), nodes, ("z",), {"w": weight, "v": torch.ones(1, 4)})
    assert native_limits.multiply_adds(program) == 6 * (4 * 2 + 2 * (4 + 3)) + 6 * 4


@pytest.mark.slow
def test_a_network_is_slower_than_its_limits(native, tmp_path, capsys) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    hrt.compress(net, tol=1e-2, progress=False).save(tmp_path / "net.hrt")
    threads = torch.get_num_threads()
    try:
        assert native_limits.main([str(tmp_path / "net.hrt")]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(native_limits.BATCHES)
    for line in lines[2:]:
        shares = [int(part.rpartition("(")[2]) for part in line.split("%")[:-1]]
        assert len(shares) == 2 and all(0 <= share < 120 for share in shares), line
