"""What a busy Python thread in the receiver's process costs: datagrams, counted."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import fastsock
from fastsock.bench.paired import Rounds, scaled, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.results import Answer, Column, Figure, Row, Table

Receive = Callable[[], int]

RATE = 200_000
"""Datagrams a second that are offered."""
START_S = 30
"""For the sender to start."""
QUIET_S = 0.3
"""Nothing for so long: the sender is done."""
BOTH_S = 15
"""With a budget from here on, both buffers."""
OVERHEAD_S = 1.0
"""Of each sample: the sender starts, and is waited for."""
BUFFERS: dict[str, int | None] = {"default": None, "8 MB": 8 << 20}


class Ends(NamedTuple):
    """One bound socket: fastsock's, and the standard library's on a duplicate."""

    ours: fastsock.Socket
    theirs: socket.socket
    stack: ExitStack
    """What a way to receive must close."""


def one_by_one(ends: Ends) -> Receive:
    return lambda: len(ends.theirs.recv(2048)) > 0


def in_lists(ends: Ends) -> Receive:
    return lambda: len(ends.ours.recv_many())


def in_a_batch(ends: Ends) -> Receive:
    batch = fastsock.RecvBatch()
    return lambda: ends.ours.recv_batch(batch)


def by_a_receiver(priority: int) -> Callable[[Ends], Receive]:
    def build(ends: Ends) -> Receive:
        receiver = ends.stack.enter_context(fastsock.Receiver(ends.ours, priority=priority))

        def receive() -> int:
            batch = receiver.take(timeout=ends.ours.gettimeout())
            if not batch:
                raise TimeoutError
            return len(batch)

        return receive

    return build


def ways() -> dict[str, Callable[[Ends], Receive]]:
    found = {
        "socket.recv": one_by_one,
        "recv_many": in_lists,
        "recv_batch": in_a_batch,
        "Receiver": by_a_receiver(0),
    }
    return found | ({"Receiver(priority=1)": by_a_receiver(1)} if may_be_real_time() else {})


def may_be_real_time() -> bool:
    """Whether this process may have a real-time thread."""
    with fastsock.bind_udp(("127.0.0.1", 0)) as sock:
        try:
            fastsock.Receiver(sock, slots=64, priority=1).close()
        except PermissionError:
            return False
    return True


def receive_once(build: Callable[[Ends], Receive], seconds: float, rcvbuf: int | None) -> dict[str, float]:
    """The share of datagrams lost by one way of receiving, beside a busy thread."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(1000))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sock = fastsock.bind_udp(("127.0.0.1", 0), rcvbuf=rcvbuf)
    with sock, socket.socket(fileno=sock.dup().detach()) as std, ExitStack() as stack:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        command = [sys.executable, "-m", "fastsock", "send", address, "--json", "--size", "64", "--rate", str(RATE)]
        # Before anything is sent: making a ring takes longer than the default buffer lasts.
        receive = build(Ends(sock, std, stack))
        sock.settimeout(START_S)
        std.settimeout(START_S)
        sender = subprocess.Popen([*command, "--duration", str(seconds)], stdout=subprocess.PIPE)
        stack.callback(sender.wait)
        count = receive()
        sock.settimeout(QUIET_S)
        std.settimeout(QUIET_S)
        thread = threading.Thread(target=busy)
        thread.start()
        try:
            while True:
                count += receive()
        except TimeoutError:
            pass
        finally:
            stop.set()
            thread.join()
            out, _ = sender.communicate()
        sent = max(1, json.loads(out.splitlines()[-1])["sent"])
        return {"lost": max(0.0, 1 - count / sent), "per_s": count / seconds}


def buffers_for(plan: Plan) -> list[str]:
    """The default one alone, where there is little time."""
    return list(BUFFERS) if plan.budget_s >= BOTH_S else list(BUFFERS)[:1]


def measure(plan: Plan, names: list[str] | None = None) -> Rounds:
    """Each way with each buffer: "Receiver, 8 MB"."""
    everything = ways()
    names = [name for name in (names or everything) if name in everything]
    buffers = {words: BUFFERS[words] for words in buffers_for(plan)}
    seconds = min(3.0, max(0.4, plan.budget_s / (len(names) * len(buffers)) - OVERHEAD_S))

    def turn(name: str, rcvbuf: int | None) -> Callable[[], dict[str, float]]:
        return lambda: receive_once(everything[name], seconds, rcvbuf)

    turns = {f"{name}, {words}": turn(name, rcvbuf) for name in names for words, rcvbuf in buffers.items()}
    return take_turns(
        turns,
        plan.budget_s,
        rounds=plan.rounds,
        rng=random.Random(plan.seed),
        progress=lambda share: plan.progress("busy thread", share),
    )


def run(plan: Plan) -> Answer:
    found = measure(plan)
    rows = []
    for name in ways():
        cells: dict[str, Figure | float | int | str | None] = {}
        for words in buffers_for(plan):
            cells[f"lost_{words}"] = scaled(found.figure(f"{name}, {words}", "lost"), 100)
            cells[f"per_s_{words}"] = scaled(found.figure(f"{name}, {words}", "per_s"), 1e-3)
        rows.append(Row(name, cells, "socket" if name.startswith("socket") else "fastsock"))
    columns = [
        column
        for words in buffers_for(plan)
        for column in (
            Column(f"per_s_{words}", f"{words} buffer, received/s", "k", 0),
            Column(f"lost_{words}", "lost", "%", 2),
        )
    ]
    note = (
        "Sender, busy thread and receiving thread want a CPU each: with fewer than three, or beside other load, "
        "a Receiver without priority loses what it is not scheduled for. The default buffer is net.core.rmem_default."
    )
    if "Receiver(priority=1)" not in ways():
        note += " A real-time thread (priority=1) is not allowed here: it takes CAP_SYS_NICE or RLIMIT_RTPRIO."
    method = (
        f"A second process sends {RATE:,} datagrams/s of 64 B; this one receives while another of its threads "
        "computes in Python. Each way gets the same stream in turn; lost is the share of what was sent that was not "
        "received."
    )
    return Answer("busy", QUESTION.title, method, tables=[Table("beside a busy thread", columns, rows, note)])


QUESTION = Question("busy", "What does a busy Python thread cost a receiver?", run, weight=3, by_default=False)
