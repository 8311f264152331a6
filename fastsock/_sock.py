"""The Socket class: the compiled methods, and the cold ones in plain Python.

What is called per datagram belongs in the compiled modules, under src/fastsock. May import the compiled
modules, _multicast, _steering and the standard library's socket, for its enumerations.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import socket as _stdlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex, TypeVar, overload

from fastsock import _multicast, _steering
from fastsock._send import SendSocket

# Kept from the start: a program may put our class in its place (`socket.socket = fastsock.Socket`).
StandardSocket = _stdlib.socket
Made = TypeVar("Made", bound=Any)


@dataclass(frozen=True, slots=True)
class SocketStats:
    """What a ``Socket`` counted since it was opened: see ``Socket.stats``."""

    received: int
    """Datagrams that its calls returned."""
    sent: int
    """Datagrams that the kernel took from its calls."""
    drops: int | None
    """Datagrams that the kernel dropped for want of room; None where it does not say."""
    gro: bool
    """Whether the kernel joins received datagrams."""
    gso: bool
    """Whether the kernel cuts sends into datagrams; False also after a device refused."""
    gso_fallbacks: int
    """How often datagrams had to be sent one by one because their segmentation was refused."""
    errors_discarded: int
    """Records of the error queue for which ``recv_errors`` was not called in time."""
    zerocopy_pending: int
    """Sends of ``send_zerocopy`` whose buffers are still held."""


class Socket(SendSocket):
    """A socket with the methods and attributes of ``socket.socket``, and whole batches in one system call.

    Args:
        family: AF_INET (the default), AF_INET6 or AF_UNIX; AF_NETLINK, AF_PACKET and AF_VSOCK too.
            The addresses of any other are ``(family, bytes)``, both ways: the kernel's own form.
        type: SOCK_STREAM by default, as in the standard library; SOCK_DGRAM for UDP.
        proto: 0 by default.
        fileno: Take over this descriptor; what is left -1 is asked of the kernel.

    Raises:
        OSError: As socket(2); EBADF or ENOTSOCK for a bad ``fileno``.

    Any number of threads may use one socket. See ``bind_udp`` for the usual way to one.

    It is no ``socket.socket``: where a library insists on that, ``to_stdlib`` makes one.
    """

    __module__ = "fastsock"
    __slots__ = ("__weakref__",)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return StandardSocket.__repr__(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # From 2 on pickle asks for __getstate__, which a subclass may have.
        return super().__reduce_ex__(max(2, operator.index(protocol)))

    def __getstate__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    @property
    def family(self) -> _stdlib.AddressFamily:
        """The address family, as the standard library's enumeration where it has one."""
        try:
            return _stdlib.AddressFamily(self._family)
        except ValueError:
            return self._family  # type: ignore[return-value]

    @property
    def type(self) -> _stdlib.SocketKind:
        """The socket type, as the standard library's enumeration where it has one."""
        try:
            return _stdlib.SocketKind(self._type)
        except ValueError:
            return self._type  # type: ignore[return-value]

    @property
    def stats(self) -> SocketStats:
        """Counts since the socket was opened, as a ``SocketStats``.

        A duplicate counts for itself, but for ``drops``, which is the kernel's. On a stream
        ``received`` and ``sent`` count calls.
        """
        try:
            drops = self.drops
        except OSError:
            drops = None
        return SocketStats(
            received=self._received,
            sent=self._sent,
            drops=drops,
            gro=self.gro,
            gso=self.gso,
            gso_fallbacks=self._gso_fallbacks,
            errors_discarded=self._errors_discarded,
            zerocopy_pending=self.zerocopy_pending,
        )

    # --- beside the standard library ----------------------------------------------------------

    @classmethod
    def from_stdlib(cls, sock: _stdlib.socket) -> Self:
        """Move the descriptor of a ``socket.socket`` into a new socket, with its time-out.

        ``sock`` is closed then, as after ``detach``; it stays as it was where this raises.

        Raises:
            TypeError: It is no ``socket.socket``, or one with TLS, whose state cannot be moved.
            OSError: It is closed (EBADF).
        """
        ssl = sys.modules.get("ssl")
        if not isinstance(sock, StandardSocket) or (ssl is not None and isinstance(sock, ssl.SSLSocket)):
            raise TypeError(f"from_stdlib() takes a socket.socket, not {type(sock).__name__}")
        return move(sock, cls)

    def to_stdlib(self) -> _stdlib.socket:
        """Move the descriptor into a new ``socket.socket``, with the time-out; this socket is closed then.

        For libraries that insist on one, as ``trio.socket.from_stdlib_socket``. Options stay
        with the descriptor; datagrams that GRO joined would come out as one there.

        Raises:
            OSError: It is closed (EBADF).
            BufferError: The kernel may still read buffers of ``send_zerocopy``: ``recv_errors``
                releases them.
        """
        if self.zerocopy_pending:
            raise BufferError(f"{self.zerocopy_pending} sends of send_zerocopy() are not done: see recv_errors()")
        return move(self, StandardSocket)

    def dup(self) -> Self:
        """Return a socket on a duplicate, non-inheritable descriptor. See dup(2)."""
        fd = os.dup(self.fileno())
        try:
            copy = type(self)(self._family, self._type, self.proto, fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        copy.settimeout(self.gettimeout())
        copy.gso = self._gso_wanted
        return copy

    def get_inheritable(self) -> bool:
        """Whether child processes inherit the descriptor."""
        return os.get_inheritable(self.fileno())

    def set_inheritable(self, inheritable: bool) -> None:
        """Let child processes inherit the descriptor, or not."""
        os.set_inheritable(self.fileno(), inheritable)

    # --- streams --------------------------------------------------------------------------------

    def accept(self) -> tuple[Socket, Any]:
        """Wait for a connection; returns its socket, which waits without end, and the peer's address.

        Raises:
            BlockingIOError: No connection was waiting, and the socket does not wait (EAGAIN).
            TimeoutError: None came in time.
            OSError: EINVAL before ``listen``; EMFILE, ENFILE, ENOBUFS or ENOMEM when something ran
                out: the connection stays queued, and the socket readable. See accept4(2).
        """
        made = Socket.__new__(Socket)
        return made, self._accept_as(made)

    @overload
    def makefile(
        self,
        mode: Literal["b", "rb", "br", "wb", "bw", "rwb", "rbw", "wrb", "wbr", "brw", "bwr"],
        buffering: Literal[0],
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> _stdlib.SocketIO: ...
    @overload
    def makefile(
        self,
        mode: Literal["rwb", "rbw", "wrb", "wbr", "brw", "bwr"],
        buffering: Literal[-1, 1] | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.BufferedRWPair: ...
    @overload
    def makefile(
        self,
        mode: Literal["b", "rb", "br"],
        buffering: Literal[-1, 1] | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.BufferedReader: ...
    @overload
    def makefile(
        self,
        mode: Literal["wb", "bw"],
        buffering: Literal[-1, 1] | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.BufferedWriter: ...
    @overload
    def makefile(
        self,
        mode: Literal["b", "rb", "br", "wb", "bw", "rwb", "rbw", "wrb", "wbr", "brw", "bwr"],
        buffering: int,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.IOBase: ...
    @overload
    def makefile(
        self,
        mode: Literal["r", "w", "rw", "wr"] = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...
    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Return a file over the socket, with the arguments of ``open``; modes are r, w, rw and b.

        The descriptor is closed when both the socket and every such file are.
        """
        return StandardSocket.makefile(  # type: ignore[call-overload]
            self, mode, buffering, encoding=encoding, errors=errors, newline=newline
        )

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file opened in binary mode, or ``count`` bytes of it from ``offset`` on; returns the bytes sent.

        By sendfile(2), within the kernel, where the file is a regular one; else by ``send``.

        Raises:
            ValueError: The socket is no stream or never waits, or the file is not in binary mode.
            TimeoutError: The peer did not read in time.
        """
        return StandardSocket.sendfile(self, file, offset, count)  # type: ignore[arg-type]

    # --- multicast --------------------------------------------------------------------------

    def join_group(self, group: str, interface: str | int | None = None, source: str | None = None) -> None:
        """Receive what is sent to a multicast group; the socket must be bound to the port.

        Args:
            group: An address in digits. A dual-stack socket joins IPv4 groups too.
            interface: Where to join: a name, an index, or an address of the interface. None
                lets the kernel route, which seldom finds the right one of several.
            source: Receive from this sender alone (source-specific multicast); call again
                for more senders. It narrows a group that is joined from any sender.

        Raises:
            ValueError: ``group`` is not a multicast address, or of a family that the socket
                does not speak; ``source`` is of another.
            OSError: ENODEV without such an interface; EADDRINUSE, or EADDRNOTAVAIL with a
                source, for what is joined already; ENOBUFS at the limit. The group is in its text.

        From the first join on, the socket hears only the groups that it joined itself.
        Without this Linux gives it those that any socket of the machine has joined
        (IP_MULTICAST_ALL, and IPV6_MULTICAST_ALL from Linux 4.20). See ip(7), ipv6(7).
        """
        _multicast.join_group(self, group, interface, source)

    def leave_group(self, group: str, interface: str | int | None = None, source: str | None = None) -> None:
        """Leave a group, or one of its sources, on the interface where it was joined.

        Without ``source`` every source is left.

        Raises:
            ValueError: As ``join_group``.
            OSError: EADDRNOTAVAIL for what is not joined, EINVAL for a source of it; ENODEV
                without such an interface.

        Closing the socket leaves every group. See ip(7), ipv6(7).
        """
        _multicast.leave_group(self, group, interface, source)

    def set_multicast(
        self, *, loop: bool | None = None, ttl: int | None = None, interface: str | int | None = None
    ) -> None:
        """Say how this socket sends to multicast groups; what is None stays as it is.

        Args:
            loop: Whether this machine's own members receive it. The kernel's default is True.
            ttl: How many hops it may go, 0 to 255. The kernel's default is 1: the local network.
            interface: Where it goes out, as in ``join_group``; 0 lets the kernel route again.

        Raises:
            ValueError: ``ttl`` is out of range.
            OSError: ENODEV without such an interface.

        On a dual-stack socket it holds for both families. Set the interface before ``connect``,
        which takes the source address from it. See ip(7), ipv6(7).
        """
        _multicast.set_multicast(self, loop, ttl, interface)

    # --- steering ---------------------------------------------------------------------------

    def steer(self, how: str | None, size: int | None = None) -> None:
        """Choose which socket of its SO_REUSEPORT group a datagram goes to.

        Args:
            how: "cpu", the CPU that received the datagram modulo ``size``; "source", a hash of
                the sender's address without its port, so that one exporter always reaches the
                same socket; "random", every socket equally often; None, the kernel's own hash
                of both addresses and ports.
            size: Sockets in the group. They are numbered in the order of ``bind``; when one is
                closed, the last one takes its number.

        Raises:
            ValueError: An unknown ``how``, or a ``size`` that no group has.
            OSError: EINVAL where the socket was not bound with ``reuse_port``.

        It holds for the whole group, also for sockets that are bound later. A number that no
        socket has falls back to the kernel's hash. Datagrams that GSO or GRO holds together
        are steered together. Multicast is not steered: every socket
        that joined gets every datagram. See SO_ATTACH_REUSEPORT_CBPF in socket(7).
        """
        _steering.steer(self, how, size)


# What makefile and sendfile call on the socket, in this version of Python.
for _name in vars(StandardSocket):
    if _name.startswith("_sendfile_") or _name in ("_check_sendfile_params", "_decref_socketios"):
        setattr(Socket, _name, getattr(StandardSocket, _name))


def move(sock: Any, cls: Callable[..., Made]) -> Made:
    """The descriptor and time-out of `sock` in a socket of another class; `sock` is closed then."""
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    made = cls(sock.family, sock.type, sock.proto, fileno=sock.fileno())
    try:
        made.settimeout(sock.gettimeout())
    except BaseException:
        made.detach()
        raise
    sock.detach()
    return made
