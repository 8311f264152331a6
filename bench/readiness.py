"""What is measured of epoll: asking which of so many ready sockets are ready, by each way.

Every way has an interest set of its own over the same UDP sockets, each with one datagram queued
that nobody takes. A "datagram" of paired.py is an event here.
"""

from __future__ import annotations

import resource
import select
import selectors
import socket
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import native

from fastsock import Epoll
from fastsock.cli.contestants import Run
from fastsock.cli.paired import Contestant
from fastsock.selectors import EpollSelector

COUNT = 4000
"""Events that are timed per turn: a multiple of every number of ready sockets, as is WARM_COUNT."""
WARM_COUNT = 1000
SPARE_DESCRIPTORS = 100
MOST = 1023
"""Events of one call: what select.epoll asks for by itself."""

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


POLLS: dict[str, Watch] = {
    "select.epoll.poll": polling(select.epoll),
    "Epoll.poll": polling(Epoll),
    "Epoll.wait_into": waiting_into,
    "C epoll_wait": c_epoll_wait,
}
SELECTS: dict[str, Watch] = {
    "selectors.EpollSelector": selecting(selectors.EpollSelector),
    "EpollSelector": selecting(EpollSelector),
}


def nothing(count: int) -> None:
    """What a contestant prepares and settles: the sockets stay ready."""


class Readiness:
    """Contestants over one set of sockets; opened like a ``Kind`` of contestants.py."""

    warm_count = WARM_COUNT

    def __init__(self, table: dict[str, Watch]) -> None:
        self.table = table

    @contextmanager
    def open(self, size: int) -> Iterator[tuple[list[Contestant], int]]:
        """The contestants with ``size`` ready sockets, and the events that each turn takes."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, size + SPARE_DESCRIPTORS)), hard))
        with ExitStack() as stack:
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sockets = []
            for _ in range(size):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind(("127.0.0.1", 0))
                sender.sendto(b"x", sock.getsockname())
                sockets.append(sock)
            contestants = []
            for name, watch in self.table.items():
                owner, run = watch(sockets)
                stack.callback(owner.close)
                contestants.append(Contestant(name, nothing, run, nothing))
            yield contestants, COUNT


KINDS = {"poll": Readiness(POLLS), "select": Readiness(SELECTS)}
