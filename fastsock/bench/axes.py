"""Axes: where a value lies between the ends of a plot, which ticks there are, and how numbers are written.

Pure: imports only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# Beyond these a difference or a step of two values may overflow or vanish; nothing that is measured comes near.
LARGEST = 1e300
SMALLEST = 1e-300

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
DASH = "\N{EN DASH}"
PREFIXES = {18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}
# How far the maximum lies beyond the last percentile, in tenfolds of the share above.
MAXIMUM_STEP = 0.5


def is_drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= LARGEST


def format_fixed(value: float, digits: int) -> str:
    """With so many decimals and groups of three; more where it would read as 0, an exponent where it is huge."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e15:
        return f"{value:.4g}"
    text = f"{value:,.{digits}f}"
    if value and not any(digit in "123456789" for digit in text):
        return f"{value:.2g}".replace("-", "−", 1) if value < 0 else f"{value:.2g}"
    return text.replace(",", NARROW_SPACE).replace("-", "−")


def format_significant(value: float, digits: int = 4) -> str:
    """All of its integer part, and decimals up to so many significant digits."""
    if not value or not math.isfinite(value) or abs(value) >= 1e15 or abs(value) < 1e-4:
        return format_fixed(value, 0)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = format_fixed(value, decimals)
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_exact(value: float) -> str:
    """A position on the x axis, such as 99.999 or 65536: nothing of it is rounded off."""
    if not math.isfinite(value):
        return format_fixed(value, 0)
    return f"{value:.12g}".replace("-", "−", 1) if value < 0 else f"{value:.12g}"


def format_si(value: float, step: float = 0.0) -> str:
    """1 k, 2.5 M: a tick's label, with the decimals that tell it from one a step away."""
    if not value:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    power = exponent // 3 * 3
    if -3 <= power < 0 and (step or abs(value)) >= 0.0009:
        power = 0
    if power not in PREFIXES:
        return f"{value:.6g}"
    scaled = value / 10.0**power
    smallest = (step or 10.0**exponent) / 10.0**power
    decimals = max(0, -math.floor(math.log10(smallest) + 1e-9))
    if not step:
        decimals = max(decimals, 0 if f"{scaled:.6g}".isdigit() else 1)
    if decimals > 6:
        return f"{value:.12g}"
    prefix = PREFIXES[power]
    text = f"{scaled:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−") + (NARROW_SPACE + prefix if prefix else "")


@dataclass(frozen=True, slots=True)
class Tick:
    share: float
    """Where it is: 0 at the low end of the axis, 1 at the high end."""
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from 0 to 1."""

    ticks: list[Tick]
    place: Callable[[float], float | None]
    """The share of a value; None for one that the scale has no place for (0 on a logarithmic one)."""


def make_axis(values: Iterable[float], scale: str, *, extend: bool = False, most: int = 7) -> Axis | None:
    """The axis that all values fit on, with about `most` ticks; None if there is nothing to show.

    With ``extend`` it ends at ticks and, if linear, contains 0, as it should for a rate or a time.
    """
    found = [value for value in values if is_drawable(value)]
    if scale == "linear":
        return linear_axis(found, extend, most) if found else None
    if scale == "log":
        positive = [value for value in found if value >= SMALLEST]
        return log_axis(positive, extend, most) if positive else None
    if scale == "percentile":
        shares = [value for value in found if 0 <= value <= 100]
        return percentile_axis(shares) if shares else None
    raise ValueError(f"no such scale: {scale!r}")


def tick_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10 ... with which a span has no more than so many steps."""
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= rough * (1 - 1e-9))


def multiples(low: float, high: float, step: float) -> list[float]:
    """Those of a step from low to high, exact where a decimal fraction is."""
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def linear_axis(values: Sequence[float], extend: bool, most: int) -> Axis:
    low, high = min(values), max(values)
    if extend:
        low, high = min(low, 0.0), max(high, 0.0)
    elif 0 < low < high / 5:
        low = 0.0
    if high - low < max(1e-9 * max(abs(low), abs(high)), SMALLEST):
        room = abs(high) / 2 if abs(high) >= SMALLEST else 1.0
        low, high = (low, high + room) if extend else (low - room, high + room)
    step = tick_step(high - low, most)
    if extend:
        low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    span = high - low

    def place(value: float) -> float | None:
        return (value - low) / span if is_drawable(value) else None

    return Axis([Tick((value - low) / span, format_si(value, step)) for value in multiples(low, high, step)], place)


def log_axis(values: Sequence[float], extend: bool, most: int) -> Axis:
    low, high = min(values), max(values)
    if high < low * (1 + 1e-9):
        low, high = low / 2, high * 2
    if extend:
        low, high = round_down(low), round_up(high)
    marks = log_marks(values, low, high, most)
    start = math.log10(low)
    span = math.log10(high) - start

    def place(value: float) -> float | None:
        return (math.log10(value) - start) / span if is_drawable(value) and value >= SMALLEST else None

    return Axis([Tick((math.log10(value) - start) / span, label) for value, label in marks], place)


def log_marks(values: Sequence[float], low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Powers of 2 for sizes that are; else 1-2-5 over a few tenfolds, and powers of 10 over more."""
    if len(set(values)) > 2 and all(value >= 1 and math.frexp(value)[0] == 0.5 for value in values):
        first, last = round(math.log2(min(values))), round(math.log2(max(values)))
        every = math.ceil((last - first + 1) / 12)
        return [(2.0**power, f"{2**power:.12g}") for power in range(first, last + 1, every)]
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    steps = [1] if last - first > most / 2 else [1, 2, 5]
    every = math.ceil((last - first) / most) if steps == [1] else 1
    marks = [
        value
        for power in range(first, last + 1, every)
        for value in (step * 10.0**power for step in steps)
        if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
    ]
    if len(marks) >= 2:
        return [(value, format_si(value)) for value in marks]
    step = tick_step(high - low, most)
    return [(value, format_si(value, step)) for value in multiples(low, high, step)]


def round_down(value: float) -> float:
    """The next of 1, 2, 5 x 10**n at or below."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= value * (1 + 1e-9))


def round_up(value: float) -> float:
    """The next of 1, 2, 5 x 10**n at or above."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return min(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def percentile_axis(values: Sequence[float]) -> Axis:
    """By the share that is above: 90, 99 and 99.9 are as far apart as 99.9 and 99.99. 100 is the maximum."""

    def tenfolds(value: float) -> float:
        return -math.log10(max(1 - value / 100, 1e-15))

    below = [tenfolds(value) for value in values if value < 100]
    low = min(below, default=0.0)
    high = last = max(below, default=0.0)
    if len(below) < len(values):
        high += MAXIMUM_STEP
    if high - low < 1e-9:
        low, high = max(0.0, low - MAXIMUM_STEP), high + MAXIMUM_STEP
    span = high - low

    def place(value: float) -> float | None:
        if not 0 <= value <= 100:
            return None
        return ((last + MAXIMUM_STEP if value == 100 else tenfolds(value)) - low) / span

    nines = ["0", "50", "90", "99", *("99." + "9" * count for count in range(1, 13))]
    ticks = [(tenfolds(float(label)), label) for label in nines]
    if len(below) < len(values):
        ticks.append((last + MAXIMUM_STEP, "max"))
    return Axis([Tick((at - low) / span, label) for at, label in ticks if low - 1e-9 <= at <= high + 1e-9], place)
