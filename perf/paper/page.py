"""The study as one page: every claim with its verdict, then every part with picture and figures; Markdown and HTML."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrt.perf.paper.claim_list import CLAIMS, Claim
from hrt.perf.paper.claims import Finding
from hrt.perf.paper.output import Rows
from hrt.support.atomic_files import replacing

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
p { max-width: 78ch; }
img { max-width: 100%; background: #fff; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
th, td { padding: .25rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
"""


@dataclass(frozen=True)
class Shown:
    """A part of the study as the page has it. picture: the file beside the page."""

    name: str
    title: str
    claim: str
    finding: Finding
    picture: str

    def markdown(self) -> str:
        """Title, picture, published claim, measurement, verdict."""
        head = f"## {self.title}\n\n![{self.title}]({self.picture})\n\n"
        return f"{head}Published: {self.claim}. {self.finding.text} **{self.finding.verdict}.**"


def markdown(shown: Sequence[Shown], counts: Rows, known: Mapping[str, Any]) -> str:
    """The page. counts: how often each checkable statement held, by `statement`."""
    parts = {s.name: s for s in shown}
    lines = [
        "# What holds of arXiv 2409.07028",
        f"Written by `{known['command']}` in {known['seconds']} s, commit {known['commit'][:10]}, {known['threads']} "
        f"thread(s). Networks: the Burgers PINN of this repository, {known['operator']}, and PINNs trained here; the "
        "authors published none. Claims are numbered by the paper's sections, 0 its abstract, and told in our words.",
        "## Every claim",
        "\n".join([
            "| number | claim | verdict | needs, or fails because | computed in, tested by |",
            "|---|---|---|---|---|",
            *(row(c, parts, counts) for c in CLAIMS),
        ]),
        *(s.markdown() for s in shown),
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def row(claim: Claim, parts: Mapping[str, Shown], counts: Rows) -> str:
    """A line of the table."""
    verdict = claim.verdict
    if not verdict:
        verdict = parts[claim.part].finding.verdict.lower() if claim.part in parts else "not measured in this run"
    for c in (c for c in counts if c["statement"] == claim.counted):
        verdict += f" (held in {c['holds']:,}, said nothing in {c['vacuous']:,}, broken in {c['violated']:,} cases)"
    where = f"`{claim.code}`, `{claim.test}`"
    if claim.part in parts:
        where += f", [{parts[claim.part].title}](#{anchor(parts[claim.part].title)})"
    return (
        "| "
        + " | ".join(x.replace("|", "\\|") for x in (claim.number, claim.text, verdict, claim.assumed, where))
        + " |"
    )


def anchor(title: str) -> str:
    """Of a heading, as readers of Markdown make it."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def html(text: str, folder: Path) -> str:
    """The page with its pictures inside."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r"<h2>(.*?)</h2>", lambda m: f'<h2 id="{anchor(m[1])}">{m[1]}</h2>', body)
    body = re.sub(r'src="([^"]+\.png)"', lambda m: f'src="data:image/png;base64,{_base64(folder / m[1])}"', body)
    title = "What holds of arXiv 2409.07028"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n'


def write_page(folder: Path, text: str) -> list[Path]:
    """claims.md and claims.html, beside the pictures."""
    pages = {folder / "claims.md": text, folder / "claims.html": html(text, folder)}
    for path, content in pages.items():
        with replacing(path) as file:
            file.write(content.encode())
    return list(pages)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
