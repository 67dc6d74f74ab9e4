"""`make docs`: the site is whole, needs no network when it is read, and its build ends at a broken link."""

import importlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hrt

from doc_blocks import ROOT

pytest.importorskip("material", reason="the pages are built with the extra docs: make docs")
LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc="?(https?:)|<link[^>]*rel="?(?:stylesheet|preload)[^>]*https?:"""
)


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    pages = [path for path in tmp_path.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 40
    assert not [page.name for page in pages if LOADED.search(page.read_text("utf-8"))]
    reference = "".join(page.read_text("utf-8") for page in (tmp_path / "reference").glob("*.html"))
    assert not [name for name in hrt.__all__ if f'id="hrt.{name}"' not in reference]


@pytest.mark.slow
def test_broken_links_end_the_build(tmp_path: Path) -> None:
    links = ["absent.md", "index.md#absent", "../README.md", "/rooted.md"]
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/index.md").write_text("# Page\n\n" + "".join(f"[link]({link})\n" for link in links))
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT}/mkdocs.yml\ndocs_dir: pages\nhooks: []\nplugins: []\nextra_css: []\nnav: [index.md]\n"
    )
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    assert not [link for link in links if link.removeprefix("index.md") not in done.stdout + done.stderr]


@pytest.fixture
def hooks(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs/tools"))
    return importlib.import_module("hooks")


def test_a_public_name_without_docstring_or_without_a_place_is_a_warning(hooks, monkeypatch, caplog) -> None:
    monkeypatch.setattr(hrt, "__all__", ["compress", "silent", "load"])
    page = SimpleNamespace(src_uri="reference/one.md", content_string="::: hrt.compress\n")
    monkeypatch.setattr(hrt, "silent", type("Silent", (), {}), raising=False)
    with caplog.at_level(logging.WARNING, "mkdocs.hooks"):
        hooks.on_env(None, None, SimpleNamespace(documentation_pages=lambda: [page]))
    assert [record.args for record in caplog.records] == [("silent",), ("silent", "silent"), ("load", "load")]


def test_links_lead_to_pages_from_wherever_they_stand(hooks) -> None:
    class Page:
        class file:
            src_uri = "index.md"

    text = "[a](docs/how-to/onnx.md) [b](ARCHITECTURE.md#rooms) [c](https://x.org/README.md) [d](#here)"
    moved = "[a](how-to/onnx.md) [b](architecture.md#rooms) [c](https://x.org/README.md) [d](#here)"
    assert hooks.on_page_markdown(text, Page) == moved
    Page.file.src_uri = "how-to/onnx.md"
    assert hooks.on_page_markdown("[a](../../CHANGELOG.md) [b](../results/cpu.md)", Page) == (
        "[a](../changelog.md) [b](../results/cpu.md)"
    )


def test_every_command_and_every_option_is_on_the_page_of_the_command_line(hooks) -> None:
    import typer

    from hrt.cli.main import app

    page, group = hooks.cli_page(), typer.main.get_command(app)
    for name, command in group.commands.items():
        section = page.partition(f"## hrt {name}\n")[2].partition("\n## ")[0]
        options = [option for p in command.params for option in p.opts if option.startswith("--")]
        assert section and not [option for option in options if option not in section]
