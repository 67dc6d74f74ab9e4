"""Examples in jupytext's percent format as pages: they are run while the site is built, their answers stand below.

A page is kept in build/notebooks until its script or hrt changes.
"""

import base64
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("hrt", "kernels", "export")
SECONDS = 900  # a cell; on an idle core the longest takes half a minute


def is_notebook(path: Path) -> bool:
    """Whether a script has cells."""
    return path.suffix == ".py" and path.read_text("utf-8").startswith("# %%")


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A script's cells as Markdown, run in an empty folder, and its pictures by their names beside the page."""
    sources = [path, *(file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py")))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    made = ROOT / f"build/notebooks/{path.stem}-{digest[:16]}.json"
    if not made.exists():
        import jupytext
        from nbclient import NotebookClient

        made.parent.mkdir(parents=True, exist_ok=True)
        notebook = jupytext.read(path)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, kernel_name="python3", timeout=SECONDS, resources=resources).execute()
        made.write_text(json.dumps(notebook.cells), "utf-8")
    pictures: dict[str, str] = {}
    parts = [part for cell in json.loads(made.read_text("utf-8")) for part in _parts(cell, path.stem, pictures)]
    return "\n\n".join(parts) + "\n", {name: base64.b64decode(text) for name, text in pictures.items()}


def _parts(cell: dict[str, Any], stem: str, pictures: dict[str, str]) -> list[str]:
    """A cell as paragraphs of Markdown; its pictures are added to `pictures`."""
    if cell["cell_type"] != "code":
        return [cell["source"]]
    parts = [f"```python\n{cell['source']}\n```"]
    if text := "".join(out["text"] for out in cell["outputs"] if out.get("name") == "stdout"):
        parts.append(f"```text\n{text.rstrip()}\n```")
    for out in cell["outputs"]:
        if picture := out.get("data", {}).get("image/png"):
            name = f"{stem}-{len(pictures)}.png"
            pictures[name] = picture
            parts.append(f"![What the cell above draws]({name})")
    return parts
