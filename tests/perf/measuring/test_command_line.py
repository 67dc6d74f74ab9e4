"""What every command of perf does with arguments, mistakes and what is not installed."""

import pytest

from hrt.errors import InputError
from hrt.perf.measuring.command_line import new_app, run


@pytest.mark.parametrize(
    "error, status, words",
    [
        (InputError("Found a. Expected b."), 2, "Found a. Expected b."),
        (ModuleNotFoundError("no", name="hdrh"), 2, "hdrh is not installed. Install what the benchmarks need"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(error, status, words, capsys) -> None:
    app = new_app("About.")

    @app.command()
    def fail() -> None:
        """Fail."""
        raise error

    assert run(app, "hrt.perf.x", []) == status
    line = capsys.readouterr().err
    assert line.startswith(f"hrt.perf.x: {words}") and line.count("\n") == 1


def test_an_option_takes_several_values(capsys) -> None:
    app = new_app("About.")

    @app.command()
    def add(seeds: list[int] = []) -> None:  # noqa: B006
        """Add."""
        print(sum(seeds))

    assert run(app, "hrt.perf.x", ["--seeds", "1", "2", "--seeds", "4"]) == 0
    assert capsys.readouterr().out == "7\n"


@pytest.mark.parametrize("words", [[], ["inner"]])
def test_a_group_without_a_command_shows_its_help_as_it_stands(words, capsys) -> None:
    app, inner = new_app("About.\n\nline one\nline two"), new_app("Inside.\n\nline one\nline two")
    for part in (app, inner):
        part.command("first")(lambda: None)
        part.command("second")(lambda: None)
    app.add_typer(inner, name="inner")
    assert run(app, "hrt.perf.x", words) == 2
    out, err = capsys.readouterr()
    assert "line one\n  line two\n" in out + err and (out + err).count("\n") > 8
