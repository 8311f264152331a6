"""The calls whose instructions are counted: ``python -P -m fastsock.bench.hot_calls MODE NAME ...``.

Each is made ready and made, again and again, in the order of the names, so that what a counter saw between two
marks can be told apart. MODE is ``callgrind``, whose marks are calls of getloadavg(3), or ``perf`` or ``plain``, which
print what a counter of the kernel, or none, had between them. Imports fastsock and the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import fastsock

BATCH = 64
SIZE = 64
WARM, REPEATS = 6, 7
LENGTHS = (1, 2)
"""Batches per section: one and two, so that what both have in common can be taken away."""

Step = Callable[[int], object]


Made = tuple[Any, ...]
"""A call and its arguments."""


class Ready(NamedTuple):
    """A call that can be made."""

    prepare: Step
    """Makes so many batches ready."""
    run: Step
    """Makes the call for so many."""


def times(call: Callable[..., object], *arguments: object, count: int = 1) -> Step:
    """The call so many times for each batch, as a loop of one's own would make it."""
    if not arguments:

        def run(batches: int) -> None:
            for _ in range(count * batches):
                call()
    elif len(arguments) == 1:
        (argument,) = arguments

        def run(batches: int) -> None:
            for _ in range(count * batches):
                call(argument)
    else:
        first, second = arguments

        def run(batches: int) -> None:
            for _ in range(count * batches):
                call(first, second)

    # CPython specialises byte code for the callable that it sees: each call has its own.
    run.__code__ = run.__code__.replace()
    return run


def nothing(_batches: int) -> None:
    pass


class Pair:
    """Two sockets, of which one receives what the other sends."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self.receiver = stack.enter_context(fastsock.bind_udp(("127.0.0.1", 0), **options))
        self.sender = stack.enter_context(fastsock.connect_udp(self.receiver.getsockname(), gso=False))
        # The standard library's, of the same descriptors.
        self.std_receiver, self.std_sender = (
            stack.enter_context(socket.socket(fileno=os.dup(sock.fileno()))) for sock in (self.receiver, self.sender)
        )
        self.payloads = [bytes([number]) * SIZE for number in range(BATCH)]

    def fill(self, batches: int) -> None:
        for _ in range(batches):
            self.sender.send_many(self.payloads)

    def empty(self, _batches: int) -> None:
        self.receiver.setblocking(False)
        try:
            while True:
                self.receiver.recv_many(BATCH)
        except BlockingIOError:
            pass


def receiving(call: Callable[[Pair], Made], count: int = 1, **options: Any) -> Any:
    """A call that receives one batch, or a `count`-th of it."""

    def ready(stack: ExitStack) -> Ready:
        pair = Pair(stack, **options)
        return Ready(pair.fill, times(*call(pair), count=count))

    return ready


def sending(call: Callable[[Pair], Made], count: int = 1, *, gso: bool = False) -> Any:
    def ready(stack: ExitStack) -> Ready:
        pair = Pair(stack)
        pair.sender.gso = gso
        return Ready(pair.empty, times(*call(pair), count=count))

    return ready


def prepared_send(pair: Pair) -> Made:
    batch = fastsock.SendBatch(BATCH)
    for payload in pair.payloads:
        batch.append(payload)
    return pair.sender.send_batch, batch


def appended(stack: ExitStack) -> Ready:  # noqa: ARG001
    batch = fastsock.SendBatch(BATCH)
    payload = bytes(SIZE)

    def fill() -> None:
        batch.clear()
        for _ in range(BATCH):
            batch.append(payload)

    return Ready(nothing, times(fill))


def polled(made: Callable[[], Any]) -> Any:
    def ready(stack: ExitStack) -> Ready:
        epoll = stack.enter_context(made())
        for _ in range(BATCH):
            pair = Pair(stack)
            pair.sender.send(b"")
            epoll.register(pair.receiver, select.EPOLLIN)
        return Ready(nothing, times(epoll.poll, 0, BATCH))

    return ready


def taken(stack: ExitStack) -> Ready:
    pair = Pair(stack)
    receiver = stack.enter_context(fastsock.Receiver(pair.receiver, slots=4096))

    def prepare(batches: int) -> None:
        expected = receiver.stats.taken + batches * BATCH
        pair.fill(batches)
        end = time.monotonic() + 60
        while receiver.stats.received < expected:
            if time.monotonic() > end:
                raise TimeoutError("Receiver did not receive what was sent")
            time.sleep(0.001)
        time.sleep(0.005)  # for the native thread to sleep again

    return Ready(prepare, times(receiver.take, BATCH))


def received(stack: ExitStack) -> fastsock.RecvBatch:
    """A batch that is full."""
    pair = Pair(stack)
    pair.fill(1)
    batch = fastsock.RecvBatch(BATCH, addresses=True)
    pair.receiver.recv_batch(batch)
    return batch


def read(use: Callable[[fastsock.RecvBatch], Callable[[], object]]) -> Any:
    return lambda stack: Ready(nothing, times(use(received(stack))))


def iterated(batch: fastsock.RecvBatch) -> Callable[[], object]:
    def read_payloads() -> None:
        for datagram in batch:
            datagram.payload  # noqa: B018

    return read_payloads


METADATA: dict[str, Any] = {"timestamps": True, "pktinfo": True, "ecn": True, "ttl": True}


def with_batch(pair: Pair, **options: Any) -> Made:
    return pair.receiver.recv_batch, fastsock.RecvBatch(BATCH, **options)


CALLS: dict[str, Callable[[ExitStack], Ready]] = {
    "socket.recv": receiving(lambda pair: (pair.std_receiver.recv, 2048), BATCH),
    "socket.recvfrom": receiving(lambda pair: (pair.std_receiver.recvfrom, 2048), BATCH),
    "socket.send": sending(lambda pair: (pair.std_sender.send, bytes(SIZE)), BATCH),
    "select.epoll.poll": polled(select.epoll),
    "recv": receiving(lambda pair: (pair.receiver.recv, 2048), BATCH),
    "recvfrom": receiving(lambda pair: (pair.receiver.recvfrom, 2048), BATCH),
    "recv_batch": receiving(with_batch),
    "recv_batch, addresses": receiving(partial(with_batch, addresses=True)),
    "recv_batch, metadata": receiving(partial(with_batch, addresses=True), **METADATA),
    "recv_many": receiving(lambda pair: (pair.receiver.recv_many, BATCH)),
    "recvfrom_many": receiving(lambda pair: (pair.receiver.recvfrom_many, BATCH)),
    "payloads": read(lambda batch: batch.payloads),
    "addresses": read(lambda batch: batch.addresses),
    "datagram.payload": read(iterated),
    "send": sending(lambda pair: (pair.sender.send, bytes(SIZE)), BATCH),
    "send_many": sending(lambda pair: (pair.sender.send_many, pair.payloads)),
    "send_many, GSO": sending(lambda pair: (pair.sender.send_many, pair.payloads), gso=True),
    "send_batch": sending(prepared_send),
    "SendBatch.append": appended,
    "send_segments": sending(lambda pair: (pair.sender.send_segments, b"".join(pair.payloads), SIZE), gso=True),
    "Epoll.poll": polled(fastsock.Epoll),
    "Receiver.take": taken,
}
BASELINES = {
    **dict.fromkeys(("recv", "recv_batch", "recv_many", "Receiver.take"), "socket.recv"),
    **dict.fromkeys(("recvfrom", "recv_batch, addresses", "recvfrom_many"), "socket.recvfrom"),
    **dict.fromkeys(("send", "send_many", "send_many, GSO", "send_batch", "send_segments"), "socket.send"),
    "Epoll.poll": "select.epoll.poll",
}
"""What the standard library has in their place."""
STANDARD = tuple(dict.fromkeys(BASELINES.values()))


def measure(read: Callable[[], int], names: Iterable[str]) -> list[int]:
    """What was counted in each section: the calls in order, REPEATS of each, LENGTHS within."""
    found = []
    for name in names:
        with ExitStack() as stack:
            prepare, run = CALLS[name](stack)
            for number in range(-WARM, REPEATS):
                for batches in LENGTHS:
                    prepare(batches)
                    if number < 0:
                        run(batches)
                        continue
                    before = read()
                    run(batches)
                    found.append(read() - before)
    return found


# --- the kernel's counter -------------------------------------------------------------------------------------

SYSCALLS = {"x86_64": 298, "aarch64": 241}
"""perf_event_open(2), which libc has no function for."""
HARDWARE, INSTRUCTIONS = 0, 1
NOT_KERNEL = 1 << 5 | 1 << 6  # exclude_kernel, exclude_hv
CLOEXEC = 8


class Counter:
    """What this thread executes in user space, in instructions.

    Raises:
        OSError: This machine has no such counter (ENOENT), as many virtual ones; it is not allowed (EACCES).
    """

    def __init__(self, kind: int = HARDWARE, config: int = INSTRUCTIONS) -> None:
        number = SYSCALLS.get(os.uname().machine)
        if number is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        attributes = struct.pack("=IIQQQQQIIQ", kind, 64, config, 0, 0, 0, NOT_KERNEL, 0, 0, 0)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._fd = syscall(number, attributes, 0, -1, -1, ctypes.c_ulong(CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def read(self) -> int:
        found: int = struct.unpack("=Q", os.read(self._fd, 8))[0]
        return found

    def close(self) -> None:
        os.close(self._fd)


def mark() -> int:
    """A call that callgrind knows by name; nothing to read."""
    os.getloadavg()
    return 0


MODES: dict[str, Callable[[], Callable[[], int]]] = {
    "callgrind": lambda: mark,
    "perf": lambda: Counter().read,
    "plain": lambda: lambda: 0,
}


def main() -> None:
    read = MODES[sys.argv[1]]()
    gc.collect()
    gc.disable()
    print(json.dumps(measure(read, sys.argv[2:])))


if __name__ == "__main__":
    main()
