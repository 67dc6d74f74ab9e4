"""What the site holds beside docs/: the README as its first page, the command line's help, the examples.

MkDocs calls these functions while it builds (mkdocs.yml). Links work in the repository and on the site: a link to a
file of the repository becomes a link to the page made from it.
"""

import logging
import posixpath
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/tools"))
from cli_page import cli_page  # noqa: E402
from notebooks import is_notebook, notebook_page  # noqa: E402

PAGES = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {name: name.lower() for name in ("CONTRIBUTING.md", "SECURITY.md")}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
log = logging.getLogger("mkdocs.hooks")


def on_startup(**_: Any) -> None:
    """Lay hrt out as the wheel does, where mkdocstrings reads it: by links."""
    package = ROOT / "build/docs-source/hrt"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in [*(ROOT / "hrt").iterdir(), *(ROOT / name for name in ("kernels", "export", "perf"))]:
        (package / path.name).symlink_to(path)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    pages = {site: (ROOT / source).read_text("utf-8") for source, site in PAGES.items()}
    pages["reference/cli.md"] = cli_page()
    with ThreadPoolExecutor() as pool:  # notebooks run beside each other
        made = [pool.submit(notebook_page if is_notebook(path) else example_page, path) for path in examples()]
    for path, page in zip(examples(), made, strict=True):
        pages[f"examples/{path.stem}.md"], pictures = page.result()
        for name, content in pictures.items():
            files.append(File.generated(config, f"examples/{name}", content=content))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to the pages made from them."""
    site = page.file.src_uri
    source = next((name for name, made in PAGES.items() if made == site), f"docs/{site}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        path = Path(target)
        if target in PAGES:
            target = PAGES[target]
        elif path.parts[0] == "examples" and (ROOT / path).is_file():
            target = f"examples/{path.stem}.md"
        elif path.parts[0] == "docs":
            target = "/".join(path.parts[1:])
        else:
            return link[1]
        return posixpath.relpath(target, posixpath.dirname(site) or ".")

    return LINK.sub(moved, markdown)


def on_env(env: Any, config: MkDocsConfig, files: Files) -> None:
    """Every public name is explained, and on a page of the reference."""
    import hrt

    pages = "".join(file.content_string for file in files.documentation_pages() if "reference/" in file.src_uri)
    for name in hrt.__all__:
        if not (getattr(hrt, name).__doc__ or "").strip():
            log.warning("hrt.%s has no docstring. Write one: what it does, Args, Returns, Example.", name)
        if not re.search(rf"^::: hrt\.{name}$", pages, re.MULTILINE):
            log.warning("hrt.%s is on no page of docs/reference. Add '::: hrt.%s' to one.", name, name)


def examples() -> list[Path]:
    """The examples, programs in several languages."""
    folder = ROOT / "examples"
    return sorted(path for path in folder.glob("*") if path.suffix in (".py", ".c", ".f90")) if folder.is_dir() else []


def example_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """An example as a page: its text as it stands, and no pictures."""
    language = {".py": "python", ".c": "c", ".f90": "fortran"}[path.suffix]
    name = path.relative_to(ROOT).as_posix()
    return f"# {path.stem}\n\n`{name}`\n\n```{language}\n{path.read_text('utf-8')}```\n", {}
