"""What draws an error: dead peers, the error queue, destinations that are refused. The endpoint goes on."""

import asyncio
import errno
import socket

import pytest
from conftest import V4
from endpoints import (
    LOCAL,
    Recorder,
    count_payloads,
    open_full,
    passes,
    receive_now,
    send_all,
    until,
)

# --- dead peers ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("options", [{"error_queue": True}, {"transmit_timestamps": True}], ids=["errors", "stamps"])
def test_a_record_and_a_datagram_at_once(endpoints, recorder, far, options):
    """libuv stops watching a socket whose error queue holds something."""
    dead = dead_port()

    async def main(loop):
        near = await endpoints.open(recorder, **options)
        for number in range(5):
            near.transport.sendto(b"x", dead if "error_queue" in options else far.getsockname())
            near.transport.flush()
            far.sendto(b"back", near.address)
            await until(lambda number=number: len(near.received) > number)
        await until(lambda: len(near.errors) == (5 if "error_queue" in options else 0))

    endpoints.run(main)


def test_an_error_that_a_send_meets_first(endpoints):
    """Behind a slow protocol the reader waits, and the send is told of the error: the reader hears on."""
    clock = [0]

    class Slow(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            clock[0] += 10_000_000
            if len(self.received) == 1:
                self.transport.sendto(b"draws an error")
                self.transport.flush()
                loop.call_soon(loop.call_soon, loop.call_soon, self.transport.sendto, b"meets it")

    async def main(running):
        nonlocal loop
        loop = running
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.bind(LOCAL)
        address = far.getsockname()
        near = await endpoints.open(Slow, remote_addr=address)
        send_all(far, near.address, count_payloads(100))
        far.close()
        await until(lambda: len(near.received) == 100 and near.errors)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(address)
            far.sendto(b"back", near.address)
            await until(lambda: len(near.received) == 101)

    loop = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsock.aio._transport.perf_counter_ns", lambda: clock[0])
        endpoints.run(main)


def test_transmit_timestamps_are_no_errors(endpoints, recorder, far):
    async def main(loop):
        near = await endpoints.open(recorder, transmit_timestamps=True)
        for number in range(3):
            near.transport.sendto(b"x", far.getsockname())
            await passes(10)
            assert far.recv(100) == b"x"
            far.sendto(b"back", near.address)
            await until(lambda number=number: len(near.received) > number)
        assert near.errors == []

    endpoints.run(main)


# --- what is refused -----------------------------------------------------------------------------------


REFUSED = {
    "port 0": (b"x", ("127.0.0.1", 0)),
    "broadcast": (b"x", ("255.255.255.255", 9)),
    "unroutable": (b"x", ("192.0.2.1", 9)),  # from a loopback address
    "too long": (b"x" * 65508, None),
    "unresolvable": (b"x", ("no.such.host.invalid", 9)),
}
NO_ADDRESSES = {
    "port too large": (b"x", ("127.0.0.1", 70000)),
    "one part": (b"x", ("127.0.0.1",)),
    "port as text": (b"x", ("127.0.0.1", "9")),
    "a number": (b"x", 9),
    "a list": (b"x", ["127.0.0.1", 9]),
    "an embedded null": (b"x", ("127.0.0.1\x00", 9)),
}


@pytest.mark.parametrize("position", [0, 1, 5])
@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_destination_costs_its_own_datagram_alone(either, far, what, position):
    async def main(loop):
        near = await either.open()
        goods = count_payloads(6)
        for number, good in enumerate(goods):
            if number == position:
                payload, address = REFUSED[what]
                near.transport.sendto(payload, address or far.getsockname())
            near.transport.sendto(good, far.getsockname())
        await passes()
        assert [far.recv(100) for _ in goods] == goods
        assert [isinstance(error, OSError) for error in near.errors] == [True]
        assert not near.transport.is_closing()

    either.run(main)


@pytest.mark.parametrize("position", [0, 1, 5])
@pytest.mark.parametrize("what", NO_ADDRESSES)
def test_what_is_no_address_costs_its_own_datagram_alone(endpoints, far, what, position):
    """The exception is raised by sendto, or told to the loop's handler."""

    async def main(loop):
        near = await endpoints.open()
        goods = count_payloads(6)
        raised = []
        for number, good in enumerate(goods):
            if number == position:
                try:
                    near.transport.sendto(*NO_ADDRESSES[what])
                except Exception as error:
                    raised.append(error)
            near.transport.sendto(good, far.getsockname())
        await passes()
        far.setblocking(False)
        assert receive_now(far) == goods
        told = [context["exception"] for context in endpoints.take_told()]
        assert [type(error) for error in raised + told] in ([TypeError], [OverflowError], [ValueError])
        assert near.errors == []
        assert not near.transport.is_closing()

    endpoints.run(main)


def test_an_address_of_another_family(endpoints, far):
    async def main(loop):
        near = await endpoints.open()
        far.settimeout(1)
        near.transport.sendto(b"a", far.getsockname())
        near.transport.sendto(b"x", ("::1", 9))
        near.transport.sendto(b"b", far.getsockname())
        await passes()
        assert [far.recv(10), far.recv(10)] == [b"a", b"b"]
        assert len(near.errors) + len(endpoints.take_told()) == 1

    endpoints.run(main)


def test_too_long_among_segments(endpoints, far):
    """A connected endpoint, whose queue would go as segments."""

    async def main(loop):
        near = await endpoints.open(remote_addr=far.getsockname())
        for payload in [b"aa"] * 5 + [b"x" * 65508] + [b"bb"] * 5:
            near.transport.sendto(payload)
        await passes()
        assert [far.recv(10) for _ in range(10)] == [b"aa"] * 5 + [b"bb"] * 5
        assert [error.errno for error in near.errors] == [errno.EMSGSIZE]

    endpoints.run(main)


def test_a_dead_peer_costs_no_more_than_the_loops_own(either):
    """An answer of ICMP fails the call after it, whose datagram is the only one that is lost."""

    async def main(loop):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            address = far.getsockname()
        near = await either.open(remote_addr=address)
        near.transport.pause_reading()
        near.transport.sendto(b"draws the answer")
        await passes()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(address)
            far.settimeout(10)
            for payload in (b"1", b"2", b"3"):
                near.transport.sendto(payload)
            await passes()
            assert [type(error) for error in near.errors] == [ConnectionRefusedError]
            assert [far.recv(10), far.recv(10)] == [b"2", b"3"]

    either.run(main)


def test_a_full_peer_that_goes_away(endpoints, unix_far):
    """What waits for it is refused, and the queue is empty again."""

    async def main(loop):
        near, _ = await open_full(endpoints, unix_far)
        for _ in range(5):
            near.transport.sendto(b"x")
        unix_far.close()
        await until(lambda: len(near.errors) == 6)
        assert [error.errno for error in near.errors] == [errno.ECONNREFUSED] + [errno.ENOTCONN] * 5
        assert near.transport.get_write_buffer_size() == 0
        near.transport.close()
        await until(lambda: near.lost)

    endpoints.run(main)


def test_error_received_may_send(endpoints, far):
    class Answers(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            self.transport.sendto(b"after the error", far.getsockname())

    async def main(loop):
        near = await endpoints.open(Answers)
        near.transport.sendto(b"x", ("127.0.0.1", 0))
        near.transport.sendto(b"1", far.getsockname())
        await passes()
        assert [far.recv(100), far.recv(100)] == [b"1", b"after the error"]

    endpoints.run(main)


def test_error_received_that_fails_again_shares_the_loop(endpoints):
    """A protocol that always sends to the same bad peer again does not stop the loop."""

    class Insists(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            if len(self.errors) > 100_000:
                raise SystemExit("the loop never ran again")
            self.transport.sendto(b"x", ("127.0.0.1", 0))

    async def main(loop):
        near = await endpoints.open(Insists)
        near.transport.sendto(b"x", ("127.0.0.1", 0))
        await passes(10)
        assert near.errors

    endpoints.run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_error_received_may_close(endpoints, far, how):
    far.setblocking(False)

    class Closes(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            getattr(self.transport, how)()

    async def main(loop):
        near = await endpoints.open(Closes)
        near.transport.sendto(b"0", far.getsockname())
        near.transport.sendto(b"x", ("127.0.0.1", 0))
        near.transport.sendto(b"1", far.getsockname())
        near.transport.sendto(b"2", far.getsockname())
        await passes(10)
        assert near.lost == [None]
        assert receive_now(far) == ([b"0", b"1", b"2"] if how == "close" else [b"0"])
        assert near.transport.get_write_buffer_size() == 0

    endpoints.run(main)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_an_exit_out_of_error_received_leaves_the_rest_queued(endpoints, far, exception):
    far.setblocking(False)

    class Exits(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            raise exception

    loop = endpoints.new_loop()
    try:
        near = loop.run_until_complete(endpoints.open(Exits))
        near.transport.sendto(b"x", ("127.0.0.1", 0))
        near.transport.sendto(b"1", far.getsockname())
        with pytest.raises(exception):
            loop.run_until_complete(passes(10))
        loop.run_until_complete(passes(10))
        got = receive_now(far)
        near.transport.abort()
        loop.run_until_complete(passes())
        assert near.lost == [None]
        assert got == [b"1"]
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(passes())
        loop.close()
