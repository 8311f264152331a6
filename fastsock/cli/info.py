"""``fastsock info``: what this kernel offers and why, what limits it, and how to lift the limit.

May import fastsock.probe, and rich for the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import fastsock

PIPED_WIDTH = 240  # piped, a row stays one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    found = fastsock.probe()
    if args.json:
        fields = {"version": fastsock.__version__, **dataclasses.asdict(found)}
        print(json.dumps({"type": "info", **fields}), flush=True)
    else:
        show(found)
    return 0


def show(found: fastsock.Probe) -> None:
    from rich.console import Console
    from rich.table import Table

    def table(*rows: tuple[str, ...]) -> None:
        made = Table(box=None, pad_edge=False)
        for i, title in enumerate(rows[0]):
            number = title in ("is", "wanted")
            made.add_column(title, justify="right" if number else "left", no_wrap=i < len(rows[0]) - 1)
        for row in rows[1:]:
            made.add_row(*row)
        console.print(made)

    # Piped, a row stays one line.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for line in headline(found):
        console.print(line)
    console.print()
    table(("capability", "", "why"), *capability_rows(found))
    console.print()
    table(("limit", "is", "wanted", "what it bounds"), *limit_rows(found))
    commands = [limit.command for limit in found.limits if limit.command]
    if commands:
        console.print("\nto lift what is below what is wanted, until the next boot:")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True)  # to be copied


def headline(found: fastsock.Probe) -> list[str]:
    """What machine it is, and what is wrong with it."""
    cpus = f"{found.cpus} CPU" + ("s" if found.cpus != 1 else ": sender and receiver take turns, and figures are low")
    lines = [
        f"fastsock {fastsock.__version__}, Linux {found.kernel} {found.machine}, "
        f"{found.libc}, Python {found.python}, {cpus}"
    ]
    return lines + [f"known bug: {bug}" for bug in found.known_bugs]


def capability_rows(found: fastsock.Probe) -> list[tuple[str, str, str]]:
    return [
        (name, "yes" if value else "no", value.why)
        for name, value in fields_of(found).items()
        if isinstance(value, fastsock.Capability)
    ]


def limit_rows(found: fastsock.Probe) -> list[tuple[str, str, str, str]]:
    return [
        (limit.name, "unknown" if limit.value is None else f"{limit.value:,}", f"{limit.wanted:,}", limit.why)
        for limit in found.limits
    ]


def fields_of(found: fastsock.Probe) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
