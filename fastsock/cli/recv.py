"""``fastsock recv``: count what arrives, and what did not.

A fastsock.Receiver has a thread and a ring for each worker; here is one loop that takes from the
rings and counts. At the end the sockets' queues and the rings are emptied before the drop counters are read,
so that datagrams + kernel drops + ring drops is all that arrived. With UDP GRO the kernel counts a message of
many datagrams that it drops as one; what was lost of a stream is still known by its numbers.
May import fastsock and the cli's shared modules.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import select
import time
from collections.abc import Sequence
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any, cast

import fastsock
from fastsock._feeder import Feeder
from fastsock._multicast import format_group
from fastsock._steering import PROGRAMS
from fastsock.cli.arguments import (
    Endpoint,
    Stop,
    UsageError,
    number_between,
    parse_count,
    parse_cpus,
    parse_endpoint,
    parse_membership,
    parse_microseconds,
    parse_seconds,
    size_between,
)
from fastsock.cli.report import (
    Reporter,
    delay_text,
    naming,
    number,
    plain_warnings,
    rate_text,
    rates,
    ratio,
    warn,
)
from fastsock.cli.stream import StreamResult, StreamTracker

VLEN, GRO_VLEN = 64, 8  # the fastest, without and with GRO
SLOT_SIZE, GRO_SLOT_SIZE = 2048, 65535
RING_SLOTS = 32768
COALESCE_US = 50.0
LOST = 3  # exit code of --fail-on-loss
DRAIN_S = 2.0  # the longest that emptying the queues may take


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
        help="after exactly N datagrams; k, M, G are 1000s",
    )
    ends.add_argument("--duration", metavar="S", type=parse_seconds, help="after S seconds of listening")
    ends.add_argument("--idle", metavar="S", type=parse_seconds, help="once S seconds pass without a datagram")
    how = parser.add_argument_group("how to receive")
    how.add_argument(
        "--vlen",
        metavar="N",
        type=number_between(1, 1024),
        help=f"messages per system call, up to 1024 ({VLEN}; with --gro {GRO_VLEN})",
    )
    how.add_argument(
        "--slot-size",
        metavar="BYTES",
        type=size_between(1, 1 << 20),
        help=f"longer datagrams are cut ({SLOT_SIZE}; with --gro {GRO_SLOT_SIZE})",
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
    workers = parser.add_argument_group(
        "workers: each has a socket, a native thread that receives, and a ring from which datagrams are counted"
    )
    workers.add_argument(
        "--workers",
        metavar="N",
        type=number_between(1, 1024),
        default=1,
        help="how many; the kernel spreads what arrives over their sockets, by both addresses and ports (1)",
    )
    workers.add_argument(
        "--steering",
        choices=[*PROGRAMS],
        help="spread it otherwise: by the CPU it arrives on, by source address, or at random; with cpu and random a "
        "stream may come through several workers, and what one of them had later than another counts as reordered",
    )
    workers.add_argument(
        "--cpus", metavar="LIST", type=parse_cpus, help="the CPU that each worker's thread stays on, such as 0,2 or 0-3"
    )
    workers.add_argument(
        "--priority",
        metavar="N",
        type=number_between(1, 99),
        default=0,
        help="real-time threads (SCHED_FIFO) of this priority, 1 to 99, which other load does not keep waiting; takes "
        "CAP_SYS_NICE",
    )
    workers.add_argument(
        "--ring-slots",
        metavar="N",
        type=number_between(1, 1 << 30),
        default=RING_SLOTS,
        help="datagrams that each ring holds, in N times --slot-size bytes of memory; with --gro in N times "
        f"{SLOT_SIZE}, side by side; k, M, G are 1000s ({RING_SLOTS}: {RING_SLOTS * SLOT_SIZE >> 20} MiB)",
    )
    workers.add_argument(
        "--spin",
        metavar="US",
        type=parse_microseconds,
        default=0.0,
        help="look for datagrams so many microseconds before sleeping: sooner awake, at the cost of a CPU (0)",
    )
    workers.add_argument(
        "--coalesce",
        metavar="US",
        type=parse_microseconds,
        help="sleep so many microseconds after a wake-up: larger batches, less CPU time, and so much more until a "
        f"datagram is read ({COALESCE_US:.0f}; with --spin 0)",
    )
    what = parser.add_argument_group("what to say")
    what.add_argument("--interval", metavar="S", type=parse_seconds, default=1.0, help="seconds between reports (1)")
    what.add_argument("--fail-on-loss", action="store_true", help="exit 3 when datagrams were lost or dropped")
    what.add_argument("--json", action="store_true", help="one JSON object per line on stdout")


def run(args: argparse.Namespace) -> int:
    check(args)
    if args.coalesce is None:
        args.coalesce = 0.0 if args.spin else COALESCE_US
    with contextlib.ExitStack() as stack:
        reporter = stack.enter_context(Reporter(args.json))
        socks = [stack.enter_context(sock) for sock in listen(args)]
        host, port = socks[0].getsockname()[:2]
        bound = Endpoint(host, port)
        with naming(f"cannot start to receive on {bound}"):
            receiver = stack.enter_context(start(args, socks))
        stop = stack.enter_context(Stop())
        fields = listening_fields(args, socks, receiver)
        reporter.event("listening", listening_text(bound, fields), {"host": host, "port": port, **fields})
        run = Run(socks, receiver, args, reporter)
        failure = run.receive(stop)
        if not run.full:
            failure = run.drain() or failure
        result = run.tracker.result()
        totals = run.read_totals()
        reporter.summary(summary_rows(run, totals, result), summary_fields(run, totals, result))
    if failure is not None:
        with naming(f"receiving on {bound}"):
            raise failure
    return LOST if args.fail_on_loss and (run.tracker.lost or totals.all.kernel_drops or totals.all.ring_drops) else 0


def check(args: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if args.dual_stack and args.endpoint.host not in ("", "::"):
        raise UsageError(f"--dual-stack needs every address: [::]:{args.endpoint.port} or :{args.endpoint.port}")
    if args.workers > 1 and args.multicast:
        raise UsageError("--multicast goes with one worker: each socket that joins a group gets every datagram")
    if args.workers == 1 and args.steering:
        raise UsageError("--steering spreads datagrams over workers: it needs --workers of 2 or more")
    if args.cpus and len(args.cpus) != args.workers:
        raise UsageError(f"--cpus names a CPU for each worker: {len(args.cpus)} for --workers {args.workers}")


def listen(args: argparse.Namespace) -> list[fastsock.Socket]:
    """A socket for each worker, as the arguments ask for."""
    host, port = args.endpoint
    any_host = "::" if args.dual_stack else "" if args.multicast else "0.0.0.0"
    address = (host or any_host, port)
    options = {
        "rcvbuf": args.rcvbuf,
        "dualstack_ipv6": args.dual_stack,
        "gro": args.gro,
        "timestamps": args.timestamps,
    }
    with naming(f"cannot listen on {args.endpoint}"), plain_warnings():
        try:
            if args.workers > 1:
                socks = fastsock.bind_udp_group(address, args.workers, steering=args.steering, **options)
            else:
                multicast = args.multicast or None
                socks = [fastsock.bind_udp(address, reuse_port=args.reuse_port, multicast=multicast, **options)]
        except ValueError as error:  # a group of another family than the address
            raise UsageError(str(error)) from None
    if args.gro and not socks[0].gro:
        warn(f"no UDP GRO: {fastsock.probe().gro.why}")
    return socks


def start(args: argparse.Namespace, socks: Sequence[fastsock.Socket]) -> fastsock.Receiver:
    """The threads and rings that the arguments ask for."""
    slots, slot_size = args.ring_slots, args.slot_size or SLOT_SIZE
    if socks[0].gro:
        # Datagrams lie side by side, so that none need be cut to save memory.
        slot_size = args.slot_size or GRO_SLOT_SIZE
        slots = -(-slots * SLOT_SIZE // slot_size)
    return fastsock.Receiver(
        socks,
        slots=slots,
        slot_size=slot_size,
        vlen=args.vlen or (GRO_VLEN if socks[0].gro else VLEN),
        cpus=args.cpus,
        priority=args.priority,
        spin_us=args.spin,
        coalesce_us=args.coalesce,
    )


def listening_fields(
    args: argparse.Namespace, socks: Sequence[fastsock.Socket], receiver: fastsock.Receiver
) -> dict[str, Any]:
    sock, ring = socks[0], receiver.rings[0]
    return {
        "rcvbuf_bytes": sock.getsockopt(SOL_SOCKET, SO_RCVBUF) // 2,  # the kernel reads it back doubled
        "vlen": args.vlen or (GRO_VLEN if sock.gro else VLEN),
        "slot_size_bytes": ring.slot_size,
        "ring_slots": ring.slots,
        "ring_bytes": ring.nbytes,
        "workers": args.workers,
        "steering": args.steering,
        "cpus": args.cpus,
        "priority": args.priority,
        "spin_us": args.spin,
        "coalesce_us": args.coalesce,
        "gro": sock.gro,
        "timestamps": args.timestamps,
        "multicast": [format_group(*group) for group in args.multicast],
    }


def listening_text(bound: Endpoint, fields: dict[str, Any]) -> str:
    text = (
        f"listening on {bound}, receive buffer {number(fields['rcvbuf_bytes'])} bytes, vlen {fields['vlen']}, "
        f"ring {number(fields['ring_slots'])} slots of {number(fields['slot_size_bytes'])} bytes"
    )
    if fields["gro"]:
        text += ", GRO"
    if fields["workers"] > 1:
        text += f", {fields['workers']} workers"
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """What one worker did, or all of them together."""

    datagrams: int = 0
    """Taken from the ring."""
    received: int = 0
    """By the thread, and put in the ring."""
    batches: int = 0
    """Receives that brought any."""
    kernel_drops: int | None = 0
    """None where the kernel does not say (Linux before 4.12)."""
    ring_drops: int = 0

    def __add__(self, other: Counts) -> Counts:
        return self._combine(other, 1)

    def __sub__(self, other: Counts) -> Counts:
        return self._combine(other, -1)

    def _combine(self, other: Counts, sign: int) -> Counts:
        drops, others = self.kernel_drops, other.kernel_drops
        return Counts(
            self.datagrams + sign * other.datagrams,
            self.received + sign * other.received,
            self.batches + sign * other.batches,
            None if drops is None or others is None else drops + sign * others,
            self.ring_drops + sign * other.ring_drops,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """The counts at one time."""

    all: Counts
    workers: tuple[Counts, ...]
    nbytes: int
    lost: int
    high_water: int
    """Slots that were in use at most, of all rings."""


class Run:
    """One run of receiving: what arrived so far. Times are of time.monotonic."""

    def __init__(
        self,
        socks: Sequence[fastsock.Socket],
        receiver: fastsock.Receiver,
        args: argparse.Namespace,
        reporter: Reporter,
    ) -> None:
        self.tracker = StreamTracker()
        self.gro = socks[0].gro
        self.datagrams = self.nbytes = self.truncated = 0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._socks = socks
        self._receiver = receiver
        # The rings of a receiver are those with the threads.
        self._workers = list(zip(socks, cast(tuple[Feeder, ...], receiver.rings), strict=True))
        self._args = args
        self._reporter = reporter
        self._reported = Totals(Counts(), (Counts(),) * len(socks), 0, 0, 0)
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
        return self._args.count is not None and self.datagrams >= self._args.count

    @property
    def elapsed_s(self) -> float:
        """From the first to the last datagram."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s

    @property
    def ring_slots(self) -> int:
        return sum(ring.slots for ring in self._receiver.rings)

    def receive(self, stop: Stop) -> OSError | None:
        """Receive until something asks to end; returns the error that did."""
        args = self._args
        idle_s = args.idle or math.inf
        began_s = seen_s = self._reported_s = time.monotonic()
        end_s = began_s + (args.duration or math.inf)
        report_s = began_s + args.interval
        wait_s = min(Stop.TICK_S, args.interval, idle_s, end_s - began_s)
        while not (stop.requested or self.full):
            try:
                taken = self._take(self._receiver, wait_s)
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
        """Count what is still queued, while nothing more is let in; returns the first error."""
        shut(self._socks)
        failures: list[OSError] = []
        # A stream that changed sockets while they were shut goes on in one that comes later here.
        for sock, ring in reversed(self._workers):
            try:
                self._empty_queue(sock, ring)
                ring.stop()
                while not self.full:
                    self._take(ring, None)
            except EOFError:
                pass
            except OSError as error:
                failures.append(error)
        return failures[0] if failures else None

    def _empty_queue(self, sock: fastsock.Socket, ring: fastsock.Ring) -> None:
        """Let a thread receive what is queued, while its ring is emptied."""
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        end_s = time.monotonic() + DRAIN_S
        while not self.full and time.monotonic() < end_s and any(event & select.POLLIN for _, event in poll.poll(0)):
            self._take(ring, Stop.TICK_S)

    def _take(self, source: fastsock.Receiver | fastsock.Ring, timeout: float | None) -> int:
        """Take and count one batch; 0 when nothing came in time."""
        left = None if self._args.count is None else self._args.count - self.datagrams
        with source.take(left, timeout) as batch:
            count = len(batch)
            if not count:
                return 0
            arrival_ns = time.time_ns()
            self._last_s = time.monotonic()
            if self._first_s is None:
                self._first_s = self._last_s
            self.datagrams += count
            self.nbytes += batch.nbytes
            self.truncated += batch.truncated.tobytes().count(1)
            self.tracker.feed(batch, None if self._args.timestamps else arrival_ns)
        return count

    def read_totals(self) -> Totals:
        """What it came to so far."""
        workers = []
        high_water = 0
        for sock, ring in self._workers:
            stats = ring.stats
            workers.append(Counts(stats.taken, stats.received, stats.batches, drops_of(sock), stats.ring_drops))
            high_water += stats.high_water
        return Totals(sum(workers, Counts()), tuple(workers), self.nbytes, self.tracker.lost, high_water)

    def _report(self, now_s: float) -> None:
        totals, last = self.read_totals(), self._reported
        elapsed_s = now_s - self._reported_s
        counts = totals.all - last.all
        nbytes = totals.nbytes - last.nbytes
        lost = totals.lost - last.lost if self.tracker.streams else None
        fields: dict[str, Any] = {
            "elapsed_s": elapsed_s,
            "datagrams": counts.datagrams,
            "bytes": nbytes,
            **rates(counts.datagrams, nbytes, elapsed_s),
            "datagrams_per_batch": ratio(counts.received, counts.batches),
            "kernel_drops": counts.kernel_drops,
            "kernel_drops_unit": self.drops_unit,
            "ring_drops": counts.ring_drops,
            "ring_high_water": totals.high_water,
            "lost": lost,
            "workers": [worker_fields(now - then) for now, then in zip(totals.workers, last.workers, strict=True)],
        }
        text = (
            f"{rate_text(fields)}, {number(counts.kernel_drops)} kernel drops{' (messages)' * self.gro}, "
            f"{number(counts.ring_drops)} ring drops, {number(fields['datagrams_per_batch'], 1)} per batch"
        )
        if lost is not None:
            text += f", {number(lost)} lost"
        self._reporter.interval(text, fields)
        self._reported, self._reported_s = totals, now_s


def drops_of(sock: fastsock.Socket) -> int | None:
    try:
        return sock.drops
    except OSError:
        return None  # before Linux 4.12


def shut(socks: Sequence[fastsock.Socket]) -> None:
    """Let nothing more in; what is queued stays.

    A UDP socket connected to itself hears no other peer. In an SO_REUSEPORT group it leaves its share to others
    meanwhile, or takes its place from the group (a wildcard's does) and the kernel deals anew. From the last to the
    first, streams only move to sockets before their own.
    """
    for sock in reversed(socks):
        with contextlib.suppress(OSError):
            sock.connect(own_address(sock))


def own_address(sock: fastsock.Socket) -> tuple[Any, ...]:
    """Where `sock` itself can be reached."""
    host, *rest = sock.getsockname()
    return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), *rest)


def worker_fields(counts: Counts) -> dict[str, Any]:
    return {"datagrams": counts.datagrams, "kernel_drops": counts.kernel_drops, "ring_drops": counts.ring_drops}


def summary_fields(run: Run, totals: Totals, result: StreamResult | None) -> dict[str, Any]:
    counts = totals.all
    return {
        "datagrams": counts.datagrams,
        "bytes": run.nbytes,
        "elapsed_s": run.elapsed_s,
        **rates(counts.datagrams, run.nbytes, run.elapsed_s),
        "datagrams_per_batch": ratio(counts.received, counts.batches),
        "batches": counts.batches,
        "truncated": run.truncated,
        "kernel_drops": counts.kernel_drops,
        "kernel_drops_unit": run.drops_unit,
        "ring_drops": counts.ring_drops,
        "ring_high_water": totals.high_water,
        "ring_slots": run.ring_slots,
        "workers": [
            {**worker_fields(worker), "share": ratio(worker.datagrams, counts.datagrams)} for worker in totals.workers
        ],
        "stream_datagrams": run.tracker.datagrams,
        "end_markers": run.tracker.end_markers,
        "other_datagrams": run.tracker.others,
        "delay_clock": run.delay_clock,
        "stream": None if result is None else dataclasses.asdict(result),
    }


def summary_rows(run: Run, totals: Totals, result: StreamResult | None) -> list[tuple[str, str]]:
    counts = totals.all
    datagrams = number(counts.datagrams)
    if result is not None:
        tracker = run.tracker
        datagrams += (
            f": {number(tracker.datagrams)} of {result.streams} stream{'s' if result.streams != 1 else ''}, "
            f"{number(tracker.end_markers)} end markers, {number(tracker.others)} others"
        )
    rows = [
        ("datagrams", datagrams),
        ("bytes", number(run.nbytes)),
        ("seconds", f"{run.elapsed_s:.3f} from the first to the last"),
        ("rate", rate_text(rates(counts.datagrams, run.nbytes, run.elapsed_s))),
        ("batches", f"{number(counts.batches)}, {number(ratio(counts.received, counts.batches), 1)} datagrams each"),
        ("truncated", number(run.truncated)),
        ("kernel drops", drops_text(counts.kernel_drops, run.gro)),
        ("ring drops", number(counts.ring_drops)),
        ("ring high water", f"{number(totals.high_water)} of {number(run.ring_slots)} slots"),
    ]
    if result is not None:
        rows += stream_rows(run, result)
    if len(totals.workers) > 1:
        rows += [(f"worker {i}", worker_text(run, worker, counts)) for i, worker in enumerate(totals.workers)]
    return rows


def stream_rows(run: Run, result: StreamResult) -> list[tuple[str, str]]:
    percent = 100 * result.lost / max(1, result.lost + result.received)
    rows = [
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


def worker_text(run: Run, worker: Counts, counts: Counts) -> str:
    share = ratio(100 * worker.datagrams, counts.datagrams)
    return (
        f"{number(worker.datagrams)} datagrams ({number(share, 1)} %), "
        f"{number(worker.kernel_drops)} kernel drops{' (messages)' * run.gro}, {number(worker.ring_drops)} ring drops"
    )


def drops_text(drops: int | None, gro: bool) -> str:
    if drops is None:
        return "unknown: this kernel does not say"
    return (
        f"{number(drops)} messages, each of one datagram or many that were joined" if gro and drops else number(drops)
    )
