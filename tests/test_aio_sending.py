"""What sendto takes, in which order it leaves, and in how many calls."""

import asyncio
import socket

import pytest
from conftest import needs, needs_localhost
from endpoints import (
    KINDS,
    OVERHEAD,
    count_payloads,
    passes,
    receive_now,
    until,
)
from tracing import trace

# --- what sendto takes ---------------------------------------------------------------------------------


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


# --- order, and how many calls -------------------------------------------------------------------------


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
    transport, protocol = await fastsock.aio.create_datagram_endpoint(
        Protocol, ("127.0.0.1", 0), read_us=10_000_000{options})
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
