"""`fastsock.socket` beside the standard library's module."""

import errno
import inspect
import socket

import pytest
from conftest import V4, needs_ipv6

import fastsock
from fastsock import socket as ours

FUNCTIONS = {name for name in socket.__all__ if inspect.isfunction(getattr(socket, name))}
"""Written in Python: they run over the names of our module."""


def test_all():
    assert {"fromfd", "socketpair", "create_connection", "create_server", "send_fds"} <= FUNCTIONS
    assert ours.__all__ == socket.__all__
    other = {name for name in socket.__all__ if getattr(ours, name) is not getattr(socket, name)}
    assert other == FUNCTIONS | {"socket", "SocketType"}


def test_what_a_program_puts_into_the_module_is_used(monkeypatch):
    class Own(fastsock.Socket):
        pass

    asked = []

    def getaddrinfo(*arguments, **options):
        asked.append(arguments[0])
        return socket.getaddrinfo("127.0.0.1", *arguments[1:], **options)

    monkeypatch.setattr(ours, "socket", Own)
    monkeypatch.setattr(ours, "getaddrinfo", getaddrinfo)
    server = ours.create_server(("127.0.0.1", 0))
    with server, ours.create_connection(("pinned.invalid", server.getsockname()[1])) as client:
        assert type(server) is type(client) is Own
        assert asked == ["pinned.invalid"]
    one, two = ours.socketpair()
    with one, two, ours.fromfd(one.fileno(), one.family, one.type) as other:
        assert type(one) is type(other) is Own


def test_what_a_program_puts_into_the_standard_module_is_not(monkeypatch):
    """As with the standard library's class, whose calls resolve names in C."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with fastsock.Socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("localhost", 0))
        assert sock.sendto(b"", ("localhost", sock.getsockname()[1])) == 0


def test_names_beside_all():
    for name in ("AddressFamily", "SocketKind", "MsgFlag", "AddressInfo", "SocketIO", "EBADF", "_socket"):
        assert getattr(ours, name) is getattr(socket, name)
    from fastsock.socket import AddressInfo

    assert AddressInfo is socket.AddressInfo
    for name in dir(socket):
        assert hasattr(ours, name), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ours.no_such_name


def test_dir_lists_every_name():
    assert set(dir(socket)) <= set(dir(ours))


def test_star_import():
    names = {}
    exec("from fastsock.socket import *", names)
    assert set(socket.__all__) <= set(names)
    assert names["socket"] is fastsock.Socket is names["SocketType"]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_signatures(name):
    assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(socket, name))


def test_every_method_of_the_class_is_there():
    # sendmsg_afalg speaks to the kernel's crypto alone: to_stdlib() is for that.
    assert set(dir(socket.socket)) - set(dir(fastsock.Socket)) == {"sendmsg_afalg"}


@pytest.fixture(params=[socket, ours], ids=["socket", "fastsock"])
def module(request):
    return request.param


@pytest.fixture
def server(module):
    with module.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(10)
        yield made


def test_create_connection(module, server):
    with module.create_connection(server.getsockname(), 5) as sock, server.accept()[0] as far:
        assert type(sock) is type(far) is module.socket
        assert sock.gettimeout() == 5
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.sendall(b"x")
        assert far.recv(1) == b"x"


def test_create_connection_from_an_address(module, server):
    with module.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.2", 0))
        source = reserved.getsockname()
    with module.create_connection(server.getsockname(), source_address=source) as sock:
        assert sock.getsockname() == source
        assert sock.gettimeout() is None


def test_create_connection_refused(module, server):
    address = server.getsockname()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        module.create_connection(address)
    with pytest.raises(ExceptionGroup) as caught:
        module.create_connection(address, all_errors=True)
    assert [type(error) for error in caught.value.exceptions] == [ConnectionRefusedError]
    with pytest.raises(TypeError):
        module.create_connection(address, None, None, True)


def test_create_server(module):
    with module.create_server(("127.0.0.1", 0), backlog=3, reuse_port=True) as first:
        assert type(first) is module.socket
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
        with module.create_server(first.getsockname(), reuse_port=True) as second:
            assert second.getsockname() == first.getsockname()
        with pytest.raises(OSError, match=r"attempt to bind on address|Address already in use") as caught:
            module.create_server(first.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
        assert str(first.getsockname()) in str(caught.value)
    with pytest.raises(ValueError, match="dualstack_ipv6"):
        module.create_server(("127.0.0.1", 0), dualstack_ipv6=True)


@needs_ipv6
def test_dual_stack_server(module):
    assert module.has_dualstack_ipv6()
    with module.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert server.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        server.settimeout(10)
        with module.create_connection(("127.0.0.1", server.getsockname()[1])):
            far, address = server.accept()
            far.close()
            assert address[0] == "::ffff:127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((), (socket.AF_UNIX, socket.SOCK_STREAM)),
        ((None, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_DGRAM)),
        ((socket.AF_UNIX, socket.SOCK_SEQPACKET), (socket.AF_UNIX, socket.SOCK_SEQPACKET)),
    ],
)
def test_socketpair(module, arguments, kind):
    near, far = module.socketpair(*arguments)
    with near, far:
        for end in (near, far):
            assert type(end) is module.socket
            assert (end.family, end.type, end.proto) == (*kind, 0)
            assert not end.get_inheritable()
        near.sendall(b"x")
        assert far.recv(10) == b"x"


def test_socketpair_of_no_such_family(module):
    with pytest.raises(OSError, match="not supported") as caught:
        module.socketpair(socket.AF_INET)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_fromfd(module):
    with module.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(V4.address())
        with module.fromfd(sock.fileno(), sock.family, sock.type) as copy:
            assert type(copy) is module.socket
            assert copy.fileno() != sock.fileno()
            assert copy.getsockname() == sock.getsockname()
            assert not copy.get_inheritable()
    with pytest.raises(OSError, match="Bad file descriptor"):
        module.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_DGRAM)


def test_default_timeout(module, server):
    module.setdefaulttimeout(3)
    try:
        assert socket.getdefaulttimeout() == ours.getdefaulttimeout() == 3
        near, far = module.socketpair()
        with (
            near,
            far,
            module.create_connection(server.getsockname()) as sock,
            module.create_server(("127.0.0.1", 0)) as listener,
            module.fromfd(near.fileno(), near.family, near.type) as copy,
        ):
            assert [made.gettimeout() for made in (near, far, sock, listener, copy)] == [3] * 5
    finally:
        module.setdefaulttimeout(None)


PATCHED = """
import socket
import fastsock
theirs = socket.socket
socket.socket = fastsock.Socket
import ssl                                  # after it: its class is then made of ours
from fastsock import socket as ours
for module in (socket, ours):
    with module.create_server(("127.0.0.1", 0)) as server, module.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far, far.dup() as copy, near.makefile("rwb") as file:
            file.write(b"line\\n")
            file.flush()
            assert far.recv(10) == b"line\\n"
            assert {type(sock) for sock in (server, near, far, copy)} == {fastsock.Socket}
    for end in module.socketpair():
        with end, module.fromfd(end.fileno(), end.family, end.type) as copy:
            assert type(end) is type(copy) is fastsock.Socket
            print(repr(end)[:15])
sock = fastsock.Socket()
std = sock.to_stdlib()
assert type(std) is theirs and sock.fileno() == -1
back = fastsock.Socket.from_stdlib(std)
assert type(back) is fastsock.Socket and std.fileno() == -1
try:
    fastsock.Socket.from_stdlib(back)
except TypeError as error:
    print(error)
back.close()
with fastsock.bind_udp(("127.0.0.1", 0)) as udp:
    assert type(udp) is fastsock.Socket
import asyncio
async def main():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"echo\\n")
        print(await reader.read())
        writer.close()
        await writer.wait_closed()
asyncio.run(main())
"""


def test_a_program_may_put_our_class_in_the_place_of_theirs(isolated):
    assert isolated(PATCHED).splitlines() == [
        *["<fastsock.Socke"] * 4,
        "from_stdlib() takes a socket.socket, not Socket",
        "b'echo\\n'",
    ]
