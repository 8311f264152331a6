"""bind_udp, bind_udp_group and connect_udp: UDP sockets with their options set and their buffers checked.

Policy only: every option goes through a method of Socket. May import _sock, _options,
_multicast, _steering and the standard library.
"""

from __future__ import annotations

import operator
import socket as _stdlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from fastsock._constants import SO_RCVBUFFORCE, SO_SNDBUFFORCE
from fastsock._multicast import Group, check_bound, check_group, list_groups
from fastsock._options import Clock, Options, Stamps
from fastsock._sock import Socket
from fastsock._steering import build_program


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that a socket is told before it has an address; ``bind_udp`` documents it."""

    options: Options
    rcvbuf: int | None = None
    sndbuf: int | None = None
    reuse_address: bool = False
    reuse_port: bool = False
    dualstack_ipv6: bool | None = None  # None leaves it as the kernel has it
    groups: Sequence[tuple[str, str | int | None, str | None]] = field(default_factory=list)

    def differences(self, other: Setup) -> dict[str, Any]:
        """What is not as in another, by the names of the arguments."""
        own, others = ({**asdict(setup), **asdict(setup.options), "multicast": setup.groups} for setup in (self, other))
        names = own.keys() - {"options", "groups"}
        return {name: own[name] for name in sorted(names) if own[name] != others[name]}

    def choose_family(self, family: int | None, address: Any) -> int | None:
        """The family that the other arguments leave to the resolver."""
        if self.dualstack_ipv6:
            if family == _stdlib.AF_INET:
                raise ValueError("dualstack_ipv6 needs AF_INET6")
            return _stdlib.AF_INET6
        if self.groups and family is None and isinstance(address, tuple) and address and not address[0]:
            return max(check_group(group) for group, _, _ in self.groups)  # AF_INET6, if there is one
        return family

    def configure(self, sock: Socket) -> None:
        if self.reuse_address:
            sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEADDR, 1)
        if self.reuse_port:
            sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEPORT, 1)
        if sock.family == _stdlib.AF_INET6 and self.dualstack_ipv6 is not None:
            sock.setsockopt(_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY, 0 if self.dualstack_ipv6 else 1)
        self.options.apply(sock)
        request_buffers(sock, self.rcvbuf, self.sndbuf)
        for group in self.groups:
            sock.join_group(*group)

    def bind(self, sock: Socket, resolved: tuple[Any, ...]) -> None:
        if self.groups:
            check_bound(resolved[0])
        sock.bind(resolved)


def bind_udp(
    address: tuple[Any, ...],
    *,
    family: int | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    reuse_address: bool = False,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
    gso: bool = True,
    gro: bool = False,
    timestamps: bool | Stamps | None = None,
    pktinfo: bool = False,
    ecn: bool = False,
    ttl: bool = False,
    drop_counter: bool = False,
    error_queue: bool = False,
    transmit_timestamps: bool | Stamps | None = None,
    txtime: Clock | None = None,
    multicast: Group | Iterable[Group] | None = None,
) -> Socket:
    """Return a UDP socket bound to ``address``, ready to receive.

    Args:
        address: ``(host, port)``, or a four-tuple for IPv6. A host name is resolved with
            getaddrinfo, and bound to the first of its addresses that can be. The host ""
            means every address of the family; port 0 lets the kernel choose.
        family: AF_INET or AF_INET6, to leave no choice to the resolver.
        rcvbuf: Bytes of receive buffer to ask for. Beyond net.core.rmem_max it takes
            CAP_NET_ADMIN; what the kernel does not give is warned of, with what lifts it.
        sndbuf: The same for the send buffer.
        reuse_address: Set SO_REUSEADDR.
        reuse_port: Set SO_REUSEPORT, to spread datagrams over several sockets.
        dualstack_ipv6: Receive IPv4 too, as ``::ffff:a.b.c.d``, on an IPv6 wildcard.
            Without it an IPv6 socket is IPV6_V6ONLY, as with ``socket.create_server``.
        gso: Let the kernel cut runs of equal payloads to one peer into datagrams: see
            ``Socket.gso``.
        gro: Let the kernel join datagrams of one peer on their way up (UDP_GRO, Linux 5.0);
            every batched call splits them again. ``Socket.gro`` says whether it is on: older
            kernels, and FASTSOCK_GRO=0 in the environment, go on without.
        timestamps: Record when the kernel received each datagram: True or "software".
            "hardware" records the device's own time too, where it was told to take it
            (SIOCSHWTSTAMP; hwstamp_ctl does it).
        pktinfo: Record the address that each datagram was sent to, and its interface.
        ecn: Record ECN and DSCP of each datagram.
        ttl: Record the TTL or hop limit.
        drop_counter: Record SO_RXQ_OVFL: where in the stream datagrams were dropped.
        error_queue: Queue ICMP errors for ``Socket.recv_errors`` (IP_RECVERR). An unconnected
            socket then goes on serving other peers when one is dead.
        transmit_timestamps: Report when each datagram left, through ``Socket.recv_errors``:
            True or "software", as the driver got it, or "hardware". Switches ``gso`` off.
        txtime: Take a time to send at with each datagram (SO_TXTIME): "tai" for the etf
            queue, which drops what is late, "monotonic" for fq.
        multicast: A group to join, or a list of them: an address, ``(group, interface)`` or
            ``(group, interface, source)``, as for ``Socket.join_group``. The host "" is then
            of the family of the groups; a socket bound to one unicast address hears none.

    The metadata is on ``Datagram`` and in the columns of ``RecvBatch``. What is not asked
    for costs nothing.

    Raises:
        OSError: EADDRINUSE, EADDRNOTAVAIL, EACCES ...; the address or group is in its text.
        socket.gaierror: The host does not resolve.
        ValueError: ``dualstack_ipv6`` with AF_INET, an option that there is not, or a group that
            ``join_group`` does not take.

    Warns:
        RuntimeWarning: A buffer is smaller than asked for.

    See udp(7), socket(7), ipv6(7).
    """
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
            txtime=txtime,
        ),
        rcvbuf=rcvbuf,
        sndbuf=sndbuf,
        reuse_address=reuse_address,
        reuse_port=reuse_port,
        dualstack_ipv6=dualstack_ipv6,
        groups=list_groups(multicast),
    )
    return open_udp(address, setup.choose_family(family, address), _stdlib.AI_PASSIVE, setup.configure, setup.bind)


def bind_udp_group(address: tuple[Any, ...], size: int, *, steering: str | None = None, **options: Any) -> list[Socket]:
    """Return ``size`` UDP sockets bound to one address, among which the kernel spreads what arrives.

    Args:
        address: As in ``bind_udp``; port 0 is one free port for all of them.
        size: How many; one for each thread or process that receives.
        steering: Which socket a datagram goes to, as in ``Socket.steer``: "cpu", "source" or
            "random"; None leaves it to the kernel's hash of both addresses and ports.
        options: Those of ``bind_udp``; ``reuse_port`` is set.

    Returns:
        The sockets, in the order in which "cpu" numbers them.

    Raises:
        OSError: As ``bind_udp``, and as ``Socket.steer``. No socket is left open.
        ValueError: An unknown ``steering``, a ``size`` below 1, or ``multicast``: a group is
            delivered to every socket that joined it, whatever the steering.

    Sockets of other programs on the same address and port with SO_REUSEPORT count too, and
    upset the order. See socket(7).
    """
    if options.get("multicast") is not None:
        raise ValueError("multicast is not spread: each socket that joins a group gets every datagram")
    build_program("random" if steering is None else steering, size)  # complains before there is a socket
    socks: list[Socket] = []
    try:
        socks.append(bind_udp(address, reuse_port=True, **options))
        if steering is not None:
            socks[0].steer(steering, size)
        options["family"] = socks[0].family
        while len(socks) < size:
            socks.append(bind_udp(socks[0].getsockname(), reuse_port=True, **options))
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def connect_udp(
    address: tuple[Any, ...],
    *,
    family: int | None = None,
    local_address: tuple[Any, ...] | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    gso: bool = True,
    gro: bool = False,
    timestamps: bool | Stamps | None = None,
    pktinfo: bool = False,
    ecn: bool = False,
    ttl: bool = False,
    drop_counter: bool = False,
    error_queue: bool = False,
    transmit_timestamps: bool | Stamps | None = None,
    txtime: Clock | None = None,
) -> Socket:
    """Return a UDP socket whose peer is ``address``, ready for ``send_many``.

    Args:
        address: ``(host, port)``, or a four-tuple for IPv6; names as in ``bind_udp``.
        family: AF_INET or AF_INET6, to leave no choice to the resolver.
        local_address: Bind to it first.
        rcvbuf: As in ``bind_udp``.
        sndbuf: As in ``bind_udp``.
        gso, gro, timestamps, pktinfo, ecn, ttl, drop_counter, error_queue,
            transmit_timestamps, txtime: As in ``bind_udp``.

    Raises:
        OSError: ENETUNREACH, EADDRINUSE ...; the address is in its text.
        socket.gaierror: The host does not resolve.

    Warns:
        RuntimeWarning: A buffer is smaller than asked for.

    A connected UDP socket hears of a closed port: ConnectionRefusedError, from a later
    call. See udp(7), connect(2).
    """
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
            txtime=txtime,
        ),
        rcvbuf=rcvbuf,
        sndbuf=sndbuf,
    )

    def configure(sock: Socket) -> None:
        setup.configure(sock)
        if local_address is not None:
            try:
                sock.bind(local_address)
            except OSError as error:
                raise at_address(error, local_address) from None

    return open_udp(address, family, 0, configure, Socket.connect)


def open_udp(
    address: tuple[Any, ...],
    family: int | None,
    ai_flags: int,
    configure: Callable[[Socket], None],
    attach: Callable[[Socket, Any], None],
) -> Socket:
    """A socket for the first of the addresses behind `address` to which it can be attached."""
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
        raise TypeError(f"address must be a tuple (host, port), not {address!r}")
    host, port, *rest = address[0], *map(operator.index, address[1:])
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("port must be 0-65535.")
    found = _stdlib.getaddrinfo(
        host or None, port, family or _stdlib.AF_UNSPEC, _stdlib.SOCK_DGRAM, _stdlib.IPPROTO_UDP, ai_flags
    )
    failure: OSError | None = None
    for candidate, kind, proto, _, resolved in found:
        if rest:
            if candidate != _stdlib.AF_INET6:
                raise TypeError(f"flowinfo and scope belong to IPv6: {address!r}")
            resolved = (*resolved[:2], *rest, *resolved[2 + len(rest) :])
        try:
            sock = Socket(candidate, kind, proto)
        except OSError as error:
            failure = failure or error
            continue
        try:
            configure(sock)
            try:
                attach(sock, resolved)
            except OSError as error:
                raise at_address(error, resolved) from None
        except OSError as error:
            sock.close()
            failure = failure or error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert failure is not None, "getaddrinfo returns at least one address or raises"
    raise failure


def at_address(error: OSError, address: Any) -> OSError:
    """The same error, with the address in its text."""
    return type(error)(error.errno, f"{error.strerror}: {address!r}")


def request_buffers(sock: Socket, rcvbuf: int | None, sndbuf: int | None) -> None:
    """Ask for socket buffers of so many bytes; warn where the kernel gives less."""
    options = (
        (rcvbuf, _stdlib.SO_RCVBUF, SO_RCVBUFFORCE, "receive", "net.core.rmem_max"),
        (sndbuf, _stdlib.SO_SNDBUF, SO_SNDBUFFORCE, "send", "net.core.wmem_max"),
    )
    for wanted, option, force, which, sysctl in options:
        if wanted is None:
            continue
        if wanted < 1:
            raise ValueError(f"a {which} buffer must be at least 1 byte, not {wanted}")
        was = buffer_size(sock, option)
        try:
            sock.setsockopt(_stdlib.SOL_SOCKET, force, wanted)
        except PermissionError:
            sock.setsockopt(_stdlib.SOL_SOCKET, option, wanted)
        got = buffer_size(sock, option)
        if got < wanted:
            warnings.warn(
                f"{which} buffer: wanted {wanted} bytes, was {was}, got {got}; "
                f"raise the limit with: sysctl -w {sysctl}={wanted}",
                RuntimeWarning,
                stacklevel=level_of_caller(),
            )


def level_of_caller() -> int:
    """The stacklevel, for a warning of the calling function, of whoever called this module."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals is globals():
        level += 1
        frame = frame.f_back
    return level


def buffer_size(sock: Socket, option: int) -> int:
    """A buffer's size in the unit that setsockopt takes: the kernel reads it back doubled."""
    return sock.getsockopt(_stdlib.SOL_SOCKET, option) // 2
