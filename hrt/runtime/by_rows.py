"""Two sessions of one network: one for few rows, one for many."""

from collections.abc import Sequence
from typing import Any

from hrt.runtime.session import Session


class ByRows(Session):
    """Answers up to `most` rows by `few`, more by `many`. `few` answers no more than those to `run_as_given`.

    backend: both names. resident_bytes: of both.
    """

    def __init__(self, few: Session, many: Session, most: int):
        self.few, self.many, self.most = few, many, most
        self.backend = f"{few.backend} up to {most} rows, {many.backend}"
        self.device = few.device
        self.resident_bytes = few.resident_bytes + many.resident_bytes

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """See `Session.run`."""
        return self._session(len(inputs[0])).run(inputs)

    def _session(self, rows: int) -> Session:
        return self.few if rows <= self.most else self.many

    def backend_at(self, rows: int) -> str:
        """See `Session.backend_at`."""
        return self._session(rows).backend

    def run_as_given(self, x: Any) -> Any:
        """See `Session.run_as_given`. Who answers depends on the number of rows alone, so that bits do."""
        answer = self.few.run_as_given(x)
        if answer is not None:
            return answer
        first = x[0] if isinstance(x, tuple) and x else x
        rows = getattr(first, "shape", ())[:1]
        return self.many.run_as_given(x) if rows and rows[0] > self.most else None
