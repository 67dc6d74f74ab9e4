"""What a `.hrt` file holds, and what others ask of a network that predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hrt.certificate.certificate import Certificate
from hrt.program.program import Program, program_nbytes


@dataclass(frozen=True, eq=False)
class Contents:
    """A network, its certificate, the target it was compressed for, and the float32 bytes of the original."""

    program: Program
    certificate: Certificate
    target: str = "cpu"
    dense_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that must be resident to predict: packed weights, tables, orderings, biases."""
        return program_nbytes(self.program)

    @property
    def compression_ratio(self) -> float:
        """Dense float32 bytes over `nbytes`."""
        return self.dense_nbytes / self.nbytes if self.nbytes else 1.0


class Predictor(Protocol):
    """A network that predicts and can be differentiated. It answers in the kind and dtype of its inputs."""

    @property
    def program(self) -> Program: ...
    def predict(self, x: Any) -> Any: ...
    def differentiated(self, derivatives: Sequence[str]) -> "Predictor": ...
