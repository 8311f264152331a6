"""Faults: signals, injected errors, fork, threads, shutdown, leaks.

Each script runs in a process of its own, because signals, fork, strace and the heap are
the process's. Scripts import only fastsock and the standard library.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig

import pytest
from conftest import needs_large_buffers

SANITIZED = "FASTSOCK_SANITIZED" in os.environ

PAIR = """
import atexit, errno, os, resource, signal, socket, sys, threading, time
import fastsock
receiver = fastsock.bind_udp(("127.0.0.1", 0))
def enlarge(nbytes):
    receiver.setsockopt(socket.SOL_SOCKET, 33, nbytes)      # SO_RCVBUFFORCE
sender = fastsock.connect_udp(receiver.getsockname())
atexit.register(lambda: (receiver.close(), sender.close()))
"""

# Left open at exit, which is worth a ResourceWarning and no more.
OPEN_PAIR = (
    PAIR.replace("atexit.register", "id")
    + """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
"""
)


@pytest.fixture
def injected(isolated):
    """Run a script under strace with a fault injected; returns its output."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(
        [strace, "-f", "-qq", "-e", "trace=none", "-e", "inject=sync:error=EINTR", "true"],
        capture_output=True,
        text=True,
    )
    if tried.returncode or tried.stderr:
        pytest.skip(f"strace cannot trace here: {tried.stderr.strip() or tried.returncode}")

    def run(fault: str, script: str) -> str:
        return isolated(
            PAIR + script, timeout=120, before=(strace, "-f", "-qq", "-o", os.devnull, "-e", f"inject={fault}")
        )

    return run


# --- signals --------------------------------------------------------------------------


def test_signals_during_a_blocking_batch_neither_lose_nor_poison(isolated):
    # A recvmmsg that blocks for a whole batch leaves SO_ERROR = 512 when a signal comes
    # after the first datagram, and the next send on that socket fails.
    out = isolated(
        PAIR
        + """
alarms = 0
def handler(*_):
    global alarms
    alarms += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
receiver.connect(sender.getsockname())
total = 200
def send():
    for i in range(total):          # each alone, with an alarm or two before the next
        seen, deadline = alarms, time.monotonic() + 20
        while alarms < seen + 2 and time.monotonic() < deadline:
            os.sched_yield()
        sender.send_many([i.to_bytes(4, "big")])
thread = threading.Thread(target=send)
thread.start()
got = []
while len(got) < total:
    got += receiver.recv_many()
    assert receiver.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert receiver.send(b"back") == 4
signal.setitimer(signal.ITIMER_REAL, 0)
thread.join()
assert [int.from_bytes(p, "big") for p in got] == list(range(total))
assert alarms > 20
print("ok")
"""
    )
    assert out.split() == ["ok"]


@pytest.mark.parametrize("wait", ["None", "30"])
def test_an_exception_from_a_handler_ends_the_wait_and_loses_nothing(isolated, wait):
    out = isolated(
        PAIR
        + f"""
class Stop(Exception): pass
def handler(*_): raise Stop
signal.signal(signal.SIGALRM, handler)
receiver.settimeout({wait})
batch = fastsock.RecvBatch()
for call in (receiver.recv_many, lambda: receiver.recv_batch(batch), lambda: receiver.recv(10)):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        call()
    except Stop:
        print("stopped")
assert len(batch) == 0
sender.send_many([b"a", b"b"])
print(receiver.recv_many(), receiver.recv_batch(batch) if sender.send(b"c") else None)
"""
    )
    assert out.splitlines() == ["stopped"] * 3 + ["[b'a', b'b'] 1"]


def test_a_handlers_own_oserror_is_not_taken_for_a_refusal(isolated):
    out = isolated(
        PAIR
        + """
near, far = (fastsock.Socket(fileno=end.detach()) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
def handler(*_): raise TimeoutError("mine")
signal.signal(signal.SIGALRM, handler)
batch = fastsock.SendBatch(1000, 8)
for _ in range(1000):
    batch.append(b"x")
for send in (lambda: near.send_many([b"x"] * 1000), lambda: near.send_batch(batch)):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        send()
    except TimeoutError as error:
        print(error)
    while True:
        try:
            far.recv_many(64, 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
assert 0 < batch.unsent < 1000      # the cursor stands behind what the kernel took
near.close(); far.close()
"""
    )
    assert out.split() == ["mine", "mine"]


# --- injected errors --------------------------------------------------------------------


def test_interrupted_calls_restart(injected):
    out = injected(
        "recvmmsg,sendmmsg,sendto,recvfrom:error=EINTR:when=1+2",
        """
for _ in range(5):
    assert sender.send_many([b"a", b"b", b"c"]) == 3
    assert receiver.recv_many() == [b"a", b"b", b"c"]
    assert sender.send(b"d") == 1
    assert receiver.recv(10) == b"d"
print("ok")
""",
    )
    assert out.split() == ["ok"]


def test_errno_512_restarts(injected):
    out = injected(
        "sendto,sendmmsg:error=512:when=1+2",
        """
assert sender.send(b"a") == 1
assert sender.send_many([b"b", b"c"]) == 2
print(receiver.recv_many())
""",
    )
    assert out.strip() == "[b'a', b'b', b'c']"


def test_error_between_the_chunks_of_a_receive_surfaces_next(injected):
    out = injected(
        "recvmmsg:error=ECONNREFUSED:when=2",
        """
sent = [bytes([i]) for i in range(150)]
assert sender.send_many(sent) == 150
first = receiver.recv_many(1000)
assert first == sent[:64], len(first)
try:
    receiver.recv_many(1000)
except ConnectionRefusedError:
    print("refused")
assert receiver.recv_many(1000) == sent[64:]
""",
    )
    assert out.split() == ["refused"]


@needs_large_buffers
def test_error_between_the_chunks_of_a_send_surfaces_next(injected):
    out = injected(
        "sendmmsg:error=ECONNREFUSED:when=2",
        """
enlarge(32 << 20)
payloads = [i.to_bytes(2, "big") for i in range(2500)]
sent = sender.send_many(payloads)
assert sent == 1024, sent
try:
    sender.send_many(payloads[sent:])
except ConnectionRefusedError:
    print("refused")
assert sender.send_many(payloads[sent:]) == 2500 - 1024
got = []
while len(got) < 2500:
    got += receiver.recv_many()
assert got == payloads
""",
    )
    assert out.split() == ["refused"]


def test_enobufs_is_raised_not_waited_for(injected):
    out = injected(
        "sendmmsg,sendto:error=ENOBUFS:when=1",
        """
sender.gso = False
for send in (lambda: sender.send_many([b"a", b"b"]), lambda: sender.send(b"c")):
    try:
        send()
    except OSError as error:
        print(errno.errorcode[error.errno])
sender.send_many([b"d", b"e"])
print(receiver.recv_many())
""",
    )
    assert out.splitlines() == ["ENOBUFS", "ENOBUFS", "[b'd', b'e']"]


def test_waiting_with_an_error_queue_drains_it_and_does_not_spin(isolated, tmp_path):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    script = tmp_path / "script.py"
    script.write_text(
        PAIR
        + """
IP_RECVERR = 11
receiver.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
with fastsock.bind_udp(("127.0.0.1", 0)) as dead:
    peer = dead.getsockname()
receiver.sendto(b"x", peer)
receiver.settimeout(0.1)
try:
    receiver.recv_many()
except TimeoutError:
    print("timed out,", [record.address == peer for record in receiver.recv_errors()])
"""
    )
    trace = tmp_path / "trace"
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", trace, "-e", "trace=recvmmsg", sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("strace cannot trace here")
    assert done.stdout == "timed out, [True]\n", done.stderr
    assert trace.read_text().count("recvmmsg(") < 20  # a few, and not a million


def test_sending_to_a_full_unix_queue_with_a_timeout_does_not_spin(isolated):
    # An unconnected AF_UNIX socket polls writable whatever the peer's queue holds.
    isolated(
        PAIR
        + """
AF, DGRAM = socket.AF_UNIX, socket.SOCK_DGRAM
with fastsock.Socket(AF, DGRAM) as full, fastsock.Socket(AF, DGRAM) as out:
    full.bind(b"\\0fastsock-full-%d" % os.getpid())
    out.settimeout(0)
    try:
        while True:
            out.sendto(b"x", full.getsockname())
    except BlockingIOError:
        pass
    out.settimeout(0.2)
    before = resource.getrusage(resource.RUSAGE_THREAD)
    try:
        out.sendto(b"x", full.getsockname())
    except TimeoutError:
        after = resource.getrusage(resource.RUSAGE_THREAD)
    # Asleep between the tries: it gave the processor up about 200 times.
    assert after.ru_nvcsw - before.ru_nvcsw > 20, after
"""
    )


# --- fork and threads -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_while_another_thread_receives(isolated):
    out = isolated(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)"
        + PAIR
        + """
batch = fastsock.RecvBatch()
thread = threading.Thread(target=lambda: (receiver.recv_batch(batch), receiver.recv_many()))
thread.start()
deadline = time.monotonic() + 20
while time.monotonic() < deadline:          # until the thread owns the batch
    try:
        batch.payloads()
    except RuntimeError:
        break
child = os.fork()
if child == 0:
    # The thread is not here, and what it held is free; the parent's memory is its own.
    with fastsock.bind_udp(("127.0.0.1", 0)) as own:
        own.settimeout(20)
        with fastsock.connect_udp(own.getsockname()) as other:
            other.send_many([b"child"] * 3)
        assert own.recv_batch(batch) == 3 and batch.payloads() == [b"child"] * 3
        assert receiver.fileno() >= 0
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
sender.send(b"parent")
deadline = time.monotonic() + 20
while len(batch) == 0 and time.monotonic() < deadline:
    os.sched_yield()
assert batch[0].payload == b"parent"
sender.send(b"again")
thread.join(20)
assert not thread.is_alive()
print("ok")
"""
    )
    assert out.split() == ["ok"]


def test_one_batch_in_two_threads_is_a_clear_error(isolated):
    out = isolated(
        PAIR
        + """
batch = fastsock.RecvBatch(addresses=True)
thread = threading.Thread(target=receiver.recv_batch, args=(batch,))
thread.start()
deadline = time.monotonic() + 20
failures = set()
while len(failures) < 4 and time.monotonic() < deadline:
    for name, call in (
        ("payloads", batch.payloads), ("addresses", batch.addresses), ("load", lambda: batch.load([])),
        ("recv_batch", lambda: receiver.recv_batch(batch, socket.MSG_DONTWAIT)),
    ):
        try:
            call()
        except RuntimeError as error:
            assert str(error) == "this RecvBatch is in use by another thread"
            failures.add(name)
        except BlockingIOError:
            pass
sender.send(b"x")
thread.join(20)
assert batch.payloads() == [b"x"]
print(sorted(failures))
"""
    )
    assert out.strip() == "['addresses', 'load', 'payloads', 'recv_batch']"


def test_threads_on_one_socket_share_what_arrives(isolated):
    out = isolated(
        PAIR
        + """
total, threads = 20000, 4
got, sent = [[] for _ in range(threads)], [0, 0]
def receive(mine):
    while True:
        for payload, address in receiver.recvfrom_many(32):
            if payload == b"end":
                return
            assert address == sender.getsockname()
            mine.append(payload)
def send(part):
    payloads = [i.to_bytes(4, "big") for i in range(part, total, 2)]
    while payloads:
        while sum(sent) - sum(map(len, got)) > 100:     # never more than the buffer holds
            os.sched_yield()
        count = sender.send_many(payloads[:32])
        sent[part] += count
        del payloads[:count]
workers = [threading.Thread(target=receive, args=(mine,)) for mine in got]
senders = [threading.Thread(target=send, args=(part,)) for part in range(2)]
for thread in workers + senders:
    thread.start()
for thread in senders:
    thread.join(60)
while any(thread.is_alive() for thread in workers):
    sender.send(b"end")
    for thread in workers:
        thread.join(0.01)
seen = sorted(int.from_bytes(p, "big") for mine in got for p in mine)
assert seen == list(range(total)), (len(seen), receiver.drops)
print("ok")
"""
    )
    assert out.split() == ["ok"]


def test_shutdown_with_sockets_open(isolated):
    out = isolated(
        OPEN_PAIR
        + """
batch = fastsock.RecvBatch(addresses=True)
sender.send(b"x")
receiver.recv_batch(batch)
view, datagram = batch.buffer, batch[0]
threading.Thread(target=receiver.recv_many, daemon=True).start()
class Late:
    def __del__(self):
        print(bytes(datagram), datagram.address[0], receiver.fileno() >= 0)
sys.late = Late()
"""
    )
    assert out.split() in ([], ["b'x'", "127.0.0.1", "True"])


# --- leaks and the heap ------------------------------------------------------------------------


@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps freed memory in quarantine")
def test_no_call_leaks(isolated):
    isolated(
        PAIR
        + """
from fastsock import RecvBatch, SendBatch
receiver.settimeout(0)
peer = receiver.getsockname()
def use():
    batch = RecvBatch(16, 512, addresses=True)
    out = SendBatch(16, 512)
    out.append(b"x" * 100, peer)
    sender.send_batch(out)
    payloads = [bytearray(600) for _ in range(20)]
    sender.send_many(payloads)
    sender.sendto_many(payloads[:10], [peer] * 10)
    for bad in ([b"a", 1], ["s"], [memoryview(b"abcd")[::2]]):
        try:
            sender.send_many(bad)
        except (TypeError, BufferError):
            pass
    try:
        sender.send_many([bytes(70000)])
    except OSError:
        pass
    receiver.recv_batch(batch)
    [d.address for d in batch], batch.buffer, batch.offsets, memoryview(batch), batch[0].payload
    receiver.recvfrom_many(8)
    receiver.recv_many(100)
    try:
        receiver.recv_many()
    except BlockingIOError:
        pass
    with fastsock.bind_udp(("127.0.0.1", 0)) as other:
        other.sendmsg([b"a", b"b"], [], 0, peer)
        receiver.recvmsg(100, 100)
    for payload in payloads:
        payload.append(0)               # resizable again: every export is released
def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for _ in range(300):
    use()
before = rss()
for _ in range(2000):
    use()
grown = rss() - before
assert grown < 1 << 20, f"{grown} bytes in 2000 rounds"
"""
    )


@needs_large_buffers
@pytest.mark.skipif(SANITIZED, reason="the sanitizer has an allocator of its own")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc trims its heap")
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="mimalloc holds the objects")
@pytest.mark.parametrize("vlen", [64, 128, 256, 1024])
def test_large_batches_do_not_refault_the_heap(isolated, vlen):
    # glibc returns the freed top of its heap at every batch, and faults it in at the next:
    # one fault for every three datagrams of 1400 bytes.
    isolated(
        PAIR
        + f"""
vlen = {vlen}
enlarge(16 << 20)
payloads = [bytes(1400)] * vlen
def turn():
    sent = sender.send_many(payloads)
    got = 0
    while got < sent:
        got += len(receiver.recv_many(vlen))
    return got
for _ in range(10):
    turn()
before, datagrams = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, 0
for _ in range(50):
    datagrams += turn()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert faults < datagrams / 20 + 100, f"{{faults}} page faults for {{datagrams}} datagrams"
"""
    )
