"""The page of the study: claims that name what is there, verdicts as measured, one file without links out."""

import ast
from pathlib import Path

import pytest

from hrt.perf.bench.charts import as_png, figure
from hrt.perf.paper.claims import CLAIMS, Finding, Judgement
from hrt.perf.paper.command import PARTS, PUBLISHED
from hrt.perf.paper.page import Shown, anchor, html, markdown, write_page

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
    result = []
    for p in PARTS:
        numbers = [p.claim, *(c.number for c in CLAIMS if c.part == p.name)]
        finding = Finding("On one seed", ["3 | 4"], dict.fromkeys(numbers, Judgement(verdict, "5 of 6: 7|8")))
        result.append(Shown(p.name, p.title, PUBLISHED[p.claim], finding, f"{p.name}.png"))
    return result


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
    assert "5 of 6: 7\\|8" in lines["0.1"] and "needs an assumption | 5 of 6" in lines["3.T2b"]
    assert "held in 2,000, said nothing in 10, broken in 1 cases" in lines["3.T3"]
    assert all("``" not in line and "broken" not in line for number, line in lines.items() if number != "3.T3")
    assert "| not measured |" in markdown([], [], KNOWN)
    assert "**Agrees in part: 5 of 6: 7|8.**" in text and "\n- 3 | 4\n" in text
    assert f"Of {len(CLAIMS)} claims: " in text and sum(c.verdict == "violated" for c in CLAIMS) == int(
        text.split(" violated")[0].split()[-1]
    )


def test_every_figure_of_the_paper_has_its_part():
    titles = " ".join(p.title for p in PARTS)
    assert all(f"(figure {name})" in titles for name in ("2a", "2b", "3", "4a", "4b", "5", "6"))
    assert any("Figure 1" in c.text for c in CLAIMS)


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
