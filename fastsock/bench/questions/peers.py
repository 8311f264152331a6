"""What many peers cost: addresses to make on the way in, to look up on the way out.

The peers are addresses of 127.0.0.0/8. One socket sends from all of them (IP_PKTINFO), and one that is bound to
every address receives what is sent to all of them, so that there may be more peers than descriptors.
"""

from __future__ import annotations

import errno
import select
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from fastsock import RecvBatch, SendBatch, bind_udp
from fastsock.bench import native
from fastsock.bench.contestants import COUNT, RCVBUF, VLEN, Link, Run, receive_each, receive_many
from fastsock.bench.paired import WARM_COUNT, Contestant
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import DRAIN, race_table, run_races
from fastsock.bench.results import Answer

PEERS = (1, 16, 1024, 16384)
SIZE = 64

RECEIVE_BASELINES = dict.fromkeys(
    ("socket.recvfrom", "Socket.recvfrom", "recvfrom_many(64)", "recv_batch, addresses", "C recvmmsg, addresses"),
    "socket.recvfrom",
)
SEND_BASELINES = dict.fromkeys(("socket.sendto", "sendto_many", "C sendmmsg, addresses"), "socket.sendto")


def peer_hosts(count: int) -> list[str]:
    """So many addresses of 127.0.0.0/8."""
    return [f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}" for number in range(1, count + 1)]


class PeerLink(Link):
    """A link whose receiver is filled from many peers in turn, each turn going on where the last ended."""

    def __init__(self, peers: int) -> None:
        super().__init__(SIZE)
        self.many_sender = bind_udp(("0.0.0.0", 0), gso=False)
        hosts = peer_hosts(peers)
        hosts *= -(-VLEN // len(hosts))
        batches = []
        for start in range(0, len(hosts) // VLEN * VLEN, VLEN):
            batch = SendBatch(VLEN, SIZE)
            for payload, host in zip(self.payloads, hosts[start : start + VLEN], strict=True):
                batch.append(payload, self.address, source=host)
            batches.append(batch)
        self.batches = cycle(batches)

    def close(self) -> None:
        self.many_sender.close()
        super().close()

    def offer(self, count: int) -> None:
        if count % VLEN:
            raise ValueError(f"{count} is not a multiple of {VLEN}")
        for _ in range(count // VLEN):
            if self.many_sender.send_batch(next(self.batches)) != VLEN:
                raise OSError(errno.EIO, "a batch was sent in part")


def look_at_addresses(link: Link) -> Run:
    """Takes batches, and makes the address of every datagram."""
    batch = RecvBatch(VLEN, link.bufsize, addresses=True)
    receive = link.receiver.recv_batch

    def run(count: int) -> int:
        done = 0
        while done < count:
            done += receive(batch)
            for datagram in batch:
                datagram.address  # noqa: B018
        return done

    return run


RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "socket.recvfrom": lambda link: receive_each(link.std_receiver.recvfrom, link.bufsize),
    "Socket.recvfrom": lambda link: receive_each(link.receiver.recvfrom, link.bufsize),
    "recvfrom_many(64)": lambda link: receive_many(link.receiver.recvfrom_many, VLEN),
    "recv_batch, addresses": look_at_addresses,
    "C recvmmsg, addresses": native.receiver("c_recvmmsg_named", VLEN),
}


@dataclass(frozen=True, slots=True)
class FromPeers:
    """A race to receive; its size is the number of peers."""

    title: str
    baselines: Mapping[str, str]
    warm_count: int = WARM_COUNT

    @contextmanager
    def open(self, size: int) -> Iterator[tuple[list[Contestant], int]]:
        with PeerLink(size) as link:
            yield (
                [Contestant(name, link.fill, RECEIVERS[name](link), link.expect_empty) for name in self.baselines],
                link.fitting(COUNT, self.warm_count),
            )


class Everywhere(Link):
    """A link whose receiver has every address of this host; `peers` are those that are sent to, in turn."""

    def __init__(self, count: int) -> None:
        super().__init__(SIZE)
        self.receiver.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.receiver = bind_udp(("0.0.0.0", 0), rcvbuf=RCVBUF)
        self.poll = select.poll()
        self.poll.register(self.receiver.fileno(), select.POLLIN)
        port = self.receiver.getsockname()[1]
        self.peers: list[Any] = [(host, port) for host in peer_hosts(count)]
        self.peers *= -(-VLEN // len(self.peers))
        self.groups = [self.peers[at : at + VLEN] for at in range(0, len(self.peers) // VLEN * VLEN, VLEN)]

    def offer(self, count: int) -> None:
        send_to_many(self)(count)


def send_to_each(link: Everywhere) -> Run:
    groups, sendto, payloads = cycle(link.groups), link.std_open_sender.sendto, link.payloads

    def run(count: int) -> int:
        for _ in range(count // VLEN):
            for payload, peer in zip(payloads, next(groups), strict=True):
                sendto(payload, peer)
        return count

    return run


def send_to_many(link: Everywhere) -> Run:
    groups, sendto_many, payloads = cycle(link.groups), link.open_sender.sendto_many, link.payloads

    def run(count: int) -> int:
        done = 0
        for _ in range(count // VLEN):
            done += sendto_many(payloads, next(groups))
        return done

    return run


def c_sendmmsg(link: Everywhere) -> Run:
    peers = b"".join(map(native.pack_address, link.peers))
    payloads = b"".join(link.payloads)
    return native.checked(
        native.library().c_sendmmsg_to, link.open_sender.fileno(), payloads, SIZE, peers, len(link.peers)
    )


SENDERS: dict[str, Callable[[Everywhere], Run]] = {
    "socket.sendto": send_to_each,
    "sendto_many": send_to_many,
    "C sendmmsg, addresses": c_sendmmsg,
}


@dataclass(frozen=True, slots=True)
class ToPeers:
    """A race to send; its size is the number of peers."""

    title: str
    baselines: Mapping[str, str]
    warm_count: int = WARM_COUNT

    @contextmanager
    def open(self, size: int) -> Iterator[tuple[list[Contestant], int]]:
        with ExitStack() as stack:
            link = stack.enter_context(Everywhere(size))
            yield (
                [Contestant(name, link.expect_empty, SENDERS[name](link), link.drain) for name in self.baselines],
                link.fitting(COUNT, self.warm_count),
            )


def races() -> dict[str, FromPeers | ToPeers]:
    def there(baselines: dict[str, str]) -> dict[str, str]:
        return {name: base for name, base in baselines.items() if not (name.startswith("C ") and native.missing())}

    return {
        "from-peers": FromPeers("receive, by peers", there(RECEIVE_BASELINES)),
        "to-peers": ToPeers("send, by peers", there(SEND_BASELINES)),
    }


def run(plan: Plan) -> Answer:
    the_races = races()
    found = run_races(plan, the_races, PEERS)
    notes = {
        "from-peers": "recv_batch, addresses makes the address of every datagram; C leaves it as the kernel wrote it.",
        "to-peers": "sendto_many takes 64 payloads and their 64 peers, GSO off. The receiver has every address.",
    }
    tables = [
        race_table(
            the_races[name].title,
            samples,
            the_races[name].baselines,
            per="{size}",
            note=f"{notes[name]} {found.note}".strip(),
        )
        for name, samples in found.samples.items()
        if samples
    ]
    method = f"{DRAIN} Peers are addresses of 127.0.0.0/8, in turn; {SIZE} B."
    return Answer("peers", QUESTION.title, method, tables=tables, skipped="" if tables else found.note)


QUESTION = Question("peers", "What do many peers cost?", run, weight=1.5, by_default=False)
