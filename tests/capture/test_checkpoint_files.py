"""Weights out of the files that tools write, and nothing run: neither by right files nor by wrong ones."""

import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hrt.capture.checkpoint_files import MAX_NAMES, read_checkpoint
from hrt.capture.checkpoints import load_weights, read_network
from hrt.errors import InputError

from checkpoint_cases import FOLDERS, WRITERS, lightning, made_elsewhere, mlp, neuraloperator, sharded
from mutations import change_bytes, worst

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return mlp(2, 8, 8, 1)


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory) -> Path:
    """A folder with one checkpoint of every kind, all of one network."""
    folder = tmp_path_factory.mktemp("written")
    for name, write in WRITERS.items():
        write(trained, folder / name)
    return folder


def untrained() -> nn.Module:
    torch.manual_seed(1)
    return mlp(2, 8, 8, 1)


def equal(net: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_is_loaded_with_each_number(name, written, trained):
    net = untrained()
    assert not equal(net, trained)
    with patch("pickle.load", side_effect=AssertionError), patch("torch.jit.load", side_effect=AssertionError):
        load_weights(net, written / name)
    assert equal(net, trained)


@pytest.mark.parametrize("name", sorted({*WRITERS} - {"net.mdlus", "old.mdlus"}))
def test_alone_it_says_what_it_is_what_it_holds_and_what_is_missing(name, written):
    with pytest.raises(InputError) as error:
        read_network(str(written / name))
    text = str(error.value)
    assert "8 x 2" in text and "8 x 8" in text and "105 numbers in float32" in text and "MLP 2-8-8-1" in text
    assert f"hrt compress mynets.py:build --weights {written / name}, where build() returns" in text
    assert "\n" not in text and "optimizer" not in text


@pytest.mark.parametrize(
    "name, words", [("lightning.ckpt", "width=8, act=torch.nn.modules.activation.Tanh"), ("fno", "n_modes=(8,)")]
)
def test_alone_it_says_the_arguments_of_the_network(name, words, written):
    with pytest.raises(InputError, match="It was made with"):
        read_network(str(written / name))
    with pytest.raises(InputError) as error:
        read_network(str(written / name))
    assert words in str(error.value)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Builtin(Trap):
    def __reduce__(self):
        return exec, (f"import os; os.mkdir({str(self.path)!r})",)


@pytest.mark.parametrize("trap", [Trap, Builtin])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_beside_the_weights_is_not_run(trap, zipped, trained, tmp_path):
    torch.save(
        {"model": trained.state_dict(), "extra": trap(tmp_path / "ran")},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=zipped,
    )
    try:
        load_weights(net := untrained(), tmp_path / "w.pt")
    except InputError as error:  # torch refuses some modules by name
        assert trap is Trap and "would run code" in str(error)
    else:
        assert equal(net, trained)
    assert not (tmp_path / "ran").exists()


def test_stand_ins_do_not_outlive_the_reading(written):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(written / "lightning.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


def whole(net: nn.Module, path: Path) -> None:
    torch.save(net, path)


def inside(net: nn.Module, path: Path) -> None:
    torch.save({"model": net, "epoch": 3}, path)


def protocol(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path, pickle_protocol=5)


def plain_pickle(net: nn.Module, path: Path) -> None:
    path.write_bytes(pickle.dumps(net.state_dict()))


def truncated(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def one_bit(net: nn.Module, path: Path) -> None:
    """Of a number: torch itself reads it."""
    torch.save(net.state_dict(), path)
    data = bytearray(path.read_bytes())
    data[data.index(net[2].weight.detach().numpy().tobytes()) + 5] ^= 4
    path.write_bytes(data)


def cut_safetensors(net: nn.Module, path: Path) -> None:
    save_file(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def bomb(net: nn.Module, path: Path) -> None:
    """A gigabyte of zeros where a storage stands, in a few thousand bytes."""
    torch.save(net.state_dict(), plain := io.BytesIO())
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(2**26) if name.endswith("data/0") else old.read(name))


def many_names(net: nn.Module, path: Path) -> None:
    pickles = b"\x80\x02(" + b"".join(b"clab\nName%d\n" % k for k in range(MAX_NAMES + 1)) + b"l."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickles)
        archive.writestr("archive/version", "3")


def nested(net: nn.Module, path: Path) -> None:
    """Lists of one list twice, thirty deep: a thousand million leaves in a few bytes."""
    leaf: list = [torch.ones(1)]
    for _ in range(30):
        leaf = [leaf, leaf]
    torch.save(leaf, path)


def empty_folder(net: nn.Module, path: Path) -> None:
    path.mkdir()


def two_in_a_folder(net: nn.Module, path: Path) -> None:
    neuraloperator(net, path, "first")
    neuraloperator(net, path, "second")


def pieces(net: nn.Module, path: Path) -> None:
    """torch.distributed.checkpoint."""
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"PK")


def a_shard_is_gone(net: nn.Module, path: Path) -> None:
    sharded(net, path)
    next(path.glob("*00002-of*")).unlink()


def index_leads_out(net: nn.Module, path: Path) -> None:
    path.mkdir()
    (path / "x.index.json").write_text('{"weight_map": {"a": "../state.pt"}}')


WRONG = {
    "empty.pt": (lambda net, path: path.write_bytes(b""), "empty file"),
    "notes.pt": (lambda net, path: path.write_text("lr = 3"), "of no kind that is known: the file begins with b'lr"),
    "x.npy": (lambda net, path: path.write_bytes(b"\x93NUMPY\x01\x00"), "of no kind that is known"),
    "cut.pt": (truncated, "cut off"),
    "bit.pt": (one_bit, "checksum of its member bit/data/2"),
    "cut.safetensors": (cut_safetensors, "Is the file whole?"),
    "net.keras": (lambda net, path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "a Keras model"),
    "net.pt2": (
        lambda net, path: torch.export.save(torch.export.export(net, (torch.ones(2, 2),)), path),
        "an archive of torch.export",
    ),
    "whole.pt": (whole, "torch.nn.modules.linear.Linear"),
    "inside.pt": (inside, "would run code when read"),
    "evil.pt": (lambda net, path: torch.save(os.system, path), "posix.system"),
    "five.pt": (protocol, "pickle_protocol"),
    "state.pkl": (plain_pickle, "a pickle, which may run code"),
    "numbers.pt": (lambda net, path: torch.save({"epoch": 3, "set": {torch.float32}}, path), "no tensors"),
    "arrays.pt": (lambda net, path: torch.save({"w": net[0].weight.detach().numpy()}, path), "no tensors"),
    "page.pt": (lambda net, path: path.write_text("<!DOCTYPE html>"), "begins with b'<!DOCTYPE"),
    "one.pt": (lambda net, path: torch.save(torch.ones(3), path), "0 of 6 tensors do"),
    "bomb.pt": (bomb, "compressed"),
    "names.pt": (many_names, "201 classes and functions"),
    "nested.pt": (nested, "0 of 6 tensors do"),
    "bad.mdlus": (lambda net, path: path.write_bytes(b"args.json"), "cannot be read"),
    "empty": (empty_folder, "holds no file of weights"),
    "two": (two_in_a_folder, "several files of weights: first_state_dict.pt, second_state_dict.pt"),
    "pieces": (pieces, "dcp_to_torch"),
    "gone": (a_shard_is_gone, "do not exist"),
    "out": (index_leads_out, "names no files beside it"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_in_one_line(name, trained, tmp_path):
    write, words = WRONG[name]
    write(trained, path := tmp_path / name)
    net, before = untrained(), untrained()
    with pytest.raises(InputError) as error:
        load_weights(net, path)
    text = str(error.value)
    assert words in text and "\n" not in text and len(text) < 900 and str(path) in text, text
    assert equal(net, before)


def test_a_part_is_taken_by_name(trained, tmp_path):
    other = untrained()
    torch.save({"model": trained.state_dict(), "ema": other.state_dict()}, path := tmp_path / "w.pt")
    load_weights(net := mlp(2, 8, 8, 1), Path(f"{path}:ema"))
    assert equal(net, other)
    with pytest.raises(InputError, match=r"holds no part 'emo'. Expected one of model, ema"):
        load_weights(net, Path(f"{path}:emo"))


def test_of_a_tensor_subclass_the_numbers_count(trained, tmp_path):
    """A class that is gone when the file is read, such as PINA's LabelTensor."""
    label = type("LabelTensor", (torch.Tensor,), {"__module__": "lab.labels"})
    with made_elsewhere("lab.labels") as module:
        module.LabelTensor = label
        state = {k: v.as_subclass(label) for k, v in trained.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
    load_weights(net := untrained(), tmp_path / "w.pt")
    assert equal(net, trained) and all(type(v) is torch.Tensor for v in net.state_dict().values())


def test_large_weights_are_not_read_to_be_described(tmp_path):
    """mmap: a file may be larger than memory."""
    torch.save({"model": {"0.weight": torch.zeros(2**12, 2**12)}}, path := tmp_path / "w.pt")
    with patch("torch.load", wraps=torch.load) as load, pytest.raises(InputError, match="16,777,216 numbers"):
        read_network(str(path))
    assert all(call.kwargs["mmap"] and call.kwargs["weights_only"] for call in load.call_args_list)


@pytest.mark.parametrize("name", sorted({*WRITERS} - {*FOLDERS}))
def test_a_damaged_file_is_an_input_error_or_read(name, written, tmp_path):
    data = (written / name).read_bytes()

    def judge(path: Path) -> str:
        try:
            read_checkpoint(path)
        except InputError as error:
            assert "\n" not in str(error)
            return "refused"
        return "read"

    def make(chance: random.Random) -> bytes:
        return change_bytes(data, chance)

    assert "refused" in worst(60, make, judge, tmp_path / name)


def test_lightning_without_its_weights(trained, tmp_path):
    lightning(trained, path := tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"tensors do.*Expected the network of the training: the file has 2-8-8-1"):
        load_weights(mlp(2, 9, 9, 1), path)
