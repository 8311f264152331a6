"""The sysctls that bound a UDP socket: what they are, what would do, and what raises them.

Reads /proc and nothing else. May import the standard library only.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WANTED_BUFFER = 8 << 20
"""Bytes: a second of 10,000 small datagrams, or 40 ms of 200,000."""
WANTED_SENDBUF = 1 << 20
SOCKETS_AT_ONCE = 16
"""Full receive buffers that the whole machine should have memory for."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One sysctl that bounds what sockets get.

    Attributes:
        name: As sysctl(8) spells it.
        value: What it is; None where it cannot be read, as in some network namespaces. Of
            udp_mem, the first of its three numbers, in pages; sizes are bytes.
        wanted: What a busy collector should have.
        why: What it bounds.
        command: Raises it to what is wanted, until the next boot; None where it is enough
            already, or cannot be read.
    """

    name: str
    value: int | None
    wanted: int
    why: str
    command: str | None


def read_limits() -> Iterator[Limit]:
    """Every limit, whether or not it is enough.

    What they mean is in Documentation/admin-guide/sysctl/net.rst and networking/ip-sysctl.rst.
    """
    yield limit(
        "net.core.rmem_max", WANTED_BUFFER, "the receive buffer that rcvbuf may ask for; a longer burst is lost"
    )
    yield limit("net.core.rmem_default", 212992, "the receive buffer of a socket that asks for none: pass rcvbuf")
    yield limit(
        "net.core.wmem_max", WANTED_SENDBUF, "the send buffer that sndbuf may ask for; sending waits when it is full"
    )
    yield limit("net.core.wmem_default", 212992, "the send buffer of a socket that asks for none: pass sndbuf")
    yield limit(
        "net.core.optmem_max",
        131072,
        "zero-copy sends under way, filters and multicast sources of one socket; ENOBUFS beyond",
    )
    processed, dropped, squeezed = softnet_counts()
    yield limit(
        "net.core.netdev_max_backlog",
        10_000 if dropped else 1000,
        f"packets that wait for one CPU, of loopback, veth and RPS; {dropped:,} dropped since boot",
    )
    # A few rounds are cut short on every machine.
    often = squeezed * 100_000 > processed
    yield limit(
        "net.core.netdev_budget",
        600 if often else 300,
        f"packets that one round of receiving takes from the devices; {squeezed:,} rounds cut short since boot",
    )
    yield limit("net.core.netdev_budget_usecs", 8000 if often else 2000, "microseconds of the same round")
    yield udp_mem()
    yield limit("net.ipv4.udp_rmem_min", 4096, "what each socket may still queue when udp_mem is used up")
    yield limit("net.ipv4.ipfrag_high_thresh", 4 << 20, "fragments of datagrams above the MTU, for all peers together")
    yield limit("net.ipv4.igmp_max_memberships", 128, "IPv4 multicast groups of one socket; ENOBUFS beyond")
    yield limit("net.ipv4.igmp_max_msf", 64, "sources of one IPv4 multicast group; ENOBUFS beyond")


def limit(name: str, wanted: int, why: str) -> Limit:
    return compare(name, read(name), wanted, why, str(wanted))


def compare(name: str, value: int | None, wanted: int, why: str, setting: str) -> Limit:
    """The command sets `setting`."""
    enough = value is None or value >= wanted
    return Limit(name, value, wanted, why, None if enough else f"sysctl -w {name}={setting}")


def udp_mem() -> Limit:
    """The first of the three numbers is the one that drops: UDP has no memory pressure to begin at the second.

    See __sk_mem_raise_allocated in net/core/sock.c.
    """
    name = "net.ipv4.udp_mem"
    pages = numbers(name)
    wanted = SOCKETS_AT_ONCE * WANTED_BUFFER // resource.getpagesize()
    raised = (max(*pair) for pair in zip((wanted, wanted * 4 // 3, wanted * 2), pages or (0, 0, 0), strict=True))
    return compare(
        name,
        pages[0] if len(pages) == 3 else None,
        wanted,
        "pages of memory for all UDP sockets together; beyond it datagrams are dropped",
        f"'{' '.join(map(str, raised))}'",
    )


def softnet_counts() -> tuple[int, int, int]:
    """Packets processed, packets dropped at a full backlog, rounds out of budget: all CPUs, since boot."""
    try:
        rows = [line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
        processed, dropped, squeezed = (sum(int(row[i], 16) for row in rows) for i in range(3))
    except (OSError, ValueError, IndexError):
        return 0, 0, 0
    return processed, dropped, squeezed


def read(name: str) -> int | None:
    """A sysctl of one number; a network namespace of its own may not show it."""
    found = numbers(name)
    return found[0] if len(found) == 1 else None


def numbers(name: str) -> list[int]:
    try:
        return [int(word) for word in Path("/proc/sys", *name.split(".")).read_text().split()]
    except (OSError, ValueError):
        return []
