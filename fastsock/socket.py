"""The standard library's ``socket`` module, with our class for sockets: ``from fastsock import socket``.

What makes a socket makes a ``fastsock.Socket``; resolution, constants and everything else are the
standard library's own. Its types are in socket.pyi. May import _sock.
"""

import socket as _stdlib
from socket import *  # noqa: F403

from fastsock._sock import Socket

__all__ = _stdlib.__all__

socket = SocketType = Socket


def __getattr__(name):
    return getattr(_stdlib, name)  # what is public there without being in __all__, as AddressFamily


def __dir__():
    return sorted({*globals(), *dir(_stdlib)})


def fromfd(fd, family, type, proto=0):
    """Return a socket on a duplicate of ``fd``; the other arguments as for ``socket``."""
    copy = _stdlib.dup(fd)
    try:
        return Socket(family, type, proto, fileno=copy)
    except BaseException:
        _stdlib.close(copy)
        raise


def socketpair(family=None, type=_stdlib.SOCK_STREAM, proto=0):
    """Return two connected sockets, AF_UNIX by default. See socketpair(2)."""
    first, second = _stdlib.socketpair(family, type, proto)
    return own(first), own(second)


def create_connection(address, timeout=_stdlib._GLOBAL_DEFAULT_TIMEOUT, source_address=None, *, all_errors=False):
    """Connect a TCP socket to the first address of ``(host, port)`` that answers.

    Raises the last error, or an ExceptionGroup of all with ``all_errors``.
    """
    return own(_stdlib.create_connection(address, timeout, source_address, all_errors=all_errors))


def create_server(address, *, family=_stdlib.AF_INET, backlog=None, reuse_port=False, dualstack_ipv6=False):
    """Return a TCP socket that listens on ``address``, bound with SO_REUSEADDR.

    Raises:
        OSError: As bind(2), with the address in its text.
        ValueError: ``dualstack_ipv6`` with a ``family`` that is not AF_INET6.
    """
    return own(
        _stdlib.create_server(
            address, family=family, backlog=backlog, reuse_port=reuse_port, dualstack_ipv6=dualstack_ipv6
        )
    )


def own(sock):
    """What the standard library made, as a ``Socket``: it is one where a program has put our class there."""
    return sock if isinstance(sock, Socket) else Socket.from_stdlib(sock)
