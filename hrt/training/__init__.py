"""The method while a network is trained: fine-tuning, dynamic compression, penalties, Gauss-Newton.

Knows nothing of the command line.
"""

from hrt.training.callbacks import deepxde_callback, lightning_callback
from hrt.training.dynamic import DynamicCompression
from hrt.training.finetune import finetune
from hrt.training.rank_penalty import proximal_step, rank_penalty, second_moments

__all__ = [
    "DynamicCompression",
    "deepxde_callback",
    "finetune",
    "lightning_callback",
    "proximal_step",
    "rank_penalty",
    "second_moments",
]
