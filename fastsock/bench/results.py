"""What a question came to: tables and plots as plain data, which the table, --json and --html show alike.

Pure: imports only the standard library.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one table."""

    name: str
    cells: dict[str, Figure | float | int | str | None]
    """By the table's columns. None is what could not be had."""
    kind: str = "fastsock"
    """Whose it is: "fastsock", "socket", "asyncio", "uvloop", "c" ...: the colour in plots."""
    baseline: str | None = None
    """The row that its ratio is to; None for a baseline itself."""


@dataclass(frozen=True, slots=True)
class Column:
    """What the cells of a column are."""

    name: str
    title: str
    unit: str = ""
    """"ns", "us", "M/s", "x", "%" ...; empty for text."""
    digits: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: list[tuple[float, float]]
    kind: str = "fastsock"


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over x: a rate by batch or payload size, or a time by percentile."""

    title: str
    x_title: str
    y_title: str
    lines: list[Line]
    x_scale: str = "linear"
    """"linear", "log" or "percentile" (x is 50, 90, 99, 99.9 ...; drawn by the share that is above)."""
    y_scale: str = "linear"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    parts: dict[str, float]
    """By what the time goes into: "kernel", "library", "Python objects" ..."""
    kind: str = "fastsock"


@dataclass(frozen=True, slots=True)
class Bars:
    """CPU time of each contestant, in parts that are stacked."""

    title: str
    unit: str
    bars: list[Bar]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question came to."""

    question: str
    title: str
    method: str
    """How it was measured, in a sentence or two."""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    skipped: str = ""
    """Why nothing was measured, where nothing was."""
    elapsed_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
