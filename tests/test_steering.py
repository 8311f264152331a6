"""Steering: the programs run by an interpreter, and by the kernel on groups of sockets."""

import collections
import contextlib
import errno
import ipaddress
import itertools
import json
import operator
import os
import socket
import struct
import subprocess

import pytest
from conftest import knows_options, needs_ipv6, needs_multicast
from hypothesis import given
from hypothesis import strategies as st

import fastsock
from fastsock import _bpf, bind_udp, bind_udp_group
from fastsock._steering import BPF_LD, BPF_RET, build_program

SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68  # asm-generic/socket.h


needs_steering = pytest.mark.skipif(
    not knows_options((socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF)), reason="groups cannot be steered here"
)


# --- the programs, in an interpreter ----------------------------------------------------

WORD = 2**32


def run(program, header=b"", cpu=0, random=0):
    """What the kernel would return: linux/filter.h, for the instructions that are used."""
    a = x = at = 0
    ancillary = {-0x1000 + 36: cpu, -0x1000 + 56: random}
    operations = {0x20: operator.mul, 0x70: operator.rshift, 0x90: operator.mod, 0xA0: operator.xor}
    while True:
        code, jt, jf, k = program[at]
        at += 1
        if code == 0x07:  # tax
            x = a
        elif code == 0x05:  # ja
            at += k
        elif code == 0x15:  # jeq #k
            at += jt if a == k else jf
        elif code == 0x16:  # ret a
            return a
        elif code & 0x07 == 0x04:
            a = operations[code & 0xF0](a, x if code & 0x08 else k) % WORD
        else:
            assert code in (0x20, 0x30)  # ld, ldb
            offset = k - WORD
            if offset in ancillary:
                a = ancillary[offset]
            else:
                offset += 0x100000
                size = 4 if code == 0x20 else 1
                assert 0 <= offset <= len(header) - size
                a = int.from_bytes(header[offset : offset + size], "big")


def ip_header(source, target="::1", filler=0):
    """An IP header from `source`; `filler` is in every byte that is no address."""
    packed, target = ipaddress.ip_address(source).packed, ipaddress.ip_address(target).packed
    if len(packed) == 4:
        return b"\x45" + bytes([filler]) * 11 + packed + target[-4:]
    return b"\x60" + bytes([filler]) * 7 + packed + target


def expected_index(source, size):
    """The hash again, written down in another way."""
    address = ipaddress.ip_address(source)
    h = 0
    for (word,) in struct.iter_unpack("!I", address.packed):
        h = h * 0x9E3779B1 % WORD ^ word
    h ^= h >> 16
    h = h * 0x85EBCA6B % WORD
    h ^= h >> 13
    h = h * 0xC2B2AE35 % WORD
    h ^= h >> 16
    return h % size


addresses = st.ip_addresses().map(str)
sizes = st.integers(1, 0xFFFF)


@given(addresses, sizes)
def test_source_is_the_hash_of_the_address(source, size):
    index = run(build_program("source", size), ip_header(source))
    assert index == expected_index(source, size) < size


@given(addresses, addresses, st.integers(0, 255), sizes)
def test_source_depends_on_nothing_else(source, target, filler, size):
    program = build_program("source", size)
    assert run(program, ip_header(source, target, filler), cpu=filler, random=filler) == run(program, ip_header(source))


@given(st.integers(0, 2**32 - 1), sizes)
def test_cpu_and_random_are_taken_modulo_size(value, size):
    assert run(build_program("cpu", size), cpu=value, random=value + 1) == value % size
    assert run(build_program("random", size), random=value, cpu=value + 1) == value % size


@pytest.mark.parametrize(
    ("how", "size", "state", "index"),
    [
        ("cpu", 1, {"cpu": 7}, 0),
        ("cpu", 4, {"cpu": 3}, 3),
        ("cpu", 4, {"cpu": 4}, 0),
        ("cpu", 3, {"cpu": 127}, 1),
        ("random", 4, {"random": 2**32 - 1}, 3),
        ("random", 7, {"random": 7}, 0),
        ("source", 1, {"header": ip_header("10.0.0.1")}, 0),
        ("source", 4, {"header": ip_header("10.0.0.1")}, 3),
        ("source", 4, {"header": ip_header("10.0.0.2")}, 0),
        ("source", 4, {"header": ip_header("2001:db8::1")}, 0),
        ("source", 4, {"header": ip_header("2001:db8::2")}, 2),
    ],
)
def test_table(how, size, state, index):
    assert run(build_program(how, size), **state) == index


@pytest.mark.parametrize("size", [2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize(
    "network", ["10.0.0.0/22", "2001:db8::/118", "2001:db8:0:0:0:0::/54"], ids=["v4", "v6", "v6 prefixes"]
)
def test_source_spreads_neighbours(network, size):
    network = ipaddress.ip_network(network)
    step = network.num_addresses // 1024
    program = build_program("source", size)
    counts = collections.Counter(run(program, ip_header(network[i * step])) for i in range(1024))
    # Four standard deviations of what a fair draw gives; the addresses are always the same.
    deviation = (1024 * (size - 1)) ** 0.5 / size
    assert all(abs(counts[index] - 1024 / size) < 4 * deviation for index in range(size)), counts


def test_encoded_as_the_kernel_wants_it():
    program = build_program("source", 5)
    encoded = _bpf.encode_program(program)
    assert list(struct.iter_unpack("@HBBI", encoded)) == program
    assert _bpf.encode_program([]) == b""


octets = st.integers(0, 255)


@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), octets, octets, st.integers(0, 2**32 - 1))))
def test_encoding_keeps_everything(program):
    assert list(struct.iter_unpack("@HBBI", _bpf.encode_program(program))) == program


@pytest.mark.parametrize("bad", [(2**16, 0, 0, 0), (0, 256, 0, 0), (0, 0, -1, 0), (0, 0, 0, 2**32), (0, 0, 0, -1)])
def test_what_no_instruction_holds(bad):
    with pytest.raises(OverflowError):
        _bpf.encode_program([bad])
    with pytest.raises(ValueError, match="unpack"):
        _bpf.encode_program([bad[:3]])


@pytest.mark.parametrize(
    ("how", "size", "message"),
    [
        ("round_robin", 4, "keeps no state.*'random'"),
        ("hash", 4, "must be one of 'cpu', 'source', 'random', not 'hash'"),
        ("", 4, "must be one of"),
        ("cpu", 0, "1 to 65535 sockets, not 0"),
        ("source", -1, "not -1"),
        ("random", 65536, "not 65536"),
    ],
)
def test_what_cannot_be_steered(closing, how, size, message):
    with pytest.raises(ValueError, match=message):
        build_program(how, size)
    with pytest.raises(ValueError, match=message):
        closing(bind_udp(("127.0.0.1", 0), reuse_port=True)).steer(how, size)
    with pytest.raises(ValueError, match=message):
        bind_udp_group(("127.0.0.1", 0), size, steering=how)


# --- groups -----------------------------------------------------------------------------


@pytest.fixture
def group_of(closing):
    """bind_udp_group, whose sockets are closed at the end and never wait."""

    def make(*args, **options):
        socks = bind_udp_group(*args, **options)
        for sock in socks:
            closing(sock).setblocking(False)
        return socks

    return make


@pytest.fixture
def peers_of(wait_for):
    """Wait for `count` datagrams; returns the hosts that each socket heard, one for each datagram."""

    def receive(socks, count):
        found = [[] for _ in socks]

        def all_there():
            for sock, hosts in zip(socks, found, strict=True):
                with contextlib.suppress(BlockingIOError):
                    hosts += [address[0].removeprefix("::ffff:") for _, address in sock.recvfrom_many()]
            return sum(map(len, found)) >= count

        wait_for(all_there)
        return found

    return receive


@pytest.fixture
def flood(closing, peers_of):
    """Send `count` datagrams from one port; returns what each socket got of them."""

    def flood(socks, count, host="127.0.0.1"):
        # A program runs once for what GSO sends in one piece.
        sender = closing(fastsock.connect_udp((host, socks[0].getsockname()[1]), gso=False))
        assert sender.send_many([b"x"] * count) == count
        return [len(hosts) for hosts in peers_of(socks, count)]

    return flood


def expected_peers(hosts, size):
    return [sorted(host for host in hosts if expected_index(host, size) == index) for index in range(size)]


def test_group(group_of, family):
    socks = group_of(family.address(), 3)
    assert len({sock.getsockname() for sock in socks}) == 1
    assert len({sock.fileno() for sock in socks}) == 3
    assert socks[0].getsockname()[0] == family.host
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in socks)
    again = group_of(socks[0].getsockname(), 2, rcvbuf=8192)
    assert {sock.getsockname() for sock in again} == {socks[0].getsockname()}
    assert {sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in again} == {16384}


@needs_ipv6
def test_group_is_dual_stack(group_of, flood):
    socks = group_of(("", 0), 2, dualstack_ipv6=True)
    assert {sock.family for sock in socks} == {socket.AF_INET6}
    for host in ("127.0.0.1", "::1"):
        assert sum(flood(socks, 3, host)) == 3


def test_group_that_fails_leaves_no_socket(closing, monkeypatch):
    # The fixture that counts descriptors asserts it.
    taken = closing(bind_udp(("127.0.0.1", 0)))
    with pytest.raises(OSError, match="in use"):
        bind_udp_group(taken.getsockname(), 3)
    made = []

    def bind_two(address, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(bind_udp(address, **options))
        return made[-1]

    monkeypatch.setattr("fastsock._udp.bind_udp", bind_two)
    with pytest.raises(KeyboardInterrupt):
        bind_udp_group(("127.0.0.1", 0), 3)
    assert [sock.fileno() for sock in made] == [-1, -1]


@pytest.mark.parametrize("size", [0, -1, 2**16])
def test_size_of_a_group(size):
    with pytest.raises(ValueError, match=f"not {size}"):
        bind_udp_group(("127.0.0.1", 0), size)


@pytest.mark.parametrize(("size", "options"), [("2", {}), (2.0, {}), (2, {"reuse_port": True}), (2, {"no_such": 1})])
def test_wrong_arguments_of_a_group(size, options):
    with pytest.raises(TypeError):
        bind_udp_group(("127.0.0.1", 0), size, **options)


def test_a_group_joins_no_multicast():
    with pytest.raises(ValueError, match="each socket that joins a group gets every datagram"):
        bind_udp_group(("", 0), 2, multicast="239.1.1.1")


@needs_multicast
def test_every_socket_of_a_group_gets_multicast(group_of, closing, peers_of):
    socks = group_of(("0.0.0.0", 0), 3)
    for sock in socks:
        sock.join_group("239.255.77.3", "lo")
    sender = closing(bind_udp(("127.0.0.1", 0)))
    sender.set_multicast(interface="lo")
    sender.sendto(b"x", ("239.255.77.3", socks[0].getsockname()[1]))
    assert [len(hosts) for hosts in peers_of(socks, 3)] == [1, 1, 1]


BUFFER_THAT_IS_NOT_GIVEN = """
import ctypes, struct, sys, warnings
import fastsock
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    for sock in fastsock.bind_udp_group(("127.0.0.1", 0), 3, rcvbuf=1 << 28):  # line 8
        sock.close()
for warning in caught:
    print(warning.filename, warning.lineno)
"""


def test_a_buffer_that_is_not_statewarns_once_at_the_callers_line(isolated):
    with open("/proc/sys/net/core/rmem_max") as file:
        if int(file.read()) >= 1 << 28:
            pytest.skip("this machine allows any buffer")
    assert isolated(BUFFER_THAT_IS_NOT_GIVEN) == "<string> 8\n"


# --- steering, in the kernel ------------------------------------------------------------

SENDERS = [f"127.{x}.{y}.{z}" for x, y, z in itertools.product((0, 7), (1, 200), range(1, 17))]


@needs_steering
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_source_of_ipv4(group_of, closing, peers_of, size):
    socks = group_of(("127.0.0.1", 0), size, steering="source")
    hosts = SENDERS * 2  # each from two ports
    for host in hosts:
        closing(bind_udp((host, 0))).sendto(b"x", socks[0].getsockname())
    expected = expected_peers(hosts, size)
    assert [sorted(found) for found in peers_of(socks, len(hosts))] == expected
    assert [sock.stats.received for sock in socks] == [len(peers) for peers in expected]


@needs_steering
@needs_ipv6
def test_source_of_ipv4_on_dual_stack_sockets(group_of, closing, peers_of):
    socks = group_of(("::", 0), 4, dualstack_ipv6=True, steering="source")
    hosts = [*SENDERS, "::1"]
    for host in hosts:
        target = "::1" if host == "::1" else "127.0.0.1"
        closing(bind_udp((host, 0))).sendto(b"x", (target, socks[0].getsockname()[1]))
    assert [sorted(found) for found in peers_of(socks, len(hosts))] == expected_peers(hosts, 4)


IPV6_SENDERS = [f"fd77::{i:x}" for i in range(1, 17)] + [f"fd77:{i:x}::1" for i in range(1, 17)]

IN_A_NAMESPACE = """
import json, select, sys
import fastsock
hosts, size = json.loads(sys.argv[1]), int(sys.argv[2])
socks = fastsock.bind_udp_group(("::1", 0), size, steering="source")
for host in hosts:
    with fastsock.bind_udp((host, 0)) as sender:
        sender.sendto(b"x", socks[0].getsockname())
found = [[] for _ in socks]
while sum(map(len, found)) < len(hosts):
    ready = select.select(socks, [], [], 10)[0]
    assert ready
    for i, sock in enumerate(socks):
        if sock in ready:
            found[i] += [address[0] for _, address in sock.recvfrom_many()]
for sock in socks:
    sock.close()
print(json.dumps(found))
"""


@needs_steering
@needs_ipv6
@pytest.mark.parametrize("size", [2, 5])
def test_source_of_ipv6(namespace, isolated, size):
    batch = "".join(f"addr add {host}/128 dev lo nodad\n" for host in IPV6_SENDERS)
    subprocess.run([*namespace.enter, "ip", "-6", "-batch", "-"], input=batch, text=True, check=True)
    hosts = IPV6_SENDERS * 2
    found = json.loads(isolated(IN_A_NAMESPACE, json.dumps(hosts), size, before=namespace.enter))
    assert [sorted(each) for each in found] == expected_peers(hosts, size)


@pytest.fixture
def on_cpu():
    """Move this thread to one CPU, and back at the end."""
    allowed = os.sched_getaffinity(0)
    yield lambda cpu: os.sched_setaffinity(0, {cpu})
    os.sched_setaffinity(0, allowed)


@needs_steering
@pytest.mark.parametrize("size", [1, 2, 3])
def test_cpu(group_of, flood, on_cpu, family, size):
    # Loopback delivers on the CPU that sends.
    socks = group_of(family.address(), size, steering="cpu")
    for cpu in sorted(os.sched_getaffinity(0))[:4]:
        on_cpu(cpu)
        assert flood(socks, 20, family.host) == [20 if index == cpu % size else 0 for index in range(size)]


@needs_steering
def test_random(group_of, flood, family):
    socks = group_of(family.address(), 4)
    assert max(flood(socks, 200, family.host)) == 200  # the kernel's hash of one sender
    socks[2].steer("random", 4)
    # One that gets fewer than ten of 200 has a probability below 1e-12.
    assert min(flood(socks, 200, family.host)) >= 10


@needs_steering
def test_what_gso_sends_in_one_piece_goes_to_one_socket(group_of, closing, peers_of):
    socks = group_of(("127.0.0.1", 0), 4, steering="random")
    sender = closing(fastsock.connect_udp(socks[0].getsockname()))
    if not sender.gso:
        pytest.skip("no GSO here")
    for _ in range(10):
        assert sender.send_many([b"x" * 100] * 20) == 20
        assert sorted(map(len, peers_of(socks, 20))) == [0, 0, 0, 20]


@needs_steering
def test_programs_replace_each_other_and_go(group_of, flood, closing):
    socks = group_of(("127.0.0.1", 0), 4, steering="random")
    assert min(flood(socks, 200)) >= 10
    socks[1].steer("source", 4)
    assert flood(socks, 50)[expected_index("127.0.0.1", 4)] == 50
    socks[3].steer(None)
    with pytest.raises(FileNotFoundError):
        socks[0].setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    assert max(flood(socks, 50)) == 50
    socks[0].steer(None)


@needs_steering
def test_sockets_are_numbered_in_the_order_of_bind(group_of, flood):
    socks = group_of(("127.0.0.1", 0), 3)
    for index in range(3):
        constant = _bpf.encode_program([(BPF_RET, 0, 0, index)])
        _bpf.attach_reuseport(socks[0].fileno(), constant)
        assert flood(socks, 5) == [5 if i == index else 0 for i in range(3)]
    # No such number: the kernel's own hash.
    _bpf.attach_reuseport(socks[0].fileno(), _bpf.encode_program([(BPF_RET, 0, 0, 3)]))
    assert max(flood(socks, 5)) == 5
    # The last one takes the number of one that is closed.
    _bpf.attach_reuseport(socks[0].fileno(), _bpf.encode_program([(BPF_RET, 0, 0, 0)]))
    socks[0].close()
    assert flood([socks[2], socks[1]], 5) == [5, 0]


@needs_steering
def test_steering_needs_reuse_port(closing):
    sock = closing(bind_udp(("127.0.0.1", 0)))
    with pytest.raises(OSError, match="was not bound with reuse_port") as caught:
        sock.steer("cpu", 1)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(TypeError, match="size of the group"):
        sock.steer("cpu")
    closed = bind_udp(("127.0.0.1", 0), reuse_port=True)
    closed.close()
    for how in ("cpu", None):
        with pytest.raises(OSError, match="Bad file descriptor"):
            closed.steer(how, 1)


@needs_steering
def test_a_program_that_the_kernel_refuses(closing):
    sock = closing(bind_udp(("127.0.0.1", 0), reuse_port=True))
    for program in ([], [(BPF_LD, 0, 0, 0)], [(0xFFFF, 0, 0, 0)]):
        with pytest.raises(OSError, match="Invalid argument"):
            _bpf.attach_reuseport(sock.fileno(), _bpf.encode_program(program))
    with pytest.raises(ValueError, match="whole instructions"):
        _bpf.attach_reuseport(sock.fileno(), b"1234567")
    with pytest.raises(TypeError):
        _bpf.attach_reuseport(sock.fileno(), None)
