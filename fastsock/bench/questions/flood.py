"""How many datagrams a second each way to receive takes in, live, while more are sent than it can take.

A second process, on a CPU of its own, sends without a pause, with UDP_SEGMENT. Receiver's CPU time is its native
thread's; the Python thread that takes the batches shares that CPU here.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import fastsock
from fastsock.bench import native
from fastsock.bench.contestants import GRO_RECEIVERS, RCVBUF, RECEIVERS, VLEN, Link, Run, has_gro
from fastsock.bench.floods import Cpus, choose_cpus, flooded, on_cpu
from fastsock.bench.paired import Rounds, scaled, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import kind_of
from fastsock.bench.results import Answer, Column, Row, Table

STEP = 64 * VLEN
"""Datagrams between two looks at the clock."""
SIZE = 64


class Taking:
    """Takes whole batches from a Receiver, whose native thread has a clock of its own."""

    def __init__(self, link: Link, priority: int = 0) -> None:
        cpus = list(os.sched_getaffinity(0))
        before = set(os.listdir("/proc/self/task"))
        self.receiver = fastsock.Receiver(link.receiver, cpus=cpus if len(cpus) == 1 else None, priority=priority)
        (self.thread,) = set(os.listdir("/proc/self/task")) - before

    def __call__(self, count: int) -> int:
        taken = 0
        while taken < count:
            taken += len(self.receiver.take())
        return taken

    def cpu_ns(self) -> int:
        """What the native thread ran so far: proc(5), schedstat."""
        with open(f"/proc/self/task/{self.thread}/schedstat") as file:
            return int(file.read().split()[0])

    def close(self) -> None:
        self.receiver.close()


def ways() -> dict[str, tuple[Callable[[Link], Run], bool]]:
    """Each way to receive, and whether it takes joined datagrams."""
    plain: dict[str, Callable[[Link], Run]] = {
        "socket.recv": RECEIVERS["socket.recv"],
        "recv_many": RECEIVERS["recv_many(64)"],
        "recv_batch": RECEIVERS["recv_batch"],
        "Receiver": Taking,
        **native.where_built({"C recvmmsg": native.RECEIVERS["C recvmmsg"]}),
    }
    found = {name: (build, False) for name, build in plain.items()}
    if has_gro():
        joined: dict[str, Callable[[Link], Run]] = {
            "recv_many, GRO": GRO_RECEIVERS["recv_many, GRO"],
            "recv_batch, GRO": GRO_RECEIVERS["recv_batch, GRO"],
            "Receiver, GRO": Taking,
            **native.where_built(native.GRO_RECEIVERS),
        }
        found |= {name: (build, True) for name, build in joined.items()}
    return found


def received_by(run: Run) -> int:
    """Datagrams in the ring of a Receiver so far: what was taken of them comes a little later."""
    return run.receiver.stats.received if isinstance(run, Taking) else 0


def receive_once(build: Callable[[Link], Run], gro: bool, seconds: float, cpus: Cpus) -> dict[str, float]:
    """Receive one way for so many seconds."""
    with ExitStack() as stack:
        link = stack.enter_context(Link(SIZE, rcvbuf=RCVBUF, gso=True, gro=gro))
        # The child first: a process with threads had better not fork.
        sent = stack.enter_context(flooded(link, cpus.other))
        run = build(link)
        if isinstance(run, Taking):
            stack.callback(run.close)
        clock = run.cpu_ns if isinstance(run, Taking) else time.thread_time_ns
        run(STEP)
        offered, drops, before = sent.value, link.dropped(), received_by(run)
        begin, cpu_begin = time.monotonic(), clock()
        received = 0
        now = begin
        while now - begin < seconds:
            received += run(STEP)
            now = time.monotonic()
        cpu_ns = clock() - cpu_begin
        if isinstance(run, Taking):
            received = received_by(run) - before
        return {
            "per_s": received / (now - begin),
            "ns": cpu_ns / received,
            "lost": max(0.0, 1 - received / max(1, sent.value - offered)),
            "drops": (link.dropped() - drops) / (now - begin),
            "cpu": cpu_ns / (now - begin) / 1e9,
        }


def measure(plan: Plan, names: list[str] | None = None) -> Rounds:
    everything = ways()
    seconds = min(1.0, max(0.2, plan.budget_s / len(everything) / 5))
    cpus = choose_cpus()

    def turn(name: str) -> Callable[[], dict[str, float]]:
        build, gro = everything[name]
        return lambda: receive_once(build, gro, seconds, cpus)

    with on_cpu(cpus.own):
        return take_turns(
            {name: turn(name) for name in (names or everything)},
            plan.budget_s,
            rounds=plan.rounds,
            rng=random.Random(plan.seed),
            progress=lambda share: plan.progress("flood", share),
        )


def run(plan: Plan) -> Answer:
    found = measure(plan)
    rows = [
        Row(
            name,
            {
                "per_s": scaled(found.figure(name, "per_s"), 1e-6),
                "ratio": found.ratio(name, "socket.recv", "per_s", more_is_better=True),
                "lost": scaled(found.figure(name, "lost"), 100),
                "ns": found.figure(name, "ns"),
                "cpu": scaled(found.figure(name, "cpu"), 100),
                "drops": scaled(found.figure(name, "drops"), 1e-3),
            },
            kind_of(name),
            None if name == "socket.recv" else "socket.recv",
        )
        for name in found.values
    ]
    columns = [
        Column("per_s", "received/s", "M", 2),
        Column("ratio", "×", "x", 2),
        Column("lost", "lost", "%", 1),
        Column("ns", "CPU", "ns", 0),
        Column("cpu", "of a CPU", "%", 0),
        Column("drops", "drops/s", "k", 0),
    ]
    note = (
        "Lost is the share of what was sent meanwhile that was not received. Drops are the kernel's own count "
        "(SO_MEMINFO), in which a message of joined datagrams that finds no room counts once. Well below 100 % of a "
        "CPU something else ran there, and rates mean little. Receiver's CPU is its native thread's; the Python "
        "thread shares that CPU here."
    )
    method = (
        "A second process, on a CPU of its own, sends 64 B without a pause, joined by UDP_SEGMENT. Only what was "
        "received is counted. The ways take turns in an order shuffled anew; medians. Floods vary two- or threefold "
        "between samples: see the quartiles."
    )
    if why := native.missing():
        note += f" Without C: {why}."
    return Answer("flood", QUESTION.title, method, tables=[Table("flood of 64 B", columns, rows, note)])


QUESTION = Question(
    "flood", "How many datagrams a second does each way take in, live?", run, weight=2, by_default=False
)
