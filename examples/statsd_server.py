"""A statsd server: counters, gauges, timers and sets over UDP, flushed to stdout.

    python statsd_server.py --port 8125 --interval 10 [--json]

Takes `name:value|c`, `|g` (with a sign: relative), `|ms`, `|h` and `|s`, with `|@rate` for counters and timers; what
follows is ignored. Several lines may share a datagram. Counters, timers and sets begin anew at each flush; gauges
stay. SIGINT or SIGTERM flushes once more, after what the kernel had received by then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import select
import signal
import sys
import time
from typing import Any

import fastsock
import fastsock.aio


class Metrics:
    """What was told since the last flush, and the gauges."""

    def __init__(self) -> None:
        self.gauges: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        self.counters: dict[str, float] = {}
        self.timers: dict[str, list[float]] = {}
        self.timed: dict[str, float] = {}
        self.sets: dict[str, set[str]] = {}
        self.lines = self.bad_lines = 0
        self.started = time.monotonic()

    def take(self, text: str) -> None:
        """Count every line of a text."""
        for line in text.split("\n"):
            if line:
                self.lines += 1
                try:
                    self.count(line)
                except ValueError:
                    self.bad_lines += 1

    def count(self, line: str) -> None:
        """Count one line; ValueError where it is none of statsd's."""
        name, colon, rest = line.partition(":")
        value, kind, *more = rest.split("|")
        if not (name and colon and value):
            raise ValueError(line)
        if kind == "s":
            self.sets.setdefault(name, set()).add(value)
            return
        number = float(value)
        rate = next((float(word[1:]) for word in more if word[:1] == "@"), 1.0)
        if not (math.isfinite(number) and 0 < rate <= 1):
            raise ValueError(line)
        if kind == "c":
            self.counters[name] = self.counters.get(name, 0) + number / rate
        elif kind == "g":
            self.gauges[name] = number + (self.gauges.get(name, 0) if value[0] in "+-" else 0)
        elif kind in ("ms", "h"):
            self.timers.setdefault(name, []).append(number)
            self.timed[name] = self.timed.get(name, 0) + 1 / rate
        else:
            raise ValueError(line)

    def flush(self) -> dict[str, Any]:
        """What was counted, and begin anew."""
        seconds = round(time.monotonic() - self.started, 6) or 1e-6
        found = {
            "seconds": seconds,
            "lines": self.lines,
            "bad_lines": self.bad_lines,
            "counters": {name: {"count": n, "per_s": n / seconds} for name, n in self.counters.items()},
            "gauges": dict(self.gauges),
            "timers": {name: {"count": self.timed[name], **summary(ms)} for name, ms in self.timers.items()},
            "sets": {name: len(members) for name, members in self.sets.items()},
        }
        self.begin()
        return found


def summary(values: list[float]) -> dict[str, float]:
    values.sort()
    percentiles = {f"p{percent}": values[math.ceil(len(values) * percent / 100) - 1] for percent in (50, 90, 99)}
    return {"min": values[0], "mean": sum(values) / len(values), **percentiles, "max": values[-1]}


class Statsd(asyncio.DatagramProtocol):
    """Is given whole batches, and takes each apart at once."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.datagrams = 0

    def datagrams_received(self, batch: fastsock.RecvBatch) -> None:
        self.datagrams += len(batch)
        self.metrics.take(b"\n".join(batch.payloads()).decode("utf-8", "replace"))


async def take_rest(transport: fastsock.aio.DatagramTransport) -> None:
    """Let the protocol have what the kernel has by now, and nothing that comes later."""
    sock = transport.get_extra_info("socket")
    sock.connect(sock.getsockname())
    while transport.undelivered or select.select([sock], [], [], 0)[0]:
        await asyncio.sleep(0)


def print_lines(flush: dict[str, Any]) -> None:
    for kind in ("counters", "gauges", "timers", "sets"):
        for name, value in flush[kind].items():
            fields = value.items() if isinstance(value, dict) else [("value", value)]
            print(kind[:-1], name, *(f"{field}={number:.10g}" for field, number in fields))
    print(*(f"{name}={value}" for name, value in flush.items() if not isinstance(value, dict)), flush=True)


async def serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    # Without GRO every drop that the kernel counts is one datagram.
    transport, statsd = await fastsock.aio.create_datagram_endpoint(
        lambda: Statsd(metrics), (args.host, args.port), rcvbuf=args.rcvbuf, gro=False
    )
    sock = transport.get_extra_info("socket")

    def flush() -> None:
        found = metrics.flush()
        totals = {"datagrams": statsd.datagrams, "kernel_drops": sock.stats.drops}  # since the start
        if args.json:
            print(json.dumps({"time": time.time(), **found, **totals}), flush=True)
        else:
            print_lines({**found, **totals})

    try:
        host, port = sock.getsockname()[:2]
        print(f"listening on {host}:{port}, a flush every {args.interval:g} s", file=sys.stderr, flush=True)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), args.interval)
                await take_rest(transport)
            flush()
    finally:
        transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8125)
    parser.add_argument("--interval", type=float, default=10.0, metavar="SECONDS", help="between two flushes")
    parser.add_argument("--rcvbuf", type=int, metavar="BYTES", help="receive buffer to ask for")
    parser.add_argument("--json", action="store_true", help="one JSON object for each flush")
    args = parser.parse_args()
    if args.interval <= 0:
        parser.error("--interval must be above 0")
    asyncio.run(serve(args))


if __name__ == "__main__":
    main()
