"""Connections through the standard library's class and ours: what CPython's own suite does not ask.

TCP over IPv4 and IPv6, AF_UNIX streams and SOCK_SEQPACKET; both classes must say the same.
"""

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading

import pytest
from conftest import byte_streams

import fastsock


def run_in_thread(call):
    """Start a thread; its `result()` joins it, and raises what the call raised."""
    outcome = []

    def body():
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()

    def result():
        thread.join(20)
        assert outcome, "the thread does not end"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


def receive_all(sock, size=1 << 16):
    received = bytearray()
    while payload := sock.recv(size):
        received += payload
    return received


def fill_backlog(streams, listener):
    """Connections until the next one has to wait."""
    address = listener.getsockname()
    while True:
        sock = streams.make()
        sock.setblocking(False)
        if streams.family == socket.AF_UNIX:
            if sock.connect_ex(address):
                return
        elif sock.connect_ex(address) == errno.EINPROGRESS and not select.select([], [sock], [], 0.05)[1]:
            return


def unread(sock):
    """Bytes in the receive queue."""
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
    return size[0]


def is_waiting_in(call_numbers, tid):
    """Whether a thread of this process is inside one of these system calls."""
    with open(f"/proc/self/task/{tid}/syscall") as status:
        return status.read().split()[0] in {str(number) for number in call_numbers}


# --- connect -----------------------------------------------------------------------------------


def test_a_pair_says_who_it_is(streams):
    near, far = streams.pair()
    assert (far.family, far.type, far.proto) == (near.family, near.type, near.proto)
    assert near.getpeername() == far.getsockname()
    assert far.getpeername() == near.getsockname()
    assert type(far) is streams.cls
    near.sendall(b"there")
    assert far.recv(100) == b"there"
    far.sendall(b"and back")
    assert near.recv(100) == b"and back"


def test_refused(streams):
    listener = streams.listener()
    address = listener.getsockname()
    listener.close()
    for timeout in (None, 5):
        sock = streams.make()
        sock.settimeout(timeout)
        with pytest.raises(ConnectionRefusedError) as caught:
            sock.connect(address)
        assert caught.value.errno == errno.ECONNREFUSED
        assert streams.make().connect_ex(address) == errno.ECONNREFUSED


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_in_progress_then_refused_or_connected(streams):
    listener = streams.listener()
    good = streams.make()
    good.setblocking(False)
    assert good.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
    assert select.select([], [good], [], 10)[1]
    assert good.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert good.connect_ex(listener.getsockname()) in (0, errno.EISCONN)
    address = listener.getsockname()
    listener.close()
    bad = streams.make()
    bad.setblocking(False)
    with pytest.raises((BlockingIOError, ConnectionRefusedError)):
        bad.connect(address)
    assert select.select([], [bad], [], 10)[1]
    assert bad.connect_ex(address) in (errno.ECONNREFUSED, errno.ECONNABORTED, errno.EINPROGRESS)


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_connect_times_out(streams):
    listener = streams.listener(0)
    fill_backlog(streams, listener)
    sock = streams.make()
    sock.settimeout(0.05)
    with pytest.raises(TimeoutError, match="timed out"):
        sock.connect(listener.getsockname())
    other = streams.make()
    other.settimeout(0.05)
    assert other.connect_ex(listener.getsockname()) == errno.EAGAIN
    # A third call hears of the attempt that still goes on.
    other.setblocking(False)
    assert other.connect_ex(listener.getsockname()) == errno.EALREADY


def test_connect_twice(streams):
    near, far = streams.pair()
    listener = streams.listener()
    assert near.connect_ex(listener.getsockname()) == errno.EISCONN
    near.sendall(b"still there")
    assert far.recv(20) == b"still there"


FULL_BACKLOG = """
import select, signal, socket, sys, threading
import fastsock
interrupted = threading.Event()
signal.signal(signal.SIGALRM, lambda *_: interrupted.set())
with fastsock.Socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    listener.bind(sys.argv[1])
    listener.listen(0)
    with fastsock.Socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.connect(sys.argv[1])
        def accept():
            interrupted.wait(20)
            for _ in range(2):
                listener.accept()[0].close()
        accepting = threading.Thread(target=accept)
        accepting.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with fastsock.Socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
            second.connect(sys.argv[1])
            print(second.getpeername() == sys.argv[1], interrupted.is_set())
        accepting.join()
"""


def test_a_signal_does_not_end_the_wait_for_a_full_backlog(isolated, tmp_path):
    # An interrupted AF_UNIX connect has not begun; the standard library takes it for done.
    assert isolated(FULL_BACKLOG, tmp_path / "full").split() == ["True", "True"]


# --- listen ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backlog", [(), (0,), (-1,), (-(2**31),), (2**31 - 1,), (True,)])
def test_backlogs(streams, backlog):
    listener = streams.listener(*backlog)
    near = streams.make()
    near.connect(listener.getsockname())
    accepted, _ = listener.accept()
    accepted.close()
    listener.listen(*backlog)  # again, to change it
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


@pytest.mark.parametrize(
    ("backlog", "error"),
    [(2**31, OverflowError), (-(2**31) - 1, OverflowError), (1.5, TypeError), ("1", TypeError), (b"", TypeError)],
)
def test_bad_backlogs(streams, backlog, error):
    sock = streams.make()
    with pytest.raises(error):
        sock.listen(backlog)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def test_backlog_is_positional_only_and_may_be_none(streams):
    sock = streams.make()
    sock.bind(streams.new_address())
    with pytest.raises(TypeError):
        sock.listen(backlog=1)
    if streams.cls is fastsock.Socket:
        sock.listen(None)


def test_listen_on_a_datagram_socket(sock):
    with pytest.raises(OSError, match="not supported") as caught:
        sock.listen()
    assert caught.value.errno == errno.EOPNOTSUPP


# --- accept ------------------------------------------------------------------------------------


def test_accept_waits_or_not(streams):
    listener = streams.listener()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.settimeout(0.02)
    with pytest.raises(TimeoutError, match="timed out"):
        listener.accept()
    for timeout in (None, 20):
        listener.settimeout(timeout)
        result = run_in_thread(listener.accept)
        near = streams.make()
        near.connect(listener.getsockname())
        accepted, address = result()
        with accepted:
            # POSIX leaves it open what an accepted socket inherits; Python says: nothing.
            assert accepted.gettimeout() is None
            assert os.get_blocking(accepted.fileno())
            assert not accepted.get_inheritable()
            assert address == accepted.getpeername() or streams.family == socket.AF_UNIX


def test_accept_before_listen(streams):
    sock = streams.make()
    sock.bind(streams.new_address())
    with pytest.raises(OSError, match="Invalid argument") as caught:
        sock.accept()
    assert caught.value.errno == errno.EINVAL


DEFAULT_TIMEOUT = """
import os, socket, sys
import fastsock
cls = eval(sys.argv[1])
with cls() as listener, cls() as near:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    near.connect(listener.getsockname())
    socket.setdefaulttimeout(7)
    with listener.accept()[0] as accepted:
        print(listener.gettimeout(), accepted.gettimeout(), os.get_blocking(accepted.fileno()))
    socket.setdefaulttimeout(0)
    with near.dup() as copy, cls() as another:
        print(copy.gettimeout(), another.gettimeout())
"""


@pytest.mark.parametrize("name", ["socket.socket", "fastsock.Socket"])
def test_accept_with_a_default_timeout(isolated, name):
    assert isolated(DEFAULT_TIMEOUT, name).split() == ["None", "7.0", "False", "None", "0.0"]


def test_unix_peers_without_a_path(cls, closing, tmp_path):
    name = b"\0fastsock-test-" + str(tmp_path).encode()[-80:]
    listener, unnamed, abstract = (closing(cls(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(3))
    listener.bind(name)
    listener.listen()
    assert listener.getsockname() == name
    unnamed.connect(name)
    accepted, address = listener.accept()
    with accepted:
        assert address == accepted.getpeername() == unnamed.getsockname() == ""
    abstract.bind(name + b"\0 and \xff")
    abstract.connect(name)
    accepted, address = listener.accept()
    with accepted:
        assert address == accepted.getpeername() == name + b"\0 and \xff"


EMFILE = """
import errno, os, resource, socket, sys
import fastsock
cls = eval(sys.argv[1])
with cls() as listener, cls() as near:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.settimeout({timeout})
    near.connect(listener.getsockname())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (near.fileno() + 1, hard))
    try:
        listener.accept()
    except OSError as error:
        print(errno.errorcode[error.errno])
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    accepted, address = listener.accept()       # the connection was kept
    print(address == near.getsockname())
    accepted.close()
"""


@pytest.mark.parametrize("timeout", [None, 0, 5])
@pytest.mark.parametrize("name", ["socket.socket", "fastsock.Socket"])
def test_accept_without_descriptors_keeps_the_connection(isolated, name, timeout):
    assert isolated(EMFILE.format(timeout=timeout), name).split() == ["EMFILE", "True"]


INTERRUPTED = """
import errno, signal, socket, sys
import fastsock
cls = eval(sys.argv[1])
class Stop(Exception): pass
def at_alarm(handler):
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
def stop(*_):
    raise Stop
with cls() as near, cls() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    listener.settimeout({timeout})
    at_alarm(stop)
    try:
        listener.accept()
    except Stop:
        print("stopped")
    at_alarm(lambda *_: near.connect(address))
    with listener.accept()[0] as accepted:          # goes on behind a handler that returns
        print(accepted.getpeername() == near.getsockname())
    at_alarm(lambda *_: listener.close())
    try:
        listener.accept()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("name", ["socket.socket", "fastsock.Socket"])
def test_accept_and_signals(isolated, name, timeout):
    if name == "socket.socket" and timeout:
        # The standard library polls the descriptor that is no more until the time-out.
        script = INTERRUPTED.rsplit("    at_alarm", 1)[0]
        assert isolated(script.format(timeout=timeout), name).split() == ["stopped", "True"]
        return
    assert isolated(INTERRUPTED.format(timeout=timeout), name).split() == ["stopped", "True", "EBADF"]


SHARED_FLAGS = """
import socket, threading
import fastsock
with fastsock.Socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.settimeout(0.1)
    with listener.dup() as copy:
        copy.settimeout(None)           # O_NONBLOCK belongs to the open file description
        try:
            listener.accept()
        except TimeoutError:
            print("timed out")
    # And without a time-out the other threads go on, whatever the flag says.
    listener.settimeout(0)
    with listener.dup() as copy:
        copy.settimeout(None)
        ran = threading.Event()
        def connect():
            ran.set()
            with fastsock.Socket() as near:
                near.connect(listener.getsockname())
        threading.Timer(0.05, connect).start()
        listener.accept()[0].close()
        print(ran.is_set())
"""


def test_accept_keeps_its_timeout_beside_a_blocking_duplicate(isolated):
    assert isolated(SHARED_FLAGS, timeout=20).split() == ["timed", "out", "True"]


def test_accept_beside_others(streams):
    """Of several threads that wait under a time-out, each gets one connection."""
    listener = streams.listener()
    listener.settimeout(20)
    results = [run_in_thread(listener.accept) for _ in range(8)]
    for _ in results:
        streams.make().connect(listener.getsockname())
    assert len({streams.keep(result()[0]).fileno() for result in results}) == 8


# --- closing from elsewhere --------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 20])
def test_shutdown_from_another_thread_wakes_a_receive(streams, timeout):
    near, _ = streams.pair()
    near.settimeout(timeout)
    started = threading.Event()

    def receive():
        started.set()
        return near.recv(10)

    result = run_in_thread(receive)
    started.wait(10)
    near.shutdown(socket.SHUT_RDWR)
    assert result() == b""


@pytest.mark.parametrize("timeout", [None, 20])
def test_shutdown_from_another_thread_wakes_accept(streams, timeout):
    if timeout and streams.family == socket.AF_UNIX:
        timeout = None  # where it does not wait, the kernel says EAGAIN for ever
    listener = streams.listener()
    listener.settimeout(timeout)
    started = threading.Event()

    def accept():
        started.set()
        return listener.accept()

    result = run_in_thread(accept)
    started.wait(10)
    listener.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        result()
    assert caught.value.errno == errno.EINVAL


def test_close_from_another_thread_leaves_a_receive_the_connection(streams):
    """The kernel keeps the connection open under a call that is in it; the next call fails."""
    near, far = streams.pair()
    near.settimeout(None)
    tids = []

    def receive():
        tids.append(threading.get_native_id())
        return near.recv(10)

    result = run_in_thread(receive)
    # recvfrom, or futex: the thread has not come so far.
    while not tids or not is_waiting_in([45, 207], tids[0]):
        threading.Event().wait(0.001)
    near.close()
    far.sendall(b"late")
    assert result() == b"late"
    with pytest.raises(OSError, match="Bad file descriptor"):
        near.recv(1)


CLOSED_IN_CALL = """
import errno, os, signal, socket, sys
import fastsock
near, far = fastsock.socket.socketpair()
near.settimeout({timeout})
signal.signal(signal.SIGALRM, lambda *_: near.close())
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    {call}
except OSError as error:
    print(errno.errorcode[error.errno])
far.close()
"""


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize(
    "call",
    ["near.recv(10)", "near.recv_into(bytearray(10))", "near.recvmsg(10)", "near.sendall(bytes(16 << 20))"],
)
def test_close_from_a_handler(isolated, call, timeout):
    assert isolated(CLOSED_IN_CALL.format(call=call, timeout=timeout)).split() == ["EBADF"]


# --- data --------------------------------------------------------------------------------------


def test_half_close(streams):
    near, far = streams.pair()
    near.sendall(b"the last word")
    near.shutdown(socket.SHUT_WR)
    assert far.recv(100) == b"the last word"
    assert far.recv(100) == b""
    far.sendall(b"goes on")
    assert near.recv(100) == b"goes on"
    with pytest.raises(BrokenPipeError):
        near.send(b"x")
    with pytest.raises(BrokenPipeError):
        near.sendall(b"x")
    with pytest.raises(BrokenPipeError):
        near.sendmsg([b"x"])
    near.shutdown(socket.SHUT_RD)
    assert near.recv(1) == b""


@byte_streams
@pytest.mark.parametrize("timeout", [None, 20])
def test_sendall_of_more_than_the_buffers(streams, timeout):
    near, far = streams.pair()
    near.settimeout(timeout)
    payload = os.urandom(8 << 20)
    result = run_in_thread(lambda: receive_all(far, 30_000))
    assert near.sendall(memoryview(payload).cast("I")) is None
    near.shutdown(socket.SHUT_WR)
    assert result() == payload


@byte_streams
def test_sendall_times_out_as_a_whole(streams):
    near, far = streams.pair()
    near.settimeout(0.2)
    far.setblocking(False)
    stop = threading.Event()

    def read_slowly():
        while not stop.wait(0.01):
            with contextlib.suppress(BlockingIOError):
                far.recv(1000)

    result = run_in_thread(read_slowly)
    with pytest.raises(TimeoutError, match="timed out"):
        near.sendall(bytes(64 << 20))
    stop.set()
    result()


@byte_streams
@pytest.mark.parametrize("size", [50_000, 1 << 20])
@pytest.mark.parametrize("call", ["send", "sendmsg"])
def test_a_blocking_send_takes_it_all(streams, call, size):
    near, far = streams.pair()
    near.settimeout(None)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    payload = os.urandom(size)
    result = run_in_thread(lambda: receive_all(far))
    data = payload if call == "send" else [payload[:3], b"", payload[3:]]
    assert getattr(near, call)(data) == size
    near.close()
    assert result() == payload


@byte_streams
@pytest.mark.parametrize("call", ["send", "sendmsg"])
def test_a_send_that_does_not_wait_takes_what_fits(streams, call):
    near, _ = streams.pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.settimeout(None)

    def send(size, flags):
        return near.send(bytes(size), flags) if call == "send" else near.sendmsg([bytes(size)], [], flags)

    assert 0 < send(8 << 20, socket.MSG_DONTWAIT) < 8 << 20
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while send(50_000, 0) > 0:
            pass
    for flags in (0, socket.MSG_DONTWAIT):
        with pytest.raises(BlockingIOError):
            send(50_000, flags)


@byte_streams
@pytest.mark.parametrize("call", ["recv", "recvfrom", "recvmsg", "recv_into", "recvfrom_into", "recvmsg_into"])
def test_waitall(streams, call, wait_for):
    near, far = streams.pair()
    far.settimeout(None)
    near.sendall(b"12345")
    target = bytearray(10)
    first = {"recvmsg_into": [target], "recv_into": target, "recvfrom_into": target}.get(call, 10)
    room = {"recvmsg": [0], "recvmsg_into": [0], "recv_into": [10], "recvfrom_into": [10]}.get(call, [])
    result = run_in_thread(lambda: getattr(far, call)(first, *room, socket.MSG_WAITALL))
    wait_for(lambda: unread(far) == 0)
    near.sendall(b"67890")
    got = result()
    head = got[0] if isinstance(got, tuple) else got
    assert (bytes(target) if call.endswith("_into") else head) == b"1234567890"
    assert head in (10, b"1234567890")


@byte_streams
def test_waitall_takes_what_is_there_when_it_ends(streams):
    near, far = streams.pair()
    near.sendall(b"12345")
    near.close()
    far.settimeout(None)
    assert far.recv(10, socket.MSG_WAITALL) == b"12345"
    assert far.recv(10, socket.MSG_WAITALL) == b""


def test_peek(streams):
    near, far = streams.pair()
    near.sendall(b"12345")
    assert far.recv(3, socket.MSG_PEEK) == b"123"
    assert far.recvmsg(100, 0, socket.MSG_PEEK)[0] == b"12345"
    assert far.recv(100) == b"12345"


def test_no_room_is_no_receive(streams):
    near, far = streams.pair()
    assert (far.recv(0), far.recv_into(bytearray())) == (b"", 0)  # and do not wait
    near.sendall(b"stays")
    assert (far.recv(0), far.recv_into(bytearray())) == (b"", 0)
    assert far.recv(10) == b"stays"


@pytest.mark.parametrize("streams", ["seqpacket"], indirect=True)
def test_messages_and_their_ends(streams):
    near, far = streams.pair()
    near.sendall(b"one")
    near.sendmsg([b"t", b"wo"], [], socket.MSG_EOR)
    near.sendall(b"12345")
    assert far.recv(100) == b"one"
    payload, ancillary, flags, _ = far.recvmsg(2)
    assert (payload, ancillary, flags & socket.MSG_TRUNC) == (b"tw", [], socket.MSG_TRUNC)
    assert far.recv_into(bytearray(2), 0, socket.MSG_TRUNC) == 5


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_urgent_data(streams):
    near, far = streams.pair()
    far.settimeout(None)  # the standard library would poll for POLLIN, which urgent data is not
    near.send(b"abc", socket.MSG_OOB)
    assert select.select([], [], [far], 10)[2]
    assert far.recv(10, socket.MSG_OOB) == b"c"
    assert far.recv(10) == b"ab"
    with pytest.raises(OSError, match="Invalid argument"):
        far.recv(1, socket.MSG_OOB)


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_fast_open_waits_for_the_connection(streams):
    listener, near = streams.listener(), streams.make()
    assert near.sendto(b"hello", socket.MSG_FASTOPEN, listener.getsockname()) == 5
    with listener.accept()[0] as far:
        far.settimeout(10)
        assert far.recv(10) == b"hello"


@byte_streams
def test_batched_calls_are_refused(streams):
    with fastsock.Socket(fileno=streams.pair()[0].detach()) as near:
        batch = fastsock.SendBatch(4)
        batch.append(b"x")
        for call in (
            near.recv_many,
            near.recvfrom_many,
            lambda: near.recv_batch(fastsock.RecvBatch(4)),
            lambda: near.send_many([b"x"]),
            lambda: near.sendto_many([b"x"], near.getsockname()),
            lambda: near.send_batch(batch),
            lambda: near.send_segments(b"xx", 1),
            lambda: near.send_zerocopy(b"x"),
        ):
            with pytest.raises(OSError, match="stream") as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP


# --- ancillary data ----------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["unix", "seqpacket"], indirect=True)
@pytest.mark.parametrize("flags", [0, socket.MSG_CMSG_CLOEXEC])
def test_descriptors_and_credentials(streams, flags):
    near, far = streams.pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    read, write = os.pipe()
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read, write]))
        credentials = (
            socket.SOL_SOCKET,
            socket.SCM_CREDENTIALS,
            struct.pack("iII", os.getpid(), os.getuid(), os.getgid()),
        )
        assert near.sendmsg([b"two", b" pipes"], [rights, credentials]) == 9
        room = socket.CMSG_SPACE(8) + socket.CMSG_SPACE(12)
        target = bytearray(100)
        size, ancillary, msg_flags, address = far.recvmsg_into([target], room, flags)
        assert (bytes(target[:size]), address) == (b"two pipes", None)
        assert not msg_flags & socket.MSG_CTRUNC
        found = {kind: data for _, kind, data in ancillary}
        assert found[socket.SCM_CREDENTIALS] == credentials[2]
        fds = array.array("i", found[socket.SCM_RIGHTS])
        try:
            assert [os.get_inheritable(fd) for fd in fds] == [not flags] * 2
            os.write(fds[1], b"through")
            assert os.read(read, 100) == b"through"
        finally:
            for fd in fds:
                os.close(fd)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("streams", ["unix", "seqpacket"], indirect=True)
def test_no_room_for_descriptors(streams):
    near, far = streams.pair()
    with open(os.devnull) as file:
        socket.send_fds(near, [b"x"], [file.fileno()] * 3)
    payload, ancillary, flags, _ = far.recvmsg(10)
    assert (payload, ancillary) == (b"x", [])
    assert flags & socket.MSG_CTRUNC


@pytest.mark.parametrize("streams", ["unix", "seqpacket"], indirect=True)
def test_send_fds(streams):
    near, far = streams.pair()
    with open(os.devnull, "rb") as file:
        assert socket.send_fds(near, [b"a ", b"file"], [file.fileno()]) == 6
        payload, fds, _, _ = socket.recv_fds(far, 100, 4)
        assert (payload, len(fds)) == (b"a file", 1)
        assert os.path.sameopenfile(fds[0], file.fileno())
        os.close(fds[0])


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_tcp_options(streams):
    near, _ = streams.pair()
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 7),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
    ):
        near.setsockopt(level, option, value)
        assert near.getsockopt(level, option) == value
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").isalnum()
    assert len(near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)) == 104
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"  # TCP_ESTABLISHED


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_linger_of_zero_resets(streams):
    near, far = streams.pair()
    linger = struct.pack("ii", 1, 0)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
    near.close()
    with pytest.raises(ConnectionResetError):
        far.recv(1)


@pytest.mark.parametrize("streams", ["v4", "v6"], indirect=True)
def test_one_port_for_several_listeners(streams):
    first = streams.make()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    first.bind(streams.new_address())
    first.listen()
    second = streams.make()
    with pytest.raises(OSError, match="in use") as caught:
        second.bind(first.getsockname())
    assert caught.value.errno == errno.EADDRINUSE
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    second.bind(first.getsockname())
    second.listen()


# --- life --------------------------------------------------------------------------------------


def test_unclosed_warnings_name_the_connection(streams):
    listener, near = streams.listener(), streams.make()
    near.connect(listener.getsockname())
    accepted = listener.accept()[0]
    text = repr(accepted)
    assert f"laddr={accepted.getsockname()}" in text
    with pytest.warns(ResourceWarning) as caught:
        del accepted
    assert str(caught[0].message) == f"unclosed {text}"


def test_a_duplicate_keeps_the_connection(streams):
    near, far = streams.pair()
    with near.dup() as copy:
        assert (copy.family, copy.type, copy.gettimeout()) == (near.family, near.type, 10)
        near.close()
        copy.sendall(b"goes on")
        assert far.recv(10) == b"goes on"
        with streams.cls(fileno=copy.detach()) as taken:
            assert taken.getpeername() == far.getsockname()
    assert far.recv(10) == b""


def test_a_socket_opened_again_is_not_closed():
    sock = fastsock.Socket()
    sock.close()
    sock.__init__()
    assert "[closed]" not in repr(sock)
    sock.makefile("rb").close()
    assert sock.fileno() >= 0
    sock.close()


def test_interrupted_waits_go_on(isolated):
    isolated("""
import signal, socket
import fastsock
near, far = fastsock.socket.socketpair()
near.settimeout(None)
count = 0
def handler(*_):
    global count
    count += 1
    if count == 3:
        far.sendall(b"at last!")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
assert near.recv(100) == b"at last!" and count >= 3
signal.setitimer(signal.ITIMER_REAL, 0)
near.close(); far.close()
""")
