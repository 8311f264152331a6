"""The page that a bench report becomes: complete, well formed, escaped, self-contained and legible."""

import copy
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from fastsock.bench.axes import NARROW_SPACE, format_exact, format_fixed, format_significant
from fastsock.bench.html import common_digits, render
from fastsock.bench.page_style import DARK, LIGHT
from fastsock.bench.reports import as_answer
from fastsock.bench.results import Answer, Bar, Bars, Column, Figure, Line, Plot, Row, Table

VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}


class Element:
    def __init__(self, tag, attributes=(), parent=None):
        self.tag, self.attributes, self.parent = tag, dict(attributes), parent
        self.children = []

    def find_all(self, tag=None, **attributes):
        for child in self.children:
            if isinstance(child, Element):
                wanted = {name.rstrip("_"): value for name, value in attributes.items()}
                if tag in (None, child.tag) and wanted.items() <= child.attributes.items():
                    yield child
                yield from child.find_all(tag, **attributes)

    def find(self, tag=None, **attributes):
        return next(self.find_all(tag, **attributes))

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Parser(HTMLParser):
    """A tree of what must be balanced; anything else is an AssertionError."""

    def __init__(self):
        super().__init__()
        self.root = self.at = Element("root")

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice: {tag} {attributes}"
        element = Element(tag, attributes, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attributes):
        self.at.children.append(Element(tag, attributes, self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> in <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def parse(page):
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert parser.at is parser.root
    return parser.root


def report(*answers, environment=None, **more):
    """As it comes out of JSON."""
    found = {"fastsock_bench": 1, "environment": environment or {}, "answers": [a.as_json() for a in answers]}
    return json.loads(json.dumps({**found, **more}))


def figure(median):
    return Figure(median, median * 0.97, median * 1.05)


COLUMNS = [
    Column("ns", "CPU time", "ns", 0),
    Column("rate", "Rate", "M/s", 2),
    Column("us", "Wait", "us", 1),
    Column("how", "How"),
    Column("ratio", "Ratio", "x", 2),
]


def row(name, ns, kind="fastsock", baseline=None, **cells):
    found = {"ns": figure(ns), "rate": figure(1000 / ns), "us": 2.5, "how": "one by one", "ratio": figure(880 / ns)}
    return Row(name, {**found, **cells}, kind, baseline)


ROWS = [
    row("socket.recv", 880.0, "socket", ratio=1.0),
    row("socket.recvfrom", 1363.0, "socket", ratio=1),
    row("recv_many", 477.0, baseline="socket.recv"),
    row("recvfrom_many", 567.0, baseline="socket.recvfrom", us=None),
    row("C recvmmsg", 439.0, "c", "socket.recv", how=None),
]

ANSWER = Answer(
    "receive",
    "How fast are datagrams received?",
    "The drain, in thread CPU time: see `recvmmsg(2)`.",
    [Table("64 bytes", COLUMNS, ROWS, "Why there is no wait: it was not looked for.")],
    [
        Plot(
            "Rate by batch size",
            "messages per call",
            "datagrams/s",
            [
                Line("recv_many", [(2.0**n, 1e6 + 123_456.789 * n) for n in range(11)]),
                Line("socket.recv", [(1.0, 1_136_363.6)], "socket"),
                Line("uvloop", [(16.0, 434_000.0), (64.0, math.nan)], "uvloop"),
            ],
            "log",
        ),
        Plot(
            "Latency", "percentile", "µs", [Line("fastsock", [(50, 11.25), (99.999, 1234.5), (100, 5e4)])], "percentile"
        ),
    ],
    [
        Bars(
            "Where the time goes",
            "us",
            [
                Bar("socket.recv", {"kernel": 560.4, "library": 180, "Python objects": 140}, "socket"),
                Bar("recv_many", {"kernel": 435, "library": 9, "Python objects": 33.3}),
                Bar("asyncio", {"kernel": 2100, "event loop": 1310, "library": math.nan}, "asyncio"),
            ],
        )
    ],
    elapsed_s=12.25,
)
SKIPPED = Answer("gro", "What does GRO gain?", "", skipped="this kernel has no UDP_GRO")
ENVIRONMENT = {
    "date": "2026-11-23",
    "cpu_model": "A Processor",
    "cpus": 2,
    "kernel": "6.18.5",
    "python": "3.13.0",
    "fastsock": "0.1.0",
    "turbo": None,
    "pinned": True,
    "load": [0.5, 0.25],
    "sysctls": {"net.core.rmem_max": 212992},
    "mitigations": {"meltdown": "Not affected", "deep": {"er": [1, "two"]}},
    "nothing_here": {},
}


@pytest.fixture(scope="module")
def page():
    return render(report(ANSWER, SKIPPED, environment=ENVIRONMENT))


@pytest.fixture(scope="module")
def root(page):
    return parse(page)


def section(root, name):
    return root.find("section", id=name)


def table_of(root, title):
    return next(table for table in root.find_all("table") if any(c.text == title for c in table.find_all("caption")))


def row_of(table, name):
    return next(tr for tr in table.find("tbody").find_all("tr") if tr.find("th").text == name)


def number_of(text):
    prefix = text.replace(NARROW_SPACE, "").replace("−", "-")
    return float(prefix)


ODD = [
    report(),
    report(Answer("", "", "")),
    report(Answer("a", "A?", "b", [Table("t", [], [])], [Plot("p", "x", "y", [])], [Bars("b", "ns", [])])),
    report(Answer("a", "A?", "b", [Table("t", [], [Row("r", {})])], [Plot("p", "x", "y", [Line("l", [])])])),
    report(Answer("a", "A?", "b", [], [], [Bars("b", "", [Bar("none", {}), Bar("zero", {"kernel": 0.0})])])),
    report(Answer("a", "A?", "b", [Table("t", COLUMNS, [Row("r", dict.fromkeys(("ns", "ratio"), math.nan))])])),
    report(Answer("a", "A?", "b", [Table("t", COLUMNS, [Row("r", {"ns": -math.inf, "ratio": math.inf, "how": 1})])])),
    report(Answer("a", "A?", "b", [Table("t", COLUMNS, [row("r", 1e-300), row("s", 1e300)])])),
    report(Answer("a", "A?", "b", [Table("t", COLUMNS, [row("r", 5.0, "new kind", ratio=0.0)])])),
    report(Answer("a", "A?", "b", [], [Plot("p", "x", "y", [Line("l", [(0, 0)]), Line("m", [(0, 1e308)])])])),
    report(
        Answer("a", "A?", "b", [], [Plot("p", "x", "y", [Line("l", [(1, 1e-300), (2, 1e300)])], "linear", "log")]),
        Answer("a", "A?", "b", [], [Plot("p", "x", "y", [Line("l", [(1, 0)])], "log", "log")]),
    ),
    report(Answer("a", "A?", "b", [], [], [Bars("b", "ns", [Bar("x", {"p": 1e300, "q": -5.0, "r": math.inf})])])),
    report(environment={"a": {"b": {"c": None}}, "d": [], "cpus": 1}),
]


@pytest.mark.parametrize("index", range(len(ODD)))
def test_odd_reports_are_well_formed(index):
    check_form(render(ODD[index]))


def test_form(page):
    check_form(page)


def check_form(page):
    """Balanced, each id once, every reference meets one, each drawing is XML, and nothing comes from elsewhere."""
    root = parse(page)
    ids = [element.attributes["id"] for element in root.find_all() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    for element in root.find_all():
        for name in element.attributes.get("aria-labelledby", "").split():
            assert name in ids
        if "href" in element.attributes:
            assert element.attributes["href"].removeprefix("#") in ids
        assert "src" not in element.attributes
    assert set(re.findall(r"url\((.*?)\)", page)) <= {f"#{name}" for name in ids}
    assert not {"script", "link", "iframe", "object", "img", "base"} & {element.tag for element in root.find_all()}
    assert "://" not in page
    assert "@import" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
    for table in root.find_all("table"):
        widths = {
            sum(child.tag in ("th", "td") for child in tr.children if isinstance(child, Element))
            for tr in table.find_all("tr")
        }
        assert len(widths) == 1
        for th in table.find_all("th"):
            assert th.attributes["scope"] in ("row", "col")


def test_every_figure_of_a_table(root):
    table = table_of(root, "64 bytes")
    for wanted in ROWS:
        text = row_of(table, wanted.name).text
        for column in COLUMNS:
            cell = wanted.cells[column.name]
            if isinstance(cell, Figure):
                assert format_fixed(cell.median, column.digits) in text
                assert f"{format_fixed(cell.low, column.digits)}–{format_fixed(cell.high, column.digits)}" in text
            elif isinstance(cell, float):
                assert format_fixed(cell, column.digits) in text
            elif cell is not None:
                assert str(cell) in text


def test_every_point_of_a_plot(root):
    for plot in ANSWER.plots:
        table = table_of(root, f"{plot.title}: values")
        names = [th.text for th in table.find("thead").find_all("th")]
        assert names == [plot.x_title, *(line.name for line in plot.lines)]
        for place, line in enumerate(plot.lines):
            for x, y in line.points:
                shown = list(row_of(table, format_exact(x)).find_all("td"))[place].text
                if math.isnan(y):
                    assert shown == "–not measured"
                else:
                    assert number_of(shown) == pytest.approx(y, rel=5e-3)


@pytest.mark.parametrize(
    ("values", "digits"),
    [
        ([0.77, 1.0354], 3),
        ([52.1, 813.0], 1),
        ([12345.0, 67890.0], 0),
        ([0.0, 0.02], 5),
        ([1e-9], 12),
        ([1.5, 1e6], None),
        ([math.nan], None),
        ([], None),
    ],
)
def test_digits_of_a_column_of_points(values, digits):
    assert common_digits(values) == digits


def test_every_part_of_a_bar(root):
    table = table_of(root, "Where the time goes")
    heads = [th.text for th in table.find("thead").find_all("th")]
    assert heads == [
        "contestant",
        "bar",
        *(f"{p}µs" for p in ("kernel", "library", "Python objects", "event loop", "total")),
    ]
    cells = {
        name: [td.text for td in row_of(table, name).find_all("td")] for name in ("socket.recv", "recv_many", "asyncio")
    }
    narrow = {name: [text.replace(NARROW_SPACE, "") for text in texts[1:]] for name, texts in cells.items()}
    assert narrow == {
        "socket.recv": ["560", "180", "140", "none", "880"],
        "recv_many": ["435", "9", "33", "none", "477"],
        "asyncio": ["2100", "–not measured", "none", "1310", "–not measured"],
    }


def test_bars_are_drawn_in_one_order(root):
    table = table_of(root, "Where the time goes")
    assert [rect.attributes["class"] for rect in row_of(table, "asyncio").find_all("rect")] == ["p0", "p3"]
    assert [rect.attributes["class"] for rect in row_of(table, "recv_many").find_all("rect")] == ["p0", "p1", "p2"]


def test_elapsed(root):
    assert "It took 12 s." in section(root, "q1").text


def test_titles_methods_and_notes(root):
    text = section(root, "q1").text
    for wanted in (ANSWER.title, "see recvmmsg(2).", ANSWER.tables[0].note, *(plot.title for plot in ANSWER.plots)):
        assert wanted in text
    assert [code.text for code in section(root, "q1").find_all("code")] == ["recvmmsg(2)"]
    assert [link.text for link in root.find("nav").find_all("a")] == [
        *("Summary", ANSWER.title, SKIPPED.title, "Environment", "How to read this")
    ]


def test_what_was_not_measured(root):
    table = table_of(root, "64 bytes")
    assert "–not measured" in [td.text for td in row_of(table, "recvfrom_many").find_all("td")]
    assert "– not measured" in [p.text for p in section(root, "q1").find_all("p")]
    for name in ("summary", "q2"):
        assert "Not measured: this kernel has no UDP_GRO" in section(root, name).text


def test_nothing_is_said_to_be_missing_where_nothing_is():
    whole = Answer("a", "A?", "b", [Table("t", COLUMNS[:1], [row("r", 5.0)])])
    assert "not measured" not in section(parse(render(report(whole))), "q1").text.lower()


@pytest.mark.parametrize(
    "answer",
    [
        Answer("a", "A?", ""),
        Answer("a", "A?", "", [Table("t", COLUMNS, [])]),
        Answer("a", "A?", "", [], [Plot("p", "x", "y", [Line("l", [(1, math.nan)])])]),
        Answer("a", "A?", "", [], [], [Bars("b", "ns", [])]),
    ],
)
def test_nothing_was_measured(answer):
    assert "not measured" in section(parse(render(report(answer))), "q1").text.lower()


def test_notes_of_what_was_not_measured():
    answer = Answer("a", "A?", "", [Table("t", COLUMNS, [], "No table.")], [Plot("p", "x", "y", [], note="No plot.")])
    text = section(parse(render(report(answer))), "q1").text
    assert "No table." in text
    assert "No plot." in text


def test_infinite():
    answer = Answer("a", "A?", "b", [Table("t", COLUMNS[:1], [Row("r", {"ns": math.inf})])])
    assert "∞" in table_of(parse(render(report(answer))), "t").text


def test_units_are_in_the_heads(root):
    heads = [th.text for th in table_of(root, "64 bytes").find("thead").find_all("th")]
    assert heads == ["contestant", "CPU timens", "RateM/s", "Waitµs", "How", "Ratio×", "against"]


def test_what_ratios_are_to(root):
    table = table_of(root, "64 bytes")
    against = {tr.find("th").text: tr.find("td", class_="against").text for tr in table.find("tbody").find_all("tr")}
    assert against == {row.name: row.baseline or "" for row in ROWS}


def test_one_baseline_is_in_the_head():
    answer = Answer("a", "A?", "b", [Table("t", COLUMNS, [ROWS[0], ROWS[2]])])
    table = table_of(parse(render(report(answer))), "t")
    assert [th.text for th in table.find("thead").find_all("th")][-1] == "Ratio× socket.recv"


def best_of(table):
    return {
        tr.find("th").text: [
            place for place, td in enumerate(tr.find_all("td")) if "best" in td.attributes.get("class", "").split()
        ]
        for tr in table.find("tbody").find_all("tr")
        if "best" in tr.find("th").attributes["class"].split()
    }


def test_the_best_is_bold(root):
    assert best_of(table_of(root, "64 bytes")) == {"socket.recv": [2], "socket.recvfrom": [2], "recv_many": [0, 1, 2]}
    assert best_of(table_of(root, "Where the time goes")) == {"recv_many": [5]}


def test_c_is_not_the_best_bar():
    bars = [Bar("C", {"kernel": 1.0}, "c"), Bar("slow", {"kernel": 3.0}), Bar("fast", {"kernel": 2.0})]
    table = table_of(parse(render(report(Answer("a", "A?", "b", [], [], [Bars("t", "ns", bars)])))), "t")
    assert best_of(table) == {"fast": [2]}


def test_rows_that_are_no_contestants_have_no_mark_and_no_best():
    sizes = [row("64 B", 5.0), row("128 B", 6.0)]
    table = table_of(parse(render(report(Answer("a", "A?", "b", [Table("t", COLUMNS, sizes)])))), "t")
    assert best_of(table) == {}
    assert not list(table.find_all("svg"))


def test_ratios_have_bars(root):
    table = table_of(root, "64 bytes")
    widths = {
        tr.find("th").text: td.attributes["style"]
        for tr in table.find("tbody").find_all("tr")
        for td in tr.find_all("td")
        if "x" in td.attributes.get("class", "").split()
    }
    assert widths["C recvmmsg"] == "--w:100.0%"
    assert widths["socket.recv"] == f"--w:{100 * 439 / 880:.1f}%"
    assert len(widths) == len(ROWS)


def test_summary(root):
    found = section(root, "summary")
    assert [dt.text for dt in found.find_all("dt")] == ["1.84\N{HAIR SPACE}×"]
    assert [dd.text for dd in found.find_all("dd")] == ["recv_manyagainst socket.recv · How · 64 bytes"]
    assert [a.attributes["href"] for a in found.find_all("a")] == ["#q1", "#q2"]


def test_summary_of_many_tables():
    answer = Answer("a", "A?", "b", [Table(f"t{n}", COLUMNS, ROWS) for n in range(5)])
    found = section(parse(render(report(answer))), "summary")
    assert len(list(found.find_all("dt"))) == 3
    assert "and 2 more below" in found.text


def test_machine(root):
    line = root.find("p", class_="machine").text
    assert line == "A Processor · 2 CPUs · Linux 6.18.5 · Python 3.13.0 · fastsock 0.1.0 · 2026-11-23"
    assert root.find("title").text == f"fastsock bench: {line}"


def test_machine_in_parts():
    environment = {
        "versions": {"python": "3.14.0", "implementation": "CPython"},
        "host": {"cpus": 1, "machine": "arm64"},
    }
    line = parse(render(report(environment=environment))).find("p", class_="machine").text
    assert line == "arm64 · 1 CPU · CPython 3.14.0"


def test_environment(root):
    facts = {
        tr.find("th").text: tr.find("td").text
        for table in section(root, "environment").find_all("table")
        for tr in table.find_all("tr")
    }
    assert facts == {
        "date": "2026-11-23",
        "cpu model": "A Processor",
        "cpus": "2",
        "kernel": "6.18.5",
        "python": "3.13.0",
        "fastsock": "0.1.0",
        "turbo": "–none",
        "pinned": "yes",
        "load": "0.5, 0.25",
        "net.core.rmem_max": "212992",
        "meltdown": "Not affected",
        "deep.er": "1, two",
    }
    captions = [caption.text for caption in section(root, "environment").find_all("caption")]
    assert captions == ["Sysctls", "Mitigations"]
    assert "nothing here" in section(root, "environment").text


def test_keys_name_each_kind_and_part(root):
    contestants, parts = section(root, "reading").find_all("ul", class_="kinds")
    assert [li.text for li in contestants.find_all("li")] == ["socket", "fastsock", "c", "uvloop", "asyncio"]
    assert [li.text for li in parts.find_all("li")] == ["kernel", "library", "Python objects", "event loop"]


NASTY = "<script>alert(\"1\")</script> & 'x' `<b>`"


# Scales, the unit of ratios, the kind that the summary is about, and what cells go by.
MEANINGFUL = {"linear", "log", "percentile", "x", "fastsock", *(column.name for column in COLUMNS)}


def nasty(value):
    """The same report with every text in it nasty, but those that are not only shown."""
    if isinstance(value, dict):
        return {key: nasty(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nasty(item) for item in value]
    return NASTY if isinstance(value, str) and value not in MEANINGFUL else value


def test_texts_are_escaped():
    found = nasty(report(ANSWER, SKIPPED, environment=ENVIRONMENT))
    found["environment"][NASTY] = {NASTY: NASTY}
    for bars in found["answers"][0]["bars"]:
        bars["bars"][0]["parts"] = {NASTY: 1.0, NASTY + "2": 2.0}
    page = render(found)
    check_form(page)
    root = parse(page)
    assert {code.text for code in root.find_all("code")} == {"<b>"}
    assert {b.text for b in root.find_all("b")} <= {"Bold"}
    for tag in ("h2", "caption", "title", "desc", "th", "td", "dd", "li"):
        assert any(NASTY.replace("`", "") in element.text.replace("`", "") for element in root.find_all(tag)), tag
    labelled = [element.attributes["aria-label"] for element in root.find_all() if "aria-label" in element.attributes]
    assert NASTY in labelled


def test_texts_that_no_page_may_contain():
    answer = Answer("a", "A\0?", "b\ud800", [Table("t\x1b", COLUMNS, [row("r\x07", 5.0)])])
    page = render(report(answer))
    assert not set(re.findall(r"[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", page))
    assert page.encode().count("\ufffd".encode()) >= 4


def test_texts_of_other_scripts():
    title = "どれくらい速い? 🚀 — élève"
    assert title in render(report(Answer("a", title, "b")))


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_version(version):
    with pytest.raises(ValueError, match="not a report of version 1"):
        render({"fastsock_bench": version, "answers": []})


def test_what_a_later_version_adds_is_left_out():
    found = report(ANSWER, environment=ENVIRONMENT)
    more = copy.deepcopy(found)
    more["more"] = more["answers"][0]["more"] = more["answers"][0]["tables"][0]["rows"][0]["more"] = 5
    assert render(more) == render(found)


def test_reading_is_the_other_way_round_of_writing():
    whole = Answer("q", "Q?", "m", ANSWER.tables, ANSWER.plots[1:], ANSWER.bars[:0], "why", 1.5)
    assert as_answer(json.loads(json.dumps(whole.as_json()))) == whole


def test_what_may_be_left_out():
    found = {"question": "q", "title": "Q?", "method": "m", "tables": [{"title": "t", "columns": [], "rows": []}]}
    assert as_answer(found) == Answer("q", "Q?", "m", [Table("t", [], [])])


def test_null_is_not_a_number():
    found = report(ANSWER)
    (answer,) = found["answers"]
    answer["plots"][0]["lines"][0]["points"][3][1] = None
    answer["bars"][0]["bars"][1]["parts"]["library"] = None
    answer["tables"][0]["rows"][2]["cells"]["ns"]["median"] = None
    root = parse(render(found))
    assert next(row_of(table_of(root, "Rate by batch size: values"), "8").find_all("td")).text == "–not measured"
    assert "–not measured" in row_of(table_of(root, "Where the time goes"), "recv_many").text
    assert row_of(table_of(root, "64 bytes"), "recv_many").find("td").text == "–not measured"


def test_deterministic(page):
    found = report(ANSWER, SKIPPED, environment=ENVIRONMENT)
    before = copy.deepcopy(found)
    assert render(found) == page
    assert json.dumps(found) == json.dumps(before)


def test_deterministic_between_processes(page):
    code = "import json, sys; from fastsock.bench.html import render; sys.stdout.write(render(json.load(sys.stdin)))"
    text = json.dumps(report(ANSWER, SKIPPED, environment=ENVIRONMENT))
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, "-c", code], input=text, env=env, capture_output=True, encoding="utf-8", check=True
        )
        assert done.stdout == page


def luminance(colour):
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """As WCAG 2 defines it."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(colours):
    for name in ("text", "soft", "link", *(f"s{slot}" for slot in range(8))):
        assert contrast(colours[name], colours["ground"]) >= 4.5, name
    for name in ("text", "soft"):
        assert contrast(colours[name], colours["wash"]) >= 4.5, name
    for slot in range(6):
        assert contrast(colours[f"f{slot}"], colours["ground"]) >= 3, slot


def test_every_colour_is_defined_for_light_and_dark(page):
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    used = set(re.findall(r"var\(--(\w+)\)", style)) - {"c", "w", "q"}
    assert used == set(LIGHT) == set(DARK)
    assert style.count("{") == style.count("}")
    assert "@media screen and (prefers-color-scheme:dark)" in style
    assert "@media print" in style


def test_digits_that_vanish_are_shown():
    answer = Answer("a", "A?", "b", [Table("t", COLUMNS[:1], [Row("r", {"ns": 0.004}), Row("s", {"ns": 0.0})])])
    table = table_of(parse(render(report(answer))), "t")
    assert row_of(table, "r").text == "r" + "0.004"
    assert row_of(table, "s").text == "s" + "0"
    assert format_significant(0.004) == "0.004"
