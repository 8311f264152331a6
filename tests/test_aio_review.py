"""What reviews found in datagram endpoints: slow protocols, strangers, loops that refuse, owners that close."""

import asyncio
import errno
import socket
import time

import pytest
from endpoints import LOCAL, BatchRecorder, Recorder, passes, until

import fastsock


def test_a_protocol_that_becomes_slow_is_given_fewer_between_two_looks_at_the_clock(endpoints, far):
    class Slow(Recorder):
        """Quick for 40 datagrams, then longer than the budget of a pass for each."""

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) > 40:
                time.sleep(0.002)

    async def main(loop):
        near = await endpoints.open(Slow, read_us=1000)
        near.transport.pause_reading()
        for number in range(120):
            far.sendto(b"%d" % number, near.address)
        counts, before = [], 0
        near.transport.resume_reading()
        while len(near.received) < 120:
            await asyncio.sleep(0)
            counts.append(len(near.received) - before)
            before = len(near.received)
        assert near.payloads == [b"%d" % number for number in range(120)]
        slow = counts[next(index for index in range(len(counts)) if sum(counts[: index + 1]) > 60) :]
        assert max(slow) <= 2, counts

    endpoints.run(main)


@pytest.mark.parametrize("recorder", [Recorder, BatchRecorder])
def test_what_a_stranger_sent_before_the_connect_has_his_address(endpoints, far, recorder):
    async def main(loop):
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near.bind(LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(LOCAL)
            stranger.sendto(b"evil", near.getsockname())
            near.connect(far.getsockname())
            protocol = await endpoints.open(recorder, sock=near)
            await until(lambda: protocol.received)
            assert protocol.received == [(b"evil", stranger.getsockname())]
        for _ in range(2):  # with the address of the kernel, then with the one that is known
            protocol.received.clear()
            far.sendto(b"good", near.getsockname())
            await until(lambda: protocol.received)
            if recorder is Recorder:
                assert protocol.received == [(b"good", far.getsockname())]
            else:
                assert protocol.payloads == [b"good"]

    class Peer(BatchRecorder):
        """Batches have no addresses once all is of the peer."""

        def datagrams_received(self, batch):
            for datagram in batch:
                try:
                    self.received.append((bytes(datagram), datagram.address))
                except ValueError:
                    self.received.append((bytes(datagram), None))

    if recorder is BatchRecorder:
        recorder = Peer
    endpoints.run(main)


def test_a_loop_that_cannot_watch_fails_the_creation(endpoints, monkeypatch):
    async def main(loop):
        class Refusing:
            """The running loop, whose epoll is full."""

            def __getattr__(self, name):
                return getattr(loop, name)

            def add_reader(self, *arguments):
                raise OSError(errno.ENOSPC, "no more watches")

        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(LOCAL)
        monkeypatch.setattr(asyncio, "get_running_loop", Refusing)
        with sock:
            with pytest.raises(OSError, match="no more watches"):
                await fastsock.aio.create_datagram_endpoint(Recorder, sock=sock)
            with pytest.raises(OSError, match="no more watches"):
                await fastsock.aio.create_datagram_endpoint(Recorder, LOCAL)
            monkeypatch.undo()
            await passes()
            assert sock.getsockname()  # it stayed the caller's

    endpoints.run(main)


def test_what_waits_goes_to_a_protocol_of_the_other_kind(endpoints, far):
    async def main(loop):
        near = await endpoints.open(Recorder)
        near.transport.pause_reading()
        for number in range(20):
            far.sendto(b"%d" % number, near.address)

        class Handing(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                if len(self.received) == 3:
                    self.transport.set_protocol(other)

        first, other = Handing(), BatchRecorder()
        first.transport = near.transport
        near.transport.set_protocol(first)
        near.transport.resume_reading()
        await until(lambda: len(first.received) + len(other.received) == 20)
        assert first.payloads + other.payloads == [b"%d" % number for number in range(20)]
        assert {address for _, address in other.received} == {far.getsockname()}

    endpoints.run(main)


def test_an_exit_out_of_error_received_does_not_keep_a_closing_transport(endpoints):
    class Exiting(Recorder):
        def error_received(self, exc):
            raise SystemExit

    async def main(loop):
        near = await endpoints.open(Exiting)
        near.transport.sendto(b"x", ("255.255.255.255", 9))  # EACCES without SO_BROADCAST
        with pytest.raises(SystemExit):
            near.transport.close()
        await passes()
        assert near.lost == [None]

    endpoints.run(main)


def test_a_socket_that_its_owner_closed_is_not_another_that_has_its_number(endpoints, far):
    async def main(loop):
        given = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        given.bind(LOCAL)
        near = await endpoints.open(sock=given)
        number = given.fileno()
        loop.remove_reader(number)
        given.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            assert other.fileno() == number
            other.bind(LOCAL)
            far.setblocking(False)
            near.transport.sendto(b"from whom?", far.getsockname())
            await until(lambda: near.lost)
            assert near.lost[0].errno == errno.EBADF
            with pytest.raises(BlockingIOError):
                far.recv(100)
            assert other.getsockname()  # and it was not closed

    endpoints.run(main)


def test_a_closed_transport_keeps_no_batch(endpoints, far):
    async def main(loop):
        near = await endpoints.open(BatchRecorder)
        far.sendto(b"x", near.address)
        await until(lambda: near.received)
        transport = near.transport
        transport.close()
        await until(lambda: near.lost)
        await passes()
        assert transport._batch is None

    endpoints.run(main)
