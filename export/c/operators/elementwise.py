"""Elementwise ops as C expressions of vectors: {0}, {1}, {2} stand for the arguments."""

from collections.abc import Mapping

from hrt.export.c.body import Body
from hrt.export.c.elementwise_text import Expression
from hrt.program.program import Node

SQUARINGS = 16  # exponents up to which a power is a product: a rounding for every factor at most


def _plain(text: str) -> Expression:
    return lambda body, node: text


def _with(text: str, *attrs: str) -> Expression:
    """Attributes stand in the text as <name>."""

    def expression(body: Body, node: Node) -> str:
        result = text
        for name in attrs:
            result = result.replace(f"<{name}>", body.literal(float(node.attrs[name])))
        return result

    return expression


def _clamp(body: Body, node: Node) -> str:
    text = "{0}"
    for key, name in (("low", "hrt_at_least"), ("high", "hrt_at_most")):
        limit = node.attrs[key]
        if limit is not None and abs(limit) != float("inf"):
            text = f"{name}({text}, {body.literal(float(limit))})"
    return text


def _gelu(body: Body, node: Node) -> str:
    return "hrt_gelu_tanh({0})" if node.attrs["approximate"] == "tanh" else "hrt_gelu({0})"


def _softplus(body: Body, node: Node) -> str:
    beta = body.literal(float(node.attrs["beta"]))
    return "hrt_softplus({0})" if node.attrs["beta"] == 1 else f"hrt_softplus({{0}} * {beta}) / {beta}"


def _power(body: Body, node: Node) -> str:
    e = float(node.attrs["exponent"])
    if e == 0:
        return "((void){0}, hrt_splat(1))"
    if abs(e) == 0.5:
        return "hrt_sqrt({0})" if e > 0 else "1 / hrt_sqrt({0})"
    if e != int(e):
        return f"hrt_power({{0}}, {e.hex()})"
    if abs(e) <= SQUARINGS:
        return f"hrt_whole_power({{0}}, {int(e)})"
    size = f"hrt_power(hrt_abs({{0}}), {e.hex()})"
    return size if e % 2 == 0 else f"hrt_with_sign({size}, {{0}})"


# fmt: off
_FUNCTIONS = (
    "tanh", "sin", "cos", "sigmoid", "silu", "mish", "exp", "log", "sqrt", "erf", "atan", "tan",
    "asin", "acos", "asinh", "acosh", "atanh", "sinc", "abs", "floor", "round",
)
# fmt: on
EXPRESSIONS: Mapping[str, Expression] = {
    **{name: _plain(f"hrt_{name}({{0}})") for name in _FUNCTIONS},
    "gelu": _gelu,
    "softplus": _softplus,
    "power": _power,
    "clamp": _clamp,
    "relu": _plain("hrt_at_least({0}, 0)"),
    "leaky_relu": _with("hrt_select(hrt_less(hrt_splat(0), {0}), {0}, {0} * <slope>)", "slope"),
    "elu": _with("hrt_elu({0}, <alpha>)", "alpha"),
    "neg": _plain("-{0}"),
    "reciprocal": _plain("1 / {0}"),
    "step": _with(
        "hrt_select(hrt_less(hrt_splat(0), {0}), hrt_splat(1), "
        "hrt_select(hrt_equal({0}, hrt_splat(0)), hrt_splat(<at_zero>), hrt_splat(0)))",
        "at_zero",
    ),
    "add": _plain("{0} + {1}"),
    "sub": _plain("{0} - {1}"),
    "mul": _plain("{0} * {1}"),
    "div": _plain("{0} / {1}"),
    "maximum": _plain("hrt_larger({0}, {1})"),
    "minimum": _plain("-hrt_larger(-{0}, -{1})"),
    "fmod": _plain("hrt_fmod({0}, {1})"),
    "atan2": _plain("hrt_atan2({0}, {1})"),
    "where": _plain("hrt_select(hrt_equal({0}, hrt_splat(0)), {2}, {1})"),
}
