"""How a part of the paper's study is written: rows as JSON, with where they come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from hrt.perf.measuring.provenance import commit, scheduling, versions
from hrt.support.atomic_files import replacing

Rows = list[dict[str, Any]]


def facts(**more: Any) -> dict[str, Any]:
    """Commit, versions, threads and scheduling, and whatever else is given."""
    threads = torch.get_num_threads()
    return {"commit": commit(), "versions": versions(), "threads": threads, "scheduling": scheduling(), **more}


def write_json(path: Path, body: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write the file whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(body, indent=indent) + "\n").encode())


def table(title: str, rows: Rows, columns: Mapping[str, str]) -> Table:
    """A line for each row; a column is its format of the row's figures."""
    result = Table(*columns, title=title)
    for row in rows:
        result.add_row(*(form.format_map(row) for form in columns.values()))
    return result


def distinct(rows: Rows, key: str) -> list[Any]:
    """The values of one figure, in the order they came."""
    return list(dict.fromkeys(r[key] for r in rows))


def matching(rows: Rows, **values: Any) -> Rows:
    """The rows with these figures."""
    return [r for r in rows if all(r[k] == v for k, v in values.items())]
