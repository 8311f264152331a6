"""Sockets that an endpoint is given, and when it closes what: failures, cancellation, leaks."""

import asyncio
import gc
import os
import socket
import warnings
import weakref

import pytest
from conftest import open_descriptors
from endpoints import (
    LOCAL,
    Recorder,
    passes,
    until,
)

import fastsock
import fastsock.aio
from fastsock.aio import DatagramTransport

# --- sock= ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connected", [False, True], ids=["bound", "connected"])
def test_a_socket_of_either_class(endpoints, cls, far, connected):
    async def main(loop):
        sock = cls(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(LOCAL)
        if connected:
            sock.connect(far.getsockname())
        fd = sock.fileno()
        near = await endpoints.open(sock=sock)
        assert near.transport.get_extra_info("socket") is sock
        assert near.transport.get_extra_info("sockname") == sock.getsockname()
        assert near.transport.get_extra_info("peername") == (far.getsockname() if connected else None)
        assert sock.gettimeout() == 0
        assert not os.get_blocking(fd)
        near.transport.sendto(b"x", None if connected else far.getsockname())
        await passes()
        assert far.recvfrom(10) == (b"x", near.address)
        far.sendto(b"y", near.address)
        await until(lambda: near.received)
        assert near.received == [(b"y", far.getsockname())]
        near.transport.close()
        assert sock.fileno() == fd
        await passes()
        assert sock.fileno() == -1

    endpoints.run(main)


def test_the_descriptor_is_closed_once(endpoints, cls):
    """A file that gets its number meanwhile stays open."""

    async def main(loop):
        sock = cls(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(LOCAL)
        fd = sock.fileno()
        near = await endpoints.open(sock=sock)
        near.transport.close()
        await passes()
        other = os.open(os.devnull, os.O_RDONLY)
        try:
            assert other == fd
            sock.close()
            near.transport.abort()
            near.transport = None
            del sock, near
            gc.collect()
            os.fstat(other)
        finally:
            os.close(other)

    endpoints.run(main)


def test_half_of_a_pair(endpoints, cls):
    async def main(loop):
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with other:
            near = await endpoints.open(sock=cls(fileno=mine.detach()))
            other.send(b"x")
            await until(lambda: near.received)
            near.transport.sendto(b"y")
            await passes()
            assert other.recv(10) == b"y"

    endpoints.run(main)


GIVEN = [
    {"local_addr": LOCAL},
    {"remote_addr": LOCAL},
    {"family": 1},
    {"proto": 1},
    {"flags": 1},
    {"reuse_port": True},
    {"allow_broadcast": True},
]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: next(iter(given)))
def test_a_socket_excludes_what_would_make_one(either, far, given):
    async def main(loop):
        with pytest.raises(ValueError, match=f"socket modifier keyword arguments.*{next(iter(given))}="):
            await either.create(Recorder, sock=far, **given)
        assert far.getsockname()

    either.run(main)


OURS = [
    {"reuse_address": True},
    {"dualstack_ipv6": False},
    {"rcvbuf": 4096},
    {"sndbuf": 4096},
    {"gro": False},
    {"timestamps": True},
    {"pktinfo": True},
    {"ecn": True},
    {"ttl": True},
    {"drop_counter": True},
    {"error_queue": True},
    {"transmit_timestamps": True},
    {"multicast": "224.0.0.251"},
]


@pytest.mark.parametrize("given", OURS, ids=lambda given: next(iter(given)))
def test_an_option_with_a_socket_is_not_ignored(endpoints, far, given):
    async def main(loop):
        with pytest.raises(ValueError, match=f"can not be used when sock is specified.*{next(iter(given))}="):
            await endpoints.open(sock=far, **given)
        assert far.getsockname()

    endpoints.run(main)


def test_a_stream_is_refused(either):
    async def main(loop):
        with socket.socket() as sock, pytest.raises(ValueError, match="ocket was expected"):
            await either.create(Recorder, sock=sock)

    either.run(main)


# --- failures, cancellation and leaks ------------------------------------------------------------------


def test_a_factory_that_raises_leaves_no_socket(endpoints):
    def factory():
        raise LookupError

    async def main(loop):
        with pytest.raises(LookupError):
            await endpoints.open(factory)

    endpoints.run(main)


def test_a_factory_that_raises_leaves_the_callers_socket(endpoints, cls):
    def factory():
        raise LookupError

    async def main(loop):
        with cls(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(LOCAL)
            with pytest.raises(LookupError):
                await endpoints.open(factory, sock=sock)
            gc.collect()
            assert sock.getsockname()

    endpoints.run(main)


def test_cancelled_creation(endpoints):
    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[-1]

    async def main(loop):
        making = asyncio.ensure_future(endpoints.create(factory, local_addr=LOCAL))
        await until(lambda: protocols)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        (protocol,) = protocols
        await until(lambda: protocol.lost)
        assert (protocol.made, protocol.lost) == (1, [None])
        assert protocol.transport.get_extra_info("socket").fileno() == -1

    endpoints.run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_closed_by_connection_made(either, how):
    class Closes(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            getattr(transport, how)()

    async def main(loop):
        near = await either.open(Closes)
        await until(lambda: near.lost)
        assert (near.made, near.lost) == (1, [None])
        await passes()
        assert near.transport.get_extra_info("socket").fileno() == -1

    either.run(main)


def test_sending_in_connection_made(either, far):
    class Sends(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.sendto(b"hello", far.getsockname())

    async def main(loop):
        await either.open(Sends)
        await passes()
        assert far.recv(10) == b"hello"

    either.run(main)


def test_a_thousand_endpoints(endpoints, far):
    async def main(loop):
        before = open_descriptors()
        for _ in range(10):
            some = [await endpoints.open(**({"remote_addr": far.getsockname()} if i % 2 else {})) for i in range(100)]
            for number, near in enumerate(some):
                if number % 3:
                    near.transport.sendto(b"x", far.getsockname())
                near.transport.close() if number % 5 else near.transport.abort()
            await until(lambda some=some: all(near.lost for near in some))
            endpoints._opened.clear()
        await passes()
        assert open_descriptors() == before
        del some, near
        gc.collect()
        assert sum(isinstance(found, DatagramTransport) for found in gc.get_objects()) == 0

    endpoints.run(main)


def test_a_closed_endpoint_is_freed_without_the_collector(endpoints):
    async def main(loop):
        near = await endpoints.open()
        endpoints._opened.clear()
        gone = weakref.ref(near.transport)
        near.transport.close()
        await until(lambda: near.lost)
        await passes()
        near.transport = None
        await passes()
        assert gone() is None

    gc.collect()
    gc.disable()
    try:
        endpoints.run(main)
    finally:
        gc.enable()


def test_an_unclosed_endpoint_warns(endpoints):
    loop = endpoints.new_loop()
    held = list(loop.run_until_complete(endpoints.create(Recorder, local_addr=LOCAL)))
    endpoints._opened.clear()
    fd = held[0].get_extra_info("socket").fileno()

    def drop():
        loop.close()
        held.clear()
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drop()
    texts = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    # The socket is in the same cycle, and may be the first to complain.
    assert f"unclosed transport <fastsock.aio.DatagramTransport open fd={fd} queued=0>" in texts


def test_no_running_loop():
    making = fastsock.aio.create_datagram_endpoint(Recorder, LOCAL)
    with pytest.raises(RuntimeError, match="no running event loop"):
        making.send(None)


def test_closing_warns_of_nothing(endpoints):
    async def main(loop):
        near = await endpoints.open()
        near.transport.close()
        await passes()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        endpoints.run(main)
        gc.collect()
