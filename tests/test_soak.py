"""Ten million datagrams, every one accounted for: received or dropped, in order, once, unchanged."""

import os

import pytest
from conftest import needs, needs_large_buffers

import fastsock

SANITIZED = "FASTSOCK_SANITIZED" in os.environ
OFFERED = fastsock.probe()
pytestmark = [
    pytest.mark.skipif(not (OFFERED.gro and OFFERED.gso), reason="the kernel neither joins nor cuts datagrams"),
    needs_large_buffers,
]
pytest.importorskip("numpy")

# The sender's thread gives up the GIL for each megabyte; what the receiver then has no room
# for is dropped. A message holds as many datagrams as the kernel cuts, always the same number.
SOAK = """
import os, sys, threading, time
import numpy as np
import fastsock

how, total, segment_size, room = sys.argv[1], *map(int, sys.argv[2:])
receiver = fastsock.bind_udp(("127.0.0.1", 0), gro=True, rcvbuf=8 << 20)
sender = fastsock.connect_udp(receiver.getsockname())
assert receiver.gro and sender.gso
receiver.settimeout(0.5)
FILL = np.uint64(0x9E3779B97F4A7C15)
chunk = (1 << 20) // segment_size
sent = 0

def send():
    global sent
    words = segment_size // 8
    while sent < total:
        count = min(chunk, total - sent)
        numbers = np.arange(sent, sent + count, dtype=np.uint64)
        rows = np.repeat(numbers[:, None], words, axis=1)
        rows[:, 1:] *= FILL
        done = sender.send_segments(memoryview(rows).cast("B"), segment_size)
        assert done % segment_size == 0
        sent += done // segment_size

def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def numbers_of(rows):
    numbers = rows[:, 0]
    assert np.array_equal(rows[:, -1], numbers * FILL), "a payload was changed"
    return numbers

def take_batch():
    receiver.recv_batch(batch)
    lengths, offsets = np.asarray(batch.lengths), np.asarray(batch.offsets)
    assert (lengths == segment_size).all() and not np.asarray(batch.truncated).any()
    first, last = offsets, offsets + segment_size - 8
    arena = np.asarray(batch.buffer)
    words = np.lib.stride_tricks.sliding_window_view(arena, 8)
    ends = [np.ascontiguousarray(words[at]).view(np.uint64)[:, 0] for at in (first, last)]
    return numbers_of(np.stack(ends, axis=1))

def take_list():
    payloads = receiver.recv_many(64)
    return numbers_of(np.frombuffer(b"".join(payloads), np.uint64).reshape(len(payloads), -1))

batch = fastsock.RecvBatch(16, 65535)
take = {"recv_batch": take_batch, "recv_many": take_list}[how]
thread = threading.Thread(target=send)
thread.start()
received, latest, gaps, early = 0, -1, 0, 0
while latest < total - 1:
    alive = thread.is_alive()
    try:
        numbers = take().astype(np.int64)
    except TimeoutError:
        if alive:
            continue
        break                           # the last ones were dropped
    steps = np.diff(numbers, prepend=latest)
    assert (steps >= 1).all(), "reordered, or twice"
    gaps += int((steps - 1).sum())
    latest = int(numbers[-1])
    received += len(numbers)
    if not early and received > total // 100:
        early = rss()
thread.join()
gaps += total - 1 - latest
drops = receiver.drops
assert sent == total and received + gaps == total, (sent, received, gaps)
assert gaps in (64 * drops, 128 * drops), (gaps, drops)     # UDP_MAX_SEGMENTS, old and new
assert received == receiver.stats.received and sender.stats.sent == total
grown = rss() - early
assert grown < room, f"{grown} bytes more at the end"
print(received, gaps, drops)
receiver.close(); sender.close()
"""


@pytest.mark.parametrize("how", ["recv_batch", "recv_many"])
@needs("drop_counter")
def test_every_datagram_is_accounted_for(isolated, how):
    total = (12 if SANITIZED else 306) << 14  # whole megabytes of 64 bytes each; ten million in both
    room = 1 << 30 if SANITIZED else 16 << 20  # the sanitizer keeps freed memory in quarantine
    received, gaps, _ = map(int, isolated(SOAK, how, total, 64, room, timeout=300).split())
    assert received + gaps == total
    assert received > total // 100
