"""How long generated C takes for a network, roughly, beside ONNX Runtime: "auto" chooses between them by this."""

from hrt.program.program import Program


def is_faster(program: Program) -> bool:
    """Whether generated C is predicted to be faster than ONNX Runtime at every batch size."""
    return False  # until constants are measured
