"""What many sockets cost: readiness and receives together, and a Receiver for all of them."""

from __future__ import annotations

import random
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import fastsock
from fastsock import Epoll, Socket, bind_udp
from fastsock.bench import native
from fastsock.bench.contestants import descriptors, twin
from fastsock.bench.paired import Rounds, collector_off, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import kind_of
from fastsock.bench.results import Answer, Column, Figure, Row, Table
from fastsock.selectors import EpollSelector

COUNTS = (1, 16, 256)
DATAGRAMS = 2048
"""Of a turn, spread evenly over the sockets."""
BURST = 16
"""That one socket gets at a time, at most."""
SIZE, ROOM = 64, 2048
RING_SLOTS = 4096
"""Of all rings together."""
GIVE_UP_S = 5.0
BASELINE = "select.epoll, recv"

Drain = Callable[[int], int]


class Sockets:
    """So many non-blocking sockets, with twins from the standard library, and one that sends to all."""

    def __init__(self, count: int, stack: ExitStack) -> None:
        self.stack = stack
        self.ours: list[Socket] = [
            stack.enter_context(bind_udp(("127.0.0.1", 0), rcvbuf=max(212992, (4 << 20) // count)))
            for _ in range(count)
        ]
        self.theirs: list[socket.socket] = [stack.enter_context(twin(sock.fileno())) for sock in self.ours]
        for sock in self.ours:
            sock.setblocking(False)
        for std in self.theirs:
            std.setblocking(False)
        self.addresses = [sock.getsockname() for sock in self.ours]
        self.sender = stack.enter_context(bind_udp(("127.0.0.1", 0), gso=False))

    def fill(self) -> None:
        payloads = [bytes(SIZE)] * min(BURST, DATAGRAMS // len(self.ours))
        sent = 0
        while sent < DATAGRAMS:
            for address in self.addresses:
                sent += self.sender.sendto_many(payloads, address)
                if sent >= DATAGRAMS:
                    break


def each_ready(socks: Sockets) -> Drain:
    """One receive for each event, as the level-triggered loop that everyone writes."""
    epoll = socks.stack.enter_context(select.epoll())
    by_fd = {sock.fileno(): sock.recv for sock in socks.theirs}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def drain(count: int) -> int:
        done = 0
        while done < count:
            for fd, _ in epoll.poll(GIVE_UP_S):
                by_fd[fd](ROOM)
                done += 1
        return done

    return drain


def until_empty(socks: Sockets) -> Drain:
    """As many receives for each event as find something."""
    epoll = socks.stack.enter_context(select.epoll())
    by_fd = {sock.fileno(): sock.recv for sock in socks.theirs}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def drain(count: int) -> int:
        done = 0
        while done < count:
            for fd, _ in epoll.poll(GIVE_UP_S):
                receive = by_fd[fd]
                try:
                    while True:
                        receive(ROOM)
                        done += 1
                except BlockingIOError:
                    pass
        return done

    return drain


def by_selector(socks: Sockets) -> Drain:
    selector = socks.stack.enter_context(selectors.EpollSelector())
    for sock in socks.theirs:
        selector.register(sock, selectors.EVENT_READ, sock.recv)

    def drain(count: int) -> int:
        done = 0
        while done < count:
            for key, _ in selector.select(GIVE_UP_S):
                key.data(ROOM)
                done += 1
        return done

    return drain


def by_epoll(socks: Sockets) -> Drain:
    epoll = socks.stack.enter_context(Epoll())
    by_fd = {sock.fileno(): sock.recv_many for sock in socks.ours}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def drain(count: int) -> int:
        done = 0
        while done < count:
            for fd, _ in epoll.poll(GIVE_UP_S):
                done += len(by_fd[fd]())
        return done

    return drain


def by_epoll_in_a_batch(socks: Sockets) -> Drain:
    """One batch for all sockets: its memory stays in the caches."""
    epoll = socks.stack.enter_context(Epoll())
    batch = fastsock.RecvBatch(64, ROOM)
    by_fd = {sock.fileno(): sock.recv_batch for sock in socks.ours}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)

    def drain(count: int) -> int:
        done = 0
        while done < count:
            for fd, _ in epoll.poll(GIVE_UP_S):
                done += by_fd[fd](batch)
        return done

    return drain


def by_epoll_selector(socks: Sockets) -> Drain:
    selector = socks.stack.enter_context(EpollSelector())
    for sock in socks.ours:
        selector.register(sock, selectors.EVENT_READ, sock.recv_many)

    def drain(count: int) -> int:
        done = 0
        while done < count:
            for key, _ in selector.select(GIVE_UP_S):
                done += len(key.data())
        return done

    return drain


def by_receiver(socks: Sockets) -> Drain:
    receiver = socks.stack.enter_context(fastsock.Receiver(socks.ours, slots=max(64, RING_SLOTS // len(socks.ours))))

    def drain(count: int) -> int:
        done = 0
        while done < count:
            batch = receiver.take(timeout=GIVE_UP_S)
            if not batch:
                raise OSError(f"{done} of {count} datagrams arrived")
            done += len(batch)
        return done

    return drain


def by_c(socks: Sockets) -> Drain:
    epoll = socks.stack.enter_context(select.epoll())
    for sock in socks.ours:
        epoll.register(sock, select.EPOLLIN)
    return native.checked(native.library().c_epoll_drain, epoll.fileno(), ROOM)


WAYS: dict[str, Callable[[Sockets], Drain]] = {
    BASELINE: each_ready,
    "select.epoll, recv until empty": until_empty,
    "selectors, recv": by_selector,
    "Epoll, recv_many": by_epoll,
    "EpollSelector, recv_many": by_epoll_selector,
    "Epoll, recv_batch": by_epoll_in_a_batch,
    "Receiver": by_receiver,
    "C epoll_wait, recvmmsg": by_c,
}


def ways() -> list[str]:
    return [way for way in WAYS if not (way.startswith("C ") and native.missing())]


def measure(count: int, plan: Plan, budget_s: float, progress: Callable[[float], None]) -> Rounds:
    with ExitStack() as whole, collector_off():
        whole.enter_context(descriptors(count * 16 + 100))

        def turn(name: str, socks: Sockets) -> Callable[[], dict[str, float]]:
            drain = WAYS[name](socks)

            def take() -> dict[str, float]:
                begin = time.process_time_ns()
                before = time.thread_time_ns()
                socks.fill()
                filled = time.thread_time_ns() - before
                moved = drain(DATAGRAMS)
                if moved != DATAGRAMS:
                    raise OSError(f"{name}: {moved} datagrams arrived instead of {DATAGRAMS}")
                return {"ns": (time.process_time_ns() - begin - filled) / DATAGRAMS}

            return take

        # A Receiver's threads take whatever comes to its sockets: everyone has sockets of its own.
        turns: dict[str, Callable[[], Any]] = {name: turn(name, Sockets(count, whole)) for name in ways()}
        rng = random.Random(plan.seed)
        return take_turns(turns, budget_s, rounds=plan.rounds, warm_rounds=2, rng=rng, progress=progress)


def run(plan: Plan) -> Answer:
    columns: list[Column] = []
    cells: dict[str, dict[str, Figure | float | int | str | None]] = {name: {} for name in ways()}
    for number, count in enumerate(COUNTS):

        def progress(share: float, what: str = f"{count} sockets", number: int = number) -> None:
            plan.progress(what, (number + share) / len(COUNTS))

        found = measure(count, plan, plan.budget_s / len(COUNTS), progress)
        columns += [
            Column(f"ns_{count}", f"{count} socket{'s' if count > 1 else ''}", "ns", 0),
            Column(f"ratio_{count}", "×", "x", 2),
        ]
        for name in ways():
            cells[name][f"ns_{count}"] = found.figure(name, "ns")
            cells[name][f"ratio_{count}"] = found.ratio(name, BASELINE, "ns")
    rows = [Row(name, cells[name], kind_of(name), None if name == BASELINE else BASELINE) for name in ways()]
    method = (
        f"CPU time of the whole process per datagram, all of its threads, without that of sending: {DATAGRAMS} "
        f"datagrams of {SIZE} B are spread over the sockets, at most {BURST} at a time, and then taken; all of them "
        "must arrive. Receiver has a native thread for each socket, which receives while they are sent. All take a "
        "turn in every round, in an order shuffled anew."
    )
    return Answer("sockets", QUESTION.title, method, tables=[Table("by sockets", columns, rows)])


QUESTION = Question("sockets", "What do many sockets cost?", run, weight=1.5, by_default=False)
