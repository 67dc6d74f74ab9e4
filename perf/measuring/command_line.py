"""What every command of perf does with its arguments: parse them, and turn mistakes and Ctrl-C into an exit status."""

import sys
from collections.abc import Sequence
from typing import Any

import typer

from hrt.errors import HrtError

MISTAKE, INTERRUPTED = 2, 130


def as_it_stands(text: str) -> str:
    """`text` as help whose lines are not filled anew."""
    return "\b\n" + text.strip().replace("\n\n", "\n\n\b\n")


def new_app(about: str) -> typer.Typer:
    """An app whose help is `about`, its lines as they stand."""
    plain = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
    return typer.Typer(help=as_it_stands(about), no_args_is_help=True, **plain)


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """The command's exit status: 2 with one line on stderr for a mistake, 130 after Ctrl-C. Options that may be given
    several times also take several values: `--seeds 0 1`.
    """
    command = typer.main.get_command(app)
    words = _repeated(sys.argv[1:] if arguments is None else arguments, _several(command))
    message, status = "", MISTAKE
    try:
        status = command.main(words, prog_name=f"python -m {program}", standalone_mode=False)
    except HrtError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed. Install what the benchmarks need: pip install '.[cpu,perf]'."
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:  # usage errors, whose class has moved between versions of typer
        words_of = getattr(error, "format_message", None)
        if words_of is None:
            raise
        text = words_of()  # a group that was named without a command says its whole help, or has printed it
        message, status = "", MISTAKE
        if text.startswith("Usage: "):
            print(text, file=sys.stderr)
        elif text:
            message = f"{text.rstrip('.')}. Try --help."
    if status == INTERRUPTED:
        message = "interrupted; what was written so far is kept"
    if message:
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _several(command: Any) -> set[str]:
    options = {name for p in command.params if getattr(p, "multiple", False) for name in p.opts}
    return options.union(*(_several(c) for c in getattr(command, "commands", {}).values()))


def _repeated(words: Sequence[str], several: set[str]) -> list[str]:
    """`--seeds 0 1` as `--seeds 0 --seeds 1`, up to a `--`."""
    end = words.index("--") if "--" in words else len(words)
    result: list[str] = []
    option = ""
    for previous, word in zip(["", *words], words[:end], strict=False):
        option = word if word in several else "" if word.startswith("--") else option
        result += [option, word] if option and previous not in several and word != option else [word]
    return [*result, *words[end:]]
