"""What a certificate says of each output of a network that gives derivatives beside its value."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hrt.certificate.certificate import Certificate
from hrt.derivatives.differentiate import Differentiated, coordinates
from hrt.program.program import Program

VALUE, UNBOUNDED = "value", "not bounded"


def held_as(certificate: Certificate, outputs: Sequence[str]) -> dict[str, str]:
    """By output: VALUE, the name in the certificate of the derivative that it is ("d0d1"), or UNBOUNDED."""
    known = certificate.context.get("outputs")
    value = VALUE if certificate.kind == "output" else UNBOUNDED
    return {name: known.get(name, UNBOUNDED) if isinstance(known, Mapping) else value for name in outputs}


def with_derivatives(certificate: Certificate, program: Program, made: Differentiated) -> Certificate:
    """The certificate of `made`, derivatives of `program` behind its outputs, from that of `program`. A derivative is
    bounded where it is one of a bounded value and the certificate lists it, in whatever spelling.
    """
    outputs = held_as(certificate, program.outputs)
    listed = {coordinates(name): name for name in certificate.derivatives}
    asked = [(name, listed.get(coordinates(d), UNBOUNDED)) for d in made.derivatives for name in program.outputs]
    for new, (name, held) in zip(made.program.outputs[len(program.outputs) :], asked, strict=True):
        outputs[new] = held if outputs[name] == VALUE else UNBOUNDED
    kinks = dict.fromkeys([*certificate.context.get("kinks", ()), *made.kinks])
    return replace(certificate, context={**certificate.context, "outputs": outputs, "kinks": list(kinks)})


def limits(certificate: Certificate, outputs: Sequence[str]) -> dict[str, float | str]:
    """By output: the estimated 99 % upper limit of its relative L2 error on new inputs, or UNBOUNDED. A limit of
    several outputs together is none of a small one among them: it is then text that says so.
    """
    estimated = certificate.estimated
    figures = {VALUE: estimated.get("output_error_upper_99"), **estimated.get("derivative_error_upper_99", {})}
    kinds = held_as(certificate, outputs)
    shared = Counter(kinds.values())
    by_output: dict[str, float | str] = {}
    for name, held in kinds.items():
        limit = figures.get(held)
        by_output[name] = UNBOUNDED
        if isinstance(limit, float) and math.isfinite(limit):
            by_output[name] = f"{limit} of {shared[held]} outputs together" if shared[held] > 1 else limit
    return by_output
