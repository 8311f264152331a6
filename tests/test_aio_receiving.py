"""What the protocol of an endpoint is given, and what becomes of what it raises."""

import asyncio
import socket

import pytest
from conftest import needs, needs_ipv6
from endpoints import (
    BatchRecorder,
    Recorder,
    count_payloads,
    passes,
    send_all,
    until,
)

import fastsock
import fastsock.aio

MANY = 200
"""More than one receive takes, so that some of it is behind the batch at hand."""


# --- what arrives --------------------------------------------------------------------------------------


def test_contents_and_addresses(either, far):
    async def main(loop):
        near = await either.open()
        send_all(far, near.address, [b"one", b"", b"two"])
        await until(lambda: len(near.received) == 3)
        assert near.received == [(payload, far.getsockname()) for payload in (b"one", b"", b"two")]
        assert all(type(payload) is bytes for payload in near.payloads)

    either.run(main)


def test_every_datagram_in_order(endpoints, recorder, far):
    async def main(loop):
        near = await endpoints.open(recorder)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        await until(lambda: len(near.received) == MANY)
        assert near.received == [(payload, far.getsockname()) for payload in payloads]

    endpoints.run(main)


@needs_ipv6
def test_ipv6_addresses_have_four_parts(either):
    async def main(loop):
        near = await either.open(local_addr=("::1", 0))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as far:
            far.bind(("::1", 0))
            far.sendto(b"six", near.address)
            await until(lambda: near.received)
            assert near.received == [(b"six", far.getsockname())]

    either.run(main)


def test_a_connected_endpoint_hears_its_peer_alone(either, far):
    async def main(loop):
        near = await either.open(remote_addr=far.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"no", near.address)
        send_all(far, near.address, [b"yes", b""])
        await until(lambda: len(near.received) == 2)
        assert near.received == [(b"yes", far.getsockname()), (b"", far.getsockname())]

    either.run(main)


def test_a_batch_holds_what_waited(endpoints, far):
    async def main(loop):
        near = await endpoints.open(BatchRecorder)
        send_all(far, near.address, count_payloads(MANY))
        await until(lambda: len(near.received) == MANY)
        assert max(near.sizes) > 1

    endpoints.run(main)


def test_a_batch_of_a_connected_endpoint(endpoints, far):
    class Keeps(Recorder):
        def datagrams_received(self, batch):
            self.received += [(bytes(datagram), None) for datagram in batch]

    async def main(loop):
        near = await endpoints.open(Keeps, remote_addr=far.getsockname())
        send_all(far, near.address, [b"a", b"", b"b"])
        await until(lambda: len(near.received) == 3)
        assert near.payloads == [b"a", b"", b"b"]

    endpoints.run(main)


def test_the_next_receive_overwrites_the_batch(endpoints, far):
    class Keeps(Recorder):
        def __init__(self):
            super().__init__()
            self.batches = []

        def datagrams_received(self, batch):
            self.batches.append(batch)

    async def main(loop):
        near = await endpoints.open(Keeps)
        for payload in (b"first", b"second"):
            seen = len(near.batches)
            far.sendto(payload, near.address)
            await until(lambda seen=seen: len(near.batches) > seen)
        first, second = near.batches
        assert first is second
        assert first.payloads() == [b"second"]

    endpoints.run(main)


def test_metadata_is_in_the_batch(endpoints, far):
    class Keeps(Recorder):
        def datagrams_received(self, batch):
            datagram = batch[0]
            self.received.append((datagram.timestamp_ns, datagram.ttl, datagram.ecn, datagram.local_address))

    async def main(loop):
        near = await endpoints.open(Keeps, timestamps=True, ttl=True, ecn=True, pktinfo=True)
        far.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
        far.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
        far.sendto(b"x", near.address)
        await until(lambda: near.received)
        ((stamp, ttl, ecn, local),) = near.received
        assert stamp > 0
        assert (ttl, ecn, local) == (33, 2, "127.0.0.1")

    endpoints.run(main)


@needs("gro", "gso")
def test_joined_datagrams_are_split(endpoints, recorder):
    async def main(loop):
        near = await endpoints.open(recorder, gro=True)
        payloads = [b"%05d" % number for number in range(3000)]
        with fastsock.connect_udp(near.address) as far:
            for first in range(0, 3000, 60):
                far.send_segments(b"".join(payloads[first : first + 60]), 5)
            await until(lambda: len(near.received) == 3000)
            assert near.received == [(payload, far.getsockname()) for payload in payloads]

    endpoints.run(main)


@pytest.mark.parametrize("size", [1, 65507])
def test_large_and_small(endpoints, recorder, far, size):
    async def main(loop):
        near = await endpoints.open(recorder)
        far.sendto(b"x" * size, near.address)
        await until(lambda: near.received)
        assert near.payloads == [b"x" * size]

    endpoints.run(main)


# --- what the protocol raises --------------------------------------------------------------------------


def test_a_failing_protocol_loses_no_other_datagram(endpoints, far):
    class Fails(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) % 3 == 0:
                raise LookupError(data)

    async def main(loop):
        near = await endpoints.open(Fails)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        await until(lambda: len(near.received) == MANY)
        assert near.payloads == payloads
        told = endpoints.take_told()
        assert [type(context["exception"]) for context in told] == [LookupError] * (MANY // 3)
        assert [context["exception"].args[0] for context in told] == payloads[2::3]
        assert {id(context["transport"]) for context in told} == {id(near.transport)}
        assert {id(context["protocol"]) for context in told} == {id(near)}
        assert not near.transport.is_closing()

    endpoints.run(main)


def test_a_failing_batch_protocol_goes_on(endpoints, far):
    class Fails(BatchRecorder):
        def datagrams_received(self, batch):
            super().datagrams_received(batch)
            raise LookupError

    async def main(loop):
        near = await endpoints.open(Fails)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        await until(lambda: len(near.received) == MANY)
        assert near.payloads == payloads
        told = endpoints.take_told()
        assert [type(context["exception"]) for context in told] == [LookupError] * len(near.sizes)
        assert not near.transport.is_closing()

    endpoints.run(main)


def test_a_failing_error_received(either):
    class Fails(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            raise LookupError

    async def main(loop):
        near = await either.open(Fails, remote_addr=("127.0.0.1", 9))  # discard: nobody is there
        near.transport.sendto(b"x")
        await until(lambda: near.errors)
        assert isinstance(near.errors[0], ConnectionRefusedError)
        assert not near.transport.is_closing()
        assert [type(context["exception"]) for context in await until(either.take_told)] == [LookupError]

    either.run(main)


@pytest.mark.parametrize("callback", ["connection_made", "connection_lost"])
def test_a_failing_beginning_or_end(either, far, callback):
    class Fails(Recorder):
        pass

    def fail(self, argument):
        getattr(Recorder, callback)(self, argument)
        raise LookupError

    setattr(Fails, callback, fail)

    async def main(loop):
        near = await either.open(Fails)
        far.sendto(b"x", near.address)
        await until(lambda: near.received)
        near.transport.close()
        await until(lambda: near.lost)
        await passes()
        assert near.lost == [None]
        assert [type(context["exception"]) for context in either.take_told()] == [LookupError]
        assert near.transport.get_extra_info("socket").fileno() == -1

    either.run(main)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("count", [10, MANY])  # with nothing and something left at the socket
def test_an_exit_leaves_the_loop_at_once_and_loses_nothing(endpoints, far, exception, count):
    class Exits(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) == 5:
                raise exception

    payloads = count_payloads(count)
    loop = endpoints.new_loop()
    try:
        near = loop.run_until_complete(endpoints.open(Exits))
        send_all(far, near.address, payloads)
        with pytest.raises(exception):
            loop.run_until_complete(asyncio.wait_for(until(lambda: len(near.received) == count), 10))
        assert near.payloads[:5] == payloads[:5]
        assert len(near.payloads) == 5 or endpoints.new_loop is not fastsock.aio.EventLoop  # uvloop ends its pass first
        loop.run_until_complete(asyncio.wait_for(until(lambda: len(near.received) == count), 10))
        assert near.payloads == payloads
        near.transport.close()
        loop.run_until_complete(asyncio.wait_for(until(lambda: near.lost), 10))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(passes())
        loop.close()


def test_a_protocol_without_the_method(endpoints, far):
    """Each datagram is a failure of its own; the loop goes on."""

    class Bare(asyncio.BaseProtocol):
        pass

    async def main(loop):
        transport, _ = await endpoints.create(Bare, local_addr=("127.0.0.1", 0))
        send_all(far, transport.get_extra_info("sockname"), [b"a", b"b"])
        told = await until(lambda: endpoints._told[:2] if len(endpoints._told) > 1 else None)
        assert [type(context["exception"]) for context in told] == [AttributeError] * 2
        await passes(10)
        assert len(endpoints.take_told()) == 2

    endpoints.run(main)
