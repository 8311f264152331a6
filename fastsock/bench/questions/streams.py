"""Whether connections and round trips on TCP and Unix streams are as fast as the standard library's.

Everything runs on one CPU. With both ends in one thread nothing ever waits; with the other end in a process of its
own both wait in the kernel, and fastsock pays for the try that found nothing (docs/design/layers.md, Waiting).
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from fastsock import Socket
from fastsock.bench.floods import on_cpu
from fastsock.bench.paired import Rounds, collector_off, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.results import Answer, Column, Row, Table

CONNECTIONS = 64
"""Per turn: no more than the backlog holds."""
TRIPS = 400
"""Round trips per turn; each is timed, so that a turn has a p50 and a p99."""
SIZE = 64
CLASSES: dict[str, Any] = {"socket": socket.socket, "Socket": Socket}
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that leaves no TIME_WAIT behind, of which the ports would run out."""

Turn = Callable[[str], dict[str, float]]


def listener(family: int, stack: ExitStack) -> tuple[Any, Any]:
    """A listening socket of the standard library, and its address."""
    made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    made.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")  # autobind: an abstract name
    made.listen(128)
    return made, made.getsockname()


@contextmanager
def connections(family: int) -> Iterator[Turn]:
    """CPU time of connect, and of accept and close, by one thread."""
    with ExitStack() as stack:
        listening, address = listener(family, stack)
        listeners = {name: stack.enter_context(cls(fileno=os.dup(listening.fileno()))) for name, cls in CLASSES.items()}
        clock = time.thread_time_ns

        def turn(name: str) -> dict[str, float]:
            clients = [CLASSES[name](family, socket.SOCK_STREAM) for _ in range(CONNECTIONS)]
            begin = clock()
            for client in clients:
                client.connect(address)
            connected = clock()
            accept = listeners[name].accept
            for _ in clients:
                accept()[0].close()
            accepted = clock()
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
            return {
                "connect": (connected - begin) / CONNECTIONS,
                "accept + close": (accepted - connected) / CONNECTIONS,
            }

        yield turn


def connected_pair(family: int, stack: ExitStack) -> tuple[Any, Any]:
    listening, address = listener(family, stack)
    near = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    near.connect(address)
    far = stack.enter_context(listening.accept()[0])
    if family == socket.AF_INET:
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def percentiles(ns: list[int]) -> dict[str, float]:
    cuts = statistics.quantiles(ns, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}


def twins(sock: Any, stack: ExitStack) -> dict[str, Any]:
    """Both classes on duplicates of one descriptor."""
    return {name: stack.enter_context(cls(fileno=os.dup(sock.fileno()))) for name, cls in CLASSES.items()}


@contextmanager
def echoes(family: int) -> Iterator[Turn]:
    """Latency of a round trip whose two ends are in one thread: nothing ever waits."""
    with ExitStack() as stack:
        near, far = (twins(end, stack) for end in connected_pair(family, stack))
        message = b"x" * SIZE
        clock = time.perf_counter_ns

        def turn(name: str) -> dict[str, float]:
            ask, hear = near[name].sendall, near[name].recv
            answer, listen = far[name].sendall, far[name].recv
            ns = []
            for _ in range(TRIPS):
                begin = clock()
                ask(message)
                answer(listen(SIZE))
                hear(SIZE)
                ns.append(clock() - begin)
            return percentiles(ns)

        yield turn


def serve(far: Any) -> None:
    """Answer until end-of-file; a message of the other size says by which class from now on."""
    with ExitStack() as stack:
        ends = twins(far, stack)
        names = list(CLASSES)
        chosen = ends[names[0]]
        while message := chosen.recv(SIZE):
            chosen.sendall(message)
            if len(message) != SIZE:
                chosen = ends[names[message[0]]]


@contextmanager
def blocking_echoes(family: int) -> Iterator[Turn]:
    """Latency of a round trip to another process on the same CPU: both ends wait in the kernel."""
    with ExitStack() as stack:
        near, far = connected_pair(family, stack)
        child = os.fork()
        if child == 0:
            near.close()
            try:
                serve(far)
            finally:
                os._exit(0)
        stack.callback(os.waitpid, child, 0)
        far.close()
        ends = twins(near, stack)
        stack.callback(near.shutdown, socket.SHUT_RDWR)
        message = b"x" * SIZE
        clock = time.perf_counter_ns

        def turn(name: str) -> dict[str, float]:
            near.sendall(bytes([list(CLASSES).index(name)]))
            near.recv(1)
            ask, hear = ends[name].sendall, ends[name].recv
            ns = []
            for _ in range(TRIPS):
                begin = clock()
                ask(message)
                hear(SIZE)
                ns.append(clock() - begin)
            return percentiles(ns)

        yield turn


FAMILIES = {"TCP": socket.AF_INET, "Unix": socket.AF_UNIX}
OPENERS: dict[str, Callable[[int], AbstractContextManager[Turn]]] = {
    "connections": connections,
    "echo": echoes,
    "echo of a process": blocking_echoes,
}
CPU_TIME = ("connect", "accept + close")


def measure(
    plan: Plan, opened: AbstractContextManager[Turn], budget_s: float, progress: Callable[[float], None]
) -> Rounds:
    """Both classes, in turns of an order that is shuffled anew."""
    with opened as turn, collector_off():
        turns = {name: (lambda name=name: turn(name)) for name in CLASSES}
        rng = random.Random(plan.seed)
        return take_turns(turns, budget_s, rounds=plan.rounds, warm_rounds=2, rng=rng, progress=progress)


def run(plan: Plan) -> Answer:
    steps = [(question, kind) for question in OPENERS for kind in FAMILIES]
    rows = []
    with on_cpu(min(os.sched_getaffinity(0))):
        for number, (question, kind) in enumerate(steps):

            def progress(share: float, what: str = f"{kind} {question}", number: int = number) -> None:
                plan.progress(what, (number + share) / len(steps))

            found = measure(plan, OPENERS[question](FAMILIES[kind]), plan.budget_s / len(steps), progress)
            rows += [
                Row(
                    f"{kind} {question}: {what}",
                    {
                        "ratio": found.ratio("Socket", "socket", what),
                        "own": found.figure("Socket", what),
                        "base": found.figure("socket", what),
                        "of": "CPU" if what in CPU_TIME else "clock",
                    },
                )
                for what in found.values["socket"]
            ]
    columns = [
        Column("ratio", "×", "x", 2),
        Column("own", "Socket", "ns", 0),
        Column("base", "socket", "ns", 0),
        Column("of", "time"),
    ]
    method = (
        f"On one CPU. connect and accept + close: CPU time per connection, {CONNECTIONS} to a turn. Round trips of "
        f"{SIZE} bytes by the clock, {TRIPS} to a turn, of which p50 and p99 are compared turn by turn. × is socket / "
        "Socket: above 1 fastsock is faster. What is sent arrives: nothing is lost on a stream."
    )
    return Answer("streams", QUESTION.title, method, tables=[Table("streams", columns, rows)])


QUESTION = Question(
    "streams", "Are connections and round trips on streams as fast as socket's?", run, weight=1, by_default=False
)
