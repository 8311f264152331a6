"""What a UDP socket is told to receive and to send: the options behind bind_udp and connect_udp.

Each function sets one option for the socket's family. May import _sock, the compiled
constants and the standard library.
"""

from __future__ import annotations

import contextlib
import os
import socket as _stdlib
import time
from dataclasses import dataclass
from typing import Literal

from fastsock import _constants as k
from fastsock._sock import Socket

Clock = Literal["monotonic", "tai"]
Stamps = Literal["software", "hardware"]

CLOCKS = {"monotonic": time.CLOCK_MONOTONIC, "tai": time.CLOCK_TAI}
RECEIVE_STAMPS = {
    "software": 0,  # SO_TIMESTAMPNS alone, whose control data is smaller
    "hardware": k.SOF_TIMESTAMPING_RX_HARDWARE
    | k.SOF_TIMESTAMPING_RAW_HARDWARE
    | k.SOF_TIMESTAMPING_RX_SOFTWARE
    | k.SOF_TIMESTAMPING_SOFTWARE,
}
TRANSMIT_STAMPS = {
    "software": k.SOF_TIMESTAMPING_TX_SOFTWARE | k.SOF_TIMESTAMPING_SOFTWARE,
    "hardware": k.SOF_TIMESTAMPING_TX_HARDWARE | k.SOF_TIMESTAMPING_RAW_HARDWARE,
}


@dataclass(frozen=True, slots=True)
class Options:
    """The options that bind_udp and connect_udp share; they document them."""

    gso: bool = True
    gro: bool = False
    timestamps: bool | Stamps | None = None
    pktinfo: bool = False
    ecn: bool = False
    ttl: bool = False
    drop_counter: bool = False
    error_queue: bool = False
    transmit_timestamps: bool | Stamps | None = None
    txtime: Clock | None = None

    def apply(self, sock: Socket) -> None:
        """Set them on a fresh socket."""
        sock.gso = self.gso
        if self.gro:
            join_datagrams(sock)
        stamp(sock, stamps("timestamps", self.timestamps), stamps("transmit_timestamps", self.transmit_timestamps))
        if self.pktinfo:
            for_family(sock, k.IP_PKTINFO, _stdlib.IPV6_RECVPKTINFO, both=False)
        if self.ecn:
            for_family(sock, k.IP_RECVTOS, _stdlib.IPV6_RECVTCLASS)
        if self.ttl:
            for_family(sock, k.IP_RECVTTL, _stdlib.IPV6_RECVHOPLIMIT)
        if self.drop_counter:
            sock.setsockopt(_stdlib.SOL_SOCKET, k.SO_RXQ_OVFL, 1)
        if self.error_queue:
            for_family(sock, k.IP_RECVERR, k.IPV6_RECVERR)
        if self.txtime is not None:
            if self.txtime not in CLOCKS:
                raise ValueError(f"txtime must be one of {', '.join(CLOCKS)}, not {self.txtime!r}")
            sock.setsockopt(_stdlib.SOL_SOCKET, k.SO_TXTIME, k.txtime_option(CLOCKS[self.txtime]))


def gro_allowed() -> bool:
    """Whether the environment leaves GRO alone: FASTSOCK_GRO=0 switches it off."""
    return os.environ.get("FASTSOCK_GRO") != "0"


def join_datagrams(sock: Socket) -> None:
    """Turn UDP_GRO on where the kernel has it and the environment lets it; ``sock.gro`` says."""
    if gro_allowed():
        # Before Linux 5.0 datagrams come one by one, and every call works the same.
        with contextlib.suppress(OSError):
            sock.setsockopt(k.SOL_UDP, k.UDP_GRO, 1)


def for_family(sock: Socket, option: int, option6: int, *, both: bool = True) -> None:
    """Switch on what IPv4 and IPv6 have an option for each; `both` on a socket that takes both.

    A v4 datagram on a dual-stack socket has its TOS and TTL at level IPPROTO_IP, and its
    destination, mapped, at level IPPROTO_IPV6.
    """
    if sock.family == _stdlib.AF_INET6:
        sock.setsockopt(_stdlib.IPPROTO_IPV6, option6, 1)
        if not both or sock.getsockopt(_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY):
            return
    sock.setsockopt(_stdlib.IPPROTO_IP, option, 1)


def stamps(name: str, wanted: bool | Stamps | None) -> Stamps | None:
    """The kind of time stamps that an argument means."""
    if wanted is True:
        return "software"
    if not wanted:
        return None
    if wanted not in RECEIVE_STAMPS:
        raise ValueError(f"{name} must be True, 'software' or 'hardware', not {wanted!r}")
    return wanted


def stamp(sock: Socket, receive: Stamps | None, transmit: Stamps | None) -> None:
    """Ask for time stamps of what is received, and of what is sent."""
    flags = RECEIVE_STAMPS[receive] if receive else 0
    if transmit:
        # One number and no copy of the payload for each send; it switches GSO off.
        flags |= TRANSMIT_STAMPS[transmit] | k.SOF_TIMESTAMPING_OPT_ID | k.SOF_TIMESTAMPING_OPT_TSONLY
    if flags:
        sock.setsockopt(_stdlib.SOL_SOCKET, k.SO_TIMESTAMPING, flags)
    if receive:
        # Beside SO_TIMESTAMPING too: the kernel switches its stamps on a moment later, and only
        # for this option fills in what came before (net/socket.c, __sock_recv_timestamp).
        sock.setsockopt(_stdlib.SOL_SOCKET, k.SO_TIMESTAMPNS, 1)
