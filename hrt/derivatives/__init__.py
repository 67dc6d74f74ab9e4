"""From a program to a program that gives derivatives too: Taylor jets, their rules, names such as "d0d1".

Knows nothing of compression or of backends.
"""

from hrt.derivatives.differentiate import Differentiated, closure, coordinates, differentiate, parse
from hrt.derivatives.expressions import Expression, Names, parse_expression

__all__ = [
    "Differentiated",
    "Expression",
    "Names",
    "closure",
    "coordinates",
    "differentiate",
    "parse",
    "parse_expression",
]
