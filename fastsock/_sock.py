"""The Socket class: the compiled methods, and the cold ones in plain Python.

What is called per datagram belongs in _socket.pyx and _batchio.pyx, under src/fastsock. May import the compiled
modules and the standard library's socket, for its enumerations.
"""

from __future__ import annotations

import os
import socket as _stdlib
from types import TracebackType
from typing import Any, Self

from fastsock._batchio import BatchSocket


class Socket(BatchSocket):
    """A socket with the methods of ``socket.socket``, and whole batches in one system call.

    Args:
        family: AF_INET (the default), AF_INET6 or AF_UNIX.
        type: SOCK_STREAM by default, as in the standard library; SOCK_DGRAM for UDP.
        proto: 0 by default.
        fileno: Take over this descriptor; what is left -1 is asked of the kernel.

    Raises:
        OSError: As socket(2); EBADF or ENOTSOCK for a bad ``fileno``.

    Any number of threads may use one socket. See ``bind_udp`` for the usual way to one.
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
        parts = [f"fd={self.fileno()}", f"family={self.family!s}", f"type={self.type!s}", f"proto={self.proto}"]
        if self.fileno() < 0:
            parts.append("[closed]")
        else:
            for name, ask in (("laddr", self.getsockname), ("raddr", self.getpeername)):
                try:
                    address = ask()
                except OSError:
                    continue
                if address:
                    parts.append(f"{name}={address!r}")
        return f"<{type(self).__module__}.{type(self).__qualname__} {', '.join(parts)}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    @property
    def family(self) -> int:
        """The address family, as the standard library's enumeration where it has one."""
        try:
            return _stdlib.AddressFamily(self._family)
        except ValueError:
            return self._family

    @property
    def type(self) -> int:
        """The socket type, as the standard library's enumeration where it has one."""
        try:
            return _stdlib.SocketKind(self._type)
        except ValueError:
            return self._type

    @property
    def timeout(self) -> float | None:
        """What ``gettimeout`` returns."""
        return self.gettimeout()

    def dup(self) -> Self:
        """Return a socket on a duplicate, non-inheritable descriptor. See dup(2)."""
        fd = os.dup(self.fileno())
        try:
            copy = type(self)(self._family, self._type, self.proto, fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        copy.settimeout(self.gettimeout())
        return copy

    def get_inheritable(self) -> bool:
        """Whether child processes inherit the descriptor."""
        return os.get_inheritable(self.fileno())

    def set_inheritable(self, inheritable: bool) -> None:
        """Let child processes inherit the descriptor, or not."""
        os.set_inheritable(self.fileno(), inheritable)
