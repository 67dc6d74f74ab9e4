"""The page of the study: claims that name what is there, verdicts as measured, one file without links out."""

import ast
from pathlib import Path

import pytest

from hrt.perf.bench.charts import as_png, figure
from hrt.perf.paper.claims import Finding
from hrt.perf.paper.command import PARTS
from hrt.perf.paper.page import CLAIMS, Shown, anchor, html, markdown, write_page

ROOT = Path(__file__).parents[3]
KNOWN = {
    "command": "python -m hrt.perf.paper",
    "seconds": 3,
    "commit": "0" * 40,
    "threads": 1,
    "operator": "an operator",
}
COUNTS = [{"statement": "condition (paper)", "holds": 2000, "vacuous": 10, "violated": 1}]


def shown(verdict="Agrees in part"):
    finding = Finding(verdict, "Measured: 3 | 4.")
    return [Shown(p.name, p.title, p.claim, finding, f"{p.name}.png") for p in PARTS]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.number)
def test_claims_name_code_and_tests_that_are_there(claim):
    assert claim.verdict or claim.part in {p.name for p in PARTS}, "somebody has to judge it"
    if claim.verdict == "not a statement":
        return
    assert (ROOT / claim.code).is_file()
    file, *names = claim.test.split("::")
    body = ast.parse((ROOT / file).read_text()).body
    for name in names:
        (node,) = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name]
        body = node.body


def test_claims_are_numbered_once_and_every_section_has_some():
    numbers = [c.number for c in CLAIMS]
    assert len(set(numbers)) == len(numbers) and {n.split(".")[0] for n in numbers} == set("012345")
    assert {p.name for p in PARTS} == {c.part for c in CLAIMS if c.part}, "every part judges a claim"


def test_the_page_has_every_claim_with_its_verdict():
    text = markdown(shown(), COUNTS, KNOWN)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert set(lines) >= {c.number for c in CLAIMS}
    assert "agrees in part" in lines["0.1"] and "violated" in lines["3.T1e"]
    assert "held in 2,000, said nothing in 10, broken in 1 cases" in lines["3.T3"]
    assert "not measured in this run" in markdown([], [], KNOWN) and "**Agrees in part.**" in text


def test_the_file_needs_nothing_else(tmp_path):
    for s in shown():
        as_png(lambda: figure(1, 1), tmp_path / s.picture)
    text = markdown(shown(), COUNTS, KNOWN)
    paths = write_page(tmp_path, text)
    assert [p.name for p in paths] == ["claims.md", "claims.html"]
    page = html(text, tmp_path)
    assert page.count("data:image/png;base64,") == len(PARTS) and "http" not in page and "<table>" in page
    for s in shown():
        assert f'<h2 id="{anchor(s.title)}">' in page and f'href="#{anchor(s.title)}"' in page
