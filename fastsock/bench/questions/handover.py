"""What taking from a Receiver costs in Python, and whether its memory stays as it was."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import fastsock
from fastsock.bench.contestants import RCVBUF, VLEN
from fastsock.bench.paired import Rounds, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.results import Answer, Column, Row, Table

QUEUED = 8192
"""Datagrams in the ring before the clock starts."""
CALLS = 8
MOST: dict[str, int | None] = {"take(1)": 1, "take(64)": 64, "take(1024)": 1024, "take()": None}
DATAGRAMS_PER_S = 1_000_000
"""For the growth of memory: so many for each second of the budget."""
GIVE_UP_S = 10


def bind(**options: Any) -> fastsock.Socket:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return fastsock.bind_udp(("127.0.0.1", 0), rcvbuf=RCVBUF, **options)


def measure_takes(plan: Plan, budget_s: float) -> Rounds:
    """CPU time of a call that finds something, and how many datagrams it finds."""
    payloads = [bytes(64)] * VLEN
    with bind() as sock, fastsock.connect_udp(sock.getsockname()) as sender, fastsock.Receiver(sock) as receiver:

        def turn(most: int | None) -> Callable[[], dict[str, float]]:
            def take() -> dict[str, float]:
                deadline = time.monotonic() + GIVE_UP_S
                for _ in range(QUEUED // VLEN):
                    sender.send_many(payloads)
                    # No faster than it is received, so that none is dropped.
                while receiver.stats.received < receiver.stats.taken + QUEUED:
                    if time.monotonic() > deadline:
                        raise OSError("datagrams were dropped: the receive buffer is too small for this")
                    time.sleep(0.0001)
                taken, calls = 0, 0
                begin = time.thread_time_ns()
                while calls < CALLS and taken < QUEUED:
                    taken += len(receiver.take(most))
                    calls += 1
                ns = time.thread_time_ns() - begin
                while receiver.take(timeout=0):
                    pass
                return {"us": ns / calls / 1e3, "datagrams": taken / calls, "ns": ns / taken}

            return take

        turns = {name: turn(most) for name, most in MOST.items()}
        return take_turns(
            turns,
            budget_s,
            rounds=plan.rounds,
            warm_rounds=1,
            rng=random.Random(plan.seed),
            progress=lambda share: plan.progress("take", share / 2),
        )


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def measure_growth(datagrams: int, progress: Callable[[float], None]) -> dict[str, int]:
    """Resident memory in KiB after a tenth of the datagrams, and after all."""
    payloads = [bytes(64)] * VLEN
    with (
        bind(gro=True) as sock,
        fastsock.connect_udp(sock.getsockname()) as sender,
        fastsock.Receiver(sock) as receiver,
    ):
        taken, first = 0, 0
        while taken < datagrams:
            for _ in range(VLEN):
                sender.send_many(payloads)
            taken += len(receiver.take())
            while batch := receiver.take(timeout=0):
                taken += len(batch)
            del batch
            progress(min(1.0, taken / datagrams))
            if not first and taken > datagrams // 10:
                first = resident_kib()
        return {
            "datagrams": taken,
            "ring": receiver.rings[0].nbytes >> 10,
            "grown": resident_kib() - first,
            "last": resident_kib(),
        }


def run(plan: Plan) -> Answer:
    takes = measure_takes(plan, plan.budget_s / 2)
    datagrams = 100_000 if plan.rounds else int(DATAGRAMS_PER_S * max(1.0, plan.budget_s / 2))
    growth = measure_growth(datagrams, lambda share: plan.progress("memory", 0.5 + share / 2))
    rows = [
        Row(name, {measure: takes.figure(name, measure) for measure in ("us", "datagrams", "ns")})
        for name in takes.values
    ]
    tables = [
        Table(
            "take",
            [
                Column("us", "a call", "us", 2),
                Column("datagrams", "datagrams", "each", 0),
                Column("ns", "per datagram", "ns", 2),
            ],
            rows,
            "CPU time of the thread that takes; what it takes is views, not copies.",
        ),
        Table(
            "memory",
            [
                Column("grown", "grown", "KiB", 0),
                Column("last", "of", "KiB", 0),
                Column("ring", "the ring", "KiB", 0),
                Column("datagrams", "datagrams", "each", 0),
            ],
            [Row("Receiver", {**growth})],
            "Resident memory of the process, from a tenth of the datagrams to all.",
        ),
    ]
    method = (
        f"{QUEUED:,} datagrams are in the ring before the clock starts; the sizes take turns in an order shuffled "
        "anew. Memory: as many datagrams as the time allows, sent and taken by this process."
    )
    return Answer("handover", QUESTION.title, method, tables=tables)


QUESTION = Question(
    "handover", "What does taking from a Receiver cost, in time and memory?", run, weight=1, by_default=False
)
