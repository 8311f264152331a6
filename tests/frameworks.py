"""What runs tests of AsyncSocket on asyncio, uvloop, trio and anyio, and their fixtures. conftest loads it."""

import asyncio
import functools
import socket

import anyio
import pytest
import trio

import fastsock
import fastsock.aio
from fastsock.aio import _sockets, _waiting

try:
    import uvloop
except ImportError:  # no wheel for this interpreter
    uvloop = None
else:
    uvloop.new_event_loop().close()  # the first one opens a pipe for signals, which stays to the end of the process

LOCAL = ("127.0.0.1", 0)


def on_loop(factory):
    def run(main):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    return run


RUNNERS = {
    "asyncio": on_loop(asyncio.SelectorEventLoop),
    "ours": on_loop(fastsock.aio.EventLoop),
    "uvloop": on_loop(uvloop and uvloop.new_event_loop),
    "trio": trio.run,
    "anyio-asyncio": functools.partial(anyio.run, backend="asyncio"),
    "anyio-trio": functools.partial(anyio.run, backend="trio"),
}
if uvloop is None:
    del RUNNERS["uvloop"]
LOOPS = [name for name in RUNNERS if name in ("asyncio", "ours", "uvloop")]


def bounded(runner):
    """Run a coroutine function, 30 s at most; nothing may be left in the loop's or trio's interest set."""

    def run(main):
        async def within():
            await anyio.sleep(0.001)  # trio's own tasks begin to wait
            before = count_waiting()
            with anyio.fail_after(30):
                await main()
            assert count_waiting() == before

        return runner(within)

    return run


def count_waiting():
    """How much is in the interest set of the loop; uvloop does not show its own."""
    if _waiting.running_trio():
        waiting = trio.lowlevel.current_statistics().io_statistics
        return waiting.tasks_waiting_read, waiting.tasks_waiting_write
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    return selector and len(selector.get_map())


def check_not_watched(sock):
    """The loop has forgotten the socket."""
    if not _waiting.running_trio():
        loop = asyncio.get_running_loop()
        assert not loop.remove_reader(sock.fileno())
        assert not loop.remove_writer(sock.fileno())


async def until(condition):
    while not condition():
        await anyio.sleep(0.001)


async def until_waiting(side):
    await until(lambda: side.fd >= 0)


async def turns(count):
    for _ in range(count):
        await anyio.sleep(0)


def pack(numbers):
    return [number.to_bytes(4, "big") for number in numbers]


def unpack(payloads):
    return [int.from_bytes(payload, "big") for payload in payloads]


def fill(sock, *peer):
    """Send until there is no room; how many went."""
    count = 0
    try:
        while True:
            count += sock.sendto_many([b"fill"], *peer) if peer else sock.send_many([b"fill"])
    except BlockingIOError:
        return count


@pytest.fixture(params=RUNNERS)
def run(request):
    return bounded(RUNNERS[request.param])


@pytest.fixture(params=LOOPS)
def run_loop(request):
    """Loops of asyncio alone, whose tasks are cancelled once instead of until they end."""
    return bounded(RUNNERS[request.param])


@pytest.fixture
def always_yield(monkeypatch):
    """Every call gives other tasks their turn first."""
    monkeypatch.setattr(_sockets, "BUSY_NS", -1)


@pytest.fixture
def never_yield(monkeypatch):
    monkeypatch.setattr(_sockets, "BUSY_NS", 1 << 62)


@pytest.fixture
def count_waits(monkeypatch):
    """A list with an item for each wait for readiness."""
    waits = []
    wait = _waiting.Side.wait

    def count(self, fd, trio):
        waits.append(fd)
        return wait(self, fd, trio)

    monkeypatch.setattr(_waiting.Side, "wait", count)
    return waits


@pytest.fixture
def channel(closing):
    """An ``AsyncSocket`` and the ``Socket`` that it is connected to, over AF_UNIX: nothing is dropped, all waits."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near, far = (closing(fastsock.Socket.from_stdlib(end)) for end in ends)
    far.setblocking(False)
    return closing(fastsock.aio.AsyncSocket(near)), far
