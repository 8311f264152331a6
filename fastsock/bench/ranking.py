"""Which row of a table is best, what a table comes to in a line, and how its cells are written.

Pure: may import axes.py and the shapes of results.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastsock.bench.axes import DASH, format_fixed
from fastsock.bench.results import Column, Figure, Row, Table

UNITS = {"us": "µs", "x": "×"}
LESS_IS_BETTER = {"ns", "us", "µs", "ms", "s", "%"}
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
    return f"{format_fixed(figure.low, column.digits)}{DASH}{format_fixed(figure.high, column.digits)}"


def ratio_column(table: Table) -> Column | None:
    return next((column for column in table.columns if column.unit == "x"), None)


def ranking_column(table: Table) -> Column | None:
    """The one that tells which row is best: the first time or rate, or else the ratio."""
    ranked = [column for column in table.columns if is_ranked(column)]
    return next((column for column in ranked if column.unit not in ("x", "%")), ranked[0] if ranked else None)


def is_ranked(column: Column) -> bool:
    return column.unit in LESS_IS_BETTER or column.unit == "x" or column.unit.endswith("/s")


def best_rows(table: Table) -> set[int]:
    """The best that Python can call: places of rows, more than one if they are equal."""
    column = ranking_column(table)
    if column is None:
        return set()
    values = {
        index: value
        for index, row in enumerate(table.rows)
        if row.kind != CEILING and (value := value_of(row.cells.get(column.name))) is not None
    }
    if len(values) < 2:
        return set()
    best = min(values.values()) if column.unit in LESS_IS_BETTER else max(values.values())
    return {index for index, value in values.items() if value == best}


@dataclass(frozen=True, slots=True)
class Headline:
    figure: str
    what: str
    where: str


def headline(table: Table) -> Headline | None:
    """The highest ratio of fastsock to a baseline in Python; without ratios, its best beside the best of the others."""
    ours = [row for row in table.rows if row.kind == "fastsock"]
    kinds = {row.name: row.kind for row in table.rows}
    column = ratio_column(table)
    if column is not None:
        ratios = [
            (value, row)
            for row in ours
            if row.baseline is not None
            and kinds.get(row.baseline) != CEILING
            and (value := value_of(row.cells.get(column.name))) is not None
        ]
        if ratios:
            row = max(ratios, key=lambda pair: pair[0])[1]
            return Headline(
                format_cell(row.cells[column.name], column) + "\N{HAIR SPACE}×", row.name, against(row, table)
            )
    column = ranking_column(table)
    if column is None or column.unit == "x":
        return None
    measured = [(value, row) for row in ours if (value := value_of(row.cells.get(column.name))) is not None]
    if not measured:
        return None
    pick = min if column.unit in LESS_IS_BETTER else max
    row = pick(measured, key=lambda pair: pair[0])[1]
    rivals = [
        (value, other)
        for other in table.rows
        if other.kind not in ("fastsock", CEILING) and (value := value_of(other.cells.get(column.name))) is not None
    ]
    where = [column.title, table.title]
    if rivals:
        rival = pick(rivals, key=lambda pair: pair[0])[1]
        where.insert(0, f"{rival.name}: {with_unit(rival, column)}")
    return Headline(with_unit(row, column), row.name, " · ".join(filter(None, where)))


def with_unit(row: Row, column: Column) -> str:
    return f"{format_cell(row.cells[column.name], column)}\N{NO-BREAK SPACE}{unit_text(column.unit)}"


def against(row: Row, table: Table) -> str:
    return " · ".join(part for part in (f"against {row.baseline}", table.title) if part)
