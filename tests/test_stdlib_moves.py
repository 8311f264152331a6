"""`from_stdlib` and `to_stdlib`: one descriptor, moved between the standard library's class and ours."""

import errno
import socket
import ssl

import pytest
from conftest import V4, needs

import fastsock
from fastsock._constants import SOL_UDP, UDP_GRO


class Child(fastsock.Socket):
    pass


class StandardChild(socket.socket):
    pass


@pytest.mark.parametrize("timeout", [None, 0, 2.5])
@pytest.mark.parametrize("cls", [fastsock.Socket, Child])
@pytest.mark.parametrize("standard", [socket.socket, StandardChild])
def test_there_and_back(cls, standard, timeout):
    sock = standard(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.settimeout(timeout)
    sock.set_inheritable(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(V4.address())
    fd, name = sock.fileno(), sock.getsockname()
    with cls.from_stdlib(sock) as ours:
        assert sock.fileno() == -1
        sock.close()  # has nothing left to close
        assert (type(ours), ours.fileno(), ours.getsockname(), ours.gettimeout()) == (cls, fd, name, timeout)
        assert (ours.family, ours.type, ours.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        assert ours.get_inheritable()
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with ours.to_stdlib() as back:
            assert ours.fileno() == -1
            assert "[closed]" in repr(ours)
            ours.close()
            assert (type(back), back.fileno(), back.getsockname(), back.gettimeout()) == (
                socket.socket,
                fd,
                name,
                timeout,
            )
            assert back.get_inheritable()
            assert back.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("timeout", [None, 0, 2.5])
def test_the_timeout_moves_whatever_the_default_is(isolated, timeout):
    isolated(f"""
import os, socket
import fastsock
sock = socket.socket()
sock.settimeout({timeout})
socket.setdefaulttimeout(9)
ours = fastsock.Socket.from_stdlib(sock)
assert ours.gettimeout() == {timeout} and os.get_blocking(ours.fileno()) is {timeout is None}
with ours.to_stdlib() as sock:
    assert sock.gettimeout() == {timeout} and os.get_blocking(sock.fileno()) is {timeout is None}
""")


def test_closed():
    sock = socket.socket()
    sock.close()
    ours = fastsock.Socket()
    ours.close()
    for move in (lambda: fastsock.Socket.from_stdlib(sock), ours.to_stdlib):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            move()
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("wrong", [None, 3, "socket", object()])
def test_what_is_no_socket(wrong):
    with pytest.raises(TypeError, match="from_stdlib"):
        fastsock.Socket.from_stdlib(wrong)


def test_ours_is_no_socket_of_theirs():
    with fastsock.Socket() as sock:
        with pytest.raises(TypeError, match="not Socket"):
            fastsock.Socket.from_stdlib(sock)
        assert sock.fileno() >= 0


def test_tls_cannot_be_moved():
    near, far = socket.socketpair()
    context = ssl.create_default_context()
    with far, context.wrap_socket(near, server_hostname="x", do_handshake_on_connect=False) as secured:
        fd = secured.fileno()
        with pytest.raises(TypeError, match="not SSLSocket"):
            fastsock.Socket.from_stdlib(secured)
        assert secured.fileno() == fd


def test_a_move_that_raises_leaves_the_socket_as_it_was():
    class Broken(fastsock.Socket):
        def settimeout(self, timeout):
            raise ZeroDivisionError

    near, far = socket.socketpair()
    with near, far:
        near.settimeout(3)
        with pytest.raises(ZeroDivisionError):
            Broken.from_stdlib(near)
        assert near.gettimeout() == 3
        far.sendall(b"still here")
        assert near.recv(10) == b"still here"


@needs("gro")
def test_a_moved_descriptor_tells_that_it_joins_datagrams():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    sock.bind(V4.address())
    with fastsock.Socket.from_stdlib(sock) as ours:
        assert ours.gro
        with pytest.raises(OSError, match="joined"):
            ours.recv(10)
        with ours.to_stdlib() as back:
            assert back.getsockopt(SOL_UDP, UDP_GRO)
        assert not isinstance(back, fastsock.Socket)


@needs("zerocopy")
def test_pending_zero_copy_sends_stay(wait_for):
    with fastsock.bind_udp(V4.address()) as receiver:
        sender = fastsock.connect_udp(receiver.getsockname())
        payload = bytearray(20_000)
        sender.send_zerocopy(payload)
        if sender.zerocopy_pending:
            with pytest.raises(BufferError, match="recv_errors"):
                sender.to_stdlib()
        assert sender.fileno() >= 0

        def is_done():
            sender.recv_errors()
            return not sender.zerocopy_pending

        wait_for(is_done)
        sender.to_stdlib().close()


def test_files_of_a_moved_socket_are_cut_off():
    # As after detach(): they belong to the socket that gave its descriptor away.
    near, far = socket.socketpair()
    file = near.makefile("rb", 0)
    with far, fastsock.Socket.from_stdlib(near) as ours:
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.read(1)
        file.close()
        far.sendall(b"x")
        assert ours.recv(1) == b"x"
        file = ours.makefile("rb", 0)
        with ours.to_stdlib() as back:
            with pytest.raises(OSError, match="Bad file descriptor"):
                file.read(1)
            file.close()
            far.sendall(b"y")
            assert back.recv(1) == b"y"
