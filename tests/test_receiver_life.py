"""How a receiver ends, and what may go wrong meanwhile: threads, signals, fork, exit, faults."""

import contextlib
import errno
import functools
import gc
import os
import re
import signal
import socket
import threading
import time
import warnings
from pathlib import Path

import pytest
from conftest import V4, needs, open_descriptors
from rings import DEADLINE_S, SLOTS, deliver, is_readable, mappings, numbered, send, settle, take, take_rest, threads
from tracing import trace

import fastsock
from fastsock import Receiver
from fastsock._constants import SOL_UDP, UDP_GRO

BAD = os.strerror(errno.EBADF)


@pytest.fixture
def socks(closing):
    return [closing(fastsock.bind_udp(V4.address())) for _ in range(2)]


@pytest.fixture(params=["one", "several"])
def made(request, socks, closing):
    """A receiver of one socket or of several, and a sender to the last of them."""
    receiver = closing(Receiver(socks[1] if request.param == "one" else socks, slots=SLOTS))
    return receiver, closing(fastsock.connect_udp(socks[1].getsockname()))


@pytest.fixture
def pair(socks, closing):
    """A receiver of one socket, and a sender."""
    return closing(Receiver(socks[0], slots=SLOTS)), closing(fastsock.connect_udp(socks[0].getsockname()))


# --- stop and close -----------------------------------------------------------------------------------


def test_stop_then_take_the_rest_then_the_end(made):
    receiver, sender = made
    send(sender, numbered(10))
    receiver.stop()
    receiver.stop()
    assert not threads()
    assert not receiver.closed
    send(sender, [b"too late"])
    assert take_rest(receiver) == numbered(10)
    for _ in range(2):
        with pytest.raises(EOFError, match="stopped"):
            receiver.take()
    assert receiver.stats.received == receiver.stats.taken == 10


def test_what_came_too_late_is_still_at_the_socket(made, socks):
    receiver, sender = made
    receiver.stop()
    sender.send(b"late")
    socks[1].settimeout(DEADLINE_S)
    assert socks[1].recv(10) == b"late"


def test_close(made):
    receiver, sender = made
    deliver(receiver, sender, numbered(3))
    rings = receiver.rings
    before = mappings()
    assert repr(receiver).startswith("<fastsock.Receiver of ")
    receiver.close()
    receiver.close()
    assert receiver.closed
    assert repr(receiver) == "<fastsock.Receiver, closed>"
    assert not threads()
    assert mappings() == before - len(rings)
    receiver.stop()
    calls = [receiver.take, lambda: receiver.take(timeout=0), receiver.fileno, lambda: next(receiver)]
    for ring in rings:
        assert ring.closed
        assert repr(ring).endswith(", closed>")
        ring.close()
        calls += [ring.take, ring.fileno, ring.__enter__]
        calls += [functools.partial(getattr, ring, name) for name in ("slots", "slot_size", "nbytes")]
    for call in calls:
        with pytest.raises(OSError, match=BAD):
            call()


def test_a_context_manager(socks):
    with pytest.raises(ZeroDivisionError), Receiver(socks, slots=SLOTS) as receiver:
        1 / 0  # noqa: B018
    assert receiver.closed
    assert not threads()


def test_an_unclosed_receiver_warns(socks):
    receiver = Receiver(socks, slots=SLOTS)
    with pytest.warns(ResourceWarning, match=r"unclosed <fastsock.Receiver of 2 sockets>"):
        del receiver
    assert not threads()


def test_one_that_was_not_made_does_not_warn(socks):
    before = open_descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arguments, options in (
            ([], {}),
            (5, {}),
            (socks, {"cpus": [1]}),
            (socks, {"slots": 0}),
            ([*socks, None], {}),
        ):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                Receiver(arguments, **{"slots": SLOTS, **options})
                raise AssertionError
        gc.collect()
    assert open_descriptors() == before
    assert not threads()


def test_it_cannot_be_copied(made):
    import copy
    import pickle

    for copying in (copy.copy, copy.deepcopy, pickle.dumps, lambda one: copy.copy(one.rings[0])):
        with pytest.raises(TypeError):
            copying(made[0])


def test_descriptors(socks):
    before = open_descriptors()
    with Receiver(socks, slots=SLOTS) as receiver:
        receiver.take(timeout=0)
        for fd, _ in open_descriptors() - before:
            assert not os.get_inheritable(fd)
    assert open_descriptors() == before


# --- several threads ------------------------------------------------------------------------------------


def taking(receiver, count=3):
    """So many threads that wait in take, and what became of each."""
    ended = []
    ready = threading.Barrier(count + 1)

    def run():
        ready.wait()
        try:
            ended.append(receiver.take())
        except Exception as error:
            ended.append(error)

    started = [threading.Thread(target=run) for _ in range(count)]
    for one in started:
        one.start()
    ready.wait()
    return started, ended


def join(started):
    for thread in started:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("spin_us", [0, 1_000_000])
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("pause", [0, 0.002])
def test_close_while_threads_wait(socks, spin_us, group, pause):
    for _ in range(15):
        receiver = Receiver(socks if group else socks[0], slots=SLOTS, spin_us=spin_us)
        started, ended = taking(receiver)
        time.sleep(pause)
        receiver.close()
        join(started)
        assert [(type(error), error.errno) for error in ended] == [(OSError, errno.EBADF)] * 3


@pytest.mark.parametrize("spin_us", [0, 1_000_000])
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("pause", [0, 0.002])
def test_stop_while_threads_wait(socks, spin_us, group, pause):
    for _ in range(15):
        with Receiver(socks if group else socks[0], slots=SLOTS, spin_us=spin_us) as receiver:
            started, ended = taking(receiver)
            time.sleep(pause)
            receiver.stop()
            join(started)
            assert list(map(type, ended)) == [EOFError] * 3


def test_stop_and_close_by_many_threads(socks):
    for _ in range(20):
        receiver = Receiver(socks, slots=SLOTS)
        ends = [threading.Thread(target=end) for end in (receiver.stop, receiver.close, receiver.close, receiver.stop)]
        for end in ends:
            end.start()
        join(ends)
        assert receiver.closed
        assert not threads()


def test_close_in_the_midst_of_a_flood(socks):
    """Threads take, one closes: no crash, and each ends with what is documented."""
    for _ in range(5):
        receiver = Receiver(socks, slots=SLOTS)
        failed, done = [], threading.Event()

        def run(receiver=receiver, failed=failed):
            try:
                for batch in receiver:
                    batch.payloads()
            except Exception as error:
                failed.append(getattr(error, "errno", error))

        def flood(done=done):
            with (
                fastsock.connect_udp(socks[0].getsockname()) as one,
                fastsock.connect_udp(socks[1].getsockname()) as two,
            ):
                while not done.is_set():
                    one.send_many(numbered(20))
                    two.send_many(numbered(20))

        started = [threading.Thread(target=run) for _ in range(3)] + [threading.Thread(target=flood)]
        for thread in started:
            thread.start()
        while receiver.stats.taken < 500:
            time.sleep(0.0005)
        receiver.close()
        done.set()
        join(started)
        assert failed == [errno.EBADF] * 3


# --- signals --------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 1_000_000], ids=["sleeping", "spinning"])
def waiting(request, socks, closing):
    """A receiver whose take sleeps or spins, and a sender."""
    receiver = closing(Receiver(socks[0], slots=SLOTS, spin_us=request.param))
    return receiver, closing(fastsock.connect_udp(socks[0].getsockname()))


def test_a_handler_that_raises(waiting, on_signal):
    receiver, sender = waiting

    def handler():
        raise KeyboardInterrupt

    on_signal(handler)
    with pytest.raises(KeyboardInterrupt):
        receiver.take()
    sender.send(b"after")
    assert take(receiver, 1) == [b"after"]


def test_a_handler_that_returns(waiting, on_signal):
    receiver, sender = waiting
    ran = []

    def handler():
        ran.append(time.monotonic())
        if len(ran) == 3:
            sender.send(b"at last")

    on_signal(handler)
    assert receiver.take().payloads() == [b"at last"]
    assert len(ran) >= 3


def test_a_timeout_counts_through_signals(waiting, on_signal):
    receiver, _ = waiting
    ran = []
    on_signal(lambda: ran.append(1))
    before = time.monotonic()
    assert not receiver.take(timeout=0.1)
    assert time.monotonic() - before >= 0.1
    assert ran


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("spin_us", [0, 1_000_000])
def test_a_handler_that_closes_the_receiver(socks, group, spin_us, on_signal):
    receiver = Receiver(socks if group else socks[0], slots=SLOTS, spin_us=spin_us)
    on_signal(receiver.close)
    with pytest.raises(OSError, match=BAD):
        receiver.take()
    assert receiver.closed


@pytest.mark.parametrize("group", [False, True])
def test_a_handler_that_takes(socks, group, on_signal, closing):
    receiver = closing(Receiver(socks if group else socks[0], slots=SLOTS))
    sender = closing(fastsock.connect_udp(socks[0].getsockname()))
    found, busy = [], []

    def handler():
        if busy:  # on a slow machine the next signal comes before this one is done
            return
        busy.append(1)
        sender.send(b"%d" % len(found))
        found.extend(receiver.take(timeout=DEADLINE_S).payloads())
        if len(found) == 3:
            receiver.stop()
        busy.clear()

    on_signal(handler)
    with pytest.raises(EOFError):
        receiver.take()
    assert found == [b"0", b"1", b"2"]


def test_signals_are_not_for_the_native_threads(made):
    del made
    blockable = sum(1 << number - 1 for number in signal.valid_signals() if number not in (9, 19, 32, 33))
    for thread in threads():
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        blocked = int(re.search(r"SigBlk:\t(\w+)", status)[1], 16)
        assert blocked & blockable == blockable


def test_interrupt_of_a_program(isolated):
    """Ctrl-C ends a collector that waits, and the thread with it."""
    out = isolated("""
import os, signal, threading
import fastsock
with fastsock.bind_udp(("127.0.0.1", 0)) as sock, fastsock.Receiver(sock, slots=256) as receiver:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        for batch in receiver:
            pass
    except KeyboardInterrupt:
        print("interrupted")
""")
    assert out == "interrupted\n"


# --- the end of the interpreter ---------------------------------------------------------------------------------


SCRIPT = """
import os, sys, threading, time, warnings
import fastsock
warnings.simplefilter("ignore", ResourceWarning)
socks = [fastsock.bind_udp(("127.0.0.1", 0)) for _ in range(2)]
senders = [fastsock.connect_udp(sock.getsockname()) for sock in socks]
receiver = fastsock.Receiver(socks if GROUP else socks[0], slots=256, spin_us=SPIN)
def flood():
    while True:
        for sender in senders:
            sender.send_many([b"x"] * 64)
def run():
    while True:
        receiver.take()
def start(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
"""

ENDS = {
    "running": "pass",
    "in a flood": "start(flood); batch = receiver.take()",
    "in take": "start(run); time.sleep(0.01)",
    "in take, in a flood": "start(flood); start(run); held = [receiver.take() for _ in range(5)]; time.sleep(0.01)",
    "with batches": "senders[0].send(b'x'); batch = receiver.take(); view = batch.lengths; one = batch[0]",
    "stopped": "receiver.stop()",
    "sys.exit": "start(flood); receiver.take(); sys.exit()",
    "in a cycle": "receiver.itself = receiver; del receiver",
    "an exit handler that takes": (
        "import atexit; senders[0].send(b'x'); atexit.register(lambda: print(receiver.take().payloads()))"
    ),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(("group", "spin_us"), [(False, 0), (True, 10_000)])
def test_the_end_of_the_interpreter(name, group, spin_us, isolated):
    out = isolated(SCRIPT.replace("GROUP", str(group)).replace("SPIN", str(spin_us)) + ENDS[name])
    assert out == ("[b'x']\n" if "handler" in name else "")


# --- fork -----------------------------------------------------------------------------------------------------------


FORK = """
import atexit, gc, os, select, signal, socket, sys, threading, time, warnings
import fastsock
from rings import deliver
warnings.simplefilter("ignore", DeprecationWarning)     # of fork in a process with threads
def fork(child):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            child()
            sys.stdout.flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid
def wait(pid):
    assert os.waitpid(pid, 0)[1] == 0
def take(count):
    found = []
    while len(found) < count:
        batch = receiver.take(timeout=20)
        assert batch, found
        found += batch.payloads()
    assert len(found) == count
    return found
socks = [fastsock.bind_udp(("127.0.0.1", 0)) for _ in range(2)]
sender = fastsock.connect_udp(socks[0].getsockname())
receiver = fastsock.Receiver(socks if GROUP else socks[0], slots=256)
def end():
    receiver.close()
    for sock in (*socks, sender):
        sock.close()
"""
CHILDREN = {
    "does nothing": "pass",
    "stops": "receiver.stop()",
    "closes": "receiver.close(); assert receiver.closed; receiver.close()",
    "lets it go": "global receiver; del receiver; gc.collect()",
    "lets batches go": "held.release(); one = held2[0]; held2.release(); del one; gc.collect()",
    "asks": "assert receiver.stats.received; receiver.rings[0].slots; repr(receiver)",
    "makes its own": (
        "other = fastsock.Receiver(socks[1], slots=256); other.stop(); "
        "assert next(other).payloads() == [b'for the child']; other.close()"
    ),
}


@pytest.fixture(params=[False, True], ids=["one", "several"])
def forked(request, isolated):
    """Run a script in which children are forked from a process with a receiver."""
    return lambda script: isolated(FORK.replace("GROUP", str(request.param)) + script)


def test_a_child_does_not_touch_its_parents_receiver(forked):
    children = "".join(f"def child_{at}():\n    {child}\n" for at, child in enumerate(CHILDREN.values()))
    forked(
        children
        + f"""
for number in range({len(CHILDREN)}):
    deliver(receiver, sender, [b"held", b"held too"])
    held, held2 = receiver.take(1), receiver.take()
    if number == {list(CHILDREN).index("makes its own")}:
        receiver.stop()
        socks[0].sendto(b"for the child", socks[1].getsockname())
    wait(fork(globals()[f"child_{{number}}"]))
    if number == {list(CHILDREN).index("makes its own")}:
        break
    # More than there is room for: what is held would be overwritten if it were free.
    for _ in range(60):
        deliver(receiver, sender, [b"%d" % number] * 10)
        receiver.take(timeout=0)
    assert (held.payloads(), held2.payloads()) == ([b"held"], [b"held too"])
    while receiver.take(timeout=0):
        pass
    del held, held2
assert number == {len(CHILDREN) - 1}
end()
"""
    )


def test_exits_of_a_child(forked):
    """By sys.exit, with exit handlers and all, out of the main thread."""
    out = forked("""
sender.send(b"one")
batch = receiver.take()
warnings.simplefilter("ignore", ResourceWarning)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    atexit.register(print, "child")
    sys.exit()
wait(pid)
assert batch.payloads() == [b"one"]
sender.send(b"two")
assert take(1) == [b"two"]
end()
print("parent")
""")
    assert out == "child\nparent\n"


def test_a_child_may_take_where_its_parent_does_not(forked):
    """And the parent again when the child is gone; never both."""
    forked(
        """
def consume():
    assert take(2) == [b"0", b"1"]
    held = receiver.take(timeout=0)
    os.write(there, b"x")
    os.read(go, 1)
    sender.send(b"held")
    global kept
    kept = receiver.take(timeout=20)
def refused():
    try:
        receiver.take(timeout=0)
    except RuntimeError as error:
        return str(error)
(done, there), (go, let) = os.pipe(), os.pipe()
sender.send_many([b"0", b"1"])
pid = fork(consume)
os.read(done, 1)
if GROUP:
    sender.send(b"seen by the epoll")
    receiver.rings[0].fileno()
    time.sleep(0)
    ring = receiver.rings[0]
else:
    ring = receiver
try:
    ring.take(timeout=0)
except RuntimeError as error:
    assert f"process {pid} takes from this ring" in str(error), error
else:
    raise AssertionError
os.write(let, b"x")
wait(pid)
sender.send(b"2")
found = []
while b"2" not in found:
    found += receiver.take(timeout=20).payloads()
pid = fork(lambda: print(refused() if not GROUP else "process %d takes" % os.getppid()))
wait(pid)
end()
for fd in (done, there, go, let):
    os.close(fd)
""".replace("GROUP", "len(receiver.rings) > 1")
    )


def test_a_child_may_take_to_the_end(forked):
    forked("""
def consume():
    assert [payload for batch in receiver for payload in batch.payloads()] == [b"0", b"1"]
sender.send_many([b"0", b"1"])
receiver.stop()
wait(fork(consume))
assert list(receiver) == []
end()
""")


def test_fork_while_a_thread_waits(forked):
    """The child's copy of a waiting thread keeps nothing from being closed."""
    forked("""
found = []
def run():
    try:
        for batch in receiver:
            found.extend(batch.payloads())
    except OSError as error:
        found.append(error.errno)
thread = threading.Thread(target=run)
thread.start()
readiness = select.poll()
readiness.register(receiver.fileno(), select.POLLIN)
for number in range(10):
    while len(found) < number or readiness.poll(0):
        time.sleep(0.001)
    wait(fork(receiver.close if number % 2 else receiver.stop))
    sender.send(b"%d" % number)
while len(found) < 10:
    time.sleep(0.001)
receiver.stop()
thread.join()
assert found == [b"%d" % number for number in range(10)], found
end()
""")


def test_programs_that_are_run_meanwhile(made):
    """They inherit nothing, and the receiver goes on."""
    import subprocess
    import sys

    receiver, sender = made
    receiver.take(timeout=0)
    listed = subprocess.run(
        [sys.executable, "-Sc", "import os; print(os.listdir('/proc/self/fd'))"], capture_output=True
    )
    assert set(eval(listed.stdout)) <= {"0", "1", "2", "3"}
    sender.send(b"x")
    assert take(receiver, 1) == [b"x"]


# --- faults of the socket ---------------------------------------------------------------------------------------------


def test_the_socket_may_be_closed(pair, socks):
    receiver, sender = pair
    address = socks[0].getsockname()
    socks[0].close()
    send(sender, numbered(3))
    assert take(receiver, 3) == numbered(3)
    assert receiver.stats.kernel_drops in (0, None)
    receiver.close()
    with fastsock.bind_udp(address):
        pass


def duplicate_of(sock):
    """The receiver's own descriptor of a socket."""
    inode = os.fstat(sock.fileno()).st_ino
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.fstat(int(name)).st_ino == inode and int(name) != sock.fileno():
                return int(name)
    raise AssertionError


def test_a_descriptor_that_is_closed_behind_its_back(socks):
    """The socket has failed: what came before can be taken, then take says why."""
    with fastsock.connect_udp(socks[0].getsockname()) as sender:
        receiver = Receiver(socks[0], slots=SLOTS)
        receiver.take(timeout=0)  # what it opens must not get the number
        deliver(receiver, sender, numbered(3))
        os.close(duplicate_of(socks[0]))
        sender.send(b"wakes it")
        assert take(receiver, 3) == numbered(3)
        for _ in range(2):
            with pytest.raises(OSError, match=BAD):
                receiver.take(timeout=DEADLINE_S)
        assert not receiver.closed
        assert is_readable(receiver.fileno())
        assert receiver.stats.last_error == errno.EBADF
        with pytest.raises(OSError, match=BAD):
            receiver.close()
        assert receiver.closed
        receiver.close()


def test_one_of_several_fails(socks, closing):
    """The others go on; the failure is told once."""
    senders = [closing(fastsock.connect_udp(sock.getsockname())) for sock in socks]
    receiver = Receiver(socks, slots=SLOTS)
    receiver.rings[0].take(timeout=0)  # what it opens must not get the number
    receiver.rings[1].take(timeout=0)
    deliver(receiver, senders[0], [b"before"])
    os.close(duplicate_of(socks[0]))
    senders[0].send(b"wakes it")
    assert take(receiver, 1) == [b"before"]
    with pytest.raises(OSError, match=BAD):
        receiver.take(timeout=DEADLINE_S)
    assert not receiver.take(timeout=0)
    senders[1].send(b"goes on")
    assert take(receiver, 1) == [b"goes on"]
    receiver.stop()
    with pytest.raises(EOFError):
        receiver.take()
    with pytest.raises(OSError, match=BAD):  # of close(2), once everything is closed
        receiver.close()
    assert not threads()


@pytest.mark.parametrize("spin_us", [0, 50])
def test_errors_that_the_network_reports(closing, spin_us):
    """They are counted, and the thread goes on."""
    with fastsock.bind_udp(V4.address()) as dead:
        address = dead.getsockname()
    with fastsock.connect_udp(address) as sock, Receiver(sock, slots=SLOTS, spin_us=spin_us) as receiver:
        deadline = time.monotonic() + DEADLINE_S
        while receiver.stats.errors < 3:
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionRefusedError):
                sock.send(b"nobody there")
            receiver.take(timeout=0)
        assert receiver.stats.last_error == errno.ECONNREFUSED
        assert threads()
        with fastsock.bind_udp(address) as alive:
            alive.sendto(b"back", sock.getsockname())
            assert take(receiver, 1) == [b"back"]


@needs("error_queue")
def test_an_error_queue_does_not_keep_the_thread_busy():
    """It stays readable for epoll until somebody reads it, which the thread does not."""
    traced = trace(
        """
import errno, socket, time
import fastsock
with fastsock.bind_udp(("127.0.0.1", 0)) as dead:
    address = dead.getsockname()
with fastsock.bind_udp(("127.0.0.1", 0), error_queue=True) as sock, fastsock.Receiver(sock, slots=256) as receiver:
    for _ in range(5):
        try:
            sock.sendto(b"nobody there", address)
        except ConnectionRefusedError:
            pass
    while not receiver.stats.errors:
        time.sleep(0.001)
    assert not receiver.take(timeout=0.3)
    sock.sendto(b"alive", sock.getsockname())
    assert receiver.take(timeout=20).payloads() == [b"alive"]
    assert sock.recv_errors()[0].errno == errno.ECONNREFUSED
""",
        "recvmmsg",
    )
    assert len(traced.named("recvmmsg")) < 50


@needs("transmit_timestamps")
def test_an_error_queue_that_nobody_reads_takes_the_buffer(closing):
    """The kernel counts it against the receive buffer: reading it makes room again."""
    with fastsock.bind_udp(V4.address(), transmit_timestamps=True) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        with Receiver(sock, slots=SLOTS) as receiver, fastsock.bind_udp(V4.address()) as far:
            for _ in range(100):
                sock.sendto(b"reported", far.getsockname())
            send(closing(fastsock.connect_udp(sock.getsockname())), numbered(20))
            settle(receiver, 20)
            while sock.recv_errors():
                pass
            taken = receiver.stats.received
            far.sendto(b"x", sock.getsockname())
            settle(receiver, 21)
            assert receiver.stats.received == taken + 1


@needs("gro", "gso")
@pytest.mark.parametrize("options", [{}, {"ttl": True}, {"drop_counter": True}], ids=str)
def test_gro_that_is_turned_on_behind(options, closing):
    """Nobody could tell where to split: the thread ends, and says so."""
    with fastsock.bind_udp(V4.address(), **options) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=SLOTS))
        deliver(receiver, sender, [b"before"])
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        deliver(receiver, sender, [b"single"])
        sender.send_segments(b"a" * 300, 100)
        assert take(receiver, 2) == [b"before", b"single"]
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            receiver.take(timeout=DEADLINE_S)
        assert receiver.stats.received == 2


@needs("gro", "gso")
def test_gro_that_is_turned_off_behind(closing):
    with fastsock.bind_udp(V4.address(), gro=True) as sock, fastsock.connect_udp(sock.getsockname()) as sender:
        receiver = closing(Receiver(sock, slots=SLOTS))
        sender.send_segments(b"a" * 250, 100)
        assert take(receiver, 3) == [b"a" * 100, b"a" * 100, b"a" * 50]
        sock.setsockopt(SOL_UDP, UDP_GRO, 0)
        sender.send_segments(b"b" * 250, 100)
        assert take(receiver, 3) == [b"b" * 100, b"b" * 100, b"b" * 50]


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_shutdown(how, closing):
    """Nothing comes any more, and the thread waits as before; stop ends it."""
    with fastsock.bind_udp(V4.address()) as far, fastsock.connect_udp(far.getsockname()) as sock:
        receiver = closing(Receiver(sock, slots=SLOTS))
        sock.shutdown(how)
        assert not receiver.take(timeout=0.02)
        receiver.stop()
        with pytest.raises(EOFError):
            receiver.take()


# --- faults of the system ---------------------------------------------------------------------------------------------


def test_more_memory_than_there_is(socks):
    before = open_descriptors()
    for slots, size in ((1 << 28, 2048), (1 << 40, 1), (1 << 62, 2048), (1 << 20, 1 << 20)):
        with pytest.raises(MemoryError):
            Receiver(socks, slots=slots, slot_size=size)
    with pytest.raises(OverflowError):
        Receiver(socks, slots=1 << 70)
    gc.collect()
    assert open_descriptors() == before


def test_no_address_space(isolated):
    """The second ring finds no room: the first is given back."""
    isolated("""
import os, resource, socket
import fastsock
socks = [fastsock.bind_udp(("127.0.0.1", 0)) for _ in range(2)]
fds = os.listdir("/proc/self/fd")
def tasks():
    return len(os.listdir("/proc/self/task"))
with open("/proc/self/statm") as statm:
    now = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
limit = now + (160 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(3):
    try:
        fastsock.Receiver(socks, slots=65536, slot_size=1500)
    except (MemoryError, OSError) as error:
        assert isinstance(error, MemoryError) or error.errno == 12, error
    else:
        raise AssertionError
    assert os.listdir("/proc/self/fd") == fds
    assert tasks() == 1
with fastsock.Receiver(socks, slots=256) as receiver:
    socks[0].sendto(b"x", socks[1].getsockname())
    assert receiver.take(timeout=20).payloads() == [b"x"]
for sock in socks:
    sock.close()
""")


FAULTY = """
import os, time
import fastsock
socks = [fastsock.bind_udp(("127.0.0.1", 0)) for _ in range(2)]
fds = os.listdir("/proc/self/fd")
try:
    fastsock.Receiver(socks, slots=256, cpus=CPUS).close()
except OSError as error:
    print(error.errno)
deadline = time.monotonic() + 20
while len(os.listdir("/proc/self/task")) > 1:
    assert time.monotonic() < deadline
assert os.listdir("/proc/self/fd") == fds
with open("/proc/self/maps") as maps:
    assert "memfd:fastsock" not in maps.read()
for sock in socks:
    sock.close()
"""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("clone,clone3:error=EAGAIN:when=1", errno.EAGAIN),
        ("clone,clone3:error=EAGAIN:when=2", errno.EAGAIN),
        ("memfd_create:error=EMFILE:when=2+", errno.EMFILE),
        ("memfd_create:error=EINVAL:when=1", None),  # without MFD_NOEXEC_SEAL, before Linux 6.3
        ("ftruncate:error=ENOSPC:when=2", errno.ENOSPC),
        ("eventfd2:error=ENFILE:when=1", errno.ENFILE),
        ("eventfd2:error=ENFILE:when=4", errno.ENFILE),
        ("eventfd2:error=ENFILE:when=5", errno.ENFILE),  # of the receiver of several
        ("epoll_create1:error=EMFILE:when=2", errno.EMFILE),
        ("epoll_create1:error=EMFILE:when=3", errno.EMFILE),
        ("epoll_ctl:error=ENOSPC:when=3", errno.ENOSPC),
        ("epoll_ctl:error=ENOMEM:when=6", errno.ENOMEM),
        ("madvise:error=ENOMEM:when=1+", errno.ENOMEM),
        ("madvise:error=EFAULT:when=1+", errno.ENOMEM),
        ("madvise:error=EINVAL:when=1+", None),  # before Linux 5.14
        ("sched_setaffinity:error=EINVAL:when=1", errno.EINVAL),
    ],
)
def test_calls_that_fail(fault, expected):
    """Nothing is left of what was made before."""
    cpus = [min(os.sched_getaffinity(0))] * 2
    traced = trace(FAULTY.replace("CPUS", str(cpus)), fault.partition(":")[0], fault)
    assert traced.out.split() == ([] if expected is None else [str(expected)])
    assert any("INJECTED" in call.line for call in traced.calls)


def test_no_descriptors_left(isolated):
    """However many there are left, all of them are there again afterwards."""
    out = isolated("""
import gc, os, resource
import fastsock
socks = [fastsock.bind_udp(("127.0.0.1", 0)) for _ in range(2)]
fds = set(os.listdir("/proc/self/fd"))
most = max(map(int, fds))  # of listdir itself
failed = 0
for room in range(20):
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + room, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        fastsock.Receiver(socks, slots=256).close()
    except OSError as error:
        assert error.errno == 24, error
        failed += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert set(os.listdir("/proc/self/fd")) == fds
    assert len(os.listdir("/proc/self/task")) == 1
print(failed)
for sock in socks:
    sock.close()
""")
    assert int(out) == 12  # five for each socket, and two of the receiver's own


def test_a_cpu_that_there_is_not(socks):
    before = open_descriptors()
    for cpu in (4095, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 70):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            Receiver(socks, slots=SLOTS, cpus=[min(os.sched_getaffinity(0)), cpu])
        gc.collect()
        assert open_descriptors() == before
        assert not threads()


@pytest.mark.parametrize("size", [1, 2])
def test_the_counts_stay_after_the_end(closing, size):
    socks = [closing(sock) for sock in fastsock.bind_udp_group(("127.0.0.1", 0), size)]
    sender = closing(fastsock.connect_udp(socks[0].getsockname()))
    with fastsock.Receiver(socks, slots=64) as receiver:
        sender.send(b"one")
        assert len(receiver.take(timeout=DEADLINE_S)) == 1
        slots = receiver.stats.slots
    stats = receiver.stats
    assert (stats.received, stats.taken, stats.kernel_drops, stats.slots) == (1, 1, 0, slots)
    assert sum(ring.stats.received for ring in receiver.rings) == 1
