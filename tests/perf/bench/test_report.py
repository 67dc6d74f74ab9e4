"""The page of a result: well-formed, self-contained, everything escaped, losses and failures as plain as wins."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from bench_cases import row

from hrt.errors import InputError
from hrt.perf.__main__ import main
from hrt.perf.bench.charts import FEW, figure, log_ticks, shortly
from hrt.perf.bench.report import distinct, page, sections, slug, write_page, write_pictures
from hrt.perf.measuring.results import FAILED, MISSING, UNREACHABLE, Results
from hrt.perf.realtime.latencies import summarise
from hrt.perf.realtime.open_loop import Slice, schedule

HOSTILE = '<script>alert("1")</script>&\' onload=x $\\frac{x^2$ é漢 \x07'
VOID = {"meta", "br", "hr", "img", "link", "input"}


def timed(method, batch, us, size, target=1e-3, workload="Burgers PINN"):
    quantiles = {"p50": us, "p95_us": 1.1 * us, "p99_us": 1.3 * us, "p999_us": 3 * us}
    ratio = {"ratio_vs_best_dense": 40 / us, "ratio_low": 38 / us, "ratio_high": 42 / us}
    return row(method, size, batch=batch, target=target, workload=workload, **quantiles, **ratio)


@pytest.fixture(scope="module")
def results():
    due = schedule(1000, 500, 0)
    s = Slice(due, due.copy(), due + np.arange(1, 501) * 1000, int(due[-1]) + 10**6, 1e6)
    rows = [
        timed(m, b, us * b**0.5, size, t)
        for t in (1e-2, 1e-3)
        for b in (1, 256)
        for m, us, size in (("dense float32", 60, 4000), ("dense, ORT", 40, 4000), ("svd", 55, 2500), ("hrt", 30, 400))
    ]
    rows += [
        row("pruned, CSR", workload="Burgers PINN", status=UNREACHABLE, note="no sparsity keeps 1e-3"),
        row("quantized, int4", workload="Burgers PINN", status=MISSING, note="torchao is not installed"),
        row("svd", workload="random", status=FAILED, note=HOSTILE),
        timed(HOSTILE, 1, 30, 100, workload=HOSTILE),
        row("hrt", workload="no figures", error=None),
        row("dense", 5, 1.0, workload="zero", error=0.0),
    ]
    facts = {
        "command": HOSTILE,
        "versions": {"torch": "2"},
        "realtime": [{"workload": HOSTILE, **vars(summarise("hrt", [s]))}],
    }
    return Results(tuple(rows), facts)


@pytest.fixture(scope="module")
def html(results):
    return page(results)


class Reader(HTMLParser):
    """Open tags, all ids and references, all text; complains of what is closed in the wrong order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.references, self.tags, self.text = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for key, value in attrs:
            assert not key.startswith("on"), (tag, key)
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href", "data", "action"):
                self.references.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def reading(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


class TestPage:
    def test_is_well_formed_and_ids_are_its_own(self, html):
        reader = reading(html)
        assert not reader.open
        assert len(set(reader.ids)) == len(reader.ids) > 10
        assert {r[1:] for r in reader.references} <= set(reader.ids)

    def test_loads_nothing(self, html):
        reader = reading(html)
        assert all(r.startswith("#") for r in reader.references)
        assert not reader.tags & {"script", "link", "img", "iframe", "object", "embed", "foreignobject"}
        assert "@import" not in html and not re.search(r"url\((?!#)", html)
        assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }

    def test_every_picture_is_xml_with_a_name(self, html):
        pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
        assert len(pictures) >= 4
        for svg in pictures:
            root = ElementTree.fromstring(svg)
            assert root.attrib["role"] == "img" and root.attrib["aria-label"]

    def test_escapes_what_others_wrote(self, html):
        assert "<script" not in html and "&lt;script&gt;alert" in html
        assert "".join(reading(html).text).count("<script>alert") >= 4

    def test_shows_losses_and_what_was_not_measured(self, html, results):
        text = "".join(reading(html).text)
        for figures, word in (("0.67x", "slower"), ("1.33x", "faster"), ("1.00x", "no difference")):
            assert re.search(rf"{figures} \([0-9. to]*\){word}", text), word
        assert "cannot reach: no sparsity keeps 1e-3" in text and "not installed: torchao is not installed" in text
        assert html.count("<tr") >= len(results.rows)

    def test_shows_where_hrt_stands(self, html):
        assert "10.0x, 1 of 4" in html and "6.25x smaller than the best other" in html

    def test_of_nothing_is_a_page_all_the_same(self):
        text = page(Results(()))
        assert not reading(text).open and "No row of hrt" in text

    def test_says_why_hrt_does_not_win(self):
        why = [
            {"workload": "w", "batch": 1, "target": 0.01, "line": "time: <b>dense</b>"},
            {"workload": "x", "batch": 1, "target": 1.0, "line": ""},
        ]
        text = page(Results((row(workload="w"),), {"about": {"w": "a & b"}, "why": why}))
        assert "batch 1, error 0.01: time: &lt;b&gt;dense" in text and "<p>a &amp; b</p>" in text
        assert text.count("<li>") == 1

    def test_a_histogram_that_cannot_be_read_is_left_out(self):
        text = page(Results((row(),), {"realtime": [{}, {"histogram": "bad", "deadline_us": "x"}]}))
        assert not reading(text).open and "no histogram can be read" in text

    def test_is_written_whole(self, results, tmp_path):
        write_page(Results(results.rows[:1]), tmp_path / "r.html")
        assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_pictures_are_written_as_png(results, tmp_path):
    written = write_pictures(results, tmp_path / "a" / "b")
    assert len({p.name for p in written}) == len(written) == sum(len(s.pictures) for s in sections(results))
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in written)


def test_a_folder_that_is_a_file_is_refused(results, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write_pictures(results, tmp_path / "taken")


def test_ticks_are_short():
    values = (0.5, 1, 2000, 10_000, 500_000, 3_000_000)
    assert [shortly(v) for v in values] == ["0.5", "1", "2,000", "10k", "500k", "3M"]


@pytest.mark.parametrize("low, high", [(1.0, 1.25), (26, 36), (0.28, 1.6), (1e-4, 1e2), (5, 5.2)])
@pytest.mark.parametrize("options", [{"most": 8}, {"form": "{:g}", "most": 9, "steps": (1,)}])
def test_every_axis_has_enough_ticks_to_be_read_and_no_more(low, high, options):
    """An axis of less than a decade, too: one tick alone tells no scale."""
    axes = figure(3, 2).subplots()
    axes.set(xscale="log", xlim=(low, high))
    log_ticks(axes.xaxis, **options)
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert (FEW if high / low > 1.2 else 2) <= len(labels) <= options["most"] + FEW
    assert len(set(labels)) == len(labels) and all(low <= t <= high for t in axes.get_xticks())


def test_names_of_files_and_ids():
    assert slug("2-D Green <4096> / ../x") == "2-d-green-4096-x" and slug("漢") == "x" and len(slug("a" * 99)) == 40
    assert distinct('<a id="m"/><use xlink:href="#m" clip-path="url(#p)"/>', "f1") == (
        '<a id="f1-m"/><use xlink:href="#f1-m" clip-path="url(#f1-p)"/>'
    )


def test_a_page_into_a_folder_that_is_not_there_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.json"), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "page.html cannot be written: the folder" in capsys.readouterr().err
