"""Which cells of a table are best, what a table comes to in a line, and how its cells are written.

Pure: may import axes.py and the shapes of results.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastsock.bench.axes import DASH, format_fixed
from fastsock.bench.results import Column, Figure, Row, Table

UNITS = {"us": "µs", "x": "×"}
TIMES = {"ns", "us", "µs", "ms", "s"}
# Titles of ratios that leave it to the rows what they are to.
GENERIC = {"×", "ratio", ""}
# Its rows show what the kernel allows; the best of a table is looked for among the others.
CEILING = "c"

Cell = Figure | float | int | str | None


def unit_text(unit: str) -> str:
    return UNITS.get(unit, unit)


def value_of(cell: Cell) -> float | None:
    """The number that a cell is compared by; None if it has none."""
    value = cell.median if isinstance(cell, Figure) else cell
    if isinstance(value, str) or value is None or not math.isfinite(value):
        return None
    return float(value)


def is_missing(cell: Cell) -> bool:
    value = cell.median if isinstance(cell, Figure) else cell
    return value is None or (isinstance(value, float) and math.isnan(value))


def format_cell(cell: Cell, column: Column) -> str:
    if isinstance(cell, Figure):
        return format_fixed(cell.median, column.digits)
    if isinstance(cell, int):
        return format_fixed(cell, 0)
    if isinstance(cell, float):
        return format_fixed(cell, column.digits)
    return "" if cell is None else cell


def format_quartiles(figure: Figure, column: Column) -> str:
    """Empty where there is but one value, as of a single round or a ratio to itself."""
    if figure.low == figure.median == figure.high:
        return ""
    return f"{format_fixed(figure.low, column.digits)}{DASH}{format_fixed(figure.high, column.digits)}"


def has_contestants(table: Table) -> bool:
    """Its rows are contestants, which can be ranked; not the same ones at one batch size after another."""
    return any(row.baseline is not None for row in table.rows) or len({row.kind for row in table.rows}) > 1


def is_generic(column: Column) -> bool:
    return column.title.lower() in GENERIC


def is_loss(column: Column) -> bool:
    return any(word in column.title.lower() for word in ("lost", "loss", "drop"))


def less_is_better(column: Column) -> bool:
    return column.unit in TIMES or is_loss(column)


def is_ranked(column: Column) -> bool:
    """It says by itself who is better."""
    return (
        less_is_better(column) or column.unit == "x" or f"{column.title} {column.unit}".endswith(("/s", "/s k", "/s M"))
    )


def ranking_columns(table: Table) -> list[Column]:
    """Times and rates; or else what is lost, or else ratios."""
    ranked = [column for column in table.columns if is_ranked(column)] if has_contestants(table) else []
    measured = [column for column in ranked if column.unit != "x" and not is_loss(column)]
    return measured or [column for column in ranked if is_loss(column)] or ranked


def best_cells(table: Table) -> set[tuple[int, str]]:
    """(place of the row, name of the column) of the best that Python can call, and of the ratios beside it."""
    found: set[tuple[int, str]] = set()
    ranking = ranking_columns(table)
    rows: set[int] = set()
    for column in table.columns:
        if column in ranking:
            rows = best_rows(table, column)
        elif column.unit != "x":
            rows = set()
        found |= {(index, column.name) for index in rows}
    return found


def best_rows(table: Table, column: Column) -> set[int]:
    """Places of the rows that are best by a column: more than one if they are equal."""
    values = {
        index: value
        for index, row in enumerate(table.rows)
        if row.kind != CEILING and (value := value_of(row.cells.get(column.name))) is not None
    }
    if len(values) < 2:
        return set()
    best = min(values.values()) if less_is_better(column) else max(values.values())
    return {index for index, value in values.items() if value == best}


@dataclass(frozen=True, slots=True)
class Headline:
    figure: str
    what: str
    where: str


def headlines(table: Table) -> list[Headline]:
    """The ratios that a table comes to, one for each column of them; without ratios, the best beside the next best."""
    labels = [
        (column, before.title if is_generic(column) and before is not None else "")
        for before, column in zip([None, *table.columns], table.columns, strict=False)
        if column.unit == "x"
    ]
    if not has_contestants(table):
        return [line for column, label in labels if (line := ratio_range(table, column, label)) is not None]
    found = [line for column, label in labels if (line := best_ratio(table, column, label)) is not None]
    if found or labels:
        return found
    return [line for column in ranking_columns(table)[:1] if (line := best_figure(table, column)) is not None]


def joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def times(text: str) -> str:
    return f"{text}\N{HAIR SPACE}×"


def ratio_range(table: Table, column: Column, label: str) -> Headline | None:
    """From the lowest to the highest of the rows; None for the column of a contestant in C."""
    if label.startswith("C "):
        return None
    rows = [row for row in table.rows if value_of(row.cells.get(column.name)) is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: value_of(row.cells[column.name]) or 0.0)
    low, high = (format_cell(row.cells[column.name], column) for row in (rows[0], rows[-1]))
    text = times(low if low == high else f"{low}{DASH}{high}")
    what = label or (table.title if is_generic(column) else column.title.strip("× "))
    return Headline(text, what, joined("lowest and highest row", table.title if what != table.title else ""))


def best_ratio(table: Table, column: Column, label: str) -> Headline | None:
    """Fastsock's highest against the first baseline in Python."""
    kinds = {row.name: row.kind for row in table.rows}
    rows = [
        row
        for row in table.rows
        if row.kind == "fastsock"
        and row.baseline is not None
        and kinds.get(row.baseline) != CEILING
        and value_of(row.cells.get(column.name)) is not None
    ]
    if not rows:
        return None
    best = max(
        (row for row in rows if row.baseline == rows[0].baseline),
        key=lambda row: value_of(row.cells[column.name]) or 0.0,
    )
    against = best.baseline if is_generic(column) else column.title.strip("× ")
    text = times(format_cell(best.cells[column.name], column))
    return Headline(text, best.name, joined(f"against {against}", label, table.title))


def best_figure(table: Table, column: Column) -> Headline | None:
    """Fastsock's best, and the best of those that are neither fastsock nor C."""
    pick = min if less_is_better(column) else max
    measured = [(value, row) for row in table.rows if (value := value_of(row.cells.get(column.name))) is not None]
    ours = [pair for pair in measured if pair[1].kind == "fastsock"]
    others = [pair for pair in measured if pair[1].kind not in ("fastsock", CEILING)]
    if not ours:
        return None
    row = pick(ours, key=lambda pair: pair[0])[1]
    beside = ""
    if others:
        other = pick(others, key=lambda pair: pair[0])[1]
        beside = f"{other.name}: {with_unit(other, column)}"
    return Headline(with_unit(row, column), row.name, joined(beside, column.title, table.title))


def with_unit(row: Row, column: Column) -> str:
    return f"{format_cell(row.cells[column.name], column)}\N{NO-BREAK SPACE}{unit_text(column.unit)}".rstrip()
