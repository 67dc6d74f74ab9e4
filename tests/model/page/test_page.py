"""The page: the certificate's figures and no others, nothing from elsewhere, and no word of a stranger's as markup."""

import math
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch

import hrt
from hrt.errors import printable
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.model import CompressedModel
from hrt.model.page import BATCHES, MOST_BYTES
from hrt.model.page.facts import MOST_COLUMNS, Outputs, predicted
from hrt.model.page.page import MOST_ROWS, PICTURED, page, rows_within
from hrt.model.report import render
from hrt.model.sizes import Sizes
from hrt.program.program import Node, Program, Value
from hrt.runtime.native_costs import native_us, onnx_us

from helpers import random_hmatrix
from models import linear_program, mixed_model, record

EMPTY = {"meta", "br", "link", "img", "input"}  # elements that are never closed
REFERENCES = {"src", "href", "srcset", "action", "data", "xlink:href", "background", "poster"}


SIZES = Sizes(64, 48, 5678, {"native": 91011})


class Read(HTMLParser):
    """Elements, attributes and text of a page; text by the id of its section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words = Counter[str](), list[tuple[str, str]](), list[str]()
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open  # every element is closed, in order

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def html(model: CompressedModel, measured=None, title: str = "net.hrt") -> str:
    return page(model, title=title, sizes=SIZES, measured=measured or {})


def model_of(*records, kind="output", measured=None, estimated=None, context=None, weight=None) -> CompressedModel:
    weight = HMatrix.from_dense(torch.ones(4, 4)) if weight is None else weight
    certificate = hrt.Certificate(1e-3, kind, records, measured or {}, estimated or {}, {}, context or {})
    return CompressedModel(linear_program(weight), certificate, dense_nbytes=64)


MEASURED = {
    "output_error": 1.11e-4,
    "runtime_error": 1.22e-4,
    "per_output": [1.33e-5, 3.44e-3, 0.0, math.nan],
    "output_rms": [1.55, 2.66, 3.77, 0.0],
    "max_abs_error": [0.123, 0.234, 0.0, 0.0],
    "derivative_runtime_error": {"d0": 5.55e-4},
    "derivative_error": {"d0": 5.44e-4},
}
ESTIMATED = {"output_error_upper_99": 1.66e-4, "derivative_error_upper_99": {"d0": 7.77e-4}}
CONTEXT = {"held_out_rows": 512, "derivatives": ["d0"], "remarks": ["only 50 rows"], "calibration_rows": 99}


class TestFigures:
    def test_are_those_of_the_certificate(self):
        h = random_hmatrix(0, 40, 30)
        layer = record("net.0", h, structure="H 7 blocks", reason="because", weighted=6.66e-2)
        model = model_of(layer, measured=MEASURED, estimated=ESTIMATED, context=CONTEXT)
        text = Read(html(model)).text
        expected = [1.22e-4, 1.66e-4, 1.33e-5, 3.44e-3, 1.55, 0.234, 5.55e-4, 7.77e-4, 6.66e-2]
        assert all(f"{v:.2e}" in text for v in expected)
        assert "Only 50 rows" in text and "512 held-out rows" in text and "rows that calibrated 99" in text
        assert (
            all(f"{n} bytes" in text for n in ("64", "48", "5,678", "91,011"))
            and "because" in text
            and "H 7 blocks" in text
        )

    @pytest.mark.parametrize(
        "error, limit, style",
        [(1e-4, 2e-4, "good"), (9e-4, 2e-3, "partly"), (2e-3, 3e-3, "bad"), (math.nan, math.nan, "bad")],
    )
    def test_the_verdict_stands_first_in_the_words_of_the_report(self, error, limit, style):
        model = model_of(measured={"runtime_error": error}, estimated={"output_error_upper_99": limit})
        read = Read(html(model))
        verdict = render(model, SIZES).splitlines()[0].removeprefix("verdict: ").partition("; ")[0]
        assert read.text.index(f"Verdict: {verdict}.") < read.text.index("Certificate")
        assert ("class", f"verdict {style}") in read.attributes

    def test_the_three_kinds_of_figures_stand_apart(self):
        model = model_of(measured=MEASURED, estimated=ESTIMATED, context=CONTEXT)
        text = html(model)
        parts = [text[text.index(f'class="kind {kind}"') :] for kind in ("measured", "estimated", "guaranteed")]
        parts = [Read(f"<div {part[: part.index('</div>') + 6]}").text for part in parts]
        assert "1.22e-04" in parts[0] and "1.66e-04" not in parts[0]
        assert "1.66e-04" in parts[1] and "1.22e-04" not in parts[1]
        assert "Nothing" in parts[2]

    def test_without_inputs_nothing_is_said_of_the_output(self):
        model = model_of(record("w", random_hmatrix(0, 9, 9), frobenius=7e-4), kind="layers")
        read = Read(html(model))
        assert "7.00e-04" in read.text and "no inputs were given" in read.text
        assert ("class", "verdict partly") in read.attributes and read.tags["section"] == 6

    def test_columns_beyond_the_tolerance_are_counted_and_marked(self):
        outputs = Outputs.of(model_of(measured=MEASURED, estimated=ESTIMATED, context=CONTEXT))
        assert outputs.over == 1 and outputs.count == 4 and [c.name for c in outputs.columns][1] == "y[1]"
        assert [c.name for c in outputs.together] == ["all outputs together", "derivative d0"]
        read = Read(html(model_of(measured=MEASURED, context={"held_out_rows": 9})))
        assert "1 of 4 output columns" in read.text and ("class", " beyond") in read.attributes

    def test_limits_of_single_columns_are_shown_where_each_was_held(self):
        estimated = {**ESTIMATED, "per_output_upper_99": [9.87e-4, 2e-4, 3e-4, 0.0]}
        assert "9.87e-04" in Read(html(model_of(measured=MEASURED, estimated=estimated, context=CONTEXT))).text

    def test_of_many_columns_the_worst_are_listed_and_all_are_drawn(self):
        errors = [1e-5 * (1 + k % 977) for k in range(4000)]
        model = model_of(measured={"runtime_error": 1e-4, "per_output": errors})
        outputs = Outputs.of(model)
        assert len(outputs.columns) == MOST_COLUMNS and outputs.columns[0].error == max(errors)
        steps = [float(part.split("H")[0].split()[1]) for part in outputs.profile.lstrip("M").split("L")]
        assert min(steps) == pytest.approx(100 - outputs.gauge.at(max(errors)), abs=0.1) and len(steps) <= 300
        assert "worst of 4,000" in Read(html(model)).text and f"{max(errors):.2e}" in html(model)

    def test_every_bar_stands_where_its_error_does(self):
        gauge = Outputs.of(model_of(measured={"runtime_error": 5e-4})).gauge
        assert gauge.at(1e-3) == gauge.tol and gauge.at(5e-4) == pytest.approx(gauge.tol / 2) and gauge.at(0.0) == 0.0
        assert gauge.at(math.inf) == 100.0 and gauge.at(math.nan) == 0.0
        far = Outputs.of(model_of(measured={"runtime_error": 10.0})).gauge
        assert far.tol == 25.0 and far.at(10.0) == 100.0


class TestLatency:
    def test_is_what_the_cost_models_predict(self):
        model = model_of(weight=random_hmatrix(0, 60, 60))
        rows = predicted(model.program)
        assert [p.rows for p in rows] == list(BATCHES)
        for p in rows:
            assert p.native == native_us(model.program, p.rows) and p.onnxruntime == onnx_us(model.program, p.rows)
        text = Read(html(model)).text
        assert "Not measured" in text and f"{rows[0].native:.3g} µs" in text and "1,024" in text

    def test_dense_weights_cost_what_a_dense_network_does(self):
        h = random_hmatrix(0, 512, 512)
        dense = linear_program(h.to_dense(torch.float32))
        for rows, p in zip(BATCHES, predicted(linear_program(h)), strict=True):
            assert p.dense == pytest.approx(onnx_us(dense, rows))

    def test_measured_times_are_said_to_be_measured(self):
        class Times:
            p50_us, p05_us, p95_us = 12.3, 11.1, 4567.0

        text = Read(html(model_of(), measured={1: Times, 8: Times})).text
        assert "1 row, measured here" in text and "12.3 µs" in text and "4.57 ms" in text and "1.54 µs" in text

    def test_nothing_is_predicted_without_weights(self):
        program = Program((Value("x", (2,)),), (Node("y", "tanh", ("x",), (2,), {}),), ("y",), {})
        model = CompressedModel(program, hrt.Certificate(1e-3, "layers", ()))
        assert "Nothing is predicted" in Read(html(model)).text


EVIL = '<script>alert(1)</script>"><img src=x onerror="x()">\'{{ 7 * 7 }}\x1b[2J\u202e&amp;</style></title>'


class TestStrangers:
    def test_loads_nothing(self):
        text = html(mixed_model())
        read = Read(text)
        links = [value for name, value in read.attributes if name in REFERENCES]
        assert links and all(link.startswith("#") for link in links)
        assert not {"script", "img", "link", "iframe", "object", "use", "image"} & set(read.tags)
        assert "http" not in text.replace("http-equiv", "") and "url(" not in text and "@import" not in text
        assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes
        targets = {value for name, value in read.attributes if name == "id"}
        assert {link[1:] for link in links} <= targets

    def test_no_word_of_a_file_becomes_markup(self):
        h = random_hmatrix(0, 9, 9)
        nodes = (Node(f"y{EVIL}", "linear", (f"x{EVIL}", EVIL), (9,), {}, EVIL),)
        program = Program((Value(f"x{EVIL}", (9,)),), nodes, (f"y{EVIL}",), {EVIL: h})
        layer = record(EVIL, h, structure=EVIL, reason=EVIL)
        statement = hrt.certificate.Statement(EVIL, 1.0, None, EVIL, EVIL)
        context = {
            **CONTEXT, "remarks": [EVIL], "compiler": EVIL, "reference": EVIL, "no_output_bound": EVIL, "kinks": [EVIL],
            "torch": EVIL, "seed": [EVIL], "outputs": {EVIL: EVIL},
        }  # fmt: skip
        certificate = hrt.Certificate(1e-3, "output", (layer,), MEASURED, ESTIMATED, {}, context, (statement,))
        plain = CompressedModel(linear_program(h), hrt.Certificate(1e-3, "layers", ()))
        text = html(CompressedModel(program, certificate), title=EVIL)
        read = Read(text)
        assert set(read.tags) <= {*Read(html(plain)).tags, "strong", "ul", "li", "details", "summary", "thead", "code"}
        assert {name for name, _ in read.attributes if name.startswith("on")} == set()
        assert read.tags["title"] == 1 and read.tags["style"] == 1
        assert read.text.count("<script>alert(1)</script>") >= 10 and "{{ 7 * 7 }}" in read.text
        assert printable(text.replace("\n", "")) == text.replace("\n", "")

    def test_stays_small_whatever_the_names(self):
        h = random_hmatrix(0, 9, 9)
        wild = [record(f"{k}" + '"' * 4000, h, structure='"' * 900, reason='"' * 900) for k in range(1500)]
        remarks = ['"' * 5000] * 900
        model = model_of(*wild, kind="output", context={"remarks": remarks, "compiler": '"' * 5000})
        assert len(html(model).encode()) < MOST_BYTES

    def test_hundreds_of_layers_are_all_in_the_table_and_the_largest_are_drawn(self):
        h = HMatrix.from_dense(torch.ones(2, 2))
        nodes = tuple(Node(f"h{k + 1}", "linear", (f"h{k}", f"w{k}"), (2,), {}) for k in range(300))
        program = Program((Value("h0", (2,)),), nodes, ("h300",), {f"w{k}": h for k in range(300)})
        layers = tuple(record(f"w{k}", h) for k in range(300))
        model = CompressedModel(program, hrt.Certificate(1e-3, "layers", layers))
        text = html(model)
        read = Read(text)
        assert read.tags["article"] == PICTURED and all(f">w{k}</th>" in text for k in range(300))
        assert f"The {PICTURED} largest of 300 layers" in read.text and len(text) < MOST_BYTES

    def test_of_too_many_layers_the_largest_stay_in_order(self):
        records = [record(str(k), HMatrix.from_dense(torch.ones(1 + k % 7, 2))) for k in range(9000)]
        shown = rows_within(records, MOST_ROWS)
        places, least = [int(r.name) for r in shown], min(r.dense_nbytes for r in shown)
        assert 1000 < len(shown) < 9000 and places == sorted(places)
        assert sum(r.dense_nbytes > least for r in shown) == sum(r.dense_nbytes > least for r in records)
