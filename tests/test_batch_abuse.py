"""What a RecvBatch must survive: threads, fork, closing, garbage, and views that outlive everything."""

import ctypes
import gc
import os
import socket
import struct
import sys

import pytest
from conftest import needs

import fastsock
from fastsock import RecvBatch
from fastsock import _constants as k

SANITIZED = "FASTSOCK_SANITIZED" in os.environ
SLOT = 65535
PyBUF_WRITABLE = 1

needs_joining = pytest.mark.skipif(
    not (fastsock.probe().gro and fastsock.probe().gso), reason="the kernel neither joins nor cuts datagrams"
)


def joined(segment_size: int) -> list[tuple[int, int, bytes]]:
    return [(k.SOL_UDP, k.UDP_GRO, struct.pack("i", segment_size))]


COLUMNS = ["offsets", "lengths", "truncated"]


# --- columns are for reading ------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_read_only(name):
    # The library reads its own memory by them: an offset of somebody else's making was a crash.
    batch = RecvBatch(4, 64)
    batch.load([b"abc"])
    column = getattr(batch, name)
    assert column.readonly
    with pytest.raises(TypeError, match="read-only"):
        column[0] = 1
    with pytest.raises(BufferError, match="read-only"):
        ctypes.pythonapi.PyObject_GetBuffer(
            ctypes.py_object(column.obj), ctypes.create_string_buffer(256), PyBUF_WRITABLE
        )
    assert bytes(batch[0]) == b"abc"


# --- memory that outlives its owner, and its own replacement -----------------------------------------


def test_views_from_before_every_growth_stay_readable():
    batch = RecvBatch(2, SLOT, addresses=True)
    held, size = [], 1
    while size <= SLOT:
        payload = bytes([size.bit_length()]) * size
        batch.load([(payload, ("10.0.0.1", 1))] * 2, ancdata=[joined(1)] * 2)
        held.append((size, batch.offsets, batch.lengths, batch.truncated, batch[-1], batch[0].payload))
        size *= 3
    stride = batch.stride
    del batch
    gc.collect()
    spare = [bytearray(1 << 20) for _ in range(8)]  # whatever was freed is written over
    for size, offsets, lengths, truncated, last, first in held:
        # Of this receive, or of a later one that fitted into the same block.
        assert offsets[0] == 0
        assert offsets[-1] in (2 * size - 1, stride + size - 1)
        assert set(lengths) == {1}
        assert set(truncated) == {False}
        assert last.address == ("10.0.0.1", 1)
        assert len(last) == len(bytes(first)) == len(bytes(last)) == 1
    del spare


@needs("timestamps")
def test_columns_and_datagrams_outlive_batch_and_socket(family):
    with fastsock.bind_udp(family.address(), gro=True, timestamps=True, pktinfo=True) as receiver:
        receiver.settimeout(10)
        with fastsock.connect_udp(receiver.getsockname()) as sender:
            sender.send_segments(b"abcdefgh", 3)
            batch = RecvBatch(8, SLOT)
            count = 0
            while count < 3:
                count += receiver.recv_batch(batch)
    columns = (batch.offsets, batch.lengths, batch.timestamps_ns, batch.interface_indexes, batch.buffer)
    datagram = batch[-1]
    del batch, receiver, sender
    gc.collect()
    spare = [RecvBatch(8, SLOT) for _ in range(4)]
    assert columns[1][-1] == len(datagram) == 2
    assert columns[2][-1] == datagram.timestamp_ns
    assert columns[3][-1] == datagram.interface_index
    assert bytes(datagram) == bytes(columns[4][columns[0][-1] :][:2]) == b"gh"
    assert datagram.local_address == family.host
    del spare


@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps freed memory in quarantine")
def test_a_batch_that_changes_hands_for_ever_does_not_grow(isolated):
    isolated(f"""
import os, struct
import fastsock
def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
items = [
    [({k.SOL_UDP}, {k.UDP_GRO}, struct.pack("i", 1))],
    [],
    [({socket.SOL_SOCKET}, {k.SO_TIMESTAMPNS}, bytes(16))],
    [(0, {k.IP_PKTINFO}, bytes(12)), (0, 1, b"x")],
    [({socket.SOL_SOCKET}, {k.SO_RXQ_OVFL}, bytes(4)), ({k.SOL_UDP}, {k.UDP_GRO}, struct.pack("i", 2))],
]
batch = fastsock.RecvBatch(4, 65535)
def turn(i):
    batch.load([bytes(30000)] * 4, ancdata=[items[i % len(items)]] * 4)
    batch.offsets, batch.lengths, batch[-1]
for i in range(50):
    turn(i)
before = rss()
for i in range(3000):
    turn(i)
assert rss() - before < 4 << 20, rss() - before
""")


if sys.version_info >= (3, 12):  # before, no finalizer in Python ran at that point

    @pytest.mark.parametrize(
        "read",
        [
            "batch.lengths.tolist()",
            "batch.timestamps_ns.tolist()",
            "batch.local_addresses()",
            "[bytes(one) for one in batch]",
            "datagram.local_address",
            "datagram.timestamp_ns",
            "bytes(datagram)",
        ],
    )
    def test_garbage_cycles_with_columns_may_be_read_while_they_are_taken_apart(isolated, read):
        isolated(f"""
import gc, struct
import fastsock
class Cycle(tuple):
    def __buffer__(self, flags):
        return memoryview(b"x")
    def __release_buffer__(self, view):
        batch, datagram = self[:2]
        {read}
def make():
    batch = fastsock.RecvBatch(4, 1 << 20, addresses=True)
    items = [({k.SOL_UDP}, {k.UDP_GRO}, struct.pack("i", 1)), ({socket.SOL_SOCKET}, {k.SO_TIMESTAMPNS}, bytes(16)),
             (0, {k.IP_PKTINFO}, bytes(12))]
    batch.load([(b"hello", ("127.0.0.1", 5))] * 2, ancdata=[items] * 2)
    offsets = batch.offsets
    batch.load([(b"hello" * 1000, ("127.0.0.1", 5))] * 2, ancdata=[items] * 2)
    links = []
    cycle = Cycle((batch, batch[-1], offsets, links))
    links += [cycle, memoryview(cycle)]
gc.disable()
make()
gc.collect()
""")


# --- threads ---------------------------------------------------------------------------------------------

TRAFFIC = """
import os, signal, socket, sys, threading, time
import fastsock
receiver = fastsock.bind_udp(("127.0.0.1", 0), gro=True, timestamps=True)
receiver.settimeout(0.05)
plain = fastsock.bind_udp(("127.0.0.1", 0), pktinfo=True)
plain.settimeout(0.05)
sender = fastsock.connect_udp(receiver.getsockname())
other = fastsock.connect_udp(plain.getsockname())
peers = (receiver, plain, sender, other)
def done():
    for sock in peers:
        sock.close()
"""


@needs_joining
@needs("timestamps")
def test_two_threads_and_one_batch(isolated):
    out = isolated(
        TRAFFIC
        + """
total, got, refused, busy = 400, [0], [0], threading.Event()
batch = fastsock.RecvBatch(64, 65535)
def receive():
    while got[0] < total * 10 and time.monotonic() < deadline:
        try:
            count = receiver.recv_batch(batch)
        except RuntimeError as error:
            assert str(error) == "this RecvBatch is in use by another thread"
            refused[0] += 1
            busy.set()
            continue
        except TimeoutError:
            continue
        with lock:
            got[0] += count
lock, deadline = threading.Lock(), time.monotonic() + 30
threads = [threading.Thread(target=receive) for _ in range(2)]
for thread in threads:
    thread.start()
assert busy.wait(20)                    # one waits in the kernel, and the other is told so
for i in range(total):
    while got[0] < (i - 20) * 10 and time.monotonic() < deadline:
        os.sched_yield()                # never more than the buffer holds
    sender.send_segments(bytes(1000), 100)
for thread in threads:
    thread.join()
print(got[0], refused[0] > 0, receiver.drops)
done()
"""
    )
    assert out.split() == ["4000", "True", "0"]


@needs_joining
@needs("timestamps")
def test_readers_beside_a_receive_that_changes_everything(isolated):
    # Sockets with and without GRO in turn, so that offsets, columns and their number all change.
    isolated(
        TRAFFIC
        + """
batch = fastsock.RecvBatch(64, 65535, addresses=True)
stop = threading.Event()
failures = []
def read():
    try:
        while not stop.is_set():
            for datagram in batch:
                assert len(bytes(datagram)) == len(datagram) <= 65535
            for datagram in batch[::-1]:
                datagram.address, datagram.truncated, datagram.payload.nbytes
            for name in ("offsets", "lengths", "truncated", "timestamps_ns", "interface_indexes"):
                try:
                    getattr(batch, name).tolist()
                except ValueError:
                    pass                # not of this receive
            batch.nbytes, len(batch), repr(batch)
            for call in (batch.payloads, batch.addresses, batch.local_addresses):
                try:
                    call()
                except (RuntimeError, ValueError):
                    pass
            try:
                batch[len(batch) - 1]
            except IndexError:
                pass
    except BaseException as error:
        failures.append(error)
        raise
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads:
    thread.start()
for i in range(150):
    if i % 2:
        sender.send_segments(bytes(20_000), 1 + 97 * i % 400)
        assert receiver.recv_batch(batch) > 1
    else:
        other.send(bytes(i * 100))
        assert plain.recv_batch(batch) == 1
stop.set()
for thread in threads:
    thread.join()
assert not failures, failures
done()
"""
    )


@needs_joining
@pytest.mark.parametrize("call", ["recv_batch(batch)", "recv_many()"])
@needs("timestamps")
def test_closed_by_another_thread_while_it_waits(isolated, call):
    out = isolated(
        TRAFFIC
        + f"""
batch = fastsock.RecvBatch(64, 65535)
outcome = []
def receive():
    try:
        receiver.{call}
    except OSError as error:
        outcome.append(error.errno if error.errno else type(error).__name__)
receiver.settimeout(0.3)
thread = threading.Thread(target=receive)
thread.start()
receiver.close()
thread.join()
assert outcome in ([9], ["TimeoutError"]), outcome
assert batch.payloads() == []
plain.settimeout(20)
other.send(b"x")
assert plain.recv_batch(batch) == 1
print("ok")
done()
"""
    )
    assert out.split() == ["ok"]


# --- signals and fork --------------------------------------------------------------------------------------


@needs_joining
@pytest.mark.parametrize("vlen", [4, 64])
@needs("timestamps")
def test_a_storm_of_signals_loses_no_joined_datagram(isolated, vlen):
    # Above 16 messages the call starts without the GIL, below it waits without.
    out = isolated(
        TRAFFIC
        + f"""
alarms, total, seen = 0, 300, []
def handler(*_):
    global alarms
    alarms += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
receiver.settimeout(None)
batch = fastsock.RecvBatch({vlen}, 65535)
def send():
    for i in range(total):
        while len(seen) < (i - 10) * 10:
            os.sched_yield()
        sender.send_segments(b"".join((i * 10 + j).to_bytes(4, "big") * 25 for j in range(10)), 100)
thread = threading.Thread(target=send)
thread.start()
while len(seen) < total * 10:
    receiver.recv_batch(batch)
    seen += [int.from_bytes(payload[:4], "big") for payload in batch.payloads()]
    assert receiver.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
signal.setitimer(signal.ITIMER_REAL, 0)
thread.join()
assert seen == list(range(total * 10))
print(alarms > 0, receiver.drops)
done()
"""
    )
    assert out.split() == ["True", "0"]


@needs_joining
@needs("timestamps")
def test_a_child_keeps_what_was_received_before_the_fork(isolated):
    out = isolated(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)"
        + TRAFFIC
        + """
receiver.settimeout(20)
batch = fastsock.RecvBatch(8, 65535, addresses=True)
sender.send_segments(b"abcdefgh", 3)
assert receiver.recv_batch(batch) == 3
offsets, last = batch.offsets, batch[-1]
ready, go = os.pipe()
child = os.fork()
if child == 0:
    os.read(ready, 1)                   # the parent has used its own by now
    assert batch.payloads() == [b"abc", b"def", b"gh"] and bytes(last) == b"gh"
    assert offsets.tolist() == [0, 3, 6] and last.address == sender.getsockname()
    batch.load([(b"child", ("127.0.0.1", 1))])
    os._exit(0)
sender.send_segments(b"ABCDEFGHIJ", 2)
assert receiver.recv_batch(batch) == 5
os.write(go, b"x")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert batch.payloads() == [b"AB", b"CD", b"EF", b"GH", b"IJ"]
print("ok")
done()
"""
    )
    assert out.split() == ["ok"]
