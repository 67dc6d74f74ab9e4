"""What every command of perf does with its arguments: parse them, and turn mistakes and Ctrl-C into an exit status."""

import sys
from collections.abc import Sequence
from typing import Any

import typer

from hrt.errors import HrtError

MISTAKE, INTERRUPTED = 2, 130


def new_app(about: str) -> typer.Typer:
    """An app whose help is `about`, its lines as they stand."""
    return typer.Typer(
        help=f"\b\n{about}", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )  # fmt: skip


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """The command's exit status: 2 with one line on stderr for a mistake, 130 after Ctrl-C. Options that may be given
    several times also take several values: `--seeds 0 1`.
    """
    command = typer.main.get_command(app)
    words = _repeated(sys.argv[1:] if arguments is None else arguments, _several(command))
    try:
        status = command.main(words, prog_name=f"python -m {program}", standalone_mode=False)
    except HrtError as error:
        return _mistake(program, str(error))
    except (KeyboardInterrupt, typer.Abort):
        print(f"{program}: interrupted; what was written so far is kept", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # usage errors, whose class has moved between versions of typer
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _mistake(program, f"{message().rstrip('.')}. Try --help.") if message() else MISTAKE
    return status if isinstance(status, int) else 0


def _several(command: Any) -> set[str]:
    options = {name for p in command.params if getattr(p, "multiple", False) for name in p.opts}
    return options.union(*(_several(c) for c in getattr(command, "commands", {}).values()))


def _repeated(words: Sequence[str], several: set[str]) -> list[str]:
    """`--seeds 0 1` as `--seeds 0 --seeds 1`."""
    result: list[str] = []
    option = ""
    for previous, word in zip(["", *words], words, strict=False):
        option = word if word in several else "" if word.startswith("--") else option
        result += [option, word] if option and previous not in several and word != option else [word]
    return result


def _mistake(program: str, message: str) -> int:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return MISTAKE
