"""Which row of a bench's table is best, and what a table comes to in a line."""

import math

import pytest

from fastsock.bench.ranking import best_rows, format_cell, format_quartiles, headline, value_of
from fastsock.bench.results import Column, Figure, Row, Table

NS = Column("ns", "CPU time", "ns", 0)
RATE = Column("rate", "Rate", "k/s", 1)
LOST = Column("lost", "Lost", "%", 1)
RATIO = Column("ratio", "Ratio", "x", 2)
TEXT = Column("how", "How")


def figure(median):
    return Figure(median, median * 0.9, median * 1.1)


def table(columns, *rows):
    return Table("64 bytes", columns, [Row(name, cells, kind, base) for name, kind, base, cells in rows])


def receive(*, c_ratio=3.0):
    return table(
        [NS, RATIO],
        ("socket.recv", "socket", None, {"ns": figure(880.0), "ratio": 1.0}),
        ("recv_many", "fastsock", "socket.recv", {"ns": figure(477.0), "ratio": figure(1.84)}),
        ("recv_batch", "fastsock", "socket.recv", {"ns": figure(447.0), "ratio": figure(1.97)}),
        ("C recvmmsg", "c", "socket.recv", {"ns": figure(439.0), "ratio": figure(c_ratio)}),
    )


def test_least_time_but_for_c():
    assert best_rows(receive()) == {2}


def test_highest_rate():
    found = table([TEXT, LOST, RATE], *((n, "fastsock", None, {"lost": 0.0, "rate": r}) for n, r in ("a1", "b3", "c2")))
    found.rows[0].cells["rate"], found.rows[1].cells["rate"], found.rows[2].cells["rate"] = 1.0, 3.0, 2.0
    assert best_rows(found) == {1}


@pytest.mark.parametrize(("column", "best"), [(LOST, {0}), (RATIO, {1}), (TEXT, set()), (NS, {0}), (RATE, {1})])
def test_direction_by_unit(column, best):
    found = table([column], *((name, "fastsock", None, {column.name: value}) for name, value in (("a", 1), ("b", 2))))
    assert best_rows(found) == best


def test_equal_rows_are_all_best():
    rows = (("a", 5), ("b", 3), ("c", 3))
    assert best_rows(table([NS], *((name, "socket", None, {"ns": value}) for name, value in rows))) == {1, 2}


def test_none_is_best_alone_or_unmeasured():
    assert best_rows(table([NS], ("a", "fastsock", None, {"ns": 1}), ("C", "c", None, {"ns": 0.5}))) == set()
    assert best_rows(table([NS], ("a", "fastsock", None, {"ns": 1}), ("b", "socket", None, {"ns": None}))) == set()
    assert best_rows(table([NS])) == set()


@pytest.mark.parametrize("cell", [None, "text", math.nan, math.inf, figure(math.nan)])
def test_without_a_value(cell):
    assert value_of(cell) is None


def test_headline_is_the_highest_ratio_of_fastsock():
    found = headline(receive())
    assert found.figure.replace("\N{HAIR SPACE}", "") == "1.97×"
    assert found.what == "recv_batch"
    assert found.where == "against socket.recv · 64 bytes"


def test_headline_is_not_against_c():
    found = table(
        [NS, RATIO],
        ("C", "c", None, {"ns": 439.0, "ratio": 1.0}),
        ("recv_many", "fastsock", "C", {"ns": 400.0, "ratio": 9.0}),
        ("recvfrom_many", "fastsock", "recvfrom", {"ns": 500.0, "ratio": 2.0}),
    )
    assert headline(found).what == "recvfrom_many"


def test_headline_without_ratios_shows_the_best_of_the_others():
    found = headline(
        table(
            [Column("p50", "p50", "us", 1)],
            ("asyncio", "asyncio", None, {"p50": 61.0}),
            ("socket", "socket", None, {"p50": figure(13.4)}),
            ("slower", "fastsock", None, {"p50": figure(14.0)}),
            ("Socket", "fastsock", None, {"p50": figure(11.2)}),
            ("C", "c", None, {"p50": 10.0}),
        )
    )
    assert found.figure.replace("\N{NO-BREAK SPACE}", " ") == "11.2 µs"
    assert found.what == "Socket"
    assert found.where.replace("\N{NO-BREAK SPACE}", " ") == "socket: 13.4 µs · p50 · 64 bytes"


def test_no_headline():
    assert headline(table([NS], ("socket", "socket", None, {"ns": 1.0}))) is None
    assert headline(table([TEXT], ("a", "fastsock", None, {"how": "x"}))) is None
    assert headline(table([NS], ("a", "fastsock", None, {"ns": None}))) is None
    assert headline(table([RATIO], ("a", "fastsock", None, {"ratio": 1.0}))) is None


@pytest.mark.parametrize(
    ("cell", "text"), [(1.25, "1.2"), (3, "3"), (figure(2.0), "2.0"), ("text", "text"), (None, ""), (math.nan, "–")]
)
def test_cells(cell, text):
    assert format_cell(cell, Column("c", "C", "ns", 1)) == text


def test_quartiles():
    assert format_quartiles(Figure(2.0, 1.5, 2.5), Column("c", "C", "ns", 1)) == "1.5–2.5"
