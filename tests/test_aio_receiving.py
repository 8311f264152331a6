"""What the protocol of an endpoint is given, what it may do meanwhile, and how much of a pass it has."""

import asyncio
import socket

import pytest
from conftest import V4, needs, needs_ipv6
from endpoints import BatchRecorder, Recorder, count_payloads, passes, until

import fastsock
import fastsock.aio

MANY = 200
"""More than one receive takes, so that some of it is behind the batch at hand."""


def send_all(far, address, payloads):
    for payload in payloads:
        far.sendto(payload, address)


# --- what arrives ------------------------------------------------------------------------------


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


# --- what the protocol raises ----------------------------------------------------------------


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
def test_an_exit_leaves_the_loop_at_once_and_loses_nothing(endpoints, far, exception):
    class Exits(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) == 5:
                raise exception

    payloads = count_payloads(MANY)
    loop = endpoints.new_loop()
    try:
        near = loop.run_until_complete(endpoints.open(Exits))
        send_all(far, near.address, payloads)
        with pytest.raises(exception):
            loop.run_until_complete(asyncio.wait_for(until(lambda: len(near.received) == MANY), 10))
        assert near.payloads[:5] == payloads[:5]
        assert len(near.payloads) == 5 or endpoints.new_loop is not fastsock.aio.EventLoop  # uvloop ends its pass first
        loop.run_until_complete(asyncio.wait_for(until(lambda: len(near.received) == MANY), 10))
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


# --- pause, resume, close ----------------------------------------------------------------------


def test_nothing_while_paused(either, far):
    async def main(loop):
        near = await either.open()
        near.transport.pause_reading()
        assert not near.transport.is_reading()
        far.sendto(b"x", near.address)
        await passes(10)
        assert near.received == []
        near.transport.resume_reading()
        assert near.transport.is_reading()
        await until(lambda: near.received)
        assert near.payloads == [b"x"]

    either.run(main)


def test_pause_and_resume_may_be_called_twice(either, far):
    async def main(loop):
        near = await either.open()
        near.transport.resume_reading()
        near.transport.pause_reading()
        near.transport.pause_reading()
        near.transport.resume_reading()
        near.transport.resume_reading()
        far.sendto(b"x", near.address)
        await until(lambda: near.received)
        near.transport.pause_reading()
        near.transport.close()
        near.transport.resume_reading()
        near.transport.pause_reading()
        assert not near.transport.is_reading()
        await until(lambda: near.lost)
        assert near.payloads == [b"x"]

    either.run(main)


@pytest.mark.parametrize("every", [1, 7, 64, 65])
def test_pause_in_the_middle_keeps_order(endpoints, far, every):
    class Pauses(Recorder):
        def datagram_received(self, data, addr):
            assert self.transport.is_reading()
            super().datagram_received(data, addr)
            if len(self.received) % every == 0:
                self.transport.pause_reading()

    async def main(loop):
        near = await endpoints.open(Pauses)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        for stop in range(every, MANY + 1, every):
            await until(lambda: not near.transport.is_reading())
            await passes()
            assert len(near.received) == stop
            near.transport.resume_reading()
        await until(lambda: len(near.received) == MANY)
        assert near.payloads == payloads

    endpoints.run(main)


def test_pause_and_resume_in_the_same_callback(endpoints, recorder, far):
    class Blinks(recorder):
        def blink(self):
            self.transport.pause_reading()
            self.transport.resume_reading()

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.blink()

    if recorder is BatchRecorder:

        def datagrams_received(self, batch):
            BatchRecorder.datagrams_received(self, batch)
            self.blink()

        Blinks.datagrams_received = datagrams_received

    async def main(loop):
        near = await endpoints.open(Blinks)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        await until(lambda: len(near.received) == MANY)
        assert near.payloads == payloads

    endpoints.run(main)


def test_a_batch_protocol_that_pauses_is_given_no_more(endpoints, far):
    class Pauses(BatchRecorder):
        def datagrams_received(self, batch):
            assert self.transport.is_reading()
            super().datagrams_received(batch)
            self.transport.pause_reading()

    async def main(loop):
        near = await endpoints.open(Pauses)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        while len(near.received) < MANY:
            await until(lambda: not near.transport.is_reading())
            count = len(near.received)
            await passes()
            assert len(near.received) == count
            near.transport.resume_reading()
        assert near.payloads == payloads

    endpoints.run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
def test_nothing_after_close(endpoints, recorder, far, how, paused):
    class Closes(recorder):
        def stop(self):
            if paused:
                self.transport.pause_reading()
            getattr(self.transport, how)()
            assert self.transport.is_closing()
            assert not self.transport.is_reading()

        def datagram_received(self, data, addr):
            Recorder.datagram_received(self, data, addr)
            self.stop()

    if recorder is BatchRecorder:

        def datagrams_received(self, batch):
            BatchRecorder.datagrams_received(self, batch)
            self.stop()

        Closes.datagrams_received = datagrams_received

    async def main(loop):
        near = await endpoints.open(Closes)
        send_all(far, near.address, count_payloads(MANY))
        await until(lambda: near.lost)
        await passes(10)
        assert near.lost == [None]
        assert len(near.received) == (1 if recorder is Recorder else near.sizes[0])
        assert near.transport.get_extra_info("socket").fileno() == -1

    endpoints.run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_close_while_paused_with_datagrams_at_hand(endpoints, far, how):
    class Pauses(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    async def main(loop):
        near = await endpoints.open(Pauses)
        send_all(far, near.address, count_payloads(MANY))
        await until(lambda: near.received)
        getattr(near.transport, how)()
        near.transport.resume_reading()
        await until(lambda: near.lost)
        await passes()
        assert len(near.received) == 1

    endpoints.run(main)


def test_pause_in_connection_made(either, far):
    class Pauses(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def main(loop):
        near = await either.open(Pauses)
        far.sendto(b"x", near.address)
        await passes(10)
        assert near.received == []
        near.transport.resume_reading()
        await until(lambda: near.received)

    either.run(main)


def test_set_protocol_in_the_middle_is_from_the_next_datagram_on(endpoints, far):
    second = Recorder()

    class Hands(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.set_protocol(second)

    async def main(loop):
        near = await endpoints.open(Hands)
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        await until(lambda: len(near.received) + len(second.received) == MANY)
        assert near.transport.get_protocol() is second
        assert near.payloads == payloads[:1]
        assert second.payloads == payloads[1:]
        near.transport.close()
        await until(lambda: second.lost)
        assert near.lost == []

    endpoints.run(main)


@pytest.mark.parametrize("first", [Recorder, BatchRecorder])
def test_set_protocol_of_the_other_interface(endpoints, far, first):
    """No datagram is lost or delivered twice, whatever the interface was when it came."""

    class TakesBatches:
        """Has no datagram_received at all."""

        def __init__(self):
            self.received = []

        def datagrams_received(self, batch):
            self.received += batch.payloads()

        def connection_lost(self, exc):
            pass

    class TakesOne:
        def __init__(self):
            self.received = []

        def datagram_received(self, data, addr):
            self.received.append(data)

        def connection_lost(self, exc):
            pass

    second = (TakesOne if first is BatchRecorder else TakesBatches)()

    async def main(loop):
        near = await endpoints.open(first)
        send_all(far, near.address, count_payloads(1))
        await until(lambda: near.received)
        near.transport.set_protocol(second)
        payloads = count_payloads(MANY, 1)
        send_all(far, near.address, payloads)
        await until(lambda: len(second.received) == MANY)
        assert second.received == payloads

    endpoints.run(main)


# --- how much of a pass ---------------------------------------------------------------------------


def count_between(loop, near, total):
    """How many datagrams each pass of the loop delivered."""
    counts, seen = [], 0

    def look():
        nonlocal seen
        if len(near.received) > seen:
            counts.append(len(near.received) - seen)
            seen = len(near.received)
        if seen < total:
            loop.call_soon(look)

    loop.call_soon(look)
    return counts


@pytest.mark.parametrize("most", [1, 10, 64, 100])
def test_read_datagrams_bounds_a_pass(endpoints, far, most):
    async def main(loop):
        near = await endpoints.open(read_datagrams=most, read_us=10_000_000)
        near.transport.pause_reading()
        send_all(far, near.address, count_payloads(MANY))
        counts = count_between(loop, near, MANY)
        near.transport.resume_reading()
        await until(lambda: len(near.received) == MANY)
        await passes()
        assert sum(counts) == MANY
        assert max(counts) == most

    endpoints.run(main)


def test_read_datagrams_bounds_a_pass_of_batches(endpoints, far):
    async def main(loop):
        near = await endpoints.open(BatchRecorder, read_datagrams=64, read_us=10_000_000)
        near.transport.pause_reading()
        send_all(far, near.address, count_payloads(MANY))
        counts = count_between(loop, near, MANY)
        near.transport.resume_reading()
        await until(lambda: len(near.received) == MANY)
        await passes()
        assert sum(counts) == MANY
        assert max(counts) <= 64

    endpoints.run(main)


def test_one_pass_takes_all_that_its_limits_allow(endpoints, recorder, far):
    async def main(loop):
        near = await endpoints.open(recorder, read_us=10_000_000)
        near.transport.pause_reading()
        send_all(far, near.address, count_payloads(MANY))
        counts = count_between(loop, near, MANY)
        near.transport.resume_reading()
        await until(lambda: len(near.received) == MANY)
        await passes()
        assert counts == [MANY]

    endpoints.run(main)


def test_a_slow_protocol_shares_the_loop(endpoints, far):
    """Other callbacks run between its datagrams, though they came in one batch; none is lost."""
    clock = [0]

    class Slow(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            clock[0] += 1_000_000  # it takes a millisecond

    async def main(loop):
        near = await endpoints.open(Slow, read_us=5000)
        near.transport.pause_reading()
        payloads = count_payloads(MANY)
        send_all(far, near.address, payloads)
        counts = count_between(loop, near, MANY)
        near.transport.resume_reading()
        await until(lambda: len(near.received) == MANY)
        await passes()
        assert near.payloads == payloads
        # 5 ms is 5 datagrams; the clock is read for every few.
        assert max(counts) <= 32
        assert len(counts) >= MANY // 32

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsock.aio._transport.perf_counter_ns", lambda: clock[0])
        endpoints.run(main)


def test_a_slow_batch_protocol_shares_the_loop(endpoints, far):
    clock = [0]

    class Slow(BatchRecorder):
        def datagrams_received(self, batch):
            super().datagrams_received(batch)
            clock[0] += 10_000_000

    async def main(loop):
        near = await endpoints.open(Slow, read_us=1000)
        near.transport.pause_reading()
        send_all(far, near.address, count_payloads(MANY))
        counts = count_between(loop, near, MANY)
        near.transport.resume_reading()
        await until(lambda: len(near.received) == MANY)
        await passes()
        assert counts == near.sizes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsock.aio._transport.perf_counter_ns", lambda: clock[0])
        endpoints.run(main)


def test_two_flooded_endpoints_take_turns(endpoints, far):
    async def main(loop):
        order = []

        class Notes(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                order.append(self)

        first, second = [await endpoints.open(Notes, read_datagrams=10) for _ in range(2)]
        for near in (first, second):
            near.transport.pause_reading()
            send_all(far, near.address, count_payloads(100))
        first.transport.resume_reading()
        second.transport.resume_reading()
        await until(lambda: len(order) == 200)
        assert second in order[:30]
        assert first in order[-30:] or second in order[-30:]

    endpoints.run(main)


@pytest.mark.parametrize("option", ["read_datagrams", "read_us"])
def test_limits_are_at_least_one(endpoints, option):
    async def main(loop):
        with pytest.raises(ValueError, match="at least 1"):
            await endpoints.open(**{option: 0})

    endpoints.run(main)


# --- errors -----------------------------------------------------------------------------------------


def dead_port():
    """An address of loopback where nobody listens."""
    with socket.socket(V4.family, socket.SOCK_DGRAM) as sock:
        sock.bind(V4.address())
        return sock.getsockname()


def test_a_dead_peer_is_told_and_the_endpoint_lives(either):
    async def main(loop):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            address = far.getsockname()
        near = await either.open(remote_addr=address)
        near.transport.sendto(b"x")
        await until(lambda: near.errors)
        assert [type(error) for error in near.errors] == [ConnectionRefusedError]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(address)
            far.settimeout(10)
            near.transport.sendto(b"again")
            await passes()
            assert far.recv(100) == b"again"
            far.sendto(b"back", near.address)
            await until(lambda: near.received)
        assert near.received == [(b"back", address)]

    either.run(main)


def test_an_error_in_front_of_datagrams(either):
    """The kernel reports it with the next call; the datagrams behind it are delivered."""

    async def main(loop):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            address = far.getsockname()
        near = await either.open(remote_addr=address)
        near.transport.pause_reading()
        near.transport.sendto(b"x")
        await passes()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(address)
            send_all(far, near.address, [b"a", b"b"])
            near.transport.resume_reading()
            await until(lambda: len(near.received) == 2 and near.errors)
        assert [type(error) for error in near.errors] == [ConnectionRefusedError]
        assert near.payloads == [b"a", b"b"]

    either.run(main)


def test_the_error_queue_names_the_dead_peer(endpoints, recorder, far):
    """An unconnected endpoint goes on with its other peers."""
    dead = dead_port()

    async def main(loop):
        near = await endpoints.open(recorder, error_queue=True)
        near.transport.sendto(b"lost", dead)
        near.transport.sendto(b"found", far.getsockname())
        await until(lambda: near.errors)
        (error,) = near.errors
        assert isinstance(error, ConnectionRefusedError)
        assert error.record.address == dead
        assert repr(dead) in str(error)
        assert far.recv(100) == b"found"
        far.sendto(b"back", near.address)
        await until(lambda: near.received)
        await passes()
        assert len(near.errors) == 1

    endpoints.run(main)


def test_the_error_queue_of_a_connected_endpoint_tells_once(endpoints):
    async def main(loop):
        near = await endpoints.open(remote_addr=dead_port(), error_queue=True)
        near.transport.sendto(b"lost")
        await until(lambda: near.errors)
        await passes(10)
        (error,) = near.errors
        assert isinstance(error, ConnectionRefusedError)
        assert error.record.errno == error.errno

    endpoints.run(main)


def test_the_error_queue_while_sending(endpoints, far):
    """Errors that a send comes upon are told too."""
    dead = dead_port()

    async def main(loop):
        near = await endpoints.open(error_queue=True)
        near.transport.pause_reading()  # only sends look at the queue
        for number in range(5):
            near.transport.sendto(b"lost", dead)
            near.transport.sendto(b"%d" % number, far.getsockname())
            near.transport.flush()
            await passes()
        assert [far.recv(100) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        near.transport.resume_reading()
        await until(lambda: len(near.errors) == 5)
        assert {error.record.address for error in near.errors} == {dead}

    endpoints.run(main)


def test_transmit_timestamps_are_no_errors(endpoints, far):
    async def main(loop):
        near = await endpoints.open(transmit_timestamps=True)
        near.transport.sendto(b"x", far.getsockname())
        await passes(10)
        assert far.recv(100) == b"x"
        assert near.errors == []

    endpoints.run(main)
