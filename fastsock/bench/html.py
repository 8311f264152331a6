"""A report as one page: no script, nothing from elsewhere, for a screen (light or dark) and for paper.

Pure: a function of the report alone. May import the other pure modules of fastsock.bench.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from fastsock.bench.axes import DASH, NARROW_SPACE, format_exact, format_fixed, format_significant, is_drawable
from fastsock.bench.page_style import STYLE
from fastsock.bench.plots import (
    KNOWN_KINDS,
    KNOWN_PARTS,
    PART_SLOTS,
    SLOTS,
    assign_slots,
    draw_bar,
    draw_lines,
    draw_mark,
    draw_part_key,
    draw_patterns,
    escape,
)
from fastsock.bench.ranking import (
    CEILING,
    Cell,
    best_cells,
    format_cell,
    format_quartiles,
    has_contestants,
    headlines,
    is_generic,
    is_missing,
    unit_text,
    value_of,
)
from fastsock.bench.reports import as_answer
from fastsock.bench.results import Answer, Bar, Bars, Column, Figure, Plot, Row, Table

VERSION = 1
# Of a question in the summary.
MAX_HEADLINES = 3
# Digits in a table's row, about. Wider ones have their quartiles below the medians: always, or on a narrow screen.
WIDE, MID = 100, 80
# Characters; longer ones may break into lines.
LONG_NAME = 36


def render(report: dict[str, Any]) -> str:
    """The page of a report, as `fastsock bench --json` prints it.

    Raises:
        ValueError: It is a report of another version.
    """
    if report.get("fastsock_bench") != VERSION:
        raise ValueError(f"not a report of version {VERSION}: {report.get('fastsock_bench')!r}")
    answers = [as_answer(found) for found in report.get("answers", [])]
    environment = report.get("environment", {})
    kinds = [kind for answer in answers for kind in kinds_of(answer)]
    parts = [part for answer in answers for bars in answer.bars for bar in bars.bars for part in bar.parts]
    page = Page(assign_slots(kinds, KNOWN_KINDS, SLOTS), assign_slots(parts, KNOWN_PARTS, PART_SLOTS))
    machine = " · ".join(machine_parts(environment))
    sections = [
        render_summary(answers),
        *(page.render_answer(answer, f"q{index}") for index, answer in enumerate(answers, 1)),
        render_environment(environment),
        page.render_reading(list(dict.fromkeys(kinds)), list(dict.fromkeys(parts))),
    ]
    links = [("summary", "Summary"), *((f"q{index}", answer.title) for index, answer in enumerate(answers, 1))]
    links += [("environment", "Environment"), ("reading", "How to read this")]
    items = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape("fastsock bench: " + machine if machine else "fastsock bench")}</title>
<style>{STYLE}</style>
</head>
<body>
{draw_patterns()}
<a class="skip" href="#summary">Skip to the results</a>
<div class="page">
<header><h1>fastsock bench</h1><p class="machine">{escape(machine)}</p></header>
<nav aria-label="Contents"><ul>{items}</ul></nav>
<main>
{"".join(sections)}</main>
</div>
</body>
</html>
"""


def kinds_of(answer: Answer) -> Iterable[str]:
    for table in answer.tables:
        yield from (row.kind for row in table.rows)
    for plot in answer.plots:
        yield from (line.kind for line in plot.lines)
    for bars in answer.bars:
        yield from (bar.kind for bar in bars.bars)


def render_summary(answers: Sequence[Answer]) -> str:
    items = []
    for index, answer in enumerate(answers, 1):
        found = [line for table in answer.tables for line in headlines(table)]
        lines = "".join(
            f"<dt>{escape(line.figure)}</dt><dd>{prose(line.what)}<small>{prose(line.where)}</small></dd>"
            for line in found[:MAX_HEADLINES]
        )
        body = f"<dl>{lines}</dl>" if lines else ""
        if answer.skipped:
            body += f"<p>Not measured: {prose(answer.skipped)}</p>"
        elif not found:
            body += "<p>See the tables and plots.</p>" if answer.tables or answer.plots else "<p>Not measured.</p>"
        elif len(found) > MAX_HEADLINES:
            body += f"<p>and {len(found) - MAX_HEADLINES} more below</p>"
        items.append(f'<li><a href="#q{index}">{escape(answer.title)}</a>{body}</li>')
    listed = f'<ul class="headlines">{"".join(items)}</ul>' if items else "<p>The report has no answers.</p>"
    return f'<section id="summary"><h2>Summary</h2>{listed}</section>\n'


# The sections.


def prose(text: str) -> str:
    """Escaped, with `code` as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def note(text: str) -> str:
    return f'<p class="note">{prose(text)}</p>' if text else ""


def scroll(content: str, label: str) -> str:
    """What is too wide for the screen can be moved, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def missing(why: str = "not measured", shown: str = DASH) -> str:
    return f'<span aria-hidden="true">{shown}</span><span class="hidden">{why}</span>'


@dataclass(frozen=True, slots=True)
class Page:
    """What the parts of a page have in common: each kind and part looks the same everywhere."""

    kinds: Mapping[str, int]
    parts: Mapping[str, int]

    def render_answer(self, answer: Answer, name: str) -> str:
        took = f" It took {format_significant(answer.elapsed_s, 2)} s." if answer.elapsed_s else ""
        body = [f'<p class="method">{prose(answer.method)}{took}</p>'] if answer.method or took else []
        if answer.skipped:
            body.append(f"<p><strong>Not measured:</strong> {prose(answer.skipped)}</p>")
        body += [self.render_table(table) for table in answer.tables]
        body += [self.render_bars(bars) for bars in answer.bars]
        body += [self.render_plot(plot, f"{name}-plot{index}") for index, plot in enumerate(answer.plots, 1)]
        if not (answer.skipped or answer.tables or answer.bars or answer.plots):
            body.append("<p>Not measured.</p>")
        return f'<section id="{name}"><h2>{escape(answer.title)}</h2>\n{"".join(body)}</section>\n'

    def render_name(self, name: str, kind: str | None, best: bool) -> str:
        """With the mark of its kind, if it is a contestant."""
        mark = "" if kind is None else draw_mark(self.kinds[kind])
        classes = " ".join(["name", *(["long"] if len(name) > LONG_NAME else []), *(["best"] if best else [])])
        return f'<th scope="row" class="{classes}">{keyed(mark, name)}</th>'

    def render_table(self, table: Table) -> str:
        if not table.rows:
            return f'<div class="block"><h3>{escape(table.title)}</h3><p>Not measured.</p>{note(table.note)}</div>\n'
        best = best_cells(table)
        marked = has_contestants(table)
        columns = [TableColumn.of(column, table.rows) for column in table.columns]
        add_baselines(columns, table)
        head = "".join(column.head() for column in columns)
        rows = []
        for index, row in enumerate(table.rows):
            cells = "".join(column.cell(row, (index, column.column.name) in best) for column in columns)
            name = self.render_name(row.name, row.kind if marked else None, any(index == at for at, _ in best))
            rows.append(f"<tr>{name}{cells}</tr>")
        width = max(18, *(len(row.name) + 3 for row in table.rows)) + sum(column.width for column in columns)
        wide = ' class="wide"' if width > WIDE else ' class="mid"' if width > MID else ""
        shown = (
            f"<table{wide}><caption>{escape(table.title)}</caption>"
            f'<thead><tr><th scope="col"><span class="hidden">contestant</span></th>{head}</tr></thead>\n'
            f"<tbody>{chr(10).join(rows)}</tbody></table>"
        )
        absent = any(is_missing(row.cells.get(column.name)) for row in table.rows for column in table.columns)
        notes = note(table.note) + (f'<p class="note">{DASH} not measured</p>' if absent else "")
        return f'<div class="block">{scroll(shown, table.title)}{notes}</div>\n'

    def render_bars(self, bars: Bars) -> str:
        """A table with the bars in it, so that each part's figure stands in its own column."""
        if not bars.bars:
            return f'<div class="block"><h3>{escape(bars.title)}</h3><p>Not measured.</p>{note(bars.note)}</div>\n'
        parts = sorted(dict.fromkeys(part for bar in bars.bars for part in bar.parts), key=self.parts.__getitem__)
        totals = [sum(value for value in bar.parts.values() if is_drawable(value)) for bar in bars.bars]
        # The drawn length: a part below 0 has none.
        lengths = [sum(value for value in bar.parts.values() if is_drawable(value) and value > 0) for bar in bars.bars]
        whole = max(lengths)
        measured = [
            total for total, bar in zip(totals, bars.bars, strict=True) if bar.kind != CEILING and is_whole(bar)
        ]
        best = min(measured) if len(measured) > 1 else None
        digits = 0 if whole >= 100 else 1 if whole >= 10 else 2
        rows = []
        for bar, total in zip(bars.bars, totals, strict=True):
            in_order = Bar(bar.name, {part: bar.parts[part] for part in parts if part in bar.parts}, bar.kind)
            cells = "".join(
                bar_cell(bar.parts[part], digits) if part in bar.parts else f'<td class="n">{missing("none", "")}</td>'
                for part in parts
            )
            chosen = bar.kind != CEILING and is_whole(bar) and total == best
            rows.append(
                f"<tr>{self.render_name(bar.name, bar.kind, chosen)}"
                f'<td class="stack">{draw_bar(in_order, whole, self.parts, unit_text(bars.unit))}</td>'
                f"{cells}{bar_cell(total if is_whole(bar) else math.nan, digits, chosen)}</tr>"
            )
        unit = f'<span class="u">{escape(unit_text(bars.unit))}</span>' if bars.unit else ""
        head = "".join(
            f'<th scope="col" class="n">{keyed(draw_part_key(self.parts[part]), part)}{unit}</th>' for part in parts
        )
        shown = (
            f'<table class="bars"><caption>{escape(bars.title)}</caption><thead><tr>'
            '<th scope="col"><span class="hidden">contestant</span></th>'
            f'<th scope="col"><span class="hidden">bar</span></th>{head}'
            f'<th scope="col" class="n">total{unit}</th></tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table>'
        )
        absent = any(math.isnan(value) for bar in bars.bars for value in bar.parts.values())
        notes = note(bars.note) + (f'<p class="note">{DASH} not measured</p>' if absent else "")
        return f'<div class="block">{scroll(shown, bars.title)}{notes}</div>\n'

    def render_plot(self, plot: Plot, name: str) -> str:
        drawing = draw_lines(plot, self.kinds, name)
        title = f"<figcaption>{escape(plot.title)}</figcaption>"
        body = scroll(drawing, plot.title) if drawing else "<p>Nothing to draw: not measured.</p>"
        values = self.render_points(plot) if any(line.points for line in plot.lines) else ""
        return f"<figure>{title}{body}{note(plot.note)}{values}</figure>\n"

    def render_points(self, plot: Plot) -> str:
        """The values of a plot, for those who do not see it and for copying."""
        found = [{x: y for x, y in line.points if math.isfinite(x)} for line in plot.lines]
        digits = [common_digits(list(points.values())) for points in found]
        places = sorted({x for points in found for x in points})
        head = "".join(
            f'<th scope="col" class="n">{keyed(draw_mark(self.kinds[line.kind]), line.name)}</th>'
            for line in plot.lines
        )
        rows = []
        for x in places:
            cells = "".join(
                bar_cell(points.get(x, math.nan), column) for points, column in zip(found, digits, strict=True)
            )
            rows.append(f'<tr><th scope="row" class="n">{format_exact(x)}</th>{cells}</tr>')
        table = (
            f'<table><caption class="hidden">{escape(f"{plot.title}: values")}</caption>'
            f'<thead><tr><th scope="col" class="n">{escape(plot.x_title)}</th>{head}</tr></thead>\n'
            f"<tbody>{chr(10).join(rows)}</tbody></table>"
        )
        what = escape(plot.y_title)
        return f"<details><summary>The values: {what}</summary>{scroll(table, plot.title + ': values')}</details>"

    def render_reading(self, kinds: Sequence[str], parts: Sequence[str]) -> str:
        entries = [
            (
                "1000 <span class='q'>980–1030</span>",
                "The median of the rounds, and the quartiles: half of the rounds lie between them.",
            ),
            (
                "×",
                "How many times as fast as the row it is against; below 1 it is slower. Each ratio is taken within a "
                "round, where both ran one after the other, and the median of those is shown: the machine's drift "
                "cancels out. The shade behind it has the length of the ratio.",
            ),
            (
                "Summary",
                "For each ratio, fastsock's highest against the first baseline of the table; where the rows are sizes, "
                "the lowest and the highest.",
            ),
            ("<b>Bold</b>", "The best of each time or rate, C aside."),
            (
                "C",
                "The same calls from C, without Python: what the kernel alone takes. No Python program can be "
                "expected to do better.",
            ),
            (DASH, "Not measured; the note below the table or the method says why."),
            (
                "Percentiles",
                "99 is the time that 1 in 100 exceeded. The axis goes by the share that is above: from 90 to 99 is "
                "as far as from 99 to 99.9.",
            ),
            (
                "Other machines",
                "Times differ from machine to machine and from day to day; the ratios of one run hold far better. "
                "Compare ratios between machines, and times only within one report.",
            ),
        ]
        keys = "".join(f"<li>{draw_mark(self.kinds[kind])}{escape(kind)}</li>" for kind in kinds)
        fills = "".join(f"<li>{draw_part_key(self.parts[part])}{escape(part)}</li>" for part in parts)
        shown = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in entries)
        return (
            '<section id="reading"><h2>How to read this</h2>'
            + (f'<ul class="kinds" aria-label="Contestants">{keys}</ul>' if keys else "")
            + (f'<ul class="kinds" aria-label="Parts of bars">{fills}</ul>' if fills else "")
            + f'<dl class="reading">{shown}</dl></section>\n'
        )


def breakable(text: str) -> str:
    """Long names of functions may break after a dot or an underscore."""
    return re.sub(r"([._])(?=\w)", r"\1<wbr>", escape(text))


def keyed(key: str, text: str) -> str:
    """A text that may break into lines, but not before its first word."""
    first, space, rest = text.partition(" ")
    return f'<span class="keyed">{key}{escape(first)}</span>{escape(space + rest)}'


def is_whole(bar: Bar) -> bool:
    """Every part of it was measured."""
    return bool(bar.parts) and all(is_drawable(value) for value in bar.parts.values())


def common_digits(values: Sequence[float]) -> int | None:
    """Decimals that give the largest four significant digits; None where the smallest would lose them."""
    sizes = [abs(value) for value in values if value and is_drawable(value)]
    if not sizes or max(sizes) > 100 * min(sizes):
        return None
    return max(0, min(12, 3 - math.floor(math.log10(max(sizes)))))


def bar_cell(value: float, digits: int | None = None, best: bool = False) -> str:
    if math.isnan(value):
        return f'<td class="n">{missing()}</td>'
    text = format_significant(value) if digits is None else format_fixed(value, digits)
    return f'<td class="n{" best" if best else ""}">{text}</td>'


@dataclass(slots=True)
class TableColumn:
    """A column with what its cells must agree on."""

    column: Column
    numeric: bool
    quartiles: float
    """Digits that the widest quartiles take; 0 without any."""
    width: float
    """Of the column, in digits."""
    most: float = 0.0
    """The largest ratio of the table."""
    baseline: str | None = None
    """What all ratios of the column are to."""
    baselines: bool = False
    """It is followed by a column of what the ratios are to."""

    @classmethod
    def of(cls, column: Column, rows: Sequence[Row]) -> TableColumn:
        cells = [row.cells.get(column.name) for row in rows]
        texts = [*column.title.split(), *(format_cell(cell, column) for cell in cells)]
        quartiles = max((digits_wide(format_quartiles(cell, column)) for cell in cells if is_figure(cell)), default=0)
        return cls(
            column,
            numeric=not any(isinstance(cell, str) for cell in cells),
            quartiles=quartiles,
            width=max(map(digits_wide, texts), default=0) + 0.86 * quartiles + 3,
        )

    def head(self) -> str:
        # A ratio's title mostly is the sign itself.
        unit = "" if "×" in self.column.title else unit_text(self.column.unit)
        unit = f"{unit} {self.baseline or ''}".strip()
        below = f'<span class="u">{escape(unit)}</span>' if unit else ""
        style = f' style="--q:{self.quartiles:.1f}ch"' if self.quartiles else ""
        more = '<th scope="col" class="against">against</th>' if self.baselines else ""
        return f'<th scope="col"{self.classes()}{style}>{breakable(self.column.title)}{below}</th>{more}'

    def classes(self, *more: str) -> str:
        names = [*(["n"] if self.numeric else []), *more]
        return f' class="{" ".join(names)}"' if names else ""

    def cell(self, row: Row, best: bool) -> str:
        cell = row.cells.get(self.column.name)
        more = f'<td class="against">{escape(row.baseline or "")}</td>' if self.baselines else ""
        if is_missing(cell):
            return f"<td{self.classes()}>{missing()}{self.room()}</td>{more}"
        quartiles = self.room(format_quartiles(cell, self.column)) if is_figure(cell) else self.room()
        value = value_of(cell)
        text = escape(format_cell(cell, self.column))
        bold = ["best"] if best else []
        if self.column.unit == "x" and value is not None and value > 0 and is_drawable(value):
            style = f' style="--w:{100 * (value / self.most):.1f}%"'
            return f"<td{self.classes('x', *bold)}{style}>{text}{quartiles}</td>{more}"
        return f"<td{self.classes(*bold)}>{text}{quartiles}</td>{more}"

    def room(self, text: str = "") -> str:
        """Quartiles, or the room that they would take, so that medians stand below each other."""
        if not self.quartiles:
            return ""
        return f'<span class="q" style="min-width:{self.quartiles:.1f}ch">{text}</span>'


def is_figure(cell: Cell) -> TypeGuard[Figure]:
    return isinstance(cell, Figure)


def digits_wide(text: str) -> float:
    """About how many digits a text is as wide as."""
    return sum(0.55 if char in "." + NARROW_SPACE else 1 for char in text)


def add_baselines(columns: Sequence[TableColumn], table: Table) -> None:
    """What the table's ratios have in common: their scale, and what they are to.

    That is said in the heads of their columns, or in a column of its own if not all are to the same.
    """
    ratios = [column for column in columns if column.column.unit == "x"]
    values = [value_of(row.cells.get(column.column.name)) for column in ratios for row in table.rows]
    most = max((value for value in values if value is not None), default=0.0)
    for column in ratios:
        column.most = most
    baselines = list(dict.fromkeys(row.baseline for row in table.rows if row.baseline is not None))
    generic = [column for column in ratios if is_generic(column.column)]
    if len(baselines) == 1:
        for column in generic:
            column.baseline = baselines[0]
    elif generic and baselines:
        generic[-1].baselines = True
        generic[-1].width += max(map(len, baselines))


# The environment.


def machine_parts(environment: Mapping[str, Any]) -> list[str]:
    """The machine in one line, of what is known of it."""
    flat = dict(environment)
    for value in environment.values():
        if isinstance(value, Mapping):
            flat = {**value, **flat}

    def first(*names: str) -> str:
        return next((str(flat[name]) for name in names if isinstance(flat.get(name), (str, int)) and flat[name]), "")

    cpus, kernel, python, ours = first("cpus", "cpu_count"), first("kernel"), first("python"), first("fastsock")
    if kernel and not kernel.startswith("Linux"):
        kernel = f"Linux {kernel}"
    parts = [
        first("cpu_model", "cpu", "model", "processor", "machine", "arch"),
        f"{cpus} CPUs" if cpus.isdigit() and cpus != "1" else f"{cpus} CPU" if cpus else "",
        kernel,
        f"{first('implementation') or 'Python'} {python}" if python else "",
        f"fastsock {ours}" if ours else "",
        re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*(\+00:00|Z)$", r"\1 \2 UTC", first("date", "started", "time")),
    ]
    return [part for part in parts if part]


def render_environment(environment: Mapping[str, Any]) -> str:
    plain = {name.replace("_", " "): value for name, value in environment.items() if not isinstance(value, Mapping)}
    tables = [render_facts("", plain)] if plain else []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            tables.append(render_facts(name.replace("_", " "), dict(flatten(value))))
    body = "".join(tables) or "<p>The report does not say.</p>"
    return f'<section id="environment"><h2>Environment</h2>{body}</section>\n'


def flatten(found: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{before}{name}.")
        else:
            yield before + name, value


def render_facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="mono">{escape(fact(value)) or missing("none")}</td></tr>\n'
        for name, value in facts.items()
    )
    caption = f"<caption>{escape(title[:1].upper() + title[1:])}</caption>" if title else ""
    if not rows:
        return f'<div class="block"><h3>{escape(title)}</h3><p>None.</p></div>'
    return f'<div class="block"><table class="facts">{caption}<tbody>{rows}</tbody></table></div>\n'


def fact(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(fact, value))
    return str(value)
