"""Compressed layers as schedules, in several leaf sizes and tiles: counted facts, and what is predicted from them."""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.precisions import WORKSPACE
from hrt.kernels.step_tables import END_STEP, FIRST_STEP
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.request import MatrixRequest
from hrt.perf.networks.integral_kernels import KERNELS, SETTINGS, layer
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.roofline import Chip, Load, break_even, dense_work, prefers, schedule_floor, tile_intensity, work_of

TILES = ("64x64", "64x32", "128x64", "32x64")
MIN_LEAVES = (0, 64, 128, 256)  # 0: what hrt takes by itself


@dataclass(frozen=True)
class Tried:
    """One layer in one partition and one tile. Bytes: nbytes of the H-matrix as stored, packed in tiles, padding of
    these. longest: steps of the longest tile. seconds: to compress.
    """

    min_leaf: int
    tile: str
    leaves: int
    nbytes: int
    packed: int
    padded: int
    tiles: int
    longest: int
    seconds: float
    work: tuple[Load, ...]

    @property
    def padded_share(self) -> float:
        """Share of the packed bytes that is padding."""
        return self.padded / max(1, self.packed)


@dataclass(frozen=True)
class Prediction:
    """Seconds at one batch size, and ratios of dense over hrt (above 1 hrt is faster): without the cost of launches and
    with it. choice: "hrt" or "dense". l2_bytes_per_s: what programs would
    load to be that fast, from L2 or beyond (see `latency.tile_intensity`); the floor sets no limit to it.
    """

    batch: int
    hrt_s: float
    dense_s: float
    ideal_ratio: float
    ratio: float
    choice: str
    l2_bytes_per_s: float


@dataclass(frozen=True)
class Case:
    """A layer (size, size) of one kernel in one precision, and everything tried on it."""

    kernel: str
    size: int
    precision: str
    tol: float
    tried: tuple[Tried, ...]

    @property
    def dense(self) -> tuple[Load, ...]:
        """The work of the dense layer."""
        return dense_work(self.size, self.size, self.precision)

    def best(self, batches: Sequence[int], chip: Chip) -> Tried:
        """Least geometric mean of predicted times."""

        def score(t: Tried) -> float:
            return sum(math.log(schedule_floor(t.work, b, self.precision, chip).seconds) for b in batches)

        return min(self.tried, key=score)

    def predictions(self, batches: Sequence[int], chip: Chip) -> tuple[Prediction, ...]:
        """Of the best pair."""
        best, rows = self.best(batches, chip), []
        for b, choice in zip(batches, prefers(best.work, self.dense, self.precision, chip, batches), strict=True):
            ours, theirs = (schedule_floor(w, b, self.precision, chip) for w in (best.work, self.dense))
            ratio = theirs.seconds / ours.seconds
            ideal = theirs.ideal_s / ours.ideal_s
            loaded = ours.flops / tile_intensity(sides(best.tile)[0], self.precision, b)
            rates = ideal, ratio, choice, loaded / ours.ideal_s
            rows.append(Prediction(b, ours.seconds, theirs.seconds, *rates))
        return tuple(rows)

    def break_even(self, batches: Sequence[int], chip: Chip) -> tuple[int, ...]:
        """Of BATCHES those at which the pair that is best for `batches` is no slower than dense."""
        return break_even(self.best(batches, chip).work, self.dense, self.precision, chip)


def sides(tile: str) -> tuple[int, int]:
    """Rows and columns of "64x32". Raises InputError."""
    rows, _, columns = tile.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) * int(columns)):
        raise InputError(f"Found tile {tile!r}. Expected rows x columns, such as 64x32.")
    return int(rows), int(columns)


def scheduled(h: HMatrix, min_leaf: int, tile: str, precision: str, seconds: float) -> Tried:
    """Facts of the schedule of one compressed layer."""
    rows, columns = sides(tile)
    schedule = build_schedule(layer(h), tile_rows=rows, step_columns=columns, unit=16 // WORKSPACE[precision].itemsize)
    counts, tiles = schedule.counts, schedule.tables.tiles
    longest = int((tiles[:, END_STEP] - tiles[:, FIRST_STEP]).max()) if len(tiles) else 0
    facts = h.nbytes, counts.bytes, counts.padded_bytes, counts.tiles, longest, seconds
    return Tried(min_leaf, tile, len(h.leaves), *facts, work_of(schedule))


def measured(
    kernel: str, size: int, precisions: Sequence[str], min_leaves: Sequence[int], tiles: Sequence[str]
) -> list[Case]:
    """Build the matrix once, compress it in every way asked for, schedule it, and let go of it."""
    matrix, points = KERNELS[kernel].build(size)
    order = "natural" if points is None else "coordinates"
    cases = []
    for precision in precisions:
        storage, tol = SETTINGS[precision]
        tried = []
        for leaf in min_leaves:
            say(f"{kernel} {size} {precision}: compressing to {tol:g}, leaves from {leaf or 'default'}")
            start = time.perf_counter()
            h = compress_for(
                matrix,
                MatrixRequest(
                    tol=tol,
                    storage=storage,
                    min_leaf=leaf or None,
                    row_points=points,
                    column_points=points,
                    ordering=order,
                    target="cuda",
                ),
            )
            seconds = time.perf_counter() - start
            tried += [scheduled(h, leaf, tile, precision, seconds) for tile in tiles]
            say(f"    {seconds:.1f} s, {len(h.leaves)} leaves, {h.nbytes / 2**20:.2f} MiB")
        cases.append(Case(kernel, size, precision, tol, tuple(tried)))
    return cases


def say(text: str) -> None:
    """Progress, on stderr: a large layer takes minutes."""
    print(text, file=sys.stderr, flush=True)


def load_cases(files: Sequence[Path]) -> list[Case]:
    """The cases of files that `--json` wrote, those of one layer put together. Raises InputError."""
    found: dict[tuple[str, int, str], Case] = {}
    for file in files:
        try:
            cases = json.loads(file.read_text("utf-8"))["cases"]
            for c in cases:
                tried = [Tried(**{**t, "work": tuple(Load(**w) for w in t["work"])}) for t in c["tried"]]
                key = c["kernel"], c["size"], c["precision"]
                before = found[key].tried if key in found else ()
                found[key] = Case(*key, c["tol"], (*before, *tried))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file} is no file that --json wrote ({type(error).__name__}: {error}).") from error
    return list(found.values())


def commands_of(files: Sequence[Path]) -> list[str]:
    """The commands that counted what files of `--json` hold, each once."""
    found: dict[str, None] = {}
    for file in files:
        document = json.loads(file.read_text("utf-8"))
        found.update(dict.fromkeys(document.get("counted_by", ())))
    return list(found)


def narrowed(
    cases: Sequence[Case],
    kernels: Sequence[str] | None,
    sizes: Sequence[int] | None,
    precisions: Sequence[str] | None,
    min_leaves: Sequence[int] | None,
    tiles: Sequence[str] | None,
) -> list[Case]:
    """What of `cases` was asked for; None stands for all. Raises InputError where nothing is left."""

    def wanted(value: int | str, among: Sequence[int | str] | None) -> bool:
        return among is None or value in among

    left = []
    for c in cases:
        tried = tuple(t for t in c.tried if wanted(t.min_leaf, min_leaves) and wanted(t.tile, tiles))
        if tried and wanted(c.kernel, kernels) and wanted(c.size, sizes) and wanted(c.precision, precisions):
            left.append(replace(c, tried=tried))
    if not left:
        raise InputError("The files hold none of the layers that were asked for. Ask for fewer things at once.")
    return left
