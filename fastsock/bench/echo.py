"""One end of the round trips of `latency`, in a process of its own: ``python -P echo.py CONTROL SAMPLES PARENT``.

CONTROL is a Unix socket of datagrams: each command is a JSON object with the UDP sockets that it is about, and each
answer one too. SAMPLES is a memory file for times in nanoseconds. A command names the way to wait for datagrams; the
ways are the contestants. Imports only what a way needs: with fastsock imported malloc treats asyncio's buffers
differently (bench/README.md, asyncio), so what runs asyncio alone must not have it.

A request has sockperf's header, so that sockperf's server can answer it. A datagram of one byte ends a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

HEADER = struct.Struct("!QHI")
"""sockperf's: number, flags, length."""
IS_CLIENT, WANTS_ANSWER = 1, 2
PR_SET_PDEATHSIG = 1
BUFSIZE = 2048
SPIN_US = 1_000_000
"""Longer than any pause within a turn."""
WARM_TRIPS = 20
WARMING = ("warm_ns", "warm", "quiet_ns")
CONTROL_BYTES = 1 << 16
MAX_SAMPLES = 1 << 18
"""For each of two kinds of times in the memory file."""

clock = time.perf_counter_ns
Call = Callable[..., Any]


def request(number: int, size: int) -> bytes:
    return HEADER.pack(number, IS_CLIENT | WANTS_ANSWER, size).ljust(size, b"\0")


def as_server(payload: bytes) -> bytes:
    """What sockperf's client takes for an answer."""
    number, flags, length = HEADER.unpack_from(payload)
    return HEADER.pack(number, flags & ~IS_CLIENT, length) + payload[HEADER.size :]


# --- ways to wait for one datagram, in a thread that has nothing else to do ---------------------------------


def std(sock: socket.socket, _timeout_s: float, _stack: ExitStack) -> tuple[Call, Call]:
    return functools.partial(sock.recv, BUFSIZE), sock.send


def std_timeout(sock: socket.socket, timeout_s: float, _stack: ExitStack) -> tuple[Call, Call]:
    sock.settimeout(timeout_s)
    return functools.partial(sock.recv, BUFSIZE), sock.send


def std_spin(sock: socket.socket, timeout_s: float, _stack: ExitStack) -> tuple[Call, Call]:
    sock.setblocking(False)
    recv = sock.recv

    def receive() -> bytes:
        end = None
        while True:
            try:
                return recv(BUFSIZE)
            except BlockingIOError:
                if end is None:
                    end = clock() + int(timeout_s * 1e9)
                elif clock() > end:
                    raise

    return receive, sock.send


def own(sock: socket.socket, stack: ExitStack) -> Any:
    """fastsock's socket, of the same descriptor."""
    import fastsock

    return stack.enter_context(fastsock.Socket(fileno=os.dup(sock.fileno())))


def single(sock: socket.socket, _timeout_s: float, stack: ExitStack) -> tuple[Call, Call]:
    ours = own(sock, stack)
    return functools.partial(ours.recv, BUFSIZE), ours.send


def single_timeout(sock: socket.socket, timeout_s: float, stack: ExitStack) -> tuple[Call, Call]:
    ours = own(sock, stack)
    ours.settimeout(timeout_s)
    return functools.partial(ours.recv, BUFSIZE), ours.send


def batched(sock: socket.socket, _timeout_s: float, stack: ExitStack) -> tuple[Call, Call]:
    import fastsock

    ours, batch = own(sock, stack), fastsock.RecvBatch()

    def receive() -> Any:
        ours.recv_batch(batch)
        return batch

    return receive, ours.send_many


def received(sock: socket.socket, timeout_s: float, stack: ExitStack, spin_us: int = 0) -> tuple[Call, Call]:
    import fastsock

    ours = own(sock, stack)
    receiver = stack.enter_context(fastsock.Receiver(ours, slots=4096, spin_us=spin_us))
    return functools.partial(receiver.take, None, timeout_s), ours.send_many


THREADED: dict[str, Callable[[socket.socket, float, ExitStack], tuple[Call, Call]]] = {
    "socket.recv": std,
    "socket.recv, time-out": std_timeout,
    "socket.recv, spinning": std_spin,
    "Socket.recv": single,
    "Socket.recv, time-out": single_timeout,
    "recv_batch": batched,
    "Receiver": received,
    "Receiver, spinning": functools.partial(received, spin_us=SPIN_US),
}
BATCHES = ("recv_batch", "Receiver", "Receiver, spinning")
"""Those that receive many."""
NATIVE = {"C recv": 0, "C recv, spinning": 1}
LOOPS = {
    "asyncio": ("asyncio", False),
    "uvloop": ("uvloop", False),
    "fastsock.aio": ("asyncio", True),
    "fastsock.aio, uvloop": ("uvloop", True),
}
"""The event loop, and whether the endpoint on it is fastsock's."""
SPINNING = ("socket.recv, spinning", "Receiver, spinning", "C recv, spinning")
UNTHREADED = ("Receiver", *SPINNING)
"""Those that make no sense where both ends are one thread."""
FOREVER_S = 1e6


def open_way(way: str, sock: socket.socket, timeout_s: float, stack: ExitStack) -> tuple[Call, Call]:
    """What receives and what sends; a receive ends with an OSError, or nothing, behind `timeout_s`."""
    sock.settimeout(None)
    if timeout_s < FOREVER_S and way not in SPINNING:
        # In the kernel, where it costs nothing as long as there is something to receive.
        seconds = int(timeout_s)
        timeval = struct.pack("@ll", seconds, int((timeout_s - seconds) * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    return THREADED[way](sock, timeout_s, stack)


# --- both ends ------------------------------------------------------------------------------------------------


class End:
    """Carries out commands. Every method that is one is named as in the command."""

    def __init__(self, samples_fd: int) -> None:
        self.memory = mmap.mmap(samples_fd, 2 * MAX_SAMPLES * 8)
        self.samples = memoryview(self.memory).cast("q")
        self.tell: Callable[[dict[str, Any]], None] = print
        self.loops: dict[str, Any] = {}

    def native(self, library: str, name: str) -> Callable[..., int]:
        """A function of echo.c."""
        call = getattr(ctypes.CDLL(library), name)
        call.restype = ctypes.c_int64
        found: Callable[..., int] = call
        return found

    # --- one way to wait, in a thread ---------------------------------------------------------------

    def serve(self, spec: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
        """Answer until a datagram of one byte comes."""
        way, sockperf = spec["way"], spec.get("sockperf", False)
        if way in LOOPS:
            return self.run(way, self.serve_on_loop(way, sock, sockperf))
        if way in NATIVE:
            self.tell({"ready": True})
            call = self.native(spec["library"], "echo_serve")
            return {"served": check(call(sock.fileno(), NATIVE[way]))}
        served = 0
        with ExitStack() as stack:
            receive, send = open_way(way, sock, FOREVER_S, stack)
            self.tell({"ready": True})
            if way in BATCHES:
                while True:
                    payloads = receive().payloads()
                    if len(payloads[-1]) == 1:
                        break
                    send(list(map(as_server, payloads)) if sockperf else payloads)
                    served += len(payloads)
            else:
                while len(payload := receive()) > 1:
                    send(as_server(payload) if sockperf else payload)
                    served += 1
        return {"served": served}

    def trips(self, spec: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
        """Ask, wait for the answer, ask again; the time of each goes to the samples.

        Ends at an answer that does not come in time, because it could be taken for the next.
        """
        way, size, timeout_s = spec["way"], spec["size"], spec["timeout_s"]
        if way in LOOPS:
            return self.run(way, self.trip_on_loop(way, [sock], spec))
        if way in NATIVE:
            call = self.native(spec["library"], "echo_trips")
            made = call(sock.fileno(), NATIVE[way], size, *self.native_limits(spec))
            return {"count": abs(made), "missing": int(made < 0)}
        with ExitStack() as stack:
            receive, send = open_way(way, sock, timeout_s, stack)
            message = request(0, size)
            argument = [message] if way in BATCHES else message
            return self.time_trips(lambda: None, receive, functools.partial(send, argument), spec)

    def both(self, spec: dict[str, Any], near: socket.socket, far: socket.socket) -> dict[str, Any]:
        """`trips` where the other end is this thread too, and so nothing ever waits."""
        way, size, timeout_s = spec["way"], spec["size"], spec["timeout_s"]
        if way in LOOPS:
            return self.run(way, self.trip_on_loop(way, [near, far], spec))
        if way in NATIVE:
            call = self.native(spec["library"], "echo_both")
            made = call(near.fileno(), far.fileno(), size, *self.native_limits(spec))
            return {"count": abs(made), "missing": int(made < 0)}
        with ExitStack() as stack:
            receive, send = open_way(way, near, timeout_s, stack)
            hear, reply = open_way(way, far, timeout_s, stack)
            message = request(0, size)
            if way in BATCHES:
                answer = lambda: reply(hear().payloads())  # noqa: E731
                return self.time_trips(answer, receive, functools.partial(send, [message]), spec)
            return self.time_trips(lambda: reply(hear()), receive, functools.partial(send, message), spec)

    def time_trips(self, answer: Call, receive: Call, send: Call, spec: dict[str, Any]) -> dict[str, Any]:
        samples, count, most = self.samples, -WARM_TRIPS, min(spec["most"], MAX_SAMPLES)
        end = 0
        while True:
            begin = clock()
            if not count:
                end = begin + spec["duration_ns"]
            send()
            try:
                answer()
                found = receive()
            except (BlockingIOError, TimeoutError):
                found = None
            now = clock()
            if count >= 0 or not found:
                count = max(count, 0)
                samples[count] = now - begin
            count += 1
            if not found:
                return {"count": count, "missing": 1}
            if count >= most or (now >= end and count > 0):
                return {"count": count, "missing": 0}

    def native_limits(self, spec: dict[str, Any]) -> tuple[Any, ...]:
        """The last arguments of echo.c's calls: duration, time-out, most, warm, samples."""
        most = min(spec["most"], MAX_SAMPLES)
        numbers = (spec["duration_ns"], int(spec["timeout_s"] * 1e9), most, WARM_TRIPS)
        address = ctypes.addressof(ctypes.c_int64.from_buffer(self.memory))
        return (*map(ctypes.c_int64, numbers), ctypes.c_void_p(address))

    # --- an event loop --------------------------------------------------------------------------------

    def run(self, way: str, coroutine: Any) -> dict[str, Any]:
        kind = LOOPS[way][0]
        if kind not in self.loops:
            factory = asyncio.SelectorEventLoop if kind == "asyncio" else importlib.import_module(kind).new_event_loop
            self.loops[kind] = asyncio.Runner(loop_factory=factory)
        found: dict[str, Any] = self.loops[kind].run(coroutine)
        return found

    async def open(self, way: str, sock: socket.socket, protocol: asyncio.DatagramProtocol) -> Any:
        duplicate = sock.dup()
        if LOOPS[way][1]:
            aio = importlib.import_module("fastsock.aio")
            transport, _ = await aio.create_datagram_endpoint(lambda: protocol, sock=duplicate)
        else:
            duplicate.setblocking(False)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(lambda: protocol, sock=duplicate)
        return transport

    async def serve_on_loop(self, way: str, sock: socket.socket, sockperf: bool) -> dict[str, Any]:
        protocol = Answering(sockperf)
        transport = await self.open(way, sock, protocol)
        self.tell({"ready": True})
        try:
            await protocol.ended
        finally:
            await close(transport)
        return {"served": protocol.served}

    async def trip_on_loop(self, way: str, ends: list[socket.socket], spec: dict[str, Any]) -> dict[str, Any]:
        asking = Asking(self.samples, spec)
        transports = [await self.open(way, ends[0], asking)]
        try:
            for far in ends[1:]:
                transport = await self.open(way, far, Answering(sockperf=False))
                transports.append(transport)
            asking.begin(transports[0])
            missing = await asking.ended
        finally:
            for transport in transports:
                await close(transport)
        return {"count": asking.count, "missing": missing}

    # --- an open loop ----------------------------------------------------------------------------------

    def load(self, spec: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
        """Requests at a fixed rate: when each was sent, and answered, goes to the samples."""
        from fastsock.bench.openloop import drive, saturate

        count, interval_ns = spec["count"], spec["interval_ns"]
        sent, answered = self.samples[:count], self.samples[MAX_SAMPLES : MAX_SAMPLES + count]
        for times in (sent, answered):
            times[:] = memoryview(bytes(8 * count)).cast("q")
        with ExitStack() as stack:
            send, poll = self.open_load(sock, spec["size"], stack)
            # Numbers that the requests proper do not have.
            saturate(lambda number: send(number + (1 << 40)), poll, clock, 4, *(spec[name] for name in WARMING))
            cpu_ns, began_ns = time.thread_time_ns(), clock()
            first_ns, end_ns = drive(send, poll, clock, sent, answered, count, interval_ns, spec["timeout_ns"])
            cpu = (time.thread_time_ns() - cpu_ns) / (clock() - began_ns)
        return {"first_ns": first_ns, "end_ns": end_ns, "cpu": cpu}

    def capacity(self, spec: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
        """Answers, and in how many nanoseconds, with so many requests always unanswered."""
        from fastsock.bench.openloop import saturate

        with ExitStack() as stack:
            send, poll = self.open_load(sock, spec["size"], stack)
            saturate(send, poll, clock, 4, *(spec[name] for name in WARMING))
            answers, ns = saturate(
                send, poll, clock, spec["window"], spec["duration_ns"], spec["least"], spec["quiet_ns"]
            )
        return {"answers": answers, "ns": ns}

    def open_load(
        self, sock: socket.socket, size: int, stack: ExitStack
    ) -> tuple[Callable[[int], object], Callable[[], list[int]]]:
        ours = own(sock, stack)
        ours.setblocking(False)
        recv_many, raw, pack = ours.recv_many, ours.send, struct.Struct("!QHI").pack
        unpack, padding = HEADER.unpack_from, bytes(size - HEADER.size)
        flags = IS_CLIENT | WANTS_ANSWER

        def send(number: int) -> None:
            raw(pack(number, flags, size) + padding)

        def poll() -> list[int]:
            try:
                payloads = recv_many(64, BUFSIZE)
            except BlockingIOError:
                return []
            return [unpack(payload)[0] for payload in payloads]

        return send, poll


class Answering(asyncio.DatagramProtocol):
    """Answers until a datagram of one byte comes."""

    def __init__(self, sockperf: bool) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sockperf = sockperf
        self.served = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        if len(data) == 1:
            if not self.ended.done():
                self.ended.set_result(None)
            return
        self.transport.sendto(as_server(data) if self.sockperf else data)
        self.served += 1


class Asking(asyncio.DatagramProtocol):
    """Asks when it was answered."""

    def __init__(self, samples: memoryview, spec: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self.loop.create_future()
        self.samples, self.count = samples, -WARM_TRIPS
        self.most = min(spec["most"], MAX_SAMPLES)
        self.duration_ns, self.timeout_s = spec["duration_ns"], spec["timeout_s"]
        self.message = request(0, spec["size"])

    def begin(self, transport: Any) -> None:
        self.send = transport.sendto
        self.end_ns = 0
        self.watch(None)
        self.sent_ns = clock()
        self.send(self.message)

    def watch(self, seen: int | None) -> None:
        """Every time-out, whether there was an answer since the last."""
        if self.ended.done():
            return
        if seen == self.count:
            self.count = max(0, self.count)
            self.samples[self.count] = clock() - self.sent_ns
            self.count += 1
            self.ended.set_result(1)
            return
        self.loop.call_later(self.timeout_s, self.watch, self.count)

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        now = clock()
        if self.ended.done():
            return
        if self.count >= 0:
            self.samples[self.count] = now - self.sent_ns
        self.count += 1
        if self.count >= self.most or (now >= self.end_ns and self.count > 0):
            self.ended.set_result(0)
            return
        self.sent_ns = clock()
        if not self.count:
            self.end_ns = self.sent_ns + self.duration_ns
        self.send(self.message)


async def close(transport: Any) -> None:
    transport.abort()
    for _ in range(3):  # connection_lost is called, and the descriptor closed, by then
        await asyncio.sleep(0)


def check(returned: int) -> int:
    if returned < 0:
        raise OSError(-returned, os.strerror(-returned))
    return returned


# --- commands -------------------------------------------------------------------------------------------------


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies: prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:
        sys.exit(1)  # it was gone before


@contextlib.contextmanager
def adopted(fds: list[int]) -> Iterator[list[socket.socket]]:
    """Sockets of descriptors that were received."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.socket(fileno=fd)) for fd in fds]


def main() -> None:
    control_fd, samples_fd, parent = map(int, sys.argv[1:])
    die_with(parent)
    gc.disable()  # nothing here makes cycles but asyncio, a few at the start of a turn
    end = End(samples_fd)
    with socket.socket(fileno=control_fd) as control:

        def tell(what: dict[str, Any]) -> None:
            control.send(json.dumps(what).encode())

        end.tell = tell
        tell({"ready": True})
        while True:
            command, fds, _, _ = socket.recv_fds(control, CONTROL_BYTES, 2)
            if not command:
                return
            spec = json.loads(command)
            with adopted(fds) as socks:
                try:
                    if spec["cpu"] is not None:
                        os.sched_setaffinity(0, {spec["cpu"]})
                    found = getattr(end, spec["do"])(spec, *socks)
                except Exception:
                    found = {"error": traceback.format_exc()}
            gc.collect()
            tell(found)


if __name__ == "__main__":
    main()
