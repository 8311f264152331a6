"""What this machine's kernel offers, and what limits it."""

from __future__ import annotations

import os
import platform
import socket as _stdlib
from dataclasses import dataclass
from pathlib import Path

from fastsock._constants import SO_RCVBUFFORCE, SOL_UDP, UDP_GRO, UDP_SEGMENT
from fastsock._sock import Socket


@dataclass(frozen=True, slots=True)
class Probe:
    """What ``probe`` found. Sizes are bytes; None means that it could not be read."""

    kernel: str
    machine: str
    libc: str
    python: str
    cpus: int
    """CPUs that this process may run on."""
    ipv6: bool
    gso: bool
    """UDP_SEGMENT is known: the kernel cuts one send into datagrams (Linux 4.18)."""
    gro: bool
    """UDP_GRO is known: the kernel joins received datagrams (Linux 5.0)."""
    drop_counter: bool
    """SO_MEMINFO is known, and ``Socket.drops`` works (Linux 4.12)."""
    rcvbuf_force: bool
    """This process may exceed rmem_max (CAP_NET_ADMIN)."""
    rmem_default: int | None
    rmem_max: int | None
    wmem_default: int | None
    wmem_max: int | None


def probe() -> Probe:
    """Ask the kernel what it offers, on throw-away sockets; nothing stays changed."""
    try:
        Socket(_stdlib.AF_INET6, _stdlib.SOCK_DGRAM).close()
        ipv6 = True
    except OSError:
        ipv6 = False
    return Probe(
        kernel=platform.release(),
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()).strip() or "musl",
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        ipv6=ipv6,
        gso=takes_option(SOL_UDP, UDP_SEGMENT, 0),
        gro=takes_option(SOL_UDP, UDP_GRO, 1),
        drop_counter=counts_drops(),
        rcvbuf_force=takes_option(_stdlib.SOL_SOCKET, SO_RCVBUFFORCE, 4096),
        rmem_default=read_sysctl("rmem_default"),
        rmem_max=read_sysctl("rmem_max"),
        wmem_default=read_sysctl("wmem_default"),
        wmem_max=read_sysctl("wmem_max"),
    )


def takes_option(level: int, option: int, value: int) -> bool:
    """Whether a fresh UDP socket takes the option."""
    with Socket(_stdlib.AF_INET, _stdlib.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            return False
    return True


def counts_drops() -> bool:
    with Socket(_stdlib.AF_INET, _stdlib.SOCK_DGRAM) as sock:
        try:
            return sock.drops == 0
        except OSError:
            return False


def read_sysctl(name: str) -> int | None:
    """net.core.<name>; a network namespace of its own may not show it."""
    try:
        return int(Path("/proc/sys/net/core", name).read_text())
    except (OSError, ValueError):
        return None
