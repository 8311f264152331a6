"""Making an endpoint: addresses, families, options, arguments that exclude each other.

Much of it is what test_base_events.py and test_events.py of CPython ask of the loop's own, here of real sockets.
"""

import asyncio
import errno
import os
import socket

import pytest
from conftest import V4, needs_ipv6, needs_localhost, needs_multicast
from endpoints import (
    LOCAL,
    Recorder,
    passes,
    until,
)

import fastsock
from fastsock.aio import DatagramTransport


def option(protocol, level, name):
    return protocol.transport.get_extra_info("socket").getsockopt(level, name)


# --- addresses -----------------------------------------------------------------------------------------


def test_what_the_caller_gets(either):
    async def main(loop):
        transport, protocol = await either.create(Recorder, local_addr=LOCAL)
        assert protocol.transport is transport
        assert protocol.made == 1
        assert isinstance(transport, asyncio.DatagramTransport) or not either.ours  # not so before 3.12
        assert transport.get_protocol() is protocol
        assert not transport.is_closing()
        assert transport.is_reading()
        transport.close()
        assert transport.is_closing()
        await passes()
        assert protocol.lost == [None]
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            transport.get_extra_info("socket").getsockname()

    either.run(main)


def test_our_transport_is_named_where_it_is_imported_from(endpoints):
    async def main(loop):
        near = await endpoints.open()
        assert type(near.transport) is DatagramTransport
        assert f"{DatagramTransport.__module__}.{DatagramTransport.__qualname__}" == "fastsock.aio.DatagramTransport"

    endpoints.run(main)


def test_extra_info(either, far):
    async def main(loop):
        near = await either.open(remote_addr=far.getsockname())
        sock = near.transport.get_extra_info("socket")
        assert near.transport.get_extra_info("sockname") == sock.getsockname()
        assert near.transport.get_extra_info("peername") == sock.getpeername() == far.getsockname()
        assert near.transport.get_extra_info("nothing") is None
        assert near.transport.get_extra_info("nothing", 5) == 5
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_DGRAM)
        assert sock.gettimeout() == 0
        unconnected = await either.open()
        assert unconnected.transport.get_extra_info("peername") is None
        assert unconnected.transport.get_extra_info("peername", 5) in (None, 5)

    either.run(main)


def test_repr(endpoints, far):
    async def main(loop):
        near = await endpoints.open()
        fd = near.transport.get_extra_info("socket").fileno()
        assert repr(near.transport) == f"<fastsock.aio.DatagramTransport open fd={fd} queued=0>"
        near.transport.sendto(b"x", far.getsockname())
        assert "queued=9" in repr(near.transport)
        near.transport.close()
        assert " closing " in repr(near.transport)
        await passes()
        assert " closed " in repr(near.transport)

    endpoints.run(main)


@needs_ipv6
def test_an_ipv6_endpoint(either):
    async def main(loop):
        server = await either.open(local_addr=("::1", 0))
        client = await either.open(local_addr=None, remote_addr=server.address[:2])
        assert client.transport.get_extra_info("peername") == server.address
        client.transport.sendto(b"x")
        await until(lambda: server.received)
        server.transport.sendto(b"y", server.received[0][1])
        await until(lambda: client.received)
        assert client.received == [(b"y", server.address)]

    either.run(main)


@needs_ipv6
def test_a_scope_in_the_address(endpoints):
    async def main(loop):
        near = await endpoints.open(local_addr=("::1", 0, 0, 0))
        assert near.address[0] == "::1"

    endpoints.run(main)


@needs_ipv6
@pytest.mark.parametrize("given", [None, True, False])
def test_dual_stack(endpoints, given):
    """By default as asyncio's own: what the kernel has, which is both."""

    async def main(loop):
        near = await endpoints.open(local_addr=("::", 0), **({} if given is None else {"dualstack_ipv6": given}))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as plain:
            default = plain.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        assert option(near, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == (default if given is None else not given)
        if given:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
                far.sendto(b"x", ("127.0.0.1", near.address[1]))
                await until(lambda: near.received)

    endpoints.run(main)


@needs_localhost
@pytest.mark.parametrize("which", ["local_addr", "remote_addr"])
def test_a_host_name(either, which):
    async def main(loop):
        near = await either.open(
            **{"local_addr": None, which: ("localhost", 9 if which == "remote_addr" else 0)}, family=V4.family
        )
        info = "peername" if which == "remote_addr" else "sockname"
        assert near.transport.get_extra_info(info)[0] == "127.0.0.1"

    either.run(main)


def test_a_name_does_not_block_the_loop(endpoints, monkeypatch):
    """The loop's own resolver is asked, which needs a thread; of an address in digits nobody is asked."""
    asked, flags_here = [], []
    getaddrinfo = socket.getaddrinfo

    def resolve_here(host, port, family=0, type=0, proto=0, flags=0):
        flags_here.append(flags)
        return getaddrinfo(host, port, family, type, proto, flags)

    async def main(loop):
        answer = loop.create_future()
        monkeypatch.setattr(socket, "getaddrinfo", resolve_here)

        class Loop:
            """The running loop, but for its resolver."""

            def __getattr__(self, name):
                return getattr(loop, name)

            async def getaddrinfo(self, host, port, **options):
                asked.append((host, port, options))
                return await answer

        monkeypatch.setattr("asyncio.get_running_loop", Loop)
        digits = await endpoints.open()
        assert asked == []
        making = loop.create_task(endpoints.open(local_addr=("name.invalid", 5), proto=17))
        await until(lambda: asked)
        assert asked == [("name.invalid", 5, {"family": 0, "type": socket.SOCK_DGRAM, "proto": 17, "flags": 0})]
        assert not making.done()
        answer.set_result(getaddrinfo("127.0.0.1", 0, type=socket.SOCK_DGRAM))
        assert (await making).address[0] == digits.address[0] == "127.0.0.1"
        assert all(flags & socket.AI_NUMERICHOST for flags in flags_here)

    endpoints.run(main)


def test_an_unresolvable_name(either):
    async def main(loop):
        with pytest.raises(socket.gaierror):
            await either.open(local_addr=("no.such.host.invalid", 0))

    either.run(main)


def test_no_common_family(either):
    async def main(loop):
        with pytest.raises(ValueError, match="can not get address information"):
            await either.open(local_addr=("127.0.0.1", 0), remote_addr=("::1", 9))

    either.run(main)


@pytest.mark.parametrize("port", ["9", "discard"])
def test_a_port_as_text(either, port):
    async def main(loop):
        near = await either.open(local_addr=None, remote_addr=("127.0.0.1", port))
        assert near.transport.get_extra_info("peername") == ("127.0.0.1", 9)

    try:
        socket.getservbyname("discard", "udp")
    except OSError:
        if not port.isdigit():
            pytest.skip("no names of services here")
    either.run(main)


@pytest.mark.parametrize("address", ["127.0.0.1", ["127.0.0.1", 0], ("127.0.0.1",), ("127.0.0.1", 0, 0, 0, 0), 5])
@pytest.mark.parametrize("which", ["local_addr", "remote_addr"])
def test_what_is_no_address(either, which, address):
    async def main(loop):
        with pytest.raises(TypeError, match="2-tuple is expected"):
            await either.open(**{"local_addr": None, which: address})

    either.run(main)


@pytest.mark.parametrize("options", [{}, {"proto": 17}, {"allow_broadcast": True}, {"reuse_port": True}])
def test_no_address_at_all(either, options):
    async def main(loop):
        with pytest.raises(ValueError, match="unexpected address family"):
            await either.open(local_addr=None, **options)

    either.run(main)


def test_a_family_alone(either, far):
    """Bound by its first send, as with the standard library."""

    async def main(loop):
        near = await either.open(local_addr=None, family=socket.AF_INET)
        near.transport.sendto(b"x", far.getsockname())
        await passes()
        payload, address = far.recvfrom(10)
        assert payload == b"x"
        far.sendto(b"y", address)
        await until(lambda: near.received)

    either.run(main)


def test_an_address_that_is_taken(either, far):
    async def main(loop):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await either.open(local_addr=far.getsockname())

    either.run(main)


def test_our_error_names_the_address(endpoints, far):
    async def main(loop):
        with pytest.raises(OSError, match=repr(far.getsockname()[1])):
            await endpoints.open(local_addr=far.getsockname())
        with pytest.raises(OSError, match=r"255\.255\.255\.255"):
            await endpoints.open(remote_addr=("255.255.255.255", 9))

    endpoints.run(main)


def test_an_address_of_another_host(either):
    async def main(loop):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
            await either.open(local_addr=("192.0.2.1", 0))

    either.run(main)


def test_the_first_address_that_works_is_taken(endpoints, monkeypatch):
    def resolve(host, port, *arguments, **options):
        kind, proto = socket.SOCK_DGRAM, socket.IPPROTO_UDP
        return [
            (99, kind, proto, "", ("nowhere", 0)),  # there is no such family
            (socket.AF_INET, kind, 6, "", ("127.0.0.1", 0)),  # nor such a socket
            (socket.AF_INET, kind, proto, "", ("127.0.0.1", 0)),
        ]

    async def main(loop):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", resolve)
            near = await endpoints.open(local_addr=("name.invalid", 0))
        assert near.address[0] == "127.0.0.1"
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", lambda *arguments, **options: resolve(*arguments, **options)[:2])
            with pytest.raises(OSError, match="ddress family") as caught:  # the first failure
                await endpoints.open(local_addr=("name.invalid", 0))
            assert caught.value.errno == errno.EAFNOSUPPORT
            patch.setattr(socket, "getaddrinfo", lambda *arguments, **options: [])
            with pytest.raises(OSError, match="returned empty list"):
                await endpoints.open(local_addr=("name.invalid", 0))

    endpoints.run(main)


# --- AF_UNIX -------------------------------------------------------------------------------------------


def test_unix_datagrams(either, tmp_path):
    paths = [str(tmp_path / name) for name in ("server", "client")]

    async def main(loop):
        server = await either.open(local_addr=paths[0], family=socket.AF_UNIX)
        client = await either.open(local_addr=paths[1], remote_addr=paths[0], family=socket.AF_UNIX)
        assert server.address == paths[0]
        assert client.transport.get_extra_info("peername") == paths[0]
        client.transport.sendto(b"one")
        client.transport.sendto(b"two")
        await until(lambda: len(server.received) == 2)
        assert server.received == [(b"one", paths[1]), (b"two", paths[1])]
        server.transport.sendto(b"back", paths[1])
        await until(lambda: client.received)
        assert client.payloads == [b"back"]
        with pytest.raises(ValueError, match="Invalid address"):
            client.transport.sendto(b"x", paths[1])

    either.run(main)


def test_a_stale_unix_socket_is_removed(either, tmp_path):
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(path)

    async def main(loop):
        near = await either.open(local_addr=path, family=socket.AF_UNIX)
        assert near.address == path

    either.run(main)


def test_a_file_in_the_way_is_not_removed(either, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")

    async def main(loop):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await either.open(local_addr=str(path), family=socket.AF_UNIX)

    either.run(main)
    assert path.read_text() == "precious"


def test_a_path_that_may_not_be_looked_at(either, tmp_path, monkeypatch):
    """As in asyncio, bind alone says what is wrong; a socket can be made where none can be removed."""

    async def main(loop):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
            stale.bind(str(tmp_path / "socket"))

        def refuse(path):
            raise PermissionError(errno.EPERM, "no", path)

        monkeypatch.setattr(os, "remove", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await either.open(local_addr=str(tmp_path / "socket"), family=socket.AF_UNIX)

    either.run(main)


def test_an_abstract_unix_address(either):
    name = f"\x00fastsock-test-{os.getpid()}"

    async def main(loop):
        near = await either.open(local_addr=name, family=socket.AF_UNIX)
        assert near.address == name.encode()

    either.run(main)


@pytest.mark.parametrize("address", [b"/tmp/x", 5, ("a", 1)])
@pytest.mark.parametrize("which", ["local_addr", "remote_addr"])
def test_a_unix_address_is_text(either, which, address):
    async def main(loop):
        with pytest.raises(TypeError, match="string is expected"):
            await either.open(**{"local_addr": None, which: address}, family=socket.AF_UNIX)

    either.run(main)


def test_an_absent_unix_peer(either, tmp_path):
    async def main(loop):
        with pytest.raises(FileNotFoundError):
            await either.open(local_addr=None, remote_addr=str(tmp_path / "absent"), family=socket.AF_UNIX)

    either.run(main)


def test_a_unix_datagram_may_be_longer_than_udp_allows(either, recorder, tmp_path):
    async def main(loop):
        near = await either.open(recorder, local_addr=str(tmp_path / "near"), family=socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
            far.sendto(b"x" * 100_000, near.address)
            far.sendto(b"short", near.address)
            await until(lambda: len(near.received) == 2)
        assert [len(payload) for payload in near.payloads] == [100_000, 5]

    if recorder is Recorder or either.ours:
        either.run(main)


@pytest.mark.parametrize("name", ["", "\x00fastsock-test-{}", "path"], ids=["unnamed", "abstract", "path"])
def test_the_address_of_a_unix_sender(either, tmp_path, name):
    async def main(loop):
        near = await either.open(local_addr=str(tmp_path / "near"), family=socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far, socket.socket(socket.AF_UNIX, far.type) as other:
            address = name.format(os.getpid()) if name[:1] == "\x00" else str(tmp_path / name)
            if name:
                far.bind(address)
            other.bind(str(tmp_path / "other"))
            far.sendto(b"x", str(tmp_path / "other"))
            far.sendto(b"x", near.address)
            await until(lambda: near.received)
            assert near.received == [other.recvfrom(10)]

    either.run(main)


def test_the_address_of_the_other_half_of_a_pair(either, cls):
    async def main(loop):
        mine, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with far:
            near = await either.open(sock=cls(fileno=mine.detach()))
            far.send(b"x")
            await until(lambda: near.received)
        assert near.received == [(b"x", None)]

    if either.ours or cls is socket.socket:
        either.run(main)


def test_a_unix_peer_that_is_gone(endpoints, tmp_path):
    path = str(tmp_path / "far")

    async def main(loop):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
            far.bind(path)
            near = await endpoints.open(local_addr=None, remote_addr=path, family=socket.AF_UNIX)
        near.transport.sendto(b"x")
        near.transport.sendto(b"y")
        await until(lambda: near.errors)
        assert isinstance(near.errors[0], ConnectionRefusedError)
        assert not near.transport.is_closing()

    endpoints.run(main)


# --- options -------------------------------------------------------------------------------------------


def test_reuse_port(either):
    async def main(loop):
        first = await either.open(reuse_port=True)
        second = await either.open(local_addr=first.address, reuse_port=True)
        assert second.address == first.address
        assert option(first, socket.SOL_SOCKET, socket.SO_REUSEPORT)
        third = await either.open()
        assert not option(third, socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert not option(third, socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not option(third, socket.SOL_SOCKET, socket.SO_BROADCAST)

    either.run(main)


def test_allow_broadcast(either):
    async def main(loop):
        near = await either.open(allow_broadcast=True)
        assert option(near, socket.SOL_SOCKET, socket.SO_BROADCAST)

    either.run(main)


def test_options_of_bind_udp(endpoints):
    async def main(loop):
        near = await endpoints.open(
            reuse_address=True,
            rcvbuf=8192,
            sndbuf=16384,
            gso=False,
            gro=False,
            pktinfo=True,
            ecn=True,
            ttl=True,
            error_queue=True,
        )
        sock = near.transport.get_extra_info("socket")
        assert option(near, socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert option(near, socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 8192
        assert option(near, socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 16384
        assert [option(near, socket.IPPROTO_IP, number) for number in (8, 11, 12, 13)] == [1, 1, 1, 1]
        assert not sock.gso
        assert not sock.gro
        plain = await endpoints.open()
        assert plain.transport.get_extra_info("socket").gro == bool(fastsock.probe().gro)

    endpoints.run(main)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"timestamps": "sometimes"}, ValueError), ({"rcvbuf": 0}, ValueError), ({"nonsense": 1}, TypeError)],
)
def test_a_wrong_option_leaves_nothing_open(endpoints, options, error):
    async def main(loop):
        with pytest.raises(error):
            await endpoints.open(**options)

    endpoints.run(main)


@needs_multicast
def test_multicast(endpoints):
    async def main(loop):
        group = "239.255.77.1"
        near = await endpoints.open(local_addr=("", 0), multicast=(group, "127.0.0.1"))
        assert near.transport.get_extra_info("socket").family == socket.AF_INET
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            far.sendto(b"to the group", (group, near.address[1]))
            await until(lambda: near.received)
        assert near.payloads == [b"to the group"]

    endpoints.run(main)


@needs_multicast
def test_a_unicast_address_hears_no_group(endpoints):
    async def main(loop):
        with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
            await endpoints.open(multicast="239.255.77.1")

    endpoints.run(main)
