"""Names for the types that public signatures share."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor
Kind = TypeVar("Kind", np.ndarray, Tensor)  # what goes in as one kind comes out as that kind
Inputs = Array | Sequence[Array]  # one array (batch, *shape), or one per input of the network
Numbers = Sequence[float] | Sequence[Sequence[float]]  # one array in lists
