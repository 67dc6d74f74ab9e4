"""activations.h: every function's error over its range, its ends, the same bits from every compiler and width."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from native_libraries import FUNCTIONS, Build, read_table

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
STEP = 7_999_993  # of all float32 in the quick test
ELEVENTH = 11  # in the slow one
ENDS = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1,
    -1,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    1e-40,
    -1e-45,
    3e38,
    -3e38,
    7.25,
    1e4,
    -30,
]
ENDS = [*ENDS, -88.5, 88.9, 104, -104, -0.3, 0.999999, 1.000001, 8388607.5, 16777216, 1e10]

TORCH = {
    "softplus": lambda x: F.softplus(x, threshold=1000),
    "mish": F.mish,
    "silu": F.silu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("activations"), flags=("-O1", "-march=native", "-ffp-contract=fast"))


@pytest.fixture(scope="module")
def builds(build: Build) -> list[Build]:
    return [build, Build(build.folder, double=True, flags=build.flags)]


def test_the_table_holds_every_function() -> None:
    assert set(read_table()) == {(name, p) for name in FUNCTIONS for p in ("float32", "float64")}


def test_errors_are_those_of_the_table(build: Build) -> None:
    table = read_table()
    for name in FUNCTIONS:
        r = build.measure(name, STEP)
        ulps, error = table[name, "float32"].ulps, table[name, "float32"].error
        assert r.numbers > 100 and r.nans == 0, name
        assert r.ulps <= ulps * 1.01 and r.error <= error * 1.01, (name, r.ulps, r.ulps_at)


@pytest.mark.slow
def test_errors_over_the_whole_range_are_those_of_the_table(tmp_path: Path) -> None:
    """Built as the table was (gcc contracts from -O2 on), at every eleventh float32, 390 million a function.
    `python tests/native_libraries.py FOLDER` measures the table's own, at every one, in a quarter of an hour.
    """
    table = read_table()
    for build in (Build(tmp_path), Build(tmp_path, double=True)):
        for name in FUNCTIONS:
            line = table[name, "float64" if build.double else "float32"]
            r = build.measure(name, line.step if build.double else max(line.step, ELEVENTH))
            assert r.nans == 0, name
            assert r.ulps <= line.ulps * 1.01 and r.error <= line.error * 1.01, (name, r.ulps, r.ulps_at)


def test_ends_are_torchs(build: Build) -> None:
    """NaN, infinities, zeros with their signs, subnormal numbers, and where a curve has its edges."""
    table = read_table()
    x = torch.tensor(ENDS, dtype=torch.float32)
    for name in FUNCTIONS:
        wanted = TORCH.get(name, getattr(torch, name, None))(x.double()).numpy()  # type: ignore
        got = build.apply(name, x.numpy()).astype(np.float64)
        ulps, error = table[name, "float32"].ulps, table[name, "float32"].error
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = wanted.astype(np.float32)
            close = (np.abs(got - wanted) <= np.maximum(ulps * np.spacing(np.abs(rounded)), error)) | (got == rounded)
        close &= (np.signbit(got) == np.signbit(wanted)) | (wanted != 0)
        close |= np.isnan(got) & np.isnan(wanted)
        assert close.all(), (name, [(ENDS[k], got[k], wanted[k]) for k in np.nonzero(~close)[0]])


def to_one() -> np.ndarray:
    """Float32 around where tanh becomes 1, every seventh, and all the way up."""
    near = np.arange(*np.array([7, 9], np.float32).view(np.int32), 7, dtype=np.int32).view(np.float32)
    return np.concatenate([near, np.geomspace(9, 3e38, 999, dtype=np.float32), [np.float32(np.inf)]])


def test_tanh_becomes_one_and_never_more(build: Build) -> None:
    for x in np.array_split(to_one(), 1 + len(to_one()) // BLOCK):
        y = build.apply("tanh", x)
        assert y.max() <= 1 and (y[x > 8.2] == 1).all() and (build.apply("tanh", -x) == -y).all()


def arguments(double: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of any bits, of near numbers, and of ends."""
    rng, dtype = np.random.default_rng(seed), np.float64 if double else np.float32
    words = rng.integers(0, 2 ** (64 if double else 32), (2, 1000), dtype=np.uint64)
    bits = (words if double else words.astype(np.uint32)).view(dtype)
    ends = np.array(np.meshgrid(ENDS, ENDS)).reshape(2, -1).astype(dtype)
    near = (rng.standard_normal((2, 1000)) * 10).astype(dtype)
    x, y = np.concatenate([bits, near, ends], 1)
    return x, y


def test_fmod_is_exact_and_atan2_near(builds: list[Build]) -> None:
    for build in builds:
        x, y = arguments(build.double, seed=0)
        with np.errstate(all="ignore"):
            wanted, angle = np.fmod(x, y), np.arctan2(x.astype(np.longdouble), y.astype(np.longdouble))
        np.testing.assert_array_equal(build.apply("fmod", x, y), wanted)
        got, plain = build.apply("atan2", x, y), angle.astype(x.dtype)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(plain))
        np.testing.assert_array_equal(np.signbit(got)[~np.isnan(got)], np.signbit(plain)[~np.isnan(got)])
        assert (np.abs(got - angle) <= 2.5 * np.spacing(np.abs(plain)))[~np.isnan(got)].all()


@pytest.mark.parametrize("exponent", [0.5, 1.5, -0.5, 0.25, 2.203125, -1.703125, 100.25])
def test_real_powers(builds: list[Build], exponent: float) -> None:
    for build in builds:
        x = np.abs(np.concatenate(arguments(build.double, seed=1)))[:BLOCK]
        with np.errstate(all="ignore"):
            wanted = np.power(x.astype(np.longdouble), np.longdouble(exponent))
            plain = wanted.astype(x.dtype)
            got = build.apply("power", x, exponent)
            close = np.abs(got - wanted) <= 3 * np.spacing(np.abs(plain))
        assert (close | (got == plain) | (np.isnan(got) & np.isnan(plain))).all()


BLOCK = 4000


@pytest.mark.slow
def test_bits_are_the_same_from_every_compiler_and_width(build: Build) -> None:
    """With contraction, and without it."""
    compilers = [name for name in ("gcc", "clang") if shutil.which(name)]
    for contraction in ("fast", "off"):
        flags = ("-O2", "-march=native", f"-ffp-contract={contraction}")
        folder = build.folder / contraction
        folder.mkdir()
        digests: dict[str, set[int]] = {name: set() for name in FUNCTIONS}
        for compiler in compilers:
            for width in (0, 16, 32, 64):
                one = Build(folder, compiler, width=width, flags=flags)
                assert (
                    max(one.apply("tanh", x).max() for x in np.array_split(to_one(), 1 + len(to_one()) // BLOCK)) == 1
                )
                for name in FUNCTIONS:
                    digests[name].add(one.measure(name, 99_991).digest)
        assert {name for name, several in digests.items() if len(several) > 1} == set()
