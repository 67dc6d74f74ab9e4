"""The one file that a run on a GPU writes: facts, and for every step how it ended and what it found.

Every change replaces the file as a whole, so that whoever is killed, at whatever moment, leaves a whole one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrt.errors import InputError
from hrt.perf.gpu.budget import Outcome, Step
from hrt.support.atomic_files import replacing, usable

FORMAT, VERSION = "hrt-gpu", 1
NAME = "gpu.json"
RUNNING = "running"


@dataclass(frozen=True)
class Record:
    """The file of one run. One process writes at a time: the step that runs, else the one that starts the steps."""

    path: Path

    @staticmethod
    def start(folder: Path, facts: Mapping[str, Any]) -> "Record":
        """A new record in `folder`, which is made. Raises InputError where nothing can be written there."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}. Pass another folder.") from error
        record = Record(folder / NAME)
        record.replace({"facts": dict(facts), "steps": {}})
        return record

    def read(self) -> dict[str, Any]:
        """The whole content. Raises InputError for a file of another kind."""
        return read(self.path)

    def replace(self, content: Mapping[str, Any]) -> None:
        """Write everything anew, whole or not at all."""
        with replacing(self.path) as file:
            file.write(json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=1).encode() + b"\n")

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """More facts of this run."""
        content = self.read()
        self.replace({**content, "facts": {**content["facts"], **facts}})

    def note(self, step: Step, outcome: Outcome | None) -> None:
        """A step begins, or has ended so; what it has written stays."""
        entry = {"title": step.title, "cost_s": step.cost, "status": RUNNING}
        if outcome is not None:
            entry |= {"status": outcome.status, "seconds": round(outcome.seconds, 1), "remark": outcome.remark}
        self._update(step.name, entry)

    def write(self, step: str, results: Mapping[str, Any]) -> None:
        """What a step has found so far, in place of what it had before."""
        self._update(step, {"results": dict(results)})

    def _update(self, step: str, entry: Mapping[str, Any]) -> None:
        content = self.read()
        steps = content["steps"]
        self.replace({**content, "steps": {**steps, step: {"status": RUNNING, **steps.get(step, {}), **entry}}})


def read(path: Path) -> dict[str, Any]:
    """What a run has written: facts and steps. Raises InputError, saying what was found, for anything else."""
    try:
        content = json.loads(usable(path).read_bytes())
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"found {content['format']} {content['version']}")
        _ = content["facts"].items(), [s["status"] for s in content["steps"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no record of a run on a GPU: {error}. Expected a {NAME}.") from error
    return content
