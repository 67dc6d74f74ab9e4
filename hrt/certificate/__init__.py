"""What is measured, estimated and guaranteed of a compressed network, each kind in a field of its own.

Knows nothing of files, sessions or how the network was compressed.
"""

from hrt.certificate.certificate import BOX_BOUND, Certificate, LayerRecord, Statement
from hrt.certificate.figures import IN_PRECISION
from hrt.certificate.layer_records import layer_records

__all__ = ["BOX_BOUND", "IN_PRECISION", "Certificate", "LayerRecord", "Statement", "layer_records"]
