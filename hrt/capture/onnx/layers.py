"""ONNX's layers as torch's functions: convolutions, pools, norms, resizing, recurrent cells, attention, transforms.

See `functions.py` for what a function takes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrt.capture.compositions import LARGEST
from hrt.capture.onnx.operands import Function, NodeError, given, ints, listed

USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}  # of one direction
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners")  # of Resize, as torch has them, too
ACTIVATIONS = {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu}


def _padded(x: Tensor, kernel: Sequence[int], t: Mapping[str, Any], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """x within its padding where both sides differ, and the padding that is the same on both sides."""
    axes = len(kernel)
    pads, automatic = list(t.get("pads", [0] * 2 * axes)), t.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        stride, dilation = (t.get(k, [1] * axes) for k in ("strides", "dilations"))
        sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
        spare = [max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n) for n, k, s, d in sizes]
        less, more = [n // 2 for n in spare], [n - n // 2 for n in spare]
        pads = less + more if automatic == "SAME_UPPER" else more + less
    before, behind = pads[:axes], pads[axes:]
    if before == behind:
        return x, before
    sides = [n for pair in reversed(list(zip(before, behind, strict=True))) for n in pair]
    return F.pad(x, sides, value=value), [0] * axes


def _conv(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    y, weight, axes = x[0], x[1], x[1].ndim - 2
    y, padding = _padded(y, weight.shape[2:], t)
    stride, dilation = (t.get(k, [1] * axes) for k in ("strides", "dilations"))
    function: Callable[..., Tensor] = getattr(F, f"conv{axes}d")
    return function(y, weight, given(x, 2), stride, padding, dilation, t.get("group", 1))


def _conv_transpose(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    """Padding that differs on both sides cuts what torch would give without any."""
    weight, axes = x[1], x[1].ndim - 2
    if "output_shape" in t or t.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NodeError("expected its padding as numbers")
    pads, extra = list(t.get("pads", [0] * 2 * axes)), list(t.get("output_padding", [0] * axes))
    stride, dilation = (t.get(k, [1] * axes) for k in ("strides", "dilations"))
    function: Callable[..., Tensor] = getattr(F, f"conv_transpose{axes}d")
    before, behind = pads[:axes], pads[axes:]
    same = before == behind
    padding = before if same else [0] * axes
    y = function(x[0], weight, given(x, 2), stride, padding, extra, t.get("group", 1), dilation)
    for axis, (a, b) in enumerate(zip(before, behind, strict=True)) if not same else ():
        y = y.narrow(2 + axis, a, y.shape[2 + axis] - a - b)
    return y


def _window(t: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    kernel = list(t["kernel_shape"])
    return kernel, list(t.get("strides", [1] * len(kernel))), list(t.get("dilations", [1] * len(kernel)))


def _max_pool(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    kernel, stride, dilation = _window(t)
    y, padding = _padded(x[0], kernel, t, -LARGEST)
    function: Callable[..., Tensor] = getattr(F, f"max_pool{len(kernel)}d")
    return function(y, kernel, stride, padding, dilation, bool(t.get("ceil_mode", 0)))


def _average_pool(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    kernel, stride, dilation = _window(t)
    counted = bool(t.get("count_include_pad", 0))
    y, padding = _padded(x[0], kernel, t)
    if set(dilation) != {1} or (y is not x[0] and not counted):
        raise NodeError("it leaves steps between its numbers, or is padded on one side alone")
    function: Callable[..., Tensor] = getattr(F, f"avg_pool{len(kernel)}d")
    return function(y, kernel, stride, padding, bool(t.get("ceil_mode", 0)), counted)


def _global_pool(function: Callable[..., Tensor]) -> Function:
    return lambda x, t: function(x[0], list(range(2, x[0].ndim)), keepdim=True)


def _batch_norm(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    if t.get("training_mode", 0):
        raise NodeError("it is in training mode, and so mixes the samples of a batch")
    y, scale, bias, mean, variance = x
    return F.batch_norm(y, mean, variance, scale, bias, False, 0.0, t.get("epsilon", 1e-5))


def _layer_norm(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    shape = list(x[0].shape[t.get("axis", -1) :])
    return F.layer_norm(x[0], shape, x[1].reshape(shape), given(x, 2), t.get("epsilon", 1e-5))


def _group_norm(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    """Before opset 21 scale and bias are of groups, later of channels."""
    scale, bias = (v.repeat_interleave(x[0].shape[1] // v.shape[0]) for v in x[1:3])
    return F.group_norm(x[0], t["num_groups"], scale, bias, t.get("epsilon", 1e-5))


def _rms_norm(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    return F.rms_norm(x[0], list(x[0].shape[t.get("axis", -1) :]), x[1], t.get("epsilon", 1e-5))


def _lp_norm(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    return x[0] / torch.linalg.vector_norm(x[0], t.get("p", 2), t.get("axis", -1), keepdim=True)


RESIZED = {  # by ONNX's mode, coordinates and rounding: torch's mode, and whether corners are aligned
    ("nearest", "asymmetric", "floor"): ("nearest", None),
    ("nearest", "half_pixel", "round_prefer_ceil"): ("nearest-exact", None),
    **{("linear", c, ""): ("linear", c == "align_corners") for c in COORDINATES},
    **{("cubic", c, ""): ("bicubic", c == "align_corners") for c in COORDINATES},
}


def _resize(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    mode, places = t.get("mode", "nearest"), t.get("coordinate_transformation_mode", "half_pixel")
    key = (mode, places, t.get("nearest_mode", "round_prefer_floor") if mode == "nearest" else "")
    axes, y = x[0].ndim - 2, x[0]
    cubic = mode == "cubic" and (axes != 2 or t.get("cubic_coeff_a", -0.75) != -0.75 or t.get("exclude_outside", 0))
    if key not in RESIZED or "axes" in t or t.get("antialias", 0) or cubic:
        raise NodeError(f"its mode {key} is none of {sorted(RESIZED)}")
    scales, sizes = given(x, 2), given(x, 3)
    name, aligned = RESIZED[key]
    name = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes] if name == "linear" else name
    options: dict[str, Any] = {"mode": name} if aligned is None else {"mode": name, "align_corners": aligned}
    if sizes is not None and np.asarray(sizes).size:
        return F.interpolate(y, size=ints(sizes)[2:], **options)
    factors = [float(s) for s in np.asarray(scales).reshape(-1)]
    if factors[:2] != [1.0, 1.0]:
        raise NodeError("it resizes the batch or the channels")
    return F.interpolate(y, scale_factor=factors[2:], **options)


def _cell(kind: str, functions: Sequence[Callable[..., Tensor]], gates: Tensor, inner: Tensor, states: Any) -> Any:
    """The states after one step. gates: of the input.  inner: of the hidden values.  states: those, and an LSTM's
    cells.
    """
    f, *g = functions
    if kind == "RNN":
        return [f(gates + inner)]
    if kind == "GRU":
        (z, r, n), (hz, hr, hn) = gates.chunk(3, -1), inner.chunk(3, -1)
        update, new = f(z + hz), g[0](n + f(r + hr) * hn)
        return [(1 - update) * new + update * states[0]]
    i, o, forget, c = (gates + inner).chunk(4, -1)
    cells = f(forget) * states[1] + f(i) * g[0](c)
    return [f(o) * g[1](cells), cells]


def recurrent(kind: str) -> Function:
    """A recurrent layer, step by step. Operands: x (time, batch, n) or, with layout 1, (batch, time, n), then W, R, B,
    lengths and first states, each with a direction in front.
    """

    def unrolled(x: Sequence[Any], t: Mapping[str, Any]) -> list[Tensor]:
        count = 2 if t.get("direction") == "bidirectional" else 1
        names = t.get("activations", USUAL[kind] * count)
        unusual = {*names} - {*ACTIVATIONS} or t.get("clip", 0) or t.get("input_forget", 0) or given(x, 7) is not None
        if unusual or given(x, 4) is not None:
            raise NodeError("it has rare activations, lengths of its own, clips or peepholes; expected a plain one")
        if kind == "GRU" and not t.get("linear_before_reset", 0):
            raise NodeError("it resets before the product; expected linear_before_reset=1, as torch has it")
        axis, width = t.get("layout", 0), x[2].shape[-1]
        steps = x[0].unbind(axis)
        zeros, each = steps[0].new_zeros(steps[0].shape[0], width), len(USUAL[kind])
        outputs, lasts = [], []
        for d in range(count):
            functions = [ACTIVATIONS[name] for name in names[d * each : (d + 1) * each]]
            backwards, bias = d == 1 or t.get("direction") == "reverse", given(x, 3)
            states = [zeros if given(x, k) is None else x[k].select(axis, d) for k in (5, 6)]
            biases = (None, None) if bias is None else bias[d].chunk(2)
            seen = []
            for step in reversed(steps) if backwards else steps:
                inner = F.linear(states[0], x[2][d], biases[1])
                states = _cell(kind, functions, F.linear(step, x[1][d], biases[0]), inner, states)
                seen.append(states[0])
            outputs.append(torch.stack(seen[::-1] if backwards else seen, axis))
            lasts.append(states)
        whole = torch.stack(outputs, 2 if axis else 1)
        return [whole, *(torch.stack(states, axis) for states in zip(*lasts, strict=True))]

    return unrolled


def _heads(x: Tensor, count: int) -> Tensor:
    return x if x.ndim == 4 else x.unflatten(-1, (count, -1)).transpose(1, 2)


def _attention(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    if any(given(x, k) is not None for k in (4, 5)) or t.get("softcap", 0.0) or t["outputs"] > 1:
        raise NodeError("it has a memory of keys, a cap or more than one output; expected plain attention")
    counts = t.get("q_num_heads", 0), t.get("kv_num_heads", 0), t.get("kv_num_heads", 0)
    q, k, v = (_heads(value, count) for value, count in zip(x[:3], counts, strict=True))
    if k.shape[1] != q.shape[1]:
        k, v = (value.repeat_interleave(q.shape[1] // k.shape[1], 1) for value in (k, v))
    options = {"attn_mask": given(x, 3), "is_causal": bool(t.get("is_causal", 0)), "scale": t.get("scale")}
    y = F.scaled_dot_product_attention(q, k, v, **options)
    return y if x[0].ndim == 4 else y.transpose(1, 2).flatten(2)


def _dft(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    """Before opset 20 the axis is an attribute, and 1; later an operand, and the last but one."""
    length = None if given(x, 1) is None else ints(x[1])[0]
    axis = t.get("axis", 1) if t["opset"] < 20 else (listed(x, t, "axis", 2) or [-2])[0]
    axis %= x[0].ndim
    one_sided, inverse, pair = t.get("onesided", 0), t.get("inverse", 0), x[0].shape[-1] == 2
    value = torch.view_as_complex(x[0].contiguous()) if pair else x[0].squeeze(-1)
    if one_sided and inverse:
        return torch.fft.irfft(value, n=length, dim=axis).unsqueeze(-1)
    if one_sided and not pair:
        return torch.view_as_real(torch.fft.rfft(value, n=length, dim=axis))
    function = torch.fft.ifft if inverse else torch.fft.fft
    y = torch.view_as_real(function(value, n=length, dim=axis))
    return y.narrow(axis, 0, y.shape[axis] // 2 + 1) if one_sided else y


LAYERS: dict[str, Function] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda x, t: F.instance_norm(x[0], None, None, x[1], x[2], eps=t.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "LpNormalization": _lp_norm,
    "Resize": _resize,
    **{kind: recurrent(kind) for kind in USUAL},
    "Attention": _attention,
    "DFT": _dft,
}
