"""Holds fastsock against its targets: paired ratios with C and with the standard library.

    python bench/ratios.py [--quick] [--rounds N] [--best-of N] [--json] [--check]

Exits with 0 whatever comes out, or with 1 where a target is missed and --check is given.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass

import native

from fastsock.cli.arguments import parse_count
from fastsock.cli.bench import environment
from fastsock.cli.contestants import COUNT, RECEIVERS, SENDERS, Link, Run, receive_many, receivers, senders
from fastsock.cli.paired import Contestant, Samples, Spread, measure

ROUNDS = 300
QUICK_ROUNDS = 60
VLENS = (16, 64, 128, 256, 1024)


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
    Target("receive 1400 B", "recv_batch", "C recvmmsg", within(5)),
    Target("receive 1400 B", "recv_many(64)", "socket.recv", 1.5),
    Target("receive 1400 B", "recv_many(64)", "C recvmmsg", None),
    Target("receive 1400 B", "recvfrom_many(64)", "socket.recvfrom", None),
    Target("receive 1400 B", "Socket.recv", "socket.recv", None),
    # The heap trimmed and refaulted at every batch would show here as 0.6: see docs/design/malloc.md.
    *(Target("vlen 1400 B", f"recv_many({vlen})", "socket.recv", 1.0) for vlen in VLENS),
    Target("timeout 64 B", "Socket.recv", "socket.recv", 2.5),
    Target("send 64 B", "send_many", "C sendmmsg", within(3)),
    Target("send 64 B", "send_batch", "C sendmmsg", None),
    Target("send 64 B", "send_many", "socket.sendto", 1.5),
    Target("send 64 B", "send_many", "socket.send", None),
    Target("send 64 B", "sendto_many", "socket.sendto", None),
    Target("send 64 B", "Socket.send", "socket.send", 1.15),
    Target("send 64 B", "Socket.sendto", "socket.sendto", None),
    Target("send 64 B", "C sendmmsg", "socket.sendto", None),
]


def vlen_receivers(link: Link) -> list[Contestant]:
    def build(vlen: int) -> Run:
        return receive_many(link.receiver.recv_many, vlen)

    many = [Contestant(f"recv_many({vlen})", link.fill, build(vlen), link.expect_empty) for vlen in VLENS]
    return [*receivers(link, names=["socket.recv"]), *many]


def measure_group(group: str, rounds: int, rng: random.Random) -> Samples:
    """All contestants of one kind on one link, taking turns."""
    kind, size, _ = group.split()
    with Link(int(size), timeout=1.0 if kind == "timeout" else None) as link:
        if kind == "receive":
            contestants = receivers(link, {**RECEIVERS, **native.RECEIVERS})
        elif kind == "vlen":
            contestants = vlen_receivers(link)
        elif kind == "timeout":
            contestants = receivers(link, names=["socket.recv", "Socket.recv"])
        else:
            contestants = senders(link, {**SENDERS, **native.SENDERS})
        count = link.fitting(max(VLENS) if kind == "vlen" else COUNT)
        return measure(contestants, count, rounds, rng=rng)


def measure_targets(rounds: int, rng: random.Random) -> tuple[list[Spread], dict[str, dict[str, float]]]:
    """One whole run: the ratio of every target, and the median cost of every contestant."""
    groups = {group: measure_group(group, rounds, rng) for group in dict.fromkeys(target.group for target in TARGETS)}
    ratios = [groups[target.group].ratio(target.contestant, target.baseline) for target in TARGETS]
    costs = {
        group: {name: round(samples.cost(name).median, 1) for name in samples.ns} for group, samples in groups.items()
    }
    return ratios, costs


def is_short(target: Target, measured: Spread) -> bool:
    return target.least is not None and measured.median < target.least


def verdict(target: Target, measured: Spread) -> str:
    if target.least is None:
        return ""
    return "short" if is_short(target, measured) else "ok"


def print_table(ratios: list[Spread], costs: dict[str, dict[str, float]]) -> None:
    width = max(len(target.what) for target in TARGETS)
    print(f"{'':{width}}  ratio  [quartiles]   ns/datagram  target")
    for target, measured in zip(TARGETS, ratios, strict=True):
        cost = costs[target.group]
        least = "" if target.least is None else f"{target.least:.2f}"
        print(
            f"{target.what:{width}}  {measured.median:5.2f}  [{measured.low:.2f}-{measured.high:.2f}]"
            f"  {cost[target.contestant]:5.0f} /{cost[target.baseline]:5.0f}"
            f"  {least:>6} {verdict(target, measured)}".rstrip()
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

    runs = [measure_targets(rounds, rng) for _ in range(args.best_of)]
    best = [max(ratios, key=lambda ratio: ratio.median) for ratios in zip(*(run[0] for run in runs), strict=True)]
    costs = runs[-1][1]
    if args.json:
        rows = [
            {**asdict(target), "ratio": asdict(measured), "verdict": verdict(target, measured)}
            for target, measured in zip(TARGETS, best, strict=True)
        ]
        about = {"environment": environment(), "seed": seed, "rounds": rounds, "best_of": args.best_of}
        print(json.dumps({**about, "targets": rows, "ns": costs}))
    else:
        about = environment()
        print(f"Linux {about['kernel']}, {about['cpus']} CPUs, Python {about['python']}, fastsock {about['fastsock']};")
        print(f"{rounds} rounds, best of {args.best_of}; ns per datagram from the last run\n")
        print_table(best, costs)
    return int(args.check and any(map(is_short, TARGETS, best)))


if __name__ == "__main__":
    sys.exit(main())
