"""UDP GRO on sockets: whatever the kernel joined, every call speaks of datagrams."""

import contextlib
import errno
import itertools
import random
import socket
import struct
import threading

import pytest
import test_faults
from conftest import Pair, needs, needs_large_buffers

import fastsock
from fastsock import RecvBatch, Socket
from fastsock._constants import SOL_UDP, UDP_GRO

np = pytest.importorskip("numpy")
injected = test_faults.injected

OFFERED = fastsock.probe()
pytestmark = pytest.mark.skipif(not (OFFERED.gro and OFFERED.gso), reason="the kernel neither joins nor cuts datagrams")

SLOT = 65535
PAYLOAD = b"".join(bytes([65 + i]) * 100 for i in range(10)) + b"short"
PIECES = [PAYLOAD[at : at + 100] for at in range(0, len(PAYLOAD), 100)]


def join(udp_pair: Pair) -> Pair:
    udp_pair.receiver.setsockopt(SOL_UDP, UDP_GRO, 1)
    assert udp_pair.receiver.gro
    return udp_pair


@pytest.fixture
def pair(udp_pair: Pair) -> Pair:
    """A receiver with GRO, and a sender that cuts."""
    return join(udp_pair)


def recv_many(sock: Socket, vlen: int = 64) -> list[bytes]:
    return sock.recv_many(vlen)


def recvfrom_many(sock: Socket, vlen: int = 64) -> list[bytes]:
    return [payload for payload, _ in sock.recvfrom_many(vlen)]


def recv_batch(sock: Socket, vlen: int = 64) -> list[bytes]:
    batch = RecvBatch(vlen, SLOT)
    assert sock.recv_batch(batch) == len(batch)
    return batch.payloads()


def iterate(sock: Socket, vlen: int = 64) -> list[bytes]:
    batch = RecvBatch(vlen, SLOT, addresses=True)
    sock.recv_batch(batch)
    return [bytes(datagram) for datagram in batch]


every_call = pytest.mark.parametrize("call", [recv_many, recvfrom_many, recv_batch, iterate])


# --- every call alike -------------------------------------------------------------------------------


@every_call
@pytest.mark.parametrize("vlen", [1, 2, 16, 17, 64])
def test_joined_and_single_messages(pair, call, vlen):
    receiver, sender = pair
    assert sender.send(b"one") == 3
    assert sender.send_segments(PAYLOAD, 100) == len(PAYLOAD)
    assert sender.send(b"") == 0
    assert sender.send_segments(PAYLOAD[:300], 100) == 300
    assert sender.send_segments(b"alone", 100) == 5
    assert sender.send(PAYLOAD) == len(PAYLOAD)
    messages = [[b"one"], PIECES, [b""], PIECES[:3], [b"alone"], [PAYLOAD]]
    while messages:
        assert call(receiver, vlen) == list(itertools.chain(*messages[:vlen]))
        del messages[:vlen]
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        call(receiver, vlen)


@every_call
def test_what_send_many_joined(pair, call):
    payloads = [b"%04d" % i for i in range(150)]
    assert pair.sender.send_many(payloads) == 150
    got = []
    while len(got) < 150:
        got += call(pair.receiver)
    assert got == payloads


@every_call
@pytest.mark.parametrize("segment_size", [512, 1000, 1472, 8192, 65507])
def test_messages_as_large_as_they_get(pair, call, segment_size):
    payload = random.Random(segment_size).randbytes(65507)
    assert pair.sender.send_segments(payload, segment_size) == len(payload)
    got = []
    while sum(map(len, got)) < len(payload):
        got += call(pair.receiver)
    assert got == [payload[at : at + segment_size] for at in range(0, len(payload), segment_size)]


def test_more_segments_than_the_columns_had_room_for(pair):
    # The kernel joins 64, but over loopback a send of 128 arrives as it is.
    payload = np.arange(512, dtype=np.uint16).tobytes()
    batch = RecvBatch(1, SLOT)
    for _ in range(2):
        pair.sender.send_segments(payload, 2)
        stream = []
        while sum(map(len, stream)) < len(payload):
            pair.receiver.recv_batch(batch)
            assert set(batch.lengths) == {2}
            stream += batch.payloads()
        assert b"".join(stream) == payload


def test_peers_and_counts(pair, family, closing):
    receiver = pair.receiver
    other = closing(fastsock.connect_udp(receiver.getsockname()))
    batch = RecvBatch(4, SLOT, addresses=True)
    expected = []
    for sender in (pair.sender, other, pair.sender):
        sender.send_segments(PAYLOAD, 100)
        expected += [sender.getsockname()] * len(PIECES)
    assert receiver.recv_batch(batch) == len(expected)
    assert batch.addresses() == [d.address for d in batch] == expected
    for sender in (pair.sender, other):
        sender.send_segments(PAYLOAD, 100)
        assert receiver.recvfrom_many() == [(piece, sender.getsockname()) for piece in PIECES]
    assert receiver.stats.received == 5 * len(PIECES)
    assert receiver.stats.gro


@every_call
def test_on_a_connected_socket(family, closing, call):
    sender = closing(fastsock.bind_udp(family.address()))
    receiver = closing(fastsock.connect_udp(sender.getsockname(), gro=True))
    receiver.settimeout(10)
    assert receiver.gro
    assert sender.send_segments(PAYLOAD, 100, receiver.getsockname()) == len(PAYLOAD)
    assert call(receiver) == PIECES


# --- cut, peeked at, refused --------------------------------------------------------------------------


@pytest.mark.parametrize("bufsize", [1, 5, 99, 100, 101, 65535, 200_000])
@pytest.mark.parametrize("flags", [0, socket.MSG_TRUNC])
def test_bufsize_is_of_each_datagram(pair, bufsize, flags):
    for turn in range(3):
        pair.sender.send_segments(PAYLOAD, 100)
        if turn % 2:
            got = pair.receiver.recv_many(4, bufsize, flags)
        else:
            got = [payload for payload, _ in pair.receiver.recvfrom_many(4, bufsize, flags)]
        assert got == [piece[:bufsize] for piece in PIECES]


def test_msg_trunc_and_joined_datagrams(pair):
    batch = RecvBatch(4, SLOT)
    pair.sender.send_segments(PAYLOAD, 100)
    pair.receiver.recv_batch(batch, socket.MSG_TRUNC)
    assert batch.payloads() == PIECES
    assert not any(batch.truncated)


def test_peek_shows_the_first_message_only(pair):
    receiver, batch = pair.receiver, RecvBatch(4, SLOT)
    pair.sender.send_segments(PAYLOAD, 100)
    pair.sender.send(b"next")
    for _ in range(2):
        assert receiver.recv_many(flags=socket.MSG_PEEK) == PIECES
        assert receiver.recvfrom_many(9, 3, socket.MSG_PEEK) == [(p[:3], pair.sender.getsockname()) for p in PIECES]
        assert receiver.recv_batch(batch, socket.MSG_PEEK) == len(PIECES)
    assert receiver.stats.received == 0
    assert receiver.recv_many() == [*PIECES, b"next"]


@pytest.mark.parametrize(
    "call",
    [
        lambda sock: sock.recv(100),
        lambda sock: sock.recv(0),
        lambda sock: sock.recvfrom(100),
        lambda sock: sock.recv_into(bytearray(100)),
        lambda sock: sock.recvfrom_into(bytearray(100)),
    ],
    ids=["recv", "recv of nothing", "recvfrom", "recv_into", "recvfrom_into"],
)
def test_calls_that_cannot_split_are_refused(pair, call):
    pair.sender.send_segments(PAYLOAD, 100)
    with pytest.raises(OSError, match=r"UDP GRO: use recv_many\(\), recvfrom_many\(\) or recv_batch\(\)") as caught:
        call(pair.receiver)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert pair.receiver.recv_many() == PIECES
    pair.receiver.setsockopt(SOL_UDP, UDP_GRO, 0)
    assert not pair.receiver.gro
    pair.sender.send(b"x")
    call(pair.receiver)


def test_recvmsg_shows_what_the_kernel_joined(pair):
    pair.sender.send_segments(PAYLOAD, 100)
    payload, ancdata, flags, address = pair.receiver.recvmsg(SLOT, 200)
    assert (payload, flags, address) == (PAYLOAD, 0, pair.sender.getsockname())
    assert ancdata == [(SOL_UDP, UDP_GRO, struct.pack("i", 100))]
    # What recvmsg returns is what load takes.
    batch = RecvBatch(1, SLOT)
    batch.load([payload], ancdata=[ancdata])
    assert batch.payloads() == PIECES


@pytest.mark.parametrize("slot_size", [1, 2048, SLOT - 1])
def test_a_batch_too_small_is_refused_and_nothing_lost(pair, slot_size):
    small = RecvBatch(64, slot_size)
    small.load([b"old"])
    pair.sender.send_segments(PAYLOAD, 100)
    with pytest.raises(ValueError, match=rf"slot_size={slot_size}: make it with RecvBatch\(vlen, 65535\)"):
        pair.receiver.recv_batch(small)
    assert recv_batch(pair.receiver) == PIECES


def test_a_received_batch_is_no_array(pair):
    batch = RecvBatch(4, SLOT)
    pair.sender.send_segments(PAYLOAD, 100)
    pair.receiver.recv_batch(batch)
    with pytest.raises(BufferError, match="offsets and lengths"):
        np.asarray(batch)
    pair.receiver.setsockopt(SOL_UDP, UDP_GRO, 0)
    pair.sender.send(b"plain")
    pair.receiver.recv_batch(batch)
    assert np.asarray(batch)[0, :5].tobytes() == b"plain"


# --- one batch, many sockets --------------------------------------------------------------------------


@needs("timestamps")
def test_one_batch_in_turn_with_every_kind_of_socket(family, closing):
    kinds = [{}, {"gro": True}, {"timestamps": True}, {"gro": True, "timestamps": True, "pktinfo": True}]
    pairs = []
    for options in kinds:
        receiver = closing(fastsock.bind_udp(family.address(), **options))
        receiver.settimeout(10)
        pairs.append((options, receiver, closing(fastsock.connect_udp(receiver.getsockname()))))
    batch, rng = RecvBatch(16, SLOT, addresses=True), random.Random(1)
    for _ in range(40):
        options, receiver, sender = rng.choice(pairs)
        sender.send_segments(PAYLOAD, 100)
        sender.send(b"")
        assert receiver.recv_batch(batch) == len(PIECES) + 1
        assert batch.payloads() == [bytes(d) for d in batch] == [*PIECES, b""]
        assert batch.addresses() == [sender.getsockname()] * (len(PIECES) + 1)
        slots = [i * batch.stride for i in range(len(PIECES) + 1)]
        joined = [100 * i for i in range(len(PIECES))] + [batch.stride]
        assert batch.offsets.tolist() == (joined if "gro" in options else slots)
        for name in ("timestamps_ns", "interface_indexes"):
            if {"timestamps_ns": "timestamps", "interface_indexes": "pktinfo"}[name] in options:
                assert all(getattr(batch, name))
            else:
                with pytest.raises(ValueError, match="not recorded"):
                    getattr(batch, name)


# --- lists -----------------------------------------------------------------------------------------------


def copy_of(payload: bytes) -> bytes:
    return bytes(bytearray(payload))


@pytest.mark.parametrize("seed", range(6))
def test_held_payloads_never_change(udp_pair, seed):
    # As tests/test_kept_payloads.py, with messages joined and not, and GRO switched on the way.
    rng = random.Random(seed)
    receiver, sender = udp_pair
    held: list[tuple[bytes, bytes]] = []
    latest = []
    serial = 0
    for turn in range(300):
        if rng.random() < 0.05:
            receiver.setsockopt(SOL_UDP, UDP_GRO, int(not receiver.gro))
        size = rng.choice((1, 2, 255, 256, 256, 700, 1400, 1400, 1400))
        expected = []
        for _ in range(rng.randrange(1, 5)):
            serial += 1
            count = rng.choice((1, 2, 5, min(60, 20_000 // size)))
            stream = b"".join((serial * 100 + i).to_bytes(4, "big") * (size // 4 + 1) for i in range(count))
            stream = stream[: size * count - rng.choice((0, 0, size // 2))]
            expected += [stream[at : at + size] for at in range(0, len(stream), size)]
            if rng.random() < 0.7:
                assert sender.send_segments(stream, size) == len(stream)
            else:
                assert sender.send_many(expected[-count:]) == count
        got = []
        while len(got) < len(expected):
            vlen, bufsize = rng.choice((1, 2, 16, 64, 1000)), rng.choice((65535, 65535, 9000, 1 << 20))
            if rng.random() < 0.2:
                got += [payload for payload, _ in receiver.recvfrom_many(vlen, bufsize)]
            else:
                got += receiver.recv_many(vlen, bufsize)
        assert got == expected
        assert [hash(payload) for payload in got] == [hash(copy_of(payload)) for payload in got]
        if rng.random() < 0.5:
            latest = got  # held until the next turn that does so, as a loop's own name is
        if rng.random() < 0.3:
            held += [(payload, copy_of(payload)) for payload in got if rng.random() < 0.3]
        del held[: max(0, len(held) - 2000)]
        assert turn == 0 or all(payload == copy for payload, copy in held[-50:])
    assert latest
    for payload, copy in held:
        assert payload == copy
        assert hash(payload) == hash(copy)


@needs_large_buffers
@needs("drop_counter")
def test_one_list_stops_where_signals_must_be_heard(closing):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0), gro=True, rcvbuf=64 << 20))
    receiver.settimeout(10)
    sender = closing(fastsock.connect_udp(receiver.getsockname()))
    numbers = np.arange(300_000, dtype=np.uint32)
    assert sender.send_segments(numbers.tobytes(), 4) == numbers.nbytes
    assert receiver.drops == 0
    first = receiver.recv_many(1 << 40)
    # It ends with the chunk of 16 messages that reaches the bound; a message has 128 at most.
    assert 1 << 18 <= len(first) < (1 << 18) + 16 * 128
    rest = receiver.recv_many(1 << 40)
    assert b"".join(first + rest) == numbers.tobytes()
    assert {len(payload) for payload in first + rest} == {4}


# --- switched on by somebody else, or not to be had -------------------------------------------------------


@needs("timestamps", "drop_marks")
@pytest.mark.parametrize("options", [{}, {"timestamps": True}, {"ttl": True, "drop_counter": True}], ids=str)
@pytest.mark.parametrize("call", ["recv_many", "recvfrom_many", "recv_batch"])
def test_switched_on_through_a_duplicate(family, closing, options, call):
    receiver = closing(fastsock.bind_udp(family.address(), **options))
    receiver.settimeout(10)
    sender = closing(fastsock.connect_udp(receiver.getsockname()))
    batch = RecvBatch(8, SLOT)
    with socket.socket(fileno=socket.dup(receiver.fileno())) as duplicate:
        duplicate.setsockopt(SOL_UDP, UDP_GRO, 1)
    assert not receiver.gro
    # One by one is fine; joined they could not be told apart.
    sender.send(b"single")
    sender.send_segments(PAYLOAD, 100)
    with pytest.raises(OSError, match="2 messages may hold joined datagrams") as caught:
        receiver.recv_batch(batch) if call == "recv_batch" else getattr(receiver, call)()
    assert caught.value.errno == errno.EIO
    assert len(batch) == 0
    assert receiver.stats.received == 0
    assert receiver.gro
    for _ in range(2):
        sender.send_segments(PAYLOAD, 100)
        assert {"recv_many": recv_many, "recvfrom_many": recvfrom_many, "recv_batch": recv_batch}[call](
            receiver
        ) == PIECES


def test_switched_on_while_another_thread_waits(pair, wait_for):
    receiver, sender = pair
    receiver.setsockopt(SOL_UDP, UDP_GRO, 0)
    receiver.settimeout(None)
    batch, outcome = RecvBatch(8, SLOT), []

    def receive() -> None:
        try:
            outcome.append(receiver.recv_batch(batch))
        except OSError as error:
            outcome.append(error.errno)

    def waits() -> bool:
        try:
            batch.payloads()
        except RuntimeError:
            return True
        return False

    thread = threading.Thread(target=receive)
    thread.start()
    wait_for(waits)
    receiver.setsockopt(SOL_UDP, UDP_GRO, 1)
    sender.send_segments(PAYLOAD, 100)
    thread.join(10)
    assert outcome == [errno.EIO]
    sender.send_segments(PAYLOAD, 100)
    assert recv_many(receiver) == PIECES


def test_duplicates_and_adopted_descriptors_know(pair):
    receiver, sender = pair
    with receiver.dup() as copy:
        assert copy.gro
        sender.send_segments(PAYLOAD, 100)
        assert copy.recv_many() == PIECES
    with socket.socket(fileno=socket.dup(receiver.fileno())) as theirs:
        theirs.setsockopt(SOL_UDP, UDP_GRO, 1)
        with Socket(fileno=socket.dup(theirs.fileno())) as ours:
            assert ours.gro
            ours.settimeout(10)
            sender.send_segments(PAYLOAD, 100)
            assert ours.recv_many() == PIECES
            with pytest.raises(OSError, match="UDP GRO"):
                ours.recv(100)


PLAINLY = """
receiver = fastsock.bind_udp(("127.0.0.1", 0), gro=True)
receiver.settimeout(10)
sender = fastsock.connect_udp(receiver.getsockname())
sender.send_segments(b"abcdefg", 3)
batch = fastsock.RecvBatch(8, 2048)
got = []
while len(got) < 3:
    got += receiver.recv_many()
sender.send_segments(b"abcdefg", 3)
received = 0
while received < 3:
    received += receiver.recv_batch(batch)
sender.send(b"x")
print(receiver.gro, got, receiver.recv(9), receiver.stats.gro)
receiver.close(); sender.close()
"""


@pytest.mark.parametrize(("value", "on"), [("0", False), ("1", True), ("", True)])
def test_the_environment_switches_it_off(isolated, monkeypatch, value, on):
    monkeypatch.setenv("FASTSOCK_GRO", value)
    script = "import fastsock" + PLAINLY
    if on:
        script = script.replace("receiver.recv(9)", "receiver.recv_many()[0]").replace("8, 2048", "8, 65535")
    assert isolated(script).strip() == f"{on} [b'abc', b'def', b'g'] b'x' {on}"


def test_a_kernel_without_it(injected):
    out = injected("setsockopt:error=ENOPROTOOPT", "receiver.close(); sender.close()" + PLAINLY)
    assert out.strip() == "False [b'abc', b'def', b'g'] b'x' False"


def test_not_for_a_stream(closing):
    sock = closing(Socket(socket.AF_INET, socket.SOCK_STREAM))
    with contextlib.suppress(OSError):
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    assert not sock.gro
