"""A syslog collector: RFC 5424 and RFC 3164 over UDP, into one file.

    python syslog_collector.py --port 5514 --output messages.log

Each message is a line: when the kernel received it, who sent it, facility.severity, host, application, text. Control
characters are escaped, so that no message makes two lines. What has no priority counts as user.notice, as RFC 3164
wants it. SIGHUP opens the file again, for logrotate; SIGINT or SIGTERM ends with the counts on stderr, after what
the kernel had received by then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import select
import signal
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

import fastsock
import fastsock.aio

FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "clock", *(f"local{number}" for number in range(8))),
)
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
USER_NOTICE = 13

PRIORITY = re.compile(r"<(0|[1-9]\d{0,2})>")
RFC5424 = re.compile(
    r"1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) (?P<proc>\S+) (?P<id>\S+) "
    r'(?P<data>-|(?:\[(?:[^"\]]|"(?:\\.|[^"\\])*")*\])+)(?: (?P<text>.*))?',
    re.ASCII | re.DOTALL,
)
RFC3164 = re.compile(
    r"(?P<time>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) (?P<host>\S+) "
    r"(?:(?P<app>[^\s:\[]{1,48})(?:\[[^\]]*\])?:)? ?(?P<text>.*)",
    re.ASCII | re.DOTALL,
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Message(NamedTuple):
    facility: str
    severity: str
    host: str
    app: str
    text: str
    form: str
    """rfc5424, rfc3164, or other: no header, or no valid priority."""


def parse(payload: bytes) -> Message:
    """Take a datagram apart; whatever it holds becomes a message."""
    text = payload.decode("utf-8", "backslashreplace").rstrip("\r\n\0")
    priority = USER_NOTICE
    header = None
    match = PRIORITY.match(text)
    if match and int(match[1]) < 8 * len(FACILITIES):
        priority = int(match[1])
        text = text[match.end() :]
        header = RFC5424.fullmatch(text) or RFC3164.fullmatch(text)
    facility, severity = FACILITIES[priority >> 3], SEVERITIES[priority & 7]
    if header is None:
        return Message(facility, severity, "-", "-", text, "other")
    form = "rfc5424" if header.re is RFC5424 else "rfc3164"
    body = (header["text"] or "").removeprefix("\ufeff")
    return Message(facility, severity, header["host"], header["app"] or "-", body, form)


def escape(text: str) -> str:
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Collector(asyncio.DatagramProtocol):
    """Is given whole batches, and writes each at once."""

    def __init__(self, path: str, stop: asyncio.Event) -> None:
        self.path = path
        self.stop = stop
        self.failure: OSError | None = None
        self.file: TextIO = self.open()
        self.counts: Counter[str] = Counter()

    def open(self) -> TextIO:
        return open(self.path, "a", encoding="utf-8", buffering=1 << 20)

    def reopen(self) -> None:
        self.file.close()
        self.file = self.open()

    def datagrams_received(self, batch: fastsock.RecvBatch) -> None:
        lines = []
        for datagram in batch:
            message = parse(bytes(datagram))
            self.counts[message.form] += 1
            self.counts[message.severity] += 1
            when = datetime.fromtimestamp((datagram.timestamp_ns or 0) / 1e9, UTC).isoformat(timespec="microseconds")
            kind = f"{message.facility}.{message.severity}"
            words = " ".join(map(escape, (message.host, message.app, message.text)))
            lines.append(f"{when} {datagram.address[0]} {kind} {words}\n")
        self.counts["received"] += len(batch)
        try:
            self.file.writelines(lines)
            self.file.flush()
        except OSError as error:  # a full disk: nobody would see what is lost from here on
            self.failure = error
            self.stop.set()
        else:
            self.counts["written"] += len(lines)


async def take_rest(transport: fastsock.aio.DatagramTransport) -> None:
    """Let the protocol have what the kernel has by now, and nothing that comes later."""
    sock = transport.get_extra_info("socket")
    sock.connect(sock.getsockname())
    while transport.undelivered or select.select([sock], [], [], 0)[0]:
        await asyncio.sleep(0)


def print_counts(counts: dict[str, int], drops: int | None) -> None:
    for name in ("received", "written", "rfc5424", "rfc3164", "other", *SEVERITIES):
        print(f"{name:12}  {counts[name]}", file=sys.stderr)
    print(f"kernel drops  {drops}", file=sys.stderr)


async def collect(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    collector = Collector(args.output, stop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, collector.reopen)
    # Without GRO every drop that the kernel counts is one datagram.
    transport, _ = await fastsock.aio.create_datagram_endpoint(
        lambda: collector, (args.host, args.port), rcvbuf=args.rcvbuf, gro=False, timestamps=True
    )
    try:
        sock = transport.get_extra_info("socket")
        host, port = sock.getsockname()[:2]
        print(f"listening on {host}:{port}, writing to {args.output}", file=sys.stderr, flush=True)
        await stop.wait()
        if collector.failure is None:
            await take_rest(transport)
        print_counts(collector.counts, sock.stats.drops)
    finally:
        transport.close()
        with contextlib.suppress(OSError):  # what it is has been told
            collector.file.close()
    if collector.failure is not None:
        raise SystemExit(f"{args.output}: {collector.failure.strerror}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=5514)
    parser.add_argument("--output", default="messages.log", metavar="FILE", help="appended to")
    parser.add_argument("--rcvbuf", type=int, metavar="BYTES", help="receive buffer to ask for")
    asyncio.run(collect(parser.parse_args()))


if __name__ == "__main__":
    main()
