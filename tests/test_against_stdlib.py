"""The same assertions through the standard library's socket and ours: time-outs, options, arguments."""

import errno
import os
import socket
import sys
from socket import AF_UNIX, SOCK_DGRAM, SOL_SOCKET

import pytest


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


# --- time-outs --------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, 1, 1.5, 0.001, 0.25, 2.75, True, 3600, 1e-9, Index(3)])
def test_timeouts(sock, timeout):
    sock.settimeout(timeout)
    meant = float(timeout.value if isinstance(timeout, Index) else timeout)
    assert sock.gettimeout() == sock.timeout == pytest.approx(meant, abs=1e-12)
    assert isinstance(sock.gettimeout(), float)
    assert sock.getblocking() is bool(meant)
    assert not os.get_blocking(sock.fileno())
    with sock.dup() as copy:
        assert copy.gettimeout() == sock.gettimeout()
        assert copy.getblocking() == sock.getblocking()
    sock.settimeout(None)
    assert sock.gettimeout() is sock.timeout is None
    assert sock.getblocking() is os.get_blocking(sock.fileno()) is True


def test_the_shortest_timeout_is_not_none_at_all(sock):
    sock.settimeout(1e-12)
    assert sock.gettimeout() > 0
    with pytest.raises(TimeoutError):
        sock.recv(1)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (-1, ValueError),
        (-0.5, ValueError),
        (float("nan"), ValueError),
        (float("inf"), OverflowError),
        (1e20, OverflowError),
        (2**70, OverflowError),
        ("1", TypeError),
        ([], TypeError),
        (1j, TypeError),
    ],
)
def test_bad_timeouts_change_nothing(sock, timeout, error):
    sock.settimeout(7)
    with pytest.raises(error):
        sock.settimeout(timeout)
    assert sock.gettimeout() == 7


@pytest.mark.parametrize(("flag", "timeout"), [(True, None), (False, 0.0), (1, None), (0, 0.0)])
def test_setblocking(sock, flag, timeout):
    sock.setblocking(flag)
    assert sock.gettimeout() == timeout
    assert os.get_blocking(sock.fileno()) is (timeout is None)


# --- options -----------------------------------------------------------------------------------


def test_options(sock):
    assert sock.getsockopt(SOL_SOCKET, socket.SO_TYPE) == SOCK_DGRAM
    raw = sock.getsockopt(SOL_SOCKET, socket.SO_TYPE, 4)
    assert raw == SOCK_DGRAM.to_bytes(4, sys.byteorder)
    assert sock.getsockopt(SOL_SOCKET, socket.SO_TYPE, 1024) == raw
    for value in (1, True, Index(1), b"\1\0\0\0", bytearray(b"\1\0\0\0"), memoryview((1).to_bytes(8, "little"))):
        sock.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, 0)
        sock.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, value)
        assert sock.getsockopt(SOL_SOCKET, socket.SO_REUSEADDR) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "number"),
    [
        ((SOL_SOCKET, 9999), OSError, errno.ENOPROTOOPT),
        ((9999, 1), OSError, errno.EOPNOTSUPP),
        ((SOL_SOCKET, socket.SO_TYPE, -1), OSError, None),
        ((SOL_SOCKET, socket.SO_TYPE, 1025), OSError, None),
        (("1", 1), TypeError, None),
        ((SOL_SOCKET, 3.0), TypeError, None),
        ((SOL_SOCKET,), TypeError, None),
        ((SOL_SOCKET, 2**31), OverflowError, None),
    ],
)
def test_bad_getsockopt(sock, arguments, error, number):
    with pytest.raises(error) as caught:
        sock.getsockopt(*arguments)
    assert getattr(caught.value, "errno", None) == number


@pytest.mark.parametrize(
    ("arguments", "error", "number"),
    [
        ((SOL_SOCKET, 9999, 1), OSError, errno.ENOPROTOOPT),
        ((SOL_SOCKET, socket.SO_REUSEADDR, b"\1"), OSError, errno.EINVAL),
        ((SOL_SOCKET, socket.SO_REUSEADDR, None, 4), OSError, errno.EFAULT),
        ((SOL_SOCKET, socket.SO_REUSEADDR, "1"), TypeError, None),
        ((SOL_SOCKET, socket.SO_REUSEADDR, 1.0), TypeError, None),
        ((SOL_SOCKET, socket.SO_REUSEADDR, None), TypeError, None),
        ((SOL_SOCKET, socket.SO_REUSEADDR, 1, 4), TypeError, None),
        ((SOL_SOCKET, socket.SO_REUSEADDR), TypeError, None),
        ((1.0, socket.SO_REUSEADDR, 1), TypeError, None),
    ],
)
def test_bad_setsockopt(sock, arguments, error, number):
    with pytest.raises(error) as caught:
        sock.setsockopt(*arguments)
    assert getattr(caught.value, "errno", None) == number


# --- addresses ----------------------------------------------------------------------------------


def test_bind_and_connect(cls, family):
    with cls(family.family, SOCK_DGRAM) as a, cls(family.family, SOCK_DGRAM) as b:
        assert a.bind(family.address()) is None
        assert a.getsockname()[0] == family.host
        assert a.getsockname()[1] > 0
        assert b.connect(a.getsockname()) is None
        assert b.getpeername() == a.getsockname()
        assert b.connect_ex(a.getsockname()[:2]) == 0
        with cls(family.family, SOCK_DGRAM) as c, pytest.raises(OSError, match="already in use") as caught:
            c.bind(a.getsockname())
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("method", "address", "number"),
    [
        ("bind", ("192.0.2.1", 0), errno.EADDRNOTAVAIL),
        ("connect", ("255.255.255.255", 9), errno.EACCES),
        ("getpeername", None, errno.ENOTCONN),
        ("shutdown", 9, errno.EINVAL),
        ("shutdown", 0, errno.ENOTCONN),
    ],
)
def test_failing_calls(sock, method, address, number):
    with pytest.raises(OSError) as caught:  # noqa: PT011
        getattr(sock, method)(*([] if address is None else [address]))
    assert caught.value.errno == number
    if method == "connect":
        assert sock.connect_ex(address) == number


@pytest.mark.parametrize("method", ["bind", "connect", "connect_ex"])
@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        ("127.0.0.1", TypeError),
        (("127.0.0.1",), TypeError),
        (("127.0.0.1", "9"), TypeError),
        (("127.0.0.1", -1), OverflowError),
        (("127.0.0.1", 65536), OverflowError),
        (("no.invalid", 1), socket.gaierror),
        (("a\0b", 1), TypeError),
    ],
)
def test_bad_addresses(sock, method, address, error):
    with pytest.raises(error):
        getattr(sock, method)(address)


def test_connect_ex_of_unix(cls):
    with cls(AF_UNIX, SOCK_DGRAM) as sock:
        assert sock.connect_ex("/nonexistent/socket") == errno.ENOENT
        with pytest.raises(FileNotFoundError):
            sock.connect("/nonexistent/socket")
        assert sock.getsockname() == ""


# --- arguments of the data calls ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "error", "text"),
    [
        *[(name, (-1,), ValueError, "negative buffer") for name in ("recv", "recvfrom", "recvmsg")],
        *[(name, (bytearray(3), -1), ValueError, "negative buffersize") for name in ("recv_into", "recvfrom_into")],
        *[(name, (bytearray(3), 4), ValueError, "buffer") for name in ("recv_into", "recvfrom_into")],
        *[(name, (b"read-only",), TypeError, "") for name in ("recv_into", "recvfrom_into")],
        *[(name, ("text",), TypeError, "") for name in ("recv_into", "recvfrom_into", "recv", "recvfrom", "recvmsg")],
        *[("recvmsg_into", (bad,), TypeError, "") for bad in ("text", None, [None], [b"read-only"])],
        *[(name, (1, 2**31), OverflowError, "") for name in ("recv", "recvfrom")],
        *[(name, (1, 1.5), TypeError, "") for name in ("recv", "recvfrom")],
        ("recvmsg", (1, -1), ValueError, "invalid ancillary data buffer length"),
        ("recvmsg", (1, 2**31), ValueError, "invalid ancillary data buffer length"),
        *[(name, (bad,), TypeError, "") for name in ("send", "sendall", "sendmsg") for bad in ("text", None, 5)],
        ("sendto", (b"x",), TypeError, ""),
        ("sendto", (b"x", None), TypeError, "address must be tuple"),
        ("sendto", (b"x", "0", ("127.0.0.1", 9)), TypeError, ""),
        ("sendto", (b"x", 0, ("127.0.0.1", 9), 1), TypeError, ""),
        ("sendto", ("text", ("127.0.0.1", 9)), TypeError, "bytes-like"),
        ("sendto", (b"x", ("127.0.0.1", 70000)), OverflowError, "port must be 0-65535"),
        ("sendmsg", ([b"x"], [(1, 2)]), TypeError, ""),
        ("sendmsg", ([b"x"], [(1, "2", b"")]), TypeError, ""),
        ("sendmsg", ([b"x"], [(1, 2, "text")]), TypeError, ""),
        ("shutdown", ("2",), TypeError, ""),
        *[(name, (), TypeError, "argument") for name in ("recv", "recv_into", "send", "sendto", "sendmsg", "bind")],
    ],
)
def test_bad_arguments(sock, method, arguments, error, text):
    sock.setblocking(False)
    with pytest.raises(error) as caught:
        getattr(sock, method)(*arguments)
    assert text in str(caught.value)


def test_keywords(sock):
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv_into(buffer=bytearray(1), nbytes=1, flags=0)
    with pytest.raises(BlockingIOError):
        sock.recvfrom_into(buffer=bytearray(1), nbytes=1, flags=0)
    with pytest.raises(TypeError):
        sock.sendto(b"x", address=("127.0.0.1", 9))


def test_no_room_is_no_receive(sock):
    # "If 0 bytes were requested, do nothing": a datagram stays in the queue, and none is waited for.
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    assert sock.recv(0) == b""
    assert sock.recv_into(bytearray()) == 0
    sock.sendto(b"stays", sock.getsockname())
    assert (sock.recv(0), sock.recv_into(bytearray()), sock.recv(9)) == (b"", 0, b"stays")


SENDALL = """
import signal, socket, sys, fastsock
make = eval(sys.argv[1])
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
a, b = (make(fileno=end.detach()) for end in socket.socketpair())
for timeout in (None, 30.0):
    a.settimeout(timeout)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        a.sendall(bytes(16 << 20))          # nobody reads
    except Alarm:
        print("stopped")
a.close(); b.close()
"""


@pytest.mark.parametrize("name", ["socket.socket", "fastsock.Socket"])
def test_sendall_of_a_stream_can_be_interrupted(isolated, name):
    # The interrupted call returns a short count, and no EINTR tells of the signal.
    assert isolated(SENDALL, name, timeout=20).split() == ["stopped"] * 2
