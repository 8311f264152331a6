from collections.abc import Iterable
from typing import Any

from typing_extensions import Buffer

from fastsock._sock import Socket as socket  # noqa: N813

SocketType = socket

def fromfd(fd: int, family: int, type: int, proto: int = 0) -> socket: ...
def socketpair(family: int | None = None, type: int = ..., proto: int = 0) -> tuple[socket, socket]: ...
def create_connection(
    address: tuple[str | None, int],
    timeout: float | None = ...,
    source_address: tuple[str, int] | None = None,
    *,
    all_errors: bool = False,
) -> socket: ...
def create_server(
    address: Any,
    *,
    family: int = ...,
    backlog: int | None = None,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
) -> socket: ...
def send_fds(
    sock: socket, buffers: Iterable[Buffer], fds: Iterable[int], flags: int = 0, address: Any = None
) -> int: ...
def recv_fds(sock: socket, bufsize: int, maxfds: int, flags: int = 0) -> tuple[bytes, list[int], int, Any]: ...

# Behind our own names, which a type checker then keeps.
from socket import *  # type: ignore[assignment]  # noqa: E402, F403
from socket import EAGAIN as EAGAIN  # noqa: E402
from socket import EBADF as EBADF  # noqa: E402
from socket import EWOULDBLOCK as EWOULDBLOCK  # noqa: E402
from socket import AddressFamily as AddressFamily  # noqa: E402
from socket import AddressInfo as AddressInfo  # noqa: E402
from socket import MsgFlag as MsgFlag  # noqa: E402
from socket import SocketIO as SocketIO  # noqa: E402
from socket import SocketKind as SocketKind  # noqa: E402
from socket import __all__ as __all__  # noqa: E402
