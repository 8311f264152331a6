"""`fastsock bench`: fastsock beside the standard library's socket, on this machine.

May import arguments.py and the measuring half (paired.py, contestants.py); rich only to
print the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from dataclasses import asdict, dataclass
from typing import Any

import fastsock
from fastsock.cli.arguments import parse_count, size_between
from fastsock.cli.contestants import KINDS, has_gro
from fastsock.cli.paired import Samples, measure

BUDGET_S = 30.0
QUICK_BUDGET_S = 6.0
# More rounds than this narrow nothing any more.
MAX_ROUNDS = 1000

parse_size = size_between(1, 65507)


@dataclass(frozen=True, slots=True)
class Group:
    """Everything that took turns in one measurement."""

    kind: str
    size: int
    count: int
    samples: Samples


def parse_sizes(text: str) -> list[int]:
    """Payload sizes from "64,1400", without repetitions."""
    return list(dict.fromkeys(parse_size(part) for part in text.split(",")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastsock bench`."""
    parser.add_argument("--quick", action="store_true", help="about 8 seconds instead of 30")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--sizes", type=parse_sizes, default=[64, 1400], metavar="BYTES", help="payload sizes (default: 64,1400)"
    )
    parser.add_argument("--rounds", type=parse_count, metavar="N", help="measure exactly N rounds, however long")
    parser.add_argument("--seed", type=int, help="repeat the order in which the contestants took turns")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code. OSError, as for a buffer too small, is main's to report."""
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    budget_s = None if args.rounds else (QUICK_BUDGET_S if args.quick else BUDGET_S)
    groups = measure_all(args.sizes, args.rounds or MAX_ROUNDS, budget_s, seed)
    if args.json:
        print(json.dumps({"environment": environment(), "seed": seed, "groups": [as_json(group) for group in groups]}))
    else:
        print_table(groups)
    return 0


def measure_all(sizes: list[int], rounds: int, budget_s: float | None, seed: int) -> list[Group]:
    """One measurement for each kind and size; they share the budget evenly."""
    rng = random.Random(seed)
    kinds = {name: kind for name, kind in KINDS.items() if has_gro() or not kind.needs_gro}
    share_s = None if budget_s is None else budget_s / (len(kinds) * len(sizes))
    groups = []
    for name, kind in kinds.items():
        for size in sizes:
            with kind.open(size) as (contestants, count):
                samples = measure(contestants, count, rounds, warm_count=kind.warm_count, budget_s=share_s, rng=rng)
            groups.append(Group(name, size, count, samples))
    return groups


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    found = fastsock.probe()
    return {
        "kernel": found.kernel,
        "machine": found.machine,
        "cpus": found.cpus,
        "max_segments": found.max_segments,
        "python": found.python,
        "implementation": platform.python_implementation(),
        "fastsock": fastsock.__version__,
    }


def as_json(group: Group) -> dict[str, Any]:
    baselines = KINDS[group.kind].baselines
    return {
        "kind": group.kind,
        "size": group.size,
        "count": group.count,
        "rounds": group.samples.rounds,
        "results": [
            {
                "name": name,
                "ns": asdict(group.samples.cost(name)),
                "baseline": baselines[name],
                "ratio": asdict(group.samples.ratio(name, baselines[name])),
            }
            for name in group.samples.ns
        ],
    }


def print_table(groups: list[Group]) -> None:
    """One table: each call of the standard library, and below it what fastsock has in its place."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = environment()
    console.print(
        f"Linux {about['kernel']} {about['machine']}, {about['cpus']} CPUs, "
        f"{about['implementation']} {about['python']}, fastsock {about['fastsock']}",
        highlight=False,
    )
    sizes = list(dict.fromkeys(group.size for group in groups))
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size} B\nns", justify="right", no_wrap=True)
        table.add_column("×", justify="right", no_wrap=True)
        table.add_column("quartiles", justify="right", no_wrap=True)
    for kind in dict.fromkeys(group.kind for group in groups):
        by_size = {group.size: group.samples for group in groups if group.kind == kind}
        baselines = KINDS[kind].baselines
        names = list(by_size[sizes[0]].ns)
        table.add_row(KINDS[kind].title, style="italic")
        for baseline in dict.fromkeys(baselines[name] for name in names):
            for name in names:
                if baselines[name] == baseline:
                    cells = [cell for size in sizes for cell in row_cells(by_size[size], name, baseline)]
                    table.add_row(name, *cells, style="bold" if name != baseline else None)
            table.add_section()
    console.print(table)
    console.print(caption(groups), highlight=False)


def row_cells(samples: Samples, name: str, baseline: str) -> list[str]:
    cost = f"{samples.cost(name).median:.0f}"
    if name == baseline:
        return [cost, "", ""]
    ratio = samples.ratio(name, baseline)
    return [cost, times(ratio.median), f"{times(ratio.low)}-{times(ratio.high)}"]


def times(ratio: float) -> str:
    """A ratio in three digits."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def caption(groups: list[Group]) -> str:
    rounds = min(group.samples.rounds for group in groups)
    count = min(group.count for group in groups)
    return (
        "ns: CPU time per datagram on loopback, kernel included; the median.\n"
        "×: how many times faster than the first of the block, in the same round.\n"
        f"At least {rounds} rounds of {count} datagrams. recv_batch leaves payloads in place;\n"
        "send_batch was filled once. GSO is on where it does not say that it is off."
    )
