"""A NetFlow v5, v9 and IPFIX collector on the `netflow` package: each flow as a JSON line on stdout.

    pip install netflow
    python netflow_collector.py --port 9995 >flows.json

Templates are kept per exporter and observation domain, as RFC 3954 and RFC 7011 want it; packets that come before
their template wait for it. SIGINT or SIGTERM ends with the counts on stderr, after what the kernel had received by
then. `netflow` trusts what it parses: let only your exporters reach the port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import select
import signal
import struct
import sys
from collections import Counter, deque
from typing import Any

from netflow.ipfix import IPFIXTemplateNotRecognized
from netflow.utils import parse_packet
from netflow.v9 import V9TemplateNotRecognized

import fastsock
import fastsock.aio

WAITING = 64
"""Packets of one exporter that wait for a template; beyond that the oldest is given up."""
LATE = 10_000
"""A number so far behind the last is that of a late packet, which was counted as lost before it came."""
HEADERS = {5: 24, 9: 20, 10: 16}


def has_sane_sets(payload: bytes, at: int) -> bool:
    """Whether the sets behind the header fill the packet: `netflow` would stay at one of length 0 for ever."""
    while len(payload) - at >= 4:
        length = int.from_bytes(payload[at + 2 : at + 4])
        if length < 4:
            return False
        at += length
    return at == len(payload)


class Exporter:
    """What is known of one exporter and observation domain: templates, and the number that comes next."""

    def __init__(self) -> None:
        self.templates: dict[str, dict[int, Any]] = {"netflow": {}, "ipfix": {}}
        self.options: set[int] = set()  # what of them IPFIX uses for options, which are no flows
        self.waiting: deque[bytes] = deque()
        self.next: int | None = None

    def skipped(self, sequence: int, count: int) -> int:
        """How many numbers are missing before this packet, which holds `count` of them."""
        gap = 0 if self.next is None else (sequence - self.next) & 0xFFFFFFFF
        if (1 << 32) - gap <= LATE:
            return 0
        self.next = sequence + count
        return gap if gap < 1 << 31 else 0  # an exporter that began anew

    def flows_of(self, export: Any) -> list[Any]:
        """The data records of an IPFIX packet that are flows."""
        found: list[Any] = []
        for one in export.sets:
            if one.is_template:
                self.options.difference_update(one.templates)
                if one.header.set_id == 3:
                    self.options.update(one.templates)
            elif one.header.set_id not in self.options:
                found += one.records
        return found


class Collector(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.exporters: dict[tuple[Any, ...], Exporter] = {}
        self.counts: Counter[str] = Counter()

    def datagrams_received(self, batch: fastsock.RecvBatch) -> None:
        for payload, address in zip(batch.payloads(), batch.addresses(), strict=True):
            self.take(payload, address[0])

    def take(self, data: bytes, address: str) -> None:
        self.counts["packets"] += 1
        version = int.from_bytes(data[:2])
        if len(data) < HEADERS.get(version, 1 << 16) or (version != 5 and not has_sane_sets(data, HEADERS[version])):
            self.counts["malformed"] += 1
            return
        count, *_ = struct.unpack_from("!H", data, 2)
        sequence, domain = struct.unpack_from("!IH" if version == 5 else "!II", data, {5: 16, 9: 12, 10: 8}[version])
        key = (address, version, domain)
        exporter = self.exporters.get(key)
        if exporter is None:
            exporter = self.exporters[key] = Exporter()
        if version == 5:
            self.counts["lost v5 flows"] += exporter.skipped(sequence, count)
        elif version == 9:
            self.counts["lost v9 packets"] += exporter.skipped(sequence, 1)
        if self.parse(data, key, exporter):
            retries, exporter.waiting = exporter.waiting, deque()
            for payload in retries:
                self.parse(payload, key, exporter)

    def parse(self, payload: bytes, key: tuple[Any, ...], exporter: Exporter) -> bool:
        """Write a packet's flows; whether it brought templates."""
        try:
            # In hex: bytes that happen to be UTF-8 it would take for hex digits.
            export = parse_packet(payload.hex(), exporter.templates)
        except (V9TemplateNotRecognized, IPFIXTemplateNotRecognized):
            exporter.waiting.append(payload)
            if len(exporter.waiting) > WAITING:
                exporter.waiting.popleft()
                self.counts["given up"] += 1
            return False
        except Exception:  # whatever a malformed packet makes it come upon
            self.counts["malformed"] += 1
            return False
        address, version, domain = key
        flows = export.flows if version != 10 else exporter.flows_of(export)
        self.counts[f"v{version} packets"] += 1
        self.counts["flows"] += len(flows)
        for flow in flows:
            record = {"exporter": address, "version": version, "domain": domain, **flow.data}
            sys.stdout.write(json.dumps(record, default=bytes.hex) + "\n")
        return bool(getattr(export, "contains_new_templates", False))


async def take_rest(transport: fastsock.aio.DatagramTransport) -> None:
    """Let the protocol have what the kernel has by now, and nothing that comes later."""
    sock = transport.get_extra_info("socket")
    sock.connect(sock.getsockname())
    while transport.undelivered or select.select([sock], [], [], 0)[0]:
        await asyncio.sleep(0)


async def collect(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # Without GRO every drop that the kernel counts is one datagram.
    transport, collector = await fastsock.aio.create_datagram_endpoint(
        Collector, (args.host, args.port), rcvbuf=args.rcvbuf, gro=False
    )
    try:
        sock = transport.get_extra_info("socket")
        host, port = sock.getsockname()[:2]
        print(f"listening on {host}:{port}, flows go to stdout", file=sys.stderr, flush=True)
        await stop.wait()
        await take_rest(transport)
        sys.stdout.flush()
        counts = collector.counts
        counts["no template"] = counts["given up"] + sum(len(one.waiting) for one in collector.exporters.values())
        names = ("packets", "v5 packets", "v9 packets", "v10 packets", "flows", "no template", "malformed")
        for name in (*names, "lost v5 flows", "lost v9 packets"):
            print(f"{name:15}  {counts[name]}", file=sys.stderr)
        print(f"{'kernel drops':15}  {sock.stats.drops}", file=sys.stderr)
    finally:
        transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=9995)
    parser.add_argument("--rcvbuf", type=int, metavar="BYTES", help="receive buffer to ask for")
    asyncio.run(collect(parser.parse_args()))


if __name__ == "__main__":
    main()
