"""Files of results: what is read back, and every other shape named."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from hrt.errors import InputError
from hrt.perf.measuring.results import Results, Row, read

GOOD = dict(asdict(Row("w", "hrt", 1, "b", 1e-3)), p50_us=2, ratio_vs_best_dense=2.0, ratio_low=1.9, ratio_high=2.1)


class TestReading:
    def written(self, folder: Path, row: object, **changes: object) -> Path:
        body = {"format": "hrt-bench", "version": 1, "facts": {}, "rows": [GOOD, row], "samples": {"1": [1, 2.5]}}
        (folder / "rows.json").write_text(json.dumps({**body, **changes}))
        return folder / "rows.json"

    def test_a_whole_number_is_a_number(self, tmp_path):
        found = read(self.written(tmp_path, GOOD, facts={"why": [], "anything": None}))
        assert found.rows[1].p50_us == 2 and found.samples == {1: (1.0, 2.5)}

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"p50_us": "12"}, "Expected `float | null`, got `str` - at `$.rows[1].p50_us`"),
            ({"nbytes": 1.5}, "Expected `int | null`, got `float` - at `$.rows[1].nbytes`"),
            ({"target": float("nan")}, "JSON is malformed"),
            ({"p50_us": 10**400}, "out of range - at `$.rows[1].p50_us`"),
            ({"error": -1.0}, ">= 0.0 - at `$.rows[1].error`"),
            ({"calls": True}, "Expected `int | null`, got `bool` - at `$.rows[1].calls`"),
            ({"batch": None}, "Expected `int`, got `null` - at `$.rows[1].batch`"),
            ({"batch": 0}, ">= 1 - at `$.rows[1].batch`"),
            ({"note": None}, "Expected `str`, got `null` - at `$.rows[1].note`"),
            ({"status": "splendid"}, "'splendid' - at `$.rows[1].status`"),
            ({"ratio_low": None}, "a ratio without both ends"),
        ],
    )
    def test_a_value_of_another_kind_is_named(self, changes, words, tmp_path):
        with pytest.raises(InputError, match=re.escape(words)):
            read(self.written(tmp_path, {**GOOD, **changes}))

    @pytest.mark.parametrize("name", ["workload", "method", "batch", "backend", "target"])
    def test_a_row_without_what_it_is_of(self, name, tmp_path):
        with pytest.raises(InputError, match=f"required field `{name}`"):
            read(self.written(tmp_path, {k: v for k, v in GOOD.items() if k != name}))

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"rows": None}, "got `null` - at `$.rows`"),
            ({"rows": [1]}, "Expected `object`, got `int` - at `$.rows[0]`"),
            ({"facts": []}, "Expected `object`, got `array` - at `$.facts`"),
            ({"facts": {"about": []}}, "at `$.about`"),
            ({"facts": {"why": ["w"]}}, "at `$.why[0]`"),
            ({"facts": {"why": [{"workload": "w", "batch": 1, "target": "x", "line": ""}]}}, "at `$.why[0].target`"),
            ({"facts": {"why": [{"workload": "w", "batch": 1, "target": 0.1}]}}, "required field `line`"),
            ({"samples": []}, "at `$.samples`"),
            ({"samples": {"2": []}}, "found samples of row 2"),
            ({"samples": {"1": [1.0, "2"]}}, "got `str` - at `$.samples"),
            ({"version": 99}, "99"),
            ({"format": "other"}, "at `$.format`"),
        ],
    )
    def test_another_shape_of_file_is_named(self, changes, words, tmp_path):
        with pytest.raises(InputError, match=re.escape(words)):
            read(self.written(tmp_path, GOOD, **changes))

    @pytest.mark.parametrize("text", ["", "[1]", "not json"])
    def test_another_file_is_named(self, text, tmp_path):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=r"bad.json is no result of the harness"):
            read(tmp_path / "bad.json")

    def test_what_was_written_is_read_back_a_line_a_row(self, tmp_path):
        rows = tuple(Row(**{**GOOD, "error": value}) for value in (1e-3, float("nan"), float("inf")))
        Results(rows, {"why": [], "odd": float("nan")}, {2: [1.23456, 2.0]}).write(tmp_path / "a" / "rows.json")
        found = read(tmp_path / "a" / "rows.json")
        assert [r.error for r in found.rows] == [1e-3, None, None], "numbers that JSON does not have"
        assert found.rows[0] == rows[0] and found.samples == {2: (1.235, 2.0)} and found.facts["odd"] is None
        assert sum('"workload"' in line for line in (tmp_path / "a" / "rows.json").read_text().splitlines()) == 3
