"""fastsock.aio.bind_udp and connect_udp: names resolved off the loop, signatures; an AsyncSocket around a Socket."""

import inspect
import socket
import threading

import pytest
import trio
import trio.testing
from conftest import needs_localhost
from frameworks import (
    LOCAL,
    uvloop,
)

import fastsock
import fastsock.aio


def test_options(run):
    async def main():
        async with fastsock.aio.bind_udp(address=LOCAL, reuse_port=True, ttl=True) as far:
            assert far.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            async with fastsock.aio.connect_udp(far.getsockname(), local_address=LOCAL, gso=False) as near:
                assert not near.socket.gso
                await near.send_many([b"x"])
                async for batch in far.batches(addresses=True):
                    assert batch[0].address == near.getsockname()
                    assert batch[0].ttl > 0
                    break

    run(main)


@needs_localhost
def test_names_are_resolved_in_a_thread(run, monkeypatch):
    resolved = []
    resolve = socket.getaddrinfo

    def notice(host, *args, **options):
        if not (options.get("flags", 0) | (args[4] if len(args) > 4 else 0)) & socket.AI_NUMERICHOST:
            resolved.append((host, threading.current_thread() is threading.main_thread()))
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", notice)

    async def main():
        async with fastsock.aio.bind_udp(("localhost", 0), family=socket.AF_INET) as far:
            assert far.getsockname()[0] == "127.0.0.1"
            there = ("localhost", far.getsockname()[1])
            async with fastsock.aio.connect_udp(there, family=socket.AF_INET, local_address=("localhost", 0)) as near:
                assert near.socket.getpeername() == far.getsockname()
                assert near.getsockname()[0] == "127.0.0.1"

        with pytest.raises(OverflowError):
            await fastsock.aio.bind_udp(("localhost", 1 << 16))

    run(main)
    assert ("localhost", True) not in resolved


def test_refused_openings(run):
    async def main():
        async with fastsock.aio.bind_udp(LOCAL) as sock:
            with pytest.raises(OSError, match="Address already in use: "):
                await fastsock.aio.bind_udp(sock.getsockname())
        with pytest.raises(TypeError, match="address must be a tuple"):
            await fastsock.aio.bind_udp("here")
        with pytest.raises(OverflowError):
            await fastsock.aio.bind_udp(("127.0.0.1", 1 << 16))
        with pytest.raises(TypeError):
            await fastsock.aio.bind_udp(LOCAL, unknown=1)
        with pytest.raises(socket.gaierror):
            await fastsock.aio.bind_udp(("::1", 0), family=socket.AF_INET)

    run(main)


def test_opening_is_a_checkpoint_on_trio():
    async def main():
        with trio.testing.assert_checkpoints():
            sock = await fastsock.aio.bind_udp(LOCAL)
        sock.close()
        with trio.CancelScope() as scope:
            scope.cancel()
            await fastsock.aio.bind_udp(LOCAL)
        assert scope.cancelled_caught

    trio.run(main)


def test_an_opening_that_nobody_awaits_warns():
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        fastsock.aio.bind_udp(LOCAL)


def test_signatures():
    for name in ("bind_udp", "connect_udp"):
        ours, theirs = (inspect.signature(getattr(module, name)) for module in (fastsock.aio, fastsock))
        assert ours.parameters == theirs.parameters
        assert "AsyncSocket" in getattr(fastsock.aio, name).__doc__


def test_wrapping(closing):
    with pytest.raises(TypeError, match="from_stdlib"), socket.socket() as sock:
        fastsock.aio.AsyncSocket(sock)
    with pytest.raises(ValueError, match="datagram"):
        fastsock.aio.AsyncSocket(closing(fastsock.Socket()))
    sock = closing(fastsock.bind_udp(LOCAL))
    wrapped = fastsock.aio.AsyncSocket(sock)
    assert wrapped.socket is sock
    assert sock.gettimeout() == 0
    assert repr(sock) in repr(wrapped)


def test_without_a_loop(closing):
    sock = closing(fastsock.aio.AsyncSocket(fastsock.bind_udp(LOCAL)))
    waiting = sock.recv_many()
    with pytest.raises(RuntimeError, match="no running event loop"):
        waiting.send(None)


def test_no_framework_is_imported(isolated):
    said = isolated(
        """
import asyncio, sys
import fastsock.aio
async def main():
    async with fastsock.aio.bind_udp(("127.0.0.1", 0)) as sock:
        await sock.sendto_many([b"x"], sock.getsockname())
        print(await sock.recv_many())
asyncio.run(main())
print({"trio", "uvloop", "anyio", "sniffio"} & set(sys.modules))
"""
    )
    assert said == "[b'x']\nset()\n"


@pytest.mark.parametrize(
    "module", ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not uvloop, reason="no wheel"))]
)
def test_a_loop_that_was_closed_under_a_waiting_task(isolated, module):
    """The descriptor is closed all the same, and nothing is printed."""
    isolated(
        f"""
import asyncio, {module}
import fastsock.aio
loop = {module}.new_event_loop()
sock = fastsock.aio.AsyncSocket(fastsock.bind_udp(("127.0.0.1", 0)))
coroutine = sock.recv_many()
task = loop.create_task(coroutine)
loop.run_until_complete(asyncio.sleep(0))
assert sock._reading.fd >= 0
task._log_destroy_pending = False
loop.close()
sock.close()
assert sock.fileno() == -1
del task
coroutine.close()
"""
    )
