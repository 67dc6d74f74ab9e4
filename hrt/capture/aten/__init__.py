"""How each ATen operator is said in the closed op table, by name. Only this folder knows ATen's names.

A lowering takes the builder and a call's arguments: a `Ref`, a constant tensor, plain Python values, or None for a
number that depends on the batch size. What does not depend on the input was folded; shapes are checked afterwards.
"""

from hrt.capture.aten.complex_numbers import COMPLEX, is_complex, lower_complex
from hrt.capture.aten.complex_products import depends
from hrt.capture.aten.convolutions import CONVOLUTIONS
from hrt.capture.aten.elementwise import ELEMENTWISE
from hrt.capture.aten.indices import INDICES
from hrt.capture.aten.masks import MASKS
from hrt.capture.aten.matrices import MATRICES
from hrt.capture.aten.padding import PADDING
from hrt.capture.aten.pooling import POOLING
from hrt.capture.aten.products import PRODUCTS
from hrt.capture.aten.reductions import REDUCTIONS
from hrt.capture.aten.resizing import RESIZING
from hrt.capture.aten.shapes import SHAPES
from hrt.capture.builder import Lowering

LOWERINGS: dict[str, Lowering] = {
    **SHAPES,
    **PRODUCTS,
    **ELEMENTWISE,
    **MASKS,
    **REDUCTIONS,
    **INDICES,
    **MATRICES,
    **PADDING,
    **CONVOLUTIONS,
    **POOLING,
    **RESIZING,
}

__all__ = ["COMPLEX", "LOWERINGS", "depends", "is_complex", "lower_complex"]
