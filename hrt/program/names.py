"""Names that are not taken yet."""

from collections.abc import Callable, Container


def unique_name(
    stem: str, taken: Container[str] | Callable[[str], bool], *, separator: str = ".", first: int = 2
) -> str:
    """`stem`, or where that is taken `stem` with the first free number behind it: "x", "x.2", "x.3"."""
    is_taken = taken if callable(taken) else taken.__contains__
    name, number = stem, first
    while is_taken(name):
        name, number = f"{stem}{separator}{number}", number + 1
    return name
