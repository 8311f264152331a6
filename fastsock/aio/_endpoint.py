"""create_datagram_endpoint: the loop's own, with the options of bind_udp. May import _transport, and _udp below."""

from __future__ import annotations

import asyncio
import logging
import os
import socket as _stdlib
import stat
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fastsock._multicast import Group, list_groups
from fastsock._options import Options, Stamps
from fastsock._sock import Socket
from fastsock._udp import Setup, at_address
from fastsock.aio._transport import READ_DATAGRAMS, READ_US, DatagramTransport

logger = logging.getLogger("asyncio")
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)
Pair = tuple[Any, Any]
PLAIN = Setup(Options(gro=True))
"""An endpoint that is given no options."""


async def create_datagram_endpoint(
    protocol_factory: Callable[[], ProtocolT],
    local_addr: tuple[Any, ...] | str | None = None,
    remote_addr: tuple[Any, ...] | str | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: Any = None,
    reuse_address: bool = False,
    dualstack_ipv6: bool | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    gso: bool = True,
    gro: bool = True,
    timestamps: bool | Stamps | None = None,
    pktinfo: bool = False,
    ecn: bool = False,
    ttl: bool = False,
    drop_counter: bool = False,
    error_queue: bool = False,
    transmit_timestamps: bool | Stamps | None = None,
    multicast: Group | Iterable[Group] | None = None,
    read_datagrams: int = READ_DATAGRAMS,
    read_us: int = READ_US,
) -> tuple[DatagramTransport, ProtocolT]:
    """Open a datagram endpoint on the running loop, asyncio's or any other with ``add_reader``.

    Args:
        protocol_factory: Makes the protocol. One with ``datagrams_received(batch)`` is given a
            ``RecvBatch``, which the next receive overwrites; any other ``datagram_received(data, addr)``
            for each datagram, as ever.
        local_addr, remote_addr, family, proto, flags, reuse_port, allow_broadcast: As for
            ``loop.create_datagram_endpoint``.
        sock: A bound or connected datagram socket of either class, instead of these; the transport
            closes it.
        dualstack_ipv6: As in ``bind_udp``; None leaves IPV6_V6ONLY as the kernel has it.
        reuse_address, rcvbuf, sndbuf, gso, gro, timestamps, pktinfo, ecn, ttl, drop_counter, error_queue,
            transmit_timestamps, multicast: As in ``bind_udp``, but that ``gro`` is on: nothing but
            this transport receives from the socket. It stays as it is on a ``sock``.
        read_datagrams: About how many datagrams are received per pass of the loop, before other sockets
            and timers have their turn.
        read_us: About how many microseconds of each pass the protocol is given.

    Returns:
        ``(transport, protocol)``.

    Raises:
        OSError: As bind(2) and connect(2); the address is in its text.
        ValueError: Arguments that exclude each other, as for ``loop.create_datagram_endpoint``.
        TypeError: An address that is no tuple, or no path for AF_UNIX.

    With ``error_queue`` an ICMP error reaches ``error_received`` as an OSError whose ``record`` attribute is
    the ``ErrorRecord``, and an unconnected endpoint goes on with its other peers. Records that are no errors,
    as those of ``transmit_timestamps``, go to the protocol's ``record_received(record)``, if it has one.
    """
    loop = asyncio.get_running_loop()
    setup = Setup(
        Options(
            gso=gso,
            gro=gro,
            timestamps=timestamps,
            pktinfo=pktinfo,
            ecn=ecn,
            ttl=ttl,
            drop_counter=drop_counter,
            error_queue=error_queue,
            transmit_timestamps=transmit_timestamps,
        ),
        rcvbuf=rcvbuf,
        sndbuf=sndbuf,
        reuse_address=reuse_address,
        reuse_port=bool(reuse_port),
        dualstack_ipv6=dualstack_ipv6,
        groups=list_groups(multicast),
    )
    peer = None
    if sock is not None:
        if sock.type == _stdlib.SOCK_STREAM:
            raise ValueError(f"A datagram socket was expected, got {sock!r}")
        given = {
            "local_addr": local_addr,
            "remote_addr": remote_addr,
            "family": family,
            "proto": proto,
            "flags": flags,
            "reuse_port": reuse_port,
            "allow_broadcast": allow_broadcast,
        }
        given = {name: value for name, value in given.items() if value} | setup.differences(PLAIN)
        if given:
            problems = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"socket modifier keyword arguments can not be used when sock is specified. ({problems})")
        sock.setblocking(False)
        own = sock if isinstance(sock, Socket) else Socket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
        own.setblocking(False)
    else:
        family = setup.choose_family(family or None, local_addr) or 0
        pairs = await find_pairs(loop, local_addr, remote_addr, family, proto, flags)
        own, peer = open_first(pairs, setup, bool(local_addr), bool(remote_addr), bool(allow_broadcast))
    try:
        protocol = protocol_factory()
        made = loop.create_future()
        transport = DatagramTransport(
            loop, own, protocol, peer, made, owner=sock, read_datagrams=read_datagrams, read_us=read_us
        )
    except BaseException:
        if sock is None:
            own.close()
        elif own is not sock:
            own.detach()
        raise
    try:
        await made
    except BaseException:
        transport.close()
        raise
    return transport, protocol


async def find_pairs(
    loop: asyncio.AbstractEventLoop, local: Any, remote: Any, family: int, proto: int, flags: int
) -> list[tuple[int, int, Pair]]:
    """``(family, proto, (local address, remote address))`` for each way to open the endpoint."""
    if not (local or remote):
        if family == 0:
            raise ValueError("unexpected address family")
        return [(family, proto, (None, None))]
    if family == _stdlib.AF_UNIX:
        for path in (local, remote):
            if path is not None and not isinstance(path, str):
                raise TypeError("string is expected")
        if local and local[0] != "\x00":
            remove_stale(local)
        return [(family, proto, (local, remote))]
    found: dict[tuple[int, int], list[Any]] = {}
    for index, address in enumerate((local, remote)):
        if address is not None:
            for kind, _, number, _, resolved in await resolve(loop, address, family, proto, flags):
                found.setdefault((kind, number), [None, None])[index] = resolved
    pairs = [
        (kind, number, (near, far))
        for (kind, number), (near, far) in found.items()
        if not ((local and near is None) or (remote and far is None))
    ]
    if not pairs:
        raise ValueError("can not get address information")
    return pairs


async def resolve(loop: asyncio.AbstractEventLoop, address: Any, family: int, proto: int, flags: int) -> list[Any]:
    """What getaddrinfo says; off the loop, but for addresses in digits."""
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
        raise TypeError("2-tuple is expected")
    host, port, *rest = address
    if host == "":
        host, flags = None, flags | _stdlib.AI_PASSIVE  # every address, as for bind()
    try:
        found = _stdlib.getaddrinfo(host, port, family, _stdlib.SOCK_DGRAM, proto, flags | _stdlib.AI_NUMERICHOST)
    except _stdlib.gaierror:
        found = await loop.getaddrinfo(host, port, family=family, type=_stdlib.SOCK_DGRAM, proto=proto, flags=flags)
    if not found:
        raise OSError("getaddrinfo() returned empty list")
    return [(*entry[:4], (*entry[4][:2], *rest, *entry[4][2 + len(rest) :])) for entry in found]


def remove_stale(path: str) -> None:
    """Remove the socket that an earlier server has left, as asyncio does."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        # A directory may let sockets be made and nothing else; bind() decides.
        logger.error("Unable to check or remove stale UNIX socket %r: %r", path, error)


def open_first(
    pairs: list[tuple[int, int, Pair]], setup: Setup, bound: bool, connected: bool, broadcast: bool
) -> tuple[Socket, Any]:
    """A socket for the first pair that it can be opened for, and the peer that it is not connected to."""
    failure: OSError | None = None
    for family, proto, (local, remote) in pairs:
        try:
            sock = Socket(family, _stdlib.SOCK_DGRAM, proto)
        except OSError as error:
            failure = failure or error
            continue
        try:
            sock.setblocking(False)
            if broadcast:
                sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_BROADCAST, 1)
            setup.configure(sock)
            attach(sock, setup, local if bound else None, remote if connected and not broadcast else None)
        except OSError as error:
            sock.close()
            failure = failure or error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, remote if connected else None
    assert failure is not None, "there is at least one pair"
    raise failure


def attach(sock: Socket, setup: Setup, local: Any, remote: Any) -> None:
    """Bind and connect; an OSError names the address."""
    address = local
    try:
        if local is not None:
            setup.bind(sock, local)
        address = remote
        if remote is not None:
            sock.connect(remote)
    except OSError as error:
        raise at_address(error, address) from None
