"""Runs races for a question, and makes tables of what they came to.

May import paired, contestants, native and results.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fastsock.bench import native
from fastsock.bench.contestants import Race
from fastsock.bench.paired import Samples, measure
from fastsock.bench.question import Plan
from fastsock.bench.results import Bar, Bars, Column, Figure, Line, Plot, Row, Table

MAX_ROUNDS = 1000
"""More of them narrow nothing any more."""

Stacks = Mapping[str, Mapping[str, tuple[str, str | None]]]
"""Of each contestant, its parts: whose cost, less whose."""

DRAIN = (
    "CPU time of the calling thread per datagram on loopback, kernel included: a queue that was filled before is "
    "drained, or sent to with room for all, and a turn fails unless every datagram arrived, so that nothing is lost. "
    "All contestants take a turn in every round, in an order shuffled anew; ratios are medians of those of the rounds, "
    "with their quartiles."
)


@dataclass(slots=True)
class Found:
    """What the races of a question came to, by the race's name and size."""

    samples: dict[str, dict[int, Samples]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    @property
    def note(self) -> str:
        return " ".join(self.notes)


def run_races(plan: Plan, races: Mapping[str, Race], sizes: Iterable[int] | None = None) -> Found:
    """Each race at each size; they share the budget evenly. What has no room here is left out, and noted."""
    rng = random.Random(plan.seed)
    steps = [(name, size) for name in races for size in (plan.sizes if sizes is None else sizes)]
    found = Found({name: {} for name in races})
    if why := native.missing():
        found.notes.append(f"Without C: {why}.")
    for number, (name, size) in enumerate(steps):
        race = races[name]
        what = f"{race.title}, {size}"

        def progress(share: float, what: str = what, number: int = number) -> None:
            plan.progress(what, (number + share) / len(steps))

        progress(0.0)
        try:
            with race.open(size) as (contestants, count):
                found.samples[name][size] = measure(
                    contestants,
                    count,
                    plan.rounds or MAX_ROUNDS,
                    warm_count=race.warm_count,
                    budget_s=None if plan.rounds else plan.budget_s / len(steps),
                    rng=rng,
                    progress=progress,
                )
        except OSError as error:
            found.notes.append(f"{what}: {error.strerror or error}.")
    return found


def kind_of(name: str) -> str:
    """Whose a contestant is, from its name."""
    for beginning, kind in (
        ("C ", "c"),
        ("socket.", "socket"),
        ("select", "socket"),
        ("selectors.", "socket"),
    ):
        if name.startswith(beginning):
            return kind
    return "fastsock"


def race_table(
    title: str,
    samples: Mapping[int, Samples],
    baselines: Mapping[str, str],
    *,
    per: str = "{size} B",
    note: str = "",
    digits: int = 0,
) -> Table:
    """A row for each contestant, with its cost and its ratio at each size."""
    columns = []
    for size in samples:
        columns.append(Column(f"ns_{size}", per.format(size=size), "ns", digits))
        columns.append(Column(f"ratio_{size}", "×", "x", 2))
    rows = []
    for name, baseline in baselines.items():
        cells: dict[str, Figure | float | int | str | None] = {}
        for size, measured in samples.items():
            there = name in measured.ns
            cells[f"ns_{size}"] = measured.cost(name) if there else None
            cells[f"ratio_{size}"] = measured.ratio(name, baseline) if there and baseline in measured.ns else None
        rows.append(Row(name, cells, kind_of(name), None if baseline == name else baseline))
    return Table(title, columns, rows, note)


def rate_plot(
    title: str, x_title: str, lines: Mapping[str, Sequence[tuple[float, float]]], note: str = "", **more: str
) -> Plot:
    """Points of (x, ns per datagram) as millions of datagrams per CPU second."""
    return Plot(
        title,
        x_title,
        "million datagrams per CPU second",
        [Line(name, [(x, 1e3 / ns) for x, ns in points], kind_of(name)) for name, points in lines.items()],
        note=note,
        **more,
    )


def cost_bars(title: str, samples: Samples, stacks: Stacks) -> Bars | None:
    """Bars of parts that are differences: of a contestant's cost and another's, or its whole where that is None.

    None where a contestant was not measured. A difference that noise made negative is shown as 0.
    """
    bars = []
    for name, parts in stacks.items():
        shown = {}
        for part, (whole, less) in parts.items():
            if whole not in samples.ns or (less is not None and less not in samples.ns):
                return None
            rest = 0.0 if less is None else samples.cost(less).median
            shown[part] = max(0.0, samples.cost(whole).median - rest)
        bars.append(Bar(name, shown, kind_of(name)))
    return Bars(
        title,
        "ns",
        bars,
        "Differences of medians: the kernel is what C takes with the same system calls, the library what its call "
        "takes into memory that is there, Python objects what making them takes on top.",
    )
