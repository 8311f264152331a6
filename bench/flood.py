"""How many datagrams a second does each way to receive take in, live, while more are sent than it can take?

    python bench/flood.py [--size 64] [--seconds 1] [--samples 5] [--rcvbuf BYTES] [--json]

A second process, on a CPU of its own, sends without a pause: C, with UDP_SEGMENT. Only what
was received is counted. Lost is the share of what was sent meanwhile that was not received.
Drops are the kernel's own count (SO_MEMINFO); a message of joined datagrams that finds no
room at a receiver with UDP GRO counts once there, which `per drop` shows. CPU time
is the receiving thread's, and `of a CPU` what it got: well below 100 % something else ran on
its CPU, and datagrams/s mean little. Receiver's is its native thread; the Python thread that takes
the batches shares that CPU here, and its part is in `ns taking`.

Floods vary two- or threefold between samples. The ways take turns in an order shuffled anew,
and the median is shown with the extremes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import native

import fastsock
from fastsock.cli.arguments import parse_count, parse_seconds, size_between
from fastsock.cli.bench import environment
from fastsock.cli.contestants import GRO_RECEIVERS, RCVBUF, RECEIVERS, VLEN, Link, Run, has_gro

# Datagrams between two looks at the clock.
STEP = 64 * VLEN


class Taking:
    """Takes whole batches from a Receiver, whose native thread has a clock of its own."""

    def __init__(self, link: Link) -> None:
        (cpu,) = os.sched_getaffinity(0) if len(os.sched_getaffinity(0)) == 1 else (None,)
        self.receiver = fastsock.Receiver(link.receiver, cpus=None if cpu is None else [cpu])
        self.thread = next(
            task for task in os.listdir("/proc/self/task") if read(f"/proc/self/task/{task}/comm") == "fastsock-rx0\n"
        )

    def __call__(self, count: int) -> int:
        taken = 0
        while taken < count:
            taken += len(self.receiver.take())
        return taken

    def cpu_ns(self) -> int:
        """What the native thread ran so far: proc(5), schedstat."""
        return int(read(f"/proc/self/task/{self.thread}/schedstat").split()[0])

    def close(self) -> None:
        self.receiver.close()


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


WAYS: dict[str, Callable[[Link], Run]] = {
    "socket.recv": RECEIVERS["socket.recv"],
    "C recvmmsg": native.RECEIVERS["C recvmmsg"],
    "recv_many": RECEIVERS["recv_many(64)"],
    "recv_batch": RECEIVERS["recv_batch"],
    "Receiver": Taking,
}
GRO_WAYS: dict[str, Callable[[Link], Run]] = {**native.GRO_RECEIVERS, **GRO_RECEIVERS, "Receiver, GRO": Taking}


@dataclass(frozen=True, slots=True)
class Sample:
    """One flood, as one way to receive saw it."""

    received: int
    sent: int
    drops: int
    """As the kernel counts them."""
    seconds: float
    cpu_ns: int
    taking_ns: int
    """CPU time of the Python thread, where another one receives."""

    @property
    def per_s(self) -> float:
        return self.received / self.seconds

    @property
    def lost(self) -> float:
        return max(0.0, 1 - self.received / self.sent)

    @property
    def ns(self) -> float:
        """CPU time of the receiving thread, per datagram received."""
        return self.cpu_ns / self.received

    @property
    def ns_taking(self) -> float:
        return self.taking_ns / self.received

    @property
    def cpu_share(self) -> float:
        return self.cpu_ns / self.seconds / 1e9

    @property
    def per_drop(self) -> float:
        """Datagrams that were lost for each drop that the kernel counted."""
        return (self.sent - self.received) / self.drops if self.drops else 0.0


@contextmanager
def flooded(link: Link, cpu: int | None, fd: int = -1) -> Iterator[ctypes.c_int64]:
    """Have a child send to the link until the end of the block; gives its count of datagrams sent.

    The count is also the beginning of the file `fd`, a page long, if there is one.
    """
    shared = mmap.mmap(fd, mmap.PAGESIZE)
    sent = ctypes.c_int64.from_buffer(shared)
    native.library()
    child = os.fork()
    if child == 0:
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            payloads = b"".join(link.payloads)
            native.library().c_flood(link.gso_sender.fileno(), payloads, link.size, ctypes.byref(sent))
        finally:
            os._exit(1)
    try:
        yield sent
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def sample(way: str, size: int, seconds: float, rcvbuf: int, sender_cpu: int | None) -> Sample:
    """Receive one way for so many seconds."""
    gro = way in GRO_WAYS
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(Link(size, rcvbuf=rcvbuf, gso=True, gro=gro))
        # The child first: a process with threads had better not fork.
        sent = stack.enter_context(flooded(link, sender_cpu))
        run = (GRO_WAYS if gro else WAYS)[way](link)
        if isinstance(run, Taking):
            stack.callback(run.close)
        clock = run.cpu_ns if isinstance(run, Taking) else time.thread_time_ns
        run(STEP)
        offered, drops, before = sent.value, link.dropped(), received_by(run)
        begin, cpu_begin, own_begin = time.monotonic(), clock(), time.thread_time_ns()
        received = 0
        now = begin
        while now - begin < seconds:
            received += run(STEP)
            now = time.monotonic()
        cpu_ns, own_ns = clock() - cpu_begin, time.thread_time_ns() - own_begin
        if isinstance(run, Taking):
            received = received_by(run) - before
        return Sample(
            received,
            sent.value - offered,
            link.dropped() - drops,
            now - begin,
            cpu_ns,
            own_ns if isinstance(run, Taking) else 0,
        )


def received_by(run: Run) -> int:
    """Datagrams in the ring of a Receiver so far: what was taken of them comes a little later."""
    return run.receiver.stats.received if isinstance(run, Taking) else 0


def collect(ways: list[str], args: argparse.Namespace) -> dict[str, list[Sample]]:
    cpus = sorted(os.sched_getaffinity(0))
    apart = len(cpus) > 1
    if apart:
        os.sched_setaffinity(0, {cpus[0]})
    samples: dict[str, list[Sample]] = {way: [] for way in ways}
    rng = random.Random()
    for _ in range(args.samples):
        for way in rng.sample(ways, len(ways)):
            cpu = cpus[1] if apart else None
            samples[way].append(sample(way, args.size, args.seconds, args.rcvbuf, cpu))
    return samples


def print_table(samples: dict[str, list[Sample]]) -> None:
    def middle(taken: list[Sample], of: Callable[[Sample], float]) -> float:
        return statistics.median(map(of, taken))

    print(f"{'':18}  received/s, M  [least-most]   x recv   ns CPU  ns taking  of a CPU    lost     drops/s  per drop")
    base = middle(samples["socket.recv"], lambda one: one.per_s)
    for way, taken in samples.items():
        rates = [one.per_s for one in taken]
        rate = statistics.median(rates)
        print(
            f"{way:18}  {rate / 1e6:13.2f}  [{min(rates) / 1e6:5.2f}-{max(rates) / 1e6:5.2f}]  {rate / base:6.1f}"
            f"  {middle(taken, lambda one: one.ns):7.1f}  {middle(taken, lambda one: one.ns_taking):9.1f}"
            f"  {middle(taken, lambda one: one.cpu_share):8.0%}"
            f"  {middle(taken, lambda one: one.lost):6.1%}"
            f"  {middle(taken, lambda one: one.drops / one.seconds):10,.0f}"
            f"  {middle(taken, lambda one: one.per_drop):8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_between(1, 2048), default=64, help="bytes of each payload")
    parser.add_argument("--seconds", type=parse_seconds, default=1.0, help="of each sample")
    parser.add_argument("--samples", type=parse_count, default=5)
    parser.add_argument("--rcvbuf", type=size_between(4096, 1 << 30), default=RCVBUF)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    ways = [*WAYS, *(GRO_WAYS if has_gro() else ())]
    about = environment()
    samples = collect(ways, args)
    if args.json:
        found = {way: [asdict(one) for one in taken] for way, taken in samples.items()}
        print(json.dumps({"environment": about, "size": args.size, "rcvbuf": args.rcvbuf, "samples": found}))
        return
    print(f"Linux {about['kernel']}, {about['cpus']} CPUs, Python {about['python']}, fastsock {about['fastsock']};")
    print(f"{args.samples} samples of {args.seconds} s, {args.size} B, receive buffer {args.rcvbuf} bytes\n")
    print_table(samples)


if __name__ == "__main__":
    main()
