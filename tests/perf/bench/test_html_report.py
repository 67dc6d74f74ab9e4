"""The page of a result: well-formed, self-contained, everything escaped, losses and failures as plain as wins."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from hrt.errors import InputError
from hrt.perf.bench.charts import shortly
from hrt.perf.bench.html_report import distinct, main, page, sections, slug, write_pictures
from hrt.perf.bench.pareto import break_even, front, latency, nbytes, standing, standings
from hrt.perf.measuring.results import FAILED, MISSING, NOISY, OK, UNREACHABLE, Results, Row
from hrt.perf.realtime.latencies import summarise
from hrt.perf.realtime.open_loop import Slice, schedule

HOSTILE = '<script>alert("1")</script>&\' onload=x $\\frac{x^2$ é漢 \x07'
VOID = {"meta", "br", "hr", "img", "link", "input"}


def row(method="hrt", batch=1, target=1e-3, workload="w", **known):
    error = {"error": target / 2} if known.get("status", OK) == OK else {}
    return Row(workload, method, batch, "b", target, **{**error, **known})


def timed(method, batch, us, size, target=1e-3, workload="Burgers PINN"):
    quantiles = {"p50_us": us, "p95_us": 1.1 * us, "p99_us": 1.3 * us, "p999_us": 3 * us}
    ratio = {"ratio_vs_best_dense": 40 / us, "ratio_low": 38 / us, "ratio_high": 42 / us}
    return row(method, batch, target, workload, nbytes=size, **quantiles, **ratio)


@pytest.fixture(scope="module")
def results():
    due = schedule(1000, 500, 0)
    s = Slice(due, due.copy(), due + np.arange(1, 501) * 1000, int(due[-1]) + 10**6, 1e6)
    rows = [
        timed(m, b, us * b**0.5, size, t)
        for t in (1e-2, 1e-3)
        for b in (1, 256)
        for m, us, size in (("dense, torch", 60, 4000), ("dense, ORT", 40, 4000), ("svd", 55, 2500), ("hrt", 30, 400))
    ]
    rows += [
        row("pruned, CSR", workload="Burgers PINN", status=UNREACHABLE, note="no sparsity keeps 1e-3"),
        row("quantized, int4", workload="Burgers PINN", status=MISSING, note="torchao is not installed"),
        row("svd", workload="random", status=FAILED, note=HOSTILE),
        timed(HOSTILE, 1, 30, 100, workload=HOSTILE),
        row("hrt", workload="no figures", error=None),
        row("dense", 1, workload="zero", error=0.0, nbytes=5, p50_us=1.0, roofline_fraction=0.5),
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
        assert len(pictures) >= 7
        for svg in pictures:
            root = ElementTree.fromstring(svg)
            assert root.attrib["role"] == "img" and root.attrib["aria-label"]

    def test_escapes_what_others_wrote(self, html):
        assert "<script" not in html and "&lt;script&gt;alert" in html
        assert "".join(reading(html).text).count("<script>alert") >= 4

    def test_shows_losses_and_what_was_not_measured(self, html, results):
        text = "".join(reading(html).text)
        assert "0.67x: slower" in text and "1.33x: faster" in text and "1.00x: no difference" in text
        assert "cannot reach: no sparsity keeps 1e-3" in text and "not installed: torchao is not installed" in text
        assert html.count("<tr") >= len(results.rows)

    def test_shows_where_hrt_stands(self, html):
        assert "1 of 4" in html or "1 of 3" in html
        assert "6.25x smaller" in html

    def test_of_nothing_is_a_page_all_the_same(self):
        text = page(Results(()))
        assert not reading(text).open and "No row of hrt" in text

    def test_says_why_hrt_does_not_win(self):
        why = [{"workload": "w", "batch": 1, "target": 0.01, "line": "time: <b>dense</b>"}, {"workload": "other"}, 3]
        text = page(Results((row(),), {"about": {"w": "a & b"}, "why": why}))
        assert "batch 1, error 0.01: time: &lt;b&gt;dense" in text and "<p>a &amp; b</p>" in text
        assert text.count("<li>") == 1

    @pytest.mark.parametrize(
        "facts",
        [
            {"about": 3, "why": "x"},
            {"why": {}, "about": []},
            {"realtime": 3},
            {"realtime": [3, {}, {"histogram": "bad", "deadline_us": "x"}]},
        ],
    )
    def test_of_strange_facts_is_a_page_all_the_same(self, facts):
        assert not reading(page(Results((row(),), facts))).open


def test_pictures_are_written_as_png(results, tmp_path):
    written = write_pictures(results, tmp_path / "a" / "b")
    assert len({p.name for p in written}) == len(written) == sum(len(p) for _, p in sections(results))
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in written)


def test_a_folder_that_is_a_file_is_refused(results, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write_pictures(results, tmp_path / "taken")


class TestCommand:
    def test_writes_both(self, results, tmp_path, capsys):
        Results((timed("hrt", 1, 30, 400),), {}).write(tmp_path / "r.json")
        page_file, folder = tmp_path / "r.html", tmp_path / "png"
        assert main([str(tmp_path / "r.json"), "--html", str(page_file), "--png", str(folder)]) == 0
        assert page_file.read_text().startswith("<!DOCTYPE html>") and any(folder.iterdir())

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "hrt-bench", "version": 1, "rows": [{"x": 1}]}'])
    def test_bad_files(self, tmp_path, text, capsys):
        (tmp_path / "bad.json").write_text(text)
        assert main([str(tmp_path / "bad.json"), "--html", str(tmp_path / "x.html")]) == 2
        assert "bad.json" in capsys.readouterr().err and not (tmp_path / "x.html").exists()

    def test_nothing_to_write_and_nowhere_to_write_to(self, tmp_path, capsys):
        Results(()).write(tmp_path / "r.json")
        assert main([str(tmp_path / "r.json")]) == 2
        assert main([str(tmp_path / "r.json"), "--html", str(tmp_path / "no" / "x.html")]) == 2
        assert "does not exist" in capsys.readouterr().err


class TestStandings:
    def test_front(self):
        rows = [row(nbytes=n, error=e) for n, e in ((10, 1e-2), (20, 1e-3), (20, 2e-3), (30, 1e-3), (40, 1e-5))]
        rows += [row(nbytes=1), row(nbytes=None), row(nbytes=1, status=FAILED, error=None)]
        rows[5] = row(nbytes=5, error=None)
        assert [(r.nbytes, r.error) for r in front(rows, nbytes)] == [(10, 1e-2), (20, 1e-3), (40, 1e-5)]

    def test_rank(self):
        rows = [row("dense", p50_us=40.0), row("svd", p50_us=20.0), row("hrt", p50_us=30.0)]
        rows += [row("quantized", p50_us=1.0, error=2e-3), row("pruned", status=UNREACHABLE)]
        found = standing(rows, latency)
        assert (found.rank, found.of, found.won) == (2, 3, False)
        assert found.best is not None and found.best.method == "svd" and found.ratio == pytest.approx(2 / 3)

    def test_equals_share_a_rank_and_backends_are_one_method(self):
        rows = [row("dense", p50_us=30.0), row("hrt", p50_us=30.0), row("dense", p50_us=20.0, error=1.0)]
        found = standing(rows, latency)
        assert (found.rank, found.of, found.ratio, found.won) == (1, 2, 1.0, True)

    def test_noise_is_neither_won_nor_lost(self):
        rows = [row("dense", p50_us=30.0, nbytes=9), row("hrt", p50_us=20.0, nbytes=3, status=NOISY, error=1e-4)]
        found = standing(rows, latency)
        assert (found.rank, found.noisy, found.won) == (1, True, False) and standing(rows, nbytes).won
        text = page(Results((rows[0], replace(rows[1], ratio_vs_best_dense=1.5, note="why"))))
        assert "too noisy to judge" in text and "1.50x: no verdict" in text and "too noisy: why" in text

    def test_without_hrt_or_without_others(self):
        assert standings([row("dense", p50_us=1.0)], latency) == []
        (found,) = standings([row("hrt", status=UNREACHABLE), row("dense", p50_us=1.0)], latency)
        assert found.rank is None and found.ratio is None
        (found,) = standings([row("hrt", p50_us=1.0)], latency)
        assert found.rank == 1 and found.ratio is None

    def test_break_even_takes_the_best_of_each_family(self):
        rows = [row("svd a", 1, ratio_vs_best_dense=0.5), row("svd b", 1, ratio_vs_best_dense=0.9)]
        rows += [row("svd a", 8, ratio_vs_best_dense=2.0), row("dense", 1, ratio_vs_best_dense=1.0), row("hrt", 1)]
        lines = break_even(rows, 1e-3)
        assert list(lines) == ["svd"] and [r.ratio_vs_best_dense for r in lines["svd"]] == [0.9, 2.0]


def test_ticks_are_short():
    values = (0.5, 1, 2000, 10_000, 500_000, 3_000_000)
    assert [shortly(v) for v in values] == ["0.5", "1", "2,000", "10k", "500k", "3M"]


def test_names_of_files_and_ids():
    assert slug("2-D Green <4096> / ../x") == "2-d-green-4096-x" and slug("漢") == "x" and len(slug("a" * 99)) == 40
    assert distinct('<a id="m"/><use xlink:href="#m" clip-path="url(#p)"/>', "f1") == (
        '<a id="f1-m"/><use xlink:href="#f1-m" clip-path="url(#f1-p)"/>'
    )
