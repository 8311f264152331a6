"""Whether a change slowed a hot path: paired ratios against the floors that are committed in floors.toml.

A ratio fails where it is TOLERANCE below its floor in each of several runs; what is above in the first is not
measured again. May import targets.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fastsock.bench import native, targets
from fastsock.bench.question import Plan
from fastsock.bench.races import MAX_ROUNDS, kind_of
from fastsock.bench.results import Answer, Column, Figure, Row, Table

FLOORS = Path(__file__).with_name("floors.toml")
TOLERANCE = 0.15
GROUP_S = 1.8
"""Of each race, at each size, in each run."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The ratio that ``contestant`` had to ``baseline`` when it was written down, and why it is guarded."""

    group: str
    contestant: str
    baseline: str
    floor: float
    reason: str

    @property
    def target(self) -> targets.Target:
        return targets.Target(self.group, self.contestant, self.baseline, self.floor * (1 - TOLERANCE))


def read_floors(path: Path = FLOORS) -> list[Floor]:
    """ValueError or TypeError where the file is not as it should be."""
    with open(path, "rb") as file:
        found = [Floor(**row) for row in tomllib.load(file)["floor"]]
    for floor in found:
        if not floor.reason or floor.floor <= 0:
            raise ValueError(f"{floor.target.what}: a floor is above 0 and has a reason")
    return found


def run(plan: Plan, *, best_of: int = 3, floors: list[Floor] | None = None) -> tuple[Answer, bool]:
    """Every floor, and whether one does not hold."""
    floors = read_floors() if floors is None else floors
    rng = random.Random(plan.seed)
    the_races = targets.races()
    groups = list(dict.fromkeys(floor.group for floor in floors))
    best: dict[str, Figure | None] = {}
    runs = 0
    for number in range(best_of):
        for place, group in enumerate(groups):

            def progress(
                share: float, what: str = f"{group}, run {number + 1}", done: int = place, among: int = len(groups)
            ) -> None:
                plan.progress(what, (done + share) / among)

            samples = targets.measure_group(
                the_races,
                group,
                plan.rounds or MAX_ROUNDS,
                rng,
                budget_s=None if plan.rounds else GROUP_S,
                progress=progress,
            )
            for floor in floors:
                if floor.group == group:
                    target = floor.target
                    best[target.what] = targets.better(target, best.get(target.what), targets.come_to(target, samples))
        runs = number + 1
        low = [floor for floor in floors if targets.is_short(floor.target, best[floor.target.what])]
        groups = list(dict.fromkeys(floor.group for floor in low))
        if not groups:
            break
    method = (
        f"Paired ratios in one run, {GROUP_S} s for each race, the best of {runs}: a race is measured again, "
        f"{best_of} times at the most, where a ratio is more than {TOLERANCE:.0%} below its floor. Floors and their "
        "reasons are in fastsock/bench/floors.toml."
    )
    if why := native.missing():
        method += f" Without C: {why}; its rows were not measured."
    rows = []
    for floor in floors:
        figure = best[floor.target.what]
        said = {"pass": "holds", "short": "short", "not here": "not here"}[targets.verdict(floor.target, figure)]
        cells: dict[str, Figure | float | int | str | None] = {
            "ratio": figure,
            "floor": floor.floor,
            "least": floor.floor * (1 - TOLERANCE),
            "verdict": said,
        }
        rows.append(Row(floor.target.what, cells, kind_of(floor.contestant)))
    columns = [
        Column("ratio", "ratio", "x", 2),
        Column("verdict", ""),
        Column("floor", "floor", "x", 2),
        Column("least", "at least", "x", 2),
    ]
    answer = Answer("guard", "Did a change slow a hot path?", method, tables=[Table("floors", columns, rows)])
    return answer, bool(low)
