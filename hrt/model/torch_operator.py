"""A compressed network as one operator of torch. The node names the network by a key: whoever runs an exported program
elsewhere registers the same network under it.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.model.contents import Predictor

_MODELS: dict[str, Predictor] = {}
_numbers = itertools.count()


def register_model(model: Predictor, key: str | None = None) -> str:
    """Make `model` known to the operator under `key` (a new one where none is given), and return the key."""
    key = f"network{next(_numbers)}" if key is None else key
    _MODELS[key] = model
    return key


def _model(key: str) -> Predictor:
    if key not in _MODELS:
        known = ", ".join(sorted(_MODELS)) or "none"
        raise InputError(
            f"No network is registered as {key!r} in this process. Registered: {known}. "
            "Load it and call hrt.model.torch_operator.register_model(model, key)."
        )
    return _MODELS[key]


@torch.library.custom_op("hrt::predict", mutates_args=())
def predict(inputs: Sequence[Tensor], key: str) -> list[Tensor]:
    """`CompressedModel.predict` of the network registered as `key`: inputs (batch, *shape) to a list of outputs."""
    answer = _model(key).predict(tuple(x.detach() for x in inputs))
    return list(answer) if isinstance(answer, tuple) else [answer]


@predict.register_fake
def _(inputs: Sequence[Tensor], key: str) -> list[Tensor]:
    program, first = _model(key).program, inputs[0]
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    return [first.new_empty(first.shape[0], *shapes[name]) for name in program.outputs]


class OperatorModule(nn.Module):
    """A module whose forward is the operator: put it into a larger network, compile or export it. Inference only."""

    def __init__(self, model: Predictor, key: str | None = None):
        super().__init__()
        self.key: str = register_model(model, key)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Like `CompressedModel.predict` on tensors."""
        answers = predict(list(inputs), self.key)
        return answers[0] if len(answers) == 1 else tuple(answers)
