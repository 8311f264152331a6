"""Our sockets in asyncio, uvloop and trio: every loop method that takes one."""

import asyncio
import os
import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

import fastsock
from fastsock import socket as ours

try:
    import uvloop
except ImportError:  # no wheel for this interpreter
    uvloop = None

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"
LOOPS = [asyncio.SelectorEventLoop, *([uvloop.new_event_loop] if uvloop else [])]


@pytest.fixture(scope="module", autouse=True)
def warm_loops():
    """The first loop of libuv opens a pipe for signals, which stays to the end of the process."""
    for make in LOOPS:
        make().close()


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"][: len(LOOPS)])
def run(request):
    """Run a coroutine function, in a loop of each kind; 20 s at most."""

    def runner(main):
        async def bounded():
            async with asyncio.timeout(20):
                return await main(asyncio.get_running_loop())

        with asyncio.Runner(loop_factory=request.param) as made:
            return made.run(bounded())

    return runner


@pytest.fixture
def listener(closing):
    made = closing(ours.create_server(("127.0.0.1", 0)))
    made.setblocking(False)
    return made


@pytest.fixture
def pair(closing):
    near, far = map(closing, ours.socketpair())
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def bound_udp(closing):
    made = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    made.setblocking(False)
    return made


async def echo(reader, writer):
    while (line := await reader.readline()) not in (b"", b"quit\n"):
        writer.write(line.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def ask(reader, writer):
    writer.write(b"question\n")
    assert await reader.readline() == b"QUESTION\n"
    writer.write(b"x" * 500_000 + b"\n")
    assert await reader.readline() == b"X" * 500_000 + b"\n"
    writer.write(b"quit\n")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


LIMIT = 1 << 20


def test_connection_and_server(run, listener):
    async def main(loop):
        server = await asyncio.start_server(echo, sock=listener, limit=LIMIT)
        async with server:
            near = fastsock.Socket()
            near.setblocking(False)
            await loop.sock_connect(near, listener.getsockname())
            await ask(*await asyncio.open_connection(sock=near, limit=LIMIT))
            assert near.fileno() == -1

    run(main)
    assert listener.fileno() == -1


def test_unix_connection_and_server(run, tmp_path):
    async def main(loop):
        sock = fastsock.Socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "server"))
        sock.setblocking(False)
        server = await asyncio.start_unix_server(echo, sock=sock, limit=LIMIT)
        async with server:
            near = fastsock.Socket(socket.AF_UNIX)
            near.connect(str(tmp_path / "server"))
            near.setblocking(False)
            await ask(*await asyncio.open_unix_connection(sock=near, limit=LIMIT))
        sock.close()

    run(main)


def test_connect_accepted_socket(run, listener):
    async def main(loop):
        with fastsock.Socket() as near:
            near.setblocking(False)
            await loop.sock_connect(near, listener.getsockname())
            far, _ = await loop.sock_accept(listener)
            reader = asyncio.StreamReader()
            transport, _ = await loop.connect_accepted_socket(lambda: asyncio.StreamReaderProtocol(reader), sock=far)
            assert transport.get_extra_info("socket").fileno() == far.fileno()
            await loop.sock_sendall(near, b"hello")
            assert await reader.readexactly(5) == b"hello"
            closed = loop.create_future()
            transport.get_protocol().connection_lost = lambda error: closed.set_result(error)
            transport.close()
            assert await closed is None

    run(main)


def test_a_server_over_a_listening_socket_keeps_to_tls(run, listener):
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(CERTIFICATE)
    client_context = ssl.create_default_context(cafile=CERTIFICATE)

    async def main(loop):
        server = await asyncio.start_server(echo, sock=listener, ssl=server_context, limit=LIMIT)
        async with server:
            near = fastsock.Socket()
            near.setblocking(False)
            await loop.sock_connect(near, listener.getsockname())
            await ask(
                *await asyncio.open_connection(sock=near, ssl=client_context, server_hostname="localhost", limit=LIMIT)
            )

    run(main)


def test_start_tls(run, listener):
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(CERTIFICATE)
    client_context = ssl.create_default_context(cafile=CERTIFICATE)

    async def upgrade(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"ready\n")
        await writer.drain()
        await writer.start_tls(server_context)
        writer.write((await reader.readline()).upper())
        writer.close()
        await writer.wait_closed()

    async def main(loop):
        async with await asyncio.start_server(upgrade, sock=listener):
            near = fastsock.Socket()
            near.setblocking(False)
            await loop.sock_connect(near, listener.getsockname())
            reader, writer = await asyncio.open_connection(sock=near)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"ready\n"
            await writer.start_tls(client_context, server_hostname="localhost")
            writer.write(b"secret\n")
            assert await reader.readline() == b"SECRET\n"
            writer.close()
            await writer.wait_closed()

    run(main)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()
        self.lost = asyncio.get_running_loop().create_future()

    def datagram_received(self, payload, address):
        self.received.put_nowait((payload, address))

    def connection_lost(self, error):
        self.lost.set_result(error)


def test_datagram_endpoint(run, closing):
    async def main(loop):
        receiver, sender = bound_udp(closing), bound_udp(closing)
        names = receiver.getsockname(), sender.getsockname()
        here, receiving = await loop.create_datagram_endpoint(Datagrams, sock=receiver)
        there, sending = await loop.create_datagram_endpoint(Datagrams, sock=sender)
        there.sendto(b"ping", names[0])
        assert await receiving.received.get() == (b"ping", names[1])
        here.sendto(b"pong", names[1])
        assert await sending.received.get() == (b"pong", names[0])
        here.close()
        there.close()
        assert [await receiving.lost, await sending.lost] == [None, None]
        assert receiver.fileno() == sender.fileno() == -1

    run(main)


def test_stream_methods_of_the_loop(run, listener):
    async def main(loop):
        near = fastsock.Socket()
        near.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(near, listener.getsockname())
        far, address = await accepting
        with near, far:
            assert address == near.getsockname()
            assert far.gettimeout() == 0
            receiving = asyncio.ensure_future(loop.sock_recv(far, 100))
            await loop.sock_sendall(near, b"first")
            assert await receiving == b"first"
            target = bytearray(10)
            receiving = asyncio.ensure_future(loop.sock_recv_into(far, target))
            await asyncio.sleep(0)
            await loop.sock_sendall(near, b"second")
            assert (await receiving, target[:6]) == (6, b"second")
            payload = os.urandom(4 << 20)
            sending = asyncio.ensure_future(loop.sock_sendall(near, payload))
            received = bytearray()
            while len(received) < len(payload):
                received += await loop.sock_recv(far, 1 << 16)
            await sending
            assert received == payload
            return type(far)

    kind = run(main)
    # uvloop makes accepted sockets itself.
    assert kind is fastsock.Socket or (uvloop is not None and kind is socket.socket)


def test_accept_of_the_plain_loop_returns_ours(listener):
    async def main():
        with fastsock.Socket() as near:
            near.connect(listener.getsockname())
            far, _ = await asyncio.get_running_loop().sock_accept(listener)
            with far:
                return type(far)

    assert asyncio.run(main()) is fastsock.Socket


def test_datagram_methods_of_the_loop(closing):
    # uvloop has none of them.
    async def main():
        loop = asyncio.get_running_loop()
        receiver, sender = bound_udp(closing), bound_udp(closing)
        receiving = asyncio.ensure_future(loop.sock_recvfrom(receiver, 100))
        await asyncio.sleep(0)
        assert await loop.sock_sendto(sender, b"one", receiver.getsockname()) == 3
        assert await receiving == (b"one", sender.getsockname())
        target = bytearray(10)
        await loop.sock_sendto(sender, b"four", receiver.getsockname())
        assert await loop.sock_recvfrom_into(receiver, target) == (4, sender.getsockname())
        assert target[:4] == b"four"

    asyncio.run(main())


def test_sendfile(pair, tmp_path):
    # uvloop has none.
    payload = os.urandom(2 << 20)
    (tmp_path / "content").write_bytes(payload)

    async def main():
        loop = asyncio.get_running_loop()
        near, far = pair

        async def receive():
            received = bytearray()
            while len(received) < len(payload) - 100:
                received += await loop.sock_recv(far, 1 << 16)
            return received

        receiving = asyncio.ensure_future(receive())
        with open(tmp_path / "content", "rb") as file:
            assert await loop.sock_sendfile(near, file, 100, fallback=False) == len(payload) - 100
        assert await receiving == payload[100:]

    asyncio.run(main())


def test_blocking_sockets_are_refused(pair):
    near, _ = pair
    near.settimeout(1)

    async def main(loop):
        with pytest.raises(ValueError, match="non-blocking"):
            await loop.sock_recv(near, 1)

    async def debug():
        asyncio.get_running_loop().set_debug(True)
        await main(asyncio.get_running_loop())

    asyncio.run(debug())


def test_add_reader(run, pair):
    near, far = pair

    async def main(loop):
        arrived, writable = loop.create_future(), loop.create_future()
        loop.add_reader(near, lambda: arrived.done() or arrived.set_result(near.recv(10)))
        loop.add_writer(near, lambda: writable.done() or writable.set_result(True))
        assert await writable
        loop.remove_writer(near)
        far.send(b"x")
        assert await arrived == b"x"
        loop.remove_reader(near)

    run(main)


# --- trio --------------------------------------------------------------------------------------


def test_trio(listener):
    listener.settimeout(None)
    near = fastsock.Socket()
    near.connect(listener.getsockname())
    far, _ = listener.accept()

    async def main():
        with trio.fail_after(20), far, trio.socket.from_stdlib_socket(near.to_stdlib()) as sock:
            async with trio.open_nursery() as nursery:

                async def receive():
                    await trio.lowlevel.wait_readable(far)
                    assert far.recv(100) == b"from trio"
                    await trio.lowlevel.wait_writable(far)
                    far.sendall(b"and back")

                nursery.start_soon(receive)
                await sock.send(b"from trio")
                assert await sock.recv(100) == b"and back"

    trio.run(main)
    assert near.fileno() == -1


def test_trio_insists_on_theirs(pair):
    with pytest.raises(TypeError, match="socket"):
        trio.socket.from_stdlib_socket(pair[0])


def test_trio_hears_of_a_close(pair):
    near, _ = pair

    async def main():
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def wait():
                    with pytest.raises(trio.ClosedResourceError):
                        await trio.lowlevel.wait_readable(near)

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                trio.lowlevel.notify_closing(near)
                near.close()

    trio.run(main)
