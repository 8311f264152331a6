"""What is measured: each way to drain, or to send, one queue of datagrams on loopback.

The standard library's contestants work on duplicates of the very descriptors that
fastsock's use, so that both meet the same kernel socket in the same state. May import
fastsock and paired.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from types import TracebackType
from typing import Any, Self

from fastsock import RecvBatch, SendBatch, bind_udp, connect_udp
from fastsock.cli.paired import WARM_COUNT, Contestant

VLEN = 64
"""Payloads per send call; counts are multiples of it."""
COUNT = 512
"""Datagrams that are timed per turn, where the receive buffer has room for them."""
RCVBUF = 8 << 20
# A lost datagram makes a receive fail after this long, instead of waiting for ever.
GIVE_UP_S = 5

Run = Callable[[int], int]


class Link:
    """A receiver and two senders on 127.0.0.1, each with a twin from the standard library.

    Args:
        size: Bytes of each payload.
        timeout: Set on the receiver and its twin; None leaves both blocking.
        rcvbuf: Bytes of receive buffer to ask for; less is fine (see ``fitting``).
    """

    def __init__(self, size: int, *, timeout: float | None = None, rcvbuf: int = RCVBUF) -> None:
        self.size = size
        self.bufsize = max(2048, size)
        self.payloads = [index.to_bytes(2, "big").ljust(size, b"x")[:size] for index in range(VLEN)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.receiver = bind_udp(("127.0.0.1", 0), rcvbuf=rcvbuf)
        self.address = self.receiver.getsockname()
        self.sender = connect_udp(self.address, gso=False)  # datagrams as other programs send them
        self.open_sender = bind_udp(("127.0.0.1", 0))
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
        for own in (self.receiver, self.sender, self.open_sender):
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
            count -= self.sender.send_many(self.payloads[:count])

    def fill(self, count: int) -> None:
        """Queue ``count`` datagrams; OSError (ENOBUFS) where the kernel dropped one."""
        before = self.dropped()
        self.offer(count)
        dropped = self.dropped() - before
        if dropped:
            raise OSError(errno.ENOBUFS, f"{dropped} of {count} datagrams of {self.size} bytes were dropped")

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


def receive_batch(link: Link) -> Run:
    batch = RecvBatch(VLEN, link.bufsize)
    receive = link.receiver.recv_batch

    def run(count: int) -> int:
        done = 0
        while done < count:
            done += receive(batch)
        return done

    return run


def send_each(send: Callable[[bytes], int], payloads: list[bytes]) -> Run:
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


def send_batch(link: Link) -> Run:
    batch = SendBatch(VLEN, link.bufsize)
    for payload in link.payloads:
        batch.append(payload)
    return send_many(link.sender.send_batch, batch)


# --- the tables ----------------------------------------------------------------------------

# recv and recvfrom get 2048 bytes, as programs do; recv_many keeps its default of 65535.
RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "socket.recv": lambda link: receive_each(link.std_receiver.recv, link.bufsize),
    "socket.recv_into": lambda link: receive_each(link.std_receiver.recv_into, bytearray(link.bufsize)),
    "socket.recvfrom": lambda link: receive_each(link.std_receiver.recvfrom, link.bufsize),
    "Socket.recv": lambda link: receive_each(link.receiver.recv, link.bufsize),
    "Socket.recv_into": lambda link: receive_each(link.receiver.recv_into, bytearray(link.bufsize)),
    "Socket.recvfrom": lambda link: receive_each(link.receiver.recvfrom, link.bufsize),
    "recv_many(64)": lambda link: receive_many(link.receiver.recv_many, 64),
    "recv_many(1024)": lambda link: receive_many(link.receiver.recv_many, 1024),
    "recvfrom_many(64)": lambda link: receive_many(link.receiver.recvfrom_many, 64),
    "recv_batch": receive_batch,
}

# send and send_many on a connected socket, sendto and sendto_many on another that is not;
# send_batch sends one batch, filled once, over and over.
SENDERS: dict[str, Callable[[Link], Run]] = {
    "socket.sendto": lambda link: send_each_to(link.std_open_sender.sendto, link.payloads, link.address),
    "socket.send": lambda link: send_each(link.std_sender.send, link.payloads),
    "Socket.sendto": lambda link: send_each_to(link.open_sender.sendto, link.payloads, link.address),
    "Socket.send": lambda link: send_each(link.sender.send, link.payloads),
    "sendto_many": lambda link: send_many(link.open_sender.sendto_many, link.payloads, link.address),
    "send_many": lambda link: send_many(link.sender.send_many, link.payloads),
    "send_batch": send_batch,
}

BASELINES = {
    "socket.recv": "socket.recv",
    "socket.recv_into": "socket.recv_into",
    "socket.recvfrom": "socket.recvfrom",
    "Socket.recv": "socket.recv",
    "Socket.recv_into": "socket.recv_into",
    "Socket.recvfrom": "socket.recvfrom",
    "recv_many(64)": "socket.recv",
    "recv_many(1024)": "socket.recv",
    "recvfrom_many(64)": "socket.recvfrom",
    "recv_batch": "socket.recv",
    "socket.sendto": "socket.sendto",
    "socket.send": "socket.send",
    "Socket.sendto": "socket.sendto",
    "Socket.send": "socket.send",
    "sendto_many": "socket.sendto",
    "send_many": "socket.send",
    "send_batch": "socket.send",
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
