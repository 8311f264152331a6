"""Sending, one datagram or many at a time: exact counts, nothing lost and nothing twice."""

import array
import errno
import os
import socket
import threading

import pytest
from conftest import drain, is_held, needs_localhost
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsock
from fastsock import SendBatch, Socket
from fastsock._udp import SO_RCVBUFFORCE

TOO_LARGE = bytes(70_000)  # above the 65507 that UDP carries


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%05d" % i for i in range(start, start + count)]


def force_buffer(sock) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    except PermissionError:
        pytest.skip("thousands of queued datagrams take CAP_NET_ADMIN")


def send_by_batch(sock, payloads, address=None):
    payloads = list(payloads)
    batch = SendBatch(max(1, len(payloads)), 70_000)
    for payload in payloads:
        batch.append(payload, address)
    return sock.send_batch(batch)


# Each sends payloads to the connected peer, and says how many went.
EVERY = {
    "send_many": lambda sock, payloads: sock.send_many(payloads),
    "sendto_many": lambda sock, payloads: sock.sendto_many(payloads, sock.getpeername()),
    "sendto_many each": lambda sock, payloads: sock.sendto_many(payloads, [sock.getpeername()] * len(payloads)),
    "send_batch": send_by_batch,
    "send_batch to": lambda sock, payloads: send_by_batch(sock, payloads, sock.getpeername()),
}


@pytest.fixture(params=EVERY)
def send(request):
    return EVERY[request.param]


@pytest.fixture(params=["send_many", "send_batch"])
def send_connected(request):
    """Those that also reach a peer without a name."""
    return EVERY[request.param]


# --- single calls -------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 1472, b"x" * 65507])
def test_single_calls(udp_pair, payload):
    receiver, sender = udp_pair
    to = receiver.getsockname()
    calls = [
        lambda: sender.send(payload),
        lambda: sender.send(payload, 0),
        lambda: sender.sendto(payload, to),
        lambda: sender.sendto(payload, 0, to),
        lambda: sender.sendmsg([payload]),
        lambda: sender.sendmsg([payload[:1], b"", payload[1:]], (), 0, to),
        lambda: sender.sendmsg(iter([payload])),
    ]
    for call in calls:
        assert call() == len(payload)
        assert receiver.recv(65535) == payload
    assert sender.sendall(payload) is None
    assert receiver.recv(65535) == payload


def test_sendmsg_of_nothing_as_the_standard_library(udp_pair):
    receiver, sender = udp_pair
    receiver.settimeout(0.05)
    with socket.socket(fileno=os.dup(sender.fileno())) as theirs:
        answers = []
        for sock in (theirs, sender):
            assert sock.sendmsg([]) == 0
            try:
                answers.append(receiver.recv(10))
            except TimeoutError:  # some emulators send nothing
                answers.append(None)
    assert answers[0] == answers[1]


def test_single_calls_refuse(udp_pair, family, closing):
    sender = udp_pair.sender
    for call in (sender.send, sender.sendall, lambda data: sender.sendto(data, sender.getpeername())):
        with pytest.raises(OSError, match="too long") as caught:
            call(TOO_LARGE)
        assert caught.value.errno == errno.EMSGSIZE
        with pytest.raises(TypeError, match="bytes-like"):
            call("text")
        with pytest.raises(BufferError):
            call(memoryview(b"abcd")[::2])
    unconnected = closing(Socket(family.family, socket.SOCK_DGRAM))
    for call in (unconnected.send, unconnected.sendall, lambda data: unconnected.sendmsg([data])):
        with pytest.raises(OSError, match="Destination") as caught:
            call(b"x")
        assert caught.value.errno == errno.EDESTADDRREQ


# --- counts -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 130])
def test_all_of_them_in_order(udp_pair, send, count):
    assert send(udp_pair.sender, numbered(count)) == count
    assert drain(udp_pair.receiver) == numbered(count)


def test_lengths_from_none_to_most(udp_pair, send):
    payloads = [b"", b"a", b"", b"b" * 1472, b"c" * 65507]
    assert send(udp_pair.sender, payloads) == 5
    assert [udp_pair.receiver.recv(65535) for _ in payloads] == payloads


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("good", [0, 1, 5, 70])
def test_refused_payload_is_exact(udp_pair, send, good, blocking):
    receiver, sender = udp_pair
    sender.setblocking(blocking)
    payloads = [*numbered(good), TOO_LARGE, *numbered(3, 100)]
    if good:
        assert send(sender, payloads) == good
    for _ in range(2):
        with pytest.raises(OSError, match="too long") as caught:
            send(sender, payloads[good:])
        assert caught.value.errno == errno.EMSGSIZE
    assert send(sender, payloads[good + 1 :]) == 3
    assert drain(receiver) == numbered(good) + numbered(3, 100)


@settings(max_examples=40, deadline=None)
@given(refused=st.sets(st.integers(0, 30)), count=st.integers(0, 31))
def test_following_the_count_sends_each_once(refused, count):
    payloads = [TOO_LARGE if i in refused else b"%d" % i for i in range(count)]
    with fastsock.bind_udp(("127.0.0.1", 0)) as receiver, fastsock.connect_udp(receiver.getsockname()) as sender:
        left, errors = payloads, 0
        while left:
            try:
                left = left[sender.send_many(left) :]
            except OSError:
                errors += 1
                left = left[1:]
        assert errors == payloads.count(TOO_LARGE)
        assert drain(receiver) == [payload for payload in payloads if payload is not TOO_LARGE]


@pytest.mark.parametrize("count", [1023, 1024, 1025, 3000])
def test_more_than_one_call_of_the_kernel_takes(closing, send, count, family):
    # Forced where the process may: the default buffer does not hold as many.
    receiver = closing(fastsock.bind_udp(family.address()))
    force_buffer(receiver)
    sender = closing(fastsock.connect_udp(receiver.getsockname()))
    assert send(sender, numbered(count)) == count
    assert drain(receiver) == numbered(count)


def test_refused_beyond_the_first_chunk(udp_pair):
    receiver, sender = udp_pair
    force_buffer(receiver)
    payloads = [*numbered(1500), "text", b"never"]
    # The buffers of the second 1024 are looked at only when the first have gone.
    assert sender.send_many(payloads) == 1024
    with pytest.raises(TypeError):
        sender.send_many(payloads[1024:])
    assert drain(receiver) == numbered(1024)


# --- payloads -----------------------------------------------------------------------------


def test_kinds_of_payload(udp_pair, send):
    np = pytest.importorskip("numpy")
    payloads = [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(b"xslicex")[1:-1],
        array.array("H", [1, 2, 3]),
        np.arange(3, dtype=np.uint32),
        np.zeros((2, 2), np.uint8),
        bytearray(),
    ]
    assert send(udp_pair.sender, payloads) == len(payloads)
    assert drain(udp_pair.receiver) == [bytes(memoryview(payload).cast("B")) for payload in payloads]


@pytest.mark.parametrize(
    ("payload", "error"),
    [("text", TypeError), (5, TypeError), (None, TypeError), (memoryview(b"abcd")[::2], BufferError)],
)
def test_wrong_payload_sends_nothing(udp_pair, send, payload, error):
    with pytest.raises(error):
        send(udp_pair.sender, [b"good", payload])
    assert drain(udp_pair.receiver) == []
    assert send(udp_pair.sender, [b"after"]) == 1


def test_payloads_from_any_iterable(udp_pair):
    receiver, sender = udp_pair
    to = receiver.getsockname()
    assert sender.send_many(payload for payload in (b"1", b"2")) == 2
    assert sender.sendto_many((payload for payload in (b"3", b"4")), (to for _ in range(2))) == 2
    assert sender.send_many({b"5": None}) == 1
    assert drain(receiver) == [b"1", b"2", b"3", b"4", b"5"]
    with pytest.raises(TypeError):
        sender.send_many(5)
    with pytest.raises(ZeroDivisionError):
        sender.send_many(1 // (1 - i) and b"x" for i in range(3))
    assert drain(receiver) == []


def test_buffers_are_held_during_the_call_only(udp_pair, unix_pair, wait_for):
    payload = bytearray(b"resize me")
    for call in (udp_pair.sender.send, lambda data: udp_pair.sender.send_many([data] * 3)):
        call(payload)
        payload += b"!"
    with pytest.raises(OSError, match="too long"):
        udp_pair.sender.send_many([payload, TOO_LARGE][::-1])
    payload += b"!"

    receiver, sender = unix_pair()
    sender.setblocking(False)
    assert sender.send_many([b"fill"] * 5000) < 5000
    sender.setblocking(True)
    blocked = threading.Thread(target=sender.send_many, args=([payload, payload],))
    blocked.start()

    wait_for(lambda: is_held(payload))
    while blocked.is_alive():
        receiver.setblocking(False)
        drain(receiver)
        blocked.join(0.001)
    payload += b"!"


# --- peers ----------------------------------------------------------------------------------


def test_one_peer_or_each_its_own(closing, family):
    receivers = [closing(fastsock.bind_udp(family.address())) for _ in range(3)]
    peers = [receiver.getsockname()[:2] for receiver in receivers]
    sender = closing(Socket(family.family, socket.SOCK_DGRAM))
    assert sender.sendto_many([b"1", b"2"], peers[0]) == 2
    assert sender.sendto_many([b"3", b"4", b"5"], peers) == 3
    assert sender.sendto_many([b"6", b"7", b"8"], tuple(peers)) == 3
    assert sender.sendto_many([], []) == 0
    assert [drain(receiver) for receiver in receivers] == [[b"1", b"2", b"3", b"6"], [b"4", b"7"], [b"5", b"8"]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_peers_as_payloads(udp_pair, count):
    with pytest.raises(ValueError, match=f"2 payloads for {count} addresses"):
        udp_pair.sender.sendto_many([b"a", b"b"], [udp_pair.sender.getpeername()] * count)
    assert drain(udp_pair.receiver) == []


@needs_localhost
def test_names(closing):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    port = receiver.getsockname()[1]
    sender = closing(Socket(socket.AF_INET, socket.SOCK_DGRAM))
    assert sender.sendto_many([b"1"], ("localhost", port)) == 1
    assert sender.sendto_many([b"2", b"3"], [("localhost", port), ("", port)]) == 2
    assert drain(receiver) == [b"1", b"2", b"3"]
    with pytest.raises(socket.gaierror):
        sender.sendto_many([b"1"], ("no.such.host.invalid", port))


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1", TypeError),
        (b"x", TypeError),
        (5, TypeError),
        (None, TypeError),
        ((), TypeError),
        (("127.0.0.1",), TypeError),
        (("127.0.0.1", 70000), OverflowError),
        (("127.0.0.1", "9"), TypeError),
        ([("127.0.0.1", 9), None], TypeError),
        ([("127.0.0.1", 9), ("127.0.0.1", -1)], OverflowError),
        (["127.0.0.1", 9], TypeError),
        (("::1", 9), socket.gaierror),
    ],
)
def test_bad_peer_sends_nothing(closing, address, error):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    # Connected, so that nothing but the address can be wrong.
    sender = closing(fastsock.connect_udp(receiver.getsockname()))
    with pytest.raises(error):
        sender.sendto_many([b"a", b"b"], address)
    assert drain(receiver) == []


def test_unconnected(family, closing):
    sender = closing(Socket(family.family, socket.SOCK_DGRAM))
    for call in (lambda: sender.send_many([b"x"] * 3), lambda: send_by_batch(sender, [b"x"])):
        with pytest.raises(OSError, match="Destination") as caught:
            call()
        assert caught.value.errno == errno.EDESTADDRREQ


def test_unix_peers(closing, tmp_path):
    paths = [str(tmp_path / "a"), bytes(tmp_path / "b"), b"\0fastsock-send-%d" % id(tmp_path)]
    receivers = []
    for path in paths:
        receivers.append(closing(Socket(socket.AF_UNIX, socket.SOCK_DGRAM)))
        receivers[-1].bind(path)
    sender = closing(Socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    for path in paths:
        assert sender.sendto_many([b"1", b"2"], path) == 2
    assert sender.sendto_many([b"3", b"4", b"5"], paths) == 3
    assert sender.sendto_many([b"6", b"7"], tuple(paths[:2])) == 2
    assert [drain(receiver) for receiver in receivers] == [
        [b"1", b"2", b"3", b"6"],
        [b"1", b"2", b"4", b"7"],
        [b"1", b"2", b"5"],
    ]
    with pytest.raises(FileNotFoundError):
        sender.sendto_many([b"x"], str(tmp_path / "nobody"))
    # The first was sent; the second is refused by the next call.
    assert sender.sendto_many([b"8", b"9"], [paths[0], str(tmp_path / "nobody")]) == 1
    assert drain(receivers[0]) == [b"8"]


# --- a full queue -----------------------------------------------------------------------------


def test_full_queue_of_a_nonblocking_socket(unix_pair, send_connected):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    sender.setblocking(False)
    payloads = numbered(500)
    sent = send_connected(sender, payloads)
    assert 0 < sent < 500
    for _ in range(3):
        with pytest.raises(BlockingIOError) as caught:
            send_connected(sender, payloads[sent:])
        assert caught.value.errno == errno.EAGAIN
    assert drain(receiver) == payloads[:sent]
    assert 0 < send_connected(sender, payloads[sent:]) <= 500 - sent


@pytest.mark.parametrize("timeout", [None, 30])
def test_full_queue_of_a_blocking_socket_waits_for_its_reader(unix_pair, send_connected, timeout):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    sender.settimeout(timeout)
    for payloads in (numbered(50), numbered(64), numbered(2500)):
        found = []

        def read(found=found, payloads=payloads) -> None:
            while len(found) < len(payloads):
                found += receiver.recv_many(7, 100)

        reader = threading.Thread(target=read)
        reader.start()
        assert send_connected(sender, payloads) == len(payloads)
        reader.join(20)
        assert found == payloads


def test_timeout(unix_pair):
    receiver, sender = unix_pair()
    sender.settimeout(0.02)
    sent = sender.send_many(numbered(2000))
    assert 0 < sent < 2000
    for call in (
        lambda: sender.send_many([b"x"] * 2),
        lambda: sender.send(b"x"),
        lambda: sender.sendall(b"x"),
        lambda: sender.sendmsg([b"x"]),
        lambda: send_by_batch(sender, [b"x"] * 2),
    ):
        with pytest.raises(TimeoutError, match="timed out"):
            call()
    assert drain(receiver) == numbered(sent)


def test_streams_are_refused():
    with Socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        for call in (
            lambda: sock.send_many([b"x"]),
            lambda: sock.sendto_many([b"x"], ("127.0.0.1", 9)),
            lambda: sock.send_batch(SendBatch()),
        ):
            with pytest.raises(OSError, match="stream") as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP


def test_closed(family):
    sock = Socket(family.family, socket.SOCK_DGRAM)
    sock.close()
    for send in EVERY["send_many"], EVERY["send_batch"]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            send(sock, [b"x"])


# --- the address that sendto was last given ---------------------------------------------------


class Port:
    """A port that another datagram may go to."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


def test_the_same_tuple_goes_to_the_same_peer(udp_pair):
    receiver, _ = udp_pair
    address = receiver.getsockname()
    with fastsock.Socket(receiver.family, socket.SOCK_DGRAM) as sock:
        with pytest.raises(TypeError):
            sock.sendto(b"to nobody", None)  # nothing was sent yet
        for payload in (b"first", bytearray(b"second"), b"third"):
            assert sock.sendto(payload, address) == len(payload)
            assert receiver.recv(100) == payload
        with pytest.raises(OverflowError):
            sock.sendto(b"elsewhere", (address[0], 70000, *address[2:]))
        assert sock.sendto(b"fourth", 0, address) == 6
        assert receiver.recv(100) == b"fourth"


def test_a_tuple_whose_parts_change_is_read_again(udp_pair, family, closing):
    receiver, _ = udp_pair
    other = closing(fastsock.bind_udp(family.address()))
    other.settimeout(10)
    port = Port(receiver.getsockname()[1])
    address = (family.host, port)
    with fastsock.Socket(family.family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"one", address)
        port.number = other.getsockname()[1]
        sock.sendto(b"two", address)
    assert receiver.recv(100) == b"one"
    assert other.recv(100) == b"two"


@pytest.mark.parametrize("host", ["localhost", b"127.0.0.1"])
def test_a_host_that_must_be_resolved_is_resolved_each_time(monkeypatch, host):
    asked = []

    def getaddrinfo(name, *arguments):
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0))]

    monkeypatch.setattr("_socket.getaddrinfo", getaddrinfo)
    with fastsock.bind_udp(("127.0.0.1", 0)) as receiver, fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        address = (host, receiver.getsockname()[1])
        asked.clear()
        for _ in range(3):
            assert sock.sendto(b"x", address) == 1
    assert len(asked) == (3 if host == "localhost" else 0)
