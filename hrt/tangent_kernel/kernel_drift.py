"""How far one kernel is from another: norms, spectra, effective ranks and the angles of leading eigenspaces."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hrt.certificate.norms import svd_rounding
from hrt.errors import InputError
from hrt.hmatrix.hmatrix import relative_difference

LEADING = 5  # eigenvectors whose span is compared


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a kernel, and by how much rounding may have moved them.

    Args:
        values: (n,) float64, descending.
        rounding: Absolute. LAPACK's bound (`hrt.certificate.norms.svd_rounding`), relative to the trace. This also
            covers the rounding of the kernel's own entries, up to some 10^5 parameters to a point.

    Example:
        >>> import torch, hrt
        >>> hrt.Spectrum.of(torch.diag(torch.tensor([1.0, 3.0]))).values.tolist()
        [3.0, 1.0]

    Source:
        Higham and Mary, SIAM J. Sci. Comput. 41, 2019, for the growth of errors.
    """

    values: Tensor
    rounding: float

    @staticmethod
    def of(kernel: Tensor) -> "Spectrum":
        """The spectrum of a symmetric kernel.

        Args:
            kernel: (n, n), float32 or float64.

        Returns:
            The eigenvalues and their rounding.

        Raises:
            InputError: Another shape, or NaN.
        """
        theta = _checked(kernel)
        unit = torch.finfo(kernel.dtype).eps / torch.finfo(torch.float64).eps
        values = torch.linalg.eigvalsh(theta).flip(0)
        return Spectrum(values, svd_rounding(theta) * unit * float(theta.diagonal().sum()))

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[0])

    @property
    def least(self) -> float:
        """The smallest eigenvalue as computed: a Gram matrix has none below 0, rounding may say so."""
        return float(self.values[-1])

    @property
    def is_positive_definite(self) -> bool:
        """Whether the smallest eigenvalue is larger than what rounding may have added."""
        return self.least > self.rounding

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the eigenvalues over their sum, from 1 to n (Roy and Vetterli, EUSIPCO 2007)."""
        share = self.values.clamp_min(0) / self.values.clamp_min(0).sum()
        return math.exp(float(torch.special.entr(share).sum()))

    @property
    def trace_rank(self) -> float:
        """Trace over largest eigenvalue (the intrinsic dimension of Tropp, 2015, section 7.1), from 1 to n."""
        return float(self.values.sum()) / self.largest


@dataclass(frozen=True, eq=False)
class Drift:
    """How far one kernel, Theta_H, is from another, Theta.

    Args:
        relative: ||Theta - Theta_H||_F / ||Theta||_F.
        frobenius: ||Theta - Theta_H||_F.
        spectral: ||Theta - Theta_H||_2.
        before: The spectrum of Theta.
        after: The spectrum of Theta_H.
        cosines: Of the principal angles between the spans of the leading eigenvectors of both, largest first.
        gap: The eigenvalue of Theta that ends this span minus the next. Only differences far below it leave angles.

    Example:
        >>> import torch, hrt
        >>> net = torch.nn.Linear(3, 2)
        >>> drift = hrt.compare_ntk(net, net, torch.rand(4, 3))
        >>> drift.spectral, drift.before.largest == drift.after.largest
        (0.0, True)

    Source:
        Bjorck and Golub, Math. Comp. 27, 1973, for the angles.
    """

    relative: float
    frobenius: float
    spectral: float
    before: Spectrum
    after: Spectrum
    cosines: tuple[float, ...]
    gap: float


def drift(before: Tensor, after: Tensor, leading: int = LEADING) -> Drift:
    """Compare two kernels (n, n). leading: dimension of the eigenspaces compared, at most n."""
    a, b = _checked(before), _checked(after)
    if a.shape != b.shape:
        raise InputError(f"Found kernels of shapes {tuple(a.shape)} and {tuple(b.shape)}. Expected equal ones.")
    if not isinstance(leading, int) or leading < 1:
        raise InputError(f"Found leading = {leading!r}. Expected a positive whole number of eigenvectors.")
    if not float(a.norm()):
        raise InputError("The kernel is zero: nothing is relative to it. Expected points where the network learns.")
    spectra = [Spectrum.of(k) for k in (before, after)]
    k = min(leading, len(a))
    spans = [torch.linalg.eigh(theta).eigenvectors[:, -k:] for theta in (a, b)]
    cosines = torch.linalg.svdvals(spans[0].T @ spans[1]).clamp(0, 1)
    following = float(spectra[0].values[k]) if k < len(a) else -math.inf
    return Drift(
        relative=relative_difference(b, a),
        frobenius=float((a - b).norm()),
        spectral=float(torch.linalg.eigvalsh(a - b).abs().max()),
        before=spectra[0],
        after=spectra[1],
        cosines=tuple(cosines.tolist()),
        gap=float(spectra[0].values[k - 1]) - following,
    )


def _checked(kernel: Tensor) -> Tensor:
    """The kernel in float64. Raises InputError unless it is square, not empty and finite."""
    if not isinstance(kernel, Tensor) or kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not kernel.numel():
        what = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
        raise InputError(f"Found a kernel {what}. Expected a square matrix of at least one row.")
    if not bool(torch.isfinite(kernel).all()):
        raise InputError("The kernel holds NaN or infinity. Expected finite numbers.")
    return kernel.detach().to(torch.float64)
