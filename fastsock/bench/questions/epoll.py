"""What asking for readiness costs: which of so many ready sockets are ready, by each way.

Every way has an interest set of its own over the same UDP sockets, each with one datagram queued
that nobody takes. A "datagram" of paired.py is an event here.
"""

from __future__ import annotations

import select
import selectors
import socket
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from fastsock import Epoll
from fastsock.bench import native
from fastsock.bench.contestants import Run, descriptors
from fastsock.bench.paired import Contestant
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import race_table, run_races
from fastsock.bench.results import Answer
from fastsock.selectors import EpollSelector

COUNT = 4000
"""Events that are timed per turn: a multiple of every number of ready sockets, as is WARM_COUNT."""
WARM_COUNT = 1000
SPARE_DESCRIPTORS = 100
MOST = 1023
"""Events of one call: what select.epoll asks for by itself."""
READY = (1, 100, 1000)

Watch = Callable[[list[socket.socket]], tuple[Any, Run]]


def repeated(ask: Callable[[int], list[Any]]) -> Run:
    def run(count: int) -> int:
        done = 0
        while done < count:
            done += len(ask(0))
        return done

    return run


def polling(cls: Callable[[], Any]) -> Watch:
    def watch(sockets: list[socket.socket]) -> tuple[Any, Run]:
        epoll = cls()
        for sock in sockets:
            epoll.register(sock, select.EPOLLIN)
        return epoll, repeated(epoll.poll)

    return watch


def selecting(cls: Callable[[], Any]) -> Watch:
    def watch(sockets: list[socket.socket]) -> tuple[Any, Run]:
        selector = cls()
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        return selector, repeated(selector.select)

    return watch


def waiting_into(sockets: list[socket.socket]) -> tuple[Any, Run]:
    epoll, _ = polling(Epoll)(sockets)
    fds, events = array("i", bytes(4 * MOST)), array("i", bytes(4 * MOST))
    wait_into = epoll.wait_into

    def run(count: int) -> int:
        done = 0
        while done < count:
            done += wait_into(fds, events, 0)
        return done

    return epoll, run


def c_epoll_wait(sockets: list[socket.socket]) -> tuple[Any, Run]:
    epoll, _ = polling(select.epoll)(sockets)
    return epoll, native.checked(native.library().c_epoll_wait, epoll.fileno())


WATCHES: dict[str, Watch] = {
    "select.epoll": polling(select.epoll),
    "Epoll.poll": polling(Epoll),
    "Epoll.wait_into": waiting_into,
    "C epoll_wait": c_epoll_wait,
    "selectors.EpollSelector": selecting(selectors.EpollSelector),
    "EpollSelector": selecting(EpollSelector),
}
BASELINES = {
    **dict.fromkeys(("select.epoll", "Epoll.poll", "Epoll.wait_into", "C epoll_wait"), "select.epoll"),
    **dict.fromkeys(("selectors.EpollSelector", "EpollSelector"), "selectors.EpollSelector"),
}


def nothing(_count: int) -> None:
    """What a contestant prepares and settles: the sockets stay ready."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """A race over one set of sockets; its size is how many there are."""

    title: str
    baselines: Mapping[str, str]
    warm_count: int = WARM_COUNT

    @contextmanager
    def open(self, size: int) -> Iterator[tuple[list[Contestant], int]]:
        with ExitStack() as stack:
            stack.enter_context(descriptors(size + SPARE_DESCRIPTORS))
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sockets = []
            for _ in range(size):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind(("127.0.0.1", 0))
                sender.sendto(b"x", sock.getsockname())
                sockets.append(sock)
            contestants = []
            for name in self.baselines:
                owner, run = WATCHES[name](sockets)
                stack.callback(owner.close)
                contestants.append(Contestant(name, nothing, run, nothing))
            yield contestants, COUNT


def races() -> dict[str, Readiness]:
    there = {name: base for name, base in BASELINES.items() if not (name.startswith("C ") and native.missing())}
    return {"epoll": Readiness("epoll", there)}


def run(plan: Plan) -> Answer:
    the_races = races()
    found = run_races(plan, the_races, READY)
    samples = found.samples["epoll"]
    method = (
        "CPU time of the calling thread per event: which of 1, 100 or 1000 UDP sockets are ready, and all are. Every "
        "contestant has an interest set of its own over the same sockets, nobody takes what is queued. All take a "
        "turn in every round, in an order shuffled anew."
    )
    table = race_table("epoll, by ready sockets", samples, the_races["epoll"].baselines, per="{size}", note=found.note)
    return Answer(
        "epoll", QUESTION.title, method, tables=[table] if samples else [], skipped="" if samples else found.note
    )


QUESTION = Question("epoll", "What does asking which sockets are ready cost?", run, weight=1)
