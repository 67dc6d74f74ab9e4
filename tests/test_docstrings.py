"""What users call is explained: every public name has a docstring with its sections, and its examples run."""

from __future__ import annotations

import doctest
import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

import hrt

ASKED_BY_TORCH = {"extra_repr"}  # methods that modules have for printing
SECTION = r"(?m)^\s*{}:\s*$"


def public_objects() -> Iterator[tuple[str, Any]]:
    """Every public name, and the public methods and properties that hrt itself gives its classes, by dotted name."""
    for name in hrt.__all__:
        thing = getattr(hrt, name)
        yield name, thing
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if (
                member not in ASKED_BY_TORCH
                and not member.startswith("_")
                and (inspect.isfunction(function) or isinstance(value, property))
            ):
                yield f"{name}.{member}", function


PUBLIC = dict(public_objects())


def sections_wanted(name: str, thing: Any) -> list[str]:
    """The sections of Google's style that apply: of what it takes, of what it returns, of how to use it."""
    wanted = [] if "." in name else ["Example"]
    if inspect.isfunction(thing):
        parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
        returns = inspect.signature(thing).return_annotation not in (None, "None", inspect.Signature.empty)
        wanted += ["Args"] * bool(parameters) + ["Returns"] * returns
    return wanted


@pytest.mark.parametrize("name", PUBLIC)
def test_has_a_docstring_with_the_sections_that_apply(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert text.strip(), "no docstring"
    assert not text.startswith(f"{name}("), "the signature that dataclasses write is no docstring"
    missing = [s for s in sections_wanted(name, PUBLIC[name]) if not re.search(SECTION.format(s), text)]
    assert not missing, f"without the sections {', '.join(missing)}"


EXAMPLES = [name for name, thing in {"hrt": hrt, **PUBLIC}.items() if ">>>" in (inspect.getdoc(thing) or "")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    thing = hrt if name == "hrt" else PUBLIC[name]
    module = hrt if name == "hrt" else inspect.getmodule(thing if not isinstance(thing, property) else thing.fget)
    names = {} if module is None else dict(vars(module))
    for example in doctest.DocTestFinder(recurse=False).find(thing, name, globs=names):
        report: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
        assert not report, "".join(report)
    assert not [p for p in os.listdir() if not p.endswith(".hrt")], "an example leaves files behind"
