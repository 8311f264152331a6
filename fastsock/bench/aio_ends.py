"""The receivers of the asyncio question, each in a process of its own that imports nothing else.

`python -P aio_ends.py JSON`: by its path, because importing the package would import all of fastsock.

asyncio's transport allocates 256 KiB for each datagram. Whether malloc maps and unmaps these depends on what the
process freed before (mallopt(3), M_MMAP_THRESHOLD): importing fastsock is enough to make asyncio's own several times
faster. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import socket
import ssl
import sys
import time
from types import SimpleNamespace
from typing import Any

TIMER_S = 0.01
SETTLE_S = 0.15
"""Of a flood, before it counts."""


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    if name == "EventLoop":
        import fastsock.aio

        return fastsock.aio.EventLoop()
    return asyncio.SelectorEventLoop()


# --- a flood -------------------------------------------------------------------------------------


class Protocol(asyncio.DatagramProtocol):
    """As everyone writes it."""

    received = 0

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        self.received += 1


class Batches(asyncio.DatagramProtocol):
    received = 0

    def datagrams_received(self, batch: Any) -> None:
        self.received += len(batch)


class Window:
    """What happens between its making and `end`, in the thread that calls both."""

    def __init__(self, sent: memoryview) -> None:
        self.sent, self.offered = sent, sent[0]
        self.began, self.cpu_ns = time.monotonic(), time.thread_time_ns()

    def end(self, received: int) -> dict[str, float]:
        cpu_ns, seconds = time.thread_time_ns() - self.cpu_ns, time.monotonic() - self.began
        return {
            "per_s": received / seconds,
            "ns": cpu_ns / max(1, received),
            "cpu": cpu_ns / seconds / 1e9,
            "lost": max(0.0, 1 - received / max(1, self.sent[0] - self.offered)),
        }


def receive_bare(spec: SimpleNamespace, sent: memoryview) -> dict[str, Any]:
    """What a thread of its own would do. As the transport does it: peers too, and room for what is joined."""
    import fastsock

    sock = fastsock.Socket(fileno=spec.fd)
    vlen = 16 if spec.gro else 64
    if spec.batches:
        batch = fastsock.RecvBatch(vlen, 65535 if spec.gro else 2048, addresses=True)

        def run() -> int:
            return sum(sock.recv_batch(batch) for _ in range(16))
    else:

        def run() -> int:
            return sum(len(sock.recvfrom_many(vlen)) for _ in range(16))

    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        run()
    window = Window(sent)
    received = 0
    while time.monotonic() - window.began < spec.seconds:
        received += run()
    return window.end(received)


async def receive_on_loop(spec: SimpleNamespace, sent: memoryview) -> dict[str, Any]:
    """The same by an endpoint, beside a timer; "delays" are when it fired, in ms."""
    loop = asyncio.get_running_loop()
    protocol: type[Batches] | type[Protocol] = Batches if spec.batches else Protocol
    transport: Any
    counter: Any
    if spec.ours:
        import fastsock.aio

        own = fastsock.Socket(fileno=spec.fd)
        transport, counter = await fastsock.aio.create_datagram_endpoint(protocol, sock=own)
    else:
        if spec.freed:
            bytes(1 << 20)
        transport, counter = await loop.create_datagram_endpoint(protocol, sock=socket.socket(fileno=spec.fd))
    failures: list[Any] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    delays: list[float] = []
    timer: asyncio.TimerHandle

    def arm() -> None:
        nonlocal timer
        timer = loop.call_later(TIMER_S, fire, time.perf_counter())

    def fire(armed: float) -> None:
        delays.append((time.perf_counter() - armed) * 1e3)
        arm()

    await asyncio.sleep(SETTLE_S)
    arm()
    before, window = counter.received, Window(sent)
    await asyncio.sleep(spec.seconds)
    found = window.end(counter.received - before)
    timer.cancel()
    transport.abort()
    await asyncio.sleep(0)
    if failures:
        raise RuntimeError(f"{len(failures)} times something failed under the loop: {failures[0]}")
    return {**found, "delays": delays}


def receive(spec: SimpleNamespace) -> dict[str, Any]:
    with memoryview(mmap.mmap(spec.sent_fd, mmap.PAGESIZE)).cast("q") as sent:
        if not spec.loop:
            return receive_bare(spec, sent)
        with asyncio.Runner(loop_factory=lambda: new_loop(spec.loop)) as runner:
            return runner.run(receive_on_loop(spec, sent))


# --- aioquic -------------------------------------------------------------------------------------


def serve(spec: SimpleNamespace) -> None:
    """Answer each stream with so many bytes, for ever; writes the port to a pipe."""
    from aioquic.asyncio.server import serve
    from aioquic.quic.configuration import QuicConfiguration

    async def run() -> None:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
        configuration.load_cert_chain(*spec.certificate)
        tasks = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.write(bytes(spec.nbytes))
            writer.write_eof()

        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.ensure_future(answer(reader, writer)))

        server: Any = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=handle)
        os.write(spec.ready_fd, str(server._transport.get_extra_info("sockname")[1]).encode())
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=lambda: new_loop(spec.loop)) as runner:
        runner.run(run())


def download(spec: SimpleNamespace) -> dict[str, float]:
    """Seconds that it takes without the handshake, and the CPU time of this end."""
    from aioquic.asyncio.client import connect
    from aioquic.quic.configuration import QuicConfiguration

    async def run() -> dict[str, float]:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["bench"], verify_mode=ssl.CERT_NONE)
        async with connect("127.0.0.1", spec.port, configuration=configuration) as client:
            reader, writer = await client.create_stream()
            began, cpu = time.monotonic(), time.process_time()
            writer.write_eof()
            got = 0
            while piece := await reader.read(1 << 20):
                got += len(piece)
            found = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
        if got != spec.nbytes:
            raise OSError(f"{got} of {spec.nbytes} bytes arrived")
        return found

    with asyncio.Runner(loop_factory=lambda: new_loop(spec.loop)) as runner:
        return runner.run(run())


ENDS = {"receive": receive, "serve": serve, "download": download}

if __name__ == "__main__":
    asked = SimpleNamespace(**json.loads(sys.argv[1]))
    sys.path.append(asked.path)
    if asked.cpu is not None:
        os.sched_setaffinity(0, {asked.cpu})
    print(json.dumps(ENDS[asked.end](asked)))
