"""Subclasses that override methods: the class's own calls do not come back to them."""

import pickle
import socket

import pytest

import fastsock


def make(cls, **methods):
    return type("Sub", (cls,), methods)


def test_a_default_timeout_is_set_without_the_subclass(cls):
    """The real PySocks: its settimeout needs what its __init__ has not set yet."""
    sub = make(cls, settimeout=lambda self, timeout: pytest.fail("called by the constructor"))
    socket.setdefaulttimeout(5)
    try:
        with sub() as sock:
            assert sock.gettimeout() == 5
    finally:
        socket.setdefaulttimeout(None)


def test_methods_do_not_call_each_other(cls):
    def recvmsg_into(self, buffers, *arguments):
        data, *rest = self.recvmsg(len(buffers[0]), *arguments)
        buffers[0][: len(data)] = data
        return len(data), *rest

    sub = make(
        cls,
        settimeout=lambda self, timeout: self.setblocking(timeout is None),
        gettimeout=lambda self: self.timeout,
        recvmsg_into=recvmsg_into,
    )
    near, far = socket.socketpair()
    with far, sub(fileno=near.detach()) as sock:
        sock.settimeout(None)
        assert sock.gettimeout() is None
        sock.settimeout(0)
        assert sock.gettimeout() == 0
        far.sendall(b"hello")
        buffer = bytearray(10)
        assert sock.recvmsg_into([buffer])[0] == 5
        assert buffer[:5] == b"hello"


def test_an_accept_of_its_own(cls):
    def accept(self):
        fd, address = self._accept()
        return type(self)(self.family, self.type, self.proto, fileno=fd), address

    sub = make(cls, accept=accept)
    with sub() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname()) as client:
            accepted, address = server.accept()
            with accepted:
                assert type(accepted) is sub
                assert address == client.getsockname()


def test_a_real_close_of_its_own(cls):
    closed = []

    def real_close(self):
        closed.append(self)
        cls._real_close(self)

    sock = make(cls, _real_close=real_close)()
    with sock.makefile("rb"):
        sock.close()
        assert not closed
    assert closed == [sock]
    assert sock.fileno() == -1


def test_a_subclass_may_be_pickled_where_it_says_how(cls):
    sub = make(cls, __getstate__=lambda self: {"name": "x"}, __setstate__=lambda self, state: None)
    with sub() as sock:
        assert sock.__reduce_ex__(2)[2] == {"name": "x"}
    with cls() as sock, pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(sock)


def test_closed_can_be_set(cls):
    sock = cls()
    sock._closed = True
    assert "[closed]" in repr(sock)
    sock.close()


def test_a_socket_that_is_opened_again_has_another_family():
    sock = fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM)
    address = ("127.0.0.1", 9)
    sock.sendto(b"1", address)
    sock.close()
    sock.__init__(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock, pytest.raises(socket.gaierror):
        sock.sendto(b"2", address)
