"""Configurations of kernels: a rule for every key, a user's cache that survives anything, and a tuner."""

import itertools
import json

import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.cli.main import main
from hrt.kernels import tuning
from hrt.kernels.launch import Config
from hrt.kernels.precisions import PRECISIONS, WORKSPACE
from hrt.kernels.tuning import ITEM, SHARED, Key, bucket_of, candidates, fastest, find, remember, rule, storage_name
from hrt.runtime import BACKENDS, Backend
from hrt.runtime.tune_kernels import tune

from helpers import MIXED, hierarchical

STORAGES = ("float32", "float16", "int8", "bfloat16+int8", "bfloat16+float16+float32+int8")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuning.json"


def key(bucket=64, **changes) -> Key:
    fields = {"arch": "sm_90", "kernel": "step", "precision": "bf16", "storage": "bfloat16", "rows": 64, "columns": 64}
    return Key(**(fields | changes), bucket=bucket)


def test_buckets_are_powers_of_two():
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 8, 9, 1000, 1024, 1025)] == [1, 2, 4, 4, 8, 8, 16, 1024, 1024, 2048]


def test_storage_names_do_not_depend_on_order():
    assert storage_name([torch.int8, torch.float32]) == storage_name([torch.float32, torch.int8]) == "float32+int8"
    assert storage_name([]) == "float32"


@pytest.mark.parametrize("kernel", ["step", "network"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rule_is_sound_for_every_key(kernel, precision):
    """A form for the batch, shared memory within the limit, converted weights never as the first operand."""
    for storage, rows, arch in itertools.product(STORAGES, (32, 64, 128), ("sm_80", "sm_90", "sm_100", "sm_120")):
        for bucket in (1 << k for k in range(17)):
            columns = 64 if precision in ("bf16", "fp16") else 32
            asked = Key(arch, kernel, precision, storage, rows, columns, bucket)
            config = rule(asked)
            assert config.form == "row" if bucket == 1 else config.block <= max(32, bucket)
            item = WORKSPACE[precision].itemsize
            widest = max(item if "+" in storage else 0, *(ITEM[s] for s in storage.split("+")))
            held = config.stages * columns * (config.block * item + rows * widest)
            assert config.form == "row" or held <= SHARED.get(arch, SHARED["sm_80"])
            forms = {c.form for c in candidates(asked)}
            assert config in candidates(asked)
            if asked.converts:
                assert "swapped" not in forms and all(c.block in (1, 16, 32, 64) for c in candidates(asked))
            else:
                assert config.form != "batch" or "int8" not in storage
                assert "swapped" in forms
            assert (config.programs > 0) == (kernel == "step")


def test_measured_configurations_come_before_the_rule(own_cache):
    asked, chosen = key(), Config("batch", 64, 8, 2)
    assert find(asked) == rule(asked)
    assert remember({asked: chosen}) == own_cache
    assert find(asked) == chosen
    assert find(key(128)) == rule(key(128))
    remember({key(128): chosen})
    assert find(asked) == find(key(128)) == chosen
    assert [p.name for p in own_cache.parent.iterdir()] == ["tuning.json"], "no temporary file is left"


def test_what_changes_its_type_in_registers():
    """int8 always; what is not stored as the workspace is. tf32x3 splits every operand, ieee has no tensor cores."""
    asked = {storage: [key(precision=p, storage=storage).converts for p in PRECISIONS] for storage in STORAGES}
    assert asked == {
        "float32": [True, True, False, False, False],
        "float16": [True, False, True, False, False],
        "int8": [True, True, True, False, False],
        "bfloat16+int8": [True, True, True, False, False],
        "bfloat16+float16+float32+int8": [True, True, True, False, False],
    }


def test_a_measured_form_that_races_is_passed_over(own_cache):
    """An older version's cache may name `swapped` for int8; tf32x3 may keep it."""
    packed, split = key(storage="int8"), key(storage="int8", precision="tf32x3")
    remember({packed: Config("swapped", 16, 4, 2), split: Config("swapped", 16, 4, 2)})
    assert find(packed) == rule(packed) and find(packed).form == "batch"
    assert find(split) == Config("swapped", 16, 4, 2)
    remember({packed: Config("batch", 32, 4, 2)})
    assert find(packed) == Config("batch", 32, 4, 2)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 99, "configs": {}}', '{"format": 1}', '{"format": 1, "configs": {"a": {"form": "x"}}}'],
)
def test_a_damaged_cache_is_left_out_with_a_warning(own_cache, content):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text(content)
    with pytest.warns(UserWarning, match="was left out"):
        assert find(key(256)) == rule(key(256))
    remember({key(256): Config("batch", 64)})
    assert find(key(256)) == Config("batch", 64)


@pytest.mark.filterwarnings("error")
def test_every_entry_of_the_shipped_table_is_read():
    """An entry that is no configuration would have the whole table left out, with a warning."""
    shipped = json.loads(tuning.SHIPPED.read_text())
    assert shipped["format"] == tuning.FORMAT and set(tuning.entries(tuning.SHIPPED)) == set(shipped["configs"])


def test_the_fastest_that_can_run():
    configs = [Config("batch", 64, stages=k) for k in (2, 3, 4)]

    def seconds(config):
        if config.stages == 2:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 / config.stages

    assert fastest(configs, seconds) == (configs[2], 0.25)
    with pytest.raises(RuntimeError, match=r"No configuration could run\..*shared memory"):
        fastest(configs[:1], seconds)


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setitem(BACKENDS, "cuda", Backend(BACKENDS["cuda"].opens))
    net = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3))
    program = hierarchical(capture(net, [torch.zeros(2, 5)]), 0, storages=MIXED, ordered=False)
    hrt.CompressedModel(program, hrt.Certificate(1e-2, "layers", ())).save(tmp_path / "net.hrt")
    return hrt.load(tmp_path / "net.hrt", backend="cuda")


def test_tuning_keeps_the_fastest_of_every_bucket(model, own_cache):
    seen = []

    def timer(program, bucket, kernel, config):
        if (bucket, kernel) not in seen:
            program.execute(program.new_workspace(1), bucket, kernel, config)
        seen.append((bucket, kernel))
        return 1e-6 * (config.stages + config.warps) + (1e-3 if config.form == "row" else 0)

    progress = []
    best = tune(model.session, (1, 16), lambda text, done: progress.append(done), timer)
    assert {(k.bucket, k.kernel) for k in best} == {(1, "step"), (1, "network"), (16, "step"), (16, "network")}
    assert all((c.stages, c.warps, c.form != "row") == (2, 4, True) for c, _ in best.values())
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert all(find(k) == c for k, (c, _) in best.items())
    program = model.session.program
    assert program.config(16) == best[program.key(16)][0]


def test_what_cannot_be_tuned(model, monkeypatch, capsys, tmp_path):
    with pytest.raises(hrt.InputError, match=r"Found the batch buckets \[3\]"):
        tune(model.session, (1, 3))
    with pytest.raises(hrt.BackendError, match="interpreted"):
        tune(model.session, (1,))
    with pytest.raises(hrt.BackendError, match="Only the cuda backend"):
        tune(hrt.load(tmp_path / "net.hrt", backend="torch").session, (1,))
    with pytest.raises(hrt.BackendError, match="Batch 1: No configuration could run"):
        tune(model.session, (1,), timer=lambda *_: 1 / 0)
    monkeypatch.setattr("sys.argv", ["hrt", "tune", str(tmp_path / "net.hrt")])
    assert main() == 2
    assert "interpreted" in capsys.readouterr().err
