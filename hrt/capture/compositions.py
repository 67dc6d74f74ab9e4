"""Functions that the op table has no row for, said in its rows: once for every format that networks come in.

A composition gets `say(op, *operands, **attributes)`, which writes a node and gives its value; operands are values,
constants or numbers, broadcast. Masks are values of 0 and 1. No composition loses digits that the function has.
"""

import math
from collections.abc import Callable
from typing import Any

Say = Callable[..., Any]
LARGEST = 3.4028234663852886e38  # stands for infinity, which files do not hold: exp(-LARGEST) is 0 all the same


def is_number(x: Any, number: float) -> bool:
    """Whether an operand is this plain number."""
    return isinstance(x, (int, float)) and x == number


def _above(say: Say, x: Any, y: Any, at_equal: float) -> Any:
    """1 where x > y, at_equal where both are equal, else 0. A difference of floats is 0 only where they are equal."""
    if is_number(x, 0):
        return say("step", say("neg", y), at_zero=at_equal)
    return say("step", x if is_number(y, 0) else say("sub", x, y), at_zero=at_equal)


def equal(say: Say, x: Any, y: Any) -> Any:
    """1 where both are equal."""
    difference = x if is_number(y, 0) else say("sub", x, y)
    return say("sub", say("step", difference, at_zero=1.0), say("step", difference, at_zero=0.0))


def negated(say: Say, mask: Any) -> Any:
    """1 where the mask is 0."""
    return say("sub", 1.0, mask)


COMPARISONS: dict[str, Callable[[Say, Any, Any], Any]] = {
    "gt": lambda say, x, y: _above(say, x, y, 0.0),
    "ge": lambda say, x, y: _above(say, x, y, 1.0),
    "lt": lambda say, x, y: _above(say, y, x, 0.0),
    "le": lambda say, x, y: _above(say, y, x, 1.0),
    "eq": equal,
    "ne": lambda say, x, y: negated(say, equal(say, x, y)),
}
LOGIC: dict[str, Callable[..., Any]] = {
    "and": lambda say, p, q: say("mul", p, q),
    "or": lambda say, p, q: say("maximum", p, q),
    "xor": lambda say, p, q: say("abs", say("sub", p, q)),
    "not": negated,
}


def ceil(say: Say, x: Any) -> Any:
    """The next whole number above."""
    return say("neg", say("floor", say("neg", x)))


def trunc(say: Say, x: Any) -> Any:
    """The next whole number towards 0."""
    return say("sub", say("floor", say("relu", x)), say("floor", say("relu", say("neg", x))))


def sign(say: Say, x: Any) -> Any:
    """1, 0 or -1."""
    return say("sub", say("mul", say("step", x, at_zero=0.5), 2.0), 1.0)


def remainder(say: Say, x: Any, y: Any) -> Any:
    """x - y floor(x / y): that of `fmod`, moved by y where its sign is not that of y."""
    rest = say("fmod", x, y)
    if isinstance(y, (int, float)):
        opposite = say("step", say("neg", rest) if y > 0 else rest, at_zero=0.0)
    else:
        opposite = say("step", say("neg", say("mul", rest, y)), at_zero=0.0)
    return say("add", rest, say("mul", opposite, y))


def floor_divided(say: Say, x: Any, y: Any) -> Any:
    """floor(x / y), also where x / y would round up to a whole number."""
    return say("round", say("div", say("sub", x, remainder(say, x, y)), y))


def is_known(say: Say, x: Any) -> Any:
    """1 where x is a number, 0 where it is NaN."""
    return say("maximum", say("step", x, at_zero=1.0), say("step", say("neg", x), at_zero=1.0))


def nan_to_num(say: Say, x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    """Numbers in the place of NaN and of what is infinite."""
    y = say("where", is_known(say, x), x, nan or 0.0)
    for bound, name, number in ((posinf, "gt", LARGEST), (neginf, "lt", -LARGEST)):
        y = y if bound is None else say("where", COMPARISONS[name](say, y, number), bound, y)
    return say("clamp", y, low=-LARGEST, high=LARGEST)


def finite(value: Any) -> Any:
    """A fill value without infinity."""
    return math.copysign(LARGEST, value) if isinstance(value, (int, float)) and math.isinf(value) else value


COMPOSED: dict[str, Callable[..., Any]] = {
    "ceil": ceil,
    "trunc": trunc,
    "sign": sign,
    "frac": lambda say, x: say("fmod", x, 1.0),
    "log2": lambda say, x: say("mul", say("log", x), 1 / math.log(2)),
    "log10": lambda say, x: say("mul", say("log", x), 1 / math.log(10)),
    "exp2": lambda say, x: say("exp", say("mul", x, math.log(2))),
    "remainder": remainder,
    "nan_to_num": nan_to_num,
    "hypot": lambda say, x, y: say("sqrt", say("add", say("mul", x, x), say("mul", y, y))),
    "softshrink": lambda say, x, bound=0.5: say("sub", x, say("clamp", x, low=-bound, high=bound)),
    "hardshrink": lambda say, x, bound=0.5: say("mul", x, COMPARISONS["gt"](say, say("abs", x), bound)),
    "threshold": lambda say, x, bound, value: say("where", COMPARISONS["gt"](say, x, bound), x, value),
    "logaddexp": lambda say, x, y: say(
        "add", say("maximum", x, y), say("softplus", say("neg", say("abs", say("sub", x, y))), beta=1.0)
    ),
}
