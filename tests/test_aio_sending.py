"""What leaves an endpoint: in how many calls, in which order, what is refused, and when the protocol is to pause."""

import asyncio
import errno
import socket

import pytest
from conftest import needs, needs_localhost
from endpoints import KINDS, Recorder, count_payloads, passes, until
from tracing import trace

OVERHEAD = 8
"""What a queued datagram counts beside its payload."""


@pytest.fixture
def unix_far(tmp_path):
    """A plain AF_UNIX socket; nobody can send to it while about ten datagrams wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "far"))
        sock.setblocking(False)
        yield sock


def receive_now(sock, most=10_000):
    found = []
    try:
        while len(found) < most:
            found.append(sock.recv(70000))
    except BlockingIOError:
        pass
    return found


async def open_full(endpoints, unix_far, protocol=Recorder, size=0):
    """An endpoint whose peer takes no more, how many it took, of `size` bytes or 1; one is queued."""
    near = await endpoints.open(protocol, None, family=socket.AF_UNIX, remote_addr=unix_far.getsockname())
    taken = 0
    while True:
        near.transport.sendto(b"f" * size or b"f")
        if endpoints.ours:
            near.transport.flush()
        if near.transport.get_write_buffer_size():
            return near, taken
        taken += 1


# --- what sendto takes -------------------------------------------------------------------------


@pytest.mark.parametrize("connected", [False, True], ids=["to", "connected"])
@pytest.mark.parametrize(
    "payload", [b"bytes", bytearray(b"array"), memoryview(b"view"), memoryview(b"strided")[::2], b"x" * 65507]
)
def test_bytes_like_payloads(either, far, connected, payload):
    async def main(loop):
        peer = far.getsockname()
        near = await either.open(**({"remote_addr": peer} if connected else {}))
        if isinstance(payload, memoryview) and not payload.contiguous and not either.ours:
            return  # sent by the socket itself, which wants it in one piece
        near.transport.sendto(payload, *(() if connected else (peer,)))
        await passes()
        assert far.recv(70000) == bytes(payload)

    either.run(main)


@pytest.mark.parametrize("connected", [False, True], ids=["to", "connected"])
def test_empty_datagrams_leave(endpoints, far, connected):
    async def main(loop):
        peer = far.getsockname()
        near = await endpoints.open(**({"remote_addr": peer} if connected else {}))
        for payload in (b"", b"x", b"", b""):
            near.transport.sendto(payload, None if connected else peer)
        await passes()
        assert [far.recv(10) for _ in range(4)] == [b"", b"x", b"", b""]

    endpoints.run(main)


@pytest.mark.parametrize("payload", ["text", None, 5, [b"x"]])
def test_other_payloads_are_refused(either, far, payload):
    async def main(loop):
        near = await either.open()
        with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
            near.transport.sendto(payload, far.getsockname())
        assert not near.transport.is_closing()
        near.transport.sendto(b"fine", far.getsockname())
        await passes()
        assert far.recv(10) == b"fine"

    either.run(main)


def test_a_payload_may_change_as_soon_as_it_is_queued(either, far):
    async def main(loop):
        near = await either.open()
        payload = bytearray(b"before")
        near.transport.sendto(payload, far.getsockname())
        near.transport.sendto(memoryview(payload), far.getsockname())
        payload[:] = b"after!"
        payload.append(0)  # nothing holds it
        await passes()
        assert [far.recv(10), far.recv(10)] == [b"before"] * 2

    either.run(main)


def test_the_peer_of_a_connected_endpoint_may_be_named(either, far):
    async def main(loop):
        near = await either.open(remote_addr=far.getsockname())
        near.transport.sendto(b"1")
        near.transport.sendto(b"2", far.getsockname())
        near.transport.sendto(b"3", None)
        with pytest.raises(ValueError, match="Invalid address: must be None or"):
            near.transport.sendto(b"no", ("127.0.0.1", 9))
        await passes()
        assert [far.recv(10) for _ in range(3)] == [b"1", b"2", b"3"]
        assert not near.transport.is_closing()

    either.run(main)


def test_without_any_peer(endpoints, far):
    async def main(loop):
        near = await endpoints.open()
        with pytest.raises(TypeError, match="address"):
            near.transport.sendto(b"nowhere")
        near.transport.sendto(b"x", far.getsockname())
        await passes()
        assert far.recv(10) == b"x"

    endpoints.run(main)


def test_a_broadcast_peer_is_not_connected_to(either, far):
    """Answers come from other addresses than the one that was broadcast to."""

    async def main(loop):
        near = await either.open(remote_addr=far.getsockname(), allow_broadcast=True)
        assert near.transport.get_extra_info("peername") is None
        near.transport.sendto(b"1")
        near.transport.sendto(b"2", far.getsockname())
        with pytest.raises(ValueError, match="Invalid address"):
            near.transport.sendto(b"no", ("127.0.0.1", 9))
        await passes()
        assert [far.recv(10), far.recv(10)] == [b"1", b"2"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"answer", near.address)
            await until(lambda: near.received)

    either.run(main)


@needs_localhost
def test_a_name_as_the_destination(either, far):
    async def main(loop):
        near = await either.open()
        near.transport.sendto(b"x", ("localhost", far.getsockname()[1]))
        await passes()
        assert far.recv(10) == b"x"

    either.run(main)


# --- order, and how many calls --------------------------------------------------------------------


def test_order_over_one_pass(either, far):
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    async def main(loop):
        near = await either.open()
        payloads = count_payloads(150)
        for payload in payloads:
            near.transport.sendto(payload, far.getsockname())
        await passes()
        assert [far.recv(100) for _ in payloads] == payloads

    either.run(main)


def test_nothing_leaves_before_the_end_of_the_pass_but_by_flush(endpoints, far):
    far.setblocking(False)

    async def main(loop):
        near = await endpoints.open()
        near.transport.sendto(b"1", far.getsockname())
        assert near.transport.get_write_buffer_size() == 1 + OVERHEAD
        assert receive_now(far) == []
        near.transport.flush()
        assert near.transport.get_write_buffer_size() == 0
        assert receive_now(far) == [b"1"]
        near.transport.flush()  # of nothing
        near.transport.sendto(b"2", far.getsockname())
        await passes()
        assert receive_now(far) == [b"2"]

    endpoints.run(main)


def test_it_leaves_in_the_next_pass_at_the_latest(endpoints, far):
    far.setblocking(False)

    async def main(loop):
        near = await endpoints.open()
        near.transport.sendto(b"1", far.getsockname())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert receive_now(far) == [b"1"]

    endpoints.run(main)


SCRIPT = """
import asyncio, socket
import fastsock.aio
try:
    import uvloop
except ImportError:
    pass
far, other = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for sock in (far, other):
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.settimeout(10)
class Protocol(asyncio.DatagramProtocol):
    errors = []
    def error_received(self, exc):
        self.errors.append(exc)
    def datagram_received(self, data, addr):
        self.transport.sendto(data, addr)
    def connection_made(self, transport):
        self.transport = transport
async def main():
    loop = asyncio.get_running_loop()
    transport, protocol = await fastsock.aio.create_datagram_endpoint(Protocol, ("127.0.0.1", 0){options})
    near, peer = transport.get_extra_info("sockname"), far.getsockname()
{body}
    transport.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
with asyncio.Runner(loop_factory={loop}) as runner:
    runner.run(asyncio.wait_for(main(), 30))
far.close()
other.close()
"""
LOOP_NAMES = {
    "asyncio": "asyncio.SelectorEventLoop",
    "uvloop": "uvloop.new_event_loop",
    "EventLoop": "fastsock.aio.EventLoop",
}


@pytest.fixture(params=KINDS)
def traced(request):
    """Run the body of a coroutine with a `transport` under strace; the calls that send on a datagram socket."""

    def run(body, *faults, options="", names="sendto,sendmsg,sendmmsg"):
        indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
        script = SCRIPT.format(body=indented, loop=LOOP_NAMES[request.param], options=options)
        calls = trace(script, names, *faults).calls
        return [call for call in calls if (call.name, call.result) != ("sendmsg", 65)]  # the probe for GSO

    return run


def test_one_call_for_a_pass(traced):
    calls = traced("""
for number in range(100):
    transport.sendto(b"." * (number % 9), peer if number % 3 else other.getsockname())
loop.call_soon(transport.sendto, b"from another callback", peer)
await asyncio.sleep(0)
await asyncio.sleep(0)
assert [len(far.recv(100)) for _ in range(67)] == [number % 9 for number in range(100) if number % 3] + [21]
""")
    assert [(call.name, call.result) for call in calls] in ([("sendmmsg", 101)], [("sendmmsg", 100), ("sendmsg", 21)])


@needs("gso")
def test_equal_payloads_to_one_peer_are_segmented(traced):
    calls = traced("""
for number in range(60):
    transport.sendto(b"%03d" % number, peer)
transport.flush()
assert [int(far.recv(100)) for _ in range(60)] == list(range(60))
""")
    (call,) = calls
    assert call.segmented == 1


def test_gso_may_be_off(traced):
    (call,) = traced(
        """
for number in range(60):
    transport.sendto(b"%03d" % number, peer)
transport.flush()
assert [int(far.recv(100)) for _ in range(60)] == list(range(60))
""",
        options=", gso=False",
    )
    assert (call.name, call.result, call.segmented) == ("sendmmsg", 60, 0)


def test_answers_to_a_batch_leave_in_one_call(traced):
    calls = traced(
        """
transport.pause_reading()
for number in range(50):
    other.sendto(b"." * (number % 9), near)
transport.resume_reading()
await asyncio.sleep(0)
await asyncio.sleep(0)
await asyncio.sleep(0)
assert [len(other.recv(100)) for _ in range(50)] == [number % 9 for number in range(50)]
""",
        names="sendmmsg,sendmsg",
    )
    assert [(call.name, call.result) for call in calls] == [("sendmmsg", 50)]


def test_many_in_one_pass_go_in_full_calls(traced):
    """The queue is bounded by what one sendmmsg takes, and by the high-water mark."""
    calls = traced("""
transport.set_write_buffer_limits(high=1 << 20)
for number in range(2500):
    transport.sendto(b"" if number % 2 else b"x", peer)
await asyncio.sleep(0)
await asyncio.sleep(0)
""")
    assert [call.result for call in calls] == [1024, 1024, 452]


@pytest.mark.parametrize("when", [1, 2])
def test_order_across_a_full_buffer(traced, when):
    calls = traced(
        """
for number in range(40):
    transport.sendto(b"%d" % number, peer)
    if number == 19:
        transport.flush()
while transport.get_write_buffer_size():
    await asyncio.sleep(0)
assert [int(far.recv(100)) for _ in range(40)] == list(range(40))
assert protocol.errors == []
""",
        f"sendmmsg:error=EAGAIN:when={when}",
        options=", gso=False",
    )
    assert sum(call.result for call in calls if call.result > 0) == 40
    assert sum("EAGAIN" in call.line for call in calls) == 1


def test_an_interrupted_call_is_made_again(traced):
    calls = traced(
        """
for number in range(40):
    transport.sendto(b"%d" % number, peer)
transport.flush()
assert [int(far.recv(100)) for _ in range(40)] == list(range(40))
""",
        "sendmmsg:error=EINTR:when=1",
        options=", gso=False",
    )
    assert [call.result for call in calls] == [-1, 40]


def test_a_refused_call_costs_one_datagram(traced):
    """ENOBUFS, of a device whose queue is full, is told; the others leave."""
    traced(
        """
for number in range(10):
    transport.sendto(b"%d" % number, peer)
transport.flush()
assert [int(far.recv(100)) for _ in range(9)] == list(range(1, 10))
assert [error.errno for error in protocol.errors] == [105]
assert transport.get_write_buffer_size() == 0
""",
        "sendmmsg:error=ENOBUFS:when=1",
        options=", gso=False",
    )


# --- a peer that takes no more ----------------------------------------------------------------------


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


# --- what is refused ----------------------------------------------------------------------------------

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


# --- closing ------------------------------------------------------------------------------------------


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
        assert receive_now(far) == []

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
