"""What an AsyncSocket is told of errors, and how it waits for the error queue."""

import errno
import socket

import anyio
import pytest
from conftest import drain, needs
from frameworks import (
    LOCAL,
    fill,
    turns,
    until,
    until_waiting,
)

import fastsock
import fastsock.aio
from fastsock.aio import _sockets, _waiting


@pytest.fixture
def dead():
    """An address where nobody listens."""
    with fastsock.bind_udp(LOCAL) as sock:
        return sock.getsockname()


def test_connection_refused_wakes_a_receive(run, dead):
    async def main():
        async with fastsock.aio.connect_udp(dead) as sock:

            async def receive():
                with pytest.raises(ConnectionRefusedError):
                    await sock.recv_many()

            async with anyio.create_task_group() as group:
                group.start_soon(receive)
                await until_waiting(sock._reading)
                assert await sock.send_many([b"x"]) == 1

    run(main)


def test_connection_refused_behind_a_part(run, dead, monkeypatch):
    """The kernel reports it once: it is kept for the next send."""
    monkeypatch.setattr(_sockets, "SEND_DATAGRAMS", 1)

    async def main():
        async with fastsock.aio.connect_udp(dead) as sock:
            assert await sock.send_many([b"a", b"b", b"c"]) == 1
            with pytest.raises(ConnectionRefusedError) as caught:
                await sock.send_many([b"b"])
            assert caught.value.sent == 0
            assert await sock.send_many([b"b"]) == 1

    run(main)


def test_too_long_a_datagram(run, monkeypatch):
    monkeypatch.setattr(_sockets, "SEND_DATAGRAMS", 2)
    payloads = [b"a", b"b", b"c", bytes(70_000), b"d"]

    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as far, fastsock.aio.connect_udp(far.getsockname()) as near:
            assert await near.send_many(payloads) == 3
            with pytest.raises(OSError, match="Message too long"):
                await near.send_many(payloads[3:])
            assert await near.send_many(payloads[4:]) == 1
            assert await near.send_many([*payloads[:3], 5]) == 2  # c is checked together with 5
            with pytest.raises(TypeError):
                await near.send_many([5])
            batch = fastsock.SendBatch(8, 70_000)
            for payload in payloads:
                batch.append(payload)
            assert await near.send_batch(batch) == 3
            with pytest.raises(OSError, match="Message too long"):
                await near.send_batch(batch)
            batch.skip()
            assert await near.send_batch(batch) == 1
            assert await far.recv_many() == [b"a", b"b", b"c", b"d", b"a", b"b", b"a", b"b", b"c", b"d"]

    run(main)


@needs("error_queue")
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a receive"])
def test_error_records_are_waited_for(run, dead, beside):
    """Also where a receive that waits is woken by the same error, and empties the queue to go on."""

    async def main():
        async with fastsock.aio.bind_udp(LOCAL, error_queue=True) as sock:
            found = []

            async def watch():
                while len(found) < 3:
                    found.append(await sock.recv_errors())

            async with anyio.create_task_group() as outer:
                if beside:
                    outer.start_soon(sock.recv_many)
                    await until_waiting(sock._reading)
                async with anyio.create_task_group() as group:
                    group.start_soon(watch)
                    for count in range(3):
                        await until_waiting(sock._failing)
                        await turns(3)
                        assert len(found) == count
                        assert await sock.sendto_many([b"x"], dead) == 1
                        await until(lambda count=count: len(found) > count)
                assert [[(record.errno, record.address) for record in records] for records in found] == [
                    [(errno.ECONNREFUSED, dead)]
                ] * 3
                assert not beside or sock._reading.fd >= 0
                outer.cancel_scope.cancel()

    run(main)


@needs("error_queue")
def test_error_records_that_a_send_came_upon(run, dead):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL, error_queue=True) as sock:
            sock.socket.sendto_many([b"x"], dead)
            assert await sock.sendto_many([b"y"], sock.getsockname()) == 1
            assert sock.socket._errors_kept == 1
            assert [record.address for record in await sock.recv_errors()] == [dead]
            assert await sock.recv_many() == [b"y"]

    run(main)


@needs("error_queue")
def test_error_records_that_a_send_takes_first(run, dead, never_yield, count_waits):
    """No POLLERR is left for the one that waits, who hears of them all the same, and then rests."""

    async def main():
        async with fastsock.aio.bind_udp(LOCAL, error_queue=True) as sock:
            found = []

            async def watch():
                while len(found) < 2:
                    found.append(await sock.recv_errors())

            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                for count in range(2):
                    await until_waiting(sock._failing)
                    await turns(20)
                    assert len(count_waits) <= 2 * count + 1
                    sock.socket.sendto_many([b"x"], dead)
                    assert await sock.sendto_many([b"y"], sock.getsockname()) == 1
                    await until(lambda count=count: len(found) > count)
            assert [record.address for records in found for record in records] == [dead, dead]

    run(main)


def test_an_error_without_a_queue(run, dead):
    async def main():
        async with fastsock.aio.connect_udp(dead) as sock:

            async def watch():
                with pytest.raises(ConnectionRefusedError):
                    await sock.recv_errors()

            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await until_waiting(sock._failing)
                await sock.send_many([b"x"])

    run(main)


@needs("transmit_timestamps")
def test_records_do_not_keep_a_receive_awake(run, count_waits):
    """Transmit timestamps keep POLLERR up until they are taken off the queue; they are kept for recv_errors."""

    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as far, fastsock.aio.bind_udp(LOCAL, transmit_timestamps=True) as sock:
            async with anyio.create_task_group() as group:
                group.start_soon(sock.recv_many)
                await until_waiting(sock._reading)
                assert await sock.sendto_many([b"x"], far.getsockname()) == 1
                await until(lambda: sock.socket._errors_kept == 1)
                await turns(20)
                assert len(count_waits) == 2
                await far.sendto_many([b"y"], sock.getsockname())
            assert [record.origin for record in await sock.recv_errors()] == ["timestamp"]

    run(main)


def test_futile_readiness_does_not_spin(run, tmp_path, closing, count_waits):
    """An unconnected AF_UNIX socket is writable whatever its peer's queue."""
    far = closing(fastsock.Socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    far.bind(str(tmp_path / "far"))
    far.setblocking(False)
    sock = closing(fastsock.aio.AsyncSocket(fastsock.Socket(socket.AF_UNIX, socket.SOCK_DGRAM)))

    async def main():
        room = fill(sock.socket, far.getsockname())
        async with anyio.create_task_group() as group:
            group.start_soon(sock.sendto_many, [b"last"], far.getsockname())
            await anyio.sleep(0.03)
            assert len(count_waits) == _waiting.FUTILE_WAKEUPS
            found = drain(far)
        found += drain(far)
        assert len(found) == room + 1
        assert found[-1] == b"last"

    run(main)
