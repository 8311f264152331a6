"""Code that runs inside a send: handlers, buffers, addresses and iterables written in Python,
other threads, a fork, and garbage that is taken apart.

None may crash it, make it send by another socket's number, or lose or repeat a datagram.
"""

import sys

import pytest
from conftest import PROBE, needs, needs_large_buffers
from tracing import trace_pair

NEAR_FAR = """
import errno, gc, os, select, signal, socket, sys, threading, time
import fastsock
near, far = (fastsock.Socket(fileno=end.detach()) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
far.setblocking(False)
near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
payloads = [b"%04d" % i for i in range(500)]
batch = fastsock.SendBatch(500, 2000)
for payload in payloads:
    batch.append(payload)
whole = fastsock.SendBatch(1, 2000)
whole.append(b"".join(payloads), segment_size=4)
def drain():
    found = []
    try:
        while not found or found[-1]:           # an empty one is end-of-file
            found += far.recv_many(1000)
    except BlockingIOError:
        pass
    return [payload for payload in found if payload]
def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
"""

CALLS = [
    "near.send_many(payloads)",
    "near.send_many(payloads[:60] * 3)",
    "near.send_batch(batch)",
    "near.send_batch(whole)",
    "near.send_segments(b''.join(payloads), 4)",
]


# --- closed while it waits ------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["None", "20"])
@pytest.mark.parametrize("call", CALLS)
def test_closed_in_a_handler_nothing_goes_out_by_the_next_on_its_number(isolated, call, wait):
    out = isolated(
        NEAR_FAR
        + f"""
near.settimeout({wait})
number, others = near.fileno(), []
def handler(*_):
    near.close()
    others.extend(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    assert number in [other.fileno() for other in others]
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    print({call} is not None)
except OSError as error:
    assert error.errno == errno.EBADF
    print(True)
for other in others:
    other.setblocking(False)
    try:
        print(other.recv(100))
    except BlockingIOError:
        print("nothing")
for other in [*others, far]:
    other.close()
"""
    )
    assert out.split() == ["True", "nothing", "nothing"]


@pytest.mark.parametrize("wait", ["None", "20"])
@pytest.mark.parametrize("call", CALLS)
def test_closed_by_another_thread(isolated, call, wait):
    # It ends when its wait does; what it counted is what arrived.
    isolated(
        NEAR_FAR
        + f"""
near.settimeout({wait})
results = []
def send():
    try:
        results.append({call})
    except OSError as error:
        results.append(error)
thread = threading.Thread(target=send)
thread.start()
def asleep():
    with open(f"/proc/self/task/{{thread.native_id}}/stat") as stat:
        return stat.read().rpartition(") ")[2][0] == "S"
poll = select.poll()
poll.register(far.fileno(), select.POLLIN)
wait_until(lambda: poll.poll(0) and asleep())
near.close()
found = []
while thread.is_alive():
    found += drain()
    thread.join(0.001)
found += drain()
(result,) = results
expected = payloads[:60] * 3 if "60" in "{call}" else payloads
assert found == expected[: len(found)], found
if isinstance(result, OSError):
    assert result.errno == errno.EBADF
elif "whole" not in "{call}":
    assert len(found) == result // (4 if "segments" in "{call}" else 1)
far.close()
"""
    )


@pytest.mark.parametrize("call", CALLS)
def test_an_exception_of_a_handler_ends_the_wait(isolated, call):
    out = isolated(
        NEAR_FAR
        + f"""
class Stop(Exception): pass
def handler(*_): raise Stop
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    {call}
except Stop:
    found = drain()
    print("stopped", 0 < len(found) < 500, found == payloads[: len(found)] or "60" in "{call}")
# A batch goes on behind what the kernel took, be it inside a payload.
near.settimeout(0)
for one in (batch, whole):
    if one is {"batch" if "(batch)" in call else "whole" if "(whole)" in call else "None"}:
        while one.unsent:
            try:
                near.send_batch(one)
            except BlockingIOError:
                pass
            found += drain()
        assert found == payloads
near.close()
far.close()
"""
    )
    assert out.split() == ["stopped", "True", "True"]


# --- Python that runs while the call is prepared ----------------------------------------------------------

UDP = """
import gc, os, socket, sys, threading
import fastsock
receiver = fastsock.bind_udp(("127.0.0.1", 0))
name = receiver.getsockname()
sender = fastsock.connect_udp(name)
receiver.settimeout(0)
def drain():
    try:
        return receiver.recv_many(1000)
    except BlockingIOError:
        return []
class Runs:
    '''An integer that runs something while it is read, once.'''
    def __init__(self, value, action):
        self.value, self.action = value, action
    def __index__(self):
        action, self.action = self.action, int
        action()
        return self.value
def yielding(items, action):
    yield items[0]
    action()
    yield from items[1:]
def again():
    sender.send_many([b"inner"] * 3)
def fork():
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
    if child == 0:
        sender.send_many([b"child"] * 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
def in_batch(address):
    batch = fastsock.SendBatch()
    batch.append(b"outer", address)
    batch.append(b"outer", name)
    return batch
outer = [b"outer"] * 2
"""

PREPARING = [
    "sender.send_many(yielding(outer, ACTION))",
    "sender.send_many(outer, Runs(0, ACTION))",
    "sender.sendto_many(yielding(outer, ACTION), name)",
    "sender.sendto_many(outer, yielding([name, name], ACTION))",
    "sender.sendto_many(outer, (name[0], Runs(name[1], ACTION)))",
    "sender.sendto_many(outer, [(name[0], Runs(name[1], ACTION)), name])",
    "sender.send_batch(in_batch((name[0], Runs(name[1], ACTION))))",
    "sender.send_batch(in_batch(name), Runs(0, ACTION))",
    "sender.send_segments(b'outer' * 2, Runs(5, ACTION))",
    "sender.send_segments(b'outer' * 2, 5, (name[0], Runs(name[1], ACTION)))",
    "sender.send_segments(b'outer' * 2, 5, None, Runs(0, ACTION))",
    "sender.send_zerocopy(b'outer' * 2, (name[0], Runs(name[1], ACTION)), segment_size=5)",
    "sender.send_zerocopy(b'outer' * 2, segment_size=Runs(5, ACTION))",
]
if sys.version_info >= (3, 12):  # before, no buffer could be written in Python
    UDP += """
class Buffer:
    def __init__(self, payload, action):
        self.payload, self.action = payload, action
    def __buffer__(self, flags):
        action, self.action = self.action, int
        action()
        return memoryview(self.payload)
class Leaving(Buffer):
    '''Runs it when the buffer is released.'''
    def __buffer__(self, flags):
        return memoryview(self.payload)
    def __release_buffer__(self, view):
        action, self.action = self.action, int
        action()
"""
    PREPARING += [
        "sender.send_many([b'outer', Buffer(b'outer', ACTION)])",
        "sender.sendto_many([Buffer(b'outer', ACTION), b'outer'], name)",
        "sender.send_segments(Buffer(b'outer' * 2, ACTION), 5)",
        "sender.send_zerocopy(Buffer(b'outer' * 2, ACTION), segment_size=5)",
    ]


if not PROBE.zerocopy:
    PREPARING = [call for call in PREPARING if "zerocopy" not in call]


@pytest.mark.parametrize("call", PREPARING)
@pytest.mark.parametrize("action", ["again", "fork", "gc.collect", "sender.recv_errors"])
def test_sends_within_a_send(isolated, call, action):
    out = isolated(
        UDP
        + f"""
{call.replace("ACTION", action)}
found = drain()
assert found == [b"inner"] * 3 * ({action} is again) + [b"child"] * 3 * ({action} is fork) + outer, found
sender.recv_errors()
assert sender.zerocopy_pending == 0
again()
assert drain() == [b"inner"] * 3
receiver.close()
sender.close()
print("ok")
"""
    )
    assert out.split() == ["ok"]


@pytest.mark.parametrize("call", PREPARING)
def test_closed_while_the_call_is_prepared(isolated, call):
    out = isolated(
        UDP
        + f"""
def close():
    global other
    number = sender.fileno()
    sender.close()
    other = fastsock.connect_udp(name)
    assert other.fileno() == number
try:
    {call.replace("ACTION", "close")}
except OSError as error:
    print(error.errno, drain(), sender.zerocopy_pending)
receiver.close()
other.close()
"""
    )
    assert out.split() == ["9", "[]", "0"]


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("action", ["again", "sender.close", "gc.collect"])
    @pytest.mark.parametrize(
        "call",
        [
            "sender.send_many([b'outer', Leaving(b'outer', ACTION)])",
            "sender.send_segments(Leaving(b'outer' * 2, ACTION), 5)",
            "fastsock.SendBatch().append(Leaving(b'outer' * 2, ACTION))",
        ],
    )
    def test_buffers_that_run_something_when_they_are_released(isolated, call, action):
        out = isolated(
            UDP
            + f"""
{call.replace("ACTION", action)}
found = drain()
print(found[:2] == outer * ("append" not in {call!r}) or found, len(found))
receiver.close()
sender.close()
"""
        )
        sent = 0 if "append" in call else 2
        assert out.split()[-1] == str(sent + 3 * (action == "again"))

    @pytest.mark.parametrize("action", ["sender.close", "sender.recv_errors", "lambda: sender.send_zerocopy(b'x')"])
    @pytest.mark.parametrize("how", ["sender.recv_errors()", "sender.send_zerocopy(b'y')", "sender.close()"])
    def test_zero_copy_buffers_that_run_something_when_they_are_let_go_of(isolated, action, how):
        isolated(
            UDP
            + f"""
def action():
    try:
        ({action})()
    except (OSError, RuntimeError):
        pass
try:
    for _ in range(3):
        sender.send_zerocopy(Leaving(b"x" * 100, action))
    {how}
except (OSError, RuntimeError):
    pass
sender.close()
assert sender.zerocopy_pending == 0
receiver.close()
"""
        )


def test_a_batch_is_held_while_it_is_encoded(isolated):
    out = isolated(
        UDP
        + """
batch, failures = fastsock.SendBatch(4), []
def meddle():
    for call in (batch.clear, batch.skip, lambda: batch.append(b"x"), lambda: sender.send_batch(batch)):
        try:
            call()
        except RuntimeError as error:
            failures.append(str(error))
batch.append(b"outer", (name[0], Runs(name[1], meddle)))
assert sender.send_batch(batch) == 1 and drain() == [b"outer"]
print(len(failures), *set(failures))
receiver.close()
sender.close()
"""
    )
    assert out.strip() == "4 this SendBatch is in use by another thread"


# --- garbage, threads, interrupted calls ----------------------------------------------------------------------


@needs("zerocopy")
def test_garbage_cycles_with_sockets_and_batches(isolated):
    isolated(
        UDP
        + """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
class Payload(bytearray):
    pass
class Late:
    def __del__(self):
        sock, batch = self.items
        for call in (
            lambda: sock.send_many([b"x"]), lambda: sock.send_batch(batch), lambda: sock.send_segments(b"xx", 1),
            lambda: sock.send_zerocopy(b"x"), sock.recv_errors, lambda: sock.zerocopy_pending, lambda: sock.stats,
            lambda: sock.gso, batch.clear, lambda: batch.append(b"x"), lambda: batch.buffer[:1], sock.close,
        ):
            try:
                call()
            except (OSError, RuntimeError, TypeError, AttributeError):
                pass
def make():
    sock, batch = fastsock.connect_udp(name), fastsock.SendBatch(4)
    payload, late = Payload(b"z" * 100), Late()
    payload.links = [sock, batch, payload, late]
    batch.append(b"x", segment_size=1)
    sock.send_zerocopy(payload)
    late.items = sock, batch
gc.disable()
for _ in range(50):
    make()
    gc.collect()
receiver.close()
sender.close()
"""
    )


@needs_large_buffers
@needs("zerocopy")
def test_threads_send_every_datagram_once(isolated):
    out = isolated(
        UDP
        + """
receiver.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)        # SO_RCVBUFFORCE
sys.setswitchinterval(1e-5)
stop = threading.Event()
def meddle():
    while not stop.is_set():
        sender.gso = not sender.gso
        sender.recv_errors()
        sender.stats
def work(which):
    for i in range(100):
        payloads = [b"%d-%04d-%d" % (which, i, j) for j in range(9)]
        if which < 2:
            assert sender.send_many(payloads) == 9
        elif which < 4:
            assert sender.sendto_many(payloads, [name] * 9) == 9
        elif which < 6:
            batch = fastsock.SendBatch(9)
            for payload in payloads:
                batch.append(payload, ecn=which - 4)
            assert sender.send_batch(batch) == 9
        elif which < 7:
            assert sender.send_segments(b"".join(payloads), len(payloads[0])) == 9 * len(payloads[0])
        else:
            assert sender.send_zerocopy(b"".join(payloads), segment_size=len(payloads[0])) == 9 * len(payloads[0])
threads = [threading.Thread(target=work, args=(which,)) for which in range(8)]
meddler = threading.Thread(target=meddle)
for thread in [*threads, meddler]:
    thread.start()
for thread in threads:
    thread.join()
stop.set()
meddler.join()
found = []
while got := drain():
    found += got
for which in range(8):
    mine = [payload for payload in found if payload.startswith(b"%d-" % which)]
    assert mine == [b"%d-%04d-%d" % (which, i, j) for i in range(100) for j in range(9)], which
sender.recv_errors()
print(len(found), sender.stats.sent, sender.zerocopy_pending)
receiver.close()
sender.close()
"""
    )
    assert out.split() == ["7200", "7200", "0"]


@pytest.mark.parametrize("error", ["EINTR", "512"])
@pytest.mark.parametrize("wait", ["None", "0", "10"])
def test_interrupted_sends_restart(error, wait):
    script = f"""
sender.settimeout({wait})
payloads = [bytes([i]) * 100 for i in range(20)]
for _ in range(3):
    assert sender.send_many(payloads) == 20
    assert sender.send_many([b"1", b"22"]) == 2
    assert sender.send_batch(in_batch(payloads, ecn=1)) == 20
    assert sender.send_segments(b"".join(payloads), 100) == 2000
    assert sender.send_zerocopy(b"".join(payloads), segment_size=100) == 2000
    assert sender.send_zerocopy(bytes(80_000), segment_size=40_000) == 80_000
    found = drain(receiver)
    assert found == payloads + [b"1", b"22"] + payloads * 3 + [bytes(40_000)] * 2
sender.recv_errors()
assert sender.gso and sender.stats.gso_fallbacks == 0 and sender.zerocopy_pending == 0
"""
    # The probe is the first sendmsg, and takes any refusal for an older kernel.
    traced = trace_pair(script, f"sendmsg:error={error}:when=2+2", f"sendmmsg:error={error}:when=1+2")
    assert sum(call.result < 0 for call in traced.calls) > 5
