"""Typed errors. Every message says what was found, what was expected and what to do about it."""

import reprlib
from typing import Any

MAX_REASON = 300  # characters of a foreign error that are worth a line
MAX_MESSAGE = 2000  # characters of any message; its ends say what was found and what to do


def printable(text: str) -> str:
    """`text` on one line, safe on a terminal: control characters, also those that turn the direction of writing, line
    ends and what is no valid text are written as escapes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class HrtError(Exception):
    """Base class of everything hrt raises on purpose. Its message is cut in the middle where it is very long.

    Example:
        >>> import hrt
        >>> all(issubclass(error, hrt.HrtError) for error in (hrt.ArtifactError, hrt.InputError, hrt.CaptureError))
        True
    """

    def __init__(self, *args: Any):
        super().__init__(*(_cut(a) if isinstance(a, str) else a for a in args))

    def __str__(self) -> str:
        """The message. Names in it may come from a stranger's file: they do not reach a terminal as they are."""
        return "\n".join(map(printable, super().__str__().split("\n")))


def _cut(text: str) -> str:
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} [... {len(text):,} characters ...] {text[-half:]}"


class CaptureError(HrtError):
    """A network holds something that the closed op table (`hrt.program.op_table`) cannot express.

    Example:
        >>> import hrt, torch
        >>> try:
        ...     hrt.compress(torch.nn.Softmax(dim=0), inputs=torch.rand(8, 5), progress=False)
        ... except hrt.CaptureError as error:
        ...     print(str(error).partition(":")[0])
        Op softmax in the forward of Softmax cannot be captured
    """


class ToleranceError(HrtError, ValueError):
    """A tolerance that makes no sense, or that float32 arithmetic and storage cannot hold.

    Example:
        >>> import hrt, torch
        >>> hrt.compress_matrix(torch.eye(4), tol=-1.0)
        Traceback (most recent call last):
        hrt.errors.ToleranceError: ...
    """


class ArtifactError(HrtError):
    """A `.hrt` file that is truncated, altered, oversized, too new, or could not be written.

    Example:
        >>> import hrt
        >>> hrt.load("absent.hrt")
        Traceback (most recent call last):
        hrt.errors.ArtifactError: absent.hrt cannot be read: No such file or directory.
    """


class InputError(HrtError, ValueError):
    """Data, shapes or options that do not fit. Nothing was changed.

    Example:
        >>> import hrt
        >>> hrt.Box([1.0], [0.0])
        Traceback (most recent call last):
        hrt.errors.InputError: ...
    """


class BackendError(HrtError, RuntimeError):
    """A backend that is unknown, not installed, or cannot run here.

    Example:
        >>> issubclass(BackendError, RuntimeError)
        True
    """


class ExportError(HrtError):
    """A network holds something that the format of an export cannot express. Nothing was written.

    Example:
        >>> issubclass(ExportError, HrtError)
        True
    """


class TrainingError(HrtError, RuntimeError):
    """A loss that is not finite. The network was put back to its last good state, which the message names.

    Example:
        >>> issubclass(TrainingError, RuntimeError)
        True
    """


class DerivativeError(HrtError):
    """A derivative that the op table has no rule for.

    Example:
        >>> import hrt, torch
        >>> model = hrt.compress(torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh()), progress=False)
        >>> model.predict(torch.rand(2, 1), derivatives=["d0d0d0d0"])
        Traceback (most recent call last):
        hrt.errors.DerivativeError: ...
    """


class _Short(reprlib.Repr):
    """Arrays by type and shape, everything else in a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr1(self, x: Any, level: int) -> str:
        shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
        if isinstance(shape, tuple) and shape and dtype is not None:
            return f"<{type(x).__name__} of {dtype} {tuple(shape)}>"
        return super().repr1(x, level)


def shown(value: Any) -> str:
    """A caller's value as messages show it: arrays by type and shape, anything long cut."""
    return _Short().repr(value)


def reason(error: BaseException) -> str:
    """A foreign error in one line: its type and, shortened, its message."""
    text = " ".join(str(error).split()).rstrip(".")
    text = text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line that a foreign error says, or its type where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
