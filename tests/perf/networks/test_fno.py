"""The Fourier neural operator of Burgers' equation: its data, and that every mode's matrix is in reach."""

import numpy as np
import pytest
import torch

from hrt.capture.torch_export import capture
from hrt.export.onnx.check import open_runtime
from hrt.perf.networks.fno import (
    FINE,
    FNO,
    LAYERS,
    MODES,
    NU,
    POINTS,
    dft_graph,
    flows,
    initial_states,
    solve,
    train_fno,
)


def test_solver_decays_small_waves_as_the_heat_equation_does():
    x = np.arange(FINE) / FINE
    start = 1e-6 * np.sin(2 * np.pi * 3 * x)[None]
    expected = start * np.exp(-NU * (2 * np.pi * 3) ** 2)
    np.testing.assert_allclose(solve(start), expected, atol=1e-11)


def test_solver_does_not_depend_on_its_steps_or_grid():
    start = initial_states(3, 0)
    reference = solve(start)
    np.testing.assert_allclose(solve(start, steps=400), reference, atol=1e-6)
    finer = np.fft.irfft(2 * np.pad(np.fft.rfft(start), ((0, 0), (0, FINE // 2))), 2 * FINE)
    np.testing.assert_allclose(solve(finer)[:, ::2], reference, atol=1e-6)


def test_states_are_seeded_and_have_no_mean():
    assert torch.equal(flows(4, 7), flows(4, 7)) and flows(4, 7).shape == (4, POINTS)
    np.testing.assert_allclose(initial_states(4, 7).mean(1), 0, atol=1e-12)


def test_every_mode_is_a_weight_and_transforms_are_none():
    net, x = FNO().eval(), flows(5, 1)
    program = capture(net, [x])
    modes = [name for name in program.weights if name.startswith("spectral")]
    assert len(modes) == LAYERS * MODES and len(program.generated) == 2
    with torch.no_grad():
        torch.testing.assert_close(program.run([x])[0].float(), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_is_seeded():
    first, second = (train_fno(steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_the_graph_with_dft_nodes_is_the_network():
    net, x = FNO().eval(), flows(5, 1)
    graph = dft_graph(net)
    assert sum(n.op_type == "DFT" for n in graph.graph.node) == 2 * LAYERS
    (answer,) = open_runtime(graph, 1).run(None, {"a": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), net(x), rtol=1e-4, atol=1e-5)
