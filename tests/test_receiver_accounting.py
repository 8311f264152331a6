"""What a receiver counts, what it holds, and what it gives back: every datagram is somewhere, and memory is fixed."""

import contextlib
import gc
import itertools
import os
import random
import re
import socket
import threading
import zlib
from pathlib import Path

import pytest
from conftest import NO_DROPS, V4, drain, needs, needs_drop_counter
from rings import DEADLINE_S, SLOTS, arrived, deliver, mappings, numbered, send, settle, take, take_rest

import fastsock
from fastsock import Receiver, _constants

BLOCK = SLOTS // 8
CHUNK = 100
"""Datagrams that every receive buffer has room for."""
joined = pytest.mark.parametrize("joined", [False, pytest.param(True, marks=needs("gro", "gso"))])


@pytest.fixture
def pair(udp_pair, closing):
    """A receiver with a small ring, and a sender."""
    return closing(Receiver(udp_pair.receiver, slots=SLOTS)), udp_pair.sender


def fill(receiver, sender, size=8):
    """Send until the ring is full; returns how many datagrams found room."""
    before = receiver.stats
    while deliver(receiver, sender, numbered(BLOCK, size=size)).ring_drops == before.ring_drops:
        pass
    return receiver.stats.received - before.received


def empty(receiver):
    while receiver.take(timeout=0):
        pass


def room(receiver, sender, size=8):
    """How many datagrams there is room for, where nothing waits to be taken."""
    assert not receiver.take(timeout=0)
    found = fill(receiver, sender, size)
    empty(receiver)
    return found


# --- every datagram is counted once -------------------------------------------------------------------


@joined
@pytest.mark.parametrize("size", [8, 2048, 3000])
def test_a_full_ring(joined, size, closing):
    with fastsock.bind_udp(V4.address(), gro=joined) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=SLOTS))
        for start in itertools.count(step=20):
            stats = deliver(receiver, sender, numbered(20, start, size=size))
            if stats.ring_drops >= 2 * SLOTS:
                break
        assert stats.received + stats.ring_drops == start + 20
        assert stats.kernel_drops == NO_DROPS
        if joined:
            assert stats.received * max(size, 2048) >= SLOTS * 2048
        else:
            assert stats.received == stats.slots == SLOTS
        assert stats.high_water == stats.slots == SLOTS
        kept = min(size, 2048)
        assert stats.nbytes == stats.received * kept
        assert stats.truncated == (stats.received if size > kept else 0)
        # The oldest are there, and what comes finds room again.
        assert take(receiver, stats.received) == [payload[:kept] for payload in numbered(stats.received, size=size)]
        assert not receiver.take(timeout=0)
        deliver(receiver, sender, numbered(20, size=size))
        assert take(receiver, 20) == [payload[:kept] for payload in numbered(20, size=size)]
        assert receiver.stats.ring_drops == stats.ring_drops
        assert receiver.stats.taken == stats.received + 20


@needs("gro", "gso")
def test_a_full_ring_counts_the_joined_datagrams(closing):
    with fastsock.bind_udp(V4.address(), gro=True) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=16, slot_size=512))
        sent = 0
        sizes = itertools.cycle([(1050, 100, 11), (100, 100, 1), (0, 0, 1), (5000, 1000, 5), (640, 10, 64)])
        while receiver.stats.ring_drops < 500:
            total, segment, count = next(sizes)
            sender.send_segments(bytes(total), segment) if segment else sender.send(b"")
            sent += count
            stats = settle(receiver, sent)
        assert stats.received >= 16
        assert stats.high_water == stats.slots == 16
        receiver.stop()
        assert len(take_rest(receiver)) == stats.received


@needs_drop_counter
def test_what_the_kernel_drops(closing):
    """The thread sleeps for a second after the first datagram; the buffer has room for a few."""
    with fastsock.bind_udp(V4.address()) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send(sender, numbered(100))
        before = sock.drops
        assert before
        receiver = closing(Receiver(sock, slots=SLOTS, coalesce_us=1_000_000))
        stats = settle(receiver, 100 - before)
        assert stats.kernel_drops == 0
        send(sender, numbered(300))
        assert receiver.stats.kernel_drops == sock.drops - before > 0
        receiver.stop()
        stats = settle(receiver, 400 - before)
        assert stats.kernel_drops == sock.drops - before
        assert len(take_rest(receiver)) == stats.received


@joined
def test_a_flood(joined, closing):
    """Small rings, small buffers, and a consumer that lags: nothing is lost uncounted."""
    socks = [closing(fastsock.bind_udp(V4.address(), gro=joined)) for _ in range(3)]
    receiver = closing(Receiver(socks, slots=64, slot_size=256))
    sent, taken = [0] * len(socks), [0] * len(socks)

    def flood(number):
        with fastsock.connect_udp(socks[number].getsockname()) as sender:
            for _ in range(200):
                sent[number] += sender.send_many([b"%d" % number * (10 * size) for size in range(1, 30)])

    senders = [threading.Thread(target=flood, args=(number,)) for number in range(len(socks))]
    for sender in senders:
        sender.start()

    def count(batch):
        payloads = batch.payloads()
        if payloads:
            kinds = {payload[:1] for payload in payloads}
            assert len(kinds) == 1
            taken[int(kinds.pop())] += len(payloads)

    while any(sender.is_alive() for sender in senders):
        with receiver.take(5, timeout=0.001) as batch:
            count(batch)
    for sender in senders:
        sender.join()
    receiver.stop()
    for batch in receiver:
        count(batch)
    assert min(sent) == 200 * 29
    for sock, ring, number_sent, number_taken in zip(socks, receiver.rings, sent, taken, strict=True):
        stats = ring.stats
        assert stats.taken == stats.received == number_taken
        assert stats.kernel_drops == sock.drops
        assert stats.received + stats.ring_drops + sock.drops == number_sent
        assert stats.high_water <= stats.slots


@needs_drop_counter
def test_stop_in_the_midst_of_a_flood(closing):
    """What came too late for the receiver is still at the socket."""
    with fastsock.bind_udp(V4.address()) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS, slot_size=64))
        ended = threading.Event()
        sent = []

        def flood():
            with fastsock.connect_udp(sock.getsockname()) as sender:
                while not ended.is_set():
                    sent.append(sender.send_many(numbered(64)))

        sender = threading.Thread(target=flood)
        sender.start()
        while receiver.stats.received < SLOTS:
            receiver.take(timeout=DEADLINE_S)
        receiver.stop()
        stopped = receiver.stats
        ended.set()
        sender.join()
        assert receiver.stats == stopped
        left = len(drain(sock))
        assert len(take_rest(receiver)) == stopped.received - stopped.taken
        assert stopped.received + stopped.ring_drops + sock.drops + left == sum(sent)


def test_unix_datagrams(unix_pair, closing):
    near, far = unix_pair()
    receiver = closing(Receiver(near, slots=SLOTS))
    send(far, itertools.islice(itertools.cycle([b"", b"x", b"y" * 3000]), 3 * SLOTS))
    stats = settle(receiver, 3 * SLOTS)
    assert stats.received == stats.slots
    assert stats.truncated == stats.received // 3
    assert stats.kernel_drops in (0, None)


# --- the figures ------------------------------------------------------------------------------------------


def test_figures_of_receives(udp_pair, closing):
    send(udp_pair.sender, numbered(50))
    receiver = closing(Receiver(udp_pair.receiver, slots=SLOTS, vlen=20))
    stats = settle(receiver, 50)
    # 20, 12 to the end of the block, 18
    assert (stats.batches, stats.largest_batch) == (3, 20)
    assert stats.mean_batch == 50 / 3
    assert (stats.nbytes, stats.taken, stats.truncated, stats.errors, stats.last_error) == (400, 0, 0, 0, 0)
    assert closing(Receiver(udp_pair.receiver, slots=SLOTS)).stats.mean_batch == 0


def test_high_water(pair):
    receiver, sender = pair
    for count in (10, 30, 27):
        deliver(receiver, sender, numbered(count))
    assert receiver.stats.high_water == 67
    take(receiver, 67)
    assert deliver(receiver, sender, numbered(20)).high_water == 67
    # A block that somebody still looks at counts whole.
    held = [receiver.take(1, 0)]
    for _ in range(3):
        empty(receiver)
        stats = deliver(receiver, sender, numbered(BLOCK))
        held.append(receiver.take(1, 0))
    assert stats.high_water > 67
    del held
    fill(receiver, sender)
    assert receiver.stats.high_water == SLOTS


def test_the_sum_of_several(closing):
    socks = [closing(fastsock.bind_udp(V4.address())) for _ in range(2)]
    for sock, count in zip(socks, (5, 30), strict=True):
        sender = closing(fastsock.connect_udp(sock.getsockname()))
        send(sender, numbered(count))
    receiver = closing(Receiver(socks, slots=SLOTS))
    settle(receiver, 35)
    take(receiver, 35)
    one, other = (ring.stats for ring in receiver.rings)
    both = receiver.stats
    assert (one.received, other.received) == (5, 30)
    assert both.largest_batch == max(one.largest_batch, other.largest_batch) == 30
    for name in set(both._fields) - {"largest_batch", "last_error", "kernel_drops"}:
        assert getattr(both, name) == getattr(one, name) + getattr(other, name), name
    assert both.kernel_drops == NO_DROPS
    assert both.mean_batch == both.received / both.batches


# --- what is held is not overwritten ------------------------------------------------------------------------


@joined
@pytest.mark.parametrize("seed", range(4))
def test_held_batches_stay_as_they_are(joined, seed, closing):
    """Batches are taken, held and dropped at random, while more comes than there is room for."""
    chance = random.Random(seed)
    with fastsock.bind_udp(V4.address(), gro=joined) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=64, slot_size=512, addresses=True))
        whole = room(receiver, sender, size=512)
        assert whole >= 64
        held = []
        sent = 0
        taken = []
        before = arrived(receiver)
        for _ in range(300):
            payloads = numbered(chance.randrange(12), sent, size=8 * chance.randrange(1, 65))
            sent += len(payloads)
            if joined and payloads:
                sender.send_segments(b"".join(payloads), len(payloads[0]))
            else:
                send(sender, payloads)
            settle(receiver, before + sent)
            if chance.random() < 0.7 and (batch := receiver.take(chance.choice([None, 1, 2, 5, 30]), 0)):
                found = batch.payloads()
                taken += [int.from_bytes(payload[:8], "big") for payload in found]
                held.append((batch, found))
            while held and (chance.random() < 0.3 or len(held) > 20):
                batch, found = held.pop(chance.randrange(len(held)))
                if chance.random() < 0.5:
                    batch.release()
                del batch, found
            for batch, found in held:
                assert batch.payloads() == found
                assert set(batch.addresses()) == {sender.getsockname()}
        assert taken == sorted(set(taken))
        assert receiver.stats.taken == whole + len(taken)
        assert receiver.stats.ring_drops > before - whole
        # Everything comes back, in whatever order it was let go.
        chance.shuffle(held)
        while held:
            held.pop()
        batch = found = None
        empty(receiver)
        assert room(receiver, sender, size=512) >= 64 - 8
        assert room(receiver, sender, size=512) == whole


def test_a_batch_that_is_read_during_a_flood(closing):
    """Held across many laps of everything else."""
    with fastsock.bind_udp(V4.address()) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=SLOTS, slot_size=256))
        deliver(receiver, sender, numbered(10, size=256))
        batch = receiver.take(timeout=0)
        checksum = zlib.crc32(b"".join(batch.payloads()))
        for lap in range(20):
            deliver(receiver, sender, [bytes([lap]) * 256] * CHUNK)
            take(receiver, CHUNK)
            assert zlib.crc32(b"".join(batch.payloads())) == checksum
        assert receiver.stats.ring_drops == 0


# --- slots come back ----------------------------------------------------------------------------------------


VIEWS = {
    "batch": lambda batch: batch,
    "Datagram": lambda batch: batch[0],
    "payload": lambda batch: batch[0].payload,
    "memoryview": lambda batch: memoryview(batch[0])[1:],
    "buffer": lambda batch: batch.buffer,
    "offsets": lambda batch: batch.offsets,
    "lengths": lambda batch: batch.lengths[:1],
    "truncated": lambda batch: batch.truncated,
    "iterator": lambda batch: (iterator := iter(batch), next(iterator)),
    "slice": lambda batch: batch[:],
    "numpy": lambda batch: pytest.importorskip("numpy").asarray(batch.lengths),
}


@pytest.mark.parametrize("name", VIEWS)
def test_slots_come_back_when_the_last_view_goes(name, pair):
    receiver, sender = pair
    assert room(receiver, sender) == SLOTS
    sender.send(b"datagram")
    batch = receiver.take(timeout=DEADLINE_S)
    view = VIEWS[name](batch)
    if name not in ("batch", "iterator"):
        batch.release()
    del batch
    # The rest of its block is filled once more.
    assert room(receiver, sender) == SLOTS - 1
    assert room(receiver, sender) == SLOTS - BLOCK
    if name in ("Datagram", "payload"):
        assert bytes(view) == b"datagram"
    del view
    assert room(receiver, sender) == SLOTS


def test_release(pair):
    receiver, sender = pair
    deliver(receiver, sender, numbered(3))
    batch = receiver.take()
    assert room(receiver, sender) == SLOTS - 3
    datagram, lengths = batch[1], batch.lengths
    for _ in range(2):
        batch.release()
        assert not batch
        assert len(batch) == batch.nbytes == 0
        assert list(batch) == []
        assert repr(batch) == "<fastsock.RingBatch of 0 datagrams, released>"
        for use in (
            lambda: batch.offsets, lambda: batch.lengths, lambda: batch.truncated, lambda: batch.buffer,
            batch.payloads,
        ):  # fmt: skip
            with pytest.raises(ValueError, match="released"):
                use()
        with pytest.raises(IndexError):
            batch[0]
    # Views that were taken before keep their memory.
    assert room(receiver, sender) == SLOTS - BLOCK
    assert bytes(datagram) == numbered(1, 1)[0]
    assert lengths.tolist() == [8, 8, 8]
    del datagram, lengths
    assert room(receiver, sender) == SLOTS


def test_a_with_block_releases(pair):
    receiver, sender = pair
    assert room(receiver, sender) == SLOTS
    deliver(receiver, sender, numbered(3))
    with contextlib.suppress(ZeroDivisionError), receiver.take() as batch:
        assert len(batch) == 3
        raise ZeroDivisionError
    assert not batch
    assert room(receiver, sender) == SLOTS - 3
    assert room(receiver, sender) == SLOTS


def test_parts_of_one_block_come_back_in_any_order(pair):
    receiver, sender = pair
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        assert room(receiver, sender) == SLOTS
        deliver(receiver, sender, numbered(4))
        held = {number: receiver.take(1, 0) for number in range(3)}
        assert receiver.take(timeout=0)
        assert room(receiver, sender) == SLOTS - 4
        for number in order:
            assert room(receiver, sender) == SLOTS - BLOCK
            assert held.pop(number).payloads() == numbered(1, number)


def test_a_batch_in_a_garbage_cycle(pair):
    receiver, sender = pair
    assert room(receiver, sender) == SLOTS
    sender.send(b"x")
    cycle = [receiver.take(timeout=DEADLINE_S)]
    cycle.append(cycle)
    assert room(receiver, sender) == SLOTS - 1
    del cycle
    gc.collect()
    assert room(receiver, sender) == SLOTS


def test_slots_that_come_back_on_other_threads(pair):
    receiver, sender = pair
    for _ in range(10):
        deliver(receiver, sender, numbered(BLOCK))
        held = [receiver.take(1, 0) for _ in range(BLOCK)]
        letting_go = [threading.Thread(target=held[i::4].clear) for i in range(4)]
        releasing = [threading.Thread(target=lambda mine=held[i::4]: [one.release() for one in mine]) for i in range(4)]
        del held
        for thread in letting_go + releasing:
            thread.start()
        for thread in letting_go + releasing:
            thread.join()
        del letting_go, releasing
    assert room(receiver, sender) >= SLOTS - BLOCK
    assert room(receiver, sender) == SLOTS


def test_batches_outlive_the_receiver(pair):
    receiver, sender = pair
    before = mappings()
    deliver(receiver, sender, numbered(10))
    batch, other = receiver.take(5), receiver.take()
    datagram, column = batch[0], other.lengths
    receiver.close()
    assert mappings() == before
    assert batch.payloads() + other.payloads() == numbered(10)
    del batch, other
    assert bytes(datagram) == numbered(1)[0]
    assert column.tolist() == [8] * 5
    del datagram
    assert mappings() == before
    del column
    assert mappings() == before - 1


# --- memory ---------------------------------------------------------------------------------------------------


def ring_memory():
    """Resident and proportional bytes of all rings that are mapped here."""
    text = Path("/proc/self/smaps").read_text()
    rings = [part for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text) if "memfd:fastsock ring" in part]
    return [
        sum(int(re.search(rf"^{field}: +(\d+) kB", part, re.MULTILINE)[1]) for part in rings) << 10
        for field in ("Rss", "Pss", "Size")
    ]


@needs("gro", "gso")
def test_memory_is_fixed(closing):
    """All of it is there from the start, and none is added by a million datagrams, taken, held or dropped."""
    with fastsock.bind_udp(V4.address(), gro=True) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=SLOTS, addresses=True))
        payload = bytes(64 * 50)

        def flood(sends):
            for _ in range(sends):
                sender.send_segments(payload, 50)
                with receiver.take(timeout=0) as batch:
                    batch.addresses()

        flood(200)
        nbytes = receiver.rings[0].nbytes
        memory, fds, size = ring_memory(), len(os.listdir("/proc/self/fd")), nbytes
        assert memory == [size] * 3
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        flood(16_000)
        stats = receiver.stats
        assert stats.received + stats.ring_drops + 64 * (stats.kernel_drops or 0) >= 1_000_000
        held = receiver.take(timeout=0)
        flood(200)
        assert ring_memory() == memory
        assert len(os.listdir("/proc/self/fd")) == fds
        grown = int(Path("/proc/self/statm").read_text().split()[1]) - resident
        # The sanitizer keeps freed memory in quarantine.
        assert grown * os.sysconf("SC_PAGE_SIZE") < (1 << 30 if "FASTSOCK_SANITIZED" in os.environ else 1 << 20)
        del held


@needs_drop_counter
@pytest.mark.parametrize("vlen", [1, 64])
def test_stop_receives_all_that_is_queued(closing, vlen):
    count = 6000
    sock = closing(fastsock.bind_udp((V4.host, 0)))
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _constants.SO_RCVBUFFORCE, 8 << 20)
    sender = closing(fastsock.connect_udp(sock.getsockname()))
    for _ in range(count // 100):
        sender.send_many([b"queued"] * 100)
    with fastsock.Receiver(sock, slots=256, vlen=vlen) as receiver:
        receiver.stop()
        stats = receiver.stats
        assert stats.received + stats.ring_drops + sock.drops == count
