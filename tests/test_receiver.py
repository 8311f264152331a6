"""Receiver: what it takes, when, and that it is what recv_batch would have received."""

import asyncio
import errno
import itertools
import os
import select
import selectors
import socket
import threading
import time

import anyio
import pytest
import trio
from conftest import V4, needs, needs_ipv6
from rings import DEADLINE_S, SLOTS, is_readable, numbered, send, settle, take, take_rest, threads
from test_metadata import recorded

import fastsock
from fastsock import Receiver, RecvBatch, Ring, RingBatch, Socket

SLOT = 2048
PAYLOADS = [b"", b"one", b"", bytes(range(256)) * 3, b"a" * SLOT, b"b" * (SLOT + 1), b"c" * (3 * SLOT), b"last"]


@pytest.fixture
def receiver(udp_pair, closing):
    """A receiver of the pair's, with a small ring."""
    return closing(Receiver(udp_pair.receiver, slots=SLOTS))


@pytest.fixture
def several(closing):
    """Three sockets with one receiver, and a sender for each."""
    socks = [closing(fastsock.bind_udp(V4.address())) for _ in range(3)]
    senders = [closing(fastsock.connect_udp(sock.getsockname())) for sock in socks]
    return closing(Receiver(socks, slots=SLOTS)), senders


@pytest.fixture(params=["one", "several"])
def either(request, closing):
    """A receiver of one socket or of several, and a sender to the last of them."""
    socks = [closing(fastsock.bind_udp(V4.address())) for _ in range(1 if request.param == "one" else 3)]
    made = closing(Receiver(socks[0] if request.param == "one" else socks, slots=SLOTS))
    return made, closing(fastsock.connect_udp(socks[-1].getsockname()))


# --- what is taken ----------------------------------------------------------------------------------


def everything(batches, addresses):
    """All that batches say of their datagrams, but for where they lie."""
    found = {"payloads": [], "lengths": [], "truncated": [], "addresses": []}
    for batch in batches:
        assert len(batch) == len(batch.offsets) == len(batch.lengths) == len(batch.truncated) == len(list(batch))
        assert batch.nbytes == sum(batch.lengths)
        buffer = bytes(batch.buffer)
        payloads = [buffer[at : at + size] for at, size in zip(batch.offsets, batch.lengths, strict=True)]
        assert payloads == batch.payloads() == [bytes(datagram) for datagram in batch]
        found["payloads"] += payloads
        found["lengths"] += batch.lengths.tolist()
        found["truncated"] += batch.truncated.tolist()
        assert found["truncated"][-len(batch) :] == [datagram.truncated for datagram in batch]
        if addresses:
            found["addresses"] += batch.addresses()
            assert batch.addresses() == [datagram.address for datagram in batch]
        else:
            with pytest.raises(ValueError, match="addresses=True"):
                batch.addresses()
        for name, column in recorded(batch).items():
            found.setdefault(name, []).extend(column)
    return found


@pytest.mark.parametrize("addresses", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"gro": True}, marks=needs("gro", "gso")),
        pytest.param(
            {"timestamps": True, "pktinfo": True, "ecn": True, "ttl": True},
            marks=needs("timestamps", "pktinfo", "ecn", "ttl"),
        ),
        pytest.param({"ttl": True}, marks=needs("ttl")),
        pytest.param(
            {"gro": True, "timestamps": True, "pktinfo": True, "ecn": True, "ttl": True},
            marks=needs("gro", "gso", "timestamps", "pktinfo", "ecn", "ttl"),
        ),
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_receiver_takes_what_recv_batch_receives(family, options, addresses, closing):
    joined = "gro" in options
    size = 65535 if joined else SLOT
    socks = [closing(fastsock.bind_udp(family.address(), **options)) for _ in range(2)]
    receiver = closing(Receiver(socks[0], slots=SLOTS, slot_size=size, addresses=addresses))
    sender = closing(fastsock.bind_udp(family.address()))
    if family is V4:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x2D)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x2D)
    count = 0
    for address in [sock.getsockname() for sock in socks]:
        count = len(PAYLOADS)
        for payload in PAYLOADS:
            sender.sendto(payload, address)
        if joined:
            sender.send_segments(b"d" * 1250, 100, address)
            sender.sendto(b"alone", address)
            sender.send_segments(b"e" * 3000, 1000, address)
            count += 13 + 1 + 3
    settle(receiver, count)
    batches = []
    while sum(map(len, batches)) < count:
        batches.append(receiver.take(timeout=0))
        assert batches[-1]
    socks[1].settimeout(DEADLINE_S)
    plain = RecvBatch(64, size, addresses=addresses)
    assert socks[1].recv_batch(plain) == count
    ours, theirs = everything(batches, addresses), everything([plain], addresses)
    assert ours.keys() == theirs.keys()
    stamps = ours.pop("timestamp_ns", []), theirs.pop("timestamp_ns", [])
    for column in stamps:
        assert all(abs(time.time_ns() - stamp) < 10**12 for stamp in column)
    assert ours == theirs
    assert ours["lengths"][:3] == [0, 3, 0]
    assert any(ours["truncated"]) != joined
    stats = receiver.stats
    assert (stats.truncated, stats.nbytes) == (sum(ours["truncated"]), sum(ours["lengths"]))


@needs_ipv6
@needs("dual_stack", "pktinfo", "ttl")
def test_dual_stack(closing):
    with fastsock.bind_udp(("::", 0), dualstack_ipv6=True, pktinfo=True, ttl=True) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS, addresses=True))
        port = sock.getsockname()[1]
        four, six = (closing(fastsock.connect_udp((host, port))) for host in ("127.0.0.1", "::1"))
        four.send(b"four")
        take_one = receiver.take(timeout=DEADLINE_S)
        six.send(b"six")
        take_two = receiver.take(timeout=DEADLINE_S)
        (first,), (second,) = take_one, take_two
        assert (first.address[0], first.local_address) == ("::ffff:127.0.0.1", "::ffff:127.0.0.1")
        assert (second.address[0], second.local_address) == ("::1", "::1")
        assert (first.address[1], second.address[1]) == (four.getsockname()[1], six.getsockname()[1])


@needs("gro", "gso")
def test_joined_datagrams_longer_than_a_slot_are_cut(udp_pair, closing):
    with fastsock.bind_udp(udp_pair.receiver.getsockname()[:1] + (0,), gro=True, ttl=True) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS, slot_size=100, addresses=True))
        sender = closing(fastsock.connect_udp(sock.getsockname()))
        sender.send_segments(b"a" * 250 + b"b" * 250 + b"c" * 60, 250)
        sender.send(b"d" * 101)
        sender.send(b"")
        settle(receiver, 5)
        batch = receiver.take(timeout=0)
        assert batch.payloads() == [b"a" * 100, b"b" * 100, b"c" * 60, b"d" * 100, b""]
        assert batch.truncated.tolist() == [True, True, False, True, False]
        assert set(batch.addresses()) == {sender.getsockname()}
        assert receiver.stats.truncated == 3


@pytest.mark.parametrize("joined", [False, pytest.param(True, marks=needs("gro", "gso"))])
@pytest.mark.parametrize("vlen", [1, 2, 64, 1024])
def test_order_and_contents_over_many_laps(joined, vlen, closing):
    with fastsock.bind_udp(V4.address(), gro=joined) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS, slot_size=512, vlen=vlen))
        sender = closing(fastsock.connect_udp(sock.getsockname()))
        for start in range(0, 6 * SLOTS, 60):
            payloads = numbered(60, start, size=200)
            if joined:
                sender.send_segments(b"".join(payloads), 200)
            else:
                send(sender, payloads)
            assert take(receiver, 60) == payloads
        assert receiver.stats.ring_drops == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_datagrams_with_addresses(abstract, tmp_path, closing):
    longest = str(tmp_path / "x")
    longest += "x" * (107 - len(longest))
    names = [b"\0fastsock-%d-%d" % (os.getpid(), i) for i in range(2)] if abstract else [str(tmp_path / "a"), longest]
    near = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    near.bind(names[0])
    receiver = closing(Receiver(near, slots=SLOTS, addresses=True))
    far = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    unnamed = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    other = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    other.bind(names[0] + b"other" if abstract else str(tmp_path / "other"))
    far.bind(names[1])
    for sender in (far, unnamed, far):
        sender.sendto(b"x" * 3000, names[0])
        sender.sendto(b"", other.getsockname())
    expected = [other.recvfrom(10)[1] for _ in range(3)]
    assert expected[0] == names[1]
    settle(receiver, 3)
    batch = receiver.take(timeout=0)
    assert batch.addresses() == expected
    assert [datagram.address for datagram in batch] == expected
    assert batch.lengths.tolist() == [SLOT] * 3
    assert all(batch.truncated)


def test_unix_order_under_back_pressure(unix_pair, closing):
    """AF_UNIX drops nothing: what is sent is taken, as long as the ring is not full."""
    near, far = unix_pair()
    receiver = closing(Receiver(near, slots=4096, slot_size=64))
    payloads = numbered(4000)
    sender = threading.Thread(target=send, args=(far, payloads))
    sender.start()
    assert take(receiver, 4000) == payloads
    sender.join()


# --- the batch --------------------------------------------------------------------------------------


def test_a_batch_is_a_sequence(udp_pair, receiver):
    payloads = numbered(10)
    send(udp_pair.sender, payloads)
    settle(receiver, 10)
    with receiver.take() as batch:
        assert type(batch) is RingBatch
        assert len(batch) == 10
        assert bool(batch)
        assert [bytes(batch[i]) for i in (0, 9, -1, -10)] == [payloads[i] for i in (0, 9, -1, -10)]
        assert list(map(bytes, batch[2:8:3])) == payloads[2:8:3]
        assert list(map(bytes, batch)) == payloads
        for index in (10, -11):
            with pytest.raises(IndexError):
                batch[index]
        assert (batch.slot_size, batch.stride) == (SLOT, SLOT)
        assert repr(batch) == "<fastsock.RingBatch of 10 datagrams>"
    with pytest.raises(TypeError):
        RingBatch()
    with pytest.raises(TypeError):
        Ring()


def test_nothing_is_copied(udp_pair, receiver):
    udp_pair.sender.send(b"before")
    batch = receiver.take(timeout=DEADLINE_S)
    payload = batch[0].payload
    at = batch.offsets[0]
    batch.buffer[at : at + 6] = b"behind"
    assert bytes(payload) == bytes(batch[0]) == b"behind"
    for column in (batch.offsets, batch.lengths, batch.truncated):
        assert column.readonly


def test_an_empty_batch(udp_pair, closing):
    options = {name: True for name in ("timestamps", "pktinfo", "ttl", "ecn") if getattr(fastsock.probe(), name)}
    with fastsock.bind_udp(V4.address(), **options) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS, addresses=True))
        for batch in (receiver.take(timeout=0), receiver.take(5, timeout=0.001)):
            assert not batch
            assert (len(batch), list(batch), batch.nbytes) == (0, [], 0)
            assert batch.payloads() == batch.addresses() == []
            assert batch.offsets.tolist() == batch.lengths.tolist() == batch.truncated.tolist() == []
            assert bytes(batch.buffer) == b""
            for column in recorded(batch).values():
                assert column == []
            with pytest.raises(IndexError):
                batch[0]
            batch.release()


# --- how much, and when -------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 64, 1000, 2**70])
def test_at_most_so_many(either, most):
    receiver, sender = either
    send(sender, numbered(100))
    settle(receiver, 100)
    sizes, found = [], []
    while sum(sizes) < 100:
        batch = receiver.take(most, 0)
        sizes.append(len(batch))
        found += batch.payloads()
    assert found == numbered(100)
    assert max(sizes) <= most
    assert max(sizes) >= min(most, SLOTS // 8)
    assert not receiver.take(timeout=0)


def test_take_does_not_wait_for_more(either):
    receiver, sender = either
    for payload in numbered(20):
        sender.send(payload)
        assert receiver.take(1000).payloads() == [payload]


def test_timeouts(either):
    receiver, sender = either
    assert not receiver.take(timeout=0)
    before = time.monotonic()
    assert not receiver.take(timeout=0.02)
    assert time.monotonic() >= before + 0.02
    with pytest.raises(OverflowError):
        receiver.take(timeout=1e300)
    sender.send(b"x")
    assert receiver.take(timeout=DEADLINE_S).payloads() == [b"x"]


@pytest.mark.parametrize("queued", [0, 1])
def test_arguments_of_take(either, queued):
    """They are looked at whether or not something is there."""
    receiver, sender = either
    send(sender, numbered(queued))
    settle(receiver, queued)
    for most in (0, -1):
        with pytest.raises(ValueError, match="max_datagrams"):
            receiver.take(most, 0)
    for timeout in (-1, -0.001, float("nan")):
        with pytest.raises(ValueError, match=r"Timeout|NaN"):
            receiver.take(timeout=timeout)
    for arguments in (("1",), (None, "1"), (1, 1, 1)):
        with pytest.raises(TypeError):
            receiver.take(*arguments)
    assert len(take(receiver, queued)) == queued


def test_a_waiting_take_is_woken(either):
    receiver, sender = either
    for i in range(200):
        waiting = threading.Thread(target=sender.send, args=(b"%d" % i,))
        waiting.start()
        assert receiver.take(timeout=DEADLINE_S).payloads() == [b"%d" % i]
        waiting.join()


def test_iteration_ends_after_stop(either):
    receiver, sender = either
    send(sender, numbered(200))
    settle(receiver, 200)
    receiver.stop()
    found = []
    for batch in receiver:
        assert batch
        found += batch.payloads()
    assert found == numbered(200)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(receiver)
        with pytest.raises(EOFError):
            receiver.take()
        with pytest.raises(EOFError):
            receiver.take(timeout=0)
    assert is_readable(receiver.fileno())


@pytest.mark.parametrize("group", [False, True])
def test_any_number_of_threads_may_take(group, closing):
    """Each datagram once, whoever takes it."""
    size = 3 if group else 1
    socks = [closing(fastsock.bind_udp(V4.address())) for _ in range(size)]
    receiver = closing(Receiver(socks, slots=4096, slot_size=64))
    found, failed = [], []

    def run():
        try:
            mine = [payload for batch in receiver for payload in batch.payloads()]
        except BaseException as error:
            failed.append(error)
        else:
            found.extend(mine)

    takers = [threading.Thread(target=run) for _ in range(4)]
    for taker in takers:
        taker.start()
    sender = closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    to = itertools.cycle([sock.getsockname() for sock in socks])
    sent = numbered(3000)
    for number, payload in enumerate(sent):
        sender.sendto(payload, next(to))
        if number % 50 == 0:
            settle(receiver, number + 1)
    settle(receiver, 3000)
    receiver.stop()
    for taker in takers:
        taker.join(DEADLINE_S)
        assert not taker.is_alive()
    assert failed == []
    assert sorted(found) == sent


# --- waiting for it elsewhere ---------------------------------------------------------------------------


def wait_select(fd, timeout):
    return bool(select.select([fd], [], [], timeout)[0])


def wait_epoll(fd, timeout):
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        return bool(epoll.poll(timeout))


def wait_ours(fd, timeout):
    with fastsock.Epoll() as epoll:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        return bool(epoll.poll(timeout))


def wait_selectors(fd, timeout):
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(timeout))


@pytest.mark.parametrize("wait", [wait_select, wait_epoll, wait_ours, wait_selectors])
def test_readiness(either, wait):
    receiver, sender = either
    fd = receiver.fileno()
    assert fd == receiver.fileno()
    for _ in range(3):
        assert not wait(fd, 0)
        send(sender, numbered(3))
        assert wait(fd, DEADLINE_S)
        settle(receiver, receiver.stats.taken + 3)
        assert receiver.take(1, 0).payloads() == numbered(1)
        assert wait(fd, 0)
        assert receiver.take(2, 0).payloads() == numbered(2, 1)
        assert not wait(fd, 0)
        assert not receiver.take(timeout=0)
    send(sender, numbered(3))
    receiver.stop()
    assert wait(fd, DEADLINE_S)
    assert take_rest(receiver) == numbered(3)
    assert wait(fd, 0)


def test_fileno_after_the_first_datagram(either):
    """What came before is seen, and a first take that finds nothing makes it quiet."""
    receiver, sender = either
    sender.send(b"x")
    settle(receiver, 1)
    assert is_readable(receiver.fileno())
    assert take(receiver, 1) == [b"x"]
    assert not receiver.take(timeout=0)
    assert not is_readable(receiver.fileno())


def test_asyncio_add_reader(either):
    receiver, sender = either

    async def main():
        loop = asyncio.get_running_loop()
        found, done = [], loop.create_future()

        def on_readable():
            found.extend(receiver.take(7, 0).payloads())
            if len(found) == 100 and not done.done():
                done.set_result(None)

        loop.add_reader(receiver, on_readable)
        for payload in numbered(100):
            sender.send(payload)
            await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_S):
            await done
        assert loop.remove_reader(receiver)
        return found

    assert asyncio.run(main()) == numbered(100)


def test_trio_wait_readable(either):
    receiver, sender = either

    async def main():
        found = []
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, send, sender, numbered(100))
                while len(found) < 100:
                    await trio.lowlevel.wait_readable(receiver.fileno())
                    found += receiver.take(timeout=0).payloads()
        return found

    assert trio.run(main) == numbered(100)


def test_anyio_wait_readable(either):
    receiver, sender = either

    async def main():
        sender.send(b"x")
        with anyio.fail_after(DEADLINE_S):
            await anyio.wait_readable(receiver)
            return receiver.take(timeout=0).payloads()

    assert anyio.run(main) == [b"x"]


# --- several sockets --------------------------------------------------------------------------------------


def test_several_sockets_take_turns(several):
    receiver, senders = several
    for number, sender in enumerate(senders):
        send(sender, [b"%d" % number] * 50)
    settle(receiver, 150)
    turns = [set(receiver.take(10, 0).payloads()) for _ in range(9)]
    assert all(len(turn) == 1 for turn in turns)
    for at in (0, 3, 6):
        assert set().union(*turns[at : at + 3]) == {b"0", b"1", b"2"}


def test_each_ring_is_of_one_socket(several):
    receiver, senders = several
    assert len(receiver.rings) == 3
    for number, (ring, sender) in enumerate(zip(receiver.rings, senders, strict=True)):
        assert isinstance(ring, Ring)
        sender.send(b"%d" % number)
        assert ring.take(timeout=DEADLINE_S).payloads() == [b"%d" % number]
        assert ring.stats.received == ring.stats.taken == 1
        assert not is_readable(ring.fileno())
    assert receiver.stats.received == 3
    assert not receiver.take(timeout=0)


def test_a_ring_that_is_closed_is_left_out(several):
    receiver, senders = several
    receiver.rings[0].close()
    send(senders[1], numbered(5))
    settle_count = 5
    found = []
    while len(found) < settle_count:
        found += receiver.take(timeout=DEADLINE_S).payloads()
    assert found == numbered(5)
    receiver.stop()
    with pytest.raises(EOFError):
        receiver.take()


def test_a_reuse_port_group(closing):
    socks = [closing(sock) for sock in fastsock.bind_udp_group(V4.address(), 2)]
    receiver = closing(Receiver(socks, slots=SLOTS, addresses=True))
    senders = [closing(fastsock.connect_udp(socks[0].getsockname())) for _ in range(8)]
    for sender in senders:
        sender.send(b"x")
    settle(receiver, 8)
    found = []
    while batch := receiver.take(timeout=0):
        found += batch.addresses()
    assert sorted(found) == sorted(sender.getsockname() for sender in senders)


# --- what it is made of -------------------------------------------------------------------------------------


def test_any_iterable_of_either_class(closing):
    socks = [closing(fastsock.bind_udp(V4.address())), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))]
    socks[1].bind(V4.address())
    receiver = closing(Receiver((sock for sock in socks), slots=SLOTS))
    for number, sock in enumerate(socks):
        sender = closing(fastsock.connect_udp(sock.getsockname()))
        sender.send(b"%d" % number)
        assert receiver.take(timeout=DEADLINE_S).payloads() == [b"%d" % number]


def test_the_sizes_of_a_ring(udp_pair, closing):
    for slots, size in ((1, 1), (7, 100), (SLOTS, SLOT), (1000, 1500), (100, 65535)):
        (ring,) = closing(Receiver(udp_pair.receiver, slots=slots, slot_size=size)).rings
        assert slots <= ring.slots < slots * 8 / 7 + 8
        assert ring.slot_size == size
        assert ring.slots * size <= ring.nbytes
        assert ring.stats.slots == ring.slots
        assert repr(ring).endswith(f" of {ring.slots} slots of {size} bytes>")


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"slots": -1},
        {"slot_size": 0},
        {"vlen": 0},
        {"vlen": 1025},
        {"spin_us": -1},
        {"spin_us": 1_000_001},
        {"spin_us": float("nan")},
        {"coalesce_us": -1},
        {"coalesce_us": 1_000_001},
        {"cpus": []},
        {"cpus": [0, 0]},
        {"cpus": [-1]},
    ],
    ids=str,
)
def test_arguments_out_of_range(udp_pair, options):
    with pytest.raises(ValueError, match=r"must be|CPU"):
        Receiver(udp_pair.receiver, **{"slots": SLOTS, **options})
    assert not threads()


def test_arguments_of_the_wrong_type(udp_pair):
    for options in ({"slots": "1"}, {"slot_size": 1.5}, {"vlen": 1.5}, {"spin_us": "1"}, {"cpus": 0}, {"cpus": ["0"]}):
        with pytest.raises(TypeError):
            Receiver(udp_pair.receiver, **{"slots": SLOTS, **options})
    for socks in (None, 5, [5], [udp_pair.receiver, None]):
        with pytest.raises((TypeError, AttributeError)):
            Receiver(socks, slots=SLOTS)
    assert not threads()


def test_no_socket_and_unsuitable_ones(udp_pair, closing):
    with pytest.raises(ValueError, match="needs a socket"):
        Receiver([])
    closed = Socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    stream = closing(socket.socket())
    ends = list(map(closing, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
    for bad, expected in ((closed, errno.EBADF), (stream, errno.EOPNOTSUPP), (ends[0], errno.EOPNOTSUPP)):
        for socks in (bad, [udp_pair.receiver, bad]):
            with pytest.raises(OSError, match=rf"Errno {expected}\b"):
                Receiver(socks, slots=SLOTS)
    assert not threads()


def test_a_cpu_for_each(several, closing):
    allowed = sorted(os.sched_getaffinity(0))
    socks = [closing(fastsock.bind_udp(V4.address())) for _ in range(2)]
    del several
    receiver = closing(Receiver(socks, slots=SLOTS, cpus=[allowed[0], allowed[-1]]))
    placed = {name: os.sched_getaffinity(thread) for thread, name in threads().items()}
    assert {allowed[0]} in placed.values()
    assert {allowed[-1]} in placed.values()
    assert os.sched_getaffinity(0) == set(allowed)
    assert len(receiver.rings) == 2


@pytest.mark.parametrize(
    "options", [{"spin_us": 200}, {"coalesce_us": 100}, {"spin_us": 50, "coalesce_us": 50}], ids=str
)
def test_spinning_and_coalescing_receive_the_same(options, closing):
    with fastsock.bind_udp(V4.address()) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=SLOTS, **options))
        found = []
        for start in range(0, 500, 5):
            send(sender, numbered(5, start))
            found += take(receiver, 5)
        assert found == numbered(500)
        assert not receiver.take(timeout=0.001)
        waiting = threading.Timer(0.01, sender.send, [b"late"])
        waiting.start()
        assert take(receiver, 1) == [b"late"]
        waiting.join()
        send(sender, numbered(5))
        receiver.stop()
        assert take_rest(receiver) == numbered(5)
