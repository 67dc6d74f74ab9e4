"""What a network meets while it is traced: calls that no trace follows, said otherwise. Knows nothing of Programs."""

from hrt.capture.tracing.modes import AnyBatch, ByProducts, Gradients

__all__ = ["AnyBatch", "ByProducts", "Gradients"]
