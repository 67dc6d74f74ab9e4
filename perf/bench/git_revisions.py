"""Two commits measured in turns: each in a worktree of its own, `python -m hrt.perf --json` in a fresh process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hrt.errors import BackendError, InputError
from hrt.perf.measuring.provenance import ROOT
from hrt.perf.measuring.results import Results, read

SECONDS = 3600.0  # of one run
FOLDERS = ("kernels", "export", "perf")


def measured(
    before: str, after: str, options: Sequence[str] = (), repeats: int = 3, keep: Path | None = None, root: Path = ROOT
) -> tuple[list[Results], list[Results]]:
    """Results of both commits, `repeats` of each, alternating (a b, b a, a b, ...) so that drift hurts both alike.

    options: for `python -m hrt.perf`.  keep: where the files stay; None: nowhere. Raises InputError for a name that is
    no commit, BackendError where a run fails, with what it said.
    """
    commits = {"before": resolve(before, root), "after": resolve(after, root)}
    results: dict[str, list[Results]] = {side: [] for side in commits}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hrt-compare-")))
        out = keep or folder
        out.mkdir(parents=True, exist_ok=True)
        trees = {s: stack.enter_context(checked_out(commit, folder / s, root)) for s, commit in commits.items()}
        for number in range(repeats):
            for side in trees if number % 2 == 0 else reversed(trees):
                file = out / f"{side}-{number + 1}-{commits[side][:10]}.json"
                run(trees[side], file, options)
                results[side].append(read(file))
    return results["before"], results["after"]


def resolve(name: str, root: Path = ROOT) -> str:
    """The full hash of a commit. Raises InputError."""
    asked = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{name!r} is no commit of {root}. Expected a hash, a branch or a tag.") from error


@contextmanager
def checked_out(commit: str, folder: Path, root: Path = ROOT) -> Iterator[Path]:
    """A temporary worktree at `folder`, laid out as the wheel would (folder/.wheel), and gone afterwards."""
    git = ["git", "-C", str(root), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"git made no worktree of {commit}: {done.stderr.strip()}")
    try:
        package = folder / ".wheel" / "hrt"
        package.mkdir(parents=True)
        for path in (*(folder / "hrt").iterdir(), *(folder / name for name in FOLDERS)):
            (package / path.name).symlink_to(path)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True)
        subprocess.run([*git, "prune"], capture_output=True)


def run(tree: Path, out: Path, options: Sequence[str]) -> None:
    """`python -m hrt.perf --json out` with the sources of `tree` and this interpreter. Raises BackendError."""
    command = [sys.executable, "-P", "-m", "hrt.perf", *options, "--json", str(out.resolve())]
    environment = {**os.environ, "PYTHONPATH": str(tree / ".wheel")}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, timeout=SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        message = f"The run of {tree.name} took longer than {SECONDS:g} s. Ask for less: -- --quick."
        raise BackendError(message) from error
    if not out.is_file():
        last = "".join(f": {line}" for line in done.stderr.strip().splitlines()[-1:])
        failure = f"`{' '.join(command[1:])}` ended with status {done.returncode} and wrote nothing{last}"
        raise BackendError(f"{failure}. Expected a commit that has the harness.")
