"""The study as one page: every claim of arXiv 2409.07028 by its section, with its verdict, then every part with picture
and figures; Markdown and HTML.
"""

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrt.perf.paper.claims import CLAIMS, Claim, Finding
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
    """A part of the study as the page has it. claim: what it says first of all.  picture: the file beside the page."""

    name: str
    title: str
    claim: Claim
    finding: Finding
    picture: str

    def markdown(self) -> str:
        """Title, picture, the claim, its verdict, measurements."""
        f = self.finding
        parts = [
            f"## {self.title}",
            f"![{self.title}]({self.picture})",
            f"Claimed ({self.claim.number}): {self.claim.text} **{f.verdict}: {f.judged[self.claim.number].figures}.**",
            f"{f.how}:",
            "\n".join(f"- {line}" for line in f.lines),
            f.remark.strip(),
        ]
        return "\n\n".join(part for part in parts if part)


def markdown(shown: Sequence[Shown], counts: Rows, known: Mapping[str, Any]) -> str:
    """The page. counts: how often each checkable statement held, by `statement`."""
    parts = {s.name: s for s in shown}
    words = Counter(verdict_of(c, parts) for c in CLAIMS)
    lines = [
        "# What holds of arXiv 2409.07028",
        f"Written by `{known['command']}` in {known['seconds']} s, commit {known['commit'][:10]}, {known['threads']} "
        f"thread(s). Networks: the Burgers PINN of this repository, {known['operator']}, and PINNs trained here; the "
        "authors published none. Claims are numbered by the paper's sections, 0 its abstract, and told in our words. "
        "The paper's method is its Algorithm 1; hrt, which is more than that, stands beside it and is named.",
        f"Of {len(CLAIMS)} claims: {', '.join(f'{count} {word}' for word, count in words.most_common())}.",
        "## Every claim",
        "\n".join([
            "| number | claim | verdict | figures | needs, or fails because | computed in, tested by |",
            "|---|---|---|---|---|---|",
            *(row(c, parts, counts) for c in CLAIMS),
        ]),
        *(s.markdown() for s in shown),
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def verdict_of(claim: Claim, parts: Mapping[str, Shown]) -> str:
    """What is known, or what its part found."""
    if claim.verdict:
        return claim.verdict
    return parts[claim.part].finding.judged[claim.number].verdict.lower() if claim.part in parts else "not measured"


def row(claim: Claim, parts: Mapping[str, Shown], counts: Rows) -> str:
    """A line of the table."""
    where, figures = [f"`{place}`" for place in (claim.code, claim.test) if place], []
    if claim.part in parts:
        judged = parts[claim.part].finding.judged.get(claim.number)
        figures += [judged.figures] if judged else []
        where.append(f"[{parts[claim.part].title}](#{anchor(parts[claim.part].title)})")
    figures += [
        f"random matrices: held in {c['holds']:,}, said nothing in {c['vacuous']:,}, broken in {c['violated']:,} cases"
        for c in counts
        if c["statement"] == claim.counted
    ]
    cells = [claim.number, claim.text, verdict_of(claim, parts), "; ".join(figures), claim.assumed, ", ".join(where)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


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
