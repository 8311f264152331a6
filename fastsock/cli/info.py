"""``fastsock info``: what this kernel offers, what limits it, and how to lift the limit.

May import fastsock.probe, and rich for the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import fastsock

WANTED_BUFFER = 8 << 20  # a second of 10,000 small datagrams, or 40 ms of 200,000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    found = fastsock.probe()
    notes = remarks(found)
    if args.json:
        fields = {"version": fastsock.__version__, **dataclasses.asdict(found)}
        print(json.dumps({"type": "info", **fields, "remarks": notes}), flush=True)
    else:
        show(found, notes)
    return 0


def remarks(found: fastsock.Probe) -> dict[str, str]:
    """Why a finding matters and how to change it, for those that limit something."""
    notes: dict[str, str] = {}
    if found.rmem_max is not None and found.rmem_max < WANTED_BUFFER:
        note = f"a burst beyond the receive buffer is lost; raise: sysctl -w net.core.rmem_max={WANTED_BUFFER}"
        if found.rcvbuf_force:
            note += " (this process may exceed it)"
        notes["rmem_max"] = note
    if found.rmem_default is not None and found.rmem_default < WANTED_BUFFER:
        notes["rmem_default"] = "what a socket gets that does not ask: pass rcvbuf to bind_udp"
    if found.wmem_max is not None and found.wmem_max < WANTED_BUFFER // 8:
        notes["wmem_max"] = (
            f"a full send buffer makes sending wait; raise: sysctl -w net.core.wmem_max={WANTED_BUFFER // 8}"
        )
    if found.cpus == 1:
        notes["cpus"] = "sender and receiver take turns: figures measured here are low"
    if not found.ipv6:
        notes["ipv6"] = "no IPv6 sockets: see sysctl net.ipv6.conf.all.disable_ipv6"
    if not found.gso:
        notes["gso"] = "every datagram crosses the network stack by itself (Linux 4.18 has UDP_SEGMENT)"
    if not found.gro:
        notes["gro"] = "received datagrams are not joined (Linux 5.0 has UDP_GRO)"
    if not found.drop_counter:
        notes["drop_counter"] = "losses at a full buffer go uncounted (Linux 4.12 has SO_MEMINFO)"
    return notes


def show(found: fastsock.Probe, notes: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("fastsock")
    table.add_column(fastsock.__version__, justify="right")
    table.add_column("")
    for name, value in dataclasses.asdict(found).items():
        table.add_row(name, as_text(value), notes.get(name, ""))
    # Piped, a row stays one line.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 240).print(table)


def as_text(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
