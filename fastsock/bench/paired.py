"""Paired measurement: contestants that do the same work, side by side in one run.

Absolute times drift with the machine and with whatever else runs on it; ratios of
contestants that took turns within one round hold. Knows nothing of sockets: what is
measured is in contestants.py. Imports only the standard library and results.
"""

from __future__ import annotations

import errno
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastsock.bench.results import Figure

# Work done by each contestant just before the clock starts, so that none pays for caches
# that the others, or the filling, have cooled.
WARM_COUNT = 64
# Rounds that are thrown away: the first ones allocate, import and fault pages in.
WARM_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work. Only ``run`` is timed.

    Args:
        name: Unique within one measurement.
        prepare: Called with a count: make so many datagrams ready to be moved.
        run: Move exactly so many datagrams; returns how many were moved.
        settle: Check that so many arrived, no more and no fewer, and clear them away;
            raises where they did not.
    """

    name: str
    prepare: Callable[[int], None]
    run: Callable[[int], int]
    settle: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Samples:
    """What ``measure`` collected: nanoseconds per datagram, one number per round."""

    ns: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """The whole rounds that were recorded."""
        return min((len(values) for values in self.ns.values()), default=0)

    def cost(self, name: str) -> Figure:
        """Nanoseconds per datagram."""
        return spread(self.ns[name])

    def ratio(self, name: str, baseline: str) -> Figure:
        """How many times faster ``name`` is than ``baseline``, from the ratio of each round."""
        return spread([base / own for base, own in zip(self.ns[baseline], self.ns[name], strict=True)])


@dataclass(slots=True)
class Rounds:
    """What several measures of each contestant came to: one number of each per round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, contestant: str, measures: Mapping[str, float]) -> None:
        for name, value in measures.items():
            self.values.setdefault(contestant, {}).setdefault(name, []).append(value)

    def __contains__(self, contestant: str) -> bool:
        return contestant in self.values

    def figure(self, contestant: str, measure: str) -> Figure:
        return spread(self.values[contestant][measure])

    def ratio(self, contestant: str, baseline: str, measure: str, *, more_is_better: bool = False) -> Figure:
        """How many times better ``contestant`` is than ``baseline``, from the ratio of each round.

        A measure of 0 where more is better counts as the least that can be told from it.
        """
        own, base = (self.values[name][measure] for name in (contestant, baseline))
        if more_is_better:
            own, base = base, own
        return spread([there / (here or 1e-9) for here, there in zip(own, base, strict=True)])


def scaled(figure: Figure, factor: float) -> Figure:
    """The figure in another unit."""
    return Figure(figure.median * factor, figure.low * factor, figure.high * factor)


def spread(values: Sequence[float]) -> Figure:
    """The quartiles of at least one value."""
    if len(values) == 1:
        return Figure(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(median, low, high)


def measure(
    contestants: Sequence[Contestant],
    count: int,
    rounds: int,
    *,
    warm_count: int = WARM_COUNT,
    warm_rounds: int = WARM_ROUNDS,
    budget_s: float | None = None,
    rng: random.Random | None = None,
    clock: Callable[[], int] = time.thread_time_ns,
    now: Callable[[], float] = time.monotonic,
    progress: Callable[[float], None] = lambda _share: None,
) -> Samples:
    """Let every contestant move ``count`` datagrams in each of ``rounds`` rounds.

    The order is shuffled anew for every round, and the garbage collector is off.

    Args:
        contestants: With names that differ.
        count: Datagrams that are timed, per contestant and round.
        rounds: The most rounds to record, at least 1.
        warm_count: Datagrams that are moved right before, untimed.
        warm_rounds: Rounds at the beginning that are not recorded.
        budget_s: Stop behind the first recorded round that ends later than this.
        rng: Shuffles; give a seeded one to repeat an order.
        clock: Nanoseconds of what is measured: CPU time of this thread.
        now: Seconds, for the budget.
        progress: Called behind every round with the share that is done, 0 to 1.

    Raises:
        OSError: A contestant moved another number of datagrams than it was given (EIO),
            or could not move them.
    """
    order = list(contestants)
    samples = Samples({contestant.name: [] for contestant in order})
    if rounds < 1 or count < 1:
        raise ValueError("at least one round of one datagram")
    if len(samples.ns) != len(order):
        raise ValueError("contestants need names that differ")
    shuffle = (rng or random.Random()).shuffle
    started = now()
    with collector_off():
        for number in range(-warm_rounds, rounds):
            shuffle(order)
            for contestant in order:
                ns = run_once(contestant, count, warm_count, clock)
                if number >= 0:
                    samples.ns[contestant.name].append(ns)
            spent = 0.0 if budget_s is None else (now() - started) / max(budget_s, 1e-9)
            progress(min(1.0, max(spent, (number + 1) / rounds)))
            if number >= 0 and spent >= 1:
                break
    return samples


def run_once(contestant: Contestant, count: int, warm_count: int, clock: Callable[[], int]) -> float:
    """One turn of one contestant: nanoseconds per timed datagram."""
    total = warm_count + count
    run = contestant.run
    contestant.prepare(total)
    moved = run(warm_count) if warm_count else 0
    begin = clock()
    moved += run(count)
    end = clock()
    contestant.settle(total)
    if moved != total:
        raise OSError(errno.EIO, f"{contestant.name} moved {moved} datagrams instead of {total}")
    return (end - begin) / count


def take_turns(
    turns: Mapping[str, Callable[[], Mapping[str, float]]],
    budget_s: float,
    *,
    rounds: int | None = None,
    warm_rounds: int = 0,
    rng: random.Random | None = None,
    now: Callable[[], float] = time.monotonic,
    progress: Callable[[float], None] = lambda _share: None,
) -> Rounds:
    """Let every contestant take a turn in each round, in an order shuffled anew; each turn tells its measures.

    Ends behind the round after which another would end later than the budget, or behind exactly ``rounds``.
    At least one is recorded.
    """
    order = list(turns)
    found = Rounds()
    shuffle = (rng or random.Random()).shuffle
    started, number = now(), -warm_rounds
    while True:
        shuffle(order)
        for place, name in enumerate(order, 1):
            measures = turns[name]()
            if number >= 0:
                found.add(name, measures)
            done = (number + place / len(order)) / rounds if rounds else (now() - started) / max(budget_s, 1e-9)
            progress(min(1.0, max(0.0, done)))
        number += 1
        elapsed = now() - started
        each = elapsed / (number + warm_rounds)
        if number >= 1 and (number >= rounds if rounds else elapsed + each > budget_s):
            break
    found.values = {name: found.values[name] for name in turns}
    return found


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from running in the middle of a measurement."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
