"""CompressedModel: what compress returns and load gives back."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from hrt.certificate.derivative_outputs import with_derivatives
from hrt.derivatives.differentiate import Differentiated, differentiate
from hrt.errors import BackendError, HrtError, InputError, shown
from hrt.model.artifact import write
from hrt.model.contents import Contents
from hrt.model.rows import Rows
from hrt.model.sizes import Sizes
from hrt.runtime.backends import open_session
from hrt.runtime.session import Session
from hrt.schedule.precision import default_precision
from hrt.support.atomic_files import warn_of_suffix
from hrt.support.random_state import unmoved_random
from hrt.support.torch_state import guarded, has_usual_modes, usual_modes, usual_state
from hrt.support.types import Array, Kind, Numbers

if TYPE_CHECKING:
    from hrt.calibration.samples import Inputs
    from hrt.capture.network import Network

PREPARED = 64  # orders of all certified derivatives together that are prepared when a model is made
DIFFERENTIATED = 16  # sets of derivatives for which a model keeps a program and a session


@dataclass(frozen=True, eq=False)
class CompressedModel(Contents):
    """A compressed network, its certificate, and a backend to run it on. `hrt.compress` and `hrt.load` return it.

    It does not change, and `predict` is thread-safe.

    Args:
        program: The network as data.
        certificate: What is measured, estimated and guaranteed of it.
        target: What it was compressed for: "cpu", "cuda" or "bytes".
        dense_nbytes: Bytes of the original network in float32.
        backend: "auto", "torch", "onnxruntime", "native" or "cuda".
        device: Where that backend runs, such as "cuda:1".
        max_batch: Larger batches are computed in parts of so many rows.
        strict: Refuse tensors that are not on the backend's device, instead of moving them.
        origin: Where `program` came from, if it gives derivatives.

    Raises:
        InputError: `max_batch` is no positive whole number.

    Example:
        >>> import torch, hrt
        >>> model = hrt.compress(torch.nn.Linear(3, 2), tol=1e-2, progress=False)
        >>> model.predict(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
        >>> model.nbytes <= model.dense_nbytes
        True
    """

    _: KW_ONLY
    backend: str = "auto"
    device: str | torch.device | None = None
    max_batch: int | None = None
    strict: bool = False
    origin: Differentiated | None = None

    def __post_init__(self) -> None:
        if self.max_batch is not None and (not isinstance(self.max_batch, int) or self.max_batch < 1):
            raise InputError(f"Found max_batch {shown(self.max_batch)}. Expected a positive whole number, or None.")

    @cached_property
    def session(self) -> Session:
        """The backend's session, made on first use."""
        return self.open()

    @guarded
    def open(self) -> Session:
        """A new session on the backend, whatever torch's default device is.

        Returns:
            The session.

        Raises:
            BackendError: The backend cannot run here.
        """
        return open_session(
            self.program,
            self.backend,
            self.device,
            target=self.target,
            precision=self.precision,
            certified=self.certificate.runtimes,
            differentiated=self.origin if self.origin and self.origin.program is self.program else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the sessions, which belong to this process."""
        return {k: v for k, v in self.__dict__.items() if k not in ("session", "_run_as_given", "_differentiated")}

    @cached_property
    def _run_as_given(self) -> Callable[[Any], Any]:
        """The session's shortest way, where nothing has to be split."""
        floats = all(v.kind == "float" for v in self.program.inputs)
        return self.session.run_as_given if self.max_batch is None and floats else lambda x: None

    @property
    def precision(self) -> str:
        """The arithmetic of a GPU's tensor cores for this network: as certified, else near float32."""
        return self.certificate.precision or default_precision(self.certificate.tol)

    @overload
    def predict(self, x: Kind | Sequence[Kind], *, derivatives: None = None) -> Kind | tuple[Kind, ...]: ...
    @overload
    def predict(
        self, x: Kind | Sequence[Kind], *, derivatives: Sequence[str]
    ) -> tuple[Kind | tuple[Kind, ...], ...]: ...
    @overload
    def predict(self, x: Numbers, *, derivatives: None = None) -> np.ndarray | tuple[np.ndarray, ...]: ...
    @overload
    def predict(self, x: Numbers, *, derivatives: Sequence[str]) -> tuple[np.ndarray | tuple[np.ndarray, ...], ...]: ...
    def predict(self, x: Any, *more: Any, derivatives: Sequence[str] | None = None) -> Any:
        """Evaluate the network. `model(x)` is the same.

        Args:
            x: numpy array or torch tensor (batch, *shape), floating or whole numbers, or lists of numbers; a tuple of
                them for several inputs, or the dictionary or structure that `hrt.compress` was given. Other axes
                before `shape`, or none, are those of the answer too; (batch,) does for one feature.
            more: Nothing. Several inputs are one tuple.
            derivatives: Names by input coordinates, such as ["d0", "d1", "d0d0"].

        Returns:
            The output, of the kind and floating dtype of the (first) input, new, contiguous and without gradients; a
            tuple for several. With derivatives a tuple: the value, then every derivative as asked. Arithmetic is
            float32, and so is the answer to whole numbers and lists.

        Raises:
            InputError: `x` does not fit, requires a gradient where those are on, or a name is no derivative.
            DerivativeError: An op has no rule for the order asked.

        Example:
            >>> import torch, hrt
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
            >>> model = hrt.compress(net, tol=1e-3, progress=False)
            >>> u, u_x = model.predict(torch.zeros(5, 2), derivatives=["d0"])
            >>> u.shape, u_x.shape
            (torch.Size([5, 1]), torch.Size([5, 1]))
        """
        if more:
            raise InputError(
                f"Found {1 + len(more)} positional arguments, the second {shown(more[0])}. Expected one: several "
                "inputs are a tuple: predict((x0, x1)); derivatives have a name: predict(x, derivatives=['d0'])."
            )
        if derivatives is None:
            answer = self._run_as_given(x)
            return self._checked_and_run(x) if answer is None else answer
        try:  # no call where they were asked for before
            model = self._differentiated[tuple(derivatives)]
        except (KeyError, TypeError):
            model = self.differentiated(derivatives)
        answer = model._run_as_given(x)
        if answer is None:
            answer = model._checked_and_run(x)
        flat, outputs = answer if type(answer) is tuple else (answer,), len(self.program.outputs)
        return flat if outputs == 1 else tuple([flat[k : k + outputs] for k in range(0, len(flat), outputs)])

    __call__ = predict

    def differentiated(self, derivatives: Sequence[str]) -> "CompressedModel":
        """The model whose outputs are this one's and then, derivative by derivative, those of every output. Its
        certificate names those that are bounded: the value, and the derivatives that `hrt.compress` was asked for.

        Args:
            derivatives: Names by input coordinates, such as ["d0", "d0d1"].

        Returns:
            A model. Equal names give the same one again.

        Raises:
            InputError: A name is no derivative.
            DerivativeError: An op has no rule for the order asked.
        """
        try:
            key = derivatives if isinstance(derivatives, str) else tuple(derivatives)
            model = self._differentiated.get(key)
        except TypeError:  # no list, or not of names: `differentiate` says so
            key, model = derivatives, None
        if model is None:
            with usual_state():
                origin = differentiate(self.program, key)
            certificate = with_derivatives(self.certificate, self.program, origin)
            while len(self._differentiated) >= DIFFERENTIATED:
                self._differentiated.pop(next(iter(self._differentiated)), None)
            made = replace(self, program=origin.program, certificate=certificate, origin=origin)
            model = self._differentiated.setdefault(key, made)
        return model

    @cached_property
    def _differentiated(self) -> dict[Any, "CompressedModel"]:
        return {}

    def _checked_and_run(self, x: Any) -> Any:
        """What `predict` answers where the session's shortest way does not."""
        # Sessions do not ask for the default dtype, which belongs to the whole process.
        with nullcontext() if has_usual_modes() else usual_modes():
            given = Rows.of(self.program, x)
            if self.strict:
                self._check_devices(given.arrays)
            rows = given.arrays[0].shape[0]
            step = max(1, self.max_batch or rows)
            parts = []
            for start in range(0, max(rows, 1), step):
                outputs = self.session.run(given.part(start, start + step))
                parts.append([given.like_given(y) for y in outputs])
            answers = tuple(given.joined(pieces) for pieces in zip(*parts, strict=True))
        return answers[0] if len(answers) == 1 else answers

    def _check_devices(self, inputs: Sequence[Array]) -> None:
        device = self.session.device
        for k, v in enumerate(inputs):
            if isinstance(v, Tensor) and v.device != device:
                raise InputError(f"Input {k} is on {v.device}. Expected {device}; move it, or load with strict=False.")

    @guarded
    def module(self, key: str | None = None) -> torch.nn.Module:
        """This network as a torch module whose forward is one operator, for torch.compile, torch.export and larger
        networks. Inference only.

        Args:
            key: The name that the operator knows the network by, and that exported programs refer to.

        Returns:
            The module.
        """
        from hrt.model.torch_operator import OperatorModule

        return OperatorModule(self, key)

    @guarded
    def save(self, path: str | PathLike[str], *, force: bool = True) -> None:
        """Write one `.hrt` file, atomically.

        Args:
            path: The file, in a folder that exists.
            force: Replace a file that exists. Without it one of several writers succeeds.

        Raises:
            ArtifactError: The file cannot be written. What was there before stays.
        """
        write(self, path, force=force)
        warn_of_suffix(path, ".hrt")

    @guarded
    def report(self, *, verbose: bool = False) -> str:
        """The verdict first: the error that is held, the sizes, the speed to expect; then a table of every layer.

        Args:
            verbose: Also what the paper says, beside what was measured: condition numbers, the neural tangent kernel,
                the bound over the whole box.

        Returns:
            Plain text of at most 100 columns.
        """
        with unmoved_random():
            from hrt.model.report import render

            return render(self, self.sizes(), verbose=verbose)

    @guarded
    def sizes(self) -> Sizes:
        """Bytes as stored, in a file, resident in the session, and dense.

        Returns:
            The sizes. Nothing is resident where the backend cannot run here.
        """
        try:
            return Sizes.of(self, self.session)
        except BackendError:
            return Sizes.of(self)

    @guarded
    def plot(
        self, path: str | PathLike[str], *, reference: "Network | None" = None, inputs: "Inputs | None" = None
    ) -> None:
        """Draw every layer's block structure and singular values. A file holds neither the original network nor inputs:
        given here, they are drawn too.

        Args:
            path: An image file: .png, .pdf or .svg.
            reference: The network that was compressed, as `hrt.compress` takes it: its spectra stand beside the kept.
            inputs: Rows or `hrt.Box(low, high)`, as `hrt.compress` takes them: spectra are drawn as these inputs see
                them, and for inputs of one or two numbers the outputs as fields, with the reference's and their
                difference.

        Raises:
            InputError: The file cannot be written, its format is none of these, or `reference` is another network.
        """
        from hrt.model.plot import plot_model

        plot_model(self, path, reference=reference, inputs=inputs)

    def __repr__(self) -> str:
        return (
            f"CompressedModel({len(self.program.weights)} weight matrices, {self.nbytes:,} bytes, "
            f"{self.compression_ratio:.2f}x smaller than float32, tol {self.certificate.tol:g})"
        )


def prepare(model: CompressedModel) -> CompressedModel:
    """The model with its certified derivatives' session open and run once: the first call takes no longer than others.
    Nothing is done where no derivatives were certified, or so many that a file may ask for them to take up time.
    """
    names = model.certificate.derivatives
    if 0 < sum(name.count("d") for name in names) <= PREPARED:
        with suppress(HrtError):  # is raised again by whoever asks for them
            model.predict(tuple(torch.zeros(1, *v.shape) for v in model.program.inputs), derivatives=names)
    return model
