from typing import Any

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
def __getattr__(name: str) -> Any: ...

# Behind our own names, which a type checker then keeps.
from socket import *  # type: ignore[assignment]  # noqa: E402, F403
from socket import __all__ as __all__  # noqa: E402
