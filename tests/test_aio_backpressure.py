"""A peer that takes no more: order, the marks at which the protocol pauses, and closing with data queued."""

import asyncio
import socket

import pytest
from endpoints import (
    OVERHEAD,
    Recorder,
    count_payloads,
    open_full,
    passes,
    receive_now,
    until,
)

# --- a peer that takes no more -------------------------------------------------------------------------


def test_order_across_a_full_peer(either, unix_far):
    async def main(loop):
        near, taken = await open_full(either, unix_far)
        payloads = count_payloads(100)
        for payload in payloads:
            near.transport.sendto(payload)
        got = []
        while len(got) < taken + 1 + 100:
            got += receive_now(unix_far, 1)
            await passes()
        assert got == [b"f"] * (taken + 1) + payloads
        assert near.errors == []
        if either.ours:  # the loop's own forgets to take the overhead off
            assert near.transport.get_write_buffer_size() == 0

    either.run(main)


def test_a_blocked_payload_is_a_copy(either, unix_far):
    async def main(loop):
        near, taken = await open_full(either, unix_far)
        payload = bytearray(b"before")
        near.transport.sendto(payload)
        payload[:] = b"after!"
        got = []
        while len(got) < taken + 2:
            got += receive_now(unix_far)
            await passes()
        assert got[-1] == b"before"

    either.run(main)


def test_the_size_of_the_queue(endpoints, unix_far):
    async def main(loop):
        near, _ = await open_full(endpoints, unix_far)
        size = near.transport.get_write_buffer_size()
        assert size == 1 + OVERHEAD
        for payload in (b"", b"x" * 10, b"xy"):
            near.transport.sendto(payload)
            size += len(payload) + OVERHEAD
            assert near.transport.get_write_buffer_size() == size
        near.transport.flush()  # there is no room yet
        assert near.transport.get_write_buffer_size() == size
        while near.transport.get_write_buffer_size():
            receive_now(unix_far)
            await passes()

    endpoints.run(main)


def test_back_pressure_at_the_marks(endpoints, unix_far):
    sizes = []

    class Notes(Recorder):
        def pause_writing(self):
            super().pause_writing()
            sizes.append(self.transport.get_write_buffer_size())

        def resume_writing(self):
            super().resume_writing()
            sizes.append(self.transport.get_write_buffer_size())

    async def main(loop):
        near, _ = await open_full(endpoints, unix_far, Notes, 92)  # each counts 100
        near.transport.set_write_buffer_limits(high=1000, low=300)
        for _ in range(9):
            near.transport.sendto(b"." * 92)
        assert near.transport.get_write_buffer_size() == 1000
        assert near.writing == []
        near.transport.sendto(b"." * 92)
        assert near.writing == ["pause"]
        near.transport.sendto(b"." * 92)
        assert near.writing == ["pause"]
        while near.writing == ["pause"]:
            left = near.transport.get_write_buffer_size()
            assert left > 300
            assert receive_now(unix_far, 1)
            await until(lambda left=left: near.transport.get_write_buffer_size() < left)
        assert near.writing == ["pause", "resume"]
        assert sizes == [1100, 300]
        while near.transport.get_write_buffer_size():
            receive_now(unix_far)
            await passes()
        assert near.writing == ["pause", "resume"]

    endpoints.run(main)


@pytest.mark.parametrize("high", [0, 10])
def test_a_low_mark_pauses_at_the_first_that_waits(endpoints, unix_far, high):
    async def main(loop):
        near = await endpoints.open(Recorder, None, family=socket.AF_UNIX, remote_addr=unix_far.getsockname())
        near.transport.set_write_buffer_limits(high=high)
        while not near.writing:
            near.transport.sendto(b"four")  # above the mark with the overhead: sent at once, if it can be
        assert near.transport.get_write_buffer_size() == 4 + OVERHEAD
        receive_now(unix_far)
        await until(lambda: near.writing == ["pause", "resume"])
        assert near.transport.get_write_buffer_size() == 0

    endpoints.run(main)


def test_a_new_mark_holds_at_once(endpoints, unix_far):
    async def main(loop):
        near, _ = await open_full(endpoints, unix_far)
        near.transport.sendto(b"." * 1000)
        assert near.writing == []
        near.transport.set_write_buffer_limits(high=100)
        assert near.writing == ["pause"]
        assert near.transport.get_write_buffer_limits() == (25, 100)

    endpoints.run(main)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, (16384, 65536)),
        ({"high": 100}, (25, 100)),
        ({"low": 100}, (100, 400)),
        ({"high": 0}, (0, 0)),
        ({"high": 7, "low": 7}, (7, 7)),
    ],
)
def test_limits(either, given, limits):
    async def main(loop):
        near = await either.open()
        assert near.transport.get_write_buffer_limits() == (16384, 65536)
        near.transport.set_write_buffer_limits(**given)
        assert near.transport.get_write_buffer_limits() == limits
        for high, low in ((1, 2), (1, -1), (-1, None)):
            with pytest.raises(ValueError, match="must be >= low"):
                near.transport.set_write_buffer_limits(high=high, low=low)
        assert near.transport.get_write_buffer_limits() == limits

    either.run(main)


@pytest.mark.parametrize("callback", ["pause_writing", "resume_writing"])
def test_a_failing_pause_or_resume(endpoints, unix_far, callback):
    class Fails(Recorder):
        pass

    def fail(self):
        getattr(Recorder, callback)(self)
        raise LookupError

    setattr(Fails, callback, fail)

    async def main(loop):
        near, taken = await open_full(endpoints, unix_far, Fails)
        near.transport.set_write_buffer_limits(high=0)
        near.transport.sendto(b"last")
        got = []
        while len(got) < taken + 2:
            got += receive_now(unix_far)
            await passes()
        assert got[-1] == b"last"
        assert near.writing == ["pause", "resume"]
        assert [type(context["exception"]) for context in endpoints.take_told()] == [LookupError]
        assert not near.transport.is_closing()

    endpoints.run(main)


def test_resume_writing_may_send(endpoints, unix_far):
    """It joins the end of the queue, and may pause again."""

    class Sends(Recorder):
        def resume_writing(self):
            super().resume_writing()
            turn = self.writing.count("resume")
            if turn < 3:
                for _ in range(30):
                    self.transport.sendto(b"r%d" % turn)

    async def main(loop):
        near, taken = await open_full(endpoints, unix_far, Sends)
        near.transport.set_write_buffer_limits(high=100, low=0)
        for _ in range(20):
            near.transport.sendto(b"q")
        assert near.writing == ["pause"]
        got = []
        while len(got) < taken + 1 + 20 + 60:
            got += receive_now(unix_far, 1)
            await passes()
        assert got == [b"f"] * (taken + 1) + [b"q"] * 20 + [b"r1"] * 30 + [b"r2"] * 30
        assert near.writing == ["pause", "resume"] * 3

    endpoints.run(main)


# --- closing -------------------------------------------------------------------------------------------


def test_close_sends_what_is_queued(either, far):
    async def main(loop):
        near = await either.open()
        near.transport.sendto(b"1", far.getsockname())
        near.transport.sendto(b"2", far.getsockname())
        near.transport.close()
        assert near.transport.is_closing()
        near.transport.close()
        await until(lambda: near.lost)
        assert [far.recv(10), far.recv(10)] == [b"1", b"2"]
        await passes()
        assert near.lost == [None]

    either.run(main)


def test_close_waits_for_room(either, unix_far):
    async def main(loop):
        near, taken = await open_full(either, unix_far)
        near.transport.sendto(b"last")
        near.transport.close()
        await passes(10)
        assert near.lost == []
        got = []
        while not near.lost:
            got += receive_now(unix_far)
            await passes()
        got += receive_now(unix_far)
        assert got == [b"f"] * (taken + 1) + [b"last"]
        await passes()
        assert near.lost == [None]

    either.run(main)


def test_abort_drops_what_is_queued(either, unix_far):
    async def main(loop):
        near, taken = await open_full(either, unix_far)
        near.transport.sendto(b"last")
        near.transport.abort()
        near.transport.abort()
        near.transport.close()
        assert near.transport.get_write_buffer_size() == 0 or not either.ours
        await passes()
        assert near.lost == [None]
        assert receive_now(unix_far) == [b"f"] * taken

    either.run(main)


def test_abort_after_close(either, unix_far):
    async def main(loop):
        near, taken = await open_full(either, unix_far)
        near.transport.close()
        await passes()
        near.transport.abort()
        await passes()
        assert near.lost == [None]
        assert receive_now(unix_far) == [b"f"] * taken

    either.run(main)


@pytest.mark.parametrize("connected", [False, True], ids=["to", "connected"])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_sending_after_the_end_does_nothing(endpoints, far, how, connected):
    far.setblocking(False)

    async def main(loop):
        near = await endpoints.open(**({"remote_addr": far.getsockname()} if connected else {}))
        getattr(near.transport, how)()
        for _ in range(2):
            for _ in range(10):
                near.transport.sendto(b"x", far.getsockname())
            near.transport.flush()
            near.transport.close()
            near.transport.abort()
            near.transport.pause_reading()
            near.transport.resume_reading()
            await passes()
        assert near.lost == [None]
        assert near.errors == []
        assert receive_now(far) == []
        assert near.transport.get_write_buffer_size() == 0

    endpoints.run(main)


def test_sending_in_connection_lost_does_nothing(endpoints, far):
    far.setblocking(False)

    class Sends(Recorder):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            self.transport.sendto(b"x", far.getsockname())
            self.transport.flush()
            self.transport.close()
            self.transport.abort()

    async def main(loop):
        near = await endpoints.open(Sends)
        near.transport.close()
        await passes()
        assert near.lost == [None]
        assert receive_now(far) == []

    endpoints.run(main)


def test_abort_while_a_flush_is_due(endpoints, far):
    far.setblocking(False)

    async def main(loop):
        near = await endpoints.open()
        near.transport.sendto(b"x", far.getsockname())
        near.transport.abort()
        await passes()
        assert near.lost == [None]
        assert receive_now(far) == [b"x"]  # asyncio's has sent it by then

    endpoints.run(main)


def test_an_address_that_closes_the_transport(endpoints, far):
    """A port may be any object with __index__, which runs in the middle of the call."""

    class Port:
        def __index__(self):
            near.transport.abort()
            return far.getsockname()[1]

    async def main(loop):
        nonlocal near
        near = await endpoints.open()
        near.transport.sendto(b"x", ("127.0.0.1", Port()))
        near.transport.sendto(b"y", ("127.0.0.1", Port()))
        await passes()
        assert near.lost == [None]
        assert near.transport.get_write_buffer_size() == 0
        endpoints.take_told()

    near = None
    endpoints.run(main)


def test_sendto_from_another_thread_in_debug_mode(endpoints, far):
    """It is refused, and does not keep what is sent later from leaving."""

    async def main(loop):
        loop.set_debug(True)
        near = await endpoints.open()
        with pytest.raises(RuntimeError, match="thread"):
            await asyncio.to_thread(near.transport.sendto, b"1", far.getsockname())
        near.transport.sendto(b"2", far.getsockname())
        await passes()
        got = [far.recv(10)]
        assert got in ([b"1"], [b"2"])

    endpoints.run(main)
