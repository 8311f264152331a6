"""A socket's life through the standard library's class and ours: construction, descriptor, end."""

import errno
import os
import pickle
import socket
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET

import pytest

# --- construction -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, (AF_INET, SOCK_STREAM, 0)),
        ({"type": SOCK_DGRAM}, (AF_INET, SOCK_DGRAM, 0)),
        ({"family": AF_INET6, "type": SOCK_DGRAM, "proto": 17}, (AF_INET6, SOCK_DGRAM, 17)),
        ({"family": AF_UNIX, "type": socket.SOCK_SEQPACKET}, (AF_UNIX, socket.SOCK_SEQPACKET, 0)),
        ({"type": SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC}, (AF_INET, SOCK_DGRAM, 0)),
        ({"family": -1, "type": -1, "proto": -1, "fileno": None}, (AF_INET, SOCK_STREAM, 0)),
    ],
)
def test_constructor(cls, arguments, kind):
    with cls(**arguments) as sock:
        assert (sock.family, sock.type, sock.proto) == kind
        assert isinstance(sock.family, socket.AddressFamily)
        assert isinstance(sock.type, socket.SocketKind)
        assert sock.getsockopt(SOL_SOCKET, socket.SO_TYPE) == kind[1]
        assert os.get_inheritable(sock.fileno()) is sock.get_inheritable() is False
        nonblocking = bool(arguments.get("type", 0) & socket.SOCK_NONBLOCK and arguments["type"] != -1)
        assert sock.gettimeout() == (0.0 if nonblocking else None)
        assert os.get_blocking(sock.fileno()) is sock.getblocking() is not nonblocking


@pytest.mark.parametrize(
    ("arguments", "error", "number"),
    [
        ((99,), OSError, errno.EAFNOSUPPORT),
        ((AF_INET, 99), OSError, errno.EINVAL),
        ((AF_INET, SOCK_DGRAM, 999), OSError, errno.EINVAL),
        ((AF_INET, SOCK_DGRAM, 0, -1), ValueError, None),
        ((AF_INET, SOCK_DGRAM, 0, 99999), OSError, errno.EBADF),
        (("inet",), TypeError, None),
        ((None,), TypeError, None),
        ((2.0,), TypeError, None),
        ((AF_INET, 2.0), TypeError, None),
        ((AF_INET, SOCK_DGRAM, 0, "3"), TypeError, None),
        ((AF_INET, SOCK_DGRAM, 0, 3.0), TypeError, None),
        ((AF_INET, 2**40), OverflowError, None),
        ((1, 2, 3, 4, 5), TypeError, None),
    ],
)
def test_constructor_refuses(cls, arguments, error, number):
    with pytest.raises(error) as caught:
        cls(*arguments)
    if number == errno.EINVAL:  # some emulators have another opinion
        with pytest.raises(OSError) as theirs:  # noqa: PT011
            socket.socket(*arguments)
        number = theirs.value.errno
    assert getattr(caught.value, "errno", None) == number


def test_fileno_of_no_socket(cls, tmp_path):
    with open(tmp_path / "file", "w") as file, pytest.raises(OSError, match="non-socket") as caught:
        cls(fileno=file.fileno())
    assert caught.value.errno == errno.ENOTSOCK


@pytest.mark.parametrize("family", [AF_INET, AF_INET6, AF_UNIX])
def test_fileno_takes_over_and_asks_the_kernel(cls, family):
    fd = socket.socket(family, SOCK_DGRAM).detach()
    with cls(fileno=fd) as sock:
        assert sock.fileno() == fd
        assert (sock.family, sock.type) == (family, SOCK_DGRAM)
        assert sock.proto == (0 if family == AF_UNIX else socket.IPPROTO_UDP)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_default_timeout(cls):
    socket.setdefaulttimeout(2.5)
    try:
        with cls() as sock:
            assert sock.gettimeout() == 2.5
            assert not os.get_blocking(sock.fileno())
        with cls(type=SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            assert sock.gettimeout() == 0
    finally:
        socket.setdefaulttimeout(None)


def test_subclass(cls):
    class Child(cls):
        def __init__(self, *arguments, extra=None, **named):
            super().__init__(*arguments, **named)
            self.extra = extra

    with Child(AF_INET, SOCK_DGRAM, extra=5) as sock, sock.dup() as copy:
        assert (sock.extra, type(copy)) == (5, Child)
        assert "Child" in repr(sock)


# --- the descriptor's life -----------------------------------------------------------------------


def test_detach(cls):
    sock = cls(AF_INET, SOCK_DGRAM)
    fd = sock.fileno()
    assert sock.detach() == fd
    assert sock.fileno() == sock.detach() == -1
    sock.close()
    os.close(fd)  # is still open


def test_closed(cls):
    sock = cls(AF_INET, SOCK_DGRAM)
    assert sock.close() is sock.close() is None
    assert sock.fileno() == -1
    assert "[closed]" in repr(sock)
    assert "fd=-1" in repr(sock)
    calls = [
        lambda: sock.bind(("127.0.0.1", 0)),
        lambda: sock.connect(("127.0.0.1", 9)),
        lambda: sock.recv(1),
        lambda: sock.recvfrom(1),
        lambda: sock.recv_into(bytearray(1)),
        lambda: sock.recvmsg(1),
        lambda: sock.send(b""),
        lambda: sock.sendto(b"", ("127.0.0.1", 9)),
        lambda: sock.sendmsg([b""]),
        lambda: sock.shutdown(0),
        sock.getsockname,
        sock.getpeername,
        sock.dup,
        sock.get_inheritable,
        lambda: sock.settimeout(1),
        lambda: sock.getsockopt(1, 3),
        lambda: sock.setsockopt(1, 2, 1),
        lambda: sock.set_inheritable(True),
    ]
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    assert sock.connect_ex(("127.0.0.1", 9)) == errno.EBADF


def test_context_manager(cls):
    with pytest.raises(ZeroDivisionError), cls(AF_INET, SOCK_DGRAM) as sock:
        raise ZeroDivisionError
    assert sock.fileno() == -1


def test_inheritable(sock):
    assert sock.get_inheritable() is False
    sock.set_inheritable(True)
    assert sock.get_inheritable() is os.get_inheritable(sock.fileno()) is True
    with sock.dup() as copy:
        assert copy.get_inheritable() is False
        assert copy.fileno() != sock.fileno()


def test_unclosed_warns_and_closes(cls):
    sock = cls(AF_INET, SOCK_DGRAM)
    fd = sock.fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed <.*ocket fd={fd}, family="):
        del sock
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_unclosed_while_an_exception_is_raised(cls):
    with pytest.warns(ResourceWarning, match="unclosed"), pytest.raises(TypeError, match="must be tuple"):
        cls(AF_INET, SOCK_DGRAM).bind("text")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_not_pickled(sock, protocol):
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(sock, protocol)


def test_repr(sock):
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    name = sock.getsockname()
    parts = f"fd={sock.fileno()}, family={sock.family}, type={sock.type}, proto=0, laddr={name}, raddr={name}>"
    assert repr(sock).endswith(parts)


@pytest.mark.parametrize("name", ["family", "type", "proto", "timeout", "no_such_attribute"])
def test_attributes_are_read_only(sock, name):
    with pytest.raises(AttributeError):
        setattr(sock, name, 1)


AUDIT = """
import sys, socket, fastsock
make = eval(sys.argv[1])
events = []
def hook(name, args):
    if name.startswith("socket."):
        events.append((name, *args[1:]))
    if name == "socket.__new__" and refuse:
        raise PermissionError("refused by the hook")
refuse = False
sys.addaudithook(hook)
with make(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    name = sock.getsockname()
    sock.sendto(b"x", name); sock.sendmsg([b"x"], [], 0, name)
    sock.connect(name); sock.connect_ex(name); sock.sendmsg([b"x"])
    sock.recv(9)
for event in events:
    print(str(event).replace(str(name[1]), "PORT"))
events.clear()
fd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
make(fileno=fd).close()
print(events[-1])
refuse = True
for _ in range(3):
    try:
        make(socket.AF_INET, socket.SOCK_DGRAM)
    except PermissionError as error:
        print(error)
"""


def test_audit_events(isolated):
    theirs, ours = (isolated(AUDIT, name).splitlines() for name in ("socket.socket", "fastsock.Socket"))
    assert ours == theirs
    assert len(ours) == 11
