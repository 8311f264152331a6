"""``fastsock recv``: count what arrives, and what did not.

Everything the kernel handed over is counted, and at the end the queue is emptied before the
drop counter is read, so that datagrams + kernel drops is all that arrived at the socket. With
UDP GRO the kernel counts a message of many datagrams that it drops as one; what was lost of a
stream is still known by its numbers.
May import fastsock and the cli's shared modules.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import time
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import fastsock
from fastsock._multicast import format_group
from fastsock.cli.arguments import (
    Endpoint,
    Stop,
    UsageError,
    parse_count,
    parse_endpoint,
    parse_membership,
    parse_seconds,
    parse_vlen,
    size_between,
)
from fastsock.cli.report import (
    Reporter,
    Totals,
    delay_text,
    naming,
    number,
    plain_warnings,
    rate_text,
    rates,
    warn,
)
from fastsock.cli.stream import StreamResult, StreamTracker

VLEN, GRO_VLEN = 64, 16  # the fastest, without and with GRO
SLOT_SIZE, GRO_SLOT_SIZE = 2048, 65535
LOST = 3  # exit code of --fail-on-loss
DRAIN_S = 2.0  # the longest that emptying the queue may take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "endpoint",
        metavar="HOST:PORT",
        type=parse_endpoint,
        help="127.0.0.1:9995, [::1]:9995, name:9995, :9995 for every IPv4 address, [::]:9995 for every "
        "IPv6 address; port 0 lets the kernel choose",
    )
    ends = parser.add_argument_group("when to end (Ctrl-C ends too, with the summary)")
    ends.add_argument(
        "--count",
        metavar="N",
        type=parse_count,
        help="after exactly N datagrams; with --gro, behind the batch that reaches N; k, M, G are 1000s",
    )
    ends.add_argument("--duration", metavar="S", type=parse_seconds, help="after S seconds of listening")
    ends.add_argument("--idle", metavar="S", type=parse_seconds, help="once S seconds pass without a datagram")
    how = parser.add_argument_group("how to receive")
    how.add_argument(
        "--vlen", metavar="N", type=parse_vlen, help=f"messages per system call ({VLEN}; with --gro {GRO_VLEN})"
    )
    how.add_argument(
        "--slot-size",
        metavar="BYTES",
        type=size_between(1, 1 << 20),
        help=f"longer datagrams are cut ({SLOT_SIZE}; with --gro {GRO_SLOT_SIZE}, and no less)",
    )
    how.add_argument(
        "--rcvbuf",
        metavar="BYTES",
        type=size_between(1, (1 << 31) - 1),
        default=8 << 20,
        help="receive buffer to ask for; k, M, G are 1024s (8M)",
    )
    how.add_argument("--reuse-port", action="store_true", help="share the port with other receivers (SO_REUSEPORT)")
    how.add_argument("--dual-stack", action="store_true", help="IPv4 too on [::]:PORT or :PORT")
    how.add_argument(
        "--gro", action="store_true", help="take datagrams of one peer as the kernel joined them (UDP_GRO, Linux 5.0)"
    )
    how.add_argument(
        "--timestamps",
        action="store_true",
        help="reckon one-way delay to when the kernel received each datagram, instead of when it was read",
    )
    how.add_argument(
        "--multicast",
        metavar="GROUP[@INTERFACE][,SOURCE]",
        type=parse_membership,
        action="append",
        default=[],
        help="join a group, such as 239.1.1.1@eth0 or 232.1.1.1@eth0,192.0.2.5; can be repeated",
    )
    what = parser.add_argument_group("what to say")
    what.add_argument("--interval", metavar="S", type=parse_seconds, default=1.0, help="seconds between reports (1)")
    what.add_argument("--fail-on-loss", action="store_true", help="exit 3 when datagrams were lost or dropped")
    what.add_argument("--json", action="store_true", help="one JSON object per line on stdout")


def run(args: argparse.Namespace) -> int:
    args.vlen = args.vlen or (GRO_VLEN if args.gro else VLEN)
    args.slot_size = args.slot_size or (GRO_SLOT_SIZE if args.gro else SLOT_SIZE)
    if args.gro and args.slot_size < GRO_SLOT_SIZE:
        raise UsageError(f"--gro needs a --slot-size of {GRO_SLOT_SIZE} or more")
    with Reporter(args.json) as reporter, listen(args) as sock, Stop() as stop:
        host, port = sock.getsockname()[:2]
        bound = Endpoint(host, port)
        rcvbuf_bytes = sock.getsockopt(SOL_SOCKET, SO_RCVBUF) // 2  # the kernel reads it back doubled
        reporter.event(
            "listening",
            f"listening on {bound}, receive buffer {number(rcvbuf_bytes)} bytes, vlen {args.vlen}{', GRO' * sock.gro}",
            {
                "host": host,
                "port": port,
                "rcvbuf_bytes": rcvbuf_bytes,
                "vlen": args.vlen,
                "slot_size_bytes": args.slot_size,
                "gro": sock.gro,
                "timestamps": args.timestamps,
                "multicast": [format_group(*group) for group in args.multicast],
            },
        )
        run = Run(sock, args, reporter)
        failure = run.receive(stop)
        if not run.full:
            failure = run.drain() or failure
        run.read_drops()
        result = run.tracker.result()
        reporter.summary(summary_rows(run, result), summary_fields(run, result))
    if failure is not None:
        with naming(f"receiving on {bound}"):
            raise failure
    return LOST if args.fail_on_loss and (run.tracker.lost or run.totals.drops) else 0


def listen(args: argparse.Namespace) -> fastsock.Socket:
    """The socket that the arguments ask for."""
    host, port = args.endpoint
    if args.dual_stack and host not in ("", "::"):
        raise UsageError(f"--dual-stack needs every address: [::]:{port} or :{port}")
    any_host = "::" if args.dual_stack else "" if args.multicast else "0.0.0.0"
    with naming(f"cannot listen on {args.endpoint}"), plain_warnings():
        try:
            sock = fastsock.bind_udp(
                (host or any_host, port),
                rcvbuf=args.rcvbuf,
                reuse_port=args.reuse_port,
                dualstack_ipv6=args.dual_stack,
                gro=args.gro,
                timestamps=args.timestamps,
                multicast=args.multicast or None,
            )
        except ValueError as error:  # a group of another family than the address
            raise UsageError(str(error)) from None
    if args.gro and not sock.gro:
        warn(f"no UDP GRO: {fastsock.probe().gro.why}")
    return sock


class Run:
    """One run of receiving: what arrived so far."""

    def __init__(self, sock: fastsock.Socket, args: argparse.Namespace, reporter: Reporter) -> None:
        self.totals = Totals()
        self.tracker = StreamTracker()
        self.gro = sock.gro
        self._sock = sock
        self._args = args
        self._reporter = reporter
        self._batch = fastsock.RecvBatch(args.vlen, args.slot_size)
        self._limit: float = args.count or math.inf
        self._reported = Totals()
        self._reported_s = 0.0

    @property
    def drops_unit(self) -> str:
        """What the kernel counts: with GRO a message is one drop, however many datagrams it holds."""
        return "messages" if self.gro else "datagrams"

    @property
    def delay_clock(self) -> str:
        """Until when one-way delay is reckoned: "kernel", its receive time stamp, or "read"."""
        return "kernel" if self._args.timestamps else "read"

    @property
    def full(self) -> bool:
        """Whether --count is reached."""
        return self.totals.datagrams >= self._limit

    def receive(self, stop: Stop) -> OSError | None:
        """Receive until something asks to end; returns the error that did."""
        args = self._args
        idle_s = args.idle or math.inf
        began_s = seen_s = self._reported_s = time.monotonic()
        end_s = began_s + (args.duration or math.inf)
        report_s = began_s + args.interval
        self._sock.settimeout(min(Stop.TICK_S, args.interval, idle_s, end_s - began_s))
        while not (stop.requested or self.full):
            try:
                taken = self._take()
            except OSError as error:
                return error
            now_s = time.monotonic()
            if taken:
                seen_s = now_s
            elif now_s - seen_s >= idle_s:
                break
            if now_s >= report_s:
                self._report(now_s)
                report_s += args.interval * ((now_s - report_s) // args.interval + 1)
            if now_s >= end_s:
                break
        return None

    def drain(self) -> OSError | None:
        """Count what is still queued, while nothing more is let in."""
        # A UDP socket connected to itself hears no other peer: the queue stays as it is.
        # Where that fails, DRAIN_S ends it.
        with contextlib.suppress(OSError):
            self._sock.connect(own_address(self._sock))
        self._sock.settimeout(0)
        end_s = time.monotonic() + DRAIN_S
        while not self.full and time.monotonic() < end_s:
            try:
                if not self._take():
                    return None
            except OSError as error:
                return error
        return None

    def read_drops(self) -> None:
        try:
            self.totals.drops = self._sock.drops
        except OSError:
            self.totals.drops = None  # before Linux 4.12

    def _take(self) -> int:
        """Receive and count one batch; 0 when nothing came in time."""
        totals = self.totals
        if self._limit - totals.datagrams < self._batch.vlen:
            self._batch = fastsock.RecvBatch(int(self._limit) - totals.datagrams, self._args.slot_size)
        batch = self._batch
        try:
            count: int = self._sock.recv_batch(batch)
        except (TimeoutError, BlockingIOError):
            return 0
        arrival_ns = time.time_ns()
        totals.last_s = time.monotonic()
        if totals.first_s is None:
            totals.first_s = totals.last_s
        totals.datagrams += count
        totals.nbytes += batch.nbytes
        totals.batches += 1
        totals.truncated += bytes(batch.truncated).count(1)
        self.tracker.feed(batch, None if self._args.timestamps else arrival_ns)
        return count

    def _report(self, now_s: float) -> None:
        self.read_drops()
        totals, last = self.totals, self._reported
        totals.lost = self.tracker.lost
        datagrams, nbytes = totals.datagrams - last.datagrams, totals.nbytes - last.nbytes
        batches, elapsed_s = totals.batches - last.batches, now_s - self._reported_s
        drops = None if totals.drops is None or last.drops is None else totals.drops - last.drops
        fields: dict[str, Any] = {
            "elapsed_s": elapsed_s,
            "datagrams": datagrams,
            "bytes": nbytes,
            **rates(datagrams, nbytes, batches, elapsed_s),
            "kernel_drops": drops,
            "kernel_drops_unit": self.drops_unit,
            "lost": totals.lost - last.lost if self.tracker.streams else None,
        }
        dropped = f"{number(drops)}{' messages' if self.gro else ''} dropped"
        text = f"{rate_text(fields)}, {dropped}, {number(fields['datagrams_per_batch'], 1)} per batch"
        if self.tracker.streams:
            text += f", {number(fields['lost'])} lost"
        self._reporter.interval(text, fields)
        self._reported, self._reported_s = dataclasses.replace(totals), now_s


def own_address(sock: fastsock.Socket) -> tuple[Any, ...]:
    """Where `sock` itself can be reached."""
    host, *rest = sock.getsockname()
    return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), *rest)


def summary_fields(run: Run, result: StreamResult | None) -> dict[str, Any]:
    totals = run.totals
    return {
        "datagrams": totals.datagrams,
        "bytes": totals.nbytes,
        "elapsed_s": totals.elapsed_s,
        **rates(totals.datagrams, totals.nbytes, totals.batches, totals.elapsed_s),
        "batches": totals.batches,
        "truncated": totals.truncated,
        "kernel_drops": totals.drops,
        "kernel_drops_unit": run.drops_unit,
        "stream_datagrams": run.tracker.datagrams,
        "end_markers": run.tracker.end_markers,
        "other_datagrams": run.tracker.others,
        "delay_clock": run.delay_clock,
        "stream": None if result is None else dataclasses.asdict(result),
    }


def summary_rows(run: Run, result: StreamResult | None) -> list[tuple[str, str]]:
    totals = run.totals
    fields = rates(totals.datagrams, totals.nbytes, totals.batches, totals.elapsed_s)
    rows = [
        ("datagrams", number(totals.datagrams)),
        ("bytes", number(totals.nbytes)),
        ("seconds", f"{totals.elapsed_s:.3f} from the first to the last"),
        ("rate", rate_text(fields)),
        ("batches", f"{number(totals.batches)}, {number(fields['datagrams_per_batch'], 1)} datagrams each"),
        ("truncated", number(totals.truncated)),
        ("kernel drops", drops_text(run)),
    ]
    if result is None:
        return rows
    tracker = run.tracker
    rows[0] = (
        "datagrams",
        f"{rows[0][1]}: {number(tracker.datagrams)} of {result.streams} stream{'s' if result.streams != 1 else ''}, "
        f"{number(tracker.end_markers)} end markers, {number(tracker.others)} others",
    )
    percent = 100 * result.lost / max(1, result.lost + result.received)
    rows += [
        ("sent", "unknown: no end marker came" if result.sent is None else number(result.sent)),
        ("received", number(result.received)),
        ("lost", f"{number(result.lost)} ({percent:.4f} %)"),
        ("duplicated", number(result.duplicated)),
        ("reordered", number(result.reordered)),
    ]
    if result.approximate:
        rows.append(("", "lost, duplicated and reordered are approximate: some came too late to tell"))
    if result.delay_max_ns is not None:
        until = "the kernel had it" if run.delay_clock == "kernel" else "it was read"
        rows.append(("one-way delay", f"{delay_text(dataclasses.asdict(result))}, until {until}"))
    if result.delay_min_ns is not None and result.delay_min_ns < 0:
        rows.append(("", f"least {number(result.delay_min_ns / 1000, 1)} us: the clocks disagree"))
    return rows


def drops_text(run: Run) -> str:
    drops = run.totals.drops
    if drops is None:
        return "unknown: this kernel does not say"
    if run.gro and drops:
        return f"{number(drops)} messages, each of one datagram or many that were joined"
    return number(drops)
