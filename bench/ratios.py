"""Holds fastsock against its targets: paired ratios with C and with the standard library.

    python bench/ratios.py [--quick] [--rounds N] [--best-of N] [--json] [--check]

Exits with 0 whatever comes out, or with 1 where a target is missed and --check is given.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import native
import readiness

from fastsock.cli.arguments import parse_count
from fastsock.cli.bench import environment
from fastsock.cli.contestants import RECEIVERS, Kind, Link, Run, Side, has_gro, receive_many, receivers
from fastsock.cli.paired import Samples, Spread, measure, spread

ROUNDS = 300
QUICK_ROUNDS = 60
VLENS = (16, 64, 128, 256, 1024)
READY = (1, 100, 1000)


@dataclass(frozen=True, slots=True)
class Target:
    """`contestant` is to be at least `least` times as fast as `baseline`; None: for comparison only."""

    group: str
    contestant: str
    baseline: str
    least: float | None

    @property
    def what(self) -> str:
        return f"{self.group}: {self.contestant} / {self.baseline}"


def within(percent: float) -> float:
    """The ratio of what may cost so many percent more than its baseline."""
    return 1 / (1 + percent / 100)


TARGETS = [
    Target("receive 64 B", "recv_batch", "C recvmmsg", within(5)),
    Target("receive 64 B", "recv_batch", "C recvmmsg, columns", None),
    Target("receive 64 B", "recv_many(64)", "C recvmmsg", within(10)),
    Target("receive 64 B", "recv_many(64)", "socket.recv", 1.8),
    Target("receive 64 B", "recvfrom_many(64)", "socket.recvfrom", 2.2),
    Target("receive 64 B", "recvfrom_many(64)", "C recvmmsg, addresses", None),
    Target("receive 64 B", "Socket.recv", "socket.recv", 1.15),
    Target("receive 64 B", "Socket.recv", "C recv", None),
    Target("receive 64 B", "Socket.recvfrom", "socket.recvfrom", 1.15),
    Target("receive 64 B", "Socket.recv_into", "socket.recv_into", 1.15),
    Target("receive 1400 B", "recv_batch", "C recvmmsg", within(5)),
    Target("receive 1400 B", "recv_many(64)", "socket.recv", 1.5),
    Target("receive 1400 B", "recv_many(64)", "C recvmmsg", None),
    Target("receive 1400 B", "recvfrom_many(64)", "socket.recvfrom", None),
    Target("receive 1400 B", "Socket.recv", "socket.recv", None),
    # The heap trimmed and refaulted at every batch would show here as 0.6: see docs/design/malloc.md.
    *(Target("vlen 1400 B", f"recv_many({vlen})", "socket.recv", 1.0) for vlen in VLENS),
    Target("timeout 64 B", "Socket.recv", "socket.recv", 2.5),
    # Joined datagrams. The plain calls drain the same datagrams, from the same sender.
    Target("receive-gro 64 B", "recv_many, GRO", "socket.recv", 25.0),
    Target("receive-gro 64 B", "recvfrom_many, GRO", "socket.recvfrom", None),
    Target("receive-gro 64 B", "recv_batch, GRO", "socket.recv", None),
    Target("receive-gro 64 B", "recv_many, GRO", "C GRO, columns", None),
    Target("receive-gro 64 B", "recv_batch, GRO", "C GRO, columns", None),
    Target("receive-gro 64 B", "recv_batch, GRO", "C GRO", None),
    Target("receive-gro 1400 B", "recv_many, GRO", "socket.recv", None),
    Target("receive-gro 1400 B", "recv_many, GRO", "C GRO, columns", None),
    Target("receive-gro 1400 B", "recv_batch, GRO", "C GRO, columns", None),
    Target("metadata 64 B", native.STAMPED, native.C_STAMPED, None),
    # One system call for 64 datagrams on both sides: GSO is off.
    Target("send 64 B", "send_many, gso off", "C sendmmsg", within(3)),
    Target("send 64 B", "send_batch, gso off", "C sendmmsg", None),
    Target("send 64 B", "send_many, gso off", "socket.sendto", None),
    Target("send 64 B", "sendto_many, gso off", "socket.sendto", None),
    Target("send 64 B", "Socket.send", "socket.send", 1.15),
    Target("send 64 B", "Socket.sendto", "socket.sendto", 1.15),
    Target("send 64 B", "C sendmmsg", "socket.sendto", None),
    # As they are by default: GSO is on, into a receiver for which the kernel splits again.
    Target("send 64 B", "send_many", "socket.sendto", 1.5),
    Target("send 64 B", "send_many", "C GSO, gather", None),
    Target("send 64 B", "send_batch", "C GSO, gather", None),
    Target("send 64 B", "sendto_many", "socket.sendto", None),
    Target("send 64 B", "send_segments", "socket.sendto", 8.0),
    Target("send 64 B", "send_segments", "C GSO", within(5)),
    Target("send 64 B", "C GSO", "socket.sendto", None),
    # And into one that takes them joined: all that is left is the sender's half.
    Target("send-gro 64 B", "send_segments", "socket.sendto", None),
    Target("send-gro 64 B", "send_segments", "C GSO", None),
    Target("send-gro 64 B", "send_many", "socket.sendto", None),
    Target("send-gro 64 B", "send_many", "C GSO, gather", None),
    Target("send-gro 64 B", "C GSO", "socket.sendto", None),
    Target("send 1400 B", "send_segments", "C GSO", within(5)),
    Target("send 1400 B", "send_many", "C GSO, gather", None),
    # Per event, of so many ready sockets.
    *(Target(f"poll {ready} ready", "Epoll.poll", "select.epoll.poll", 1.05) for ready in READY),
    *(Target(f"poll {ready} ready", "Epoll.wait_into", "C epoll_wait", None) for ready in READY),
    *(Target(f"select {ready} ready", "EpollSelector", "selectors.EpollSelector", 2.0) for ready in READY),
]


@dataclass(frozen=True, slots=True)
class Extra:
    """What ``contestant`` takes on top of ``baseline``: nanoseconds per datagram, ``most`` at the most."""

    group: str
    contestant: str
    baseline: str
    most: float | None

    @property
    def what(self) -> str:
        return f"{self.group}: {self.contestant} - {self.baseline}"


EXTRAS = [
    Extra("metadata 64 B", native.STAMPED, "recv_batch", 150.0),
    # What the kernel itself takes for it.
    Extra("metadata 64 B", native.C_STAMPED, "C recvmmsg, columns", None),
]


def vlen_receiver(vlen: int) -> Callable[[Link], Run]:
    return lambda link: receive_many(link.receiver.recv_many, vlen)


KINDS: dict[str, Kind | readiness.Readiness] = {
    **native.ALL_KINDS,
    **readiness.KINDS,
    "vlen": Kind(
        "receive",
        receivers,
        [
            Side(
                {
                    "socket.recv": RECEIVERS["socket.recv"],
                    **{f"recv_many({vlen})": vlen_receiver(vlen) for vlen in VLENS},
                }
            )
        ],
        count=max(VLENS),
    ),
    "timeout": Kind(
        "receive",
        receivers,
        [Side({name: RECEIVERS[name] for name in ("socket.recv", "Socket.recv")}, {"timeout": 1.0})],
    ),
}


def measure_group(group: str, rounds: int, rng: random.Random) -> Samples:
    """All contestants of one kind on their links, taking turns."""
    name, size, _ = group.split()
    kind = KINDS[name]
    with kind.open(int(size)) as (contestants, count):
        return measure(contestants, count, rounds, warm_count=kind.warm_count, rng=rng)


def extra_cost(samples: Samples, extra: Extra) -> Spread:
    """From the difference of each round."""
    pairs = zip(samples.ns[extra.contestant], samples.ns[extra.baseline], strict=True)
    return spread([own - base for own, base in pairs])


@dataclass(frozen=True, slots=True)
class Report:
    """One whole run, or the best of several."""

    ratios: list[Spread]
    extras: list[Spread]
    costs: dict[str, dict[str, float]]


def measure_targets(rounds: int, rng: random.Random) -> Report:
    """One whole run: every target, and the median cost of every contestant."""
    names = [*(target.group for target in TARGETS), *(extra.group for extra in EXTRAS)]
    groups = {group: measure_group(group, rounds, rng) for group in dict.fromkeys(names)}
    return Report(
        [groups[target.group].ratio(target.contestant, target.baseline) for target in TARGETS],
        [extra_cost(groups[extra.group], extra) for extra in EXTRAS],
        {
            group: {name: round(samples.cost(name).median, 1) for name in samples.ns}
            for group, samples in groups.items()
        },
    )


def best_of(runs: list[Report]) -> Report:
    """The best of each row; the costs are of the last run."""
    return Report(
        [max(row, key=lambda ratio: ratio.median) for row in zip(*(run.ratios for run in runs), strict=True)],
        [min(row, key=lambda extra: extra.median) for row in zip(*(run.extras for run in runs), strict=True)],
        runs[-1].costs,
    )


def is_short(row: Target | Extra, measured: Spread) -> bool:
    if isinstance(row, Target):
        return row.least is not None and measured.median < row.least
    return row.most is not None and measured.median > row.most


def verdict(row: Target | Extra, measured: Spread) -> str:
    if (row.least if isinstance(row, Target) else row.most) is None:
        return ""
    return "short" if is_short(row, measured) else "ok"


def print_tables(report: Report) -> None:
    width = max(len(target.what) for target in TARGETS)
    print(f"{'':{width}}  ratio  [quartiles]      ns/datagram  target")
    for target, measured in zip(TARGETS, report.ratios, strict=True):
        cost = report.costs[target.group]
        least = "" if target.least is None else f"{target.least:.2f}"
        print(
            f"{target.what:{width}}  {measured.median:5.2f}  [{measured.low:5.2f}-{measured.high:5.2f}]"
            f"  {cost[target.contestant]:6.1f} /{cost[target.baseline]:6.1f}"
            f"  {least:>6} {verdict(target, measured)}".rstrip()
        )
    width = max(len(extra.what) for extra in EXTRAS)
    print(f"\n{'':{width}}     ns  [quartiles]  at most")
    for extra, measured in zip(EXTRAS, report.extras, strict=True):
        most = "" if extra.most is None else f"{extra.most:.0f}"
        print(
            f"{extra.what:{width}}  {measured.median:5.1f}  [{measured.low:.1f}-{measured.high:.1f}]"
            f"  {most:>4} {verdict(extra, measured)}".rstrip()
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--rounds", type=parse_count)
    parser.add_argument("--best-of", type=parse_count, default=1, metavar="N", help="the best of N runs, per target")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    rng = random.Random(seed)

    if not has_gro():
        raise SystemExit("this kernel has no UDP GRO, or FASTSOCK_GRO=0 is set")
    report = best_of([measure_targets(rounds, rng) for _ in range(args.best_of)])
    if args.json:
        rows = [
            {**asdict(target), "ratio": asdict(measured), "verdict": verdict(target, measured)}
            for target, measured in zip(TARGETS, report.ratios, strict=True)
        ]
        extras = [
            {**asdict(extra), "ns": asdict(measured), "verdict": verdict(extra, measured)}
            for extra, measured in zip(EXTRAS, report.extras, strict=True)
        ]
        about = {"environment": environment(), "seed": seed, "rounds": rounds, "best_of": args.best_of}
        print(json.dumps({**about, "targets": rows, "extras": extras, "ns": report.costs}))
    else:
        about = environment()
        print(f"Linux {about['kernel']}, {about['cpus']} CPUs, Python {about['python']}, fastsock {about['fastsock']};")
        print(f"{rounds} rounds, best of {args.best_of}; ns per datagram from the last run\n")
        print_tables(report)
    shorts = [*map(is_short, TARGETS, report.ratios), *map(is_short, EXTRAS, report.extras)]
    return int(args.check and any(shorts))


if __name__ == "__main__":
    sys.exit(main())
