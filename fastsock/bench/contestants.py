"""What is measured: each way to drain, or to send, one queue of datagrams on loopback.

The standard library's contestants work on duplicates of the very descriptors that
fastsock's use, so that both meet the same kernel socket in the same state. The ceiling, C, is in native. May
import fastsock and paired.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import repeat
from types import TracebackType
from typing import Any, Protocol, Self

from fastsock import RecvBatch, SendBatch, Socket, bind_udp, connect_udp
from fastsock.bench.paired import WARM_COUNT, Contestant

VLEN = 64
"""Payloads per send call; counts are multiples of it."""
COUNT = 512
"""Datagrams that are timed per turn, where the receive buffer has room for them."""
GRO_VLEN = 8
"""Kernel messages per call with UDP GRO, where a batch is of fixed size."""
GRO_WARM_COUNT = GRO_VLEN * VLEN
"""Datagrams moved before the clock starts, with GRO: no fewer than one full call takes."""
MAX_SEGMENT_BYTES = 65507
"""What one message of joined datagrams may hold over IPv4."""
RCVBUF = 8 << 20
# A lost datagram makes a receive fail after this long, instead of waiting for ever.
GIVE_UP_S = 5

Run = Callable[[int], int]


class Link:
    """A receiver and its senders on 127.0.0.1, with twins from the standard library.

    ``sender`` and ``gso_sender`` are connected to the receiver, ``open_sender`` and
    ``open_gso_sender`` to nothing.

    Args:
        size: Bytes of each payload.
        timeout: Set on the receiver and its twin; None leaves both blocking.
        rcvbuf: Bytes of receive buffer to ask for; less is fine (see ``fitting``).
        gso: Fill the receiver with joined datagrams (UDP_SEGMENT), VLEN at a time.
        options: Of the receiver: ``gro``, ``timestamps``, as ``bind_udp`` takes them.
    """

    def __init__(
        self, size: int, *, timeout: float | None = None, rcvbuf: int = RCVBUF, gso: bool = False, **options: Any
    ) -> None:
        self.size = size
        self.bufsize = max(2048, size)
        self.messages_of_vlen = -(-VLEN // min(VLEN, max(1, MAX_SEGMENT_BYTES // size)))
        self.payloads = [index.to_bytes(2, "big").ljust(size, b"x")[:size] for index in range(VLEN)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.receiver = bind_udp(("127.0.0.1", 0), rcvbuf=rcvbuf, **options)
        self.address = self.receiver.getsockname()
        self.sender = connect_udp(self.address, gso=False)
        self.gso_sender = connect_udp(self.address)
        self.open_sender = bind_udp(("127.0.0.1", 0), gso=False)
        self.open_gso_sender = bind_udp(("127.0.0.1", 0))
        self.filler = self.gso_sender if gso else self.sender
        self.std_receiver = twin(self.receiver.fileno())
        self.std_sender = twin(self.sender.fileno())
        self.std_open_sender = twin(self.open_sender.fileno())
        self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", GIVE_UP_S, 0))
        # One after the other: the flag O_NONBLOCK is shared by the duplicates.
        self.receiver.settimeout(timeout)
        self.std_receiver.settimeout(timeout)
        self.poll = select.poll()
        self.poll.register(self.receiver.fileno(), select.POLLIN)

    def close(self) -> None:
        for sock in (self.std_receiver, self.std_sender, self.std_open_sender):
            sock.close()
        for own in (self.receiver, self.sender, self.gso_sender, self.open_sender, self.open_gso_sender):
            own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def offer(self, count: int) -> None:
        """Send ``count`` datagrams, whether or not they fit."""
        while count > 0:
            count -= self.filler.send_many(self.payloads[:count])

    def fill(self, count: int) -> None:
        """Queue ``count`` datagrams; OSError (ENOBUFS) where the kernel dropped one."""
        before = self.dropped()
        self.offer(count)
        dropped = self.dropped() - before
        if dropped:
            raise OSError(errno.ENOBUFS, f"{dropped} of {count} datagrams of {self.size} bytes were dropped")

    def messages(self, count: int) -> int:
        """The kernel messages that ``count`` datagrams, a multiple of VLEN, are joined in by GSO."""
        return count // VLEN * self.messages_of_vlen

    def dropped(self) -> int:
        """The kernel's count of drops, or 0 where it has none: `drain` counts all the same."""
        try:
            return self.receiver.drops
        except OSError:
            return 0

    def drain(self, count: int) -> None:
        """Take away the ``count`` datagrams that must be queued; OSError where they are not."""
        got = 0
        while got < count:
            got += len(self.receiver.recv_many(VLEN, 1))
        if got != count:
            raise OSError(errno.EIO, f"{got} datagrams arrived instead of {count}")
        self.expect_empty(count)

    def expect_empty(self, count: int) -> None:
        """OSError (EIO) where more than the ``count`` datagrams were queued."""
        if self.poll.poll(0):
            raise OSError(errno.EIO, f"more than {count} datagrams were queued")

    def fitting(self, count: int = COUNT, warm_count: int = WARM_COUNT) -> int:
        """The most datagrams that can be timed at once, up to ``count``: a multiple of VLEN.

        An unprivileged process gets what net.core.rmem_max allows.

        Raises:
            OSError: Not even VLEN of them fit (ENOBUFS).
        """
        self.offer(count + warm_count)
        queued = 0
        while self.poll.poll(0):
            queued += len(self.receiver.recv_many(VLEN, 1))
        if queued < count + warm_count:
            # Room to spare: what the kernel charges for a datagram varies a little.
            count = (queued * 3 // 4 - warm_count) // VLEN * VLEN
        if count < VLEN:
            raise OSError(
                errno.ENOBUFS,
                f"the receive buffer holds only {queued} datagrams of {self.size} bytes; "
                f"raise the limit with: sysctl -w net.core.rmem_max={RCVBUF}",
            )
        return count


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allow so many open descriptors meanwhile, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def twin(fd: int) -> socket.socket:
    """The standard library's socket on a duplicate of a descriptor."""
    return socket.socket(fileno=os.dup(fd))


# --- loops: each moves `count` datagrams and does nothing else --------------------------


def receive_each(receive: Callable[[Any], object], argument: Any) -> Run:
    def run(count: int) -> int:
        for _ in repeat(None, count):
            receive(argument)
        return count

    return run


def receive_many(receive: Callable[[int], Sequence[object]], vlen: int) -> Run:
    def run(count: int) -> int:
        # Only the warm-up leaves datagrams queued, and takes no more than its share.
        step = min(vlen, count)
        done = 0
        while done < count:
            done += len(receive(step))
        return done

    return run


def receive_batch(link: Link, vlen: int = VLEN, slot_size: int | None = None, *, addresses: bool = False) -> Run:
    batch = RecvBatch(vlen, slot_size or link.bufsize, addresses=addresses)
    receive = link.receiver.recv_batch

    def run(count: int) -> int:
        done = 0
        while done < count:
            done += receive(batch)
        return done

    return run


@cache
def even_vlen(messages: int) -> int:
    """The most messages per call, up to VLEN, by which so many are taken in whole calls."""
    return next(vlen for vlen in range(min(VLEN, messages), 0, -1) if messages % vlen == 0)


def receive_many_gro(link: Link, receive: Callable[[int], Sequence[object]]) -> Run:
    def run(count: int) -> int:
        step = even_vlen(link.messages(count))
        done = 0
        while done < count:
            done += len(receive(step))
        return done

    return run


def receive_batch_gro(link: Link) -> Run:
    return receive_batch(link, GRO_VLEN, 65535)


def send_each(send: Callable[[Any], int], payloads: Sequence[Any]) -> Run:
    def run(count: int) -> int:
        for _ in repeat(None, count // VLEN):
            for payload in payloads:
                send(payload)
        return count

    return run


def send_each_to(send: Callable[[bytes, Any], int], payloads: list[bytes], address: Any) -> Run:
    def run(count: int) -> int:
        for _ in repeat(None, count // VLEN):
            for payload in payloads:
                send(payload, address)
        return count

    return run


def send_many(send: Callable[..., int], *arguments: object) -> Run:
    def run(count: int) -> int:
        done = 0
        while done < count:
            done += send(*arguments)
        return done

    return run


def send_batch(sender: Socket, link: Link) -> Run:
    batch = SendBatch(VLEN, link.bufsize)
    for payload in link.payloads:
        batch.append(payload)
    return send_many(sender.send_batch, batch)


def send_segments(link: Link) -> Run:
    send = link.gso_sender.send_segments
    payload = b"".join(link.payloads)
    size = link.size

    def run(count: int) -> int:
        nbytes = 0
        for _ in repeat(None, count // VLEN):
            nbytes += send(payload, size)
        return nbytes // size

    return run


# --- the tables ----------------------------------------------------------------------------

# recv and recvfrom get 2048 bytes, as programs do; recv_many keeps its default of 65535.
RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "socket.recv": lambda link: receive_each(link.std_receiver.recv, link.bufsize),
    "socket.recv_into": lambda link: receive_each(link.std_receiver.recv_into, bytearray(link.bufsize)),
    "socket.recvfrom": lambda link: receive_each(link.std_receiver.recvfrom, link.bufsize),
    "socket.recvmsg": lambda link: receive_each(link.std_receiver.recvmsg, link.bufsize),
    "Socket.recv": lambda link: receive_each(link.receiver.recv, link.bufsize),
    "Socket.recv_into": lambda link: receive_each(link.receiver.recv_into, bytearray(link.bufsize)),
    "Socket.recvfrom": lambda link: receive_each(link.receiver.recvfrom, link.bufsize),
    "Socket.recvmsg": lambda link: receive_each(link.receiver.recvmsg, link.bufsize),
    "recv_many(64)": lambda link: receive_many(link.receiver.recv_many, 64),
    "recv_many(1024)": lambda link: receive_many(link.receiver.recv_many, 1024),
    "recvfrom_many(64)": lambda link: receive_many(link.receiver.recvfrom_many, 64),
    "recv_batch": receive_batch,
    "recv_batch, addresses": lambda link: receive_batch(link, addresses=True),
}

# Into a receiver that was told of UDP GRO, from a sender that joins: VLEN datagrams or, at
# 1400 bytes, 46 and 18 to a message. The first two, on a plain receiver, find the same
# datagrams one by one.
SPLIT_RECEIVERS: dict[str, Callable[[Link], Run]] = {
    name: RECEIVERS[name] for name in ("socket.recv", "socket.recvfrom")
}
GRO_RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "recv_many, GRO": lambda link: receive_many_gro(link, link.receiver.recv_many),
    "recvfrom_many, GRO": lambda link: receive_many_gro(link, link.receiver.recvfrom_many),
    "recv_batch, GRO": receive_batch_gro,
}

# send and send_many on a connected socket, sendto and sendto_many on another that is not;
# send_batch sends one batch, filled once, over and over. GSO is on, as it is by default,
# where the name does not say that it is off.
SENDERS: dict[str, Callable[[Link], Run]] = {
    "socket.sendto": lambda link: send_each_to(link.std_open_sender.sendto, link.payloads, link.address),
    "socket.send": lambda link: send_each(link.std_sender.send, link.payloads),
    "socket.sendmsg": lambda link: send_each(link.std_sender.sendmsg, [[payload] for payload in link.payloads]),
    "Socket.sendmsg": lambda link: send_each(link.sender.sendmsg, [[payload] for payload in link.payloads]),
    "Socket.sendto": lambda link: send_each_to(link.open_sender.sendto, link.payloads, link.address),
    "Socket.send": lambda link: send_each(link.sender.send, link.payloads),
    "sendto_many, gso off": lambda link: send_many(link.open_sender.sendto_many, link.payloads, link.address),
    "sendto_many": lambda link: send_many(link.open_gso_sender.sendto_many, link.payloads, link.address),
    "send_many, gso off": lambda link: send_many(link.sender.send_many, link.payloads),
    "send_batch, gso off": lambda link: send_batch(link.sender, link),
    "send_many": lambda link: send_many(link.gso_sender.send_many, link.payloads),
    "send_batch": lambda link: send_batch(link.gso_sender, link),
    "send_segments": send_segments,
}

# Where the receiver takes joined datagrams, the kernel does not split them on loopback.
GRO_SENDERS: dict[str, Callable[[Link], Run]] = {
    name: SENDERS[name]
    for name in ("socket.sendto", "sendto_many", "socket.send", "send_many", "send_batch", "send_segments")
}


def receivers(
    link: Link, table: Mapping[str, Callable[[Link], Run]] = RECEIVERS, names: Iterable[str] | None = None
) -> list[Contestant]:
    """Contestants that empty the filled receiver of ``link``: all of ``table``, or ``names``."""
    return [
        Contestant(name, link.fill, table[name](link), link.expect_empty)
        for name in (table if names is None else names)
    ]


def senders(link: Link, table: Mapping[str, Callable[[Link], Run]] = SENDERS) -> list[Contestant]:
    """Contestants that send to the empty receiver of ``link``, which is drained behind each."""
    return [Contestant(name, link.expect_empty, build(link), link.drain) for name, build in table.items()]


# --- what takes turns in one measurement ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """Contestants that share one link, and the options that it is made with."""

    table: Mapping[str, Callable[[Link], Run]]
    options: Mapping[str, Any] = field(default_factory=dict)


class Race(Protocol):
    """Contestants that are compared with each other, at one size or another."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def baselines(self) -> Mapping[str, str]:
        """Every contestant, in the order of a table, and what it is compared with: itself, for a baseline."""

    @property
    def warm_count(self) -> int:
        """Datagrams that are moved right before the timed ones."""

    def open(self, size: int) -> AbstractContextManager[tuple[list[Contestant], int]]:
        """The contestants, ready to run, and the datagrams that each can move in a turn."""


@dataclass(frozen=True, slots=True)
class Links:
    """A race on one link or on two.

    Args:
        title: For people.
        contestants: ``receivers`` or ``senders``.
        sides: One link each.
        baselines: Which contestant each is compared with.
        count: Datagrams that are timed per turn, where there is room for them.
        warm_count: Datagrams that are moved right before.
    """

    title: str
    contestants: Callable[[Link, Mapping[str, Callable[[Link], Run]]], list[Contestant]]
    sides: Sequence[Side]
    baselines: Mapping[str, str] = field(default_factory=dict)
    count: int = COUNT
    warm_count: int = WARM_COUNT

    @contextmanager
    def open(self, size: int) -> Iterator[tuple[list[Contestant], int]]:
        with ExitStack() as stack:
            links = [stack.enter_context(Link(size, **side.options)) for side in self.sides]
            contestants = [
                contestant
                for link, side in zip(links, self.sides, strict=True)
                for contestant in self.contestants(link, side.table)
            ]
            yield contestants, min(link.fitting(self.count, self.warm_count) for link in links)


def race(
    title: str,
    contestants: Callable[[Link, Mapping[str, Callable[[Link], Run]]], list[Contestant]],
    blocks: Mapping[str, Sequence[str]],
    *sides: Side,
    **counts: int,
) -> Links:
    """A race of those of `blocks` that are in a side: each baseline, and the names that are compared with it."""
    there = {name for side in sides for name in side.table}
    baselines = {}
    for baseline, names in blocks.items():
        for name in (baseline, *names):
            if name in there:
                baselines[name] = baseline if baseline in there else name
    chosen = [
        replace(side, table={name: side.table[name] for name in side.table if name in baselines}) for side in sides
    ]
    return Links(title, contestants, chosen, baselines, **counts)


GSO_FILLED = {"gso": True}
GRO_FILLED = {"gso": True, "gro": True}


@cache
def has_gro() -> bool:
    """Whether a socket that asks for UDP GRO gets it here."""
    with bind_udp(("127.0.0.1", 0), gro=True) as sock:
        return sock.gro
