"""AsyncSocket under cancellation, wherever it waits: each datagram is received once, each send accounted for."""

import asyncio
import itertools
import random
import socket
import threading
import time

import anyio
import pytest
from conftest import drain
from frameworks import (
    LOCAL,
    check_not_watched,
    fill,
    pack,
    turns,
    unpack,
    until,
    until_waiting,
)

import fastsock
import fastsock.aio
from fastsock.aio import _sockets


class Flood:
    """A thread that sends numbered datagrams, never so many ahead that one would be dropped."""

    def __init__(self, address, total, window=100):
        self.received = 0
        self.stopped = False
        self.thread = threading.Thread(target=self.send, args=(address, total, window))

    def send(self, address, total, window):
        with fastsock.connect_udp(address) as sock:
            numbers = iter(range(total))
            sent = 0
            while sent < total and not self.stopped:
                if sent - self.received >= window:
                    time.sleep(0)
                    continue
                sent += sock.send_many(pack(itertools.islice(numbers, window // 4)))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *details):
        self.stopped = True
        self.thread.join()


def receiver(sock, kind):
    """A coroutine function that receives once and returns numbers, by each of the calls."""
    batch = fastsock.RecvBatch(7)

    async def recv_batch():
        await sock.recv_batch(batch)
        return unpack(batch.payloads())

    async def batches():
        return unpack((await anext(sock.batches(batch))).payloads())

    async def recv_many():
        return unpack(await sock.recv_many(7))

    async def recvfrom_many():
        return unpack([payload for payload, _ in await sock.recvfrom_many(7)])

    return {"recv_batch": recv_batch, "batches": batches, "recv_many": recv_many, "recvfrom_many": recvfrom_many}[kind]


@pytest.mark.parametrize("kind", ["recv_many", "recvfrom_many", "recv_batch", "batches"])
def test_cancelled_receives_lose_nothing(run, monkeypatch, kind):
    """Two tasks receive what a thread sends, and are cancelled all the time, wherever they wait."""
    chance = random.Random(kind)
    total = 3000
    found, cancelled = [], []

    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            receive = receiver(sock, kind)

            async def cancel(scope, count):
                await turns(count)
                if chance.random() < 0.1:
                    await anyio.sleep(0.0001)
                scope.cancel()

            async def work(flood):
                while len(found) < total:
                    monkeypatch.setattr(_sockets, "BUSY_NS", chance.choice((-1, 1 << 62)))
                    async with anyio.create_task_group() as group:
                        with anyio.CancelScope() as scope:
                            group.start_soon(cancel, scope, chance.randrange(5))
                            found.extend(await receive())
                        cancelled.append(scope.cancelled_caught)
                        group.cancel_scope.cancel()
                    flood.received = len(found)
                for side in (sock._reading, sock._failing):  # the other may wait for nothing
                    side.interrupt()

            with Flood(sock.getsockname(), total) as flood:
                async with anyio.create_task_group() as group:
                    group.start_soon(finish, work, flood, group)
                    group.start_soon(finish, work, flood, group)
            check_not_watched(sock)

    async def finish(work, flood, group):
        await work(flood)
        group.cancel_scope.cancel()

    run(main)
    assert sorted(found) == list(range(total))
    assert cancelled.count(True) > 20
    assert cancelled.count(False) > 20


def test_a_task_that_is_cancelled_loses_nothing(run_loop, monkeypatch):
    """The same with ``Task.cancel``, which asyncio delivers once, and often together with the datagram."""
    chance = random.Random(1)
    total = 3000
    found, cancelled = [], 0

    async def main():
        nonlocal cancelled
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            with Flood(sock.getsockname(), total) as flood:
                while len(found) < total:
                    monkeypatch.setattr(_sockets, "BUSY_NS", chance.choice((-1, 1 << 62)))
                    task = asyncio.create_task(sock.recv_many(7))
                    await turns(chance.randrange(5))
                    task.cancel()
                    try:
                        found.extend(unpack(await task))
                    except asyncio.CancelledError:
                        cancelled += 1
                    flood.received = len(found)
            check_not_watched(sock)

    run_loop(main)
    assert found == list(range(total))
    assert cancelled > 20


@pytest.mark.parametrize("kind", ["send_many", "sendto_many", "send_batch", "send_segments"])
def test_cancelled_sends_are_accounted_for(run, tmp_path, monkeypatch, closing, kind):
    """What the exception says was sent is what arrives, each once and in order."""
    monkeypatch.setattr(_sockets, "SEND_DATAGRAMS", 16)
    monkeypatch.setattr(_sockets, "SEND_BYTES", 64)
    chance = random.Random(kind)
    total = 3000
    far = closing(fastsock.Socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    far.bind(str(tmp_path / "far"))
    far.setblocking(False)
    near = fastsock.Socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind != "sendto_many":
        near.connect(far.getsockname())
    sock = closing(fastsock.aio.AsyncSocket(near))
    found, unsent, partial, cancelled = [], [], 0, 0

    async def main():
        nonlocal partial, cancelled
        sent = 0

        async def send(numbers):
            if kind == "send_many":
                return await sock.send_many(pack(numbers))
            if kind == "sendto_many":
                return await sock.sendto_many(pack(numbers), far.getsockname())
            if kind == "send_segments":
                return await sock.send_segments(b"".join(pack(numbers)), 4)
            batch = fastsock.SendBatch(len(numbers), 4)
            for payload in pack(numbers):
                batch.append(payload)
            unsent.append(batch)
            return await sock.send_batch(batch)

        async def cancel(scope):
            await turns(chance.randrange(12))
            scope.cancel()

        async def read():
            while len(found) < total:
                if chance.random() < 0.3:
                    await anyio.sleep(0.0001)
                try:
                    found.extend(unpack(far.recv_many(chance.randrange(1, 200), 64)))
                except BlockingIOError:
                    await anyio.sleep(0)

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            while sent < total:
                monkeypatch.setattr(_sockets, "BUSY_NS", chance.choice((-1, 1 << 62)))
                numbers = range(sent, min(total, sent + chance.randrange(1, 200)))
                async with anyio.create_task_group() as group:
                    with anyio.CancelScope() as scope:
                        group.start_soon(cancel, scope)
                        try:
                            count = await send(numbers)
                            assert count == (4 * len(numbers) if kind == "send_segments" else len(numbers))
                        except BaseException as error:
                            count = error.sent
                            if kind == "send_batch":
                                assert count == len(numbers) - unsent[-1].unsent
                            partial += count > 0
                            cancelled += 1
                            raise
                        finally:
                            sent += count // 4 if kind == "send_segments" else count
                    group.cancel_scope.cancel()
        check_not_watched(sock)

    run(main)
    assert found == list(range(total))
    assert cancelled > 5
    assert partial > 1


def test_cancelled_behind_another(run, channel):
    """Those who queue behind one that waits may leave, and so may the one."""
    near, far = channel
    found = []

    async def main():
        scopes = [anyio.CancelScope() for _ in range(4)]

        async def receive(number):
            with scopes[number]:
                found.append((number, await near.recv_many(1)))

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(receive, number)
                await until_waiting(near._reading)
                await turns(3)
            scopes[1].cancel()
            await turns(3)
            scopes[0].cancel()
            await turns(5)
            far.send_many([b"a"])
            await until(lambda: found)
            far.send_many([b"b"])
        assert found == [(2, [b"a"]), (3, [b"b"])]

    run(main)


def test_a_time_out_knows_what_was_sent(run_loop, channel, monkeypatch):
    """Its cause is what was cancelled, and says how many went."""
    monkeypatch.setattr(_sockets, "BUSY_NS", 1 << 62)  # the send comes before the time-out
    near, far = channel
    room = fill(near.socket)
    drain(far)

    async def main():
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.001):
                await near.send_many([b"x"] * (room + 5))
        assert caught.value.__cause__.sent == room
        assert len(drain(far)) == room

    run_loop(main)
