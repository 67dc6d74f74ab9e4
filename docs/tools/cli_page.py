"""The page of the command line, written from its own help."""

from typing import Any

import click
import typer

from hrt.cli.main import app

HEAD = """# Command line

Written from the commands' own help when the site is built. `hrt COMMAND --help` prints the same.

Exit status: 0; 2 for a user's mistake, with one line on stderr; 130 after Ctrl-C.

Measurements are a second program: `python -m hrt.perf --help`.
"""


def cli_page() -> str:
    """The page, as Markdown."""
    group: Any = typer.main.get_command(app)
    context = click.Context(group, info_name="hrt")
    return "\n".join([HEAD, *(section(name, command, context) for name, command in group.commands.items())])


def section(name: str, command: Any, parent: Any) -> str:
    """One command: what it does, how it is called, a table of its arguments and options."""
    context = type(parent)(command, info_name=name, parent=parent)
    usage = " ".join(("hrt", name, *command.collect_usage_pieces(context)))
    records = [record for p in command.get_params(context) if (record := p.get_help_record(context)) is not None]
    rows = [f"| `{cell(option)}` | {cell(text)} |" for option, text in records]
    help_text = command.help.strip().replace("```\nhrt", "```sh\nhrt")
    return "\n".join([f"## hrt {name}\n", help_text, "", f"```text\n{usage}\n```", "", "| | |", "|---|---|", *rows, ""])


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
