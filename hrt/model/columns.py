"""JSON that says the same in fewer bytes, once deflated: what is alike stands together.

A stack of matrices has a record each, and a recurrent network the same nodes for every step. `columns` writes

    lists of one length             {"|rows": [columns]}                   their first entries, their second, ...
    other lists                     {"|lists": [lengths, entries]}         one behind the other
    a list with objects             {"|objects": [kinds, kind by entry, entries by kind]}   a kind is a tuple of keys,
                                                                           or null for what is no object
    an object of many entries       {"|object": [keys, values]}
    texts with whole numbers        {"|texts": [patterns, steps]}          "a.#.b", and each number less the one in the
                                                                           last text of that pattern

and `rows` takes it back, and makes no more of it than it is told; nor does `parsed`, of any text. `plain` and
`restored` are for figures that JSON does not know.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FEW = 4  # entries below which a list stays as it is
MANY = 8  # entries from which an object is written as two lists
NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,14})(?![0-9])")
LARGEST = 10**15  # below it are the numbers in texts
GAP = "#"
NOT_FINITE = "not finite"  # JSON has no infinity: {"not finite": "inf"}
PER_OBJECT = 4  # an object takes so many times what another value does
ROWS, LISTS, OBJECTS, OBJECT, TEXTS = FORMS = ("|rows", "|lists", "|objects", "|object", "|texts")

as_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def plain(value: Any) -> Any:
    """`value` as JSON knows it, figures that are not finite as {"not finite": "inf"}."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return {NOT_FINITE: repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def restored(value: dict[str, Any]) -> Any:
    """The inverse of `plain`, for an object of JSON whose values are restored already."""
    return float(value[NOT_FINITE]) if value.keys() == {NOT_FINITE} else value


def parsed(text: bytes, most: int) -> Any:
    """What a JSON text says, as `plain` wrote it. Raises ValueError for more than `most` values, before one is made."""
    count = sum(map(text.count, b"[{,:")) + (PER_OBJECT - 1) * text.count(b"{")
    if count > most:
        raise ValueError(f"it has {count} values, objects counted {PER_OBJECT} times; so few bytes may have {most}")
    return json.loads(text, object_hook=restored)


def columns(value: Any) -> Any:
    """`value` (None, bool, int, float, str, list or dict) in these forms."""
    if isinstance(value, dict):
        if len(value) >= MANY or _form(value):
            return {OBJECT: [columns(list(value)), columns(list(value.values()))]}
        return {k: columns(v) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) >= FEW:
        if all(isinstance(v, str) for v in value):
            return _patterns(value)
        if all(isinstance(v, list) for v in value):
            if value[0] and len({len(v) for v in value}) == 1:
                return {ROWS: [columns(list(column)) for column in zip(*value, strict=True)]}
            return {LISTS: [[len(v) for v in value], columns([entry for v in value for entry in v])]}
        if any(isinstance(v, dict) for v in value):
            return _kinds(value)
    return [columns(v) for v in value]


def _form(value: Mapping[str, Any]) -> str | None:
    """The form that an object of JSON is, if it is one."""
    return next((key for key in value if key in FORMS), None) if len(value) == 1 else None


def _patterns(texts: Sequence[str]) -> Any:
    patterns = [NUMBER.sub(GAP, t) for t in texts]
    if patterns == texts or any(GAP in t for t in texts):
        return list(texts)
    last: dict[str, list[int]] = {}
    steps: list[int] = []
    for text, pattern in zip(texts, patterns, strict=True):
        numbers = [int(n) for n in NUMBER.findall(text)]
        steps += [n - before for n, before in zip(numbers, last.get(pattern, [0] * len(numbers)), strict=True)]
        last[pattern] = numbers
    return {TEXTS: [patterns, steps]}


def _kinds(values: Sequence[Any]) -> Any:
    keys = [tuple(v) if isinstance(v, dict) else None for v in values]
    places = {kind: k for k, kind in enumerate(dict.fromkeys(keys))}
    entries: list[list[Any]] = [[] for _ in places]
    for v, kind in zip(values, keys, strict=True):
        entries[places[kind]].append(list(v.values()) if kind is not None else v)
    kinds = [None if kind is None else list(kind) for kind in places]
    return {OBJECTS: [kinds, [places[kind] for kind in keys], [columns(group) for group in entries]]}


def rows(value: Any, most: int) -> Any:
    """The inverse of `columns`. Raises ValueError for what it never wrote, and where lists and objects of more than
    `most` entries together would be made: a short text can name many.
    """
    try:
        return _Rows(most).of(value)
    except (StopIteration, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"its columns do not fit each other ({type(error).__name__}: {error})") from error


class _Rows:
    """left: how many entries may yet be made."""

    def __init__(self, most: int) -> None:
        self.left = most
        made_by = (self.of_rows, self.of_lists, self.of_objects, self.of_object, self.of_texts)
        self.forms: Mapping[str, Callable[..., Any]] = dict(zip(FORMS, made_by, strict=True))

    def take(self, count: int) -> None:
        """Raise ValueError where `count` more are too many."""
        self.left -= count
        if self.left < 0:
            raise ValueError("it has more entries than a header may")

    def of(self, value: Any) -> Any:
        """What any value stands for."""
        if isinstance(value, dict):
            if form := _form(value):
                return self.forms[form](*value[form])
            self.take(len(value))
            return {k: self.of(v) for k, v in value.items()}
        if isinstance(value, list):
            self.take(len(value))
            return [self.of(v) for v in value]
        return value

    def entries(self, value: Any, kind: type | None = None) -> list[Any]:
        """The list that `value` stands for, of values of one type where there is a `kind`."""
        made = self.of(value)
        if not isinstance(made, list) or (kind and any(type(v) is not kind for v in made)):
            raise ValueError(f"found {str(value)[:40]!r} in the place of a list")
        return made

    def of_rows(self, *parts: Any) -> list[Any]:
        """The lists whose k-th entries are the k-th part."""
        made = [self.entries(column) for column in parts]
        self.take(len(made[0]) * (1 + len(made)))
        return [list(row) for row in zip(*made, strict=True)]

    def of_lists(self, lengths: Any, entries: Any) -> list[Any]:
        """The lists of these lengths."""
        counts, values = self.entries(lengths, int), self.entries(entries)
        if any(count < 0 for count in counts) or sum(counts) != len(values):
            raise ValueError(f"there are {len(values)} entries in lists of {sum(counts)}")
        self.take(len(counts) + len(values))
        left = iter(values)
        return [[next(left) for _ in range(count)] for count in counts]

    def of_objects(self, kinds: Any, which: Any, entries: Any) -> list[Any]:
        """The list whose entries are of these kinds."""
        keys = [None if kind is None else self.entries(kind, str) for kind in kinds]
        groups = [iter(self.entries(group)) for group, _ in zip(entries, keys, strict=True)]
        made = []
        for kind in self.entries(which, int):
            names, entry = keys[kind], next(groups[kind])
            if names is not None:
                self.take(1 + len(names))
                entry = dict(zip(names, entry, strict=True))
            made.append(entry)
        if any(next(group, self) is not self for group in groups):
            raise ValueError("there are entries of no object")
        return made

    def of_object(self, keys: Any, values: Any) -> dict[str, Any]:
        """The object of these keys."""
        names, made = self.entries(keys, str), self.entries(values)
        self.take(len(names))
        return dict(zip(names, made, strict=True))

    def of_texts(self, patterns: Any, steps: Any) -> list[str]:
        """The texts of these patterns."""
        left = iter(self.entries(steps, int))
        last: dict[str, list[int]] = {}
        made = []
        for pattern in self.entries(patterns, str):
            parts = pattern.split(GAP)
            numbers = [before + next(left) for before in last.get(pattern, [0] * (len(parts) - 1))]
            if not all(0 <= n < LARGEST for n in numbers):
                raise ValueError(f"found the numbers {numbers[:4]} in a text")
            last[pattern] = numbers
            made.append("".join(f"{part}{n}" for part, n in zip(parts, numbers, strict=False)) + parts[-1])
        if next(left, self) is not self:
            raise ValueError("there are numbers of no text")
        return made
