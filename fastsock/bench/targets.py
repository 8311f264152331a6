"""Holds fastsock against its targets: paired ratios with C and with the standard library.

Each row is a median of the rounds of one run, and the best of several runs counts. May import everything of
fastsock.bench.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastsock.bench import native
from fastsock.bench.contestants import (
    RECEIVERS,
    Link,
    Links,
    Race,
    Run,
    Side,
    has_gro,
    receive_batch,
    receive_many,
    receivers,
)
from fastsock.bench.paired import Samples, measure, scaled, spread
from fastsock.bench.question import Plan
from fastsock.bench.questions import asyncio, busy, epoll, gro, receive, send
from fastsock.bench.races import kind_of
from fastsock.bench.results import Answer, Column, Figure, Row, Table

ROUNDS, QUICK_ROUNDS = 100, 30
VLENS = (16, 64, 128, 256, 1024)
READY = (1, 100, 1000)


@dataclass(frozen=True, slots=True)
class Target:
    """`contestant` is to be at least `least` times as fast as `baseline`; None: for comparison only."""

    group: str
    """A race and its size: "receive 64"."""
    contestant: str
    baseline: str
    least: float | None = None

    @property
    def what(self) -> str:
        return f"{self.group}: {self.contestant} / {self.baseline}"


@dataclass(frozen=True, slots=True)
class Extra:
    """What ``contestant`` takes on top of ``baseline``: nanoseconds per datagram, ``most`` at the most."""

    group: str
    contestant: str
    baseline: str
    most: float | None = None

    @property
    def what(self) -> str:
        return f"{self.group}: {self.contestant} - {self.baseline}"


def within(percent: float) -> float:
    """The ratio of what may cost so many percent more than its baseline."""
    return 1 / (1 + percent / 100)


STAMPED, C_STAMPED = "recv_batch, stamped", "C recvmmsg, stamped"

TARGETS = [
    Target("receive 64", "recv_batch", "C recvmmsg", within(5)),
    Target("receive 64", "recv_batch", "C recvmmsg, columns"),
    Target("receive 64", "recv_many(64)", "C recvmmsg", within(10)),
    Target("receive 64", "recv_many(64)", "socket.recv", 1.8),
    Target("receive 64", "recvfrom_many(64)", "socket.recvfrom", 2.2),
    Target("receive 64", "recvfrom_many(64)", "C recvmmsg, addresses"),
    Target("receive 64", "Socket.recv", "socket.recv", 1.15),
    Target("receive 64", "Socket.recv", "C recv"),
    Target("receive 64", "Socket.recvfrom", "socket.recvfrom", 1.15),
    Target("receive 64", "Socket.recv_into", "socket.recv_into", 1.15),
    Target("receive 64", "Socket.recvmsg", "socket.recvmsg"),
    Target("receive 64", "Socket.recv, timeout", "socket.recv, timeout", 2.5),
    Target("receive 1400", "recv_batch", "C recvmmsg", within(5)),
    Target("receive 1400", "recv_many(64)", "socket.recv", 1.5),
    Target("receive 1400", "recv_many(64)", "C recvmmsg"),
    Target("receive 1400", "recvfrom_many(64)", "socket.recvfrom"),
    Target("receive 1400", "Socket.recv", "socket.recv"),
    # The heap trimmed and refaulted at every batch would show here as 0.6: see docs/design/malloc.md.
    *(Target("vlen 1400", f"recv_many({vlen})", "socket.recv", 1.0) for vlen in VLENS),
    # Joined datagrams. The plain calls drain the same datagrams, from the same sender.
    Target("receive-gro 64", "recv_many, GRO", "socket.recv", 25.0),
    Target("receive-gro 64", "recvfrom_many, GRO", "socket.recvfrom"),
    Target("receive-gro 64", "recv_batch, GRO", "socket.recv"),
    Target("receive-gro 64", "recv_many, GRO", "C GRO, columns"),
    Target("receive-gro 64", "recv_batch, GRO", "C GRO, columns"),
    Target("receive-gro 64", "recv_batch, GRO", "C GRO"),
    Target("receive-gro 1400", "recv_many, GRO", "socket.recv"),
    Target("receive-gro 1400", "recv_many, GRO", "C GRO, columns"),
    Target("receive-gro 1400", "recv_batch, GRO", "C GRO, columns"),
    Target("metadata 64", STAMPED, C_STAMPED),
    # One system call for 64 datagrams on both sides: GSO is off.
    Target("send 64", "send_many, gso off", "C sendmmsg", within(3)),
    Target("send 64", "send_batch, gso off", "C sendmmsg"),
    Target("send 64", "send_many, gso off", "socket.sendto"),
    Target("send 64", "sendto_many, gso off", "socket.sendto"),
    Target("send 64", "Socket.send", "socket.send", 1.15),
    Target("send 64", "Socket.sendto", "socket.sendto", 1.15),
    Target("send 64", "C sendmmsg", "socket.sendto"),
    # As they are by default: GSO is on, into a receiver for which the kernel splits again.
    Target("send 64", "send_many", "socket.sendto", 1.5),
    Target("send 64", "send_many", "C GSO, gather"),
    Target("send 64", "send_batch", "C GSO, gather"),
    Target("send 64", "sendto_many", "socket.sendto"),
    Target("send 64", "send_segments", "socket.sendto", 8.0),
    Target("send 64", "send_segments", "C GSO", within(5)),
    Target("send 64", "C GSO", "socket.sendto"),
    # And into one that takes them joined: all that is left is the sender's half.
    Target("send-gro 64", "send_segments", "socket.sendto"),
    Target("send-gro 64", "send_segments", "C GSO"),
    Target("send-gro 64", "send_many", "socket.sendto"),
    Target("send-gro 64", "send_many", "C GSO, gather"),
    Target("send-gro 64", "C GSO", "socket.sendto"),
    Target("send 1400", "send_segments", "C GSO", within(5)),
    Target("send 1400", "send_many", "C GSO, gather"),
    # Per event, of so many ready sockets.
    *(Target(f"epoll {ready}", "Epoll.poll", "select.epoll", 1.05) for ready in READY),
    *(Target(f"epoll {ready}", "Epoll.wait_into", "C epoll_wait") for ready in READY),
    *(Target(f"epoll {ready}", "EpollSelector", "selectors.EpollSelector", 2.0) for ready in READY),
]

EXTRAS = [
    Extra("metadata 64", STAMPED, "recv_batch", 150.0),
    # What the kernel itself takes for it.
    Extra("metadata 64", C_STAMPED, "C recvmmsg, columns"),
]


def vlen_receiver(vlen: int) -> Callable[[Link], Run]:
    return lambda link: receive_many(link.receiver.recv_many, vlen)


def races() -> dict[str, Race]:
    """Those of the questions, and a few of which only the targets ask."""
    columns = native.where_built({"C recvmmsg, columns": native.RECEIVERS["C recvmmsg, columns"]})
    stamped = native.where_built({C_STAMPED: native.receiver("c_recvmmsg_timestamps")})
    many = {f"recv_many({vlen})": vlen_receiver(vlen) for vlen in VLENS}
    return {
        **receive.races(),
        **send.races(),
        **(gro.races() if has_gro() else {}),
        **epoll.races(),
        "metadata": Links(
            "receive, metadata",
            receivers,
            [
                Side({"recv_batch": receive_batch, **columns}),
                Side({STAMPED: lambda link: receive_batch(link, addresses=True), **stamped}, {"timestamps": True}),
            ],
        ),
        "vlen": Links(
            "receive, by vlen",
            receivers,
            [Side({"socket.recv": RECEIVERS["socket.recv"], **many})],
            count=max(VLENS),
        ),
    }


def measure_group(
    the_races: Mapping[str, Race],
    group: str,
    rounds: int,
    rng: random.Random,
    *,
    budget_s: float | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Samples | None:
    """All contestants of one race at one size, taking turns; None where this machine does not have it."""
    name, size = group.split()
    if name not in the_races:
        return None
    race = the_races[name]
    with race.open(int(size)) as (contestants, count):
        return measure(
            contestants, count, rounds, warm_count=race.warm_count, rng=rng, budget_s=budget_s, progress=progress
        )


def come_to(row: Target | Extra, samples: Samples | None) -> Figure | None:
    """The ratio or the difference, from that of each round; None where somebody did not take part."""
    if samples is None or not {row.contestant, row.baseline} <= samples.ns.keys():
        return None
    if isinstance(row, Target):
        return samples.ratio(row.contestant, row.baseline)
    pairs = zip(samples.ns[row.contestant], samples.ns[row.baseline], strict=True)
    return spread([own - base for own, base in pairs])


def is_short(row: Target | Extra, figure: Figure | None) -> bool:
    if figure is None:
        return False
    if isinstance(row, Target):
        return row.least is not None and figure.median < row.least
    return row.most is not None and figure.median > row.most


def verdict(row: Target | Extra, figure: Figure | None) -> str:
    if figure is None:
        return "not here"
    if (row.least if isinstance(row, Target) else row.most) is None:
        return ""
    return "short" if is_short(row, figure) else "pass"


def better(row: Target | Extra, one: Figure | None, other: Figure | None) -> Figure | None:
    if one is None or other is None:
        return one or other
    pick = max if isinstance(row, Target) else min
    return pick(one, other, key=lambda figure: figure.median)


def run(plan: Plan, *, best_of: int = 3, quick: bool = False) -> tuple[Answer, list[str]]:
    """Every target, and those that are short."""
    rng = random.Random(plan.seed)
    rounds = plan.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    the_races = races()
    rows: Sequence[Target | Extra] = [*TARGETS, *EXTRAS]
    groups = list(dict.fromkeys(row.group for row in rows))
    best: dict[str, Figure | None] = {}
    samples: dict[str, Samples | None] = {}
    for number in range(best_of):
        for place, group in enumerate(groups):

            def progress(share: float, group: str = group, done: int = number * len(groups) + place) -> None:
                plan.progress(group, (done + share) / (best_of * len(groups)))

            samples[group] = measure_group(the_races, group, rounds, rng, progress=progress)
        for row in rows:
            best[row.what] = better(row, best.get(row.what), come_to(row, samples[row.group]))
    short = [row.what for row in rows if is_short(row, best[row.what])]
    live = measure_live(plan, best_of=best_of, quick=quick, rounds=1 if plan.rounds else None)
    short += [row.name for row in live if row.cells["verdict"] == "short"]
    method = (
        f"Medians of paired ratios in one run of {rounds} rounds, the best of {best_of} runs; ns per datagram of the "
        "last run. Rows without a target are for comparison."
    )
    if why := native.missing():
        method += f" Without C: {why}."
    tables = [
        Table(
            "targets",
            [
                Column("ratio", "ratio", "x", 2),
                Column("verdict", ""),
                Column("target", "target", "x", 2),
                Column("own_ns", "own", "ns", 0),
                Column("base_ns", "its", "ns", 0),
            ],
            [make_row(row, best[row.what], samples[row.group]) for row in TARGETS],
        ),
        Table(
            "live",
            [
                Column("ratio", "ratio", "x", 2),
                Column("lost", "lost", "%", 2),
                Column("verdict", ""),
                Column("target", "target", "x", 2),
            ],
            live,
            "datagram_received under a flood, by received datagrams; a Receiver with the default buffer at 200,000/s.",
        ),
        Table(
            "what metadata costs",
            [Column("extra", "on top", "ns", 0), Column("most", "at most", "ns", 0), Column("verdict", "")],
            [make_row(extra, best[extra.what], samples[extra.group]) for extra in EXTRAS],
        ),
    ]
    return Answer("targets", "Is fastsock as fast as it should be?", method, tables=tables), short


LIVE_S, QUICK_LIVE_S = 12.0, 4.0
"""Of each of the live parts, in each run."""


def measure_live(plan: Plan, *, best_of: int, quick: bool, rounds: int | None) -> list[Row]:
    """What only a live stream shows: asyncio under a flood, and a Receiver beside a busy Python thread."""
    budget_s = QUICK_LIVE_S if quick else LIVE_S
    receivers = [one for one in asyncio.list_receivers(False) if not one.batches]
    live = [
        (f"flood: {own} / {base}", own, base, least)
        for own, base, least in (
            ("fastsock.aio", "asyncio", 20.0),
            ("fastsock.aio", "uvloop", 2.2),
            ("fastsock.aio on uvloop", "uvloop", 2.2),
        )
    ]
    ratios: dict[str, Figure] = {}
    lost: Figure | None = None
    ways = busy.ways()
    way = "Receiver(priority=1)" if "Receiver(priority=1)" in ways else "Receiver"
    for number in range(best_of):
        plan.progress(f"flood, run {number + 1}", number / best_of)
        found = asyncio.measure_receivers(
            receivers,
            budget_s,
            seconds=0.3,
            tries=1 if quick else 2,
            rounds=rounds,
            rng=random.Random(plan.seed + number),
            progress=lambda _share: None,
        )
        for what, own, base, _ in live:
            if own in found and base in found:
                figure = found.ratio(own, base, "per_s", more_is_better=True)
                ratios[what] = max(figure, ratios.get(what, figure), key=lambda one: one.median)
        beside = busy.measure(replace(plan, budget_s=budget_s / 2, rounds=rounds), [way])
        figure = scaled(beside.figure(f"{way}, default", "lost"), 100)
        lost = figure if lost is None or figure.median < lost.median else lost
    rows = []
    for what, own, _, least in live:
        ratio = ratios.get(what)
        said = "not here" if ratio is None else "pass" if ratio.median >= least else "short"
        rows.append(Row(what, {"ratio": ratio, "target": least, "verdict": said}, kind_of(own)))
    none_lost = lost is not None and lost.median == 0
    cells: dict[str, Figure | float | int | str | None] = {"lost": lost, "verdict": "pass" if none_lost else "short"}
    rows.append(Row(f"{way} beside a busy thread: lost", cells))
    return rows


def make_row(row: Target | Extra, figure: Figure | None, samples: Samples | None) -> Row:
    cells: dict[str, Figure | float | int | str | None] = {"verdict": verdict(row, figure)}
    if isinstance(row, Target):
        there = figure is not None and samples is not None
        cells |= {
            "ratio": figure,
            "target": row.least,
            "own_ns": samples.cost(row.contestant).median if there and samples else None,
            "base_ns": samples.cost(row.baseline).median if there and samples else None,
        }
    else:
        cells |= {"extra": figure, "most": row.most}
    return Row(row.what, cells, kind_of(row.contestant))
