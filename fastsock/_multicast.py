"""Multicast: groups that a socket joins and leaves, and how it sends to groups.

Policy over setsockopt, for the methods of Socket and for bind_udp. May import _mcast,
_constants, _socket and the standard library.
"""

from __future__ import annotations

import errno
import os
import socket as _stdlib
from collections.abc import Iterable
from typing import NamedTuple

from fastsock import _constants as k
from fastsock import _mcast
from fastsock._socket import BaseSocket

Interface = str | int | None
"""A name, an index or an address; None or 0 lets the kernel choose."""
Membership = tuple[str, Interface, str | None]
"""Group, interface and source."""
Group = str | tuple[str] | tuple[str, Interface] | Membership
"""One group, as ``bind_udp`` takes it."""


class FamilyOptions(NamedTuple):
    """What one address family calls the options."""

    level: int
    hear_all: int
    loop: int
    ttl: int
    interface: int
    limits: str
    """What ENOBUFS means."""


OPTIONS: dict[int, FamilyOptions] = {
    _stdlib.AF_INET: FamilyOptions(
        _stdlib.IPPROTO_IP,
        k.IP_MULTICAST_ALL,
        _stdlib.IP_MULTICAST_LOOP,
        _stdlib.IP_MULTICAST_TTL,
        _stdlib.IP_MULTICAST_IF,
        "net.ipv4.igmp_max_memberships for groups, net.ipv4.igmp_max_msf for sources of one",
    ),
    _stdlib.AF_INET6: FamilyOptions(
        _stdlib.IPPROTO_IPV6,
        k.IPV6_MULTICAST_ALL,
        _stdlib.IPV6_MULTICAST_LOOP,
        _stdlib.IPV6_MULTICAST_HOPS,
        _stdlib.IPV6_MULTICAST_IF,
        "net.ipv6.mld_max_msf for sources of one group",
    ),
}
NAMES: dict[int, str] = {_stdlib.AF_INET: "IPv4", _stdlib.AF_INET6: "IPv6"}


# --- what a socket does -----------------------------------------------------------------


def join_group(sock: BaseSocket, group: str, interface: Interface, source: str | None) -> None:
    """What Socket.join_group does."""
    option = k.MCAST_JOIN_GROUP if source is None else k.MCAST_JOIN_SOURCE_GROUP
    level, request = encode_membership(sock, group, interface, source)
    hear_only_joined(sock)  # before the group, so that nothing else gets in between
    try:
        sock.setsockopt(level, option, request)
    except OSError as error:
        raise at_group(error, group, interface, source) from None


def leave_group(sock: BaseSocket, group: str, interface: Interface, source: str | None) -> None:
    """What Socket.leave_group does."""
    option = k.MCAST_LEAVE_GROUP if source is None else k.MCAST_LEAVE_SOURCE_GROUP
    level, request = encode_membership(sock, group, interface, source)
    try:
        sock.setsockopt(level, option, request)
    except OSError as error:
        raise at_group(error, group, interface, source) from None


def set_multicast(sock: BaseSocket, loop: bool | None, ttl: int | None, interface: Interface) -> None:
    """What Socket.set_multicast does."""
    if ttl is not None and not 0 <= ttl <= 255:
        raise ValueError(f"ttl must be 0-255, not {ttl}")
    index = None if interface is None else interface_index(interface)
    for family in families(sock):
        names = OPTIONS[family]
        if loop is not None:
            sock.setsockopt(names.level, names.loop, int(loop))
        if ttl is not None:
            sock.setsockopt(names.level, names.ttl, ttl)
        if index is not None:
            value = _mcast.encode_ip_mreqn(index) if family == _stdlib.AF_INET else index
            sock.setsockopt(names.level, names.interface, value)


def hear_only_joined(sock: BaseSocket) -> None:
    """Keep out the groups that other sockets of this machine have joined."""
    for family in families(sock):
        names = OPTIONS[family]
        try:
            sock.setsockopt(names.level, names.hear_all, 0)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # IPV6_MULTICAST_ALL came with Linux 4.20
                raise


def encode_membership(sock: BaseSocket, group: str, interface: Interface, source: str | None) -> tuple[int, bytes]:
    """The level and the value of the option that joins or leaves."""
    family = check_group(group, source)
    if family not in families(sock):
        raise ValueError(f"{group!r} is an {NAMES[family]} group, and the socket speaks {NAMES[families(sock)[0]]}")
    index = interface_index(interface)
    if source is None:
        return OPTIONS[family].level, _mcast.encode_group_req(family, index, group)
    return OPTIONS[family].level, _mcast.encode_group_source_req(family, index, group, source)


def families(sock: BaseSocket) -> tuple[int, ...]:
    """The families that a socket speaks: both, where it is dual-stack."""
    if sock._family not in OPTIONS:
        raise OSError(errno.EOPNOTSUPP, "multicast needs an IPv4 or IPv6 socket")
    if sock._family == _stdlib.AF_INET6 and not sock.getsockopt(_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY):
        return _stdlib.AF_INET6, _stdlib.AF_INET
    return (sock._family,)


def at_group(error: OSError, group: str, interface: Interface, source: str | None) -> OSError:
    """The same error, with the group in its text, and the limits where one was met."""
    text = f"{error.strerror}: {format_group(group, interface, source)!r}"
    if error.errno == errno.ENOBUFS:
        text += f"; the limit is a sysctl: {OPTIONS[check_group(group)].limits}"
    return type(error)(error.errno, text)


# --- groups and interfaces --------------------------------------------------------------


def classify(address: str) -> tuple[int, bool]:
    """The family of an address in digits, and whether it is a multicast address."""
    for family in OPTIONS:
        try:
            first = _stdlib.inet_pton(family, address)[0]
        except OSError:
            continue
        return family, 224 <= first <= 239 if family == _stdlib.AF_INET else first == 0xFF
    raise ValueError(f"not an IPv4 or IPv6 address: {address!r}")


def check_group(group: str, source: str | None = None) -> int:
    """The family of a group; ValueError where it, or its source, is not what it should be."""
    family, is_multicast = classify(group)
    if not is_multicast:
        raise ValueError(f"not a multicast address: {group!r}")
    if source is not None:
        family_of_source, is_multicast = classify(source)
        if is_multicast:
            raise ValueError(f"a source is one sender, not a multicast address: {source!r}")
        if family_of_source != family:
            raise ValueError(f"group and source are of two families: {group!r}, {source!r}")
    return family


def interface_index(interface: Interface) -> int:
    """The index of an interface, by its name, itself or an address; OSError (ENODEV) without one."""
    if interface is None or interface == 0:
        return 0
    try:
        if not isinstance(interface, str):
            _stdlib.if_indextoname(interface)
            return interface
        return _stdlib.if_nametoindex(interface_name(interface))
    except (OSError, OverflowError):
        raise OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: {interface!r}") from None


def interface_name(interface: str) -> str:
    """The name of an interface that is given by its name or by an address."""
    try:
        family, is_multicast = classify(interface)
    except ValueError:
        return interface
    if is_multicast:
        raise ValueError(f"a group where an interface should be: {interface!r}; several groups are given as a list")
    wanted = _stdlib.inet_pton(family, interface)
    names = {
        name
        for name, address in _mcast.interface_addresses()
        if classify(address)[0] == family and _stdlib.inet_pton(family, address) == wanted
    }
    if len(names) > 1:
        raise ValueError(f"{interface!r} is an address of {' and '.join(sorted(names))}: give the name")
    return names.pop() if names else interface


def list_groups(multicast: Group | Iterable[Group] | None) -> list[Membership]:
    """What ``bind_udp`` was given, as full tuples."""
    if multicast is None:
        return []
    found = []
    for one in [multicast] if isinstance(multicast, str | tuple) else multicast:
        parts = (one,) if isinstance(one, str) else tuple(one)
        if not 1 <= len(parts) <= 3:
            raise TypeError(f"a group is GROUP, (GROUP, interface) or (GROUP, interface, source), not {one!r}")
        group, interface, source = (*parts, None, None)[:3]
        check_group(group, source)
        found.append((group, interface, source))
    return found


def check_bound(host: str) -> None:
    """A socket that is bound to one unicast address hears no group (ip(7))."""
    address = host.partition("%")[0]
    if address not in ("0.0.0.0", "::") and not classify(address)[1]:
        raise ValueError(f'a socket bound to {host} hears no group: bind to "" or to the group itself')


# --- text -------------------------------------------------------------------------------


def parse_group(text: str) -> Membership:
    """Read ``group[@interface][,source]``, as ``232.1.1.1@eth0,192.0.2.5``; an interface in digits is an index.

    Raises:
        ValueError: It is not that, or not a multicast address.
    """
    head, comma, source = text.partition(",")
    group, at, name = head.partition("@")
    if (at and not name) or (comma and not source):
        raise ValueError(f"a group is GROUP[@INTERFACE][,SOURCE], not {text!r}")
    check_group(group, source or None)
    interface = int(name) if name.isdecimal() else name or None
    return group, interface, source or None


def format_group(group: str, interface: Interface, source: str | None) -> str:
    """The text that ``parse_group`` reads."""
    return group + (f"@{interface}" if interface is not None else "") + (f",{source}" if source is not None else "")
