"""Lines and stacked bars as inline SVG, by small pure functions.

May import axes.py and the shapes of results.py; knows nothing of the page around it but the classes of its style:
`s0` ... `s7` are the colours of the contestants, `p0` ... `p5` the parts of bars.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastsock.bench.axes import Axis, Tick, format_exact, format_significant, make_axis
from fastsock.bench.results import Bar, Line, Plot

WIDTH = 800.0
PLOT_HEIGHT = 300.0
TOP = 34.0
BOTTOM = 46.0
LINE_HEIGHT = 16.0
FONT_SIZE = 12.5
# Points keep off the frame; labels off the points.
INSET = 10.0
GUTTER = 26.0
MAX_LABEL_WIDTH = 250.0
# With more points than this only some are marked.
MAX_MARKS = 24

DASHES = ["", "7 4", "2 3.5", "10 3 2 3", "4 2.5", "14 4"]

KNOWN_KINDS = ["fastsock", "socket", "asyncio", "uvloop", "c"]
SLOTS = 8
KNOWN_PARTS = ["kernel", "library", "Python objects"]
PART_SLOTS = 6

# One shape for each slot, around (0, 0).
MARKS = [
    '<circle r="3.6"/>',
    '<rect x="-3.3" y="-3.3" width="6.6" height="6.6"/>',
    '<path d="M0 -4.4L4.2 3.2H-4.2Z"/>',
    '<path d="M0 -4.6L4.6 0L0 4.6L-4.6 0Z"/>',
    '<path class="open" d="M-3.4 -3.4L3.4 3.4M-3.4 3.4L3.4 -3.4"/>',
    '<path d="M0 4.4L4.2 -3.2H-4.2Z"/>',
    '<path class="open" d="M0 -4.4V4.4M-4.4 0H4.4"/>',
    '<path d="M-4.4 -1.6H4.4V1.6H-4.4Z"/>',
]


def escape(text: object) -> str:
    """For text and attributes of HTML and of SVG; what neither may contain becomes U+FFFD."""
    shown = "".join("\ufffd" if is_control(char) else char for char in str(text))
    return html.escape(shown)


def is_control(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char < " " or "\x7f" <= char <= "\x9f" or "\ud800" <= char <= "\udfff" or char in "\ufffe\uffff"


def assign_slots(names: Sequence[str], known: Sequence[str], count: int) -> dict[str, int]:
    """A number for each name: the known have their own, the others share what is left, in order of appearance."""
    others = [name for name in dict.fromkeys(names) if name not in known]
    slots = {name: slot for slot, name in enumerate(known)}
    return slots | {name: len(known) + index % (count - len(known)) for index, name in enumerate(others)}


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is in a wide, bold sans-serif, in the unit of its size; rather too much than too little."""
    return 1.06 * size * sum(char_width(char) for char in text)


def char_width(char: str) -> float:
    if char in "iljI.,:;'|!\N{NARROW NO-BREAK SPACE}":
        return 0.36
    if char in "ftr()[]-/ ":
        return 0.43
    if char in "mwMW@%" or char > "\u2fff":
        return 1.0
    if char.isupper():
        return 0.74
    return 0.64


def wrap_label(text: str, width: float) -> list[str]:
    """In one line or two; what is longer is cut."""
    if text_width(text) <= width:
        return [text]
    words = text.split(" ")
    count = max((n for n in range(1, len(words)) if text_width(" ".join(words[:n])) <= width), default=0)
    if not count:
        return [cut(text, width)]
    return [" ".join(words[:count]), cut(" ".join(words[count:]), width)]


def cut(text: str, width: float) -> str:
    if text_width(text) <= width:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text + "…"


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centres as near to the wanted ones as is possible without an overlap, from low to high.

    What overlaps becomes a block about the mean of what its members want, until nothing does.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        members = [index]
        top = block_top(members, wanted, heights, low, high)
        while blocks and blocks[-1][0] + sum(heights[i] for i in blocks[-1][1]) > top:
            members = blocks.pop()[1] + members
            top = block_top(members, wanted, heights, low, high)
        blocks.append((top, members))
    centres = [0.0] * len(wanted)
    for top, members in blocks:
        for index in members:
            centres[index] = top + heights[index] / 2
            top += heights[index]
    return centres


def block_top(
    members: Sequence[int], wanted: Sequence[float], heights: Sequence[float], low: float, high: float
) -> float:
    total, tops = 0.0, []
    for index in members:
        tops.append(wanted[index] - heights[index] / 2 - total)
        total += heights[index]
    return max(low, min(sum(tops) / len(tops), high - total))


@dataclass(frozen=True, slots=True)
class Frame:
    """The area that lines are drawn in."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, share: float) -> float:
        return self.left + INSET + share * (self.right - self.left - 2 * INSET)

    def y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A line in the frame's coordinates."""

    line: Line
    slot: int
    dash: str
    runs: list[list[tuple[float, float, float, float]]]
    """(x, y, value on x, value on y) of what is next to each other; a value that has no place ends a run."""

    @property
    def end(self) -> tuple[float, float]:
        return self.runs[-1][-1][:2]


def number(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def draw_lines(plot: Plot, slots: Mapping[str, int], name: str) -> str:
    """A plot as SVG; empty if it has no point that could be drawn. `name` begins the ids in it."""
    x_axis = make_axis([x for line in plot.lines for x, y in line.points if math.isfinite(y)], plot.x_scale, most=10)
    y_axis = make_axis([y for line in plot.lines for _, y in line.points], plot.y_scale, extend=True, most=6)
    if x_axis is None or y_axis is None:
        return ""
    labels = [wrap_label(line.name, MAX_LABEL_WIDTH) for line in plot.lines]
    height = max(PLOT_HEIGHT, LINE_HEIGHT * sum(map(len, labels)))
    left = 10 + max((text_width(tick.label) for tick in y_axis.ticks), default=0.0)
    right = WIDTH - GUTTER - max((text_width(part) for label in labels for part in label), default=0.0) - 2
    frame = Frame(left, TOP, right, TOP + height)
    drawn, kept = place_lines(plot, slots, x_axis, y_axis, frame), []
    for line, label in zip(drawn, labels, strict=True):
        if line.runs:
            kept.append((line, label))
    if not kept:
        return ""
    body = [
        f'<title id="{name}-title">{escape(plot.title)}</title>',
        f'<desc id="{name}-desc">{escape(describe(plot))}</desc>',
        draw_axes(plot, x_axis, y_axis, frame),
        *(draw_line(line) for line, _ in reversed(kept)),
        *draw_labels(kept, frame),
    ]
    return (
        f'<svg class="plot" viewBox="0 0 {number(WIDTH)} {number(frame.bottom + BOTTOM)}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">' + "\n".join(body) + "</svg>"
    )


def describe(plot: Plot) -> str:
    """What the lines do, for those who do not see them; the values are in the table behind the plot."""
    parts = [f"{plot.y_title} over {plot.x_title}."]
    for line in plot.lines:
        points = [(x, y) for x, y in line.points if math.isfinite(y)]
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            begin, end = (f"{format_significant(y)} at {format_exact(x)}" for x, y in ((x0, y0), (x1, y1)))
            parts.append(f"{line.name}: {begin}." if len(points) == 1 else f"{line.name}: from {begin} to {end}.")
    return " ".join(parts)


def place_lines(plot: Plot, slots: Mapping[str, int], x_axis: Axis, y_axis: Axis, frame: Frame) -> list[Drawn]:
    drawn = []
    used: dict[int, int] = {}
    for line in plot.lines:
        slot = slots[line.kind]
        ordinal = used.get(slot, 0)
        used[slot] = ordinal + 1
        runs: list[list[tuple[float, float, float, float]]] = [[]]
        for x, y in sorted(line.points, key=lambda point: point[0]):
            across, up = x_axis.place(x), y_axis.place(y)
            if across is None or up is None:
                runs.append([])
            else:
                runs[-1].append((frame.x(across), frame.y(up), x, y))
        drawn.append(Drawn(line, slot, DASHES[ordinal % len(DASHES)], [run for run in runs if run]))
    return drawn


def draw_axes(plot: Plot, x_axis: Axis, y_axis: Axis, frame: Frame) -> str:
    parts = ['<g class="axes">']
    for tick in y_axis.ticks:
        y = number(frame.y(tick.share))
        parts.append(f'<path class="grid" d="M{number(frame.left)} {y}H{number(frame.right)}"/>')
        parts.append(
            f'<text x="{number(frame.left - 8)}" y="{y}" dy=".34em" text-anchor="end">{escape(tick.label)}</text>'
        )
    bottom = number(frame.bottom)
    parts.append(f'<path class="axis" d="M{number(frame.left)} {bottom}H{number(frame.right)}"/>')
    for tick, x in thin_ticks(x_axis.ticks, frame):
        at = number(x)
        parts.append(f'<path class="axis" d="M{at} {bottom}v5"/>')
        parts.append(f'<text x="{at}" y="{number(frame.bottom + 19)}" text-anchor="middle">{escape(tick.label)}</text>')
    parts.append(f'<text class="what" x="0" y="14">{escape(cut(plot.y_title, WIDTH))}</text>')
    parts.append(
        f'<text class="what" x="{number(frame.right)}" y="{number(frame.bottom + 39)}" text-anchor="end">'
        f"{escape(cut(plot.x_title, frame.right))}</text>"
    )
    return "".join(parts) + "</g>"


def thin_ticks(ticks: Sequence[Tick], frame: Frame) -> list[tuple[Tick, float]]:
    """Those whose labels have room, from the left; the last one always, as it may be the maximum."""
    kept: list[tuple[Tick, float]] = []
    for tick in ticks:
        x = frame.x(tick.share)
        while kept and x - kept[-1][1] < (text_width(tick.label) + text_width(kept[-1][0].label)) / 2 + 8:
            if tick is not ticks[-1] or len(kept) == 1:
                break
            kept.pop()
        else:
            kept.append((tick, x))
    return kept


def draw_line(drawn: Drawn) -> str:
    count = sum(map(len, drawn.runs))
    every = math.ceil(count / MAX_MARKS)
    dash = f' stroke-dasharray="{drawn.dash}"' if drawn.dash else ""
    parts = [f'<g class="s{drawn.slot}">']
    for run in drawn.runs:
        if len(run) > 1:
            path = "L".join(f"{number(x)} {number(y)}" for x, y, _, _ in run)
            parts.append(f'<path class="line"{dash} d="M{path}"/>')
    points = [point for run in drawn.runs for point in run]
    for index, (x, y, at, value) in enumerate(points):
        mark = MARKS[drawn.slot] if index % every == 0 or index == count - 1 else ""
        hover = f"{drawn.line.name}: {format_significant(value)} at {format_exact(at)}"
        parts.append(
            f'<g class="mark" transform="translate({number(x)} {number(y)})">{mark}'
            f'<circle class="hit" r="8"/><title>{escape(hover)}</title></g>'
        )
    return "".join(parts) + "</g>"


def draw_labels(kept: Sequence[tuple[Drawn, list[str]]], frame: Frame) -> list[str]:
    """Each line's name beside its end."""
    heights = [LINE_HEIGHT * len(label) for _, label in kept]
    half = LINE_HEIGHT / 2
    centres = spread([line.end[1] for line, _ in kept], heights, frame.top - half, frame.bottom + half)
    drawn = []
    x = frame.right + GUTTER
    for (line, label), centre, height in zip(kept, centres, heights, strict=True):
        end_x, end_y = line.end
        bend = max(end_x + 6, frame.right - INSET + 6)
        leader = f"M{number(end_x + 6)} {number(end_y)}H{number(bend)}L{number(x - 5)} {number(centre)}"
        first = centre - height / 2 + half
        spans = "".join(
            f'<tspan x="{number(x)}" y="{number(first + index * LINE_HEIGHT)}" dy=".34em">{escape(part)}</tspan>'
            for index, part in enumerate(label)
        )
        drawn.append(
            f'<g class="s{line.slot}"><path class="leader" d="{leader}"/>'
            f'<text class="label" x="{number(x)}" y="{number(first)}">{spans}</text></g>'
        )
    return drawn


def draw_bar(bar: Bar, whole: float, slots: Mapping[str, int], unit: str) -> str:
    """One stacked bar, in percent of the widest; its values are in the table's row around it."""
    parts = []
    x = 0.0
    for part, value in bar.parts.items():
        if not (math.isfinite(value) and value > 0 and whole > 0):
            continue
        width = 100 * (value / whole)
        hover = f"{part}: {format_significant(value)} {unit}".rstrip()
        parts.append(
            f'<rect class="p{slots[part]}" x="{number_percent(x)}" width="{number_percent(width)}" height="16">'
            f"<title>{escape(hover)}</title></rect>"
        )
        x += width
    return f'<svg class="bar" width="100%" height="16" aria-hidden="true">{"".join(parts)}</svg>'


def number_percent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def draw_mark(slot: int) -> str:
    """The shape and colour of a contestant's kind, before its name."""
    return f'<svg class="key s{slot}" viewBox="-5 -5 10 10" aria-hidden="true"><g class="mark">{MARKS[slot]}</g></svg>'


def draw_part_key(slot: int) -> str:
    return (
        f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true"><rect class="p{slot}" width="12" height="12"/></svg>'
    )


def draw_patterns() -> str:
    """The fills of bars: hatched as well as coloured, so that they are told apart in grey."""
    hatch = {
        1: '<path class="hatch" d="M-1 1L1 -1M0 6L6 0M5 7L7 5"/>',
        2: '<circle class="dot" cx="1.5" cy="1.5" r="1"/><circle class="dot" cx="4.5" cy="4.5" r="1"/>',
        3: '<path class="hatch" d="M0 3H6"/>',
        4: '<path class="hatch" d="M-1 5L1 7M0 0L6 6M5 -1L7 1"/>',
        5: '<path class="hatch" d="M3 0V6"/>',
    }
    patterns = "".join(
        f'<pattern id="part-{slot}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect class="f{slot}" width="6" height="6"/>{hatch.get(slot, "")}</pattern>'
        for slot in range(PART_SLOTS)
    )
    return f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{patterns}</defs></svg>'
