"""Axes and drawings of bench reports: ticks, scales, and labels that stay apart and inside."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsock.bench.axes import (
    NARROW_SPACE,
    format_exact,
    format_fixed,
    format_si,
    format_significant,
    make_axis,
)
from fastsock.bench.plots import (
    FONT_SIZE,
    LINE_HEIGHT,
    MAX_LABEL_WIDTH,
    WIDTH,
    assign_slots,
    draw_bar,
    draw_lines,
    escape,
    spread,
    text_width,
    wrap_label,
)
from fastsock.bench.results import Bar, Line, Plot

SLOTS = {"fastsock": 0, "socket": 1, "c": 4}


def axis_of(values, scale="linear", **how):
    axis = make_axis(values, scale, **how)
    assert axis is not None
    return axis


def labels_of(values, scale="linear", **how):
    return [tick.label.replace(NARROW_SPACE, " ") for tick in axis_of(values, scale, **how).ticks]


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0, 1, "0"),
        (1, 0, "1"),
        (1000, 0, "1 k"),
        (10e6, 0, "10 M"),
        (2500, 500, "2.5 k"),
        (999, 1, "999"),
        (0.5, 0.5, "0.5"),
        (0.025, 0.005, "0.025"),
        (50e-6, 0, "50 µ"),
        (-2000, 1000, "−2 k"),
        (1e15, 1e15, "1 P"),
        (1e30, 1e30, "1e+30"),
        (1e-30, 1e-30, "1e-30"),
    ],
)
def test_tick_labels(value, step, text):
    assert format_si(value, step).replace(NARROW_SPACE, " ") == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 1, "0.0"),
        (-0.5, 1, "−0.5"),
        (1234567.891, 1, "1 234 567.9"),
        (0.004, 1, "0.004"),
        (-0.0004, 2, "−0.0004"),
        (math.nan, 1, "–"),
        (math.inf, 1, "∞"),
        (-math.inf, 1, "−∞"),
        (1e300, 2, "1e+300"),
        (200000, 0, "200 000"),
    ],
)
def test_fixed(value, digits, text):
    assert format_fixed(value, digits).replace(NARROW_SPACE, " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567.8, "1 234 568"), (13.456, "13.46"), (0.01234567, "0.01235"), (100, "100"), (0, "0"), (2.0, "2")],
)
def test_significant(value, text):
    assert format_significant(value).replace(NARROW_SPACE, " ") == text


@pytest.mark.parametrize(("value", "text"), [(99.999, "99.999"), (65536.0, "65536"), (-1.5, "−1.5")])
def test_exact(value, text):
    assert format_exact(value) == text


def test_linear_ticks():
    assert labels_of([0, 2.4], extend=True) == ["0", "0.5", "1", "1.5", "2", "2.5"]
    assert labels_of([300_000, 1_900_000], extend=True) == ["0", "500 k", "1 M", "1.5 M", "2 M"]
    assert labels_of([-3, 3], extend=True) == ["−3", "−2", "−1", "0", "1", "2", "3"]


def test_an_axis_that_almost_begins_at_zero_does():
    assert labels_of([16, 9000], most=5) == ["0", "2 k", "4 k", "6 k", "8 k"]
    assert labels_of([1000, 1004], most=5) == ["1 k", "1.001 k", "1.002 k", "1.003 k", "1.004 k"]


def test_a_time_or_rate_is_shown_from_zero():
    axis = axis_of([90, 100], extend=True)
    assert axis.place(0) == 0
    assert axis.place(100) == 1


def test_log_ticks():
    assert labels_of([10, 900], "log", extend=True) == ["10", "20", "50", "100", "200", "500", "1 k"]
    assert labels_of([1, 1e6], "log") == ["1", "10", "100", "1 k", "10 k", "100 k", "1 M"]
    assert labels_of([2**n for n in range(11)], "log") == [str(2**n) for n in range(11)]
    assert labels_of([64, 70], "log") == ["64", "65", "66", "67", "68", "69", "70"]


def test_a_logarithmic_axis_has_no_place_for_zero():
    axis = axis_of([0, -1, 10, 100], "log")
    assert axis.place(0) is None
    assert axis.place(-1) is None
    assert axis.place(math.nan) is None
    assert axis.place(10) == 0
    assert axis.place(100) == 1


def test_percentiles_by_the_share_above():
    axis = axis_of([50, 90, 99, 99.9, 99.99, 100], "percentile")
    place = {p: axis.place(p) for p in (50, 90, 99, 99.9, 99.99, 100)}
    assert place[50] == 0
    assert place[100] == 1
    step = place[99] - place[90]
    assert place[99.9] - place[99] == pytest.approx(step)
    assert place[99.99] - place[99.9] == pytest.approx(step)
    assert [tick.label for tick in axis.ticks] == ["50", "90", "99", "99.9", "99.99", "max"]
    assert axis.place(101) is None
    assert axis.place(-1) is None


def test_percentiles_without_the_maximum():
    assert [tick.label for tick in axis_of([50, 99], "percentile").ticks] == ["50", "90", "99"]
    assert [tick.label for tick in axis_of([100], "percentile").ticks][-1] == "max"
    assert make_axis([150.0, math.nan], "percentile") is None


@pytest.mark.parametrize("scale", ["linear", "log", "percentile"])
def test_nothing_to_show(scale):
    assert make_axis([], scale) is None
    assert make_axis([math.nan, math.inf, -math.inf], scale) is None


def test_an_unknown_scale():
    with pytest.raises(ValueError, match="'square'"):
        make_axis([1.0], "square")


@given(
    st.lists(st.floats() | st.floats(0, 100) | st.integers(1, 2**40).map(float), min_size=1, max_size=8),
    st.sampled_from(["linear", "log", "percentile"]),
    st.booleans(),
)
def test_any_values(values, scale, extend):
    axis = make_axis(values, scale, extend=extend)
    if axis is None:
        return
    shares = [tick.share for tick in axis.ticks]
    assert shares == sorted(set(shares))
    assert all(-1e-6 <= share <= 1 + 1e-6 for share in shares)
    assert len(shares) <= 16
    labels = [tick.label for tick in axis.ticks]
    assert len(set(labels)) == len(labels)
    placed = [share for value in values if (share := axis.place(value)) is not None]
    assert placed
    assert all(-1e-6 <= share <= 1 + 1e-6 for share in placed)


@given(st.lists(st.tuples(st.floats(0, 300), st.sampled_from([16.0, 32.0])), min_size=1, max_size=12))
def test_spread(items):
    wanted, heights = [want for want, _ in items], [height for _, height in items]
    low, high = 0.0, max(300.0, sum(heights))
    centres = spread(wanted, heights, low, high)
    boxes = sorted((centre - height / 2, centre + height / 2) for centre, height in zip(centres, heights, strict=True))
    assert boxes[0][0] >= low - 1e-6
    assert boxes[-1][1] <= high + 1e-6
    assert all(below[0] >= above[1] - 1e-6 for above, below in itertools.pairwise(boxes))
    for i, want in enumerate(wanted):
        for j, other in enumerate(wanted):
            assert want >= other or centres[i] < centres[j]


def test_spread_leaves_what_has_room():
    assert spread([20, 100, 60], [16, 16, 16], 0, 120) == [20, 100, 60]
    assert spread([50, 50], [16, 16], 0, 120) == [42, 58]
    assert spread([0, 120], [16, 16], 0, 120) == [8, 112]


def test_wrapped_labels():
    assert wrap_label("recv_many", 200) == ["recv_many"]
    lines = wrap_label("datagram_received of an unchanged protocol on a loop of asyncio", MAX_LABEL_WIDTH)
    assert len(lines) == 2
    assert all(text_width(line) <= MAX_LABEL_WIDTH for line in lines)
    (line,) = wrap_label("x" * 500, MAX_LABEL_WIDTH)
    assert line.endswith("…")
    assert text_width(line) <= MAX_LABEL_WIDTH


def lines(count, length=6, name="recv_many, {}", of=lambda index, x: 100.0 + x):
    return [Line(name.format(index), [(float(x), of(index, x)) for x in range(length)]) for index in range(count)]


PLOTS = {
    "usual": Plot("A rate", "batch", "datagrams/s", lines(4, of=lambda index, x: 1e6 * index + x * 1000)),
    "all equal": Plot("A rate", "batch", "datagrams/s", lines(12)),
    "more than the height": Plot("A rate", "batch", "datagrams/s", lines(40)),
    "one point": Plot("A rate", "batch", "datagrams/s", lines(1, 1)),
    "zero": Plot("A rate", "batch", "datagrams/s", [Line("none", [(0.0, 0.0)])]),
    "long names": Plot("A rate", "batch", "M/s", lines(6, name="{} " + "what an unchanged protocol receives " * 4)),
    "one long word": Plot("A rate", "batch", "M/s", lines(6, name="{}" + "W" * 200)),
    "huge range": Plot("A time", "n", "ns", [Line("wild", [(1e-9, 1e-290), (1.0, 1.0), (1e9, 1e290)])], "log", "log"),
    "huge linear": Plot("A time", "n", "ns", [Line("wild", [(-1e290, -1e290), (0.0, 1e-290), (1e290, 1e290)])]),
    "percentiles": Plot(
        "Latency",
        "percentile",
        "µs",
        [Line(f"l{n}", [(p, 10.0 + n + p) for p in (50, 75, 90, 99, 99.9, 99.99, 99.999, 100)]) for n in range(5)],
        "percentile",
        "log",
    ),
    "percentiles close to the maximum": Plot(
        "Latency", "percentile", "µs", [Line("l", [(p, p) for p in (0, 50, 99.99999999, 100)])], "percentile"
    ),
    "many points": Plot("Histogram", "µs", "share", [Line("l", [(x, math.sin(x)) for x in range(3000)])]),
    "sizes": Plot("Sizes", "bytes", "ns", [Line("l", [(x, 500.0) for x in (16, 64, 1400, 65507)])]),
}


def drawing(plot, slots=SLOTS):
    return ET.fromstring(draw_lines(plot, slots, "p"))


def boxes_of(root):
    """(left, top, right, bottom, text) of every line of text, by the estimate that the drawing goes by."""
    for text in root.iter("text"):
        parts = list(text) or [text]
        for part in parts:
            width = text_width(part.text)
            x, y = float(part.get("x")), float(part.get("y"))
            left = x - {"end": width, "middle": width / 2}.get(text.get("text-anchor"), 0)
            yield left, y - FONT_SIZE * 0.5, left + width, y + FONT_SIZE * 0.5, part.text


@pytest.mark.parametrize("name", PLOTS)
def test_texts_stay_apart_and_inside(name):
    root = drawing(PLOTS[name])
    *_, width, height = map(float, root.get("viewBox").split())
    assert width == WIDTH
    boxes = list(boxes_of(root))
    assert len(boxes) > len(PLOTS[name].lines)
    for left, top, right, bottom, text in boxes:
        assert 0 <= top < bottom <= height, text
        assert left >= -0.1, text
        assert right <= WIDTH + 0.1, text
    for index, (left, top, right, bottom, text) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (text, other[-1])


def test_the_maximum_is_named_however_little_room_there_is():
    texts = [box[-1] for box in boxes_of(drawing(PLOTS["percentiles close to the maximum"]))]
    assert "max" in texts
    assert "99.99999999" not in texts


@pytest.mark.parametrize("name", PLOTS)
def test_lines_stay_inside(name):
    root = drawing(PLOTS[name])
    *_, width, height = map(float, root.get("viewBox").split())
    for path in root.iterfind(".//path[@class='line']"):
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    for mark in root.iterfind(".//g[@class='mark']"):
        x, y = re.fullmatch(r"translate\(([-\d.]+) ([-\d.]+)\)", mark.get("transform")).groups()
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= height


def test_labels_stand_in_the_order_of_the_ends():
    plot = Plot("", "", "", [Line(str(n), [(0.0, 50.0), (1.0, float(n))]) for n in (3, 1, 2, 100)])
    labels = {
        text.find("tspan").text: float(text.get("y")) for text in drawing(plot).iterfind(".//text[@class='label']")
    }
    assert sorted(labels, key=labels.__getitem__) == ["100", "3", "2", "1"]
    assert labels["2"] - labels["3"] == pytest.approx(LINE_HEIGHT, abs=0.2)


def test_a_missing_value_ends_a_line():
    plot = Plot("", "", "", [Line("l", [(1, 1), (2, 2), (3, math.nan), (4, 4), (5, 5), (6, math.nan), (7, 7)])])
    root = drawing(plot)
    assert len(root.findall(".//path[@class='line']")) == 2
    assert len(root.findall(".//g[@class='mark']")) == 5


def test_a_line_without_values_has_no_label():
    root = drawing(Plot("", "", "", [Line("some", [(1, 1)]), Line("none", [(1, math.nan)]), Line("empty", [])]))
    assert [text.find("tspan").text for text in root.iterfind(".//text[@class='label']")] == ["some"]


def test_nothing_to_draw():
    assert draw_lines(Plot("", "", "", []), SLOTS, "p") == ""
    assert draw_lines(Plot("", "", "", [Line("l", [(1, math.nan)])]), SLOTS, "p") == ""
    assert draw_lines(Plot("", "", "", [Line("l", [(1, 0), (2, -1)])], y_scale="log"), SLOTS, "p") == ""
    # Each axis alone has something to show, but no point has both.
    crossed = Plot("", "", "", [Line("l", [(0.0, 1.0), (1.0, 0.0)])], "log", "log")
    assert draw_lines(crossed, SLOTS, "p") == ""


def test_lines_differ_in_more_than_colour():
    kinds = ["fastsock", "fastsock", "fastsock", "socket", "socket", "c"]
    plot = Plot("", "", "", [Line(str(n), [(0, n), (1, n)], kind) for n, kind in enumerate(kinds)])
    looks = set()
    for group in drawing(plot).findall("g"):
        for path in group.findall("path[@class='line']"):
            shape = group.find("g[@class='mark']")[0]
            looks.add((path.get("stroke-dasharray"), ET.tostring(shape)))
    assert len(looks) == len(kinds)


def test_points_say_their_values():
    root = drawing(Plot("", "", "", [Line("a < b", [(1, 2.5), (2, 3.5)])]))
    assert [title.text for title in root.iterfind(".//g[@class='mark']/title")] == [
        "a < b: 2.5 at 1",
        "a < b: 3.5 at 2",
    ]


def test_description():
    root = drawing(PLOTS["usual"])
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "p-title p-desc"
    assert root.find("title").text == "A rate"
    assert root.find("desc").text.startswith("datagrams/s over batch. recv_many, 0: from 0 at 0 to 5")


def test_few_marks_on_many_points():
    root = drawing(PLOTS["many points"])
    shapes = [mark for mark in root.iterfind(".//g[@class='mark']") if len(mark) > 2]
    assert 2 <= len(shapes) <= 26


def test_bar():
    slots = {"kernel": 0, "library": 1, "objects": 2}
    bar = Bar("b", {"kernel": 30.0, "library": 20.0, "objects": math.nan})
    found = ET.fromstring(draw_bar(bar, 100.0, slots, "ns")).findall("rect")
    assert [(rect.get("x"), rect.get("width"), rect.get("class")) for rect in found] == [
        ("0%", "30%", "p0"),
        ("30%", "20%", "p1"),
    ]
    assert [rect.find("title").text for rect in found] == ["kernel: 30 ns", "library: 20 ns"]


def test_bar_without_length():
    bar = Bar("b", {"kernel": 0.0, "library": -1.0})
    assert ET.fromstring(draw_bar(bar, 0.0, {"kernel": 0, "library": 1}, "ns")).findall("rect") == []


def test_slots():
    slots = assign_slots(["new", "a", "b", "other", "third"], ["a", "b"], 4)
    assert slots == {"a": 0, "b": 1, "new": 2, "other": 3, "third": 2}


def test_escape():
    assert escape('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert escape("a\0b\x1b\ud800\x85\uffff") == "a\ufffdb\ufffd\ufffd\ufffd\ufffd"
    assert escape("tab\tline\n") == "tab\tline\n"
