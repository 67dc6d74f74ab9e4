"""Names and shapes: below which prefix a checkpoint fits a network, and what each misfit is called."""

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hrt.capture.checkpoint_files import Checkpoint
from hrt.capture.fit_weights import fit_weights
from hrt.errors import InputError

from checkpoint_cases import before, mlp


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, **more: nn.Module):
        super().__init__()
        self.inner = inner
        for name, module in more.items():
            self.add_module(name, module)


def fit(net: nn.Module, content: object) -> list[str]:
    """Fits, and returns what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_weights(net, Checkpoint.of(Path("w.pt"), "state_dict", content))
    return [str(w.message) for w in caught]


def misfit(net: nn.Module, content: object) -> str:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(InputError) as error:
        fit(net, content)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert "\n" not in str(error.value) and str(error.value).startswith("The weights w.pt ")
    return str(error.value)


def fits(net: nn.Module, content: object, state: dict) -> None:
    assert fit(net, content) == []
    assert all(torch.equal(v, w) for v, w in zip(net.state_dict().values(), state.values(), strict=True))


SEGMENTS = st.sampled_from(["module", "model", "net", "_orig_mod", "0", "state_dict", "ema", "_pina_models", "a b"])


@given(st.lists(SEGMENTS, max_size=4), st.lists(SEGMENTS, max_size=3), st.booleans())
def test_any_prefix_and_any_keys_are_stripped(prefix, keys, wrapped):
    state = mlp(2, 3, 3, 1).state_dict()
    content: dict = before("".join(f"{p}." for p in prefix), state)
    for key in keys:
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 2)}}}}
    net = mlp(2, 3, 3, 1)
    fits(Wrapped(net) if wrapped else net, content, state)


def test_names_that_agree_are_left_as_they_are():
    """A network may itself call a part module or model."""
    state = Wrapped(mlp(2, 3, 1), module=mlp(2, 3, 1)).state_dict()
    fits(Wrapped(mlp(2, 3, 1), module=mlp(2, 3, 1)), {"state_dict": state}, state)


def test_parts_that_torch_compiled_alone():
    state = Wrapped(mlp(2, 3, 1), other=mlp(2, 3, 1)).state_dict()
    content = {k.replace("other.", "other._orig_mod."): v for k, v in state.items()}
    fits(Wrapped(mlp(2, 3, 1), other=mlp(2, 3, 1)), content, state)


def test_parts_that_were_saved_apart():
    inner, other = mlp(2, 3, 1).state_dict(), mlp(4, 3, 1).state_dict()
    content = {"inner": inner, "other": other, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 2)}}}}
    fits(Wrapped(mlp(2, 3, 1), other=mlp(4, 3, 1)), content, {**inner, **before("o", other)})


def test_what_stands_beside_the_network_is_named():
    state = mlp(2, 3, 1).state_dict()
    (text,) = fit(mlp(2, 3, 1), {"state_dict": {**before("model.", state), "loss.weight": torch.ones(3)}})
    assert text == "w.pt: took what is below state_dict.model, and left out state_dict.loss.weight beside it."


def test_a_part_of_the_network_is_not_taken_for_the_network():
    """Names that agree with the file's must all be there: torch is no less strict."""
    state = mlp(2, 3, 3, 1).state_dict()
    assert "unexpected 4.weight, 4.bias" in misfit(mlp(2, 3, 3), state)
    text = misfit(Wrapped(mlp(2, 3, 1)), {**before("inner.", mlp(2, 3, 1).state_dict()), "scale": torch.ones(2)})
    assert "unexpected scale. If the rest is no part of the network, name the part that is: w.pt:inner" in text


def test_of_several_networks_that_fit_the_key_decides():
    state, other = mlp(2, 3, 1).state_dict(), mlp(2, 3, 1).state_dict()
    for content in ({"ema": other, "model": state}, {"model": state, "ema": other}):
        (text,) = fit(net := mlp(2, 3, 1), content)
        assert "Took model; for another pass w.pt:ema" in text
        assert torch.equal(net.state_dict()["0.weight"], state["0.weight"])
    fits(mlp(2, 3, 1), {"ema": state, "model": state}, state)  # the same numbers


@pytest.mark.parametrize(
    "keys", [("generator", "critic"), ("state_dict._pina_models.0", "state_dict._pina_models.1"), ("branch", "trunk")]
)
def test_of_several_alike_one_must_be_named(keys):
    content = {k: v for key in keys for k, v in before(f"{key}.", mlp(2, 3, 1).state_dict()).items()}
    text = misfit(mlp(2, 3, 1), content)
    assert f"several networks that fit: {keys[0]}, {keys[1]}. Expected one of them: w.pt:{keys[0]}." in text


def test_shapes_tell_parts_with_the_same_names_apart():
    state = mlp(2, 3, 1).state_dict()
    content = {**before("branch.", mlp(5, 3, 1).state_dict()), **before("trunk.", state)}
    assert "took what is below trunk" in fit(net := mlp(2, 3, 1), content)[0]
    assert torch.equal(net.state_dict()["0.weight"], state["0.weight"])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_names_that_the_network_knows():
    """weight_g and weight_v of the old weight_norm load into the new one, by torch's own hook."""
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 3)))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    fit(new, {"model": before("module.", old.state_dict())})
    x = torch.rand(5, 2)
    assert torch.allclose(new(x), old(x), rtol=1e-6, atol=1e-7)


def test_layers_without_shapes_take_those_of_the_file():
    state = mlp(2, 3, 1).state_dict()
    fits(nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(1)), {"net": state}, state)


@pytest.mark.parametrize("stored, used", [("float64", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_weights_that_are_rounded_are_remarked(stored, used):
    types = [getattr(torch, name) for name in (stored, used)]
    content = {"model": mlp(2, 3, 1).to(types[0]).state_dict()}
    texts = fit(mlp(2, 3, 1).to(types[1]), content)
    assert len(texts) == (0 if stored == "bfloat16" else 1)
    assert all(f"{stored} weights and the network {used}" in t and f"net.to(torch.{stored})" in t for t in texts)
    assert fit(mlp(2, 3, 1).to(types[0]), content) == []


def test_weights_without_numbers_are_named():
    assert "0.weight without numbers" in misfit(mlp(2, 3, 1), mlp(2, 3, 1).to("meta").state_dict())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_other_kinds_of_numbers_do_not_fit(dtype):
    """copy_ would drop imaginary parts and scales without a word."""
    content = {k: v.to(dtype) for k, v in mlp(2, 3, 1).state_dict().items()}
    assert f"0.weight {str(dtype)[6:]}, expected float32" in misfit(mlp(2, 3, 1), content)


@pytest.mark.parametrize(
    "net, words",
    [
        (mlp(2, 9, 9, 1), "0.weight (8, 2), expected (9, 2)"),
        (mlp(2, 9, 9, 1), "the file has 2-8-8-1, build() makes 2-9-9-1"),
        (mlp(2, 8, 8, 8, 1), "missing 6.weight, 6.bias"),
        (mlp(2, 8, 8, 8, 1), "the file has 2-8-8-1, build() makes 2-8-8-8-1"),
        (
            Wrapped(mlp(2, 8, 8, 1), norm=nn.LayerNorm(2)),
            "6 of 8 tensors do below model.module; missing norm.weight, norm.bias.",
        ),
        (nn.ModuleDict({f"lin{k}": m for k, m in enumerate(mlp(2, 8, 8, 1)[::2])}), "The shapes agree in order"),
        (nn.GRUCell(4, 5), "0 of 4 tensors do; the network has weight_ih, weight_hh, bias_ih, bias_hh, the file "),
        (nn.Tanh(), "the network has no tensors"),
    ],
)
def test_a_misfit_names_tensors_and_a_remedy(net, words):
    assert words in misfit(net, {"model": before("module.", mlp(2, 8, 8, 1).state_dict())})


def test_a_long_list_is_cut():
    text = misfit(mlp(*[3] * 100), {"model": mlp(*[2] * 100).state_dict()})
    assert len(text) < 900 and "and 194 more" in text
