"""What this machine's kernel offers, with a reason for every yes and no, and what limits it.

Everything is tried on throw-away sockets, over loopback where an option alone proves
nothing; nothing stays changed. May import _udp, _options, _limits, the compiled modules and
the standard library.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import platform
import re
import select
import socket as _stdlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsock import _constants as k
from fastsock._gso import max_segments
from fastsock._limits import Limit, read, read_limits
from fastsock._options import CLOCKS, gro_allowed
from fastsock._recvbatch import RecvBatch
from fastsock._sock import Socket
from fastsock._udp import bind_udp, connect_udp

V4, V6 = ("127.0.0.1", 0), ("::1", 0)
WAIT_S = 0.1  # loopback delivers at once; a firewall may not let it
MOST_NAMES = 8  # interfaces that a reason lists

# linux/sockios.h, linux/ethtool.h, linux/if.h
SIOCETHTOOL, ETHTOOL_GET_TS_INFO = 0x8946, 0x41
IFF_UP, IFF_MULTICAST = 0x1, 0x1000
HARDWARE_RECEIVE = k.SOF_TIMESTAMPING_RX_HARDWARE | k.SOF_TIMESTAMPING_RAW_HARDWARE


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that the kernel does or does not do; true where it does.

    Attributes:
        available: Whether it works here, for this process.
        why: What it gives or takes, or what refused it.
    """

    available: bool
    why: str

    def __bool__(self) -> bool:
        return self.available


@dataclass(frozen=True, slots=True)
class Probe:
    """What ``probe`` found. Sizes are bytes; None means that it could not be read."""

    kernel: str
    machine: str
    libc: str
    python: str
    cpus: int
    """CPUs that this process may run on."""
    recvmmsg: Capability
    sendmmsg: Capability
    gso: Capability
    """UDP_SEGMENT: the kernel cuts one send into datagrams (Linux 4.18)."""
    max_segments: int
    """Datagrams that one message may be cut into; 1 without GSO."""
    gro: Capability
    """UDP_GRO: the kernel joins received datagrams (Linux 5.0)."""
    timestamps: Capability
    """When the kernel received each datagram."""
    hardware_timestamps: Capability
    """Whether a network device claims to know when."""
    transmit_timestamps: Capability
    """When each datagram was sent, through ``recv_errors``."""
    pktinfo: Capability
    ecn: Capability
    ttl: Capability
    drop_counter: Capability
    """SO_MEMINFO: ``Socket.drops`` works (Linux 4.12)."""
    drop_marks: Capability
    """SO_RXQ_OVFL: where in the stream datagrams were dropped, ``bind_udp(drop_counter=True)``."""
    error_queue: Capability
    txtime: Capability
    """SO_TXTIME with CLOCK_MONOTONIC, for the fq queue (Linux 4.19)."""
    txtime_tai: Capability
    """SO_TXTIME with CLOCK_TAI, for the etf queue."""
    zerocopy: Capability
    """MSG_ZEROCOPY: ``send_zerocopy`` (Linux 5.0)."""
    reuse_port: Capability
    steering: Capability
    """SO_ATTACH_REUSEPORT_CBPF: a program picks the socket of a reuse_port group (Linux 4.5)."""
    multicast: Capability
    ipv6: Capability
    dual_stack: Capability
    rcvbuf_force: Capability
    """This process may exceed rmem_max and wmem_max (CAP_NET_ADMIN)."""
    rmem_default: int | None
    rmem_max: int | None
    wmem_default: int | None
    wmem_max: int | None
    limits: tuple[Limit, ...]
    """The sysctls that bound sockets, and the command that raises each."""
    known_bugs: tuple[str, ...]
    """What is known to go wrong with this kernel, and how to avoid it."""


def probe() -> Probe:
    """Ask the kernel what it offers, on throw-away sockets; nothing stays changed.

    Takes a few milliseconds. See socket(7), udp(7), ip(7).
    """
    limits = tuple(read_limits())
    return Probe(
        kernel=platform.release(),
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()).strip() or "musl",
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        recvmmsg=ask("recvmmsg", (2, 6, 33), try_recvmmsg),
        sendmmsg=ask("sendmmsg", (3, 0), try_sendmmsg),
        gso=probe_gso(),
        max_segments=max_segments(),
        gro=probe_gro(),
        timestamps=ask("SO_TIMESTAMPNS", (2, 6, 22), try_timestamps),
        hardware_timestamps=probe_hardware_timestamps(),
        transmit_timestamps=ask("SO_TIMESTAMPING", (4, 0), try_transmit_timestamps),
        pktinfo=ask("IP_PKTINFO", (2, 2), try_pktinfo),
        ecn=ask("IP_RECVTOS", (2, 2), try_ecn),
        ttl=ask("IP_RECVTTL", (2, 2), try_ttl),
        drop_counter=ask("SO_MEMINFO", (4, 12), try_drop_counter),
        drop_marks=ask("SO_RXQ_OVFL", (2, 6, 33), try_drop_marks),
        error_queue=ask("IP_RECVERR", (2, 2), try_error_queue),
        txtime=ask("SO_TXTIME", (4, 19), lambda: try_txtime("monotonic", "fq")),
        txtime_tai=ask("SO_TXTIME", (4, 19), lambda: try_txtime("tai", "etf")),
        zerocopy=ask("SO_ZEROCOPY", (5, 0), try_zerocopy),
        reuse_port=ask("SO_REUSEPORT", (3, 9), try_reuse_port),
        steering=ask("SO_ATTACH_REUSEPORT_CBPF", (4, 5), try_steering),
        multicast=probe_multicast(),
        ipv6=ask("::1", (2, 2), try_ipv6),
        dual_stack=ask("IPV6_V6ONLY", (2, 6), try_dual_stack),
        rcvbuf_force=ask("SO_RCVBUFFORCE", (2, 6, 14), try_rcvbuf_force),
        rmem_default=read("net.core.rmem_default"),
        rmem_max=read("net.core.rmem_max"),
        wmem_default=read("net.core.wmem_default"),
        wmem_max=read("net.core.wmem_max"),
        limits=limits,
        known_bugs=tuple(known_bugs(platform.release())),
    )


# --- asking ---------------------------------------------------------------------------------


class NoAnswerError(Exception):
    """The kernel took the option, and then did not do what it stands for."""


def ask(name: str, since: tuple[int, ...], attempt: Callable[[], str]) -> Capability:
    """Available where `attempt` succeeds, with what it returns; else not, with what refused it.

    Args:
        name: The option or call that is in question.
        since: The Linux release that brought it.
        attempt: Tries it; raises OSError, NoAnswerError or ValueError.
    """
    try:
        return Capability(True, attempt())
    except (NoAnswerError, ValueError) as error:  # ValueError: an option that does not read back
        return Capability(False, f"{name}: {error}")
    except OSError as error:
        return Capability(False, refusal(name, since, error, platform.release()))


def refusal(name: str, since: tuple[int, ...], error: OSError, release: str) -> str:
    """Why `name` does not work, in words."""
    if isinstance(error, TimeoutError):
        return f"{name}: nothing arrived over loopback; is lo up? a firewall there?"
    what = errno.errorcode.get(error.errno or 0, str(error))
    if parse_release(release) < since:
        return f"Linux {dotted(since)} has {name}, this is {dotted(parse_release(release)[:2])}: {what}"
    if error.errno == errno.EPERM:
        return f"{name}: EPERM; it takes CAP_NET_ADMIN"
    return f"{name}: {what}"


def parse_release(release: str) -> tuple[int, ...]:
    """6.18.44-generic as (6, 18, 44); what is missing is 0."""
    found = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", release)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)


def dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def known_bugs(release: str) -> Iterator[str]:
    """Bugs of the kernel proper; a distribution may have mended its own."""
    if (7, 0, 0) <= parse_release(release) <= (7, 1, 4):
        yield (
            "Linux 7.0 to 7.1.4 may corrupt datagrams silently with GSO and GRO: "
            "set FASTSOCK_GSO=0 and FASTSOCK_GRO=0 in the environment"
        )


@contextlib.contextmanager
def pair(address: tuple[str, int] = V4, **options: Any) -> Iterator[tuple[Socket, Socket]]:
    """A receiver with these options, and a sender to it."""
    with bind_udp(address, **options) as receiver, connect_udp(receiver.getsockname()) as sender:
        receiver.settimeout(WAIT_S)
        yield receiver, sender


def exchange(**options: Any) -> RecvBatch:
    """One datagram over loopback, as a socket with these options receives it."""
    with pair(**options) as (receiver, sender):
        sender.send(b"fastsock")
        batch = RecvBatch(1)
        receiver.recv_batch(batch)
        return batch


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise NoAnswerError(otherwise)


# --- each capability ---------------------------------------------------------------------------


def try_recvmmsg() -> str:
    with pair() as (receiver, sender):
        sender.send(b"1")
        sender.send(b"2")
        require(len(receiver.recv_many(2)) == 2, "returned one of two datagrams")
    return "many datagrams received in one call"


def try_sendmmsg() -> str:
    with pair() as (_, sender):
        sender.gso = False
        require(sender.send_many([b"1", b"22"]) == 2, "sent one of two datagrams")
    return "many datagrams sent in one call"


def probe_gso() -> Capability:
    segments = max_segments()
    if segments > 1:
        return Capability(True, f"{segments} datagrams per message")
    if os.environ.get("FASTSOCK_GSO") == "0":
        return Capability(False, "FASTSOCK_GSO=0 is set")
    return ask("UDP_SEGMENT", (4, 18), lambda: set_option(k.SOL_UDP, k.UDP_SEGMENT, 1400))


def probe_gro() -> Capability:
    if not gro_allowed():
        return Capability(False, "FASTSOCK_GRO=0 is set")
    return ask("UDP_GRO", (5, 0), try_gro)


def try_gro() -> str:
    set_option(k.SOL_UDP, k.UDP_GRO, 1)
    return "datagrams of one peer come joined, where its GSO or the device's GRO joined them"


def set_option(level: int, option: int, value: int) -> str:
    """Set it on a fresh UDP socket; OSError where the kernel refuses."""
    with Socket(_stdlib.AF_INET, _stdlib.SOCK_DGRAM) as sock:
        sock.setsockopt(level, option, value)
    return "taken"


def try_timestamps() -> str:
    require(exchange(timestamps=True)[0].timestamp_ns, "a datagram came without one")
    return "when the kernel received each datagram, in ns"


def probe_hardware_timestamps() -> Capability:
    """Whether an interface says that it can: ETHTOOL_GET_TS_INFO. It still has to be told to."""
    found, silent = [], []
    try:
        with Socket(_stdlib.AF_INET, _stdlib.SOCK_DGRAM) as sock:
            for _, name in _stdlib.if_nameindex():
                try:
                    flags, clock = timestamping_of(sock, name)
                except OSError:
                    flags, clock = 0, -1
                if flags & HARDWARE_RECEIVE == HARDWARE_RECEIVE:
                    found.append(f"{name} (/dev/ptp{clock})" if clock >= 0 else name)
                else:
                    silent.append(name)
    except OSError as error:
        return Capability(False, refusal("SIOCETHTOOL", (2, 6), error, platform.release()))
    if found:
        return Capability(True, f"{listing(found)}; to be switched on with: hwstamp_ctl -i DEVICE -r 1")
    return Capability(False, f"no interface claims to have them, of {listing(silent)}; see: ethtool -T DEVICE")


def timestamping_of(sock: Socket, interface: str) -> tuple[int, int]:
    """The SOF_TIMESTAMPING flags of an interface, and the number of its clock, or -1."""
    # struct ethtool_ts_info is eleven 32-bit words: cmd, so_timestamping, phc_index, ...
    info = array.array("i", [ETHTOOL_GET_TS_INFO, *[0] * 10])
    # struct ifreq: a name and a union whose first member here is a pointer; 64 bytes hold any.
    request = struct.pack("16sP", os.fsencode(interface), info.buffer_info()[0]).ljust(64, b"\0")
    fcntl.ioctl(sock.fileno(), SIOCETHTOOL, request)
    return info[1], info[2]


def try_transmit_timestamps() -> str:
    with bind_udp(V4) as receiver, connect_udp(receiver.getsockname(), transmit_timestamps=True) as sender:
        sender.send(b"fastsock")
        poll = select.poll()
        poll.register(sender.fileno(), 0)  # POLLERR is always told
        poll.poll(WAIT_S * 1000)
        records = sender.recv_errors()
        require(any(record.origin == "timestamp" for record in records), "none was reported for a datagram")
    return "when the driver got each datagram, through recv_errors()"


def try_pktinfo() -> str:
    require(exchange(pktinfo=True)[0].local_address == V4[0], "a datagram came without its destination")
    return "where each datagram was sent to, and its interface"


def try_ecn() -> str:
    exchange(ecn=True)[0].ecn  # noqa: B018  raises where it was not recorded
    return "ECN and DSCP of each datagram"


def try_ttl() -> str:
    require(exchange(ttl=True)[0].ttl, "a datagram came without it")
    return "TTL or hop limit of each datagram"


def try_drop_counter() -> str:
    with bind_udp(V4) as sock:
        require(sock.drops == 0, "a fresh socket has dropped something")
    return "Socket.drops counts what found the buffer full, right at once"


def try_drop_marks() -> str:
    exchange(drop_counter=True)[0].drop_counter  # noqa: B018
    return "where in the stream datagrams were dropped"


def try_error_queue() -> str:
    bind_udp(V4, error_queue=True).close()
    return "ICMP errors with their destinations, through recv_errors()"


def try_txtime(clock: str, queue: str) -> str:
    with Socket(_stdlib.AF_INET, _stdlib.SOCK_DGRAM) as sock:
        sock.setsockopt(_stdlib.SOL_SOCKET, k.SO_TXTIME, k.txtime_option(CLOCKS[clock]))
    return f'txtime="{clock}"; sent on time where the device has an {queue} queue: see tc-{queue}(8)'


def try_zerocopy() -> str:
    set_option(_stdlib.SOL_SOCKET, k.SO_ZEROCOPY, 1)
    return "worth it from 10 KB a send; ulimit -l bounds what is under way, loopback copies"


def try_reuse_port() -> str:
    with bind_udp(V4, reuse_port=True) as first, bind_udp(first.getsockname(), reuse_port=True):
        return "several sockets on one port, chosen by a hash of both addresses"


def try_steering() -> str:
    with bind_udp(V4, reuse_port=True) as sock:
        sock.steer("cpu", 1)
    return "by CPU, source or at random instead of by that hash: Socket.steer"


def probe_multicast() -> Capability:
    """Joins on loopback, where no IGMP goes out."""
    found = ask("MCAST_JOIN_GROUP", (2, 6), try_multicast)
    if not found:
        return found
    names = [
        name
        for _, name in _stdlib.if_nameindex()
        if interface_flags(name) & (IFF_UP | IFF_MULTICAST) == IFF_UP | IFF_MULTICAST
    ]
    if not names:
        return Capability(False, "no interface that is up takes it; set: ip link set DEVICE up multicast on")
    return Capability(True, f"on {listing(names)}")


def try_multicast() -> str:
    with bind_udp(("", 0), family=_stdlib.AF_INET, multicast=("239.255.255.250", "lo")):
        return "joined"


def interface_flags(name: str) -> int:
    try:
        return int(Path("/sys/class/net", name, "flags").read_text(), 16)
    except (OSError, ValueError):
        return 0


def try_ipv6() -> str:
    try:
        bind_udp(V6).close()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise NoAnswerError("not there; sysctl -w net.ipv6.conf.all.disable_ipv6=0 and lo up bring it") from None
        raise
    return "::1 can be bound"


def try_dual_stack() -> str:
    with bind_udp(("", 0), dualstack_ipv6=True) as receiver:
        receiver.settimeout(WAIT_S)
        with connect_udp((V4[0], receiver.getsockname()[1])) as sender:
            sender.send(b"fastsock")
            require(receiver.recvfrom(16)[1][0] == f"::ffff:{V4[0]}", "IPv4 came in another form")
    return "IPv4 too on an IPv6 socket: dualstack_ipv6=True"


def try_rcvbuf_force() -> str:
    set_option(_stdlib.SOL_SOCKET, k.SO_RCVBUFFORCE, 4096)
    return "this process may exceed rmem_max and wmem_max"


def listing(names: list[str]) -> str:
    if not names:
        return "none"
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
