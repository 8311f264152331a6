"""Are connections and round trips on streams as fast as the standard library's?

    python bench/streams.py [--quick] [--rounds N] [--best-of N] [--json] [--check]

Each row is a paired ratio, standard library / fastsock, of turns that alternate in one run: above 1
fastsock is faster. Everything runs on one CPU. `--check` exits with 1 where a row is below its target.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from fastsock import Socket
from fastsock.cli.arguments import parse_count
from fastsock.cli.bench import environment
from fastsock.cli.paired import Spread, collector_off, spread

ROUNDS = 200
QUICK_ROUNDS = 40
CONNECTIONS = 64
"""Per turn: no more than the backlog holds."""
TRIPS = 400
"""Round trips per turn; each is timed, so that a turn has a p50 and a p99."""
SIZE = 64
NOISE = 0.97
"""A ratio of two equal contestants comes out between this and its inverse."""
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
QUESTIONS = {"connections": connections, "echo": echoes, "echo of a process": blocking_echoes}


def measure(open_turn: Callable[[], Any], rounds: int, rng: random.Random) -> dict[str, tuple[Spread, float, float]]:
    """For each thing that a turn measures: the ratio, and the median nanoseconds of both."""
    seen: dict[str, dict[str, list[float]]] = {}
    order = list(CLASSES)
    with open_turn() as turn, collector_off():
        for number in range(-2, rounds):
            rng.shuffle(order)
            for name in order:
                for what, ns in turn(name).items():
                    if number >= 0:
                        seen.setdefault(what, {own: [] for own in CLASSES})[name].append(ns)
    return {
        what: (
            spread([base / own for base, own in zip(ns["socket"], ns["Socket"], strict=True)]),
            statistics.median(ns["socket"]),
            statistics.median(ns["Socket"]),
        )
        for what, ns in seen.items()
    }


def measure_all(rounds: int, rng: random.Random) -> dict[str, tuple[Spread, float, float]]:
    return {
        f"{kind} {question}: {what}": row
        for question, opened in QUESTIONS.items()
        for kind, family in FAMILIES.items()
        for what, row in measure(lambda opened=opened, family=family: opened(family), rounds, rng).items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--rounds", type=parse_count)
    parser.add_argument("--best-of", type=parse_count, default=1, metavar="N", help="the best of N runs, per row")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 where a ratio is below {NOISE}")
    args = parser.parse_args()
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    rng = random.Random(seed)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    runs = [measure_all(rounds, rng) for _ in range(args.best_of)]
    rows = {what: max((run[what] for run in runs), key=lambda row: row[0].median) for what in runs[0]}
    short = [what for what, (ratio, _, _) in rows.items() if ratio.median < NOISE]
    if args.json:
        found = {
            what: {"ratio": asdict(ratio), "socket_ns": base, "Socket_ns": own}
            for what, (ratio, base, own) in rows.items()
        }
        print(json.dumps({"environment": environment(), "seed": seed, "rounds": rounds, "rows": found}))
    else:
        about = environment()
        print(
            f"Linux {about['kernel']}, Python {about['python']}, fastsock {about['fastsock']}; "
            f"one CPU, {rounds} rounds, best of {args.best_of}\n"
        )
        width = max(map(len, rows))
        print(f"{'':{width}}  ratio  [quartiles]      ns, socket / Socket")
        for what, (ratio, base, own) in rows.items():
            verdict = "short" if what in short else "ok"
            quartiles = f"[{ratio.low:5.2f}-{ratio.high:5.2f}]"
            print(f"{what:{width}}  {ratio.median:5.2f}  {quartiles}  {base:8.0f} / {own:8.0f}  {verdict}")
    return int(args.check and bool(short))


if __name__ == "__main__":
    sys.exit(main())
