"""Code that runs inside a call: signal handlers, buffers and finalizers written in Python.

Each came from a review that set out to break the library, and crashed, lost a datagram or
read another socket's before it was mended.
"""

import sys

import pytest

HANDLER = """
import os, signal, socket, sys
import fastsock
def at_alarm(handler):
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
"""


@pytest.mark.parametrize("wait", ["None", "20"])
@pytest.mark.parametrize(
    "call",
    [
        "recv(100)",
        "recv(100_000)",
        "recvfrom(100)",
        "recv_many()",
        "recv_batch(fastsock.RecvBatch(64))",
        "recv_batch(fastsock.RecvBatch(65))",
    ],
)
def test_a_socket_closed_in_its_call_takes_nothing_from_the_next_on_its_number(isolated, call, wait):
    out = isolated(
        HANDLER
        + f"""
sock, other = fastsock.bind_udp(("127.0.0.1", 0)), None
sock.settimeout({wait})
def handler(*_):
    global other
    number = sock.fileno()
    sock.close()
    other = fastsock.bind_udp(("127.0.0.1", 0))
    assert other.fileno() == number
    other.sendto(b"for the other", other.getsockname())
at_alarm(handler)
try:
    sock.{call}
except OSError as error:
    print(error.errno)
other.settimeout(20)
print(other.recv(100))
other.close()
"""
    )
    assert out.splitlines() == ["9", "b'for the other'"]


@pytest.mark.parametrize("call", ["recv(100)", "recv(100_000)", "recv_many()", "recv_batch(fastsock.RecvBatch(65))"])
def test_a_timeout_holds_when_a_duplicate_is_set_to_block(isolated, call):
    # O_NONBLOCK belongs to the open file description, which duplicates share.
    out = isolated(f"""
import fastsock
with fastsock.bind_udp(("127.0.0.1", 0)) as sock, sock.dup() as copy:
    sock.settimeout(0.1)
    copy.settimeout(None)
    try:
        sock.{call}
    except TimeoutError:
        print("timed out")
""")
    assert out.split() == ["timed", "out"]


def test_fork_in_a_handler_leaves_the_call_its_own_buffers(isolated):
    out = isolated(
        HANDLER
        + """
near, far = (fastsock.Socket(fileno=end.detach()) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
def drain():
    got = []
    try:
        while True:
            got += far.recv_many(64, 100, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return [payload for payload in got if payload != b"fill"]
near.settimeout(0)
try:
    while True:
        near.send_many([b"fill"])
except BlockingIOError:
    pass
near.settimeout(20)
def handler(*_):
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    drain()
    near.send_many([b"nested-%d" % i for i in range(100)][:3])
    drain()
import warnings
warnings.simplefilter("ignore")
at_alarm(handler)
assert near.send_many([b"outer-1", b"outer-2", b"outer-3"]) == 3
print(drain(), flush=True)
near.close(); far.close()
"""
    )
    assert out.strip() == "[b'outer-1', b'outer-2', b'outer-3']"


def test_a_batch_stays_held_by_the_thread_that_forks_in_its_receive(isolated):
    out = isolated(
        HANDLER
        + """
receiver = fastsock.bind_udp(("127.0.0.1", 0))
batch = fastsock.RecvBatch(addresses=True)
def handler(*_):
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    try:
        receiver.recv_batch(batch)
    except RuntimeError as error:
        print(error, flush=True)
    receiver.sendto(b"x", receiver.getsockname())
at_alarm(handler)
assert receiver.recv_batch(batch) == 1
print(batch.addresses() == [receiver.getsockname()], flush=True)
receiver.close()
"""
    )
    assert out.splitlines() == ["this RecvBatch is in use by another thread", "True"]


if sys.version_info >= (3, 12):  # before, no finalizer in Python ran at that point

    @pytest.mark.parametrize("read", ["batch.addresses()", "bytes(datagram)", "datagram.address", "bytes(view[:8])"])
    def test_garbage_cycles_may_be_read_while_they_are_taken_apart(isolated, read):
        isolated(f"""
import gc
import fastsock
class Cycle(tuple):
    def __buffer__(self, flags):
        return memoryview(b"x")
    def __release_buffer__(self, view):
        batch, datagram, view = self[:3]
        {read}
def make():
    batch = fastsock.RecvBatch(4, 1 << 20, addresses=True)
    batch.load([(b"hello", ("127.0.0.1", 5))] * 2)
    links = []
    cycle = Cycle((batch, batch[0], batch.buffer, links))
    links += [cycle, memoryview(cycle)]
gc.disable()
make()
gc.collect()
""")


def test_connect_ex_raises_what_a_handler_raised(isolated, tmp_path):
    out = isolated(
        HANDLER
        + """
path = sys.argv[1]
class Stop(OSError): pass
def handler(*_): raise Stop
full = socket.socket(socket.AF_UNIX)
full.bind(path)
full.listen(0)
waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
for sock in waiting:
    sock.setblocking(False)
    sock.connect_ex(path)
with fastsock.Socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    at_alarm(handler)
    try:
        sock.connect_ex(path)
    except Stop:
        print("stopped")
for sock in [full, *waiting]:
    sock.close()
""",
        tmp_path / "full",
    )
    assert out.split() == ["stopped"]


def test_a_socket_opened_again_starts_anew(isolated):
    isolated("""
import socket
import fastsock
sock = fastsock.bind_udp(("127.0.0.1", 0))
sock.settimeout(1)
sock.close()
sock.__init__(socket.AF_INET, socket.SOCK_DGRAM)
assert sock.gettimeout() is None
sock.close()
""")
