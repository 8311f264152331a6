"""What a protocol may do in the middle of a batch, and how much of a pass it has."""

import pytest
from endpoints import (
    BatchRecorder,
    Recorder,
    count_payloads,
    passes,
    send_all,
    until,
)

MANY = 200
"""More than one receive takes, so that some of it is behind the batch at hand."""


# --- pause, resume, close ------------------------------------------------------------------------------


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
        if either.ours:
            assert not loop.remove_reader(near.transport.get_extra_info("socket").fileno())  # it would spin
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


# --- how much of a pass --------------------------------------------------------------------------------


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
        # 5 ms is 5 datagrams; the clock is looked at behind every 8, and a pass may end one list and begin the next.
        assert max(counts) <= 16
        assert len(counts) >= MANY // 10

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
