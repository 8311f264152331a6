"""Which cells of a bench's table are best, and what a table comes to in a line."""

import math

import pytest

from fastsock.bench.ranking import best_cells, format_cell, format_quartiles, headlines, value_of
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


def contestants(column, *values, kinds=("fastsock", "socket", "asyncio")):
    """One row for each value, of different kinds."""
    rows = zip("abc", kinds, values, strict=False)
    return table([column], *((name, kind, None, {column.name: value}) for name, kind, value in rows))


def test_least_time_but_for_c():
    assert best_cells(receive()) == {(2, "ns"), (2, "ratio")}


def test_each_time_and_rate_has_its_best():
    found = table(
        [TEXT, NS, RATIO, LOST, RATE],
        ("a", "socket", None, {"ns": 5.0, "ratio": 1.0, "lost": 0.0, "rate": 1.0}),
        ("b", "fastsock", "a", {"ns": 4.0, "ratio": 1.2, "lost": 5.0, "rate": 2.0}),
        ("c", "fastsock", "a", {"ns": 4.5, "ratio": 1.1, "lost": 5.0, "rate": 3.0}),
    )
    assert best_cells(found) == {(1, "ns"), (1, "ratio"), (2, "rate")}


@pytest.mark.parametrize(
    ("column", "best"),
    [
        (NS, {0}),
        (RATE, {1}),
        (RATIO, {1}),
        (LOST, {0}),
        (TEXT, set()),
        (Column("k", "received/s", "k", 1), {1}),
        (Column("k", "drops/s", "k", 1), {0}),
        (Column("k", "of a CPU", "%", 1), set()),
        (Column("k", "memory", "KiB", 1), set()),
    ],
)
def test_direction(column, best):
    assert best_cells(contestants(column, 1, 2)) == {(index, column.name) for index in best}


def test_equal_rows_are_all_best():
    assert best_cells(contestants(NS, 5, 3, 3)) == {(1, "ns"), (2, "ns")}


def test_none_is_best_alone_or_unmeasured():
    assert best_cells(contestants(NS, 1, 0.5, kinds=("fastsock", "c"))) == set()
    assert best_cells(contestants(NS, 1, None)) == set()
    assert best_cells(table([NS])) == set()


def by_size(*columns):
    """Rows that are not contestants."""
    return table(
        columns, *((f"{size} B", "fastsock", None, {c.name: size / 100 for c in columns}) for size in (200, 100))
    )


def test_sizes_are_not_ranked():
    assert best_cells(by_size(NS, RATIO)) == set()


@pytest.mark.parametrize("cell", [None, "text", math.nan, math.inf, figure(math.nan)])
def test_without_a_value(cell):
    assert value_of(cell) is None


def plain(found):
    """(figure, what, where) with usual spaces."""
    spaces = str.maketrans({"\N{HAIR SPACE}": "", "\N{NO-BREAK SPACE}": " "})
    return [tuple(part.translate(spaces) for part in (line.figure, line.what, line.where)) for line in found]


def test_headline_is_the_highest_ratio_of_fastsock():
    assert plain(headlines(receive())) == [("1.97×", "recv_batch", "against socket.recv · CPU time · 64 bytes")]


def test_headline_for_each_ratio():
    columns = [
        Column("n1", "64 B", "ns"),
        Column("r1", "×", "x", 2),
        Column("n2", "1400 B", "ns"),
        Column("r2", "×", "x", 2),
    ]
    found = table(
        columns,
        ("socket.recv", "socket", None, {"r1": 1.0, "r2": 1.0}),
        ("recv_many", "fastsock", "socket.recv", {"r1": figure(1.84), "r2": figure(1.6)}),
        ("recv_batch", "fastsock", "socket.recv", {"r1": figure(1.9), "r2": None}),
    )
    assert plain(headlines(found)) == [
        ("1.90×", "recv_batch", "against socket.recv · 64 B · 64 bytes"),
        ("1.60×", "recv_many", "against socket.recv · 1400 B · 64 bytes"),
    ]


def test_headline_of_a_ratio_that_says_to_what():
    found = table(
        [Column("of", "× uvloop", "x", 1)],
        ("asyncio", "asyncio", None, {"of": 0.1}),
        ("fastsock.aio", "fastsock", "asyncio", {"of": 2.5}),
    )
    assert plain(headlines(found)) == [("2.5×", "fastsock.aio", "against uvloop · 64 bytes")]


def test_headline_is_against_the_first_baseline():
    found = table(
        [RATIO],
        ("recv", "socket", None, {"ratio": 1.0}),
        ("recv_many", "fastsock", "recv", {"ratio": 1.8}),
        ("recvfrom_many", "fastsock", "recvfrom", {"ratio": 2.4}),
    )
    assert plain(headlines(found))[0][:2] == ("1.80×", "recv_many")


def test_headline_is_not_against_c():
    found = table(
        [NS, RATIO],
        ("C", "c", None, {"ns": 439.0, "ratio": 1.0}),
        ("recv_many", "fastsock", "C", {"ns": 400.0, "ratio": 9.0}),
        ("recvfrom_many", "fastsock", "recvfrom", {"ns": 500.0, "ratio": 2.0}),
    )
    assert plain(headlines(found))[0][:2] == ("2.00×", "recvfrom_many")


def test_headline_without_ratios_shows_the_best_of_the_others():
    found = table(
        [Column("p50", "p50", "us", 1)],
        ("asyncio", "asyncio", None, {"p50": 61.0}),
        ("socket", "socket", None, {"p50": figure(13.4)}),
        ("slower", "fastsock", None, {"p50": figure(14.0)}),
        ("Socket", "fastsock", None, {"p50": figure(11.2)}),
        ("C", "c", None, {"p50": 10.0}),
    )
    assert plain(headlines(found)) == [("11.2 µs", "Socket", "socket: 13.4 µs · p50 · 64 bytes")]


def test_headline_by_sizes_is_a_range():
    assert plain(headlines(by_size(Column("w", "recv_many", "ns"), Column("r", "×", "x", 1)))) == [
        ("1.0–2.0×", "recv_many", "lowest and highest row · 64 bytes")
    ]
    assert plain(headlines(by_size(Column("r", "×", "x", 1)))) == [("1.0–2.0×", "64 bytes", "lowest and highest row")]
    assert headlines(by_size(Column("w", "C recvmmsg", "ns"), Column("r", "×", "x", 1))) == []


def test_no_headline():
    assert headlines(contestants(NS, 1.0, 2.0, kinds=("socket", "asyncio"))) == []
    assert headlines(contestants(TEXT, "x", "y")) == []
    assert headlines(contestants(NS, None, 1.0)) == []
    assert headlines(contestants(RATIO, 1.0, 2.0)) == []
    assert headlines(by_size(NS)) == []
    assert headlines(table([RATIO])) == []


@pytest.mark.parametrize(
    ("cell", "text"), [(1.25, "1.2"), (3, "3"), (figure(2.0), "2.0"), ("text", "text"), (None, ""), (math.nan, "–")]
)
def test_cells(cell, text):
    assert format_cell(cell, Column("c", "C", "ns", 1)) == text


def test_quartiles():
    assert format_quartiles(Figure(2.0, 1.5, 2.5), Column("c", "C", "ns", 1)) == "1.5–2.5"
    assert format_quartiles(Figure(2.0, 2.0, 2.01), Column("c", "C", "ns", 1)) == "2.0–2.0"
    assert format_quartiles(Figure(2.0, 2.0, 2.0), Column("c", "C", "ns", 1)) == ""
