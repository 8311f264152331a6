"""Datagram endpoints on every loop, and protocols that record what they are told. May import conftest.

Every test of ``endpoints`` runs on asyncio, on uvloop and on ``fastsock.aio.EventLoop``; one of ``either`` also runs on
asyncio's own endpoint, and says what both do.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastsock
import fastsock.aio

try:
    import uvloop
except ImportError:  # no wheel for this interpreter
    uvloop = None

LOCAL = ("127.0.0.1", 0)
DEADLINE_S = 20
OVERHEAD = 8
"""What a queued datagram counts beside its payload."""


class Recorder(asyncio.DatagramProtocol):
    """Keeps everything that it is told."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.made = 0
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.writing: list[str] = []
        self.lost: list[Exception | None] = []

    @property
    def payloads(self) -> list[bytes]:
        return [payload for payload, _ in self.received]

    @property
    def address(self) -> Any:
        """Where the endpoint is bound."""
        return self.transport.get_extra_info("sockname")

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.made += 1

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.writing.append("pause")

    def resume_writing(self) -> None:
        self.writing.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class BatchRecorder(Recorder):
    """The same, given batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        raise AssertionError("a protocol with datagrams_received is given nothing else")

    def datagrams_received(self, batch: fastsock.RecvBatch) -> None:
        self.sizes.append(len(batch))
        self.received += [(bytes(datagram), datagram.address) for datagram in batch]


async def until(condition: Callable[[], Any]) -> Any:
    """Let the loop run until a condition holds; returns it. ``Endpoints.run`` has the deadline."""
    while not (value := condition()):
        await asyncio.sleep(0)
    return value


async def passes(count: int = 3) -> None:
    """Let every callback that is ready run, and those that they schedule."""
    for _ in range(count):
        await asyncio.sleep(0)


class Endpoints:
    """A loop, how endpoints are made on it, and what its exception handler was told."""

    def __init__(self, new_loop: Callable[[], Any], create: Callable[..., Any] | None) -> None:
        self.new_loop = new_loop
        self._create = create
        self._opened: list[Any] = []
        self._told: list[dict[str, Any]] = []

    @property
    def ours(self) -> bool:
        return self._create is not None or self.new_loop is fastsock.aio.EventLoop

    async def create(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """create_datagram_endpoint; the transport is aborted at the end, if it is not closed."""
        create = self._create or asyncio.get_running_loop().create_datagram_endpoint
        if self.ours:
            options.setdefault("read_us", 10_000_000)  # a pass must not end because the machine is busy
        transport, protocol = await create(*arguments, **options)
        self._opened.append(transport)
        return transport, protocol

    async def open(self, protocol: Callable[[], Any] = Recorder, local_addr: Any = LOCAL, **options: Any) -> Any:
        """Return the protocol of an endpoint, bound to loopback."""
        if "sock" not in options:
            options["local_addr"] = local_addr
        return (await self.create(protocol, **options))[1]

    def take_told(self) -> list[dict[str, Any]]:
        """What the exception handler was told since the last call; what is left there fails the test."""
        taken, self._told = self._told, []
        return taken

    def run(self, main: Callable[[Any], Any]) -> Any:
        """Run ``main(loop)`` and close the endpoints that it opened."""

        async def bounded() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: self._told.append(context))
            async with asyncio.timeout(DEADLINE_S):
                try:
                    return await main(loop)
                finally:
                    for transport in self._opened:
                        if self.ours or transport._loop is not None:  # the loop's own cannot be aborted twice
                            transport.abort()
                    await passes(4)

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(bounded())


KINDS: dict[str, tuple[Any, Any]] = {
    "asyncio": (asyncio.SelectorEventLoop, fastsock.aio.create_datagram_endpoint),
    **({"uvloop": (uvloop.new_event_loop, fastsock.aio.create_datagram_endpoint)} if uvloop else {}),
    "EventLoop": (fastsock.aio.EventLoop, None),
}
THEIRS = {"loop's own": (asyncio.SelectorEventLoop, None)}


@pytest.fixture(scope="session")
def warm_uvloop() -> None:
    """The first loop of libuv opens a pipe for signals, which stays to the end of the process."""
    if uvloop:
        uvloop.new_event_loop().close()


def make_endpoints(kind: tuple[Any, Any]) -> Iterator[Endpoints]:
    made = Endpoints(*kind)
    yield made
    assert not made.take_told()


@pytest.fixture(params=KINDS)
def endpoints(request: pytest.FixtureRequest, warm_uvloop: None) -> Iterator[Endpoints]:
    yield from make_endpoints(KINDS[request.param])


@pytest.fixture(params=[*KINDS, *THEIRS])
def either(request: pytest.FixtureRequest, warm_uvloop: None) -> Iterator[Endpoints]:
    yield from make_endpoints({**KINDS, **THEIRS}[request.param])


@pytest.fixture(params=[Recorder, BatchRecorder])
def recorder(request: pytest.FixtureRequest) -> Any:
    """A protocol of either interface."""
    return request.param


@pytest.fixture
def unix_far(tmp_path: Path) -> Iterator[socket.socket]:
    """A plain AF_UNIX socket; nobody can send to it while about ten datagrams wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "far"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def far() -> Iterator[socket.socket]:
    """A plain socket at the other end, which waits 10 s at most."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(LOCAL)
        sock.settimeout(10)
        yield sock


def count_payloads(count: int, start: int = 0) -> list[bytes]:
    """Payloads of different sizes that name their place."""
    return [b"%d" % number + b"." * (number % 7) for number in range(start, start + count)]


def send_all(far: socket.socket, address: Any, payloads: list[bytes]) -> None:
    for payload in payloads:
        far.sendto(payload, address)


def receive_now(sock: socket.socket, most: int = 10_000) -> list[bytes]:
    """What waits at a socket that does not."""
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(found) < most:
            found.append(sock.recv(70000))
    return found


async def open_full(
    endpoints: Endpoints, unix_far: socket.socket, protocol: Any = Recorder, size: int = 1
) -> tuple[Any, int]:
    """An endpoint whose peer takes no more, and how many datagrams of `size` bytes it took; one more is queued."""
    near = await endpoints.open(protocol, None, family=socket.AF_UNIX, remote_addr=unix_far.getsockname())
    taken = 0
    while True:
        near.transport.sendto(b"f" * size)
        if endpoints.ours:
            near.transport.flush()
        if near.transport.get_write_buffer_size():
            return near, taken
        taken += 1
