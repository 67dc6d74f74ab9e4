"""The free fields of a certificate that something reads: their names and types, checked when a file is read."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[float, msgspec.Meta(ge=0)]  # of errors and limits; in lists one may be NaN, that of a column of zeros
Text = Annotated[str, msgspec.Meta(max_length=5_000)]
IN_PRECISION = "output_error_upper_99_in_"  # and the name of the arithmetic


class Measured(msgspec.Struct, frozen=True):
    """What is read of `Certificate.measured`, where it is there; the defaults mark what is not."""

    output_error: Size = 0.0
    runtime_error: Size = 0.0
    capture_difference: Size = 0.0
    ntk_drift: Size | None = None
    per_output: tuple[float, ...] = ()
    output_rms: tuple[float, ...] = ()
    max_abs_error: tuple[float, ...] = ()
    derivative_error: dict[str, Size] = {}
    derivative_runtime_error: dict[str, Size] = {}


class Estimated(msgspec.Struct, frozen=True):
    """What is read of `Certificate.estimated`; limits in narrow arithmetic besides."""

    output_error_upper_99: Size = 0.0
    unseen_probability_99: Size = 0.0
    derivative_error_upper_99: dict[str, Size] = {}
    per_output_upper_99: tuple[float, ...] = ()


class Guaranteed(msgspec.Struct, frozen=True):
    """What is read of `Certificate.guaranteed`."""

    max_abs_error_over_box_exact_arithmetic: tuple[float, ...] = ()


class Context(msgspec.Struct, frozen=True):
    """What is read of `Certificate.context`."""

    held_out_rows: Count = 0
    ntk_points: Count | None = None
    remarks: tuple[Text, ...] = ()
    runtimes: tuple[Text, ...] = ()
    compiler: Text = ""
    derivatives: tuple[Text, ...] = ()
    kinks: tuple[Text, ...] = ()
    outputs: dict[str, str] = {}
    precision: Literal["bf16", "fp16", "tf32", "tf32x3", "ieee"] = "ieee"
    no_output_bound: Text = ""
    no_ntk_drift: Text = ""


def check_figures(
    measured: Mapping[str, Any], estimated: Mapping[str, Any], guaranteed: Mapping[str, Any], context: Mapping[str, Any]
) -> None:
    """Raise ValueError unless a certificate's free fields have the types that their readers expect, and fit each other.
    Fields that nothing reads may be anything.
    """
    figures, limits = msgspec.convert(measured, Measured), msgspec.convert(estimated, Estimated)
    facts = msgspec.convert(context, Context)
    msgspec.convert(guaranteed, Guaranteed)
    msgspec.convert({k: v for k, v in estimated.items() if k.startswith(IN_PRECISION)}, dict[str, float])
    by_name = (figures.derivative_error, figures.derivative_runtime_error, limits.derivative_error_upper_99)
    missing = [name for name in facts.derivatives if not all(name in known for known in by_name)]
    if missing:
        raise ValueError(f"the certificate names the derivatives {missing} without their errors")
    if figures.ntk_drift is not None and facts.ntk_points is None:
        raise ValueError("the certificate has a drift of the kernel, and does not say on how many points")
