"""The sizes of a network, which are never mixed: stored, in a file, resident in a session, and dense."""

from contextlib import suppress
from dataclasses import dataclass

from hrt.errors import ArtifactError
from hrt.model.artifact import file_nbytes
from hrt.model.contents import Contents
from hrt.runtime.session import Session


@dataclass(frozen=True)
class Sizes:
    """Bytes. dense: of the original in float32. stored: what a compression ratio counts. file: of the file that was
    read or, without one, what `save` writes, None where it cannot. resident: the numbers that the sessions hold between
    calls, without memory for values in between, by backend, the one in use first.
    """

    dense: int
    stored: int
    file: int | None
    resident: dict[str, int]

    @staticmethod
    def of(model: Contents, *sessions: Session, file: int | None = None) -> "Sizes":
        """Of a model and what runs it. file: the size of the file that it was read from."""
        if file is None:
            with suppress(ArtifactError):
                file = file_nbytes(model)
        return Sizes(model.dense_nbytes, model.nbytes, file, {s.backend: s.resident_bytes for s in sessions})

    def lines(self) -> list[str]:
        """In words. Only what is stored has a ratio."""
        ratio = self.dense / self.stored if self.stored else 1.0
        smaller = f"{ratio:.2f}x smaller than" if ratio > 1 else "not smaller than"
        file = "none (it cannot be stored)" if self.file is None else f"{self.file:,} bytes"
        return [
            f"stored: {self.stored:,} bytes, {smaller} dense float32 ({self.dense:,} bytes)",
            f"file: {file}",
            *(
                f"resident: {n:,} bytes in {name}{', more than dense' if n > self.dense > 0 else ''}"
                for name, n in self.resident.items()
            ),
        ]
