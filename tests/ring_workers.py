"""What runs in other processes in tests of rings: targets of multiprocessing.Process. May import fastsock alone."""

import ctypes
import os
import select
import signal
import time

import fastsock


def consume(ring, out):
    """Take everything until the end."""
    with ring:
        out.send([payload for batch in ring for payload in batch.payloads()])


def take_some(ring, out, count):
    """Take so many, one by one, and go."""
    for _ in range(count):
        out.send(ring.take(1).payloads())


def hold(ring, out, sizes):
    """Take batches of these sizes and hold them until killed."""
    held = []
    for size in sizes:
        held.append(ring.take(size))
        out.send(held[-1].payloads())
    signal.pause()


def try_to_take(ring, out):
    try:
        out.send(ring.take(timeout=0).payloads())
    except RuntimeError as error:
        out.send(str(error))


def wait_elsewhere(ring, out):
    """Wait for the descriptor, as an event loop does."""
    poll = select.poll()
    poll.register(ring.fileno(), select.POLLIN)
    found = []
    while True:
        assert poll.poll(20_000)
        try:
            found += ring.take(2, 0).payloads()
        except EOFError:
            break
    out.send(found)


def describe(ring, out):
    seen = isinstance(ring, fastsock.Ring), ring.slots, ring.slot_size, ring.nbytes, ring.stats, repr(ring)
    ring.close()
    out.send((*seen, repr(ring)))


def write_in_place(ring, out):
    """Change a datagram where it lies, which is in the ring's memory and nowhere else."""
    batch = ring.take(1)
    buffer = batch.buffer
    at, size = batch.offsets[0], batch.lengths[0]
    buffer[at : at + size] = bytes(buffer[at : at + size]).upper()
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + at
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= address < end:
                out.send(line.split(maxsplit=5)[4:])


def take_from(pipe, out):
    """A ring that comes through a pipe or a queue."""
    ring = pipe.get() if hasattr(pipe, "get") else pipe.recv()
    try_to_take(ring, out)
    ring.close()
    out.send("closed")


def drain_an_orphan(ring, parent):
    """Take what is left when the receiver's process is gone; prints it, and how it ended."""
    while os.getppid() == parent:
        time.sleep(0.001)
    found = []
    try:
        while batch := ring.take(timeout=20):
            found += batch.payloads()
            del batch
        print("no end")
    except OSError as error:
        print(found, error.errno)
