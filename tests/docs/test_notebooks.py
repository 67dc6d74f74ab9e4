"""Examples with cells become pages that were run."""

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="notebooks are run with the extra docs: make docs")
SCRIPT = '''# %% [markdown]
"""
# Title
"""

# %%
import matplotlib.pyplot as plt
print(6 * 7)
plt.plot([1, 2])
plt.savefig("beside.png")
'''


@pytest.fixture
def notebooks(monkeypatch, tmp_path) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs/tools"))
    module = importlib.import_module("notebooks")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.mark.slow  # starts kernels of Jupyter
def test_a_page_holds_what_its_cells_answer(notebooks, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    assert notebooks.is_notebook(tmp_path / "script.py")
    text, pictures = notebooks.notebook_page(tmp_path / "script.py")
    assert text.startswith("# Title\n\n```python\nimport matplotlib")
    assert "```text\n42\n```" in text and text.endswith("(script-0.png)\n")
    assert pictures["script-0.png"].startswith(b"\x89PNG")
    assert not (tmp_path / "beside.png").exists()


@pytest.mark.slow
def test_a_cell_that_fails_ends_the_build(notebooks, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT + "raise ArithmeticError('no')\n")
    with pytest.raises(Exception, match="ArithmeticError"):
        notebooks.notebook_page(tmp_path / "script.py")
    assert not list(tmp_path.rglob("*.json"))
