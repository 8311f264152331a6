"""fastsock.aio.AsyncSocket on asyncio, uvloop, trio and anyio: waiting, batches, turns, closing."""

import asyncio
import errno
import functools
import gc
import random
import socket
import time

import anyio
import pytest
import trio
import trio.testing
from conftest import drain, needs
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

# --- what the calls do ------------------------------------------------------------------------------


def test_calls(run):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as far, fastsock.aio.connect_udp(far.getsockname()) as near:
            here = near.getsockname()
            assert await near.send_many([b"one", b"", b"three"]) == 3
            assert await far.recv_many(2) == [b"one", b""]
            assert await far.recv_many(bufsize=3) == [b"thr"]
            assert await far.sendto_many(iter([b"a", b"b"]), here) == 2
            assert await near.recvfrom_many() == [(b"a", far.getsockname()), (b"b", far.getsockname())]
            assert await far.sendto_many([b"c", b"d"], [here, far.getsockname()]) == 2
            assert await near.recv_many() == [b"c"]
            assert await far.recv_many() == [b"d"]

            batch = fastsock.SendBatch(4)
            batch.append(b"in a batch")
            batch.append(b"and another")
            assert await near.send_batch(batch) == 2
            assert batch.unsent == 0
            into = fastsock.RecvBatch(4, addresses=True)
            assert await far.recv_batch(into) == 2
            assert into.payloads() == [b"in a batch", b"and another"]
            assert into.addresses() == [here, here]

            assert await near.send_segments(bytearray(b"abcde"), 2) == 5
            assert await far.recv_many() == [b"ab", b"cd", b"e"]
            assert await far.send_segments(b"xyz", 2, here) == 3
            assert await near.recv_many() == [b"xy", b"z"]
            assert await near.send_segments(b"", 2) == 0
            assert await near.send_many([]) == 0

            assert far.stats.received == 9
            assert far.socket.getsockname() == far.getsockname()
            assert far.fileno() == far.socket.fileno() >= 0
            if fastsock.probe().drop_counter:
                assert far.drops == 0

    run(main)


def test_arguments_of_the_wrong_kind(run):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            with pytest.raises(ValueError, match="vlen"):
                await sock.recv_many(0)
            with pytest.raises(ValueError, match="2 payloads for 1 addresses"):
                await sock.sendto_many([b"a", b"b"], [LOCAL])
            with pytest.raises(ValueError, match="segment_size"):
                await sock.send_segments(b"a", 0, sock.getsockname())
            with pytest.raises(TypeError):
                await sock.send_segments("text", 1)
            with pytest.raises(TypeError):
                await sock.send_many([1])
            with pytest.raises(TypeError, match="takes a batch, or"):
                sock.batches(fastsock.RecvBatch(), vlen=3)

    run(main)


def test_long_sends_go_in_parts(run, monkeypatch):
    monkeypatch.setattr(_sockets, "SEND_DATAGRAMS", 3)
    monkeypatch.setattr(_sockets, "SEND_BYTES", 25)
    peers = [f"127.0.0.{host}" for host in range(1, 9)]

    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            here = sock.getsockname()
            assert await sock.sendto_many(pack(range(8)), here) == 8
            assert unpack(await sock.recv_many()) == list(range(8))
            assert await sock.sendto_many(pack(range(8)), [here] * 8) == 8
            assert unpack(await sock.recv_many()) == list(range(8))
            assert await sock.send_segments(bytes(range(100)), 10, here) == 100
            assert b"".join(await sock.recv_many()) == bytes(range(100))
        async with fastsock.aio.bind_udp(("", 0), family=socket.AF_INET) as sock:
            port = sock.getsockname()[1]
            assert await sock.sendto_many(pack(range(8)), [(peer, port) for peer in peers]) == 8
            assert unpack(await sock.recv_many()) == list(range(8))

    run(main)


@pytest.mark.parametrize("method", ["recv_many", "recvfrom_many", "recv_batch", "batches"])
def test_receives_wait(run, method):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as far, fastsock.aio.connect_udp(far.getsockname()) as near:
            found = []
            batch = fastsock.RecvBatch(8)

            async def receive():
                if method == "recv_batch":
                    assert await far.recv_batch(batch) == 2
                    found.extend(batch.payloads())
                elif method == "batches":
                    async for batch_of_ours in far.batches(batch):
                        found.extend(batch_of_ours.payloads())
                        break
                elif method == "recvfrom_many":
                    found.extend(payload for payload, address in await far.recvfrom_many())
                else:
                    found.extend(await far.recv_many())

            async with anyio.create_task_group() as group:
                group.start_soon(receive)
                await until_waiting(far._reading)
                assert found == []
                near.socket.send_many([b"a", b"b"])
            assert found == [b"a", b"b"]
            check_not_watched(far)

    run(main)


def test_sends_wait_and_go_on(run, channel):
    near, far = channel

    async def main():
        count = fill(near.socket)
        batch = fastsock.SendBatch(2000, 4)
        for payload in pack(range(2000)):
            batch.append(payload)
        sent = []

        async def send():
            sent.append(await near.send_many(pack(range(2000))))
            sent.append(await near.send_batch(batch))
            sent.append(await near.send_segments(b"".join(pack(range(2000))), 4))

        found = []
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until_waiting(near._writing)
            while len(found) < count + 6000:
                found += drain(far)
                await anyio.sleep(0)
        assert sent == [2000, 2000, 8000]
        assert unpack(found[count:]) == 3 * list(range(2000))
        check_not_watched(near)

    run(main)


def test_dontwait(run, channel):
    near, far = channel

    async def main():
        with pytest.raises(BlockingIOError):
            await near.recv_many(flags=socket.MSG_DONTWAIT)
        room = fill(near.socket)
        with pytest.raises(BlockingIOError) as caught:
            await near.send_many([b"a"], socket.MSG_DONTWAIT)
        assert caught.value.sent == 0
        drain(far)
        assert 0 < await near.send_many([b"a"] * (2 * room + 10), socket.MSG_DONTWAIT) < 2 * room + 10

    run(main)


# --- batches ----------------------------------------------------------------------------------------


def test_batches_use_one_batch(run, never_yield):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            sock.socket.sendto_many(pack(range(10)), sock.getsockname())
            seen, found = set(), []
            async for batch in sock.batches(vlen=3, slot_size=4, addresses=True):
                seen.add(id(batch))
                assert set(batch.addresses()) == {sock.getsockname()}
                assert batch.slot_size == 4
                found += unpack(batch.payloads())
                if len(found) == 6:
                    break
            assert len(seen) == 1
            own = fastsock.RecvBatch(8)
            async for batch in sock.batches(own):
                assert batch is own
                found += unpack(batch.payloads())
                break
            assert found == list(range(10))

    run(main)


def test_batches_raise_what_the_receive_does(run):
    async def main():
        sock = await fastsock.aio.bind_udp(LOCAL)
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            async for _ in sock.batches():
                pass

    run(main)


@needs("gro", "gso")
def test_gro(run):
    async def main():
        async with (
            fastsock.aio.bind_udp(LOCAL, gro=True, rcvbuf=100_000) as far,
            fastsock.aio.connect_udp(far.getsockname()) as near,
        ):
            assert far.socket.gro
            payload = random.Random(1).randbytes(2000)
            found = []

            async def receive():
                async for batch in far.batches():
                    found.extend(batch.payloads())
                    if len(found) == 20:
                        break

            async with anyio.create_task_group() as group:
                group.start_soon(receive)
                await until_waiting(far._reading)
                assert await near.send_segments(payload, 100) == 2000
            assert b"".join(found) == payload
            assert await near.send_segments(payload, 100) == 2000
            assert b"".join(await far.recv_many(1)) == payload

    run(main)


# --- several tasks ----------------------------------------------------------------------------------


def test_waiting_tasks_are_served_in_order(run, channel):
    near, far = channel
    found = []

    async def main():
        async def receive(number):
            found.append((number, await near.recv_many(1)))

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(receive, number)
                await until_waiting(near._reading)
                await turns(3)
            for number in range(5):
                far.send_many(pack([number]))
                await until(lambda count=number: len(found) > count)
        assert found == [(number, pack([number])) for number in range(5)]

    run(main)


def test_a_new_call_does_not_get_ahead(run, channel, never_yield):
    near, far = channel

    async def main():
        found = []

        async def receive():
            found.append(await near.recv_many(1))

        async def send():
            await near.send_many([b"first"])

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await until_waiting(near._reading)
            far.send_many([b"first", b"second"])
            assert await near.recv_many(1) == [b"second"]
            assert found == [[b"first"]]
        count = fill(near.socket)
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until_waiting(near._writing)
            before = drain(far)
            await near.send_many([b"second"])
        assert (before + drain(far))[count:] == [b"first", b"second"]

    run(main)


def test_senders_and_receivers_wait_beside_each_other(run, channel):
    near, far = channel

    async def main():
        count = fill(near.socket)
        results = []

        async def send(number):
            results.append(await near.send_many(pack([number])))

        async def receive():
            results.append(await near.recv_many())

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await until_waiting(near._reading)
            for number in range(3):
                group.start_soon(send, number)
                await until_waiting(near._writing)
                await turns(3)
            far.send_many([b"hello"])
            await until(lambda: results)
            assert results == [[b"hello"]]
            found = drain(far)
            await until(lambda: len(results) == 4)
            found += drain(far)
        assert unpack(found[count:]) == [0, 1, 2]

    run(main)


def test_a_socket_serves_one_loop_after_another(run, channel):
    near, far = channel

    async def main():
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(near.recv_many, 1)
            await until_waiting(near._reading)
            far.send_many([b"a", b"b"])

    run(main)
    run(main)
    trio.run(main)


# --- turns for others -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["recv_many", "batches", "send_many", "send_batch"])
def test_calls_that_never_wait_let_others_run(run, what):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            here = sock.getsockname()
            await sock.sendto_many([b"always there"], here)
            batch = fastsock.SendBatch(1)
            batch.append(b"x", here)
            ticks = 0
            many = iter(sock.batches(flags=socket.MSG_PEEK).__anext__, None)

            async def tick():
                nonlocal ticks
                while True:
                    await anyio.sleep(0)
                    ticks += 1

            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                end = time.monotonic() + 20
                while ticks < 20:
                    assert time.monotonic() < end
                    if what == "recv_many":
                        await sock.recv_many(flags=socket.MSG_PEEK)
                    elif what == "batches":
                        await next(many)
                    elif what == "send_many":
                        await sock.sendto_many([b"x"], here)
                    else:
                        await sock.send_batch(batch)
                group.cancel_scope.cancel()

    run(main)


def test_a_long_send_lets_others_run(run, always_yield, monkeypatch):
    monkeypatch.setattr(_sockets, "SEND_DATAGRAMS", 10)
    monkeypatch.setattr(_sockets, "SEND_BYTES", 100)

    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    await anyio.sleep(0)
                    ticks += 1

            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                assert await sock.sendto_many([b"x"] * 1000, sock.getsockname()) == 1000
                assert ticks >= 90
                assert await sock.send_segments(bytes(10_000), 10, sock.getsockname()) == 10_000
                assert ticks >= 180
                group.cancel_scope.cancel()

    run(main)


def test_calls_that_find_something_do_not_wait_on_a_loop(run_loop, never_yield):
    """A call in time costs no pass of the loop."""

    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            passed = []
            asyncio.get_running_loop().call_soon(passed.append, True)
            for _ in range(10):
                await sock.sendto_many([b"x"], sock.getsockname())
                await sock.recv_many()
            assert not passed

    run_loop(main)


@pytest.mark.parametrize("what", ["recv_many", "send_many", "send_batch", "send_segments", "recv_errors", "aclose"])
def test_every_call_is_a_checkpoint_on_trio(what):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            here = sock.getsockname()
            sock.socket.sendto(b"there", here)
            batch = fastsock.SendBatch(1)
            batch.append(b"x", here)
            calls = {
                "recv_many": sock.recv_many,
                "send_many": functools.partial(sock.sendto_many, [b"x"], here),
                "send_batch": functools.partial(sock.send_batch, batch),
                "send_segments": functools.partial(sock.send_segments, b"xy", 1, here),
                "recv_errors": sock.recv_errors,
                "aclose": sock.aclose,
            }
            if what != "recv_errors":
                with trio.testing.assert_checkpoints():
                    await calls[what]()
            with trio.CancelScope() as scope:
                scope.cancel()
                await calls[what]()
            assert scope.cancelled_caught
            if what == "recv_many":
                sock.socket.sendto(b"still", here)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await sock.recv_many()
                assert sock.socket.recv_many() == [b"still"]

    trio.run(main)


# --- closing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["recv_many", "recv_batch", "batches", "send_many", "recv_errors"])
def test_closing_wakes_all_that_wait(run, channel, what):
    near, _ = channel
    side = {"send_many": near._writing, "recv_errors": near._failing}.get(what, near._reading)

    async def main():
        if what == "send_many":
            fill(near.socket)
        errors = []

        batches = near.batches()
        calls = {
            "recv_many": near.recv_many,
            "recv_batch": functools.partial(near.recv_batch, fastsock.RecvBatch()),
            "batches": batches.__anext__,
            "send_many": functools.partial(near.send_many, [b"a"]),
            "recv_errors": near.recv_errors,
        }

        async def call():
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                await calls[what]()
            errors.append(caught.value.errno)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(call)
            await until_waiting(side)
            await turns(3)
            near.close()
        assert errors == [errno.EBADF] * 3
        assert near.fileno() == -1
        near.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await near.recv_many()

    run(main)


def test_closing_in_the_middle_of_a_send(run, channel):
    near, _ = channel
    room = fill(near.socket)

    async def main():
        sent = []

        async def send():
            sent.append(await near.send_many([b"a"] * (room + 1)))
            with pytest.raises(OSError, match="Bad file descriptor"):
                await near.send_many([b"a"])

        drain(channel[1])
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await until_waiting(near._writing)
            near.close()
        assert sent == [room]

    run(main)


def test_a_new_descriptor_of_the_same_number_is_left_alone(run):
    async def main():
        async with anyio.create_task_group() as group:
            sock = await fastsock.aio.bind_udp(LOCAL)
            fd = sock.fileno()

            async def receive(sock):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await sock.recv_many()

            group.start_soon(receive, sock)
            await until_waiting(sock._reading)
            sock.close()
            async with fastsock.aio.bind_udp(LOCAL) as other:
                assert other.fileno() == fd
                async with anyio.create_task_group() as inner:
                    inner.start_soon(other.recv_many)
                    await until_waiting(other._reading)
                    await turns(5)
                    other.socket.sendto(b"x", other.getsockname())

    run(main)


def test_context_managers(run):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            assert isinstance(sock, fastsock.aio.AsyncSocket)
        assert sock.fileno() == -1
        async with await fastsock.aio.bind_udp(LOCAL) as sock:
            assert sock.fileno() >= 0
        assert sock.fileno() == -1
        sock = await fastsock.aio.bind_udp(LOCAL)
        await sock.aclose()
        await sock.aclose()
        assert sock.fileno() == -1
        with pytest.raises(ZeroDivisionError):
            async with fastsock.aio.connect_udp(LOCAL[:1] + (9,)) as sock:
                _ = 1 / 0
        assert sock.fileno() == -1

    run(main)


def test_a_cancelled_exit_closes(run):
    async def main():
        with anyio.CancelScope() as scope:
            async with fastsock.aio.bind_udp(LOCAL) as sock:
                scope.cancel()
                await sock.recv_many()
        assert sock.fileno() == -1

    run(main)


def test_unclosed_ones_warn_at_once(run):
    async def main():
        sock = await fastsock.aio.bind_udp(LOCAL)
        await sock.sendto_many([b"x"], sock.getsockname())
        await sock.recv_many()
        with anyio.move_on_after(0.001):
            await sock.recv_many()
        with anyio.move_on_after(0.001):
            await sock.recv_errors()
        with pytest.raises(BlockingIOError):
            await sock.recv_many(flags=socket.MSG_DONTWAIT)
        gc.collect()
        gc.disable()
        try:
            with pytest.warns(ResourceWarning, match=r"unclosed <fastsock.Socket fd=\d+"):
                del sock
        finally:
            gc.enable()

    run(main)
