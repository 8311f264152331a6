"""How long does an answer take, and the slowest of many?

    python bench/latency.py [--seconds 60] [--rounds N] [--size 64] [--seed N] [--json]

Round trips over UDP, with p50 to p99.99 and the maximum: both ends in one thread, two processes on one CPU, on two
CPUs, and at a fixed rate. How it is measured is printed with it, and is in fastsock/bench/questions/latency.py.
"""

from __future__ import annotations

import argparse
import json
import random
import sys

from fastsock.bench.question import Plan
from fastsock.bench.questions.latency import QUESTION
from fastsock.bench.results import Answer, Column, Figure, Row
from fastsock.cli.arguments import parse_count, parse_seconds, size_between
from fastsock.cli.bench import environment


def cell(row: Row, column: Column) -> str:
    value = row.cells.get(column.name)
    if value is None:
        return "-"
    if isinstance(value, Figure):
        return f"{value.median:.{column.digits}f} [{value.low:.{column.digits}f}-{value.high:.{column.digits}f}]"
    return value if isinstance(value, str) else f"{value:,.{column.digits}f}"


def print_answer(answer: Answer) -> None:
    print(f"{answer.title}\n{answer.method}\n")
    for table in answer.tables:
        heads = ["", *(f"{column.title}, {column.unit}" if column.unit else column.title for column in table.columns)]
        rows = [[row.name, *(cell(row, column) for column in table.columns)] for row in table.rows]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        print(table.title)
        for name, *cells in [heads, *rows]:
            print("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip())
        print(f"{table.note}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=parse_seconds, default=60.0, help="about so long (default: 60)")
    parser.add_argument("--rounds", type=parse_count, help="exactly so many, however long")
    parser.add_argument("--size", type=size_between(14, 2048), default=64, help="of a request, in bytes")
    parser.add_argument("--seed", type=int, help="repeat the order in which the contestants took turns")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    seed = random.randrange(1 << 32) if args.seed is None else args.seed

    def progress(what: str, share: float) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{share:4.0%}  {what}")
            sys.stderr.flush()

    answer = QUESTION.run(Plan(args.seconds, seed, sizes=(args.size,), rounds=args.rounds, progress=progress))
    progress("", 1.0)
    if args.json:
        print(json.dumps({"environment": environment(), "seed": seed, "answers": [answer.as_json()]}))
        return 0
    about = environment()
    print(f"Linux {about['kernel']}, {about['cpus']} CPUs, Python {about['python']}, fastsock {about['fastsock']}\n")
    print_answer(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
