"""send_zerocopy: the buffer is held until the kernel is done with it, and no longer."""

import array
import errno
import os
import socket
import sys
import threading
import weakref

import pytest
from conftest import drain, is_held, needs_large_buffers
from tracing import trace_pair

import fastsock
from fastsock import Socket
from fastsock._constants import MSG_ZEROCOPY, SO_ZEROCOPY

SO_NO_CHECK = 11


def takes_zerocopy() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not takes_zerocopy(), reason="SO_ZEROCOPY for UDP is Linux 5.0")


def completed(sock) -> list[int]:
    """The numbers of the sends that are done, which the kernel's records are about."""
    records = sock.recv_errors()
    assert {record.origin for record in records} <= {"zerocopy"}
    assert {record.errno for record in records} <= {0}
    return [number for record in records for number in record.ids]


# --- holding and letting go -------------------------------------------------------------------------


def test_held_until_the_completion_is_read(udp_pair):
    receiver, sender = udp_pair
    payload = bytearray(b"x" * 3000)
    assert sender.zerocopy_pending == 0
    assert sender.send_zerocopy(payload) == 3000
    assert drain(receiver) == [b"x" * 3000]
    # The kernel is done, but nobody has looked.
    assert is_held(payload)
    assert (sender.zerocopy_pending, sender.stats.zerocopy_pending) == (1, 1)
    (record,) = sender.recv_errors()
    assert (record.origin, record.ids, record.copied) == ("zerocopy", range(1), True)
    assert not is_held(payload)
    assert (sender.zerocopy_pending, sender.stats.zerocopy_pending) == (0, 0)
    assert sender.stats.sent == 1


def test_the_next_send_looks_for_completions(udp_pair):
    payloads = [bytearray(b"%d" % i * 100) for i in range(5)]
    for i, payload in enumerate(payloads):
        assert udp_pair.sender.send_zerocopy(payload) == 100
        assert [is_held(one) for one in payloads] == [one is payload for one in payloads]
        assert udp_pair.sender.zerocopy_pending == 1
        assert drain(udp_pair.receiver) == [b"%d" % i * 100]
    # They are taken where they are met: what is left for the user is the last.
    assert completed(udp_pair.sender) == [4]


@pytest.mark.parametrize("drop", ["recv_errors", "next", "close", "del"])
def test_the_object_is_let_go_of(udp_pair, closing, drop):
    sender = fastsock.connect_udp(udp_pair.receiver.getsockname())
    payload = array.array("B", bytes(100))
    alive = weakref.ref(payload)
    sender.send_zerocopy(payload)
    del payload
    assert alive() is not None
    if drop == "recv_errors":
        sender.recv_errors()
        assert alive() is None
    elif drop == "next":
        sender.send_zerocopy(b"another")
        assert alive() is None
    sender.close()
    assert alive() is None
    assert sender.zerocopy_pending == 0


def test_immutable_and_shared_payloads(udp_pair):
    receiver, sender = udp_pair
    payload = b"shared" * 10
    count = sys.getrefcount(payload)
    for _ in range(3):
        sender.send_zerocopy(payload)
    assert drain(receiver) == [payload] * 3
    sender.recv_errors()
    assert sender.zerocopy_pending == 0
    assert sys.getrefcount(payload) == count


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("text",), TypeError),
        ((5,), TypeError),
        ((memoryview(bytes(8))[::2],), BufferError),
        ((b"x", 5), TypeError),
        ((b"x", ("127.0.0.1", 70_000)), (OverflowError, socket.gaierror)),
        ((b"x", ("127.0.0.1",)), TypeError),
        ((bytes(70_000),), OSError),
    ],
)
def test_what_is_refused_is_not_held(udp_pair, arguments, error):
    sender = udp_pair.sender
    with pytest.raises(error):
        sender.send_zerocopy(*arguments)
    assert sender.zerocopy_pending == 0
    payload = bytearray(b"after")
    assert sender.send_zerocopy(payload) == 5
    sender.recv_errors()
    assert (sender.zerocopy_pending, is_held(payload)) == (0, False)


def test_an_empty_payload_sends_nothing(udp_pair):
    assert udp_pair.sender.send_zerocopy(b"") == 0
    assert udp_pair.sender.send_zerocopy(b"", segment_size=10) == 0
    assert udp_pair.sender.zerocopy_pending == 0
    assert completed(udp_pair.sender) == []


def test_to_an_address(family, closing):
    receiver = closing(fastsock.bind_udp(family.address()))
    sender = closing(Socket(family.family, socket.SOCK_DGRAM))
    assert sender.send_zerocopy(b"x" * 5000, receiver.getsockname(), segment_size=1000) == 5000
    assert drain(receiver) == [b"x" * 1000] * 5
    completed(sender)
    assert sender.zerocopy_pending == 0
    with pytest.raises(OSError, match="Destination"):
        sender.send_zerocopy(b"x")


def test_other_sockets(unix_pair, closing):
    with pytest.raises(OSError, match=r"not supported|524"):
        unix_pair().sender.send_zerocopy(b"x")
    with pytest.raises(OSError, match=r"send_zerocopy\(\) is for datagram"):
        closing(Socket()).send_zerocopy(b"x")


@pytest.mark.parametrize("call", ["send_many", "sendto_many", "send_batch", "send_segments"])
def test_the_flag_is_refused_where_the_buffer_would_not_be_held(udp_pair, call):
    sender = udp_pair.sender
    arguments = {
        "send_many": ([b"x"],),
        "sendto_many": ([b"x"], sender.getpeername()),
        "send_batch": (fastsock.SendBatch(),),
        "send_segments": (b"x", 1, None),
    }[call]
    with pytest.raises(ValueError, match=r"use send_zerocopy\(\)"):
        getattr(sender, call)(*arguments, MSG_ZEROCOPY)


# --- segments, and numbers that must stay in step with the kernel's ----------------------------------------


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize(
    ("length", "segment_size"), [(1, 1), (1000, 100), (1001, 100), (30_000, 1400), (80_000, 40_000), (20, 2)]
)
def test_segments(udp_pair, gso, length, segment_size):
    receiver, sender = udp_pair
    sender.gso = gso
    payload = bytearray(os.urandom(length))
    for _ in range(2):
        assert sender.send_zerocopy(payload, segment_size=segment_size) == length
        assert is_held(payload)
        assert drain(receiver) == [bytes(payload[at : at + segment_size]) for at in range(0, length, segment_size)]
        sender.recv_errors()
        assert (sender.zerocopy_pending, is_held(payload)) == (0, False)


def test_refused_segments_use_up_a_number(udp_pair):
    # The kernel refuses them when the buffers are attached already, and reports that one too:
    # every later buffer would be let go of one send too early.
    receiver, sender = udp_pair
    if receiver.family == socket.AF_INET:
        sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    else:
        sender.setsockopt(socket.IPPROTO_UDP, 101, 1)  # UDP_NO_CHECK6_TX
        receiver.setsockopt(socket.IPPROTO_UDP, 102, 1)  # UDP_NO_CHECK6_RX
    payloads = [bytearray(b"%d" % i * 3000) for i in range(4)]
    for i, payload in enumerate(payloads):
        sender.gso = True
        assert sender.send_zerocopy(payload, segment_size=1000) == 3000
        assert drain(receiver) == [b"%d" % i * 1000] * 3
        assert sender.zerocopy_pending == 3
        # The refused one was read within the call; the three datagrams are left.
        assert completed(sender) == [4 * i + 1, 4 * i + 2, 4 * i + 3]
        assert (sender.zerocopy_pending, is_held(payload)) == (0, False)
    assert sender.stats.gso_fallbacks == 4
    assert sender.send_zerocopy(payloads[0]) == 3000
    assert completed(sender) == [16]
    assert sender.zerocopy_pending == 0


@pytest.mark.parametrize("error", ["ENOBUFS", "EPERM", "EAGAIN", "EIO", "EMSGSIZE"])
def test_an_injected_refusal_uses_up_none(error):
    # The kernel never saw it.
    script = """
sender.setblocking(False)
sender.gso
payloads = [bytearray(bytes([i]) * 100) for i in range(4)]
for payload in payloads:
    try:
        assert sender.send_zerocopy(payload) == 100
    except OSError as refused:
        print(errno.errorcode[refused.errno], sender.zerocopy_pending)
        payload.append(0)
assert sender.zerocopy_pending == 1
print([record.ids for record in sender.recv_errors()], sender.zerocopy_pending)
assert drain(receiver) == [bytes(payload) for payload in payloads if len(payload) == 100]
"""
    traced = trace_pair(script, f"sendmsg:error={error}:when=3")
    assert traced.out.split("\n")[:2] == [f"{error} 0", "[range(2, 3)] 0"]


@needs_large_buffers
@pytest.mark.parametrize("wait", ["None", "0", "5"])
def test_a_partial_send_keeps_in_step(wait):
    script = f"""
receiver.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)        # SO_RCVBUFFORCE
sender.settimeout({wait})
sender.gso = False
payload = bytearray(b"".join(b"%04d" % i * 10 for i in range(1500)))
sent = sender.send_zerocopy(payload, segment_size=40)
assert sent == 1024 * 40, sent
def look():
    # What was refused has looked for completions, and over loopback they are there already.
    print(sender.zerocopy_pending)
    payload.append(0)
    payload.pop()
look()
try:
    sender.send_zerocopy(memoryview(payload)[sent:], segment_size=40)
except PermissionError:
    print("refused")
look()
assert sender.send_zerocopy(memoryview(payload)[sent:], segment_size=40) == len(payload) - sent
print(sender.zerocopy_pending, [(record.ids[0], record.ids[-1]) for record in sender.recv_errors()])
assert sender.zerocopy_pending == 0
assert drain(receiver) == [payload[at : at + 40] for at in range(0, len(payload), 40)]
"""
    traced = trace_pair(script, "sendmmsg:error=EPERM:when=2..3")
    assert traced.out.splitlines() == ["0", "refused", "0", "476 [(1024, 1499)]"]


# --- sockets that end or begin --------------------------------------------------------------------------------


def test_close_lets_go(udp_pair):
    payload = bytearray(1000)
    sender = fastsock.connect_udp(udp_pair.receiver.getsockname())
    sender.send_zerocopy(payload, segment_size=100)
    assert is_held(payload)
    sender.close()
    assert (sender.zerocopy_pending, is_held(payload)) == (0, False)
    with pytest.raises(OSError, match="Bad file") as caught:
        sender.send_zerocopy(payload)
    assert caught.value.errno == errno.EBADF
    assert not is_held(payload)


def test_closed_when_the_kernel_has_just_taken_it():
    # Without the GIL for 80,000 bytes; strace keeps the call from returning for a while.
    script = """
payload = bytearray(80_000)
sender.gso
thread = threading.Thread(target=sender.send_zerocopy, args=(payload,), kwargs={"segment_size": 40_000})
thread.start()
assert len(receiver.recv(65_535)) == 40_000
sender.close()
thread.join()
payload.append(0)
print(sender.zerocopy_pending)
"""
    assert trace_pair(script, "sendmmsg:delay_exit=300ms").out.split() == ["0"]


def test_a_socket_opened_again_counts_from_0(udp_pair):
    sender = fastsock.connect_udp(udp_pair.receiver.getsockname(), gso=False)
    for _ in range(3):
        sender.send_zerocopy(b"x")
    sender.close()
    sender.__init__(udp_pair.receiver.family, socket.SOCK_DGRAM)
    try:
        assert sender.gso == bool(fastsock.probe().gso)
        payload = bytearray(10)
        assert sender.send_zerocopy(payload, udp_pair.receiver.getsockname()) == 10
        assert completed(sender) == [0]
        assert not is_held(payload)
    finally:
        sender.close()


def test_the_option_may_have_been_switched_off(udp_pair):
    sender = udp_pair.sender
    sender.send_zerocopy(b"x")
    sender.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 0)
    payload = bytearray(10)
    sender.send_zerocopy(payload)
    sender.recv_errors()
    assert (sender.zerocopy_pending, is_held(payload)) == (0, False)


# --- code that runs inside the call ---------------------------------------------------------------------------


class Port:
    """The port of an address; runs something while it is read."""

    def __init__(self, port: int, action) -> None:
        self.port, self.action = port, action

    def __index__(self) -> int:
        self.action()
        return self.port


@pytest.fixture
def unconnected(closing) -> tuple:
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    return receiver, closing(Socket(socket.AF_INET, socket.SOCK_DGRAM))


def test_two_threads_at_once(unconnected, wait_for):
    receiver, sender = unconnected
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        entered.set()
        assert leave.wait(20)

    name = receiver.getsockname()
    thread = threading.Thread(target=sender.send_zerocopy, args=(b"first", (name[0], Port(name[1], stay))))
    thread.start()
    assert entered.wait(20)
    with pytest.raises(RuntimeError, match=r"another thread is in send_zerocopy\(\) on this socket"):
        sender.send_zerocopy(b"second", name)
    assert sender.sendto(b"other calls may", name) == 15
    leave.set()
    thread.join(20)
    assert sender.send_zerocopy(b"second", name) == 6
    assert drain(receiver) == [b"other calls may", b"first", b"second"]
    sender.recv_errors()
    assert sender.zerocopy_pending == 0


def test_within_itself(unconnected):
    receiver, sender = unconnected
    name = receiver.getsockname()
    errors = []

    def again() -> None:
        try:
            sender.send_zerocopy(b"inner", name)
        except RuntimeError as error:
            errors.append(error)

    assert sender.send_zerocopy(b"outer", (name[0], Port(name[1], again))) == 5
    assert len(errors) == 1
    assert drain(receiver) == [b"outer"]


@pytest.mark.parametrize("action", ["close", "recv_errors"])
def test_closed_or_drained_within_it(unconnected, action):
    receiver, sender = unconnected
    name = receiver.getsockname()
    payload = bytearray(100)
    sender.send_zerocopy(payload, name)
    address = (name[0], Port(name[1], getattr(sender, action)))
    if action == "close":
        with pytest.raises(OSError, match="Bad file"):
            sender.send_zerocopy(payload, address)
    else:
        assert sender.send_zerocopy(payload, address) == 100
        sender.recv_errors()
    assert (sender.zerocopy_pending, is_held(payload)) == (0, False)


if sys.version_info >= (3, 12):  # before, no buffer could be written in Python

    class Exporter:
        """Another buffer at every export, as an object that grows might have."""

        def __init__(self) -> None:
            self.exports = []

        def __buffer__(self, flags: int) -> memoryview:
            self.exports.append(bytearray(b"%d" % len(self.exports) * 100))
            return memoryview(self.exports[-1])

    def test_what_is_held_is_what_is_sent(udp_pair):
        receiver, sender = udp_pair
        payload = Exporter()
        assert sender.send_zerocopy(payload) == 100
        (sent,) = drain(receiver)
        assert [is_held(export) for export in payload.exports if export == sent] == [True]
        sender.recv_errors()
        assert not any(is_held(export) for export in payload.exports)
