"""Read a multicast feed whose datagrams are numbered: what was lost, late or doubled, and when it came.

    python multicast_reader.py 239.1.1.1@eth0 --port 5000 --number 0:4 --interval 1

`--number OFFSET:BYTES` says where a datagram has its number, big-endian: 0:4 for a plain counter, 2:2 for RTP. Each
sender is a stream of its own. Times are the kernel's. SIGINT or SIGTERM ends with the counts, after what the
kernel had received by then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import select
import signal
import sys
from collections import Counter
from typing import Any

import fastsock
import fastsock.aio

WINDOW = 4096
"""How far back a number may be missing, and still be late when it comes, in place of a new beginning."""


class Stream:
    """The numbers and times of one sender."""

    def __init__(self, modulus: int) -> None:
        self.modulus = modulus
        self.expected: int | None = None
        self.missing: dict[int, None] = {}
        self.counts = Counter(received=0, lost=0, reordered=0, duplicated=0, restarts=0)
        self.first_ns = self.last_ns = self.longest_gap_ns = 0

    def take(self, number: int) -> None:
        """Account for a number: every one that was skipped is lost until it comes after all."""
        counts = self.counts
        counts["received"] += 1
        if number == self.expected:
            self.expected = (number + 1) % self.modulus
            return
        window = min(WINDOW, self.modulus // 4)
        ahead = 0 if self.expected is None else (number - self.expected) % self.modulus
        if self.expected is None or ahead < self.modulus // 2:
            counts["lost"] += ahead
            for distance in range(min(ahead, window), 0, -1):
                self.missing[(number - distance) % self.modulus] = None
            while len(self.missing) > window:
                del self.missing[next(iter(self.missing))]
        elif number in self.missing:
            del self.missing[number]
            counts["lost"] -= 1
            counts["reordered"] += 1
            return
        elif self.modulus - ahead <= window:
            counts["duplicated"] += 1
            return
        else:
            counts["restarts"] += 1
            self.missing.clear()
        self.expected = (number + 1) % self.modulus

    def time(self, ns: int) -> None:
        if self.first_ns:
            self.longest_gap_ns = max(self.longest_gap_ns, ns - self.last_ns)
        else:
            self.first_ns = ns
        self.last_ns = ns

    def report(self) -> dict[str, Any]:
        seconds = (self.last_ns - self.first_ns) / 1e9
        return {**self.counts, "seconds": seconds, "longest_gap_ms": self.longest_gap_ns / 1e6}


class Reader:
    """The streams, and what belongs to none."""

    def __init__(self, offset: int, nbytes: int) -> None:
        self.begin, self.end = offset, offset + nbytes
        self.modulus = 1 << 8 * nbytes
        self.streams: dict[Any, Stream] = {}
        self.datagrams = self.too_short = 0

    def take(self, batch: fastsock.RecvBatch) -> None:
        self.datagrams += len(batch)
        for payload, address, ns in zip(batch.payloads(), batch.addresses(), batch.timestamps_ns, strict=True):
            if len(payload) < self.end:
                self.too_short += 1
                continue
            stream = self.streams.get(address)
            if stream is None:
                stream = self.streams[address] = Stream(self.modulus)
            stream.take(int.from_bytes(payload[self.begin : self.end]))
            stream.time(ns)

    def report(self, drops: int | None) -> dict[str, Any]:
        streams = {f"{address[0]}:{address[1]}": stream.report() for address, stream in self.streams.items()}
        return {
            "datagrams": self.datagrams,
            "too_short": self.too_short,
            "kernel_drops": drops,
            "streams": streams,
        }


async def follow(sock: fastsock.aio.AsyncSocket, reader: Reader) -> None:
    async for batch in sock.batches(addresses=True):
        reader.take(batch)


async def take_rest(sock: fastsock.aio.AsyncSocket, groups: list[Any]) -> None:
    """Let it follow what the kernel has by now, and nothing that comes later."""
    for group in groups:
        sock.socket.leave_group(*group)
    while select.select([sock], [], [], 0)[0]:
        await asyncio.sleep(0)


def print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report), flush=True)
        return
    print(*(f"{name}={value}" for name, value in report.items() if name != "streams"))
    for name, stream in report["streams"].items():
        print(f"  {name}", *(f"{field}={value:.12g}" for field, value in stream.items()))
    sys.stdout.flush()


async def read(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    reader = Reader(*args.number)
    async with await fastsock.aio.bind_udp(
        ("", args.port), multicast=args.groups, reuse_address=True, timestamps=True, rcvbuf=args.rcvbuf
    ) as sock:
        host, port = sock.getsockname()[:2]
        print(f"listening on {host}:{port}, groups {args.groups}", file=sys.stderr, flush=True)
        following = asyncio.create_task(follow(sock, reader))
        following.add_done_callback(lambda _: stop.set())
        try:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), args.interval)
                    if not following.done():
                        await take_rest(sock, args.groups)
                print_report(reader.report(sock.stats.drops), args.json)
        finally:
            following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def parse_group(text: str) -> tuple[str, str | None, str | None]:
    group, _, where = text.partition("@")
    interface, _, source = where.partition(",")
    return group, interface or None, source or None


def parse_number(text: str) -> tuple[int, int]:
    offset, nbytes = (int(word) for word in text.split(":"))
    if offset < 0 or not 1 <= nbytes <= 8:
        raise ValueError(text)
    return offset, nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", type=parse_group, metavar="GROUP[@INTERFACE[,SOURCE]]")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--number", type=parse_number, default=(0, 4), metavar="OFFSET:BYTES", help="default 0:4")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two reports")
    parser.add_argument("--rcvbuf", type=int, metavar="BYTES", help="receive buffer to ask for")
    parser.add_argument("--json", action="store_true", help="one JSON object for each report")
    args = parser.parse_args()
    if args.interval <= 0:
        parser.error("--interval must be above 0")
    asyncio.run(read(args))


if __name__ == "__main__":
    main()
