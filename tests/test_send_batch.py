"""SendBatch: filling, the cursor, replay, peers of both families."""

import socket

import pytest
from conftest import drain

import fastsock
from fastsock import SendBatch, Socket


def filled(payloads, vlen=8, slot_size=70_000, address=None) -> SendBatch:
    batch = SendBatch(vlen, slot_size)
    for payload in payloads:
        batch.append(payload, address)
    return batch


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), ValueError),
        ((-1,), ValueError),
        ((1, 0), ValueError),
        ((1, -1), ValueError),
        ((2**31,), MemoryError),
        ((1, 2**31), MemoryError),
        ((2**62, 2**62), MemoryError),
        ((2**63,), OverflowError),
        (("1",), TypeError),
    ],
)
def test_bad_geometry(arguments, error):
    with pytest.raises(error):
        SendBatch(*arguments)


def test_filling():
    batch = SendBatch(2, 4)
    assert (batch.vlen, batch.slot_size, len(batch), batch.unsent) == (2, 4, 0, 0)
    with pytest.raises(ValueError, match="a payload of 5 bytes does not fit a slot_size of 4"):
        batch.append(b"12345")
    with pytest.raises(TypeError):
        batch.append("text")
    with pytest.raises(BufferError):
        batch.append(memoryview(b"abcd")[::2])
    assert len(batch) == 0
    batch.append(b"1234")
    batch.append(bytearray(b""))
    assert (len(batch), batch.unsent) == (2, 2)
    with pytest.raises(BufferError, match="full: vlen is 2"):
        batch.append(b"x")
    assert repr(batch) == "<fastsock.SendBatch of 2 datagrams, 2 unsent, vlen=2, slot_size=4>"
    batch.clear()
    assert (len(batch), batch.unsent) == (0, 0)
    batch.append(b"x")
    assert len(batch) == 1


def test_append_copies():
    batch, payload = SendBatch(), bytearray(b"before")
    batch.append(payload)
    payload[:] = b"after, and longer"
    assert bytes(batch.buffer[:6]) == b"before"


def test_replay_and_change_in_place(udp_pair):
    receiver, sender = udp_pair
    batch = filled([b"one", b"two"])
    for _ in range(3):
        assert sender.send_batch(batch) == 2
        assert (len(batch), batch.unsent) == (2, 0)
        assert receiver.recv_many() == [b"one", b"two"]
    batch.buffer[batch.stride : batch.stride + 3] = b"TWO"
    assert sender.send_batch(batch) == 2
    assert receiver.recv_many() == [b"one", b"TWO"]


def test_append_to_a_sent_batch_sends_the_new_ones(udp_pair):
    batch = filled([b"1", b"2"])
    assert udp_pair.sender.send_batch(batch) == 2
    batch.append(b"3")
    assert batch.unsent == 1
    assert udp_pair.sender.send_batch(batch) == 1
    assert udp_pair.receiver.recv_many() == [b"1", b"2", b"3"]


def test_empty_batch(udp_pair):
    batch = SendBatch()
    assert udp_pair.sender.send_batch(batch) == 0
    batch.skip(0)
    assert drain(udp_pair.receiver) == []
    for bad in (None, [b"x"], fastsock.RecvBatch()):
        with pytest.raises(TypeError):
            udp_pair.sender.send_batch(bad)


def test_refused_datagram_is_met_again_until_skipped(udp_pair):
    receiver, sender = udp_pair
    batch = filled([b"1", b"2", bytes(70_000), b"3"])
    assert sender.send_batch(batch) == 2
    assert batch.unsent == 2
    for _ in range(2):
        with pytest.raises(OSError, match="too long"):
            sender.send_batch(batch)
        assert batch.unsent == 2
    batch.skip()
    assert sender.send_batch(batch) == 1
    assert batch.unsent == 0
    assert receiver.recv_many() == [b"1", b"2", b"3"]


def test_skip():
    batch = filled([b"1", b"2", b"3"])
    for bad in (-1, 4, 2**62):
        with pytest.raises(ValueError, match=f"cannot skip {bad} of 3 unsent"):
            batch.skip(bad)
    batch.skip(2)
    assert (len(batch), batch.unsent) == (3, 1)
    batch.skip()
    with pytest.raises(ValueError, match="cannot skip 1 of 0"):
        batch.skip()


def test_partial_send_goes_on_where_it_stopped(unix_pair):
    receiver, sender = unix_pair()
    sender.setblocking(False)
    payloads = [b"%d" % i for i in range(2000)]
    batch = filled(payloads, 2000, 16)
    found, calls = [], 0
    while batch.unsent:
        before = batch.unsent
        assert sender.send_batch(batch) == before - batch.unsent > 0
        if batch.unsent:
            with pytest.raises(BlockingIOError):
                sender.send_batch(batch)
        found += drain(receiver)
        calls += 1
    assert calls > 1
    assert found == payloads


def test_peer_of_each_datagram(closing, family):
    receivers = [closing(fastsock.bind_udp(family.address())) for _ in range(2)]
    sender = closing(Socket(family.family, socket.SOCK_DGRAM))
    batch = SendBatch(4)
    for i in range(4):
        batch.append(b"%d" % i, receivers[i % 2].getsockname())
    for _ in range(2):
        assert sender.send_batch(batch) == 4
        assert [drain(receiver) for receiver in receivers] == [[b"0", b"2"], [b"1", b"3"]]
    # What the slots said before must not stay in the headers.
    batch.clear()
    batch.append(b"to the peer")
    sender.connect(receivers[1].getsockname())
    assert sender.send_batch(batch) == 1
    assert [drain(receiver) for receiver in receivers] == [[], [b"to the peer"]]
    batch.append(b"to another", receivers[0].getsockname())
    assert sender.send_batch(batch) == 1
    assert drain(receivers[0]) == [b"to another"]


@pytest.mark.parametrize("bad", ["127.0.0.1", ("127.0.0.1",), ("127.0.0.1", 70000), 5])
def test_bad_peer_is_an_error_of_the_send(closing, bad):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sender = closing(Socket(socket.AF_INET, socket.SOCK_DGRAM))
    batch = SendBatch()
    batch.append(b"good", receiver.getsockname())
    batch.append(b"bad", bad)
    batch.append(b"good too", receiver.getsockname())
    for _ in range(2):  # sent, and replayed
        assert sender.send_batch(batch) == 1
        for _ in range(2):
            with pytest.raises((TypeError, OverflowError)):
                sender.send_batch(batch)
            assert batch.unsent == 2
        batch.skip()
        assert sender.send_batch(batch) == 1
        assert batch.unsent == 0
        assert drain(receiver) == [b"good", b"good too"]


def test_one_batch_on_sockets_of_both_families(closing):
    # A receiver for each family on one port: a peer left in the other's form goes astray.
    v6 = closing(fastsock.bind_udp(("::", 0)))
    port = v6.getsockname()[1]
    v4 = closing(fastsock.bind_udp(("0.0.0.0", port)))
    senders = [closing(Socket(receiver.family, socket.SOCK_DGRAM)) for receiver in (v4, v6)]
    batch = SendBatch(2)
    # "" is the unspecified address of either family: to send to it is to send to this host.
    batch.append(b"1", ("", port))
    batch.append(b"2", ("", port))
    for sender, receiver in [*zip(senders, (v4, v6), strict=True)] * 2:
        assert sender.send_batch(batch) == 2
        assert drain(receiver) == [b"1", b"2"]


def test_connected_batch_on_several_sockets(closing, family):
    batch = filled([b"a", b"b"])
    for _ in range(2):
        receiver = closing(fastsock.bind_udp(family.address()))
        sender = closing(fastsock.connect_udp(receiver.getsockname()))
        assert sender.send_batch(batch) == 2
        assert drain(receiver) == [b"a", b"b"]


def test_buffer_keeps_the_memory():
    batch = filled([b"kept"])
    view = batch.buffer
    del batch
    spare = [filled([b"????"]) for _ in range(20)]
    assert bytes(view[:4]) == b"kept"
    assert len(spare) == 20
