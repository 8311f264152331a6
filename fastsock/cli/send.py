"""``fastsock send``: a numbered, time-stamped stream at a set rate.

The batch's slots are filled once; each burst rewrites only sequence numbers and times, a
column at a time. May import fastsock and the cli's shared modules.
"""

from __future__ import annotations

import argparse
import math
import secrets
import select
import time
from bisect import bisect_right
from collections import Counter
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

import fastsock
from fastsock._multicast import check_group
from fastsock.bench.histogram import Histogram
from fastsock.cli.arguments import (
    Endpoint,
    Stop,
    UsageError,
    number_between,
    parse_count,
    parse_endpoint,
    parse_rate,
    parse_seconds,
    size_between,
)
from fastsock.cli.columns import MAX_SPAN, WORD, encode_run
from fastsock.cli.report import (
    Reporter,
    delay_fields,
    delay_text,
    naming,
    number,
    plain_warnings,
    rate_text,
    rates,
    ratio,
    warn,
)
from fastsock.cli.stream import END_FLAG, END_MARKERS, HEADER, encode_header

MAX_PAYLOAD = 65507  # of UDP over IPv4
QUANTUM_S = 0.0005  # the shortest sleep
MAX_ARREARS_S = 0.05  # what is further behind than this is given up
VLEN, GSO_VLEN = 64, 512  # with GSO, several whole messages
STAMP_RCVBUF = 1 << 20  # transmit stamps queue there
KEPT_BURSTS = 4096  # whose stamps may still come
AT_DRIVER = 0  # SCM_TSTAMP_SND
STAMPS_S = 0.2  # the longest wait for the last of them
MARKER_GAP_S = 0.02  # lets a full receiver make room between the end markers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", metavar="HOST:PORT", type=parse_endpoint, help="127.0.0.1:9995, [::1]:9995 ...")
    parser.add_argument(
        "--rate",
        metavar="N",
        type=parse_rate,
        default=200_000.0,
        help="datagrams per second; k, M, G are 1000s; 0 or max: as fast as it goes (200k)",
    )
    parser.add_argument(
        "--size",
        metavar="BYTES",
        type=size_between(HEADER.size, MAX_PAYLOAD),
        default=512,
        help=f"payload of a datagram, {HEADER.size} to {MAX_PAYLOAD} (512)",
    )
    ends = parser.add_argument_group("when to end (Ctrl-C ends too, with the summary)").add_mutually_exclusive_group()
    ends.add_argument("--count", metavar="N", type=parse_count, help="after N datagrams; k, M, G are 1000s")
    ends.add_argument("--duration", metavar="S", type=parse_seconds, help="after S seconds")
    parser.add_argument(
        "--vlen",
        metavar="N",
        type=number_between(1, 1 << 20),
        help=f"most datagrams per call ({VLEN}; with --gso {GSO_VLEN})",
    )
    parser.add_argument(
        "--sndbuf",
        metavar="BYTES",
        type=size_between(1, (1 << 31) - 1),
        help="send buffer to ask for; k, M, G are 1024s",
    )
    parser.add_argument(
        "--gso", action="store_true", help="let the kernel cut whole bursts into datagrams (UDP_SEGMENT)"
    )
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="report how long each datagram took from the call to the driver (transmit time stamps; not with --gso)",
    )
    group = parser.add_argument_group("when HOST is a multicast group")
    group.add_argument("--multicast-interface", metavar="NAME", help="send it out there; also an address or an index")
    group.add_argument(
        "--multicast-ttl",
        metavar="N",
        type=number_between(0, 255),
        help="how many hops it may go, 0 to 255 (1: the local network)",
    )
    group.add_argument("--no-multicast-loop", action="store_true", help="keep it from the members on this very machine")
    parser.add_argument("--interval", metavar="S", type=parse_seconds, default=1.0, help="seconds between reports (1)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")


def run(args: argparse.Namespace) -> int:
    if not args.endpoint.host or not args.endpoint.port:
        raise UsageError("sending needs a host and a port other than 0, such as 127.0.0.1:9995")
    if args.gso and args.timestamps:
        raise UsageError("--gso sends many datagrams under one time stamp: not with --timestamps")
    args.vlen = args.vlen or (GSO_VLEN if args.gso else VLEN)
    with Reporter(args.json) as reporter, connect(args) as sock, Stop() as stop:
        host, port = sock.getpeername()[:2]
        peer = Endpoint(host, port)
        sender = Sender(sock, args, reporter)
        rate = number(args.rate) if args.rate else "as many as go"
        reporter.event(
            "sending",
            f"sending to {peer}, {args.size} bytes each, {rate} per second{', GSO' * sock.gso}",
            {
                "host": host,
                "port": port,
                "stream_id": f"{sender.stream_id:016x}",
                "datagram_bytes": args.size,
                "rate_per_s": args.rate or None,
                "vlen": args.vlen,
                "gso": sock.gso,
                "timestamps": args.timestamps,
                "sndbuf_bytes": sock.getsockopt(SOL_SOCKET, SO_SNDBUF) // 2,
            },
        )
        failure = sender.send(stop) or sender.send_end_markers()
        if sender.stamps:
            sender.stamps.wait()
        fields = sender.summary_fields()
        reporter.summary(sender.summary_rows(fields), fields)
    if failure is not None:
        with naming(f"sending to {peer}"):
            raise failure
    return 0


def connect(args: argparse.Namespace) -> fastsock.Socket:
    """The socket that the arguments ask for. Its calls wait no longer than Stop wants."""
    options: dict[str, Any] = {"sndbuf": args.sndbuf, "gso": args.gso, "transmit_timestamps": args.timestamps}
    if args.timestamps:
        options["rcvbuf"] = STAMP_RCVBUF
    with naming(f"cannot send to {args.endpoint}"), plain_warnings():
        if args.multicast_interface or args.multicast_ttl is not None or args.no_multicast_loop:
            sock = connect_to_group(args, options)
        else:
            sock = fastsock.connect_udp(tuple(args.endpoint), **options)
    if args.gso and not sock.gso:
        warn(f"no UDP GSO: {fastsock.probe().gso.why}")
    sock.settimeout(Stop.TICK_S)
    return sock


def connect_to_group(args: argparse.Namespace, options: dict[str, Any]) -> fastsock.Socket:
    """The source address follows from the interface, and so it is set before connect."""
    host, port = args.endpoint
    try:
        family = check_group(host)
    except ValueError as error:
        raise UsageError(f"--multicast-interface, --multicast-ttl and --no-multicast-loop: {error}") from None
    interface = args.multicast_interface
    sock = fastsock.bind_udp(("", 0), family=family, **options)
    try:
        try:
            sock.set_multicast(
                loop=False if args.no_multicast_loop else None,
                ttl=args.multicast_ttl,
                interface=int(interface) if interface and interface.isdecimal() else interface,
            )
        except ValueError as error:
            raise UsageError(f"--multicast-interface: {error}") from None
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


class Stamps:
    """How long each datagram took from the call that sent it to the driver.

    The kernel numbers what is sent from 0, and reports each number with a time through the
    error queue. A burst has one time, taken before its call.
    """

    def __init__(self, sock: fastsock.Socket) -> None:
        self.delays = Histogram()
        self._sock = sock
        self._sent = 0
        self._ends: list[int] = []  # behind the last number of each burst, and when it was sent
        self._times: list[int] = []

    def add_burst(self, end: int, sent_ns: int) -> None:
        """All numbers below `end` that belong to no earlier burst were sent at `sent_ns`."""
        self._sent = end
        self._ends.append(end)
        self._times.append(sent_ns)
        if len(self._ends) > 2 * KEPT_BURSTS:
            del self._ends[:-KEPT_BURSTS], self._times[:-KEPT_BURSTS]

    def collect(self) -> None:
        """Take what the kernel reports by now."""
        found: list[int] = []
        for record in self._sock.recv_errors():
            if record.origin != "timestamp" or record.type != AT_DRIVER or record.timestamp_ns is None:
                continue
            assert record.ids is not None
            # Its lowest 32 bits are known, and that it is no older than 2**32; an end marker may be newer.
            newest = self._sent + END_MARKERS
            number = newest - ((newest - record.ids.start) & 0xFFFFFFFF)
            if 0 <= number < self._sent:
                found.append(record.timestamp_ns - self._times[bisect_right(self._ends, number)])
        for delay_ns, count in Counter(found).items():
            self.delays.add(delay_ns, count)

    def wait(self) -> None:
        """Collect the last ones, until STAMPS_S pass without any."""
        poll = select.poll()
        poll.register(self._sock.fileno(), 0)  # POLLERR is always told
        self.collect()
        while self.delays.count < self._sent and poll.poll(STAMPS_S * 1000):
            before = self.delays.count
            self.collect()
            if self.delays.count == before:
                break

    def fields(self) -> dict[str, int | None]:
        return {"datagrams": self.delays.count, **delay_fields(self.delays)}


class Pacer:
    """How many datagrams are due. Pure: the caller says what time it is, in seconds.

    Args:
        rate: Datagrams per second; 0 for no limit.
        now_s: When the first one is due.
    """

    def __init__(self, rate: float, now_s: float) -> None:
        self.behind_s = 0.0  # arrears given up so far
        self._rate = rate
        self._origin_s = now_s
        self._sent = 0

    def due(self, now_s: float, most: int) -> int:
        """How many to send now, 0 to `most`."""
        if not self._rate:
            return most
        arrears_s = now_s - self._origin_s - self._sent / self._rate
        if arrears_s > MAX_ARREARS_S:
            self.behind_s += arrears_s - MAX_ARREARS_S
            self._origin_s += arrears_s - MAX_ARREARS_S
            arrears_s = MAX_ARREARS_S
        return 0 if arrears_s < 0 else min(most, 1 + int(arrears_s * self._rate))

    def count(self, sent: int) -> None:
        """So many have been sent."""
        self._sent += sent

    def wait_s(self, now_s: float) -> float:
        """How long until the next one is due; 0 when it is."""
        return max(0.0, self._origin_s + self._sent / self._rate - now_s) if self._rate else 0.0


class Sender:
    """One stream being sent."""

    def __init__(self, sock: fastsock.Socket, args: argparse.Namespace, reporter: Reporter) -> None:
        self.stream_id = secrets.randbits(64)
        self.sent = self.batches = self.refused = self.end_markers = 0
        self.elapsed_s = self.behind_s = 0.0
        self.stamps = Stamps(sock) if args.timestamps else None
        self._sock = sock
        self._args = args
        self._reporter = reporter
        self._batch = fastsock.SendBatch(args.vlen, args.size)
        self._words = self._batch.buffer.cast("Q")
        self._template = encode_header(self.stream_id, 0, 0).ljust(args.size, b"\0")
        self._reported = (0, 0, 0, 0.0)  # sent, batches, refused, when

    def send(self, stop: Stop) -> OSError | None:
        """Send until something asks to end; returns the error that did."""
        args = self._args
        limit: float = args.count or math.inf
        began_s = now_s = time.monotonic()
        end_s = began_s + (args.duration or math.inf)
        report_s = began_s + args.interval
        pacer = Pacer(args.rate, began_s)
        self._reported = (0, 0, 0, began_s)
        failure: OSError | None = None
        while self.sent < limit and now_s < end_s and not stop.requested and failure is None:
            most = int(min(args.vlen, limit - self.sent))
            burst = pacer.due(now_s, most)
            if burst:
                before = self.sent
                failure = self._send_burst(burst, stop)
                pacer.count(self.sent - before)
                now_s = time.monotonic()
                self.elapsed_s = now_s - began_s
            if burst < most and failure is None:
                # All that was due is sent. Sleeping a quantum lets the next bursts be full ones.
                wait_s = max(QUANTUM_S, pacer.wait_s(now_s))
                time.sleep(max(0.0, min(wait_s, Stop.TICK_S, end_s - now_s)))
                now_s = time.monotonic()
            if now_s >= report_s:
                self._report(now_s)
                report_s += args.interval * ((now_s - report_s) // args.interval + 1)
        self.behind_s = pacer.behind_s
        return failure

    def send_end_markers(self) -> OSError | None:
        """Say three times how many there were: a receiver may be full, or miss one."""
        marker = encode_header(self.stream_id, END_FLAG | self.sent, time.time_ns()).ljust(self._args.size, b"\0")
        for i in range(END_MARKERS):
            if i:
                time.sleep(MARKER_GAP_S)
            try:
                # A refusal is of an earlier datagram, and told once: the second try goes out.
                try:
                    self._sock.send(marker)
                except ConnectionRefusedError:
                    self.refused += 1
                    self._sock.send(marker)
            except (ConnectionRefusedError, TimeoutError):
                continue
            except OSError as error:
                return error
            self.end_markers += 1
        return None

    def _send_burst(self, burst: int, stop: Stop) -> OSError | None:
        """Send the next `burst` datagrams, fewer when asked to stop; `sent` says how many went."""
        batch, words = self._batch, self._words
        if len(batch) != burst:
            batch.clear()
            for _ in range(burst):
                batch.append(self._template)
        step = batch.stride // 8
        for start in range(0, burst, MAX_SPAN):
            count = min(MAX_SPAN, burst - start)
            at, end = 2 + start * step, 2 + (start + count) * step
            words[at:end:step] = memoryview(encode_run(self.sent + start, count)).cast("Q")
        sent_ns = time.time_ns()
        words[3 : 3 + burst * step : step] = memoryview(sent_ns.to_bytes(WORD, "little") * burst).cast("Q")
        self.batches += 1
        left = burst
        while left and not (stop.requested and left < burst):
            try:
                taken: int = self._sock.send_batch(batch)
            except ConnectionRefusedError:
                self.refused += 1  # reports an earlier datagram; nothing was sent now
            except TimeoutError:
                if stop.requested:
                    break
            except OSError as error:
                return error
            else:
                left -= taken
                self.sent += taken
        if self.stamps:
            self.stamps.add_burst(self.sent, sent_ns)
            self.stamps.collect()
        return None

    def _report(self, now_s: float) -> None:
        sent, batches, refused, reported_s = self._reported
        datagrams, elapsed_s = self.sent - sent, now_s - reported_s
        fields: dict[str, Any] = {
            "elapsed_s": elapsed_s,
            "datagrams": datagrams,
            "bytes": datagrams * self._args.size,
            **rates(datagrams, datagrams * self._args.size, elapsed_s),
            "datagrams_per_batch": ratio(datagrams, self.batches - batches),
            "refused": self.refused - refused,
        }
        self._reporter.interval(f"{rate_text(fields)}, {number(fields['refused'])} refused", fields)
        self._reported = (self.sent, self.batches, self.refused, now_s)

    def summary_fields(self) -> dict[str, Any]:
        nbytes = self.sent * self._args.size
        return {
            "sent": self.sent,
            "bytes": nbytes,
            "elapsed_s": self.elapsed_s,
            **rates(self.sent, nbytes, self.elapsed_s),
            "datagrams_per_batch": ratio(self.sent, self.batches),
            "batches": self.batches,
            "refused": self.refused,
            "behind_s": self.behind_s,
            "end_markers": self.end_markers,
            "gso": self._sock.gso,
            "gso_fallbacks": self._sock.stats.gso_fallbacks,
            "transmit": self.stamps.fields() if self.stamps else None,
        }

    def summary_rows(self, fields: dict[str, Any]) -> list[tuple[str, str]]:
        rows = [
            ("sent", f"{number(self.sent)} and {self.end_markers} end markers"),
            ("bytes", number(fields["bytes"])),
            ("seconds", f"{self.elapsed_s:.3f}"),
            ("rate", rate_text(fields)),
            ("batches", f"{number(self.batches)}, {number(fields['datagrams_per_batch'], 1)} datagrams each"),
            ("refused", number(self.refused)),
        ]
        if self.behind_s:
            rows.append(("behind", f"{self.behind_s:.3f} s of the asked rate given up"))
        if fields["gso_fallbacks"]:
            rows.append(("GSO", f"refused by the way {number(fields['gso_fallbacks'])} times, and sent one by one"))
        if self.stamps:
            stamped = self.stamps.delays.count
            rows.append(("call to driver", f"{delay_text(fields['transmit'])}, of {number(stamped)} datagrams"))
            if stamped < self.sent:
                rows.append(("", f"{number(self.sent - stamped)} time stamps did not come"))
        return rows
