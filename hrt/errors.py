"""Typed errors. Every message says what was found, what was expected and what to do about it."""


class HrtError(Exception):
    """Base class of everything hrt raises on purpose."""


class CaptureError(HrtError):
    """A network holds something that the closed op table (`hrt.program.op_table`) cannot express."""


class ToleranceError(HrtError, ValueError):
    """A tolerance that makes no sense, or that float32 arithmetic and storage cannot hold."""


class ArtifactError(HrtError):
    """A `.hrt` file that is truncated, altered, oversized, too new, or could not be written."""


class InputError(HrtError, ValueError):
    """Data, shapes or options that do not fit; nothing was changed."""


class BackendError(HrtError, RuntimeError):
    """A backend that is unknown, not installed, or cannot run here."""


class TrainingError(HrtError, RuntimeError):
    """A loss that is not finite; the network was put back to its last good state, which the message names."""


class DerivativeError(HrtError):
    """A derivative that the op table has no rule for."""
