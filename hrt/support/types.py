"""Names for the types that public signatures share."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor
Inputs = Array | Sequence[Array]  # one array (batch, *shape), or one per input of the network
