"""What a file of weights holds, in one line: its layers, the network that they may be, its arguments."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from hrt.capture.checkpoint_files import Checkpoint

Layers = list[tuple[str, tuple[int, ...]]]

SHOWN, SHOWN_ARGUMENTS, MAX_NAME = 4, 10, 80
TRAINING = ("optim", "sched", "loop", "callback", "scaler", "rng")  # keys of what is not a network


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in names[:most]) + more


def layers_in(tensors: Mapping[str, Tensor]) -> Layers:
    """Names and shapes of what has two dimensions or more."""
    return [(name, tuple(t.shape)) for name, t in tensors.items() if t.ndim >= 2]


def networks_in(checkpoint: Checkpoint) -> list[str]:
    """Where networks stand in a checkpoint, with a dot behind. What a training keeps beside them is none."""
    holders = list(dict.fromkeys(checkpoint.holders.values()))
    return [h for h in holders if not any(word in h.partition(".")[0].lower() for word in TRAINING)] or holders


def network_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of the first network in a checkpoint, by the names that it has for them."""
    start = networks_in(checkpoint)[0]
    return {k.removeprefix(start): v for k, v in checkpoint.tensors.items() if checkpoint.holders[k] == start}


def chain(layers: Layers) -> str:
    """The widths of a plain MLP with these layers, such as 2-64-64-1; nothing where they are none."""
    shapes = [shape for _, shape in layers]
    if len(shapes) < 2 or any(len(s) != 2 for s in shapes) or any(a[0] != b[1] for a, b in pairwise(shapes)):
        return ""
    return "-".join(map(str, [shapes[0][1], *(s[0] for s in shapes)]))


def described(checkpoint: Checkpoint) -> str:
    """In a few sentences, what a checkpoint holds."""
    (start, *others), tensors = networks_in(checkpoint), network_tensors(checkpoint)
    layers = layers_in(tensors)
    shapes = [f"{name} {' x '.join(map(str, shape))}" for name, shape in layers] or list(tensors)
    types = ", ".join(dict.fromkeys(str(t.dtype).removeprefix("torch.") for t in tensors.values()))
    below, widths = f" below {start.rstrip('.')}" if start else "", chain(layers)
    sentences = (
        f"It holds {len(tensors)} tensors{below}, {sum(t.numel() for t in tensors.values()):,} numbers in {types}: "
        f"{listed(shapes)}.",
        f"These are the shapes of a plain MLP {widths}. Its activation is not in the file, nor are transforms of its "
        "inputs and outputs."
        if widths
        else "",
        f"Other tensors are below {listed([h.rstrip('.') for h in others])}." if others else "",
        _made_with(checkpoint.arguments),
    )
    return " ".join(filter(None, sentences))


def _made_with(arguments: Mapping[str, Any]) -> str:
    pairs = [f"{k}={_value(v)}" for k, v in arguments.items() if not str(k).startswith("_") and _value(v)]
    return f"It was made with {listed(pairs, SHOWN_ARGUMENTS)}." if pairs else ""


def _value(value: Any) -> str:
    """Plain values and the names of classes; nothing for others."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, (list, tuple)) and len(value) <= 8 and all(isinstance(v, (int, float, str)) for v in value):
        return str(value)
    return repr(value) if isinstance(value, (bool, int, float, str)) else ""
