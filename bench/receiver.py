"""What does Receiver cost in Python, how fast does it answer, and does its memory stay as it was?

    python bench/receiver.py [--quick] [--rounds N] [--datagrams N] [--json] [--check]

`take` is CPU time of the calling thread for a call that finds something, whatever its size. A round trip goes
to another process on another CPU and back, of 64 bytes: both ends block in socket.recv, or in Receiver.take, or
look for datagrams without sleeping (`spin_us`); the three take turns. Memory is the process's own, after a
start and after so many datagrams. `--check` exits with 1 where a row misses its target.

Loss beside a busy thread is in busy_thread.py, the native thread's CPU time in flood.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fastsock
from fastsock.cli.arguments import parse_count
from fastsock.cli.bench import environment
from fastsock.cli.paired import spread

QUEUED = 8192
TRIPS = 2000
SPIN_US = 1_000_000
TAKE_US = 2.0
"""At most."""
SPIN_RATIO = 4.0
"""At least."""
GROWTH_KIB = 1024
"""At most: the interpreter's own."""


def bind(**options: Any) -> fastsock.Socket:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return fastsock.bind_udp(("127.0.0.1", 0), rcvbuf=8 << 20, **options)


# --- handing over --------------------------------------------------------------------------------


def measure_takes(sizes: dict[str, int | None], rounds: int) -> dict[str, float]:
    """Microseconds of CPU time that a take costs, by the most that it takes."""
    payloads = [bytes(64)] * 64
    costs: dict[str, list[float]] = {name: [] for name in sizes}
    with bind() as sock, fastsock.connect_udp(sock.getsockname()) as sender, fastsock.Receiver(sock) as receiver:
        for _ in range(rounds):
            for name in random.sample(list(sizes), len(sizes)):
                for _ in range(QUEUED // len(payloads)):
                    sender.send_many(payloads)
                while receiver.stats.received < receiver.stats.taken + QUEUED:
                    time.sleep(0.0001)
                most, calls = sizes[name], 8
                begin = time.thread_time_ns()
                for _ in range(calls):
                    receiver.take(most)
                costs[name].append((time.thread_time_ns() - begin) / calls / 1000)
                while receiver.take(timeout=0):
                    pass
    return {name: statistics.median(cost) for name, cost in costs.items()}


# --- round trips ---------------------------------------------------------------------------------


def waiting(way: str, sock: fastsock.Socket) -> tuple[Callable[[], object], Callable[[], None]]:
    """A function that waits for a datagram in this way, and one that ends it."""
    if way == "socket.recv":
        twin = socket.socket(fileno=os.dup(sock.fileno()))
        return lambda: twin.recv(2048), twin.close
    receiver = fastsock.Receiver(sock, slots=1024, spin_us=SPIN_US if way == "Receiver, spin" else 0)
    return receiver.take, receiver.close


@contextmanager
def echoes(way: str, cpus: list[int]) -> Iterator[Callable[[], None]]:
    """A round trip to a process on the second CPU, by a thread on the first."""
    with bind() as near, bind() as far:
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        child = os.fork()
        if child == 0:
            try:
                os.sched_setaffinity(0, {cpus[1]})
                receive, _ = waiting(way, far)
                while True:
                    receive()
                    far.send(bytes(64))
            finally:
                os._exit(1)
        try:
            os.sched_setaffinity(0, {cpus[0]})
            receive, close = waiting(way, near)

            def trip() -> None:
                near.send(bytes(64))
                receive()

            try:
                trip()
                yield trip
            finally:
                close()
        finally:
            os.sched_setaffinity(0, cpus)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def measure_trips(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Percentiles of round trips in microseconds, by the way of waiting, a dict for each round."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise SystemExit("round trips between CPUs need two of them")
    ways = ["socket.recv", "Receiver", "Receiver, spin"]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):
            with echoes(way, cpus) as trip:
                times = []
                for _ in range(TRIPS):
                    begin = time.perf_counter_ns()
                    trip()
                    times.append((time.perf_counter_ns() - begin) / 1000)
            times.sort()
            found[way].append({"p50": times[TRIPS // 2], "p99": times[TRIPS * 99 // 100]})
    return found


# --- memory --------------------------------------------------------------------------------------


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def measure_growth(datagrams: int) -> dict[str, int]:
    """Resident memory in KiB after a tenth of the datagrams, and after all."""
    payloads = [bytes(64)] * 64
    with (
        bind(gro=True) as sock,
        fastsock.connect_udp(sock.getsockname()) as sender,
        fastsock.Receiver(sock) as receiver,
    ):
        taken, first = 0, 0
        while taken < datagrams:
            for _ in range(64):
                sender.send_many(payloads)
            taken += len(receiver.take())
            while batch := receiver.take(timeout=0):
                taken += len(batch)
            del batch
            if not first and taken > datagrams // 10:
                first = resident_kib()
        return {
            "datagrams": taken,
            "ring_kib": receiver.rings[0].nbytes >> 10,
            "first_kib": first,
            "last_kib": resident_kib(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and a million datagrams")
    parser.add_argument("--rounds", type=parse_count, default=10)
    parser.add_argument("--datagrams", type=parse_count, default=10_000_000, help="for the growth of memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    rounds, datagrams = (2, 1_000_000) if args.quick else (args.rounds, args.datagrams)
    trips = measure_trips(rounds)  # forks: before there are threads
    takes = measure_takes({"1": 1, "64": 64, "all": None}, rounds)
    growth = measure_growth(datagrams)
    ratios = {
        way: {
            q: spread([b[q] / o[q] for b, o in zip(trips["socket.recv"], trips[way], strict=True)])
            for q in ("p50", "p99")
        }
        for way in trips
    }
    missed = [f"take({name}): {cost:.2f} us" for name, cost in takes.items() if cost > TAKE_US]
    if ratios["Receiver, spin"]["p50"].median < SPIN_RATIO:
        missed.append(f"spinning: {ratios['Receiver, spin']['p50'].median:.1f}x")
    if growth["last_kib"] - growth["first_kib"] > GROWTH_KIB:
        missed.append(f"memory grew by {growth['last_kib'] - growth['first_kib']} KiB")
    if args.json:
        print(
            json.dumps(
                {
                    "environment": environment(),
                    "take_us": takes,
                    "round_trips_us": trips,
                    "memory": growth,
                    "missed": missed,
                }
            )
        )
    else:
        about = environment()
        print(
            f"Linux {about['kernel']}, {about['cpus']} CPUs, Python {about['python']}, fastsock {about['fastsock']}\n"
        )
        print("take(), us of CPU time:  " + ", ".join(f"{name} datagrams {cost:.2f}" for name, cost in takes.items()))
        print(f"\nround trip, us {'p50':>10} {'p99':>8}   x socket.recv: p50 [quartiles]")
        for way, rows in trips.items():
            p50, p99 = (statistics.median(row[q] for row in rows) for q in ("p50", "p99"))
            ratio = ratios[way]["p50"]
            print(f"{way:16} {p50:8.1f} {p99:8.1f}   {ratio.median:5.2f} [{ratio.low:.2f}-{ratio.high:.2f}]")
        print(
            f"\nmemory: {growth['last_kib'] - growth['first_kib']:+,} KiB over {growth['datagrams']:,} datagrams "
            f"of {growth['last_kib']:,} KiB, of which the ring is {growth['ring_kib']:,}"
        )
        for text in missed:
            print(f"short: {text}")
    sys.exit(1 if args.check and missed else 0)


if __name__ == "__main__":
    main()
