"""A process that sends without a pause, for what is measured live. May import contestants and native."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fastsock import SendBatch
from fastsock.bench import native
from fastsock.bench.contestants import MAX_SEGMENT_BYTES, VLEN, Link


class Cpus(NamedTuple):
    """Where what is measured runs, and where its other end does; None where there is one CPU only."""

    own: int | None
    other: int | None


def choose_cpus() -> Cpus:
    cpus = sorted(os.sched_getaffinity(0))
    return Cpus(cpus[0], cpus[1]) if len(cpus) > 1 else Cpus(None, None)


@contextmanager
def on_cpu(cpu: int | None) -> Iterator[None]:
    """Keep the calling thread on a CPU, where one is given."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def flooded(link: Link, cpu: int | None, fd: int = -1) -> Iterator[ctypes.c_int64]:
    """Have a child send to the link until the end of the block; gives its count of datagrams sent.

    The count is also the beginning of the file `fd`, a page long, if there is one. The child is C where there is a
    compiler, and send_batch with UDP_SEGMENT, which is as fast within a few percent, where there is none.
    """
    shared = mmap.mmap(fd, mmap.PAGESIZE)
    sent = ctypes.c_int64.from_buffer(shared)
    call = None if native.missing() else native.library().c_flood
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            if call is not None:
                call(link.gso_sender.fileno(), b"".join(link.payloads), link.size, ctypes.byref(sent))
            else:
                send_for_ever(link, sent, parent)
        finally:
            os._exit(1)
    try:
        yield sent
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def send_for_ever(link: Link, sent: ctypes.c_int64, parent: int) -> None:
    joined = max(1, min(VLEN, MAX_SEGMENT_BYTES // link.size))
    batch = SendBatch(VLEN, joined * link.size)
    payload = b"".join(link.payloads)[: joined * link.size]
    for _ in range(VLEN):
        if joined > 1:
            batch.append(payload, segment_size=link.size)
        else:
            batch.append(payload)
    while os.getppid() == parent:
        sent.value += link.gso_sender.send_batch(batch) * joined
