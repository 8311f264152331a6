"""Multicast: groups, interfaces and sources, on loopback and on two links of a namespace."""

import errno
import ipaddress
import json
import socket
import struct
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import V4, V6, Family, Namespace, needs_ipv6, needs_multicast
from hypothesis import given
from hypothesis import strategies as st

import fastsock
from fastsock import _mcast, _multicast, _sockaddr, bind_udp
from fastsock._multicast import format_group, list_groups, parse_group

LO = socket.if_nametoindex("lo")
IP_RECVTTL, IP_MULTICAST_ALL = 12, 49  # linux/in.h
GROUPS = {socket.AF_INET: "239.255.77.1", socket.AF_INET6: "ff15::77:1"}
OTHERS = {socket.AF_INET: "239.255.77.2", socket.AF_INET6: "ff15::77:2"}


# --- text, structures and tuples: no socket ---------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("239.1.1.1", ("239.1.1.1", None, None)),
        ("239.1.1.1@eth0", ("239.1.1.1", "eth0", None)),
        ("239.1.1.1@3", ("239.1.1.1", 3, None)),
        ("239.1.1.1@192.0.2.1", ("239.1.1.1", "192.0.2.1", None)),
        ("232.1.1.1@eth0,192.0.2.5", ("232.1.1.1", "eth0", "192.0.2.5")),
        ("232.1.1.1,192.0.2.5", ("232.1.1.1", None, "192.0.2.5")),
        ("ff3e::8000:1@eth0.5,2001:db8::5", ("ff3e::8000:1", "eth0.5", "2001:db8::5")),
        ("ff02::1@fe80::1", ("ff02::1", "fe80::1", None)),
    ],
)
def test_parse_group(text, parsed):
    assert parse_group(text) == parsed
    assert format_group(*parsed) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an IPv4 or IPv6 address"),
        ("eth0", "not an IPv4 or IPv6 address"),
        ("@eth0", "not an IPv4 or IPv6 address"),
        ("239.1.1", "not an IPv4 or IPv6 address"),
        ("ff02::1%eth0", "not an IPv4 or IPv6 address"),
        ("239.1.1.1@", "GROUP.*not '239.1.1.1@'"),
        ("239.1.1.1,", "GROUP.*not '239.1.1.1,'"),
        ("239.1.1.1@,192.0.2.5", "GROUP"),
        ("192.0.2.1@eth0", "not a multicast address: '192.0.2.1'"),
        ("2001:db8::1", "not a multicast address"),
        ("232.1.1.1,192.0.2.5@eth0", "not an IPv4 or IPv6 address: '192.0.2.5@eth0'"),
        ("232.1.1.1,232.1.1.2", "a source is one sender"),
        ("232.1.1.1,::1", "two families"),
        ("ff3e::1,192.0.2.1", "two families"),
    ],
)
def test_parse_group_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_group(text)


multicast_addresses = st.one_of(
    st.ip_addresses(network="224.0.0.0/4").map(str), st.ip_addresses(network="ff00::/8").map(str)
)


@given(
    multicast_addresses,
    st.none() | st.integers(1, 2**31) | st.from_regex(r"[a-z][a-z0-9._:-]{0,14}", fullmatch=True),
    st.booleans(),
)
def test_what_is_formatted_is_parsed_again(group, interface, with_source):
    source = ("::1" if ":" in group else "10.0.0.1") if with_source else None
    assert parse_group(format_group(group, interface, source)) == (group, interface, source)


@given(st.text(alphabet="0123456789.:@,abcdef%/", max_size=30))
def test_rubbish_is_a_value_error(text):
    try:
        group, _, source = parse_group(text)
    except ValueError:
        return
    assert _multicast.check_group(group, source) in GROUPS


@pytest.mark.parametrize(
    ("multicast", "listed"),
    [
        (None, []),
        ([], []),
        ("239.1.1.1", [("239.1.1.1", None, None)]),
        (("239.1.1.1",), [("239.1.1.1", None, None)]),
        (("239.1.1.1", "lo"), [("239.1.1.1", "lo", None)]),
        (("239.1.1.1", 1, "10.0.0.1"), [("239.1.1.1", 1, "10.0.0.1")]),
        (iter(["239.1.1.1", ("ff02::1", "lo")]), [("239.1.1.1", None, None), ("ff02::1", "lo", None)]),
    ],
)
def test_list_groups(multicast, listed):
    assert list_groups(multicast) == listed


@pytest.mark.parametrize(
    ("multicast", "error"),
    [
        (5, TypeError),
        ([5], TypeError),
        (b"239.1.1.1", TypeError),
        ((), TypeError),
        (("239.1.1.1", "lo", None, None), TypeError),
        ("127.0.0.1", ValueError),
        (["239.1.1.1", "10.0.0.1"], ValueError),
    ],
)
def test_wrong_groups_open_no_socket(multicast, error):
    with pytest.raises(error):
        list_groups(multicast)
    with pytest.raises(error):
        bind_udp(("127.0.0.1", 0), multicast=multicast)


@pytest.mark.parametrize(("family", "group"), GROUPS.items())
def test_structures(family, group):
    # struct sockaddr_storage begins where a long may.
    at, size = struct.calcsize("I0L"), 128
    source = "10.0.0.9" if family == socket.AF_INET else "2001:db8::9"
    plain = _mcast.encode_group_req(family, 77, group)
    assert (struct.unpack_from("I", plain)[0], len(plain)) == (77, at + size)
    assert _sockaddr.decode(plain[at:])[:2] == (group, 0)
    specific = _mcast.encode_group_source_req(family, 77, group, source)
    assert len(specific) == at + 2 * size
    assert specific[: at + size] == plain
    assert _sockaddr.decode(specific[at + size :])[:2] == (source, 0)
    assert _mcast.encode_ip_mreqn(77) == struct.pack("8xi", 77)


def test_addresses_of_interfaces():
    assert ("lo", "127.0.0.1") in _mcast.interface_addresses()
    assert {name for name, _ in _mcast.interface_addresses()} <= {name for _, name in socket.if_nameindex()}


# --- on loopback, IPv4 ------------------------------------------------------------------

GROUP, OTHER = GROUPS[socket.AF_INET], OTHERS[socket.AF_INET]


@pytest.fixture
def receiver(closing):
    """Bound to the port of every address; waits 10 s at most."""
    sock = closing(bind_udp(("0.0.0.0", 0)))
    sock.settimeout(10)
    return sock


@pytest.fixture
def send(closing):
    """Send one datagram over lo, from any address of 127/8."""

    def send(payload, group, receiver, source="127.0.0.1"):
        sender = closing(bind_udp((source, 0)))
        sender.set_multicast(interface="lo")
        sender.sendto(payload, (group, receiver.getsockname()[1]))

    return send


@needs_multicast
@pytest.mark.parametrize("interface", ["lo", LO, "127.0.0.1"])
def test_join_and_leave(receiver, send, interface):
    receiver.join_group(GROUP, interface)
    send(b"1", GROUP, receiver)
    assert receiver.recvfrom(10)[0] == b"1"
    receiver.join_group(OTHER, interface)
    receiver.leave_group(GROUP, interface)
    send(b"2", GROUP, receiver)
    send(b"3", OTHER, receiver)
    assert receiver.recv(10) == b"3"


@needs_multicast
def test_a_socket_hears_only_what_it_joined(send, closing):
    first = closing(bind_udp(("0.0.0.0", 0), reuse_address=True))
    second = closing(bind_udp(first.getsockname(), reuse_address=True))
    everything = closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    everything.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    everything.bind(first.getsockname())
    for sock in (first, second, everything):
        sock.settimeout(10)
    assert first.getsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL) == 1
    first.join_group(GROUP, "lo")
    second.join_group(OTHER, "lo")
    assert first.getsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL) == 0
    for payload, group in ((b"for the first", GROUP), (b"for the second", OTHER)):
        send(payload, group, first)
    assert first.recv_many() == [b"for the first"]
    assert second.recv_many() == [b"for the second"]
    # What the kernel does unless told otherwise: this one joined nothing.
    assert [everything.recv(100), everything.recv(100)] == [b"for the first", b"for the second"]


@needs_multicast
def test_sources(receiver, send):
    group = "232.1.1.1"
    receiver.join_group(group, "lo", "127.0.0.2")
    receiver.join_group(group, "lo", source="127.0.0.3")
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        send(source.encode(), group, receiver, source)
    assert [receiver.recv(20), receiver.recv(20)] == [b"127.0.0.2", b"127.0.0.3"]
    receiver.leave_group(group, "lo", "127.0.0.2")
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        send(source.encode(), group, receiver, source)
    assert receiver.recv(20) == b"127.0.0.3"
    receiver.leave_group(group, "lo", "127.0.0.3")
    receiver.join_group(OTHER, "lo")
    send(b"left", group, receiver, "127.0.0.3")
    send(b"end", OTHER, receiver)
    assert receiver.recv(20) == b"end"


@needs_multicast
def test_a_source_narrows_a_membership(receiver, send):
    receiver.join_group(GROUP, "lo")
    receiver.join_group(OTHER, "lo")
    receiver.join_group(GROUP, "lo", "127.0.0.2")
    for source in ("127.0.0.1", "127.0.0.2"):
        send(source.encode(), GROUP, receiver, source)
    assert receiver.recv(20) == b"127.0.0.2"
    receiver.leave_group(GROUP, "lo")
    send(b"left", GROUP, receiver, "127.0.0.2")
    send(b"end", OTHER, receiver)
    assert receiver.recv(20) == b"end"


@needs_multicast
@pytest.mark.parametrize("ttl", [0, 1, 7, 255])
def test_ttl(receiver, closing, ttl):
    receiver.join_group(GROUP, "lo")
    receiver.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    sender = closing(bind_udp(("127.0.0.1", 0)))
    sender.set_multicast(interface="lo", ttl=ttl)
    sender.sendto(b"x", (GROUP, receiver.getsockname()[1]))
    _, [(level, kind, data)], _, _ = receiver.recvmsg(10, 100)
    assert (level, kind) == (socket.IPPROTO_IP, socket.IP_TTL)
    assert struct.unpack("i", data)[0] == ttl


@needs_multicast
def test_bind_udp_joins(closing, send):
    receiver = closing(bind_udp(("", 0), multicast=[(GROUP, "lo"), ("232.1.1.1", "lo", "127.0.0.2")]))
    assert receiver.family == socket.AF_INET
    receiver.settimeout(10)
    send(b"1", GROUP, receiver)
    send(b"no", "232.1.1.1", receiver)
    send(b"2", "232.1.1.1", receiver, "127.0.0.2")
    assert [receiver.recv(10), receiver.recv(10)] == [b"1", b"2"]
    bound_to_group = closing(bind_udp((GROUP, 0), multicast=(GROUP, "lo")))
    bound_to_group.settimeout(10)
    send(b"no", "127.0.0.1", bound_to_group)
    send(b"3", GROUP, bound_to_group)
    assert bound_to_group.recv(10) == b"3"


@needs_multicast
@needs_ipv6
@pytest.mark.parametrize(
    ("multicast", "options", "family"),
    [
        ((GROUPS[socket.AF_INET], "lo"), {}, socket.AF_INET),
        ((GROUPS[socket.AF_INET6], "lo"), {}, socket.AF_INET6),
        ([(GROUPS[socket.AF_INET], "lo"), (GROUPS[socket.AF_INET6], "lo")], {"dualstack_ipv6": True}, socket.AF_INET6),
    ],
)
def test_bind_udp_takes_the_family_of_the_groups(closing, multicast, options, family):
    for host in ("", None):
        assert closing(bind_udp((host, 0), multicast=multicast, **options)).family == family
    with pytest.raises(TypeError, match="address must be a tuple"):
        bind_udp((), multicast=multicast)


@needs_multicast
def test_bind_udp_that_cannot_join_leaves_no_socket(family):
    # The fixture that counts descriptors asserts it.
    group = (GROUPS[family.family], "lo")
    with pytest.raises(OSError, match=rf"in use: '{group[0]}@lo'") as caught:
        bind_udp(family.address(), multicast=[group, group])
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="No such device: 'nosuch0'"):
        bind_udp(family.address(), multicast=(GROUPS[family.family], "nosuch0"))
    with pytest.raises(ValueError, match="the socket speaks IPv4"):
        bind_udp(("127.0.0.1", 0), multicast=(GROUPS[socket.AF_INET6], "lo"))


# --- errors, either family --------------------------------------------------------------


@pytest.fixture
def bound(family, closing):
    return closing(bind_udp(family.address()))


@needs_multicast
def test_errors_of_the_kernel(bound, family):
    group, source = GROUPS[family.family], "10.0.0.1" if family is V4 else "2001:db8::1"

    def expect(number, text, call, *args):
        with pytest.raises(OSError, match=rf": '{text}'") as caught:
            call(*args)
        assert caught.value.errno == number

    expect(errno.EADDRNOTAVAIL, f"{group}@lo", bound.leave_group, group, "lo")
    bound.join_group(group, "lo")
    expect(errno.EADDRINUSE, f"{group}@lo", bound.join_group, group, "lo")
    expect(errno.EADDRINUSE, f"{group}@{LO}", bound.join_group, group, LO)
    bound.leave_group(group, "lo")
    expect(errno.EADDRNOTAVAIL, f"{group}@lo", bound.leave_group, group, "lo")
    bound.join_group(group, "lo", source)
    expect(errno.EADDRNOTAVAIL, f"{group}@lo,{source}", bound.join_group, group, "lo", source)
    expect(errno.EADDRINUSE, f"{group}@lo", bound.join_group, group, "lo")
    bound.leave_group(group, "lo")  # with every source
    expect(errno.EINVAL, f"{group}@lo,{source}", bound.leave_group, group, "lo", source)


@needs_multicast
@pytest.mark.parametrize("interface", ["nosuch0", 2**31 - 1, "192.0.2.77", "2001:db8::77", ""])
def test_no_such_interface(bound, family, interface):
    for call in (bound.join_group, bound.leave_group):
        with pytest.raises(OSError, match=f"No such device: {interface!r}") as caught:
            call(GROUPS[family.family], interface)
        assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError, match=f"No such device: {interface!r}"):
        bound.set_multicast(interface=interface)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("127.0.0.1",), "not a multicast address"),
        (("::1",), "not a multicast address"),
        (("localhost",), "not an IPv4 or IPv6 address"),
        (("232.1.1.1", "lo", "232.1.1.2"), "a source is one sender"),
        (("232.1.1.1", "lo", "::1"), "two families"),
        (("ff3e::1", "lo", "10.0.0.1"), "two families"),
    ],
)
def test_what_is_no_group(bound, args, message):
    for call in (bound.join_group, bound.leave_group):
        with pytest.raises(ValueError, match=message):
            call(*args)


@needs_ipv6
def test_family_of_the_socket(closing):
    v4, v6 = closing(bind_udp(V4.address())), closing(bind_udp(V6.address()))
    for sock, group, speaks in ((v4, "ff02::1", "IPv4"), (v6, "239.1.1.1", "IPv6")):
        with pytest.raises(ValueError, match=f"group, and the socket speaks {speaks}"):
            sock.join_group(group, "lo")


def test_a_list_of_groups_that_is_a_tuple_is_explained():
    with pytest.raises(ValueError, match="given as a list"):
        bind_udp(("127.0.0.1", 0), multicast=("239.1.1.1", "239.1.1.2"))


@pytest.mark.parametrize("bad", [5, None, b"239.1.1.1"])
def test_arguments_of_a_wrong_type(bound, family, bad):
    with pytest.raises(TypeError):
        bound.join_group(bad)
    with pytest.raises(TypeError):
        bound.join_group(GROUPS[family.family], 1.5)


def read_limit(sysctl):
    limit = int(Path("/proc/sys", sysctl.replace(".", "/")).read_text())
    if limit > 1000:
        pytest.skip("this machine allows any number")
    return limit


@needs_multicast
def test_limit_of_groups_names_its_sysctl(receiver):
    for i in range(read_limit("net.ipv4.igmp_max_memberships")):
        receiver.join_group(f"239.1.{i >> 8}.{i & 255}", "lo")
    with pytest.raises(OSError, match=r"'239.2.0.0@lo'.* net.ipv4.igmp_max_memberships for groups") as caught:
        receiver.join_group("239.2.0.0", "lo")
    assert caught.value.errno == errno.ENOBUFS


@needs_multicast
def test_limit_of_sources_names_its_sysctl(bound, family):
    group, sysctl = GROUPS[family.family], "net.ipv4.igmp_max_msf" if family is V4 else "net.ipv6.mld_max_msf"
    first = ipaddress.ip_address("10.0.0.1" if family is V4 else "2001:db8::1")
    limit = read_limit(sysctl)
    for i in range(limit):
        bound.join_group(group, "lo", str(first + i))
    with pytest.raises(OSError, match=rf"'{group}@lo,{first + limit}'.*{sysctl} for sources") as caught:
        bound.join_group(group, "lo", str(first + limit))
    assert caught.value.errno == errno.ENOBUFS


def test_other_families(unix_pair):
    sock = unix_pair().receiver
    for call in (lambda: sock.join_group("239.1.1.1"), lambda: sock.set_multicast(ttl=1)):
        with pytest.raises(OSError, match="needs an IPv4 or IPv6 socket") as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP


@needs_multicast
def test_closed_socket():
    closed = fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    for call in (lambda: closed.join_group("239.1.1.1", "lo"), lambda: closed.set_multicast(ttl=1)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


# --- what a socket sends ----------------------------------------------------------------

READ_BACK = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, socket.IP_MULTICAST_TTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, socket.IPV6_MULTICAST_HOPS),
}


def read_back(sock, family):
    level, *options = READ_BACK[family]
    return [sock.getsockopt(level, option) for option in options]


def test_set_multicast_is_read_back(bound, family):
    assert read_back(bound, family.family) == [1, 1]
    bound.set_multicast(loop=False)
    assert read_back(bound, family.family) == [0, 1]
    bound.set_multicast(ttl=42)
    assert read_back(bound, family.family) == [0, 42]
    bound.set_multicast(loop=True, ttl=0)
    assert read_back(bound, family.family) == [1, 0]
    bound.set_multicast()
    assert read_back(bound, family.family) == [1, 0]
    for ttl in (-1, 256):
        with pytest.raises(ValueError, match=f"0-255, not {ttl}"):
            bound.set_multicast(loop=False, ttl=ttl)
    assert read_back(bound, family.family) == [1, 0]


@needs_multicast
@needs_ipv6
def test_set_multicast_of_a_dual_stack_socket_is_both(closing):
    sock = closing(bind_udp(("::", 0), dualstack_ipv6=True))
    sock.set_multicast(loop=False, ttl=5, interface="lo")
    for family in READ_BACK:
        assert read_back(sock, family) == [0, 5]
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF) == LO
    only = closing(bind_udp(("::", 0)))
    only.set_multicast(ttl=5)
    assert [read_back(only, family)[1] for family in READ_BACK] == [1, 5]


@needs_multicast
@needs_ipv6
def test_interface_is_read_back_and_forgotten(closing):
    sock = closing(bind_udp(V6.address()))
    for interface, index in (("lo", LO), (0, 0), (LO, LO), (0, 0), ("::1", LO), ("127.0.0.1", LO)):
        sock.set_multicast(interface=interface)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF) == index


# --- two links, in a namespace of their own ---------------------------------------------

LINKS = """
for i in 0 1; do
    ip link add fs$i type veth peer name peer$i
    echo 1 >/proc/sys/net/ipv6/conf/peer$i/disable_ipv6
    ip link set fs$i addrgenmode none up
    ip link set peer$i up
    ip addr add 10.77.$i.1/24 dev fs$i
    ip addr add 10.77.$i.2/24 dev fs$i
    ip addr add fd77:$i::1/64 dev fs$i nodad
    ip addr add fd77:$i::2/64 dev fs$i nodad preferred_lft 0
    ip addr add fe80::77/64 dev fs$i nodad
done
"""

PRELUDE = """
import json, socket, sys
import fastsock
group, other, source0, source1 = sys.argv[1:5]
any_host = "::" if ":" in group else "0.0.0.0"
links = {name: index for index, name in socket.if_nameindex()}

def receiver(*groups, port=0, **options):
    sock = fastsock.bind_udp((any_host, port), reuse_address=True, multicast=list(groups), **options)
    sock.settimeout(10)
    return sock

def send(sock, payload, group=group, source=None, **options):
    sender = fastsock.bind_udp((source or any_host, 0))
    sender.set_multicast(**options)
    sender.sendto(payload.encode(), (group, sock.getsockname()[1]))
    sender.close()

def received_until(sock, last):
    found = []
    while last not in found:
        found += [payload.decode() for payload in sock.recv_many()]
    return found
"""


@pytest.fixture
def two_links(namespace: Namespace):
    made = subprocess.run([*namespace.enter, "sh", "-e", "-c", LINKS], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no veth here: {made.stderr}")
    return namespace


@pytest.fixture
def on_two_links(two_links, isolated, family: Family):
    """Run a script there, behind PRELUDE; returns what it printed last, from JSON."""

    def run(script):
        v4 = family.family == socket.AF_INET
        sources = ("10.77.0.1", "10.77.0.2") if v4 else ("fd77:0::1", "fd77:0::2")
        args = (GROUPS[family.family], OTHERS[family.family], *sources)
        return json.loads(isolated(PRELUDE + script, *args, before=two_links.enter))

    return run


@needs_multicast
def test_interfaces_are_told_apart(on_two_links):
    script = """
        address = "fd77:1::1" if ":" in group else "10.77.1.1"
        found = []
        for interface in ("fs1", links["fs1"], address):
            with receiver((group, interface)) as sock:
                for link in ("fs0", "fs1"):
                    send(sock, link, interface=link)
                send(sock, "index", interface=links["fs1"])
                send(sock, "address", interface=address)
                found.append(received_until(sock, "address"))
        print(json.dumps(found))
    """
    assert on_two_links(dedent(script)) == [["fs1", "index", "address"]] * 3


@needs_multicast
def test_loop(on_two_links):
    script = """
        with receiver((group, "fs0")) as sock:
            send(sock, "silent", interface="fs0", loop=False)
            send(sock, "loud", interface="fs0", loop=True)
            print(json.dumps(received_until(sock, "loud")))
    """
    assert on_two_links(dedent(script)) == ["loud"]


@needs_multicast
def test_sources_on_a_link(on_two_links):
    script = """
        with receiver((group, "fs0", source1), (other, "fs0")) as sock:
            send(sock, "0", source=source0, interface="fs0")
            send(sock, "1", source=source1, interface="fs0")
            sock.leave_group(group, "fs0", source1)
            send(sock, "left", source=source1, interface="fs0")
            send(sock, "end", other, source=source0, interface="fs0")
            print(json.dumps(received_until(sock, "end")))
    """
    assert on_two_links(dedent(script)) == ["1", "end"]


@needs_multicast
def test_only_joined_groups_on_a_link(on_two_links):
    script = """
        with receiver((group, "fs0")) as mine:
            port = mine.getsockname()[1]
            with receiver((other, "fs0"), port=port) as theirs, socket.socket(mine.family, socket.SOCK_DGRAM) as plain:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                plain.bind(mine.getsockname())
                send(mine, "other", other, interface="fs0")
                send(mine, "group", interface="fs0")
                plain.settimeout(10)
                print(json.dumps([received_until(mine, "group"), received_until(theirs, "other"),
                                  plain.recv(9).decode(), plain.recv(9).decode()]))
    """
    assert on_two_links(dedent(script)) == [["group"], ["other"], "other", "group"]


@needs_multicast
def test_hops_on_a_link(on_two_links):
    script = """
        with receiver((group, "fs0")) as sock:
            if ":" in group:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, 12, 1)
            found = []
            for options in ({}, {"ttl": 9}):
                send(sock, "x", interface="fs0", **options)
                [(_, _, data)] = sock.recvmsg(9, 100)[1]
                found.append(int.from_bytes(data, sys.byteorder))
            print(json.dumps(found))
    """
    assert on_two_links(dedent(script)) == [1, 9]


@needs_multicast
def test_connect_takes_the_source_address_of_the_interface(on_two_links, family):
    script = """
        found = []
        for link in ("fs0", "fs1"):
            with fastsock.Socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.set_multicast(interface=link)
                sender.connect((group, 9))
                found.append(sender.getsockname()[0])
        print(json.dumps(found))
    """
    expected = ["10.77.0.1", "10.77.1.1"] if family.family == socket.AF_INET else ["fd77::1", "fd77:1::1"]
    assert on_two_links(dedent(script)) == expected


@needs_multicast
@needs_ipv6
def test_dual_stack(two_links, isolated):
    script = """
        with fastsock.bind_udp(("", 0), dualstack_ipv6=True, multicast=[(group, "fs0"), (other, "fs1")]) as sock:
            sock.settimeout(10)
            port = sock.getsockname()[1]
            with fastsock.bind_udp(("", 0), dualstack_ipv6=True) as sender:
                for link in ("fs0", "fs1"):
                    sender.set_multicast(interface=link)
                    sender.sendto(f"v4 {link}".encode(), ("::ffff:" + group, port))
                    sender.sendto(f"v6 {link}".encode(), (other, port))
            print(json.dumps(received_until(sock, "v6 fs1")))
    """
    output = isolated(
        PRELUDE + dedent(script), GROUPS[socket.AF_INET], OTHERS[socket.AF_INET6], "", "", before=two_links.enter
    )
    assert json.loads(output) == ["v4 fs0", "v6 fs1"]


@needs_ipv6
def test_an_address_of_two_interfaces_is_refused(two_links, isolated):
    script = """
        with fastsock.bind_udp(("::", 0)) as sock:
            try:
                sock.join_group(group, "fe80::77")
            except ValueError as error:
                print(json.dumps(str(error)))
    """
    output = isolated(PRELUDE + dedent(script), "ff02::77", "", "", "", before=two_links.enter)
    assert json.loads(output) == "'fe80::77' is an address of fs0 and fs1: give the name"
