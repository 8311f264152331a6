"""A report in JSON as the shapes of results.py again.

Pure: imports only the standard library and results.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from fastsock.bench.results import Answer, Bar, Bars, Column, Figure, Line, Plot, Row, Table

Shape = TypeVar("Shape", Row, Column, Table, Line, Plot, Bar, Bars, Answer)


def as_answer(found: Mapping[str, Any]) -> Answer:
    """The other way round of `Answer.as_json`, also where it went through JSON in between."""
    tables = [
        shaped(
            Table,
            table,
            columns=[shaped(Column, column) for column in table["columns"]],
            rows=[
                shaped(Row, row, cells={name: as_cell(cell) for name, cell in row["cells"].items()})
                for row in table["rows"]
            ],
        )
        for table in found.get("tables", [])
    ]
    plots = [
        shaped(Plot, plot, lines=[shaped(Line, line, points=as_points(line["points"])) for line in plot["lines"]])
        for plot in found.get("plots", [])
    ]
    bars = [
        shaped(
            Bars,
            group,
            bars=[
                shaped(Bar, bar, parts={part: as_float(value) for part, value in bar["parts"].items()})
                for bar in group["bars"]
            ],
        )
        for group in found.get("bars", [])
    ]
    return shaped(Answer, found, tables=tables, plots=plots, bars=bars)


def shaped(shape: type[Shape], found: Mapping[str, Any], **parts: Any) -> Shape:
    """What a later version may add is left out."""
    known = {field.name: found[field.name] for field in fields(shape) if field.name in found}
    return shape(**{**known, **parts})


def as_cell(found: Any) -> Figure | float | int | str | None:
    if isinstance(found, Mapping):
        return Figure(*(as_float(found[name]) for name in ("median", "low", "high")))
    if isinstance(found, bool):
        return "yes" if found else "no"
    if found is None or isinstance(found, (int, float)):
        return found
    return str(found)


def as_float(found: Any) -> float:
    return math.nan if found is None else float(found)


def as_points(found: Iterable[Sequence[Any]]) -> list[tuple[float, float]]:
    return [(as_float(x), as_float(y)) for x, y in found]
