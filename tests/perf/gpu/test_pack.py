"""What is carried to a GPU: read whole or refused in one line, unpacked to any place, noticed where it does not fit."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hrt.errors import InputError
from hrt.perf.gpu import fill_pack, launchers
from hrt.perf.gpu.command import main
from hrt.perf.gpu.ground import stored_in
from hrt.perf.gpu.pack import GROUP, KERNELS, MANIFEST, ROOT, Pack, refuse, source_digest, unpack_kernels


@pytest.fixture
def copied(small_pack, tmp_path):
    return shutil.copytree(small_pack.folder, tmp_path / "pack")


def test_kernels_are_found_at_another_place(small_pack, tmp_path):
    """Triton names the files of a kernel by absolute paths; those that were not packed are not named."""
    unpack_kernels(small_pack.folder / KERNELS, tmp_path / "kernels")
    group = json.loads((tmp_path / "kernels" / "KEY" / "__grp__step_kernel.json").read_text())
    names = {"step_kernel.json", "step_kernel.cubin"}
    assert group["child_paths"] == {name: str(tmp_path / "kernels" / "KEY" / name) for name in names}


def damaged(folder, how):
    manifest = folder / MANIFEST
    match how:
        case "no pack":
            shutil.rmtree(folder)
        case "altered":
            path = folder / "models" / "card.hrt"
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "missing":
            (folder / "models" / "card.hrt").unlink()
        case "no json":
            manifest.write_text("{")
        case "newer":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
        case "no list":
            manifest.write_text("[]")


@pytest.mark.parametrize("how", ["no pack", "altered", "missing", "no json", "newer", "no list"])
def test_a_damaged_pack_is_refused_in_one_line(copied, how, tmp_path, capsys):
    damaged(copied, how)
    assert main(["run", "--pack", str(copied), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hrt.perf.gpu: ") and error.count("\n") == 1 and "gpu-pack" in error
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_a_pack_of_another_commit_is_refused(copied, write_manifest, tmp_path, capsys):
    write_manifest(copied, sources="0" * 64)
    assert main(["run", "--pack", str(copied), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == (
        "hrt.perf.gpu: The pack was made at commit cccccccccccc, of other sources than these. Run `make gpu-pack` "
        "again, or go on all the same with --anyway.\n"
    )


def test_what_does_not_fit_the_machine_is_named(small_pack):
    here = {"arch": "sm_90", "compiler": "0" * 64, "sources": source_digest(), "triton": "3.6.0", "python": "3.12.3"}
    assert small_pack.mismatches(here) == []
    (line,) = small_pack.mismatches(here | {"arch": "sm_100"})
    assert line == "The pack's kernels are for sm_90. Found sm_100."
    (line,) = small_pack.mismatches(here | {"compiler": "1", "triton": "3.7.1"})
    assert "compiled by Triton 3.6.0, Python 3.12.3. Found 3.7.1, 3.12.3, or another build." in line
    with pytest.raises(InputError, match="--anyway"):
        refuse([line], anyway=False)
    refuse([line], anyway=True)


def test_sources_are_told_apart_without_git(tmp_path):
    (tmp_path / "hrt").mkdir()
    (tmp_path / "hrt" / "a.py").write_text("1")
    first = source_digest(tmp_path)
    assert source_digest(tmp_path) == first
    (tmp_path / "hrt" / "notes.txt").write_text("no source")
    assert source_digest(tmp_path) == first
    (tmp_path / "hrt" / "b.py").write_text("2")
    assert source_digest(tmp_path) != first


def test_a_layer_in_another_storage_has_the_same_numbers(small_pack):
    import torch

    from hrt.model.artifact import read

    h = read(small_pack.model("log-4096")).program.constants["w"]
    wide = stored_in(h, torch.float32)
    assert all(t.dtype == torch.float32 for e in wide.leaves for t in e.tensors)
    assert torch.equal(h.to_dense(), wide.to_dense())


def test_models_are_made_once(tmp_path, monkeypatch):
    (tmp_path / fill_pack.MADE).write_text(json.dumps({"sources": source_digest(folders=fill_pack.COMPRESSION)}))
    monkeypatch.setattr(fill_pack, "pack_network", lambda *_: pytest.fail("made again"))
    fill_pack.make_models(tmp_path)


def note_used(**environment):
    """As if no kernel had been launched."""
    if folder := environment.get(launchers.BUILD):
        (Path(folder) / launchers.USED).write_text("")


def test_only_what_is_launched_is_packed(tmp_path):
    for key in ("old", "new"):
        (tmp_path / "cache" / key).mkdir(parents=True)
        (tmp_path / "cache" / key / "__grp__k.json").write_text(json.dumps({"child_paths": {}}))
        (tmp_path / "cache" / key / "k.json").write_text(json.dumps({"hash": key}))
        for suffix in ("cubin", "ptx", "ttir"):
            (tmp_path / "cache" / key / f"k.{suffix}").write_text("")
    (tmp_path / "cache" / "launcher").mkdir()
    (tmp_path / "cache" / "launcher" / "launch.so").write_text("")
    assert fill_pack.pack_kernels(tmp_path / "cache", tmp_path / KERNELS, {"new"}) == 1
    packed = set(zipfile.ZipFile(tmp_path / KERNELS).namelist())
    assert packed == {"new/__grp__k.json", "new/k.json", "new/k.cubin", "launcher/launch.so"}


def test_a_pack_that_is_too_large_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fill_pack, "make_models", lambda folder: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(fill_pack, "pack_site", lambda folder: None)
    monkeypatch.setattr(fill_pack, "machine", lambda arch: {"compiler": ""})
    monkeypatch.setattr(launchers, "make_libcuda", lambda folder: None)
    monkeypatch.setattr(fill_pack, "CACHE", tmp_path)
    monkeypatch.setattr(fill_pack, "carry_out", lambda *arguments: note_used(**arguments[3]))
    monkeypatch.setattr(fill_pack, "MOST_BYTES", 1000)
    fill_pack.fill(tmp_path / "pack")
    monkeypatch.setattr(fill_pack, "MOST_BYTES", -1)
    with pytest.raises(fill_pack.HrtError, match="at most"):
        fill_pack.fill(tmp_path / "pack")


COMPILE = """
import sys
sys.path[:0] = {paths!r}
import stub_card
stub_card.install(answers=False)
from hrt.perf.gpu import launchers
launchers.install()
from hrt.perf.gpu.ground import Ground
from hrt.perf.gpu.pack import Pack
from hrt.perf.gpu.record import Record
from hrt.perf.gpu.steps import one_kernel
import pathlib
one_kernel(Ground(Pack.open(pathlib.Path({pack!r})), Record(pathlib.Path({out!r})), "one-kernel", 1e9))
"""


def test_a_pack_that_lacks_a_kernel_is_an_error(tmp_path, monkeypatch):
    zipfile.ZipFile(tmp_path / KERNELS, "w").close()
    monkeypatch.setattr(fill_pack, "carry_out", lambda *arguments: None)
    fill_pack.check_complete(tmp_path)

    def compile_one(pack, out, cache, environment):
        assert environment["CC"] == "/bin/false"
        Path(environment[launchers.FORBID]).write_text("kernel\n")

    monkeypatch.setattr(fill_pack, "carry_out", compile_one)
    with pytest.raises(fill_pack.HrtError, match="1 kernels are missing"):
        fill_pack.check_complete(tmp_path)


BARE = """
import sys
BLOCKED = {"typer", "rich", "onnx", "matplotlib", "jinja2", "hypothesis", "onnxruntime", "torchao", "hdrh"}
class Blocking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Blocking())
import hrt.perf.gpu.command
assert "torch" not in sys.modules, "whoever starts steps waits for nothing"
import hrt.perf.gpu.steps
"""


@pytest.mark.slow
def test_a_bare_machine_has_what_the_steps_import():
    """Beside torch, Triton, NumPy and SciPy only what is packed."""
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_process_that_may_not_compile_finds_what_was_packed(small_pack, tmp_path):
    """What one process compiled on the card that is not there is pruned, moved and found; without it nothing runs."""
    paths = [str(ROOT / "tests")]
    code = COMPILE.format(paths=paths, pack=str(small_pack.folder), out=str(tmp_path / "gpu.json"))
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "HRT_"))}

    def process(cache, **extra):
        environment = {**plain, "TRITON_CACHE_DIR": str(cache), **extra}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )

    forbidden = {launchers.FORBID: str(tmp_path / "compiled.txt"), "CC": "/bin/false"}
    first = process(tmp_path / "first")
    assert first.returncode == 0, first.stderr
    keys = {
        json.loads(p.read_text())["hash"] for p in (tmp_path / "first").glob("*/*_kernel.json") if GROUP not in p.name
    }
    assert fill_pack.pack_kernels(tmp_path / "first", tmp_path / KERNELS, keys) == len(keys)
    shutil.rmtree(tmp_path / "first")
    unpacked = tmp_path / "unpacked"
    unpack_kernels(tmp_path / KERNELS, unpacked)
    assert {p.suffix for p in unpacked.rglob("*") if p.is_file()} <= {".json", ".cubin", ".so"}
    again = process(unpacked, **forbidden)
    assert again.returncode == 0 and not (tmp_path / "compiled.txt").exists(), again.stderr
    none = process(tmp_path / "empty", **forbidden)
    assert none.returncode != 0 and "may not compile" in none.stderr
    assert (tmp_path / "compiled.txt").exists()
    assert Pack.open(small_pack.folder).models == ["burgers-1e-2", "burgers-1e-3", "card", "log-4096"]
