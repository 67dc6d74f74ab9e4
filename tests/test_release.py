"""What a release says of itself: one version everywhere, a changelog that has it, a citation, and pages beside them."""

import re
import tomllib
from pathlib import Path

import pytest

import hrt

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_version_stands_in_one_place():
    project = tomllib.loads(text_of("pyproject.toml"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hrt.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", hrt.__version__)
    assert f'__version__ = "{hrt.__version__}"' in text_of("hrt/__init__.py")  # a literal: read without an import


def test_the_citation_is_of_this_version():
    citation = dict(re.findall(r"^([\w-]+): *(.*)$", text_of("CITATION.cff"), re.MULTILINE))
    assert citation["version"] == hrt.__version__ and {"cff-version", "message", "title", "authors"} <= set(citation)
    assert re.search(rf"^## {re.escape(hrt.__version__)} - {citation['date-released'].strip(chr(34))}$",
                     text_of("CHANGELOG.md"), re.MULTILINE)  # fmt: skip
    assert "arXiv:2409.07028" in text_of("CITATION.cff")


def test_the_changelog_keeps_its_form():
    headings = re.findall(r"^(#+) (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)
    versions = [title for level, title in headings if level == "##"]
    assert versions[0] == "Unreleased" and versions[1].startswith(f"{hrt.__version__} - ")
    assert {title for level, title in headings if level == "###"} <= set(SECTIONS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_what_a_page_names_is_there(name: str):
    """Its links, and the files in its text; what a colon follows is yet to be written."""
    text = text_of(name)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:hrt|kernels|export|perf|tests|docs)/[\w./-]+)`(?!:)", text)
    missing = [path for path in (*links, *paths) if path and not (ROOT / path).exists()]
    assert not missing
