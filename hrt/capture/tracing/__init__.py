"""How a network is traced: calls that no trace follows, said otherwise, and its graph as torch's dispatcher sees it.
Knows nothing of Programs.
"""

from hrt.capture.tracing.dispatched import dispatched
from hrt.capture.tracing.modes import AnyBatch, Finite, Gradients, InVmap, Steps, labels_followed, masks_as_given, quiet

__all__ = [
    "AnyBatch",
    "Finite",
    "Gradients",
    "InVmap",
    "Steps",
    "dispatched",
    "labels_followed",
    "masks_as_given",
    "quiet",
]
