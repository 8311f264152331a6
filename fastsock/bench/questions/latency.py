"""How long does an answer take, and the slowest of many?

Round trips between processes are measured by echo.py in processes of their own; here is who takes a turn when, and what
the times come to. May import ends, openloop, histogram, paired, native and the shapes.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastsock.bench import echo, native
from fastsock.bench.ends import Ends, connected_pair, served, two_cpus
from fastsock.bench.histogram import Histogram
from fastsock.bench.openloop import latencies
from fastsock.bench.paired import Rounds, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.results import Answer, Column, Figure, Line, Plot, Row, Table

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}
CURVE = (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99, 99.995, 99.999)
BEYOND = 10
"""Samples that must lie above a percentile for it to be told."""
BASELINE = "socket.recv"
TIMEOUT_NS = 200_000_000
"""An answer that takes longer counts as missing."""
RATE_SHARES = (0.25, 0.75)
"""Rates of the open loop, of what the slowest contestant can do."""
LEAST_RATE = 100.0
WINDOW = 16
"""Requests that are unanswered at any time while that is found out."""
LEAST_CPU = 0.95
"""Of the client that sends at a rate: with less of it a turn is taken again."""
TAKES = 3
SHARES_OF_TWO = {"thread": 0.1, "one": 0.15, "two": 0.25, "capacity": 0.05, "rates": 0.45}
"""Of the time, with two CPUs."""
SHARES_OF_ONE = {"thread": 0.3, "one": 0.7}
WARMING = {"warm_ns": 2_000_000, "warm": 64, "quiet_ns": TIMEOUT_NS // 10}
"""What comes before that is not counted: at least so long, and so many answers."""
LEAST_ANSWERS = 500
"""Of which it is told what a contestant can do, where they come in reasonable time."""
BARS_PER_OCTAVE = 8
AIM_ROUNDS = 10
"""Turns are as long as leaves room for so many rounds, within TURN_S."""
TURN_S = (0.004, 0.1)
CAPACITY_S = 0.02
OVERHEAD_S = 0.008
"""Of a turn."""
METHOD = (
    "UDP over loopback, {size} bytes each way. Contestants take turns in an order shuffled anew in every round; each "
    "end is a process that is pinned to a CPU, with the collector off. Round trips: one request at a time, both ends "
    "wait in the same way. At a fixed rate: requests are due at fixed times whatever the answers do, and latency "
    "counts from when a request was due, so that a stall is felt by every request that it delays (no coordinated "
    "omission); the client looks for answers without sleeping, the same one for all. An answer that does not come "
    "within {timeout:.0f} ms is missing, and counts as that at least. Percentiles are over all rounds, within 1 %, "
    "and told where {beyond} samples lie above. × is {baseline}'s p50 / the contestant's, of each round; at a fixed "
    "rate it would say more of what else runs than of the contestants, and is left out."
)


Measures = dict[str, float]


@dataclass(slots=True)
class Record:
    """What a contestant came to in one phase."""

    histogram: Histogram = field(default_factory=Histogram)
    missing: int = 0
    late: Histogram = field(default_factory=Histogram)
    """How much later than due requests were sent."""
    cpu: list[float] = field(default_factory=list)
    """The share of its CPU that the client had, which never sleeps."""

    def add(self, ns: list[int], missing: int) -> Measures:
        """One turn; its median, for paired ratios."""
        self.histogram.update(ns)
        self.missing += missing
        return {"p50": statistics.median(ns)}


Records = dict[str, Record]


def kind_of(way: str) -> str:
    """Whose it is."""
    if way in echo.NATIVE:
        return "c"
    if way.startswith("socket."):
        return "socket"
    return way if way in ("asyncio", "uvloop") else "fastsock"


def available(library: str | None) -> list[str]:
    """The contestants that can take part here; those in C where echo.c was built."""
    loops = [way for way, (kind, _) in echo.LOOPS.items() if importlib.util.find_spec(kind)]
    return [*echo.THREADED, *loops, *(echo.NATIVE if library else ())]


@dataclass(slots=True)
class Bench:
    """The processes, and the turns that contestants take in them."""

    ends: Ends
    library: str | None
    """echo.c, where it was built."""
    size: int
    until_s: float
    """When it is too late to take a turn again."""

    def spec(self, turn_s: float) -> dict[str, Any]:
        return {
            "library": self.library,
            "size": self.size,
            "duration_ns": int(turn_s * 1e9),
            "timeout_s": TIMEOUT_NS / 1e9,
            "most": echo.MAX_SAMPLES,
            **WARMING,
        }

    def one_thread(self, cpu: int, turn_s: float, way: str, record: Record) -> Measures:
        client = self.ends.client(way)
        with connected_pair() as (near, far):
            found = client.call([near, far], turn_s, do="both", way=way, cpu=cpu, **self.spec(turn_s))
        return record.add(client.samples[: found["count"]].tolist(), found["missing"])

    def round_trips(self, cpus: tuple[int, int], turn_s: float, way: str, record: Record) -> Measures:
        client = self.ends.client(way)
        with served(self.ends.server(way), way, cpus[1], library=self.library) as near:
            found = client.call([near], turn_s, do="trips", way=way, cpu=cpus[0], **self.spec(turn_s))
        return record.add(client.samples[: found["count"]].tolist(), found["missing"])

    def capacity(self, cpus: tuple[int, int], turn_s: float, way: str) -> Measures:
        """Answers a second."""
        with served(self.ends.server(way), way, cpus[1], library=self.library) as near:
            spec = {**self.spec(turn_s), "window": WINDOW, "least": LEAST_ANSWERS}
            found = self.ends.generator.call([near], turn_s, do="capacity", cpu=cpus[0], **spec)
        return {"per_s": found["answers"] / found["ns"] * 1e9}

    def at_rate(self, cpus: tuple[int, int], rate: float, turn_s: float, way: str, record: Record) -> Measures:
        count = min(echo.MAX_SAMPLES, max(2, round(rate * turn_s)))
        interval_ns = round(1e9 / rate)
        samples = self.ends.generator.samples
        best = 0.0
        for _ in range(TAKES):
            with served(self.ends.server(way), way, cpus[1], library=self.library) as near:
                found = self.ends.generator.call(
                    [near],
                    turn_s,
                    do="load",
                    cpu=cpus[0],
                    count=count,
                    interval_ns=interval_ns,
                    timeout_ns=TIMEOUT_NS,
                    size=self.size,
                    **WARMING,
                )
            first_ns, end_ns, cpu = found["first_ns"], found["end_ns"], found["cpu"]
            if cpu > best:
                best = cpu
                answered = samples[echo.MAX_SAMPLES : echo.MAX_SAMPLES + count].tolist()
                ns, missing = latencies(answered, first_ns, interval_ns, end_ns, TIMEOUT_NS)
                due = range(first_ns, first_ns + count * interval_ns, interval_ns)
                late = [sent - at for sent, at in zip(samples[:count], due, strict=True)]
            if cpu >= LEAST_CPU or time.monotonic() > self.until_s:
                break
        record.late.update(late)
        record.cpu.append(best)
        return record.add(ns, missing)


class Runner:
    """Gives each phase its share of the time, and contestants their turns in it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.done = 0.0

    def turn_s(self, share: float, turns: int) -> float:
        """How long a turn is, where `share` of the budget is for so many a round."""
        return min(max(self.plan.budget_s * share / AIM_ROUNDS / turns - OVERHEAD_S, TURN_S[0]), TURN_S[1])

    def run(self, what: str, share: float, turns: Mapping[str, Callable[[], Mapping[str, float]]]) -> Rounds:
        """Each of `turns` once a round, for `share` of the budget."""
        plan, done = self.plan, self.done

        def progress(part: float) -> None:
            plan.progress(what, done + share * part)

        found = take_turns(turns, plan.budget_s * share, rounds=plan.rounds, rng=self.rng, progress=progress)
        self.done += share
        return found


def run(plan: Plan) -> Answer:
    """Answer the question. Affinity is changed in the processes it starts, not here."""
    began = time.monotonic()
    size = min(max(plan.sizes[0], echo.HEADER.size), echo.BUFSIZE)
    phases = Phases(plan, two_cpus())
    with ExitStack() as stack:
        library = native.built("echo.c")
        path = None if isinstance(library, str) else library._name
        ways = available(path)
        plan.progress("starting processes", 0.0)
        ends = stack.enter_context(Ends(ways))
        phases.measure(Bench(ends, path, size, began + plan.budget_s), ways)
    method = METHOD.format(size=size, timeout=TIMEOUT_NS / 1e6, beyond=BEYOND, baseline=BASELINE)
    return Answer(
        QUESTION.name, QUESTION.title, method, phases.tables, phases.plots, elapsed_s=time.monotonic() - began
    )


class Phases:
    """What is measured one after the other, and the tables and plots of it."""

    def __init__(self, plan: Plan, cpus: list[int]) -> None:
        self.cpus = cpus
        self.shares = SHARES_OF_TWO if len(cpus) > 1 else SHARES_OF_ONE
        self.runner = Runner(plan)
        self.tables: list[Table] = []
        self.plots: list[Plot] = []

    def measure(self, bench: Bench, ways: list[str]) -> None:
        single = [way for way in ways if way not in echo.UNTHREADED]
        sleeping = [way for way in ways if way not in echo.SPINNING]
        first = self.cpus[0]
        self.closed(
            "thread",
            "Round trip, both ends in one thread",
            single,
            partial(bench.one_thread, first),
            "Nothing ever waits: what the calls take, and an event loop's passes. The steadiest of these tables.",
        )
        note = "Each end sleeps until the other has sent. What spins would keep the other from running."
        if len(self.cpus) < 2:
            note += " This process may use one CPU: nothing was measured between two, nor at a fixed rate."
        self.closed(
            "one", "Round trip, two processes on one CPU", sleeping, partial(bench.round_trips, (first, first)), note
        )
        if len(self.cpus) < 2:
            return
        pair = (first, self.cpus[1])
        self.closed(
            "two",
            "Round trip, two processes on two CPUs",
            ways,
            partial(bench.round_trips, pair),
            "Mostly the wake-up of a CPU that sleeps: +/- 30 % from run to run. What spins keeps both CPUs busy. "
            "Receiver's native thread and the one that takes share the CPU of their end.",
        )
        self.open(bench, ways, pair)

    def closed(
        self, what: str, title: str, ways: list[str], turn: Callable[[float, str, Record], Measures], note: str
    ) -> None:
        """One request at a time."""
        turn_s = self.runner.turn_s(self.shares[what], len(ways))
        records = {way: Record() for way in ways}
        turns = {way: partial(turn, turn_s, way, record) for way, record in records.items()}
        rounds = self.runner.run(title, self.shares[what], turns)
        self.show(title, records, {way: rounds.ratio(way, BASELINE, "p50") for way in ways}, note)

    def open(self, bench: Bench, ways: list[str], cpus: tuple[int, int]) -> None:
        """At rates that are shares of what the slowest can do."""
        turn_s = max(CAPACITY_S, self.runner.turn_s(self.shares["capacity"], len(ways)))
        able = self.runner.run(
            "What the slowest can do",
            self.shares["capacity"],
            {way: partial(bench.capacity, cpus, turn_s, way) for way in ways},
        )
        # The best of its rounds: whatever else runs only takes from it.
        most, slowest = min((max(able.values[way]["per_s"]), way) for way in ways)
        rates = [round_down(most * share) for share in RATE_SHARES]
        records = [{way: Record() for way in ways} for _ in rates]
        turn_s = self.runner.turn_s(self.shares["rates"], len(ways) * len(rates))
        self.runner.run(
            "At a fixed rate",
            self.shares["rates"],
            {
                f"{way} {number}": partial(bench.at_rate, cpus, rate, turn_s, way, records[number][way])
                for number, rate in enumerate(rates)
                for way in ways
            },
        )
        for number, (rate, share) in enumerate(zip(rates, RATE_SHARES, strict=True)):
            note = (
                f"{share:.0%} of what the slowest, {slowest}, answers with {WINDOW} requests always under way "
                f"({most:,.0f}/s). Two CPUs: the client spins on one. `sent late` is by how much it was behind itself, "
                "in all but 1 % of the requests; latency includes it. Where the client had less than "
                f"{LEAST_CPU:.0%} of its CPU, a turn is taken again, up to {TAKES} times, and the best counts; well "
                "below that something else runs on this machine, and what is slow is that."
            )
            self.show(f"Answer at {rate:,.0f} requests/s", records[number], {}, note)

    def show(self, title: str, records: Records, ratios: Mapping[str, Figure], note: str) -> None:
        self.tables.append(table_of(title, records, ratios, note))
        self.plots.extend((curves(title, records), bars(title, records)))


def round_down(rate: float) -> float:
    """To two digits, and LEAST_RATE at least."""
    unit = 10 ** max(0, len(str(int(rate))) - 2)
    return max(LEAST_RATE, float(int(rate) // unit * unit))


# --- tables and plots ---------------------------------------------------------------------------------------


def told(histogram: Histogram, percent: float) -> float | None:
    """A percentile in microseconds, where there are samples enough."""
    above = round(histogram.count * (100 - percent) / 100, 6)
    return us(histogram.percentile(percent)) if above >= BEYOND else None


def table_of(title: str, records: Records, ratios: Mapping[str, Figure], note: str) -> Table:
    late = any(record.late.count for record in records.values())
    columns = [
        Column("p50", "p50", "us"),
        *([Column("ratio", "×", "x", 2)] if ratios else []),
        *(Column(name, name, "us") for name in list(PERCENTILES)[1:]),
        Column("max", "max", "us", 0),
        Column("missing", "missing", "of", 0),
        Column("samples", "requests", "each", 0),
        *([Column("late", "sent late", "us"), Column("cpu", "client's CPU", "%", 0)] if late else []),
    ]
    rows = []
    for way, record in records.items():
        histogram = record.histogram
        cells: dict[str, Figure | float | int | str | None] = {
            **{name: told(histogram, percent) for name, percent in PERCENTILES.items()},
            "max": us(histogram.maximum),
            "samples": histogram.count,
            "missing": record.missing,
        }
        if ratios:
            cells["ratio"] = ratios[way]
        if late:
            cells["late"] = us(record.late.percentile(99))
            cells["cpu"] = statistics.mean(record.cpu) * 100
        rows.append(Row(way, cells, kind_of(way), BASELINE if ratios and way != BASELINE else None))
    return Table(title, columns, rows, note)


def us(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e3


def curves(title: str, records: Records) -> Plot:
    """Latency by percentile."""
    lines = []
    for way, record in records.items():
        points = [(float(percent), told(record.histogram, percent)) for percent in CURVE]
        lines.append(Line(way, [(percent, us) for percent, us in points if us is not None], kind_of(way)))
    note = f"A line ends where fewer than {BEYOND} samples lie above."
    return Plot(f"{title}: percentiles", "percentile", "us", lines, "percentile", "log", note)


def bars(title: str, records: Records) -> Plot:
    """A histogram: the share of the requests that took about so long."""
    lines = []
    for way, record in records.items():
        count = record.histogram.count
        points = [
            (low / 1e3, found / count * 100) for low, found in record.histogram.buckets(BARS_PER_OCTAVE) if low > 0
        ]
        lines.append(Line(way, points, kind_of(way)))
    note = f"{BARS_PER_OCTAVE} buckets to a power of two; x is the lower end of a bucket, and empty ones are left out."
    return Plot(f"{title}: histogram", "us", "% of requests", lines, "log", "linear", note)


QUESTION = Question("latency", "How long does an answer take, and the slowest of many?", run, weight=2.0)
