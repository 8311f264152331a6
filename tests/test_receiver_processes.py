"""Rings in other processes: as arguments, through pipes; one consumer at a time, whoever is killed."""

import errno
import os
import pickle

import pytest
from conftest import V4, open_descriptors
from rings import SLOTS

import fastsock
from fastsock import Receiver, Ring

START = """
import multiprocessing, os, signal, socket, sys, time, warnings
import fastsock, ring_workers
from rings import arrived, deliver, numbered, settle, take
warnings.simplefilter("ignore", DeprecationWarning)     # of fork beside other threads
context = multiprocessing.get_context(METHOD)
DEADLINE_S = 20
class Worker:
    def __init__(self, target, ring, *arguments):
        self.near, far = context.Pipe(False)
        self.process = context.Process(target=target, args=(ring, far, *arguments), daemon=True)
        self.process.start()
        far.close()
    def get(self):
        assert self.near.poll(DEADLINE_S), "nothing from the worker"
        return self.near.recv()
    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.join(-signal.SIGKILL)
    def join(self, code=0):
        self.process.join(DEADLINE_S)
        assert self.process.exitcode == code, self.process.exitcode
        self.near.close()
def room():
    "How many datagrams find room; everything is taken then."
    before = receiver.stats
    while deliver(receiver, sender, numbered(32)).ring_drops == before.ring_drops:
        pass
    while receiver.take(timeout=0):
        pass
    return receiver.stats.received - before.received
def no_memory_left():
    with open("/proc/self/maps") as maps:
        return "memfd:fastsock" not in maps.read()
"""
ONE = """
sock = fastsock.bind_udp(("127.0.0.1", 0))
sender = fastsock.connect_udp(sock.getsockname())
receiver = fastsock.Receiver(sock, slots=256)
(ring,) = receiver.rings
def end():
    receiver.close()
    sock.close()
    sender.close()
"""


def runner(method, isolated):
    return lambda script, begin=ONE: isolated(START.replace("METHOD", repr(method)) + begin + script)


@pytest.fixture(params=["spawn", "fork", "forkserver"])
def run(request, isolated):
    """Run a script in which workers are started by each of the methods."""
    return runner(request.param, isolated)


@pytest.fixture
def run_spawn(isolated):
    """The same where a ring must arrive that is made anew; spawning takes long."""
    return runner("spawn", isolated)


@pytest.fixture
def run_fork(isolated):
    """The same where it does not matter how it arrives."""
    return runner("fork", isolated)


def test_a_worker_for_each_ring(run):
    run(
        """
workers = [Worker(ring_workers.consume, ring) for ring in receiver.rings]
sent = numbered(200)
senders = [fastsock.connect_udp(socks[0].getsockname()) for _ in range(10)]
for at, payload in enumerate(sent):
    senders[at % 10].send(payload)
settle(receiver, 200)
receiver.stop()
found = [worker.get() for worker in workers]
for worker in workers:
    worker.join()
assert sorted(found[0] + found[1]) == sent
for payloads, ring in zip(found, receiver.rings):
    assert len(payloads) == ring.stats.taken == ring.stats.received
assert receiver.stats.taken == 200
receiver.close()
assert no_memory_left()
for sock in socks + senders:
    sock.close()
""",
        """
socks = fastsock.bind_udp_group(("127.0.0.1", 0), 2)
receiver = fastsock.Receiver(socks, slots=256)
""",
    )


def test_nothing_is_copied(run_spawn):
    """A worker changes a datagram in place, and the memory of the ring has changed."""
    run_spawn("""
import mmap
sender.send(b"one of a kind")
settle(receiver, 1)
memory, _ = ring._descriptors()
with mmap.mmap(memory, 0) as shown:
    at = shown.find(b"one of a kind")
    assert at > 0
    worker = Worker(ring_workers.write_in_place, ring)
    inode, name = worker.get()
    worker.join()
    assert (int(inode), name.split()[0]) == (os.fstat(memory).st_ino, "/memfd:fastsock"), (inode, name)
    assert shown[at : at + 13] == b"ONE OF A KIND"
end()
""")


def test_what_a_worker_sees(run_spawn):
    run_spawn("""
deliver(receiver, sender, numbered(5))
worker = Worker(ring_workers.describe, ring)
described = "<fastsock.Ring of 256 slots of 2048 bytes>", "<fastsock.Ring, closed>"
assert worker.get() == (True, 256, 2048, ring.nbytes, ring.stats, *described)
worker.join()
worker = Worker(ring_workers.wait_elsewhere, ring)
settle(receiver, 5)
deliver(receiver, sender, numbered(5, 5))
receiver.stop()
assert worker.get() == numbered(10)
worker.join()
end()
""")


def test_a_ring_that_goes_through_a_queue(run_spawn):
    """While this process takes from it the worker may not: the descriptor that is closed here ends no lock."""
    run_spawn("""
queue = context.Queue()
sender.send(b"held")
held = receiver.take(timeout=DEADLINE_S)
worker = Worker(ring_workers.take_from, queue)
deliver(receiver, sender, [b"more"])
queue.put(ring)
assert worker.get() == f"process {os.getpid()} takes from this ring: it has one consumer at a time"
assert worker.get() == "closed"
worker.join()
assert held.payloads() + receiver.take().payloads() == [b"held", b"more"]
# And back to where it came from: another object of the same memory.
queue.put(ring)
again = queue.get()
try:
    again.take(timeout=0)
except RuntimeError as error:
    assert "this process takes from the ring already" in str(error)
else:
    raise AssertionError
again.close()
sender.send(b"last")
assert receiver.take(timeout=DEADLINE_S).payloads() == [b"last"]
del again
queue.close()
end()
""")


def test_a_ring_that_goes_through_a_pipe(run_fork):
    """The sender keeps nothing of it open, and may close its own."""
    run_fork("""
near, far = context.Pipe()
worker = Worker(ring_workers.take_from, far)
deliver(receiver, sender, [b"one"])
near.send(ring)
assert worker.get() == [b"one"]
assert worker.get() == "closed"
worker.join()
near.close()
far.close()
end()
assert no_memory_left()
""")


def test_one_consumer_at_a_time(run_fork):
    """A worker that ends, closes the ring or lets go of it leaves its place to the next; until then it has it."""
    run_fork("""
deliver(receiver, sender, numbered(10))
worker = Worker(ring_workers.hold, ring, [1])
assert worker.get() == numbered(1)
try:
    ring.take(timeout=0)
except RuntimeError as error:
    assert str(error) == f"process {worker.process.pid} takes from this ring: it has one consumer at a time"
else:
    raise AssertionError
second = Worker(ring_workers.try_to_take, ring)
assert f"process {worker.process.pid} takes" in second.get()
second.join()
worker.kill()
last = Worker(ring_workers.take_some, ring, 8)
assert [last.get() for _ in range(8)] == [[payload] for payload in numbered(8, 1)]
last.join()
assert take(receiver, 1) == numbered(1, 9)
other = Worker(ring_workers.try_to_take, ring)
assert f"process {os.getpid()} takes" in other.get()
other.join()
assert room() >= 256 - 32
assert room() == 256
end()
""")


def test_a_worker_that_is_killed_while_it_holds_batches(run_fork):
    """What it held is lost, and nothing else; every slot comes back."""
    run_fork("""
assert room() == 256
receiver.close()
receiver = fastsock.Receiver(sock, slots=256)
(ring,) = receiver.rings
deliver(receiver, sender, numbered(100))
worker = Worker(ring_workers.hold, ring, [1, 5, 40, 2])
held = sum((worker.get() for _ in range(4)), [])
worker.kill()
deliver(receiver, sender, numbered(50, 100))
worker = Worker(ring_workers.consume, ring)
receiver.stop()
found = worker.get()
worker.join()
assert held == numbered(len(held))
assert found == numbered(150 - len(held), len(held))
receiver.close()
end()
""")


def test_every_slot_comes_back(run_fork):
    run_fork("""
for sizes in ([1], [1, 1, 1], [32, 32], [3, 29, 1]):
    deliver(receiver, sender, numbered(100))
    worker = Worker(ring_workers.hold, ring, sizes)
    count = sum(len(worker.get()) for _ in sizes)
    # The ring is full, but for what is held.
    while deliver(receiver, sender, numbered(32)).ring_drops == 0:
        pass
    worker.kill()
    found = []
    while batch := receiver.take(timeout=0):
        found += batch.payloads()
    del batch
    assert len(found) == receiver.stats.received - count
    assert found[: 100 - count] == numbered(100 - count, count)
    assert room() == 256
    receiver.close()
    receiver = fastsock.Receiver(sock, slots=256)
    (ring,) = receiver.rings
end()
""")


def test_workers_that_are_killed_anywhere(run_fork):
    """In the midst of taking and releasing, again and again: no datagram comes twice, none out of order."""
    run_fork("""
import mmap, random, struct
chance = random.Random(1)
seen = mmap.mmap(-1, 8)     # the last number that a worker had
def work(ring, out):
    out.close()
    held = []
    while True:
        for batch in [ring.take(chance.randrange(1, 9))]:
            numbers = [int.from_bytes(payload, "big") for payload in batch.payloads()]
            last = struct.unpack("q", seen)[0]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
            assert numbers[0] > last, (numbers, last)
            seen[:] = struct.pack("q", numbers[-1])
            held.append(batch)
        if len(held) > 8:
            held.pop(chance.randrange(8)).release()
sent = 1
for _ in range(25):
    worker = Worker(work, ring)
    end_at = time.monotonic() + chance.random() * 0.01
    while time.monotonic() < end_at:
        deliver(receiver, sender, numbered(20, sent))
        sent += 20
    assert worker.process.is_alive()
    worker.kill()
    worker = None
    if receiver.stats.ring_drops:
        break
    if sent - 1 - receiver.stats.taken > 100:
        last = struct.unpack("q", seen)[0]
        found = b"".join(payload for payload in take(receiver, sent - 1 - receiver.stats.taken))
        numbers = [int.from_bytes(found[at : at + 8], "big") for at in range(0, len(found), 8)]
        assert numbers == list(range(numbers[0], sent))
        seen[:] = struct.pack("q", sent - 1)
        receiver.close()
        receiver = fastsock.Receiver(sock, slots=256)
        (ring,) = receiver.rings
        sent = 1
        seen[:] = struct.pack("q", 0)
while receiver.take(timeout=0):
    pass
room()
assert room() == 256
end()
""")


def test_the_receivers_process_is_killed(isolated):
    """What it had received can be taken; then a worker is told. Nobody has reaped it yet."""
    begin = START.replace("METHOD", "'spawn'") + ONE
    out = isolated(f"""
import subprocess, sys
killed = subprocess.run([sys.executable, "-c", {begin!r} + '''
deliver(receiver, sender, [b"one", b"two"])
process = context.Process(target=ring_workers.drain_an_orphan, args=(ring, os.getpid()))
process.start()
os.kill(os.getpid(), signal.SIGKILL)
'''], stdout=subprocess.PIPE, text=True, timeout=50)
assert killed.returncode == -9
print(killed.stdout, end="")
""")
    assert out == f"[b'one', b'two'] {errno.EOWNERDEAD}\n"


# --- what is not a ring ---------------------------------------------------------------------------------


def test_only_multiprocessing_passes_rings_on(closing):
    with fastsock.bind_udp(V4.address()) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS))
        with pytest.raises((TypeError, RuntimeError)):
            pickle.dumps(receiver.rings[0])


@pytest.mark.parametrize("content", [b"", b"x", bytes(1 << 20)])
def test_memory_of_something_else(content):
    before = open_descriptors()
    memory = os.memfd_create("other")
    os.write(memory, content)
    with pytest.raises(ValueError, match="not the memory of a ring"):
        Ring._attach(memory, os.eventfd(0))
    assert open_descriptors() == before


def test_a_receiver_is_not_an_argument(isolated):
    out = isolated(
        START.replace("METHOD", "'spawn'")
        + ONE
        + """
try:
    context.Process(target=print, args=(receiver,)).start()
except TypeError as error:
    print(error)
end()
"""
    )
    assert out == "cannot copy or pickle a receiver: its rings can be passed on\n"
