"""CompressedModel, its file, its report and its pictures.

Knows nothing of how a network is compressed: loading and predicting need no planner.
"""

from hrt.model.contents import Contents, Predictor
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.model.residual import residual
from hrt.model.trainable import TrainableNetwork, to_trainable

__all__ = ["CompressedModel", "Contents", "Predictor", "TrainableNetwork", "load", "residual", "to_trainable"]
