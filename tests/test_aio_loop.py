"""fastsock.aio.EventLoop runs programs that know nothing of fastsock."""

import asyncio
import collections
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs_localhost
from endpoints import BatchRecorder, Recorder, passes, until

import fastsock
import fastsock.aio
from fastsock import _constants
from fastsock.selectors import EpollSelector

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


@pytest.fixture(params=[False, True], ids=["", "debug"])
def run(request, monkeypatch):
    """Run a coroutine function on an EventLoop, 20 s at most; what its exception handler is told fails the test."""

    def runner(main):
        told = []

        async def bounded():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: told.append(context))
            async with asyncio.timeout(20):
                return await main()

        with asyncio.Runner(debug=request.param, loop_factory=fastsock.aio.EventLoop) as made:
            result = made.run(bounded())
        assert told == []
        return result

    return runner


@pytest.fixture
def transports(monkeypatch):
    """The datagram transports that were made."""
    made = []
    init = fastsock.aio.DatagramTransport.__init__

    def note(self, *arguments, **options):
        made.append(self)
        init(self, *arguments, **options)

    monkeypatch.setattr(fastsock.aio.DatagramTransport, "__init__", note)
    return made


# --- the loop -----------------------------------------------------------------------------------


def test_it_is_asyncios_on_our_selector():
    loop = fastsock.aio.EventLoop()
    try:
        assert isinstance(loop, asyncio.SelectorEventLoop)
        assert isinstance(loop._selector, EpollSelector)
        assert f"{type(loop).__module__}.{type(loop).__qualname__}" == "fastsock.aio.EventLoop"
        assert "running=False closed=False" in repr(loop)
    finally:
        loop.close()
    assert loop.is_closed()


def test_another_selector():
    selector = selectors.PollSelector()
    loop = fastsock.aio.EventLoop(selector)
    try:
        assert loop._selector is selector
        transport, _ = loop.run_until_complete(loop.create_datagram_endpoint(Recorder, ("127.0.0.1", 0)))
        assert isinstance(transport, fastsock.aio.DatagramTransport)
        transport.close()
        loop.run_until_complete(passes())
    finally:
        loop.close()


def test_its_endpoint_takes_our_options(run):
    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            BatchRecorder, local_addr=("127.0.0.1", 0), ttl=True, read_datagrams=5
        )
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_IP, _constants.IP_RECVTTL)
        transport.sendto(b"to myself", transport.get_extra_info("sockname"))
        await until(lambda: protocol.received)
        transport.close()
        await until(lambda: protocol.lost)

    run(main)


def test_streams(run, tmp_path):
    async def answer(reader, writer):
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask(reader, writer):
        for size in (10, 50_000):
            writer.write(b"x" * size + b"\n")
            assert await reader.readline() == b"X" * size + b"\n"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def main():
        path = str(tmp_path / "stream")
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(ask(*await asyncio.open_connection(*address)))
        async with await asyncio.start_unix_server(answer, path):
            await ask(*await asyncio.open_unix_connection(path))

    run(main)


@needs_localhost
def test_resolver_executor_and_timers(run):
    async def main():
        loop = asyncio.get_running_loop()
        order = []
        loop.call_later(0.002, order.append, "late")
        loop.call_later(0.001, order.append, "soon")
        loop.call_soon(order.append, "now")
        assert await loop.run_in_executor(None, sum, (1, 2)) == 3
        found = await loop.getaddrinfo("localhost", 0, family=socket.AF_INET, type=socket.SOCK_DGRAM)
        assert found[0][4][0] == "127.0.0.1"
        await until(lambda: len(order) == 3)
        assert order == ["now", "soon", "late"]

    run(main)


def test_subprocesses(run):
    async def main():
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input()[::-1])", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await child.communicate(b"desserts\n")
        assert (out, child.returncode) == (b"stressed\n", 0)
        sleeping = await asyncio.create_subprocess_exec("sleep", "100")
        sleeping.kill()
        assert await sleeping.wait() == -signal.SIGKILL

    run(main)


def test_signals(run):
    async def main():
        loop, seen = asyncio.get_running_loop(), []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "usr1")
        for count in range(1, 4):
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda count=count: len(seen) == count)
        assert loop.remove_signal_handler(signal.SIGUSR1)

    run(main)


def test_interrupt_ends_the_program():
    async def main():
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        await asyncio.sleep(20)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with asyncio.Runner(loop_factory=fastsock.aio.EventLoop) as runner, pytest.raises(KeyboardInterrupt):
            runner.run(main())
    finally:
        signal.signal(signal.SIGINT, before)


def test_sock_methods(run):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as near, fastsock.bind_udp(("127.0.0.1", 0)) as far:
            near.bind(("127.0.0.1", 0))
            near.setblocking(False)
            far.setblocking(False)
            waiting = asyncio.create_task(loop.sock_recvfrom(far, 100))
            await passes()
            await loop.sock_sendto(near, b"x", far.getsockname())
            assert await waiting == (b"x", near.getsockname())

    run(main)


def test_endpoints_beside_streams(run, transports):
    """All of one program, on one loop."""

    async def main():
        loop = asyncio.get_running_loop()
        lines, tasks = [], []

        async def collect(reader, writer):
            lines.append(await reader.readline())
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(collect, "127.0.0.1", 0) as server:

            class Forwards(Recorder):
                def datagram_received(self, data, addr):
                    super().datagram_received(data, addr)
                    tasks.append(loop.create_task(self.forward(data)))

                async def forward(self, data):
                    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                    writer.write(data + b"\n")
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()

            transport, protocol = await loop.create_datagram_endpoint(Forwards, ("127.0.0.1", 0))
            with socket.socket(type=socket.SOCK_DGRAM) as far:
                for number in range(10):
                    far.sendto(b"%d" % number, transport.get_extra_info("sockname"))
                await until(lambda: len(lines) == 10)
            await asyncio.gather(*tasks)
            transport.close()
            await until(lambda: protocol.lost)
        assert sorted(lines) == [b"%d\n" % number for number in range(10)]

    run(main)
    assert len(transports) == 1


# --- programs -------------------------------------------------------------------------------------


class StatsdServer(asyncio.DatagramProtocol):
    """A server as one finds them: counters, gauges and sets, and `stats` to ask for them."""

    def __init__(self):
        self.counters = collections.Counter()
        self.gauges = {}
        self.sets = collections.defaultdict(set)

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        for line in data.decode().splitlines():
            if line == "stats":
                self.transport.sendto(str(sum(self.counters.values())).encode(), addr)
                continue
            name, _, rest = line.partition(":")
            value, kind, *_ = rest.split("|")
            if kind == "c":
                self.counters[name] += int(value)
            elif kind == "g":
                self.gauges[name] = self.gauges.get(name, 0) + float(value) if value[0] in "+-" else float(value)
            elif kind == "s":
                self.sets[name].add(value)


def test_a_statsd_server(run, transports):
    async def main():
        loop = asyncio.get_running_loop()
        transport, server = await loop.create_datagram_endpoint(StatsdServer, local_addr=("127.0.0.1", 0))
        client, answers = await loop.create_datagram_endpoint(
            Recorder, remote_addr=transport.get_extra_info("sockname")
        )
        for turn in range(20):
            for number in range(100):
                client.sendto(b"hits:2|c\nlevel:%d|g\nusers:u%d|s" % (number, number % 7))
            client.sendto(b"stats")
            await until(lambda turn=turn: len(answers.received) > turn)
        assert answers.payloads == [b"%d" % (200 * turn) for turn in range(1, 21)]
        assert server.counters == {"hits": 4000}
        assert server.gauges == {"level": 99.0}
        assert len(server.sets["users"]) == 7
        transport.close()
        client.close()
        await until(lambda: answers.lost)

    run(main)
    assert len(transports) == 2


def test_a_dns_server_of_dnslib(run, transports):
    dnslib = pytest.importorskip("dnslib")

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            question = dnslib.DNSRecord.parse(data)
            number = int(str(question.q.qname).split(".")[0])
            answer = question.reply()
            answer.add_answer(dnslib.RR(question.q.qname, rdata=dnslib.A(f"10.0.{number // 256}.{number % 256}")))
            self.transport.sendto(answer.pack(), addr)

    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
        host, port = transport.get_extra_info("sockname")

        async def ask(number):  # with the blocking client of dnslib
            question = dnslib.DNSRecord.question(f"{number}.example")
            answer = dnslib.DNSRecord.parse(await asyncio.to_thread(question.send, host, port, timeout=10))
            assert answer.header.id == question.header.id
            return str(answer.rr[0].rdata)

        found = await asyncio.gather(*map(ask, range(0, 1000, 50)))
        assert found == [f"10.0.{number // 256}.{number % 256}" for number in range(0, 1000, 50)]
        transport.close()
        await passes()

    run(main)
    assert len(transports) == 1


def test_http3_of_aioquic(run, transports):
    """A download of 1 MB over QUIC, as in aioquic's examples."""
    pytest.importorskip("aioquic")
    from aioquic.asyncio import QuicConnectionProtocol, connect, serve
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import ProtocolNegotiated

    size = 1_000_000
    body = bytes(number % 251 for number in range(size))

    class Server(QuicConnectionProtocol):
        http = None

        def quic_event_received(self, event):
            if isinstance(event, ProtocolNegotiated):
                self.http = H3Connection(self._quic)
            for found in self.http.handle_event(event) if self.http else ():
                if isinstance(found, HeadersReceived):
                    self.http.send_headers(found.stream_id, [(b":status", b"200")])
                    self.http.send_data(found.stream_id, body, end_stream=True)
            self.transmit()

    class Client(QuicConnectionProtocol):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.http = H3Connection(self._quic)
            self.answer = bytearray()
            self.ended = asyncio.get_running_loop().create_future()

        def get(self, path):
            stream = self._quic.get_next_available_stream_id()
            names = (b":method", b":scheme", b":authority", b":path")
            values = (b"GET", b"https", b"localhost", path)
            self.http.send_headers(stream, list(zip(names, values, strict=True)), end_stream=True)
            self.transmit()

        def quic_event_received(self, event):
            for found in self.http.handle_event(event):
                if isinstance(found, DataReceived):
                    self.answer += found.data
                if isinstance(found, (DataReceived, HeadersReceived)) and found.stream_ended:
                    self.ended.set_result(None)

    async def main():
        theirs = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
        theirs.load_cert_chain(CERTIFICATE, CERTIFICATE)
        server = await serve("127.0.0.1", 0, configuration=theirs, create_protocol=Server)
        port = server._transport.get_extra_info("sockname")[1]
        mine = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
        mine.load_verify_locations(CERTIFICATE)
        async with connect("127.0.0.1", port, configuration=mine, create_protocol=Client) as client:
            client.get(b"/")
            await client.ended
            assert client.answer == body
        server.close()
        await passes()

    run(main)
    assert len(transports) == 2
