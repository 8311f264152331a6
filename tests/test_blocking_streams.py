"""A stream that waits does as one system call without MSG_DONTWAIT would: it takes and gives all that was asked for."""

import errno
import socket
import struct
import threading

import pytest

import fastsock

SECOND = struct.pack("@ll", 1, 0)
"""SO_RCVTIMEO and SO_SNDTIMEO of a second: a call that does not end ends there, as BlockingIOError."""


@pytest.fixture(params=["tcp", "unix"])
def pair(request, cls, closing):
    """The two ends of a stream of either class, both blocking."""
    if request.param == "unix":
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            ends = near, server.accept()[0]
    return [closing(cls(end.family, end.type, end.proto, fileno=end.detach())) for end in ends]


@pytest.fixture
def unix_ends(cls, closing):
    """AF_UNIX only: reading makes room for the sender at once."""
    return [closing(cls(fileno=end.detach())) for end in socket.socketpair()]


def fill(sock):
    """Send until nothing more fits; returns how many bytes did."""
    total = 0
    try:
        while True:
            total += sock.send(bytes(1000), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return total


def read_all(sock, count):
    """In a thread: read so many bytes; returns the thread, and the list of what came."""
    got = []

    def run():
        left = count
        while left:
            got.append(sock.recv(min(left, 4096)))
            left -= len(got[-1])

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def send_or_zero(sock, size):
    """How many bytes went; 0 where the time-out of the kernel ran out before."""
    try:
        return sock.send(bytes(size))
    except BlockingIOError:
        return 0


SENDS = {
    "send": lambda sock, data: sock.send(data),
    "bytearray": lambda sock, data: sock.send(bytearray(data)),
    "sendmsg": lambda sock, data: sock.sendmsg([data[:7], data[7:]]),
}


@pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)
def test_a_send_goes_whole(pair, send):
    near, far = pair
    queued = fill(near)
    far.recv(10_000, socket.MSG_WAITALL)  # room for some of it
    data = bytes(range(256)) * 200
    assert len(data) < 65536
    thread, got = read_all(far, queued - 10_000 + len(data))
    assert send(near, data) == len(data)
    thread.join(10)
    assert b"".join(got)[-len(data) :] == data


@pytest.mark.parametrize(("timeout", "flags"), [(0, 0), (10, 0), (None, socket.MSG_DONTWAIT)])
def test_but_not_where_it_may_not_wait(unix_ends, timeout, flags):
    near, far = unix_ends
    if timeout and isinstance(near, socket.socket):
        pytest.xfail("it polls first, and the kernel calls a half-empty buffer not writable")
    fill(near)
    far.recv(10_000, socket.MSG_WAITALL)
    near.settimeout(timeout)
    assert 0 < near.send(bytes(60_000), flags) < 60_000


RECEIVES = {
    "recv": lambda sock, size, flags: sock.recv(size, flags),
    "recvfrom": lambda sock, size, flags: sock.recvfrom(size, flags)[0],
    "recvmsg": lambda sock, size, flags: sock.recvmsg(size, 0, flags)[0],
}


def into(receive):
    def run(sock, size, flags):
        buffer = bytearray(size)
        return bytes(buffer[: receive(sock, buffer, flags)])

    return run


RECEIVES["recv_into"] = into(lambda sock, buffer, flags: sock.recv_into(buffer, 0, flags))
RECEIVES["recvfrom_into"] = into(lambda sock, buffer, flags: sock.recvfrom_into(buffer, 0, flags)[0])
RECEIVES["recvmsg_into"] = into(lambda sock, buffer, flags: sock.recvmsg_into([buffer], 0, flags)[0])


def waits_for_more(receiver, sender, receive, flags):
    """Whether a receive of ten bytes waits behind the first three."""
    sender.sendall(b"abc")
    waiting = threading.Event()
    got = []

    def run():
        waiting.set()
        got.append(receive(receiver, 10, flags))

    thread = threading.Thread(target=run)
    thread.start()
    waiting.wait(10)
    thread.join(0.05)
    still = thread.is_alive()
    sender.sendall(b"defghijklmnop")  # TCP wakes a sleeper for SO_RCVLOWAT new bytes, whatever it has
    thread.join(10)
    return still and got == [b"abcdefghij"]


@pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
def test_waitall(pair, receive):
    assert waits_for_more(*pair, receive, socket.MSG_WAITALL)


@pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
def test_low_water_mark(pair, receive):
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    assert waits_for_more(*pair, receive, 0)


def test_low_water_mark_is_found_on_a_descriptor_and_can_be_lowered(pair):
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    with near.dup() as copy:
        assert waits_for_more(copy, far, RECEIVES["recv"], 0)
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, struct.pack("@i", 1))
        assert copy.recv(10) == b"klmnop"


def test_accepted_sockets_inherit_the_low_water_mark(cls):
    with cls(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        server.listen()
        with cls(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            with accepted:
                assert waits_for_more(accepted, client, RECEIVES["recv"], 0)


def test_what_fails_behind_a_partial_send_comes_with_the_next(unix_ends):
    """The peer goes away while the rest waits for room."""
    near, far = unix_ends
    fill(near)
    far.recv(10_000, socket.MSG_WAITALL)
    sent = []
    thread = threading.Thread(target=lambda: sent.append(near.send(bytes(60_000))))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    far.close()
    thread.join(10)
    assert 0 < sent[0] < 60_000
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        near.send(b"x")


def test_the_kernels_own_time_out_cuts_a_send_short(pair):
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 20_000))
    queued = fill(near)
    far.recv(queued // 2, socket.MSG_WAITALL)
    while (sent := send_or_zero(near, 60_000)) == 60_000:
        pass
    assert 0 < sent < 60_000 or sent == send_or_zero(near, 60_000) == 0
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SECOND)
    while len(far.recv(65536)) == 65536:
        pass
    assert near.send(b"x") == 1  # nothing was kept from then


@pytest.mark.skipif(not hasattr(socket, "MSG_FASTOPEN"), reason="no TCP Fast Open")
@pytest.mark.parametrize("how", ["MSG_FASTOPEN", "TCP_FASTOPEN_CONNECT"])
def test_fast_open_waits_for_the_connection(cls, how):
    """sendto() connects; it must not come back with EINPROGRESS where the socket waits."""
    with cls(socket.AF_INET, socket.SOCK_STREAM) as server, cls(socket.AF_INET, socket.SOCK_STREAM) as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        try:
            if how == "MSG_FASTOPEN":
                assert client.sendto(b"hello", socket.MSG_FASTOPEN, server.getsockname()) == 5
            else:
                client.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
                client.connect(server.getsockname())
                assert client.send(b"hello") == 5
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENOTCONN, errno.EPIPE):
                raise
            pytest.skip(f"no TCP Fast Open here: {error}")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(5, socket.MSG_WAITALL) == b"hello"


def test_batches_are_for_datagrams(unix_pair):
    near, _ = unix_pair(socket.SOCK_STREAM)
    for call in (near.recv_many, near.recvfrom_many, lambda: near.send_many([b"x"])):
        with pytest.raises(OSError, match="stream") as raised:
            call()
        assert raised.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError, match="stream"):
        near.recv_batch(fastsock.RecvBatch())


# --- a send that waits for room, and what ends it ---------------------------------------------


HANDLER = """
import signal, socket, sys, threading
import fastsock
kind, name = sys.argv[1:]
cls = {"socket": socket.socket, "fastsock": fastsock.Socket}[kind]
near, far = (cls(fileno=end.detach()) for end in socket.socketpair())
try:
    while True:
        near.send(bytes(1000), socket.MSG_DONTWAIT)
except BlockingIOError:
    pass
far.recv(10_000, socket.MSG_WAITALL)

def handler(number, frame):
    if name != "flag":
        raise {"timeout": TimeoutError("mine"), "blocking": BlockingIOError("mine"), "os": OSError(5, "mine")}[name]

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
watchdog = threading.Timer(10, far.close)      # would end a send that goes on
watchdog.start()
try:
    print("sent" if 0 < near.send(bytes(60_000)) < 60_000 else "all")
except OSError as error:
    print(type(error).__name__, error.args[-1])
print("open" if far.fileno() >= 0 else "closed")
watchdog.cancel()
watchdog.join()
near.close()
far.close()
"""


@pytest.mark.parametrize("kind", ["socket", "fastsock"])
@pytest.mark.parametrize(
    ("name", "first"),
    [("flag", "sent"), ("timeout", "TimeoutError mine"), ("blocking", "BlockingIOError mine"), ("os", "OSError mine")],
)
def test_a_signal_ends_a_send_that_has_made_progress(isolated, kind, name, first):
    assert isolated(HANDLER, kind, name).splitlines() == [first, "open"]


def test_a_reset_behind_a_partial_send_is_no_end_of_file(cls, closing):
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = closing(cls(socket.AF_INET, socket.SOCK_STREAM))
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        near.connect(server.getsockname())
        far = closing(server.accept()[0])
    fill(near)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sent = []

    def send():
        try:
            sent.append(near.send(bytes(60_000)))
        except ConnectionResetError:
            sent.append(None)

    thread = threading.Thread(target=send)
    thread.start()
    far.recv(4000)
    thread.join(0.05)
    far.close()  # RST
    thread.join(10)
    assert len(sent) == 1
    if sent[0] is not None:  # it had made progress, and the reset is there for the next call
        with pytest.raises(ConnectionResetError):
            near.recv(1)


@pytest.mark.skipif(not fastsock.probe().zerocopy, reason="no MSG_ZEROCOPY")
def test_each_zero_copy_send_has_one_number():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far = server.accept()[0]
    with fastsock.Socket.from_stdlib(near) as own, far:
        own.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        for _ in range(5):
            thread, _ = read_all(far, 60_000)
            assert own.send(bytes(60_000), fastsock._constants.MSG_ZEROCOPY) == 60_000
            thread.join(10)
        numbers = {number for record in own.recv_errors() for number in record.ids or ()}
        assert max(numbers) == 4
