"""Transmit timestamps: one record for each datagram, and nothing that waits for ever beside them."""

import select
import time

import pytest
from conftest import needs
from tracing import trace_pair

import fastsock
from fastsock import RecvBatch, SendBatch

pytestmark = needs("transmit_timestamps")


@pytest.fixture(params=[True, "software"])
def pair(request, family, closing):
    receiver = closing(fastsock.bind_udp(family.address()))
    receiver.settimeout(10)
    sender = closing(fastsock.connect_udp(receiver.getsockname(), transmit_timestamps=request.param))
    sender.settimeout(10)
    return receiver, sender


def batch_of(payloads) -> SendBatch:
    batch = SendBatch(len(payloads))
    for payload in payloads:
        batch.append(payload)
    return batch


def test_one_record_for_each_datagram(pair):
    receiver, sender = pair
    assert not sender.gso  # one stamp would do for many datagrams
    begin = time.time_ns()
    payloads = [b"x" * 10] * 5
    sender.send(payloads[0])
    sender.sendto(payloads[0], receiver.getsockname())
    assert sender.send_many(payloads) == 5
    assert sender.send_batch(batch_of(payloads)) == 5
    assert sender.send_segments(b"".join(payloads), 10) == 50
    end = time.time_ns()
    records = sender.recv_errors()
    assert [record.ids for record in records] == [range(i, i + 1) for i in range(17)]
    assert {(record.origin, record.errno, record.type, record.payload) for record in records} == {
        ("timestamp", 0, 0, b"")
    }
    found = [record.timestamp_ns for record in records]
    assert begin <= found[0]
    assert found == sorted(found)
    assert found[-1] <= end
    assert receiver.recv_many() == payloads[:1] * 2 + payloads * 3
    assert sender.recv_errors() == []


def test_refused_datagrams_have_none(pair):
    _, sender = pair
    sender.send(b"x")
    with pytest.raises(OSError, match="too long"):
        sender.send(bytes(70_000))
    assert sender.send_many([b"x", bytes(70_000), b"x"]) == 1
    sender.send(b"x")
    # The one that was refused has used up no number, or its own: they only ever rise.
    ids = [record.ids[0] for record in sender.recv_errors()]
    assert len(ids) == 3
    assert ids == sorted(set(ids))


def test_beside_icmp_errors(family, closing):
    with fastsock.bind_udp(family.address()) as sock:
        dead = sock.getsockname()
    sender = closing(fastsock.bind_udp(family.address(), transmit_timestamps=True, error_queue=True))
    for _ in range(3):
        assert sender.sendto(b"lost", dead) == 4
    records = sender.recv_errors()
    assert [record.ids[0] for record in records if record.origin == "timestamp"] == [0, 1, 2]
    assert [record.payload for record in records if record.origin != "timestamp"] == [b"lost"] * 3


def test_records_that_a_call_came_upon_are_kept(pair):
    _, sender = pair
    sender.send(b"x")
    with pytest.raises(OSError, match="too long"):
        sender.send(bytes(70_000))  # looks into the queue
    poll = select.poll()
    poll.register(sender.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    sender.send(b"y")
    assert [record.ids[0] for record in sender.recv_errors() if record.origin == "timestamp"][:1] == [0]


def test_more_than_4096_are_counted(closing):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sender = closing(fastsock.connect_udp(receiver.getsockname(), transmit_timestamps=True))
    for _ in range(50):
        sender.send_many([b"x"] * 100)
        with pytest.raises(OSError, match="too long"):
            sender.send(bytes(70_000))  # looks into the queue, which holds a few hundred
    records = sender.recv_errors()
    assert [record.ids[0] for record in records] == sorted({record.ids[0] for record in records})
    assert len(records) == 4096
    assert sender.stats.errors_discarded == 5000 - 4096
    sender.send(b"x")
    assert len(sender.recv_errors()) == 1


@pytest.mark.parametrize(
    "receive", [lambda sock: sock.recv(10), lambda sock: sock.recv_many(), lambda sock: sock.recv_batch(RecvBatch())]
)
def test_a_receive_waits_on_and_gets_what_comes(pair, receive):
    receiver, sender = pair
    sender.send(b"x")
    sender.settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive(sender)
    receiver.sendto(b"answer", sender.getsockname())
    sender.send(b"y")
    sender.settimeout(10)
    assert receive(sender) in (b"answer", [b"answer"], 1)
    assert [record.ids[0] for record in sender.recv_errors()] == [0, 1]


@pytest.mark.parametrize("call", ["recv(10)", "recv_many()", "recv_batch(fastsock.RecvBatch())"])
def test_a_receive_does_not_spin_beside_records(call):
    script = f"""
with fastsock.connect_udp(receiver.getsockname(), transmit_timestamps=True) as stamped:
    stamped.send_many([b"x"] * 10)
    stamped.settimeout(0.1)
    try:
        stamped.{call}
    except TimeoutError:
        print(len(stamped.recv_errors()))
"""
    traced = trace_pair(script, names="recvmmsg,recvfrom,ppoll")
    assert traced.out.strip() == "10"
    assert len(traced.calls) < 10


def test_hardware_stamps_of_a_device_that_has_none(closing):
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sender = closing(fastsock.connect_udp(receiver.getsockname(), transmit_timestamps="hardware"))
    assert sender.send_many([b"x"] * 3) == 3
    assert sender.recv_errors() == []


@pytest.mark.parametrize("value", ["soft", "", 0, None, False])
def test_other_values(value, closing):
    if value:
        with pytest.raises(ValueError, match="transmit_timestamps must be True, 'software' or 'hardware', not 'soft'"):
            fastsock.bind_udp(("127.0.0.1", 0), transmit_timestamps=value)
        return
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0), transmit_timestamps=value))
    sock.sendto(b"x", sock.getsockname())
    assert sock.recv_errors() == []
    assert sock.gso == bool(fastsock.probe().gso)


def test_every_segment_has_its_stamp_whatever_gso_is_set_to(pair):
    receiver, sender = pair
    sender.gso = True
    assert not sender.gso
    assert sender.send_segments(b"x" * 50, 10) == 50
    assert [record.ids[0] for record in sender.recv_errors()] == [0, 1, 2, 3, 4]
    received = []
    while len(received) < 5:
        received += receiver.recv_many()
    assert received == [b"x" * 10] * 5


def test_zero_copy_and_stamps_count_by_themselves(closing, family):
    receiver = closing(fastsock.bind_udp(family.address()))
    sender = closing(fastsock.connect_udp(receiver.getsockname(), transmit_timestamps=True))
    sender.send(b"x")
    payload = bytearray(b"y" * 100)
    assert sender.send_zerocopy(payload, segment_size=50) == 100
    records = sender.recv_errors()
    # Completions of neighbours are one record.
    assert [number for record in records if record.origin == "zerocopy" for number in record.ids] == [0, 1]
    assert [record.ids[0] for record in records if record.origin == "timestamp"] == [0, 1, 2]
    payload.append(0)
    assert sender.zerocopy_pending == 0
