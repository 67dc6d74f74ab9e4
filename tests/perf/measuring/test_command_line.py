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
